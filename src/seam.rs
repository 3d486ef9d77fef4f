//! The two seams of the program: where entries come from ([`Source`]) and where events go ([`Destination`]).
//!
//! The lane knows these traits and not the stores behind them; the stores know these traits and not the lane.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;

use crate::event::msgpack::Reader;
use crate::event::{Fault, Judge, Origin};

/// The id of a stream entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    /// Unix milliseconds, unless the producer chose otherwise.
    pub ms: u64,
    /// Tells entries of one millisecond apart.
    pub seq: u64,
}

impl EntryId {
    /// The greatest id below this one.
    #[must_use]
    pub const fn before(self) -> Self {
        match (self.ms, self.seq) {
            (0, 0) => self,
            (ms, 0) => Self { ms: ms - 1, seq: u64::MAX },
            (ms, seq) => Self { ms, seq: seq - 1 },
        }
    }
}

impl std::fmt::Display for EntryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

impl std::str::FromStr for EntryId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (ms, seq) = text.split_once('-').ok_or(())?;
        Ok(Self { ms: ms.parse().map_err(|_| ())?, seq: seq.parse().map_err(|_| ())? })
    }
}

/// What an entry carries, as a view into the reply that brought it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// One field `data`.
    MessagePack(Bytes),
    /// One field `json`.
    Json(Bytes),
    /// Neither, or both, or one of them twice.
    Shapeless,
    /// Payload above the limit: it was not kept.
    TooLarge {
        /// Bytes of the largest field.
        bytes: u64,
    },
    /// Delivered more often than allowed without ever being settled.
    Poison {
        /// How often.
        deliveries: u64,
    },
}

/// One entry of a stream.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its id.
    pub id: EntryId,
    /// What it carries.
    pub body: Body,
    /// What few entries have, kept out of line.
    pub extras: Option<Box<Extras>>,
}

/// What an entry may carry beside its payload.
#[derive(Clone, Debug)]
pub struct Extras {
    /// Where the event first stood, on a replayed dead letter.
    pub origin: Option<ReplayOrigin>,
    /// W3C trace context of the producer.
    pub traceparent: Option<Bytes>,
}

/// The first place of a replayed event, by which it keeps its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayOrigin {
    /// The stream.
    pub stream: String,
    /// The entry.
    pub id: EntryId,
    /// The position in its array.
    pub index: u32,
}

impl ReplayOrigin {
    /// Reads `<stream> <id> <index>`; anything else is a producer's own field of that name, and counts as none.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok().filter(|text| text.len() <= 512)?;
        let mut parts = text.rsplitn(3, ' ');
        let index = parts.next()?.parse().ok()?;
        let id = parts.next()?.parse().ok()?;
        Some(Self { stream: parts.next()?.to_owned(), id, index })
    }
}

impl std::fmt::Display for ReplayOrigin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.stream, self.id, self.index)
    }
}

/// Where in a batch an event stands: which entry, and which position in that entry's array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Index of the entry in the batch.
    pub entry: u32,
    /// Position in the entry's array, 0 for a single event.
    pub index: u32,
}

/// Events of one batch in the form in which a destination takes them.
pub trait Rows: Default + Send + Sync + 'static {
    /// How many events.
    fn len(&self) -> usize;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets those of one entry of the batch, which were added last.
    fn forget(&mut self, entry: u32);

    /// Forgets all of them, and keeps the memory.
    fn clear(&mut self);
}

/// What became of a batch that was written.
#[derive(Debug, Default)]
pub struct Written {
    /// Events that are durable now and were not before.
    pub new: u64,
    /// Events that were there already.
    pub duplicates: u64,
    /// Events that the destination refused, with the reason; their neighbours are written.
    pub rejected: Vec<(Place, Fault)>,
    /// Events for another lane that follow from the ones written.
    pub forwards: Vec<Forward>,
}

/// An event that a written one gives rise to.
#[derive(Debug)]
pub struct Forward {
    /// The event it comes from.
    pub place: Place,
    /// `MessagePack` of one event.
    pub data: Vec<u8>,
}

/// What to do about an error: every error of every edge has exactly one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The other side is away: wait, with growing pauses, and try again.
    Wait,
    /// The other side refuses these very events: find the one and set it aside.
    SetAside,
    /// A bug of ours: end the program with a status.
    Stop,
}

/// A destination's error as the lane sees it. `SetAside` never gets here: destinations find the refused event themselves.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Away: worth waiting for.
    #[error("{0}")]
    Away(String),
    /// A bug: waiting would not help.
    #[error("{0}")]
    Bug(String),
}

