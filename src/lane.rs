//! THE STORY: read → decode → write → settle, the same for interactions, sessions and embeddings.
//!
//! ```text
//!            one task            one task (run)                 a task a batch (deliver)
//!  stream ──> Source::next ──> take: judge every event ──> Destination::write ──> Settle::settle
//!                 │ some chunks ahead    │ gathers while others are written    │ forward, set aside, acknowledge last
//! ```
//!
//! Batching needs no tuning. When nothing is being written, what one read brought is written at once, be it a single event. While
//! one batch is being written the next gathers. Only a batch that is full, or has waited for long, takes another connection. Where
//! streams share the connections a batch gathers until its turn comes.
//!
//! **Architecture invariants:** the lane knows no store, only the seams. An entry is acknowledged after each of its events
//! is durable at its destination or set aside, never before. The chunks read ahead, one batch gathering and the batches in
//! flight are all that a lane ever holds; the rest waits in the stream.

mod batch;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::batch::Batch;
use crate::config::{BatchLimits, EventLimits};
use crate::event::{Judge, Window};
use crate::seam::{Delivered, Destination, Pauses, Rows as _, Settle, Source, WriteError, Written};
use crate::telemetry::health::Outage;
use crate::telemetry::metric::{LaneMetrics, LatencyBatch};

/// Batches that are written but not acknowledged yet, beside those being written: settling takes a fraction of the time of
/// writing, but for the moments in which Redis waits for its own log; these should hold up no writer.
const SETTLING_MAX: usize = 4;

/// Written batches whose memory is kept for those to come: one gathers, another may wait for its turn.
const SPARES_MAX: usize = 2;

/// Chunks read ahead: most of what a read brings, so that the server can get the next reply ready while this one is decoded.
const CHUNKS_AHEAD: usize = 4;

/// Entries below which a read brought so little that the next one may wait for more.
const FEW: usize = 64;
/// Longest pause between two reads while a batch is being written: about the time that one takes.
const GATHER_PAUSE: Duration = Duration::from_millis(1);

/// What a lane is made of.
pub struct Lane<S, D, T> {
    /// Where entries come from.
    pub source: S,
    /// Where events go.
    pub destination: Arc<D>,
    /// Where settled entries are told.
    pub settle: Arc<T>,
    /// What differs from lane to lane.
    pub settings: LaneSettings,
}

/// What differs from lane to lane.
#[derive(Clone)]
pub struct LaneSettings {
    /// The stream, for derived event ids and dead letters.
    pub stream: String,
    /// When a batch is full.
    pub batch: BatchLimits,
    /// What an event may be.
    pub events: EventLimits,
    /// Permits to write: the streams of one lane share them, so that partitions cost the destination nothing.
    pub writers: Arc<Semaphore>,
    /// Counters of this lane.
    pub metrics: Arc<LaneMetrics>,
    /// Another lane reads the same stream and sets aside what cannot be read in it: this one acknowledges such events without a
    /// second dead letter.
    pub judged_elsewhere: bool,
    /// Tells of the destination's outages.
    pub destination_outage: Outage,
    /// Tells of the stream's outages.
    pub stream_outage: Outage,
    /// The clock: Unix microseconds.
    pub now_us: fn() -> i64,
}

/// A bug, in words: the program ends with a status.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Bug(pub String);

/// Shared by the batches of one lane.
struct Shared<D: Destination, T> {
    destination: Arc<D>,
    settle: Arc<T>,
    settings: LaneSettings,
    /// Batches being written, or about to be; settling ones not counted.
    writing: AtomicUsize,
    /// Tells [`Lane::run`] that a batch is written.
    written: Notify,
    /// Tells the reader the same.
    gather: Notify,
    /// Written, empty again; their memory serves the next batches as long as there is a backlog.
    spares: Mutex<Vec<Batch<D::Rows>>>,
}

