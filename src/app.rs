//! The composition root: the only place where concrete parts meet.

pub mod erase;
pub mod rebuild;
mod retention;
mod session_store;
mod trimming;
mod watch;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use self::session_store::SessionStore;
use crate::chroma::{Client, Vectors};
use crate::config::{Config, Lane as LaneName};
use crate::http;
use crate::lane::{Bug, Lane, LaneSettings};
use crate::lifecycle::{self, Ending, Fatal, Leaving, Signals, Tasks};
use crate::redis::inspect::Losses;
use crate::redis::sessions::SessionHashes;
use crate::redis::{GroupReader, InHand, ReaderSettings, Redis, Room, Settler, SettlerSettings};
use crate::seam::{Answer, Destination, Pauses};
use crate::telemetry::health::{Component, Health, Outage};
use crate::telemetry::metric::{LaneMetrics, Recorder, UPKEEP_PERIOD};
use crate::timescale::{Database, DatabaseError, EmbeddingLog, Interactions, SessionTables, schema};

/// How much wider the window of `occurred_at` is in a lane that leaves judging to another: more than the two ever lie apart, and a
/// month of chunks at the most for what a broken clock wrote.
const WINDOW_MARGIN: Duration = Duration::from_hours(30 * 24);

/// Unix microseconds of the system's clock.
fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_micros() as i64)
}

/// What the parts of one worker share.
struct Parts {
    config: Config,
    redis: Redis,
    database: Database,
    chroma: Client,
    recorder: Recorder,
    health: Health,
    leaving: Leaving,
    /// Cancelled once the schema is there.
    schema_ready: CancellationToken,
    /// How long the database keeps rows, if not for ever; known once the schema is there.
    kept: OnceLock<Duration>,
}

/// Runs the worker until a signal, or until something ends that must not.
///
/// # Errors
/// What has to be changed before it can start at all, in words.
pub async fn run(config: Config) -> anyhow::Result<Ending> {
    let signals = Signals::listen()?;
    let listener = TcpListener::bind(config.http.addr).await.map_err(|error| {
        anyhow::anyhow!(
            "AEGIS_HTTP_ADDR is {}, and nothing can listen there ({error}): choose an address and port that are free",
            config.http.addr
        )
    })?;
    for unknown in &config.unknown {
        tracing::warn!("{unknown}");
    }
    let partitions = usize::from(config.streams.partitions);
    // One connection a writer of a lane, however many streams share them, and one for probes.
    let connections = config.lanes.iter().filter(|lane| lane.needs_database()).count() * config.batch.writers_max + 1;
    lifecycle::allow_open_files(config.lanes.len() * partitions + OPEN_FILES)?;
    let recorder = Recorder::new();
    let parts = Arc::new(Parts {
        redis: Redis::new(&config.redis)?,
        database: Database::new(&config.database, connections)?,
        chroma: Client::new(&config.chroma)?,
        health: Health::new(&recorder, &config.lanes),
        recorder,
        leaving: Leaving::default(),
        schema_ready: CancellationToken::new(),
        kept: OnceLock::new(),
        config,
    });
    let config = &parts.config;
    let keys = http::Keys::new(config.http.api_keys.clone());
    let state = http::State {
        health: parts.health.clone(),
        recorder: parts.recorder.clone(),
        keys: keys.clone(),
        limits: http::Limits::default(),
    };
    // The endpoints outlive the lanes: an orchestrator watches the worker leave.
    let endpoints_stop = CancellationToken::new();
    let endpoints = tokio::spawn(http::serve(listener, state, endpoints_stop.clone()));

    let mut tasks = Tasks::default();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        lanes = ?config.lanes.iter().map(|lane| lane.name()).collect::<Vec<_>>(),
        partitions,
        consumer = config.streams.consumer,
        group = config.streams.group,
        "starting"
    );
    let schema = Arc::clone(&parts);
    if config.lanes.iter().any(|lane| lane.needs_database()) {
        tasks.spawn("schema", async move { ready_schema(&schema).await });
        retention::spawn(&parts, &mut tasks);
    }
    watch::spawn(&parts, &mut tasks);
    let upkeep = Arc::clone(&parts);
    tasks.spawn("metrics", async move {
        let mut tick = tokio::time::interval(UPKEEP_PERIOD);
        while upkeep.leaving.stop.run_until_cancelled(tick.tick()).await.is_some() {
            upkeep.recorder.upkeep();
        }
        Ok(())
    });
    for lane in &config.lanes {
        let metrics = Arc::new(parts.recorder.lane(*lane));
        let shared = Arc::new(LaneShared::new(config));
        let losses: Vec<Arc<Losses>> = (0..partitions).map(|_| Arc::default()).collect();
        watch::spawn_streams(&parts, *lane, &metrics, &losses, &mut tasks);
        trimming::spawn(&parts, *lane, &metrics, &mut tasks);
        for (partition, losses) in (0..).zip(losses) {
            let (metrics, shared) = (Arc::clone(&metrics), Arc::clone(&shared));
            let lane = LanePart { parts: Arc::clone(&parts), lane: *lane, partition, metrics, losses, shared };
            tasks.spawn(lane.lane.name(), lane.run());
        }
    }
    let ending = tasks.run(&parts.leaving, config.delivery.drain_timeout, signals, || reload_keys(&keys)).await;
    endpoints_stop.cancel();
    let _ = endpoints.await;
    tracing::info!(status = ending.status(), "ended");
    Ok(ending)
}

