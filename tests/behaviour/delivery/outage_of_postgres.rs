//! PostgreSQL is away, in every way that it can be: waited out, nothing lost, nothing twice, and the log stays short.

use std::time::Duration;

use rustix::process::Signal;

use super::kit::{
    TableLock, aside, at_work, each_is_one_row, interactions, lines, retries, send_each, settled, told, until_retries, waits,
};
use crate::support::proxy::{Direction, Mode, Proxy};
use crate::support::servers::{self, OwnPostgres};
use crate::support::space::{Stores, connect_database};
use crate::support::{LONG, SOON, Space, Worker, until};

const LANE: (&str, &str) = ("AEGIS_LANES", "interactions");

/// A space whose database is behind a proxy.
async fn behind_proxy(test: &str) -> (Space, Proxy, Space) {
    let direct = Space::new(test).await;
    let proxy = Proxy::start(servers::postgres().port()).await;
    let database_url = direct.database_url.replace(&format!(":{}/", servers::postgres().port()), &format!(":{}/", proxy.port()));
    (Space { database_url, ..direct.clone() }, proxy, direct)
}

/// One outage is one line when it starts and one when it ends, however often was tried.
async fn told_once(worker: &Worker) {
    until("the end of the outage to be told", SOON, async || (waits(worker, "interactions").1 > 0).then_some(())).await;
    assert_eq!(waits(worker, "interactions"), (1, 1), "{}", worker.log());
    let start = &lines(worker, "waiting: tries again")[0];
    assert_eq!(told(start, "component"), "database");
    assert!(!told(start, "error").as_str().unwrap_or_default().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_stopped_for_a_while_is_waited_for() {
    let mut own = aside(OwnPostgres::new);
    let space = Space::with("pg_stopped", Stores { database_url: Some(own.url("aegis")), ..Stores::default() }).await;
    let worker = Worker::start(&space, &[LANE]);
    at_work(&space, &worker, "interactions").await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    send_each(&mut redis, &stream, &interactions(0..50)).await;
    settled(&space, &["interactions"]).await;
    aside(|| own.stop(Signal::INT));
    send_each(&mut redis, &stream, &interactions(50..500)).await;
    until_retries(&worker, "interactions", "database", 5.0).await;
    aside(|| own.start());
    settled(&space, &["interactions"]).await;
    each_is_one_row(&space.database().await, 0..500).await;
    told_once(&worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn immediate_restarts_under_load_lose_nothing() {
    let mut own = aside(OwnPostgres::new);
    let space = Space::with("pg_immediate", Stores { database_url: Some(own.url("aegis")), ..Stores::default() }).await;
    let worker = Worker::start(&space, &[LANE, ("AEGIS_BATCH_ROWS", "200")]);
    at_work(&space, &worker, "interactions").await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    for round in 0..3 {
        send_each(&mut redis, &stream, &interactions(round * 5_000..(round + 1) * 5_000)).await;
        aside(|| own.stop(Signal::QUIT));
        aside(|| own.start());
    }
    settled(&space, &["interactions"]).await;
    each_is_one_row(&space.database().await, 0..15_000).await;
    assert!(retries(&worker, "interactions", "database").await > 0.0);
}

#[tokio::test]
async fn refused_connections_are_waited_out() {
    let (space, proxy, direct) = behind_proxy("pg_refused").await;
    let worker = Worker::start(&space, &[LANE]);
    at_work(&space, &worker, "interactions").await;
    proxy.set(Mode::Refuse);
    send_each(&mut space.redis().await, &space.stream("interactions"), &interactions(0..300)).await;
    until_retries(&worker, "interactions", "database", 5.0).await;
    proxy.set(Mode::Pass);
    settled(&space, &["interactions"]).await;
    each_is_one_row(&direct.database().await, 0..300).await;
    told_once(&worker).await;
}

#[tokio::test]
async fn connections_that_are_reset_in_mid_copy_leave_no_row_twice() {
    let (space, proxy, direct) = behind_proxy("pg_reset").await;
    let worker = Worker::start(&space, &[LANE]);
    at_work(&space, &worker, "interactions").await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    for round in 0..8_usize {
        // A thousand rows are some 100 kB.
        proxy.set(Mode::CutAfter(Direction::ToServer, 300 + 12_000 * round as u64));
        send_each(&mut redis, &stream, &interactions(round * 1_000..(round + 1) * 1_000)).await;
        settled(&space, &["interactions"]).await;
    }
    assert!(proxy.cuts() >= 5, "{} cuts", proxy.cuts());
    assert!(retries(&worker, "interactions", "database").await >= 5.0);
    each_is_one_row(&direct.database().await, 0..8_000).await;
}

#[tokio::test]
async fn a_server_that_answers_no_more_is_left_at_the_deadline() {
    let (space, proxy, direct) = behind_proxy("pg_silent").await;
    let settings = [LANE, ("AEGIS_DATABASE_WRITE_TIMEOUT", "500ms"), ("AEGIS_DATABASE_CONNECT_TIMEOUT", "500ms")];
    let worker = Worker::start(&space, &settings);
    at_work(&space, &worker, "interactions").await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    send_each(&mut redis, &stream, &interactions(0..10)).await;
    settled(&space, &["interactions"]).await;
    proxy.set(Mode::Blackhole);
    send_each(&mut redis, &stream, &interactions(10..400)).await;
    until_retries(&worker, "interactions", "database", 2.0).await;
    proxy.set(Mode::Pass);
    settled(&space, &["interactions"]).await;
    each_is_one_row(&direct.database().await, 0..400).await;
    told_once(&worker).await;
}

#[tokio::test]
async fn a_copy_that_waits_for_a_lock_is_ended_at_the_deadline_and_tried_again() {
    let space = Space::new("pg_locked").await;
    let worker = Worker::start(&space, &[LANE, ("AEGIS_DATABASE_WRITE_TIMEOUT", "500ms")]);
    at_work(&space, &worker, "interactions").await;
    let lock = TableLock::take(&space, "interaction_logs").await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    send_each(&mut redis, &stream, &interactions(0..100)).await;
    until_retries(&worker, "interactions", "database", 3.0).await;
    // The server was asked to end what nobody waits for any more: backends do not pile up behind the lock.
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
    let database = space.administrator().await;
    assert!(database.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) <= 3);
    lock.release().await;
    settled(&space, &["interactions"]).await;
    each_is_one_row(&database, 0..100).await;
    told_once(&worker).await;
}

#[tokio::test]
async fn a_backend_that_is_terminated_in_mid_copy_is_replaced() {
    let space = Space::new("pg_terminated").await;
    let worker = Worker::start(&space, &[LANE]);
    at_work(&space, &worker, "interactions").await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    let database = space.administrator().await;
    for round in 0..4_usize {
        let lock = TableLock::take(&space, "interaction_logs").await;
        send_each(&mut redis, &stream, &interactions(round * 500..(round + 1) * 500)).await;
        let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                         WHERE state = 'active' AND query LIKE 'COPY %' AND datname = current_database()";
        until("a COPY to be under way", SOON, async || {
            (!database.query(terminate, &[]).await.expect("pg_terminate_backend").is_empty()).then_some(())
        })
        .await;
        lock.release().await;
        settled(&space, &["interactions"]).await;
    }
    each_is_one_row(&database, 0..2_000).await;
    assert!(retries(&worker, "interactions", "database").await >= 4.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_connections_are_waited_out() {
    let own = aside(|| OwnPostgres::with(&["max_connections=20"]));
    let space = Space::with("pg_full", Stores { database_url: Some(own.url("aegis")), ..Stores::default() }).await;
    let worker = Worker::start(&space, &[LANE]);
    at_work(&space, &worker, "interactions").await;
    let database = space.administrator().await;
    // All the others are taken, and the worker's own are ended.
    let mut crowd = Vec::new();
    until("the server to be full and the worker without a connection", LONG, async || {
        if let Ok((client, connection)) = tokio_postgres::connect(&own.url("aegis"), tokio_postgres::NoTls).await {
            tokio::spawn(connection);
            crowd.push(client);
            return None;
        }
        let worker = "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE application_name = 'aegis-ingest'";
        database.query(worker, &[]).await.expect("pg_terminate_backend").is_empty().then_some(())
    })
    .await;
    send_each(&mut space.redis().await, &space.stream("interactions"), &interactions(0..200)).await;
    until_retries(&worker, "interactions", "database", 3.0).await;
    drop(crowd);
    settled(&space, &["interactions"]).await;
    each_is_one_row(&database, 0..200).await;
    let start = &lines(&worker, "waiting: tries again")[0];
    assert!(told(start, "error").as_str().unwrap_or_default().contains("53300"), "{start}");
}

#[tokio::test]
async fn a_table_that_vanishes_in_mid_flight_is_waited_for() {
    let space = Space::new("pg_no_table").await;
    let worker = Worker::start(&space, &[LANE]);
    at_work(&space, &worker, "interactions").await;
    let database = space.administrator().await;
    database.batch_execute("ALTER TABLE interaction_logs RENAME TO elsewhere").await.unwrap();
    send_each(&mut space.redis().await, &space.stream("interactions"), &interactions(0..100)).await;
    until_retries(&worker, "interactions", "database", 3.0).await;
    database.batch_execute("ALTER TABLE elsewhere RENAME TO interaction_logs").await.unwrap();
    settled(&space, &["interactions"]).await;
    each_is_one_row(&database, 0..100).await;
    told_once(&worker).await;
    assert!(told(&lines(&worker, "waiting: tries again")[0], "error").as_str().unwrap_or_default().contains("schema"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_changes_in_mid_flight_is_waited_for() {
    let own = aside(OwnPostgres::new);
    let space = Space::with("pg_password", Stores { database_url: Some(own.url("aegis")), ..Stores::default() }).await;
    let mut worker = Worker::start(&space, &[LANE]);
    at_work(&space, &worker, "interactions").await;
    let database = space.administrator().await;
    database.batch_execute("ALTER ROLE aegis_worker PASSWORD 'another'").await.unwrap();
    let worker_only = "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE application_name = 'aegis-ingest'";
    database.query(worker_only, &[]).await.unwrap();
    send_each(&mut space.redis().await, &space.stream("interactions"), &interactions(0..100)).await;
    until_retries(&worker, "interactions", "database", 3.0).await;
    assert!(worker.is_running());
    database.batch_execute("ALTER ROLE aegis_worker PASSWORD 'least-secret'").await.unwrap();
    settled(&space, &["interactions"]).await;
    each_is_one_row(&connect_database(&own.url("aegis")).await, 0..100).await;
    told_once(&worker).await;
}

#[tokio::test]
async fn the_server_that_comes_back_is_not_stormed() {
    let (space, proxy, direct) = behind_proxy("pg_pauses").await;
    let worker = Worker::start(&space, &[LANE, ("AEGIS_WRITERS", "1")]);
    at_work(&space, &worker, "interactions").await;
    proxy.set(Mode::Refuse);
    send_each(&mut space.redis().await, &space.stream("interactions"), &interactions(0..10)).await;
    let began = std::time::Instant::now();
    until_retries(&worker, "interactions", "database", 8.0).await;
    // 50 ms doubled seven times, each shortened by up to half: eight tries take at least 3 s.
    assert!(began.elapsed() > Duration::from_secs(3), "{:?}", began.elapsed());
    proxy.set(Mode::Pass);
    settled(&space, &["interactions"]).await;
    each_is_one_row(&direct.database().await, 0..10).await;
}
