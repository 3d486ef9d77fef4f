//! What producers write, judged: pure functions from the bytes of an entry to events or the reason why not.
//!
//! **Architecture invariant:** no I/O, no clock and no randomness in here; the time to judge by is an argument. Nothing in here
//! panics, whatever the bytes are, and memory is bounded by their number.
//!
//! `MessagePack` is read in place ([`msgpack`]); JSON is turned into `MessagePack` first, so that one set of rules judges both.

use std::time::Duration;

use uuid::Uuid;

mod decode;
mod fields;
mod forward;
mod json;
pub mod msgpack;
mod payload;
mod session;
pub mod subject;

pub use decode::{Decode, Judge};
pub use fields::{collection_name, spoken};
pub use json::json_to_msgpack;
pub use payload::{Events, Payload, each_event, event_alone};
pub use session::{Folded, SessionState, Version, fold};

/// Events that one entry may hold.
pub const ARRAY_MAX: usize = 10_000;
/// Containers inside each other, the event's own map being the first.
pub const DEPTH_MAX: usize = 32;
/// What is wrong with an event that is none.
const NO_MAP: &str = "the event is not a map";
/// Longest `session_id` and `user_id`, bytes.
pub const ID_BYTES_MAX: usize = 256;

/// Why an event was set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Code {
    /// No `data` or `json`, both, not parsed to its last byte, or no map.
    Malformed,
    /// A required key is absent.
    MissingField,
    /// A key holds what it must not.
    InvalidField,
    /// `occurred_at` is too old or too far ahead.
    TimeOutOfRange,
    /// The entry is larger than allowed.
    TooLarge,
    /// The vector does not fit its collection.
    DimensionMismatch,
    /// The destination refused this one event.
    Rejected,
}

impl Code {
    /// All codes.
    pub const ALL: [Self; 7] = [
        Self::Malformed,
        Self::MissingField,
        Self::InvalidField,
        Self::TimeOutOfRange,
        Self::TooLarge,
        Self::DimensionMismatch,
        Self::Rejected,
    ];

    /// The word in dead letters and metric labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::MissingField => "missing_field",
            Self::InvalidField => "invalid_field",
            Self::TimeOutOfRange => "time_out_of_range",
            Self::TooLarge => "too_large",
            Self::DimensionMismatch => "dimension_mismatch",
            Self::Rejected => "rejected",
        }
    }
}

/// What was wrong with an event: a code for machines, a sentence for the producer. Never the value itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The code.
    pub code: Code,
    /// One sentence that names the key and what was wrong.
    pub reason: String,
}

impl Fault {
    /// A fault with its sentence.
    pub fn new(code: Code, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }
}

/// What an event's identity and default time derive from: where it stood when it was first written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin<'a> {
    /// The stream.
    pub stream: &'a str,
    /// Milliseconds of the entry id.
    pub ms: u64,
    /// Sequence part of the entry id.
    pub seq: u64,
    /// Position in the array, 0 for a single event.
    pub index: u32,
}

/// Namespace of derived event ids (RFC 9562, version 5): drawn once, never to change.
const NAMESPACE: Uuid = Uuid::from_u128(0x5b1c_6f0e_8d0f_4b0b_9d5a_6f1f_2a0c_77e3);

impl Origin<'_> {
    /// The id of an event that brought none: the same on every redelivery and replay.
    pub fn event_id(&self) -> Uuid {
        Uuid::new_v5(&NAMESPACE, format!("{}\n{}-{}\n{}", self.stream, self.ms, self.seq, self.index).as_bytes())
    }
}

/// The instants between which `occurred_at` must lie.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Earliest, Unix microseconds.
    pub from_us: i64,
    /// Latest, Unix microseconds.
    pub until_us: i64,
    /// The settings in words, for reasons.
    pub age_max: Duration,
    /// See `age_max`.
    pub skew_max: Duration,
}

impl Window {
    /// The window around `now_us`, clipped to what a `timestamptz` can hold.
    pub fn around(now_us: i64, age_max: Duration, skew_max: Duration) -> Self {
        /// 4713 BC and the year 294276 are PostgreSQL's bounds; years 1 to 9999 are what RFC 3339 can write.
        const BOUNDS_US: (i64, i64) = (-62_135_596_800_000_000, 253_402_300_799_999_999);
        let us = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self {
            from_us: now_us.saturating_sub(us(age_max)).max(BOUNDS_US.0),
            until_us: now_us.saturating_add(us(skew_max)).min(BOUNDS_US.1),
            age_max,
            skew_max,
        }
    }
}

