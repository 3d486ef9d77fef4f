//! Timelines: JSON lines of dialogue turns and session updates with their times, and vectors of some of the turns.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::encode::{Id, Keyed, LineMetadata, Numbers, Time, Vector, encode};
use super::{Event, Format};
use crate::config::Lane;

/// Namespace of event ids derived from a file's name and a line (RFC 9562, version 5): never to change.
const NAMESPACE: Uuid = Uuid::from_u128(0x0c5e_7a52_4a0d_4f6c_9f0b_3f51_6d0e_92b4);

/// A file that cannot be used: which, where, why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}, {place}: {problem}")]
pub struct Unusable {
    file: String,
    place: String,
    problem: String,
}

fn unusable(file: &str, place: impl Into<String>, problem: impl Into<String>) -> Unusable {
    Unusable { file: file.to_owned(), place: place.into(), problem: problem.into() }
}

/// A line that becomes an event.
#[derive(Clone, Debug)]
struct Line {
    lane: Lane,
    session_id: String,
    seq: u64,
    offset_us: i64,
    /// What the event says beside its id and time.
    keys: Map<String, Value>,
}

/// A timeline in memory.
#[derive(Clone, Debug)]
pub struct Timeline {
    /// File name without folder and `.gz`; event ids derive from it.
    name: String,
    lines: Vec<Line>,
}

/// How a timeline is sent.
#[derive(Clone, Copy, Debug)]
pub struct Sending<'a> {
    /// The time of offset 0, Unix microseconds.
    pub start_us: i64,
    /// Put before session ids and vector ids; with another prefix the same file is other events.
    pub session_prefix: &'a str,
    /// How events are encoded.
    pub format: Format,
    /// Sent after the lines that they belong to.
    pub vectors: Option<&'a Vectors>,
}

/// Reads a timeline, from a gzip file when its name ends in `.gz`.
///
/// # Errors
/// The file cannot be read, or a line is not of the form.
pub fn read(path: &Path) -> Result<Timeline, Unusable> {
    let file = path.display().to_string();
    let input = File::open(path).map_err(|error| unusable(&file, "opening", error.to_string()))?;
    let zipped = path.extension().is_some_and(|extension| extension == "gz");
    let name = if zipped { path.file_stem() } else { path.file_name() }.unwrap_or_default().to_string_lossy();
    let input: Box<dyn Read> = if zipped { Box::new(flate2::read::MultiGzDecoder::new(input)) } else { Box::new(input) };
    Timeline::parse(&name, BufReader::with_capacity(1 << 16, input))
}

impl Timeline {
    /// Reads the lines of a timeline called `name`.
    ///
    /// # Errors
    /// Reading fails, or a line is not of the form.
    pub fn parse(name: &str, input: impl BufRead) -> Result<Self, Unusable> {
        let mut lines = Vec::new();
        for (number, text) in (0_u64..).zip(input.lines()) {
            let place = || format!("line {}", number + 1);
            let text = text.map_err(|error| unusable(name, place(), error.to_string()))?;
            if text.trim().is_empty() {
                continue;
            }
            let keys = serde_json::from_str(&text).map_err(|error| unusable(name, place(), error.to_string()))?;
            lines.push(line(keys, number).map_err(|problem| unusable(name, place(), problem))?);
        }
        Ok(Self { name: name.to_owned(), lines })
    }

    /// How many lines there are.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The largest offset, microseconds.
    pub fn span_us(&self) -> i64 {
        self.lines.iter().map(|line| line.offset_us).max().unwrap_or(0)
    }

    /// The events, in the order of the lines.
    pub fn events<'a>(&'a self, sending: Sending<'a>) -> impl Iterator<Item = Event> + 'a {
        let of_line = move |line: &'a Line| {
            let rows = sending.vectors.and_then(|vectors| vectors.rows.get(&line.seq)).map_or(&[][..], Vec::as_slice);
            let vectors = rows.iter().map(move |row| self.vector(line, row, sending));
            std::iter::once(self.event(line, sending)).chain(vectors)
        };
        self.lines.iter().flat_map(of_line)
    }

    fn id(&self, prefix: &str, what: &str) -> Id {
        let name = if prefix.is_empty() { format!("{}\n{what}", self.name) } else { format!("{}\n{what}\n{prefix}", self.name) };
        Id(Uuid::new_v5(&NAMESPACE, name.as_bytes()))
    }

    fn event(&self, line: &Line, sending: Sending<'_>) -> Event {
        let at_us = sending.start_us.saturating_add(line.offset_us);
        let session_id: Arc<str> = format!("{}{}", sending.session_prefix, line.session_id).into();
        let prefixed;
        let keys = if sending.session_prefix.is_empty() {
            &line.keys
        } else {
            let mut keys = line.keys.clone();
            keys.insert("session_id".to_owned(), (*session_id).into());
            prefixed = keys;
            &prefixed
        };
        let event_id = self.id(sending.session_prefix, &line.seq.to_string());
        let mut body = Vec::with_capacity(512);
        encode(sending.format, &Keyed { event_id, occurred_at: Time(at_us), keys }, &mut body);
        Event { lane: line.lane, session_id, at_us, body, poison: None }
    }

    fn vector(&self, line: &Line, row: &Row, sending: Sending<'_>) -> Event {
        let prefix = sending.session_prefix;
        let at_us = sending.start_us.saturating_add(line.offset_us);
        let session_id: Arc<str> = format!("{prefix}{}", row.session_id).into();
        let event = Vector {
            event_id: self.id(prefix, &format!("vector {}", row.id)),
            occurred_at: Time(at_us),
            id: &format!("{prefix}{}", row.id),
            embedding: Numbers(&row.numbers),
            document: line.keys.get("transcript").and_then(Value::as_str).unwrap_or_default(),
            metadata: LineMetadata { seq: row.seq, turn: row.turn },
            session_id: &session_id,
            user_id: None,
        };
        let mut body = Vec::with_capacity(row.numbers.len() + 512);
        encode(sending.format, &event, &mut body);
        Event { lane: Lane::Embeddings, session_id, at_us, body, poison: None }
    }
}

