//! The destination of the `embeddings` lane.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Mutex;

use super::client::{Client, Collection, Limits};
use super::collections::Collections;
use super::error::ChromaError;
use super::rows::{Distinct, Rows};
use crate::config::{self, Space};
use crate::event::msgpack::Reader;
use crate::event::{Code, Decode, Embedding, Fault, Judge, Origin};
use crate::seam::{Answer, Destination, Place, WriteError, Written};

/// The largest sum of squares that survives Chroma's float32 arithmetic, less a thousandth for its order of summation.
const NORM_SQUARED_MAX: f64 = f32::MAX as f64 * 0.999;

/// Chroma as a destination: a vector is a record of its collection, upserted under its id, so that a second delivery changes
/// nothing.
#[derive(Debug)]
pub struct Vectors {
    client: Client,
    collection: String,
    wanted_max: usize,
    /// What a request may hold, as far as the server was asked.
    rows_max: AtomicUsize,
    /// Held while a batch is written: parallel writers to a collection are slower by up to 4 ×, and single-node Chroma has one
    /// writer behind all of them.
    server: Mutex<Server>,
}

/// What is known of the server.
#[derive(Debug, Default)]
struct Server {
    limits: Option<Limits>,
    collections: Collections,
}

impl Vectors {
    /// A destination that sends up to `wanted_max` vectors a request.
    pub fn new(client: Client, config: &config::Chroma, wanted_max: usize) -> Self {
        let wanted_max = wanted_max.max(1);
        Self {
            client,
            collection: config.collection.clone(),
            wanted_max,
            rows_max: AtomicUsize::new(wanted_max),
            server: Mutex::default(),
        }
    }

    /// The client behind it, for health and `check`.
    pub const fn client(&self) -> &Client {
        &self.client
    }

    async fn write_all(&self, server: &mut Server, rows: &Rows) -> Result<Written, WriteError> {
        let limits = self.limits(server).await?;
        let mut written = Written::default();
        for (name, group) in rows.by_collection(&self.collection) {
            let Distinct { kept, repeats } = rows.distinct(&group);
            let mut refused = self.write_collection(server, limits, name, rows, &kept).await?;
            written.new += (kept.len() - refused.len()) as u64;
            refused.sort_unstable_by_key(|(row, _)| *row);
            for (repeat, kept) in repeats {
                // A row shares the fate of the one that stood for it: counted as written only if that one was.
                match refused.binary_search_by_key(&kept, |(row, _)| *row) {
                    Ok(found) => written.rejected.push((rows.place(repeat), refused[found].1.clone())),
                    Err(_) => written.duplicates += 1,
                }
            }
            written.rejected.extend(refused.into_iter().map(|(row, fault)| (rows.place(row), fault)));
        }
        written.rejected.sort_unstable_by_key(|(place, _)| *place);
        Ok(written)
    }

    /// Asked again after every failure, since the server that comes back may be another one.
    async fn limits(&self, server: &mut Server) -> Result<Limits, WriteError> {
        if let Some(limits) = server.limits {
            return Ok(limits);
        }
        let asked = self.client.pre_flight().await.map_err(|error| failure(&error))?;
        let limits = Limits { batch_max: asked.batch_max.min(self.wanted_max), ..asked };
        self.rows_max.store(limits.batch_max, Ordering::Relaxed);
        server.limits = Some(limits);
        Ok(limits)
    }

