//! What one event costs before it reaches a socket: judging it, and making its row of COPY. Allocations are counted.
//!
//! Each benchmark handles [`EVENTS`] different events an iteration, so that branches are not learnt by heart; divan shows the
//! time of an iteration and events a second, and the column of allocations divided by [`EVENTS`] is what one event takes.

use std::time::Duration;

use aegis_ingest::event::msgpack::Reader;
use aegis_ingest::event::{
    Decode, Embedding, Fault, Interaction, Judge, Origin, Payload, SessionUpdate, Window, each_event, fold, json_to_msgpack,
};
use aegis_ingest::seam::Place;
use aegis_ingest::timescale::frame::Frames;
use aegis_ingest::traffic::{Format, Generator, Mix, Options};
use divan::counter::{BytesCount, ItemsCount};
use divan::{AllocProfiler, Bencher, black_box};

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

/// Events an iteration.
const EVENTS: usize = 1_000;
/// 2026-11-01T00:00:00Z, the time of the first event, in microseconds.
const START_US: i64 = 1_793_491_200_000_000;

fn main() {
    divan::main();
}

fn bodies(mix: Mix, format: Format) -> Vec<Vec<u8>> {
    let options = Options { mix, format, start_us: START_US, ..Options::default() };
    Generator::new(options).take(EVENTS).map(|event| event.body).collect()
}

const INTERACTIONS: Mix = Mix { interactions: 1, sessions: 0, embeddings: 0 };
const SESSIONS: Mix = Mix { interactions: 0, sessions: 1, embeddings: 0 };
const EMBEDDINGS: Mix = Mix { interactions: 0, sessions: 0, embeddings: 1 };

fn judge() -> Judge {
    Judge::new(Window::around(START_US, Duration::from_hours(365 * 24), Duration::from_hours(1)))
}

