//! Backlogs of interactions, against the peer and the floors.

use anyhow::Result;

use super::{INTERACTIONS, cpu_us, drain, per_second, say, used};
use crate::report::{Row, Series, Target, Verdict, ratios};
use crate::stage::{Drained, Stage};
use crate::{fill, floor, peer};

/// A second database, for a backend that gets in nobody's way.
const BESIDE: &str = "beside";

/// Lets the Python worker drain, if there is one.
fn python(stage: &Stage, events: u64, runs: &mut Vec<Drained>) -> Result<()> {
    if let Ok(python) = &stage.python {
        runs.push(peer::drain(stage, python, INTERACTIONS, events)?);
    }
    Ok(())
}

/// What a row asks of the worker beside the Python worker.
struct Asked {
    /// Events an entry, in words.
    entry: &'static str,
    /// Least rate, as a multiple of the Python worker's.
    rate: Option<f64>,
    /// Most CPU an event, as a share of the Python worker's: the target in µs by what that worker takes where it was set. A
    /// figure in µs tells as much of the processor as of the program; this share does not.
    cpu_share: f64,
}

/// The Python worker's figures beside the worker's, or loudly why there are none.
fn tell_python(stage: &Stage, row: &mut Row, events: u64, python: &[Drained], workers: &[Drained], asked: &Asked) {
    let Asked { entry, rate, cpu_share } = asked;
    match &stage.python {
        Ok(path) => {
            row.series.push(Series::new("Python worker", "events/s", per_second(events, python)));
            row.cpu("Python worker", events, &used(python));
            row.notes.push(format!("Python worker: {}.", peer::versions(path)));
            let share = ratios(&cpu_us("worker", events, workers), &cpu_us("python worker", events, python));
            let what = format!("worker's CPU an event against the Python worker's, {entry}");
            row.verdicts.push(Verdict::ratio(what, Target::AtMost(*cpu_share), share));
            let ratios = ratios(&per_second(events, workers), &per_second(events, python));
            match rate {
                Some(rate) => {
                    let what = format!("drain, {entry}, against the Python worker");
                    row.verdicts.push(Verdict::ratio(what, Target::AtLeast(*rate), ratios));
                }
                None => row.series.push(Series::new("worker against the Python worker", "×", ratios)),
            }
        }
        Err(why) => row
            .notes
            .push(format!("**NO PYTHON WORKER: it could not be made ready here ({why}), so nothing is said against it.**")),
    }
}

/// One event an entry: against the Python worker, and against reading and acknowledging alone.
pub fn drain_one_by_one(stage: &Stage) -> Result<Row> {
    let events = stage.size.pick(1_000_000, 300_000);
    let mut row = Row::new(
        "drain-1",
        format!(
            "A backlog of {events} interactions, one event an entry, from the first read to the last acknowledgement, into an empty \
             table: the worker with default settings, the Python worker, and the worker's own Redis client that reads and \
             acknowledges without decoding and without database; in turn, the same entries."
        ),
    );
    stage.empty_redis()?;
    fill::interactions(stage.redis.port, INTERACTIONS, events, 1, 1)?;
    let (mut workers, mut floors, mut pythons, mut besides) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for run in 1..=stage.size.runs {
        python(stage, events, &mut pythons)?;
        workers.push(drain(stage, events)?);
        floors.push(floor::drain(stage, INTERACTIONS)?);
        if run == 1 {
            floor::write_file(stage)?;
        }
        besides.push(floor::beside_copies(stage, || floor::drain(stage, INTERACTIONS))?);
        let each = [
            ("Python", pythons.last()),
            ("worker", workers.last()),
            ("reading alone", floors.last()),
            ("reading beside a COPY", besides.last()),
        ];
        say(&told(run, events, &each));
    }
    let rates = per_second(events, &workers);
    row.series.push(Series::new("worker", "events/s", rates.clone()));
    row.series.push(Series::new("reading and acknowledging alone", "events/s", per_second(events, &floors)));
    row.series.push(Series::new("the same while one backend copies from a file", "events/s", per_second(events, &besides)));
    let ceiling = ratios(&per_second(events, &besides), &per_second(events, &floors));
    row.series.push(Series::new("ceiling: reading beside a busy core against reading alone", "×", ceiling));
    row.notes.push(
        "The ceiling: reading and acknowledging, with nothing behind it, while one backend of PostgreSQL copies from a file and knows \
         nothing of it: what the processor, the system's scheduler and the disk leave to Redis where the second core has work."
            .to_owned(),
    );
    let asked = Asked { entry: "one event an entry", rate: Some(3.5), cpu_share: 1.2 / 10.0 };
    tell_python(stage, &mut row, events, &pythons, &workers, &asked);
    row.cpu("worker", events, &used(&workers));
    row.cpu("reading and acknowledging alone", events, &used(&floors));
    row.verdicts.push(Verdict::ratio(
        "drain, one event an entry, against reading and acknowledging alone",
        Target::AtLeast(0.85),
        ratios(&rates, &per_second(events, &floors)),
    ));
    let cpu = Series::new("worker's CPU an event, one event an entry", "µs", cpu_us("worker", events, &workers));
    row.verdicts.push(Verdict { found: cpu, target: Target::AtMost(1.2) });
    Ok(row)
}

