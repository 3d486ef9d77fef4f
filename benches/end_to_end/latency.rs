//! From XADD to a committed row that another connection sees.
//!
//! One thread sends at an even rate and notes when each sampled event was handed to the socket. Another asks PostgreSQL for the
//! sampled event, over a connection of its own, again and again until it is there. The moment the answer has come counts, so
//! a question's round trip is part of every figure; it is measured and shown. Samples lie 12 to 28 ms apart at random, so that
//! they favour no phase of the worker's rhythm and the asking takes little of the machine.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use uuid::Uuid;

use super::fill::{Interactions, Key, xadd};
use super::process::{Used, pause_ms};
use super::stage::{Stage, connect, now_ms};
use super::worker::Worker;

/// Pause of the sender between two looks at the clock.
const TICK: Duration = Duration::from_micros(50);
const STREAM: &str = "aegis:interactions";

/// One run's findings, milliseconds.
#[derive(Debug, Default)]
pub struct Latencies {
    /// Of each sampled event, in order of size.
    pub each: Vec<f64>,
    /// Round trip of a question whose answer is there.
    pub question: f64,
    /// Bare commits of one row each on the idle machine right after: what no way into the database can undercut.
    pub commits: Vec<f64>,
    /// Upper bounds of the worker's own histogram: half, and 99 of 100.
    pub histogram: (f64, f64),
    /// Events a second that were really sent.
    pub rate: f64,
    /// Events a second of what ran beside it, from its first row until all was handed over.
    pub beside: f64,
    /// CPU.
    pub used: Used,
}

/// The value below which that share of sorted values lies.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// A program that writes other events meanwhile; only samples that were sent while it ran count.
pub struct Beside {
    /// How it is started.
    pub command: Command,
    /// What it writes, all of it older than a day.
    pub events: u64,
}

/// Sends for a while and looks at the samples.
pub fn run(stage: &Stage, rate: u32, time: Duration, seed: u64) -> Result<Latencies> {
    run_beside(stage, rate, time, seed, None)
}

/// The same beside another program.
pub fn run_beside(stage: &Stage, rate: u32, time: Duration, seed: u64, beside: Option<Beside>) -> Result<Latencies> {
    stage.empty_tables("aegis")?;
    redis::cmd("DEL").arg(STREAM).exec(&mut stage.redis()?)?;
    let worker = Worker::start(stage, "aegis")?;
    worker.ready()?;
    // Connections and statements of the first batch are no part of steady traffic.
    let port = stage.redis.port;
    send(port, rate, Duration::from_secs(2), seed, None)?;
    let url = stage.database_url("aegis");
    until_count(stage, u64::from(rate) * 2)?;
    let histogram = worker.latencies()?;
    let watched = stage.watched(&[("worker", worker.pid())]);
    let before = watched.snapshot();
    let others = beside.as_ref().map_or(0, |beside| beside.events);
    let beside = beside.map(|mut beside| begun(stage, &mut beside.command)).transpose()?;
    let (samples, incoming) = channel();
    let looker = std::thread::spawn(move || look(&url, &incoming));
    let sent = send(port, rate, time, seed.wrapping_add(1), Some(&samples))?;
    drop(samples);
    let (found, question) = looker.join().ok().context("the thread that looks for events")??;
    let used = before.until(&watched.snapshot());
    let (mut until, mut beside_rate) = (Instant::now(), 0.0);
    if let Some((began, waiting)) = beside {
        until = waiting.join().ok().context("the thread that waits for the other program")??;
        beside_rate = others as f64 / until.duration_since(began).as_secs_f64();
    }
    let mut each: Vec<f64> = found.iter().filter(|(sent, _)| *sent <= until).map(|(_, ms)| *ms).collect();
    ensure!(!each.is_empty(), "no sample was sent while the other program ran");
    until_count(stage, u64::from(rate) * 2 + sent.0 + others)?;
    let histogram = difference(&histogram, &worker.latencies()?);
    let commits = stage.runtime.block_on(commits(&stage.own_database_url("aegis")))?;
    worker.stop()?;
    each.sort_unstable_by(f64::total_cmp);
    Ok(Latencies { each, question, commits, histogram, rate: sent.0 as f64 / sent.1, beside: beside_rate, used })
}

/// Starts a program and waits for its first row; when that was, and who waits for its end.
fn begun(stage: &Stage, command: &mut Command) -> Result<(Instant, JoinHandle<Result<Instant>>)> {
    let mut child = command.stdout(Stdio::null()).spawn()?;
    let asked = Instant::now();
    while stage.number(
        "aegis",
        "SELECT count(*) FROM (SELECT FROM interaction_logs WHERE occurred_at < now() - interval '1 day' LIMIT 1) old",
    )? == 0
    {
        ensure!(asked.elapsed() < Duration::from_mins(1), "the other program writes nothing");
        pause_ms(2);
    }
    let began = Instant::now();
    let waiting = std::thread::spawn(move || {
        ensure!(child.wait()?.success(), "the other program fails");
        Ok(Instant::now())
    });
    Ok((began, waiting))
}

