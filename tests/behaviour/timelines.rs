//! Real dialogues go through Redis into the stores, and an independent fold of the files gives the same.

use serde_json::Value as Json;

use crate::support::timeline::{Timeline, data_folder};
use crate::support::{LONG, Space, Worker, fold, send, stores};

/// Events an entry, as a producer that batches would send them.
const PACK: usize = 50;

/// What the data's own README counts: 37,152 interactions and 20,546 session events in all.
struct Counts {
    interactions: usize,
    updates: usize,
    sessions: usize,
}

const DIALOGUES: Counts = Counts { interactions: 20_004, updates: 15_317, sessions: 1_088 };
const CHINESE: Counts = Counts { interactions: 8_458, updates: 5_229, sessions: 500 };
const VOICE: Counts = Counts { interactions: 8_690, updates: 0, sessions: 0 };
const _: () = assert!(DIALOGUES.interactions + CHINESE.interactions + VOICE.interactions == 37_152);
const _: () = assert!(DIALOGUES.updates + CHINESE.updates == 20_546);

/// Sends a file, and holds every field of every row and hash against the fold. Returns the transcripts in the table.
async fn arrives_whole(test: &str, file: &str, ids: bool, counts: &Counts) -> Option<Vec<String>> {
    let timeline = Timeline::read(&data_folder(test)?.join(file), ids);
    assert_eq!((timeline.interactions.len(), timeline.updates.len()), (counts.interactions, counts.updates), "the file");
    let space = Space::new(test).await;
    let worker = Worker::start(&space, &[("AEGIS_LANES", "interactions,sessions")]);
    let mut redis = space.redis().await;
    let spoken: Vec<Json> = timeline.interactions.iter().map(|spoken| spoken.event.clone()).collect();
    let updates: Vec<Json> = timeline.updates.iter().map(fold::Update::event).collect();
    send::many(&mut redis, &space.stream("interactions"), &send::packed(&spoken, PACK)).await;
    send::many(&mut redis, &space.stream("sessions"), &send::packed(&updates, PACK)).await;
    worker.ready().await;
    worker.settled(&space, &["interactions", "sessions"], LONG).await;
    for lane in ["interactions", "sessions"] {
        assert_eq!(stores::dead_letters(&mut redis, &space.dead(lane)).await, [], "no dead letters");
    }

    let database = space.database().await;
    let mut rows = stores::interactions(&database).await;
    assert_eq!(rows.len(), counts.interactions);
    let mut wanted: Vec<_> = timeline.interactions.into_iter().map(|spoken| spoken.row).collect();
    // Derived ids are the program's own affair, but each is another one.
    if !ids {
        let distinct: std::collections::HashSet<_> = rows.iter().map(|row| row.event_id).collect();
        assert_eq!(distinct.len(), rows.len());
        rows.iter_mut().chain(&mut wanted).for_each(|row| row.event_id = uuid::Uuid::nil());
    }
    let line = |row: &stores::InteractionRow| row.attributes.as_ref().and_then(|attributes| attributes["seq"].as_i64());
    rows.sort_by_key(line);
    wanted.sort_by_key(line);
    for (row, wanted) in rows.iter().zip(&wanted) {
        assert_eq!(row, wanted);
    }

    let mut events = stores::session_events(&database).await;
    assert_eq!(events.len(), counts.updates);
    events.sort_by_key(|event| event.event_id);
    for (event, update) in events.iter().zip(&timeline.updates) {
        let wanted = stores::SessionEventRow {
            occurred_at_us: update.occurred_at_us,
            event_id: update.event_id,
            session_id: update.session_id.clone(),
            user_id: update.user_id.clone(),
            status: update.status.clone(),
            seq: update.seq.unwrap(),
            state: update.state.clone(),
        };
        assert_eq!(*event, wanted);
    }

    let wanted = fold::sessions(&timeline.updates);
    assert_eq!(wanted.len(), counts.sessions);
    let sessions = stores::sessions(&database).await;
    assert_eq!(sessions.len(), counts.sessions);
    let keys: Vec<_> = wanted.keys().map(|session| space.session_key(session)).collect();
    let hashes = stores::session_hashes(&mut redis, &keys).await;
    for ((session, wanted), hash) in wanted.iter().zip(&hashes) {
        assert_eq!(wanted.status, "ended", "each session of the file ends");
        assert_eq!(sessions.get(session), Some(wanted), "table, session {session}");
        assert_eq!(stores::hash_as_row(hash).as_ref(), Some(&wanted.in_milliseconds()), "hash, session {session}");
    }

    let metrics = worker.metrics().await;
    let written = |lane| metrics.get("aegis_events_written_total", &[("lane", lane)]);
    assert_eq!((written("interactions"), written("sessions")), (counts.interactions as f64, counts.updates as f64));
    Some(rows.into_iter().filter_map(|row| row.transcript).collect())
}

#[tokio::test]
async fn english_dialogues_with_state() {
    let Some(transcripts) = arrives_whole("english_dialogues", "dialogues-dev.jsonl.gz", true, &DIALOGUES).await else { return };
    // What is odd in the data really went through.
    assert!(transcripts[..].iter().any(|text| text.contains('\\')), "a stray backslash");
}

#[tokio::test]
async fn chinese_dialogues_with_state() {
    let Some(transcripts) = arrives_whole("chinese_dialogues", "dialogues-zh-dev.jsonl.gz", true, &CHINESE).await else { return };
    let odd = transcripts.iter().filter(|text| text.contains(['\t', '\n'])).count();
    assert_eq!(odd, 14, "tabs and line feeds inside of transcripts");
}

/// Without event ids: the program derives them.
#[tokio::test]
async fn spoken_commands_without_event_ids() {
    arrives_whole("spoken_commands", "voice-dev.jsonl.gz", false, &VOICE).await;
}