impl<S: Source, D: Destination, T: Settle> Lane<S, D, T> {
    /// Serves the stream until `stop`, then finishes what is in hand; until `abort` then, and no longer.
    ///
    /// # Errors
    /// A bug. Outages are waited out, bad events set aside.
    pub async fn run(self, stop: CancellationToken, abort: CancellationToken) -> Result<(), Bug> {
        let Self { source, destination, settle, settings } = self;
        let limits = settings.batch;
        let (rows_max, writers_max) = (destination.rows_max(), destination.writers_max());
        let shared = Arc::new(Shared {
            destination,
            settle,
            settings,
            writing: AtomicUsize::new(0),
            written: Notify::new(),
            gather: Notify::new(),
            spares: Mutex::new(Vec::new()),
        });
        let mut judge = Judge::new(shared.window());
        let mut scratch = Vec::new();
        // The last one gathers as long as it is open; the first one is next to be written.
        let mut queue: VecDeque<Batch<D::Rows>> = VecDeque::new();
        // The permit that the first one waits for. It still gathers: where streams share the writers, it is written the fuller.
        let mut turn = None;
        let mut tasks = JoinSet::new();
        let (chunks, mut incoming) = mpsc::channel(CHUNKS_AHEAD);
        tasks.spawn(read(source, chunks, stop, Arc::clone(&shared)));
        let mut reading = true;
        loop {
            if turn.is_none()
                && let Some(batch) = queue.front()
            {
                let writing = shared.writing.load(Ordering::Acquire);
                let due = batch.full || !reading || batch.since.elapsed() >= limits.age_max;
                // Half a reply would be a transaction of its own, and its other half a second one beside it. Should that half
                // not come, `due` ends the waiting.
                let whole = batch.full || !batch.more;
                let idle = writing == 0 && whole && !(batch.alone && tasks.len() > usize::from(reading));
                let room = tasks.len() < writers_max + SETTLING_MAX + usize::from(reading);
                if room && (idle || (due && !batch.alone && writing < writers_max)) {
                    shared.writing.fetch_add(1, Ordering::AcqRel);
                    turn = Some(Box::pin(shared.permit()));
                }
            }
            if queue.is_empty() && tasks.len() == usize::from(reading) {
                if !reading {
                    return Ok(());
                }
                shared.spares().clear();
            }
            let may_read = reading && queue.len() <= 1 && queue.back().is_none_or(|batch| !batch.full);
            let overdue = queue
                .front()
                .filter(|_| shared.writing.load(Ordering::Acquire) < writers_max)
                .map(|batch| batch.since + limits.age_max);
            tokio::select! {
                biased;
                // 1. The time to leave is over: what is not settled stays pending for others.
                () = abort.cancelled() => return Ok(()),
                // 2. A batch is settled, or a bug came to light.
                Some(ended) = tasks.join_next() => match ended {
                    Ok(result) => result?,
                    Err(panic) => return Err(Bug(format!("a task of the {} lane panicked: {panic}", shared.settings.metrics.lane))),
                },
                // 3. A batch is written: the next may start before it is settled.
                () = shared.written.notified() => {}
                // 4. The first batch's turn to be written.
                permit = come(&mut turn), if turn.is_some() => {
                    turn = None;
                    if let Some(batch) = queue.pop_front() {
                        tasks.spawn(deliver(Arc::clone(&shared), batch, permit?));
                    }
                }
                // 5. More to decode.
                chunk = incoming.recv(), if may_read => match chunk {
                    None => reading = false,
                    Some(delivered) => {
                        judge.window = shared.window();
                        shared.take(delivered, &mut queue, &mut judge, &mut scratch, rows_max);
                    }
                },
                // 6. A batch has waited for long enough: it may take another connection.
                () = wait_until(overdue), if overdue.is_some_and(|at| at > Instant::now()) => {}
            }
        }
    }
}

async fn come<F: Future + Unpin>(awaited: &mut Option<F>) -> F::Output {
    match awaited {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn wait_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at.into()).await;
    }
}

/// Reads until told to stop; what was delivered is passed on first.
async fn read<S: Source, D: Destination, T>(
    mut source: S,
    chunks: mpsc::Sender<Delivered>,
    stop: CancellationToken,
    shared: Arc<Shared<D, T>>,
) -> Result<(), Bug> {
    loop {
        match source.next(&stop).await {
            Ok(Some(delivered)) => {
                let few = delivered.entries.len() < FEW && !delivered.ahead;
                if chunks.send(delivered).await.is_err() {
                    return Ok(());
                }
                // While a batch is being written more gathers in the stream as well as here; asking for every single entry
                // would only keep Redis and this core busy.
                if few && shared.writing.load(Ordering::Acquire) > 0 {
                    let _ = tokio::time::timeout(GATHER_PAUSE, shared.gather.notified()).await;
                }
            }
            Ok(None) => return Ok(()),
            Err(WriteError::Bug(error) | WriteError::Away(error)) => return Err(Bug(error)),
        }
    }
}