/// Commits one row at a time and times each; sorted, ms.
async fn commits(url: &str) -> Result<Vec<f64>> {
    const COUNT: u32 = 300;
    let client = connect(url).await?;
    let insert =
        "INSERT INTO interaction_logs (occurred_at, event_id, session_id, user_id) VALUES (now(), gen_random_uuid(), 's', 'u')";
    let insert = client.prepare(insert).await?;
    let mut each = Vec::new();
    for _ in 0..COUNT {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let began = Instant::now();
        client.execute(&insert, &[]).await?;
        each.push(began.elapsed().as_secs_f64() * 1_000.0);
    }
    each.sort_unstable_by(f64::total_cmp);
    Ok(each)
}

fn until_count(stage: &Stage, events: u64) -> Result<()> {
    let began = Instant::now();
    while stage.number("aegis", "SELECT count(*) FROM interaction_logs")?.unsigned_abs() < events {
        ensure!(began.elapsed() < Duration::from_mins(1), "not all events arrive");
        pause_ms(50);
    }
    Ok(())
}

/// Upper bounds, ms, within which half and 99 of 100 of the events between two looks fell.
fn difference(before: &[(f64, f64)], after: &[(f64, f64)]) -> (f64, f64) {
    let counts: Vec<_> = before.iter().zip(after).map(|((le, old), (_, new))| (*le, new - old)).collect();
    let total = counts.last().map_or(0.0, |(_, count)| *count);
    let bound = |share: f64| counts.iter().find(|(_, count)| *count >= share * total).map_or(f64::NAN, |(le, _)| le * 1_000.0);
    (bound(0.5), bound(0.99))
}

/// Sends at an even rate; how many, and in how many seconds.
fn send(port: u16, rate: u32, time: Duration, seed: u64, samples: Option<&Sender<(Key, Instant)>>) -> Result<(u64, f64)> {
    let mut socket = TcpStream::connect(("127.0.0.1", port))?;
    socket.set_nodelay(true)?;
    let mut answers = socket.try_clone()?;
    let drain = std::thread::spawn(move || {
        let mut bytes = [0; 16 * 1024];
        while answers.read(&mut bytes).is_ok_and(|read| read > 0) {}
    });
    let (mut source, mut rng) = (Interactions::new(seed), SmallRng::seed_from_u64(seed));
    let (mut payload, mut out, mut keys) = (Vec::new(), Vec::new(), Vec::new());
    let all = (f64::from(rate) * time.as_secs_f64()) as u64;
    let (began, mut sent) = (Instant::now(), 0_u64);
    let mut sample_at = Duration::ZERO;
    while sent < all {
        let elapsed = began.elapsed();
        let due = ((elapsed.as_secs_f64() * f64::from(rate)) as u64 + 1).min(all);
        if due == sent {
            std::thread::sleep(TICK);
            continue;
        }
        for _ in sent..due {
            payload.clear();
            let key = source.make(now_ms(), &mut payload);
            xadd(STREAM, &payload, &mut out);
            if elapsed >= sample_at {
                keys.push(key);
                sample_at = elapsed + Duration::from_micros(rng.random_range(12_000..28_000));
            }
        }
        sent = due;
        let now = Instant::now();
        socket.write_all(&out)?;
        out.clear();
        for key in keys.drain(..) {
            // Nobody listens any more: its own error says why.
            let _ = samples.map(|samples| samples.send((key, now)));
        }
    }
    let took = began.elapsed().as_secs_f64();
    socket.shutdown(std::net::Shutdown::Write)?;
    let _ = drain.join();
    Ok((sent, took))
}

/// Looks for each sample until it is there.
fn look(url: &str, samples: &Receiver<(Key, Instant)>) -> Result<(Vec<(Instant, f64)>, f64)> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let client = connect(url).await?;
        client.batch_execute("SET plan_cache_mode = force_generic_plan").await?;
        let query = "SELECT FROM interaction_logs WHERE occurred_at = to_timestamp($1::float8) AND event_id = $2";
        let question = client.prepare(query).await?;
        let mut found = Vec::new();
        let mut last = None;
        while let Ok((key, sent)) = samples.recv() {
            let (at, id) = (key.at_ms as f64 / 1_000.0, Uuid::from_bytes(key.id));
            while client.query(&question, &[&at, &id]).await?.is_empty() {
                ensure!(sent.elapsed() < Duration::from_secs(30), "a sampled event does not arrive");
            }
            found.push((sent, sent.elapsed().as_secs_f64() * 1_000.0));
            last = Some((at, id));
        }
        let (at, id) = last.context("no event was sampled")?;
        let mut trips = Vec::new();
        for _ in 0..200 {
            let began = Instant::now();
            client.query(&question, &[&at, &id]).await?;
            trips.push(began.elapsed().as_secs_f64() * 1_000.0);
        }
        trips.sort_unstable_by(f64::total_cmp);
        Ok((found, quantile(&trips, 0.5)))
    })
}
