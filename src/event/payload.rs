//! From the value of an entry's `data` or `json` to single events.

use serde_json::value::RawValue;

use super::json::json_to_msgpack;
use super::msgpack::{Reader, Value, too_deep};
use super::{ARRAY_MAX, Code, Fault};

/// The value of the one field that counts.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// Field `data`.
    MessagePack(&'a [u8]),
    /// Field `json`.
    Json(&'a [u8]),
}

fn malformed(reason: impl Into<String>) -> Fault {
    Fault::new(Code::Malformed, reason)
}

fn too_many(len: usize) -> Fault {
    Fault::new(Code::TooLarge, format!("the entry holds {len} events: at most {ARRAY_MAX} are allowed"))
}

const NO_MAP: &str = "the event is not a map";
const DEEP: &str = "the event nests deeper than 32 levels";

/// Calls `each` with every event of a payload: its position, its bytes as they came, and its `MessagePack` map or what is wrong
/// with this one event. `scratch` is memory to use again. Returns how many events there were.
///
/// # Errors
/// The payload as a whole is unusable; `each` was not called.
pub fn each_event<'a>(
    payload: Payload<'a>,
    scratch: &mut Vec<u8>,
    mut each: impl FnMut(u32, &'a [u8], Result<&[u8], Fault>),
) -> Result<u32, Fault> {
    match payload {
        Payload::MessagePack(bytes) => {
            let mut reader = Reader::new(bytes);
            let torn = |torn: super::msgpack::Torn| malformed(torn.to_string());
            let complete = |reader: &Reader<'_>| match bytes.len() - reader.position() {
                0 => Ok(()),
                rest => Err(malformed(format!("{rest} bytes follow the end of the MessagePack value"))),
            };
            let head = reader.read().map_err(torn)?;
            let Value::Array(len) = head else {
                let containers = reader.skip_members(head).map_err(torn)?;
                complete(&reader)?;
                return match head {
                    Value::Map(_) => {
                        each(0, bytes, judge(head, bytes, containers));
                        Ok(1)
                    }
                    other => Err(malformed(format!("the payload is {}: a map or an array of maps is required", other.kind()))),
                };
            };
            // The whole is looked through before the first event is taken; where each one ends is remembered from that.
            let mut events = Vec::with_capacity((len as usize).min(ARRAY_MAX));
            for index in 0..len as usize {
                let from = reader.position();
                let head = reader.read().map_err(torn)?;
                let containers = reader.skip_members(head).map_err(torn)?;
                if index < ARRAY_MAX {
                    events.push((head, from, reader.position(), containers));
                }
            }
            complete(&reader)?;
            if len as usize > ARRAY_MAX {
                return Err(too_many(len as usize));
            }
            for (index, (head, from, to, containers)) in (0..).zip(events) {
                let event = &bytes[from..to];
                each(index, event, judge(head, event, containers));
            }
            Ok(len)
        }
        Payload::Json(bytes) => {
            let unreadable = |error: serde_json::Error| {
                malformed(format!("the JSON does not parse: see line {}, column {}", error.line(), error.column()))
            };
            let is_array = bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'[');
            let events: Vec<&'a RawValue> = if is_array {
                serde_json::from_slice(bytes).map_err(unreadable)?
            } else {
                vec![serde_json::from_slice(bytes).map_err(unreadable)?]
            };
            if events.len() > ARRAY_MAX {
                return Err(too_many(events.len()));
            }
            for (index, event) in events.iter().enumerate() {
                let text = event.get().as_bytes();
                scratch.clear();
                let map = match text.first() {
                    Some(b'{') => json_to_msgpack(text, scratch)
                        .map_err(|problem| malformed(format!("the event's JSON cannot be used: {problem}")))
                        .and_then(|()| judge(Value::Map(0), scratch, usize::MAX)),
                    _ => Err(malformed(NO_MAP)),
                };
                each(index as u32, text, map);
            }
            Ok(events.len() as u32)
        }
    }
}

/// The bytes of event `index` as they came, for a dead letter that is written after the event was taken.
pub fn event_alone(payload: Payload<'_>, index: u32) -> Option<&[u8]> {
    let mut found = None;
    let _ = each_event(payload, &mut Vec::new(), |at, bytes, _| {
        if at == index {
            found = Some(bytes);
        }
    });
    found
}

/// Judges one whole value, whose head and number of containers are known.
#[inline]
fn judge<'a>(head: Value<'_>, event: &'a [u8], containers: usize) -> Result<&'a [u8], Fault> {
    if !matches!(head, Value::Map(_)) {
        return Err(malformed(NO_MAP));
    }
    // Fewer containers than levels cannot nest too deep: true of nearly every event, at the price of a count.
    if containers > super::DEPTH_MAX && too_deep(event).map_err(|torn| malformed(torn.to_string()))? {
        return Err(malformed(DEEP));
    }
    Ok(event)
}