/// Where events go.
pub trait Destination: Send + Sync + 'static {
    /// The form in which it takes them.
    type Rows: Rows;

    /// Judges the event that a reader stands before, adds it to `rows`, and leaves the reader behind the event.
    ///
    /// # Errors
    /// What is wrong with the event; `rows` is as before then.
    fn push(
        &self,
        judge: &mut Judge,
        event: &mut Reader<'_>,
        origin: &Origin<'_>,
        place: Place,
        rows: &mut Self::Rows,
    ) -> Result<(), Fault>;

    /// Makes all rows durable, each exactly once in effect however often it is called with the same rows.
    fn write(&self, rows: &mut Self::Rows) -> impl Future<Output = Result<Written, WriteError>> + Send;

    /// Most events a batch that this destination takes well.
    fn rows_max(&self) -> usize;

    /// Batches that it takes well at the same time.
    fn writers_max(&self) -> usize;

    /// Whether part of what it writes stands where the stream stands, and may be lost when that fails: then a batch is written
    /// once more before it is acknowledged after a failure.
    fn beside_stream(&self) -> bool {
        false
    }
}

/// What a dead letter keeps of its event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeadBody {
    /// Under `data`.
    MessagePack(Bytes),
    /// Under `json`.
    Json(Bytes),
    /// The entry's own fields, copied within Redis.
    WholeEntry,
}

/// Pauses between tries: doubled each time from `first` to `max`, each shortened by up to half at random, so that
/// workers that lost the same server do not come back in step ("equal jitter").
#[derive(Clone, Copy, Debug)]
pub struct Pauses {
    next: Duration,
    max: Duration,
}

impl Pauses {
    /// From 50 ms to 5 s: an outage of a second costs little, one of an hour 720 tries.
    pub const fn new() -> Self {
        Self { next: Duration::from_millis(50), max: Duration::from_secs(5) }
    }

    /// The next pause; `unit` is drawn from 0 to 1.
    pub fn next(&mut self, unit: f64) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.max);
        pause.mul_f64(0.5 + unit.clamp(0.0, 1.0) / 2.0)
    }
}

impl Default for Pauses {
    fn default() -> Self {
        Self::new()
    }
}

/// Entries that were delivered together.
pub struct Delivered {
    /// The entries, in stream order.
    pub entries: Vec<Entry>,
    /// Marks them as in hand until it is dropped: after they are settled, or given up on leaving.
    pub hold: Box<dyn std::any::Any + Send + Sync>,
    /// They were pending before: of a dead worker, or of this one before it lost its connection.
    pub reclaimed: bool,
    /// They were delivered suspiciously often: they are written without company, so that only the guilty one suffers.
    pub alone: bool,
    /// Bytes that they take.
    pub bytes: usize,
    /// What was delivered with them and comes next: it is on its way, and there is room for it.
    pub more: bool,
    /// There is more to read at once: the rest of what was delivered, or a backlog in the stream.
    pub ahead: bool,
}

/// Where entries come from.
pub trait Source: Send + 'static {
    /// The next entries; waits for them. `None`: `stop` was asked for, and nothing that was delivered is left unseen.
    ///
    /// Outages are waited out inside.
    ///
    /// # Errors
    /// A bug: waiting would not help.
    fn next(
        &mut self,
        stop: &tokio_util::sync::CancellationToken,
    ) -> impl Future<Output = Result<Option<Delivered>, WriteError>> + Send;
}

/// What is to be told to the stream about a batch whose events are durable. Parts that are done are taken out, so that a try
/// after a failure goes on where the last one ended.
#[derive(Debug, Default)]
pub struct Settlement {
    /// Events for another lane, `MessagePack` each.
    pub forwards: Vec<Vec<u8>>,
    /// Entries with events to set aside: acknowledged and set aside in one step.
    pub dead: Vec<(EntryId, Vec<Setaside>)>,
    /// Entries to acknowledge.
    pub acks: Vec<EntryId>,
}

/// One dead letter, complete.
#[derive(Debug, Clone)]
pub struct Setaside {
    /// Where the event first stood: its stream, entry and position.
    pub origin: ReplayOrigin,
    /// Why.
    pub fault: Fault,
    /// The event as it came.
    pub body: DeadBody,
}

/// Tells the stream what is settled.
pub trait Settle: Send + Sync + 'static {
    /// Forwards, sets aside and acknowledges, in this order. Returns how many old dead letters made room for new ones.
    ///
    /// # Errors
    /// The stream's server is away, or a bug; what is done is taken out of `settlement`.
    fn settle(&self, settlement: &mut Settlement) -> impl Future<Output = Result<u64, WriteError>> + Send;
}
