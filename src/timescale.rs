//! Everything said to PostgreSQL: binary COPY into the hypertables, the sessions table, the schema, the policies.

mod copy;
mod embedding_log;
pub mod erase;
mod error;
pub mod frame;
mod interactions;
pub mod policies;
pub mod schema;
pub mod session_rebuild;
mod session_tables;

pub use embedding_log::{Archive, ArchivedCollection, EmbeddingLog, LogPlace, Record};
pub use error::DatabaseError;
pub use interactions::Interactions;
pub use session_tables::{SessionRows, SessionTables};

use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime};
use tokio_postgres::Client;

use crate::config;
use crate::tls::postgres::Connector;

/// Pooled connections to one database. Cheap to clone.
#[derive(Clone)]
pub struct Database {
    pool: Pool,
    tls: Connector,
    write_timeout: Duration,
}

impl Database {
    /// Prepares up to `connections`; none is opened yet.
    ///
    /// # Errors
    /// The address is unusable.
    pub fn new(config: &config::Database, connections: usize) -> Result<Self, DatabaseError> {
        let pg = settings(config)?;
        let tls = config.tls.clone();
        let manager = Manager::from_config(pg, tls.make(), ManagerConfig { recycling_method: RecyclingMethod::Fast });
        let pool = Pool::builder(manager)
            .max_size(connections.max(1))
            .wait_timeout(Some(config.write_timeout))
            .create_timeout(Some(config.connect_timeout))
            .recycle_timeout(Some(config.connect_timeout))
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| DatabaseError::Bug(error.to_string()))?;
        Ok(Self { pool, tls, write_timeout: config.write_timeout })
    }

    /// A pooled connection.
    ///
    /// # Errors
    /// None could be had in time, or the server refuses.
    pub async fn connection(&self) -> Result<Object, DatabaseError> {
        self.pool.get().await.map_err(|error| match error {
            PoolError::Backend(error) => DatabaseError::from(&error),
            PoolError::Timeout(_) => DatabaseError::Unreachable("no connection within AEGIS_DATABASE_CONNECT_TIMEOUT".to_owned()),
            PoolError::Closed | PoolError::NoRuntimeSpecified | PoolError::PostCreateHook(_) => {
                DatabaseError::Bug(error.to_string())
            }
        })
    }

    /// Asks for a sign of life.
    ///
    /// # Errors
    /// The server is away or refuses.
    pub async fn ping(&self) -> Result<(), DatabaseError> {
        let client = self.connection().await?;
        if let Ok(answer) =
            tokio::time::timeout(self.write_timeout.min(Duration::from_secs(5)), client.simple_query("SELECT 1")).await
        {
            answer.map(|_| ()).map_err(|error| DatabaseError::from(&error))
        } else {
            drop(Object::take(client));
            Err(DatabaseError::Unreachable("no answer within 5 seconds".to_owned()))
        }
    }
}

/// A connection of its own, outside of any pool: a session lock must not outlive its use.
async fn connect(config: &config::Database) -> Result<(Client, tokio::task::JoinHandle<()>), DatabaseError> {
    let pg = settings(config)?;
    let (client, connection) = tokio::time::timeout(config.connect_timeout, pg.connect(config.tls.make()))
        .await
        .map_err(|_| DatabaseError::Unreachable("no connection within AEGIS_DATABASE_CONNECT_TIMEOUT".to_owned()))?
        .map_err(|error| DatabaseError::from(&error))?;
    let task = tokio::spawn(async move {
        // Its error comes out of the client's calls as well.
        let _ = connection.await;
    });
    Ok((client, task))
}

/// Connection settings out of the address, with bounds on a peer that went away without a word.
fn settings(config: &config::Database) -> Result<tokio_postgres::Config, DatabaseError> {
    let mut pg: tokio_postgres::Config =
        config.url.expose().parse().map_err(|_| DatabaseError::Bug("unusable address".to_owned()))?;
    pg.connect_timeout(config.connect_timeout);
    pg.keepalives_idle(Duration::from_secs(15));
    pg.tcp_user_timeout(Duration::from_secs(30));
    if pg.get_application_name().is_none() {
        pg.application_name("aegis-ingest");
    }
    Ok(pg)
}
