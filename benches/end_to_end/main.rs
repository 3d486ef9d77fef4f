//! The whole program against its targets, its floors and its peer: `make bench`, or `make bench QUICK=1` for the short form.
//!
//! Starts Redis, PostgreSQL with TimescaleDB and Chroma of its own, runs the release binary as users do, and writes a table to
//! `bench-results/`. Every ratio is of two figures of the same run, taken one after the other; what the table shows is the
//! median of these ratios. The short form leaves out the longest rows unless they are named.
//!
//! ```text
//! cargo bench --bench end_to_end -- [--quick] [--filter NAME]…
//! ```

mod fill;
mod floor;
mod latency;
mod peer;
mod process;
mod report;
mod rows;
mod servers;
mod stage;
mod vectors;
mod worker;

use std::time::Instant;

use anyhow::{Result, bail, ensure};

use report::{Report, Row};
use stage::{Size, Stage};

/// A row: its name, and what measures it.
type Measure = (&'static str, fn(&Stage) -> Result<Row>);

const ROWS: [Measure; 13] = [
    ("drain-1", rows::drain_one_by_one),
    ("drain-50", rows::drain_by_fifties),
    ("latency-1000", rows::latency_calm),
    ("latency-20000", rows::latency_busy),
    ("backfill", rows::backfill),
    ("sessions", rows::sessions),
    ("embeddings", rows::embeddings),
    ("replicas", rows::replicas),
    ("partitions", rows::partitions),
    ("idle", rows::idle),
    ("memory", rows::memory),
    ("big-table", rows::big_table),
    ("indexes", rows::indexes),
];

/// Rows that the short form leaves out unless they are asked for: they are no part of the question whether a change did harm.
const LONG: [&str; 3] = ["backfill", "partitions", "indexes"];

/// What was asked for.
struct Asked {
    quick: bool,
    filters: Vec<String>,
}

impl Asked {
    /// `None`: this is no `cargo bench`.
    fn parse(arguments: &[String]) -> Result<Option<Self>> {
        let mut asked = Self { quick: false, filters: Vec::new() };
        let mut bench = false;
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--bench" => bench = true,
                "--quick" => asked.quick = true,
                "--filter" => asked.filters.extend(arguments.next().cloned()),
                other => bail!("{other:?} is neither --quick nor --filter NAME"),
            }
        }
        for filter in &asked.filters {
            let names = ROWS.map(|(name, _)| name).join(", ");
            ensure!(ROWS.iter().any(|(name, _)| name == filter), "there is no row {filter:?}; there are {names}");
        }
        Ok(bench.then_some(asked))
    }

    fn wants(&self, row: &str) -> bool {
        if self.filters.is_empty() {
            !(self.quick && LONG.contains(&row))
        } else {
            self.filters.iter().any(|filter| filter == row)
        }
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, redis_url, stream, group] = arguments.as_slice()
        && first == floor::READER
    {
        return floor::read_and_acknowledge(redis_url, stream, group);
    }
    match Asked::parse(&arguments)? {
        Some(asked) => measure(&asked),
        None => {
            println!("end_to_end measures with `cargo bench` only, for it takes minutes");
            Ok(())
        }
    }
}

fn measure(asked: &Asked) -> Result<()> {
    let began = Instant::now();
    let mut machine = process::machine();
    let python = peer::prepare();
    if let Err(why) = &python {
        println!("NO PYTHON WORKER to compare with: {why}");
    }
    println!("Starting Redis, PostgreSQL and Chroma …");
    let size = Size { quick: asked.quick, runs: if asked.quick { 2 } else { 5 } };
    let stage = Stage::start(size, python)?;
    machine.extend(versions(&stage)?);
    let tried: Vec<String> = stage::tried().into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    machine.push(("settings", if tried.is_empty() { "defaults".to_owned() } else { tried.join(" ") }));
    let form = if asked.quick { "short form, means of 2 runs" } else { "medians of 5 runs" };
    let mut report = Report { title: format!("aegis-ingest, end to end ({form})"), machine, rows: Vec::new() };
    for (i, (name, measure)) in ROWS.iter().enumerate().filter(|(_, (name, _))| asked.wants(name)) {
        println!("[{}/{}] {name}  ({} s so far)", i + 1, ROWS.len(), began.elapsed().as_secs());
        let row = measure(&stage)?;
        for verdict in &row.verdicts {
            println!("    {}", verdict.line());
        }
        report.rows.push(row);
        // Also after each row, so that an interrupted run leaves what it found.
        report.write("latest")?;
    }
    let now = stage::now_ms() / 1_000;
    let name = format!("{}{now}", if asked.quick { "quick-" } else { "" });
    report.machine.push(("load average at the end", process::load()));
    report.write("latest")?;
    let path = report.write(&name)?;
    let missed = report.rows.iter().flat_map(|row| &row.verdicts).filter(|verdict| !verdict.met()).count();
    println!("{} s in all; {missed} targets not met.", began.elapsed().as_secs());
    println!("The table: {}", path.strip_prefix(servers::repository()).unwrap_or(&path).display());
    Ok(())
}

/// Versions of what runs.
fn versions(stage: &Stage) -> Result<Vec<(&'static str, String)>> {
    let pinned = std::fs::read_to_string(servers::repository().join("infra/local/chroma.txt"))?;
    let of = |arguments: &[&str]| servers::output_of(servers::in_root(arguments));
    Ok(vec![
        ("aegis-ingest", env!("CARGO_PKG_VERSION").to_owned()),
        ("redis", of(&["redis-server", "--version"])?),
        ("postgresql", of(&["postgres", "--version"])?),
        ("timescaledb", stage.text("aegis", "SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'")?),
        // The server's own word for its version is another one.
        (
            "chroma",
            pinned
                .lines()
                .find_map(|line| line.strip_prefix("chromadb=="))
                .unwrap_or("unknown")
                .trim_matches([' ', '\\'])
                .to_owned(),
        ),
    ])
}
