//! Erasing a person, or a session, from all stores. Here because it needs every one of them.
//!
//! The order is the argument. What a run has to know (which sessions were the person's) stands in tables and streams, so it is
//! removed last, and each step can be done again:
//!
//! 1. *Look.* The ends of the streams are noted: what was written before is promised to be gone. Sessions of the person are
//!    gathered from tables and streams, and which of them others shared.
//! 2. *Vectors, then what is said, then vectors again*: embeddings streams, dead letters, Chroma and session hashes; the streams of
//!    interactions and sessions; and once more what those may have forwarded meanwhile. An entry in a worker's hand is waited for: once
//!    it is settled, its rows, records and forwards are there to be found.
//! 3. *Rows,* in one transaction; then the hashes of sessions that others shared, as the table has them now.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::chroma::{ChromaError, Client, Find};
use crate::config::{Config, Lane};
use crate::event::subject::{Split, Subject, Wanted, each_named};
use crate::redis::erase::{self, Entries, RawEntry, Removed};
use crate::redis::sessions::SessionHashes;
use crate::redis::{Redis, inspect};
use crate::seam::EntryId;
use crate::timescale::erase::{Eraser, Rows};

/// Between two looks at what is in a worker's hand.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Values of one question to Chroma.
const VALUES_MAX: usize = 200;

/// What was removed from one stream, or would be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FromStream {
    /// Entries, those included of which others' events went back.
    pub entries: u64,
    /// Events.
    pub events: u64,
    /// Entries of which others' events went back.
    pub mixed: u64,
}

/// What was removed, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    /// Rows.
    pub rows: Rows,
    /// Session hashes.
    pub hashes: u64,
    /// Records of Chroma, by collection.
    pub vectors: BTreeMap<String, u64>,
    /// Dead letters, by the stream that they came from.
    pub letters: BTreeMap<String, u64>,
    /// By stream.
    pub streams: BTreeMap<String, FromStream>,
    /// Records that the person wrote first and somebody else has written since: they are left.
    pub overwritten: u64,
    /// Records that name nobody, in sessions that others shared: they are left.
    pub ambiguous: u64,
}

struct Erasure<'a> {
    config: &'a Config,
    redis: Redis,
    client: Client,
    eraser: Eraser,
    wanted: Wanted,
    /// All sessions in which the subject took part.
    sessions: HashSet<String>,
    /// Those that others shared.
    shared: HashSet<String>,
    /// Where each stream ended.
    ends: BTreeMap<String, EntryId>,
    act: bool,
    patience: Duration,
    tell: &'a mut dyn FnMut(&str),
    erased: Erased,
}

/// Erases, or with `act` unset says what would be erased.
///
/// # Errors
/// A store is away or refuses, or entries stay in workers' hands for longer than `patience`; running it again goes on from there.
pub async fn run(
    config: &Config,
    subject: Subject,
    act: bool,
    patience: Duration,
    tell: &mut dyn FnMut(&str),
) -> anyhow::Result<Erased> {
    let Some(eraser) = Eraser::open(&config.database).await? else {
        bail!("a rebuild of embeddings or another erasure is under way: try again when it is done");
    };
    let (redis, client) = (Redis::new(&config.redis)?, Client::new(&config.chroma)?);
    client.heartbeat().await?;
    let erasure = Erasure {
        config,
        redis,
        client,
        eraser,
        wanted: Wanted { subject, sessions: HashSet::new() },
        sessions: HashSet::new(),
        shared: HashSet::new(),
        ends: BTreeMap::new(),
        act,
        patience,
        tell,
        erased: Erased::default(),
    };
    erasure.run().await
}