/// 50 events an entry: against one backend that copies the same rows from a file.
pub fn drain_by_fifties(stage: &Stage) -> Result<Row> {
    let events = stage.size.pick(2_000_000, 500_000);
    let mut row = Row::new(
        "drain-50",
        format!(
            "A backlog of {events} interactions, 50 events an entry, into an empty table, against `COPY … FROM file (FORMAT binary)` of \
             the same rows, in the order of the unique key, by one backend into the same empty table; and the Python worker."
        ),
    );
    stage.empty_redis()?;
    fill::interactions(stage.redis.port, INTERACTIONS, events, 50, 2)?;
    drain(stage, events)?;
    floor::write_file(stage)?;
    stage.sql("aegis", &[&format!("CREATE DATABASE {BESIDE} OWNER aegis")])?;
    stage.migrate(BESIDE)?;
    let (mut workers, mut copies, mut pythons, mut twice) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for run in 1..=stage.size.runs {
        twice.push(2.0 * events as f64 / floor::copies_at_once(stage, &["aegis", BESIDE])?);
        copies.push(floor::copy_file(stage, "aegis", events)?);
        workers.push(drain(stage, events)?);
        python(stage, events, &mut pythons)?;
        say(&told(run, events, &[("COPY", copies.last()), ("worker", workers.last()), ("Python", pythons.last())]));
    }
    stage.sql("aegis", &[&format!("DROP DATABASE {BESIDE} WITH (FORCE)")])?;
    let rates = per_second(events, &workers);
    row.series.push(Series::new("worker", "events/s", rates.clone()));
    row.series.push(Series::new("COPY FROM file, one backend", "rows/s", per_second(events, &copies)));
    row.series.push(Series::new("COPY FROM file, two backends, each its own database", "rows/s", twice.clone()));
    let twice = ratios(&twice, &per_second(events, &copies));
    row.series.push(Series::new("two backends against one", "×", twice.clone()));
    let [postgres, worker, redis] = ["postgres", "worker", "redis"].map(|process| cpu_us(process, events, &workers));
    let share =
        postgres.iter().zip(worker.iter().zip(&redis)).map(|(postgres, (worker, redis))| postgres / (postgres + worker + redis));
    let ceiling = twice.iter().zip(share).map(|(twice, share)| twice * share).collect();
    row.series.push(Series::new("ceiling: two backends against one, times PostgreSQL's share of a drain's CPU", "×", ceiling));
    row.notes.push(
        "The ceiling: two backends that share no table, no Redis and no worker, against one, are all that the second core brings; of \
         that Redis and the worker take their share."
            .to_owned(),
    );
    let asked = Asked { entry: "50 events an entry", rate: None, cpu_share: 0.5 / 6.4 };
    tell_python(stage, &mut row, events, &pythons, &workers, &asked);
    row.cpu("worker", events, &used(&workers));
    row.cpu("COPY FROM file", events, &used(&copies));
    row.verdicts.push(Verdict::ratio(
        "drain, 50 events an entry, against one backend's COPY FROM file",
        Target::AtLeast(1.2),
        ratios(&rates, &per_second(events, &copies)),
    ));
    let cpu = Series::new("worker's CPU an event, 50 events an entry", "µs", cpu_us("worker", events, &workers));
    row.verdicts.push(Verdict { found: cpu, target: Target::AtMost(0.5) });
    Ok(row)
}

fn told(run: usize, events: u64, each: &[(&str, Option<&Drained>)]) -> String {
    let each = each.iter().filter_map(|(name, drained)| Some(format!("{name} {:.0}/s", events as f64 / (*drained)?.seconds)));
    format!("run {run}: {}", each.collect::<Vec<_>>().join(", "))
}
