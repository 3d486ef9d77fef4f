use std::io::Write;
use std::time::Duration;

use super::*;
use crate::event::msgpack::Reader;
use crate::event::{self, Decode, Judge, Origin, Status, Text, Window};

const LINES: &str = r#"{"seq":0,"kind":"session","session_id":"d1","user_id":"u1","offset_ms":10,"status":"started","turn":null,"version":0,"state":{}}
{"seq":1,"kind":"interaction","session_id":"d1","user_id":"u1","offset_ms":25,"turn":0,"speaker":"user","service":null,"intent":"FindBus","acts":["INFORM:to"],"transcript":"To 北京,\tplease","slots":{"Bus":{"to":["北京"]}},"latency_ms":183.3}
{"seq":2,"kind":"interaction","session_id":"d1","user_id":"u1","offset_ms":40,"turn":1,"speaker":"system","intent":null,"transcript":"Sure.","latency_ms":620.0}
{"seq":3,"kind":"session","session_id":"d1","user_id":"u1","offset_ms":41,"status":"ended","turn":1,"version":7,"state":{"slots":{"Bus":{"to":["北京"]}}}}
"#;
const START_US: i64 = 1_790_000_000_000_000;

fn timeline() -> Timeline {
    Timeline::parse("made-up.jsonl", LINES.as_bytes()).unwrap()
}

fn sending() -> Sending<'static> {
    Sending { start_us: START_US, session_prefix: "", format: Format::Data, vectors: None }
}

fn judge() -> Judge {
    let day = Duration::from_secs(86_400);
    Judge::new(Window::around(START_US, day, day))
}

const ORIGIN: Origin<'static> = Origin { stream: "s", ms: 1, seq: 0, index: 0 };

#[test]
fn a_turn_keeps_every_key_and_gets_its_time() {
    let events: Vec<_> = timeline().events(sending()).collect();
    let mut judge = judge();
    let turn = event::Interaction::decode(&mut judge, &mut Reader::new(&events[1].body), &ORIGIN).unwrap();
    assert_eq!(turn.head.occurred_at_us, START_US + 25_000);
    let ids = (turn.session_id.as_str(), turn.user_id.as_str());
    assert_eq!((ids, turn.intent.map(Text::as_str)), (("d1", "u1"), Some("FindBus")));
    assert_eq!((turn.transcript.map(Text::as_str), turn.latency_ms), (Some("To 北京,\tplease"), Some(183.3)));
    let attributes: Value = serde_json::from_slice(turn.attributes.unwrap()).unwrap();
    let expected = serde_json::json!({
        "seq": 1, "kind": "interaction", "offset_ms": 25, "turn": 0, "speaker": "user", "service": null,
        "acts": ["INFORM:to"], "slots": {"Bus": {"to": ["北京"]}},
    });
    assert_eq!(attributes, expected);
    assert_eq!(event::Interaction::decode(&mut judge, &mut Reader::new(&events[2].body), &ORIGIN).unwrap().intent, None);
}

#[test]
fn an_update_is_ordered_by_its_version() {
    let timeline = timeline();
    let last = timeline.events(sending()).last().unwrap();
    let mut judge = judge();
    let update = event::SessionUpdate::decode(&mut judge, &mut Reader::new(&last.body), &ORIGIN).unwrap();
    assert_eq!((update.seq, update.status, update.head.occurred_at_us), (7, Status::Ended, START_US + 41_000));
    assert_eq!(update.state, Some(r#"{"slots":{"Bus":{"to":["北京"]}}}"#.as_bytes()));
}

#[test]
fn sending_twice_is_the_same_events_and_a_prefix_makes_others() {
    let timeline = timeline();
    let send = |session_prefix| timeline.events(Sending { session_prefix, ..sending() }).collect::<Vec<_>>();
    assert_eq!(send(""), send(""));
    assert_eq!(&*send("x-")[0].session_id, "x-d1");
    let mut judges = (judge(), judge());
    let (plain, prefixed) = (send(""), send("x-"));
    let a = event::SessionUpdate::decode(&mut judges.0, &mut Reader::new(&plain[0].body), &ORIGIN).unwrap();
    let b = event::SessionUpdate::decode(&mut judges.1, &mut Reader::new(&prefixed[0].body), &ORIGIN).unwrap();
    assert_eq!(b.session_id.as_str(), "x-d1");
    assert_ne!(a.head.event_id, b.head.event_id);
}

#[test]
fn vectors_follow_their_lines() {
    let dir = tempfile::tempdir().unwrap();
    let (numbers, ids) = (dir.path().join("v.f32"), dir.path().join("v.ids.jsonl"));
    std::fs::write(&numbers, [0.6_f32, 0.8, 1.0, 0.0].map(f32::to_le_bytes).concat()).unwrap();
    let of = |row: u32, turn: u32, seq: u32| {
        format!("{{\"row\":{row},\"id\":\"d1:{turn}\",\"session_id\":\"d1\",\"turn\":{turn},\"seq\":{seq}}}\n")
    };
    std::fs::write(&ids, of(0, 0, 1) + &of(1, 1, 2)).unwrap();
    let timeline = timeline();
    let vectors = vectors(&numbers, &ids, &timeline).unwrap();
    assert_eq!((vectors.dimensions(), vectors.len()), (2, 2));
    let events: Vec<_> = timeline.events(Sending { vectors: Some(&vectors), ..sending() }).collect();
    assert_eq!(events.len(), 6);
    let mut judge = judge();
    let vector = event::Embedding::decode(&mut judge, &mut Reader::new(&events[4].body), &ORIGIN).unwrap();
    assert_eq!((vector.id, vector.document), (Some("d1:1"), Some("Sure.")));
    assert_eq!(vector.embedding.0, [1.0_f32, 0.0].map(f32::to_le_bytes).concat());
    let metadata: Value = serde_json::from_slice(vector.metadata).unwrap();
    let at_ms = (START_US + 40_000) / 1_000;
    assert_eq!(metadata, serde_json::json!({"seq": 2, "turn": 1, "session_id": "d1", "occurred_at": at_ms}));

    std::fs::write(&ids, of(0, 0, 1) + &of(1, 1, 99)).unwrap();
    assert!(super::vectors(&numbers, &ids, &timeline).unwrap_err().to_string().contains("no line 99"));
    std::fs::write(&ids, of(0, 0, 1) + &of(1, 1, 2) + &of(2, 1, 2)).unwrap();
    assert!(super::vectors(&numbers, &ids, &timeline).unwrap_err().to_string().contains("3 rows"));
}

#[test]
fn files_are_read_zipped_or_not_and_a_bad_line_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, zipped) = (dir.path().join("made-up.jsonl"), dir.path().join("made-up.jsonl.gz"));
    std::fs::write(&plain, LINES).unwrap();
    let mut encoder = flate2::write::GzEncoder::new(File::create(&zipped).unwrap(), flate2::Compression::fast());
    encoder.write_all(LINES.as_bytes()).unwrap();
    encoder.finish().unwrap();
    let (plain, zipped) = (read(&plain).unwrap(), read(&zipped).unwrap());
    assert!(plain.events(sending()).eq(zipped.events(sending())));
    assert_eq!((plain.len(), plain.span_us()), (4, 41_000));

    let bad = Timeline::parse("bad.jsonl", &br#"{"kind":"song","session_id":"a","offset_ms":1}"#[..]).unwrap_err();
    assert_eq!(bad.to_string(), "bad.jsonl, line 1: \"kind\" must be interaction or session");
    assert!(read(Path::new("/nowhere.jsonl")).unwrap_err().to_string().starts_with("/nowhere.jsonl, opening: "));
}
