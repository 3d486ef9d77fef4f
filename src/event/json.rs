//! JSON out of `MessagePack`, for `jsonb` columns and metadata; and `MessagePack` out of JSON, so that one decoder judges both.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::fields::{text, timestamp_us};
use super::msgpack::{Reader, Value};
use super::{each_byte, none_odd};

const TORN: &str = "bytes that are not MessagePack";

/// Turns the JSON text of one value into `MessagePack`, appended to `out`.
///
/// # Errors
/// Where and why the text is not JSON; never a part of the text.
pub fn json_to_msgpack(json: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
    let mut from = serde_json::Deserializer::from_slice(json);
    let mut to = rmp_serde::Serializer::new(out);
    serde_transcode::transcode(&mut from, &mut to).map_err(|_| "it nests too deep or holds an invalid escape".to_owned())?;
    from.end().map_err(|error| format!("line {}, column {}", error.line(), error.column()))
}

/// Writes the next value of `reader` as JSON text.
///
/// Bytes become base64 text and timestamps RFC 3339 text, since JSON has neither.
///
/// # Errors
/// What JSON (or `jsonb`) cannot hold, as the end of a sentence.
pub(super) fn write_value(reader: &mut Reader<'_>, out: &mut Vec<u8>) -> Result<(), &'static str> {
    let value = reader.read().map_err(|_| TORN)?;
    match value {
        Value::Array(len) => {
            out.push(b'[');
            for i in 0..len {
                if i > 0 {
                    out.push(b',');
                }
                write_value(reader, out)?;
            }
            out.push(b']');
        }
        Value::Map(len) => {
            out.push(b'{');
            write_pairs(reader, len, &mut true, out)?;
            out.push(b'}');
        }
        scalar => write_scalar(scalar, out)?,
    }
    Ok(())
}

/// Pairs of a map that are put in order.
const ORDERED_MAX: usize = 16;

/// Writes the next `len` pairs of `reader` as members of a JSON object that is open already.
///
/// The members of a small map are written in the order that `jsonb` keeps, length before bytes: PostgreSQL sorts them in any case,
/// and at less cost when they come sorted. Of equal keys the last one stays the last, and so the one that counts. For this a value
/// is stepped over once for each map that it is in, so [`super::DEPTH_MAX`] times at most.
pub(super) fn write_pairs<'a>(
    reader: &mut Reader<'a>,
    len: u32,
    first: &mut bool,
    out: &mut Vec<u8>,
) -> Result<(), &'static str> {
    let key = |reader: &mut Reader<'a>| match reader.read() {
        Ok(Value::Text(key)) => Ok(key),
        _ => Err("a key that is not a text"),
    };
    let mut pairs: [(&[u8], &[u8]); ORDERED_MAX] = [(&[], &[]); ORDERED_MAX];
    let Some(pairs) = pairs.get_mut(..len as usize) else {
        for _ in 0..len {
            write_any_key(key(reader)?, first, out)?;
            write_value(reader, out)?;
        }
        return Ok(());
    };
    for pair in &mut *pairs {
        *pair = (key(reader)?, reader.whole().map_err(|_| TORN)?);
    }
    pairs.sort_by(|(one, _), (other, _)| one.len().cmp(&other.len()).then_with(|| one.cmp(other)));
    for (key, whole) in pairs {
        write_any_key(key, first, out)?;
        write_value(&mut Reader::new(whole), out)?;
    }
    Ok(())
}

/// Whether the bytes are ASCII that stands in a JSON string as it is: true of nearly every key and every short text.
#[inline]
fn is_verbatim(bytes: &[u8]) -> bool {
    // A byte less n has its highest bit set if it was below n; where a borrow sets that of its neighbour, the careful way is taken.
    let is = |word: u64, byte: u8| (word ^ each_byte(byte)).wrapping_sub(each_byte(1));
    none_odd(bytes, |word| word | word.wrapping_sub(each_byte(b' ')) | is(word, b'"') | is(word, b'\\'))
}

fn write_verbatim(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(bytes);
    out.push(b'"');
}

fn write_any_key(key: &[u8], first: &mut bool, out: &mut Vec<u8>) -> Result<(), &'static str> {
    if is_verbatim(key) {
        write_comma(first, out);
        write_verbatim(key, out);
        out.push(b':');
    } else {
        write_key(text(key).map_err(|_| "a key that is not valid text")?, first, out);
    }
    Ok(())
}

fn write_comma(first: &mut bool, out: &mut Vec<u8>) {
    if !std::mem::take(first) {
        out.push(b',');
    }
}

/// Writes `"key":`, after a comma unless it is the first.
pub(super) fn write_key(key: &str, first: &mut bool, out: &mut Vec<u8>) {
    write_comma(first, out);
    write_text(key, out);
    out.push(b':');
}

/// Writes a JSON string.
pub(super) fn write_text(text: &str, out: &mut Vec<u8>) {
    // Writing to memory cannot fail, and a &str is always a JSON string.
    let _ = serde_json::to_writer(&mut *out, text);
}

/// Writes a value that is no container.
pub(super) fn write_scalar(value: Value<'_>, out: &mut Vec<u8>) -> Result<(), &'static str> {
    match value {
        Value::Nil => out.extend_from_slice(b"null"),
        Value::Bool(value) => out.extend_from_slice(if value { b"true" } else { b"false" }),
        Value::Int(value) => {
            let _ = serde_json::to_writer(&mut *out, &value);
        }
        Value::UInt(value) => {
            let _ = serde_json::to_writer(&mut *out, &value);
        }
        Value::Float(value) if value.is_finite() => {
            let _ = serde_json::to_writer(&mut *out, &value);
        }
        Value::Float(_) => return Err("a number that is not finite"),
        Value::Text(bytes) if is_verbatim(bytes) => write_verbatim(bytes, out),
        Value::Text(bytes) => write_text(text(bytes)?, out),
        Value::Bytes(bytes) => {
            write_verbatim(BASE64.encode(bytes).as_bytes(), out);
        }
        Value::Ext(-1, data) => {
            let at = timestamp_us(data).and_then(|us| jiff::Timestamp::from_microsecond(us).ok());
            let at = at.ok_or("a timestamp that is not valid")?;
            write_text(&at.to_string(), out);
        }
        Value::Ext(..) => return Err("an extension type"),
        Value::Array(_) | Value::Map(_) => return Err("a container where a scalar belongs"),
    }
    Ok(())
}
