//! A replica is promoted that lacks the last words of its primary: an acknowledgement must not outlive what it stands on.

use serde_json::json;

use super::kit::{TableLock, aside, at_work, settled, until_pending};
use super::relay::{Deed, Relay};
use crate::support::rights::make_redis_users;
use crate::support::servers::OwnRedis;
use crate::support::space::{Stores, connect_redis};
use crate::support::{LONG, Space, Worker, send, stores, until, until_equal};

/// Nobody takes over, and nothing is read again: what is acknowledged where it is missing is lost.
const NO_TAKEOVER: (&str, &str) = ("AEGIS_CLAIM_IDLE", "1h");

/// A primary, its replica, and an address that leads to the primary.
struct Pair {
    primary: OwnRedis,
    replica: OwnRedis,
    relay: Relay,
    space: Space,
}

impl Pair {
    async fn new(test: &str) -> Self {
        let primary = aside(OwnRedis::new);
        let of = format!("127.0.0.1 {}", primary.port());
        let replica = aside(|| OwnRedis::with(&["--replicaof", &of, "--replica-read-only", "no"]));
        let relay = Relay::before(primary.port()).await;
        let redis_url = Some(format!("redis://127.0.0.1:{}", relay.port()));
        let space = Space::with(test, Stores { redis_url, ..Stores::default() }).await;
        make_redis_users(&replica.url(), &space.prefix).await;
        Self { primary, replica, relay, space }
    }

    /// Sends an event that the worker has in hand and cannot write, on both servers; from then on they go separate ways. Once
    /// the worker may write, the primary fails at the request with `part`, and the replica takes its place.
    async fn part_at(&self, lane: &str, table: &str, event: &serde_json::Value, part: &[u8], deed: Deed) {
        let stream = self.space.stream(lane);
        let lock = TableLock::take(&self.space, table).await;
        send::json(&mut self.space.redis().await, &stream, event).await;
        let mut promoted = connect_redis(&self.replica.url()).await;
        until_pending(&mut promoted, &stream, 1).await;
        redis::cmd("REPLICAOF").arg("NO").arg("ONE").exec_async(&mut promoted).await.expect("REPLICAOF NO ONE");
        self.relay.at(part, deed);
        lock.release().await;
        until("the replica to take the primary's place", LONG, async || (self.relay.done() == 1).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vector_that_was_forwarded_to_the_failed_one_is_forwarded_again() {
    let pair = Pair::new("promoted_vector").await;
    let space = &pair.space;
    let worker = Worker::start(space, &[NO_TAKEOVER]);
    at_work(space, &worker, "interactions").await;
    let event = json!({ "session_id": "s", "user_id": "u", "embedding": [1, 2, 3] });
    pair.part_at("interactions", "interaction_logs", &event, b"XADD", Deed::AnswerThenLeadTo(pair.replica.port())).await;
    settled(space, &["interactions"]).await;
    let forwarded = stores::length(&mut connect_redis(&pair.primary.url()).await, &space.stream("embeddings")).await;
    assert_eq!(forwarded, 1, "it was forwarded before");
    let chroma = space.chroma();
    until_equal("the vector", LONG, 1, async || stores::record_count(&chroma, &space.collection).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hash_that_was_written_on_the_failed_one_is_written_again() {
    let pair = Pair::new("promoted_hash").await;
    let space = &pair.space;
    let worker = Worker::start(space, &[NO_TAKEOVER, ("AEGIS_LANES", "sessions")]);
    at_work(space, &worker, "sessions").await;
    let event = json!({ "session_id": "s", "user_id": "u", "status": "started", "seq": 1, "state": { "turn": 1 } });
    pair.part_at("sessions", "sessions", &event, b"XACK", Deed::LeadTo(pair.replica.port())).await;
    settled(space, &["sessions"]).await;
    let key = space.session_key("s");
    let before = stores::session_hash(&mut connect_redis(&pair.primary.url()).await, &key).await;
    assert_eq!(before.get("status").map(String::as_str), Some("started"), "it was written before");
    assert_eq!(stores::session_hash(&mut connect_redis(&pair.replica.url()).await, &key).await, before);
}