fn line(mut keys: Map<String, Value>, number: u64) -> Result<Line, String> {
    let text =
        |key: &str| keys.get(key).and_then(Value::as_str).map(str::to_owned).ok_or_else(|| format!("{key:?} must be a text"));
    let (kind, session_id) = (text("kind")?, text("session_id")?);
    let offset_us = (keys.get("offset_ms").and_then(Value::as_i64).and_then(|ms| ms.checked_mul(1_000)))
        .ok_or("\"offset_ms\" must be an integer, milliseconds")?;
    let seq = keys.get("seq").and_then(Value::as_u64).unwrap_or(number);
    let lane = match kind.as_str() {
        "interaction" => Lane::Interactions,
        "session" => {
            // `seq` of a line numbers the file's lines; what orders a session's updates is `version`.
            let version = keys.remove("version");
            keys.retain(|key, _| matches!(key.as_str(), "session_id" | "user_id" | "status" | "state"));
            keys.extend(version.map(|version| ("seq".to_owned(), version)));
            Lane::Sessions
        }
        _ => return Err("\"kind\" must be interaction or session".to_owned()),
    };
    // Both are made here; a map that has a key twice would leave it to the reader which one counts.
    keys.retain(|key, _| !matches!(key.as_str(), "event_id" | "occurred_at"));
    Ok(Line { lane, session_id, seq, offset_us, keys })
}

#[derive(Clone, Debug)]
struct Row {
    id: String,
    session_id: String,
    turn: Option<i64>,
    seq: u64,
    /// Little-endian float32.
    numbers: Vec<u8>,
}

/// Vectors of lines of a timeline.
#[derive(Clone, Debug)]
pub struct Vectors {
    dimensions: usize,
    /// By the line's `seq`.
    rows: HashMap<u64, Vec<Row>>,
}

impl Vectors {
    /// Numbers a vector.
    pub const fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// How many vectors there are.
    pub fn len(&self) -> usize {
        self.rows.values().map(Vec::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// Reads vectors, rows of little-endian float32, and the JSON lines that say what each row belongs to. The dimension is what
/// the two files' sizes say.
///
/// # Errors
/// A file cannot be read, they do not fit each other, or a row belongs to no line of the timeline that has a transcript.
pub fn vectors(numbers: &Path, ids: &Path, timeline: &Timeline) -> Result<Vectors, Unusable> {
    #[derive(Deserialize)]
    struct IdLine {
        row: usize,
        id: String,
        session_id: String,
        turn: Option<i64>,
        seq: u64,
    }

    let (file, ids_file) = (numbers.display().to_string(), ids.display().to_string());
    let bytes = std::fs::read(numbers).map_err(|error| unusable(&file, "reading", error.to_string()))?;
    let text = std::fs::read_to_string(ids).map_err(|error| unusable(&ids_file, "reading", error.to_string()))?;
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    if lines.is_empty() || bytes.is_empty() || !bytes.len().is_multiple_of(4 * lines.len()) {
        let problem = format!("{} bytes are not {} rows of float32, as {ids_file} has it", bytes.len(), lines.len());
        return Err(unusable(&file, "size", problem));
    }
    let row_bytes = bytes.len() / lines.len();
    let spoken: HashMap<u64, &Line> = timeline.lines.iter().map(|line| (line.seq, line)).collect();
    let mut rows: HashMap<u64, Vec<Row>> = HashMap::new();
    for (number, text) in (1..).zip(&lines) {
        let bad = |problem: String| unusable(&ids_file, format!("line {number}"), problem);
        let line: IdLine = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
        let Some(numbers) = bytes.chunks_exact(row_bytes).nth(line.row) else {
            return Err(bad(format!("there is no row {}", line.row)));
        };
        if !spoken.get(&line.seq).is_some_and(|line| line.keys.get("transcript").is_some_and(Value::is_string)) {
            return Err(bad(format!("{} has no line {} with a transcript", timeline.name, line.seq)));
        }
        let IdLine { id, session_id, turn, seq, .. } = line;
        rows.entry(seq).or_default().push(Row { id, session_id, turn, seq, numbers: numbers.to_vec() });
    }
    Ok(Vectors { dimensions: row_bytes / 4, rows })
}

#[cfg(test)]
mod tests;
