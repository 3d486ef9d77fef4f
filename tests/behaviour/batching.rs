//! What one read brings is written in one transaction.

use serde_json::json;

use crate::support::{LONG, Space, Worker, send};

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
