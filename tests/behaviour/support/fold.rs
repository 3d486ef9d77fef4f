//! The oracle: what contract.md says becomes of events, written anew. Shares no code with the program.

use std::collections::BTreeMap;

use serde_json::Value as Json;
use uuid::Uuid;

use super::stores::SessionRow;

/// One update of a session.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    pub event_id: Uuid,
    pub occurred_at_us: i64,
    pub session_id: String,
    pub user_id: String,
    pub status: String,
    /// As the producer gave it; absent: the time in microseconds.
    pub seq: Option<i64>,
    pub state: Option<Json>,
}

impl Update {
    /// What decides who wins.
    pub fn version(&self) -> (i64, i64, Uuid) {
        (self.seq.unwrap_or(self.occurred_at_us), self.occurred_at_us, self.event_id)
    }

    /// The event as a producer writes it.
    pub fn event(&self) -> Json {
        let mut event = serde_json::json!({
            "event_id": self.event_id.to_string(),
            "session_id": self.session_id,
            "user_id": self.user_id,
            "status": self.status,
            "occurred_at": micros_text(self.occurred_at_us),
        });
        if let Some(seq) = self.seq {
            event["seq"] = seq.into();
        }
        if let Some(state) = &self.state {
            event["state"] = state.clone();
        }
        event
    }
}

/// RFC 3339 with microseconds.
pub fn micros_text(us: i64) -> String {
    // Civil date from days, after Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
    let (days, rest) = (us.div_euclid(86_400_000_000), us.rem_euclid(86_400_000_000));
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let mp = (5 * day_of_year + 2) / 153;
    let (day, month) = (day_of_year - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (seconds, micros) = (rest / 1_000_000, rest % 1_000_000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// What each session is after all of its updates, in whatever order and however often they come.
pub fn sessions(updates: &[Update]) -> BTreeMap<String, SessionRow> {
    let mut by_session: BTreeMap<String, Vec<&Update>> = BTreeMap::new();
    for update in updates {
        by_session.entry(update.session_id.clone()).or_default().push(update);
    }
    let outcome = |updates: Vec<&Update>| {
        let winner = updates.iter().max_by_key(|update| update.version()).expect("at least one");
        let state = updates.iter().filter(|update| update.state.is_some()).max_by_key(|update| update.version());
        SessionRow {
            user_id: winner.user_id.clone(),
            status: winner.status.clone(),
            seq: winner.version().0,
            started_at_us: updates.iter().map(|update| update.occurred_at_us).min().expect("at least one"),
            updated_at_us: winner.occurred_at_us,
            ended_at_us: (winner.status == "ended").then_some(winner.occurred_at_us),
            state: state.and_then(|update| update.state.clone()),
        }
    };
    by_session.into_iter().map(|(session, updates)| (session, outcome(updates))).collect()
}
