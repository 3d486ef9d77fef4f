//! Entries of dead workers are taken over; those of living ones never.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::kit::{TableLock, consumers, each_is_one_row, interactions, pending, send_each, settled, throughout, until_pending};
use crate::support::servers::OwnRedis;
use crate::support::space::Stores;
use crate::support::{LONG, SOON, Space, Worker, until};

const CLAIM_IDLE: (&str, &str) = ("AEGIS_CLAIM_IDLE", "1s");

#[tokio::test]
async fn a_restarted_worker_first_settles_its_own_pending_entries() {
    let space = Space::new("own_first").await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    // One writer: what is read first is written first, however long a connection takes.
    let settings = [("AEGIS_CONSUMER", "it"), ("AEGIS_CLAIM_IDLE", "1h"), ("AEGIS_WRITERS", "1")];
    let lock = TableLock::take(&space, "interaction_logs").await;
    let mut worker = Worker::start(&space, &settings);
    worker.ready().await;
    send_each(&mut redis, &stream, &interactions(0..100)).await;
    until_pending(&mut redis, &stream, 100).await;
    worker.kill();
    lock.release().await;
    send_each(&mut redis, &stream, &interactions(100..200)).await;
    assert_eq!(pending(&mut redis, &stream).await.len(), 100);

    let worker = Worker::start(&space, &settings);
    settled(&space, &["interactions"]).await;
    let database = space.database().await;
    each_is_one_row(&database, 0..200).await;
    let own_first = "SELECT max(ingested_at) FILTER (WHERE substr(session_id, 2)::int < 100) \
                     <= min(ingested_at) FILTER (WHERE substr(session_id, 2)::int >= 100) FROM interaction_logs";
    assert!(database.query_one(own_first, &[]).await.unwrap().get::<_, bool>(0), "its own entries come before new ones");
    assert_eq!(worker.metrics().await.get("aegis_entries_reclaimed_total", &[("lane", "interactions")]), 100.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_of_a_dead_worker_are_taken_over_in_bulk_after_the_claim_idle_time() {
    let own = super::kit::aside(OwnRedis::new);
    let space = Space::with("bulk", Stores { redis_url: Some(own.url()), ..Stores::default() }).await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    let settings = [("AEGIS_CLAIM_IDLE", "3s"), ("AEGIS_LANES", "interactions")];
    let lock = TableLock::take(&space, "interaction_logs").await;
    let mut dead = Worker::start(&space, &settings);
    dead.ready().await;
    let read_after = Instant::now();
    send_each(&mut redis, &stream, &interactions(0..4_000)).await;
    until_pending(&mut redis, &stream, 4_000).await;
    dead.kill();
    lock.release().await;
    let _: () = redis::cmd("CONFIG").arg("RESETSTAT").query_async(&mut redis).await.unwrap();

    let heir = Worker::start(&space, &settings);
    settled(&space, &["interactions"]).await;
    assert!(read_after.elapsed() >= Duration::from_secs(3), "nothing is taken over before the claim idle time");
    each_is_one_row(&space.database().await, 0..4_000).await;
    assert_eq!(heir.metrics().await.get("aegis_entries_reclaimed_total", &[("lane", "interactions")]), 4_000.0);
    let statistics: String = redis::cmd("INFO").arg("commandstats").query_async(&mut redis).await.unwrap();
    let calls = |command: &str| -> u64 {
        let line = statistics.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        line.and_then(|line| line.split(',').next()?.parse().ok()).unwrap_or_default()
    };
    // Looking for them costs a few calls each second; taking them a call for a thousand.
    let taken = calls("xautoclaim") + calls("xclaim") + calls("xack");
    assert!((3..100).contains(&taken), "{taken} calls for 4,000 entries:\n{statistics}");
}

#[tokio::test]
async fn entries_that_somebody_claims_for_a_working_consumer_are_taken_in_hand() {
    let space = Space::new("claimed_for_it").await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    let ids = send_each(&mut redis, &stream, &interactions(0..50)).await;
    let _: String = redis::cmd("XGROUP").arg("CREATE").arg(&stream).arg("aegis").arg("0").query_async(&mut redis).await.unwrap();
    let mut read = redis::cmd("XREADGROUP");
    read.arg("GROUP").arg("aegis").arg("gone").arg("COUNT").arg(50).arg("STREAMS").arg(&stream).arg(">");
    let _: redis::Value = read.query_async(&mut redis).await.unwrap();
    let lock = TableLock::take(&space, "interaction_logs").await;
    let worker = Worker::start(&space, &[("AEGIS_CONSUMER", "it"), ("AEGIS_CLAIM_IDLE", "1h")]);
    send_each(&mut redis, &stream, &interactions(50..150)).await;
    until_pending(&mut redis, &stream, 150).await;
    let reclaimed = async || worker.metrics().await.get("aegis_entries_reclaimed_total", &[("lane", "interactions")]);
    assert_eq!(reclaimed().await, 0.0);

    let mut claim = redis::cmd("XCLAIM");
    claim.arg(&stream).arg("aegis").arg("it").arg(0).arg(&ids).arg("JUSTID");
    let claimed: Vec<String> = claim.query_async(&mut redis).await.unwrap();
    assert_eq!(claimed.len(), 50);
    until("them to be taken in hand, and no other", LONG, async || (reclaimed().await == 50.0).then_some(())).await;
    lock.release().await;
    settled(&space, &["interactions"]).await;
    each_is_one_row(&space.database().await, 0..150).await;
    assert_eq!(reclaimed().await, 50.0);
}

/// So many that workers have more delivered to them than they can take in hand while nothing is written.
const BACKLOG: usize = 60_000;

#[tokio::test]
async fn a_living_worker_is_not_robbed_however_long_the_database_is_away() {
    const IDLE: Duration = Duration::from_secs(3);
    let space = Space::new("not_robbed").await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    send_each(&mut redis, &stream, &interactions(0..BACKLOG)).await;
    let lock = TableLock::take(&space, "interaction_logs").await;
    let settings = |name| [("AEGIS_CLAIM_IDLE", "3s"), ("AEGIS_LANES", "interactions"), ("AEGIS_CONSUMER", name)];
    let not_robbed = async |redis: &mut redis::aio::MultiplexedConnection| {
        let all = pending(redis, &stream).await;
        let robbed: Vec<_> = all.iter().filter(|it| it.deliveries > 1).take(3).collect();
        assert!(robbed.is_empty(), "delivered a second time although their worker lives: {robbed:?}");
        all
    };
    let first = Worker::start(&space, &settings("first"));
    until_pending(&mut redis, &stream, 5_000).await;
    // Its hands are full, and what else was delivered to it is still on its way.
    throughout(2 * IDLE, async || drop(not_robbed(&mut redis.clone()).await)).await;
    let owned: HashSet<_> = pending(&mut redis, &stream).await.into_iter().map(|it| it.id).collect();
    // The second has both hands free.
    let second = Worker::start(&space, &settings("second"));
    until("the second to have entries", LONG, async || {
        pending(&mut redis, &stream).await.iter().any(|it| it.consumer == "second").then_some(())
    })
    .await;
    throughout(3 * IDLE, async || {
        let all = not_robbed(&mut redis.clone()).await;
        let stolen = all.iter().filter(|it| it.consumer == "second").find(|it| owned.contains(&it.id));
        assert_eq!(stolen, None, "it belongs to the first, which lives");
    })
    .await;
    lock.release().await;
    settled(&space, &["interactions"]).await;
    each_is_one_row(&space.database().await, 0..BACKLOG).await;
    for worker in [&first, &second] {
        let metrics = worker.metrics().await;
        let lane = [("lane", "interactions")];
        assert_eq!(metrics.get("aegis_entries_reclaimed_total", &lane), 0.0);
        assert!(metrics.get("aegis_renewed_total", &lane) > 0.0);
    }
}

#[tokio::test]
async fn consumers_that_are_gone_are_removed_but_never_with_a_pending_entry() {
    let space = Space::new("gone_consumers").await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    send_each(&mut redis, &stream, &interactions(0..BACKLOG)).await;
    let lock = TableLock::take(&space, "interaction_logs").await;
    let settings = |name| [CLAIM_IDLE, ("AEGIS_LANES", "interactions"), ("AEGIS_CONSUMER", name)];
    let workers = [Worker::start(&space, &settings("first")), Worker::start(&space, &settings("second"))];
    until_pending(&mut redis, &stream, 2).await;
    let group = |redis: &redis::aio::MultiplexedConnection, command: &'static str, name: &'static str| {
        let (mut redis, stream) = (redis.clone(), stream.clone());
        async move {
            let mut xgroup = redis::cmd("XGROUP");
            let _: i64 = xgroup.arg(command).arg(&stream).arg("aegis").arg(name).query_async(&mut redis).await.unwrap();
        }
    };
    group(&redis, "CREATECONSUMER", "empty").await;
    let mut read = redis::cmd("XREADGROUP");
    read.arg("GROUP").arg("aegis").arg("holds").arg("COUNT").arg(1).arg("STREAMS").arg(&stream).arg(">");
    let _: redis::Value = read.query_async(&mut redis).await.unwrap();
    // Nobody takes the one entry over while all hands are full; so long the consumer must stay.
    until("the empty one to be removed", LONG, async || {
        let names = consumers(&mut redis, &stream).await;
        let holds = pending(&mut redis, &stream).await.iter().any(|it| it.consumer == "holds");
        assert!(!holds || names.contains(&"holds".to_owned()));
        (!names.contains(&"empty".to_owned())).then_some(())
    })
    .await;
    lock.release().await;
    settled(&space, &["interactions"]).await;
    each_is_one_row(&space.database().await, 0..BACKLOG).await;
    until("the other one to be removed once it holds nothing", LONG, async || {
        (consumers(&mut redis, &stream).await == ["first", "second"]).then_some(())
    })
    .await;
    drop(workers);
}

#[tokio::test]
async fn entries_that_were_deleted_while_pending_are_counted_and_warned_about() {
    let space = Space::new("gone_entries").await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    let settings = [("AEGIS_CONSUMER", "it"), ("AEGIS_LANES", "interactions")];
    let lock = TableLock::take(&space, "interaction_logs").await;
    let mut worker = Worker::start(&space, &settings);
    worker.ready().await;
    let ids = send_each(&mut redis, &stream, &interactions(0..10)).await;
    until_pending(&mut redis, &stream, 10).await;
    worker.kill();
    lock.release().await;
    let _: i64 = redis::cmd("XDEL").arg(&stream).arg(&ids[..4]).query_async(&mut redis).await.unwrap();

    let worker = Worker::start(&space, &settings);
    until("the rest to be settled", SOON, async || pending(&mut redis, &stream).await.is_empty().then_some(())).await;
    until("the loss to be counted", SOON, async || {
        (worker.metrics().await.get("aegis_entries_lost_total", &[("lane", "interactions")]) == 4.0).then_some(())
    })
    .await;
    each_is_one_row(&space.database().await, 4..10).await;
    assert!(!super::kit::lines(&worker, "pending entries were deleted").is_empty());
}
