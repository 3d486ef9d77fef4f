//! An event as a person can read it: `MessagePack` and JSON alike as indented JSON, long vectors and bytes abbreviated.
//!
//! Nothing is judged: what is wrong with the event is what somebody wants to see. Keys keep their order and their doubles.

use std::fmt::Write as _;

use crate::event::json_to_msgpack;
use crate::event::msgpack::{Reader, Torn, Value};

use super::super::table::is_active;

/// Containers deeper than this are left out; it is twice what the worker takes.
const DEPTH_MAX: usize = 64;
/// Numbers of an array that are shown unless all are wanted.
const NUMBERS_SHOWN: u32 = 4;
/// Bytes that are shown unless all are wanted.
const BYTES_SHOWN: usize = 16;
/// Bytes that are shown of what does not parse.
const RAW_SHOWN: usize = 2_000;

/// An event made readable.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Readable {
    /// One JSON value, indented.
    pub(super) json: String,
    /// What kept it from being read to its end.
    pub(super) problem: Option<String>,
}

/// Reads `MessagePack`.
pub(super) fn msgpack(bytes: &[u8], full: bool) -> Readable {
    let (mut reader, mut writer) = (Reader::new(bytes), Writer { out: String::new(), full });
    match writer.value(&mut reader, 0) {
        Ok(()) => {
            let rest = bytes.len() - reader.position();
            let problem = (rest > 0).then(|| format!("{rest} bytes follow the end of the MessagePack value"));
            Readable { json: harmless(&writer.out), problem }
        }
        Err(torn) => Readable { json: harmless(&quoted(&raw(bytes, full))), problem: Some(torn.to_string()) },
    }
}

/// Reads JSON.
pub(super) fn json(bytes: &[u8], full: bool) -> Readable {
    let mut packed = Vec::new();
    let problem = match json_to_msgpack(bytes, &mut packed) {
        Ok(()) => return msgpack(&packed, full),
        // serde's own words may quote the event; here that does no harm, but its place is enough.
        Err(_) => match serde_json::from_slice::<serde::de::IgnoredAny>(bytes) {
            Err(error) => format!("the JSON does not parse: see line {}, column {}", error.line(), error.column()),
            Ok(_) => "the JSON holds something that cannot be read".to_owned(),
        },
    };
    Readable { json: harmless(&quoted(&raw(bytes, full))), problem: Some(problem) }
}

/// Reads a field of an entry, whatever it is.
pub(super) fn field(name: &[u8], value: &[u8], full: bool) -> Readable {
    match name {
        b"data" => msgpack(value, full),
        b"json" => json(value, full),
        _ => Readable { json: harmless(&quoted(&raw(value, full))), problem: None },
    }
}

