//! What became of every event: the stores are read, and held against the ledger.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use uuid::Uuid;

use super::arena::{Arena, streams};
use super::event::{Event, Fate, Lane, marked};
use super::producer::{Copy, Issued, Ledger};
use super::value::Value;
use crate::support::fold::{self, Update};
use crate::support::stores::{self, DeadLetter, InteractionRow, SessionEventRow};

/// Drawn once, never to change: ids of events that bring none derive from it, so another value would double them.
const NAMESPACE: Uuid = Uuid::from_u128(0x5b1c_6f0e_8d0f_4b0b_9d5a_6f1f_2a0c_77e3);

/// Everything that stands in the stores, by the mark of its event.
struct Found {
    interactions: HashMap<u64, Vec<InteractionRow>>,
    updates: HashMap<u64, Vec<SessionEventRow>>,
    letters: HashMap<u64, Vec<DeadLetter>>,
}

/// Judges all events. Returns what was looked at, in words, and the offences.
pub async fn pass(arena: &Arena, ledger: &Ledger) -> (String, Vec<String>) {
    let space = &arena.direct;
    let issued = ledger.read();
    let mut offences = Vec::new();
    let (database, mut redis) = (space.database().await, space.redis().await);
    let mut found = Found { interactions: HashMap::new(), updates: HashMap::new(), letters: HashMap::new() };
    for row in stores::interactions(&database).await {
        match marked(row.session_id.as_bytes()) {
            Some(mark) => found.interactions.entry(mark).or_default().push(row),
            None => offences.push(format!("a row that nobody issued: {row:?}")),
        }
    }
    for row in stores::session_events(&database).await {
        match marked(row.user_id.as_bytes()) {
            Some(mark) => found.updates.entry(mark).or_default().push(row),
            None => offences.push(format!("a session event that nobody issued: {row:?}")),
        }
    }
    let mut letters = 0;
    for lane in Lane::ALL {
        let mut dead = Vec::new();
        for stream in streams(space, lane) {
            dead.append(&mut stores::dead_letters(&mut redis, &format!("{stream}:dead")).await);
        }
        for letter in dead {
            letters += 1;
            let payload = letter.bytes("data").or_else(|| letter.bytes("json")).unwrap_or_default();
            match marked(payload) {
                Some(mark) => found.letters.entry(mark).or_default().push(letter),
                None => offences.push(format!("a dead letter that nobody expects: {letter:?}")),
            }
        }
    }
    let mut vectors = Vectors::default();
    let mut updates = Vec::new();
    let mut sure = 0;
    for event in &issued {
        sure += u64::from(event.certain());
        let stream = |copy: &Copy| space.partition(event.event.lane.name(), copy.partition);
        if let Err(offence) = judge(event, &stream, &found, &mut vectors, &mut updates) {
            offences.push(history(event, &offence, &found));
        }
    }
    let rows = found.interactions.len() + found.updates.len();
    sessions(arena, &updates, &mut offences).await;
    let count = vectors.check(arena, &mut offences).await;
    let words = format!(
        "{} events issued ({} of them unsure), {rows} rows, {count} vectors, {letters} dead letters, {} sessions",
        issued.len(),
        issued.len() as u64 - sure,
        fold::sessions(&updates).len()
    );
    (words, offences)
}

/// The stream that a copy was sent to.
type StreamOf<'a> = dyn Fn(&Copy) -> String + 'a;

/// Judges one event by its rows and letters; notes the vector and the update that follow from it.
fn judge(
    issued: &Issued,
    stream: &StreamOf<'_>,
    found: &Found,
    vectors: &mut Vectors,
    updates: &mut Vec<Update>,
) -> Result<(), String> {
    let event = &issued.event;
    let none = Vec::new();
    let letters = found.letters.get(&event.number).unwrap_or(&none);
    let rows = found.interactions.get(&event.number).map_or(0, Vec::len) + found.updates.get(&event.number).map_or(0, Vec::len);
    let least = usize::from(issued.certain());
    match event.fate {
        Fate::Dead(code) => {
            if rows > 0 {
                return Err(format!("is to be set aside as {code} and has {rows} rows"));
            }
            if !(least..=1).contains(&letters.len()) {
                return Err(format!("is to be one dead letter and is {}", letters.len()));
            }
            let (Some(letter), Some(copy)) = (letters.first(), issued.copies.first()) else { return Ok(()) };
            if letter.text("code") != code {
                return Err(format!("is to be set aside as {code} and is as {}", letter.text("code")));
            }
            let place = copy.entry.map(|(ms, seq)| (stream(copy), format!("{ms}-{seq}"), copy.index));
            let told = (letter.text("src"), letter.text("src_id"), letter.index());
            if place.is_some_and(|place| place != told) {
                return Err(format!("its dead letter names another place: {told:?}"));
            }
            Ok(())
        }
        Fate::Stored => {
            if !letters.is_empty() {
                return Err(format!("is to be stored and has {} dead letters", letters.len()));
            }
            match event.lane {
                Lane::Interactions | Lane::Sessions if !(least..=1).contains(&rows) => {
                    Err(format!("is to be one row and is {rows}"))
                }
                Lane::Interactions => match found.interactions.get(&event.number).and_then(|rows| rows.first()) {
                    Some(row) => interaction(issued, stream, row, vectors),
                    None => Ok(()),
                },
                Lane::Sessions => match found.updates.get(&event.number).and_then(|rows| rows.first()) {
                    Some(row) => update(issued, stream, row, updates),
                    None => Ok(()),
                },
                Lane::Embeddings => {
                    vectors.expect_embedding(issued);
                    Ok(())
                }
            }
        }
    }
}