impl Erasure<'_> {
    async fn run(mut self) -> anyhow::Result<Erased> {
        (self.tell)("looking through the tables and streams");
        self.look().await?;
        (self.tell)("vectors, dead letters and session hashes");
        self.vectors().await?;
        self.hashes(&HashSet::new()).await?;
        (self.tell)("streams of interactions and sessions");
        for lane in [Lane::Interactions, Lane::Sessions] {
            self.lane(lane).await?;
        }
        if self.act {
            // What interactions handed on until they were settled.
            self.note_ends(Lane::Embeddings).await?;
            self.vectors().await?;
        }
        (self.tell)("rows");
        if !self.act {
            self.erased.rows = self.eraser.count(&self.wanted, &self.sessions).await?;
            return Ok(self.erased);
        }
        let (rows, touched) = self.eraser.remove(&self.wanted, &self.sessions).await?;
        self.erased.rows = rows;
        // A worker may have made a hash again out of the row that was there until now.
        self.hashes(&touched).await?;
        let left = self.eraser.sessions(&touched).await?;
        let hashes = SessionHashes::new(self.redis.clone(), &self.config.streams.prefix, self.config.session_ttl);
        hashes.merge(&left).await?;
        Ok(self.erased)
    }

    async fn note_ends(&mut self, lane: Lane) -> anyhow::Result<()> {
        for key in self.config.streams.keys(lane) {
            let tail = inspect::tail(&self.redis, &self.config.streams, &key).await?;
            self.ends.insert(key, tail.last);
        }
        Ok(())
    }

    /// Notes where the streams end, and gathers whose sessions are whose.
    async fn look(&mut self) -> anyhow::Result<()> {
        for lane in Lane::PRODUCED {
            self.note_ends(lane).await?;
        }
        let Subject::User(user) = self.wanted.subject.clone() else {
            self.sessions.insert(self.wanted.subject.id().to_owned());
            return Ok(());
        };
        self.sessions = self.eraser.sessions_of(&user).await?;
        // First all sessions of the user, then who else is in them.
        for others in [false, true] {
            for (key, end) in &self.ends {
                let mut entries = Entries::new(&self.redis, key, *end);
                loop {
                    let page = entries.next().await?;
                    if page.is_empty() {
                        break;
                    }
                    for payload in page.iter().filter_map(RawEntry::payload) {
                        each_named(payload, |_, names| {
                            let Some(names) = names else { return };
                            if !others && names.users.contains(&user) {
                                self.sessions.extend(names.sessions);
                            } else if others && names.users.iter().any(|other| *other != user) {
                                self.shared.extend(names.sessions.into_iter().filter(|session| self.sessions.contains(session)));
                            }
                        });
                    }
                }
            }
        }
        self.shared.extend(self.eraser.shared(&user, &self.sessions).await?);
        self.wanted.sessions = self.sessions.difference(&self.shared).cloned().collect();
        Ok(())
    }

    async fn vectors(&mut self) -> anyhow::Result<()> {
        self.lane(Lane::Embeddings).await?;
        self.records().await?;
        Ok(())
    }

    /// The streams of a lane up to their ends, and their dead letters.
    async fn lane(&mut self, lane: Lane) -> anyhow::Result<()> {
        for key in self.config.streams.keys(lane) {
            self.stream(&key).await?;
            // After the stream: what was in a worker's hand may have become one.
            let letters = erase::letters(&self.redis, &key, &self.wanted, self.act).await?;
            *self.erased.letters.entry(key).or_default() += letters;
        }
        Ok(())
    }

    async fn stream(&mut self, key: &str) -> anyhow::Result<()> {
        let end = self.ends.get(key).copied().unwrap_or_default();
        let mut entries = Entries::new(&self.redis, key, end);
        let mut in_hand = Vec::new();
        loop {
            let page = entries.next().await?;
            if page.is_empty() {
                break;
            }
            for entry in page {
                if self.entry(key, &entry).await? == Removed::InHand {
                    in_hand.push(entry.id);
                }
            }
        }
        let began = Instant::now();
        let mut told = false;
        while let Some(id) = in_hand.pop() {
            // Gone when it was trimmed meanwhile: settled, then.
            let Some(entry) = Entries::one(&self.redis, key, id).next().await?.into_iter().next() else { continue };
            if self.entry(key, &entry).await? == Removed::Done {
                continue;
            }
            in_hand.push(id);
            if began.elapsed() >= self.patience {
                bail!(
                    "{} entries of {key} are in workers' hands and do not get settled: does a store not answer (`aegis-ingest status --consumers`)? \
                     No row is removed yet; the same command goes on from here",
                    in_hand.len()
                );
            }
            if !std::mem::replace(&mut told, true) {
                (self.tell)(&format!("waiting for workers to settle {} entries of {key}", in_hand.len()));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    async fn entry(&mut self, key: &str, entry: &RawEntry) -> anyhow::Result<Removed> {
        let (events, runs) = match entry.split(&self.wanted) {
            Split::Untouched => return Ok(Removed::Done),
            Split::Whole(events) => (events, Vec::new()),
            Split::Mixed(events, runs) => (events, runs),
        };
        if self.act {
            let idle_ms = self.config.delivery.claim_idle.as_millis() as u64;
            if erase::remove(&self.redis, key, entry, &runs, idle_ms).await? == Removed::InHand {
                return Ok(Removed::InHand);
            }
        }
        let sum = self.erased.streams.entry(key.to_owned()).or_default();
        sum.entries += 1;
        sum.events += u64::from(events);
        sum.mixed += u64::from(!runs.is_empty());
        Ok(Removed::Done)
    }

    /// Records of every collection.
    async fn records(&mut self) -> anyhow::Result<()> {
        let archived = self.eraser.archived(&self.wanted).await?;
        let (mut overwritten, mut ambiguous) = (0, 0);
        for (name, collection) in self.client.all_collections().await? {
            let mut ids: HashSet<String> = HashSet::new();
            match &self.wanted.subject {
                Subject::Session(session) => {
                    ids.extend(
                        self.client.owners(collection, Find::Metadata("session_id", session)).await?.into_iter().map(|it| it.id),
                    );
                }
                Subject::User(user) => {
                    ids.extend(
                        self.client.owners(collection, Find::Metadata("user_id", user)).await?.into_iter().map(|it| it.id),
                    );
                    let sessions: Vec<_> = self.sessions.iter().map(String::as_str).collect();
                    for sessions in sessions.chunks(VALUES_MAX) {
                        for record in self.client.owners(collection, Find::AnyOf("session_id", sessions)).await? {
                            match (&record.user, &record.session) {
                                (None, Some(session)) if self.wanted.sessions.contains(session) => {
                                    ids.insert(record.id);
                                }
                                (None, _) => ambiguous += 1,
                                (Some(_), _) => {}
                            }
                        }
                    }
                }
            }
            // What the archive knows as theirs, whatever Chroma says by now.
            let known: Vec<_> =
                archived.iter().filter(|(own, id)| *own == name && !ids.contains(id)).map(|(_, id)| id.as_str()).collect();
            for known in known.chunks(VALUES_MAX) {
                for record in self.client.owners(collection, Find::Ids(known)).await? {
                    if record.user.is_none() && matches!(self.wanted.subject, Subject::User(_)) {
                        ids.insert(record.id);
                    } else {
                        overwritten += 1;
                    }
                }
            }
            if ids.is_empty() {
                continue;
            }
            let ids: Vec<_> = ids.into_iter().collect();
            *self.erased.vectors.entry(name).or_default() += ids.len() as u64;
            if self.act {
                match self.client.delete(collection, &ids).await {
                    // Deleted as a whole by somebody.
                    Ok(()) | Err(ChromaError::NotFound(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        (self.erased.overwritten, self.erased.ambiguous) = (overwritten, ambiguous);
        Ok(())
    }

    /// Hashes of the subject's sessions, and those that say they are the user's though no row is left.
    async fn hashes(&mut self, touched: &HashSet<String>) -> anyhow::Result<()> {
        let streams = &self.config.streams;
        let mut keys: HashSet<String> = match &self.wanted.subject {
            Subject::User(user) => erase::hashes_of(&self.redis, streams, user).await?,
            Subject::Session(_) => HashSet::new(),
        };
        // A session that others shared keeps its hash, unless what stands in it came from this user.
        let rows = self.eraser.from_subject(&self.wanted, &self.sessions).await?;
        keys.extend(self.sessions.difference(&self.shared).chain(&rows).chain(touched).map(|session| streams.session(session)));
        self.erased.hashes += erase::hashes(&self.redis, &keys.into_iter().collect::<Vec<_>>(), self.act).await?;
        Ok(())
    }
}
