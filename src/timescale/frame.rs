//! Rows in the binary format of COPY, made by hand. Pure.
//!
//! Source: <https://www.postgresql.org/docs/17/sql-copy.html>, "Binary Format". A row is a count of fields, then each field's
//! length and big-endian bytes.

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked};
use uuid::Uuid;

use crate::event::{Head, Interaction, SessionUpdate, Status, Text};
use crate::seam::{Place, Rows};

/// What stands before the first row.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// What stands behind the last.
const TRAILER: &[u8] = &(-1_i16).to_be_bytes();
/// Memory that frames start with once there is a row.
const FRAMES_BYTES: usize = 64 * 1024;
/// Bytes a message of COPY: large enough that messages cost nothing, small enough to stay in the cache from here to the socket.
const PIECE_BYTES: usize = 64 * 1024;
/// Microseconds from 1970 to 2000, where `timestamptz` starts to count.
const EPOCH_US: i64 = 946_684_800_000_000;

/// Columns of `interaction_logs` in the order of [`Frames::interaction`].
pub const INTERACTION_COLUMNS: &str =
    "occurred_at, event_id, session_id, user_id, intent, latency_ms, confidence, channel, locale, transcript, attributes";
/// Columns of `session_events` in the order of [`Frames::session_event`].
pub const SESSION_EVENT_COLUMNS: &str = "occurred_at, event_id, session_id, user_id, status, seq, state";

/// One row among the frames.
#[derive(Clone, Copy, Debug)]
struct Row {
    at_us: i64,
    id: [u8; 16],
    from: u32,
    to: u32,
    place: Place,
}

impl Row {
    const fn len(&self) -> usize {
        (self.to - self.from) as usize
    }
}

/// Rows in the binary format, with their keys and places.
#[derive(Debug, Default)]
pub struct Frames {
    /// In the order in which they came.
    bytes: Vec<u8>,
    /// In the order of the key, once they are asked for.
    rows: Vec<Row>,
}

#[inline]
pub(super) fn field(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as i32).to_be_bytes());
    out.extend_from_slice(bytes);
}

#[inline]
pub(super) fn optional(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => field(out, bytes),
        None => out.extend_from_slice(&(-1_i32).to_be_bytes()),
    }
}

#[inline]
fn jsonb(out: &mut Vec<u8>, json: Option<&[u8]>) {
    match json {
        Some(json) => {
            out.extend_from_slice(&(json.len() as i32 + 1).to_be_bytes());
            out.push(1);
            out.extend_from_slice(json);
        }
        None => optional(out, None),
    }
}

impl Frames {
    #[inline]
    pub(super) fn row(&mut self, columns: i16, at_us: i64, id: Uuid, place: Place, rest: impl FnOnce(&mut Vec<u8>)) {
        if self.bytes.capacity() == 0 {
            // A batch of a thousand rows of a few hundred bytes grows once or twice instead of twenty times.
            self.bytes.reserve(FRAMES_BYTES);
        }
        let from = self.bytes.len() as u32;
        let out = &mut self.bytes;
        out.extend_from_slice(&columns.to_be_bytes());
        field(out, &(at_us - EPOCH_US).to_be_bytes());
        field(out, id.as_bytes());
        rest(out);
        let to = self.bytes.len() as u32;
        self.rows.push(Row { at_us, id: id.into_bytes(), from, to, place });
    }

    /// Adds a row of `interaction_logs`.
    #[inline]
    pub fn interaction(&mut self, event: &Interaction<'_>, place: Place) {
        self.row(11, event.head.occurred_at_us, event.head.event_id, place, |out| {
            field(out, event.session_id.as_bytes());
            field(out, event.user_id.as_bytes());
            optional(out, event.intent.map(Text::as_bytes));
            optional(out, event.latency_ms.map(f64::to_be_bytes).as_ref().map(<[u8; 8]>::as_slice));
            optional(out, event.confidence.map(|number| (number as f32).to_be_bytes()).as_ref().map(<[u8; 4]>::as_slice));
            optional(out, event.channel.map(Text::as_bytes));
            optional(out, event.locale.map(Text::as_bytes));
            optional(out, event.transcript.map(Text::as_bytes));
            jsonb(out, event.attributes);
        });
    }

