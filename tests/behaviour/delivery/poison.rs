//! One event that cannot be written, or that kills the worker, does not take others with it.

use std::time::Duration;

use serde_json::json;

use super::kit::{interactions, send_each, settled};
use crate::support::fold::{self, Update};
use crate::support::{LONG, Space, Worker, send, stores, until};

#[tokio::test]
async fn an_event_that_the_table_refuses_is_set_aside_and_its_neighbours_are_written() {
    let space = Space::new("refused_row").await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    let database = space.administrator().await;
    database.batch_execute("ALTER TABLE interaction_logs ADD CONSTRAINT no_poison CHECK (intent <> 'poison')").await.unwrap();
    let mut events = interactions(0..400);
    let poisoned = [0, 7, 8, 250, 399];
    for n in poisoned {
        events[n]["intent"] = json!("poison");
    }
    // Single events and arrays alike.
    let (singles, arrays) = events.split_at(200);
    send_each(&mut redis, &stream, singles).await;
    send::many(&mut redis, &stream, &send::packed(arrays, 50)).await;
    let worker = Worker::start(&space, &[("AEGIS_LANES", "interactions")]);
    settled(&space, &["interactions"]).await;

    let mut found: Vec<_> = stores::interactions(&database).await.into_iter().map(|row| row.session_id).collect();
    found.sort_unstable();
    let mut wanted: Vec<_> = (0..400).filter(|n| !poisoned.contains(n)).map(|n| format!("s{n}")).collect();
    wanted.sort_unstable();
    assert_eq!(found, wanted);
    let letters = stores::dead_letters(&mut redis, &space.dead("interactions")).await;
    assert_eq!(letters.len(), poisoned.len());
    for letter in &letters {
        assert_eq!(letter.text("code"), "rejected");
        assert!(letter.text("reason").contains("no_poison"), "{}", letter.text("reason"));
    }
    let in_array: Vec<_> = letters.iter().map(stores::DeadLetter::index).collect();
    assert!(in_array.contains(&49), "the last of the last array: {in_array:?}");
    let metrics = worker.metrics().await;
    assert_eq!(metrics.get("aegis_events_dead_total", &[("lane", "interactions"), ("code", "rejected")]), 5.0);
    assert_eq!(metrics.get("aegis_events_written_total", &[("lane", "interactions")]), 395.0);
}

#[tokio::test]
async fn a_session_update_that_the_table_refuses_leaves_no_trace_in_its_session() {
    let space = Space::new("refused_update").await;
    let (mut redis, stream) = (space.redis().await, space.stream("sessions"));
    let database = space.administrator().await;
    database.batch_execute("ALTER TABLE session_events ADD CONSTRAINT no_poison CHECK (seq <> 666)").await.unwrap();
    let update = |n: u32| Update {
        event_id: uuid::Uuid::from_u128(rand::random()),
        occurred_at_us: (send::now_ms() - 60_000) * 1000 + i64::from(n),
        session_id: format!("session-{}", n % 7),
        user_id: format!("user-{n}"),
        status: ["started", "updated", "ended"][n as usize % 3].to_owned(),
        seq: Some(if n.is_multiple_of(20) { 666 } else { i64::from(n % 50) }),
        state: Some(json!({"n": n})),
    };
    let updates: Vec<_> = (0..300).map(update).collect();
    let events: Vec<_> = updates.iter().map(Update::event).collect();
    send::many(&mut redis, &stream, &send::packed(&events, 10)).await;
    let _worker = Worker::start(&space, &[("AEGIS_LANES", "sessions")]);
    settled(&space, &["sessions"]).await;

    let good: Vec<_> = updates.iter().filter(|update| update.seq != Some(666)).cloned().collect();
    assert_eq!(stores::count(&database, "session_events").await, good.len() as i64);
    let wanted = fold::sessions(&good);
    assert_eq!(stores::sessions(&database).await, wanted);
    for (session, row) in &wanted {
        let hash = stores::session_hash(&mut redis, &space.session_key(session)).await;
        assert_eq!(stores::hash_as_row(&hash), Some(row.in_milliseconds()));
    }
    let letters = stores::dead_letters(&mut redis, &space.dead("sessions")).await;
    assert_eq!(letters.len(), updates.len() - good.len());
    assert!(letters.iter().all(|letter| letter.text("code") == "rejected"));
}

