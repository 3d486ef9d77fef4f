//! A batch: entries, what their events became, and what is to be told to the stream in the end.

use std::any::Any;
use std::collections::BTreeMap;
use std::time::Instant;

use crate::event::{Code, Events, Fault, Judge, Origin, Payload, each_event, event_alone};
use crate::seam::{
    Body, DeadBody, Delivered, Destination, Entry, EntryId, Place, ReplayOrigin, Rows, Setaside, Settlement, Written,
};

/// Entries that are written together.
pub(super) struct Batch<R> {
    pub(super) entries: Vec<Entry>,
    /// How many events each entry holds.
    pub(super) events: Vec<u32>,
    pub(super) rows: R,
    dead: Vec<(Place, Fault, DeadBody)>,
    /// When the first entry came.
    pub(super) since: Instant,
    /// Bytes of all entries.
    pub(super) bytes: usize,
    /// Nothing more is added.
    pub(super) full: bool,
    /// Written without company: its entry was delivered suspiciously often.
    pub(super) alone: bool,
    /// More that was delivered with it is about to come.
    pub(super) more: bool,
    holds: Holds,
}

/// What keeps the entries of a batch in hand until it is dropped.
pub(super) type Holds = Vec<Box<dyn Any + Send + Sync>>;

impl<R: Rows> Batch<R> {
    pub(super) fn new() -> Self {
        Self {
            entries: Vec::new(),
            events: Vec::new(),
            rows: R::default(),
            dead: Vec::new(),
            since: Instant::now(),
            bytes: 0,
            full: false,
            alone: false,
            more: false,
            holds: Vec::new(),
        }
    }

    /// A new batch in the memory of one that is done with.
    pub(super) fn again(self) -> Self {
        Self { since: Instant::now(), bytes: 0, full: false, alone: false, more: false, ..self }
    }

    /// Forgets its entries. They are in hand until what this returns is dropped.
    pub(super) fn let_go(&mut self) -> Holds {
        self.entries.clear();
        self.events.clear();
        self.dead.clear();
        std::mem::take(&mut self.holds)
    }

    /// Judges every event of what was delivered.
    pub(super) fn take<D: Destination<Rows = R>>(
        &mut self,
        delivered: Delivered,
        destination: &D,
        stream: &str,
        judge: &mut Judge,
        scratch: &mut Vec<u8>,
    ) {
        self.bytes += delivered.bytes;
        self.holds.push(delivered.hold);
        self.entries.reserve(delivered.entries.len());
        self.events.reserve(delivered.entries.len());
        for entry in delivered.entries {
            let number = self.entries.len() as u32;
            let events = self.take_entry(&entry, number, destination, stream, judge, scratch).unwrap_or_else(|(fault, body)| {
                self.dead.push((Place { entry: number, index: 0 }, fault, body));
                1
            });
            self.entries.push(entry);
            self.events.push(events);
        }
    }

    /// Forgets the events that cannot be read, and returns how many there were. What stopped this lane's workers again and again
    /// is no such event: nobody else may have met it.
    pub(super) fn pass_over(&mut self) -> u64 {
        let before = self.dead.len();
        self.dead.retain(|(_, fault, _)| fault.code == Code::Rejected);
        (before - self.dead.len()) as u64
    }

