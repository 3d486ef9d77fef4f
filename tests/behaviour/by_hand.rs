//! What a person types is a row at once.

use crate::support::servers::{OwnRedis, in_root};
use crate::support::space::Stores;
use crate::support::{SOON, Space, Worker, stores, until};

/// As README shows it; a Redis of its own, since the prefix is the default one.
#[tokio::test]
async fn an_entry_written_with_redis_cli_is_a_row_within_a_second() {
    let redis = OwnRedis::new();
    let space = Space::with("by_hand", Stores { redis_url: Some(redis.url()), ..Stores::default() }).await;
    let space = space.with_prefix("aegis").await;
    let worker = Worker::start(&space, &[]);
    worker.ready().await;
    let database = space.database().await;
    let port = redis.port().to_string();
    let event = r#"{"session_id":"s1","user_id":"u1"}"#;
    let output =
        in_root(&["redis-cli", "-e", "-h", "127.0.0.1", "-p", &port, "XADD", "aegis:interactions", "*", "json", event]).output();
    let output = output.expect("redis-cli");
    assert!(output.status.success(), "{output:?}");
    let id = String::from_utf8(output.stdout).unwrap();
    let ms: i64 = id.trim().split('-').next().unwrap().parse().unwrap_or_else(|_| panic!("an entry id: {id:?}"));

    until("the row", SOON, async || (stores::count(&database, "interaction_logs").await == 1).then_some(())).await;
    let row = &stores::interactions(&database).await[0];
    assert_eq!((row.session_id.as_str(), row.user_id.as_str(), row.occurred_at_us), ("s1", "u1", ms * 1000));
    // The database's own clock says when it wrote it; XADD's clock is in the id.
    let query = "SELECT (extract(epoch FROM ingested_at) * 1000)::int8 FROM interaction_logs";
    let written_ms: i64 = database.query_one(query, &[]).await.unwrap().get(0);
    assert!(written_ms - ms <= 1000, "written {} ms after XADD", written_ms - ms);
}
