//! The rules for single keys: what a value must be, and the sentence that says so when it is not.

use std::borrow::Cow;
use std::time::Duration;

use uuid::Uuid;

use super::msgpack::{Reader, Torn, Value, short_text};
use super::{Code, Fault, Head, ID_BYTES_MAX, Origin, Text, Vector, Window};

/// A key's name, fit for a reason: shortened, without control characters.
pub(super) fn shown(key: &[u8]) -> String {
    let text = String::from_utf8_lossy(key);
    let mut shown: String = text.chars().filter(|c| !c.is_control()).take(64).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

pub(super) fn invalid(key: &str, problem: impl std::fmt::Display) -> Fault {
    Fault::new(Code::InvalidField, format!("`{key}` {problem}"))
}

fn wrong(key: &str, wanted: &str, found: Value<'_>) -> Fault {
    invalid(key, format!("must be {wanted}, and is {}", found.kind()))
}

fn missing(key: &str, wanted: &str) -> Fault {
    Fault::new(Code::MissingField, format!("`{key}` is missing: {wanted} is required"))
}

/// Bytes as text: UTF-8 without U+0000, which PostgreSQL cannot store.
#[inline]
pub(super) fn text(bytes: &[u8]) -> Result<&str, &'static str> {
    let text = std::str::from_utf8(bytes).map_err(|_| "a text that is not valid UTF-8")?;
    if memchr::memchr(0, bytes).is_some() { Err("a text with the character U+0000") } else { Ok(text) }
}

/// All bytes of a key's value, which were stepped over before; null counts as absent.
pub(super) type Slot<'a> = Option<&'a [u8]>;

pub(super) fn torn(torn: Torn) -> Fault {
    Fault::new(Code::Malformed, torn.to_string())
}

/// The value of a slot; of a container its head.
#[inline]
pub(super) fn value(slot: Slot<'_>) -> Result<Value<'_>, Fault> {
    let Some(whole) = slot else { return Ok(Value::Nil) };
    if let Some((marker, rest)) = whole.split_first()
        && let Ok(bytes) = rest.try_into()
    {
        // The two forms that nearly every number has.
        match (marker, i64::from_be_bytes(bytes)) {
            (0xcb, _) => return Ok(Value::Float(f64::from_be_bytes(bytes))),
            (0xcf, number @ 0..) => return Ok(Value::Int(number)),
            _ => {}
        }
    }
    Reader::new(whole).read().map_err(torn)
}

#[inline]
pub(super) fn optional_text<'a>(key: &str, slot: Slot<'a>) -> Result<Option<Text<'a>>, Fault> {
    let Some(whole) = slot else { return Ok(None) };
    match short_text(whole).and_then(Text::plain) {
        Some(text) => Ok(Some(text)),
        None => any_text(key, whole),
    }
}

/// Long texts, texts that are not ASCII alone, and what is no text.
fn any_text<'a>(key: &str, whole: &'a [u8]) -> Result<Option<Text<'a>>, Fault> {
    match value(Some(whole))? {
        Value::Nil => Ok(None),
        Value::Text(bytes) => match Text::plain(bytes) {
            Some(text) => Ok(Some(text)),
            None => text(bytes).map(|text| Some(Text::from(text))).map_err(|problem| invalid(key, format!("holds {problem}"))),
        },
        other => Err(wrong(key, "a text", other)),
    }
}

#[inline]
fn bounded_id<'a>(key: &str, id: Text<'a>) -> Result<Text<'a>, Fault> {
    match id.as_bytes().len() {
        1..=ID_BYTES_MAX => Ok(id),
        0 => Err(invalid(key, "is empty: 1 to 256 bytes are required")),
        len => Err(invalid(key, format!("is {len} bytes long: at most {ID_BYTES_MAX} are allowed"))),
    }
}

#[inline]
pub(super) fn required_id<'a>(key: &str, slot: Slot<'a>) -> Result<Text<'a>, Fault> {
    let id = optional_text(key, slot)?.ok_or_else(|| missing(key, "a text of 1 to 256 bytes"))?;
    bounded_id(key, id)
}

pub(super) fn optional_id<'a>(key: &str, slot: Slot<'a>) -> Result<Option<Text<'a>>, Fault> {
    optional_text(key, slot)?.map(|id| bounded_id(key, id)).transpose()
}

