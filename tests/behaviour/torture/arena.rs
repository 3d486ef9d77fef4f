//! Servers of its own behind proxies, the workers, and how each fault is done to them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use rustix::process::Signal;
use tokio::sync::Mutex;
use tokio::task::{JoinSet, block_in_place};

use super::event::{Lane, POISON_INTENT, POISON_SEQ};
use super::producer::Ledger;
use super::say;
use super::schedule::{Fault, PARTITIONS, Schedule, Server};
use super::weather::Weather;
use super::workers::Workers;
use crate::support::servers::{OwnChroma, OwnPostgres, OwnRedis};
use crate::support::space::{Stores, connect_database};
use crate::support::{Space, stores};

/// Between two words about how it goes.
const PROGRESS: Duration = Duration::from_secs(10);
/// How long a trap for a byte waits for that byte.
const TRAP_MAX: Duration = Duration::from_secs(6);

/// Everything that takes part.
pub struct Arena {
    redis: Mutex<OwnRedis>,
    postgres: Mutex<OwnPostgres>,
    chroma: Mutex<OwnChroma>,
    weather: [Weather; 3],
    /// One trap at a time for each proxy.
    traps: [Mutex<()>; 3],
    pub workers: Workers,
    /// What producers and workers see: the proxies.
    pub space: Space,
    /// The servers themselves, for the oracle.
    pub direct: Space,
}

impl Arena {
    pub async fn open() -> Arc<Self> {
        let (redis, postgres, chroma) = block_in_place(|| {
            // What Redis said yes to is on the disk: a kill loses nothing that the ledger counts.
            let redis = OwnRedis::with(&["--appendonly", "yes", "--appendfsync", "always"]);
            (redis, OwnPostgres::new(), OwnChroma::new())
        });
        let weather =
            [Weather::before(redis.port()).await, Weather::before(postgres.port()).await, Weather::before(chroma.port()).await];
        let direct =
            Stores { redis_url: Some(redis.url()), database_url: Some(postgres.url("aegis")), chroma_url: Some(chroma.url()) };
        // In l2 space Chroma gives back what it got to the last bit.
        let direct = Space { distance: aegis_ingest::config::Space::L2, ..Space::with("torture", direct).await };
        let [to_redis, to_postgres, to_chroma] = [0, 1, 2].map(|i: usize| weather[i].port());
        let space = Space {
            redis_url: format!("redis://127.0.0.1:{to_redis}"),
            database_url: format!("postgres://aegis:aegis@127.0.0.1:{to_postgres}/aegis"),
            chroma_url: format!("http://127.0.0.1:{to_chroma}"),
            ..direct.clone()
        };
        let database = direct.administrator().await;
        let checks = format!(
            "ALTER TABLE interaction_logs ADD CONSTRAINT poison CHECK (intent <> '{POISON_INTENT}');
             ALTER TABLE session_events ADD CONSTRAINT poison CHECK (seq <> {POISON_SEQ})"
        );
        database.batch_execute(&checks).await.expect("the CHECK constraints");
        // The collection knows its dimension before the first vector of another one comes.
        let client = direct.chroma();
        let collection = client.collection_or_create(&direct.collection).await.expect("a collection");
        let first = serde_json::json!({"ids": ["first"], "embeddings": [vec![0.5_f32; super::event::DIMENSION]]});
        client.upsert(collection.id, first.to_string().into_bytes()).await.expect("the first vector");
        let workers = Workers::start(&space).await;
        Arc::new(Self {
            redis: Mutex::new(redis),
            postgres: Mutex::new(postgres),
            chroma: Mutex::new(chroma),
            weather,
            traps: Default::default(),
            workers,
            space,
            direct,
        })
    }

    fn weather(&self, server: Server) -> &Weather {
        &self.weather[server as usize]
    }

