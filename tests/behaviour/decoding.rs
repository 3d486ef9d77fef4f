//! Properties of the pure parts: nothing panics, whatever the bytes are; both forms of an event decode alike; what COPY frames
//! hold is what the database reads.

use std::time::Duration;

use aegis_ingest::config;
use aegis_ingest::event::msgpack::Reader;
use aegis_ingest::event::{
    Decode, Embedding, Events, Fault, Interaction, Judge, Origin, Payload, SessionUpdate, Text, Window, each_event, event_alone,
};
use aegis_ingest::seam::{Destination, Place, Rows as _};
use aegis_ingest::timescale::{Database, Interactions};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use serde_json::{Map, Value as Json, json};
use uuid::Uuid;

use crate::support::msgpack::Mp;
use crate::support::stores::InteractionRow;
use crate::support::{Space, fold, stores};

const DAY: Duration = Duration::from_hours(24);
/// 2026-11-01: what the generators' times are near to.
const NOW_US: i64 = 1_793_491_200_000_000;
const ORIGIN: Origin<'static> = Origin { stream: "aegis:interactions", ms: (NOW_US / 1000) as u64, seq: 3, index: 0 };

fn judge() -> Judge {
    Judge::new(Window::around(NOW_US, 365 * DAY, DAY))
}

/// Everything that can be asked of a payload; returns how many events there were and how many of them are sound.
fn ask_everything(payload: Payload<'_>) -> (u32, u32) {
    type Ask = fn(&mut Reader<'_>) -> Result<(), Fault>;
    let kinds: [Ask; 3] = [
        |event| Interaction::decode(&mut judge(), event, &ORIGIN).map(|event| drop(event.forwarded())),
        |event| SessionUpdate::decode(&mut judge(), event, &ORIGIN).map(drop),
        |event| Embedding::decode(&mut judge(), event, &ORIGIN).map(drop),
    ];
    let told = |Fault { reason, .. }: &Fault| {
        assert!(!reason.is_empty() && reason.len() < 500 && !reason.contains('\n'), "{reason:?}");
    };
    let answers = kinds.map(|kind| {
        let mut sound = Vec::new();
        let events = each_event(payload, &mut Vec::new(), |index, event| {
            let from = event.position();
            kind(event).inspect(|()| sound.push((index, event.since(from).to_vec())))
        });
        let events_sound = sound.len() as u32;
        match events {
            Ok(Events { count, faulty }) => {
                assert_eq!(events_sound + faulty.len() as u32, count);
                for (index, map) in sound {
                    let alone = event_alone(payload, index).expect("its bytes");
                    // A sound one stands there as it came: JSON as JSON, the other as what was read.
                    assert!(matches!(payload, Payload::Json(_)) || alone == map, "event {index}");
                }
                for (index, raw, fault) in faulty {
                    assert_eq!(event_alone(payload, index), Some(raw));
                    told(&fault);
                }
                (Ok(count), events_sound)
            }
            Err(fault) => {
                told(&fault);
                (Err(fault), 0)
            }
        }
    });
    // What is wrong with the whole does not depend on what is looked for in it.
    assert!(answers.iter().all(|(count, _)| *count == answers[0].0), "{answers:?}");
    let sound = answers.iter().map(|(_, sound)| sound).sum();
    (answers[0].0.clone().unwrap_or(0), sound)
}

/// Characters that somebody on the way might take for something else.
const ODD: [char; 9] = ['\u{1}', '\\', '"', '\n', '\t', 'é', '放', '😀', '\u{fffd}'];
/// Heads of `MessagePack` values that have something behind them, and what is short.
const HEADS: [u8; 15] = [0x81, 0x91, 0xdc, 0xdd, 0xde, 0xdf, 0xc7, 0xd6, 0xc6, 0xdb, 0xa1, b'a', 0, 1, 0xff];

fn text() -> impl Strategy<Value = String> {
    // Anything but U+0000, with what is odd made likely.
    prop_oneof![
        "[a-z]{1,8}",
        vec((any::<u8>(), any::<char>()).prop_map(|(pick, c)| ODD.get(usize::from(pick % 16)).copied().unwrap_or(c)), 1..12)
            .prop_map(|chars| chars.into_iter().filter(|c| *c != '\0').collect::<String>())
            .prop_filter("not empty", |text| !text.is_empty() && text.len() <= 256),
    ]
}

/// A number that JSON text gives back to the bit.
fn number() -> impl Strategy<Value = f64> {
    prop_oneof![
        Just(0.0),
        Just(0.1),
        any::<u32>().prop_map(f64::from),
        (0.0..1e6_f64),
        any::<f64>().prop_filter("finite", |n| n.is_finite()).prop_map(f64::abs)
    ]
}

fn value() -> impl Strategy<Value = Json> {
    let scalar = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::Bool),
        any::<i64>().prop_map(Json::from),
        any::<u64>().prop_map(Json::from),
        number().prop_map(Json::from),
        text().prop_map(Json::from),
    ];
    scalar.prop_recursive(4, 24, 5, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(Json::Array),
            btree_map(text(), inner, 0..5).prop_map(|map| Json::Object(map.into_iter().collect())),
        ]
    })
}