    fn take_entry<D: Destination<Rows = R>>(
        &mut self,
        entry: &Entry,
        number: u32,
        destination: &D,
        stream: &str,
        judge: &mut Judge,
        scratch: &mut Vec<u8>,
    ) -> Result<u32, (Fault, DeadBody)> {
        let whole = |code, reason: String| Err((Fault::new(code, reason), DeadBody::WholeEntry));
        let (payload, bytes) = match &entry.body {
            Body::MessagePack(bytes) => (Payload::MessagePack(bytes), bytes),
            Body::Json(bytes) => (Payload::Json(bytes), bytes),
            Body::Shapeless => {
                return whole(Code::Malformed, "the entry must have exactly one field `data` or one field `json`".to_owned());
            }
            Body::TooLarge { bytes } => {
                return whole(Code::TooLarge, format!("the entry is {bytes} bytes long: AEGIS_MAX_ENTRY_BYTES allows less"));
            }
            Body::Poison { deliveries } => {
                return whole(
                    Code::Rejected,
                    format!("the entry was delivered {deliveries} times and never settled: it may stop the worker"),
                );
            }
        };
        let kept = |raw: &[u8]| match payload {
            Payload::MessagePack(_) => DeadBody::MessagePack(bytes.slice_ref(raw)),
            Payload::Json(_) => DeadBody::Json(bytes.slice_ref(raw)),
        };
        let replayed = entry.extras.as_ref().and_then(|extras| extras.origin.as_ref());
        let rows = &mut self.rows;
        let events = each_event(payload, scratch, |index, event| {
            let place = Place { entry: number, index };
            let origin = match replayed {
                Some(first) => {
                    Origin { stream: &first.stream, ms: first.id.ms, seq: first.id.seq, index: first.index.saturating_add(index) }
                }
                None => Origin { stream, ms: entry.id.ms, seq: entry.id.seq, index },
            };
            destination.push(judge, event, &origin, place, rows)
        });
        match events {
            Ok(Events { count, faulty }) => {
                let faulty = faulty.into_iter();
                self.dead.extend(faulty.map(|(index, raw, fault)| (Place { entry: number, index }, fault, kept(raw))));
                Ok(count)
            }
            Err(fault) => {
                rows.forget(number);
                Err((fault, kept(bytes)))
            }
        }
    }

    /// What is to be told to the stream now that the rows are durable.
    pub(super) fn settlement(&mut self, written: Written, stream: &str) -> Settlement {
        for (place, fault) in written.rejected {
            let body = match self.entries.get(place.entry as usize).map(|entry| &entry.body) {
                Some(Body::MessagePack(bytes)) => {
                    event_alone(Payload::MessagePack(bytes), place.index).map(|raw| DeadBody::MessagePack(bytes.slice_ref(raw)))
                }
                Some(Body::Json(bytes)) => {
                    event_alone(Payload::Json(bytes), place.index).map(|raw| DeadBody::Json(bytes.slice_ref(raw)))
                }
                Some(Body::Shapeless | Body::TooLarge { .. } | Body::Poison { .. }) | None => None,
            };
            self.dead.push((place, fault, body.unwrap_or(DeadBody::WholeEntry)));
        }
        let forwards = written.forwards.into_iter().map(|forward| forward.data).collect();
        if self.dead.is_empty() {
            let acks = self.entries.iter().map(|entry| entry.id).collect();
            return Settlement { forwards, dead: Vec::new(), acks };
        }
        let mut by_entry: BTreeMap<u32, Vec<Setaside>> = BTreeMap::new();
        self.dead.sort_unstable_by_key(|(place, ..)| *place);
        for (place, fault, body) in self.dead.drain(..) {
            let Some(entry) = self.entries.get(place.entry as usize) else { continue };
            let replayed = entry.extras.as_ref().and_then(|extras| extras.origin.clone());
            let mut origin = replayed.unwrap_or_else(|| ReplayOrigin { stream: stream.to_owned(), id: entry.id, index: 0 });
            origin.index = origin.index.saturating_add(place.index);
            by_entry.entry(place.entry).or_default().push(Setaside { origin, fault, body });
        }
        let (mut dead, mut acks) = (Vec::new(), Vec::new());
        for (number, entry) in (0_u32..).zip(&self.entries) {
            match by_entry.remove(&number) {
                Some(letters) => dead.push((entry.id, letters)),
                None => acks.push(entry.id),
            }
        }
        Settlement { forwards, dead, acks }
    }

    /// The producer's trace context of an entry.
    pub(super) fn traceparent(&self, id: EntryId) -> Option<&str> {
        let entry = self.entries.iter().find(|entry| entry.id == id)?;
        std::str::from_utf8(entry.extras.as_ref()?.traceparent.as_ref()?).ok()
    }
}
