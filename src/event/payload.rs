//! From the value of an entry's `data` or `json` to single events.

use serde_json::value::RawValue;

use super::fields::torn;
use super::json::json_to_msgpack;
use super::msgpack::{Reader, Value};
use super::{ARRAY_MAX, Code, Fault, NO_MAP};

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

/// What an entry holds.
#[derive(Debug, PartialEq, Eq)]
pub struct Events<'a> {
    /// How many events.
    pub count: u32,
    /// Those that are faulty: their position, their bytes as they came, and what is wrong.
    pub faulty: Vec<(u32, &'a [u8], Fault)>,
}

/// Calls `take` with every event of a payload: its position, and a reader that stands before its `MessagePack` map. `take` leaves
/// it behind the map, or says what is wrong with this one event. `scratch` is memory to use again.
///
/// An event is taken as soon as it is met, since nearly every payload is sound to its end, and looking for the end first takes as
/// long as reading.
///
/// # Errors
/// The payload as a whole is unusable: what `take` was called with is to be forgotten.
pub fn each_event<'a>(
    payload: Payload<'a>,
    scratch: &mut Vec<u8>,
    mut take: impl FnMut(u32, &mut Reader<'_>) -> Result<(), Fault>,
) -> Result<Events<'a>, Fault> {
    match payload {
        Payload::MessagePack(bytes) => {
            let start = Reader::new(bytes);
            let mut reader = start.clone();
            // A value that is no array is the one event of its entry.
            let (count, alone) = match reader.read().map_err(torn)? {
                Value::Array(len) => (len, None),
                other => (1, Some(other)),
            };
            if alone.is_some() {
                reader = start;
            }
            let mut faulty = Vec::new();
            let taken = (count as usize).min(ARRAY_MAX);
            for index in 0..taken as u32 {
                let before = reader.clone();
                if let Err(fault) = take(index, &mut reader) {
                    reader = before;
                    faulty.push((index, reader.whole().map_err(torn)?, fault));
                }
            }
            for _ in taken..count as usize {
                reader.whole().map_err(torn)?;
            }
            match (bytes.len() - reader.position(), alone) {
                (0, None | Some(Value::Map(_))) => {}
                (0, Some(other)) => {
                    return Err(malformed(format!("the payload is {}: a map or an array of maps is required", other.kind())));
                }
                (rest, _) => return Err(malformed(format!("{rest} bytes follow the end of the MessagePack value"))),
            }
            if count as usize > ARRAY_MAX { Err(too_many(count as usize)) } else { Ok(Events { count, faulty }) }
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
            let mut faulty = Vec::new();
            for (index, event) in (0..).zip(&events) {
                let text = event.get().as_bytes();
                scratch.clear();
                let taken = match text.first() {
                    Some(b'{') => json_to_msgpack(text, scratch)
                        .map_err(|problem| malformed(format!("the event's JSON cannot be used: {problem}")))
                        .and_then(|()| take(index, &mut Reader::new(scratch))),
                    _ => Err(malformed(NO_MAP)),
                };
                if let Err(fault) = taken {
                    faulty.push((index, text, fault));
                }
            }
            Ok(Events { count: events.len() as u32, faulty })
        }
    }
}

/// The bytes of event `index` as they came, for a dead letter that is written after the event was taken.
pub fn event_alone(payload: Payload<'_>, index: u32) -> Option<&[u8]> {
    // What is sought is made the faulty one.
    let sought = || Fault::new(Code::Rejected, "");
    let skip = |event: &mut Reader<'_>| event.whole().map(drop).map_err(torn);
    let events = each_event(payload, &mut Vec::new(), |at, event| if at == index { Err(sought()) } else { skip(event) });
    events.ok()?.faulty.into_iter().find_map(|(at, bytes, _)| (at == index).then_some(bytes))
}