/// Identity and time of an event that was certainly issued; of another one what the producer knew.
fn head(event: &Event, copies: &[Copy], stream: &StreamOf<'_>) -> (Option<Uuid>, Option<i64>) {
    let entry = copies.iter().find_map(|copy| copy.entry.map(|(ms, seq)| (ms, seq, copy.index, stream(copy))));
    let derived = entry
        .as_ref()
        .map(|(ms, seq, index, stream)| Uuid::new_v5(&NAMESPACE, format!("{stream}\n{ms}-{seq}\n{index}").as_bytes()));
    let time = entry.map(|(ms, ..)| ms as i64 * 1000);
    (event.event_id().or(derived), event.occurred_at_us().or(time))
}

#[expect(clippy::needless_pass_by_value, reason = "callers read better without a reference at each value")]
fn same<T: PartialEq + std::fmt::Debug>(what: &str, wanted: T, found: T) -> Result<(), String> {
    if wanted == found { Ok(()) } else { Err(format!("{what} is to be {wanted:?} and is {found:?}")) }
}

fn interaction(issued: &Issued, stream: &StreamOf<'_>, row: &InteractionRow, vectors: &mut Vectors) -> Result<(), String> {
    let event = &issued.event;
    let (id, time) = head(event, &issued.copies, stream);
    same("event_id", id.unwrap_or(row.event_id), row.event_id)?;
    same("occurred_at", time.unwrap_or(row.occurred_at_us), row.occurred_at_us)?;
    same("user_id", event.text("user_id"), Some(&row.user_id))?;
    for (key, found) in
        [("intent", &row.intent), ("channel", &row.channel), ("locale", &row.locale), ("transcript", &row.transcript)]
    {
        same(key, event.text(key), found.as_deref())?;
    }
    let latency = event.get("latency_ms").and_then(|value| if let Value::Float(number) = value { Some(*number) } else { None });
    same("latency_ms", latency, row.latency_ms)?;
    same("attributes", event.get("attributes").map(Value::json), row.attributes.clone())?;
    if let Some(vector) = event.vector() {
        let mut metadata = BTreeMap::new();
        for key in ["session_id", "user_id", "intent", "channel", "locale"] {
            if let Some(text) = event.text(key) {
                metadata.insert(key.to_owned(), text.into());
            }
        }
        metadata.insert("occurred_at".to_owned(), row.occurred_at_us.div_euclid(1000).into());
        let document = event.text("transcript").map(str::to_owned);
        vectors.0.insert(row.event_id.to_string(), Expected { vector: vector.to_vec(), document, metadata, certain: true });
    }
    Ok(())
}

fn update(issued: &Issued, stream: &StreamOf<'_>, row: &SessionEventRow, updates: &mut Vec<Update>) -> Result<(), String> {
    let event = &issued.event;
    let (id, time) = head(event, &issued.copies, stream);
    same("event_id", id.unwrap_or(row.event_id), row.event_id)?;
    same("occurred_at", time.unwrap_or(row.occurred_at_us), row.occurred_at_us)?;
    same("session_id", event.text("session_id"), Some(&row.session_id))?;
    same("status", event.text("status"), Some(&row.status))?;
    same("seq", event.int("seq").unwrap_or(row.occurred_at_us), row.seq)?;
    same("state", event.get("state").map(Value::json), row.state.clone())?;
    updates.push(Update {
        event_id: row.event_id,
        occurred_at_us: row.occurred_at_us,
        session_id: row.session_id.clone(),
        user_id: row.user_id.clone(),
        status: row.status.clone(),
        seq: event.int("seq"),
        state: event.get("state").map(Value::json),
    });
    Ok(())
}

