//! Dead letters: listed, shown, put back, dropped; bounded; never written twice.

use rustix::process::Signal;
use serde_json::{Value as Json, json};
use uuid::Uuid;

use super::kit::{TableLock, lines, send_each, settled, until_pending};
use crate::support::{LONG, SOON, Space, Worker, send, stores, until, worker};

/// Drawn once, never to change: the identity of events that bring none derives from it.
const NAMESPACE: Uuid = Uuid::from_u128(0x5b1c_6f0e_8d0f_4b0b_9d5a_6f1f_2a0c_77e3);

/// Runs `dead …` and returns what it printed; panics unless it ends with 0.
fn dead(space: &Space, arguments: &[&str]) -> String {
    let settings = space.settings_of("operator");
    let settings: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let output = worker::command(&[&["dead"], arguments].concat(), &settings);
    assert!(output.status.success(), "dead {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// `dead list --json`, an object a letter.
fn list(space: &Space, arguments: &[&str]) -> Vec<Json> {
    let text = dead(space, &[&["list", "--json"], arguments].concat());
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Ten letters of interactions (missing_field and invalid_field) and five of sessions.
async fn with_letters(test: &str) -> (Space, Worker) {
    let space = Space::new(test).await;
    let mut redis = space.redis().await;
    let missing: Vec<_> = (0..6).map(|n| json!({"session_id": format!("m{n}")})).collect();
    let invalid: Vec<_> = (0..4).map(|n| json!({"session_id": format!("i{n}"), "user_id": "u", "confidence": 7})).collect();
    let sessions: Vec<_> = (0..5).map(|n| json!({"session_id": format!("s{n}"), "user_id": "u"})).collect();
    send_each(&mut redis, &space.stream("interactions"), &missing).await;
    send::many(&mut redis, &space.stream("interactions"), &send::packed(&invalid, 4)).await;
    send_each(&mut redis, &space.stream("sessions"), &sessions).await;
    let worker = Worker::start(&space, &[]);
    settled(&space, &["interactions", "sessions"]).await;
    (space, worker)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_are_listed_by_lane_code_and_time() {
    let (space, _worker) = with_letters("dead_list").await;
    assert_eq!(list(&space, &[]).len(), 15);
    assert_eq!(list(&space, &["--lane", "sessions"]).len(), 5);
    assert_eq!(list(&space, &["--lane", "interactions", "--code", "invalid_field"]).len(), 4);
    assert_eq!(list(&space, &["--code", "missing_field"]).len(), 11);
    assert_eq!(list(&space, &["--since", "1h"]).len(), 15);
    assert_eq!(list(&space, &["--until", "1h"]).len(), 0);
    assert_eq!(list(&space, &["--limit", "3"]).len(), 3);
    let text = dead(&space, &["list", "--lane", "sessions"]);
    assert!(text.contains("missing_field") && text.contains("`status`"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_is_shown_with_its_event() {
    let (space, _worker) = with_letters("dead_show").await;
    let letters = list(&space, &["--code", "invalid_field"]);
    let third = letters.iter().find(|letter| letter["index"] == 2).expect("the third of the array");
    // The dead letters of two lanes may have the same id: two streams, one millisecond.
    let shown: Json =
        serde_json::from_str(&dead(&space, &["show", third["id"].as_str().unwrap(), "--lane", "interactions", "--json"]))
            .unwrap();
    assert_eq!(shown["event"], json!({"session_id": "i2", "user_id": "u", "confidence": 7}));
    assert_eq!(shown["index"], 2);
    assert!(shown["reason"].as_str().unwrap().contains("confidence"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replayed_one_keeps_its_identity_and_is_removed_once_it_is_back() {
    let space = Space::new("dead_replay").await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    let database = space.database().await;
    space
        .administrator()
        .await
        .batch_execute("ALTER TABLE interaction_logs ADD CONSTRAINT no_x CHECK (intent <> 'x')")
        .await
        .unwrap();
    // Neither id nor time of their own: both derive from the place where they first stood.
    let events: Vec<_> = (0..6).map(|n| json!({"session_id": format!("r{n}"), "user_id": "u", "intent": "x"})).collect();
    let entries = send::many(&mut redis, &stream, &send::packed(&events, 3)).await;
    let _worker = Worker::start(&space, &[("AEGIS_LANES", "interactions")]);
    settled(&space, &["interactions"]).await;
    assert_eq!(list(&space, &["--code", "rejected"]).len(), 6);

    dead(&space, &["replay", "--all", "--dry-run"]);
    assert_eq!(list(&space, &[]).len(), 6, "nothing is done in a dry run");
    // Too early: it comes back as one dead letter, with the same origin.
    dead(&space, &["replay", "--all"]);
    settled(&space, &["interactions"]).await;
    let again = list(&space, &[]);
    assert_eq!(again.len(), 6);
    assert!(again.iter().all(|letter| entries.contains(&letter["entry"].as_str().unwrap().to_owned())), "{again:?}");

    space.administrator().await.batch_execute("ALTER TABLE interaction_logs DROP CONSTRAINT no_x").await.unwrap();
    let one = again[0]["id"].as_str().unwrap().to_owned();
    dead(&space, &["replay", &one]);
    settled(&space, &["interactions"]).await;
    assert_eq!(stores::count(&database, "interaction_logs").await, 1);
    assert_eq!(list(&space, &[]).len(), 5);
    dead(&space, &["replay", "--all"]);
    settled(&space, &["interactions"]).await;
    assert_eq!(list(&space, &[]).len(), 0);

    let mut rows: Vec<_> =
        stores::interactions(&database).await.into_iter().map(|row| (row.session_id, row.event_id, row.occurred_at_us)).collect();
    rows.sort();
    let wanted = |n: usize| {
        let entry = &entries[n / 3];
        let id = Uuid::new_v5(&NAMESPACE, format!("{stream}\n{entry}\n{}", n % 3).as_bytes());
        (format!("r{n}"), id, entry.split_once('-').unwrap().0.parse::<i64>().unwrap() * 1000)
    };
    assert_eq!(rows, (0..6).map(wanted).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_are_dropped_on_request_only() {
    let (space, _worker) = with_letters("dead_drop").await;
    dead(&space, &["drop", "--all", "--lane", "sessions", "--dry-run"]);
    assert_eq!(list(&space, &[]).len(), 15);
    let settings = space.settings_of("operator");
    let settings: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let unasked = worker::command(&["dead", "drop", "--all"], &settings);
    assert!(!unasked.status.success(), "without a terminal and without --yes: {unasked:?}");
    assert_eq!(list(&space, &[]).len(), 15);
    dead(&space, &["drop", "--all", "--lane", "sessions", "--yes"]);
    assert_eq!(list(&space, &["--lane", "sessions"]).len(), 0);
    let one = list(&space, &[])[0]["id"].as_str().unwrap().to_owned();
    dead(&space, &["drop", &one, "--yes"]);
    assert_eq!(list(&space, &[]).len(), 9);
}

#[tokio::test]
async fn their_number_is_bounded_and_reaching_the_bound_is_told() {
    let space = Space::new("dead_bound").await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    let worker = Worker::start(&space, &[("AEGIS_LANES", "interactions"), ("AEGIS_DEAD_MAX", "30")]);
    worker.ready().await;
    let bad: Vec<_> = (0..50).map(|n| json!({"session_id": format!("b{n}")})).collect();
    let ids = send_each(&mut redis, &stream, &bad).await;
    settled(&space, &["interactions"]).await;
    let letters = stores::dead_letters(&mut redis, &space.dead("interactions")).await;
    assert_eq!(letters.len(), 30);
    let metrics = worker.metrics().await;
    assert_eq!(metrics.get("aegis_dead_letters_dropped_total", &[("lane", "interactions")]), 20.0);
    assert_eq!(metrics.get("aegis_events_dead_total", &[("lane", "interactions"), ("code", "missing_field")]), 50.0);
    assert!(!lines(&worker, "the dead-letter stream is full").is_empty(), "{}", worker.log());
    assert!(letters.iter().all(|letter| ids.contains(&letter.text("src_id"))));
}

#[tokio::test]
async fn an_entry_that_two_workers_have_in_hand_is_set_aside_once() {
    let space = Space::new("dead_twice").await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    space
        .administrator()
        .await
        .batch_execute("ALTER TABLE interaction_logs ADD CONSTRAINT no_x CHECK (intent <> 'x')")
        .await
        .unwrap();
    let lock = TableLock::take(&space, "interaction_logs").await;
    let settings = [("AEGIS_LANES", "interactions"), ("AEGIS_CLAIM_IDLE", "1s")];
    let frozen = Worker::start(&space, &settings);
    frozen.ready().await;
    let bad: Vec<_> = (0..20).map(|n| json!({"session_id": format!("b{n}"), "user_id": "u", "intent": "x"})).collect();
    send_each(&mut redis, &stream, &bad).await;
    until_pending(&mut redis, &stream, 20).await;
    frozen.signal(Signal::STOP);
    let heir = Worker::start(&space, &settings);
    until("the other to take them over", LONG, async || {
        (heir.metrics().await.get("aegis_entries_reclaimed_total", &[("lane", "interactions")]) == 20.0).then_some(())
    })
    .await;
    // Now both have them in hand.
    frozen.signal(Signal::CONT);
    lock.release().await;
    settled(&space, &["interactions"]).await;
    until("both to have judged them", SOON, async || {
        let judged = async |worker: &Worker| {
            worker.metrics().await.get("aegis_events_dead_total", &[("lane", "interactions"), ("code", "rejected")])
        };
        (judged(&frozen).await == 20.0 && judged(&heir).await == 20.0).then_some(())
    })
    .await;
    assert_eq!(stores::length(&mut redis, &space.dead("interactions")).await, 20);
}
