//! What is sent while servers go and come, and the proof that each of it arrived once.

use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use uuid::Uuid;

use crate::support::cluster::{Primaries, Sender};
use crate::support::send::{self, Fields};
use crate::support::{Space, stores, until_equal, wait};

/// Sessions of a load.
pub const SESSIONS: usize = 64;
/// Every so many interactions one is wrong, and one brings a vector.
const WRONG_EVERY: usize = 97;
const VECTOR_EVERY: usize = 400;

/// A numbered load over the streams of a space: interactions, some of them wrong, some with a vector, and session updates.
pub struct Load {
    space: Space,
    partitions: u16,
    base: u128,
    /// Interactions an entry.
    packed: usize,
    /// Interactions sent so far, and session updates.
    pub sent: usize,
    updates: usize,
    sender: Sender,
}

impl Load {
    pub fn new(space: &Space, partitions: u16, packed: usize) -> Self {
        let base = rand::random::<u128>() << 40;
        Self { space: space.clone(), partitions, base, packed, sent: 0, updates: 0, sender: Sender::new() }
    }

    /// The stream of a lane and partition.
    pub fn stream(&self, lane: &str, partition: usize) -> String {
        if self.partitions == 1 {
            self.space.stream(lane)
        } else {
            self.space.partition(lane, partition as u16 % self.partitions)
        }
    }

    pub fn streams(&self, lane: &str) -> Vec<String> {
        (0..usize::from(self.partitions)).map(|partition| self.stream(lane, partition)).collect()
    }

    fn id(&self, number: usize) -> Uuid {
        Uuid::from_u128(self.base + number as u128)
    }

    /// A user of this load alone: an erasure goes through every collection of the Chroma server, which tests share. User 1 says
    /// something and has one session, and the id of user 10 begins with theirs.
    pub fn user(&self, number: usize) -> String {
        format!("{}-u{number}", self.space.prefix)
    }

    fn interaction(&self, number: usize) -> Json {
        let mut event = json!({
            "event_id": self.id(number).to_string(), "occurred_at": send::now_ms(), "session_id": format!("s{}", number % SESSIONS),
            "user_id": self.user(number % 17), "intent": "light.on", "transcript": format!("number {number}"), "latency_ms": 5.5,
        });
        if number.is_multiple_of(WRONG_EVERY) {
            event["confidence"] = json!(7.0 + number as f64);
        } else if number.is_multiple_of(VECTOR_EVERY) {
            event["embedding"] = json!([1.0, number as f64, 0.5]);
        }
        event
    }

    fn wrong(&self) -> usize {
        (0..self.sent).filter(|number| number.is_multiple_of(WRONG_EVERY)).count()
    }

    fn vectors(&self) -> usize {
        (0..self.sent).filter(|number| number.is_multiple_of(VECTOR_EVERY) && !number.is_multiple_of(WRONG_EVERY)).count()
    }

    /// Sends so many more interactions and an update of each session, on a replica before it returns; each entry on the
    /// partition after the last one's.
    pub async fn send(&mut self, primaries: &impl Primaries, interactions: usize) {
        let events: Vec<_> = (self.sent..self.sent + interactions).map(|number| self.interaction(number)).collect();
        let entries = send::packed(&events, self.packed);
        let mut by_partition: Vec<Vec<Fields>> = vec![Vec::new(); usize::from(self.partitions)];
        for (number, entry) in entries.into_iter().enumerate() {
            by_partition[number % usize::from(self.partitions)].push(entry);
        }
        for (partition, entries) in by_partition.iter().enumerate() {
            let stream = self.stream("interactions", partition);
            self.sender.send(primaries, &stream, entries, true).await;
        }
        self.sent += interactions;
        self.update_sessions(primaries, "updated").await;
    }

