//! JSON out of `MessagePack`, for `jsonb` columns and metadata; and `MessagePack` out of JSON, so that one decoder judges both.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::fields::{text, timestamp_us};
use super::msgpack::{Reader, Value};

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
    let value = reader.read().map_err(|_| "bytes that are not MessagePack")?;
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

/// Writes the next `len` pairs of `reader` as members of a JSON object that is open already.
pub(super) fn write_pairs(reader: &mut Reader<'_>, len: u32, first: &mut bool, out: &mut Vec<u8>) -> Result<(), &'static str> {
    for _ in 0..len {
        let Ok(Value::Text(key)) = reader.read() else { return Err("a key that is not a text") };
        write_key(text(key).map_err(|_| "a key that is not valid text")?, first, out);
        write_value(reader, out)?;
    }
    Ok(())
}

/// Writes `"key":`, after a comma unless it is the first.
pub(super) fn write_key(key: &str, first: &mut bool, out: &mut Vec<u8>) {
    if !std::mem::take(first) {
        out.push(b',');
    }
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
        Value::Text(bytes) => write_text(text(bytes)?, out),
        Value::Bytes(bytes) => {
            out.push(b'"');
            out.extend_from_slice(BASE64.encode(bytes).as_bytes());
            out.push(b'"');
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
