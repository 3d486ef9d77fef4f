//! Everything said to Redis: reading a consumer group, taking over pending entries, settling, session hashes.
//!
//! Two kinds of connection. What blocks or brings entries in bulk goes over a connection of its own ([`wire`]), whose replies
//! are cut up in place: the general client spends 0.8 µs on an entry, more than all the rest of the worker does. Everything
//! else goes over pooled connections of the `redis` crate.

pub mod dead;
mod error;
mod group;
mod hold;
pub mod inspect;
mod reply;
pub mod session_rebuild;
pub mod sessions;
mod settle;
pub mod trim;
mod wire;

pub use error::RedisError;
pub use group::{GroupReader, ReaderSettings};
pub use hold::{Hold, InHand};
pub use settle::{Settler, SettlerSettings, remove_gone_consumers};

use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, ConnectionAddr, IntoConnectionInfo};

use crate::config;

/// Connections kept for everything that does not block. They are multiplexed, so a few serve all lanes.
const POOL_SIZE: usize = 4;

/// One Redis server: where it is, and pooled connections to it. Cheap to clone.
#[derive(Clone)]
pub struct Redis {
    info: wire::Server,
    timeout: Duration,
    pool: deadpool_redis::Pool,
}

impl Redis {
    /// Prepares connections; none is opened yet.
    ///
    /// # Errors
    /// The address is unusable.
    pub fn new(config: &config::Redis) -> Result<Self, RedisError> {
        let info = config.url.expose().into_connection_info().map_err(|error| RedisError::from(&error))?;
        // Without it a pipeline of small commands waits for the peer's delayed acknowledgement.
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        let mut info = info.set_tcp_settings(tcp);
        if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
            let client =
                ::redis::Client::build_with_tls(info, config.tls.for_redis()).map_err(|error| RedisError::from(&error))?;
            info = client.get_connection_info().clone();
        }
        let connection =
            AsyncConnectionConfig::new().set_connection_timeout(Some(config.timeout)).set_response_timeout(Some(config.timeout));
        let manager =
            deadpool_redis::Manager::new_with_config(info.clone(), connection).map_err(|error| RedisError::from(&error))?;
        let pool = deadpool_redis::Pool::builder(manager)
            .max_size(POOL_SIZE)
            .wait_timeout(Some(config.timeout))
            .create_timeout(Some(config.timeout))
            .recycle_timeout(Some(config.timeout))
            .runtime(deadpool_redis::Runtime::Tokio1)
            .build()
            .map_err(|error| RedisError::Unexpected(error.to_string()))?;
        Ok(Self { info: wire::Server::new(info, &config.tls), timeout: config.timeout, pool })
    }

    /// A pooled connection; its answers have the configured deadline.
    ///
    /// # Errors
    /// None could be had in time.
    pub async fn connection(&self) -> Result<deadpool_redis::Connection, RedisError> {
        self.pool.get().await.map_err(|error| match error {
            deadpool_redis::PoolError::Backend(error) => RedisError::from(&error),
            deadpool_redis::PoolError::Timeout(_) => RedisError::Unreachable("no connection within the timeout".to_owned()),
            deadpool_redis::PoolError::Closed
            | deadpool_redis::PoolError::NoRuntimeSpecified
            | deadpool_redis::PoolError::PostCreateHook(_) => RedisError::Unexpected(error.to_string()),
        })
    }

    /// A connection that nobody shares, with its own deadline for answers; for commands that take long.
    ///
    /// # Errors
    /// The server is away or refuses.
    pub async fn own_connection(&self, answer_timeout: Duration) -> Result<MultiplexedConnection, RedisError> {
        let client = ::redis::Client::open(self.info.address.clone()).map_err(|error| RedisError::from(&error))?;
        let connection =
            AsyncConnectionConfig::new().set_connection_timeout(Some(self.timeout)).set_response_timeout(Some(answer_timeout));
        client.get_multiplexed_async_connection_with_config(&connection).await.map_err(|error| RedisError::from(&error))
    }

    /// Asks for a sign of life.
    ///
    /// # Errors
    /// The server is away or refuses.
    pub async fn ping(&self) -> Result<(), RedisError> {
        let mut connection = self.connection().await?;
        ::redis::cmd("PING").exec_async(&mut connection).await.map_err(|error| RedisError::from(&error))
    }
}

/// Runs one command on a pooled connection.
///
/// # Errors
/// The server is away or refuses.
pub async fn query<T: ::redis::FromRedisValue>(redis: &Redis, command: &::redis::Cmd) -> Result<T, RedisError> {
    let mut connection = redis.connection().await?;
    command.query_async(&mut connection).await.map_err(|error| RedisError::from(&error))
}
