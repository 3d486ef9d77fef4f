//! However often, in whatever order and in whatever form the same events come: the outcome is the same.

use std::collections::BTreeMap;

use aegis_ingest::chroma::Record;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value as Json, json};
use uuid::Uuid;

use crate::support::msgpack::Mp;
use crate::support::send::{Fields, data_entry, json_entry};
use crate::support::stores::{InteractionRow, SessionEventRow, SessionRow};
use crate::support::{LONG, Space, Worker, send, stores};

const LANES: [&str; 3] = ["interactions", "sessions", "embeddings"];

/// Events of each lane as JSON values; all have ids and times of their own.
fn events(now_ms: i64) -> [Vec<Json>; 3] {
    let mut random = SmallRng::seed_from_u64(7);
    let mut head = |number: u128, event: Json| {
        let Json::Object(mut event) = event else { unreachable!() };
        event.insert("event_id".to_owned(), Uuid::from_u128(0x8000_0000_0000_0000_0000 + number).to_string().into());
        event.insert("occurred_at".to_owned(), (now_ms - random.random_range(0..90_000_000)).into());
        Json::Object(event)
    };
    let vector = |i: i32| [f64::from(i) + 0.25, -1.5, 0.125, 1.0 / f64::from(i + 1)].map(|number| f64::from(number as f32));
    let interactions = (0..300_i32).map(|i| {
        let mut event = json!({
            "session_id": format!("s{}", i % 17), "user_id": "用户", "intent": if i % 3 == 0 { Json::Null } else { "play \"music\"\t".into() },
            "latency_ms": f64::from(i) / 7.0, "confidence": 0.5, "channel": "phone", "locale": "de-DE", "transcript": format!("Satz {i}\n"),
            "attributes": { "n": i, "deep": [{ "x": null, "y": [1.5, true, "é"] }] }, "extra": { "k": -i },
        });
        if i % 10 == 0 {
            event["embedding"] = json!(vector(i));
        }
        event
    });
    let sessions = (0..300_i32).map(|i| {
        let status = ["started", "updated", "ended"][(i % 3) as usize];
        let mut event = json!({
            "session_id": format!("s{}", i % 17), "user_id": format!("u{}", i % 3), "status": status, "seq": i % 40,
        });
        if i % 4 != 0 {
            event["state"] = json!({ "step": i, "slots": { "城市": ["北京"] } });
        }
        event
    });
    let embeddings = (0..100_i32).map(|i| {
        json!({
            "id": format!("v{i}"), "embedding": vector(i), "document": format!("text {i}"), "session_id": "s1",
            "metadata": { "a": i, "b": 0.5, "c": true, "d": "x" },
        })
    });
    [
        (0_u128..).zip(interactions).map(|(n, event)| head(n, event)).collect(),
        (1000..).zip(sessions).map(|(n, event)| head(n, event)).collect(),
        (2000..).zip(embeddings).map(|(n, event)| head(n, event)).collect(),
    ]
}

/// The same event in the forms that `MessagePack` has and JSON has not: 16 bytes, a timestamp, float32 bytes.
fn compact(event: &Json) -> Mp {
    let ms = event["occurred_at"].as_i64().unwrap();
    let id: Uuid = event["event_id"].as_str().unwrap().parse().unwrap();
    let compact = Mp::from(event)
        .with("event_id", Mp::Bin(id.as_bytes().to_vec()))
        .with("occurred_at", Mp::timestamp(ms.div_euclid(1000), ms.rem_euclid(1000) as u32 * 1_000_000));
    match event["embedding"].as_array() {
        Some(numbers) => {
            let numbers: Vec<f32> = numbers.iter().map(|number| number.as_f64().unwrap() as f32).collect();
            compact.with("embedding", Mp::vector(&numbers))
        }
        None => compact,
    }
}

#[derive(Debug, PartialEq)]
struct Outcome {
    interactions: Vec<InteractionRow>,
    session_events: Vec<SessionEventRow>,
    sessions: BTreeMap<String, SessionRow>,
    hashes: Vec<BTreeMap<String, String>>,
    records: BTreeMap<String, Record>,
    count: u64,
}