fn object() -> impl Strategy<Value = Map<String, Json>> {
    // Small ones are put in order, larger ones are not.
    prop_oneof![9 => btree_map(text(), value(), 0..5), 1 => btree_map(text(), value(), 14..20)]
        .prop_map(|map| map.into_iter().collect())
}

fn vector() -> impl Strategy<Value = Vec<f32>> {
    vec(any::<f32>().prop_filter("finite", |n| n.is_finite()), 1..20)
}

/// A sound interaction: its event and the row that it must become.
#[derive(Clone, Debug)]
struct Sound {
    event: Json,
    row: InteractionRow,
    vector: Option<Vec<f32>>,
}

fn interaction() -> impl Strategy<Value = Sound> {
    let texts = (text(), text(), option::of(text()), option::of(text()), option::of(text()), option::of(text()));
    let numbers = (option::of(number()), option::of(0.0..=1.0_f64), any::<u128>(), -300 * 86_400_000_000_i64..86_000_000_000);
    (texts, numbers, object(), option::of(vector())).prop_map(|(texts, numbers, attributes, vector)| {
        let (session_id, user_id, intent, channel, locale, transcript) = texts;
        let (latency_ms, confidence, id, offset_us) = numbers;
        let (event_id, occurred_at_us) = (Uuid::from_u128(id), NOW_US + offset_us);
        let mut event = json!({
            "event_id": event_id.to_string(), "occurred_at": fold::micros_text(occurred_at_us), "session_id": session_id, "user_id": user_id,
            "intent": intent, "channel": channel, "locale": locale, "transcript": transcript, "latency_ms": latency_ms, "confidence": confidence,
            "attributes": attributes,
        });
        if let Some(vector) = &vector {
            event["embedding"] = vector.iter().map(|number| Json::from(f64::from(*number))).collect();
        }
        let row = InteractionRow {
            occurred_at_us, event_id, session_id, user_id, intent, latency_ms,
            confidence: confidence.map(|number| number as f32),
            channel, locale, transcript,
            attributes: Some(Json::Object(attributes)),
        };
        Sound { event, row, vector }
    })
}

/// An interaction decoded, as a row; numbers compared to the bit.
fn decoded(payload: Payload<'_>) -> Result<(InteractionRow, Option<Vec<u8>>), Fault> {
    let mut found = None;
    let events = each_event(payload, &mut Vec::new(), |_, event| {
        let mut judge = judge();
        let event = Interaction::decode(&mut judge, event, &ORIGIN)?;
        let owned = |text: Option<Text<'_>>| text.map(|text| text.as_str().to_owned());
        let row = InteractionRow {
            occurred_at_us: event.head.occurred_at_us,
            event_id: event.head.event_id,
            session_id: event.session_id.as_str().to_owned(),
            user_id: event.user_id.as_str().to_owned(),
            intent: owned(event.intent),
            latency_ms: event.latency_ms,
            confidence: event.confidence.map(|number| number as f32),
            channel: owned(event.channel),
            locale: owned(event.locale),
            transcript: owned(event.transcript),
            attributes: event.attributes.map(|json| serde_json::from_slice(json).expect("JSON")),
        };
        found = Some((row, event.embedding.map(|vector| vector.0.into_owned())));
        Ok(())
    })?;
    match events.faulty.into_iter().next() {
        Some((_, _, fault)) => Err(fault),
        None => Ok(found.expect("an event")),
    }
}

