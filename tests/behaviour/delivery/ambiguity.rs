//! The answer is lost and nobody knows whether it was done: one row all the same, and no entry is stuck.

use serde_json::json;

use super::kit::{at_work, each_is_one_row, interactions, send_each, settled};
use super::relay::{Deed, Relay};
use crate::support::fold::{self, Update};
use crate::support::{LONG, Space, Worker, send, servers, stores, until};

/// The own pending list is the only way by which an entry can come back in time.
const NO_TAKEOVER: (&str, &str) = ("AEGIS_CLAIM_IDLE", "1h");

async fn behind_database(test: &str) -> (Space, Relay, Space) {
    let direct = Space::new(test).await;
    let relay = Relay::before(servers::postgres().port()).await;
    let database_url = direct.database_url.replace(&format!(":{}/", servers::postgres().port()), &format!(":{}/", relay.port()));
    (Space { database_url, ..direct.clone() }, relay, direct)
}

async fn behind_redis(test: &str) -> (Space, Relay, Space) {
    let direct = Space::new(test).await;
    let relay = Relay::before(servers::redis().port()).await;
    (Space { redis_url: format!("redis://127.0.0.1:{}", relay.port()), ..direct.clone() }, relay, direct)
}

async fn until_lost(relay: &Relay) {
    until("the answer to be lost", LONG, async || (relay.done() == 1).then_some(())).await;
}

#[tokio::test]
async fn the_answer_to_a_copy_that_was_committed_is_lost() {
    let (space, relay, direct) = behind_database("lost_copy").await;
    let worker = Worker::start(&space, &[NO_TAKEOVER, ("AEGIS_LANES", "interactions")]);
    at_work(&direct, &worker, "interactions").await;
    // The trailer of the binary format and CopyDone behind it.
    relay.at(b"c\0\0\0\x04", Deed::LoseAnswer(1));
    send_each(&mut direct.redis().await, &direct.stream("interactions"), &interactions(0..200)).await;
    until_lost(&relay).await;
    settled(&direct, &["interactions"]).await;
    each_is_one_row(&direct.database().await, 0..200).await;
    let metrics = worker.metrics().await;
    let lane = [("lane", "interactions")];
    assert!(metrics.get("aegis_events_duplicate_total", &lane) > 0.0, "it was committed, and written again");
    let all = metrics.get("aegis_events_duplicate_total", &lane) + metrics.get("aegis_events_written_total", &lane);
    assert_eq!(all, 200.0);
}

#[tokio::test]
async fn the_answer_to_the_commit_of_session_updates_is_lost() {
    let (space, relay, direct) = behind_database("lost_commit").await;
    let worker = Worker::start(&space, &[NO_TAKEOVER, ("AEGIS_LANES", "sessions")]);
    at_work(&direct, &worker, "sessions").await;
    let update = |n: u32| Update {
        event_id: uuid::Uuid::from_u128(rand::random()),
        occurred_at_us: (send::now_ms() - 60_000) * 1000 + i64::from(n),
        session_id: format!("session-{}", n % 11),
        user_id: format!("user-{n}"),
        status: ["started", "updated", "ended"][n as usize % 3].to_owned(),
        seq: None,
        state: Some(json!({"n": n})),
    };
    let updates: Vec<_> = (0..120).map(update).collect();
    let events: Vec<_> = updates.iter().map(Update::event).collect();
    relay.at(b"COMMIT", Deed::LoseAnswer(1));
    send_each(&mut direct.redis().await, &direct.stream("sessions"), &events).await;
    until_lost(&relay).await;
    settled(&direct, &["sessions"]).await;
    let database = direct.database().await;
    assert_eq!(stores::count(&database, "session_events").await, 120);
    let wanted = fold::sessions(&updates);
    assert_eq!(stores::sessions(&database).await, wanted);
    for (session, row) in &wanted {
        let hash = stores::session_hash(&mut *direct.redis().await, &direct.session_key(session)).await;
        assert_eq!(stores::hash_as_row(&hash), Some(row.in_milliseconds()), "{session}");
    }
    assert!(worker.metrics().await.get("aegis_events_duplicate_total", &[("lane", "sessions")]) > 0.0);
}

