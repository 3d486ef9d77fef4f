//! `erase`: afterwards nothing of the person is found in any store, and everybody else's data are untouched to the byte.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value as Json, json};
use tokio_postgres::SimpleQueryMessage;
use uuid::Uuid;

use crate::delivery::kit::{TableLock, until_pending};
use crate::support::http;
use crate::support::msgpack::Mp;
use crate::support::{LONG, SOON, Space, Worker, send, servers, stores, until, until_equal, worker};

const LANES: (&str, &str) = ("AEGIS_LANES", "interactions,sessions,embeddings,archive");
/// What a dead worker held is free after it.
const CLAIM_IDLE: (&str, &str) = ("AEGIS_CLAIM_IDLE", "1s");
const USER: &str = "u-4711";
/// An erasure goes through every collection of a Chroma server, which these tests share.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
/// In everything that this user said, and in nothing else.
const MARKER: &str = "whisper\u{1f92b}7f3a";
/// Drawn once, never to change: the identity of events that bring none derives from it.
const NAMESPACE: Uuid = Uuid::from_u128(0x5b1c_6f0e_8d0f_4b0b_9d5a_6f1f_2a0c_77e3);

/// The eraser's settings: its Redis user and its role.
fn eraser(space: &Space) -> Vec<(String, String)> {
    let mut settings = space.settings_of("eraser");
    settings.push(("AEGIS_DATABASE_URL".to_owned(), space.database_url_of("eraser")));
    settings.push((CLAIM_IDLE.0.to_owned(), CLAIM_IDLE.1.to_owned()));
    settings
}

fn erase(space: &Space, arguments: &[&str]) -> Json {
    let settings = eraser(space);
    let settings: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let output = tokio::task::block_in_place(|| worker::command(&[&["erase", "--json"], arguments].concat(), &settings));
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!String::from_utf8_lossy(&output.stderr).contains(USER), "the id is told again");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Every value under the space's keys, as bytes.
async fn redis_values(space: &Space) -> BTreeMap<String, Vec<Vec<u8>>> {
    let mut redis = space.redis().await;
    let keys: Vec<String> = redis::cmd("KEYS").arg(format!("{}:*", space.prefix)).query_async(&mut redis).await.unwrap();
    let mut values = BTreeMap::new();
    for key in keys {
        let kind: String = redis::cmd("TYPE").arg(&key).query_async(&mut redis).await.unwrap();
        let command = match kind.as_str() {
            "stream" => redis::cmd("XRANGE").arg(&key).arg("-").arg("+").to_owned(),
            "hash" => redis::cmd("HGETALL").arg(&key).to_owned(),
            "string" => redis::cmd("GET").arg(&key).to_owned(),
            other => panic!("{key} is a {other}"),
        };
        let value: redis::Value = command.query_async(&mut redis).await.unwrap();
        let mut flat = Vec::new();
        flatten(value, &mut flat);
        values.insert(key, flat);
    }
    values
}

fn flatten(value: redis::Value, out: &mut Vec<Vec<u8>>) {
    match value {
        redis::Value::Array(items) => items.into_iter().for_each(|item| flatten(item, out)),
        redis::Value::Map(pairs) => pairs.into_iter().for_each(|(key, value)| {
            flatten(key, out);
            flatten(value, out);
        }),
        redis::Value::BulkString(bytes) => out.push(bytes),
        redis::Value::Nil => {}
        other => out.push(format!("{other:?}").into_bytes()),
    }
}

/// Every row of every table that has one, as texts.
async fn rows(space: &Space) -> BTreeMap<String, BTreeSet<String>> {
    let database = space.administrator().await;
    let tables = "SELECT quote_ident(schemaname) || '.' || quote_ident(tablename) FROM pg_tables
                  WHERE schemaname NOT LIKE 'pg\\_%' AND schemaname <> 'information_schema' AND (schemaname NOT LIKE '\\_timescaledb%' OR tablename LIKE '\\_hyper%')";
    let mut all = BTreeMap::new();
    for table in database.query(tables, &[]).await.unwrap() {
        let table: String = table.get(0);
        let messages = database.simple_query(&format!("SELECT row_to_json(it)::text FROM {table} it")).await.unwrap();
        let texts = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        all.insert(table, texts.collect());
    }
    all
}

