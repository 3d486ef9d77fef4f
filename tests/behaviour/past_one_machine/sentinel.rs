//! One Redis behind sentinels: its primary is killed, its replica promoted, and the old one comes back as a replica.

use std::time::Instant;

use super::load::Load;
use super::say;
use crate::support::cluster::{Primaries as _, Watched};
use crate::support::space::Stores;
use crate::support::{LONG, Space, Worker, until, worker};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_survives_a_failover() {
    let mut watched = Watched::start().await;
    let space = Space::with("sentinel", Stores { redis_url: Some(watched.url()), ..Stores::default() }).await;
    watched.make_users(&space.prefix).await;
    let mut workers: Vec<_> = (0..2).map(|_| Worker::start(&space, &[("AEGIS_CLAIM_IDLE", "3s")])).collect();
    for worker in &workers {
        worker.ready().await;
    }
    let mut load = Load::new(&space, 1, 10);
    for _ in 0..5 {
        load.send(&watched, 400).await;
    }
    // One sentinel less: the two others agree.
    tokio::task::block_in_place(|| watched.sentinel(0).kill());
    let killed = Instant::now();
    let (old, new) = watched.fail_over().await;
    let promoted = killed.elapsed();
    for _ in 0..5 {
        load.send(&watched, 400).await;
    }
    // The old primary starts as one, until the sentinels make it a replica; nobody must write to it.
    tokio::task::block_in_place(|| watched.node(old).start());
    until("the old primary to be a replica", LONG, async || {
        let text: String = redis::cmd("INFO").arg("replication").query_async(&mut watched.at(old).await?).await.ok()?;
        text.contains("role:slave").then_some(())
    })
    .await;
    for _ in 0..5 {
        load.send(&watched, 400).await;
    }
    load.update_sessions(&watched, "ended").await;
    load.settled(&watched, LONG).await;
    load.verify(&watched).await;
    say(&format!(
        "sentinel: {} interactions; a replica was promoted {:.1} s after the primary {old} was killed ({new} now); {} entries sent again",
        load.sent,
        promoted.as_secs_f64(),
        load.again()
    ));
    for worker in &mut workers {
        worker.stop();
    }
    let user = load.user(1);
    let erase = ["erase", "--user-id", &user, "--yes"];
    for (user, arguments) in
        [("operator", &["status"][..]), ("worker", &["check"]), ("operator", &["dead", "list"]), ("eraser", &erase)]
    {
        let mut settings = space.settings_of(user);
        if user == "eraser" {
            settings.push(("AEGIS_DATABASE_URL".to_owned(), space.database_url_of(user)));
        }
        let settings: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let output = tokio::task::block_in_place(|| worker::command(arguments, &settings));
        let (text, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {}\n{text}{error}", output.status);
    }
    let left = "SELECT count(*) FROM interaction_logs WHERE user_id = $1";
    assert_eq!(space.database().await.query_one(left, &[&user]).await.unwrap().get::<_, i64>(0), 0, "rows of whom was erased");
}
