//! Reading a consumer group: first what was ours and may have been lost on the way, then what the dead left, then what is new.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::error::RedisError;
use super::hold::InHand;
use super::inspect::{self, Losses};
use super::pending::{self, CLAIM_COUNT};
use super::wire::{Chunk, READ_BYTES, Wire};
use super::{Place, Redis, query, trim};
use crate::config::Streams;
use crate::seam::{Answer, Body, Delivered, Entry, EntryId, Pauses, Source, WriteError};
use crate::telemetry::health::Outage;
use crate::telemetry::metric::LaneMetrics;

/// How long the server waits for something new. A worker that is told to leave waits for the end of it, so that no entry is
/// delivered into a connection that nobody reads.
const BLOCK: Duration = Duration::from_secs(1);
/// Longest time between two looks for entries that others left behind; with each [`CLAIM_STREAMS`] partitions as much longer, so
/// that a thousand idle streams do not keep a core busy.
const CLAIM_EVERY_MAX: Duration = Duration::from_secs(2);
const CLAIM_STREAMS: u16 = 16;
/// Between two looks for entries that are trimmed away unread, while there is a backlog: reading on wipes the trace of them.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long the server waits while suspects wait for their turn.
const BLOCK_SHORT: Duration = Duration::from_millis(20);

/// Which part of the stream comes next.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Whether there are more own pending entries than are in hand.
    Look,
    /// Own pending entries above this id that are not in hand: their delivery was lost, or they were just taken over.
    Own(EntryId),
    /// Entries of others that were idle for long become own ones, from this cursor on.
    Others(EntryId),
    /// What nobody has read.
    New,
}

/// The part of a reply that is still to come.
#[derive(Clone, Copy, Debug)]
struct Rest {
    left: u64,
    reclaimed: bool,
}

/// What a reader is made with.
pub struct ReaderSettings {
    /// The stream.
    pub key: String,
    /// The group that sets aside what this one passes over: it is made as well, so that nothing counts as settled by everybody
    /// before it has looked.
    pub judging_group: Option<String>,
    /// Idle time after which others' entries are taken over.
    pub claim_idle: Duration,
    /// Deliveries after which an entry is set aside.
    pub deliveries_max: u64,
    /// Longest payload.
    pub entry_bytes_max: usize,
    /// Most entries a read.
    pub entries_max: usize,
    /// Bytes that a read should bring at most; entries are asked for by their average size so far.
    pub bytes_max: usize,
    /// Age from which settled entries may be trimmed; see `AEGIS_RETAIN`.
    pub retain: Option<Duration>,
}

/// Reads one stream through the consumer group.
pub struct GroupReader {
    redis: Redis,
    streams: Streams,
    settings: ReaderSettings,
    in_hand: InHand,
    losses: Arc<Losses>,
    metrics: Arc<LaneMetrics>,
    outage: Outage,
    wire: Option<Wire>,
    /// Where `wire` leads.
    place: Option<Place>,
    phase: Phase,
    rest: Option<Rest>,
    /// For what is being read.
    room: Option<OwnedSemaphorePermit>,
    ready: VecDeque<Delivered>,
    /// Where to go on among the entries of others; `None`: all were looked at, until `claim_at`.
    others: Option<EntryId>,
    claim_at: Instant,
    /// Claimed, and not arrived yet.
    asked: HashSet<EntryId>,
    /// Those below may be gone because they were settled, and then trimmed.
    trimmed_below: EntryId,
    /// The one entry in hand that was delivered suspiciously often, and how often.
    suspect: Option<(EntryId, u64)>,
    /// More of that kind wait until it is settled.
    suspects_wait: bool,
    look_at: Instant,
    /// Whether the last read brought all that was asked for.
    backlog: bool,
    entry_bytes: f64,
    pauses: Pauses,
    /// Whether the group was seen: its absence later is worth a warning.
    seen: bool,
}

