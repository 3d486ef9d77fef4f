//! What is down holds up nothing else, and nothing accumulates in the worker.

use std::time::Instant;

use serde_json::json;

use super::kit::{at_work, each_is_one_row, interactions, send_each, settled, until_pending, until_retries};
use crate::support::proxy::{Mode, Proxy};
use crate::support::{LONG, Space, Worker, send, servers, stores, until};

fn vectors(numbers: std::ops::Range<usize>) -> Vec<serde_json::Value> {
    numbers.map(|n| json!({"id": format!("v{n}"), "embedding": [n as f32 + 0.5, 1.0, 2.0]})).collect()
}

#[tokio::test]
async fn chroma_down_does_not_hold_up_interactions() {
    let direct = Space::new("chroma_down").await;
    let proxy = Proxy::start(servers::chroma().port()).await;
    let space = Space { chroma_url: format!("http://127.0.0.1:{}", proxy.port()), ..direct.clone() };
    let worker = Worker::start(&space, &[]);
    at_work(&space, &worker, "interactions").await;
    let mut redis = space.redis().await;
    let write = async |redis: &mut redis::aio::MultiplexedConnection, from: usize| {
        let began = Instant::now();
        for step in 0..20 {
            let mut events = interactions(from + step * 50..from + (step + 1) * 50);
            events[0]["embedding"] = json!([1.0, 2.0, 3.0]);
            send_each(redis, &space.stream("interactions"), &events).await;
            settled(&space, &["interactions"]).await;
        }
        began.elapsed()
    };
    let before = write(&mut redis, 0).await;
    proxy.set(Mode::Blackhole);
    send::many(&mut redis, &space.stream("embeddings"), &send::packed(&vectors(0..3_000), 1)).await;
    until_pending(&mut redis, &space.stream("embeddings"), 500).await;
    let meanwhile = write(&mut redis, 1_000).await;
    each_is_one_row(&space.database().await, 0..2_000).await;
    // The machine is shared: what is ruled out is waiting for Chroma, whose deadline is a minute.
    assert!(meanwhile < before * 3 + std::time::Duration::from_secs(5), "{before:?} before, {meanwhile:?} meanwhile");
    proxy.set(Mode::Refuse);
    until_retries(&worker, "embeddings", "chroma", 2.0).await;
    proxy.set(Mode::Pass);
    settled(&space, &["embeddings"]).await;
    assert_eq!(stores::record_count(&direct.chroma(), &direct.collection).await, 3_040);
}

#[tokio::test]
async fn postgres_down_does_not_stop_embeddings() {
    let direct = Space::new("pg_down").await;
    let proxy = Proxy::start(servers::postgres().port()).await;
    let database_url = direct.database_url.replace(&format!(":{}/", servers::postgres().port()), &format!(":{}/", proxy.port()));
    let space = Space { database_url, ..direct.clone() };
    let worker = Worker::start(&space, &[]);
    at_work(&space, &worker, "interactions").await;
    proxy.set(Mode::Refuse);
    let mut redis = space.redis().await;
    send_each(&mut redis, &space.stream("interactions"), &interactions(0..500)).await;
    until_retries(&worker, "interactions", "database", 2.0).await;
    send::many(&mut redis, &space.stream("embeddings"), &send::packed(&vectors(0..1_000), 10)).await;
    settled(&space, &["embeddings"]).await;
    assert_eq!(stores::record_count(&direct.chroma(), &direct.collection).await, 1_000);
    assert_eq!(stores::pending(&mut redis, &space.stream("interactions"), "aegis").await, 500);
    proxy.set(Mode::Pass);
    settled(&space, &["interactions"]).await;
    each_is_one_row(&direct.database().await, 0..500).await;
}

#[tokio::test]
async fn postgres_down_with_a_large_backlog_fills_no_memory() {
    const BACKLOG: usize = 120_000;
    let direct = Space::new("pg_down_backlog").await;
    let proxy = Proxy::start(servers::postgres().port()).await;
    let database_url = direct.database_url.replace(&format!(":{}/", servers::postgres().port()), &format!(":{}/", proxy.port()));
    let space = Space { database_url, ..direct.clone() };
    let worker = Worker::start(&space, &[("AEGIS_LANES", "interactions")]);
    at_work(&space, &worker, "interactions").await;
    proxy.set(Mode::Refuse);
    // Some 150 MB, in entries of twenty events.
    let transcript = "what was said ".repeat(80);
    for chunk in 0..BACKLOG / 10_000 {
        let mut events = interactions(chunk * 10_000..(chunk + 1) * 10_000);
        for event in &mut events {
            event["transcript"] = transcript.as_str().into();
        }
        send::many(&mut space.redis().await, &space.stream("interactions"), &send::packed(&events, 20)).await;
    }
    until_retries(&worker, "interactions", "database", 10.0).await;
    // Until it reads no more: its hands are full.
    let mut before = -1.0;
    until("the reading to pause", LONG, async || {
        let read = worker.metrics().await.get("aegis_entries_read_total", &[("lane", "interactions")]);
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        (std::mem::replace(&mut before, read) == read && read > 0.0).then_some(())
    })
    .await;
    assert!(before < BACKLOG as f64 / 20.0 / 2.0, "{before} entries were read of {}", BACKLOG / 20);
    proxy.set(Mode::Pass);
    settled(&space, &["interactions"]).await;
    assert_eq!(stores::count(&direct.database().await, "interaction_logs").await, BACKLOG as i64);
    let peak = worker.rss_max() >> 20;
    assert!(peak <= 96, "{peak} MiB at its peak");
}
