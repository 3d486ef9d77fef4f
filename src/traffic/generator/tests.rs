use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::*;
use crate::event::msgpack::Reader;
use crate::event::{self, Decode, Events, Judge, Origin, Payload, Status, Window, each_event};

fn options() -> Options {
    Options { start_us: 1_790_000_000_000_000, sessions: 20, users: 50, inline_embeddings: 0.1, ..Options::default() }
}

fn judge(format: Format, lane: Lane, body: &[u8], check: impl FnOnce(&mut Judge, &mut Reader<'_>, &Origin<'_>)) {
    let payload = if format == Format::Data { Payload::MessagePack(body) } else { Payload::Json(body) };
    let day = Duration::from_secs(86_400);
    let mut judge = Judge::new(Window::around(1_790_000_000_000_000, day, day));
    let origin = Origin { stream: lane.name(), ms: 1, seq: 0, index: 0 };
    let mut check = Some(check);
    let events = each_event(payload, &mut Vec::new(), |_, map| {
        (check.take().unwrap())(&mut judge, map, &origin);
        Ok(())
    });
    assert_eq!(events, Ok(Events { count: 1, faulty: Vec::new() }));
}

#[test]
fn every_event_is_valid_in_both_formats_and_ids_are_unique() {
    for format in [Format::Data, Format::Json] {
        let mut ids = HashSet::new();
        for event in Generator::new(Options { format, ..options() }).take(2_000) {
            judge(format, event.lane, &event.body, |judge, map, origin| {
                let (head, session_id) = match event.lane {
                    Lane::Interactions => {
                        let decoded = event::Interaction::decode(judge, map, origin).unwrap();
                        assert!(decoded.embedding.is_none_or(|vector| vector.dimension() == 384));
                        (decoded.head, decoded.session_id.as_str().to_owned())
                    }
                    Lane::Sessions => {
                        let decoded = event::SessionUpdate::decode(judge, map, origin).unwrap();
                        (decoded.head, decoded.session_id.as_str().to_owned())
                    }
                    Lane::Embeddings | Lane::Archive => {
                        let decoded = event::Embedding::decode(judge, map, origin).unwrap();
                        assert_eq!(decoded.embedding.dimension(), 384);
                        (decoded.head, event.session_id.to_string())
                    }
                };
                assert_eq!((head.occurred_at_us, session_id.as_str()), (event.at_us, &*event.session_id));
                assert!(ids.insert(head.event_id));
            });
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
    let made = |seed| Generator::new(Options { seed, ..options() }).take(500).collect::<Vec<_>>();
    assert_eq!(made(7), made(7));
    assert_ne!(made(7), made(8));
}

#[test]
fn sessions_start_go_on_and_end_with_rising_seq_and_nobody_talks_before_or_after() {
    let mut lives: HashMap<Arc<str>, (i64, Status)> = HashMap::new();
    let mut ended = 0;
    for event in Generator::new(options()).take(5_000) {
        if event.lane != Lane::Sessions {
            let (_, status) = lives[&event.session_id];
            assert_ne!(status, Status::Ended);
            continue;
        }
        judge(Format::Data, event.lane, &event.body, |judge, map, origin| {
            let update = event::SessionUpdate::decode(judge, map, origin).unwrap();
            let before = lives.insert(Arc::clone(&event.session_id), (update.seq, update.status));
            match before {
                None => assert_eq!((update.seq, update.status), (0, Status::Started)),
                Some((seq, status)) => {
                    assert_eq!(update.seq, seq + 1);
                    assert!(status != Status::Ended && update.status != Status::Started);
                }
            }
            ended += usize::from(update.status == Status::Ended);
        });
    }
    assert!(ended > 20, "{ended}");
}

#[test]
fn the_mix_holds_and_is_read_from_text() {
    let mut counts = HashMap::new();
    Generator::new(options()).take(10_000).for_each(|event| *counts.entry(event.lane).or_insert(0) += 1);
    assert!((6_800..7_200).contains(&counts[&Lane::Interactions]), "{counts:?}");
    assert!((1_800..2_200).contains(&counts[&Lane::Sessions]), "{counts:?}");

    assert_eq!("sessions=1, embeddings=3".parse(), Ok(Mix { interactions: 0, sessions: 1, embeddings: 3 }));
    for bad in ["", "sessions", "sessions=-1", "sessions=0", "voices=3"] {
        assert!(bad.parse::<Mix>().is_err(), "{bad}");
    }
    let alone = Mix { interactions: 1, sessions: 0, embeddings: 0 };
    assert!(Generator::new(Options { mix: alone, ..options() }).take(100).all(|event| event.lane == Lane::Interactions));
}

#[test]
fn latency_is_lognormal_around_its_median() {
    let mut rng = SmallRng::seed_from_u64(3);
    let mut drawn: Vec<_> = (0..10_001).map(|_| latency_ms(&mut rng)).collect();
    drawn.sort_by(f64::total_cmp);
    assert!((drawn[5_000] - LATENCY_MEDIAN_MS).abs() < 6.0, "{}", drawn[5_000]);
    assert!((drawn[9_500] / LATENCY_MEDIAN_MS).ln() > 1.4 * LATENCY_SIGMA);
}
