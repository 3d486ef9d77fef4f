//! Statements that only the Timescale edition carries out. Each is a function of its own, so that a test can hold every one
//! against a server of the Apache edition too: that parses it, finds the function by its arguments, and refuses it for the
//! licence alone.

use std::time::Duration;

use super::interval;

/// How often old chunks are looked for: TimescaleDB's own default, a day, would keep rows for up to one more.
const RETENTION_EVERY: &str = "interval '1 hour'";
/// A minute is aggregated when it is over, and stragglers of two more have come; until then it is computed from rows.
const REFRESH_END: &str = "interval '2 minutes'";
const REFRESH_EVERY: &str = "interval '1 minute'";

/// Drops chunks of this age.
pub fn add_retention(table: &str, after: Duration) -> String {
    format!("SELECT add_retention_policy('{table}', drop_after => {}, schedule_interval => {RETENTION_EVERY})", interval(after))
}

/// No longer.
pub fn remove_retention(table: &str) -> String {
    format!("SELECT remove_retention_policy('{table}', if_exists => true)")
}

/// Lets chunks go to the columnstore, in this order. No column to segment by: the question whether a late row is there
/// already would then have to open a batch of every segment.
pub fn enable_columnstore(table: &str, orderby: &str) -> String {
    format!(
        "ALTER TABLE {table} SET (timescaledb.enable_columnstore = true, timescaledb.segmentby = '', timescaledb.orderby = '{orderby}')"
    )
}

/// Lets chunks of this age go there.
pub fn add_columnstore(table: &str, after: Duration) -> String {
    format!("CALL add_columnstore_policy('{table}', after => {})", interval(after))
}

/// No longer; what is there stays.
pub fn remove_columnstore(table: &str) -> String {
    format!("CALL remove_columnstore_policy('{table}', if_exists => true)")
}

/// A continuous aggregate that also computes what it does not hold yet, empty at first: filling it is the job's work.
pub fn create_aggregate(name: &str, query: &str) -> String {
    format!(
        "CREATE MATERIALIZED VIEW {name} WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS {query} WITH NO DATA"
    )
}

/// Keeps it up to date from `since` ago on; from the beginning where there is none.
pub fn add_refresh(name: &str, since: &str) -> String {
    format!(
        "SELECT add_continuous_aggregate_policy('{name}', start_offset => {since}, end_offset => {REFRESH_END}, schedule_interval => {REFRESH_EVERY})"
    )
}

/// No longer.
pub fn remove_refresh(name: &str) -> String {
    format!("SELECT remove_continuous_aggregate_policy('{name}', if_exists => true)")
}
