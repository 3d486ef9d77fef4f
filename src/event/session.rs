//! The convergent state of a session: two registers, each won by the latest (`seq`, `occurred_at`, `event_id`).
//!
//! Merging is commutative, associative and idempotent, so every order of arrival and any number of deliveries end alike
//! (a last-writer-wins register, Shapiro et al., "A comprehensive study of Convergent and Commutative Replicated Data Types", 2011).

use std::collections::HashMap;

use uuid::Uuid;

use super::{SessionUpdate, Status, Text};

/// What decides who wins a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The producer's order.
    pub seq: i64,
    /// Unix microseconds.
    pub at_us: i64,
    /// Decides between equals.
    pub event_id: Uuid,
}

impl Version {
    /// A text of 64 hexadecimal digits that orders like the version.
    pub fn text(&self) -> String {
        let order = Uuid::from_u64_pair(self.seq.cast_unsigned(), self.at_us.cast_unsigned() ^ (1 << 63));
        let mut text = String::with_capacity(64);
        for half in [order, self.event_id] {
            text.push_str(half.simple().encode_lower(&mut Uuid::encode_buffer()));
        }
        text
    }
}

/// What is known of a session from some of its updates, borrowed from them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folded<'a> {
    /// The session.
    pub session_id: Text<'a>,
    /// Earliest `occurred_at`, Unix microseconds.
    pub started_at_us: i64,
    /// Version of the winning update, whose time is `updated_at`.
    pub status_version: Version,
    /// Of the winning update.
    pub user_id: Text<'a>,
    /// Of the winning update.
    pub status: Status,
    /// The winning state map as JSON text, and its version.
    pub state: Option<(Version, &'a [u8])>,
}

/// Folds updates to one state a session, ordered by session id: that order keeps workers that write the same sessions at once
/// from waiting for each other in a circle.
pub fn fold<'a>(updates: impl Iterator<Item = SessionUpdate<'a>>) -> Vec<Folded<'a>> {
    let mut sessions: HashMap<Text<'a>, Folded<'a>> = HashMap::new();
    for update in updates {
        let version = Version { seq: update.seq, at_us: update.head.occurred_at_us, event_id: update.head.event_id };
        let new = Folded {
            session_id: update.session_id,
            started_at_us: version.at_us,
            status_version: version,
            user_id: update.user_id,
            status: update.status,
            state: update.state.map(|state| (version, state)),
        };
        sessions.entry(update.session_id).and_modify(|known| known.merge(&new)).or_insert(new);
    }
    let mut sessions: Vec<_> = sessions.into_values().collect();
    sessions.sort_unstable_by_key(|session| session.session_id);
    sessions
}

impl<'a> Folded<'a> {
    fn merge(&mut self, other: &Folded<'a>) {
        self.started_at_us = self.started_at_us.min(other.started_at_us);
        if other.status_version > self.status_version {
            self.status_version = other.status_version;
            self.user_id = other.user_id;
            self.status = other.status;
        }
        if let Some((version, _)) = other.state
            && self.state.is_none_or(|(known, _)| version > known)
        {
            self.state = other.state;
        }
    }
}

/// A session as the table has it after a merge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionState {
    /// The session.
    pub session_id: String,
    /// Of the winning update.
    pub user_id: String,
    /// Of the winning update.
    pub status: String,
    /// Its `seq`; its time is `updated_at`.
    pub status_version: Version,
    /// Earliest `occurred_at`, Unix microseconds.
    pub started_at_us: i64,
    /// JSON text of the state map and its version, where it is at hand.
    pub state: Option<(Version, Vec<u8>)>,
    /// Whether the table has a state map.
    pub stateful: bool,
}

impl SessionState {
    /// Whether the winning update ended the session; the time of its version is when.
    pub fn has_ended(&self) -> bool {
        self.status == Status::Ended.name()
    }
}