/// Each event of each payload, judged as the lane does it.
fn judge_all(
    judge: &mut Judge,
    scratch: &mut Vec<u8>,
    payloads: &[Payload<'_>],
    mut each: impl FnMut(&mut Judge, &mut Reader<'_>, &Origin<'_>) -> Result<(), Fault>,
) {
    for (ms, payload) in (0..).zip(payloads) {
        let judged = each_event(*payload, scratch, |index, event| {
            each(judge, event, &Origin { stream: "aegis:interactions", ms, seq: 0, index })
        });
        assert!(judged.is_ok_and(|events| events.faulty.is_empty()), "the generator made an event that is no event");
    }
}

fn decode_interactions(bencher: Bencher<'_, '_>, payloads: &[Payload<'_>]) {
    let (mut judge, mut scratch) = (judge(), Vec::new());
    bencher.counter(ItemsCount::new(EVENTS)).bench_local(|| {
        judge_all(&mut judge, &mut scratch, black_box(payloads), |judge, event, origin| {
            Interaction::decode(judge, event, origin).map(|event| drop(black_box(event)))
        });
    });
}

/// 1,000 entries of one `MessagePack` interaction.
#[divan::bench]
fn decode_interaction(bencher: Bencher<'_, '_>) {
    let bodies = bodies(INTERACTIONS, Format::Data);
    decode_interactions(bencher, &bodies.iter().map(|body| Payload::MessagePack(body)).collect::<Vec<_>>());
}

/// 20 entries of 50.
#[divan::bench]
fn decode_interaction_array_of_50(bencher: Bencher<'_, '_>) {
    let entries: Vec<Vec<u8>> = bodies(INTERACTIONS, Format::Data).chunks(50).map(array).collect();
    decode_interactions(bencher, &entries.iter().map(|body| Payload::MessagePack(body)).collect::<Vec<_>>());
}

fn array(events: &[Vec<u8>]) -> Vec<u8> {
    let mut array = vec![0xdc];
    array.extend_from_slice(&(events.len() as u16).to_be_bytes());
    array.extend(events.iter().flatten());
    array
}

/// 1,000 entries of one JSON interaction.
#[divan::bench]
fn decode_interaction_json(bencher: Bencher<'_, '_>) {
    let bodies = bodies(INTERACTIONS, Format::Json);
    decode_interactions(bencher, &bodies.iter().map(|body| Payload::Json(body)).collect::<Vec<_>>());
}

/// The part of it that turns JSON into `MessagePack`.
#[divan::bench]
fn json_to_messagepack(bencher: Bencher<'_, '_>) {
    let (bodies, mut out) = (bodies(INTERACTIONS, Format::Json), Vec::new());
    bencher.counter(ItemsCount::new(EVENTS)).bench_local(|| {
        for body in black_box(&bodies) {
            out.clear();
            assert!(json_to_msgpack(body, &mut out).is_ok());
        }
    });
}

/// 1,000 session updates with their state.
#[divan::bench]
fn decode_session_update(bencher: Bencher<'_, '_>) {
    let bodies = bodies(SESSIONS, Format::Data);
    let payloads: Vec<_> = bodies.iter().map(|body| Payload::MessagePack(body)).collect();
    let (mut judge, mut scratch) = (judge(), Vec::new());
    bencher.counter(ItemsCount::new(EVENTS)).bench_local(|| {
        judge_all(&mut judge, &mut scratch, black_box(&payloads), |judge, event, origin| {
            SessionUpdate::decode(judge, event, origin).map(|event| {
                black_box(event);
            })
        });
    });
}

/// 1,000 vectors of 384 dimensions.
#[divan::bench]
fn decode_embedding(bencher: Bencher<'_, '_>) {
    let bodies = bodies(EMBEDDINGS, Format::Data);
    let payloads: Vec<_> = bodies.iter().map(|body| Payload::MessagePack(body)).collect();
    let (mut judge, mut scratch) = (judge(), Vec::new());
    bencher.counter(ItemsCount::new(EVENTS)).bench_local(|| {
        judge_all(&mut judge, &mut scratch, black_box(&payloads), |judge, event, origin| {
            Embedding::decode(judge, event, origin).map(|event| drop(black_box(event)))
        });
    });
}

/// Rows of decoded interactions, into frames as they grow in a new batch.
#[divan::bench]
fn frames_of_interactions(bencher: Bencher<'_, '_>) {
    let bodies = bodies(INTERACTIONS, Format::Data);
    let mut judges: Vec<Judge> = bodies.iter().map(|_| judge()).collect();
    let origin = Origin { stream: "aegis:interactions", ms: 1, seq: 0, index: 0 };
    let events: Vec<_> = (bodies.iter().zip(&mut judges))
        .filter_map(|(body, judge)| Interaction::decode(judge, &mut Reader::new(body), &origin).ok())
        .collect();
    assert_eq!(events.len(), EVENTS);
    let bytes: usize = bodies.iter().map(Vec::len).sum();
    bencher.counter(ItemsCount::new(EVENTS)).counter(BytesCount::new(bytes)).bench_local(|| {
        let mut frames = Frames::default();
        for (entry, event) in (0..).zip(black_box(&events)) {
            frames.interaction(event, Place { entry, index: 0 });
        }
        frames.order();
        frames.pieces(0, EVENTS).for_each(|piece| drop(black_box(piece)));
        frames
    });
}

/// From the bytes of entries to the pieces of a COPY: all that the lane does with 1,000 interactions between Redis and PostgreSQL.
#[divan::bench]
fn entries_to_frames(bencher: Bencher<'_, '_>) {
    let bodies = bodies(INTERACTIONS, Format::Data);
    let payloads: Vec<_> = bodies.iter().map(|body| Payload::MessagePack(body)).collect();
    let (mut judge, mut scratch) = (judge(), Vec::new());
    bencher.counter(ItemsCount::new(EVENTS)).bench_local(|| {
        let mut frames = Frames::default();
        let mut entry = 0;
        judge_all(&mut judge, &mut scratch, black_box(&payloads), |judge, event, origin| {
            let event = Interaction::decode(judge, event, origin)?;
            frames.interaction(&event, Place { entry, index: 0 });
            entry += 1;
            Ok(())
        });
        frames.order();
        frames.pieces(0, EVENTS).for_each(|piece| drop(black_box(piece)));
        frames
    });
}

/// Session updates to rows of `session_events` and to one state a session.
#[divan::bench]
fn sessions_to_frames_and_states(bencher: Bencher<'_, '_>) {
    let bodies = bodies(SESSIONS, Format::Data);
    let mut judges: Vec<Judge> = bodies.iter().map(|_| judge()).collect();
    let origin = Origin { stream: "aegis:sessions", ms: 1, seq: 0, index: 0 };
    let events: Vec<_> = (bodies.iter().zip(&mut judges))
        .filter_map(|(body, judge)| SessionUpdate::decode(judge, &mut Reader::new(body), &origin).ok())
        .collect();
    assert_eq!(events.len(), EVENTS);
    bencher.counter(ItemsCount::new(EVENTS)).bench_local(|| {
        let mut frames = Frames::default();
        for (entry, event) in (0..).zip(black_box(&events)) {
            frames.session_event(event, Place { entry, index: 0 });
        }
        frames.order();
        frames.pieces(0, EVENTS).for_each(|piece| drop(black_box(piece)));
        (frames, fold(events.iter().cloned()).len())
    });
}
