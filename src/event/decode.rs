//! From the map of one event to its typed, validated form.
//!
//! Every key is first put in its place, then judged in the order of the contract, so that the same event always gets the same
//! reason. The last of two equal keys counts, as in `jsonb`.

use super::fields::{
    Slot, head, invalid, metadata_key, optional_id, optional_number, optional_text, required_id, required_vector, sequence,
    shown, status, text, torn, value, vector,
};
use super::json::{write_key, write_pairs, write_scalar, write_text, write_value};
use super::msgpack::{Reader, Value, too_deep};
use super::{Code, DEPTH_MAX, Embedding, Fault, Interaction, NO_MAP, Origin, SessionUpdate, Text, Window, collection_name};

/// What events are judged by, and memory that is used again for each.
#[derive(Debug)]
pub struct Judge {
    /// Where `occurred_at` must lie.
    pub window: Window,
    json: Vec<u8>,
}

impl Judge {
    /// A judge for the given window.
    pub const fn new(window: Window) -> Self {
        Self { window, json: Vec::new() }
    }
}

/// An event that can be read from a `MessagePack` map.
pub trait Decode<'a>: Sized {
    /// Reads and judges the value that `event` stands before, and leaves it behind that.
    ///
    /// # Errors
    /// The first thing that is wrong. Where `event` stands then is not said.
    fn decode<'e: 'a>(judge: &'a mut Judge, event: &mut Reader<'e>, origin: &Origin<'_>) -> Result<Self, Fault>;
}

/// Reads the pairs of the event's map, one call each with all bytes of the value.
#[inline]
fn pairs<'e>(event: &mut Reader<'e>, mut each: impl FnMut(&'e [u8], &'e [u8])) -> Result<(), Fault> {
    let (from, containers) = (event.position(), event.containers_stepped_over());
    let Value::Map(len) = event.read().map_err(torn)? else {
        return Err(Fault::new(Code::Malformed, NO_MAP));
    };
    let mut bad_key = None;
    for _ in 0..len {
        let key = match event.short_text() {
            Some(key) => key,
            None => long_key(event, &mut bad_key)?,
        };
        each(key, event.whole().map_err(torn)?);
    }
    // Fewer containers than levels, the event's own map being one, cannot nest too deep: true of nearly every event, at the
    // price of a count.
    if event.containers_stepped_over() - containers >= DEPTH_MAX && too_deep(event.since(from)).map_err(torn)? {
        return Err(Fault::new(Code::Malformed, format!("the event nests deeper than {DEPTH_MAX} levels")));
    }
    bad_key.map_or(Ok(()), Err)
}

#[cold]
fn long_key<'e>(event: &mut Reader<'e>, bad_key: &mut Option<Fault>) -> Result<&'e [u8], Fault> {
    match event.read_whole().map_err(torn)? {
        (Value::Text(key), _) => Ok(key),
        (other, _) => {
            bad_key.get_or_insert_with(|| {
                Fault::new(Code::InvalidField, format!("a key of the event is {}: keys are texts", other.kind()))
            });
            Ok(&[])
        }
    }
}

fn unknown_key(key: &[u8]) -> Result<&str, Fault> {
    text(key).map_err(|problem| Fault::new(Code::InvalidField, format!("a key of the event is {problem}")))
}

