//! Events drawn at random, and what is to become of each.

use rand::Rng;
use rand::rngs::SmallRng;
use uuid::Uuid;

use super::value::{Value, pack_array};

/// Numbers a vector.
pub const DIMENSION: usize = 8;
/// Sessions that updates are spread over.
const SESSIONS: u32 = 300;
/// What the tables' CHECK constraints refuse.
pub const POISON_INTENT: &str = "poison";
pub const POISON_SEQ: i64 = 666_666_666;

/// Where an event goes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    Interactions,
    Sessions,
    Embeddings,
}

impl Lane {
    pub const ALL: [Self; 3] = [Self::Interactions, Self::Sessions, Self::Embeddings];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Interactions => "interactions",
            Self::Sessions => "sessions",
            Self::Embeddings => "embeddings",
        }
    }
}

/// What is to become of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// One row, one state, one vector.
    Stored,
    /// One dead letter with this code.
    Dead(&'static str),
}

/// One event, as its producer knows it.
#[derive(Clone, Debug)]
pub struct Event {
    pub number: u64,
    pub lane: Lane,
    pub fate: Fate,
    pub fields: Vec<(&'static str, Value)>,
    /// Bytes that are no event at all, in place of the fields.
    pub garbage: Option<Vec<u8>>,
}

/// What every event carries somewhere, so that it is recognised whatever became of it.
pub fn mark(number: u64) -> String {
    format!("#{number}#")
}

/// Finds the mark in a text or in raw bytes.
pub fn marked(bytes: &[u8]) -> Option<u64> {
    let mut parts = bytes.split(|&b| b == b'#').skip(1);
    parts.find_map(|part| {
        let digits = !part.is_empty() && part.len() < 20 && part.iter().all(u8::is_ascii_digit);
        std::str::from_utf8(part).ok().filter(|_| digits)?.parse().ok()
    })
}

impl Event {
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.fields.iter().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    pub fn text(&self, key: &str) -> Option<&str> {
        match self.get(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    pub fn int(&self, key: &str) -> Option<i64> {
        match self.get(key) {
            Some(Value::Int(number)) => Some(*number),
            _ => None,
        }
    }

    pub fn vector(&self) -> Option<&[f32]> {
        match self.get("embedding") {
            Some(Value::Vector(numbers)) => Some(numbers),
            _ => None,
        }
    }

    pub fn event_id(&self) -> Option<Uuid> {
        match self.get("event_id") {
            Some(Value::Uuid(id)) => Some(*id),
            _ => None,
        }
    }

    pub fn occurred_at_us(&self) -> Option<i64> {
        match self.get("occurred_at") {
            Some(Value::Time(us)) => Some(*us),
            _ => None,
        }
    }

    /// Whether a second copy is the same event, so that a producer may send it again.
    pub fn has_identity(&self) -> bool {
        self.fate == Fate::Stored && self.event_id().is_some() && self.occurred_at_us().is_some()
    }

    /// An event out of `rng`; about one in forty is one that must be set aside.
    pub fn draw(rng: &mut SmallRng, number: u64, now_us: i64) -> Self {
        let lane = match rng.random_range(0..10) {
            0..5 => Lane::Interactions,
            5..8 => Lane::Sessions,
            _ => Lane::Embeddings,
        };
        let mut fields = Vec::new();
        if rng.random_bool(0.75) {
            fields.push(("event_id", Value::Uuid(Uuid::from_u128(rng.random()))));
        }
        if rng.random_bool(0.75) {
            fields.push(("occurred_at", Value::Time(now_us - rng.random_range(0..3_600_000_000))));
        }
        let mut event = Self { number, lane, fate: Fate::Stored, fields, garbage: None };
        match lane {
            Lane::Interactions => event.interaction(rng),
            Lane::Sessions => event.session(rng),
            Lane::Embeddings => event.embedding(rng),
        }
        if rng.random_bool(0.025) {
            event.spoil(rng, now_us);
        }
        event
    }

    fn interaction(&mut self, rng: &mut SmallRng) {
        self.fields.push(("session_id", Value::text(mark(self.number))));
        self.fields.push(("user_id", Value::text(format!("user-{}", rng.random_range(0..500)))));
        if rng.random_bool(0.8) {
            self.fields.push(("intent", Value::text(["lights.on", "weather", "timer.set"][rng.random_range(0..3)])));
        }
        if rng.random_bool(0.8) {
            self.fields.push(("latency_ms", Value::Float(f64::from(rng.random_range(0..4_000)) / 8.0)));
        }
        if rng.random_bool(0.5) {
            self.fields.push(("channel", Value::text("speaker")));
        }
        if rng.random_bool(0.7) {
            let words = "what was said ".repeat(rng.random_range(0..20));
            self.fields.push(("transcript", Value::text(format!("{} {words}", mark(self.number)))));
        }
        if rng.random_bool(0.5) {
            self.fields.push(("attributes", Value::Map(vec![("n", Value::Int(rng.random_range(0..1_000_000)))])));
        }
        if rng.random_bool(0.15) {
            self.fields.push(("embedding", draw_vector(rng, DIMENSION)));
        }
    }

    fn session(&mut self, rng: &mut SmallRng) {
        self.fields.push(("session_id", Value::text(format!("session-{}", rng.random_range(0..SESSIONS)))));
        self.fields.push(("user_id", Value::text(mark(self.number))));
        self.fields.push(("status", Value::text(["started", "updated", "ended"][rng.random_range(0..3)])));
        if rng.random_bool(0.7) {
            // Few values, so that the time and the id must decide as well.
            self.fields.push(("seq", Value::Int(rng.random_range(0..50))));
        }
        if rng.random_bool(0.6) {
            let state =
                Value::Map(vec![("step", Value::Int(rng.random_range(0..1_000))), ("by", Value::text(mark(self.number)))]);
            self.fields.push(("state", state));
        }
    }

    fn embedding(&mut self, rng: &mut SmallRng) {
        // One of the two is there, so that the oracle can ask for it by its id.
        if self.event_id().is_none() || rng.random_bool(0.3) {
            self.fields.push(("id", Value::text(format!("vector-{}", self.number))));
        }
        self.fields.push(("embedding", draw_vector(rng, DIMENSION)));
        self.fields.push(("document", Value::text(format!("{} a document", mark(self.number)))));
        self.fields.push(("metadata", Value::Map(vec![("n", Value::Int(rng.random_range(0..1_000_000)))])));
        if rng.random_bool(0.5) {
            self.fields.push(("session_id", Value::text(format!("session-{}", rng.random_range(0..SESSIONS)))));
        }
    }

    fn set(&mut self, key: &'static str, value: Value) {
        self.fields.retain(|(name, _)| *name != key);
        self.fields.push((key, value));
    }

    /// Makes it one that must be set aside; the mark stays in it.
    fn spoil(&mut self, rng: &mut SmallRng, now_us: i64) {
        let code = match (rng.random_range(0..5), self.lane) {
            (0, _) => {
                let mut garbage = vec![0xc1];
                garbage.extend_from_slice(mark(self.number).as_bytes());
                self.garbage = Some(garbage);
                "malformed"
            }
            (1, _) => {
                self.set("occurred_at", Value::Time(now_us - 400 * 86_400_000_000));
                "time_out_of_range"
            }
            (2, Lane::Interactions) => {
                self.fields.retain(|(name, _)| *name != "user_id");
                "missing_field"
            }
            (2, Lane::Sessions) => {
                self.fields.retain(|(name, _)| *name != "status");
                "missing_field"
            }
            (2, Lane::Embeddings) => {
                self.fields.retain(|(name, _)| *name != "embedding");
                "missing_field"
            }
            (_, Lane::Interactions) => {
                self.set("intent", Value::text(POISON_INTENT));
                "rejected"
            }
            (_, Lane::Sessions) => {
                self.set("seq", Value::Int(POISON_SEQ));
                "rejected"
            }
            (_, Lane::Embeddings) => {
                self.set("embedding", draw_vector(rng, DIMENSION + 3));
                "dimension_mismatch"
            }
        };
        self.fate = Fate::Dead(code);
    }
}

fn draw_vector(rng: &mut SmallRng, dimension: usize) -> Value {
    Value::Vector((0..dimension).map(|_| rng.random_range(-1.0..1.0)).collect())
}

/// One entry's field and value: a single event, or an array of them.
pub fn encode(events: &[&Event], as_json: bool, as_array: bool) -> (&'static str, Vec<u8>) {
    if let [Event { garbage: Some(garbage), .. }] = events {
        return (if as_json { "json" } else { "data" }, garbage.clone());
    }
    if as_json {
        let mut values: Vec<_> = events.iter().map(|event| Value::Map(event.fields.clone()).json()).collect();
        let value = if as_array { serde_json::Value::Array(values) } else { values.remove(0) };
        return ("json", value.to_string().into_bytes());
    }
    let mut out = Vec::new();
    if as_array {
        pack_array(events.len(), &mut out);
    }
    for event in events {
        Value::Map(event.fields.clone()).pack(&mut out);
    }
    ("data", out)
}

#[test]
fn marks_are_found_in_texts_and_in_bytes() {
    assert_eq!(marked(b"\xc1#17#"), Some(17));
    assert_eq!(marked(mark(4).as_bytes()), Some(4));
    assert_eq!(marked(b"a # b #x# #9# c"), Some(9));
    assert_eq!(marked(b"nothing"), None);
}
