//! Entries at their pace, in pipelines, a few of them under way at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Args;
use super::brake::Brake;
use super::link::Link;
use super::pace::{Pace, Schedule};
use super::progress::Progress;
use super::summary::Tally;
use crate::redis::RedisError;
use crate::traffic::Entry;

/// Payload bytes after which a pipeline is sent however few entries it has, so that a few of them do not fill memory.
const PIPELINE_BYTES: usize = 4 << 20;
/// What is due within one tick goes in one round trip.
const TICK: Duration = Duration::from_millis(2);
/// How long entries under way are waited for once a signal came.
const GRACE: Duration = Duration::from_secs(2);

/// Entries on their way.
pub(super) struct Writing {
    link: Arc<Link>,
    brake: Option<Brake>,
    progress: Progress,
    stop: CancellationToken,
    deadline: Option<Instant>,
    pipeline: usize,
    room: Arc<Semaphore>,
    flights: JoinSet<Result<Tally, RedisError>>,
    batch: Vec<Entry>,
    batch_bytes: usize,
    /// Entries handed over.
    pub(super) sent: u64,
    /// What Redis has taken of them.
    pub(super) tally: Tally,
}

impl Writing {
    pub(super) fn new(
        args: &Args,
        link: Arc<Link>,
        brake: Option<Brake>,
        progress: Progress,
        stop: CancellationToken,
        begin: Instant,
    ) -> Self {
        Self {
            link,
            brake,
            progress,
            stop,
            deadline: args.time.and_then(|time| begin.checked_add(time)),
            pipeline: args.pipeline as usize,
            room: Arc::new(Semaphore::new(args.in_flight as usize)),
            flights: JoinSet::new(),
            batch: Vec::new(),
            batch_bytes: 0,
            sent: 0,
            tally: Tally::default(),
        }
    }

    fn is_over(&self) -> bool {
        self.stop.is_cancelled() || self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Writes entries at their pace until they, the time or the patience end.
    pub(super) async fn pass(&mut self, entries: impl Iterator<Item = Entry>, pace: Pace) -> Result<(), RedisError> {
        let begin = Instant::now();
        let mut schedule = Schedule::default();
        let mut before = 0;
        for entry in entries {
            if pace != Pace::Free {
                let due = pace.due(before, entry.at_us);
                before += u64::from(entry.events);
                while let Some(wait) = schedule.wait(begin.elapsed(), due) {
                    self.send().await?;
                    let left = self.deadline.map_or(wait, |deadline| deadline.saturating_duration_since(Instant::now()));
                    tokio::select! {
                        () = tokio::time::sleep(wait.max(TICK).min(left)) => {}
                        () = self.stop.cancelled() => {}
                    }
                    if self.is_over() {
                        return Ok(());
                    }
                }
            }
            while self.brake.as_mut().is_some_and(|brake| !brake.take()) {
                self.send().await?;
                // What is under way would not be seen.
                while let Some(flight) = self.flights.join_next().await {
                    self.landed(flight)?;
                }
                if let Some(brake) = &mut self.brake {
                    brake.wait(&self.stop, self.deadline).await?;
                }
                if self.is_over() {
                    return Ok(());
                }
            }
            self.batch_bytes += entry.payload.len();
            self.batch.push(entry);
            if self.batch.len() >= self.pipeline || self.batch_bytes >= PIPELINE_BYTES {
                self.send().await?;
                if self.is_over() {
                    break;
                }
            }
        }
        self.send().await
    }

    /// Sends what has gathered, once there is room.
    async fn send(&mut self) -> Result<(), RedisError> {
        while let Some(flight) = self.flights.try_join_next() {
            self.landed(flight)?;
        }
        if self.batch.is_empty() {
            return Ok(());
        }
        let permit = tokio::select! {
            // Closed never.
            permit = Arc::clone(&self.room).acquire_owned() => permit.ok(),
            () = self.stop.cancelled() => return Ok(()),
        };
        let entries = std::mem::replace(&mut self.batch, Vec::with_capacity(self.pipeline));
        self.batch_bytes = 0;
        self.sent += entries.len() as u64;
        let link = Arc::clone(&self.link);
        self.flights.spawn(async move {
            let tally = link.write(&entries).await;
            drop(permit);
            tally
        });
        Ok(())
    }

    fn landed(&mut self, flight: Result<Result<Tally, RedisError>, tokio::task::JoinError>) -> Result<(), RedisError> {
        let tally = flight.map_err(|error| RedisError::Unexpected(format!("writing ended early: {error}")))??;
        self.progress.add(tally.events());
        self.tally.add(&tally);
        Ok(())
    }

    /// Waits for what is under way; after a signal only for a while.
    pub(super) async fn finish(&mut self) -> Result<(), RedisError> {
        let stop = self.stop.clone();
        let impatience = async {
            stop.cancelled().await;
            tokio::time::sleep(GRACE).await;
        };
        tokio::pin!(impatience);
        loop {
            tokio::select! {
                flight = self.flights.join_next() => match flight {
                    Some(flight) => self.landed(flight)?,
                    None => return Ok(()),
                },
                () = &mut impatience => return Ok(()),
            }
        }
    }
}
