//! What every measurement stands on: the servers, connections to look at them, and a clean start for each run.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use redis::{Commands as _, Value};
use tempfile::TempDir;

use super::process::{Used, Watched, pause_ms};
use super::servers::{self, Server};

/// A run that takes longer has hung.
const RUN_MAX: Duration = Duration::from_mins(10);

/// The program.
const PROGRAM: &str = env!("CARGO_BIN_EXE_aegis-ingest");

/// Settings for the worker out of the bench's own environment: to find out what they do.
pub fn tried() -> Vec<(String, String)> {
    std::env::vars().filter(|(name, _)| name.starts_with("AEGIS_BATCH_") || name == "AEGIS_WRITERS").collect()
}

/// Unix milliseconds.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64)
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// The short form.
    pub quick: bool,
    /// Runs a row.
    pub runs: usize,
}

impl Size {
    /// One number in full, another in short.
    pub fn pick<T>(self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

/// The stage.
pub struct Stage {
    /// Drives everything asynchronous that the bench itself does.
    pub runtime: tokio::runtime::Runtime,
    /// Redis.
    pub redis: Server,
    /// PostgreSQL.
    pub postgres: Server,
    /// Chroma.
    pub chroma: Server,
    /// Full or short.
    pub size: Size,
    /// Working folder of workers: nothing in it that nobody put there.
    pub folder: TempDir,
    /// The Python worker's interpreter, or why there is none.
    pub python: Result<PathBuf, String>,
}

/// Someone drained a stream.
#[derive(Clone, Debug)]
pub struct Drained {
    /// From the first entry read to the last one acknowledged.
    pub seconds: f64,
    /// CPU in that time.
    pub used: Used,
}

impl Stage {
    /// Starts the servers and makes the schema.
    pub fn start(size: Size, python: Result<PathBuf, String>) -> Result<Self> {
        servers::prepare()?;
        let stage = Self {
            runtime: tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?,
            redis: servers::redis()?,
            postgres: servers::postgres()?,
            chroma: servers::chroma()?,
            size,
            folder: TempDir::new()?,
            python,
        };
        stage.migrate("aegis")?;
        Ok(stage)
    }

    /// The worker's own command for the schema.
    pub fn migrate(&self, database: &str) -> Result<()> {
        servers::output_of(self.program(database, &["migrate"])).map(drop)
    }

    /// The program with the addresses of the servers and hardly anything else in its environment.
    pub fn program(&self, database: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(arguments).env_clear().current_dir(self.folder.path()).stdin(Stdio::null());
        command.env("AEGIS_REDIS_URL", self.redis_url()).env("AEGIS_DATABASE_URL", self.database_url(database));
        command.env("AEGIS_CHROMA_URL", self.chroma_url()).envs(tried());
        command
    }

    /// For `AEGIS_REDIS_URL`.
    pub fn redis_url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.redis.port)
    }

    /// For `AEGIS_DATABASE_URL`.
    pub fn database_url(&self, database: &str) -> String {
        format!("postgres://aegis:aegis@127.0.0.1:{}/{database}", self.postgres.port)
    }

    /// For the bench's own statements.
    pub fn own_database_url(&self, database: &str) -> String {
        format!("postgres://bench:bench@127.0.0.1:{}/{database}", self.postgres.port)
    }

