//! The worker trims: for the sake of other groups it waits, says for whose, and counts nothing as lost.

use redis::aio::MultiplexedConnection;
use serde_json::json;

use super::{client, trim_all, trimmer};
use crate::support::worker::command;
use crate::support::{LONG, Space, Worker, send, stores, until, until_equal};

const LANE: (&str, &str) = ("AEGIS_LANES", "interactions");

/// Entries as if they had come an hour ago, one event each; returns their ids.
async fn send_old(redis: &mut MultiplexedConnection, stream: &str, numbers: std::ops::Range<u64>) -> Vec<String> {
    let hour_ago = send::now_ms() as u64 - 3_600_000;
    let mut ids = Vec::new();
    for number in numbers {
        let event = json!({ "session_id": format!("s{number}"), "user_id": "u" }).to_string();
        let mut command = redis::cmd("XADD");
        command.arg(stream).arg(format!("{hour_ago}-{number}")).arg("json").arg(event);
        ids.push(command.query_async::<String>(redis).await.expect("XADD"));
    }
    ids
}

async fn group(redis: &mut MultiplexedConnection, stream: &str, group: &str, from: &str) {
    let mut command = redis::cmd("XGROUP");
    let () =
        command.arg("CREATE").arg(stream).arg(group).arg(from).arg("MKSTREAM").query_async(redis).await.expect("XGROUP CREATE");
}

/// Reads as consumer `c1`; returns how many came.
async fn read(redis: &mut MultiplexedConnection, stream: &str, group: &str, count: usize) -> usize {
    type Entries = Vec<(String, redis::Value)>;
    let mut command = redis::cmd("XREADGROUP");
    command.arg("GROUP").arg(group).arg("c1").arg("COUNT").arg(count).arg("STREAMS").arg(stream).arg(">");
    let found: Option<Vec<(String, Entries)>> = command.query_async(redis).await.expect("XREADGROUP");
    found.into_iter().flatten().map(|(_, entries)| entries.len()).sum()
}

async fn ack(redis: &mut MultiplexedConnection, stream: &str, group: &str, ids: &[String]) {
    let _: u64 = redis::cmd("XACK").arg(stream).arg(group).arg(ids).query_async(redis).await.expect("XACK");
}

async fn until_length(redis: &mut MultiplexedConnection, stream: &str, wanted: u64) {
    until_equal(&format!("{wanted} entries in {stream}"), LONG, wanted, async || stores::length(redis, stream).await).await;
}

async fn metric(worker: &Worker, name: &str) -> f64 {
    worker.metrics().await.get(name, &[("lane", "interactions")])
}

#[tokio::test]
async fn a_group_that_lags_or_sleeps_keeps_what_it_has_not_settled() {
    let space = Space::new("trim_groups").await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    let operator = space.settings_of("operator");
    group(&mut redis, &stream, "analytics", "0").await;
    let ids = send_old(&mut redis, &stream, 0..500).await;
    let worker = Worker::start(&space, &[LANE]);
    worker.settled(&space, &["interactions"], LONG).await;

    // It has looked, and taken nothing.
    until("the other group to be noticed", LONG, async || {
        (metric(&worker, "aegis_trimming_held_seconds").await > 2_900.0).then_some(())
    })
    .await;
    assert_eq!(stores::length(&mut redis, &stream).await, 500);
    assert_eq!(metric(&worker, "aegis_entries_trimmed_total").await, 0.0);
    let status = command(&["status"], &operator.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect::<Vec<_>>());
    let said = String::from_utf8_lossy(&status.stdout).into_owned();
    let words = format!("group analytics holds back trimming: it has not read entry {}", ids[0]);
    assert!(said.contains(&words), "{said}");

    // A consumer that has read and sleeps; before its first entry everything goes.
    assert_eq!(read(&mut redis, &stream, "analytics", 300).await, 300);
    ack(&mut redis, &stream, "analytics", &ids[..200]).await;
    until_length(&mut redis, &stream, 300).await;
    let first = stores::entries(&mut redis, &stream).await.remove(0).0;
    assert_eq!(first, ids[200]);
    // Another one takes over a part of it, which changes nothing.
    let mut claim = redis::cmd("XCLAIM");
    let _: redis::Value =
        claim.arg(&stream).arg("analytics").arg("c2").arg(0).arg(&ids[200..250]).query_async(&mut redis).await.unwrap();
    let status = command(&["status", "--json"], &operator.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect::<Vec<_>>());
    let look: serde_json::Value = serde_json::from_slice(&status.stdout).expect("JSON");
    let holds = &look["streams"][0]["trimming_held_by"];
    assert_eq!(
        (&holds[0]["group"], &holds[0]["consumer"], &holds[0]["entry"]),
        (&json!("analytics"), &json!("c2"), &json!(ids[200]))
    );
    ack(&mut redis, &stream, "analytics", &ids[200..300]).await;
    until_length(&mut redis, &stream, 200).await;

    // A group that is created late keeps what stands then, from where it begins.
    group(&mut redis, &stream, "late", &ids[399]).await;
    assert_eq!(read(&mut redis, &stream, "analytics", 1_000).await, 200);
    ack(&mut redis, &stream, "analytics", &ids[300..]).await;
    until_length(&mut redis, &stream, 100).await;
    // Without it, nobody needs them.
    let _: u64 = redis::cmd("XGROUP").arg("DESTROY").arg(&stream).arg("late").query_async(&mut redis).await.unwrap();
    until_length(&mut redis, &stream, 0).await;
    until_equal("every entry to be counted", LONG, 500.0, async || metric(&worker, "aegis_entries_trimmed_total").await).await;

    let log = worker.log();
    let told = |words: &str| log.matches(words).count();
    assert_eq!(told("another consumer group has not settled old entries"), 1, "{log}");
    until("the end of it to be told", LONG, async || {
        worker.log().contains("no other consumer group is far behind any more").then_some(())
    })
    .await;
    assert_eq!(metric(&worker, "aegis_trimming_held_seconds").await, 0.0);
    assert_eq!(metric(&worker, "aegis_entries_lost_total").await, 0.0);
    assert_eq!(stores::count(&space.database().await, "interaction_logs").await, 500);
}

