//! What TimescaleDB does with rows over the years: chunk interval, retention, columnstore, aggregates. Each migration brings
//! it to the settings; where nothing differs nothing is done, and a setting that goes back takes back what it brought.
//!
//! What is done is TimescaleDB's own. Its Apache edition has none of columnstore, retention policies and continuous
//! aggregates: there the worker drops old chunks by a function of the schema, the aggregates are plain views of the same
//! names and columns, and what cannot be is said.

mod aggregates;
pub mod community;

use std::time::Duration;

use tokio_postgres::{Client, Transaction};

use super::connect;
use super::error::DatabaseError;
use crate::config::{self, Policies};
use crate::event::spoken;

/// Longest wait for a lock on a table that workers write to: while the wait lasts, they wait behind it. Then the whole is tried
/// again later.
const LOCK_TIMEOUT: &str = "5s";

/// What a server can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edition {
    /// Hypertables and `drop_chunks`.
    Apache,
    /// All of it, under the Timescale licence.
    Timescale,
}

impl Edition {
    /// Out of the server's setting `timescaledb.license`.
    pub fn of(license: Option<&str>) -> Self {
        if license == Some("timescale") { Self::Timescale } else { Self::Apache }
    }
}

/// One thing that is as the settings say, or cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// What it is about, in a word.
    pub about: &'static str,
    /// How it is now, in words.
    pub state: String,
    /// Whether it is less than what was asked for.
    pub lacking: bool,
}

impl Line {
    fn is(about: &'static str, state: impl Into<String>) -> Self {
        Self { about, state: state.into(), lacking: false }
    }

    fn lacks(about: &'static str, state: impl Into<String>) -> Self {
        Self { about, state: state.into(), lacking: true }
    }
}

/// What the settings ask for and the edition cannot, in words.
pub fn lacking(wanted: &Policies, edition: Edition) -> Vec<Line> {
    let mut lines = Vec::new();
    if edition == Edition::Apache {
        if wanted.columnstore_after.is_some() {
            lines.push(Line::lacks(
                "columnstore",
                "none: the Apache edition of TimescaleDB has no columnstore, so AEGIS_COLUMNSTORE_AFTER has no effect",
            ));
        }
        if wanted.aggregates {
            lines.push(Line::lacks(
                "aggregates",
                "plain views: the Apache edition of TimescaleDB has no continuous aggregates, so they are computed when they are read, \
                 and go with the rows they are computed from",
            ));
        }
    }
    lines
}

/// What the last migration stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The settings.
    pub policies: Policies,
    /// Hypertables that they are for.
    hypertables: Vec<Hypertable>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Hypertable {
    /// As SQL spells it.
    name: String,
    schema: String,
    relation: String,
    columnstore_orderby: String,
}

/// Reads what the last migration stored.
///
/// # Errors
/// The database is away, the tables are missing, or the role may not read them.
pub async fn stored(client: &Client) -> Result<Stored, DatabaseError> {
    read(client).await.map_err(|error| DatabaseError::from(&error))
}

async fn read(client: &impl tokio_postgres::GenericClient) -> Result<Stored, tokio_postgres::Error> {
    let ms = |column: &str| format!("(extract(epoch FROM {column}) * 1000)::int8");
    let query = format!(
        "SELECT {}, {}, {}, aggregates FROM aegis_policies",
        ms("chunk_interval"),
        ms("columnstore_after"),
        ms("retention")
    );
    let row = client.query_one(&query, &[]).await?;
    let duration = |ms: i64| Duration::from_millis(ms.unsigned_abs());
    let policies = Policies {
        chunk_interval: duration(row.get(0)),
        columnstore_after: row.get::<_, Option<i64>>(1).map(duration),
        retention: row.get::<_, Option<i64>>(2).map(duration),
        aggregates: row.get(3),
    };
    let tables = client
        .query(
            "SELECT h.hypertable::text, n.nspname::text, c.relname::text, h.columnstore_orderby
             FROM aegis_hypertables h JOIN pg_class c ON c.oid = h.hypertable JOIN pg_namespace n ON n.oid = c.relnamespace
             ORDER BY c.relname",
            &[],
        )
        .await?;
    let hypertables = (tables.iter())
        .map(|row| Hypertable { name: row.get(0), schema: row.get(1), relation: row.get(2), columnstore_orderby: row.get(3) })
        .collect();
    Ok(Stored { policies, hypertables })
}

