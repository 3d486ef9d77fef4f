//! Retention on the Apache edition: the workers drop whole chunks, one worker at a time, and events too old for it are refused.

use serde_json::json;

use super::{migrate, owner, run, value};
use crate::support::{LONG, SOON, Space, Worker, send, stores, until, until_equal};

const KEEP_A_WEEK: &[(&str, &str)] = &[("AEGIS_RETENTION", "7d"), ("AEGIS_MAX_EVENT_AGE", "7d")];

/// Rows of 20 days, each 5 hours, in a table like `interaction_logs` or `session_events`.
async fn fill(database: &tokio_postgres::Client, table: &str, columns: &str) {
    let insert = format!(
        "INSERT INTO {table} SELECT now() - age * interval '5 hours', gen_random_uuid(), {columns} FROM generate_series(0, 96) AS age"
    );
    run(database, &insert).await;
}

/// Rows, and those of them in chunks that end within the last week: the day of the row, and one more, in UTC.
fn counts(table: &str) -> String {
    format!(
        "SELECT concat_ws(' of ', count(*) FILTER (WHERE date_trunc('day', occurred_at, 'UTC') + interval '1 day' > now() - interval '7 days'), count(*))
         FROM {table}"
    )
}

#[tokio::test]
async fn two_workers_drop_old_chunks_once_and_nothing_else() {
    let space = Space::new("retention").await;
    let database = owner(&space).await;
    // A hypertable of another migration that declares itself, and one of a team's own that does not.
    for table in ["archive", "own"] {
        let make = format!(
            "CREATE TABLE {table} (occurred_at timestamptz NOT NULL, event_id uuid NOT NULL);
             SELECT create_hypertable('{table}', by_range('occurred_at', interval '1 day'))"
        );
        run(&database, &make).await;
    }
    run(&database, "INSERT INTO aegis_hypertables VALUES ('archive', 'occurred_at, event_id')").await;
    fill(&database, "interaction_logs", "'s', 'u'").await;
    fill(&database, "session_events", "'s', 'u', 'started', 1").await;
    let fill_bare = |table: &str| {
        format!(
            "INSERT INTO {table} SELECT now() - age * interval '5 hours', gen_random_uuid() FROM generate_series(0, 96) AS age"
        )
    };
    run(&database, &fill_bare("archive")).await;
    run(&database, &fill_bare("own")).await;
    run(
        &database,
        "INSERT INTO sessions SELECT 's', 'u', 'started', 1, now() - interval '99 days', now(), NULL, NULL, gen_random_uuid()",
    )
    .await;
    let before = value(&database, &counts("interaction_logs")).await;
    let kept = before.split_once(" of ").unwrap().0.to_owned();
    assert!(before.ends_with(" of 97") && kept != "97", "{before}");
    let chunks = async || value(&database, "SELECT count(*) FROM timescaledb_information.chunks").await.parse::<f64>().unwrap();
    let chunks_before = chunks().await;

    migrate(&space, KEEP_A_WEEK);
    let settings = [KEEP_A_WEEK, &[("AEGIS_LANES", "interactions"), ("AEGIS_MIGRATE_ON_START", "false")]].concat();
    let workers = [Worker::start(&space, &settings), Worker::start(&space, &settings)];
    for table in ["interaction_logs", "session_events", "archive"] {
        until_equal(&format!("old rows of {table} to go"), SOON, format!("{kept} of {kept}"), async || {
            value(&database, &counts(table)).await
        })
        .await;
    }
    assert_eq!(value(&database, &counts("own")).await, before, "what is not declared stays");
    assert_eq!(value(&database, "SELECT count(*) FROM sessions").await, "1", "the state of a session stays");
    // Both workers have looked: each has written the line or found nothing, and the chunks were dropped once.
    let gone = chunks_before - chunks().await;
    assert!(gone >= 3.0 * 11.0, "{gone} chunks");
    until_equal("the workers to have counted", SOON, gone, async || {
        let [first, second] = [workers[0].metrics().await, workers[1].metrics().await];
        first.get("aegis_chunks_dropped_total", &[]) + second.get("aegis_chunks_dropped_total", &[])
    })
    .await;
    for mut worker in workers {
        worker.stop();
        assert!(!worker.log().contains("old chunks stay"), "{}", worker.log());
    }
}

