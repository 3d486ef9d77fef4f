//! Whose an event is, read as far as it can be: for erasing a person's events, those that cannot be used included.
//!
//! Unlike [`decode`](super::decode) this judges nothing: whatever names somebody counts, however wrong the rest is.

use std::collections::HashSet;

use serde_json::value::RawValue;

use super::Payload;
use super::json::json_to_msgpack;
use super::msgpack::{Reader, Torn, Value};

/// Whose data are meant.
#[derive(Clone, PartialEq, Eq)]
pub enum Subject {
    /// All of a user.
    User(String),
    /// One session, whoever took part.
    Session(String),
}

impl Subject {
    /// The id.
    pub fn id(&self) -> &str {
        match self {
            Self::User(id) | Self::Session(id) => id,
        }
    }
}

/// Who is named by an event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// `user_id`, also inside of `metadata`; numbers as their digits.
    pub users: Vec<String>,
    /// `session_id`, likewise.
    pub sessions: Vec<String>,
}

impl Names {
    /// Reads one event; `None`: it is no map, or torn.
    fn read(event: &[u8]) -> Option<Self> {
        let mut names = Self::default();
        names.map(&mut Reader::new(event), true).ok()??;
        Some(names)
    }

    fn map(&mut self, reader: &mut Reader<'_>, outermost: bool) -> Result<Option<()>, Torn> {
        let Value::Map(len) = reader.read()? else { return Ok(None) };
        for _ in 0..len {
            let (key, _) = reader.read_whole()?;
            let (value, whole) = reader.read_whole()?;
            let names = match key {
                Value::Text(b"user_id") => &mut self.users,
                Value::Text(b"session_id") => &mut self.sessions,
                Value::Text(b"metadata") if outermost => {
                    self.map(&mut Reader::new(whole), false)?;
                    continue;
                }
                _ => continue,
            };
            match value {
                Value::Text(text) | Value::Bytes(text) => names.push(String::from_utf8_lossy(text).into_owned()),
                Value::Int(number) => names.push(number.to_string()),
                Value::UInt(number) => names.push(number.to_string()),
                _ => {}
            }
        }
        Ok(Some(()))
    }
}

/// What is looked for.
#[derive(Clone)]
pub struct Wanted {
    /// Whose.
    pub subject: Subject,
    /// Sessions in which nobody but the user took part: what names one of them and no user is the user's as well.
    pub sessions: HashSet<String>,
}

impl Wanted {
    /// Whether an event with these names is meant.
    pub fn claims(&self, names: &Names) -> bool {
        match &self.subject {
            Subject::User(_) if names.users.is_empty() => names.sessions.iter().any(|session| self.sessions.contains(session)),
            Subject::User(user) => names.users.contains(user),
            Subject::Session(session) => names.sessions.contains(session),
        }
    }

    /// Whether bytes that cannot be read hold the id as a word of its own: `u1` is not found in `u10`. Somebody else's torn event
    /// is lost to erasure then only if it holds the same word.
    pub fn mentioned_in(&self, bytes: &[u8]) -> bool {
        let id = self.subject.id().as_bytes();
        let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-' || b >= 0x80;
        memchr::memmem::find_iter(bytes, id).any(|at| {
            let (before, after) = (&bytes[..at], &bytes[at + id.len()..]);
            // MessagePack writes the length of a text, or its type, in front of it; type bytes are no text of any encoding.
            let framed = match before {
                [.., 0xd9 | 0xc4, len] => usize::from(*len) == id.len(),
                [.., kind @ 0xa0..=0xbf] => usize::from(kind & 0x1f) == id.len(),
                [.., high, low] => usize::from(u16::from_be_bytes([*high, *low])) == id.len(),
                _ => false,
            };
            framed || !(before.last().is_some_and(|b| is_word(*b)) || after.first().is_some_and(|b| is_word(*b)))
        })
    }
}

/// What of a payload is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Split {
    /// Nothing.
    Untouched,
    /// All of its events, so many.
    Whole(u32),
    /// So many of them; the others follow, in runs: the position of the first, and an array in the payload's own format.
    Mixed(u32, Vec<(u32, Vec<u8>)>),
}

/// Calls `each` with the bytes of every event and its names; `None`: it cannot be read. Returns `false` when the payload as a
/// whole cannot be read, and nothing was called.
pub fn each_named<'a>(payload: Payload<'a>, mut each: impl FnMut(&'a [u8], Option<Names>)) -> bool {
    match payload {
        Payload::MessagePack(bytes) => {
            let mut reader = Reader::new(bytes);
            let Ok(Value::Array(len)) = reader.read() else {
                let mut whole = Reader::new(bytes);
                let complete = whole.read_whole().is_ok() && whole.position() == bytes.len();
                if complete {
                    each(bytes, Names::read(bytes));
                }
                return complete;
            };
            let mut events = Vec::new();
            for _ in 0..len {
                let Ok((_, event)) = reader.read_whole() else { return false };
                events.push(event);
            }
            if reader.position() != bytes.len() {
                return false;
            }
            for event in events {
                each(event, Names::read(event));
            }
            true
        }
        Payload::Json(bytes) => {
            let is_array = bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'[');
            let events: Result<Vec<&'a RawValue>, _> =
                if is_array { serde_json::from_slice(bytes) } else { serde_json::from_slice(bytes).map(|event| vec![event]) };
            let Ok(events) = events else { return false };
            let mut scratch = Vec::new();
            for event in events {
                scratch.clear();
                let text = event.get().as_bytes();
                let readable = json_to_msgpack(text, &mut scratch).is_ok();
                each(text, readable.then(|| Names::read(&scratch)).flatten());
            }
            true
        }
    }
}

