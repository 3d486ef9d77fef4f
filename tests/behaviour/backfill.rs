//! Old events beside live ones: a backfill never has more entries before the workers than it was allowed, and all of it arrives.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use redis::aio::MultiplexedConnection;
use serde_json::json;
use tempfile::TempDir;

use crate::support::proxy::{Mode, Proxy};
use crate::support::space::Stores;
use crate::support::worker::command_in;
use crate::support::{LONG, SOON, Space, Worker, send, servers, stores, until, until_equal};

/// Interactions of 40 days, one a line.
fn timeline(directory: &TempDir, lines: u32) {
    let mut text = String::new();
    for seq in 0..lines {
        let offset_ms = u64::from(seq) * 40 * 86_400_000 / u64::from(lines);
        let line = json!({
            "seq": seq, "kind": "interaction", "session_id": format!("s{}", seq % 97), "user_id": "u", "offset_ms": offset_ms, "turn": 0,
            "transcript": "turn the lights on", "intent": "light.on", "latency_ms": 180.5,
        });
        let _ = writeln!(text, "{line}");
    }
    std::fs::write(directory.path().join("old.jsonl"), text).unwrap();
}

/// `produce` of the timeline in a thread of its own.
fn produce(space: &Space, lines: u32, lag_max: u32) -> std::thread::JoinHandle<std::process::Output> {
    let settings = space.settings_of("operator");
    std::thread::spawn(move || {
        let directory = TempDir::new().unwrap();
        timeline(&directory, lines);
        let settings: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let start = days_ago(60);
        let lag_max = lag_max.to_string();
        let arguments =
            ["produce", "--json", "--timeline", "old.jsonl", "--start", &start, "--max-lag", &lag_max, "--pipeline", "100"];
        command_in(&directory, &arguments, &settings)
    })
}

fn days_ago(days: i64) -> String {
    crate::support::fold::micros_text((send::now_ms() - days * 86_400_000) * 1_000)
}

async fn unsettled(redis: &mut MultiplexedConnection, stream: &str) -> i64 {
    match stores::lag_and_pending(redis, stream, "aegis").await {
        Some((lag, pending)) => lag.max(0) + pending,
        None => stores::length(redis, stream).await as i64,
    }
}

/// With nobody reading, exactly the bound stands in the stream; with a worker, all of it gets through.
#[tokio::test]
async fn a_backfill_waits_for_its_workers() {
    let space = Space::new("backfill_waits").await;
    let mut redis = space.redis().await;
    let stream = space.stream("interactions");
    let producing = produce(&space, 1_000, 150);
    until_equal("the bound to stand in the stream", SOON, 150, async || stores::length(&mut redis, &stream).await).await;
    let mut looks = 0;
    until("it to stay there for many looks of the producer's own", SOON, async || {
        assert!(!producing.is_finished(), "it ended with nobody reading");
        assert_eq!(stores::length(&mut redis, &stream).await, 150);
        looks += 1;
        (looks >= 100).then_some(())
    })
    .await;
    let worker = Worker::start(&space, &[("AEGIS_LANES", "interactions")]);
    until("the end of the backfill", LONG, async || producing.is_finished().then_some(())).await;
    let output = producing.join().unwrap();
    assert!(output.status.success(), "{output:?}");
    worker.settled(&space, &["interactions"], LONG).await;
    let database = space.database().await;
    assert_eq!(stores::count(&database, "interaction_logs").await, 1_000);
}

/// Beside live traffic and a slow database: never more before the workers than the bound and what live producers wrote, while
/// far more is there to be written; each old event is one row, and so is each live one.
#[tokio::test]
async fn a_backfill_stays_below_its_bound_beside_live_traffic() {
    const LINES: u32 = 5_000;
    const BOUND: i64 = 400;
    let own = Space::new("backfill_beside").await;
    let port = servers::postgres().port();
    let proxy = Proxy::start(port).await;
    let database_url = Some(own.database_url.replace(&format!(":{port}/"), &format!(":{}/", proxy.port())));
    let space = Space::with("backfill_slow", Stores { database_url, ..Stores::default() }).await;
    let worker = Worker::start(&space, &[("AEGIS_LANES", "interactions")]);
    worker.ready().await;
    // The stream would fill up far beyond the bound if nothing held the producer back.
    proxy.set(Mode::Delay(std::time::Duration::from_millis(5)));
    let stream = space.stream("interactions");
    let (over, live, most) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(0)), Arc::new(AtomicI64::new(0)));
    let sending = {
        let (over, live, space, stream) = (Arc::clone(&over), Arc::clone(&live), space.clone(), stream.clone());
        tokio::spawn(async move {
            let mut redis = space.redis().await;
            while !over.load(Ordering::Acquire) {
                live.fetch_add(1, Ordering::AcqRel);
                send::json(&mut redis, &stream, &json!({ "session_id": "live", "user_id": "u" })).await;
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
    };
    let producing = produce(&space, LINES, BOUND as u32);
    let mut redis = space.redis().await;
    until("the end of the backfill", LONG, async || {
        // Live entries between the producer's look and this one: all that were sent since the last look is more than that.
        let before = live.load(Ordering::Acquire);
        let found = unsettled(&mut redis, &stream).await;
        most.fetch_max(found, Ordering::AcqRel);
        let slack = 200 + live.load(Ordering::Acquire) - before;
        assert!(found <= BOUND + slack, "{found} entries before the workers, bound {BOUND}");
        producing.is_finished().then_some(())
    })
    .await;
    over.store(true, Ordering::Release);
    sending.await.unwrap();
    let output = producing.join().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(most.load(Ordering::Acquire) > BOUND / 2, "it was never near its bound: {most:?}");
    proxy.set(Mode::Pass);
    worker.settled(&space, &["interactions"], LONG).await;
    let database = space.database().await;
    let rows = "SELECT count(*) FILTER (WHERE session_id = 'live') || ' live, ' || count(*) FILTER (WHERE session_id <> 'live') || ' old, '
                || count(DISTINCT (occurred_at, event_id)) || ' each once' FROM interaction_logs";
    let found: String = database.query_one(rows, &[]).await.unwrap().get(0);
    let live = live.load(Ordering::Acquire);
    assert_eq!(found, format!("{live} live, {LINES} old, {} each once", live + i64::from(LINES)));
    // Forty days are forty chunks, or one more where they begin within a day.
    let chunks = "SELECT count(*) FROM timescaledb_information.chunks WHERE hypertable_name = 'interaction_logs'";
    assert!(database.query_one(chunks, &[]).await.unwrap().get::<_, i64>(0) >= 41);
}