/// Every record of every collection of the space, as text.
async fn records(space: &Space, collections: &[&str]) -> BTreeMap<(String, String), String> {
    let mut all = BTreeMap::new();
    for name in collections {
        let Some(collection) = space.chroma().collection(name).await.unwrap() else { continue };
        for (id, text) in everything(space, collection.id).await {
            all.insert(((*name).to_owned(), id), text);
        }
    }
    all
}

/// Asks Chroma by hand: what the program's own client leaves out must be seen as well.
async fn everything(space: &Space, collection: Uuid) -> BTreeMap<String, String> {
    let address = space.chroma_url.trim_start_matches("http://").parse().unwrap();
    let path = format!("/api/v2/tenants/default_tenant/databases/default_database/collections/{collection}/get");
    let body = json!({ "include": ["embeddings", "documents", "metadatas"] }).to_string();
    // The head of a request ends with an empty line; the body follows.
    let rest = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    let answer = http::request_with(address, "POST", &path, &rest, &body).await.expect("Chroma");
    let found: Json = serde_json::from_str(&answer.body).unwrap_or_else(|_| panic!("{answer:?}"));
    let record = |n: usize| format!("{} {} {}", found["embeddings"][n], found["documents"][n], found["metadatas"][n]);
    let ids = found["ids"].as_array().unwrap();
    ids.iter().enumerate().map(|(n, id)| (id.as_str().unwrap().to_owned(), record(n))).collect()
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// The text as it may stand in a store: as it is, in JSON with escapes, in a `bytea`'s hexadecimal digits, in base64 of any phase.
fn guises(text: &str) -> Vec<String> {
    let escaped: String = text
        .encode_utf16()
        .map(|unit| if unit < 128 { char::from(unit as u8).to_string() } else { format!("\\u{unit:04x}") })
        .collect();
    let hex: String =
        text.bytes().flat_map(|b| [b >> 4, b & 15]).filter_map(|digit| char::from_digit(u32::from(digit), 16)).collect();
    vec![text.to_owned(), escaped, hex]
}

/// Asserts that none of these texts is found anywhere.
async fn nowhere(space: &Space, collections: &[&str], texts: &[&str]) {
    let (values, rows, records) = (redis_values(space).await, rows(space).await, records(space, collections).await);
    for guise in texts.iter().flat_map(|text| guises(text)) {
        for (key, values) in &values {
            assert!(!holds(key.as_bytes(), &guise), "{guise} is in the key {key}");
            for value in values {
                assert!(!holds(value, &guise), "{guise} is in {key}: {}", value.escape_ascii());
            }
        }
        for (table, rows) in &rows {
            assert!(!rows.iter().any(|row| row.contains(&guise)), "{guise} is in {table}");
        }
        for ((collection, id), record) in &records {
            assert!(!record.contains(&guise) && !id.contains(&guise), "{guise} is in {collection}: {id} {record}");
        }
    }
}

fn said(user: &str, session: &str, n: usize) -> Json {
    let text = if user == USER { format!("{MARKER} {n}") } else { format!("hello {n}") };
    json!({
        "event_id": Uuid::new_v5(&NAMESPACE, format!("{user} {session} {n}").as_bytes()).to_string(), "occurred_at": send::now_ms() - 5000 + n as i64,
        "session_id": session, "user_id": user, "transcript": text, "note": text, "embedding": [n, 1, 2],
    })
}

fn update(user: &str, session: &str, seq: usize) -> Json {
    let text = if user == USER { format!("{MARKER} {seq}") } else { format!("state {seq}") };
    json!({ "session_id": session, "user_id": user, "status": "updated", "seq": seq, "state": { "said": text } })
}

/// Traffic of the user and of two others in every form, written and settled; the collections that it is in.
async fn populate(space: &Space, redis: &mut crate::support::rights::Redis) -> Vec<String> {
    let elsewhere = format!("{}-b", space.collection);
    let (interactions, sessions, embeddings) =
        (space.stream("interactions"), space.stream("sessions"), space.stream("embeddings"));
    for n in 0..10 {
        for (user, session) in
            [(USER, "s-mine"), ("u-47", "s-other"), ("u-47110", "s-third"), (USER, "s-both"), ("u-47", "s-both")]
        {
            send::json(redis, &interactions, &said(user, session, n)).await;
        }
    }
    // Several people in one entry.
    let mixed = json!([said("u-47", "s-other", 100), said(USER, "s-mine", 101), said("u-47110", "s-third", 102)]);
    send::data(redis, &interactions, &Mp::from(&mixed)).await;
    // The state of a shared session is the user's; its status is somebody else's. Of another one it is the other way round.
    send::json(
        redis,
        &sessions,
        &json!([
            update("u-47", "s-both", 1), update(USER, "s-both", 5),
            { "session_id": "s-both", "user_id": "u-47", "status": "ended", "seq": 9 },
            update("u-47", "s-taken", 1), { "session_id": "s-taken", "user_id": USER, "status": "updated", "seq": 2 },
            update(USER, "s-mine", 1), update("u-47", "s-other", 1), update("u-47110", "s-third", 1),
        ]),
    )
    .await;
    for (n, (user, session)) in [
        (Some(USER), None),
        (None, Some("s-mine")),
        (Some(USER), Some("s-both")),
        (Some("u-47"), Some("s-other")),
        (None, Some("s-other")),
        (None, None),
    ]
    .into_iter()
    .enumerate()
    {
        for (m, collection) in [None, Some(elsewhere.as_str())].into_iter().enumerate() {
            let theirs = user == Some(USER) || session == Some("s-mine");
            let mut event =
                json!({ "id": format!("v{n}"), "embedding": [n, m, 1], "document": if theirs { MARKER } else { "a document" } });
            for (key, value) in [("user_id", user), ("session_id", session), ("collection", collection)] {
                if let Some(value) = value {
                    event[key] = value.into();
                }
            }
            send::json(redis, &embeddings, &event).await;
        }
    }
    // What becomes dead letters: bad events, of the user and of others, alone, among others, torn, shapeless.
    let bad = |user: &str, session: &str| json!({ "session_id": session, "user_id": user, "confidence": 7, "transcript": said(user, session, 7)["transcript"] });
    send::json(redis, &interactions, &json!([bad(USER, "s-mine"), bad("u-47", "s-other"), said("u-47", "s-other", 200)])).await;
    send::json(redis, &interactions, &json!({ "session_id": "s-mine", "transcript": MARKER })).await;
    send::json(redis, &sessions, &json!({ "session_id": "s-new", "user_id": USER, "state": { "x": MARKER } })).await;
    for user in [USER, "u-47", "u-47110"] {
        let text = if user == USER { MARKER } else { "torn" };
        let torn = format!("{{\"user_id\":\"{user}\",\"transcript\":\"{text}\",");
        send::fields(redis, &interactions, &[("json".to_owned(), torn.into_bytes())]).await;
        let torn = [&Mp::map([("user_id", Mp::str(user)), ("transcript", Mp::str(text))]).bytes()[..], b"\xc1"].concat();
        send::fields(redis, &interactions, &[("data".to_owned(), torn)]).await;
        send::fields(redis, &interactions, &[("user".to_owned(), user.into()), ("said".to_owned(), text.into())]).await;
    }
    vec![space.collection.clone(), elsewhere]
}

async fn all_settled(space: &Space) {
    let mut redis = space.redis().await;
    for (lane, group) in
        [("interactions", "aegis"), ("sessions", "aegis"), ("embeddings", "aegis"), ("embeddings", "aegis-archive")]
    {
        let stream = space.stream(lane);
        until_equal(&format!("{group} to settle {stream}"), LONG, Some((0, 0)), async || {
            stores::lag_and_pending(&mut redis, &stream, group).await
        })
        .await;
    }
}

/// Rows by table, records, session hashes.
type Others = (BTreeMap<String, BTreeSet<String>>, BTreeMap<(String, String), String>, BTreeMap<String, Vec<String>>);

/// Both reports say the same.
fn same(found: &Json, wanted: &Json) {
    for (key, value) in wanted.as_object().unwrap() {
        assert_eq!(&found[key], value, "{key}");
    }
}

/// Both hold the same, to the byte.
fn unchanged<K: Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(found: &BTreeMap<K, V>, wanted: &BTreeMap<K, V>) {
    assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    for (key, value) in wanted {
        assert_eq!(&found[key], value, "{key:?}");
    }
}

fn untouched(found: &Others, wanted: &Others) {
    for (table, rows) in &wanted.0 {
        let gone: Vec<_> = rows.difference(&found.0[table]).collect();
        let new: Vec<_> = found.0[table].difference(rows).collect();
        assert!(gone.is_empty() && new.is_empty(), "{table}: gone {gone:?}, new {new:?}");
    }
    unchanged(&found.1, &wanted.1);
    // Sessions that were shared have become the others'.
    for (key, hash) in &wanted.2 {
        assert_eq!(found.2.get(key), Some(hash), "{key}");
    }
}

/// What is not the user's: everything but what holds the marker or the id as a word; streams without entry ids, since others' events
/// of a mixed entry stand in another one.
async fn of_others(space: &Space, collections: &[&str]) -> Others {
    let theirs =
        |text: &str| guises(MARKER).iter().any(|guise| text.contains(guise.as_str())) || text.contains(&format!("\"{USER}\""));
    let mut rows = rows(space).await;
    rows.retain(|table, _| {
        table.contains("interaction_logs")
            || table.contains("session_events")
            || table.contains("_hyper_")
            || table.contains("embedding_log")
    });
    for rows in rows.values_mut() {
        rows.retain(|row| !theirs(row));
    }
    let mut records = records(space, collections).await;
    records.retain(|_, record| !theirs(record));
    let mut hashes = BTreeMap::new();
    for (key, values) in redis_values(space).await {
        let texts: Vec<_> = values.iter().map(|value| String::from_utf8_lossy(value).into_owned()).collect();
        if key.contains(":session:") && !texts.iter().any(|text| theirs(text) || text == USER) {
            hashes.insert(key, texts);
        }
    }
    (rows, records, hashes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_the_user_is_left_and_everything_of_the_others() {
    let _one = ONE_AT_A_TIME.lock().await;
    let space = Space::new("erase_all").await;
    let mut redis = space.redis().await;
    let worker = Worker::start(&space, &[LANES]);
    let collections = populate(&space, &mut redis).await;
    let collections: Vec<_> = collections.iter().map(String::as_str).collect();
    all_settled(&space).await;
    let before = of_others(&space, &collections).await;
    assert!(
        before.0.values().map(BTreeSet::len).sum::<usize>() > 60 && before.1.len() > 30 && before.2.len() >= 2,
        "there is something to compare"
    );
    let dead_before = stores::dead_letters(&mut redis, &space.dead("interactions")).await.len();

    let everything = (redis_values(&space).await, rows(&space).await, records(&space, &collections).await);
    let dry = erase(&space, &["--user-id", USER, "--dry-run"]);
    unchanged(&redis_values(&space).await, &everything.0);
    unchanged(&rows(&space).await, &everything.1);
    unchanged(&records(&space, &collections).await, &everything.2);
    let mut wet = erase(&space, &["--user-id", USER]);
    wet["dry_run"] = true.into();
    same(&wet, &dry);
    assert_eq!((&dry["rows"]["interaction_logs"], &dry["rows"]["session_events"]), (&json!(21), &json!(3)), "{dry}");
    assert_eq!(dry["dead_letters"][space.stream("interactions")], json!(5), "{dry}");

    nowhere(&space, &collections, &[MARKER, "s-mine"]).await;
    untouched(&of_others(&space, &collections).await, &before);
    assert_eq!(stores::dead_letters(&mut redis, &space.dead("interactions")).await.len(), dead_before - 5);
    // Nothing of it looks like a loss or a lag.
    all_settled(&space).await;
    for lane in ["interactions", "sessions", "embeddings", "archive"] {
        assert_eq!(worker.metrics().await.get("aegis_entries_lost_total", &[("lane", lane)]), 0.0, "{lane}");
    }

    // Sessions that others shared are what the others' updates make of them, in both places.
    let sessions = stores::sessions(&space.administrator().await).await;
    let (both, taken) = (&sessions["s-both"], &sessions["s-taken"]);
    assert_eq!(
        (both.user_id.as_str(), both.status.as_str(), both.seq, both.state.clone()),
        ("u-47", "ended", 9, Some(json!({ "said": "state 1" })))
    );
    assert_eq!((taken.user_id.as_str(), taken.seq, taken.state.clone()), ("u-47", 1, Some(json!({ "said": "state 1" }))));
    for (session, row) in [("s-both", both), ("s-taken", taken)] {
        let hash = stores::session_hash(&mut redis, &space.session_key(session)).await;
        assert_eq!(stores::hash_as_row(&hash), Some(row.in_milliseconds()), "{session}");
    }
    assert!(!sessions.contains_key("s-mine"));

    // Twice is once.
    let again = erase(&space, &["--user-id", USER]);
    assert_eq!(again["rows"], json!({ "interaction_logs": 0, "session_events": 0, "sessions": 0, "embedding_log": 0 }));
    assert_eq!(
        (&again["session_hashes"], &again["vectors"], &again["streams"], &again["dead_letters"]),
        (&json!(0), &json!({}), &json!({}), &json!({}))
    );
    untouched(&of_others(&space, &collections).await, &before);
}

/// Nobody runs: entries unread, alone and among others'; and what a dead worker held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_has_read_and_what_a_dead_worker_held_is_found() {
    let _one = ONE_AT_A_TIME.lock().await;
    let space = Space::new("erase_unread").await;
    let mut redis = space.redis().await;
    let interactions = space.stream("interactions");
    // A worker dies with entries in its hand.
    let lock = TableLock::take(&space, "interaction_logs").await;
    let mut dying = Worker::start(&space, &[LANES, CLAIM_IDLE]);
    send::json(&mut redis, &interactions, &json!([said(USER, "s-held", 1), said("u-47", "s-other", 1)])).await;
    send::json(&mut redis, &interactions, &said(USER, "s-held", 2)).await;
    send::json(&mut redis, &interactions, &said("u-47", "s-other", 2)).await;
    until_pending(&mut redis, &interactions, 3).await;
    dying.kill();
    lock.release().await;
    let collections = populate(&space, &mut redis).await;
    let collections: Vec<_> = collections.iter().map(String::as_str).collect();
    // Without id or time of their own: both derive from the place where they first stood.
    let plain = |user: &str, text: &str| json!({ "session_id": "s-plain", "user_id": user, "transcript": text });
    let entry = send::json(
        &mut redis,
        &interactions,
        &json!([plain("u-47", "a"), plain("u-47", "b"), plain(USER, MARKER), plain("u-47", "c")]),
    )
    .await;

    let dry = erase(&space, &["--user-id", USER, "--dry-run"]);
    let mut wet = erase(&space, &["--user-id", USER]);
    wet["dry_run"] = true.into();
    same(&wet, &dry);
    assert_eq!(dry["rows"]["interaction_logs"], json!(0), "nothing had been written");
    assert!(dry["streams"][&interactions]["entries_with_others"].as_u64() >= Some(3), "{dry}");
    nowhere(&space, &collections, &[MARKER, "s-mine", "s-held"]).await;
    for lane in ["interactions", "sessions", "embeddings"] {
        if let Some((lag, pending)) = stores::lag_and_pending(&mut redis, &space.stream(lane), "aegis").await {
            let length = stores::length(&mut redis, &space.stream(lane)).await;
            assert_eq!(lag + pending, length as i64, "{lane}: the lag is what stands there");
        }
    }

    let worker = Worker::start(&space, &[LANES, CLAIM_IDLE]);
    all_settled(&space).await;
    nowhere(&space, &collections, &[MARKER, "s-mine", "s-held"]).await;
    for lane in ["interactions", "sessions", "embeddings", "archive"] {
        assert_eq!(worker.metrics().await.get("aegis_entries_lost_total", &[("lane", lane)]), 0.0, "{lane}");
    }
    let all = stores::interactions(&space.administrator().await).await;
    let mut derived: Vec<_> = all
        .iter()
        .filter(|row| row.session_id == "s-plain")
        .map(|row| (row.transcript.clone().unwrap(), row.event_id, row.occurred_at_us))
        .collect();
    derived.sort();
    let at_us = entry.split_once('-').unwrap().0.parse::<i64>().unwrap() * 1000;
    let wanted = [("a", 0), ("b", 1), ("c", 3)]
        .map(|(text, n)| (text.to_owned(), Uuid::new_v5(&NAMESPACE, format!("{interactions}\n{entry}\n{n}").as_bytes()), at_us));
    assert_eq!(derived, wanted, "the others keep the identity that they had");
    // Ten and two of populate's, two held; each once.
    assert_eq!(all.iter().filter(|row| row.user_id == "u-47" && row.session_id == "s-other").count(), 14);
}

/// The user talks on while the command runs: what was written before it is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_before_is_gone_though_the_user_goes_on() {
    let _one = ONE_AT_A_TIME.lock().await;
    let space = Space::new("erase_live").await;
    let mut redis = space.redis().await;
    let _workers = [Worker::start(&space, &[LANES, CLAIM_IDLE]), Worker::start(&space, &[LANES, CLAIM_IDLE])];
    let collections = populate(&space, &mut redis).await;
    let collections: Vec<_> = collections.iter().map(String::as_str).collect();
    let talking = tokio::spawn({
        let space = space.clone();
        async move {
            let mut redis = space.redis().await;
            for n in 0.. {
                let later = json!([{ "session_id": "s-later", "user_id": USER, "transcript": format!("later {n}"), "embedding": [n, 1, 2] }, said("u-47", "s-live", 1000 + n)]);
                send::json(&mut redis, &space.stream("interactions"), &later).await;
                send::json(
                    &mut redis,
                    &space.stream("sessions"),
                    &json!({ "session_id": "s-later", "user_id": USER, "status": "updated", "seq": n }),
                )
                .await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    erase(&space, &["--user-id", USER]);
    talking.abort();
    all_settled(&space).await;
    nowhere(&space, &collections, &[MARKER, "s-mine"]).await;
    let spoken = stores::interactions(&space.administrator().await).await;
    let mut live: Vec<_> = spoken.iter().filter(|row| row.session_id == "s-live").map(|row| row.event_id).collect();
    let count = live.len();
    live.dedup();
    assert!(count > 10 && live.len() == count, "others' events of the same entries are all there, once");
    let numbers: BTreeSet<_> =
        spoken.iter().filter(|row| row.session_id == "s-live").map(|row| row.transcript.clone().unwrap()).collect();
    assert_eq!(numbers.len(), count);
}

/// Entries in the hand of a worker that lives are waited for, and never taken from it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_worker_has_in_hand_is_waited_for() {
    let _one = ONE_AT_A_TIME.lock().await;
    let space = Space::new("erase_in_hand").await;
    let mut redis = space.redis().await;
    // Against writing alone: the eraser may look.
    let lock = space.administrator().await;
    lock.batch_execute("BEGIN; LOCK TABLE interaction_logs IN SHARE MODE").await.unwrap();
    let _worker = Worker::start(&space, &[LANES, CLAIM_IDLE]);
    for n in 0..5 {
        send::json(&mut redis, &space.stream("interactions"), &said(USER, "s-mine", n)).await;
    }
    until_pending(&mut redis, &space.stream("interactions"), 5).await;
    let mut command = Command::new(worker::PROGRAM);
    command.args(["erase", "--user-id", USER]).env_clear().envs(eraser(&space)).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = servers::spawn(command).unwrap();
    let mut told = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let waits = tokio::task::block_in_place(|| told.find(|line| line.starts_with("waiting for workers")));
    assert!(waits.is_some_and(|line| line.contains("5 entries")));
    // Longer than what would make them anybody's: the worker renews its claim.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(child.try_wait().unwrap().is_none());
    assert_eq!(stores::length(&mut redis, &space.stream("interactions")).await, 5, "nothing is taken out of its hand");
    lock.batch_execute("ROLLBACK").await.unwrap();
    let output = tokio::task::block_in_place(|| child.wait_with_output().unwrap());
    assert!(output.status.success(), "{output:?}");
    all_settled(&space).await;
    nowhere(&space, &[&space.collection], &[MARKER]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_point_it_is_run_again() {
    let _one = ONE_AT_A_TIME.lock().await;
    let space = Space::new("erase_killed").await;
    let mut redis = space.redis().await;
    let mut worker = Worker::start(&space, &[LANES, CLAIM_IDLE]);
    let collections = populate(&space, &mut redis).await;
    let collections: Vec<_> = collections.iter().map(String::as_str).collect();
    all_settled(&space).await;
    let before = of_others(&space, &collections).await;
    // And some unread ones, of which no table knows.
    worker.stop();
    send::json(&mut redis, &space.stream("sessions"), &update(USER, "s-unread", 1)).await;
    send::json(
        &mut redis,
        &space.stream("embeddings"),
        &json!({ "id": "unread", "session_id": "s-unread", "embedding": [1, 2, 3], "document": MARKER }),
    )
    .await;
    for kill_after_ms in [5, 15, 30, 50, 80, 120, 180, 260] {
        let mut command = Command::new(worker::PROGRAM);
        command.args(["erase", "--user-id", USER]).env_clear().envs(eraser(&space)).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = servers::spawn(command).unwrap();
        tokio::time::sleep(Duration::from_millis(kill_after_ms)).await;
        let _ = child.kill();
        child.wait().unwrap();
    }
    // The server ends the lock of a killed one when it notices.
    until("the last lock to be gone", SOON, async || {
        let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        (space.administrator().await.query_one(locks, &[]).await.unwrap().get::<_, i64>(0) == 0).then_some(())
    })
    .await;
    erase(&space, &["--user-id", USER]);
    nowhere(&space, &collections, &[MARKER, "s-mine", "s-unread"]).await;
    let _worker = Worker::start(&space, &[LANES, CLAIM_IDLE]);
    all_settled(&space).await;
    nowhere(&space, &collections, &[MARKER, "s-mine", "s-unread"]).await;
    untouched(&of_others(&space, &collections).await, &before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_alone_is_erased_whoever_took_part() {
    let _one = ONE_AT_A_TIME.lock().await;
    let space = Space::new("erase_session").await;
    let mut redis = space.redis().await;
    let worker = Worker::start(&space, &[LANES]);
    let collections = populate(&space, &mut redis).await;
    let collections: Vec<_> = collections.iter().map(String::as_str).collect();
    all_settled(&space).await;
    let mine =
        stores::interactions(&space.administrator().await).await.into_iter().filter(|row| row.session_id == "s-mine").count();
    let erased = erase(&space, &["--session-id", "s-both"]);
    assert_eq!(erased["rows"]["interaction_logs"], json!(20), "{erased}");
    nowhere(&space, &collections, &["s-both"]).await;
    let all = stores::interactions(&space.administrator().await).await;
    assert_eq!(all.iter().filter(|row| row.session_id == "s-mine").count(), mine);
    drop(worker);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_id_comes_from_a_file_and_a_bad_call_is_told() {
    let _one = ONE_AT_A_TIME.lock().await;
    let space = Space::new("erase_cli").await;
    let mut redis = space.redis().await;
    send::json(&mut redis, &space.stream("interactions"), &said(USER, "s-mine", 1)).await;
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("id");
    std::fs::write(&file, format!("{USER}\n")).unwrap();
    let erased = erase(&space, &["--user-id-file", file.to_str().unwrap()]);
    assert_eq!(erased["streams"][space.stream("interactions")]["events"], json!(1), "{erased}");
    nowhere(&space, &[], &[MARKER]).await;
    for (arguments, told) in [
        (&["erase"][..], "--user-id"),
        (&["erase", "--user-id", ""], "1 to 256 bytes"),
        (&["erase", "--user-id", "a", "--session-id", "b"], "cannot be used with"),
    ] {
        let output = tokio::task::block_in_place(|| worker::command(arguments, &[]));
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && err.contains(told), "{arguments:?}: {err}");
    }
}