/// A number from `min` to `max`.
#[inline]
pub(super) fn optional_number(key: &str, slot: Slot<'_>, min: f64, max: f64) -> Result<Option<f64>, Fault> {
    let number = match value(slot)? {
        Value::Nil => return Ok(None),
        Value::Float(number) => number,
        Value::Int(number) => number as f64,
        Value::UInt(number) => number as f64,
        other => return Err(wrong(key, "a number", other)),
    };
    if number.is_finite() && number >= min && number <= max {
        return Ok(Some(number));
    }
    Err(invalid(
        key,
        if !number.is_finite() {
            "must be a finite number".to_owned()
        } else if max.is_finite() {
            format!("must be a number from {min} to {max}")
        } else {
            format!("must be a number of at least {min}")
        },
    ))
}

pub(super) fn sequence(key: &str, slot: Slot<'_>) -> Result<Option<i64>, Fault> {
    match value(slot)? {
        Value::Nil => Ok(None),
        Value::Int(number) if number >= 0 => Ok(Some(number)),
        Value::Int(_) => Err(invalid(key, "must not be negative")),
        Value::UInt(_) => Err(invalid(key, "must be at most 9223372036854775807")),
        other => Err(wrong(key, "an integer of at least 0", other)),
    }
}

pub(super) fn status(slot: Slot<'_>) -> Result<super::Status, Fault> {
    const WANTED: &str = "`started`, `updated` or `ended`";
    match optional_text("status", slot)?.map(Text::as_bytes) {
        None => Err(missing("status", WANTED)),
        Some(b"started") => Ok(super::Status::Started),
        Some(b"updated") => Ok(super::Status::Updated),
        Some(b"ended") => Ok(super::Status::Ended),
        Some(_) => Err(invalid("status", format!("must be {WANTED}"))),
    }
}

/// Identity and time of an event.
#[inline]
pub(super) fn head(event_id: Slot<'_>, occurred_at: Slot<'_>, origin: &Origin<'_>, window: &Window) -> Result<Head, Fault> {
    let event_id = match event_id {
        Some([0xc4, 16, bytes @ ..]) if bytes.len() == 16 => Uuid::from_slice(bytes).unwrap_or_default(),
        slot => any_event_id(slot, origin)?,
    };
    let given = time("occurred_at", occurred_at)?;
    let at = given.unwrap_or_else(|| i64::try_from(origin.ms).ok().and_then(|ms| ms.checked_mul(1000)).unwrap_or(i64::MAX));
    if at < window.from_us {
        return Err(out_of_range(given, "older", window.age_max, "AEGIS_MAX_EVENT_AGE"));
    }
    if at > window.until_us {
        return Err(out_of_range(given, "further ahead", window.skew_max, "AEGIS_MAX_CLOCK_SKEW"));
    }
    Ok(Head { event_id, occurred_at_us: at, time_given: given.is_some() })
}

/// An event's id in any form that is allowed.
fn any_event_id(slot: Slot<'_>, origin: &Origin<'_>) -> Result<Uuid, Fault> {
    match value(slot)? {
        Value::Nil => Ok(origin.event_id()),
        Value::Bytes(bytes) => {
            Uuid::from_slice(bytes).map_err(|_| invalid("event_id", format!("is {} bytes: a UUID is 16", bytes.len())))
        }
        // Only the hyphenated form: `try_parse` takes others as well.
        Value::Text(bytes) if bytes.len() == 36 => {
            Uuid::try_parse_ascii(bytes).map_err(|_| invalid("event_id", "is a text that is no hyphenated UUID"))
        }
        Value::Text(_) => Err(invalid("event_id", "is a text that is no hyphenated UUID")),
        other => Err(wrong("event_id", "a UUID (16 bytes, or hyphenated text)", other)),
    }
}

#[cold]
fn out_of_range(given: Option<i64>, how: &str, bound: Duration, variable: &str) -> Fault {
    let source = if given.is_some() { "`occurred_at`" } else { "`occurred_at` is absent, and the entry id's time" };
    let bound = spoken(bound.as_millis() as u64);
    Fault::new(Code::TimeOutOfRange, format!("{source} is {how} than {variable} ({bound}) allows"))
}

/// A time: timestamp extension, RFC 3339 text or Unix milliseconds. Returns Unix microseconds; what is finer is cut off.
fn time(key: &str, slot: Slot<'_>) -> Result<Option<i64>, Fault> {
    const WANTED: &str = "a time (timestamp, RFC 3339 text or Unix milliseconds)";
    let us = match value(slot)? {
        Value::Nil => return Ok(None),
        Value::Int(ms) => ms.checked_mul(1000).unwrap_or(if ms < 0 { i64::MIN } else { i64::MAX }),
        Value::UInt(_) => i64::MAX,
        Value::Ext(-1, data) => timestamp_us(data).ok_or_else(|| invalid(key, "is a timestamp that is not valid"))?,
        Value::Text(bytes) => {
            let parsed = std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<jiff::Timestamp>().ok());
            parsed.ok_or_else(|| invalid(key, "is a text that is no RFC 3339 time"))?.as_microsecond()
        }
        other => return Err(wrong(key, WANTED, other)),
    };
    Ok(Some(us))
}

