//! A worker that is asked to leave finishes what is in hand, and leaves the rest to others at once.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::kit::{TableLock, consumers, each_is_one_row, interactions, lines, pending, send_each, settled, until_pending};
use crate::support::{LONG, SOON, Space, Worker, until};

const LANE: (&str, &str) = ("AEGIS_LANES", "interactions");

async fn noticed(worker: &Worker) {
    until("the worker to leave", SOON, async || (!lines(worker, "leaving").is_empty()).then_some(())).await;
}

#[tokio::test]
async fn what_is_in_hand_is_written_and_acknowledged_and_the_consumer_removed() {
    for signal in [Signal::TERM, Signal::INT] {
        let space = Space::new("leaving").await;
        let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
        let mut worker = Worker::start(&space, &[LANE]);
        worker.ready().await;
        let lock = TableLock::take(&space, "interaction_logs").await;
        send_each(&mut redis, &stream, &interactions(0..700)).await;
        until_pending(&mut redis, &stream, 700).await;
        worker.signal(signal);
        noticed(&worker).await;
        send_each(&mut redis, &stream, &interactions(700..800)).await;
        lock.release().await;
        let status = worker.wait_exit(Duration::from_secs(30));
        assert!(status.success(), "{status}");
        assert!(pending(&mut redis, &stream).await.is_empty());
        assert!(consumers(&mut redis, &stream).await.is_empty());
        // Either it was read before the reading stopped, and then it is written, or it was not read at all.
        let rows = crate::support::stores::count(&space.database().await, "interaction_logs").await;
        assert!((700..=800).contains(&rows), "{rows}");
        let _other = Worker::start(&space, &[LANE]);
        settled(&space, &["interactions"]).await;
        each_is_one_row(&space.database().await, 0..800).await;
    }
}

#[tokio::test]
async fn what_cannot_be_written_in_time_is_left_to_others_at_once() {
    const IDLE: (&str, &str) = ("AEGIS_CLAIM_IDLE", "60s");
    let space = Space::new("left_to_others").await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    let lock = TableLock::take(&space, "interaction_logs").await;
    let mut worker = Worker::start(&space, &[LANE, IDLE, ("AEGIS_DRAIN_TIMEOUT", "1s"), ("AEGIS_CONSUMER", "leaves")]);
    worker.ready().await;
    // More than is taken in hand at once.
    send_each(&mut redis, &stream, &interactions(0..40_000)).await;
    until_pending(&mut redis, &stream, 5_000).await;
    worker.signal(Signal::TERM);
    let asked = Instant::now();
    let status = worker.wait_exit(Duration::from_secs(30));
    assert!(status.success(), "{status}");
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    assert!(!pending(&mut redis, &stream).await.is_empty());
    assert!(!lines(&worker, "left entries for other workers").is_empty(), "{}", worker.log());
    lock.release().await;

    let heir = Worker::start(&space, &[LANE, IDLE]);
    let began = Instant::now();
    until("the entries to be taken over and written", Duration::from_secs(45), async || {
        pending(&mut redis, &stream).await.is_empty().then_some(())
    })
    .await;
    settled(&space, &["interactions"]).await;
    assert!(began.elapsed() < Duration::from_secs(45), "well before the claim idle time");
    each_is_one_row(&space.database().await, 0..40_000).await;
    assert!(heir.metrics().await.get("aegis_entries_reclaimed_total", &[("lane", "interactions")]) >= 5_000.0);
}

#[tokio::test]
async fn a_second_signal_does_not_wait() {
    let space = Space::new("second_signal").await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    let lock = TableLock::take(&space, "interaction_logs").await;
    let mut worker = Worker::start(&space, &[LANE, ("AEGIS_DRAIN_TIMEOUT", "10m"), ("AEGIS_CLAIM_IDLE", "1s")]);
    worker.ready().await;
    send_each(&mut redis, &stream, &interactions(0..100)).await;
    until_pending(&mut redis, &stream, 100).await;
    worker.signal(Signal::TERM);
    noticed(&worker).await;
    worker.signal(Signal::TERM);
    let status = worker.wait_exit(Duration::from_secs(10));
    assert_eq!(status.code(), Some(130));
    lock.release().await;
    let _heir = Worker::start(&space, &[LANE, ("AEGIS_CLAIM_IDLE", "1s")]);
    settled(&space, &["interactions"]).await;
    each_is_one_row(&space.database().await, 0..100).await;
}

#[tokio::test]
async fn an_idle_worker_leaves_within_the_blocking_read() {
    let space = Space::new("idle_leave").await;
    let mut worker = Worker::start(&space, &[]);
    worker.ready().await;
    worker.signal(Signal::TERM);
    let asked = Instant::now();
    assert!(worker.wait_exit(Duration::from_secs(20)).success());
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    for lane in ["interactions", "sessions", "embeddings"] {
        assert!(consumers(&mut *space.redis().await, &space.stream(lane)).await.is_empty(), "{lane}");
    }
}

#[tokio::test]
async fn a_lane_that_ends_with_a_bug_brings_the_process_down_with_a_status() {
    let space = Space::new("bug_status").await;
    let database = space.administrator().await;
    // A condition that no table of errors knows.
    database
        .batch_execute(
            "CREATE FUNCTION odd() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''odd'' USING ERRCODE = ''QX123''; END';
             CREATE TRIGGER odd BEFORE INSERT ON interaction_logs FOR EACH ROW EXECUTE FUNCTION odd()",
        )
        .await
        .unwrap();
    let mut worker = Worker::start(&space, &[]);
    worker.ready().await;
    send_each(&mut space.redis().await, &space.stream("interactions"), &interactions(0..1)).await;
    let status = until("the end of the process", LONG, async || (!worker.is_running()).then_some(())).await;
    let () = status;
    assert_eq!(worker.wait_exit(Duration::from_secs(1)).code(), Some(70), "{}", worker.log());
    // The entry is still there for a program that knows better.
    assert_eq!(pending(&mut *space.redis().await, &space.stream("interactions")).await.len(), 1);
}
