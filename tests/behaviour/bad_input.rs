//! Bad input: a case for every rule of contract.md §3. Each bad event costs itself alone: it stands among good ones, which are
//! written; its dead letter has the right code, place, body and reason; its transcript is nowhere in the reason.

use std::collections::HashMap;

use serde_json::{Value as Json, json};

use crate::support::msgpack::Mp;
use crate::support::send::{Fields, data_entry};
use crate::support::stores::{DeadLetter, dead_letters};
use crate::support::{LONG, SOON, Space, Worker, send, stores, until};

/// A word that every bad event holds as transcript or document, and no reason may.
const PRIVATE: &str = "zzprivatezz";
const MISSING: &str = "missing_field";
const INVALID: &str = "invalid_field";
const MALFORMED: &str = "malformed";
const TIME: &str = "time_out_of_range";
const TOO_LARGE: &str = "too_large";

/// A bad event: its name, its form, the code it must get, and words that its reason must hold.
struct Case {
    name: &'static str,
    body: Body,
    code: &'static str,
    words: &'static [&'static str],
}

enum Body {
    MessagePack(Vec<u8>),
    Json(String),
}

impl Body {
    fn field(&self) -> (&'static str, &[u8]) {
        match self {
            Self::MessagePack(bytes) => ("data", bytes),
            Self::Json(text) => ("json", text.as_bytes()),
        }
    }

    /// The entry with this event between two good ones, and the entry with it alone.
    fn entries(&self, good: [&Json; 2]) -> [Fields; 2] {
        let (field, alone) = self.field();
        let among = match self {
            Self::MessagePack(bytes) => Mp::Array(vec![good[0].into(), Mp::Raw(bytes.clone()), good[1].into()]).bytes(),
            Self::Json(text) => format!("[{},\n {text} ,{}]", good[0], good[1]).into_bytes(),
        };
        [vec![(field.to_owned(), among)], vec![(field.to_owned(), alone.to_vec())]]
    }
}

#[allow(clippy::needless_pass_by_value, reason = "a table of cases reads better without borrows")]
fn data(name: &'static str, event: Mp, code: &'static str, words: &'static [&'static str]) -> Case {
    Case { name, body: Body::MessagePack(event.bytes()), code, words }
}

/// A rule that both forms break alike: two cases.
fn both(name: &'static str, event: Json, code: &'static str, words: &'static [&'static str]) -> [Case; 2] {
    let text = event.to_string();
    [data(name, event.into(), code, words), Case { name, body: Body::Json(text), code, words }]
}

fn raw_json(name: &'static str, text: String, code: &'static str, words: &'static [&'static str]) -> Case {
    Case { name, body: Body::Json(text), code, words }
}

/// An object with a value under a key.
fn put(event: &Json, key: &str, value: impl Into<Json>) -> Json {
    let mut event = event.clone();
    event[key] = value.into();
    event
}

fn cut(event: &Json, key: &str) -> Json {
    let mut event = event.clone();
    event.as_object_mut().unwrap().remove(key);
    event
}

/// `levels` maps inside each other.
fn nested(levels: usize) -> Json {
    (1..levels).fold(json!({}), |inner, _| json!({ "a": inner }))
}

fn not_utf8() -> Mp {
    Mp::RawStr(vec![b'a', 0xff, 0xc0])
}

const TOO_LONG: usize = 257;

/// Rules about keys that all kinds have.
fn common(base: &Json) -> Vec<Case> {
    let mp = || Mp::from(base);
    let day_ms = 86_400_000;
    let mut cases = vec![
        data("event_id of 15 bytes", mp().with("event_id", Mp::Bin(vec![1; 15])), INVALID, &["`event_id`", "15"]),
        data("event_id of 17 bytes", mp().with("event_id", Mp::Bin(vec![1; 17])), INVALID, &["`event_id`", "17"]),
        data(
            "occurred_at of an unknown extension",
            mp().with("occurred_at", Mp::Ext(5, vec![0; 4])),
            INVALID,
            &["`occurred_at`"],
        ),
        data("occurred_at of 5 timestamp bytes", mp().with("occurred_at", Mp::Ext(-1, vec![0; 5])), INVALID, &["`occurred_at`"]),
        data(
            "occurred_at with 10^9 ns",
            mp().with("occurred_at", Mp::timestamp(send::now_ms() / 1000, 1_000_000_000)),
            INVALID,
            &["`occurred_at`"],
        ),
        data("occurred_at NaN", mp().with("occurred_at", Mp::F64(f64::NAN)), INVALID, &["`occurred_at`"]),
        data("occurred_at beyond i64", mp().with("occurred_at", Mp::UInt(u64::MAX)), TIME, &["`occurred_at`"]),
        data("occurred_at far beyond", mp().with("occurred_at", Mp::timestamp(i64::MAX, 0)), TIME, &["`occurred_at`"]),
        data("occurred_at far before", mp().with("occurred_at", Mp::Int(i64::MIN)), TIME, &["`occurred_at`"]),
        data(
            "a key that is no text",
            {
                let Mp::Map(mut pairs) = mp() else { unreachable!() };
                pairs.push((Mp::Int(1), Mp::Nil));
                Mp::Map(pairs)
            },
            INVALID,
            &["key"],
        ),
    ];
    let now = send::now_ms();
    for pair in [
        both("event_id no UUID", put(base, "event_id", "not-a-uuid"), INVALID, &["`event_id`"]),
        both("event_id without hyphens", put(base, "event_id", "0123456789abcdef0123456789abcdef"), INVALID, &["`event_id`"]),
        both("event_id in braces", put(base, "event_id", "{01234567-89ab-cdef-0123-456789abcdef}"), INVALID, &["`event_id`"]),
        both("event_id a number", put(base, "event_id", 5), INVALID, &["`event_id`"]),
        both("occurred_at no time", put(base, "occurred_at", "yesterday"), INVALID, &["`occurred_at`"]),
        both("occurred_at without offset", put(base, "occurred_at", "2026-11-22T10:00:00"), INVALID, &["`occurred_at`"]),
        both("occurred_at a boolean", put(base, "occurred_at", true), INVALID, &["`occurred_at`"]),
        both("occurred_at a fraction", put(base, "occurred_at", 1.5), INVALID, &["`occurred_at`"]),
        both(
            "occurred_at 366 days ago",
            put(base, "occurred_at", now - 366 * day_ms),
            TIME,
            &["`occurred_at`", "AEGIS_MAX_EVENT_AGE", "365d"],
        ),
        both("occurred_at in 1970", put(base, "occurred_at", "1970-01-01T00:00:00Z"), TIME, &["`occurred_at`"]),
        both(
            "occurred_at two hours ahead",
            put(base, "occurred_at", now + 7_200_000),
            TIME,
            &["`occurred_at`", "AEGIS_MAX_CLOCK_SKEW", "1h"],
        ),
        both("occurred_at in seconds", put(base, "occurred_at", now / 1000), TIME, &["`occurred_at`"]),
        both("nested in 33 levels", put(base, "attributes", nested(32)), MALFORMED, &["32"]),
        both("no map: a number", json!(5), MALFORMED, &["map"]),
        both("no map: nothing", Json::Null, MALFORMED, &["map"]),
        both("no map: a text", json!("event"), MALFORMED, &["map"]),
    ] {
        cases.extend(pair);
    }
    cases
}

