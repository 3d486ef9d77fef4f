//! What no worker can beat: reading and acknowledging alone, and PostgreSQL copying from its own file.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use aegis_ingest::config::{Config, Given, Lane};
use aegis_ingest::redis::{GroupReader, InHand, ReaderSettings, Redis, Settler, SettlerSettings};
use aegis_ingest::seam::{Settle as _, Settlement, Source as _};
use aegis_ingest::telemetry::health::Outage;
use aegis_ingest::telemetry::metric::{Component, Recorder};
use aegis_ingest::timescale::frame::INTERACTION_COLUMNS;
use anyhow::{Result, ensure};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::process::Used;
use super::stage::{Drained, Stage};

/// First argument of the process that only reads and acknowledges.
pub const READER: &str = "--only-read-and-acknowledge";
/// Acknowledgements under way at the same time: as many batches as the worker settles beside those it writes.
const SETTLING: usize = 2;

/// Reads and acknowledges with the worker's own client and default settings, for ever: no decoding, no database.
pub fn read_and_acknowledge(redis_url: &str, stream: &str, group: &str) -> Result<()> {
    let config = Config::load(&Given::from_pairs([("AEGIS_REDIS_URL", redis_url), ("AEGIS_GROUP", group)]))?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let redis = Redis::new(&config.redis)?;
        let metrics = Arc::new(Recorder::new().lane(Lane::Interactions));
        let outage = Outage::new(&metrics, Component::Redis);
        let in_hand = InHand::default();
        let settler = SettlerSettings {
            key: stream.to_owned(),
            forward_key: config.streams.key(Lane::Embeddings, 0),
            dead_max: config.delivery.dead_max,
            claim_idle: config.delivery.claim_idle,
        };
        let settler = Arc::new(Settler::new(redis.clone(), &config.streams, settler));
        let reader = ReaderSettings {
            key: stream.to_owned(),
            judging_group: None,
            claim_idle: config.delivery.claim_idle,
            deliveries_max: config.delivery.deliveries_max,
            entry_bytes_max: config.events.entry_bytes_max,
            entries_max: config.batch.rows_max,
            bytes_max: config.batch.bytes_max,
            retain: None,
        };
        let mut source = GroupReader::new(redis, &config.streams, reader, in_hand, Arc::default(), metrics, outage);
        let (chunks, mut incoming) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Ok(Some(delivered)) = source.next(&CancellationToken::new()).await {
                if chunks.send(delivered).await.is_err() {
                    break;
                }
            }
        });
        let room = Arc::new(tokio::sync::Semaphore::new(SETTLING));
        let (mut acks, mut held) = (Vec::new(), Vec::new());
        loop {
            tokio::select! {
                biased;
                // 1. What has come gathers, up to a batch.
                chunk = incoming.recv(), if acks.len() < config.batch.rows_max => {
                    let Some(delivered) = chunk else { break };
                    acks.extend(delivered.entries.iter().map(|entry| entry.id));
                    held.push((delivered.entries, delivered.hold));
                }
                // 2. Nothing more is there, or a batch is full: it is acknowledged as soon as there is room.
                Ok(permit) = Arc::clone(&room).acquire_owned(), if !acks.is_empty() => {
                    let (acks, held) = (std::mem::take(&mut acks), std::mem::take(&mut held));
                    let settler = Arc::clone(&settler);
                    tokio::spawn(async move {
                        let mut settlement = Settlement { acks, ..Settlement::default() };
                        if let Err(error) = settler.settle(&mut settlement).await {
                            eprintln!("acknowledging: {error}");
                        }
                        drop((held, permit));
                    });
                }
            }
        }
        Ok(())
    })
}

/// Reads and acknowledges the whole stream in a process of its own.
pub fn drain(stage: &Stage, stream: &str) -> Result<Drained> {
    const GROUP: &str = "floor";
    stage.unread(stream, GROUP)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args([READER, &stage.redis_url(), stream, GROUP]).env_clear().stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.spawn()?;
    let drained = stage.watch(stream, GROUP, &[("reader", child.id())], || ());
    let _ = child.kill();
    let _ = child.wait();
    stage.unread(stream, GROUP)?;
    drained
}