    /// Writes rows of one collection; returns those that were refused.
    async fn write_collection(
        &self,
        server: &mut Server,
        limits: Limits,
        name: &str,
        rows: &Rows,
        kept: &[u32],
    ) -> Result<Vec<(u32, Fault)>, WriteError> {
        let mut refused = Vec::new();
        let known = server.collections.get(name);
        let mut asked = known.is_none();
        let mut collection = if let Some(collection) = known {
            collection
        } else {
            match self.ask(server, name).await {
                Ok(collection) => collection,
                Err(error) if error.answer() == Answer::SetAside => {
                    let fault = Fault::new(Code::Rejected, format!("collection {name:?} cannot be created: {error}"));
                    return Ok(kept.iter().map(|&row| (row, fault.clone())).collect());
                }
                Err(error) => return Err(failure(&error)),
            }
        };
        let mut vanished = false;
        let mut to_send = rows.requests(kept, limits.batch_max);
        to_send.reverse();
        while let Some(request) = to_send.pop() {
            let Judged { fitting, undecided, unfit } = judge(rows, &request, name, &collection);
            if !unfit.is_empty() && !asked {
                // Perhaps the collection was deleted and made again for other vectors: what was true once sets no event aside.
                asked = true;
                collection = self.ask(server, name).await.map_err(|error| failure(&error))?;
                to_send.push(request);
                continue;
            }
            refused.extend(unfit);
            if !undecided.is_empty() {
                to_send.push(undecided);
            }
            let Some(&first) = fitting.first() else { continue };
            let Err(error) = self.client.upsert(collection.id, rows.body(&fitting, limits.base64)).await else {
                if collection.dimension.is_none() {
                    collection.dimension = Some(rows.dimension(first));
                    server.collections.insert(name, collection);
                }
                continue;
            };
            match error {
                // Deleted by someone, and perhaps made again under another id.
                ChromaError::NotFound(_) if !vanished => {
                    (vanished, asked) = (true, true);
                    collection = self.ask(server, name).await.map_err(|error| failure(&error))?;
                    to_send.push(fitting);
                }
                // Another worker wrote the collection's first vector.
                ChromaError::Dimension { held } if collection.dimension.is_none() => {
                    collection.dimension = Some(held);
                    server.collections.insert(name, collection);
                    to_send.push(fitting);
                }
                error => match (error.answer(), fitting.as_slice()) {
                    (Answer::Wait | Answer::Stop, _) => return Err(failure(&error)),
                    (Answer::SetAside, &[row]) => refused.push((row, Fault::new(Code::Rejected, error.to_string()))),
                    (Answer::SetAside, several) => {
                        let (left, right) = several.split_at(several.len() / 2);
                        // The left half goes first: of two rows with one id, the later must stay the later.
                        to_send.extend([right.to_vec(), left.to_vec()]);
                    }
                },
            }
        }
        Ok(refused)
    }

    /// Asks for a collection, which is created when there is none, and remembers it.
    async fn ask(&self, server: &mut Server, name: &str) -> Result<Collection, ChromaError> {
        let collection = self.client.collection_or_create(name).await?;
        let is_new = server.collections.get(name).is_none_or(|known| known.id != collection.id);
        let wanted = self.client.space();
        if is_new && collection.space != Some(wanted) {
            let space = collection.space.map_or("unknown", Space::name);
            tracing::warn!(
                collection = name,
                space,
                wanted = wanted.name(),
                "the collection has another space than AEGIS_CHROMA_SPACE asks for; it is used as it is"
            );
        }
        server.collections.insert(name, collection);
        Ok(collection)
    }
}

impl Destination for Vectors {
    type Rows = Rows;

    fn push(
        &self,
        judge: &mut Judge,
        event: &mut Reader<'_>,
        origin: &Origin<'_>,
        place: Place,
        rows: &mut Rows,
    ) -> Result<(), Fault> {
        rows.push(&Embedding::decode(judge, event, origin)?, place);
        Ok(())
    }

    async fn write(&self, rows: &mut Rows) -> Result<Written, WriteError> {
        let mut server = self.server.lock().await;
        let result = self.write_all(&mut server, rows).await;
        if result.is_err() {
            server.limits = None;
        }
        result
    }

    fn rows_max(&self) -> usize {
        self.rows_max.load(Ordering::Relaxed)
    }

    fn writers_max(&self) -> usize {
        1
    }
}

/// Rows of a request, judged by what is known of their collection.
#[derive(Debug, Default, PartialEq, Eq)]
struct Judged {
    /// Worth sending together.
    fitting: Vec<u32>,
    /// Of another dimension than the first one, in a collection whose dimension is open: to be judged when the fitting ones,
    /// which come first, have settled it.
    undecided: Vec<u32>,
    /// What Chroma would refuse, or take and spoil.
    unfit: Vec<(u32, Fault)>,
}

