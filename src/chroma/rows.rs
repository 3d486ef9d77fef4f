//! Vectors of one batch, packed, and the JSON in which they go to Chroma: pure.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::event::Embedding;
use crate::seam::{self, Place};

/// Bytes a request, roughly. Chroma answers 413 above 40 MiB; 500 vectors of 3,072 numbers fit, and a slower link than this
/// machine's own still carries it well within a deadline.
const REQUEST_BYTES_MAX: usize = 8 << 20;

/// Vectors of one batch. All their bytes stand in one arena, so that an event costs no allocation of its own.
#[derive(Debug, Default)]
pub struct Rows {
    /// Per row: collection, id, document, metadata, vector.
    arena: Vec<u8>,
    rows: Vec<Row>,
}

/// Where a row stands in the arena; lengths in bytes.
#[derive(Clone, Copy, Debug)]
struct Row {
    place: Place,
    start: usize,
    /// 0: the configured collection.
    collection: u32,
    id: u32,
    document: Option<u32>,
    metadata: u32,
    vector: u32,
}

/// Rows of one collection that are to be sent, and those that need not be.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Distinct {
    /// Rows to send, in the order of arrival.
    pub(super) kept: Vec<u32>,
    /// Rows equal to a later one in every byte, and that later one.
    pub(super) repeats: Vec<(u32, u32)>,
}

impl seam::Rows for Rows {
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn forget(&mut self, entry: u32) {
        while let Some(row) = self.rows.pop_if(|row| row.place.entry == entry) {
            self.arena.truncate(row.start);
        }
    }

    fn clear(&mut self) {
        self.arena.clear();
        self.rows.clear();
    }
}

impl Rows {
    /// Adds one event.
    pub fn push(&mut self, event: &Embedding<'_>, place: Place) {
        let start = self.arena.len();
        let derived;
        let id = if let Some(id) = event.id {
            id
        } else {
            derived = event.head.event_id.hyphenated().to_string();
            &derived
        };
        let metadata = if event.metadata == b"{}" { &[] } else { event.metadata };
        let mut put = |bytes: &[u8]| {
            self.arena.extend_from_slice(bytes);
            bytes.len() as u32
        };
        self.rows.push(Row {
            place,
            start,
            collection: put(event.collection.unwrap_or_default().as_bytes()),
            id: put(id.as_bytes()),
            document: event.document.map(|document| put(document.as_bytes())),
            metadata: put(metadata),
            vector: put(&event.embedding.0),
        });
    }

    pub(super) fn place(&self, row: u32) -> Place {
        self.rows[row as usize].place
    }

    /// Numbers of a row's vector.
    pub(super) fn dimension(&self, row: u32) -> usize {
        self.rows[row as usize].vector as usize / 4
    }

    /// The sum of the squares of a row's numbers.
    pub(super) fn norm_squared(&self, row: u32) -> f64 {
        numbers(self.parts(row).vector).map(|number| f64::from(number) * f64::from(number)).sum()
    }

