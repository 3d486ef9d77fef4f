//! Writing pipelines of XADD, through outages.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex as StdMutex, PoisonError};
use std::time::{Duration, Instant};

use ::redis::aio::MultiplexedConnection;
use ::redis::{Cmd, Pipeline, RedisResult, Value};
use tokio::sync::Mutex;

use super::progress::Progress;
use super::summary::Tally;
use crate::config::{Config, Lane};
use crate::redis::{Place, Redis, RedisError};
use crate::traffic::{Content, Entry, Format};

/// A pipeline under load may be answered later than one command; below this a busy server would look like an outage.
const ANSWER_TIMEOUT_MIN: Duration = Duration::from_secs(5);
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// Long enough to spare a server that comes up, short enough that load is back soon after it.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How often outages are spoken of, also when they come and go as at the edge of memory.
const NOTICE_EVERY: Duration = Duration::from_secs(5);

/// One connection a server, made again whenever it breaks.
pub(super) struct Link {
    redis: Redis,
    /// Stream keys by lane, then by partition.
    keys: Vec<String>,
    partitions: usize,
    answer_timeout: Duration,
    /// By server, with a number that tells a connection from its successor.
    connections: Mutex<HashMap<String, (u64, MultiplexedConnection)>>,
    progress: Progress,
    /// When the outage was last spoken of.
    noticed: StdMutex<Option<Instant>>,
    /// Whether its end is still to be spoken of.
    troubled: AtomicBool,
}

/// Commands that are not answered yet, each with its stream's number.
type Waiting = Vec<(usize, Cmd)>;

impl Link {
    /// Connects.
    ///
    /// # Errors
    /// Redis is away or refuses: at the start a wrong address is likelier than an outage.
    pub(super) async fn open(config: &Config, progress: Progress) -> Result<Self, RedisError> {
        let link = Self {
            redis: Redis::new(&config.redis)?,
            keys: Lane::PRODUCED.into_iter().flat_map(|lane| config.streams.keys(lane)).collect(),
            partitions: usize::from(config.streams.partitions),
            answer_timeout: config.redis.timeout.max(ANSWER_TIMEOUT_MIN),
            connections: Mutex::default(),
            progress,
            noticed: StdMutex::new(None),
            troubled: AtomicBool::new(false),
        };
        let place = link.redis.serving(&link.keys[0]).await?;
        link.connect(&place).await?;
        Ok(link)
    }

