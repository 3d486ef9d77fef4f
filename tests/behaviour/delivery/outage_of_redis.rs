//! Redis is away, or is there and cannot serve: waited out.

use rustix::process::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::kit::{
    TableLock, aside, at_work, consumers, each_is_one_row, interactions, lines, pending, send_each, settled, told, until_pending,
    until_retries,
};
use crate::support::proxy::{Mode, Proxy};
use crate::support::servers::{OwnRedis, free_port};
use crate::support::space::{Stores, connect_redis};
use crate::support::{LONG, SOON, Space, Worker, send, stores, until};

const LANE: (&str, &str) = ("AEGIS_LANES", "interactions");
const TIMEOUT: (&str, &str) = ("AEGIS_REDIS_TIMEOUT", "1s");

async fn on(test: &str, own: &OwnRedis) -> Space {
    Space::with(test, Stores { redis_url: Some(own.url()), ..Stores::default() }).await
}

fn outages(worker: &Worker) -> (usize, usize) {
    let count = |message| lines(worker, message).iter().filter(|line| told(line, "component") == "redis").count();
    (count("waiting: tries again"), count("waiting is over"))
}

/// Whether a line that says that a lane waits gives this as the reason.
fn says(worker: &Worker, error: &str) -> bool {
    lines(worker, "waiting: tries again").iter().any(|line| told(line, "error").as_str().unwrap_or_default().contains(error))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_stopped_and_started_is_waited_for() {
    let mut own = aside(OwnRedis::new);
    let space = on("redis_stopped", &own).await;
    let worker = Worker::start(&space, &[LANE, TIMEOUT]);
    worker.ready().await;
    let stream = space.stream("interactions");
    send_each(&mut space.redis().await, &stream, &interactions(0..100)).await;
    settled(&space, &["interactions"]).await;
    aside(|| own.stop(Signal::TERM));
    until_retries(&worker, "interactions", "redis", 4.0).await;
    aside(|| own.start());
    send_each(&mut space.redis().await, &stream, &interactions(100..300)).await;
    settled(&space, &["interactions"]).await;
    each_is_one_row(&space.database().await, 0..300).await;
    until("the end to be told", SOON, async || (outages(&worker).1 > 0).then_some(())).await;
    assert_eq!(outages(&worker), (1, 1), "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_in_mid_flight_with_entries_in_hand_loses_nothing() {
    let mut own = aside(|| OwnRedis::with(&["--appendonly", "yes", "--appendfsync", "always"]));
    let space = on("redis_killed", &own).await;
    let _worker = Worker::start(&space, &[LANE, TIMEOUT, ("AEGIS_CLAIM_IDLE", "1h")]);
    let stream = space.stream("interactions");
    let lock = TableLock::take(&space, "interaction_logs").await;
    let mut redis = space.redis().await;
    send_each(&mut redis, &stream, &interactions(0..1_000)).await;
    until_pending(&mut redis, &stream, 1_000).await;
    aside(|| own.kill());
    // The rows are written while nothing can be acknowledged.
    lock.release().await;
    let database = space.database().await;
    until("the rows", LONG, async || (stores::count(&database, "interaction_logs").await == 1_000).then_some(())).await;
    aside(|| own.start());
    settled(&space, &["interactions"]).await;
    each_is_one_row(&database, 0..1_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_loads_its_data_is_waited_for() {
    // Loads each key for 2 ms, and answers meanwhile.
    let slow = ["--appendonly", "yes", "--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024"];
    let mut own = aside(|| OwnRedis::with(&slow));
    let space = on("redis_loading", &own).await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    send_each(&mut redis, &stream, &interactions(0..200)).await;
    let fill = "for i = 1, 2500 do redis.call('SET', 'fill:' .. i, string.rep('x', 1000)) end";
    let _: redis::Value = redis::cmd("EVAL").arg(fill).arg(0).query_async(&mut redis).await.unwrap();
    let _: String = redis::cmd("BGREWRITEAOF").query_async(&mut redis).await.unwrap();
    until("the rewrite", LONG, async || {
        let info: String = redis::cmd("INFO").arg("persistence").query_async(&mut redis).await.ok()?;
        (info.contains("aof_rewrite_in_progress:0") && info.contains("aof_rewrite_scheduled:0")).then_some(())
    })
    .await;
    aside(|| own.stop(Signal::TERM));
    let port = own.port();
    let starting = tokio::task::spawn_blocking(move || {
        own.start();
        own
    });
    until("the server to load", SOON, async || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        stream.write_all(b"PING\r\n").await.ok()?;
        let mut answer = [0; 8];
        stream.read_exact(&mut answer).await.ok()?;
        (&answer == b"-LOADING").then_some(())
    })
    .await;
    let worker = Worker::start(&space, &[LANE, TIMEOUT]);
    until("the worker to be told that it loads", LONG, async || says(&worker, "LOADING").then_some(())).await;
    let _own = starting.await.unwrap();
    settled(&space, &["interactions"]).await;
    each_is_one_row(&space.database().await, 0..200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_became_a_replica_is_waited_for() {
    let own = aside(OwnRedis::new);
    let space = on("redis_readonly", &own).await;
    let worker = Worker::start(&space, &[LANE, TIMEOUT]);
    worker.ready().await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    send_each(&mut redis, &stream, &interactions(0..500)).await;
    settled(&space, &["interactions"]).await;
    send_each(&mut redis, &stream, &interactions(500..1_000)).await;
    // A replica of a master that is not there: it serves what it has, and takes no write.
    let nowhere = free_port();
    let _: String = redis::cmd("REPLICAOF").arg("127.0.0.1").arg(nowhere).query_async(&mut redis).await.unwrap();
    until_retries(&worker, "interactions", "redis", 3.0).await;
    let _: String = redis::cmd("REPLICAOF").arg("NO").arg("ONE").query_async(&mut redis).await.unwrap();
    send_each(&mut redis, &stream, &interactions(1_000..1_200)).await;
    settled(&space, &["interactions"]).await;
    each_is_one_row(&space.database().await, 0..1_200).await;
    // A read that is under way is told in another word than one that comes later.
    assert!(says(&worker, "READONLY") || says(&worker, "UNBLOCKED"), "{}", worker.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_memory_for_dead_letters_keeps_the_entries_until_there_is_some() {
    let own = aside(OwnRedis::new);
    let space = on("redis_full", &own).await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    let bad: Vec<_> = (0..50).map(|n| json!({"session_id": format!("bad{n}")})).collect();
    send_each(&mut redis, &stream, &bad).await;
    send_each(&mut redis, &stream, &interactions(0..50)).await;
    let lock = TableLock::take(&space, "interaction_logs").await;
    let worker = Worker::start(&space, &[LANE, ("AEGIS_CONSUMER", "it"), ("AEGIS_CLAIM_IDLE", "1s")]);
    // Without memory no group could be made.
    until_pending(&mut redis, &stream, 100).await;
    let full = async |redis: &mut redis::aio::MultiplexedConnection, limit: &str| {
        let _: String = redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(limit).query_async(redis).await.unwrap();
    };
    full(&mut redis, "1").await;
    lock.release().await;
    let database = space.database().await;
    until("the rows", LONG, async || (stores::count(&database, "interaction_logs").await == 50).then_some(())).await;
    until("the worker to be told", LONG, async || says(&worker, "OOM").then_some(())).await;
    // Meanwhile they stay this worker's.
    let renewed = async || worker.metrics().await.get("aegis_renewed_total", &[("lane", "interactions")]);
    let before = renewed().await;
    until("what is in hand to be renewed", LONG, async || (renewed().await >= before + 200.0).then_some(())).await;
    assert_eq!(stores::length(&mut redis, &space.dead("interactions")).await, 0);
    assert_eq!(pending(&mut redis, &stream).await.len(), 100);
    full(&mut redis, "0").await;
    settled(&space, &["interactions"]).await;
    assert_eq!(stores::dead_letters(&mut redis, &space.dead("interactions")).await.len(), 50);
    each_is_one_row(&database, 0..50).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_memory_is_left_without_a_trace() {
    let own = aside(OwnRedis::new);
    let space = on("redis_full_left", &own).await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    let mut worker = Worker::start(&space, &[LANE]);
    at_work(&space, &worker, "interactions").await;
    let _: String = redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg("1").query_async(&mut redis).await.unwrap();
    worker.signal(Signal::TERM);
    let status = worker.wait_exit(LONG);
    assert!(status.success(), "{status}");
    assert_eq!(consumers(&mut redis, &stream).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_goes_silent_is_given_up_at_the_deadline() {
    let own = aside(OwnRedis::new);
    let direct = on("redis_silent", &own).await;
    let proxy = Proxy::start(own.port()).await;
    let space = Space { redis_url: format!("redis://127.0.0.1:{}", proxy.port()), ..direct.clone() };
    let worker = Worker::start(&space, &[LANE, TIMEOUT]);
    worker.ready().await;
    proxy.set(Mode::Blackhole);
    let mut redis = connect_redis(&direct.redis_url).await;
    send::many(&mut redis, &direct.stream("interactions"), &send::packed(&interactions(0..300), 3)).await;
    until_retries(&worker, "interactions", "redis", 1.0).await;
    proxy.set(Mode::Pass);
    settled(&direct, &["interactions"]).await;
    each_is_one_row(&direct.database().await, 0..300).await;
    assert!(pending(&mut redis, &direct.stream("interactions")).await.is_empty());
}
