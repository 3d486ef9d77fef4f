//! The schema: migrations under a lock, and whether the database has what this program needs.

use std::time::Duration;

use tokio_postgres::Client;

use super::policies::{self, Line, Stored};
use super::{DatabaseError, connect};
use crate::config::{self, Lane};

mod embedded {
    refinery::embed_migrations!("migrations");
}

/// Key of the advisory lock that migrations run under: "aegis" in ASCII. One at a time, however many workers start.
const LOCK_KEY: i64 = 0x0061_6567_6973;

/// What a migration did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// Migrations applied now, by name.
    pub applied: Vec<String>,
    /// Version of the schema afterwards.
    pub version: i32,
    /// What is done with rows over the years, as the settings say.
    pub policies: Vec<Line>,
}

/// The newest version of the schema that this program knows.
pub fn newest_version() -> i32 {
    embedded::migrations::runner().get_migrations().iter().map(refinery::Migration::version).max().unwrap_or_default()
}

/// Brings the schema up to date. Any number of programs may do so at once; a newer schema is left as it is.
///
/// # Errors
/// The database is away, refuses, or lacks TimescaleDB.
pub async fn migrate(config: &config::Database) -> Result<Migrated, DatabaseError> {
    let (mut client, task) = connect(config).await?;
    let result = migrate_locked(&mut client, &config.policies).await;
    // Ending the session releases the lock where something went wrong.
    drop(client);
    let _ = tokio::time::timeout(Duration::from_secs(5), task).await;
    result
}

async fn migrate_locked(client: &mut Client, wanted: &config::Policies) -> Result<Migrated, DatabaseError> {
    let failed = |error: tokio_postgres::Error| DatabaseError::from(&error);
    client.execute("SELECT pg_advisory_lock($1)", &[&LOCK_KEY]).await.map_err(failed)?;
    // An older program starts on a newer schema, or a rollback would not be one: missing migrations do not abort.
    let runner = embedded::migrations::runner().set_abort_missing(false);
    let report = runner.run_async(client).await.map_err(|error| {
        // refinery wraps the driver's error more than once.
        let chain = std::iter::successors(Some(&error as &(dyn std::error::Error + 'static)), |error| error.source());
        match chain.into_iter().find_map(|error| error.downcast_ref::<tokio_postgres::Error>()) {
            Some(error) => DatabaseError::from(error),
            None => DatabaseError::Schema(error.to_string()),
        }
    })?;
    let applied = report.applied_migrations().iter().map(ToString::to_string).collect();
    let version = version(client).await?.unwrap_or_default();
    let policies = policies::reconcile(client, wanted).await?;
    // The server learns of a session's end when the caller has gone on already.
    client.execute("SELECT pg_advisory_unlock($1)", &[&LOCK_KEY]).await.map_err(failed)?;
    Ok(Migrated { applied, version, policies })
}

async fn version(client: &Client) -> Result<Option<i32>, DatabaseError> {
    let failed = |error: tokio_postgres::Error| DatabaseError::from(&error);
    let exists = client.query_one("SELECT to_regclass('refinery_schema_history') IS NOT NULL", &[]).await.map_err(failed)?;
    if !exists.get::<_, bool>(0) {
        return Ok(None);
    }
    let row = client.query_one("SELECT max(version) FROM refinery_schema_history", &[]).await.map_err(failed)?;
    Ok(row.get(0))
}

/// What stands in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// As the server spells it.
    pub server_version: String,
    /// Version of the extension, if it is there.
    pub timescaledb: Option<String>,
    /// `apache` or `timescale`.
    pub edition: Option<String>,
    /// Version of our schema, where this role may see it.
    pub schema: Option<i32>,
    /// Tables that are missing.
    pub missing: Vec<&'static str>,
    /// What is done with rows over the years, where this role may see it.
    pub stored: Option<Stored>,
}

/// Looks what stands in the database, and whether it has what these lanes need.
///
/// # Errors
/// The database is away or refuses.
pub async fn inspect(config: &config::Database, lanes: &[Lane]) -> Result<Found, DatabaseError> {
    let (client, _task) = connect(config).await?;
    let failed = |error: tokio_postgres::Error| DatabaseError::from(&error);
    let row = client
        .query_one(
            "SELECT current_setting('server_version'), (SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'),
                    current_setting('timescaledb.license', true)",
            &[],
        )
        .await
        .map_err(failed)?;
    let mut missing = Vec::new();
    let archive = lanes.contains(&Lane::Archive).then_some("embedding_log");
    for table in ["interaction_logs", "session_events", "sessions"].into_iter().chain(archive) {
        let there = client.query_one("SELECT to_regclass($1::text) IS NOT NULL", &[&table]).await.map_err(failed)?;
        if !there.get::<_, bool>(0) {
            missing.push(table);
        }
    }
    // A worker's role need not be allowed to read the history.
    let schema = version(&client).await.ok().flatten();
    let stored = policies::stored(&client).await.ok();
    Ok(Found { server_version: row.get(0), timescaledb: row.get(1), edition: row.get(2), schema, missing, stored })
}