/// A group that is made again, and one that a person sets back, miss nothing that they had settled.
#[tokio::test]
async fn what_was_trimmed_is_no_loss_of_a_group_that_begins_again() {
    let space = Space::new("trim_again").await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    let worker = Worker::start(&space, &[LANE]);
    worker.ready().await;
    send_old(&mut redis, &stream, 0..200).await;
    until_equal("all to be trimmed", LONG, 200.0, async || metric(&worker, "aegis_entries_trimmed_total").await).await;
    let fresh = json!({ "session_id": "fresh", "user_id": "u" });
    send::json(&mut redis, &stream, &fresh).await;
    worker.settled(&space, &["interactions"], LONG).await;
    assert_eq!(stores::length(&mut redis, &stream).await, 1, "too young to go");

    let _: u64 = redis::cmd("XGROUP").arg("DESTROY").arg(&stream).arg("aegis").query_async(&mut redis).await.unwrap();
    until("the group to be made again", LONG, async || {
        (metric(&worker, "aegis_groups_recreated_total").await == 1.0).then_some(())
    })
    .await;
    worker.settled(&space, &["interactions"], LONG).await;
    let () = redis::cmd("XGROUP").arg("SETID").arg(&stream).arg("aegis").arg("0").query_async(&mut redis).await.unwrap();
    let streams = aegis_ingest::config::Config::load(&aegis_ingest::config::Given::from_pairs(
        space.settings().iter().map(|(name, value)| (name.as_str(), value.as_str())),
    ))
    .unwrap()
    .streams;
    let info = aegis_ingest::redis::inspect::stream(&client(&space.redis_url), &streams, &stream).await.expect("a look");
    assert_eq!(info.lost, 0);
    worker.settled(&space, &["interactions"], LONG).await;
    assert_eq!(metric(&worker, "aegis_entries_lost_total").await, 0.0);
}

/// Entries that somebody deletes while they are pending are lost, however old they are.
#[tokio::test]
async fn old_pending_entries_that_are_deleted_are_lost() {
    let space = Space::new("trim_deleted").await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    group(&mut redis, &stream, "aegis", "0").await;
    let ids = send_old(&mut redis, &stream, 0..20).await;
    assert_eq!(read(&mut redis, &stream, "aegis", 20).await, 20);
    let _: u64 = redis::cmd("XDEL").arg(&stream).arg(&ids[..5]).query_async(&mut redis).await.unwrap();
    let worker = Worker::start(&space, &[LANE, ("AEGIS_CONSUMER", "c1")]);
    until_equal("the losses", LONG, 5.0, async || metric(&worker, "aegis_entries_lost_total").await).await;
    worker.settled(&space, &["interactions"], LONG).await;
    until_length(&mut redis, &stream, 0).await;
    assert_eq!(stores::count(&space.database().await, "interaction_logs").await, 15);
    assert_eq!(metric(&worker, "aegis_entries_lost_total").await, 5.0);
}

/// A dead letter is put back with its identity after the entry that it came from went.
#[tokio::test]
async fn a_dead_letter_outlives_its_entry() {
    let space = Space::new("trim_dead").await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    let worker = Worker::start(&space, &[LANE, ("AEGIS_RETAIN", "0s")]);
    worker.ready().await;
    let entry = send::json(&mut redis, &stream, &json!({ "session_id": "s" })).await;
    until_length(&mut redis, &space.dead("interactions"), 1).await;
    until_length(&mut redis, &stream, 0).await;
    let settings = space.settings_of("operator");
    let settings: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let replayed = command(&["dead", "replay", "--all"], &settings);
    assert!(replayed.status.success(), "{replayed:?}");
    worker.settled(&space, &["interactions"], LONG).await;
    until_length(&mut redis, &space.dead("interactions"), 1).await;
    let letter = stores::dead_letters(&mut redis, &space.dead("interactions")).await.remove(0);
    assert_eq!((letter.text("src"), letter.text("src_id"), letter.index()), (stream.clone(), entry, 0));
    until_length(&mut redis, &stream, 0).await;
    assert_eq!(stores::length(&mut redis, &space.dead("interactions")).await, 1, "dead letters are not trimmed");
}

/// Without the stream, and without our group, nothing goes.
#[tokio::test]
async fn where_the_workers_have_no_group_nothing_goes() {
    let space = Space::new("trim_no_group").await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    let mut trimmer = trimmer(&client(&space.redis_url), &stream, "w", std::time::Duration::ZERO);
    assert_eq!(trim_all(&mut trimmer).await, 0);
    let ids = send_old(&mut redis, &stream, 0..50).await;
    assert_eq!(trim_all(&mut trimmer).await, 0);
    group(&mut redis, &stream, "analytics", "0").await;
    read(&mut redis, &stream, "analytics", 50).await;
    ack(&mut redis, &stream, "analytics", &ids).await;
    assert_eq!(trim_all(&mut trimmer).await, 0);
    group(&mut redis, &stream, "aegis", "$").await;
    assert_eq!(trim_all(&mut trimmer).await, 50);
}