/// Brings the database to the settings, all of it or nothing. Runs under the migrations' lock, after them.
///
/// # Errors
/// The database is away, refuses, or a table is in use for too long.
pub(super) async fn reconcile(client: &mut Client, wanted: &Policies) -> Result<Vec<Line>, DatabaseError> {
    let done = async {
        let mut transaction = client.transaction().await?;
        // Also for the comparison of times of day with intervals: 24 hours are a day.
        transaction.batch_execute(&format!("SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'; SET LOCAL timezone = 'UTC'")).await?;
        let license = transaction.query_one("SELECT current_setting('timescaledb.license', true)", &[]).await?;
        let edition = Edition::of(license.get(0));
        let before = read(&transaction).await?;
        store(&transaction, wanted).await?;
        let mut lines = vec![
            chunks(&transaction, &before, wanted).await?,
            retention(&transaction, &before, wanted, edition).await?,
            columnstore(&transaction, &before, wanted, edition).await?,
        ];
        lines.push(aggregates::reconcile(&mut transaction, &before.policies, wanted, edition).await?);
        transaction.commit().await?;
        Ok(lines)
    };
    done.await.map_err(|error: tokio_postgres::Error| DatabaseError::from(&error))
}

fn interval(duration: Duration) -> String {
    format!("interval '{} milliseconds'", duration.as_millis())
}

fn interval_or_null(duration: Option<Duration>) -> String {
    duration.map_or_else(|| "NULL::interval".to_owned(), interval)
}

fn in_words(duration: Duration) -> String {
    spoken(duration.as_millis() as u64)
}

async fn store(transaction: &Transaction<'_>, wanted: &Policies) -> Result<(), tokio_postgres::Error> {
    let (chunk, columnstore, kept) =
        (interval(wanted.chunk_interval), interval_or_null(wanted.columnstore_after), interval_or_null(wanted.retention));
    let aggregates = wanted.aggregates;
    // GREATEST leaves nulls out.
    let statement = format!(
        "UPDATE aegis_policies SET chunk_interval = {chunk}, columnstore_after = {columnstore}, retention = {kept}, aggregates = {aggregates},
             incomplete_before = GREATEST(incomplete_before, now() - retention, now() - {kept})"
    );
    transaction.batch_execute(&statement).await
}

async fn chunks(transaction: &Transaction<'_>, before: &Stored, wanted: &Policies) -> Result<Line, tokio_postgres::Error> {
    let want = interval(wanted.chunk_interval);
    for table in &before.hypertables {
        let differs = format!(
            "SELECT EXISTS (SELECT FROM timescaledb_information.dimensions
                 WHERE hypertable_schema = $1::text AND hypertable_name = $2::text AND dimension_number = 1 AND time_interval <> {want})"
        );
        if transaction.query_one(&differs, &[&table.schema, &table.relation]).await?.get(0) {
            transaction.execute(&format!("SELECT set_chunk_time_interval($1::text::regclass, {want})"), &[&table.name]).await?;
        }
    }
    Ok(Line::is("chunks", format!("each spans {}", in_words(wanted.chunk_interval))))
}

/// The value that a job of a hypertable was given, and whether it is the wanted one.
async fn job(
    transaction: &Transaction<'_>,
    table: &Hypertable,
    procedure: &str,
    key: &str,
    want: Option<Duration>,
) -> Result<Option<(String, bool)>, tokio_postgres::Error> {
    let query = format!(
        "SELECT config->>$4::text, coalesce((config->>$4::text)::interval = {}, false) FROM timescaledb_information.jobs
         WHERE hypertable_schema = $1::text AND hypertable_name = $2::text AND proc_name = $3::text",
        interval_or_null(want)
    );
    let found = transaction.query_opt(&query, &[&table.schema, &table.relation, &procedure, &key]).await?;
    Ok(found.map(|row| (row.get::<_, Option<String>>(0).unwrap_or_default(), row.get(1))))
}