/// While one drops, or migrates, others find nothing to do and do not wait; a call takes no more than a hundred chunks, and the
/// worker calls until nothing is left.
#[tokio::test]
async fn one_at_a_time_and_a_hundred_a_call() {
    let space = Space::new("retention_lock").await;
    migrate(&space, &[KEEP_A_WEEK, &[("AEGIS_CHUNK_INTERVAL", "1h")]].concat());
    let database = owner(&space).await;
    let rows =
        "INSERT INTO interaction_logs SELECT now() - interval '8 days' - age * interval '1 hour', gen_random_uuid(), 's', 'u'
                FROM generate_series(1, 130) AS age";
    run(&database, rows).await;
    let other = owner(&space).await;
    let calling = "SELECT coalesce(sum(chunks), 0) FROM aegis_drop_expired()";
    run(&other, "SET statement_timeout = '5s'").await;

    run(&database, "BEGIN").await;
    assert_eq!(value(&database, calling).await, "100");
    assert_eq!(value(&other, calling).await, "0", "somebody else is at it");
    run(&database, "ROLLBACK").await;
    run(&database, "SELECT pg_advisory_lock(418313103731)").await;
    assert_eq!(value(&other, calling).await, "0", "somebody migrates");
    run(&database, "SELECT pg_advisory_unlock(418313103731)").await;
    assert_eq!(stores::count(&other, "interaction_logs").await, 130);

    let worker =
        Worker::start(&space, &[KEEP_A_WEEK, &[("AEGIS_LANES", "interactions"), ("AEGIS_CHUNK_INTERVAL", "1h")]].concat());
    until_equal("all old rows to go", LONG, 0, async || stores::count(&other, "interaction_logs").await).await;
    until_equal("the count", SOON, 130.0, async || worker.metrics().await.get("aegis_chunks_dropped_total", &[])).await;
}

/// A retention that is taken back drops nothing more; one that was never set drops nothing at all.
#[tokio::test]
async fn without_a_retention_nothing_is_dropped() {
    let space = Space::new("retention_never").await;
    let database = owner(&space).await;
    fill(&database, "interaction_logs", "'s', 'u'").await;
    for settings in [&[][..], KEEP_A_WEEK, &[]] {
        migrate(&space, settings);
        let dropped = value(&database, "SELECT coalesce(sum(chunks), 0) FROM aegis_drop_expired()").await;
        assert_eq!(dropped == "0", settings.is_empty(), "{settings:?}: {dropped} chunks");
        if !settings.is_empty() {
            fill(&database, "interaction_logs", "'s', 'u'").await;
        }
    }
}

/// A reader of an old chunk is waited for briefly and not pushed aside; the next call drops it.
#[tokio::test]
async fn a_reader_of_old_rows_is_not_disturbed() {
    let space = Space::new("retention_reader").await;
    migrate(&space, KEEP_A_WEEK);
    let (database, reader) = (owner(&space).await, owner(&space).await);
    fill(&database, "interaction_logs", "'s', 'u'").await;
    run(&reader, "BEGIN").await;
    assert_eq!(value(&reader, "SELECT count(*) FROM interaction_logs").await, "97");
    let refused = database.simple_query("SELECT * FROM aegis_drop_expired()").await.unwrap_err();
    assert_eq!(refused.code(), Some(&tokio_postgres::error::SqlState::LOCK_NOT_AVAILABLE), "{refused:?}");
    assert_eq!(value(&reader, "SELECT count(*) FROM interaction_logs").await, "97");
    run(&reader, "COMMIT").await;
    assert_ne!(value(&database, "SELECT coalesce(sum(chunks), 0) FROM aegis_drop_expired()").await, "0");
}

/// An event that the next run would drop is a dead letter, also at a worker whose own bound is wider than what the database
/// was migrated with. A vector is under no retention of TimescaleDB's.
#[tokio::test]
async fn an_event_older_than_the_retention_is_set_aside() {
    let space = Space::new("retention_late").await;
    migrate(&space, KEEP_A_WEEK);
    let worker = Worker::start(&space, &[("AEGIS_MIGRATE_ON_START", "false")]);
    worker.ready().await;
    let mut redis = space.redis().await;
    let aged = |days: i64, more: serde_json::Value| {
        let mut event = json!({ "session_id": "s", "user_id": "u", "occurred_at": send::now_ms() - days * 86_400_000 });
        event.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        event
    };
    for days in [6, 8] {
        send::json(&mut redis, &space.stream("interactions"), &aged(days, json!({}))).await;
        send::json(&mut redis, &space.stream("sessions"), &aged(days, json!({ "status": "started" }))).await;
        send::json(&mut redis, &space.stream("embeddings"), &aged(days, json!({ "embedding": [1, 2] }))).await;
    }
    worker.settled(&space, &["interactions", "sessions", "embeddings"], LONG).await;
    let database = owner(&space).await;
    for (lane, table) in [("interactions", "interaction_logs"), ("sessions", "session_events")] {
        assert_eq!(stores::count(&database, table).await, 1);
        let dead = stores::dead_letters(&mut redis, &space.dead(lane)).await;
        let found: Vec<_> = dead.iter().map(|letter| letter.text("code")).collect();
        assert_eq!(found, ["time_out_of_range"], "{lane}");
        assert!(dead[0].text("reason").contains("7d"), "{}", dead[0].text("reason"));
    }
    assert_eq!(stores::dead_letters(&mut redis, &space.dead("embeddings")).await, []);
    until("the warning", SOON, async || worker.log().contains("before AEGIS_MAX_EVENT_AGE").then_some(())).await;
}
