//! The torture test: three workers, producers that never stop, and a seeded schedule of faults; in the end an oracle that
//! knows every event asks the stores for each. Each lane has two streams, and what is settled is trimmed after two seconds, so that
//! entries go while the faults last.
//!
//! ```text
//!   producers ──proxy──> Redis ──proxy──> 3 workers ──proxy──> PostgreSQL, Chroma
//!       └── ledger: what was issued            ▲ faults of the schedule, at their times
//!                └── verdict: one row or one dead letter for each
//! ```
//!
//! `AEGIS_TORTURE_SEED` has a run again, `AEGIS_TORTURE_SECONDS` sets how long the faults last.

mod arena;
mod event;
mod producer;
mod schedule;
mod value;
mod verdict;
mod weather;
mod workers;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::arena::Arena;
use self::producer::Ledger;

/// Highest resident memory of a worker.
const MEMORY_MAX: u64 = 96 << 20;
/// How long the workers may take to finish what is there when everything is well again.
const CALM_MAX: Duration = Duration::from_mins(3);

fn setting(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .filter(|text| !text.is_empty())
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name}: a number")))
}

/// Two minutes in all and at least thirty faults; `make torture` makes it ten minutes and two hundred.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_survives_the_faults() {
    let seconds = setting("AEGIS_TORTURE_SECONDS").unwrap_or(75);
    let faults_min = if seconds >= 540 { 200 } else { seconds as usize * 2 / 5 };
    torture(Duration::from_secs(seconds), faults_min).await;
}

async fn torture(length: Duration, faults_min: usize) {
    let seed = setting("AEGIS_TORTURE_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let schedule = schedule::draw(seed, length);
    say(&format!(
        "torture: seed {seed}, {} faults in {} s; again with AEGIS_TORTURE_SEED={seed}",
        schedule.len(),
        length.as_secs()
    ));
    for (at, fault) in &schedule {
        say(&format!("  {:6.1} s  {fault}", at.as_secs_f64()));
    }
    let arena = Arena::open().await;
    let ledger = Arc::new(Ledger::new());
    let producers = producer::start(seed, &arena, &ledger);
    let survived = arena.endure(schedule, length, &ledger).await;
    producers.stop().await;
    say("producers and faults have stopped; the workers finish what is there");
    let began = Instant::now();
    let mut offences = arena.calm(CALM_MAX).await;
    say(&format!("nothing was pending after {:.1} s; every event is looked for", began.elapsed().as_secs_f64()));
    let (events, mut found) = verdict::pass(&arena, &ledger).await;
    offences.append(&mut found);
    let (memory_max, mut unexpected) = arena.close().await;
    offences.append(&mut unexpected);
    if memory_max > MEMORY_MAX {
        offences.push(format!("a worker took {} MiB at its peak: at most {} are allowed", memory_max >> 20, MEMORY_MAX >> 20));
    }
    let table = table(&survived);
    let total: usize = survived.values().sum();
    say(&format!(
        "seed {seed}: {events}; {total} faults; peak memory of a worker {:.1} MiB\n{table}",
        memory_max as f64 / f64::from(1 << 20)
    ));
    if total < faults_min {
        offences.push(format!("{total} faults took place: at least {faults_min} are wanted"));
    }
    let shown: Vec<_> = offences.iter().take(40).map(String::as_str).collect();
    assert!(offences.is_empty(), "seed {seed}: {} offences\n{}", offences.len(), shown.join("\n"));
}

fn table(survived: &BTreeMap<&'static str, usize>) -> String {
    let mut table = String::new();
    for (kind, count) in survived {
        let _ = writeln!(table, "  {count:4}  {kind}");
    }
    table
}

/// Straight to the terminal: cargo keeps back what a test prints until it fails.
fn say(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{text}");
}