impl GroupReader {
    /// A reader that has not connected yet.
    pub fn new(
        redis: Redis,
        streams: &Streams,
        settings: ReaderSettings,
        in_hand: InHand,
        losses: Arc<Losses>,
        metrics: Arc<LaneMetrics>,
        outage: Outage,
    ) -> Self {
        Self {
            redis,
            streams: streams.clone(),
            settings,
            in_hand,
            losses,
            metrics,
            outage,
            wire: None,
            place: None,
            phase: Phase::Own(EntryId::default()),
            rest: None,
            room: None,
            ready: VecDeque::new(),
            others: Some(EntryId::default()),
            claim_at: Instant::now(),
            asked: HashSet::new(),
            trimmed_below: EntryId::default(),
            suspect: None,
            suspects_wait: false,
            look_at: Instant::now(),
            backlog: false,
            entry_bytes: 1024.0,
            pauses: Pauses::new(),
            seen: false,
        }
    }

    /// Makes the group, with the stream, from its beginning.
    async fn make_group(&mut self) -> Result<(), RedisError> {
        if let Some(judging) = &self.settings.judging_group {
            create_group(&self.redis, &self.settings.key, judging, 0).await?;
        }
        // Such a group may join a stream of years: what was trimmed before it came is no loss of its.
        let gone = if self.settings.judging_group.is_some() && !self.seen {
            inspect::removed(&self.redis, &self.settings.key).await?
        } else {
            0
        };
        let made = create_group(&self.redis, &self.settings.key, &self.streams.group, gone).await?;
        if made && self.seen {
            self.metrics.groups_recreated.increment(1);
            tracing::warn!(
                stream = self.settings.key,
                group = self.streams.group,
                "the consumer group was gone and is made again from the stream's beginning"
            );
        }
        self.seen = true;
        Ok(())
    }

    /// One step: brings entries into `ready`, or moves on to the next phase.
    async fn step(&mut self, stop: &CancellationToken) -> Result<(), RedisError> {
        if self.wire.is_none() {
            let read_bytes = self.read_bytes();
            let place = self.redis.serving(&self.settings.key).await?;
            let server = &self.place.insert(place).node.server;
            let wire = Wire::connect(server, self.redis.timeout, self.settings.entry_bytes_max, read_bytes).await?;
            // Before the first read of a connection: the last one may have brought entries that never arrived.
            self.make_group().await?;
            self.look_for_losses().await?;
            self.phase = Phase::Own(EntryId::default());
            self.rest = None;
            self.asked.clear();
            self.wire = Some(wire);
        }
        if self.rest.is_none() {
            self.ask().await?;
        }
        if let Some(rest) = self.rest {
            let read_bytes = self.read_bytes();
            // Who is to leave takes what it was given.
            self.room = tokio::select! {
                room = self.in_hand.room(read_bytes) => room,
                () = stop.cancelled() => None,
            };
            self.take(rest).await?;
            self.room = None;
        }
        Ok(())
    }

    fn read_bytes(&self) -> usize {
        self.settings.bytes_max.clamp(1024, READ_BYTES)
    }

    async fn look_for_losses(&mut self) -> Result<(), RedisError> {
        let stream = inspect::stream(&self.redis, &self.streams, &self.settings.key).await?;
        self.losses.note(&stream, &self.metrics);
        self.look_at = Instant::now() + LOOK_EVERY;
        Ok(())
    }

    /// Sends the next command and reads the head of its reply.
    async fn ask(&mut self) -> Result<(), RedisError> {
        match self.phase {
            Phase::Look => self.look_for_own().await,
            Phase::Own(after) => self.ask_own(after).await,
            Phase::Others(cursor) => self.ask_others(cursor).await,
            Phase::New => self.ask_new().await,
        }
    }

    /// Goes through the own pending entries only if there are more of them than are in hand, for with a backlog there are tens of
    /// thousands. One in nobody's hand may hide behind one that is held still and acknowledged just now: the next look will tell.
    async fn look_for_own(&mut self) -> Result<(), RedisError> {
        let Streams { group, consumer, .. } = &self.streams;
        let held = self.in_hand.count();
        let pending = pending::count_of(&self.redis, &self.settings.key, group, consumer).await?;
        self.phase = if pending > held { Phase::Own(EntryId::default()) } else { self.after_own() };
        Ok(())
    }

