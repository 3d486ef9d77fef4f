//! Freshness, the other two lanes, and doing nothing.

use std::time::Duration;

use aegis_ingest::traffic::Mix;
use anyhow::{Result, ensure};

use super::{INTERACTIONS, drain, drain_into, per_second, say, used};
use crate::latency::{self, Latencies, quantile};
use crate::process::pause_ms;
use crate::report::{Row, Series, Target, Verdict, ratios};
use crate::stage::{Drained, Stage, remove_keys};
use crate::worker::Worker;
use crate::{fill, vectors};

/// 1,000 events a second.
pub fn latency_calm(stage: &Stage) -> Result<Row> {
    let time = Duration::from_secs(stage.size.pick(20, 5));
    let mut row = fresh(stage, "latency-1000", 1_000, time)?;
    let p50 = Series::new("XADD to visible, 1,000 a second: p50", "ms", row.series[0].values.clone());
    let p99 = Series::new("XADD to visible, 1,000 a second: p99", "ms", row.series[1].values.clone());
    row.verdicts.push(Verdict { found: p50, target: Target::AtMost(1.5) });
    row.verdicts.push(Verdict { found: p99, target: Target::AtMost(6.0) });
    Ok(row)
}

/// 20,000 events a second.
pub fn latency_busy(stage: &Stage) -> Result<Row> {
    let time = Duration::from_secs(stage.size.pick(20, 4));
    let mut row = fresh(stage, "latency-20000", 20_000, time)?;
    // Redis writes and flushes its log on the disk that PostgreSQL commits to: how much of the figure is that.
    let mut redis = stage.redis()?;
    redis::cmd("CONFIG").arg("SET").arg("appendfsync").arg("no").exec(&mut redis)?;
    let mut unflushed = Vec::new();
    for run in 1..=stage.size.pick(stage.size.runs, 1) {
        let found = latency::run(stage, 20_000, time, 200 + run as u64 * 2)?;
        unflushed.push(quantile(&found.each, 0.99));
    }
    redis::cmd("CONFIG").arg("SET").arg("appendfsync").arg("everysec").exec(&mut redis)?;
    row.series.push(Series::new("p99 with Redis's log not flushed each second (appendfsync no)", "ms", unflushed));
    let p99 = Series::new("XADD to visible, 20,000 a second: p99", "ms", row.series[1].values.clone());
    row.verdicts.push(Verdict { found: p99, target: Target::AtMost(15.0) });
    Ok(row)
}

fn fresh(stage: &Stage, id: &'static str, rate: u32, time: Duration) -> Result<Row> {
    let mut row = Row::new(
        id,
        format!(
            "{rate} interactions a second for {} s, one an entry, evenly spaced, fsync on: from just before XADD was handed to the \
             socket until another connection's question for the row came back with it. Every 20 ms one event is looked for, without \
             a pause between questions; the last question's round trip is part of the figure.",
            time.as_secs()
        ),
    );
    stage.empty_redis()?;
    let mut runs: Vec<Latencies> = Vec::new();
    for run in 1..=stage.size.runs {
        let found = latency::run(stage, rate, time, 100 + run as u64 * 2)?;
        let (p50, p99) = (quantile(&found.each, 0.5), quantile(&found.each, 0.99));
        say(&format!("run {run}: {} samples, p50 {p50:.2} ms, p99 {p99:.2} ms", found.each.len()));
        runs.push(found);
    }
    let of = |share: f64| runs.iter().map(|run| quantile(&run.each, share)).collect();
    let each = |name: &str, unit, value: &dyn Fn(&Latencies) -> f64| Series::new(name, unit, runs.iter().map(value).collect());
    row.series.push(Series::new("p50", "ms", of(0.5)));
    row.series.push(Series::new("p99", "ms", of(0.99)));
    row.series.push(Series::new("greatest", "ms", of(1.0)));
    row.series.push(each("samples", "", &|run| run.each.len() as f64));
    row.series.push(each("really sent", "events/s", &|run| run.rate));
    row.series.push(each("round trip of one question, part of each figure", "ms", &|run| run.question));
    row.series.push(each("a bare commit of one row, nothing else running: p50", "ms", &|run| quantile(&run.commits, 0.5)));
    row.series.push(each("a bare commit of one row, nothing else running: p99", "ms", &|run| quantile(&run.commits, 0.99)));
    row.series.push(each("worker's own histogram: half within", "ms", &|run| run.histogram.0));
    row.series.push(each("worker's own histogram: 99 of 100 within", "ms", &|run| run.histogram.1));
    let mut all: Vec<f64> = runs.iter().flat_map(|run| run.each.iter().copied()).collect();
    all.sort_unstable_by(f64::total_cmp);
    row.notes.push(format!(
        "All {} samples together: p50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms.",
        all.len(),
        quantile(&all, 0.5),
        quantile(&all, 0.9),
        quantile(&all, 0.99),
        quantile(&all, 0.999)
    ));
    let events = (f64::from(rate) * time.as_secs_f64()) as u64;
    row.cpu("while it runs", events, &runs.into_iter().map(|run| run.used).collect::<Vec<_>>());
    Ok(row)
}

