//! Collections of Chroma, made again out of `embedding_log` while the workers run. Here because it needs all three stores.
//!
//! The log is read in the order of the streams and upserted in that order, so that a record ends as it did the first time, what
//! Chroma merges included. Two things could go wrong beside live traffic, and each has its answer:
//!
//! - *A vector that is in no log yet when it is read.* The streams' ends are noted first (after a collection was deleted, where
//!   that was asked for), and the archive lane is waited for until it has settled all up to there.
//! - *A vector that is set back,* since a worker upserted a newer one of the same id in between. What came in during a pass is
//!   gone through in the next, as far as its id is among those just written; each pass is shorter than the one before.
//!
//! Killed at any point it has done no harm: the next run begins anew and ends the same.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use uuid::Uuid;

use crate::chroma::{self, Client, Vectors};
use crate::config::{Config, Lane};
use crate::event::{Embedding, Head, Vector};
use crate::redis::{Redis, inspect};
use crate::seam::{Destination as _, EntryId, Pauses, Place, Rows as _, WriteError};
use crate::timescale::{Archive, ArchivedCollection, DatabaseError, LogPlace, Record};

/// Bytes of vectors a page: what Chroma takes in a second or two.
const PAGE_BYTES: usize = 4 << 20;
/// Bytes of a record before any was seen.
const RECORD_BYTES_FIRST: usize = 64 << 10;
/// Between two looks at what is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Passes at the most. Each takes in what came during the one before; more than three say that ids are upserted again and again.
const PASSES_MAX: u32 = 20;
/// Streams of different nodes have clocks of different nodes.
const CLOCKS_APART_MS: u64 = 3_600_000;

/// What to rebuild.
#[derive(Clone, Debug)]
pub struct Options {
    /// One collection; `None`: all that the log knows.
    pub collection: Option<String>,
    /// Only vectors that were written to their stream at this time or later, Unix milliseconds.
    pub since_ms: u64,
    /// Delete each collection first.
    pub replace: bool,
    /// How long to wait for the archive lane to catch up, and for a store that is away.
    pub patience: Duration,
}

/// What is told on the way.
#[derive(Debug)]
pub enum Told<'a> {
    /// So many records are to come.
    Total(u64),
    /// So many more are through.
    Done(u64),
    /// A sentence.
    Note(&'a str),
}

/// One collection of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Its name.
    pub name: String,
    /// Numbers a vector that its records are to have.
    pub dimension: usize,
    /// Records of that dimension.
    pub records: u64,
    /// Records of other dimensions: Chroma refused them the first time.
    pub others: u64,
    /// Vectors that Chroma has now; `None`: there is no such collection.
    pub held: Option<u64>,
}

/// What became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Records upserted, by collection.
    pub upserted: BTreeMap<String, u64>,
    /// Records that were upserted again, since newer ones had come in between.
    pub renewed: u64,
    /// Records that Chroma refused, with the last reason.
    pub refused: u64,
    /// Why.
    pub reason: Option<String>,
    /// Records of another dimension than their collection.
    pub others: u64,
    /// What is not known to be complete, in a sentence.
    pub incomplete: Option<String>,
}

struct Rebuild<'a> {
    config: &'a Config,
    options: &'a Options,
    redis: Redis,
    archive: Archive,
    client: Client,
    tell: &'a mut dyn FnMut(Told<'_>),
}

/// Says what a rebuild would do; changes nothing.
///
/// # Errors
/// A store is away or refuses, or nothing was ever archived; the message says what would do.
pub async fn plan(config: &Config, options: &Options) -> anyhow::Result<Vec<Planned>> {
    Rebuild::open(config, options, &mut |_| ()).await?.plan().await
}