/// Rereads the API keys; a bad new setting leaves the old ones.
fn reload_keys(keys: &http::Keys) {
    match crate::config::Given::from_environment().and_then(|given| Config::load(&given)) {
        Ok(config) => {
            keys.replace(config.http.api_keys);
            tracing::info!("the API keys are reread");
        }
        Err(error) => tracing::warn!(%error, "the API keys stay as they are"),
    }
}

/// Brings the schema up to date, or sees to it that it is there. Waits while the database is away; what waiting cannot mend
/// ends the program.
async fn ready_schema(parts: &Parts) -> Result<(), Fatal> {
    let config = &parts.config.database;
    let metrics = parts
        .recorder
        .lane(parts.config.lanes.iter().copied().find(|lane| lane.needs_database()).unwrap_or(LaneName::Interactions));
    let mut outage = Outage::new(&metrics, Component::Database);
    let mut pauses = Pauses::new();
    let ready = async {
        loop {
            let result = if config.migrate_on_start {
                migrate(config, &parts.config.lanes).await
            } else {
                find_schema(config, &parts.config.lanes).await
            };
            match result {
                Ok(found) => break Ok(found),
                Err(error @ (DatabaseError::Refused(_) | DatabaseError::Schema(_))) => {
                    break Err(Fatal::Unusable(error.to_string()));
                }
                Err(error) => match error.answer() {
                    Answer::Wait => {
                        outage.failed(&error.to_string());
                        tokio::time::sleep(pauses.next(rand::random())).await;
                    }
                    Answer::SetAside | Answer::Stop => break Err(Fatal::Unusable(error.to_string())),
                },
            }
        }
    };
    let Some(ready) = parts.leaving.stop.run_until_cancelled(ready).await else { return Ok(()) };
    let found = ready?;
    outage.recovered();
    if let Some(kept) = found.stored.and_then(|stored| stored.policies.retention) {
        let _ = parts.kept.set(kept);
    }
    parts.schema_ready.cancel();
    parts.leaving.stop.cancelled().await;
    Ok(())
}

async fn migrate(config: &crate::config::Database, lanes: &[LaneName]) -> Result<schema::Found, DatabaseError> {
    let migrated = schema::migrate(config).await?;
    tracing::info!(applied = ?migrated.applied, version = migrated.version, "the schema is up to date");
    for line in migrated.policies.iter().filter(|line| line.lacking) {
        tracing::warn!(about = line.about, "{}", line.state);
    }
    // A table that somebody dropped is not made again by migrations that were applied once.
    find_schema(config, lanes).await
}

async fn find_schema(config: &crate::config::Database, lanes: &[LaneName]) -> Result<schema::Found, DatabaseError> {
    let found = schema::inspect(config, lanes).await?;
    if found.missing.is_empty() {
        return Ok(found);
    }
    Err(DatabaseError::Schema(format!("missing tables: {}", found.missing.join(", "))))
}

/// Open files beside the readers' connections: pools, endpoints, logs, and some to spare.
const OPEN_FILES: usize = 256;
/// Batches of a lane that are held beside those being written: settling, gathering, being read.
const BATCHES_BESIDE: usize = 3;
/// Most entries a read, however many a batch may hold: Redis answers nobody else while it gathers them, 1 to 2 µs each.
const READ_ENTRIES_MAX: usize = 5_000;
/// Bytes that a read brings at least, when many streams share what a lane may hold.
const READ_BYTES_MIN: usize = 64 * 1024;

/// What the streams of one lane share, so that many partitions take no more of a store and of memory than one.
struct LaneShared {
    writers: OnceLock<Arc<Semaphore>>,
    room: Room,
}

impl LaneShared {
    fn new(config: &Config) -> Self {
        let room = (config.batch.writers_max + BATCHES_BESIDE).saturating_mul(config.batch.bytes_max);
        Self { writers: OnceLock::new(), room: Room::new(room) }
    }
}

