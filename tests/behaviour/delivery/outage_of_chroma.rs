//! Chroma is away, or fails: waited out.

use rustix::process::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::kit::{aside, settled, until_retries, waits};
use crate::support::proxy::{Direction, Mode, Proxy};
use crate::support::servers::{self, OwnChroma};
use crate::support::space::Stores;
use crate::support::{LONG, SOON, Space, Worker, send, stores, until};

const LANE: (&str, &str) = ("AEGIS_LANES", "embeddings");

fn vectors(numbers: std::ops::Range<usize>) -> Vec<serde_json::Value> {
    numbers
        .map(|n| json!({"id": format!("v{n}"), "embedding": [n as f32 + 0.5, 1.0, 2.0], "document": format!("d{n}")}))
        .collect()
}

async fn send_vectors(space: &Space, numbers: std::ops::Range<usize>) {
    send::many(&mut space.redis().await, &space.stream("embeddings"), &send::packed(&vectors(numbers), 5)).await;
}

async fn all_there(space: &Space, count: usize) {
    settled(space, &["embeddings"]).await;
    let client = space.chroma();
    assert_eq!(stores::record_count(&client, &space.collection).await, count as u64);
    let ids: Vec<_> = (0..count).map(|n| format!("v{n}")).collect();
    let ids: Vec<_> = ids.iter().map(String::as_str).collect();
    let records = stores::records(&client, &space.collection, &ids).await;
    assert_eq!(records.len(), count);
    assert!((0..count).all(|n| records[&format!("v{n}")].document.as_deref() == Some(&format!("d{n}"))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_stopped_and_started_is_waited_for() {
    let mut own = aside(OwnChroma::new);
    let space = Space::with("chroma_stopped", Stores { chroma_url: Some(own.url()), ..Stores::default() }).await;
    let worker = Worker::start(&space, &[LANE]);
    worker.ready().await;
    send_vectors(&space, 0..100).await;
    settled(&space, &["embeddings"]).await;
    aside(|| own.stop(Signal::TERM));
    send_vectors(&space, 100..400).await;
    until_retries(&worker, "embeddings", "chroma", 4.0).await;
    aside(|| own.start());
    all_there(&space, 400).await;
    until("the end to be told", SOON, async || (waits(&worker, "embeddings").1 > 0).then_some(())).await;
    assert_eq!(waits(&worker, "embeddings"), (1, 1), "{}", worker.log());
}

#[tokio::test]
async fn requests_that_are_cut_before_and_after_their_effect_leave_each_vector_once() {
    let proxy = Proxy::start(servers::chroma().port()).await;
    let space = Space::new("chroma_cut").await;
    let direct = space.clone();
    let space = Space { chroma_url: format!("http://127.0.0.1:{}", proxy.port()), ..space };
    let worker = Worker::start(&space, &[LANE]);
    worker.ready().await;
    for round in 0..6_usize {
        let way = if round % 2 == 0 { Direction::ToServer } else { Direction::ToClient };
        proxy.set(Mode::CutAfter(way, 40 * round as u64));
        send_vectors(&space, round * 50..(round + 1) * 50).await;
        settled(&space, &["embeddings"]).await;
    }
    assert!(proxy.cuts() >= 3, "{} cuts", proxy.cuts());
    all_there(&direct, 300).await;
}

/// A server that answers every request with the same status and body.
async fn server_that_says(status: u16, body: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = vec![0; 64 * 1024];
                let _ = stream.read(&mut request).await;
                let head = format!("HTTP/1.1 {status} Nothing\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
            });
        }
    });
    port
}

#[tokio::test]
async fn server_faults_are_waited_out_whatever_their_status() {
    let faults = [
        (500, r#"{"error":"InternalError","message":"x"}"#),
        (503, "busy"),
        (429, ""),
        (400, r#"{"error":"InternalError","message":"Error in compaction: Failed to apply logs"}"#),
    ];
    for (status, body) in faults {
        let failing = server_that_says(status, body).await;
        let space = Space::new(&format!("chroma_{status}")).await;
        let broken = Space { chroma_url: format!("http://127.0.0.1:{failing}"), ..space.clone() };
        let mut worker = Worker::start(&broken, &[LANE, ("AEGIS_CLAIM_IDLE", "1s"), ("AEGIS_DRAIN_TIMEOUT", "100ms")]);
        send_vectors(&space, 0..20).await;
        until_retries(&worker, "embeddings", "chroma", 3.0).await;
        assert_eq!(stores::length(&mut *space.redis().await, &space.dead("embeddings")).await, 0, "{status} is no event's fault");
        worker.stop();
        let _healthy = Worker::start(&space, &[LANE, ("AEGIS_CLAIM_IDLE", "1s")]);
        all_there(&space, 20).await;
    }
}

#[tokio::test]
async fn a_collection_that_is_deleted_in_mid_flight_is_made_again() {
    let space = Space::new("chroma_deleted").await;
    let worker = Worker::start(&space, &[LANE]);
    worker.ready().await;
    send_vectors(&space, 0..10).await;
    settled(&space, &["embeddings"]).await;
    let url =
        format!("{}/api/v2/tenants/default_tenant/databases/default_database/collections/{}", space.chroma_url, space.collection);
    aegis_ingest::tls::install_provider();
    let deleted = reqwest::Client::new().delete(url).send().await.unwrap();
    assert!(deleted.status().is_success(), "{deleted:?}");
    send_vectors(&space, 10..20).await;
    settled(&space, &["embeddings"]).await;
    until("the later vectors", LONG, async || {
        (stores::record_count(&space.chroma(), &space.collection).await == 10).then_some(())
    })
    .await;
}