    /// Does the schedule, each fault at its time, and returns how many of each kind took place.
    pub async fn endure(
        self: &Arc<Self>,
        schedule: Schedule,
        length: Duration,
        ledger: &Ledger,
    ) -> BTreeMap<&'static str, usize> {
        let began = Instant::now();
        let mut under_way = JoinSet::new();
        let mut survived = BTreeMap::new();
        let done = Arc::new(AtomicUsize::new(0));
        let mut schedule = schedule.into_iter().peekable();
        let mut watch = tokio::time::interval(Duration::from_millis(300));
        let mut progress = tokio::time::interval(PROGRESS);
        progress.tick().await;
        while began.elapsed() < length || !under_way.is_empty() {
            let next = schedule.peek().map(|(at, _)| began + *at);
            tokio::select! {
                biased;
                Some(ended) = under_way.join_next() => {
                    if let (kind, true) = ended.expect("a fault does not panic") {
                        *survived.entry(kind).or_insert(0) += 1;
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                }
                () = sleep_until(next), if next.is_some() => {
                    let Some((_, fault)) = schedule.next() else { continue };
                    let arena = Arc::clone(self);
                    under_way.spawn(async move { (fault.kind(), arena.perform(fault).await) });
                }
                _ = watch.tick() => self.workers.watch().await,
                _ = progress.tick() => {
                    let minutes = began.elapsed().as_secs();
                    say(&format!(
                        "  {} min {:02} s: {} events issued, {} faults survived, {}",
                        minutes / 60, minutes % 60, ledger.count(), done.load(Ordering::Relaxed), self.backlog().await
                    ));
                }
            }
        }
        for weather in &self.weather {
            weather.clear();
        }
        survived
    }

    async fn backlog(&self) -> String {
        let asked = async {
            let client = redis::Client::open(self.direct.redis_url.as_str()).ok()?;
            let mut redis = client.get_multiplexed_async_connection().await.ok()?;
            let mut words = Vec::new();
            for lane in Lane::ALL {
                let (mut lag, mut pending, mut standing) = (0, 0, 0);
                for stream in streams(&self.direct, lane) {
                    let (unread, held) = stores::lag_and_pending(&mut redis, &stream, "aegis").await?;
                    lag += unread;
                    pending += held;
                    standing += redis::cmd("XLEN").arg(&stream).query_async::<u64>(&mut redis).await.ok()?;
                }
                words.push(format!("{} {lag}+{pending} of {standing}", lane.name()));
            }
            Some(format!("unread+pending of standing: {}", words.join(", ")))
        };
        let answer = tokio::time::timeout(Duration::from_secs(1), asked).await;
        answer.ok().flatten().unwrap_or_else(|| "Redis is away".to_owned())
    }