/// The data of extension −1 as Unix microseconds, saturating.
pub(super) fn timestamp_us(data: &[u8]) -> Option<i64> {
    let (seconds, nanos) = match data.len() {
        4 => (i64::from(u32::from_be_bytes(data.try_into().ok()?)), 0),
        8 => {
            let both = u64::from_be_bytes(data.try_into().ok()?);
            ((both & 0x3_ffff_ffff) as i64, (both >> 34) as u32)
        }
        12 => {
            let (nanos, seconds) = data.split_first_chunk::<4>()?;
            (i64::from_be_bytes(seconds.try_into().ok()?), u32::from_be_bytes(*nanos))
        }
        _ => return None,
    };
    (nanos < 1_000_000_000).then(|| seconds.saturating_mul(1_000_000).saturating_add(i64::from(nanos / 1000)))
}

/// A vector: bytes are borrowed, an array of numbers is gathered in `scratch`.
pub(super) fn vector(slot: Slot<'_>) -> Result<Option<Vector<'_>>, Fault> {
    const KEY: &str = "embedding";
    const WANTED: &str = "an array of numbers, or bytes of little-endian float32";
    let Some(whole) = slot else { return Ok(None) };
    let mut reader = Reader::new(whole);
    match reader.read().map_err(torn)? {
        Value::Nil => Ok(None),
        Value::Bytes(bytes) => {
            if bytes.is_empty() {
                return Err(invalid(KEY, "is empty: at least one number is required"));
            }
            let (numbers, rest) = bytes.as_chunks::<4>();
            if !rest.is_empty() {
                return Err(invalid(KEY, format!("is {} bytes long: float32 take 4 each", bytes.len())));
            }
            if !numbers.iter().all(|number| f32::from_le_bytes(*number).is_finite()) {
                return Err(invalid(KEY, "holds a number that is not finite"));
            }
            Ok(Some(Vector(Cow::Borrowed(bytes))))
        }
        Value::Array(0) => Err(invalid(KEY, "is empty: at least one number is required")),
        Value::Array(len) => {
            // A member takes at least a byte, so the payload bounds the memory.
            let mut numbers = Vec::with_capacity(4 * len as usize);
            for _ in 0..len {
                let number = match reader.read() {
                    Ok(Value::Float(number)) => number as f32,
                    Ok(Value::Int(number)) => number as f32,
                    Ok(Value::UInt(number)) => number as f32,
                    Ok(other) => return Err(invalid(KEY, format!("must hold numbers alone, and holds {}", other.kind()))),
                    Err(error) => return Err(torn(error)),
                };
                if !number.is_finite() {
                    return Err(invalid(KEY, "holds a number that is not a finite float32"));
                }
                numbers.extend_from_slice(&number.to_le_bytes());
            }
            Ok(Some(Vector(Cow::Owned(numbers))))
        }
        other => Err(wrong(KEY, WANTED, other)),
    }
}

pub(super) fn required_vector(slot: Slot<'_>) -> Result<Vector<'_>, Fault> {
    vector(slot)?.ok_or_else(|| missing("embedding", "at least one finite number"))
}

/// Checks a collection's name by Chroma's rules.
///
/// # Errors
/// The rules, in words.
pub fn collection_name(name: &str) -> Result<&str, &'static str> {
    let bytes = name.as_bytes();
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let inner = bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(b));
    if (3..=512).contains(&bytes.len()) && inner && edge(bytes.first()) && edge(bytes.last()) {
        Ok(name)
    } else {
        Err("3 to 512 of the characters a-z, A-Z, 0-9, '.', '_' and '-', a letter or digit first and last")
    }
}

/// Checks a metadata key: one that Chroma keeps to itself can stop its compactor for every collection.
pub(super) fn metadata_key(key: &str) -> Result<(), Fault> {
    if key.is_empty() || key.starts_with("chroma:") || key.starts_with('$') || key.starts_with('#') {
        let key = shown(key.as_bytes());
        return Err(invalid(
            "metadata",
            format!("has the key {key:?}: a key is not empty and does not start with chroma:, $ or #"),
        ));
    }
    Ok(())
}

/// The shortest way to write a number of milliseconds as a setting.
pub fn spoken(ms: u64) -> String {
    for (unit, unit_ms) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        if ms >= unit_ms && ms.is_multiple_of(unit_ms) {
            return format!("{}{unit}", ms / unit_ms);
        }
    }
    format!("{ms}ms")
}