impl<'a> Decode<'a> for Interaction<'a> {
    #[inline]
    fn decode<'e: 'a>(judge: &'a mut Judge, event: &mut Reader<'e>, origin: &Origin<'_>) -> Result<Self, Fault> {
        let (mut event_id, mut occurred_at, mut session_id, mut user_id) = (None, None, None, None);
        let (mut intent, mut latency_ms, mut confidence, mut channel) = (None, None, None, None);
        let (mut locale, mut transcript, mut attributes, mut embedding) = (None, None, None, None);
        let mut unknown: Vec<(&[u8], &[u8])> = Vec::new();
        pairs(event, |key, value| match key {
            b"event_id" => event_id = Some(value),
            b"occurred_at" => occurred_at = Some(value),
            b"session_id" => session_id = Some(value),
            b"user_id" => user_id = Some(value),
            b"intent" => intent = Some(value),
            b"latency_ms" => latency_ms = Some(value),
            b"confidence" => confidence = Some(value),
            b"channel" => channel = Some(value),
            b"locale" => locale = Some(value),
            b"transcript" => transcript = Some(value),
            b"attributes" => attributes = Some(value),
            b"embedding" => embedding = Some(value),
            _ => unknown.push((key, value)),
        })?;
        let head = head(event_id, occurred_at, origin, &judge.window)?;
        let session_id = required_id("session_id", session_id)?;
        let user_id = required_id("user_id", user_id)?;
        let intent = optional_text("intent", intent)?;
        let latency_ms = optional_number("latency_ms", latency_ms, 0.0, f64::INFINITY)?;
        let confidence = optional_number("confidence", confidence, 0.0, 1.0)?;
        let channel = optional_text("channel", channel)?;
        let locale = optional_text("locale", locale)?;
        let transcript = optional_text("transcript", transcript)?;
        let embedding = if embedding.is_some() { vector(embedding)? } else { None };
        let attributes = object(&mut judge.json, &unknown, attributes)?;
        Ok(Self { head, session_id, user_id, intent, latency_ms, confidence, channel, locale, transcript, attributes, embedding })
    }
}

/// JSON text of `attributes`: unknown keys first, then the map's own, which win over unknown ones of the same name.
fn object<'a>(json: &'a mut Vec<u8>, unknown: &[(&[u8], &[u8])], attributes: Slot<'_>) -> Result<Option<&'a [u8]>, Fault> {
    if unknown.is_empty() && attributes.is_none() {
        return Ok(None);
    }
    let map = match value(attributes)? {
        Value::Nil => None,
        Value::Map(len) => attributes.map(|whole| (len, whole)),
        other => return Err(invalid("attributes", format!("must be a map, and is {}", other.kind()))),
    };
    if unknown.is_empty() && map.is_none() {
        return Ok(None);
    }
    json.clear();
    json.push(b'{');
    let mut first = true;
    for (key, whole) in unknown {
        let key = unknown_key(key)?;
        write_key(key, &mut first, json);
        write_value(&mut Reader::new(whole), json)
            .map_err(|problem| invalid(&shown(key.as_bytes()), format!("holds {problem}")))?;
    }
    if let Some((len, whole)) = map {
        let mut reader = Reader::new(whole);
        let _ = reader.read();
        write_pairs(&mut reader, len, &mut first, json).map_err(|problem| invalid("attributes", format!("holds {problem}")))?;
    }
    json.push(b'}');
    Ok(Some(json))
}

impl<'a> Decode<'a> for SessionUpdate<'a> {
    #[inline]
    fn decode<'e: 'a>(judge: &'a mut Judge, event: &mut Reader<'e>, origin: &Origin<'_>) -> Result<Self, Fault> {
        let (mut event_id, mut occurred_at, mut session_id, mut user_id) = (None, None, None, None);
        let (mut status_slot, mut seq, mut state) = (None, None, None);
        pairs(event, |key, value| match key {
            b"event_id" => event_id = Some(value),
            b"occurred_at" => occurred_at = Some(value),
            b"session_id" => session_id = Some(value),
            b"user_id" => user_id = Some(value),
            b"status" => status_slot = Some(value),
            b"seq" => seq = Some(value),
            b"state" => state = Some(value),
            // A session's state is the producer's own map: other keys have no place to go.
            _ => {}
        })?;
        let head = head(event_id, occurred_at, origin, &judge.window)?;
        let session_id = required_id("session_id", session_id)?;
        let user_id = required_id("user_id", user_id)?;
        let status = status(status_slot)?;
        let seq = sequence("seq", seq)?;
        let state = match (value(state)?, state) {
            (Value::Nil, _) | (_, None) => None,
            (Value::Map(_), Some(whole)) => {
                judge.json.clear();
                write_value(&mut Reader::new(whole), &mut judge.json)
                    .map_err(|problem| invalid("state", format!("holds {problem}")))?;
                Some(judge.json.as_slice())
            }
            (other, _) => return Err(invalid("state", format!("must be a map, and is {}", other.kind()))),
        };
        // Times before 1970 have no place in an order that starts at 0.
        Ok(Self { head, session_id, user_id, status, seq: seq.unwrap_or(head.occurred_at_us.max(0)), state })
    }
}

