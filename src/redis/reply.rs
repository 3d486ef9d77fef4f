//! Cutting up the reply to a read, in place (RESP2, <https://redis.io/docs/latest/develop/reference/protocol-spec/>).
//!
//! Pure: bytes in, entries out. An entry is parsed once it is there whole; what is too large is recognised by its length and
//! never gathered.

use bytes::Bytes;

use crate::seam::{Body, Entry, EntryId, Extras, ReplayOrigin};

/// The reply is not what the protocol or the command promises.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Garbled(pub(super) &'static str);

/// Entry field under which a replayed dead letter carries where it first stood.
pub(super) const ORIGIN_FIELD: &str = "aegis-origin";
/// Bytes that all other fields of an entry may take together.
const OTHER_FIELDS_MAX: usize = 64 * 1024;

/// The head of a protocol element: its type byte, its number, and where the next element starts. `None`: not there yet.
#[inline]
pub(super) fn head(buf: &[u8], at: usize) -> Result<Option<(u8, i64, usize)>, Garbled> {
    let Some(rest) = buf.get(at..).filter(|rest| rest.len() >= 4) else { return Ok(None) };
    let kind = rest[0];
    let (negative, mut i) = if rest[1] == b'-' { (true, 2) } else { (false, 1) };
    let mut number = 0_i64;
    while let Some(digit) = rest.get(i).copied().filter(u8::is_ascii_digit) {
        number = number.wrapping_mul(10).wrapping_add(i64::from(digit - b'0'));
        i += 1;
        if i > 22 {
            return Err(Garbled("a number of more than 20 digits"));
        }
    }
    match rest.get(i..i + 2) {
        None => Ok(None),
        Some(b"\r\n") => Ok(Some((kind, if negative { -number } else { number }, at + i + 2))),
        Some(_) => Err(Garbled("a length that is no number")),
    }
}

/// A bulk string that is there whole: where it starts and ends, and where the next element starts.
type Bulk = (usize, usize, usize);

/// What became of an attempt to parse.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step<T> {
    /// More bytes are needed: at least so many in all.
    More(usize),
    /// Done: what it is and where the next one starts.
    Done(T, usize),
    /// An entry with an element above the limit: its id, that element's length, where its bytes start, and how many elements
    /// of the fields array and how many after it are still to come.
    Oversize { id: EntryId, len: u64, body_at: usize, fields_left: u64, after: u64 },
}

#[inline]
fn bulk(buf: &[u8], at: usize) -> Result<Result<Bulk, usize>, Garbled> {
    match head(buf, at)? {
        None => Ok(Err(buf.len() + 1)),
        Some((b'$', len, start)) if len >= 0 => {
            let end = start + len as usize;
            if buf.len() >= end + 2 { Ok(Ok((start, end, end + 2))) } else { Ok(Err(end + 2)) }
        }
        Some(_) => Err(Garbled("a text was expected")),
    }
}

/// Parses `ms-seq`.
#[inline]
pub(super) fn entry_id(text: &[u8]) -> Result<EntryId, Garbled> {
    let mut id = EntryId::default();
    let mut dash = false;
    for &b in text {
        match b {
            b'0'..=b'9' => {
                let part = if dash { &mut id.seq } else { &mut id.ms };
                *part = part.wrapping_mul(10).wrapping_add(u64::from(b - b'0'));
            }
            b'-' if !dash => dash = true,
            _ => return Err(Garbled("an entry id was expected")),
        }
    }
    if dash { Ok(id) } else { Err(Garbled("an entry id was expected")) }
}

/// Spans of an entry within the buffer that it was parsed from.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Span {
    id: EntryId,
    kind: Kind,
    origin: Option<(usize, usize)>,
    traceparent: Option<(usize, usize)>,
    /// Deliveries, where the reply tells.
    pub(super) deliveries: Option<u64>,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Data(usize, usize),
    Json(usize, usize),
    Shapeless,
    TooLarge(u64),
    /// Deleted while it was pending: only its id is left.
    Gone,
}

impl Span {
    /// The id of an entry that was deleted while it was pending.
    pub(super) fn gone(&self) -> Option<EntryId> {
        (self.kind == Kind::Gone).then_some(self.id)
    }