#[tokio::test]
async fn the_answer_to_an_acknowledgement_is_lost() {
    let (space, relay, direct) = behind_redis("lost_ack").await;
    let worker = Worker::start(&space, &[NO_TAKEOVER, ("AEGIS_LANES", "interactions")]);
    at_work(&direct, &worker, "interactions").await;
    relay.at(b"XACK", Deed::LoseAnswer(1));
    send_each(&mut direct.redis().await, &direct.stream("interactions"), &interactions(0..200)).await;
    until_lost(&relay).await;
    settled(&direct, &["interactions"]).await;
    each_is_one_row(&direct.database().await, 0..200).await;
}

#[tokio::test]
async fn the_answer_to_a_read_is_lost() {
    let (space, relay, direct) = behind_redis("lost_read").await;
    let worker = Worker::start(&space, &[NO_TAKEOVER, ("AEGIS_LANES", "interactions")]);
    at_work(&direct, &worker, "interactions").await;
    // An answer without entries is a few bytes: the one with entries is lost.
    relay.at(b"XREADGROUP", Deed::LoseAnswer(60));
    send_each(&mut direct.redis().await, &direct.stream("interactions"), &interactions(0..200)).await;
    until_lost(&relay).await;
    settled(&direct, &["interactions"]).await;
    each_is_one_row(&direct.database().await, 0..200).await;
    let metrics = worker.metrics().await;
    assert!(metrics.get("aegis_entries_reclaimed_total", &[("lane", "interactions")]) > 0.0);
    assert_eq!(metrics.get("aegis_events_duplicate_total", &[("lane", "interactions")]), 0.0);
}

#[tokio::test]
async fn the_answer_to_setting_aside_is_lost() {
    let (space, relay, direct) = behind_redis("lost_dead").await;
    let worker = Worker::start(&space, &[NO_TAKEOVER, ("AEGIS_LANES", "interactions")]);
    at_work(&direct, &worker, "interactions").await;
    relay.at(b"failed_at", Deed::LoseAnswer(1));
    let bad: Vec<_> = (0..20).map(|n| json!({"session_id": format!("bad{n}")})).collect();
    send_each(&mut direct.redis().await, &direct.stream("interactions"), &bad).await;
    until_lost(&relay).await;
    settled(&direct, &["interactions"]).await;
    let mut sources: Vec<_> = stores::dead_letters(&mut *direct.redis().await, &direct.dead("interactions"))
        .await
        .iter()
        .map(|letter| letter.text("src_id"))
        .collect();
    sources.sort_unstable();
    sources.dedup();
    assert_eq!(sources.len(), 20);
    assert_eq!(stores::length(&mut *direct.redis().await, &direct.dead("interactions")).await, 20, "none is there twice");
}

#[tokio::test]
async fn the_answer_to_handing_a_vector_on_is_lost() {
    let (space, relay, direct) = behind_redis("lost_forward").await;
    let worker = Worker::start(&space, &[NO_TAKEOVER, ("AEGIS_LANES", "interactions,embeddings")]);
    at_work(&direct, &worker, "interactions").await;
    relay.at(b"XADD", Deed::LoseAnswer(1));
    let mut events = interactions(0..20);
    for event in &mut events {
        event["embedding"] = json!([0.25, 0.5]);
    }
    send_each(&mut direct.redis().await, &direct.stream("interactions"), &events).await;
    until_lost(&relay).await;
    settled(&direct, &["interactions", "embeddings"]).await;
    each_is_one_row(&direct.database().await, 0..20).await;
    assert_eq!(stores::record_count(&direct.chroma(), &direct.collection).await, 20, "each vector once");
}
