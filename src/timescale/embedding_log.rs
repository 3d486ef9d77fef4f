//! Vectors to `embedding_log`, and back out of it in the order in which they were written to their streams.

use deadpool_postgres::Object;
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::copy::{Target, Way, attempt, bring, settle_rows};
use super::frame::{Frames, Micros, field, optional};
use super::{Database, DatabaseError, connect};
use crate::config::{self, BatchLimits};
use crate::event::msgpack::Reader;
use crate::event::{Decode as _, Embedding, Fault, Judge, Origin};
use crate::seam::{self, Destination, EntryId, WriteError, Written};

const COLUMNS: &str =
    "occurred_at, event_id, entry_ms, entry_seq, entry_index, collection, id, embedding, document, metadata, session_id, user_id";
/// Key of the advisory lock by which erasing and rebuilding keep out of each other's way: what is erased must not be put back by a
/// rebuild that had read it before. "aegis" in ASCII, plus one.
pub(super) const LOCK_KEY: i64 = 0x0061_6567_6974;

/// The hypertable of vectors.
pub struct EmbeddingLog {
    database: Database,
    target: Target,
    collection: String,
    limits: BatchLimits,
}

impl EmbeddingLog {
    /// The destination; `collection` is that of vectors that name none.
    pub fn new(database: Database, collection: &str, limits: BatchLimits) -> Self {
        let definitions = "occurred_at timestamptz, event_id uuid, entry_ms bigint, entry_seq bigint, entry_index integer, collection text, \
             id text, embedding bytea, document text, metadata json, session_id text, user_id text";
        Self { database, target: Target::new("embedding_log", COLUMNS, definitions), collection: collection.to_owned(), limits }
    }

    async fn write_rows(&self, frames: &Frames, from: usize, to: usize, way: Way) -> Result<u64, DatabaseError> {
        attempt(&self.database, way == Way::Aside, async |client: &Object| {
            bring(client, &self.target, way, frames, (from, to)).await
        })
        .await
    }
}

impl Destination for EmbeddingLog {
    type Rows = Frames;

    fn push(
        &self,
        judge: &mut Judge,
        event: &mut Reader<'_>,
        origin: &Origin<'_>,
        place: seam::Place,
        rows: &mut Frames,
    ) -> Result<(), Fault> {
        let vector = Embedding::decode(judge, event, origin)?;
        let head = vector.head;
        let derived = head.event_id.hyphenated().to_string();
        rows.row(12, head.occurred_at_us, head.event_id, place, |out| {
            field(out, &origin.ms.to_be_bytes());
            field(out, &origin.seq.to_be_bytes());
            field(out, &origin.index.to_be_bytes());
            field(out, vector.collection.unwrap_or(&self.collection).as_bytes());
            field(out, vector.id.unwrap_or(&derived).as_bytes());
            field(out, &vector.embedding.0);
            optional(out, vector.document.map(str::as_bytes));
            optional(out, Some(vector.metadata).filter(|metadata| *metadata != b"{}"));
            optional(out, vector.session_id.map(str::as_bytes));
            optional(out, vector.user_id.map(str::as_bytes));
        });
        Ok(())
    }

    async fn write(&self, rows: &mut Frames) -> Result<Written, WriteError> {
        rows.order();
        let frames = &*rows;
        settle_rows(frames, |from, to, way| self.write_rows(frames, from, to, way)).await
    }

    fn rows_max(&self) -> usize {
        self.limits.rows_max
    }

    fn writers_max(&self) -> usize {
        self.limits.writers_max
    }
}

/// Where in the log a record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPlace {
    entry: (i64, i64),
    index: i32,
    at_us: i64,
    event_id: Uuid,
}

impl LogPlace {
    /// Behind every record of this entry and of those before it.
    pub fn behind(entry: EntryId) -> Self {
        Self { entry: signed(entry), index: i32::MAX, at_us: MICROS_MAX, event_id: Uuid::max() }
    }

    /// Before every record that was written at this time or later.
    pub fn at_ms(ms: u64) -> Self {
        Self { entry: (ms.cast_signed(), i64::MIN), index: 0, at_us: 0, event_id: Uuid::nil() }
    }
}

/// The end of the year 9999: later than any time that is taken, and early enough for `timestamptz`.
const MICROS_MAX: i64 = 253_402_300_799_999_999;

/// Entry ids are stored as signed numbers.
const fn signed(entry: EntryId) -> (i64, i64) {
    (entry.ms.cast_signed(), entry.seq.cast_signed())
}

