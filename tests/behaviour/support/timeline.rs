//! The timelines of `../shared/data`, as a producer would send them and as the tables must have them.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;

use flate2::read::GzDecoder;
use serde_json::{Map, Value as Json};
use uuid::Uuid;

use super::fold::Update;
use super::servers::repository;
use super::stores::InteractionRow;

/// Where the data are; `None`, and a loud word, when this machine does not have them.
pub fn data_folder(test: &str) -> Option<PathBuf> {
    let folder = repository().join("../shared/data");
    if folder.join("dialogues-dev.jsonl.gz").exists() {
        return Some(folder);
    }
    // Straight to the terminal: the harness shows nothing that a passing test says.
    let line = format!("\n!!! SKIPPED: {test}: ../shared/data is absent, so nothing was shown with real data !!!\n\n");
    let _ = std::fs::write("/dev/stderr", line);
    None
}

/// A line that is an interaction: what is sent, and the row that it must become.
#[derive(Clone, Debug)]
pub struct Spoken {
    /// The event.
    pub event: Json,
    /// The row; its `event_id` means nothing when the event has none.
    pub row: InteractionRow,
}

/// A timeline file, read.
#[derive(Debug, Default)]
pub struct Timeline {
    /// Interactions, in order.
    pub interactions: Vec<Spoken>,
    /// Session updates, in order.
    pub updates: Vec<Update>,
}

/// Reads lines of a file; each gets its object.
pub fn lines(path: &std::path::Path) -> impl Iterator<Item = Map<String, Json>> {
    let file = std::fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let reader: Box<dyn std::io::Read> =
        if path.extension().is_some_and(|ext| ext == "gz") { Box::new(GzDecoder::new(file)) } else { Box::new(file) };
    BufReader::new(reader).lines().map(|line| serde_json::from_str(&line.expect("UTF-8")).expect("an object"))
}

impl Timeline {
    /// Reads a file and lets it end a minute ago. With `ids` the events bring event ids.
    pub fn read(path: &std::path::Path, ids: bool) -> Self {
        let all: Vec<_> = lines(path).collect();
        let last = all.last().expect("lines")["offset_ms"].as_i64().unwrap();
        let start_ms = super::send::now_ms() - 60_000 - last;
        let mut timeline = Self::default();
        for mut line in all {
            let number = line["seq"].as_i64().unwrap();
            let at_ms = start_ms + line.remove("offset_ms").unwrap().as_i64().unwrap();
            let event_id = Uuid::from_u128(0xA11C_E000_0000_0000_8000_0000_0000_0000 + number as u128);
            let text = |line: &Map<String, Json>, key: &str| line.get(key).and_then(Json::as_str).map(str::to_owned);
            if line["kind"] == "session" {
                timeline.updates.push(Update {
                    event_id,
                    occurred_at_us: at_ms * 1000,
                    session_id: text(&line, "session_id").unwrap(),
                    user_id: text(&line, "user_id").unwrap(),
                    status: text(&line, "status").unwrap(),
                    seq: Some(line["version"].as_i64().unwrap()),
                    state: Some(line["state"].clone()),
                });
                continue;
            }
            let mut event = line.clone();
            event.insert("occurred_at".to_owned(), at_ms.into());
            if ids {
                event.insert("event_id".to_owned(), event_id.to_string().into());
            }
            let mut row = InteractionRow {
                occurred_at_us: at_ms * 1000,
                event_id,
                session_id: text(&line, "session_id").unwrap(),
                user_id: text(&line, "user_id").unwrap(),
                intent: text(&line, "intent"),
                latency_ms: line["latency_ms"].as_f64(),
                confidence: None,
                channel: None,
                locale: None,
                transcript: text(&line, "transcript"),
                attributes: None,
            };
            for known in ["session_id", "user_id", "intent", "latency_ms", "transcript"] {
                line.remove(known);
            }
            row.attributes = Some(Json::Object(line));
            timeline.interactions.push(Spoken { event: Json::Object(event), row });
        }
        timeline
    }
}