async fn retention(
    transaction: &Transaction<'_>,
    before: &Stored,
    wanted: &Policies,
    edition: Edition,
) -> Result<Line, tokio_postgres::Error> {
    let mut by_hand = Vec::new();
    if edition == Edition::Timescale {
        for table in &before.hypertables {
            match (wanted.retention, job(transaction, table, "policy_retention", "drop_after", wanted.retention).await?) {
                (Some(_), Some((_, true))) | (None, None) => {}
                (Some(after), _) => {
                    transaction.batch_execute(&community::remove_retention(&table.name)).await?;
                    transaction.batch_execute(&community::add_retention(&table.name, after)).await?;
                }
                (None, Some(_)) if before.policies.retention.is_some() => {
                    transaction.batch_execute(&community::remove_retention(&table.name)).await?;
                }
                (None, Some((after, _))) => by_hand.push(format!("{} after {after}", table.name)),
            }
        }
    }
    let tables: Vec<_> = before.hypertables.iter().map(|table| table.name.as_str()).collect();
    Ok(match (wanted.retention, edition) {
        (Some(after), Edition::Timescale) => {
            Line::is("retention", format!("chunks older than {} are dropped by policies: {}", in_words(after), tables.join(", ")))
        }
        (Some(after), Edition::Apache) => Line::is(
            "retention",
            format!(
                "chunks older than {} are dropped by the workers, since the Apache edition of TimescaleDB has no policy for it: {}",
                in_words(after),
                tables.join(", ")
            ),
        ),
        (None, _) if by_hand.is_empty() => Line::is("retention", "none: rows are kept for ever"),
        (None, _) => Line::lacks(
            "retention",
            format!("policies that were added by hand stay ({}); AEGIS_RETENTION would take them over", by_hand.join(", ")),
        ),
    })
}

async fn columnstore(
    transaction: &Transaction<'_>,
    before: &Stored,
    wanted: &Policies,
    edition: Edition,
) -> Result<Line, tokio_postgres::Error> {
    if edition == Edition::Apache {
        let line = lacking(wanted, edition).into_iter().find(|line| line.about == "columnstore");
        return Ok(line.unwrap_or_else(|| Line::is("columnstore", "none")));
    }
    let mut by_hand = Vec::new();
    for table in &before.hypertables {
        let found = job(transaction, table, "policy_compression", "compress_after", wanted.columnstore_after).await?;
        match (wanted.columnstore_after, found) {
            (Some(_), Some((_, true))) | (None, None) => {}
            (Some(after), _) => {
                let enabled = "SELECT compression_enabled FROM timescaledb_information.hypertables
                               WHERE hypertable_schema = $1::text AND hypertable_name = $2::text";
                let enabled = transaction.query_one(enabled, &[&table.schema, &table.relation]).await?;
                if !enabled.get::<_, bool>(0) {
                    transaction.batch_execute(&community::enable_columnstore(&table.name, &table.columnstore_orderby)).await?;
                }
                transaction.batch_execute(&community::remove_columnstore(&table.name)).await?;
                transaction.batch_execute(&community::add_columnstore(&table.name, after)).await?;
            }
            (None, Some(_)) if before.policies.columnstore_after.is_some() => {
                transaction.batch_execute(&community::remove_columnstore(&table.name)).await?;
            }
            (None, Some((after, _))) => by_hand.push(format!("{} after {after}", table.name)),
        }
    }
    Ok(match wanted.columnstore_after {
        Some(after) => Line::is("columnstore", format!("chunks older than {} go there", in_words(after))),
        None if by_hand.is_empty() => Line::is("columnstore", "no chunk goes there; what is there stays"),
        None => Line::lacks(
            "columnstore",
            format!(
                "policies that were added by hand stay ({}); AEGIS_COLUMNSTORE_AFTER would take them over",
                by_hand.join(", ")
            ),
        ),
    })
}

/// The aggregates that are continuous where the edition has such, by name, with their queries.
pub fn aggregate_queries() -> impl Iterator<Item = (&'static str, &'static str)> {
    aggregates::queries()
}

/// Chunks of one hypertable that were dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// The hypertable.
    pub hypertable: String,
    /// How many.
    pub chunks: u64,
    /// The time before which nothing is left.
    pub before: String,
}

/// Drops chunks that are older than the stored retention, where TimescaleDB does not by itself: up to a hundred of each
/// hypertable, so that who calls it calls again until nothing is dropped. Nothing is dropped either while somebody else does.
/// It takes a connection of its own: dropping many may take seconds, which no writer and no probe waits for.
///
/// # Errors
/// The database is away, a reader holds a chunk for long, or the role may not call the function.
pub async fn drop_expired(config: &config::Database) -> Result<Vec<Dropped>, DatabaseError> {
    let (client, _task) = connect(config).await?;
    let query = "SELECT hypertable, chunks, dropped_before::text FROM aegis_drop_expired()";
    let Ok(rows) = tokio::time::timeout(config.write_timeout, client.query(query, &[])).await else {
        return Err(DatabaseError::Unreachable("no answer within AEGIS_DATABASE_WRITE_TIMEOUT".to_owned()));
    };
    let rows = rows.map_err(|error| DatabaseError::from(&error))?;
    let dropped = |row: &tokio_postgres::Row| Dropped {
        hypertable: row.get(0),
        chunks: row.get::<_, i64>(1).unsigned_abs(),
        before: row.get(2),
    };
    Ok(rows.iter().map(dropped).collect())
}