/// Rules about `session_id` and `user_id` where they are required.
fn identity(base: &Json) -> Vec<Case> {
    let long = "x".repeat(TOO_LONG);
    // 86 characters of three bytes each: the bound counts bytes.
    let wide = "用".repeat(86);
    let mut cases = vec![
        data("session_id invalid UTF-8", Mp::from(base).with("session_id", not_utf8()), INVALID, &["`session_id`", "UTF-8"]),
        data("user_id invalid UTF-8", Mp::from(base).with("user_id", not_utf8()), INVALID, &["`user_id`", "UTF-8"]),
        data("user_id as bytes", Mp::from(base).with("user_id", Mp::Bin(vec![b'u'])), INVALID, &["`user_id`"]),
    ];
    for pair in [
        both("session_id missing", cut(base, "session_id"), MISSING, &["`session_id`"]),
        both("session_id null", put(base, "session_id", Json::Null), MISSING, &["`session_id`"]),
        both("session_id empty", put(base, "session_id", ""), INVALID, &["`session_id`"]),
        both("session_id of 257 bytes", put(base, "session_id", long.as_str()), INVALID, &["`session_id`", "256"]),
        both("session_id of 258 bytes in 86 characters", put(base, "session_id", wide), INVALID, &["`session_id`", "256"]),
        both("session_id a number", put(base, "session_id", 17), INVALID, &["`session_id`"]),
        both("session_id with U+0000", put(base, "session_id", "a\0b"), INVALID, &["`session_id`", "U+0000"]),
        both("user_id missing", cut(base, "user_id"), MISSING, &["`user_id`"]),
        both("user_id empty", put(base, "user_id", ""), INVALID, &["`user_id`"]),
        both("user_id of 257 bytes", put(base, "user_id", long.as_str()), INVALID, &["`user_id`", "256"]),
        both("user_id a list", put(base, "user_id", json!(["u"])), INVALID, &["`user_id`"]),
        both("user_id with U+0000", put(base, "user_id", "\0"), INVALID, &["`user_id`", "U+0000"]),
    ] {
        cases.extend(pair);
    }
    cases
}

/// What is no vector.
fn vectors(base: &Json) -> Vec<Case> {
    let mp = || Mp::from(base);
    let of = |numbers: &[f32]| mp().with("embedding", Mp::vector(numbers));
    let key = &["`embedding`"];
    let mut cases = vec![
        data("embedding of no bytes", of(&[]), INVALID, key),
        data("embedding of 5 bytes", mp().with("embedding", Mp::Bin(vec![0; 5])), INVALID, key),
        data("embedding bytes with NaN", of(&[1.0, f32::NAN, 0.0, 0.0]), INVALID, key),
        data("embedding bytes with infinity", of(&[f32::INFINITY, 0.0, 0.0, 0.0]), INVALID, key),
        data("embedding array with NaN", mp().with("embedding", Mp::Array(vec![Mp::F64(f64::NAN), Mp::Int(1)])), INVALID, key),
        data("embedding array with float32 NaN", mp().with("embedding", Mp::Array(vec![Mp::F32(f32::NAN)])), INVALID, key),
    ];
    for pair in [
        both("embedding empty", put(base, "embedding", json!([])), INVALID, key),
        both("embedding a text", put(base, "embedding", "AAAA"), INVALID, key),
        both("embedding a map", put(base, "embedding", json!({})), INVALID, key),
        both("embedding of texts", put(base, "embedding", json!(["1", "2"])), INVALID, key),
        both("embedding with null", put(base, "embedding", json!([1, null])), INVALID, key),
        both("embedding of lists", put(base, "embedding", json!([[1.0, 2.0]])), INVALID, key),
        both("embedding beyond float32", put(base, "embedding", json!([1e39, 0])), INVALID, key),
    ] {
        cases.extend(pair);
    }
    cases
}

