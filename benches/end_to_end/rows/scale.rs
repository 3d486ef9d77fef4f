//! Long backlogs, large tables, several workers.

use anyhow::{Result, ensure};

use super::{GROUP, INTERACTIONS, cpu_us, drain, drain_into, per_second, say, used};
use crate::fill;
use crate::process::meminfo;
use crate::report::{Row, Series, Target, Verdict, median, ratios};
use crate::stage::{Drained, Stage};
use crate::worker::Worker;

/// Memory that Redis wants for 10,000,000 entries, with room for the rest of the machine; KiB.
const MEMORY_WANTED_KIB: u64 = 9 << 20;

/// Resident memory while a long backlog is drained.
pub fn memory(stage: &Stage) -> Result<Row> {
    let roomy = meminfo("MemAvailable:") >= MEMORY_WANTED_KIB;
    let events = stage.size.pick(if roomy { 10_000_000 } else { 2_000_000 }, 1_000_000);
    let mut row = Row::new(
        "memory",
        format!(
            "Resident memory of the worker, looked at every 20 ms or so, from the first read to the last acknowledgement of a backlog \
             of {events} interactions, one an entry."
        ),
    );
    if events < 10_000_000 {
        row.notes.push(format!(
            "The backlog is {events} events and not 10,000,000: {}.",
            if stage.size.quick { "the short form" } else { "this machine has too little memory for Redis" }
        ));
    }
    let (mut drains, mut all, mut peaks) = (Vec::new(), Vec::new(), Vec::new());
    let (mut seconds, mut lasts) = (Vec::new(), Vec::new());
    for run in 1..=stage.size.runs {
        stage.empty_redis()?;
        fill::interactions(stage.redis.port, INTERACTIONS, events, 1, 6)?;
        stage.empty_tables("aegis")?;
        let worker = Worker::start(stage, "aegis")?;
        let (mut samples, mut looks) = (Vec::new(), 0_u32);
        let drained = stage.watch(INTERACTIONS, GROUP, &[("worker", worker.pid())], || {
            looks += 1;
            if looks.is_multiple_of(6) {
                samples.push(worker.rss_mib());
            }
        })?;
        let peak = worker.rss_max_mib();
        worker.stop()?;
        let quarter = samples.len() / 4;
        ensure!(quarter > 0, "too few looks at the memory");
        let (second, last) = (median(&samples[quarter..2 * quarter]), median(&samples[3 * quarter..]));
        say(&format!("run {run}: highest {peak:.1} MiB; second quarter {second:.1} MiB, last quarter {last:.1} MiB"));
        drains.push(drained);
        all.append(&mut samples);
        peaks.push(peak);
        seconds.push(second);
        lasts.push(last);
    }
    row.series.push(Series::new("drain", "events/s", per_second(events, &drains)));
    row.series.push(Series::new("resident memory, all looks", "MiB", all));
    row.series.push(Series::new("second quarter of the time, median", "MiB", seconds.clone()));
    row.series.push(Series::new("last quarter of the time, median", "MiB", lasts.clone()));
    row.cpu("worker", events, &used(&drains));
    let what = format!("resident memory with a backlog of {events} events, highest");
    row.verdicts.push(Verdict { found: Series::new(what, "MiB", peaks), target: Target::AtMost(64.0) });
    row.verdicts.push(Verdict::ratio(
        "the same, last quarter against second: flat",
        Target::AtMost(1.1),
        ratios(&lasts, &seconds),
    ));
    Ok(row)
}

/// The rate into a large table against the rate into an empty one.
pub fn big_table(stage: &Stage) -> Result<Row> {
    const BIG: &str = "big";
    let rows = stage.size.pick(20_000_000, 2_000_000);
    let events = stage.size.pick(1_000_000, 200_000);
    let mut row = Row::new(
        "big-table",
        format!(
            "The drain of {events} interactions, one event an entry, into a table of {rows} rows and into an empty one, in turn, each \
             pair the same new events. The rows of the large table lie 1 ms apart and end where the new events begin, so that both \
             go to the same chunk and index."
        ),
    );
    if stage.size.quick {
        row.notes.push(format!("The large table has {rows} rows and not 20,000,000: the short form."));
    }
    stage.sql("aegis", &[&format!("CREATE DATABASE {BIG} OWNER aegis")])?;
    stage.migrate(BIG)?;
    say(&format!("filling a table of {rows} rows …"));
    stage.sql(
        BIG,
        &[
            &format!(
                "INSERT INTO interaction_logs (occurred_at, event_id, session_id, user_id, intent, latency_ms, confidence, channel, transcript)
                 SELECT now() - interval '1 h' - ({rows} - i) * interval '1 ms', gen_random_uuid(), 's-' || i % 20000, 'user-' || i % 50000,
                        'intent_' || i % 60, i % 500, 0.5, 'phone', 'play the next song in kitchen turn off lights'
                 FROM generate_series(1, {rows}) i"
            ),
            "VACUUM (ANALYZE) interaction_logs",
            "CHECKPOINT",
        ],
    )?;
    let (mut big, mut empty) = (Vec::new(), Vec::new());
    for run in 1..=stage.size.runs {
        stage.empty_redis()?;
        fill::interactions(stage.redis.port, INTERACTIONS, events, 1, 10 + run as u64)?;
        stage.sql(BIG, &["CHECKPOINT"])?;
        big.push(drain_into(stage, BIG, INTERACTIONS, 1)?);
        empty.push(drain(stage, events)?);
        let rate = |drained: &[Drained]| per_second(events, drained).last().copied().unwrap_or_default();
        say(&format!("run {run}: large {:.0}/s, empty {:.0}/s", rate(&big), rate(&empty)));
    }
    let expected = rows + events * stage.size.runs as u64;
    let found = stage.number(BIG, "SELECT count(*) FROM interaction_logs")?.unsigned_abs();
    ensure!(found == expected, "the large table has {found} rows and not {expected}");
    stage.sql("aegis", &[&format!("DROP DATABASE {BIG} WITH (FORCE)")])?;
    let (rates, others) = (per_second(events, &big), per_second(events, &empty));
    row.series.push(Series::new(format!("into {rows} rows"), "events/s", rates.clone()));
    row.series.push(Series::new("into none", "events/s", others.clone()));
    row.cpu("large table", events, &used(&big));
    row.cpu("empty table", events, &used(&empty));
    let what = format!("rate into a table of {rows} rows against an empty one");
    row.verdicts.push(Verdict::ratio(what, Target::AtLeast(0.8), ratios(&rates, &others)));
    Ok(row)
}