/// Parts what is to go from what stays.
pub fn split(payload: Payload<'_>, wanted: &Wanted) -> Split {
    let (mut removed, mut kept) = (0, 0);
    let mut runs: Vec<(u32, Vec<&[u8]>)> = Vec::new();
    let readable = each_named(payload, |event, names| {
        let index = removed + kept;
        if names.map_or_else(|| wanted.mentioned_in(event), |names| wanted.claims(&names)) {
            removed += 1;
            return;
        }
        kept += 1;
        match runs.last_mut() {
            Some((from, run)) if *from + run.len() as u32 == index => run.push(event),
            _ => runs.push((index, vec![event])),
        }
    });
    let bytes = match payload {
        Payload::MessagePack(bytes) | Payload::Json(bytes) => bytes,
    };
    if !readable {
        return if wanted.mentioned_in(bytes) { Split::Whole(1) } else { Split::Untouched };
    }
    match (removed, kept) {
        (0, _) => Split::Untouched,
        (_, 0) => Split::Whole(removed),
        _ => Split::Mixed(removed, runs.into_iter().map(|(from, run)| (from, array(payload, &run))).collect()),
    }
}

/// Events as an array in the format that they came in.
fn array(payload: Payload<'_>, events: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::with_capacity(events.iter().map(|event| event.len() + 1).sum::<usize>() + 5);
    match payload {
        Payload::MessagePack(_) => {
            out.push(0xdd);
            out.extend_from_slice(&(events.len() as u32).to_be_bytes());
            for event in events {
                out.extend_from_slice(event);
            }
        }
        Payload::Json(_) => {
            for (n, event) in events.iter().enumerate() {
                out.push(if n == 0 { b'[' } else { b',' });
                out.extend_from_slice(event);
            }
            out.push(b']');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(id: &str) -> Wanted {
        Wanted { subject: Subject::User(id.to_owned()), sessions: HashSet::from(["alone".to_owned()]) }
    }

    fn json(text: &str, wanted: &Wanted) -> Split {
        split(Payload::Json(text.as_bytes()), wanted)
    }

    #[test]
    fn an_event_is_whose_it_names() {
        for (text, theirs) in [
            (r#"{"user_id":"u1"}"#, true),
            (r#"{"user_id":"\u00751"}"#, true),
            (r#"{"user_id":"u10"}"#, false),
            (r#"{"user_id":"u2","session_id":"alone"}"#, false),
            (r#"{"session_id":"alone"}"#, true),
            (r#"{"session_id":"other"}"#, false),
            (r#"{"metadata":{"user_id":"u1"}}"#, true),
            (r#"{"attributes":{"user_id":"u1"},"user_id":"u2"}"#, false),
            (r#"{"transcript":"u1","user_id":"u2"}"#, false),
            (r"[]", false),
        ] {
            assert_eq!(json(text, &user("u1")) == Split::Whole(1), theirs, "{text}");
        }
        assert_eq!(json(r#"{"user_id":42}"#, &user("42")), Split::Whole(1));
        let session = Wanted { subject: Subject::Session("s".to_owned()), sessions: HashSet::new() };
        assert_eq!(json(r#"{"session_id":"s","user_id":"anybody"}"#, &session), Split::Whole(1));
    }

    #[test]
    fn the_others_keep_their_positions_and_bytes() {
        let (theirs, other) = (r#"{"user_id":"u1"}"#, r#"{ "user_id" : "u2", "n": 1.50 }"#);
        let text = format!("[{other},{theirs},{other} , {other},7,{theirs}]");
        let runs = vec![(0, format!("[{other}]").into_bytes()), (2, format!("[{other},{other},7]").into_bytes())];
        assert_eq!(json(&text, &user("u1")), Split::Mixed(2, runs));
        assert_eq!(json(&format!("[{theirs},{theirs}]"), &user("u1")), Split::Whole(2));

        let map = |id: &str| [&[0x81, 0xa7][..], b"user_id", &[0xa0 | id.len() as u8], id.as_bytes()].concat();
        let packed = [vec![0x93], map("u2"), map("u1"), map("u3")].concat();
        let Split::Mixed(1, runs) = split(Payload::MessagePack(&packed), &user("u1")) else { panic!("mixed") };
        assert_eq!(runs[0], (0, [vec![0xdd, 0, 0, 0, 1], map("u2")].concat()));
        assert_eq!(runs[1], (2, [vec![0xdd, 0, 0, 0, 1], map("u3")].concat()));
    }

    #[test]
    fn what_cannot_be_read_goes_when_it_holds_the_id_as_a_word() {
        for (bytes, held) in [
            (&b"{\"user_id\":\"u1\",\"tra"[..], true),
            (b"{\"user_id\":\"u10\",\"tra", false),
            (b"{\"user_id\":\"au1\"", false),
            (b"\x82\xa7user_id\xa2u1\xa1", true),
            (b"\x82\xa7user_id\xa2u1a", true),
            (b"\x82\xa7user_id\xa3u10\xa1", false),
        ] {
            assert_eq!(user("u1").mentioned_in(bytes), held, "{}", bytes.escape_ascii());
        }
        let long = "a".repeat(48);
        assert!(user(&long).mentioned_in(&[&[0xd9, 48], long.as_bytes(), b"z"].concat()));
        assert_eq!(split(Payload::MessagePack(b"\x82\xa7user_id\xa2u1\xa1"), &user("u1")), Split::Whole(1));
    }
}