/// Runs cases on a lane: each among two good events, and alone. Returns the good rows that must be there.
async fn judge(lane: &str, good: impl Fn(usize) -> Json, cases: Vec<Case>) -> (Space, Worker, usize) {
    let space = Space::new(&format!("bad_{lane}")).await;
    let worker = Worker::start(&space, &[]);
    let mut redis = space.redis().await;
    let stream = space.stream(lane);
    let mut entries = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        entries.extend(case.body.entries([&good(2 * number), &good(2 * number + 1)]));
    }
    let ids = send::many(&mut redis, &stream, &entries).await;
    worker.ready().await;
    worker.settled(&space, &[lane], LONG).await;

    let mut by_entry: HashMap<String, Vec<DeadLetter>> = HashMap::new();
    let letters = dead_letters(&mut redis, &space.dead(lane)).await;
    let mut codes: HashMap<String, f64> = HashMap::new();
    for letter in letters {
        *codes.entry(letter.text("code")).or_default() += 1.0;
        by_entry.entry(letter.text("src_id")).or_default().push(letter);
    }
    let mut wrong = Vec::new();
    for (number, id) in ids.iter().enumerate() {
        let (case, alone) = (&cases[number / 2], number % 2 == 1);
        let (field, body) = case.body.field();
        let letters = by_entry.remove(id).unwrap_or_default();
        let problem = match letters.as_slice() {
            [letter] => faults(letter, case, &stream, if alone { "0" } else { "1" }, field, body),
            others => vec![format!("{} dead letters", others.len())],
        };
        if !problem.is_empty() {
            wrong.push(format!(
                "{} ({field}, {}): {}\n    {letters:?}",
                case.name,
                if alone { "alone" } else { "among others" },
                problem.join("; ")
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), ids.len(), wrong.join("\n"));
    assert!(by_entry.is_empty(), "dead letters of nobody: {by_entry:?}");
    let metrics = worker.metrics().await;
    for (code, count) in codes {
        assert_eq!(metrics.get("aegis_events_dead_total", &[("lane", lane), ("code", &code)]), count, "{code}");
    }
    assert!(!worker.log().contains(PRIVATE), "a transcript stands in the log");
    (space, worker, 2 * cases.len())
}

fn faults(letter: &DeadLetter, case: &Case, stream: &str, index: &str, field: &str, body: &[u8]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut expect = |what: &str, right: bool| {
        if !right {
            faults.push(what.to_owned());
        }
    };
    let reason = letter.text("reason");
    expect(&format!("code is not {}", case.code), letter.text("code") == case.code);
    expect("index", letter.text("index") == index);
    expect("src", letter.text("src") == stream);
    expect("the body is not as it came", letter.bytes(field) == Some(body));
    expect("the other form is there too", letter.bytes(if field == "data" { "json" } else { "data" }).is_none());
    for word in case.words {
        expect(&format!("the reason lacks {word}"), reason.contains(word));
    }
    expect("the reason tells the transcript", !reason.contains(PRIVATE));
    expect("the reason is no sentence", reason.len() >= 10 && reason.len() < 400 && !reason.contains('\n'));
    expect("failed_at is no RFC 3339 time", letter.text("failed_at").parse::<jiff::Timestamp>().is_ok());
    faults
}

#[tokio::test]
async fn interactions_are_judged_by_every_rule() {
    let base = json!({ "session_id": "bad", "user_id": "u", "transcript": PRIVATE });
    let mp = || Mp::from(&base);
    let mut cases = [common(&base), identity(&base), vectors(&base)].into_iter().flatten().collect::<Vec<_>>();
    for key in ["intent", "channel", "locale", "transcript"] {
        // Leaked for the length of a test: the words of a case are static.
        let word: &'static [&'static str] = Box::leak(Box::new([&*Box::leak(format!("`{key}`").into_boxed_str())]));
        cases.extend(both("a text that is a number", put(&base, key, 5), INVALID, word));
        cases.extend(both("a text that is a map", put(&base, key, json!({ "x": PRIVATE })), INVALID, word));
        cases.extend(both("a text with U+0000", put(&base, key, format!("{PRIVATE}\0")), INVALID, word));
        cases.push(data("a text that is not UTF-8", mp().with(key, not_utf8()), INVALID, word));
        cases.push(data("a text that is bytes", mp().with(key, Mp::Bin(b"x".to_vec())), INVALID, word));
    }
    for (key, above) in [("latency_ms", None), ("confidence", Some(1.000_1))] {
        let word: &'static [&'static str] = Box::leak(Box::new([&*Box::leak(format!("`{key}`").into_boxed_str())]));
        cases.extend(both("a number below 0", put(&base, key, -0.001), INVALID, word));
        cases.extend(both("a number that is a text", put(&base, key, "12"), INVALID, word));
        cases.extend(both("a number that is a boolean", put(&base, key, true), INVALID, word));
        cases.push(data("a number that is NaN", mp().with(key, Mp::F64(f64::NAN)), INVALID, word));
        cases.push(data("a number that is float32 NaN", mp().with(key, Mp::F32(f32::NAN)), INVALID, word));
        cases.push(data("a number that is infinite", mp().with(key, Mp::F64(f64::INFINITY)), INVALID, word));
        if let Some(above) = above {
            cases.extend(both("a number above its bound", put(&base, key, above), INVALID, word));
        }
    }
    let attributes = &["`attributes`"];
    cases.extend(both("attributes a list", put(&base, "attributes", json!([1])), INVALID, attributes));
    cases.extend(both("attributes a text", put(&base, "attributes", PRIVATE), INVALID, attributes));
    cases.extend(both(
        "U+0000 deep in attributes",
        put(&base, "attributes", json!({ "a": [{ "b": "\0" }] })),
        INVALID,
        &["`attributes`", "U+0000"],
    ));
    cases.extend(both(
        "U+0000 in a key of attributes",
        put(&base, "attributes", json!({ "a": { "\0": 1 } })),
        INVALID,
        attributes,
    ));
    cases.extend(both(
        "U+0000 deep in an unknown key",
        put(&base, "slots", json!({ "a": ["\0"] })),
        INVALID,
        &["`slots`", "U+0000"],
    ));
    let bad = |value: Mp| Mp::map([("a", Mp::Array(vec![value]))]);
    cases.push(data("NaN deep in attributes", mp().with("attributes", bad(Mp::F64(f64::NAN))), INVALID, attributes));
    cases.push(data("invalid UTF-8 deep in attributes", mp().with("attributes", bad(not_utf8())), INVALID, attributes));
    cases.push(data("an extension in attributes", mp().with("attributes", bad(Mp::Ext(9, vec![1]))), INVALID, attributes));
    cases.push(data(
        "a key of attributes that is no text",
        mp().with("attributes", Mp::Map(vec![(Mp::Int(1), Mp::Nil)])),
        INVALID,
        attributes,
    ));
    cases.push(data(
        "an unknown key that is not UTF-8",
        {
            let Mp::Map(mut pairs) = mp() else { unreachable!() };
            pairs.push((not_utf8(), Mp::Nil));
            Mp::Map(pairs)
        },
        INVALID,
        &["key", "UTF-8"],
    ));
    cases.extend(both("an unknown key with U+0000", put(&base, "a\0b", 1), INVALID, &["key", "U+0000"]));
    cases.push(raw_json(
        "half a surrogate pair",
        format!(r#"{{"session_id":"s","user_id":"u","transcript":"{PRIVATE}\ud800"}}"#),
        MALFORMED,
        &[],
    ));
    // The most important fault comes first, so that one event always gets the same code.
    cases.extend(both(
        "several faults at once",
        json!({ "occurred_at": 5, "confidence": 7, "user_id": "" }),
        TIME,
        &["`occurred_at`"],
    ));

    let good = |n: usize| json!({ "session_id": format!("good{n}"), "user_id": "u", "transcript": "ok" });
    let (space, _worker, wanted) = judge("interactions", good, cases).await;
    let rows = stores::interactions(&space.database().await).await;
    assert_eq!(rows.len(), wanted, "the neighbours of the bad ones, and nothing else");
    assert!(rows.iter().all(|row| row.transcript.as_deref() == Some("ok")));
}