async fn outcome(form: &str, entries: [Vec<Fields>; 3], ids: &[String]) -> Outcome {
    let space = Space::new(&format!("same_{form}")).await;
    let worker = Worker::start(&space, &[]);
    let mut redis = space.redis().await;
    for (lane, entries) in LANES.iter().zip(&entries) {
        send::many(&mut redis, &space.stream(lane), entries).await;
    }
    worker.ready().await;
    // Interactions first: their vectors go on to the embeddings lane.
    worker.settled(&space, &LANES, LONG).await;
    for lane in LANES {
        assert_eq!(stores::dead_letters(&mut redis, &space.dead(lane)).await, [], "{form}");
    }
    let (database, chroma) = (space.database().await, space.chroma());
    let keys: Vec<_> = (0..17).map(|i| space.session_key(&format!("s{i}"))).collect();
    let mut hashes = Vec::new();
    for key in &keys {
        hashes.push(stores::session_hash(&mut redis, key).await);
    }
    let ids: Vec<_> = ids.iter().map(String::as_str).collect();
    Outcome {
        interactions: stores::interactions(&database).await,
        session_events: stores::session_events(&database).await,
        sessions: stores::sessions(&database).await,
        hashes,
        records: stores::records(&chroma, &space.collection, &ids).await,
        count: stores::record_count(&chroma, &space.collection).await,
    }
}

#[tokio::test]
async fn twice_shuffled_in_arrays_and_as_json_end_alike() {
    let events = events(send::now_ms());
    let mut ids: Vec<String> = events[2].iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect();
    let spoken = events[0].iter().filter(|event| event.get("embedding").is_some());
    ids.extend(spoken.map(|event| event["event_id"].as_str().unwrap().to_owned()));
    let each = |make: &dyn Fn(&[Json]) -> Vec<Fields>| [make(&events[0]), make(&events[1]), make(&events[2])];

    let single = each(&|events| events.iter().map(|event| data_entry(compact(event).bytes())).collect());
    let arrays =
        each(&|events| events.chunks(7).map(|pack| data_entry(Mp::Array(pack.iter().map(Mp::from).collect()).bytes())).collect());
    let json = each(&|events| events.iter().map(json_entry).collect());
    let json_arrays = each(&|events| events.chunks(50).map(|pack| json_entry(&Json::Array(pack.to_vec()))).collect());
    let mut random = SmallRng::seed_from_u64(11);
    let mut shuffled = single.clone();
    for entries in &mut shuffled {
        entries.shuffle(&mut random);
    }
    let twice = single.clone().map(|entries| [entries.clone(), entries].concat());
    let mut everything =
        [single.clone(), arrays.clone(), json.clone(), json_arrays].into_iter().fold(twice.clone(), |mut all, more| {
            all.iter_mut().zip(more).for_each(|(all, more)| all.extend(more));
            all
        });
    for entries in &mut everything {
        entries.shuffle(&mut random);
    }

    let wanted = outcome("single", single, &ids).await;
    assert_eq!((wanted.interactions.len(), wanted.session_events.len(), wanted.sessions.len()), (300, 300, 17));
    assert_eq!((wanted.records.len(), wanted.count), (130, 130), "100 embeddings and 30 inline ones");
    assert!(wanted.hashes.iter().all(|hash| hash.len() >= 6), "{:?}", wanted.hashes);
    for (form, entries) in
        [("twice", twice), ("shuffled", shuffled), ("arrays", arrays), ("json", json), ("everything_at_once", everything)]
    {
        let found = outcome(form, entries, &ids).await;
        assert_eq!(found.interactions, wanted.interactions, "{form}");
        assert_eq!(found.session_events, wanted.session_events, "{form}");
        assert_eq!(found.sessions, wanted.sessions, "{form}");
        assert_eq!(found.hashes, wanted.hashes, "{form}");
        assert_eq!(found.records, wanted.records, "{form}");
        assert_eq!(found.count, wanted.count, "{form}");
    }
}