#[tokio::test]
async fn an_event_that_is_too_long_for_an_index_of_the_teams_own_is_set_aside() {
    let space = Space::new("long_for_index").await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    let database = space.administrator().await;
    database.batch_execute("CREATE INDEX ON interaction_logs (transcript)").await.unwrap();
    let mut events = interactions(0..100);
    // Nothing that compression makes short.
    let long: String = (0..20_000).map(|_| char::from(rand::random_range(b'a'..=b'z'))).collect();
    events[60]["transcript"] = json!(long);
    send::many(&mut redis, &stream, &send::packed(&events, 10)).await;
    let _worker = Worker::start(&space, &[("AEGIS_LANES", "interactions")]);
    settled(&space, &["interactions"]).await;
    assert_eq!(stores::count(&database, "interaction_logs").await, 99);
    let letters = stores::dead_letters(&mut redis, &space.dead("interactions")).await;
    assert_eq!(
        letters.iter().map(|letter| (letter.text("code"), letter.index())).collect::<Vec<_>>(),
        [("rejected".to_owned(), 0)]
    );
}

/// The key of the advisory lock that the killer's row waits for: what the worker "does" with the killer in hand.
const KEY: i64 = 4_711;

#[tokio::test]
async fn an_entry_that_kills_the_worker_each_time_does_not_kill_it_for_ever() {
    const DELIVERIES_MAX: u64 = 4;
    let space = Space::new("killer").await;
    let (mut redis, stream) = (space.redis().await, space.stream("interactions"));
    let database = space.administrator().await;
    database
        .batch_execute(&format!(
            "CREATE FUNCTION stop_here() RETURNS trigger LANGUAGE plpgsql AS
               'BEGIN IF NEW.intent = ''killer'' THEN PERFORM pg_advisory_xact_lock({KEY}); END IF; RETURN NEW; END';
             CREATE TRIGGER stop_here BEFORE INSERT ON interaction_logs FOR EACH ROW EXECUTE FUNCTION stop_here();
             SELECT pg_advisory_lock({KEY})"
        ))
        .await
        .unwrap();
    let mut events = interactions(0..41);
    events[20]["intent"] = json!("killer");
    let ids = send_each(&mut redis, &stream, &events).await;
    let settings = [("AEGIS_LANES", "interactions"), ("AEGIS_CONSUMER", "it"), ("AEGIS_MAX_DELIVERIES", "4")];
    let mut deaths = 0;
    let letters = loop {
        let mut worker = Worker::start(&space, &settings);
        let outcome = until("the killer to be in hand, or set aside", LONG, async || {
            let letters = stores::dead_letters(&mut redis, &space.dead("interactions")).await;
            if !letters.is_empty() {
                return Some(Some(letters));
            }
            let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND datname = current_database()";
            (database.query_one(waiting, &[]).await.ok()?.get::<_, i64>(0) > 0).then_some(None)
        })
        .await;
        if let Some(letters) = outcome {
            settled(&space, &["interactions"]).await;
            break letters;
        }
        worker.kill();
        deaths += 1;
        assert!(deaths <= DELIVERIES_MAX + 1, "it kills the worker for ever");
        let end = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity \
                   WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name = 'aegis-ingest'";
        database.query(end, &[]).await.unwrap();
    };
    assert!(deaths >= DELIVERIES_MAX, "set aside after {deaths} deaths");
    assert_eq!(
        letters.len(),
        1,
        "the killer alone: {:?}",
        letters.iter().map(|letter| letter.text("src_id")).collect::<Vec<_>>()
    );
    assert_eq!(letters[0].text("src_id"), ids[20]);
    assert_eq!(letters[0].text("code"), "rejected");
    assert!(letters[0].text("reason").contains("delivered"), "{}", letters[0].text("reason"));
    let rows = until("its neighbours", Duration::from_secs(20), async || {
        let rows = stores::count(&database, "interaction_logs").await;
        (rows == 40).then_some(rows)
    });
    assert_eq!(rows.await, 40);
}
