//! Reading a consumer group: first what was ours and may have been lost on the way, then what the dead left, then what is new.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::error::RedisError;
use super::hold::InHand;
use super::inspect::{self, Losses};
use super::wire::{Chunk, Wire};
use super::{Redis, query};
use crate::config::Streams;
use crate::seam::{Answer, Body, Delivered, Entry, EntryId, Pauses, Source, WriteError};
use crate::telemetry::health::Outage;
use crate::telemetry::metric::LaneMetrics;

/// How long the server waits for something new. A worker that is told to leave waits for the end of it, so that no entry is
/// delivered into a connection that nobody reads.
const BLOCK: Duration = Duration::from_secs(1);
/// Longest time between two looks for entries that others left behind.
const CLAIM_EVERY_MAX: Duration = Duration::from_secs(2);
/// Between two looks for entries that are trimmed away unread, while there is a backlog: reading on wipes the trace of them.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Pending entries looked at or claimed by one command.
const CLAIM_COUNT: usize = 1000;

/// Which part of the stream comes next.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Own pending entries above this id that are not in hand: their delivery was lost.
    Own(EntryId),
    /// Entries of others that were idle for long, from this cursor on.
    Others(EntryId),
    /// What nobody has read.
    New,
}

/// The part of a reply that is still to come.
#[derive(Clone, Copy, Debug)]
struct Rest {
    left: u64,
    phase: Phase,
}

