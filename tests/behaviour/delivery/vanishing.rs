//! Streams, groups and entries that vanish: the work goes on, and what is lost is told.

use redis::aio::MultiplexedConnection;

use super::kit::{TableLock, aside, each_is_one_row, interactions, lines, send_each, settled, told, until_pending};
use crate::support::servers::OwnRedis;
use crate::support::space::Stores;
use crate::support::{LONG, SOON, Space, Worker, until};

const LANE: (&str, &str) = ("AEGIS_LANES", "interactions");

async fn do_to(redis: &mut MultiplexedConnection, words: &[&str]) {
    let mut command = redis::cmd(words[0]);
    for word in &words[1..] {
        command.arg(word);
    }
    let _: redis::Value = command.query_async(redis).await.unwrap_or_else(|error| panic!("{words:?}: {error}"));
}

async fn group_is_made_again(worker: &Worker) {
    until("the group to be made again", LONG, async || {
        (worker.metrics().await.get("aegis_groups_recreated_total", &[("lane", "interactions")]) == 1.0).then_some(())
    })
    .await;
    assert_eq!(lines(worker, "the consumer group was gone").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_flushall_the_work_goes_on() {
    let own = aside(OwnRedis::new);
    let space = Space::with("flushall", Stores { redis_url: Some(own.url()), ..Stores::default() }).await;
    let worker = Worker::start(&space, &[LANE]);
    worker.ready().await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    send_each(&mut redis, &stream, &interactions(0..100)).await;
    settled(&space, &["interactions"]).await;
    do_to(&mut redis, &["FLUSHALL"]).await;
    group_is_made_again(&worker).await;
    send_each(&mut redis, &stream, &interactions(100..200)).await;
    settled(&space, &["interactions"]).await;
    each_is_one_row(&space.database().await, 0..200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flushall_while_entries_are_in_hand_stops_nobody() {
    let own = aside(OwnRedis::new);
    let space = Space::with("flushall_in_hand", Stores { redis_url: Some(own.url()), ..Stores::default() }).await;
    let mut worker = Worker::start(&space, &[]);
    worker.ready().await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    for round in 0..5_usize {
        let lock = TableLock::take(&space, "interaction_logs").await;
        send_each(&mut redis, &stream, &interactions(round * 100..(round + 1) * 100)).await;
        until_pending(&mut redis, &stream, 100).await;
        do_to(&mut redis, &["FLUSHALL"]).await;
        lock.release().await;
        until("the group", LONG, async || crate::support::stores::lag_and_pending(&mut redis, &stream, "aegis").await.map(drop))
            .await;
    }
    settled(&space, &["interactions"]).await;
    // What was in hand is written although nothing is left to acknowledge.
    until("the rows", SOON, async || {
        (crate::support::stores::count(&space.database().await, "interaction_logs").await == 500).then_some(())
    })
    .await;
    assert!(worker.is_running());
}

#[tokio::test]
async fn a_group_that_was_destroyed_is_made_again_from_the_beginning() {
    let space = Space::new("group_destroyed").await;
    let worker = Worker::start(&space, &[LANE]);
    worker.ready().await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    send_each(&mut redis, &stream, &interactions(0..100)).await;
    settled(&space, &["interactions"]).await;
    do_to(&mut redis, &["XGROUP", "DESTROY", &stream, "aegis"]).await;
    group_is_made_again(&worker).await;
    send_each(&mut redis, &stream, &interactions(100..200)).await;
    settled(&space, &["interactions"]).await;
    each_is_one_row(&space.database().await, 0..200).await;
    assert_eq!(worker.metrics().await.get("aegis_events_duplicate_total", &[("lane", "interactions")]), 100.0);
}

#[tokio::test]
async fn a_stream_that_was_deleted_is_made_again() {
    let space = Space::new("stream_deleted").await;
    let worker = Worker::start(&space, &[LANE]);
    worker.ready().await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    send_each(&mut redis, &stream, &interactions(0..100)).await;
    settled(&space, &["interactions"]).await;
    do_to(&mut redis, &["DEL", &stream]).await;
    group_is_made_again(&worker).await;
    send_each(&mut redis, &stream, &interactions(100..200)).await;
    settled(&space, &["interactions"]).await;
    each_is_one_row(&space.database().await, 0..200).await;
}

#[tokio::test]
async fn entries_that_were_trimmed_unread_are_counted_and_warned_about() {
    let space = Space::new("trimmed").await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    let mut worker = Worker::start(&space, &[LANE]);
    worker.ready().await;
    send_each(&mut redis, &stream, &interactions(0..10)).await;
    settled(&space, &["interactions"]).await;
    worker.stop();
    send_each(&mut redis, &stream, &interactions(10..110)).await;
    do_to(&mut redis, &["XTRIM", &stream, "MAXLEN", "40"]).await;
    let worker = Worker::start(&space, &[LANE]);
    settled(&space, &["interactions"]).await;
    until("the loss to be counted", SOON, async || {
        (worker.metrics().await.get("aegis_entries_lost_total", &[("lane", "interactions")]) > 0.0).then_some(())
    })
    .await;
    assert_eq!(worker.metrics().await.get("aegis_entries_lost_total", &[("lane", "interactions")]), 60.0);
    let warned = lines(&worker, "entries were trimmed away");
    assert_eq!(warned.len(), 1);
    assert_eq!(told(&warned[0], "entries"), 60);
    let database = space.database().await;
    assert_eq!(crate::support::stores::count(&database, "interaction_logs").await, 50);
}
