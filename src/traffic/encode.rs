//! The bytes of an event. One set of serializable forms serves both formats: `MessagePack` gets times, ids and vectors in its
//! compact forms, JSON as text and arrays.

use serde::ser::{SerializeMap, SerializeSeq, SerializeTuple};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};
use uuid::Uuid;

/// The field that an entry carries its events in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// `MessagePack`, in the field `data`.
    #[default]
    #[value(help = "MessagePack, in the field data")]
    Data,
    /// JSON, in the field `json`.
    #[value(help = "JSON, in the field json")]
    Json,
}

/// Appends the value in the given format.
///
/// What is encoded here has text keys and finite numbers and goes to memory, so neither encoder has a reason to fail; if one did,
/// the event would arrive torn and become a dead letter.
pub(super) fn encode(format: Format, value: &impl Serialize, out: &mut Vec<u8>) {
    let outcome = match format {
        Format::Data => value.serialize(&mut rmp_serde::Serializer::new(&mut *out).with_struct_map()).map_err(drop),
        Format::Json => value.serialize(&mut serde_json::Serializer::new(&mut *out)).map_err(drop),
    };
    debug_assert_eq!(outcome, Ok(()));
}

/// An event id: 16 bytes, or hyphenated.
pub(super) struct Id(pub(super) Uuid);

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_str(self.0.as_hyphenated().encode_lower(&mut Uuid::encode_buffer()))
        } else {
            serializer.serialize_bytes(self.0.as_bytes())
        }
    }
}

/// Unix microseconds: a timestamp of 8 bytes (extension −1), or RFC 3339.
pub(super) struct Time(pub(super) i64);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            match jiff::Timestamp::from_microsecond(self.0) {
                Ok(time) => serializer.collect_str(&time),
                Err(_) => serializer.serialize_i64(self.0.div_euclid(1_000)),
            }
        } else if let Ok(seconds) = u64::try_from(self.0.div_euclid(1_000_000))
            && seconds < 1 << 34
        {
            let nanoseconds = self.0.rem_euclid(1_000_000).cast_unsigned() * 1_000;
            serializer.serialize_newtype_struct(rmp_serde::MSGPACK_EXT_STRUCT_NAME, &Stamp(nanoseconds << 34 | seconds))
        } else {
            // Before 1970 and after 2514 the 8 bytes do not reach; milliseconds do.
            serializer.serialize_i64(self.0.div_euclid(1_000))
        }
    }
}

struct Stamp(u64);

impl Serialize for Stamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut pair = serializer.serialize_tuple(2)?;
        pair.serialize_element(&-1_i8)?;
        pair.serialize_element(&Bytes(&self.0.to_be_bytes()))?;
        pair.end()
    }
}

struct Bytes<'a>(&'a [u8]);

impl Serialize for Bytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

/// Little-endian float32: the bytes, or an array of numbers.
#[derive(Clone, Copy)]
pub(super) struct Numbers<'a>(pub(super) &'a [u8]);

impl Serialize for Numbers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !serializer.is_human_readable() {
            return serializer.serialize_bytes(self.0);
        }
        let (numbers, _) = self.0.as_chunks::<4>();
        let mut array = serializer.serialize_seq(Some(numbers.len()))?;
        for number in numbers {
            array.serialize_element(&f32::from_le_bytes(*number))?;
        }
        array.end()
    }
}

#[derive(Serialize)]
pub(super) struct Interaction<'a> {
    pub(super) event_id: Id,
    pub(super) occurred_at: Time,
    pub(super) session_id: &'a str,
    pub(super) user_id: &'a str,
    pub(super) intent: &'a str,
    pub(super) latency_ms: f64,
    pub(super) confidence: f64,
    pub(super) channel: &'a str,
    pub(super) locale: &'a str,
    pub(super) transcript: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) attributes: Option<Attributes<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) embedding: Option<Numbers<'a>>,
}

#[derive(Serialize)]
pub(super) struct Attributes<'a> {
    pub(super) device: &'a str,
    pub(super) turn: u32,
    pub(super) snr_db: f64,
    pub(super) barge_in: bool,
}

#[derive(Serialize)]
pub(super) struct SessionUpdate<'a> {
    pub(super) event_id: Id,
    pub(super) occurred_at: Time,
    pub(super) session_id: &'a str,
    pub(super) user_id: &'a str,
    pub(super) status: &'a str,
    pub(super) seq: u32,
    pub(super) state: State<'a>,
}

#[derive(Serialize)]
pub(super) struct State<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) active_intent: Option<&'a str>,
    pub(super) channel: &'a str,
    pub(super) turns: u32,
    pub(super) slots: Slots<'a>,
}

/// Slot values in the order in which they were named; a slot stands once.
pub(super) struct Slots<'a>(pub(super) &'a [(&'static str, &'static str)]);

impl Serialize for Slots<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (slot, value) in self.0 {
            map.serialize_entry(slot, value)?;
        }
        map.end()
    }
}

#[derive(Serialize)]
pub(super) struct Vector<'a, M: Serialize> {
    pub(super) event_id: Id,
    pub(super) occurred_at: Time,
    pub(super) id: &'a str,
    pub(super) embedding: Numbers<'a>,
    pub(super) document: &'a str,
    pub(super) metadata: M,
    pub(super) session_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user_id: Option<&'a str>,
}

#[derive(Serialize)]
pub(super) struct IntentMetadata<'a> {
    pub(super) intent: &'a str,
    pub(super) locale: &'a str,
    pub(super) turn: u32,
}

#[derive(Serialize)]
pub(super) struct LineMetadata {
    pub(super) seq: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) turn: Option<i64>,
}

/// Identity and time, then keys as somebody else chose them.
pub(super) struct Keyed<'a> {
    pub(super) event_id: Id,
    pub(super) occurred_at: Time,
    pub(super) keys: &'a Map<String, Value>,
}

impl Serialize for Keyed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.keys.len() + 2))?;
        map.serialize_entry("event_id", &self.event_id)?;
        map.serialize_entry("occurred_at", &self.occurred_at)?;
        for (key, value) in self.keys {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}