/// Two workers against one.
pub fn replicas(stage: &Stage) -> Result<Row> {
    let events = stage.size.pick(1_000_000, 300_000);
    let mut row = Row::new(
        "replicas",
        format!(
            "The drain of {events} interactions, one event an entry, by one worker and by two at once, in turn, all on this machine."
        ),
    );
    stage.empty_redis()?;
    fill::interactions(stage.redis.port, INTERACTIONS, events, 1, 7)?;
    let (mut ones, mut twos) = (Vec::new(), Vec::new());
    for run in 1..=stage.size.runs {
        ones.push(drain(stage, events)?);
        stage.empty_tables("aegis")?;
        twos.push(drain_into(stage, "aegis", INTERACTIONS, 2)?);
        let rows = stage.number("aegis", "SELECT count(*) FROM interaction_logs")?;
        ensure!(rows.unsigned_abs() == events, "two workers wrote {rows} rows of {events}");
        let rate = |drained: &[Drained]| per_second(events, drained).last().copied().unwrap_or_default();
        say(&format!("run {run}: one {:.0}/s, two {:.0}/s", rate(&ones), rate(&twos)));
    }
    let (rates, others) = (per_second(events, &twos), per_second(events, &ones));
    row.series.push(Series::new("two workers", "events/s", rates.clone()));
    row.series.push(Series::new("one worker", "events/s", others.clone()));
    row.cpu("two workers", events, &used(&twos));
    row.cpu("one worker", events, &used(&ones));
    let cpu = |drained: &[Drained]| drained.iter().map(|drained| drained.used.each.values().sum()).collect::<Vec<f64>>();
    let ceiling = ratios(&cpu(&ones), &cpu(&twos));
    row.series.push(Series::new("ceiling: CPU of all processes, one worker's drain against two's", "×", ceiling));
    row.notes.push(
        "The ceiling: Redis, PostgreSQL and the workers share the cores, so two workers that used as much of them as one does would be \
         slower by what they cost more: two backends that copy into one table at once get in each other's way."
            .to_owned(),
    );
    row.verdicts.push(Verdict::ratio("two replicas against one", Target::AtLeast(0.95), ratios(&rates, &others)));
    Ok(row)
}

/// The same events through 1, 2, 4 and 8 partitions: what an event costs must not grow with them.
pub fn partitions(stage: &Stage) -> Result<Row> {
    const COUNTS: [u64; 4] = [1, 2, 4, 8];
    let events = stage.size.pick(1_000_000, 200_000);
    let mut row = Row::new(
        "partitions",
        format!(
            "The drain of {events} interactions, one event an entry, that stand in 1, 2, 4 and 8 streams of one Redis, by one worker with \
             `AEGIS_PARTITIONS` so, in turn. All share the same cores: the rate stays, and so must the CPU an event."
        ),
    );
    let mut drains: [Vec<Drained>; 4] = Default::default();
    for run in 1..=stage.size.runs {
        for (count, drains) in COUNTS.into_iter().zip(&mut drains) {
            let streams: Vec<_> = match count {
                1 => vec![INTERACTIONS.to_owned()],
                _ => (0..count).map(|partition| format!("{INTERACTIONS}:{{{partition}}}")).collect(),
            };
            stage.empty_redis()?;
            for (stream, seed) in streams.iter().zip(20..) {
                fill::interactions(stage.redis.port, stream, events / count, 1, seed)?;
            }
            stage.empty_tables("aegis")?;
            let worker = Worker::start_with(stage, "aegis", &[("AEGIS_PARTITIONS", &count.to_string())])?;
            drains.push(stage.watch_all(&streams, GROUP, &[("worker", worker.pid())], || ())?);
            worker.stop()?;
            let rows = stage.number("aegis", "SELECT count(*) FROM interaction_logs")?;
            ensure!(rows.unsigned_abs() == events, "{rows} rows of {events} through {count} partitions");
        }
        let told: Vec<_> = COUNTS
            .iter()
            .zip(&drains)
            .map(|(count, drains)| {
                let rate = per_second(events, drains).last().copied().unwrap_or_default();
                format!("{count}: {rate:.0}/s")
            })
            .collect();
        say(&format!("run {run}, by partitions: {}", told.join(", ")));
    }
    for (count, drains) in COUNTS.iter().zip(&drains) {
        row.series.push(Series::new(format!("{count} partitions"), "events/s", per_second(events, drains)));
        row.cpu(&format!("{count} partitions"), events, &used(drains));
    }
    let [one, .., eight] = drains.each_ref().map(|drains| cpu_us("worker", events, drains));
    let what = "worker's CPU an event, 8 partitions against 1";
    row.verdicts.push(Verdict::ratio(what, Target::AtMost(1.25), ratios(&eight, &one)));
    Ok(row)
}