/// Rebuilds.
///
/// # Errors
/// A store is away or refuses, or nothing was ever archived; the message says what would do. Running it again is safe.
pub async fn run(config: &Config, options: &Options, tell: &mut dyn FnMut(Told<'_>)) -> anyhow::Result<Outcome> {
    Rebuild::open(config, options, tell).await?.run().await
}

impl<'a> Rebuild<'a> {
    async fn open(config: &'a Config, options: &'a Options, tell: &'a mut dyn FnMut(Told<'_>)) -> anyhow::Result<Self> {
        let Some(archive) = Archive::open(&config.database).await? else {
            bail!("an erasure is under way, and a rebuild beside it could put back what it removes: try again when it is done");
        };
        let (redis, client) = (Redis::new(&config.redis)?, Client::new(&config.chroma)?);
        client.heartbeat().await?;
        Ok(Self { config, options, redis, archive, client, tell })
    }

    async fn survey(&self) -> anyhow::Result<Vec<ArchivedCollection>> {
        let from = LogPlace::at_ms(self.options.since_ms);
        match self.archive.survey(from, self.options.collection.as_deref()).await {
            Err(DatabaseError::Schema(_)) => bail!(
                "there is no table embedding_log: run `aegis-ingest migrate`, and let workers serve the lane archive \
                 (AEGIS_LANES=interactions,sessions,embeddings,archive); what came before is archived as far as it still stands in the streams"
            ),
            found => Ok(found?),
        }
    }

    async fn plan(&self) -> anyhow::Result<Vec<Planned>> {
        let mut planned: Vec<Planned> = Vec::new();
        for found in self.survey().await? {
            match planned.last_mut().filter(|last| last.name == found.name) {
                Some(last) if last.dimension == found.dimension => last.records += found.records,
                Some(last) => last.others += found.records,
                // The most frequent dimension comes first.
                None => planned.push(Planned {
                    name: found.name,
                    dimension: found.dimension,
                    records: found.records,
                    others: 0,
                    held: None,
                }),
            }
        }
        for one in &mut planned {
            let Some(collection) = self.client.collection(&one.name).await? else { continue };
            // A ruined one cannot always be counted.
            one.held = Some(self.client.count(collection.id).await.unwrap_or_default());
            if let Some(dimension) = collection.dimension.filter(|held| !self.options.replace && *held != one.dimension) {
                let all = one.records + one.others;
                let fitting = self.survey().await?.into_iter().find(|it| it.name == one.name && it.dimension == dimension);
                one.dimension = dimension;
                one.records = fitting.map_or(0, |it| it.records);
                one.others = all - one.records;
            }
        }
        if planned.is_empty() {
            bail!("{}", self.nothing().await?);
        }
        Ok(planned)
    }

    /// Why there is nothing to rebuild from.
    async fn nothing(&self) -> anyhow::Result<String> {
        let turn_on = "let workers serve the lane archive (AEGIS_LANES=interactions,sessions,embeddings,archive)";
        let narrow = match &self.options.collection {
            Some(name) => format!(" of collection {name}"),
            None if self.options.since_ms > 0 => " since then".to_owned(),
            None => String::new(),
        };
        let served = self.tails().await?.iter().any(|(_, tail)| tail.group);
        Ok(if served {
            format!("embedding_log holds no vector{narrow}: nothing to rebuild from")
        } else {
            format!(
                "embedding_log holds no vector{narrow}, and nobody archives any: {turn_on}; what still stands in the streams is archived then"
            )
        })
    }

    async fn tails(&self) -> anyhow::Result<Vec<(String, inspect::Tail)>> {
        let streams = self.config.streams.of(Lane::Archive);
        let mut tails = Vec::new();
        for key in streams.keys(Lane::Archive) {
            let tail = inspect::tail(&self.redis, &streams, &key).await?;
            tails.push((key, tail));
        }
        Ok(tails)
    }

    /// Waits until the archive lane has settled everything up to these ends. Returns what is missing, in a sentence, when it
    /// does not come in time.
    async fn archived(&mut self, tails: &[(String, inspect::Tail)]) -> anyhow::Result<Option<String>> {
        let streams = self.config.streams.of(Lane::Archive);
        let began = Instant::now();
        let mut told = false;
        for (key, tail) in tails {
            if tail.last == EntryId::default() {
                continue;
            }
            while !inspect::is_settled(&self.redis, &streams, key, tail.last).await? {
                if !tail.group {
                    return Ok(Some(format!(
                        "{key} has no group {}: nobody archives what is written to it (AEGIS_LANES=…,archive)",
                        streams.group
                    )));
                }
                if began.elapsed() >= self.options.patience {
                    return Ok(Some(format!(
                        "group {} of {key} had not settled everything that stood there after {:?}: does a worker serve the lane archive?",
                        streams.group, self.options.patience
                    )));
                }
                if !std::mem::replace(&mut told, true) {
                    (self.tell)(Told::Note("waiting until the archive lane has written all that stands in the streams"));
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        Ok(None)
    }

    async fn run(mut self) -> anyhow::Result<Outcome> {
        let mut outcome = Outcome::default();
        if self.options.replace {
            for one in self.plan().await? {
                let deleted = self.client.delete_collection(&one.name).await?;
                if deleted {
                    (self.tell)(Told::Note(&format!("deleted collection {}", one.name)));
                }
            }
        }
        // From here on whatever is not in the log by these ends is upserted by the workers into the collections as they are now.
        let mut tails = self.tails().await?;
        outcome.incomplete = self.archived(&tails).await?;
        let planned = self.plan().await?;
        let dimensions: HashMap<_, _> = planned.iter().map(|one| (one.name.clone(), one.dimension)).collect();
        (self.tell)(Told::Total(planned.iter().map(|one| one.records + one.others).sum()));
        let vectors = Vectors::new(self.client.clone(), &self.config.chroma, self.config.batch.vectors_max);
        let mut writing = Writing { vectors, dimensions, seen: Seen::default(), outcome };
        self.pass(LogPlace::at_ms(self.options.since_ms), end(&tails), None, &mut writing).await?;

        for _ in 1..PASSES_MAX {
            let newer = self.tails().await?;
            if newer.iter().zip(&tails).all(|((_, new), (_, old))| new.last == old.last) {
                return Ok(writing.outcome);
            }
            if let Some(missing) = self.archived(&newer).await? {
                writing.outcome.incomplete.get_or_insert(missing);
            }
            let before = std::mem::take(&mut writing.seen);
            let from = LogPlace::behind(begin(&tails));
            if self.pass(from, end(&newer), Some(before), &mut writing).await? == 0 {
                return Ok(writing.outcome);
            }
            tails = newer;
        }
        writing.outcome.incomplete.get_or_insert_with(|| {
            "the same ids are upserted again and again: the last of them may have been set back by a moment".to_owned()
        });
        Ok(writing.outcome)
    }

    /// Upserts the records of the log in their order, or those of them whose id was seen. Returns how many.
    async fn pass(&mut self, from: LogPlace, until: EntryId, only: Option<Seen>, writing: &mut Writing) -> anyhow::Result<u64> {
        let (mut after, mut bytes, mut upserted) = (from, RECORD_BYTES_FIRST, 0);
        loop {
            let count = (PAGE_BYTES / bytes).clamp(1, self.config.batch.vectors_max);
            let page = self.archive.page(after, until, self.options.collection.as_deref(), count).await?;
            let Some(last) = page.last() else { return Ok(upserted) };
            after = last.place;
            bytes = page.iter().map(Record::bytes).sum::<usize>() / page.len() + 1;
            let read = page.len() as u64;
            upserted += self.upsert(&page, only.as_ref(), writing).await?;
            if only.is_none() {
                (self.tell)(Told::Done(read));
            }
        }
    }

    async fn upsert(&mut self, page: &[Record], only: Option<&Seen>, writing: &mut Writing) -> anyhow::Result<u64> {
        let mut rows = chroma::Rows::default();
        let mut sent: BTreeMap<&str, u64> = BTreeMap::new();
        for record in page {
            if only.is_some_and(|seen| !seen.has(&record.collection, &record.id)) {
                continue;
            }
            // A collection that came up after the survey has its first record's dimension, as it had the first time.
            let dimension = *writing.dimensions.entry(record.collection.clone()).or_insert(record.embedding.len() / 4);
            if record.embedding.len() / 4 != dimension {
                writing.outcome.others += u64::from(only.is_none());
                continue;
            }
            rows.push(&record.event(), Place { entry: rows.len() as u32, index: 0 });
            writing.seen.add(&record.collection, &record.id);
            *sent.entry(&record.collection).or_default() += 1;
        }
        let count = rows.len() as u64;
        let (began, mut pauses) = (Instant::now(), Pauses::new());
        let written = loop {
            match writing.vectors.write(&mut rows).await {
                Ok(written) => break written,
                Err(WriteError::Bug(error)) => bail!("{error}"),
                Err(WriteError::Away(error)) if began.elapsed() >= self.options.patience => {
                    return Err(anyhow::anyhow!(error))
                        .context("stopped on the way; the same command begins anew and does no harm");
                }
                Err(WriteError::Away(error)) => {
                    (self.tell)(Told::Note(&format!("waiting: {error}")));
                    tokio::time::sleep(pauses.next(rand::random())).await;
                }
            }
        };
        writing.outcome.refused += written.rejected.len() as u64;
        if let Some((_, fault)) = written.rejected.into_iter().next_back() {
            writing.outcome.reason = Some(fault.reason);
        }
        if only.is_some() {
            writing.outcome.renewed += count;
        } else {
            for (name, count) in sent {
                *writing.outcome.upserted.entry(name.to_owned()).or_default() += count;
            }
        }
        Ok(count)
    }
}

/// What a pass writes with, and what it remembers.
struct Writing {
    vectors: Vectors,
    dimensions: HashMap<String, usize>,
    seen: Seen,
    outcome: Outcome,
}

/// The furthest end.
fn end(tails: &[(String, inspect::Tail)]) -> EntryId {
    tails.iter().map(|(_, tail)| tail.last).max().unwrap_or_default()
}

/// What every new entry stands behind. A stream that nobody writes to has an old end, behind which nothing can come that old.
fn begin(tails: &[(String, inspect::Tail)]) -> EntryId {
    let first = tails.iter().map(|(_, tail)| tail.last).min().unwrap_or_default();
    first.max(EntryId { ms: end(tails).ms.saturating_sub(CLOCKS_APART_MS), seq: 0 }.min(end(tails)))
}

impl Record {
    fn bytes(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        self.id.len() + self.embedding.len() + text(&self.document) + text(&self.metadata)
    }

    fn event(&self) -> Embedding<'_> {
        Embedding {
            head: Head { event_id: Uuid::nil(), occurred_at_us: 0, time_given: false },
            id: Some(&self.id),
            embedding: Vector((&self.embedding).into()),
            document: self.document.as_deref(),
            session_id: None,
            user_id: None,
            metadata: self.metadata.as_ref().map_or(b"{}".as_slice(), String::as_bytes),
            collection: Some(&self.collection),
        }
    }
}

/// Ids that were written, as a Bloom filter: to take one for written that was not costs an upsert too many, and nothing else.
#[derive(Default)]
struct Seen(Vec<u64>);

impl Seen {
    /// 16 MiB: ten million ids with one mistake in a hundred.
    const BITS: u64 = 1 << 27;
    /// Bits an id.
    const HASHES: u64 = 4;

    fn bits(collection: &str, id: &str) -> impl Iterator<Item = (usize, u64)> {
        let mut hasher = DefaultHasher::new();
        (collection, id).hash(&mut hasher);
        let hash = hasher.finish();
        // Two halves make as many hashes as are needed (Kirsch and Mitzenmacher, "Less Hashing, Same Performance").
        let (first, second) = (hash & 0xffff_ffff, hash >> 32 | 1);
        (0..Self::HASHES).map(move |n| {
            let bit = first.wrapping_add(n.wrapping_mul(second)) % Self::BITS;
            ((bit / 64) as usize, 1 << (bit % 64))
        })
    }

    fn add(&mut self, collection: &str, id: &str) {
        self.0.resize((Self::BITS / 64) as usize, 0);
        for (word, bit) in Self::bits(collection, id) {
            self.0[word] |= bit;
        }
    }

    fn has(&self, collection: &str, id: &str) -> bool {
        !self.0.is_empty() && Self::bits(collection, id).all(|(word, bit)| self.0[word] & bit != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_is_known_and_hardly_anything_else() {
        let mut seen = Seen::default();
        assert!(!seen.has("c", "1"));
        for n in 0..10_000 {
            seen.add("c", &n.to_string());
        }
        assert!((0..10_000).all(|n| seen.has("c", &n.to_string())));
        let mistaken = (0..10_000).filter(|n| seen.has("d", &n.to_string())).count();
        assert!(mistaken < 100, "{mistaken}");
    }

    #[test]
    fn a_stream_that_nobody_writes_to_does_not_draw_out_the_next_pass() {
        let tail = |ms| (String::new(), inspect::Tail { last: EntryId { ms, seq: 7 }, group: true });
        let tails = [tail(50), tail(100_000_000)];
        assert_eq!((begin(&tails).ms, end(&tails).ms), (100_000_000 - CLOCKS_APART_MS, 100_000_000));
        let one = [tail(100_000_000)];
        assert_eq!(begin(&one), end(&one));
    }
}