/// What a reader is made with.
pub struct ReaderSettings {
    /// The stream.
    pub key: String,
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
    phase: Phase,
    rest: Option<Rest>,
    ready: VecDeque<Delivered>,
    claim_at: Instant,
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
            phase: Phase::Own(EntryId::default()),
            rest: None,
            ready: VecDeque::new(),
            claim_at: Instant::now(),
            look_at: Instant::now(),
            backlog: false,
            entry_bytes: 1024.0,
            pauses: Pauses::new(),
            seen: false,
        }
    }

    /// Makes the group, with the stream, from its beginning.
    async fn make_group(&mut self) -> Result<(), RedisError> {
        let made = create_group(&self.redis, &self.settings.key, &self.streams.group).await?;
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
    async fn step(&mut self) -> Result<(), RedisError> {
        if self.wire.is_none() {
            let wire = Wire::connect(&self.redis.info, self.redis.timeout, self.settings.entry_bytes_max).await?;
            // Before the first read of a connection: the last one may have brought entries that never arrived.
            self.make_group().await?;
            self.look_for_losses().await?;
            self.phase = Phase::Own(EntryId::default());
            self.rest = None;
            self.wire = Some(wire);
        }
        if self.rest.is_none() {
            self.ask().await?;
        }
        if let Some(rest) = self.rest {
            self.take(rest).await?;
        }
        Ok(())
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
            Phase::Own(after) => self.ask_own(after).await,
            Phase::Others(cursor) => self.ask_others(cursor).await,
            Phase::New => self.ask_new().await,
        }
    }

    /// Claims own pending entries that are not in hand. Unlike a read of the own history this delivers nothing that is.
    async fn ask_own(&mut self, after: EntryId) -> Result<(), RedisError> {
        let Streams { group, consumer, .. } = &self.streams;
        let pending = own_pending(&self.redis, &self.settings.key, group, consumer, after).await?;
        let held = self.in_hand.ids();
        let lost: Vec<_> = pending.iter().filter(|id| !held.contains(id)).map(ToString::to_string).collect();
        self.phase = match pending.last() {
            Some(last) if pending.len() == CLAIM_COUNT => Phase::Own(*last),
            _ => Phase::Others(EntryId::default()),
        };
        let Some(wire) = self.wire.as_mut().filter(|_| !lost.is_empty()) else { return Ok(()) };
        let mut command = vec![b"XCLAIM".as_slice(), self.settings.key.as_bytes(), group.as_bytes(), consumer.as_bytes(), b"0"];
        command.extend(lost.iter().map(String::as_bytes));
        wire.send(&command).await?;
        let left = wire.array_head().await?;
        self.rest = (left > 0).then_some(Rest { left, phase: Phase::Own(after) });
        Ok(())
    }

    /// Claims what others have left idle for long.
    async fn ask_others(&mut self, cursor: EntryId) -> Result<(), RedisError> {
        let Some(wire) = self.wire.as_mut() else { return Ok(()) };
        let Streams { group, consumer, .. } = &self.streams;
        let idle = self.settings.claim_idle.as_millis().to_string();
        let (cursor, count) = (cursor.to_string(), CLAIM_COUNT.to_string());
        let whose = [self.settings.key.as_bytes(), group.as_bytes(), consumer.as_bytes()];
        let command =
            [&[b"XAUTOCLAIM".as_slice()], &whose[..], &[idle.as_bytes(), cursor.as_bytes(), b"COUNT", count.as_bytes()]];
        wire.send(&command.concat()).await?;
        let (next, left) = wire.claim_head().await?;
        self.phase = Phase::Others(next);
        self.rest = Some(Rest { left, phase: Phase::Others(next) });
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
        let (asked, block) = (count.to_string(), BLOCK.as_millis().to_string());
        let (group, consumer, key) = (group.as_bytes(), consumer.as_bytes(), self.settings.key.as_bytes());
        let limits = [b"COUNT".as_slice(), asked.as_bytes(), b"BLOCK", block.as_bytes()];
        let command = [&[b"XREADGROUP".as_slice(), b"GROUP", group, consumer], &limits[..], &[b"STREAMS", key, b">"]];
        wire.send(&command.concat()).await?;
        let left = wire.read_head(BLOCK).await?;
        self.backlog = left == count;
        if left > 0 {
            self.rest = Some(Rest { left, phase: Phase::New });
        } else {
            self.look_for_others_in_time();
        }
        Ok(())
    }

    /// Takes the next entries of a reply.
    async fn take(&mut self, mut rest: Rest) -> Result<(), RedisError> {
        let Some(wire) = self.wire.as_mut() else { return Ok(()) };
        let mut chunk = if rest.left > 0 { wire.chunk(&mut rest.left).await? } else { Chunk::default() };
        let done = rest.left == 0;
        if done && let Phase::Others(_) = rest.phase {
            chunk.gone.extend(wire.claim_tail().await?);
        }
        self.rest = (!done).then_some(rest);
        self.deliver(chunk, rest.phase).await?;
        if done {
            match rest.phase {
                Phase::Others(next) if next == EntryId::default() => {
                    self.phase = Phase::New;
                    self.claim_at = Instant::now() + self.claim_pause();
                }
                Phase::Others(_) | Phase::Own(_) => {}
                Phase::New => self.look_for_others_in_time(),
            }
        }
        Ok(())
    }

    fn look_for_others_in_time(&mut self) {
        if Instant::now() >= self.claim_at {
            self.phase = Phase::Others(EntryId::default());
        }
    }

    fn claim_pause(&self) -> Duration {
        (self.settings.claim_idle / 4)
            .clamp(Duration::from_millis(50), CLAIM_EVERY_MAX)
            .mul_f64(0.75 + rand::random::<f64>() / 2.0)
    }

    /// Puts what came into `ready`: those delivered too often apart from the rest.
    async fn deliver(&mut self, chunk: Chunk, phase: Phase) -> Result<(), RedisError> {
        if !chunk.gone.is_empty() {
            self.settle_gone(&chunk.gone).await?;
        }
        let reclaimed = !matches!(phase, Phase::New);
        let Chunk { mut entries, bytes, .. } = chunk;
        if entries.is_empty() {
            return Ok(());
        }
        self.entry_bytes = 0.8 * self.entry_bytes + 0.2 * (bytes as f64 / entries.len() as f64).max(16.0);
        if !reclaimed {
            self.ready.push_back(self.delivered(entries, false, false, bytes));
            return Ok(());
        }
        let held = self.in_hand.ids();
        entries.retain(|entry| !held.contains(&entry.id));
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Ok(()) };
        let deliveries =
            deliveries(&self.redis, &self.settings.key, &self.streams.group, &self.streams.consumer, first.id, last.id).await?;
        let count = |entry: &Entry| deliveries.get(&entry.id).copied().unwrap_or(1);
        let (suspects, innocent): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|entry| count(entry) > self.settings.deliveries_max / 2);
        if !innocent.is_empty() {
            self.ready.push_back(self.delivered(innocent, true, false, bytes));
        }
        for mut suspect in suspects {
            let deliveries = count(&suspect);
            if deliveries > self.settings.deliveries_max {
                suspect.body = Body::Poison { deliveries };
            }
            self.ready.push_back(self.delivered(vec![suspect], true, true, bytes));
        }
        Ok(())
    }

    fn delivered(&self, entries: Vec<Entry>, reclaimed: bool, alone: bool, bytes: usize) -> Delivered {
        let ids: Arc<[EntryId]> = entries.iter().map(|entry| entry.id).collect();
        let hold = Box::new(self.in_hand.hold(ids, Instant::now()));
        Delivered { entries, hold, reclaimed, alone, bytes }
    }

    /// Pending entries that somebody deleted can never be written: they are acknowledged and counted as lost.
    async fn settle_gone(&self, gone: &[EntryId]) -> Result<(), RedisError> {
        let mut command = ::redis::cmd("XACK");
        command.arg(&self.settings.key).arg(&self.streams.group);
        for id in gone {
            command.arg(id.to_string());
        }
        let _: u64 = query(&self.redis, &command).await?;
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
            match self.step().await {
                Ok(()) => {
                    self.outage.recovered();
                    self.pauses = Pauses::new();
                }
                Err(error) => match error.answer() {
                    Answer::Wait => {
                        self.wire = None;
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

/// Makes the group, with the stream, from its beginning. Returns whether it was absent.
///
/// # Errors
/// Redis is away or refuses.
async fn create_group(redis: &Redis, key: &str, group: &str) -> Result<bool, RedisError> {
    let mut command = ::redis::cmd("XGROUP");
    command.arg("CREATE").arg(key).arg(group).arg("0").arg("MKSTREAM");
    match query::<()>(redis, &command).await {
        Ok(()) => Ok(true),
        Err(RedisError::Unexpected(text)) if text.starts_with("BUSYGROUP") => Ok(false),
        Err(error) => Err(error),
    }
}

/// Ids of this consumer's pending entries above `after`, at most [`CLAIM_COUNT`]. Unlike a read of the own history it leaves
/// the count of deliveries as it is.
async fn own_pending(redis: &Redis, key: &str, group: &str, consumer: &str, after: EntryId) -> Result<Vec<EntryId>, RedisError> {
    let mut command = ::redis::cmd("XPENDING");
    command.arg(key).arg(group).arg(format!("({after}")).arg("+").arg(CLAIM_COUNT).arg(consumer);
    let rows: Vec<(String, String, u64, u64)> = query(redis, &command).await?;
    Ok(rows.iter().filter_map(|(id, ..)| id.parse().ok()).collect())
}

/// How often each of our pending entries between two ids was delivered.
async fn deliveries(
    redis: &Redis,
    key: &str,
    group: &str,
    consumer: &str,
    first: EntryId,
    last: EntryId,
) -> Result<HashMap<EntryId, u64>, RedisError> {
    let mut counts = HashMap::new();
    let mut from = first.to_string();
    loop {
        let mut command = ::redis::cmd("XPENDING");
        command.arg(key).arg(group).arg(&from).arg(last.to_string()).arg(CLAIM_COUNT).arg(consumer);
        let rows: Vec<(String, String, u64, u64)> = query(redis, &command).await?;
        counts.extend(rows.iter().filter_map(|(id, _, _, count)| Some((id.parse().ok()?, *count))));
        match rows.last() {
            Some((id, ..)) if rows.len() == CLAIM_COUNT => from = format!("({id}"),
            _ => return Ok(counts),
        }
    }
}

/// Ids that are pending for this consumer but not in `held`, for a worker that leaves.
///
/// # Errors
/// Redis is away or refuses.
pub(super) async fn all_own_pending(
    redis: &Redis,
    key: &str,
    group: &str,
    consumer: &str,
) -> Result<HashSet<EntryId>, RedisError> {
    let mut all = HashSet::new();
    let mut after = EntryId::default();
    loop {
        let page = own_pending(redis, key, group, consumer, after).await?;
        all.extend(page.iter().copied());
        match page.last() {
            Some(last) if page.len() == CLAIM_COUNT => after = *last,
            _ => return Ok(all),
        }
    }
}