    /// Returns whether it took place.
    async fn perform(&self, fault: Fault) -> bool {
        match fault {
            Fault::WorkerKilled { worker, away } => self.workers.kill(worker, away).await,
            Fault::WorkerTerminated { worker, away } => self.workers.terminate(worker, away).await,
            Fault::WorkerFrozen { worker, time } => self.workers.freeze(worker, time).await,
            Fault::PostgresRestarted { away } => {
                let mut postgres = self.postgres.lock().await;
                block_in_place(|| postgres.stop(Signal::QUIT));
                tokio::time::sleep(away).await;
                block_in_place(|| postgres.start());
            }
            Fault::BackendTerminated => return self.terminate_a_copy().await,
            Fault::RedisKilled { away } => {
                let mut redis = self.redis.lock().await;
                block_in_place(|| redis.kill());
                tokio::time::sleep(away).await;
                block_in_place(|| redis.start());
            }
            Fault::ChromaRestarted { away } => {
                let mut chroma = self.chroma.lock().await;
                block_in_place(|| chroma.stop(Signal::TERM));
                tokio::time::sleep(away).await;
                block_in_place(|| chroma.start());
            }
            Fault::Cut { server, direction, after_bytes, cut } => {
                let _one = self.traps[server as usize].lock().await;
                let weather = self.weather(server);
                weather.set_trap(direction, after_bytes, cut);
                let began = Instant::now();
                while weather.is_set() && began.elapsed() < TRAP_MAX {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                return !weather.disarm();
            }
            Fault::AllCut { server } => self.weather(server).cut_all(),
            Fault::Delayed { server, delay, time } => {
                self.weather(server).delay(delay, time);
                tokio::time::sleep(time).await;
            }
        }
        true
    }

    /// Ends a backend that has a COPY under way; the way to it is slow meanwhile, so that one is under way for long.
    async fn terminate_a_copy(&self) -> bool {
        const HIT: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                           WHERE state = 'active' AND query LIKE 'COPY %' AND pid <> pg_backend_pid() LIMIT 1";
        let postgres = self.postgres.lock().await;
        let database = connect_database(&postgres.url("aegis")).await;
        self.weather(Server::Postgres).delay(Duration::from_millis(40), Duration::from_secs(5));
        let began = Instant::now();
        let mut hit = false;
        while !hit && began.elapsed() < Duration::from_secs(5) {
            hit = database.query(HIT, &[]).await.is_ok_and(|rows| rows.iter().any(|row| row.get(0)));
        }
        self.weather(Server::Postgres).delay(Duration::ZERO, Duration::ZERO);
        hit
    }

    /// Waits until everything is read and settled. Returns what is not.
    pub async fn calm(&self, within: Duration) -> Vec<String> {
        let mut redis = self.direct.redis().await;
        let began = Instant::now();
        loop {
            self.workers.watch().await;
            let mut left = Vec::new();
            for stream in all_streams(&self.direct) {
                let found = stores::lag_and_pending(&mut redis, &stream, "aegis").await;
                if found != Some((0, 0)) {
                    left.push((stream, found));
                }
            }
            if left.is_empty() {
                return self.emptied(within.saturating_sub(began.elapsed())).await;
            }
            if began.elapsed() > within {
                let mut offences = Vec::new();
                for (stream, found) in left {
                    offences.push(format!(
                        "{stream}: unread and pending are {found:?} {within:?} after the last fault: {}",
                        pending(&mut redis, &stream).await
                    ));
                }
                return offences;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// What is settled and old enough goes from the streams. Returns those that keep some of it.
    async fn emptied(&self, within: Duration) -> Vec<String> {
        let mut redis = self.direct.redis().await;
        let began = Instant::now();
        loop {
            let mut left = Vec::new();
            for stream in all_streams(&self.direct) {
                let standing = stores::length(&mut redis, &stream).await;
                if standing > 0 {
                    left.push(format!("{stream}: {standing} settled entries stand there {within:?} later"));
                }
            }
            if left.is_empty() || began.elapsed() > within {
                return left;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Ends the workers. Returns the highest memory of any, and what was wrong with them.
    pub async fn close(&self) -> (u64, Vec<String>) {
        self.workers.stop().await;
        let mut offences = self.workers.offences();
        let mut redis = self.direct.redis().await;
        for stream in all_streams(&self.direct) {
            let mut command = redis::cmd("XINFO");
            command.arg("CONSUMERS").arg(&stream).arg("aegis");
            let consumers: Vec<std::collections::HashMap<String, redis::Value>> =
                command.query_async(&mut redis).await.expect("XINFO CONSUMERS");
            let names =
                consumers.iter().map(|consumer| redis::from_redis_value::<String>(consumer["name"].clone()).unwrap_or_default());
            let stayed: Vec<_> = names.filter(|name| name.starts_with("worker-")).collect();
            if !stayed.is_empty() {
                offences.push(format!("{stream}: consumers that left in order are still there: {stayed:?}"));
            }
        }
        (self.workers.memory_max(), offences)
    }
}

/// The streams of a lane.
pub fn streams(space: &Space, lane: Lane) -> impl Iterator<Item = String> {
    (0..PARTITIONS).map(move |partition| space.partition(lane.name(), partition))
}

/// The streams of all lanes, interactions first: what they give rise to is in the embeddings' streams before they are settled.
fn all_streams(space: &Space) -> impl Iterator<Item = String> {
    Lane::ALL.into_iter().flat_map(move |lane| streams(space, lane))
}

async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at.into()).await;
    }
}

/// The first pending entries, in words.
async fn pending(redis: &mut MultiplexedConnection, stream: &str) -> String {
    let mut command = redis::cmd("XPENDING");
    command.arg(stream).arg("aegis").arg("-").arg("+").arg(5);
    let rows: Vec<(String, String, u64, u64)> = command.query_async(redis).await.unwrap_or_default();
    rows.iter()
        .map(|(id, consumer, idle, count)| format!("{id} of {consumer}, idle {idle} ms, delivered {count} times"))
        .collect::<Vec<_>>()
        .join("; ")
}