/// The sessions lane against interactions.
pub fn sessions(stage: &Stage) -> Result<Row> {
    const STREAM: &str = "aegis:sessions";
    let events = stage.size.pick(500_000, 100_000);
    let mut row = Row::new(
        "sessions",
        format!(
            "{events} session updates as `produce --mix sessions=1` makes them (500 sessions open, about ten updates each, a state map \
             in each), one an entry, into an empty `session_events`, an empty `sessions` and no hashes; against as many \
             interactions. Nothing is cached from run to run."
        ),
    );
    stage.empty_redis()?;
    let mix = Mix { interactions: 0, sessions: 1, embeddings: 0 };
    fill::traffic(stage.redis.port, STREAM, events, mix, 3, |_| ())?;
    // Where the entries of the other lane wait while this one is measured.
    fill::interactions(stage.redis.port, "waiting", events, 1, 4)?;
    let mut redis = stage.redis()?;
    let mut rename = |from: &str, to: &str| redis::cmd("RENAME").arg(from).arg(to).exec(&mut redis);
    let (mut sessions, mut interactions) = (Vec::new(), Vec::new());
    for run in 1..=stage.size.runs {
        stage.empty_tables("aegis")?;
        sessions.push(drain_into(stage, "aegis", STREAM, 1)?);
        let rows = stage.number("aegis", "SELECT count(*) FROM session_events")?;
        ensure!(rows.unsigned_abs() == events, "the worker wrote {rows} session updates of {events}");
        remove_keys(&mut stage.redis()?, "aegis:session:*")?;
        redis::cmd("DEL").arg(INTERACTIONS).exec(&mut stage.redis()?)?;
        rename("waiting", INTERACTIONS)?;
        rename(STREAM, "waiting-sessions")?;
        redis::cmd("DEL").arg(STREAM).exec(&mut stage.redis()?)?;
        interactions.push(drain(stage, events)?);
        redis::cmd("DEL").arg(STREAM).exec(&mut stage.redis()?)?;
        rename(INTERACTIONS, "waiting")?;
        rename("waiting-sessions", STREAM)?;
        let rate = |drained: &[Drained]| per_second(events, drained).last().copied().unwrap_or_default();
        say(&format!("run {run}: sessions {:.0}/s, interactions {:.0}/s", rate(&sessions), rate(&interactions)));
    }
    let (rates, others) = (per_second(events, &sessions), per_second(events, &interactions));
    row.series.push(Series::new("sessions lane", "events/s", rates.clone()));
    row.series.push(Series::new("interactions lane", "events/s", others.clone()));
    row.cpu("sessions lane", events, &used(&sessions));
    row.cpu("interactions lane", events, &used(&interactions));
    row.verdicts.push(Verdict::ratio(
        "sessions lane, drain, against interactions",
        Target::AtLeast(0.4),
        ratios(&rates, &others),
    ));
    Ok(row)
}

