//! Freshness of live events while old ones are brought in through the same stream.

use std::io::Write as _;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::say;
use crate::latency::{self, Beside, Latencies, quantile};
use crate::report::{Row, Series, Target, Verdict};
use crate::stage::{Stage, now_ms};

/// Live events a second.
const RATE: u32 = 1_000;
/// Unsettled entries that the backfill allows itself. Workers settle tens of thousands a second, so that this is a few
/// hundredths of a second of their work.
const LAG_MAX: u64 = 1_000;
/// Days that the old events are spread over, a chunk each.
const DAYS: u64 = 50;

/// 1,000 live events a second alone, beside a backfill that is paced by lag, and beside one that is not.
pub fn backfill(stage: &Stage) -> Result<Row> {
    let events = stage.size.pick(500_000, 100_000);
    let mut row = Row::new(
        "backfill",
        format!(
            "{RATE} live interactions a second, measured as in latency-1000, while `produce --timeline` brings in {events} old ones of \
             {DAYS} days, one an entry, through the same stream: with --max-lag {LAG_MAX}, and with no bound. Only live events sent \
             while the backfill ran count."
        ),
    );
    let file = stage.folder.path().join("old.jsonl");
    let mut lines = std::io::BufWriter::new(std::fs::File::create(&file)?);
    for seq in 0..events {
        let line = json!({
            "seq": seq, "kind": "interaction", "session_id": format!("old-{}", seq % 20_000), "user_id": format!("user-{}", seq % 50_000),
            "offset_ms": seq * DAYS * 86_400_000 / events, "turn": 0, "intent": format!("intent_{}", seq % 60), "latency_ms": 181.5,
            "transcript": "turn off the lights in the kitchen",
        });
        writeln!(lines, "{line}")?;
    }
    lines.flush()?;
    drop(lines);
    let start = jiff::Timestamp::from_millisecond((now_ms() - (DAYS + 2) * 86_400_000).cast_signed())?.to_string();
    let lag_max = LAG_MAX.to_string();
    let produce = ["produce", "--quiet", "--timeline", "old.jsonl", "--start", &start];
    let paced = [&produce[..], &["--max-lag", &lag_max]].concat();
    let ways: [(&str, Option<&[&str]>); 3] =
        [("alone", None), ("beside a paced backfill", Some(&paced)), ("beside one without a bound", Some(&produce))];
    let time = Duration::from_secs(stage.size.pick(15, 6));
    let mut found: [Vec<Latencies>; 3] = Default::default();
    for run in 1..=stage.size.runs {
        for ((name, arguments), found) in ways.iter().zip(&mut found) {
            stage.empty_redis()?;
            let beside = arguments.map(|arguments| Beside { command: stage.program("aegis", arguments), events });
            let latencies = latency::run_beside(stage, RATE, time, 300 + run as u64 * 2, beside)?;
            say(&format!(
                "run {run}, {name}: {} samples, p50 {:.2} ms, p99 {:.2} ms, greatest {:.2} ms; backfill {:.0}/s",
                latencies.each.len(),
                quantile(&latencies.each, 0.5),
                quantile(&latencies.each, 0.99),
                quantile(&latencies.each, 1.0),
                latencies.beside
            ));
            found.push(latencies);
        }
    }
    for ((name, _), runs) in ways.iter().zip(&found) {
        for (share, word) in [(0.5, "p50"), (0.99, "p99"), (1.0, "greatest")] {
            row.series.push(Series::new(
                format!("{name}: {word}"),
                "ms",
                runs.iter().map(|run| quantile(&run.each, share)).collect(),
            ));
        }
    }
    for ((name, _), runs) in ways.iter().zip(&found).skip(1) {
        row.series.push(Series::new(format!("{name}: its own rate"), "events/s", runs.iter().map(|run| run.beside).collect()));
    }
    let p99 = found[1].iter().map(|run| quantile(&run.each, 0.99)).collect();
    let what = format!("XADD to visible, {RATE} a second beside a paced backfill: p99");
    row.verdicts.push(Verdict { found: Series::new(what, "ms", p99), target: Target::AtMost(50.0) });
    Ok(row)
}
