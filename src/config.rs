//! Environment, `.env` and flags, judged before anything is opened.
//!
//! [`SETTINGS`] is the one table of what can be set: the flags, the help text, `.env.example` and the README are held
//! against it by tests. [`Config::load`] turns text into typed, bounded values; a bad one is a [`Bad`] that names the
//! variable, what it was and what would do.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::tls::{self, Tls, Unfit};

mod given;
mod parse;
mod redis_address;
mod settings;
mod streams;
pub use given::{Bad, Given};
pub use parse::duration;
use parse::{
    DAY_MS, api_keys, boolean, consumer, database_url, duration_or_never, http_url, integer, lanes, log_filter, name, space,
    token,
};
pub use redis_address::RedisAddress;
use redis_address::redis_address;
pub use settings::{SETTINGS, Setting};
pub use streams::{Lane, Streams};

/// A text that is never printed: passwords, tokens, URLs that carry them.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself, for the one call that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[not shown]")
    }
}

/// Limits on what one event and one entry may be.
#[derive(Clone, Copy, Debug)]
pub struct EventLimits {
    /// Oldest `occurred_at` that is taken.
    pub age_max: Duration,
    /// How far ahead of this machine's clock `occurred_at` may be.
    pub skew_max: Duration,
    /// Longest payload of one entry, bytes.
    pub entry_bytes_max: usize,
}

/// When a batch is full, and how many are written at once.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Events a batch.
    pub rows_max: usize,
    /// Payload bytes a batch.
    pub bytes_max: usize,
    /// How long a batch waits for the connection in use before another one is opened.
    pub age_max: Duration,
    /// Vectors a request to Chroma.
    pub vectors_max: usize,
    /// Batches of one lane written at the same time.
    pub writers_max: usize,
}

/// Pauses, deadlines and bounds of delivery.
#[derive(Clone, Copy, Debug)]
pub struct Delivery {
    /// Idle time after which another worker's pending entry is taken over.
    pub claim_idle: Duration,
    /// How long leaving may take.
    pub drain_timeout: Duration,
    /// Deliveries of one entry after which it is set aside.
    pub deliveries_max: u64,
    /// Dead letters kept a stream.
    pub dead_max: u64,
    /// Age from which entries that every group has settled are trimmed; `None`: never.
    pub retain: Option<Duration>,
}

/// How long the session hashes live.
#[derive(Clone, Copy, Debug)]
pub struct SessionTtl {
    /// Past the last update.
    pub open: Duration,
    /// Once ended.
    pub ended: Duration,
}

/// Redis: where, and how long to wait for an answer.
#[derive(Clone, Debug)]
pub struct Redis {
    /// Where it is, with credentials.
    pub address: RedisAddress,
    /// Whom to trust and who we are, with `rediss://`.
    pub tls: Tls,
    /// Deadline of a connection attempt and of any answer that is not a blocking read.
    pub timeout: Duration,
}

/// PostgreSQL with TimescaleDB.
#[derive(Clone, Debug)]
pub struct Database {
    /// Address with credentials, without what [`Database::tls`] takes care of.
    pub url: Secret,
    /// TLS as `sslmode` asks for it.
    pub tls: tls::postgres::Connector,
    /// Deadline of a connection attempt.
    pub connect_timeout: Duration,
    /// Deadline of one write: COPY, merge and commit.
    pub write_timeout: Duration,
    /// Whether `run` brings the schema up to date first.
    pub migrate_on_start: bool,
    /// What becomes of rows over the years.
    pub policies: Policies,
}

/// What TimescaleDB is to do with rows over the years; `None` is never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policies {
    /// Time that a chunk spans.
    pub chunk_interval: Duration,
    /// Age at which a chunk goes to the columnstore.
    pub columnstore_after: Option<Duration>,
    /// Age at which a chunk is dropped.
    pub retention: Option<Duration>,
    /// Whether there are aggregates by the minute.
    pub aggregates: bool,
}

/// Distance of the collections that the worker creates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Angle.
    Cosine,
    /// Squared Euclidean distance.
    L2,
    /// Inner product.
    Ip,
}

impl Space {
    /// The name that Chroma knows it by.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::L2 => "l2",
            Self::Ip => "ip",
        }
    }
}

/// Chroma.
#[derive(Clone, Debug)]
pub struct Chroma {
    /// Base address, without a trailing slash.
    pub url: String,
    /// Whom to trust and who we are, with `https://`.
    pub tls: Tls,
    /// Sent as `x-chroma-token`.
    pub token: Option<Secret>,
    /// Collection of vectors that name none.
    pub collection: String,
    /// Distance of collections that are created.
    pub space: Space,
    /// Deadline of one request.
    pub timeout: Duration,
}

/// Health and metrics.
#[derive(Clone, Debug)]
pub struct Http {
    /// Where to listen.
    pub addr: SocketAddr,
    /// Keys of which any one opens `/metrics` and the body of `/readyz`.
    pub api_keys: Vec<Secret>,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For a person at a terminal.
    Pretty,
}