/// Makes a batch durable, then settles it. Each step is tried until it is done.
async fn deliver<D: Destination, T: Settle>(
    shared: Arc<Shared<D, T>>,
    mut batch: Batch<D::Rows>,
    permit: OwnedSemaphorePermit,
) -> Result<(), Bug> {
    let settings = &shared.settings;
    let metrics = &settings.metrics;
    metrics.batches_in_flight.increment(1.0);
    metrics.batch_events.record(batch.rows.len() as f64);
    let written = shared.write(&mut batch.rows, Some(permit)).await?;
    shared.writing.fetch_sub(1, Ordering::AcqRel);
    shared.written.notify_one();
    shared.gather.notify_waiters();

    metrics.events_written.increment(written.new);
    metrics.events_duplicate.increment(written.duplicates);
    metrics.events_forwarded.increment(written.forwards.len() as u64);
    let now_ms = (settings.now_us)() / 1000;
    let mut latency = LatencyBatch::new();
    for (entry, events) in batch.entries.iter().zip(&batch.events) {
        latency.add(now_ms.saturating_sub_unsigned(entry.id.ms), u64::from(*events));
    }
    latency.flush(&metrics.ingest_latency);

    let mut settlement = batch.settlement(written, &settings.stream);
    for letter in settlement.dead.iter().flat_map(|(_, letters)| letters) {
        metrics.events_dead(letter.fault.code).increment(1);
    }
    if let Some((id, letters)) = settlement.dead.first() {
        let first = letters.first().map(|letter| (letter.fault.code.name(), letter.fault.reason.as_str()));
        let (code, reason) = first.unwrap_or_default();
        let events: usize = settlement.dead.iter().map(|(_, letters)| letters.len()).sum();
        let traceparent = batch.traceparent(*id).unwrap_or_default();
        tracing::warn!(stream = settings.stream, events, entry = %id, code, reason, traceparent, "events are set aside; this is the first of them");
    }
    // What settling has no use for serves other batches: many may settle at once while Redis waits for its own log.
    let in_hand = batch.let_go();
    let mut may_be_lost = if shared.destination.beside_stream() {
        Some(batch)
    } else {
        shared.keep(batch);
        None
    };
    let mut outage = settings.stream_outage.clone();
    let mut pauses = Pauses::new();
    loop {
        match shared.settle.settle(&mut settlement).await {
            Ok(dropped) => {
                outage.recovered();
                if dropped > 0 {
                    metrics.dead_dropped.increment(dropped);
                    tracing::warn!(
                        stream = settings.stream,
                        dropped,
                        "the dead-letter stream is full: its oldest letters made room (AEGIS_DEAD_MAX)"
                    );
                }
                break;
            }
            Err(WriteError::Away(error)) => {
                outage.failed(&error);
                tokio::time::sleep(pauses.next(rand::random())).await;
                if let Some(batch) = &mut may_be_lost {
                    // Without effect, but for what was lost with the server that failed.
                    shared.write(&mut batch.rows, None).await?;
                }
            }
            Err(WriteError::Bug(error)) => return Err(Bug(error)),
        }
    }
    metrics.batches_in_flight.decrement(1.0);
    // Only now are its entries in hand no longer.
    drop(in_hand);
    if let Some(batch) = may_be_lost {
        shared.keep(batch);
    }
    Ok(())
}

impl<D: Destination, T: Settle> Shared<D, T> {
    fn window(&self) -> Window {
        Window::around((self.settings.now_us)(), self.settings.events.age_max, self.settings.events.skew_max)
    }

    fn spares(&self) -> MutexGuard<'_, Vec<Batch<D::Rows>>> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the memory of a batch that is done with, and was let go.
    fn keep(&self, mut batch: Batch<D::Rows>) {
        batch.rows.clear();
        let mut spares = self.spares();
        if spares.len() < SPARES_MAX {
            spares.push(batch);
        }
    }

    /// Judges what was delivered and adds it to the batch that gathers.
    fn take(
        &self,
        delivered: Delivered,
        queue: &mut VecDeque<Batch<D::Rows>>,
        judge: &mut Judge,
        scratch: &mut Vec<u8>,
        rows_max: usize,
    ) {
        let metrics = &self.settings.metrics;
        metrics.entries_read.increment(delivered.entries.len() as u64);
        if delivered.reclaimed {
            metrics.entries_reclaimed.increment(delivered.entries.len() as u64);
        }
        if queue.back().is_none_or(|batch| delivered.alone || batch.full) {
            if let Some(batch) = queue.back_mut() {
                batch.full = true;
            }
            let spare = self.spares().pop();
            queue.push_back(spare.map_or_else(Batch::new, Batch::again));
        }
        let Some(batch) = queue.back_mut() else { return };
        batch.alone = delivered.alone;
        batch.more = delivered.more;
        batch.take(delivered, &*self.destination, &self.settings.stream, judge, scratch);
        if self.settings.judged_elsewhere {
            metrics.events_passed.increment(batch.pass_over());
        }
        batch.full = batch.alone || batch.rows.len() >= rows_max || batch.bytes >= self.settings.batch.bytes_max;
    }

    /// Leave to write. First come, first served: no stream waits for ever.
    async fn permit(&self) -> Result<OwnedSemaphorePermit, Bug> {
        Arc::clone(&self.settings.writers).acquire_owned().await.map_err(|closed| Bug(closed.to_string()))
    }

    /// Writes the rows of a batch, by the permit that it comes with first.
    async fn write(&self, rows: &mut D::Rows, mut permit: Option<OwnedSemaphorePermit>) -> Result<Written, Bug> {
        let mut outage = self.settings.destination_outage.clone();
        let mut pauses = Pauses::new();
        loop {
            if rows.is_empty() {
                return Ok(Written::default());
            }
            let leave = match permit.take() {
                Some(permit) => permit,
                None => self.permit().await?,
            };
            let began = Instant::now();
            let result = self.destination.write(rows).await;
            // Pauses of an outage are not spent holding it.
            drop(leave);
            self.settings.metrics.write_duration.record(began.elapsed().as_secs_f64());
            match result {
                Ok(written) => {
                    outage.recovered();
                    return Ok(written);
                }
                Err(WriteError::Away(error)) => {
                    outage.failed(&error);
                    tokio::time::sleep(pauses.next(rand::random())).await;
                }
                Err(WriteError::Bug(error)) => return Err(Bug(error)),
            }
        }
    }
}