    /// Claims own pending entries that are not in hand. Unlike a read of the own history this delivers nothing that is.
    ///
    /// Each claim counts as a delivery. So only one entry that was delivered suspiciously often is claimed at a time: those
    /// behind it would be counted up, and in the end be set aside, for what the one before them does to the worker.
    async fn ask_own(&mut self, after: EntryId) -> Result<(), RedisError> {
        let Streams { group, consumer, .. } = &self.streams;
        // Nobody else takes entries in hand: what is pending after this look and was not in hand at it is in nobody's.
        let held = self.in_hand.ids();
        self.suspect = self.suspect.filter(|(id, _)| held.contains(id));
        self.suspects_wait &= after != EntryId::default();
        let pending = pending::of(&self.redis, &self.settings.key, group, consumer, after).await?;
        let next = (pending.len() == CLAIM_COUNT).then(|| pending.last().map(|(id, _)| *id)).flatten();
        for &(id, deliveries) in pending.iter().filter(|(id, _)| !held.contains(id)) {
            let deliveries = deliveries + 1;
            if deliveries > self.settings.deliveries_max / 2 {
                if self.suspect.is_some() {
                    self.suspects_wait = true;
                    continue;
                }
                self.suspect = Some((id, deliveries));
            }
            self.asked.insert(id);
        }
        self.phase = next.map_or_else(|| self.after_own(), Phase::Own);
        self.settle_deleted().await?;
        let Some(wire) = self.wire.as_mut().filter(|_| !self.asked.is_empty()) else { return Ok(()) };
        let Streams { group, consumer, .. } = &self.streams;
        let ids: Vec<_> = self.asked.iter().map(ToString::to_string).collect();
        let mut command = vec![b"XCLAIM".as_slice(), self.settings.key.as_bytes(), group.as_bytes(), consumer.as_bytes(), b"0"];
        command.extend(ids.iter().map(String::as_bytes));
        wire.send(&command).await?;
        let left = wire.array_head().await?;
        self.rest = Some(Rest { left, reclaimed: true });
        Ok(())
    }

    /// What comes when the own entries are in hand.
    fn after_own(&mut self) -> Phase {
        if let Some(cursor) = self.others {
            return Phase::Others(cursor);
        }
        self.claim_at = Instant::now() + self.claim_pause();
        Phase::New
    }

    /// Makes entries that others have left idle for long own ones, without counting that as a delivery.
    async fn ask_others(&mut self, cursor: EntryId) -> Result<(), RedisError> {
        let Streams { group, consumer, .. } = &self.streams;
        let mut command = ::redis::cmd("XAUTOCLAIM");
        command.arg(&self.settings.key).arg(group).arg(consumer).arg(self.settings.claim_idle.as_millis() as u64);
        command.arg(cursor.to_string()).arg("COUNT").arg(CLAIM_COUNT).arg("JUSTID");
        // Where to go on, the ids, and since Redis 7 those that were deleted.
        let reply: Vec<::redis::Value> = query(&self.redis, &self.settings.key, &command).await?;
        let ids = |at: usize| -> Vec<EntryId> {
            let texts = reply.get(at).and_then(|ids| ::redis::from_redis_value_ref::<Vec<String>>(ids).ok()).unwrap_or_default();
            texts.iter().filter_map(|id| id.parse().ok()).collect()
        };
        let next = reply.first().and_then(|id| ::redis::from_redis_value_ref::<String>(id).ok()).and_then(|id| id.parse().ok());
        self.others = next.filter(|next| *next != EntryId::default());
        let (taken, gone) = (ids(1), ids(2));
        if !gone.is_empty() {
            self.settle_gone(&gone).await?;
        }
        self.phase = match taken.iter().min() {
            Some(first) => Phase::Own(first.before()),
            None => self.after_own(),
        };
        Ok(())
    }