#[tokio::test]
async fn session_updates_are_judged_by_every_rule() {
    let base = json!({ "session_id": "bad", "user_id": "u", "status": "updated", "state": { "said": PRIVATE } });
    let mp = || Mp::from(&base);
    let mut cases = [common(&base), identity(&base)].into_iter().flatten().collect::<Vec<_>>();
    for pair in [
        both("status missing", cut(&base, "status"), MISSING, &["`status`", "started"]),
        both("status null", put(&base, "status", Json::Null), MISSING, &["`status`"]),
        both("status unknown", put(&base, "status", "paused"), INVALID, &["`status`", "started"]),
        both("status in capitals", put(&base, "status", "Ended"), INVALID, &["`status`"]),
        both("status a number", put(&base, "status", 1), INVALID, &["`status`"]),
        both("seq negative", put(&base, "seq", -1), INVALID, &["`seq`"]),
        both("seq a fraction", put(&base, "seq", 1.5), INVALID, &["`seq`"]),
        both("seq a text", put(&base, "seq", "7"), INVALID, &["`seq`"]),
        both("seq beyond i64", put(&base, "seq", u64::MAX), INVALID, &["`seq`"]),
        both("state a list", put(&base, "state", json!([PRIVATE])), INVALID, &["`state`"]),
        both("state a text", put(&base, "state", PRIVATE), INVALID, &["`state`"]),
        both("U+0000 deep in state", put(&base, "state", json!({ "a": [{ "b": ["\0"] }] })), INVALID, &["`state`", "U+0000"]),
        both("U+0000 in a key of state", put(&base, "state", json!({ "a": { "x\0": 1 } })), INVALID, &["`state`"]),
    ] {
        cases.extend(pair);
    }
    let bad = |value: Mp| Mp::map([("a", Mp::Array(vec![value]))]);
    cases.push(data("NaN deep in state", mp().with("state", bad(Mp::F64(f64::NAN))), INVALID, &["`state`"]));
    cases.push(data("infinity in state", mp().with("state", bad(Mp::F32(f32::NEG_INFINITY))), INVALID, &["`state`"]));
    cases.push(data("invalid UTF-8 deep in state", mp().with("state", bad(not_utf8())), INVALID, &["`state`"]));
    cases.push(data("an extension in state", mp().with("state", bad(Mp::Ext(1, vec![]))), INVALID, &["`state`"]));
    cases.push(data(
        "a key of state that is no text",
        mp().with("state", Mp::Map(vec![(Mp::Nil, Mp::Nil)])),
        INVALID,
        &["`state`"],
    ));

    let good = |n: usize| json!({ "session_id": format!("good{n}"), "user_id": "u", "status": "started" });
    let (space, _worker, wanted) = judge("sessions", good, cases).await;
    let database = space.database().await;
    assert_eq!(stores::session_events(&database).await.len(), wanted);
    let sessions = stores::sessions(&database).await;
    assert_eq!((sessions.len(), sessions.contains_key("bad")), (wanted, false));
    let mut redis = space.redis().await;
    assert!(stores::session_hash(&mut redis, &space.session_key("bad")).await.is_empty());
}

