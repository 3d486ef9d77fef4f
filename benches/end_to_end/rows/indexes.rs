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
             hypertable, with different indexes on it, in turn."
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
    stage.sql("aegis", &[&format!("DROP DATABASE {DATABASE} WITH (FORCE)")])?;
    let none: Vec<f64> = each[0].iter().map(|drained| drained.seconds).collect();
    for ((name, _), found) in VARIANTS.iter().zip(&each) {
        let seconds: Vec<f64> = found.iter().map(|drained| drained.seconds).collect();
        row.notes.push(format!("{name}: {:.2} × the time without an index.", median(&ratios(&seconds, &none))));
        row.series.push(Series::new(*name, "rows/s", per_second(events, found)));
    }
    Ok(row)
}