/// Equal but for the last places of floating-point numbers in JSON, which this test's own reading of JSON may change.
fn same_json(a: &Json, b: &Json) -> bool {
    match (a, b) {
        (Json::Number(a), Json::Number(b)) => {
            let (x, y) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            a == b || ((a.is_f64() || b.is_f64()) && (x - y).abs() <= x.abs() * 4.0 * f64::EPSILON)
        }
        (Json::Array(a), Json::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_json(a, b)),
        (Json::Object(a), Json::Object(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|((k, a), (l, b))| k == l && same_json(a, b))
        }
        _ => a == b,
    }
}

fn same_row(found: &InteractionRow, wanted: &InteractionRow) -> bool {
    let without = |row: &InteractionRow| InteractionRow { attributes: None, ..row.clone() };
    let attributes = match (&found.attributes, &wanted.attributes) {
        (Some(a), Some(b)) => same_json(a, b),
        (a, b) => a == b,
    };
    without(found) == without(wanted) && attributes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..300)) {
        ask_everything(Payload::MessagePack(&bytes));
        ask_everything(Payload::Json(&bytes));
    }

    /// Heads of containers and extensions are likelier than chance makes them.
    #[test]
    fn random_messagepack_never_panics(mut bytes in vec(any::<u8>(), 0..200), heads in vec(any::<bool>(), 200)) {
        for (byte, head) in bytes.iter_mut().zip(heads) {
            if head {
                *byte = HEADS[usize::from(*byte) % HEADS.len()];
            }
        }
        ask_everything(Payload::MessagePack(&bytes));
    }

    #[test]
    fn random_json_never_panics(text in r#"[\[\]{}",:\\ua0-9eE+. \-truefalsn]{0,120}"#) {
        ask_everything(Payload::Json(text.as_bytes()));
    }

    #[test]
    fn a_sound_event_with_bytes_changed_never_panics(sound in interaction(), changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in any::<prop::sample::Index>()) {
        for (json, bytes) in [(false, Mp::from(&sound.event).bytes()), (true, sound.event.to_string().into_bytes())] {
            let ask = |bytes: &[u8]| ask_everything(if json { Payload::Json(bytes) } else { Payload::MessagePack(bytes) });
            prop_assert!(ask(&bytes).1 >= 1, "it was sound");
            prop_assert_eq!(ask(&bytes[..cut.index(bytes.len())]).0, 0, "half an event is none");
            let mut changed = bytes.clone();
            for (at, byte) in &changes {
                let at = at.index(changed.len());
                changed[at] = *byte;
            }
            ask(&changed);
        }
    }

    /// What `rmp-serde` writes, and what is written by hand, is read as it was meant.
    #[test]
    fn messagepack_is_read_as_it_was_meant(sound in interaction()) {
        for bytes in [rmp_serde::to_vec_named(&sound.event).unwrap(), Mp::from(&sound.event).bytes()] {
            let (row, vector) = decoded(Payload::MessagePack(&bytes)).map_err(|fault| TestCaseError::fail(fault.reason))?;
            prop_assert!(same_row(&row, &sound.row), "{row:?}");
            let wanted = sound.vector.as_ref().map(|numbers| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>());
            prop_assert_eq!(vector, wanted);
        }
    }

    #[test]
    fn json_and_messagepack_decode_alike(sound in interaction()) {
        let from_json = decoded(Payload::Json(sound.event.to_string().as_bytes())).map_err(|fault| TestCaseError::fail(fault.reason))?;
        let from_messagepack = decoded(Payload::MessagePack(&Mp::from(&sound.event).bytes())).map_err(|fault| TestCaseError::fail(fault.reason))?;
        prop_assert_eq!(&from_json.0.latency_ms.map(f64::to_bits), &from_messagepack.0.latency_ms.map(f64::to_bits), "latency_ms to the last bit");
        prop_assert!(same_row(&from_json.0, &from_messagepack.0), "{from_json:?}\n{from_messagepack:?}");
        prop_assert_eq!(from_json.1, from_messagepack.1);
    }

    /// Of equal keys the last one counts, in a map that is put in order as well as in a larger one.
    #[test]
    fn a_state_map_means_in_json_what_it_means_in_messagepack(pairs in vec((prop_oneof![2 => "[ab]{0,2}", 1 => text()], value()), 0..20)) {
        let state = Mp::map(pairs.iter().map(|(key, value)| (key.as_str(), Mp::from(value))));
        let event = Mp::map([("session_id", Mp::str("s")), ("user_id", Mp::str("u")), ("status", Mp::str("updated")), ("state", state)]);
        let (mut judge, bytes) = (judge(), event.bytes());
        let update = SessionUpdate::decode(&mut judge, &mut Reader::new(&bytes), &ORIGIN).map_err(|fault| TestCaseError::fail(fault.reason))?;
        let found: Json = serde_json::from_slice(update.state.unwrap()).unwrap();
        let wanted: Map<String, Json> = pairs.into_iter().collect();
        prop_assert!(same_json(&found, &Json::Object(wanted.clone())), "{found}\n{wanted:?}");
    }

    #[test]
    fn times_are_read_to_the_microsecond(us in 1_780_000_000_000_000..1_793_000_000_000_000_i64, nanos in 0..1000_u32) {
        let base = Mp::map([("session_id", Mp::str("s")), ("user_id", Mp::str("u"))]);
        let (seconds, below) = (us.div_euclid(1_000_000), (us.rem_euclid(1_000_000) as u32) * 1000 + nanos);
        let eight = ((u64::from(below) << 34) | seconds as u64).to_be_bytes().to_vec();
        for (time, wanted) in [
            (Mp::timestamp(seconds, below), us),
            (Mp::Ext(-1, eight), us),
            (Mp::Ext(-1, (seconds as u32).to_be_bytes().to_vec()), seconds * 1_000_000),
            (Mp::str(&fold::micros_text(us)), us),
            (Mp::str(&fold::micros_text(us + 7_200_000_000).replace('Z', "+02:00")), us),
            (Mp::Int(us / 1000), us / 1000 * 1000),
        ] {
            let bytes = base.clone().with("occurred_at", time.clone()).bytes();
            let row = decoded(Payload::MessagePack(&bytes)).map_err(|fault| TestCaseError::fail(format!("{time:?}: {}", fault.reason)))?.0;
            prop_assert_eq!(row.occurred_at_us, wanted, "{:?}", time);
        }
    }
}

