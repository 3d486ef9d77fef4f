//! What README shows producers is what works: its examples are run as they stand there.

use crate::support::servers::{OwnRedis, in_root};
use crate::support::space::Stores;
use crate::support::{SOON, Space, Worker, stores, until};

const README: &str = include_str!("../../README.md");

/// The fenced blocks of a language.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    README.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap_or_default()).collect()
}

#[tokio::test]
async fn the_producers_examples_of_readme_run_as_they_stand() {
    let redis = OwnRedis::new();
    let space = Space::with("readme", Stores { redis_url: Some(redis.url()), ..Stores::default() }).await;
    let space = space.with_prefix("aegis").await;
    let port = redis.port();

    let commands: Vec<_> =
        blocks("sh").into_iter().flat_map(str::lines).filter(|line| line.starts_with("redis-cli XADD")).collect();
    assert_eq!(commands.len(), 3, "an example for each lane: {commands:?}");
    for command in commands {
        let command = command.replacen("redis-cli", &format!("redis-cli -e -p {port}"), 1);
        let output = in_root(&["sh", "-c", &command]).output().expect("sh");
        assert!(output.status.success(), "{command}: {output:?}");
    }
    let python = blocks("python");
    assert_eq!(python.len(), 1, "one example in Python");
    let script = python[0].replace("redis.Redis()", &format!("redis.Redis(port={port})"));
    assert_ne!(script, python[0], "the example connects by redis.Redis()");
    let output = in_root(&["python3", "-c", &script]).output().expect("python3");
    assert!(output.status.success(), "{output:?}");

    let worker = Worker::start(&space, &[]);
    worker.ready().await;
    let database = space.database().await;
    until("three interactions and a session event", SOON, async || {
        let interactions = stores::count(&database, "interaction_logs").await;
        (interactions == 3 && stores::count(&database, "session_events").await == 1).then_some(())
    })
    .await;
    let mut said: Vec<_> =
        stores::interactions(&database).await.into_iter().map(|row| row.transcript.unwrap_or_default()).collect();
    said.sort_unstable();
    assert_eq!(said, ["lights on", "lights on", "warmer"]);
    until("the vector", SOON, async || {
        let records = stores::records(&space.chroma(), &space.collection, &["s1:0"]).await;
        records.get("s1:0").filter(|record| record.document.as_deref() == Some("lights on")).map(|_| ())
    })
    .await;
}
