//! What the tests of delivery share.

use std::collections::HashMap;
use std::future::Future;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use serde_json::{Value as Json, json};
use tokio_postgres::Client;

use crate::support::rights::Produces;
use crate::support::{LONG, Space, Worker, send, stores, until};

/// Interactions with ids of their own, numbered in `session_id`.
pub fn interactions(numbers: std::ops::Range<usize>) -> Vec<Json> {
    let event = |n: usize| json!({"event_id": uuid::Uuid::from_u128(rand::random()).to_string(), "occurred_at": send::now_ms() - 1000, "session_id": format!("s{n}"), "user_id": "u", "intent": "x"});
    numbers.map(event).collect()
}

/// Sends events, one an entry; returns the entries' ids.
pub async fn send_each(redis: &mut impl Produces, stream: &str, events: &[Json]) -> Vec<String> {
    send::many(redis, stream, &send::packed(events, 1)).await
}

/// Waits until everything in the streams of these lanes is read and settled.
pub async fn settled(space: &Space, lanes: &[&str]) {
    let mut redis = space.redis().await;
    for lane in lanes {
        let stream = space.stream(lane);
        crate::support::wait::until_equal(&format!("{stream} to be settled"), LONG, Some((0, 0)), async || {
            stores::lag_and_pending(&mut redis, &stream, "aegis").await
        })
        .await;
    }
}

/// Asserts that `interaction_logs` holds the events numbered so, each once.
pub async fn each_is_one_row(database: &Client, numbers: std::ops::Range<usize>) {
    let mut wanted: Vec<_> = numbers.map(|n| format!("s{n}")).collect();
    let mut found: Vec<_> = stores::interactions(database).await.into_iter().map(|row| row.session_id).collect();
    wanted.sort_unstable();
    found.sort_unstable();
    let missing: Vec<_> = wanted.iter().filter(|it| found.binary_search(it).is_err()).take(5).collect();
    assert!(found == wanted, "{} rows are wanted and {} found; missing, for example: {missing:?}", wanted.len(), found.len());
}

/// One entry that was read and is not settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    pub id: String,
    pub consumer: String,
    pub idle_ms: u64,
    pub deliveries: u64,
}

/// All entries that were read and are not settled.
pub async fn pending(redis: &mut MultiplexedConnection, stream: &str) -> Vec<Pending> {
    let mut command = redis::cmd("XPENDING");
    command.arg(stream).arg("aegis").arg("-").arg("+").arg(1_000_000);
    let rows: Vec<(String, String, u64, u64)> = command.query_async(redis).await.unwrap_or_default();
    rows.into_iter().map(|(id, consumer, idle_ms, deliveries)| Pending { id, consumer, idle_ms, deliveries }).collect()
}

/// Names of the group's consumers.
pub async fn consumers(redis: &mut MultiplexedConnection, stream: &str) -> Vec<String> {
    let mut command = redis::cmd("XINFO");
    command.arg("CONSUMERS").arg(stream).arg("aegis");
    let rows: Vec<HashMap<String, redis::Value>> = command.query_async(redis).await.unwrap_or_default();
    let mut names: Vec<String> = rows.iter().map(|row| redis::from_redis_value(row["name"].clone()).expect("a name")).collect();
    names.sort_unstable();
    names
}

/// Waits until a worker is ready and reads a lane: the components answer before the schema was looked at.
pub async fn at_work(space: &Space, worker: &Worker, lane: &str) {
    worker.ready().await;
    let mut redis = space.redis().await;
    until("the worker to read", LONG, async || (!consumers(&mut redis, &space.stream(lane)).await.is_empty()).then_some(()))
        .await;
}

/// Waits until at least so many entries are pending.
pub async fn until_pending(redis: &mut MultiplexedConnection, stream: &str, least: i64) {
    until(&format!("{least} pending entries in {stream}"), LONG, async || {
        (stores::pending(redis, stream, "aegis").await >= least).then_some(())
    })
    .await;
}

/// Holds a lock on a table, so that no write to it gets through until it is released.
pub struct TableLock(Client);

impl TableLock {
    pub async fn take(space: &Space, table: &str) -> Self {
        let client = space.administrator().await;
        client.batch_execute(&format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")).await.expect("the lock");
        Self(client)
    }

    pub async fn release(self) {
        self.0.batch_execute("ROLLBACK").await.expect("ROLLBACK");
    }
}

/// Looks again and again for that long; `look` panics when it does not like what it sees.
pub async fn throughout<F: Future<Output = ()>>(time: Duration, mut look: impl FnMut() -> F) {
    let began = Instant::now();
    while began.elapsed() < time {
        look().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Log lines of that message (its beginning), as JSON.
pub fn lines(worker: &Worker, message: &str) -> Vec<Json> {
    let text = worker.log();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Json>(line).ok());
    lines.filter(|line| said(line).starts_with(message)).collect()
}

fn said(line: &Json) -> &str {
    line.get("message").or_else(|| line.pointer("/fields/message")).and_then(Json::as_str).unwrap_or_default()
}

/// A field of a log line.
pub fn told<'a>(line: &'a Json, name: &str) -> &'a Json {
    line.get(name).or_else(|| line.pointer(&format!("/fields/{name}"))).unwrap_or(&Json::Null)
}

/// Lines that say that a lane waits, and those that say that its waiting is over.
pub fn waits(worker: &Worker, lane: &str) -> (usize, usize) {
    let count = |message| lines(worker, message).iter().filter(|line| told(line, "lane") == lane).count();
    (count("waiting: tries again"), count("waiting is over"))
}

/// Tries of a lane that failed since a component was away.
pub async fn retries(worker: &Worker, lane: &str, component: &str) -> f64 {
    worker.metrics().await.get("aegis_retries_total", &[("lane", lane), ("component", component)])
}

/// Waits until a lane has tried in vain at least so often.
pub async fn until_retries(worker: &Worker, lane: &str, component: &str, least: f64) {
    until(&format!("{lane} to try {component} again"), LONG, async || {
        (retries(worker, lane, component).await >= least).then_some(())
    })
    .await;
}

/// Runs what blocks beside the test's own tasks.
pub fn aside<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}