/// Logs.
#[derive(Clone, Debug)]
pub struct Log {
    /// A `tracing` filter.
    pub filter: String,
    /// The form of a line.
    pub format: LogFormat,
}

/// Everything that can be set, validated.
#[derive(Clone, Debug)]
pub struct Config {
    /// Lanes that this worker serves.
    pub lanes: Vec<Lane>,
    /// Naming in Redis.
    pub streams: Streams,
    /// The Redis server.
    pub redis: Redis,
    /// The database.
    pub database: Database,
    /// The vector store.
    pub chroma: Chroma,
    /// Bounds of an event.
    pub events: EventLimits,
    /// Bounds of a batch.
    pub batch: BatchLimits,
    /// Delivery.
    pub delivery: Delivery,
    /// Session hashes.
    pub session_ttl: SessionTtl,
    /// Endpoints.
    pub http: Http,
    /// Logs.
    pub log: Log,
    /// Variables that look like settings and are none, in words: worth a warning, never a reason not to start, since
    /// orchestrators inject variables of their own.
    pub unknown: Vec<String>,
}

impl Config {
    /// The groups through which this program's lanes read the streams of a lane.
    pub fn groups_of(&self, source: Lane) -> Vec<String> {
        let lanes = self.lanes.iter().filter(|lane| lane.source() == source);
        lanes.map(|lane| self.streams.of(*lane).group).collect()
    }

    /// Judges every setting; the first bad one ends it.
    pub fn load(given: &Given) -> Result<Self, Bad> {
        let tls = tls_of(given)?;
        let (database_url, database_tls) = given.parse("AEGIS_DATABASE_URL", |text| database_url(text, &tls))?;
        let config = Self {
            lanes: given.parse("AEGIS_LANES", lanes)?,
            streams: Streams {
                prefix: given.parse("AEGIS_KEY_PREFIX", |text| name(text, "{} \t\r\n"))?,
                group: given.parse("AEGIS_GROUP", |text| name(text, " \t\r\n"))?,
                consumer: given.parse("AEGIS_CONSUMER", consumer)?,
                partitions: given.parse("AEGIS_PARTITIONS", |text| integer(text, 1, 1024))? as u16,
            },
            redis: Redis {
                address: given.parse("AEGIS_REDIS_URL", redis_address)?,
                tls: tls.clone(),
                timeout: given.parse("AEGIS_REDIS_TIMEOUT", |text| duration(text, 100, 300_000))?,
            },
            database: Database {
                url: database_url,
                tls: database_tls,
                connect_timeout: given.parse("AEGIS_DATABASE_CONNECT_TIMEOUT", |text| duration(text, 100, 300_000))?,
                write_timeout: given.parse("AEGIS_DATABASE_WRITE_TIMEOUT", |text| duration(text, 100, 3_600_000))?,
                migrate_on_start: given.parse("AEGIS_MIGRATE_ON_START", boolean)?,
                policies: policies(given)?,
            },
            chroma: Chroma {
                url: given.parse("AEGIS_CHROMA_URL", http_url)?,
                tls,
                token: given.parse("AEGIS_CHROMA_TOKEN", token)?,
                collection: given.parse("AEGIS_CHROMA_COLLECTION", |text| {
                    crate::event::collection_name(text).map(str::to_owned).map_err(str::to_owned)
                })?,
                space: given.parse("AEGIS_CHROMA_SPACE", space)?,
                timeout: given.parse("AEGIS_CHROMA_TIMEOUT", |text| duration(text, 100, 3_600_000))?,
            },
            events: EventLimits {
                age_max: given.parse("AEGIS_MAX_EVENT_AGE", |text| duration(text, 1_000, 36_500 * DAY_MS))?,
                skew_max: given.parse("AEGIS_MAX_CLOCK_SKEW", |text| duration(text, 0, 36_500 * DAY_MS))?,
                entry_bytes_max: given.parse("AEGIS_MAX_ENTRY_BYTES", |text| integer(text, 64, 256 << 20))? as usize,
            },
            batch: BatchLimits {
                rows_max: given.parse("AEGIS_BATCH_ROWS", |text| integer(text, 1, 1_000_000))? as usize,
                bytes_max: given.parse("AEGIS_BATCH_BYTES", |text| integer(text, 1024, 1 << 30))? as usize,
                age_max: given.parse("AEGIS_BATCH_AGE", |text| duration(text, 1, 60_000))?,
                vectors_max: given.parse("AEGIS_BATCH_VECTORS", |text| integer(text, 1, 5461))? as usize,
                writers_max: given.parse("AEGIS_WRITERS", |text| integer(text, 1, 64))? as usize,
            },
            delivery: Delivery {
                claim_idle: given.parse("AEGIS_CLAIM_IDLE", |text| duration(text, 100, DAY_MS))?,
                drain_timeout: given.parse("AEGIS_DRAIN_TIMEOUT", |text| duration(text, 0, 3_600_000))?,
                deliveries_max: given.parse("AEGIS_MAX_DELIVERIES", |text| integer(text, 2, 1_000_000))?,
                dead_max: given.parse("AEGIS_DEAD_MAX", |text| integer(text, 1, 1_000_000_000))?,
                retain: given.parse("AEGIS_RETAIN", |text| duration_or_never(text, 0, 365 * DAY_MS))?,
            },
            session_ttl: SessionTtl {
                open: given.parse("AEGIS_SESSION_TTL", |text| duration(text, 1_000, 36_500 * DAY_MS))?,
                ended: given.parse("AEGIS_SESSION_ENDED_TTL", |text| duration(text, 1_000, 36_500 * DAY_MS))?,
            },
            http: Http {
                addr: given.parse("AEGIS_HTTP_ADDR", |text| {
                    text.parse().map_err(|_| "an address and port such as 127.0.0.1:9464 or [::]:9464".to_owned())
                })?,
                api_keys: given.parse("AEGIS_API_KEYS", api_keys)?,
            },
            log: Log {
                filter: given.parse("AEGIS_LOG", log_filter)?,
                format: given.parse("AEGIS_LOG_FORMAT", |text| match text {
                    "json" => Ok(LogFormat::Json),
                    "pretty" => Ok(LogFormat::Pretty),
                    _ => Err("json or pretty".to_owned()),
                })?,
            },
            unknown: given.unknown(),
        };
        if config.redis.address.is_cluster() && config.streams.partitions == 1 {
            return Err(Bad {
                variable: "AEGIS_PARTITIONS".to_owned(),
                was: "1".to_owned(),
                wanted: "expected a whole number from 2 to 1024 with a Redis Cluster: without a hash tag a stream and its dead \
                         letters stand on different nodes"
                    .to_owned(),
            });
        }
        Ok(config)
    }
}