    /// For `AEGIS_CHROMA_URL`.
    pub fn chroma_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.chroma.port)
    }

    /// A connection to Redis.
    pub fn redis(&self) -> Result<redis::Connection> {
        let connection = redis::Client::open(self.redis_url())?.get_connection()?;
        connection.set_read_timeout(Some(RUN_MAX))?;
        Ok(connection)
    }

    /// Runs statements, one by one, on a connection of their own.
    pub fn sql(&self, database: &str, statements: &[&str]) -> Result<()> {
        self.runtime.block_on(async {
            let client = connect(&self.own_database_url(database)).await?;
            for statement in statements {
                client.batch_execute(statement).await.with_context(|| (*statement).to_owned())?;
            }
            Ok(())
        })
    }

    /// One number.
    pub fn number(&self, database: &str, query: &str) -> Result<i64> {
        self.runtime.block_on(async { Ok(connect(&self.own_database_url(database)).await?.query_one(query, &[]).await?.get(0)) })
    }

    /// One text.
    pub fn text(&self, database: &str, query: &str) -> Result<String> {
        self.runtime.block_on(async { Ok(connect(&self.own_database_url(database)).await?.query_one(query, &[]).await?.get(0)) })
    }

    /// Empties the tables and writes everything to disk, so that no run pays for the one before it.
    pub fn empty_tables(&self, database: &str) -> Result<()> {
        self.sql(database, &["TRUNCATE interaction_logs, session_events, sessions", "CHECKPOINT"])
    }

    /// Removes all of Redis, log included.
    pub fn empty_redis(&self) -> Result<()> {
        let mut redis = self.redis()?;
        redis::cmd("FLUSHALL").exec(&mut redis)?;
        rewrite_log(&mut redis)
    }

    /// Forgets that anybody has read the stream.
    pub fn unread(&self, stream: &str, group: &str) -> Result<()> {
        redis::cmd("XGROUP").arg("DESTROY").arg(stream).arg(group).exec(&mut self.redis()?)?;
        Ok(())
    }

    /// The servers' processes, and further ones.
    pub fn watched(&self, further: &[(&'static str, u32)]) -> Watched {
        let servers =
            [("redis", self.redis.pid(), false), ("postgres", self.postgres.pid(), true), ("chroma", self.chroma.pid(), false)];
        Watched { processes: servers.into_iter().chain(further.iter().map(|(name, pid)| (*name, *pid, false))).collect() }
    }

    /// Watches a group from its first read until every entry is acknowledged; calls `each` now and then.
    pub fn watch(&self, stream: &str, group: &str, further: &[(&'static str, u32)], each: impl FnMut()) -> Result<Drained> {
        self.watch_all(&[stream.to_owned()], group, further, each)
    }

    /// The same for several streams: from the first read of any until every entry of all is acknowledged.
    pub fn watch_all(
        &self,
        streams: &[String],
        group: &str,
        further: &[(&'static str, u32)],
        mut each: impl FnMut(),
    ) -> Result<Drained> {
        let mut redis = self.redis()?;
        let last = streams.iter().map(|stream| last_id(&mut redis, stream)).collect::<Result<Vec<_>>>()?;
        let watched = self.watched(further);
        let asked = Instant::now();
        let mut is_read =
            |stream: &String| Ok::<_, anyhow::Error>(progress(&mut redis, stream, group)?.is_some_and(|it| it.last != "0-0"));
        while !streams.iter().map(&mut is_read).collect::<Result<Vec<_>>>()?.contains(&true) {
            ensure!(asked.elapsed() < RUN_MAX, "{group} does not read {streams:?}");
            pause_ms(1);
        }
        let (began, before) = (Instant::now(), watched.snapshot());
        for (stream, last) in streams.iter().zip(last) {
            while progress(&mut redis, stream, group)?.is_none_or(|group| group.pending > 0 || group.last != last) {
                ensure!(began.elapsed() < RUN_MAX, "{group} does not get to the end of {stream}");
                each();
                pause_ms(3);
            }
        }
        Ok(Drained { seconds: began.elapsed().as_secs_f64(), used: before.until(&watched.snapshot()) })
    }
}

/// A connection to PostgreSQL, driven in the background.
pub async fn connect(url: &str) -> Result<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

struct Group {
    pending: i64,
    last: String,
}

fn last_id(redis: &mut redis::Connection, stream: &str) -> Result<String> {
    let last: Vec<(String, Value)> = redis::cmd("XREVRANGE").arg(stream).arg("+").arg("-").arg("COUNT").arg(1).query(redis)?;
    last.into_iter().next().map(|(id, _)| id).with_context(|| format!("{stream} is empty"))
}

fn progress(redis: &mut redis::Connection, stream: &str, group: &str) -> Result<Option<Group>> {
    let groups: Vec<std::collections::HashMap<String, Value>> = redis::cmd("XINFO").arg("GROUPS").arg(stream).query(redis)?;
    for found in groups {
        let text = |key: &str| found.get(key).and_then(|value| redis::from_redis_value::<String>(value.clone()).ok());
        if text("name").as_deref() == Some(group) {
            let pending = text("pending").and_then(|pending| pending.parse().ok()).unwrap_or_default();
            return Ok(Some(Group { pending, last: text("last-delivered-id").unwrap_or_default() }));
        }
    }
    Ok(None)
}

/// Rewrites Redis's log now, so that it does not have to later.
pub fn rewrite_log(redis: &mut redis::Connection) -> Result<()> {
    redis::cmd("BGREWRITEAOF").exec(redis)?;
    loop {
        let info: String = redis::cmd("INFO").arg("persistence").query(redis)?;
        if !info.contains("aof_rewrite_in_progress:1") && !info.contains("aof_rewrite_scheduled:1") {
            return Ok(());
        }
        pause_ms(20);
    }
}

/// Removes keys of a pattern.
pub fn remove_keys(redis: &mut redis::Connection, pattern: &str) -> Result<()> {
    let keys: Vec<String> = redis.scan_match(pattern)?.collect::<redis::RedisResult<_>>()?;
    for keys in keys.chunks(1_000) {
        redis::cmd("UNLINK").arg(keys).exec(redis)?;
    }
    Ok(())
}