    /// The entry, as views into `buf`.
    pub(super) fn entry(&self, buf: &Bytes) -> Entry {
        let body = match self.kind {
            Kind::Data(from, to) => Body::MessagePack(buf.slice(from..to)),
            Kind::Json(from, to) => Body::Json(buf.slice(from..to)),
            Kind::TooLarge(bytes) => Body::TooLarge { bytes },
            Kind::Shapeless | Kind::Gone => Body::Shapeless,
        };
        let extras = (self.origin.is_some() || self.traceparent.is_some()).then(|| {
            let origin = self.origin.and_then(|(from, to)| ReplayOrigin::parse(&buf[from..to]));
            Box::new(Extras { origin, traceparent: self.traceparent.map(|(from, to)| Bytes::copy_from_slice(&buf[from..to])) })
        });
        Entry { id: self.id, body, extras }
    }
}

/// Parses one entry, `[id, [name, value, …]]` or `[id, nil]`, with two integers behind it where XREADGROUP was asked to claim.
pub(super) fn entry(buf: &[u8], at: usize, bytes_max: usize) -> Result<Step<Span>, Garbled> {
    let more = |needed| Ok(Step::More(needed));
    let after = match head(buf, at)? {
        None => return more(buf.len() + 1),
        Some((b'*', len @ (2 | 4), next)) => ((len - 2) as u64, next),
        Some(_) => return Err(Garbled("an entry was expected")),
    };
    let (after, at) = after;
    let (from, to, mut at) = match bulk(buf, at)? {
        Ok(bulk) => bulk,
        Err(needed) => return more(needed),
    };
    let id = entry_id(&buf[from..to])?;
    let mut span = Span { id, kind: Kind::Shapeless, origin: None, traceparent: None, deliveries: None };
    let fields = match head(buf, at)? {
        None => return more(buf.len() + 1),
        Some((b'*' | b'$', -1, next)) => {
            span.kind = Kind::Gone;
            at = next;
            0
        }
        Some((b'*', len, next)) if len >= 0 && len % 2 == 0 => {
            at = next;
            len as u64
        }
        Some(_) => return Err(Garbled("fields were expected")),
    };
    let mut payloads = 0;
    let mut others = 0;
    for i in (0..fields).step_by(2) {
        let oversize = |len: usize, body_at, fields_left| Ok(Step::Oversize { id, len: len as u64, body_at, fields_left, after });
        if let Some((b'$', len, body_at)) = head(buf, at)?
            && len as usize > OTHER_FIELDS_MAX
        {
            return oversize(len as usize, body_at, fields - i - 1);
        }
        let (name_from, name_to, next) = match bulk(buf, at)? {
            Ok(bulk) => bulk,
            Err(needed) => return more(needed),
        };
        let name = &buf[name_from..name_to];
        let is_payload = matches!(name, b"data" | b"json");
        if let Some((b'$', len, body_at)) = head(buf, next)?
            && len as usize > if is_payload { bytes_max } else { OTHER_FIELDS_MAX }
        {
            return oversize(len as usize, body_at, fields - i - 2);
        }
        let (from, to, next) = match bulk(buf, next)? {
            Ok(bulk) => bulk,
            Err(needed) => return more(needed),
        };
        if is_payload {
            payloads += 1;
            span.kind = if name == b"data" { Kind::Data(from, to) } else { Kind::Json(from, to) };
        } else {
            others += name.len() + (to - from);
            match name {
                b"traceparent" if to - from <= 128 => span.traceparent = Some((from, to)),
                _ if name == ORIGIN_FIELD.as_bytes() => span.origin = Some((from, to)),
                _ => {}
            }
        }
        at = next;
    }
    if span.kind != Kind::Gone && payloads != 1 {
        span.kind = Kind::Shapeless;
    }
    if others > OTHER_FIELDS_MAX {
        span.kind = Kind::TooLarge(others as u64);
    }
    for i in 0..after {
        match head(buf, at)? {
            None => return more(buf.len() + 1),
            Some((b':', number, next)) => {
                if i == 1 {
                    span.deliveries = Some(number as u64);
                }
                at = next;
            }
            Some(_) => return Err(Garbled("a number was expected behind an entry")),
        }
    }
    Ok(Step::Done(span, at))
}

/// An entry of which an element was above the limit.
pub(super) fn oversize(id: EntryId, bytes: u64) -> Entry {
    Entry { id, body: Body::TooLarge { bytes }, extras: None }
}