fn raw(bytes: &[u8], full: bool) -> String {
    let shown = if full { bytes } else { &bytes[..bytes.len().min(RAW_SHOWN)] };
    let more = bytes.len() - shown.len();
    let text = String::from_utf8_lossy(shown);
    if more > 0 { format!("{text}… {more} more bytes") } else { text.into_owned() }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Escapes what is valid in a JSON string and yet might move a terminal's cursor or turn its text around.
fn harmless(json: &str) -> String {
    if !json.contains(|c| c != '\n' && is_active(c)) {
        return json.to_owned();
    }
    json.chars().map(|c| if c != '\n' && is_active(c) { format!("\\u{:04x}", c as u32) } else { c.to_string() }).collect()
}

struct Writer {
    out: String,
    full: bool,
}

impl Writer {
    fn line(&mut self, depth: usize) {
        self.out.push('\n');
        self.out.extend(std::iter::repeat_n("  ", depth));
    }

    fn value(&mut self, reader: &mut Reader<'_>, depth: usize) -> Result<(), Torn> {
        let value = reader.read()?;
        match value {
            Value::Array(0) => self.out.push_str("[]"),
            Value::Map(0) => self.out.push_str("{}"),
            Value::Array(_) | Value::Map(_) if depth >= DEPTH_MAX => {
                reader.skip_members(value)?;
                self.out.push_str(&quoted(&format!("… deeper than {DEPTH_MAX} levels")));
            }
            Value::Array(len) => self.array(reader, len, depth)?,
            Value::Map(len) => {
                self.out.push('{');
                for i in 0..len {
                    if i > 0 {
                        self.out.push(',');
                    }
                    self.line(depth + 1);
                    self.key(reader)?;
                    self.out.push_str(": ");
                    self.value(reader, depth + 1)?;
                }
                self.line(depth);
                self.out.push('}');
            }
            scalar => self.scalar(scalar),
        }
        Ok(())
    }

    /// A key that is no text is shown as the text of what it is.
    fn key(&mut self, reader: &mut Reader<'_>) -> Result<(), Torn> {
        match reader.read_whole()? {
            (Value::Text(key), _) => self.out.push_str(&quoted(&String::from_utf8_lossy(key))),
            (other, _) => self.out.push_str(&quoted(&format!("({})", other.kind()))),
        }
        Ok(())
    }

    fn array(&mut self, reader: &mut Reader<'_>, len: u32, depth: usize) -> Result<(), Torn> {
        let vector = numbers_only(reader.clone(), len)?;
        self.out.push('[');
        for i in 0..len {
            if i > 0 {
                self.out.push_str(if vector { ", " } else { "," });
            }
            if vector && !self.full && i == NUMBERS_SHOWN && len > 2 * NUMBERS_SHOWN {
                self.out.push_str(&quoted(&format!("… {} more numbers", len - i)));
                for _ in i..len {
                    reader.read()?;
                }
                break;
            }
            if !vector {
                self.line(depth + 1);
            }
            self.value(reader, depth + 1)?;
        }
        if !vector {
            self.line(depth);
        }
        self.out.push(']');
        Ok(())
    }

    fn scalar(&mut self, value: Value<'_>) {
        let text = match value {
            Value::Nil => "null".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::UInt(value) => value.to_string(),
            Value::Float(value) if value.is_finite() => serde_json::Value::from(value).to_string(),
            Value::Float(value) => quoted(&value.to_string()),
            Value::Text(text) => quoted(&String::from_utf8_lossy(text)),
            Value::Bytes(bytes) => quoted(&self.bytes(bytes)),
            Value::Ext(-1, data) => quoted(&timestamp(data).unwrap_or_else(|| format!("(timestamp {})", self.bytes(data)))),
            Value::Ext(kind, data) => quoted(&format!("(extension type {kind}, {})", self.bytes(data))),
            // Containers have their own functions.
            Value::Array(_) | Value::Map(_) => return,
        };
        self.out.push_str(&text);
    }

    fn bytes(&self, bytes: &[u8]) -> String {
        if let Ok(uuid) = uuid::Uuid::from_slice(bytes) {
            return format!("(16 bytes: {uuid})");
        }
        let shown = if self.full { bytes } else { &bytes[..bytes.len().min(BYTES_SHOWN)] };
        let mut text = format!("({} bytes: ", bytes.len());
        for byte in shown {
            let _ = write!(text, "{byte:02x}");
        }
        text.push_str(if shown.len() < bytes.len() { "…)" } else { ")" });
        text
    }
}

fn numbers_only(mut reader: Reader<'_>, len: u32) -> Result<bool, Torn> {
    for _ in 0..len {
        if !matches!(reader.read()?, Value::Int(_) | Value::UInt(_) | Value::Float(_)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The three forms of a `MessagePack` timestamp as RFC 3339.
fn timestamp(data: &[u8]) -> Option<String> {
    let (seconds, nanoseconds) = match data.len() {
        4 => (i64::from(u32::from_be_bytes(data.try_into().ok()?)), 0),
        8 => {
            let both = u64::from_be_bytes(data.try_into().ok()?);
            ((both & ((1 << 34) - 1)).cast_signed(), (both >> 34) as i32)
        }
        12 => {
            let nanoseconds = u32::from_be_bytes(data[..4].try_into().ok()?);
            (i64::from_be_bytes(data[4..].try_into().ok()?), i32::try_from(nanoseconds).ok()?)
        }
        _ => return None,
    };
    jiff::Timestamp::new(seconds, nanoseconds).ok().map(|at| at.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn json_keeps_its_order_and_abbreviates_vectors() {
        let event = br#"{"z":1,"a":"x","v":[1,2,3,4,5,6,7,8,9],"l":["p",{"q":null}],"e":[],"z":2}"#;
        let short = json(event, false);
        assert_eq!(
            short.json,
            "{\n  \"z\": 1,\n  \"a\": \"x\",\n  \"v\": [1, 2, 3, 4, \"… 5 more numbers\"],\n  \"l\": [\n    \"p\",\n    {\n      \"q\": null\n    }\n  ],\n  \"e\": [],\n  \"z\": 2\n}"
        );
        assert_eq!(short.problem, None);
        assert!(json(event, true).json.contains("[1, 2, 3, 4, 5, 6, 7, 8, 9]"));
    }

    #[test]
    fn what_does_not_parse_is_shown_as_it_came() {
        let broken = json(b"{\"a\": \x1b[2J", false);
        assert_eq!(broken.json, "\"{\\\"a\\\": \\u001b[2J\"");
        assert!(broken.problem.unwrap().contains("column"));
        assert!(msgpack(&[0x81], false).problem.unwrap().contains("ends in the middle"));
        assert!(msgpack(&[0xc0, 0xc0], false).problem.unwrap().contains("1 bytes follow"));
        assert!(field(b"other", &[b'a'; 5000], false).json.ends_with("3000 more bytes\""));
    }

    #[test]
    fn what_json_lacks_is_put_in_words() {
        let one = |bytes: &[u8]| msgpack(bytes, false).json;
        assert_eq!(one(&[0xd6, 0xff, 0, 0, 0, 1]), "\"1970-01-01T00:00:01Z\"");
        assert_eq!(one(&[0xd4, 5, 9]), "\"(extension type 5, (1 bytes: 09))\"");
        assert_eq!(one(&[0xca, 0x7f, 0xc0, 0, 0]), "\"NaN\"");
        assert_eq!(one(&[0x81, 1, 0xc3]), "{\n  \"(an integer)\": true\n}");
        assert_eq!(one(b"\xa5a\xe2\x80\xaeb"), "\"a\\u202eb\"");
        assert!(one(&[[0xc4, 16].as_slice(), &[0; 16]].concat()).contains("00000000-0000-0000-0000-000000000000"));
        assert!(one(&[[0xc4, 20].as_slice(), &[0xab; 20]].concat()).contains("(20 bytes: abab"));
    }

    #[test]
    fn depth_is_bounded() {
        let shown = msgpack(&[vec![0x91; 100_000], vec![0xc0]].concat(), false);
        assert!(shown.problem.is_none() && shown.json.contains("deeper than 64"));
    }

    proptest! {
        #[test]
        fn any_bytes_become_json(bytes in proptest::collection::vec(any::<u8>(), 0..200), full: bool) {
            for shown in [msgpack(&bytes, full), json(&bytes, full), field(b"x", &bytes, full)] {
                prop_assert!(serde_json::from_str::<serde::de::IgnoredAny>(&shown.json).is_ok(), "{}", shown.json);
                prop_assert!(!shown.json.contains(|c| c != '\n' && is_active(c)));
            }
        }
    }
}
