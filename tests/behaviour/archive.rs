//! The lane `archive` keeps every vector in `embedding_log`, and `embeddings rebuild` makes collections again out of it.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aegis_ingest::chroma::Record;
use aegis_ingest::config::Space as Distance;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Map, Value as Json, json};

use crate::delivery::kit::TableLock;
use crate::support::msgpack::Mp;
use crate::support::proxy::{Mode, Proxy};
use crate::support::servers::{self, OwnChroma};
use crate::support::space::Stores;
use crate::support::{LONG, SOON, Space, Worker, send, stores, until, until_equal, worker};

const LANES: (&str, &str) = ("AEGIS_LANES", "interactions,sessions,embeddings,archive");
const DIMENSION: usize = 12;

/// An operator's settings: its Redis user, and the role that reads.
fn operator(space: &Space) -> Vec<(String, String)> {
    let mut settings = space.settings_of("operator");
    settings.push(("AEGIS_DATABASE_URL".to_owned(), space.database_url_of("reader")));
    settings
}

/// Runs a command of the program in a space as an operator.
fn run(space: &Space, arguments: &[&str]) -> (bool, String, String) {
    let settings = operator(space);
    let settings: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let output = tokio::task::block_in_place(|| worker::command(arguments, &settings));
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

fn rebuild(space: &Space, arguments: &[&str]) -> Json {
    let (done, out, err) = run(space, &[&["embeddings", "rebuild", "--json"], arguments].concat());
    assert!(done, "{out}{err}");
    serde_json::from_str(&out).unwrap()
}

/// Waits until both groups have settled everything.
async fn settled(space: &Space) {
    let mut redis = space.redis().await;
    let stream = space.stream("embeddings");
    for group in ["aegis", "aegis-archive"] {
        until_equal(&format!("{group} to settle {stream}"), LONG, Some((0, 0)), async || {
            stores::lag_and_pending(&mut redis, &stream, group).await
        })
        .await;
    }
}

/// What Chroma must hold: the last vector and document of each id, and its metadata merged in the order of the stream.
#[derive(Default)]
struct Oracle(BTreeMap<String, Sent>);

/// Vector, document, metadata.
type Sent = (Vec<f32>, Option<String>, Map<String, Json>);

impl Oracle {
    fn event(&mut self, id: &str, vector: &[f32], document: Option<&str>, metadata: &Json) -> Mp {
        let held = self.0.entry(id.to_owned()).or_default();
        held.0 = vector.to_vec();
        held.1 = document.map(str::to_owned).or(held.1.take());
        held.2.extend(metadata.as_object().unwrap().clone());
        let event = Mp::map([("id", Mp::str(id)), ("embedding", Mp::vector(vector)), ("metadata", Mp::from(metadata))]);
        document.iter().fold(event, |event, document| event.with("document", Mp::str(document)))
    }

    /// An update of one of `ids`, with something of everything left out now and then.
    fn random(&mut self, rng: &mut SmallRng, id: u32) -> Mp {
        let vector: Vec<f32> = (0..DIMENSION).map(|_| rng.random_range(-1.0_f32..1.0)).collect();
        let document = rng.random_bool(0.7).then(|| format!("dokument {} \u{1f3b5}\n\"{}\"", id, rng.random::<u32>()));
        let mut metadata = Map::new();
        for key in ["turn", "ratio", "room", "large"] {
            if rng.random_bool(0.5) {
                let value = match key {
                    "turn" => json!(rng.random_range(0..9)),
                    // Chroma reads numbers of many digits to the last bit but one.
                    "ratio" => json!(f64::from(rng.random_range(0_u8..64)) / 64.0),
                    "large" => json!(1e16 + f64::from(rng.random_range(0_u32..9)) * 4.0),
                    _ => json!(format!("room {}", rng.random_range(0..9))),
                };
                metadata.insert(key.to_owned(), value);
            }
        }
        self.event(&format!("v{id}"), &vector, document.as_deref(), &Json::Object(metadata))
    }

    fn assert_equals(&self, held: &BTreeMap<String, Record>, equal: impl Fn(f32, f32) -> bool) {
        assert_eq!(held.keys().collect::<Vec<_>>(), self.0.keys().collect::<Vec<_>>());
        for (id, (vector, document, metadata)) in &self.0 {
            let record = &held[id];
            assert_eq!(&record.document, document, "{id}");
            assert_eq!(record.metadata.clone().unwrap_or_default(), *metadata, "{id}");
            let all = record.embedding.len() == vector.len() && record.embedding.iter().zip(vector).all(|(a, b)| equal(*a, *b));
            assert!(all, "{id}: {:?} where {vector:?} was sent", record.embedding);
        }
    }

    async fn held(&self, space: &Space) -> BTreeMap<String, Record> {
        let ids: Vec<_> = self.0.keys().map(String::as_str).collect();
        stores::records(&space.chroma(), &space.collection, &ids).await
    }
}

fn to_the_bit(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits()
}

async fn nearest(space: &Space, vector: &[f32]) -> Vec<(String, f32)> {
    let chroma = space.chroma();
    let collection = chroma.collection(&space.collection).await.unwrap().expect("the collection");
    let found = chroma.query(collection.id, vector, 10).await.unwrap();
    found.into_iter().map(|near| (near.id, near.distance)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_vector_is_one_row_and_every_bad_one_a_single_dead_letter() {
    let space = Space::new("archive_rows").await;
    let (mut redis, stream) = (space.redis().await, space.stream("embeddings"));
    // The stream is older than the archive, and has been trimmed: what is gone was never the archive's.
    for n in 0..20 {
        send::json(&mut redis, &stream, &json!({ "id": format!("old{n}"), "embedding": [n, 1] })).await;
    }
    let () = redis::cmd("XGROUP").arg("CREATE").arg(&stream).arg("aegis").arg("0").query_async(&mut redis).await.unwrap();
    let before = Worker::start(&space, &[("AEGIS_LANES", "embeddings")]);
    before.settled(&space, &["embeddings"], LONG).await;
    drop(before);
    let _: u64 = redis::cmd("XTRIM").arg(&stream).arg("MAXLEN").arg(5).query_async(&mut redis).await.unwrap();

    let worker = Worker::start(&space, &[LANES]);
    let bits = [0.1_f32, -0.0, f32::MIN_POSITIVE];
    let event = Mp::map([
        ("id", Mp::str("exact")),
        ("user_id", Mp::str("u7")),
        ("session_id", Mp::str("s7")),
        ("document", Mp::str("words")),
        ("collection", Mp::str("archive-elsewhere")),
        ("large", Mp::F64(1e16)),
        ("embedding", Mp::vector(&bits)),
    ]);
    let entry = send::data(&mut redis, &stream, &event).await;
    for bad in [json!({ "id": "x" }), json!({ "embedding": [] }), json!({ "embedding": [1], "occurred_at": 1 }), json!(7)] {
        send::json(&mut redis, &stream, &bad).await;
    }
    send::fields(&mut redis, &stream, &[("neither".to_owned(), b"x".to_vec())]).await;
    let spoken = json!({ "session_id": "s", "user_id": "u", "transcript": "said", "embedding": [3, 4] });
    send::json(&mut redis, &space.stream("interactions"), &spoken).await;
    worker.settled(&space, &["interactions"], LONG).await;
    settled(&space).await;

    let database = space.database().await;
    assert_eq!(stores::count(&database, "embedding_log").await, 7, "five that stood there, one sent, one inline");
    let query = "SELECT embedding, metadata::text, document, collection, user_id, session_id, entry_ms || '-' || entry_seq FROM embedding_log WHERE id = 'exact'";
    let row = database.query_one(query, &[]).await.unwrap();
    assert_eq!(row.get::<_, Vec<u8>>(0), bits.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>());
    let texts: Vec<String> = (1..7).map(|column| row.get(column)).collect();
    assert_eq!(
        texts,
        [r#"{"large":1e+16,"session_id":"s7","user_id":"u7"}"#, "words", "archive-elsewhere", "u7", "s7", entry.as_str()]
    );
    let inline: String =
        database.query_one("SELECT collection FROM embedding_log WHERE document = 'said'", &[]).await.unwrap().get(0);
    assert_eq!(inline, space.collection);

    assert_eq!(stores::length(&mut redis, &space.dead("embeddings")).await, 5);
    let metrics = worker.metrics().await;
    let of = |name: &str| metrics.get(name, &[("lane", "archive")]);
    assert_eq!(
        (of("aegis_events_passed_total"), of("aegis_events_written_total"), of("aegis_entries_lost_total")),
        (5.0, 7.0, 0.0)
    );
    assert_eq!(metrics.get("aegis_events_passed_total", &[("lane", "embeddings")]), 0.0);
    assert_eq!(metrics.find("aegis_events_dead_total", &[("lane", "archive"), ("code", "malformed")]), Some(0.0));

    let settings = operator(&space);
    let mut settings: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    settings.push(LANES);
    let output = tokio::task::block_in_place(|| worker::command(&["status", "--json"], &settings));
    let status: Json = serde_json::from_slice(&output.stdout).unwrap();
    let archive = status["streams"].as_array().unwrap().iter().find(|it| it["lane"] == "archive").expect("its row").clone();
    assert_eq!(
        (&archive["stream"], &archive["lag"], &archive["pending"], &archive["lost"]),
        (&json!(stream), &json!(0), &json!(0), &json!(0))
    );

    // Everything delivered once more, to a group that knows nothing: the rows stay single.
    drop(worker);
    let () = redis::cmd("XGROUP").arg("SETID").arg(&stream).arg("aegis-archive").arg("0").query_async(&mut redis).await.unwrap();
    let again = Worker::start(&space, &[LANES]);
    until("the second copies to be known", LONG, async || {
        (again.metrics().await.get("aegis_events_duplicate_total", &[("lane", "archive")]) == 7.0).then_some(())
    })
    .await;
    assert_eq!(stores::count(&database, "embedding_log").await, 7);
}

/// An event that the database alone refuses is set aside: the other lane has no reason to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_archive_itself_cannot_take_is_a_dead_letter_and_comes_back_with_a_replay() {
    let space = Space::new("archive_refused").await;
    let (mut redis, stream) = (space.redis().await, space.stream("embeddings"));
    let database = space.database().await;
    let administrator = space.administrator().await;
    administrator.batch_execute("ALTER TABLE embedding_log ADD CONSTRAINT no_x CHECK (document <> 'x')").await.unwrap();
    let _worker = Worker::start(&space, &[LANES]);
    send::json(
        &mut redis,
        &stream,
        &json!([{ "id": "a", "embedding": [1], "document": "x" }, { "id": "b", "embedding": [2], "document": "y" }]),
    )
    .await;
    settled(&space).await;
    assert_eq!(
        (stores::count(&database, "embedding_log").await, stores::length(&mut redis, &space.dead("embeddings")).await),
        (1, 1)
    );
    assert_eq!(stores::record_count(&space.chroma(), &space.collection).await, 2);
    administrator.batch_execute("ALTER TABLE embedding_log DROP CONSTRAINT no_x").await.unwrap();
    let (done, out, err) = run(&space, &["dead", "replay", "--all"]);
    assert!(done, "{out}{err}");
    settled(&space).await;
    assert_eq!(
        (stores::count(&database, "embedding_log").await, stores::length(&mut redis, &space.dead("embeddings")).await),
        (2, 0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_store_holds_up_the_other() {
    let proxy = Proxy::start(servers::chroma().port()).await;
    let chroma_url = format!("http://127.0.0.1:{}", proxy.port());
    let space = Space::with("archive_apart", Stores { chroma_url: Some(chroma_url), ..Stores::default() }).await;
    let (mut redis, stream) = (space.redis().await, space.stream("embeddings"));
    let worker = Worker::start(&space, &[LANES]);
    worker.ready().await;
    let event = |n: usize| json!({ "id": format!("v{n}"), "embedding": [n, 1] });
    let database = space.database().await;
    proxy.set(Mode::Refuse);
    for n in 0..50 {
        send::json(&mut redis, &stream, &event(n)).await;
    }
    until_equal("rows while Chroma is away", SOON, 50, async || stores::count(&database, "embedding_log").await).await;
    proxy.set(Mode::Pass);
    settled(&space).await;
    let lock = TableLock::take(&space, "embedding_log").await;
    for n in 50..100 {
        send::json(&mut redis, &stream, &event(n)).await;
    }
    until_equal("records while the table is locked", SOON, 100, async || {
        stores::record_count(&space.chroma(), &space.collection).await
    })
    .await;
    lock.release().await;
    settled(&space).await;
    assert_eq!(stores::count(&database, "embedding_log").await, 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_collection_comes_back_as_it_was_while_traffic_runs() {
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut space = Space::new("rebuild_live").await;
    space.distance = Distance::L2;
    let (mut redis, stream) = (space.redis().await, space.stream("embeddings"));
    let worker = Worker::start(&space, &[LANES]);
    let mut oracle = Oracle::default();
    // Several updates of an id, some in one entry, some within a millisecond.
    for _ in 0..30 {
        let events: Vec<_> = (0..30)
            .map(|_| {
                let id = rng.random_range(0..400);
                oracle.random(&mut rng, id)
            })
            .collect();
        send::data(&mut redis, &stream, &Mp::Array(events)).await;
    }
    settled(&space).await;
    let probe: Vec<f32> = (0..DIMENSION).map(|_| rng.random_range(-1.0_f32..1.0)).collect();
    oracle.assert_equals(&oracle.held(&space).await, to_the_bit);
    let before = nearest(&space, &probe).await;

    assert!(space.chroma().delete_collection(&space.collection).await.unwrap());
    let quiet = rebuild(&space, &[]);
    assert_eq!(quiet["incomplete"], Json::Null, "{quiet}");
    oracle.assert_equals(&oracle.held(&space).await, to_the_bit);
    assert_eq!(nearest(&space, &probe).await, before, "the neighbours are as before");

    // And beside traffic that goes on updating the same ids.
    let ended = Arc::new(AtomicBool::new(false));
    let traffic = tokio::spawn({
        let (ended, space, stream) = (Arc::clone(&ended), space.clone(), stream.clone());
        async move {
            let mut redis = space.redis().await;
            while !ended.load(Ordering::Relaxed) {
                let id = rng.random_range(0..500);
                let event = oracle.random(&mut rng, id);
                send::data(&mut redis, &stream, &event).await;
                tokio::time::sleep(Duration::from_millis(15)).await;
            }
            oracle
        }
    });
    let mut redis_length = space.redis().await;
    until("traffic", SOON, async || (stores::length(&mut redis_length, &stream).await > 40).then_some(())).await;
    space.chroma().delete_collection(&space.collection).await.unwrap();
    let live = rebuild(&space, &[]);
    assert_eq!(live["incomplete"], Json::Null, "{live}");
    ended.store(true, Ordering::Relaxed);
    let oracle = traffic.await.unwrap();
    settled(&space).await;
    oracle.assert_equals(&oracle.held(&space).await, to_the_bit);
    assert_eq!(stores::record_count(&space.chroma(), &space.collection).await, oracle.0.len() as u64);
    drop(worker);
}

/// A worker's newer upsert that the rebuild's older one follows: the rebuild must notice and put the newer one back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vector_that_is_updated_during_a_rebuild_is_not_set_back() {
    let mut space = Space::new("rebuild_race").await;
    space.distance = Distance::L2;
    let (mut redis, stream) = (space.redis().await, space.stream("embeddings"));
    let worker = Worker::start(&space, &[LANES]);
    let mut oracle = Oracle::default();
    let events: Vec<_> = (0..3000_u32)
        .map(|n| oracle.event(&format!("v{n}"), &[n as f32; DIMENSION], Some("first"), &json!({ "n": n })))
        .collect();
    for events in events.chunks(500) {
        send::data(&mut redis, &stream, &Mp::Array(events.to_vec())).await;
    }
    settled(&space).await;
    space.chroma().delete_collection(&space.collection).await.unwrap();
    let running = tokio::spawn({
        let space = space.clone();
        async move { rebuild(&space, &[]) }
    });
    // Vectors that it has not come to yet are updated once it is at work.
    until("the rebuild to begin", LONG, async || {
        (stores::record_count(&space.chroma(), &space.collection).await > 0).then_some(())
    })
    .await;
    let updates: Vec<_> = (1000..3000_u32)
        .map(|n| oracle.event(&format!("v{n}"), &[-1.0; DIMENSION], Some("second"), &json!({ "n": -1 })))
        .collect();
    send::data(&mut redis, &stream, &Mp::Array(updates)).await;
    let outcome = running.await.unwrap();
    settled(&space).await;
    oracle.assert_equals(&oracle.held(&space).await, to_the_bit);
    assert_eq!(outcome["incomplete"], Json::Null, "{outcome}");
    drop(worker);
}

/// Its files are overwritten while Chroma is down: it lists the collection and cannot read it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ruined_collection_is_replaced_by_one_command() {
    let mut own = tokio::task::block_in_place(OwnChroma::new);
    let space = Space::with("rebuild_ruined", Stores { chroma_url: Some(own.url()), ..Stores::default() }).await;
    let (mut redis, stream) = (space.redis().await, space.stream("embeddings"));
    let worker = Worker::start(&space, &[LANES]);
    let mut rng = SmallRng::seed_from_u64(7);
    let mut oracle = Oracle::default();
    for _ in 0..5 {
        let events: Vec<_> = (0..500)
            .map(|_| {
                let id = rng.random_range(0..2000);
                oracle.random(&mut rng, id)
            })
            .collect();
        send::data(&mut redis, &stream, &Mp::Array(events)).await;
    }
    settled(&space).await;
    let before = nearest(&space, &[0.5; DIMENSION]).await;
    tokio::task::block_in_place(|| {
        own.stop(rustix::process::Signal::TERM);
        let mut ruined = 0;
        for folder in std::fs::read_dir(own.data()).unwrap().flatten().filter(|it| it.path().is_dir()) {
            for file in std::fs::read_dir(folder.path()).unwrap().flatten() {
                std::fs::write(file.path(), b"ruined").unwrap();
                ruined += 1;
            }
        }
        assert!(ruined > 0, "Chroma persisted nothing");
        own.start();
    });
    // Traffic goes on meanwhile, and fails or not as Chroma likes.
    let later = oracle.event("later", &[0.25; DIMENSION], Some("sent to a ruin"), &json!({ "k": 1 }));
    send::data(&mut redis, &stream, &later).await;
    let chroma = space.chroma();
    let collection = chroma.collection(&space.collection).await.unwrap().expect("it is listed still");
    assert!(chroma.query(collection.id, &[0.5; DIMENSION], 10).await.is_err(), "it is ruined");

    let outcome = rebuild(&space, &["--collection", &space.collection, "--replace"]);
    assert_eq!(outcome["incomplete"], Json::Null, "{outcome}");
    settled(&space).await;
    let near = |a: f32, b: f32| (a - b).abs() <= 1e-6;
    oracle.assert_equals(&oracle.held(&space).await, near);
    let after = nearest(&space, &[0.5; DIMENSION]).await;
    let without: Vec<_> = after.iter().filter(|(id, _)| id != "later").collect();
    for ((id, distance), (id_before, distance_before)) in without.iter().map(|it| (&it.0, it.1)).zip(&before) {
        assert_eq!(id, id_before);
        assert!(near(distance, *distance_before), "{distance} {distance_before}");
    }
    drop(worker);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_that_is_killed_is_run_again() {
    let mut space = Space::new("rebuild_killed").await;
    space.distance = Distance::L2;
    let (mut redis, stream) = (space.redis().await, space.stream("embeddings"));
    let worker = Worker::start(&space, &[LANES]);
    let mut rng = SmallRng::seed_from_u64(8);
    let mut oracle = Oracle::default();
    for _ in 0..4 {
        let events: Vec<_> = (0..500)
            .map(|_| {
                let id = rng.random_range(0..3000);
                oracle.random(&mut rng, id)
            })
            .collect();
        send::data(&mut redis, &stream, &Mp::Array(events)).await;
    }
    settled(&space).await;
    for _ in 0..2 {
        space.chroma().delete_collection(&space.collection).await.unwrap();
        let mut command = std::process::Command::new(worker::PROGRAM);
        command.args(["embeddings", "rebuild"]).env_clear().envs(operator(&space)).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = servers::spawn(command).unwrap();
        until("some records", LONG, async || (stores::record_count(&space.chroma(), &space.collection).await > 0).then_some(()))
            .await;
        child.kill().unwrap();
        child.wait().unwrap();
    }
    rebuild(&space, &[]);
    oracle.assert_equals(&oracle.held(&space).await, to_the_bit);
    rebuild(&space, &[]);
    oracle.assert_equals(&oracle.held(&space).await, to_the_bit);
    drop(worker);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_archive_it_says_what_to_turn_on_and_a_dry_run_changes_nothing() {
    let space = Space::new("rebuild_none").await;
    let (mut redis, stream) = (space.redis().await, space.stream("embeddings"));
    let (done, _, err) = run(&space, &["embeddings", "rebuild"]);
    assert!(!done && err.contains("AEGIS_LANES=interactions,sessions,embeddings,archive"), "{err}");
    space.administrator().await.batch_execute("ALTER TABLE embedding_log RENAME TO hidden").await.unwrap();
    let (done, _, err) = run(&space, &["embeddings", "rebuild"]);
    assert!(!done && err.contains("aegis-ingest migrate") && err.contains("archive"), "{err}");
    space.administrator().await.batch_execute("ALTER TABLE hidden RENAME TO embedding_log").await.unwrap();

    let mut worker = Worker::start(&space, &[LANES]);
    send::json(
        &mut redis,
        &stream,
        &json!([{ "id": "a", "embedding": [1, 2] }, { "id": "b", "embedding": [1, 2] }, { "id": "c", "embedding": [1] }]),
    )
    .await;
    settled(&space).await;
    space.chroma().delete_collection(&space.collection).await.unwrap();
    let plan = rebuild(&space, &["--dry-run"]);
    assert_eq!(
        plan["collections"],
        json!([{ "collection": space.collection, "dimension": 2, "archived": 2, "archived_of_other_dimensions": 1, "in_chroma": null }])
    );
    assert_eq!(stores::record_count(&space.chroma(), &space.collection).await, 0);
    let outcome = rebuild(&space, &[]);
    assert_eq!((&outcome["upserted"][&space.collection], &outcome["of_other_dimensions"]), (&json!(2), &json!(1)), "{outcome}");
    assert_eq!(stores::record_count(&space.chroma(), &space.collection).await, 2);

    // Nobody serves the lane, and something stands in the stream: said, and not taken for done.
    worker.stop();
    send::json(&mut redis, &stream, &json!({ "id": "d", "embedding": [3, 4] })).await;
    let (done, out, _) = run(&space, &["embeddings", "rebuild", "--wait", "300ms"]);
    assert!(!done && out.contains("does a worker serve the lane archive?"), "{out}");
}
