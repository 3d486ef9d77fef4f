//! Writing pipelines of XADD, through outages.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex as StdMutex, PoisonError};
use std::time::{Duration, Instant};

use ::redis::aio::MultiplexedConnection;
use ::redis::{Cmd, Pipeline, RedisResult, Value};
use tokio::sync::Mutex;

use super::progress::Progress;
use super::summary::Tally;
use crate::config::{Config, Lane};
use crate::redis::{Redis, RedisError};
use crate::traffic::{Content, Entry, Format};

/// A pipeline under load may be answered later than one command; below this a busy server would look like an outage.
const ANSWER_TIMEOUT_MIN: Duration = Duration::from_secs(5);
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// Long enough to spare a server that comes up, short enough that load is back soon after it.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How often outages are spoken of, also when they come and go as at the edge of memory.
const NOTICE_EVERY: Duration = Duration::from_secs(5);

/// The one connection, made again whenever it breaks.
pub(super) struct Link {
    redis: Redis,
    /// Stream keys by lane, then by partition.
    keys: Vec<String>,
    partitions: usize,
    answer_timeout: Duration,
    /// With a number that tells a connection from its successor.
    connection: Mutex<(u64, Option<MultiplexedConnection>)>,
    progress: Progress,
    /// When the outage was last spoken of.
    noticed: StdMutex<Option<Instant>>,
    /// Whether its end is still to be spoken of.
    troubled: AtomicBool,
}

impl Link {
    /// Connects.
    ///
    /// # Errors
    /// Redis is away or refuses: at the start a wrong address is likelier than an outage.
    pub(super) async fn open(config: &Config, progress: Progress) -> Result<Self, RedisError> {
        let redis = Redis::new(&config.redis)?;
        let answer_timeout = config.redis.timeout.max(ANSWER_TIMEOUT_MIN);
        let connection = redis.own_connection(answer_timeout).await?;
        Ok(Self {
            redis,
            keys: Lane::PRODUCED.into_iter().flat_map(|lane| config.streams.keys(lane)).collect(),
            partitions: usize::from(config.streams.partitions),
            answer_timeout,
            connection: Mutex::new((0, Some(connection))),
            progress,
            noticed: StdMutex::new(None),
            troubled: AtomicBool::new(false),
        })
    }

    /// Writes the entries, however long it takes.
    ///
    /// # Errors
    /// Redis refuses them in a way that waiting does not change.
    pub(super) async fn write(&self, entries: &[Entry]) -> Result<Tally, RedisError> {
        let mut tally = Tally::of(entries);
        let mut pipeline = Pipeline::with_capacity(entries.len());
        pipeline.ignore_errors();
        for entry in entries {
            pipeline.add_command(self.command(entry));
        }
        let mut pause = PAUSE_MIN;
        loop {
            let (number, mut connection) = self.connect().await?;
            let trouble = match pipeline.query_async::<Vec<RedisResult<Value>>>(&mut connection).await {
                Ok(replies) => match refused(&pipeline, replies)? {
                    None => {
                        self.over();
                        return Ok(tally);
                    }
                    Some((rest, error)) => {
                        pipeline = rest;
                        error
                    }
                },
                Err(error) => {
                    let error = lasting(RedisError::from(&error))?;
                    // The commands may have run with their replies lost. Sent again they stand in the stream twice, with the
                    // same event ids: workers write them once.
                    tally.uncertain = tally.uncertain.max(pipeline.len() as u64);
                    error
                }
            };
            self.forget(number).await;
            self.notice(&trouble);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn command(&self, entry: &Entry) -> Cmd {
        let key = &self.keys[entry.lane as usize * self.partitions + usize::from(entry.partition)];
        let mut command = Cmd::with_capacity(7, entry.payload.len() + key.len() + 32);
        command.arg("XADD").arg(key).arg("*");
        match entry.content {
            Content::Payload(Format::Data) => command.arg("data").arg(&entry.payload),
            Content::Payload(Format::Json) => command.arg("json").arg(&entry.payload),
            Content::Both => command.arg("data").arg(&entry.payload).arg("json").arg(&entry.payload),
            Content::Neither => command.arg("note").arg("neither data nor json"),
        };
        command
    }

    async fn connect(&self) -> Result<(u64, MultiplexedConnection), RedisError> {
        // Held while connecting: one pipeline connects, the others wait for what it gets.
        let mut slot = self.connection.lock().await;
        let mut pause = PAUSE_MIN;
        loop {
            if let Some(connection) = &slot.1 {
                return Ok((slot.0, connection.clone()));
            }
            match self.redis.own_connection(self.answer_timeout).await {
                Ok(connection) => *slot = (slot.0 + 1, Some(connection)),
                Err(error) => {
                    self.notice(&lasting(error)?);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    async fn forget(&self, number: u64) {
        let mut slot = self.connection.lock().await;
        if slot.0 == number {
            slot.1 = None;
        }
    }

    fn notice(&self, error: &RedisError) {
        let mut noticed = self.noticed.lock().unwrap_or_else(PoisonError::into_inner);
        if noticed.is_none_or(|at| at.elapsed() >= NOTICE_EVERY) {
            *noticed = Some(Instant::now());
            self.troubled.store(true, Ordering::Relaxed);
            self.progress.say(&format!("{error}; waiting and trying again"));
        }
    }

    fn over(&self) {
        if self.troubled.swap(false, Ordering::Relaxed) {
            self.progress.say("Redis takes entries again");
        }
    }
}

/// The commands that were refused for now, and why; they are in no stream.
fn refused(pipeline: &Pipeline, replies: Vec<RedisResult<Value>>) -> Result<Option<(Pipeline, RedisError)>, RedisError> {
    let mut refused: Option<(Pipeline, RedisError)> = None;
    for (command, reply) in pipeline.cmd_iter().zip(replies) {
        let Err(error) = reply else { continue };
        let error = lasting(RedisError::from(&error))?;
        let (rest, _) = refused.get_or_insert_with(|| (Pipeline::new(), error));
        rest.ignore_errors().add_command(command.clone());
    }
    Ok(refused)
}

/// Lets pass what waiting may mend.
fn lasting(error: RedisError) -> Result<RedisError, RedisError> {
    match error {
        RedisError::Unreachable(_) | RedisError::Unavailable(_) => Ok(error),
        RedisError::Refused(_)
        | RedisError::NoGroup(_)
        | RedisError::WrongType(_)
        | RedisError::NoScript
        | RedisError::Unexpected(_) => Err(error),
    }
}