    /// The rows of each collection in the order of arrival, the collection met first first.
    pub(super) fn by_collection<'a>(&'a self, default: &'a str) -> Vec<(&'a str, Vec<u32>)> {
        let mut groups: Vec<(&str, Vec<u32>)> = Vec::new();
        let mut index = HashMap::new();
        for row in 0..self.rows.len() as u32 {
            let name = match self.parts(row).collection {
                "" => default,
                name => name,
            };
            let group = *index.entry(name).or_insert_with(|| {
                groups.push((name, Vec::new()));
                groups.len() - 1
            });
            groups[group].1.push(row);
        }
        groups
    }

    /// Takes out of `rows`, which are of one collection, those that a later one repeats byte for byte.
    ///
    /// A row that only has the id of a later one stays: Chroma keeps its document and metadata keys where the later one has
    /// none, and what comes out must not depend on where one batch ends and the next begins.
    pub(super) fn distinct(&self, rows: &[u32]) -> Distinct {
        let mut distinct = Distinct::default();
        let mut latest = HashMap::with_capacity(rows.len());
        for &row in rows.iter().rev() {
            let Parts { id, document, metadata, vector, .. } = self.parts(row);
            let kept = *latest.entry((id, document, metadata, vector)).or_insert(row);
            if kept == row {
                distinct.kept.push(row);
            } else {
                distinct.repeats.push((row, kept));
            }
        }
        distinct.kept.reverse();
        distinct
    }

    /// Cuts rows into requests of at most `rows_max` rows and some 8 MiB; one row alone may be larger.
    pub(super) fn requests(&self, rows: &[u32], rows_max: usize) -> Vec<Vec<u32>> {
        let mut requests: Vec<Vec<u32>> = Vec::new();
        let mut bytes = 0;
        for &row in rows {
            let Row { id, document, metadata, vector, .. } = self.rows[row as usize];
            let size = (id + document.unwrap_or(0) + metadata) as usize + vector as usize / 3 * 4 + 16;
            match requests.last_mut() {
                Some(request) if request.len() < rows_max && bytes + size <= REQUEST_BYTES_MAX => {
                    request.push(row);
                    bytes += size;
                }
                _ => {
                    requests.push(vec![row]);
                    bytes = size;
                }
            }
        }
        requests
    }

    /// The body of an upsert of these rows.
    pub(super) fn body(&self, rows: &[u32], base64: bool) -> Vec<u8> {
        let size: usize = rows.iter().map(|&row| self.rows[row as usize]).map(|row| row.vector as usize / 3 * 4 + 256).sum();
        let mut body = Vec::with_capacity(size);
        let mut list = |name: &str, each: &dyn Fn(&mut Vec<u8>, Parts<'_>)| {
            body.extend_from_slice(name.as_bytes());
            for (n, &row) in rows.iter().enumerate() {
                body.push(if n == 0 { b'[' } else { b',' });
                each(&mut body, self.parts(row));
            }
        };
        list("{\"ids\":", &|body, row| put_text(body, row.id));
        list("],\"embeddings\":", &|body, row| if base64 { put_base64(body, row.vector) } else { put_numbers(body, row.vector) });
        list("],\"documents\":", &|body, row| match row.document {
            Some(document) => put_text(body, document),
            None => body.extend_from_slice(b"null"),
        });
        list("],\"metadatas\":", &|body, row| {
            body.extend_from_slice(if row.metadata.is_empty() { b"null" } else { row.metadata });
        });
        body.extend_from_slice(b"]}");
        body
    }

    fn parts(&self, row: u32) -> Parts<'_> {
        let row = self.rows[row as usize];
        let mut rest = &self.arena[row.start..];
        let mut take = |len: u32| {
            let (part, others) = rest.split_at(len as usize);
            rest = others;
            part
        };
        // These came as `&str` and went into the arena whole.
        let text = |bytes| str::from_utf8(bytes).unwrap_or_default();
        Parts {
            collection: text(take(row.collection)),
            id: text(take(row.id)),
            document: row.document.map(|len| text(take(len))),
            metadata: take(row.metadata),
            vector: take(row.vector),
        }
    }
}

struct Parts<'a> {
    collection: &'a str,
    id: &'a str,
    document: Option<&'a str>,
    metadata: &'a [u8],
    vector: &'a [u8],
}

fn numbers(vector: &[u8]) -> impl Iterator<Item = f32> {
    vector.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes))
}

fn put_text(body: &mut Vec<u8>, text: &str) {
    let written = serde_json::to_writer(body, text);
    debug_assert!(written.is_ok(), "writing a text to memory does not fail");
}

fn put_base64(body: &mut Vec<u8>, vector: &[u8]) {
    body.push(b'"');
    let start = body.len();
    body.resize(start + vector.len().div_ceil(3) * 4, 0);
    let written = BASE64.encode_slice(vector, &mut body[start..]);
    debug_assert!(written.is_ok(), "the room is four bytes for each three");
    body.push(b'"');
}

fn put_numbers(body: &mut Vec<u8>, vector: &[u8]) {
    for (n, number) in numbers(vector).enumerate() {
        body.push(if n == 0 { b'[' } else { b',' });
        let written = serde_json::to_writer(&mut *body, &number);
        debug_assert!(written.is_ok(), "writing a number to memory does not fail");
    }
    body.push(b']');
}

#[cfg(test)]
mod tests;
