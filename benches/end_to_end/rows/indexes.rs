//! What each index costs ingestion.

use anyhow::Result;

use super::{INTERACTIONS, drain, per_second, say};
use crate::report::{Row, Series, median, ratios};
use crate::stage::{Drained, Stage};
use crate::{fill, floor};

/// Indexes of `interaction_logs`: what they are called in the table, and how they are made.
const VARIANTS: [(&str, &[&str]); 5] = [
    ("no index", &[]),
    ("unique (occurred_at, event_id): the schema's", &["CREATE UNIQUE INDEX ON interaction_logs (occurred_at, event_id)"]),
    ("unique (event_id, occurred_at)", &["CREATE UNIQUE INDEX ON interaction_logs (event_id, occurred_at)"]),
    (
        "the schema's and (user_id, occurred_at)",
        &[
            "CREATE UNIQUE INDEX ON interaction_logs (occurred_at, event_id)",
            "CREATE INDEX ON interaction_logs (user_id, occurred_at)",
        ],
    ),
    (
        "the schema's and (session_id)",
        &["CREATE UNIQUE INDEX ON interaction_logs (occurred_at, event_id)", "CREATE INDEX ON interaction_logs (session_id)"],
    ),
];
/// The other keys of the schema.
struct Key {
    table: &'static str,
    columns: &'static str,
    /// What makes rows of such columns out of `interaction_logs`.
    query: &'static str,
    drop: &'static str,
    make: &'static str,
    /// Rows, in thousandths of the interactions.
    thousandths: u64,
}

const KEYS: [Key; 3] = [
    Key {
        table: "session_events",
        columns: "occurred_at, event_id, session_id, user_id, status, seq, state",
        query: "SELECT occurred_at, event_id, session_id, user_id, 'updated', 1::bigint, attributes FROM interaction_logs
                ORDER BY occurred_at, event_id",
        drop: "DROP INDEX session_events_key",
        make: "CREATE UNIQUE INDEX session_events_key ON session_events (occurred_at, event_id)",
        thousandths: 1000,
    },
    Key {
        table: "sessions",
        columns: "session_id, user_id, status, seq, started_at, updated_at, state, status_event",
        query: "SELECT event_id::text, user_id, 'updated', 1::bigint, occurred_at, occurred_at, attributes, it.event_id
                FROM interaction_logs it ORDER BY it.occurred_at, it.event_id LIMIT {rows}",
        drop: "ALTER TABLE sessions DROP CONSTRAINT sessions_pkey",
        make: "ALTER TABLE sessions ADD CONSTRAINT sessions_pkey PRIMARY KEY (session_id)",
        thousandths: 200,
    },
    Key {
        table: "embedding_log",
        columns: "occurred_at, event_id, entry_ms, entry_seq, entry_index, collection, id, embedding, document, session_id, user_id",
        query: "SELECT occurred_at, event_id, extract(epoch FROM occurred_at)::bigint * 1000, row_number() OVER (), 0, 'interactions',
                       first.event_id::text, decode(repeat(replace(event_id::text, '-', ''), 96), 'hex'), transcript, session_id, user_id
                FROM (SELECT * FROM interaction_logs ORDER BY occurred_at, event_id LIMIT {rows}) first",
        drop: "DROP INDEX embedding_log_key",
        make: "CREATE UNIQUE INDEX embedding_log_key ON embedding_log (entry_ms, entry_seq, entry_index, occurred_at, event_id)",
        thousandths: 50,
    },
];

/// Drops what indexes there are, whatever they are called.
const DROP: &str = "DO $$ DECLARE found regclass; BEGIN
  FOR found IN SELECT indexrelid FROM pg_index WHERE indrelid = 'interaction_logs'::regclass LOOP EXECUTE format('DROP INDEX %s', found); END LOOP;
END $$";

/// One backend's COPY from a file with different indexes.
pub fn indexes(stage: &Stage) -> Result<Row> {
    const DATABASE: &str = "indexes";
    let events = stage.size.pick(1_000_000, 300_000);
    let mut row = Row::new(
        "indexes",
        format!(
            "`COPY … FROM file (FORMAT binary)` of {events} interactions, in the order of their times, by one backend into the empty \
             hypertable, with different indexes on it, in turn; then rows like these into the other tables, without their key and with \
             it (embedding_log: 384 dimensions)."
        ),
    );
    stage.empty_redis()?;
    fill::interactions(stage.redis.port, INTERACTIONS, events, 50, 8)?;
    drain(stage, events)?;
    floor::write_file(stage)?;
    stage.sql("aegis", &[&format!("CREATE DATABASE {DATABASE} OWNER aegis")])?;
    stage.migrate(DATABASE)?;
    let mut each: [Vec<Drained>; VARIANTS.len()] = Default::default();
    for run in 1..=stage.size.runs {
        for ((_, make), found) in VARIANTS.iter().zip(&mut each) {
            stage.sql(DATABASE, &["TRUNCATE interaction_logs", DROP])?;
            stage.sql(DATABASE, make)?;
            found.push(floor::copy_file(stage, DATABASE, events)?);
        }
        let seconds = each.iter().filter_map(|found| Some(format!("{:.2} s", found.last()?.seconds))).collect::<Vec<_>>();
        say(&format!("run {run}: {}", seconds.join(", ")));
    }
    for key in &KEYS {
        other_key(stage, DATABASE, key, events, &mut row)?;
    }
    stage.sql("aegis", &[&format!("DROP DATABASE {DATABASE} WITH (FORCE)")])?;
    let none: Vec<f64> = each[0].iter().map(|drained| drained.seconds).collect();
    for ((name, _), found) in VARIANTS.iter().zip(&each) {
        let seconds: Vec<f64> = found.iter().map(|drained| drained.seconds).collect();
        row.notes.push(format!("{name}: {:.2} × the time without an index.", median(&ratios(&seconds, &none))));
        row.series.push(Series::new(*name, "rows/s", per_second(events, found)));
    }
    Ok(row)
}

/// COPY into a table without its key, and with it.
fn other_key(stage: &Stage, database: &str, key: &Key, events: u64, row: &mut Row) -> Result<()> {
    const FILE: &str = "key.copy";
    let Key { table, columns, query, drop, make, thousandths } = key;
    let rows = events * thousandths / 1000;
    floor::write(stage, &query.replace("{rows}", &rows.to_string()), FILE)?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..stage.size.runs {
        for (change, found) in [(drop, &mut without), (make, &mut with)] {
            stage.sql(database, &[&format!("TRUNCATE {table}"), change])?;
            found.push(floor::copy(stage, database, &format!("{table} ({columns})"), FILE, rows)?);
        }
    }
    let seconds = |found: &[Drained]| found.iter().map(|drained| drained.seconds).collect::<Vec<_>>();
    let ratio = median(&ratios(&seconds(&with), &seconds(&without)));
    row.notes.push(format!("{table} with its key: {ratio:.2} × the time without, for {rows} rows."));
    row.series.push(Series::new(format!("{table} without its key"), "rows/s", per_second(rows, &without)));
    row.series.push(Series::new(format!("{table} with its key"), "rows/s", per_second(rows, &with)));
    Ok(())
}