#[tokio::test]
async fn embeddings_are_judged_by_every_rule() {
    let base = json!({ "id": "bad", "embedding": [1, 2, 3, 4], "document": PRIVATE });
    let mp = || Mp::from(&base);
    let mut cases = [common(&base), vectors(&base)].into_iter().flatten().collect::<Vec<_>>();
    let metadata = |map: Json| put(&base, "metadata", map);
    for pair in [
        both("embedding missing", cut(&base, "embedding"), MISSING, &["`embedding`"]),
        both("embedding null", put(&base, "embedding", Json::Null), MISSING, &["`embedding`"]),
        both(
            "a vector of another dimension",
            put(&base, "embedding", json!([1, 2, 3])),
            "dimension_mismatch",
            &["embedding", "3", "4"],
        ),
        both("id empty", put(&base, "id", ""), INVALID, &["`id`"]),
        both("id a number", put(&base, "id", 7), INVALID, &["`id`"]),
        both("id with U+0000", put(&base, "id", "\0"), INVALID, &["`id`", "U+0000"]),
        both("document a list", put(&base, "document", json!([PRIVATE])), INVALID, &["`document`"]),
        both("document with U+0000", put(&base, "document", format!("{PRIVATE}\0")), INVALID, &["`document`", "U+0000"]),
        both("collection a number", put(&base, "collection", 7), INVALID, &["`collection`"]),
        both("collection that Chroma would refuse", put(&base, "collection", "a b"), INVALID, &["`collection`"]),
        both("collection too short", put(&base, "collection", "ab"), INVALID, &["`collection`"]),
        both("collection that leads elsewhere", put(&base, "collection", "../../x"), INVALID, &["`collection`"]),
        both("session_id empty", put(&base, "session_id", ""), INVALID, &["`session_id`"]),
        both("session_id of 257 bytes", put(&base, "session_id", "x".repeat(TOO_LONG)), INVALID, &["`session_id`", "256"]),
        both("user_id a number", put(&base, "user_id", 1), INVALID, &["`user_id`"]),
        both("metadata a list", metadata(json!([1])), INVALID, &["`metadata`"]),
        both("metadata a text", metadata(json!(PRIVATE)), INVALID, &["`metadata`"]),
        both("metadata with a map", metadata(json!({ "a": { "b": 1 } })), INVALID, &["`metadata`", "a"]),
        both("metadata with a list", metadata(json!({ "a": [1] })), INVALID, &["`metadata`", "a"]),
        both("metadata with U+0000", metadata(json!({ "a": "\0" })), INVALID, &["`metadata`", "U+0000"]),
        both("metadata with U+0000 in a key", metadata(json!({ "a\0": 1 })), INVALID, &["`metadata`"]),
        both("metadata key chroma:x", metadata(json!({ "chroma:x": 1 })), INVALID, &["`metadata`", "chroma:"]),
        both(
            "metadata key chroma:document",
            metadata(json!({ "chroma:document": PRIVATE })),
            INVALID,
            &["`metadata`", "chroma:"],
        ),
        both("metadata key $x", metadata(json!({ "$x": 1 })), INVALID, &["`metadata`", "$x"]),
        both("metadata key #x", metadata(json!({ "#x": 1 })), INVALID, &["`metadata`", "#x"]),
        both("metadata key empty", metadata(json!({ "": 1 })), INVALID, &["`metadata`", "empty"]),
        both("metadata key chroma:x with null", metadata(json!({ "chroma:x": null })), INVALID, &["`metadata`", "chroma:"]),
        both("unknown key chroma:x", put(&base, "chroma:x", 1), INVALID, &["chroma:"]),
        both("unknown key $x", put(&base, "$x", 1), INVALID, &["$x"]),
        both("unknown key empty", put(&base, "", 1), INVALID, &["empty"]),
        both("unknown key with a map", put(&base, "more", json!({ "b": 1 })), INVALID, &["more"]),
    ] {
        cases.extend(pair);
    }
    cases.push(data("metadata with NaN", mp().with("metadata", Mp::map([("a", Mp::F64(f64::NAN))])), INVALID, &["`metadata`"]));
    cases.push(data(
        "metadata with bytes that are no text",
        mp().with("metadata", Mp::map([("a", not_utf8())])),
        INVALID,
        &["`metadata`"],
    ));
    cases.push(data(
        "metadata with a key that is no text",
        mp().with("metadata", Mp::Map(vec![(Mp::Int(1), Mp::Nil)])),
        INVALID,
        &["`metadata`"],
    ));
    cases.push(data("document invalid UTF-8", mp().with("document", not_utf8()), INVALID, &["`document`", "UTF-8"]));

    let good = |n: usize| json!({ "id": format!("good{n}"), "embedding": [n, 2, 3, 4], "document": "ok" });
    let (space, worker, wanted) = judge("embeddings", good, cases).await;
    let chroma = space.chroma();
    assert_eq!(stores::record_count(&chroma, &space.collection).await, wanted as u64);
    let ids: Vec<_> = (0..wanted).map(|n| format!("good{n}")).collect();
    let records = stores::records(&chroma, &space.collection, &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    assert_eq!(records.len(), wanted);
    // The server is as well as before: what would have harmed it never reached it.
    let mut redis = space.redis().await;
    send::json(&mut redis, &space.stream("embeddings"), &good(wanted)).await;
    worker.settled(&space, &["embeddings"], SOON).await;
    assert_eq!(stores::record_count(&chroma, &space.collection).await, wanted as u64 + 1);
}

/// A whole entry that is bad: its fields, the code, words of the reason; the letter must keep the fields as they were.
struct Whole {
    name: &'static str,
    fields: Vec<(&'static str, Vec<u8>)>,
    code: &'static str,
    words: &'static [&'static str],
}

#[tokio::test]
async fn entries_are_judged_before_their_events() {
    let good = json!({ "session_id": "s", "user_id": "u", "transcript": PRIVATE });
    let data = Mp::from(&good).bytes();
    let text = good.to_string().into_bytes();
    let trailing = [data.as_slice(), &[0xc0]].concat();
    let many = |count: usize| Mp::Array(vec![Mp::from(&good); count]).bytes();
    let lists_json = [b"[".repeat(200_000), b"]".repeat(200_000)].concat();
    let lists = [vec![0x91; 1_000_000], vec![0xc0]].concat();
    let deep_map = [br#"{"a":"#.repeat(100_000), b"1".to_vec(), b"}".repeat(100_000)].concat();
    let latin1 = [text[..text.len() - 2].to_vec(), vec![0xe9, b'"', b'}']].concat();
    let over = |bytes: usize| Mp::from(&good).with("filler", Mp::Bin(vec![7; bytes - data.len() - 12])).bytes();
    let limit = 1 << 20;
    assert_eq!(over(limit).len(), limit, "the arithmetic of this test");
    let cases = vec![
        Whole {
            name: "no fields that count",
            fields: vec![("event", text.clone()), ("x", b"1".to_vec())],
            code: MALFORMED,
            words: &["`data`", "`json`"],
        },
        Whole {
            name: "both fields",
            fields: vec![("data", data.clone()), ("json", text.clone())],
            code: MALFORMED,
            words: &["`data`", "`json`"],
        },
        Whole {
            name: "data twice",
            fields: vec![("data", data.clone()), ("data", data.clone())],
            code: MALFORMED,
            words: &["`data`"],
        },
        Whole {
            name: "json twice",
            fields: vec![("json", text.clone()), ("json", text.clone())],
            code: MALFORMED,
            words: &["`json`"],
        },
        Whole { name: "an empty payload", fields: vec![("data", vec![])], code: MALFORMED, words: &[] },
        Whole { name: "empty JSON", fields: vec![("json", vec![])], code: MALFORMED, words: &[] },
        Whole {
            name: "torn MessagePack",
            fields: vec![("data", data[..data.len() - 3].to_vec())],
            code: MALFORMED,
            words: &["MessagePack"],
        },
        Whole {
            name: "a length that lies",
            fields: vec![("data", vec![0xdd, 0xff, 0xff, 0xff, 0xff])],
            code: MALFORMED,
            words: &["MessagePack"],
        },
        Whole { name: "trailing bytes", fields: vec![("data", trailing)], code: MALFORMED, words: &["follow"] },
        Whole { name: "the byte 0xc1", fields: vec![("data", vec![0x81, 0xa1, b'a', 0xc1])], code: MALFORMED, words: &["0xc1"] },
        Whole {
            name: "a payload that is a text",
            fields: vec![("data", Mp::str("x").bytes())],
            code: MALFORMED,
            words: &["map"],
        },
        Whole { name: "JSON in the field data", fields: vec![("data", text.clone())], code: MALFORMED, words: &[] },
        Whole { name: "torn JSON", fields: vec![("json", text[..text.len() - 1].to_vec())], code: MALFORMED, words: &["JSON"] },
        Whole {
            name: "JSON with more behind",
            fields: vec![("json", [text.as_slice(), b" x"].concat())],
            code: MALFORMED,
            words: &["JSON"],
        },
        Whole {
            name: "two JSON objects",
            fields: vec![("json", [text.as_slice(), text.as_slice()].concat())],
            code: MALFORMED,
            words: &["JSON"],
        },
        Whole { name: "JSON that is not UTF-8", fields: vec![("json", latin1)], code: MALFORMED, words: &[] },
        Whole {
            name: "JSON of single quotes",
            fields: vec![("json", b"{'session_id':'s'}".to_vec())],
            code: MALFORMED,
            words: &["JSON"],
        },
        Whole { name: "100,000 maps in JSON", fields: vec![("json", deep_map)], code: MALFORMED, words: &[] },
        Whole {
            name: "a byte above the limit",
            fields: vec![("data", over(limit + 1))],
            code: TOO_LARGE,
            words: &["AEGIS_MAX_ENTRY_BYTES"],
        },
        Whole {
            name: "a byte above the limit as JSON",
            fields: vec![("json", vec![b' '; limit + 1])],
            code: TOO_LARGE,
            words: &["AEGIS_MAX_ENTRY_BYTES"],
        },
        Whole { name: "20 MB", fields: vec![("data", over(20_000_000))], code: TOO_LARGE, words: &["AEGIS_MAX_ENTRY_BYTES"] },
        Whole { name: "20 MB of something else", fields: vec![("blob", vec![1; 20_000_000])], code: TOO_LARGE, words: &[] },
        Whole { name: "10,001 events", fields: vec![("data", many(10_001))], code: TOO_LARGE, words: &["10001", "10000"] },
    ];
    let space = Space::new("bad_entries").await;
    let worker = Worker::start(&space, &[]);
    worker.ready().await;
    let resting = worker.rss();
    let mut redis = space.redis().await;
    let stream = space.stream("interactions");
    let mut ids = Vec::new();
    for case in &cases {
        let fields: Vec<_> = case.fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        ids.push(send::fields(&mut redis, &stream, &fields).await);
        send::json(&mut redis, &stream, &good).await;
    }
    let list_ids = [
        send::fields(&mut redis, &stream, &[("json".to_owned(), lists_json.clone())]).await,
        send::fields(&mut redis, &stream, &data_entry(lists.clone())).await,
    ];
    worker.settled(&space, &["interactions"], LONG).await;
    let mut letters: HashMap<_, _> = dead_letters(&mut redis, &space.dead("interactions"))
        .await
        .into_iter()
        .map(|letter| (letter.text("src_id"), letter))
        .collect();
    // A list in a list is an array with one event that is no map: that event alone is kept.
    for (id, field, body) in [(&list_ids[0], "json", &lists_json[1..lists_json.len() - 1]), (&list_ids[1], "data", &lists[1..])] {
        let letter = letters.remove(id).unwrap_or_else(|| panic!("lists in {field}: no dead letter"));
        assert_eq!((letter.text("code").as_str(), letter.text("index").as_str()), (MALFORMED, "0"), "lists in {field}");
        assert!(letter.bytes(field) == Some(body), "lists in {field}: the event is not as it came");
    }
    for (case, id) in cases.iter().zip(&ids) {
        let letter = letters.remove(id).unwrap_or_else(|| panic!("{}: no dead letter", case.name));
        let short = format!("{}: code {}, reason {}", case.name, letter.text("code"), letter.text("reason"));
        assert_eq!(letter.text("code"), case.code, "{short}");
        assert_eq!((letter.text("index").as_str(), letter.text("src")), ("0", stream.clone()), "{short}");
        assert!(case.words.iter().all(|word| letter.text("reason").contains(word)), "{short}");
        assert!(!letter.text("reason").contains(PRIVATE), "{short}");
        let own = ["src", "src_id", "index", "code", "reason", "failed_at"];
        let kept: Vec<_> = letter.fields.iter().filter(|(name, _)| !own.contains(&name.as_str())).collect();
        assert_eq!(kept.len(), case.fields.len(), "{short}");
        for ((name, value), (own_name, own_value)) in kept.into_iter().zip(&case.fields) {
            assert!(name == own_name && value == own_value, "{short}: field {own_name} is not as it came");
        }
    }
    assert!(letters.is_empty(), "dead letters of nobody: {:?}", letters.keys());
    let rows = stores::interactions(&space.database().await).await;
    assert_eq!(rows.len(), cases.len(), "the good entries in between");
    let grown = worker.rss_max().saturating_sub(resting);
    assert!(grown < 96 << 20, "20 MB entries cost {grown} bytes of memory");
}

/// Events are taken as they are met; an entry that turns out unusable behind them must leave none of them, in any lane.
#[tokio::test]
async fn an_entry_that_is_torn_behind_good_events_leaves_none_of_them() {
    let space = Space::new("torn_behind").await;
    let worker = Worker::start(&space, &[]);
    worker.ready().await;
    let mut redis = space.redis().await;
    let lanes = ["interactions", "sessions", "embeddings"];
    for lane in lanes {
        let event = |name: &str| match lane {
            "interactions" => json!({ "session_id": name, "user_id": "u", "embedding": [1, 2] }),
            "sessions" => json!({ "session_id": name, "user_id": "u", "status": "started", "state": { "a": 1 } }),
            _ => json!({ "id": name, "session_id": name, "embedding": [1, 2] }),
        };
        let lost = Mp::Array((0..100).map(|n| Mp::from(&event(&format!("lost{n}")))).collect()).bytes();
        let kept = |name: &str| Mp::Array(vec![Mp::from(&event(name))]).bytes();
        // All in one batch: each must leave its neighbours alone.
        let entries = [
            kept("before"),
            lost[..lost.len() - 1].to_vec(),
            kept("between"),
            [lost.as_slice(), &[0xc0]].concat(),
            kept("behind"),
        ];
        send::many(&mut redis, &space.stream(lane), &entries.map(data_entry)).await;
    }
    worker.settled(&space, &lanes, LONG).await;
    // What interactions hand on comes behind what they are settled by.
    worker.settled(&space, &["embeddings"], LONG).await;
    for lane in lanes {
        let letters = dead_letters(&mut redis, &space.dead(lane)).await;
        let codes: Vec<_> = letters.iter().map(|letter| (letter.text("code"), letter.index())).collect();
        assert_eq!(codes, [(MALFORMED.to_owned(), 0), (MALFORMED.to_owned(), 0)], "{lane}");
    }
    let database = space.database().await;
    let kept = ["before", "behind", "between"];
    let mut rows: Vec<_> = stores::interactions(&database).await.into_iter().map(|row| row.session_id).collect();
    rows.sort();
    assert_eq!(rows, kept);
    assert_eq!(stores::session_events(&database).await.len(), 3);
    assert!(stores::sessions(&database).await.keys().eq(&kept));
    // Three of their own lane, and those of three interactions.
    assert_eq!(stores::record_count(&space.chroma(), &space.collection).await, 6);
}

#[tokio::test]
async fn what_just_keeps_the_rules_is_written() {
    let good = json!({ "session_id": "s", "user_id": "u" });
    let filled = |bytes: usize| {
        let bare = Mp::from(&good).with("filler", Mp::str(&"x".repeat(300))).bytes().len() - 300;
        Mp::from(&good).with("filler", Mp::str(&"x".repeat(bytes - bare))).bytes()
    };
    assert_eq!(filled(1 << 20).len(), 1 << 20, "the arithmetic of this test");
    let now = send::now_ms();
    let entries: Vec<(&str, Fields, usize)> = vec![
        ("exactly 1 MiB", data_entry(filled(1 << 20)), 1),
        ("10,000 events", data_entry(Mp::Array(vec![Mp::from(&good); 10_000]).bytes()), 10_000),
        ("an empty array", data_entry(Mp::Array(vec![]).bytes()), 0),
        ("an empty JSON array", vec![("json".to_owned(), b" [ ] ".to_vec())], 0),
        ("JSON with space around", vec![("json".to_owned(), format!("\n {good} \n").into_bytes())], 1),
        ("32 levels", data_entry(Mp::from(put(&good, "attributes", nested(31))).bytes()), 1),
        ("ids of 256 bytes", data_entry(Mp::from(json!({ "session_id": "x".repeat(256), "user_id": "用".repeat(85) })).bytes()), 1),
        ("bounds of numbers", data_entry(Mp::from(json!({ "session_id": "s", "user_id": "u", "latency_ms": 0, "confidence": 1 })).bytes()), 1),
        ("364 days ago", data_entry(Mp::from(put(&good, "occurred_at", now - 364 * 86_400_000)).bytes()), 1),
        ("59 minutes ahead", data_entry(Mp::from(put(&good, "occurred_at", now + 59 * 60_000)).bytes()), 1),
        ("nulls", data_entry(Mp::from(json!({ "session_id": "s", "user_id": "u", "event_id": null, "occurred_at": null, "intent": null, "latency_ms": null,
            "confidence": null, "channel": null, "locale": null, "transcript": null, "attributes": null, "embedding": null })).bytes()), 1),
        ("other fields", vec![("traceparent".to_owned(), b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_vec()),
            ("json".to_owned(), good.to_string().into_bytes()), ("x".to_owned(), vec![0, 255])], 1),
        ("a future time with an offset", data_entry(Mp::from(put(&good, "occurred_at", jiff::Timestamp::now().to_string())).bytes()), 1),
    ];
    let space = Space::new("good_bounds").await;
    let worker = Worker::start(&space, &[]);
    let mut redis = space.redis().await;
    for (_, fields, _) in &entries {
        send::fields(&mut redis, &space.stream("interactions"), fields).await;
    }
    worker.ready().await;
    worker.settled(&space, &["interactions"], LONG).await;
    let letters = dead_letters(&mut redis, &space.dead("interactions")).await;
    assert!(letters.is_empty(), "{}", letters.iter().map(|letter| letter.text("reason")).collect::<Vec<_>>().join("\n"));
    let wanted: usize = entries.iter().map(|(_, _, events)| events).sum();
    assert_eq!(stores::count(&space.database().await, "interaction_logs").await, wanted as i64);
}

#[tokio::test]
async fn keys_that_the_program_does_not_know_are_kept() {
    let space = Space::new("unknown_keys").await;
    let worker = Worker::start(&space, &[]);
    let mut redis = space.redis().await;
    let spoken = Mp::map([
        ("session_id", Mp::str("s")),
        ("user_id", Mp::str("u")),
        ("service", Mp::Nil),
        ("slots", Mp::map([("城市", Mp::Array(vec![Mp::str("北京"), Mp::Int(-5), Mp::UInt(u64::MAX)]))])),
        ("attributes", Mp::map([("own", Mp::Bool(true)), ("service", Mp::str("wins"))])),
        ("blob", Mp::Bin(vec![0, 1, 2])),
        ("when", Mp::timestamp(1_700_000_000, 500_000_000)),
    ]);
    send::data(&mut redis, &space.stream("interactions"), &spoken).await;
    let vector = json!({ "id": "v", "embedding": [1, 2], "model": "m1", "score": 0.5, "rank": 7, "hit": true, "none": null, "metadata": { "own": "x", "model": "wins" } });
    send::json(&mut redis, &space.stream("embeddings"), &vector).await;
    let update = json!({ "session_id": "s", "user_id": "u", "status": "started", "state": { "own": 1 }, "stranger": 1 });
    send::json(&mut redis, &space.stream("sessions"), &update).await;
    worker.ready().await;
    worker.settled(&space, &["interactions", "sessions", "embeddings"], SOON).await;
    let database = space.database().await;
    let rows = stores::interactions(&database).await;
    let wanted = json!({
        "service": "wins", "slots": { "城市": ["北京", -5, u64::MAX] }, "own": true, "blob": "AAEC", "when": "2023-11-14T22:13:20.5Z",
    });
    assert_eq!(rows[0].attributes.as_ref(), Some(&wanted));
    let chroma = space.chroma();
    let record = stores::records(&chroma, &space.collection, &["v"]).await.remove("v").expect("the record");
    assert_eq!(
        record.metadata.map(Json::Object),
        Some(json!({ "model": "wins", "score": 0.5, "rank": 7, "hit": true, "own": "x" }))
    );
    let sessions = stores::sessions(&database).await;
    assert_eq!(sessions["s"].state, Some(json!({ "own": 1 })));
}

/// An outage is never a dead letter, whatever waits behind it.
#[tokio::test]
async fn a_bad_event_is_set_aside_while_the_store_is_down() {
    use crate::support::proxy::{Mode, Proxy};
    use crate::support::space::Stores;
    let proxy = Proxy::start(crate::support::servers::chroma().port()).await;
    let chroma_url = format!("http://127.0.0.1:{}", proxy.port());
    let space = Space::with("bad_in_outage", Stores { chroma_url: Some(chroma_url), ..Stores::default() }).await;
    let worker = Worker::start(&space, &[]);
    worker.ready().await;
    proxy.set(Mode::Refuse);
    let mut redis = space.redis().await;
    send::json(&mut redis, &space.stream("embeddings"), &json!([{ "id": "a", "embedding": [1, 2] }, { "id": "b" }])).await;
    until("a try that fails", SOON, async || {
        (worker.metrics().await.get("aegis_retries_total", &[("lane", "embeddings"), ("component", "chroma")]) > 0.0)
            .then_some(())
    })
    .await;
    assert_eq!(stores::pending(&mut redis, &space.stream("embeddings"), "aegis").await, 1, "nothing is acknowledged meanwhile");
    assert_eq!(dead_letters(&mut redis, &space.dead("embeddings")).await, []);
    proxy.set(Mode::Pass);
    worker.settled(&space, &["embeddings"], LONG).await;
    let letters = dead_letters(&mut redis, &space.dead("embeddings")).await;
    assert_eq!((letters.len(), letters[0].text("code").as_str(), letters[0].index()), (1, MISSING, 1));
    assert_eq!(stores::record_count(&space.chroma(), &space.collection).await, 1);
}