    /// Sends an update of each session.
    pub async fn update_sessions(&mut self, primaries: &impl Primaries, status: &str) {
        self.updates += 1;
        for partition in 0..usize::from(self.partitions) {
            let of_partition = |session: &usize| session % usize::from(self.partitions) == partition;
            let events: Vec<_> = (0..SESSIONS).filter(of_partition).map(|session| json!({
                "event_id": self.id((1 << 36) + self.updates * SESSIONS + session).to_string(), "occurred_at": send::now_ms(),
                "session_id": format!("s{session}"), "user_id": self.user(session), "status": status, "seq": self.updates,
                "state": {"turn": self.updates},
            })).collect();
            if !events.is_empty() {
                let stream = self.stream("sessions", partition);
                self.sender.send(primaries, &stream, &send::packed(&events, 4), true).await;
            }
        }
    }

    /// Entries that were sent again.
    pub fn again(&self) -> usize {
        self.sender.again
    }

    /// Waits until everything is read and settled on every stream.
    pub async fn settled(&self, primaries: &impl Primaries, within: Duration) {
        let began = Instant::now();
        for lane in ["interactions", "sessions", "embeddings"] {
            for stream in self.streams(lane) {
                let left = within.saturating_sub(began.elapsed());
                until_equal(&format!("{stream} to be read and settled"), left, Some((0, 0)), async || {
                    let mut redis = primaries.at(primaries.of(&stream).await?).await?;
                    stores::lag_and_pending(&mut redis, &stream, "aegis").await
                })
                .await;
            }
        }
    }

    /// Every interaction is one row or one dead letter, every update one row, every vector one record, and each session is in
    /// its hash what it is in its table.
    pub async fn verify(&self, primaries: &impl Primaries) {
        let database = self.space.database().await;
        let found: HashSet<Uuid> = database
            .query("SELECT event_id FROM interaction_logs", &[])
            .await
            .expect("interaction_logs")
            .iter()
            .map(|row| row.get(0))
            .collect();
        let rows = stores::count(&database, "interaction_logs").await as usize;
        let missing: Vec<_> = (0..self.sent)
            .filter(|number| !number.is_multiple_of(WRONG_EVERY) && !found.contains(&self.id(*number)))
            .take(5)
            .collect();
        let wanted = self.sent - self.wrong();
        assert!(
            missing.is_empty() && rows == wanted && found.len() == wanted,
            "{wanted} rows wanted, {rows} found; missing {missing:?}"
        );
        assert_eq!(stores::count(&database, "session_events").await as usize, self.updates * SESSIONS, "session updates");

        let mut dead = BTreeSet::new();
        let mut letters = 0;
        for stream in self.streams("interactions") {
            let key = format!("{stream}:dead");
            for letter in stores::dead_letters(&mut primaries.connection(&key).await, &key).await {
                let text = String::from_utf8_lossy(letter.bytes("data").unwrap_or_default()).into_owned();
                let number = text.split("number ").nth(1).unwrap_or_default();
                let number: String = number.chars().take_while(char::is_ascii_digit).collect();
                dead.insert(number.parse::<usize>().unwrap_or_else(|_| panic!("a dead letter of nobody: {letter:?}")));
                letters += 1;
            }
        }
        assert!(
            dead.iter().all(|number| number.is_multiple_of(WRONG_EVERY)) && dead.len() == self.wrong(),
            "dead letters: {dead:?}"
        );
        // Twice only what was twice in the stream.
        assert!(letters <= dead.len() + self.again() * self.packed, "{letters} dead letters of {} events", dead.len());

        let chroma = self.space.chroma();
        until_equal("one record a vector", wait::LONG, self.vectors() as u64, async || {
            stores::record_count(&chroma, &self.space.collection).await
        })
        .await;

        self.verify_hashes(primaries).await;
    }

    /// Each session is in its hash what it is in its table.
    pub async fn verify_hashes(&self, primaries: &impl Primaries) {
        let mut differ = Vec::new();
        let sessions = stores::sessions(&self.space.database().await).await;
        assert_eq!(sessions.len(), SESSIONS);
        for (session, row) in sessions {
            let key = self.space.session_key(&session);
            let hash = stores::session_hash(&mut primaries.connection(&key).await, &key).await;
            if stores::hash_as_row(&hash).as_ref() != Some(&row.in_milliseconds()) {
                differ.push((row, hash));
            }
        }
        assert!(differ.is_empty(), "{} hashes are not what the table says: {:?}", differ.len(), differ.first());
    }
}
