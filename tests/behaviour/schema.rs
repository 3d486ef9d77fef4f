//! The schema: any number of programs at once, older ones on newer schemas.

use serde_json::json;

use crate::support::proxy::{Direction, Mode, Proxy};
use crate::support::worker::command;
use crate::support::{LONG, SOON, Space, Worker, send, servers, stores, until};

#[tokio::test]
async fn eight_migrations_at_once_all_succeed() {
    let space = Space::unmigrated("eight_at_once").await;
    let run = || {
        let url = space.database_url_of("migrator");
        std::thread::spawn(move || command(&["migrate"], &[("AEGIS_DATABASE_URL", url.as_str())]))
    };
    let runs: Vec<_> = (0..8).map(|_| run()).collect();
    for run in runs {
        let output = run.join().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    let database = space.administrator().await;
    let row = database.query_one("SELECT count(*), count(DISTINCT version) FROM refinery_schema_history", &[]).await.unwrap();
    assert!(row.get::<_, i64>(0) > 0 && row.get::<_, i64>(0) == row.get::<_, i64>(1), "each migration once");
    let hypertables = "SELECT count(*) FROM timescaledb_information.hypertables WHERE hypertable_name IN ('interaction_logs', 'session_events', 'embedding_log')";
    assert_eq!(database.query_one(hypertables, &[]).await.unwrap().get::<_, i64>(0), 3);
}

/// The tables of contract.md §4: columns, types, and the key's order.
#[tokio::test]
async fn the_tables_are_those_of_the_contract() {
    let space = Space::new("tables").await;
    let database = space.database().await;
    let columns = async |table: &str| -> String {
        let query = "SELECT string_agg(column_name || ' ' || data_type, ', ' ORDER BY ordinal_position) FROM information_schema.columns WHERE table_name = $1";
        database.query_one(query, &[&table]).await.unwrap().get(0)
    };
    let time = "timestamp with time zone";
    assert_eq!(
        columns("interaction_logs").await,
        format!(
            "occurred_at {time}, event_id uuid, session_id text, user_id text, intent text, latency_ms double precision, confidence real, \
             channel text, locale text, transcript text, attributes jsonb, ingested_at {time}"
        )
    );
    assert_eq!(
        columns("session_events").await,
        format!(
            "occurred_at {time}, event_id uuid, session_id text, user_id text, status text, seq bigint, state jsonb, ingested_at {time}"
        )
    );
    let sessions = columns("sessions").await;
    let wanted = format!(
        "session_id text, user_id text, status text, seq bigint, started_at {time}, updated_at {time}, ended_at {time}, state jsonb"
    );
    assert!(sessions.starts_with(&wanted), "{sessions}");
    for table in ["interaction_logs", "session_events"] {
        let query =
            "SELECT string_agg(a.attname, ',' ORDER BY k.n) FROM pg_index i, unnest(i.indkey) WITH ORDINALITY k(column_number, n)
                     JOIN pg_attribute a ON a.attnum = k.column_number
                     WHERE i.indrelid = $1::text::regclass AND a.attrelid = i.indrelid AND i.indisunique GROUP BY i.indexrelid";
        let keys: Vec<String> = database.query(query, &[&table]).await.unwrap().iter().map(|row| row.get(0)).collect();
        assert_eq!(keys, ["occurred_at,event_id"], "{table}");
    }
}

#[tokio::test]
async fn an_older_program_starts_on_a_newer_schema() {
    let space = Space::new("newer_schema").await;
    let database = space.administrator().await;
    let future = "INSERT INTO refinery_schema_history (version, name, applied_on, checksum)
                  SELECT 9999, 'of_a_later_release', max(applied_on), '42' FROM refinery_schema_history";
    assert_eq!(database.execute(future, &[]).await.unwrap(), 1);
    let output = command(&["migrate"], &[("AEGIS_DATABASE_URL", &space.database_url_of("migrator"))]);
    assert!(output.status.success(), "{output:?}");
    let worker = Worker::start(&space, &[]);
    worker.ready().await;
    let mut redis = space.redis().await;
    send::json(&mut redis, &space.stream("interactions"), &json!({ "session_id": "s", "user_id": "u" })).await;
    worker.settled(&space, &["interactions"], SOON).await;
    assert_eq!(stores::count(&database, "interaction_logs").await, 1);
}

/// The connection breaks after so many bytes of answers, wherever in the start that is; the worker tries again.
#[tokio::test]
async fn a_connection_that_breaks_while_it_migrates_is_waited_out() {
    let direct = Space::new("migrate_cut").await.with_all_rights();
    let proxy = Proxy::start(servers::postgres().port()).await;
    let (_, name) = direct.database_url.rsplit_once('/').unwrap();
    let space = Space { database_url: format!("postgres://aegis:aegis@127.0.0.1:{}/{name}", proxy.port()), ..direct.clone() };
    for bytes in (200..4_000).step_by(200) {
        proxy.set(Mode::CutAfter(Direction::ToClient, bytes));
        let mut worker = Worker::start(&space, &[("AEGIS_LANES", "interactions")]);
        until(&format!("the schema after a cut at {bytes} bytes"), LONG, async || {
            assert!(worker.is_running(), "cut after {bytes} bytes: the worker ended:\n{}", worker.log());
            worker.log().contains("the schema is up to date").then_some(())
        })
        .await;
    }
    assert!(proxy.cuts() > 0, "nothing was cut");
}

#[tokio::test]
async fn workers_that_start_together_migrate_by_themselves() {
    let space = Space::unmigrated("start_together").await.with_all_rights();
    let workers: Vec<_> = (0..3).map(|_| Worker::start(&space, &[("AEGIS_LANES", "interactions")])).collect();
    for worker in &workers {
        worker.ready().await;
    }
    let mut redis = space.redis().await;
    send::json(&mut redis, &space.stream("interactions"), &json!({ "session_id": "s", "user_id": "u" })).await;
    workers[0].settled(&space, &["interactions"], LONG).await;
    assert_eq!(stores::count(&space.administrator().await, "interaction_logs").await, 1);
}

#[tokio::test]
async fn a_worker_that_may_not_migrate_says_what_is_missing() {
    let space = Space::unmigrated("may_not_migrate").await;
    let mut worker = Worker::start(&space, &[("AEGIS_MIGRATE_ON_START", "false")]);
    let status = worker.wait_exit(SOON);
    assert_eq!(status.code(), Some(1), "{}", worker.log());
    assert!(worker.log().contains("interaction_logs") && worker.log().contains("migrate"), "{}", worker.log());
}

#[test]
fn a_wrong_password_is_told_and_not_waited_out() {
    let url = format!("postgres://aegis_migrator:wrong-password@127.0.0.1:{}/aegis", servers::postgres().port());
    let output = command(&["migrate"], &[("AEGIS_DATABASE_URL", &url)]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("password") && !said.contains("wrong-password"), "{said}");
}
