//! What has to be changed first is said at the start, and ends the program.

use std::time::Duration;

use super::kit::{aside, at_work, lines, told};
use crate::support::proxy::{Direction, Mode, Proxy};
use crate::support::servers::{self, OwnRedis};
use crate::support::space::Stores;
use crate::support::{LONG, Space, Worker, rights, until};

/// Ends with status 1 and says why.
async fn gives_up(mut worker: Worker, reason: &str) {
    until("the worker to give up", LONG, async || (!worker.is_running()).then_some(())).await;
    assert_eq!(worker.wait_exit(Duration::from_secs(1)).code(), Some(1), "{}", worker.log());
    let said = lines(&worker, "cannot work like this");
    assert_eq!(said.len(), 1, "{}", worker.log());
    let error = told(&said[0], "error").as_str().unwrap_or_default();
    assert!(error.contains(reason), "{error}");
    assert!(!worker.log().contains("wrong-secret"), "a password is not shown");
}

#[tokio::test]
async fn a_wrong_database_password_ends_it() {
    let space = Space::new("start_pg_password").await;
    let url = rights::as_user(&space.database_url, "aegis_worker", "wrong-secret");
    for migrate in ["true", "false"] {
        let settings = [("AEGIS_DATABASE_URL", url.as_str()), ("AEGIS_MIGRATE_ON_START", migrate)];
        gives_up(Worker::start(&space, &settings), "password").await;
    }
}

#[tokio::test]
async fn a_missing_database_ends_it() {
    let space = Space::new("start_pg_database").await;
    let url = format!("{}_not_there", space.database_url_of("worker"));
    gives_up(Worker::start(&space, &[("AEGIS_DATABASE_URL", url.as_str())]), "does not exist").await;
}

#[tokio::test]
async fn a_missing_table_ends_it() {
    let space = Space::unmigrated("start_no_tables").await;
    gives_up(Worker::start(&space, &[("AEGIS_MIGRATE_ON_START", "false")]), "interaction_logs").await;
}

#[tokio::test]
async fn a_table_that_somebody_dropped_ends_it_though_migrations_are_up_to_date() {
    let space = Space::new("start_dropped_table").await.with_all_rights();
    space.administrator().await.batch_execute("DROP TABLE session_events").await.unwrap();
    gives_up(Worker::start(&space, &[]), "session_events").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_redis_password_ends_it() {
    let own = aside(OwnRedis::new);
    let space = Space::with("start_redis_password", Stores { redis_url: Some(own.url()), ..Stores::default() }).await;
    let mut command = redis::cmd("ACL");
    let _: String = command.arg("SETUSER").arg("default").arg("off").query_async(&mut space.redis().await).await.unwrap();
    let wrong = rights::as_user(&space.redis_url_of("worker"), &format!("{}-worker", space.prefix), "wrong-secret");
    gives_up(Worker::start(&space, &[("AEGIS_REDIS_URL", wrong.as_str())]), "refuses this user").await;
    gives_up(Worker::start(&space, &[("AEGIS_REDIS_URL", &own.url())]), "refuses this user").await;
    let worker = Worker::start(&space, &[]);
    worker.ready().await;
}

#[tokio::test]
async fn a_connection_that_breaks_while_the_schema_is_looked_at_is_waited_out() {
    let direct = Space::new("start_cut").await;
    let proxy = Proxy::start(servers::postgres().port()).await;
    let database_url = direct.database_url.replace(&format!(":{}/", servers::postgres().port()), &format!(":{}/", proxy.port()));
    let space = Space { database_url, ..direct.clone() };
    for round in 0..14 {
        // From the first words of the server to the end of the look.
        proxy.set(Mode::CutAfter(Direction::ToClient, 150 * round));
        let mut worker = Worker::start(&space, &[("AEGIS_LANES", "interactions")]);
        at_work(&direct, &worker, "interactions").await;
        proxy.set(Mode::Pass);
        worker.stop();
    }
    assert!(proxy.cuts() >= 10, "{} cuts", proxy.cuts());
}

#[tokio::test]
async fn stores_that_are_not_there_yet_are_waited_for() {
    let space = Space::new("start_nobody_there").await;
    let closed = crate::support::servers::free_port();
    let mut worker = Worker::start(
        &space,
        &[
            ("AEGIS_REDIS_URL", &format!("redis://127.0.0.1:{closed}")),
            ("AEGIS_DATABASE_URL", &format!("postgres://aegis:aegis@127.0.0.1:{closed}/aegis")),
            ("AEGIS_CHROMA_URL", &format!("http://127.0.0.1:{closed}")),
        ],
    );
    until("it to wait", LONG, async || (!lines(&worker, "waiting: tries again").is_empty()).then_some(())).await;
    assert!(worker.is_running());
    let ready = until("an answer", LONG, async || worker.get("/readyz").await).await;
    assert_eq!(ready.status, 503);
    worker.stop();
}