/// One stream of one lane.
struct LanePart {
    parts: Arc<Parts>,
    lane: LaneName,
    partition: u16,
    metrics: Arc<LaneMetrics>,
    losses: Arc<Losses>,
    shared: Arc<LaneShared>,
}

impl LanePart {
    async fn run(self) -> Result<(), Fatal> {
        let Parts { config, redis, database, chroma, leaving, .. } = &*self.parts;
        if self.lane.needs_database() && leaving.stop.run_until_cancelled(self.parts.schema_ready.cancelled()).await.is_none() {
            return Ok(());
        }
        match self.lane {
            LaneName::Interactions => self.serve(Interactions::new(database.clone(), config.batch)).await,
            LaneName::Sessions => {
                let hashes = SessionHashes::new(redis.clone(), &config.streams.prefix, config.session_ttl);
                self.serve(SessionStore::new(SessionTables::new(database.clone()), hashes, config.batch)).await
            }
            LaneName::Archive => {
                let log = EmbeddingLog::new(database.clone(), &config.chroma.collection, config.batch);
                self.serve(log).await
            }
            LaneName::Embeddings => self.serve(Vectors::new(chroma.clone(), &config.chroma, config.batch.vectors_max)).await,
        }
    }

    async fn serve(&self, destination: impl Destination) -> Result<(), Fatal> {
        let Parts { config, redis, leaving, .. } = &*self.parts;
        let key = config.streams.key(self.lane, self.partition);
        let streams = config.streams.of(self.lane);
        let judged_elsewhere = self.lane.source() != self.lane;
        let mut events = config.events;
        if judged_elsewhere {
            // The other lane may look sooner or later: what it still takes, or takes by then, must not be missing here.
            events.age_max += WINDOW_MARGIN;
            events.skew_max += WINDOW_MARGIN;
        } else if let Some(kept) = self.parts.kept.get().filter(|_| self.lane.needs_database()) {
            events = retention::within(*kept, events);
        }
        let stream_outage = Outage::new(&self.metrics, Component::Redis);
        let in_hand = InHand::within(self.shared.room.clone());
        let settler = SettlerSettings {
            key: key.clone(),
            forward_key: config.streams.key(LaneName::Embeddings, self.partition),
            dead_max: config.delivery.dead_max,
            claim_idle: config.delivery.claim_idle,
        };
        let settler = Arc::new(Settler::new(redis.clone(), &streams, settler));
        let reader = ReaderSettings {
            key: key.clone(),
            judging_group: judged_elsewhere.then(|| config.streams.group.clone()),
            claim_idle: config.delivery.claim_idle,
            deliveries_max: config.delivery.deliveries_max,
            entry_bytes_max: config.events.entry_bytes_max,
            entries_max: destination.rows_max().min(READ_ENTRIES_MAX),
            retain: config.delivery.retain,
            // A reply that nobody reads yet takes memory of Redis.
            bytes_max: (config.batch.bytes_max / usize::from(config.streams.partitions))
                .max(READ_BYTES_MIN.min(config.batch.bytes_max)),
        };
        let source = GroupReader::new(
            redis.clone(),
            &streams,
            reader,
            in_hand,
            Arc::clone(&self.losses),
            Arc::clone(&self.metrics),
            stream_outage.clone(),
        );
        let writers = self.shared.writers.get_or_init(|| Arc::new(Semaphore::new(destination.writers_max())));
        let lane = Lane {
            source,
            destination: Arc::new(destination),
            settle: Arc::clone(&settler),
            settings: LaneSettings {
                stream: key.clone(),
                batch: config.batch,
                events,
                judged_elsewhere,
                writers: Arc::clone(writers),
                metrics: Arc::clone(&self.metrics),
                destination_outage: Outage::new(&self.metrics, Component::store_of(self.lane)),
                stream_outage,
                now_us,
            },
        };
        let keeper = watch::keep(&settler, &self.metrics, config.delivery.claim_idle);
        let served = tokio::select! {
            served = lane.run(leaving.stop.clone(), leaving.abort.clone()) => served,
            never = keeper => match never {},
        };
        served.map_err(|Bug(error)| Fatal::Bug(error))?;
        // What was not settled in time is left for others at once; whether Redis hears it decides only how soon they take it.
        match tokio::time::timeout(Duration::from_secs(3), settler.leave()).await {
            Ok(Ok(0)) => {}
            Ok(Ok(entries)) => tracing::warn!(stream = key, entries, "left entries for other workers"),
            Ok(Err(error)) => {
                tracing::warn!(stream = key, %error, "left without a word; others take over after AEGIS_CLAIM_IDLE");
            }
            Err(_) => tracing::warn!(stream = key, "left without a word; others take over after AEGIS_CLAIM_IDLE"),
        }
        Ok(())
    }
}