/// Table and hash of each session must equal what its updates fold to.
async fn sessions(arena: &Arena, updates: &[Update], offences: &mut Vec<String>) {
    let space = &arena.direct;
    let wanted = fold::sessions(updates);
    let table = stores::sessions(&space.database().await).await;
    if table.len() != wanted.len() {
        offences.push(format!("{} sessions are to be in the table, and {} are", wanted.len(), table.len()));
    }
    let keys: Vec<_> = wanted.keys().map(|session| space.session_key(session)).collect();
    let hashes = stores::session_hashes(&mut *space.redis().await, &keys).await;
    for ((session, wanted), hash) in wanted.iter().zip(&hashes) {
        if table.get(session) != Some(wanted) {
            offences.push(format!("table sessions, {session}:\n  is to be {wanted:?}\n  and is   {:?}", table.get(session)));
        }
        let hash = stores::hash_as_row(hash);
        if hash.as_ref() != Some(&wanted.in_milliseconds()) {
            offences.push(format!("hash of {session}:\n  is to be {:?}\n  and is   {hash:?}", wanted.in_milliseconds()));
        }
    }
}

#[derive(Debug)]
struct Expected {
    vector: Vec<f32>,
    document: Option<String>,
    metadata: BTreeMap<String, serde_json::Value>,
    certain: bool,
}

/// Records that are to be in the collection, by id.
#[derive(Default)]
struct Vectors(BTreeMap<String, Expected>);

impl Vectors {
    fn expect_embedding(&mut self, issued: &Issued) {
        let event = &issued.event;
        let id = event.text("id").map(str::to_owned).or_else(|| event.event_id().map(|id| id.to_string()));
        let mut metadata = BTreeMap::new();
        if let Some(Value::Map(pairs)) = event.get("metadata") {
            metadata.extend(pairs.iter().map(|(key, value)| ((*key).to_owned(), value.json())));
        }
        if let Some(session) = event.text("session_id") {
            metadata.insert("session_id".to_owned(), session.into());
        }
        if let Some(us) = event.occurred_at_us() {
            metadata.insert("occurred_at".to_owned(), us.div_euclid(1000).into());
        }
        let expected = Expected {
            vector: event.vector().unwrap_or_default().to_vec(),
            document: event.text("document").map(str::to_owned),
            metadata,
            certain: issued.certain(),
        };
        self.0.insert(id.expect("an id or an event id"), expected);
    }

    /// Returns how many are there.
    async fn check(&self, arena: &Arena, offences: &mut Vec<String>) -> usize {
        let (space, client) = (&arena.direct, arena.direct.chroma());
        let ids: Vec<_> = self.0.keys().map(String::as_str).collect();
        let records = stores::records(&client, &space.collection, &ids).await;
        for (id, expected) in &self.0 {
            let Some(record) = records.get(id) else {
                if expected.certain {
                    offences.push(format!("vector {id} is missing: {expected:?}"));
                }
                continue;
            };
            let metadata: BTreeMap<_, _> = record.metadata.clone().unwrap_or_default().into_iter().collect();
            let equal =
                record.embedding == expected.vector && record.document == expected.document && metadata == expected.metadata;
            if !equal {
                offences.push(format!("vector {id}:\n  is to be {expected:?}\n  and is   {record:?}"));
            }
        }
        // The one that the arena put there is none of the events'.
        let count = stores::record_count(&client, &space.collection).await as usize;
        if count != records.len() + 1 {
            offences.push(format!("{} vectors are in the collection, and {} of them were issued", count - 1, records.len()));
        }
        records.len()
    }
}

/// What is known of an event that is not as it should be.
fn history(issued: &Issued, offence: &str, found: &Found) -> String {
    let event = &issued.event;
    let mut text = format!("event #{} of {}, {:?}: {offence}", event.number, event.lane.name(), event.fate);
    for copy in &issued.copies {
        let answer = copy.entry.map_or_else(|| "no answer".to_owned(), |(ms, seq)| format!("entry {ms}-{seq}"));
        let _ = write!(text, "\n    issued at {:.2} s, position {}: {answer}", copy.at.as_secs_f64(), copy.index);
    }
    for row in found.interactions.get(&event.number).into_iter().flatten() {
        let _ = write!(text, "\n    row of interaction_logs: {} at {} µs", row.event_id, row.occurred_at_us);
    }
    for row in found.updates.get(&event.number).into_iter().flatten() {
        let _ = write!(text, "\n    row of session_events: {} at {} µs", row.event_id, row.occurred_at_us);
    }
    for letter in found.letters.get(&event.number).into_iter().flatten() {
        let (stream, entry, index) = (letter.text("src"), letter.text("src_id"), letter.index());
        let _ = write!(
            text,
            "\n    dead letter {} of {stream} {entry} [{index}], {}: {}",
            letter.id,
            letter.text("code"),
            letter.text("reason")
        );
    }
    text
}
