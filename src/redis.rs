//! Everything said to Redis: reading a consumer group, taking over pending entries, settling, session hashes.
//!
//! Two kinds of connection. What blocks or brings entries in bulk goes over a connection of its own ([`wire`]), whose replies
//! are cut up in place: the general client spends 0.8 µs on an entry, more than all the rest of the worker does. Everything
//! else goes over pooled connections of the `redis` crate. Which server a key is on, [`topology`] alone knows.

pub mod dead;
pub mod erase;
mod error;
mod group;
mod hold;
pub mod inspect;
mod pending;
mod reply;
pub mod session_rebuild;
pub mod sessions;
mod settle;
mod topology;
pub mod trim;
mod wire;

pub use error::RedisError;
pub use group::{GroupReader, ReaderSettings};
pub use hold::{Hold, InHand, Room};
pub use settle::{Settler, SettlerSettings, remove_gone_consumers};

use std::sync::Arc;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;

pub use self::topology::Place;
use self::topology::Topology;
use crate::config;

/// The servers of one installation, and pooled connections to them. Cheap to clone.
#[derive(Clone)]
pub struct Redis {
    topology: Arc<Topology>,
    timeout: Duration,
}

impl Redis {
    /// Prepares connections; none is opened yet.
    ///
    /// # Errors
    /// The address is unusable.
    pub fn new(config: &config::Redis) -> Result<Self, RedisError> {
        Ok(Self { topology: Arc::new(Topology::new(config)?), timeout: config.timeout })
    }

    /// The server that serves a key now. An error of its answers goes to [`Redis::doubt`].
    ///
    /// # Errors
    /// Nobody could be asked, or no server serves it now.
    pub async fn serving(&self, key: &str) -> Result<Place, RedisError> {
        self.topology.serving(key).await
    }

    /// Takes note of an error that may mean that another server serves the keys of this one now.
    pub fn doubt(&self, place: &Place, error: &RedisError) {
        self.topology.doubt(place, error);
    }

    /// A connection that nobody shares, with its own deadline for answers; for commands that take long.
    ///
    /// # Errors
    /// The server is away or refuses.
    pub async fn own_connection(&self, place: &Place, answer_timeout: Duration) -> Result<MultiplexedConnection, RedisError> {
        self.topology.own_connection(&place.node, answer_timeout).await
    }

    /// Sorts items by the server of their key. One pipeline goes to one server.
    ///
    /// # Errors
    /// Nobody could be asked, or no server serves one of the keys now.
    async fn by_server<'a, T>(&self, items: &'a [T], key: impl Fn(&T) -> String) -> Result<Vec<(Place, Vec<&'a T>)>, RedisError> {
        let mut parts: Vec<(Place, Vec<&T>)> = Vec::new();
        if let ([first, ..], false) = (items, self.topology.is_cluster()) {
            return Ok(vec![(self.serving(&key(first)).await?, items.iter().collect())]);
        }
        for item in items {
            let place = self.serving(&key(item)).await?;
            match parts.iter_mut().find(|(known, _)| known.is(&place)) {
                Some((_, items)) => items.push(item),
                None => parts.push((place, vec![item])),
            }
        }
        Ok(parts)
    }

    /// Asks every server that serves keys for a sign of life.
    ///
    /// # Errors
    /// One of them is away or refuses.
    pub async fn ping(&self) -> Result<(), RedisError> {
        self.each(&::redis::cmd("PING")).await.map(|_: Vec<(String, ::redis::Value)>| ())
    }

    /// Asks every server that serves keys the same; each answer comes with the server's name.
    ///
    /// # Errors
    /// One of them is away or refuses.
    async fn each<T: ::redis::FromRedisValue>(&self, command: &::redis::Cmd) -> Result<Vec<(String, T)>, RedisError> {
        let map = self.topology.map().await?;
        let answers = map.nodes.iter().map(async |node| Ok((node.name.clone(), node.query(command).await?)));
        let answers = futures_util::future::try_join_all(answers).await;
        if let Err(error) = &answers {
            self.topology.forget(&map, error);
        }
        answers
    }
}

/// One connection to the server of a key, for commands of which a later one stands on an earlier one. It never comes back
/// after it broke: whoever was promoted, or restarted, in between and lacks the earlier one never gets the later one.
struct Line<'a> {
    redis: &'a Redis,
    place: Place,
    connection: deadpool_redis::Connection,
}

impl Line<'_> {
    async fn to<'a>(redis: &'a Redis, key: &str) -> Result<Line<'a>, RedisError> {
        let place = redis.serving(key).await?;
        let connection = place.node.connection().await.inspect_err(|error| redis.doubt(&place, error))?;
        Ok(Line { redis, place, connection })
    }

    async fn pipeline<T: ::redis::FromRedisValue>(&mut self, commands: &::redis::Pipeline) -> Result<T, RedisError> {
        let answer = commands.query_async(&mut self.connection).await.map_err(|error| RedisError::from(&error));
        answer.inspect_err(|error| self.redis.doubt(&self.place, error))
    }

    async fn query<T: ::redis::FromRedisValue>(&mut self, command: &::redis::Cmd) -> Result<T, RedisError> {
        let answer = command.query_async(&mut self.connection).await.map_err(|error| RedisError::from(&error));
        answer.inspect_err(|error| self.redis.doubt(&self.place, error))
    }
}

/// Runs one command of this key's server.
///
/// # Errors
/// The server is away or refuses.
pub async fn query<T: ::redis::FromRedisValue>(redis: &Redis, key: &str, command: &::redis::Cmd) -> Result<T, RedisError> {
    let mut place = redis.serving(key).await?;
    let mut answer = place.node.query(command).await;
    if let Err(error @ RedisError::Moved(_)) = &answer {
        // It was not run. The map that is asked for now knows where to; when not, it is an outage.
        redis.doubt(&place, error);
        place = redis.serving(key).await?;
        answer = place.node.query(command).await;
    }
    if let Err(error) = &answer {
        redis.doubt(&place, error);
    }
    answer
}

/// Runs a pipeline of commands of this key's server; all their keys stand in one slot.
///
/// # Errors
/// The server is away or refuses; some commands may have run.
pub async fn pipeline<T: ::redis::FromRedisValue>(
    redis: &Redis,
    key: &str,
    commands: &::redis::Pipeline,
) -> Result<T, RedisError> {
    Line::to(redis, key).await?.pipeline(commands).await
}
