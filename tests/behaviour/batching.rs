//! What one read brings is written in one transaction, and so is what gathers while all writers have work.

use serde_json::json;

use crate::delivery::kit::{TableLock, consumers};
use crate::support::{LONG, Space, Worker, send, stores, until, until_equal};

#[tokio::test]
async fn what_one_read_brings_is_one_batch_however_many_pieces_it_comes_in() {
    const LANE: &str = "interactions";
    let space = Space::new("one_read").await;
    let text = "x".repeat(400);
    // A megabyte: less than a batch may hold, and more than a socket gives at once.
    let events: Vec<_> =
        (0..2_000).map(|n| json!({ "session_id": format!("s{n}"), "user_id": "u", "attributes": { "text": text } })).collect();
    send::many(&mut space.redis().await, &space.stream(LANE), &send::packed(&events, 1)).await;
    // A batch that is not full and whose reply goes on would be written after so long: not within the test.
    let worker = Worker::start(&space, &[("AEGIS_LANES", LANE), ("AEGIS_BATCH_AGE", "1m")]);
    worker.settled(&space, &[LANE], LONG).await;
    let metrics = worker.metrics().await;
    let count = |name| metrics.get(name, &[("lane", LANE)]);
    assert_eq!((count("aegis_batch_events_sum"), count("aegis_batch_events_count")), (2_000.0, 1.0));
}

#[tokio::test]
async fn a_partition_whose_turn_to_be_written_has_not_come_gathers() {
    const LANE: &str = "interactions";
    let space = Space::new("turns").await;
    let mut redis = space.redis().await;
    let (first, second) = (space.partition(LANE, 0), space.partition(LANE, 1));
    let worker = Worker::start(&space, &[("AEGIS_LANES", LANE), ("AEGIS_PARTITIONS", "2"), ("AEGIS_WRITERS", "1")]);
    for stream in [&first, &second] {
        until("the worker to read", LONG, async || (!consumers(&mut redis, stream).await.is_empty()).then_some(())).await;
    }
    let read = async |wanted: f64| {
        let what = format!("{wanted} entries to be read");
        until_equal(&what, LONG, wanted, async || worker.metrics().await.get("aegis_entries_read_total", &[("lane", LANE)]))
            .await;
    };
    let event = json!({ "session_id": "s", "user_id": "u" });
    let lock = TableLock::take(&space, "interaction_logs").await;
    send::json(&mut redis, &first, &event).await;
    read(1.0).await;
    // The only writer is busy with the first partition's batch. Each of these is read by itself.
    for entries in 2..=5 {
        send::json(&mut redis, &second, &event).await;
        read(f64::from(entries)).await;
    }
    lock.release().await;
    for stream in [&first, &second] {
        until_equal("its entries to be settled", LONG, (0, 0), async || {
            stores::lag_and_pending(&mut redis, stream, "aegis").await.unwrap_or((-1, -1))
        })
        .await;
    }
    let metrics = worker.metrics().await;
    let count = |name| metrics.get(name, &[("lane", LANE)]);
    assert_eq!((count("aegis_batch_events_sum"), count("aegis_batch_events_count")), (5.0, 2.0));
}
