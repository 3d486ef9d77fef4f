//! The vector of an interaction goes on to Chroma, and never holds up interactions.

use serde_json::{Value as Json, json};
use uuid::Uuid;

use crate::support::msgpack::Mp;
use crate::support::proxy::{Mode, Proxy};
use crate::support::space::Stores;
use crate::support::{LONG, SOON, Space, Worker, send, servers, stores, until, until_equal};

#[tokio::test]
async fn an_inline_embedding_is_a_row_and_a_record() {
    let space = Space::new("inline_embedding").await;
    let worker = Worker::start(&space, &[]);
    worker.ready().await;
    let mut redis = space.redis().await;
    let (full, bare) = (Uuid::from_u128(1 << 80), Uuid::from_u128(2 << 80));
    let at_ms = send::now_ms() - 5000;
    let stream = space.stream("interactions");
    let event = Mp::map([
        ("event_id", Mp::Bin(full.as_bytes().to_vec())),
        ("session_id", Mp::str("s1")),
        ("user_id", Mp::str("u1")),
        ("occurred_at", Mp::timestamp(at_ms / 1000, (at_ms % 1000) as u32 * 1_000_000 + 789_000)),
        ("intent", Mp::str("播放")),
        ("channel", Mp::str("phone")),
        ("locale", Mp::str("zh-CN")),
        ("transcript", Mp::str("放一首歌\n")),
        ("latency_ms", Mp::F64(12.5)),
        ("service", Mp::str("not for Chroma")),
        ("embedding", Mp::vector(&[3.0, 4.0, 0.0])),
    ]);
    send::data(&mut redis, &stream, &event).await;
    send::json(
        &mut redis,
        &stream,
        &json!({ "event_id": bare.to_string(), "session_id": "s2", "user_id": "u2", "embedding": [0, 1, 0] }),
    )
    .await;
    // Without event id: the record has the derived one, which the row has as well.
    let id = send::json(&mut redis, &stream, &json!({ "session_id": "s3", "user_id": "u3", "embedding": [0.5, 0.5, 1] })).await;
    send::json(&mut redis, &stream, &json!({ "session_id": "s4", "user_id": "u4" })).await;
    worker.settled(&space, &["interactions"], SOON).await;
    worker.settled(&space, &["embeddings"], SOON).await;

    let rows = stores::interactions(&space.database().await).await;
    assert_eq!(rows.len(), 4);
    let row = rows.iter().find(|row| row.event_id == full).expect("the row");
    assert_eq!((row.transcript.as_deref(), row.occurred_at_us), (Some("放一首歌\n"), at_ms * 1000 + 789));
    assert_eq!(row.attributes, Some(json!({ "service": "not for Chroma" })), "the vector is no attribute");
    let derived = rows.iter().find(|row| row.session_id == "s3").expect("the row").event_id;

    let chroma = space.chroma();
    let ids = [full, bare, derived].map(|id| id.to_string());
    let records = stores::records(&chroma, &space.collection, &ids.each_ref().map(String::as_str)).await;
    assert_eq!((records.len(), stores::record_count(&chroma, &space.collection).await), (3, 3));
    let record = &records[&full.to_string()];
    assert_eq!(record.document.as_deref(), Some("放一首歌\n"));
    let wanted = json!({ "session_id": "s1", "user_id": "u1", "intent": "播放", "channel": "phone", "locale": "zh-CN", "occurred_at": at_ms });
    assert_eq!(record.metadata.clone().map(Json::Object), Some(wanted));
    assert!(
        record.embedding.iter().zip([3.0, 4.0, 0.0_f32]).all(|(found, sent)| (found - sent).abs() <= 1e-6),
        "{:?}",
        record.embedding
    );

    // Absent ones are left out; the time of an interaction is that of its entry where it brought none.
    let record = &records[&bare.to_string()];
    assert_eq!(record.document, None);
    let keys: Vec<_> = record.metadata.as_ref().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["occurred_at", "session_id", "user_id"]);
    let ms: i64 = id.split('-').next().unwrap().parse().unwrap();
    assert_eq!(records[&derived.to_string()].metadata.as_ref().unwrap()["occurred_at"], ms);
}

#[tokio::test]
async fn interactions_flow_while_chroma_is_down_and_the_vectors_arrive_later() {
    let proxy = Proxy::start(servers::chroma().port()).await;
    let chroma_url = format!("http://127.0.0.1:{}", proxy.port());
    let space = Space::with("inline_outage", Stores { chroma_url: Some(chroma_url), ..Stores::default() }).await;
    let worker = Worker::start(&space, &[("AEGIS_CHROMA_TIMEOUT", "2s")]);
    worker.ready().await;
    let mut redis = space.redis().await;
    let database = space.database().await;
    let mut sent = 0_i64;
    // Refused, and then silent: the worse of the two.
    for mode in [Mode::Refuse, Mode::Blackhole] {
        proxy.set(mode);
        for _ in 0..5 {
            let events: Vec<_> = (0..100)
                .map(
                    |i| json!({ "session_id": "s", "user_id": "u", "transcript": format!("{sent} {i}"), "embedding": [i, 1, 2] }),
                )
                .collect();
            send::many(&mut redis, &space.stream("interactions"), &send::packed(&events, 10)).await;
            sent += 100;
            until_equal("rows while Chroma is away", SOON, sent, async || stores::count(&database, "interaction_logs").await)
                .await;
        }
        worker.settled(&space, &["interactions"], SOON).await;
        let unready = async || (worker.get("/readyz").await?.status == 503).then_some(());
        until("/readyz to tell of the outage", SOON, unready).await;
    }
    assert_eq!(stores::length(&mut redis, &space.dead("embeddings")).await, 0, "an outage is never a dead letter");
    proxy.set(Mode::Pass);
    worker.settled(&space, &["embeddings"], LONG).await;
    assert_eq!(stores::record_count(&space.chroma(), &space.collection).await, sent as u64);
    let metrics = worker.metrics().await;
    assert_eq!(metrics.get("aegis_events_dead_total", &[("lane", "embeddings"), ("code", "rejected")]), 0.0);
    worker.ready().await;
}

/// A row that the database has already sends no second vector to harm: the record is the same.
#[tokio::test]
async fn an_interaction_that_comes_twice_is_one_row_and_one_record() {
    let space = Space::new("inline_twice").await;
    let worker = Worker::start(&space, &[]);
    let mut redis = space.redis().await;
    let event = json!({
        "event_id": Uuid::from_u128(7 << 90).to_string(), "occurred_at": send::now_ms(), "session_id": "s", "user_id": "u", "embedding": [1, 2],
    });
    for _ in 0..3 {
        send::json(&mut redis, &space.stream("interactions"), &event).await;
    }
    worker.ready().await;
    worker.settled(&space, &["interactions", "embeddings"], SOON).await;
    assert_eq!(stores::count(&space.database().await, "interaction_logs").await, 1);
    assert_eq!(stores::record_count(&space.chroma(), &space.collection).await, 1);
    let metrics = worker.metrics().await;
    assert_eq!(metrics.get("aegis_events_written_total", &[("lane", "interactions")]), 1.0);
    assert_eq!(metrics.get("aegis_events_duplicate_total", &[("lane", "interactions")]), 2.0);
}