    /// Adds a row of `session_events`.
    #[inline]
    pub fn session_event(&mut self, event: &SessionUpdate<'_>, place: Place) {
        self.row(7, event.head.occurred_at_us, event.head.event_id, place, |out| {
            field(out, event.session_id.as_bytes());
            field(out, event.user_id.as_bytes());
            field(out, event.status.name().as_bytes());
            field(out, &event.seq.to_be_bytes());
            jsonb(out, event.state);
        });
    }

    /// Puts the rows in the order of the unique key: each row then goes to the index page of the one before it. Twice is once.
    pub fn order(&mut self) {
        self.rows.sort_unstable_by_key(|row| (row.at_us, row.id));
    }

    fn row_bytes(&self, row: &Row) -> &[u8] {
        &self.bytes[row.from as usize..row.to as usize]
    }

    /// The rows `from..to`, which [`Frames::order`] has put in order, as COPY takes them: with what stands before the first and
    /// behind the last, in pieces, each gathered when it is asked for.
    pub fn pieces(&self, from: usize, to: usize) -> impl Iterator<Item = Bytes> {
        let mut rows = self.rows[from..to].iter().peekable();
        let mut left = HEADER.len() + TRAILER.len() + self.rows[from..to].iter().map(Row::len).sum::<usize>();
        let mut head = HEADER;
        std::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let mut piece = Vec::with_capacity(left.min(PIECE_BYTES));
            piece.extend_from_slice(std::mem::take(&mut head));
            // One that is longer than a piece is a piece by itself.
            while let Some(row) = rows.next_if(|row| piece.is_empty() || piece.len() + row.len() <= PIECE_BYTES) {
                piece.extend_from_slice(self.row_bytes(row));
            }
            if rows.peek().is_none() {
                piece.extend_from_slice(TRAILER);
            }
            left -= piece.len();
            Some(Bytes::from(piece))
        })
    }

    /// Reads rows `from..to` back as session updates; they were added by [`Frames::session_event`] and are in order.
    pub(super) fn session_events(&self, from: usize, to: usize) -> impl Iterator<Item = SessionUpdate<'_>> {
        self.rows[from..to].iter().filter_map(|row| session_event(self.row_bytes(row)))
    }

    /// Where the event of a row stands in the batch.
    pub(super) fn place(&self, row: usize) -> Place {
        self.rows[row].place
    }
}

/// The update that a row of `session_events` was made from.
fn session_event(row: &[u8]) -> Option<SessionUpdate<'_>> {
    // NULL, whose length is -1, reads as no field: only the last one may be NULL.
    fn field<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
        let (len, behind) = rest.split_first_chunk::<4>()?;
        let (field, behind) = behind.split_at_checked(usize::try_from(i32::from_be_bytes(*len)).ok()?)?;
        *rest = behind;
        Some(field)
    }
    let mut rest = row.get(2..)?;
    let mut next = || field(&mut rest);
    let occurred_at_us = i64::from_be_bytes(next()?.try_into().ok()?) + EPOCH_US;
    let event_id = Uuid::from_slice(next()?).ok()?;
    let session_id = Text::again(next()?);
    let user_id = Text::again(next()?);
    let status = match next()? {
        b"started" => Status::Started,
        b"updated" => Status::Updated,
        _ => Status::Ended,
    };
    let seq = i64::from_be_bytes(next()?.try_into().ok()?);
    let state = next().and_then(|jsonb| jsonb.get(1..));
    let head = Head { event_id, occurred_at_us, time_given: true };
    Some(SessionUpdate { head, session_id, user_id, status, seq, state })
}

/// Microseconds since 1970 as a `timestamptz`, without the arithmetic of a calendar.
#[derive(Clone, Copy, Debug)]
pub(super) struct Micros(pub(super) i64);

impl ToSql for Micros {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.put_i64(self.0 - EPOCH_US);
        Ok(IsNull::No)
    }

    accepts!(TIMESTAMPTZ);
    to_sql_checked!();
}

/// A text that was judged, as a parameter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Judged<'a>(pub(super) &'a [u8]);

impl ToSql for Judged<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.put_slice(self.0);
        Ok(IsNull::No)
    }

    accepts!(TEXT);
    to_sql_checked!();
}

impl<'a> FromSql<'a> for Micros {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(i64::from_be_bytes(raw.try_into()?) + EPOCH_US))
    }

    accepts!(TIMESTAMPTZ);
}

impl Rows for Frames {
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn forget(&mut self, entry: u32) {
        while let Some(row) = self.rows.pop_if(|row| row.place.entry == entry) {
            self.bytes.truncate(row.from as usize);
        }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.rows.clear();
    }
}
