//! Writing no faster than workers read: a backfill beside live traffic shares its streams, and a stream is read in order, so
//! what stands before a live entry is what that entry waits for.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::progress::Progress;
use crate::config::Streams;
use crate::redis::{Redis, RedisError, inspect};

/// Pauses between two looks at streams that are full: workers read a thousand entries in milliseconds; where nobody reads,
/// nobody is asked all the time.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// After which it is said that nothing is written for now.
const NOTICE_AFTER: Duration = Duration::from_secs(5);

/// Keeps entries that are not settled to a bound, in each stream that is written to.
pub(super) struct Brake {
    redis: Redis,
    streams: Streams,
    keys: Vec<String>,
    lag_max: u64,
    /// Entries that may be written before the next look.
    room: u64,
    progress: Progress,
}

impl Brake {
    /// Looks for the first time.
    ///
    /// # Errors
    /// Redis is away, or this user may not look.
    pub(super) async fn new(
        redis: Redis,
        streams: Streams,
        keys: Vec<String>,
        lag_max: u64,
        progress: Progress,
    ) -> Result<Self, RedisError> {
        let mut brake = Self { redis, streams, keys, lag_max, room: 0, progress };
        brake.room = brake.look().await?.unwrap_or_default();
        Ok(brake)
    }

    /// Room for so many more entries, if there is so much; none takes the same room twice.
    pub(super) fn take(&mut self) -> bool {
        let room = self.room > 0;
        self.room = self.room.saturating_sub(1);
        room
    }

    /// Waits until half of what is allowed is free: pieces smaller than that would keep workers waiting for the next one.
    /// Nothing may be under way, or it would not be seen. Ends early when told to stop or when the deadline is over.
    ///
    /// # Errors
    /// Redis refuses, for a reason that waiting does not change.
    pub(super) async fn wait(&mut self, stop: &CancellationToken, deadline: Option<Instant>) -> Result<(), RedisError> {
        let (began, mut pause, mut said) = (Instant::now(), PAUSE_MIN, false);
        while !stop.is_cancelled() && deadline.is_none_or(|deadline| Instant::now() < deadline) {
            let found = match self.look().await {
                Ok(found) => found,
                Err(RedisError::Unreachable(_) | RedisError::Unavailable(_)) => None,
                Err(error) => return Err(error),
            };
            if let Some(room) = found.filter(|room| *room >= self.lag_max.div_ceil(2)) {
                self.room = room;
                if said {
                    self.progress.say("workers keep up again");
                }
                return Ok(());
            }
            if !said && began.elapsed() >= NOTICE_AFTER {
                said = true;
                self.progress.say(match found {
                    Some(_) => "nothing is written for now: workers have as many entries before them as --max-lag allows",
                    None => "nothing is written for now: Redis does not know how far the workers are",
                });
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
        Ok(())
    }

    /// Room in the fullest stream; `None` where Redis does not know, which passes once workers have read to the end.
    async fn look(&self) -> Result<Option<u64>, RedisError> {
        let mut most = 0;
        for key in &self.keys {
            match inspect::unsettled(&self.redis, &self.streams, key).await? {
                Some(unsettled) => most = most.max(unsettled),
                None => return Ok(None),
            }
        }
        Ok(Some(self.lag_max.saturating_sub(most)))
    }
}
