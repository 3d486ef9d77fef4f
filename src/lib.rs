//! `aegis-ingest` copies what voice services push onto Redis Streams to where it is kept: interactions and session updates to
//! TimescaleDB, the state of sessions to a table and a Redis hash, vectors to Chroma, and if asked to `embedding_log`, from which a lost
//! collection is made again. Nothing lost, nothing twice.
//!
//! # The map
//!
//! ```text
//! cli ──> app ──> lane ──────────────> seam <── redis      stream, pending entries, dead letters, session hashes
//!          │      THE STORY:            ▲  ▲─── timescale   COPY frames, merge, schema
//!          │      read → decode         │  └─── chroma      batched upserts
//!          │      → write → settle      │
//!          ├──> lifecycle, http         └────── event       what producers write, judged: pure
//!          └──> telemetry, config
//! ```
//!
//! Read [`lane`] first: one function, [`lane::Lane::run`], is the program. [`seam`] holds the traits between it and the stores.
//! [`app`] is the only room that knows all parts; [`config`] the only one that reads the environment.
//!
//! # One event's walk, with the crash points between the steps
//!
//! A producer writes `XADD aegis:interactions * data <MessagePack>`.
//!
//! 1. **Read.** [`redis::GroupReader`] gets the entry by XREADGROUP; Redis notes it as pending for this consumer.
//!    *Crash:* it stays pending; after `AEGIS_CLAIM_IDLE` another worker takes it over (XAUTOCLAIM). *Reply lost:* this worker
//!    looks through its own pending entries when it connects again.
//! 2. **Decode.** [`event`] judges the entry as a whole, then every event key by key. A bad one becomes a dead letter, the
//!    others go on. Where the producer gave no `event_id`, it is derived from the stream, the entry id and the position: the
//!    same on every delivery.
//! 3. **Write.** [`timescale::Interactions`] copies the batch by binary COPY in the order of the unique key. Rows that exist
//!    already make COPY fail as a whole; it is then repeated into a temporary table, from which only new rows are inserted. A
//!    row that PostgreSQL refuses is found by halving and set aside. *Crash, or the answer to COMMIT lost:* the rows are
//!    there; the next delivery finds them and changes nothing.
//! 4. **Settle.** [`redis::Settler`] forwards inline vectors to the embeddings stream, writes dead letters and
//!    acknowledges them in one step, acknowledges the rest in bulk. *Crash before it:* the next delivery repeats steps 2 and 3
//!    without effect. *Reply lost:* acknowledging twice is acknowledging once.
//! 5. **Trim.** Once every group of the stream has settled the entry and it is older than `AEGIS_RETAIN`, one worker takes it
//!    away ([`redis::trim`]): found and removed in one script. *Crash, or the reply lost:* another worker goes on.
//!
//! # Invariants
//!
//! - An entry is acknowledged after each of its events is durable or set aside, never before.
//! - An outage is waited out, a bad event is set aside, a bug ends the program with a status: each edge has one error enum and
//!   one table without a wildcard for this ([`seam::Answer`]).
//! - Redis is the buffer. What a worker holds is bounded by rows, bytes and batches in flight, whatever is down.
//! - What people said is in no log line, no error and no metric.

pub mod app;
pub mod chroma;
pub mod cli;
pub mod config;
pub mod event;
pub mod http;
pub mod lane;
pub mod lifecycle;
pub mod redis;
pub mod seam;
pub mod telemetry;
pub mod timescale;
pub mod tls;
pub mod traffic;
