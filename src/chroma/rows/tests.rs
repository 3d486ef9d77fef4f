use std::borrow::Cow;

use uuid::Uuid;

use super::*;
use crate::event::{Head, Vector};

struct Event<'a> {
    id: Option<&'a str>,
    vector: &'a [f32],
    document: Option<&'a str>,
    metadata: &'a str,
    collection: Option<&'a str>,
}

const PLAIN: Event<'_> = Event { id: Some("a"), vector: &[1.0, -2.5], document: None, metadata: "{}", collection: None };

fn rows(events: &[Event<'_>]) -> Rows {
    let mut rows = Rows::default();
    for (n, event) in events.iter().enumerate() {
        let bytes: Vec<u8> = event.vector.iter().flat_map(|number| number.to_le_bytes()).collect();
        let embedding = Embedding {
            head: Head { event_id: Uuid::from_u128(7), occurred_at_us: 0, time_given: false },
            id: event.id,
            embedding: Vector(Cow::Owned(bytes)),
            document: event.document,
            session_id: None,
            user_id: None,
            metadata: event.metadata.as_bytes(),
            collection: event.collection,
        };
        rows.push(&embedding, Place { entry: n as u32, index: 0 });
    }
    rows
}

#[test]
fn a_body_holds_what_the_events_held() {
    let rows = rows(&[
        Event { id: None, ..PLAIN },
        Event { id: Some("q\"\u{1F600}\n"), document: Some("d\\"), metadata: r#"{"k":1.5}"#, vector: &[3.0], ..PLAIN },
    ]);
    for (base64, vectors) in [
        (true, serde_json::json!(["AACAPwAAIMA=", "AABAQA=="])), //
        (false, serde_json::json!([[1.0, -2.5], [3.0]])),
    ] {
        let body: serde_json::Value = serde_json::from_slice(&rows.body(&[0, 1], base64)).unwrap_or_default();
        assert_eq!(
            body,
            serde_json::json!({
                "ids": ["00000000-0000-0000-0000-000000000007", "q\"\u{1F600}\n"],
                "embeddings": vectors,
                "documents": [null, "d\\"],
                "metadatas": [null, {"k": 1.5}],
            })
        );
    }
    assert_eq!((rows.dimension(0), rows.dimension(1)), (2, 1));
    assert!((rows.norm_squared(0) - 7.25).abs() < f64::EPSILON);
}

#[test]
fn collections_keep_the_order_of_arrival() {
    let rows = rows(&[
        Event { collection: Some("other"), ..PLAIN },
        PLAIN,
        Event { collection: Some("usual"), ..PLAIN },
        Event { collection: Some("other"), ..PLAIN },
    ]);
    assert_eq!(rows.by_collection("usual"), [("other", vec![0, 3]), ("usual", vec![1, 2])]);
}

#[test]
fn only_what_is_repeated_to_the_byte_is_left_out() {
    let rows = rows(&[
        PLAIN,
        Event { metadata: r#"{"k":1}"#, ..PLAIN },
        PLAIN,
        Event { document: Some(""), ..PLAIN },
        Event { collection: Some("usual"), ..PLAIN },
    ]);
    let Distinct { kept, repeats } = rows.distinct(&[0, 1, 2, 3, 4]);
    assert_eq!(kept, [1, 3, 4]);
    assert_eq!(repeats, [(2, 4), (0, 4)]);
}

#[test]
fn requests_are_bounded_in_rows_and_bytes() {
    let long = "x".repeat(REQUEST_BYTES_MAX / 2);
    let large = || Event { document: Some(&long), ..PLAIN };
    let rows = rows(&[PLAIN, PLAIN, PLAIN, large(), large(), PLAIN]);
    assert_eq!(rows.requests(&[0, 1, 2, 3, 4, 5], 2), [vec![0, 1], vec![2, 3], vec![4, 5]]);
    assert_eq!(rows.requests(&[3, 4], 9), [vec![3], vec![4]]);
    assert!(rows.requests(&[], 9).is_empty());
    assert!(rows.arena.len() > REQUEST_BYTES_MAX);
}
