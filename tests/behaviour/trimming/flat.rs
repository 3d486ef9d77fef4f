//! Redis's memory under load that does not end. `make flat`: ten minutes at a constant rate, judged by the slope; the short form
//! sends when there is room and needs no clock.

use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use serde_json::json;

use crate::support::servers::OwnRedis;
use crate::support::space::Stores;
use crate::support::{LONG, Space, Worker, send, stores, until, until_equal};

/// Entries that may stand in the stream when the short form sends more. Twice as many take just under 4 MiB with each of them
/// pending, which costs twice what the entry does.
const ROOM: u64 = 2_400;
const PARTS: u64 = 14;

/// Several times as many entries as are ever allowed to stand in the stream: without trimming there is no room after the first.
#[tokio::test]
async fn a_stream_holds_what_is_not_settled_and_little_more() {
    let space = Space::new("flat").await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    let worker = Worker::start(&space, &[("AEGIS_LANES", "interactions"), ("AEGIS_RETAIN", "0s")]);
    worker.ready().await;
    let mut bytes_max = 0;
    for part in 0..PARTS {
        until("room in the stream", LONG, async || (stores::length(&mut redis, &stream).await < ROOM).then_some(())).await;
        let event = |n: u64| json!({ "session_id": format!("s{n}"), "user_id": "u", "transcript": "x".repeat(200) });
        let events: Vec<_> = (part * ROOM..(part + 1) * ROOM).map(event).collect();
        send::many(&mut redis, &stream, &send::packed(&events, 1)).await;
        let bytes: u64 = redis::cmd("MEMORY").arg("USAGE").arg(&stream).query_async(&mut redis).await.unwrap_or_default();
        bytes_max = bytes_max.max(bytes);
    }
    worker.settled(&space, &["interactions"], LONG).await;
    until_equal("the stream to be empty", LONG, 0, async || stores::length(&mut redis, &stream).await).await;
    assert!(bytes_max < 4 << 20, "the stream took {bytes_max} bytes");
    assert_eq!(stores::count(&space.database().await, "interaction_logs").await, (PARTS * ROOM) as i64);
}

/// Seconds of load before the first sample: what `AEGIS_RETAIN` keeps is there by then, and caches are warm.
const WARM: Duration = Duration::from_secs(60);
/// Growth over the time looked at that is none: 2 % of the mean, and a mebibyte of the allocator's own.
const GROWTH_MAX: f64 = 0.02;
const GROWTH_MAX_BYTES: f64 = 1_048_576.0;

/// One look: seconds since the load began, and bytes.
type Sample = (f64, f64);

/// Growth from the first sample to the last by the line of least squares, and the mean.
fn growth(samples: &[Sample]) -> (f64, f64) {
    let count = samples.len() as f64;
    let mean = |of: fn(&Sample) -> f64| samples.iter().map(of).sum::<f64>() / count;
    let (at, bytes) = (mean(|it| it.0), mean(|it| it.1));
    let slope = samples.iter().map(|it| (it.0 - at) * (it.1 - bytes)).sum::<f64>()
        / samples.iter().map(|it| (it.0 - at).powi(2)).sum::<f64>();
    let time = samples.last().map_or(0.0, |it| it.0) - samples.first().map_or(0.0, |it| it.0);
    (slope * time, bytes)
}

async fn used_memory(redis: &mut MultiplexedConnection) -> f64 {
    let info: String = redis::cmd("INFO").arg("memory").query_async(redis).await.expect("INFO");
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).expect("used_memory");
    used.trim().parse().expect("a number")
}

/// 2,400 events a second, one an entry, for `AEGIS_FLAT_SECONDS` (`make flat`: 600). Without that setting: the arithmetic alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_flat_under_constant_load() {
    let line = |slope: f64| (0..50).map(|n| (f64::from(n), 100.0 + slope * f64::from(n))).collect::<Vec<_>>();
    assert!(growth(&line(0.0)).0.abs() < 1e-9 && (growth(&line(2.0)).0 - 98.0).abs() < 1e-9);
    let Some(seconds) = std::env::var("AEGIS_FLAT_SECONDS").ok().and_then(|text| text.parse().ok()) else { return };
    let length = Duration::from_secs(seconds);
    let own = tokio::task::block_in_place(OwnRedis::new);
    let space = Space::with("memory_is_flat", Stores { redis_url: Some(own.url()), ..Stores::default() }).await;
    let worker = Worker::start(&space, &[("AEGIS_LANES", "interactions,sessions"), ("AEGIS_RETAIN", "20s")]);
    worker.ready().await;
    let mut redis = space.redis().await;
    let (began, mut sent) = (Instant::now(), 0_u64);
    let (mut memory, mut rss): (Vec<Sample>, Vec<Sample>) = (Vec::new(), Vec::new());
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    let mut sample_at = WARM;
    while began.elapsed() < length {
        tick.tick().await;
        let event = |n: u64| json!({ "session_id": format!("s{}", n % 500), "user_id": "u", "transcript": "x".repeat(200) });
        let events: Vec<_> = (sent..sent + 100).map(event).collect();
        send::many(&mut redis, &space.stream("interactions"), &send::packed(&events, 1)).await;
        let update =
            |n: u64| json!({ "session_id": format!("s{}", n % 500), "user_id": "u", "status": "updated", "state": { "n": n } });
        let updates: Vec<_> = (sent..sent + 20).map(update).collect();
        send::many(&mut redis, &space.stream("sessions"), &send::packed(&updates, 1)).await;
        sent += 100;
        if began.elapsed() >= sample_at {
            let at = began.elapsed().as_secs_f64();
            memory.push((at, used_memory(&mut redis).await));
            rss.push((at, worker.rss() as f64));
            if memory.len() % 12 == 1 {
                let standing = stores::length(&mut redis, &space.stream("interactions")).await;
                say(&format!(
                    "  {at:5.0} s: Redis {:.1} MiB, worker {:.1} MiB, {standing} interactions of {sent} stand in the stream",
                    memory.last().map_or(0.0, |it| it.1) / 1_048_576.0,
                    rss.last().map_or(0.0, |it| it.1) / 1_048_576.0,
                ));
            }
            sample_at += Duration::from_secs(5);
        }
    }
    for (what, samples) in [("Redis's used_memory", memory), ("the worker's resident memory", rss)] {
        let (growth, mean) = growth(&samples);
        let words = format!(
            "{what}: mean {:.2} MiB, {:+.3} MiB over {} samples ({:+.2} %)",
            mean / 1_048_576.0,
            growth / 1_048_576.0,
            samples.len(),
            100.0 * growth / mean
        );
        say(&words);
        assert!(growth < GROWTH_MAX_BYTES.max(GROWTH_MAX * mean), "{words}");
    }
    let trimmed = worker.metrics().await.get("aegis_entries_trimmed_total", &[("lane", "interactions")]);
    say(&format!("{sent} interactions sent, {trimmed} trimmed"));
}

/// Straight to the terminal: cargo keeps back what a test prints until it fails.
fn say(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{text}");
}