/// A vector as it went to Chroma.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Where it stands.
    pub place: LogPlace,
    /// Its collection.
    pub collection: String,
    /// Its id there.
    pub id: String,
    /// Little-endian float32.
    pub embedding: Vec<u8>,
    /// The text.
    pub document: Option<String>,
    /// JSON text of one object.
    pub metadata: Option<String>,
}

/// Vectors of one collection and dimension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchivedCollection {
    /// Its name.
    pub name: String,
    /// Numbers a vector.
    pub dimension: usize,
    /// How many, several under one id included.
    pub records: u64,
}

/// The log, read on a connection of its own: in the order of the streams, a page at a time.
pub struct Archive {
    client: Client,
    _connection: tokio::task::JoinHandle<()>,
}

impl Archive {
    /// Connects. `None`: an erasure is under way, beside which nothing may be put back.
    ///
    /// # Errors
    /// The database is away, refuses, or has no such table.
    pub async fn open(config: &config::Database) -> Result<Option<Self>, DatabaseError> {
        let (client, connection) = connect(config).await?;
        let failed = |error: tokio_postgres::Error| DatabaseError::from(&error);
        // A look at all vectors takes longer than what a reader's role is commonly given for a question.
        client.batch_execute("SET statement_timeout = 0").await.map_err(failed)?;
        let locked = client.query_one("SELECT pg_try_advisory_lock_shared($1)", &[&LOCK_KEY]).await.map_err(failed)?;
        Ok(locked.get::<_, bool>(0).then_some(Self { client, _connection: connection }))
    }

    /// What stands in the log from a place on.
    ///
    /// # Errors
    /// The database is away, refuses, or has no such table.
    pub async fn survey(&self, from: LogPlace, collection: Option<&str>) -> Result<Vec<ArchivedCollection>, DatabaseError> {
        let failed = |error: tokio_postgres::Error| DatabaseError::from(&error);
        let query = "SELECT collection, octet_length(embedding) / 4, count(*) FROM embedding_log
                     WHERE entry_ms >= $1 AND ($2::text IS NULL OR collection = $2) GROUP BY 1, 2 ORDER BY 1, 3 DESC, 2";
        let rows = self.client.query(query, &[&from.entry.0, &collection]).await.map_err(failed)?;
        let one = |row: &tokio_postgres::Row| {
            let (dimension, records) = (row.try_get::<_, i32>(1)?, row.try_get::<_, i64>(2)?);
            Ok(ArchivedCollection {
                name: row.try_get(0)?,
                dimension: usize::try_from(dimension).unwrap_or_default(),
                records: records.unsigned_abs(),
            })
        };
        rows.iter().map(|row| one(row).map_err(failed)).collect()
    }

    /// The next records behind `after`, up to `until`, at most `count` of them, in order.
    ///
    /// # Errors
    /// The database is away or refuses.
    pub async fn page(
        &self,
        after: LogPlace,
        until: EntryId,
        collection: Option<&str>,
        count: usize,
    ) -> Result<Vec<Record>, DatabaseError> {
        let failed = |error: tokio_postgres::Error| DatabaseError::from(&error);
        let query =
            "SELECT entry_ms, entry_seq, entry_index, occurred_at, event_id, collection, id, embedding, document, metadata::text
                     FROM embedding_log
                     WHERE (entry_ms, entry_seq, entry_index, occurred_at, event_id) > ($1, $2, $3, $4, $5)
                       AND (entry_ms, entry_seq) <= ($6, $7) AND ($8::text IS NULL OR collection = $8)
                     ORDER BY entry_ms, entry_seq, entry_index, occurred_at, event_id LIMIT $9";
        let (until, at, limit) = (signed(until), Micros(after.at_us), count as i64);
        let parameters: [&(dyn ToSql + Sync); 9] =
            [&after.entry.0, &after.entry.1, &after.index, &at, &after.event_id, &until.0, &until.1, &collection, &limit];
        let rows = self.client.query(query, &parameters).await.map_err(failed)?;
        let one = |row: &tokio_postgres::Row| {
            Ok(Record {
                place: LogPlace {
                    entry: (row.try_get(0)?, row.try_get(1)?),
                    index: row.try_get(2)?,
                    at_us: row.try_get::<_, Micros>(3)?.0,
                    event_id: row.try_get(4)?,
                },
                collection: row.try_get(5)?,
                id: row.try_get(6)?,
                embedding: row.try_get(7)?,
                document: row.try_get(8)?,
                metadata: row.try_get(9)?,
            })
        };
        rows.iter().map(|row| one(row).map_err(failed)).collect()
    }
}