/// Sorts the rows of a request.
///
/// A zero vector is fitting in every space: Chroma 1.5.9 stores it as it is, at distance 1 from every vector in cosine space, and
/// its neighbours are found as before. A vector whose sum of squares overflows float32 is not in cosine space, where Chroma
/// accepts it and stores NaN.
fn judge(rows: &Rows, request: &[u32], name: &str, collection: &Collection) -> Judged {
    let mut judged = Judged::default();
    for &row in request {
        let dimension = rows.dimension(row);
        if collection.space == Some(Space::Cosine) && rows.norm_squared(row) > NORM_SQUARED_MAX {
            let reason =
                format!("embedding is too long a vector for the cosine collection {name:?}: its squares add up beyond float32");
            judged.unfit.push((row, Fault::new(Code::Rejected, reason)));
        } else if let Some(held) = collection.dimension {
            if held == dimension {
                judged.fitting.push(row);
            } else {
                let reason = format!("embedding has dimension {dimension}, while the vectors of collection {name:?} have {held}");
                judged.unfit.push((row, Fault::new(Code::DimensionMismatch, reason)));
            }
        } else if judged.fitting.first().is_none_or(|&first| rows.dimension(first) == dimension) {
            judged.fitting.push(row);
        } else {
            judged.undecided.push(row);
        }
    }
    judged
}

fn failure(error: &ChromaError) -> WriteError {
    match error.answer() {
        // A refusal gets here for what holds no event: the question for the limits, and a collection that vanished twice.
        Answer::Wait | Answer::SetAside => WriteError::Away(error.to_string()),
        Answer::Stop => WriteError::Bug(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use uuid::Uuid;

    use super::*;
    use crate::event::{Head, Vector};

    fn rows(vectors: &[&[f32]]) -> Rows {
        let mut rows = Rows::default();
        for vector in vectors {
            let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
            let embedding = Embedding {
                head: Head { event_id: Uuid::nil(), occurred_at_us: 0, time_given: false },
                id: None,
                embedding: Vector(Cow::Owned(bytes)),
                document: None,
                session_id: None,
                user_id: None,
                metadata: b"{}",
                collection: None,
            };
            rows.push(&embedding, Place { entry: 0, index: 0 });
        }
        rows
    }

    fn unfit(judged: &Judged) -> Vec<(u32, Code)> {
        judged.unfit.iter().map(|(row, fault)| (*row, fault.code)).collect()
    }

    #[test]
    fn the_first_vector_settles_the_dimension_of_an_empty_collection() {
        let rows = rows(&[&[1.0, 2.0], &[1.0], &[3.0, 4.0]]);
        let empty = Collection { id: Uuid::nil(), dimension: None, space: Some(Space::L2) };
        let judged = judge(&rows, &[0, 1, 2], "c", &empty);
        assert_eq!(judged, Judged { fitting: vec![0, 2], undecided: vec![1], unfit: vec![] });
        let judged = judge(&rows, &judged.undecided, "c", &Collection { dimension: Some(2), ..empty });
        assert_eq!(unfit(&judged), [(1, Code::DimensionMismatch)]);
        let reason = &judged.unfit[0].1.reason;
        assert!(reason.contains("dimension 1") && reason.contains("\"c\" have 2"), "{reason}");
    }

    #[test]
    fn what_overflows_float32_is_unfit_in_cosine_space_alone() {
        let rows = rows(&[&[1.84e19, 0.0], &[1.9e19, 0.0], &[f32::MAX, f32::MAX], &[0.0, 0.0]]);
        let cosine = Collection { id: Uuid::nil(), dimension: Some(2), space: Some(Space::Cosine) };
        let judged = judge(&rows, &[0, 1, 2, 3], "c", &cosine);
        assert_eq!((&judged.fitting, unfit(&judged)), (&vec![0, 3], vec![(1, Code::Rejected), (2, Code::Rejected)]));
        assert_eq!(judge(&rows, &[0, 1, 2, 3], "c", &Collection { space: Some(Space::Ip), ..cosine }).fitting.len(), 4);
    }
}
