//! Many partitions on one server: they take no more of the database and of memory than a few.

use std::time::Duration;

use serde_json::json;

use crate::delivery::kit::{TableLock, throughout};
use crate::support::{LONG, Space, Worker, send, stores, until, until_equal};

const PARTITIONS: u16 = 64;
/// Entries a partition, and bytes of each: 64 MiB in all.
const ENTRIES: usize = 64;
const BYTES: usize = 16 * 1024;
/// What so many streams may take more than one, which does not even fill the room of its lane (12 MiB of entries; rows and what is
/// being copied come on top). Without a common room all of the 64 MiB that stand in the streams would be held, and their rows.
const MEMORY_MORE: u64 = 56 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_fills_neither_memory_nor_connections() {
    let one = outage(1).await;
    let many = outage(PARTITIONS).await;
    super::say(&format!("at most {} MiB with 1 partition, {} MiB with {PARTITIONS}", one >> 20, many >> 20));
    assert!(many <= one + MEMORY_MORE, "{} MiB instead of {} MiB", many >> 20, one >> 20);
}

/// Lets a worker meet a backlog that cannot be written for a while. Returns how much memory it took at most.
async fn outage(partitions: u16) -> u64 {
    let space = Space::new("partitions").await;
    let mut redis = space.redis().await;
    let mut numbers = 0..;
    for partition in 0..PARTITIONS {
        let stream = if partitions == 1 { space.stream("interactions") } else { space.partition("interactions", partition) };
        let transcript = "x".repeat(BYTES);
        let events: Vec<_> = (numbers.by_ref().take(ENTRIES))
            .map(|n| json!({"session_id": format!("s{n}"), "user_id": "u", "transcript": transcript}))
            .collect();
        send::many(&mut redis, &stream, &send::packed(&events, 1)).await;
    }
    let lock = TableLock::take(&space, "interaction_logs").await;
    let mut worker = Worker::start(&space, &[("AEGIS_PARTITIONS", partitions.to_string().as_str())]);
    worker.ready().await;
    // Others may not see what a session waits for.
    let database = space.administrator().await;
    let connections =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'aegis-ingest' AND datname = current_database()";
    until("all writers to wait", LONG, async || {
        let active = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'aegis-ingest' \
                      AND datname = current_database() AND wait_event_type = 'Lock'";
        (database.query_one(active, &[]).await.unwrap().get::<_, i64>(0) == 3).then_some(())
    })
    .await;
    // Room is taken by what was read first; the rest waits in Redis, and nobody takes the last connection from the probe.
    throughout(Duration::from_secs(2), async || {
        let open: i64 = database.query_one(connections, &[]).await.unwrap().get(0);
        assert!(open <= 2 * 3 + 1, "{open} connections");
    })
    .await;
    worker.ready().await;
    lock.release().await;
    let all = i64::from(PARTITIONS) * ENTRIES as i64;
    until_equal("every event to be a row", LONG, all, async || stores::count(&database, "interaction_logs").await).await;
    let memory = worker.rss_max();
    worker.stop();
    memory
}