impl<'a> Decode<'a> for Embedding<'a> {
    fn decode<'e: 'a>(judge: &'a mut Judge, event: &mut Reader<'e>, origin: &Origin<'_>) -> Result<Self, Fault> {
        let (mut event_id, mut occurred_at, mut session_id, mut user_id) = (None, None, None, None);
        let (mut id, mut embedding, mut document, mut metadata, mut collection) = (None, None, None, None, None);
        let mut unknown: Vec<(&[u8], &[u8])> = Vec::new();
        pairs(event, |key, value| match key {
            b"event_id" => event_id = Some(value),
            b"occurred_at" => occurred_at = Some(value),
            b"session_id" => session_id = Some(value),
            b"user_id" => user_id = Some(value),
            b"id" => id = Some(value),
            b"embedding" => embedding = Some(value),
            b"document" => document = Some(value),
            b"metadata" => metadata = Some(value),
            b"collection" => collection = Some(value),
            _ => unknown.push((key, value)),
        })?;
        let head = head(event_id, occurred_at, origin, &judge.window)?;
        let id = optional_text("id", id)?.map(Text::as_str);
        if id == Some("") {
            return Err(invalid("id", "is empty: leave it out to use the event id"));
        }
        let embedding = required_vector(embedding)?;
        let document = optional_text("document", document)?.map(Text::as_str);
        let session_id = optional_id("session_id", session_id)?.map(Text::as_str);
        let user_id = optional_id("user_id", user_id)?.map(Text::as_str);
        let collection = optional_text("collection", collection)?.map(Text::as_str);
        if let Some(name) = collection {
            collection_name(name).map_err(|rules| invalid("collection", format!("must be {rules}")))?;
        }
        let json = &mut judge.json;
        json.clear();
        json.push(b'{');
        let mut first = true;
        // The event's own keys win over metadata of the same name.
        let own = |key: &str| {
            matches!(key, "session_id" if session_id.is_some())
                || matches!(key, "user_id" if user_id.is_some())
                || matches!(key, "occurred_at" if head.time_given)
        };
        let mut pair = |key: &str, value: Value<'_>, json: &mut Vec<u8>| {
            metadata_key(key)?;
            if value == Value::Nil || own(key) {
                return Ok(());
            }
            if let Value::UInt(_) = value {
                return Err(invalid(
                    "metadata",
                    format!("holds an integer beyond 64 bits with a sign under {:?}", shown(key.as_bytes())),
                ));
            }
            write_key(key, &mut first, json);
            write_scalar(value, json)
                .map_err(|problem| invalid("metadata", format!("holds {problem} under {:?}", shown(key.as_bytes()))))
        };
        for (key, whole) in &unknown {
            pair(unknown_key(key)?, value(Some(whole))?, json)?;
        }
        match (value(metadata)?, metadata) {
            (Value::Nil, _) | (_, None) => {}
            (Value::Map(len), Some(whole)) => {
                let mut reader = Reader::new(whole);
                let _ = reader.read();
                for _ in 0..len {
                    let (Ok((Value::Text(key), _)), Ok((value, _))) = (reader.read_whole(), reader.read_whole()) else {
                        return Err(invalid("metadata", "holds a key that is not a text"));
                    };
                    let key = text(key).map_err(|problem| invalid("metadata", format!("has a key that is {problem}")))?;
                    pair(key, value, json)?;
                }
            }
            (other, _) => return Err(invalid("metadata", format!("must be a map, and is {}", other.kind()))),
        }
        for (key, value) in [("session_id", session_id), ("user_id", user_id)] {
            if let Some(value) = value {
                write_key(key, &mut first, json);
                write_text(value, json);
            }
        }
        if head.time_given {
            write_key("occurred_at", &mut first, json);
            json.extend_from_slice(head.occurred_at_us.div_euclid(1000).to_string().as_bytes());
        }
        json.push(b'}');
        Ok(Self { head, id, embedding, document, session_id, user_id, metadata: json, collection })
    }
}