    /// Asks for what nobody has read, and waits for it.
    async fn ask_new(&mut self) -> Result<(), RedisError> {
        if self.backlog && Instant::now() >= self.look_at {
            self.look_for_losses().await?;
        }
        let Some(wire) = self.wire.as_mut() else { return Ok(()) };
        let Streams { group, consumer, .. } = &self.streams;
        let count = ((self.settings.bytes_max as f64 / self.entry_bytes) as u64).clamp(1, self.settings.entries_max as u64);
        let block = if self.suspects_wait { BLOCK_SHORT } else { BLOCK };
        let (asked, block_ms) = (count.to_string(), block.as_millis().to_string());
        let (group, consumer, key) = (group.as_bytes(), consumer.as_bytes(), self.settings.key.as_bytes());
        let limits = [b"COUNT".as_slice(), asked.as_bytes(), b"BLOCK", block_ms.as_bytes()];
        let command = [&[b"XREADGROUP".as_slice(), b"GROUP", group, consumer], &limits[..], &[b"STREAMS", key, b">"]];
        wire.send(&command.concat()).await?;
        let left = wire.read_head(block).await?;
        self.backlog = left == count;
        if left > 0 {
            self.rest = Some(Rest { left, reclaimed: false });
        } else {
            self.look_back_in_time();
        }
        Ok(())
    }

    /// Takes the next entries of a reply.
    async fn take(&mut self, mut rest: Rest) -> Result<(), RedisError> {
        let Some(wire) = self.wire.as_mut() else { return Ok(()) };
        let chunk = if rest.left > 0 { wire.chunk(&mut rest.left).await? } else { Chunk::default() };
        let done = rest.left == 0;
        self.rest = (!done).then_some(rest);
        if !self.asked.is_empty() {
            for id in chunk.entries.iter().map(|entry| &entry.id).chain(&chunk.gone) {
                self.asked.remove(id);
            }
        }
        self.deliver(chunk, rest.reclaimed).await?;
        if done && rest.reclaimed {
            self.settle_missing().await?;
        } else if done {
            self.look_back_in_time();
        }
        Ok(())
    }

    fn look_back_in_time(&mut self) {
        if Instant::now() >= self.claim_at {
            self.others = Some(EntryId::default());
            self.phase = Phase::Look;
        } else if self.suspects_wait && self.suspect.is_none_or(|(id, _)| !self.in_hand.ids().contains(&id)) {
            self.phase = Phase::Own(EntryId::default());
        }
    }

    fn claim_pause(&self) -> Duration {
        (self.settings.claim_idle / 4)
            .clamp(Duration::from_millis(50), CLAIM_EVERY_MAX * u32::from(1 + self.streams.partitions / CLAIM_STREAMS))
            .mul_f64(0.75 + rand::random::<f64>() / 2.0)
    }

    /// Puts what came into `ready`: one that was delivered too often apart from the rest.
    async fn deliver(&mut self, chunk: Chunk, reclaimed: bool) -> Result<(), RedisError> {
        if !chunk.gone.is_empty() {
            self.settle_gone(&chunk.gone).await?;
        }
        let Chunk { mut entries, bytes, .. } = chunk;
        if entries.is_empty() {
            return Ok(());
        }
        self.entry_bytes = 0.8 * self.entry_bytes + 0.2 * (bytes as f64 / entries.len() as f64).max(16.0);
        let suspect = self.suspect.filter(|_| reclaimed);
        let suspect = suspect.and_then(|(id, deliveries)| Some((entries.iter().position(|entry| entry.id == id)?, deliveries)));
        let suspect = suspect.map(|(at, deliveries)| (entries.remove(at), deliveries));
        if !entries.is_empty() {
            let delivered = self.delivered(entries, reclaimed, false, bytes);
            self.ready.push_back(delivered);
        }
        if let Some((mut suspect, deliveries)) = suspect {
            if deliveries > self.settings.deliveries_max {
                suspect.body = Body::Poison { deliveries };
            }
            let delivered = self.delivered(vec![suspect], reclaimed, true, bytes);
            self.ready.push_back(delivered);
        }
        Ok(())
    }

    fn delivered(&mut self, entries: Vec<Entry>, reclaimed: bool, alone: bool, bytes: usize) -> Delivered {
        let ids: Arc<[EntryId]> = entries.iter().map(|entry| entry.id).collect();
        let hold = Box::new(self.in_hand.hold(ids, bytes, self.room.take()));
        let more = self.rest.is_some() && self.in_hand.has_room(self.read_bytes());
        let ahead = self.rest.is_some() || (self.backlog && !reclaimed);
        Delivered { entries, hold, reclaimed, alone, bytes, more, ahead }
    }