/// The policies, and whether they go together.
fn policies(given: &Given) -> Result<Policies, Bad> {
    const HOUR_MS: u64 = 3_600_000;
    let policies = Policies {
        chunk_interval: given.parse("AEGIS_CHUNK_INTERVAL", |text| duration(text, HOUR_MS, 365 * DAY_MS))?,
        columnstore_after: given.parse("AEGIS_COLUMNSTORE_AFTER", |text| duration_or_never(text, HOUR_MS, 36_500 * DAY_MS))?,
        retention: given.parse("AEGIS_RETENTION", |text| duration_or_never(text, DAY_MS, 36_500 * DAY_MS))?,
        aggregates: given.parse("AEGIS_AGGREGATES", boolean)?,
    };
    let Some(retention) = policies.retention else { return Ok(policies) };
    let text = |variable| given.text(variable).map(Option::unwrap_or_default);
    let kept = text("AEGIS_RETENTION")?;
    // A row that is older than what is kept would be acknowledged and then dropped by the next run: it is refused at the door,
    // and it is for a person to say which of the two bounds was meant.
    let age = given.parse("AEGIS_MAX_EVENT_AGE", |text| duration(text, 1_000, 36_500 * DAY_MS))?;
    if age > retention {
        return Err(Bad {
            variable: "AEGIS_RETENTION".to_owned(),
            was: format!("{kept:?}"),
            wanted: format!(
                "expected at least AEGIS_MAX_EVENT_AGE, which is {}; set AEGIS_MAX_EVENT_AGE={kept} as well, and older events become dead letters",
                text("AEGIS_MAX_EVENT_AGE")?
            ),
        });
    }
    // A chunk goes as a whole, when its youngest row may.
    if policies.chunk_interval > retention {
        return Err(Bad {
            variable: "AEGIS_CHUNK_INTERVAL".to_owned(),
            was: format!("{:?}", text("AEGIS_CHUNK_INTERVAL")?),
            wanted: format!("expected at most AEGIS_RETENTION, which is {kept}: chunks are dropped as a whole"),
        });
    }
    if policies.columnstore_after.is_some_and(|after| after >= retention) {
        return Err(Bad {
            variable: "AEGIS_COLUMNSTORE_AFTER".to_owned(),
            was: format!("{:?}", text("AEGIS_COLUMNSTORE_AFTER")?),
            wanted: format!(
                "expected less than AEGIS_RETENTION, which is {kept}, or never: what is dropped need not be compressed"
            ),
        });
    }
    Ok(policies)
}

/// The files that TLS needs, read once at start.
fn tls_of(given: &Given) -> Result<Tls, Bad> {
    let path = |file: tls::File| given.text(file.variable());
    let (authorities, certificate, key) = (path(tls::File::Authorities)?, path(tls::File::Certificate)?, path(tls::File::Key)?);
    Tls::load(authorities.as_deref(), certificate.as_deref(), key.as_deref()).map_err(|Unfit { file, problem }| Bad {
        variable: file.variable().to_owned(),
        was: format!("{:?}, which {problem}", path(file).ok().flatten().unwrap_or_default()),
        wanted: format!("expected {}", file.wanted()),
    })
}