/// Identity and time, common to all kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The producer's id, or the derived one.
    pub event_id: Uuid,
    /// Unix microseconds.
    pub occurred_at_us: i64,
    /// Whether the producer gave the time.
    pub time_given: bool,
}

/// Eight times the same byte.
const fn each_byte(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// Whether `odd` sets the highest bit of none of the bytes, which it is given eight at a time; `a` is never odd.
#[inline]
fn none_odd(bytes: &[u8], odd: impl Fn(u64) -> u64) -> bool {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut tail = each_byte(b'a');
    for byte in rest {
        tail = tail << 8 | u64::from(*byte);
    }
    let all = words.iter().fold(odd(tail), |all, word| all | odd(u64::from_le_bytes(*word)));
    all & each_byte(0x80) == 0
}

/// A text that was judged: valid UTF-8 without U+0000. Bytes are all that a row of COPY wants of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text<'a>(&'a [u8]);

impl<'a> Text<'a> {
    /// The text, if it is ASCII without NUL: true of nearly every one.
    #[inline]
    fn plain(bytes: &'a [u8]) -> Option<Self> {
        // A byte's highest bit is set in it beyond ASCII, and in it less one if it was 0.
        none_odd(bytes, |word| word | word.wrapping_sub(each_byte(1))).then_some(Self(bytes))
    }

    /// The text whose bytes these were.
    pub(crate) const fn again(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[inline]
    pub const fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// The text.
    pub fn as_str(self) -> &'a str {
        std::str::from_utf8(self.0).unwrap_or_default()
    }
}

/// Judged by whoever made it: no U+0000.
impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Self(text.as_bytes())
    }
}

/// One turn of a voice interaction, borrowed from its entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Interaction<'a> {
    /// Identity and time.
    pub head: Head,
    /// Required.
    pub session_id: Text<'a>,
    /// Required.
    pub user_id: Text<'a>,
    /// What the speaker wanted.
    pub intent: Option<Text<'a>>,
    /// Milliseconds, finite and not negative.
    pub latency_ms: Option<f64>,
    /// 0 to 1.
    pub confidence: Option<f64>,
    /// Where it was spoken.
    pub channel: Option<Text<'a>>,
    /// Language tag.
    pub locale: Option<Text<'a>>,
    /// What was said.
    pub transcript: Option<Text<'a>>,
    /// Keys the program does not know, as JSON text of one object.
    pub attributes: Option<&'a [u8]>,
    /// Inline vector.
    pub embedding: Option<Vector<'a>>,
}

/// What an update says of its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Status {
    /// The session began.
    Started,
    /// The session goes on.
    Updated,
    /// The session is over.
    Ended,
}

impl Status {
    /// The word in events, tables and hashes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Updated => "updated",
            Self::Ended => "ended",
        }
    }
}

/// One update of a session, borrowed from its entry.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionUpdate<'a> {
    /// Identity and time.
    pub head: Head,
    /// Required.
    pub session_id: Text<'a>,
    /// Required.
    pub user_id: Text<'a>,
    /// Required.
    pub status: Status,
    /// The producer's order; absent: `occurred_at` in microseconds.
    pub seq: i64,
    /// The state map as JSON text of one object.
    pub state: Option<&'a [u8]>,
}

/// One vector, borrowed from its entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding<'a> {
    /// Identity and time.
    pub head: Head,
    /// The id in Chroma; absent: the event id.
    pub id: Option<&'a str>,
    /// The numbers.
    pub embedding: Vector<'a>,
    /// The text behind the vector.
    pub document: Option<&'a str>,
    /// Given beside the metadata.
    pub session_id: Option<&'a str>,
    /// Given beside the metadata.
    pub user_id: Option<&'a str>,
    /// Flat map of scalars as JSON text of one object, `session_id`, `user_id` and `occurred_at` included.
    pub metadata: &'a [u8],
    /// Absent: the configured one.
    pub collection: Option<&'a str>,
}

/// Numbers of a vector: little-endian float32, at least one, all finite.
#[derive(Clone, Debug, PartialEq)]
pub struct Vector<'a>(pub std::borrow::Cow<'a, [u8]>);

impl Vector<'_> {
    /// How many numbers.
    pub fn dimension(&self) -> usize {
        self.0.len() / 4
    }
}