    /// Of the entries that are to be claimed, those that are old enough to be trimmed once settled are looked at first: afterwards
    /// nobody can tell whether one that is missing was deleted unsettled, or settled and trimmed.
    async fn settle_deleted(&mut self) -> Result<(), RedisError> {
        let Some(retain) = self.settings.retain.filter(|_| !self.asked.is_empty()) else { return Ok(()) };
        let (key, group) = (&self.settings.key, &self.streams.group);
        let (gone, below) = trim::deleted_unsettled(&self.redis, key, group, retain, self.asked.iter().copied()).await?;
        self.trimmed_below = below;
        if gone.is_empty() {
            return Ok(());
        }
        self.asked.retain(|id| !gone.contains(id));
        self.settle_gone(&gone).await
    }

    /// Of the entries that were claimed and did not come, those that the stream does not hold any more are lost; the others were
    /// taken over by somebody else, or settled and trimmed.
    async fn settle_missing(&mut self) -> Result<(), RedisError> {
        if self.asked.is_empty() {
            return Ok(());
        }
        let missing: Vec<_> = self.asked.drain().collect();
        let mut pipeline = ::redis::Pipeline::new();
        for id in &missing {
            pipeline.cmd("XRANGE").arg(&self.settings.key).arg(id.to_string()).arg(id.to_string());
        }
        let found: Vec<Vec<::redis::Value>> = super::pipeline(&self.redis, &self.settings.key, &pipeline).await?;
        let missing = missing.into_iter().zip(&found).filter(|(id, found)| found.is_empty() && *id >= self.trimmed_below);
        let gone: Vec<_> = missing.map(|(id, _)| id).collect();
        if gone.is_empty() { Ok(()) } else { self.settle_gone(&gone).await }
    }

    /// Pending entries that somebody deleted can never be written: they are acknowledged and counted as lost.
    async fn settle_gone(&self, gone: &[EntryId]) -> Result<(), RedisError> {
        let mut command = ::redis::cmd("XACK");
        command.arg(&self.settings.key).arg(&self.streams.group);
        for id in gone {
            command.arg(id.to_string());
        }
        let _: u64 = query(&self.redis, &self.settings.key, &command).await?;
        self.metrics.entries_lost.increment(gone.len() as u64);
        tracing::warn!(
            stream = self.settings.key,
            entries = gone.len(),
            "pending entries were deleted from the stream before they were settled"
        );
        Ok(())
    }
}

impl Source for GroupReader {
    async fn next(&mut self, stop: &CancellationToken) -> Result<Option<Delivered>, WriteError> {
        loop {
            if let Some(delivered) = self.ready.pop_front() {
                return Ok(Some(delivered));
            }
            if stop.is_cancelled() {
                return Ok(None);
            }
            match self.step(stop).await {
                Ok(()) => {
                    self.outage.recovered();
                    self.pauses = Pauses::new();
                }
                Err(error) => match error.answer() {
                    Answer::Wait => {
                        self.wire = None;
                        if let Some(place) = self.place.take() {
                            self.redis.doubt(&place, &error);
                        }
                        if let RedisError::NoGroup(_) = error {
                            continue;
                        }
                        self.outage.failed(&error.to_string());
                        let pause = self.pauses.next(rand::random());
                        tokio::select! {
                            biased;
                            () = stop.cancelled() => {}
                            () = tokio::time::sleep(pause) => {}
                        }
                    }
                    Answer::Stop | Answer::SetAside => return Err(WriteError::Bug(error.to_string())),
                },
            }
        }
    }
}

/// Makes the group, with the stream, from its beginning, as if it had read `read` entries that are gone. Returns whether it was
/// absent.
///
/// # Errors
/// Redis is away or refuses.
async fn create_group(redis: &Redis, key: &str, group: &str, read: u64) -> Result<bool, RedisError> {
    let mut command = ::redis::cmd("XGROUP");
    command.arg("CREATE").arg(key).arg(group).arg("0").arg("MKSTREAM");
    if read > 0 {
        command.arg("ENTRIESREAD").arg(read);
    }
    match query::<()>(redis, key, &command).await {
        Ok(()) => Ok(true),
        Err(RedisError::Unexpected(text)) if text.starts_with("BUSYGROUP") => Ok(false),
        Err(error) => Err(error),
    }
}