/// Name of the file with the rows, in PostgreSQL's own folder.
const FILE: &str = "rows.copy";

/// Writes what stands in the table to a file, in the order of its key.
pub fn write_file(stage: &Stage) -> Result<()> {
    write(stage, &format!("SELECT {INTERACTION_COLUMNS} FROM interaction_logs ORDER BY occurred_at, event_id"), FILE)
}

/// Writes what a query of the worker's database finds to a file in PostgreSQL's own folder.
pub fn write(stage: &Stage, query: &str, file: &str) -> Result<()> {
    let path = stage.postgres.own_path(file);
    stage.sql("aegis", &[&format!("COPY ({query}) TO '{path}' (FORMAT binary)")])
}

/// One backend copies the interactions' file into the empty table.
pub fn copy_file(stage: &Stage, database: &str, events: u64) -> Result<Drained> {
    stage.empty_tables(database)?;
    copy(stage, database, &interactions(), FILE, events)
}

/// The table of interactions with the columns that the file has.
fn interactions() -> String {
    format!("interaction_logs ({INTERACTION_COLUMNS})")
}

/// The statement that copies a file into a table.
fn copying(stage: &Stage, into: &str, file: &str) -> String {
    format!("COPY {into} FROM '{}' (FORMAT binary)", stage.postgres.own_path(file))
}

/// Calls `meanwhile` while one backend copies the interactions' file again and again: a core that has its hands full with something
/// that waits for nobody.
pub fn beside_copies<T>(stage: &Stage, meanwhile: impl FnOnce() -> Result<T>) -> Result<T> {
    stage.empty_tables("aegis")?;
    let stop = CancellationToken::new();
    let copies = stage.runtime.spawn({
        let (stop, url) = (stop.clone(), stage.own_database_url("aegis"));
        let copy = copying(stage, &interactions(), FILE);
        async move {
            let client = super::stage::connect(&url).await?;
            while !stop.is_cancelled() {
                client.batch_execute(&copy).await?;
                client.batch_execute("TRUNCATE interaction_logs").await?;
            }
            anyhow::Ok(())
        }
    });
    let found = meanwhile();
    stop.cancel();
    stage.runtime.block_on(copies)??;
    found
}

/// One backend for each of these databases copies the interactions' file into its empty table, all at once; seconds until the last
/// is done.
pub fn copies_at_once(stage: &Stage, databases: &[&str]) -> Result<f64> {
    for database in databases {
        stage.empty_tables(database)?;
    }
    let copy = copying(stage, &interactions(), FILE);
    stage.runtime.block_on(async {
        let mut clients = Vec::new();
        for database in databases {
            let client = super::stage::connect(&stage.own_database_url(database)).await?;
            client.batch_execute("SELECT FROM interaction_logs LIMIT 1").await?;
            clients.push(client);
        }
        let began = Instant::now();
        futures_util::future::try_join_all(clients.iter().map(|client| client.batch_execute(&copy))).await?;
        Ok(began.elapsed().as_secs_f64())
    })
}

/// One backend copies a file into an empty table, given with its columns; so many rows must stand there then.
pub fn copy(stage: &Stage, database: &str, into: &str, file: &str, rows: u64) -> Result<Drained> {
    let copying = copying(stage, into, file);
    let table = into.split(' ').next().unwrap_or(into);
    let watched = stage.watched(&[]);
    let (seconds, used): (f64, Used) = stage.runtime.block_on(async {
        let client = super::stage::connect(&stage.own_database_url(database)).await?;
        // Like the worker's, the connection knows the table before the clock runs.
        client.batch_execute(&format!("SELECT FROM {table} LIMIT 1")).await?;
        let (before, began) = (watched.snapshot(), Instant::now());
        client.batch_execute(&copying).await?;
        anyhow::Ok((began.elapsed().as_secs_f64(), before.until(&watched.snapshot())))
    })?;
    let found = stage.number(database, &format!("SELECT count(*) FROM {table}"))?;
    ensure!(found.unsigned_abs() == rows, "COPY wrote {found} rows of {rows}");
    Ok(Drained { seconds, used })
}
