//! The rows of the specification's table, one function each.

mod backfill;
mod drains;
mod indexes;
mod lanes;
mod scale;

pub use backfill::backfill;
pub use drains::{drain_by_fifties, drain_one_by_one};
pub use indexes::indexes;
pub use lanes::{embeddings, idle, latency_busy, latency_calm, sessions};
pub use scale::{big_table, memory, partitions, replicas};

use anyhow::{Result, ensure};

use super::stage::{Drained, Stage};
use super::worker::Worker;

const INTERACTIONS: &str = "aegis:interactions";
const GROUP: &str = "aegis";

fn say(text: &str) {
    println!("    {text}");
}

fn per_second(events: u64, drained: &[Drained]) -> Vec<f64> {
    drained.iter().map(|drained| events as f64 / drained.seconds).collect()
}

fn used(drained: &[Drained]) -> Vec<super::process::Used> {
    drained.iter().map(|drained| drained.used.clone()).collect()
}

/// A process's CPU an event, microseconds.
fn cpu_us(process: &str, events: u64, drained: &[Drained]) -> Vec<f64> {
    drained.iter().map(|drained| drained.used.each.get(process).copied().unwrap_or_default() * 1e6 / events as f64).collect()
}

/// One worker drains the interactions into the empty table.
fn drain(stage: &Stage, events: u64) -> Result<Drained> {
    stage.empty_tables("aegis")?;
    let drained = drain_into(stage, "aegis", INTERACTIONS, 1)?;
    let rows = stage.number("aegis", "SELECT count(*) FROM interaction_logs")?;
    ensure!(rows.unsigned_abs() == events, "the worker wrote {rows} rows of {events}");
    Ok(drained)
}

/// So many workers drain a stream, whatever stands in the tables.
fn drain_into(stage: &Stage, database: &str, stream: &str, workers: usize) -> Result<Drained> {
    stage.unread(stream, GROUP)?;
    let workers = (0..workers).map(|_| Worker::start(stage, database)).collect::<Result<Vec<_>>>()?;
    let pids: Vec<_> = workers.iter().map(|worker| ("worker", worker.pid())).collect();
    let drained = stage.watch(stream, GROUP, &pids, || ())?;
    for worker in workers {
        worker.stop()?;
    }
    stage.unread(stream, GROUP)?;
    Ok(drained)
}