    /// Writes the entries, however long it takes.
    ///
    /// # Errors
    /// Redis refuses them in a way that waiting does not change.
    pub(super) async fn write(&self, entries: &[Entry]) -> Result<Tally, RedisError> {
        let mut tally = Tally::of(entries);
        let mut waiting: Waiting = entries.iter().map(|entry| self.command(entry)).collect();
        let mut pause = PAUSE_MIN;
        loop {
            let mut uncertain = 0;
            let (rest, trouble) = self.write_once(waiting, &mut uncertain).await?;
            waiting = rest;
            tally.uncertain = tally.uncertain.max(uncertain);
            let Some(trouble) = trouble else {
                self.over();
                return Ok(tally);
            };
            self.notice(&trouble);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Writes commands, a pipeline a server at the same time. Returns those that are to be tried again, and why.
    async fn write_once(&self, waiting: Waiting, uncertain: &mut u64) -> Result<(Waiting, Option<RedisError>), RedisError> {
        let mut parts: Vec<(Place, Waiting)> = Vec::new();
        // Most entries are for few streams.
        let mut places: HashMap<usize, usize> = HashMap::new();
        let mut waiting = waiting.into_iter();
        while let Some((stream, command)) = waiting.next() {
            let at = match places.get(&stream) {
                Some(at) => *at,
                None => match self.redis.serving(&self.keys[stream]).await {
                    Ok(place) => {
                        let at = parts.iter().position(|(known, _)| known.is(&place)).unwrap_or_else(|| {
                            parts.push((place, Vec::new()));
                            parts.len() - 1
                        });
                        places.insert(stream, at);
                        at
                    }
                    Err(error) => {
                        let rest = parts.into_iter().flat_map(|(_, part)| part).chain([(stream, command)]).chain(waiting);
                        return Ok((rest.collect(), Some(lasting(error)?)));
                    }
                },
            };
            parts[at].1.push((stream, command));
        }
        let written = parts.into_iter().map(|(place, part)| self.write_at(place, part));
        let (mut rest, mut trouble) = (Vec::new(), None);
        for outcome in futures_util::future::join_all(written).await {
            if let Some((part, sent, error)) = outcome? {
                *uncertain += if sent { part.len() as u64 } else { 0 };
                rest.extend(part);
                trouble = Some(error);
            }
        }
        Ok((rest, trouble))
    }

    /// Writes commands of one server. Returns those that are to be tried again, whether they may have run nevertheless, and why.
    async fn write_at(&self, place: Place, part: Waiting) -> Result<Option<(Waiting, bool, RedisError)>, RedisError> {
        let again = |part, sent, error: RedisError| {
            self.redis.doubt(&place, &error);
            Ok(Some((part, sent, lasting(error)?)))
        };
        let (number, mut connection) = match self.connect(&place).await {
            Ok(connected) => connected,
            Err(error) => return again(part, false, error),
        };
        let mut pipeline = Pipeline::with_capacity(part.len());
        pipeline.ignore_errors();
        let (streams, commands): (Vec<_>, Vec<_>) = part.into_iter().unzip();
        for command in commands {
            pipeline.add_command(command);
        }
        let answer = pipeline.query_async::<Vec<RedisResult<Value>>>(&mut connection).await;
        let all = || streams.iter().copied().zip(pipeline.cmd_iter().cloned());
        match answer {
            Ok(replies) => {
                let refused: Vec<_> = all().zip(replies).filter_map(|(command, reply)| Some((command, reply.err()?))).collect();
                let mut error = None;
                for (_, refusal) in &refused {
                    error = Some(lasting(RedisError::from(refusal))?);
                }
                let Some(error) = error else { return Ok(None) };
                again(refused.into_iter().map(|(command, _)| command).collect(), false, error)
            }
            Err(error) => {
                self.forget(&place, number).await;
                // The commands may have run with their replies lost. Sent again they stand in the stream twice, with the same
                // event ids: workers write them once.
                again(all().collect(), true, RedisError::from(&error))
            }
        }
    }

    fn command(&self, entry: &Entry) -> (usize, Cmd) {
        let stream = entry.lane as usize * self.partitions + usize::from(entry.partition);
        let key = &self.keys[stream];
        let mut command = Cmd::with_capacity(7, entry.payload.len() + key.len() + 32);
        command.arg("XADD").arg(key).arg("*");
        match entry.content {
            Content::Payload(Format::Data) => command.arg("data").arg(&entry.payload),
            Content::Payload(Format::Json) => command.arg("json").arg(&entry.payload),
            Content::Both => command.arg("data").arg(&entry.payload).arg("json").arg(&entry.payload),
            Content::Neither => command.arg("note").arg("neither data nor json"),
        };
        (stream, command)
    }

    async fn connect(&self, place: &Place) -> Result<(u64, MultiplexedConnection), RedisError> {
        // Held while connecting: one pipeline connects, the others wait for what it gets.
        let mut connections = self.connections.lock().await;
        if let Some((number, connection)) = connections.get(place.server()) {
            return Ok((*number, connection.clone()));
        }
        let connection = self.redis.own_connection(place, self.answer_timeout).await?;
        let number = rand::random();
        connections.insert(place.server().to_owned(), (number, connection.clone()));
        Ok((number, connection))
    }

    async fn forget(&self, place: &Place, number: u64) {
        let mut connections = self.connections.lock().await;
        if connections.get(place.server()).is_some_and(|(known, _)| *known == number) {
            connections.remove(place.server());
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

/// Lets pass what waiting may mend.
fn lasting(error: RedisError) -> Result<RedisError, RedisError> {
    match error {
        RedisError::Unreachable(_) | RedisError::Unavailable(_) | RedisError::Moved(_) => Ok(error),
        RedisError::Refused(_)
        | RedisError::NoGroup(_)
        | RedisError::WrongType(_)
        | RedisError::NoScript
        | RedisError::Unexpected(_) => Err(error),
    }
}