/// Frames made by hand are read by a real COPY, and the rows are what the events were.
#[tokio::test]
async fn copy_frames_are_read_back_as_they_were_meant() {
    use proptest::strategy::ValueTree as _;
    let space = Space::new("copy_frames").await;
    let settings = config::Given::from_pairs([("AEGIS_DATABASE_URL", space.database_url_of("worker").as_str())]);
    let config = config::Config::load(&settings).unwrap();
    aegis_ingest::tls::install_provider();
    let destination = Interactions::new(Database::new(&config.database, 2).unwrap(), config.batch);
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = interaction();
    let mut wanted = Vec::new();
    let mut rows = <Interactions as Destination>::Rows::default();
    for entry in 0..800 {
        let mut sound = strategy.new_tree(&mut runner).unwrap().current();
        sound.row.event_id = Uuid::from_u128((u128::from(entry) << 100) | 5);
        sound.event["event_id"] = sound.row.event_id.to_string().into();
        let place = Place { entry, index: 0 };
        let event = Mp::from(&sound.event).bytes();
        destination.push(&mut judge(), &mut Reader::new(&event), &ORIGIN, place, &mut rows).unwrap();
        wanted.push(sound.row);
    }
    let written = destination.write(&mut rows).await.unwrap();
    assert_eq!((rows.len(), written.new, written.duplicates, written.rejected), (800, 800, 0, vec![]));
    let mut found = stores::interactions(&space.database().await).await;
    found.sort_by_key(|row| row.event_id);
    wanted.sort_by_key(|row| row.event_id);
    assert_eq!(found.len(), wanted.len());
    for (found, wanted) in found.iter().zip(&wanted) {
        assert!(same_row(found, wanted), "\n{found:?}\n{wanted:?}");
    }
    // The same frames again: every row is there already.
    let written = destination.write(&mut rows).await.unwrap();
    assert_eq!((written.new, written.duplicates), (0, 800));
}