/// The embeddings lane against a bare client.
pub fn embeddings(stage: &Stage) -> Result<Row> {
    const STREAM: &str = "aegis:embeddings";
    const COLLECTION: &str = "interactions";
    let events = stage.size.pick(10_000, 3_000);
    let mut row = Row::new(
        "embeddings",
        format!(
            "{events} vectors of 384 dimensions with document and metadata, one an entry, into a new collection, from the first \
             read to the last acknowledgement; against the same vectors, ready in memory, upserted by a bare HTTP client in one \
             loop of requests of 1,000, as base64, into a new collection. Making the collection is part of both."
        ),
    );
    stage.empty_redis()?;
    let mix = Mix { interactions: 0, sessions: 0, embeddings: 1 };
    let mut bodies = Vec::new();
    fill::traffic(stage.redis.port, STREAM, events, mix, 5, |body| bodies.push(body.to_vec()))?;
    let records = bodies.iter().map(|body| vectors::record(body)).collect::<Result<Vec<_>>>()?;
    let (mut workers, mut bare) = (Vec::new(), Vec::new());
    for run in 1..=stage.size.runs {
        bare.push(vectors::bare_client(stage, &format!("bare-{run}"), &records)?);
        vectors::remove(stage, COLLECTION)?;
        workers.push(drain_into(stage, "aegis", STREAM, 1)?);
        let found = vectors::count(stage, COLLECTION)?;
        ensure!(found == events, "the worker wrote {found} vectors of {events}");
        vectors::remove(stage, COLLECTION)?;
        let rate = |drained: &[Drained]| per_second(events, drained).last().copied().unwrap_or_default();
        say(&format!("run {run}: worker {:.0}/s, bare client {:.0}/s", rate(&workers), rate(&bare)));
    }
    let (rates, others) = (per_second(events, &workers), per_second(events, &bare));
    row.series.push(Series::new("embeddings lane", "vectors/s", rates.clone()));
    row.series.push(Series::new("bare client", "vectors/s", others.clone()));
    row.cpu("embeddings lane", events, &used(&workers));
    row.cpu("bare client", events, &used(&bare));
    row.verdicts.push(Verdict::ratio(
        "embeddings lane, 384 dimensions, against a bare client",
        Target::AtLeast(0.95),
        ratios(&rates, &others),
    ));
    Ok(row)
}

/// Three lanes with nothing to do.
pub fn idle(stage: &Stage) -> Result<Row> {
    let seconds = stage.size.pick(20, 6);
    let mut row = Row::new(
        "idle",
        format!("The worker with its three lanes and nothing in the streams: CPU over {seconds} s, of one core."),
    );
    stage.empty_redis()?;
    stage.empty_tables("aegis")?;
    let worker = Worker::start(stage, "aegis")?;
    worker.ready()?;
    // What starting takes is over by then.
    pause_ms(stage.size.pick(6_000, 3_000));
    let watched = stage.watched(&[("worker", worker.pid())]);
    let (mut own, mut redis) = (Vec::new(), Vec::new());
    for _ in 0..stage.size.runs {
        let before = watched.snapshot();
        pause_ms(seconds * 1_000);
        let used = before.until(&watched.snapshot());
        let share = |name: &str| used.each.get(name).copied().unwrap_or_default() * 100.0 / seconds as f64;
        own.push(share("worker"));
        redis.push(share("redis"));
    }
    worker.stop()?;
    row.series.push(Series::new("worker", "% of a core", own.clone()));
    row.series.push(Series::new("redis, for it", "% of a core", redis));
    row.verdicts.push(Verdict { found: Series::new("three idle lanes", "% of a core", own), target: Target::AtMost(0.5) });
    Ok(row)
}
