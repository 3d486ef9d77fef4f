//! Looking at streams without touching them: for metrics, `status` and `check`.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use ::redis::Value;

use super::{Redis, RedisError, query};
use crate::config::Streams;
use crate::seam::EntryId;
use crate::telemetry::metric::LaneMetrics;

/// One consumer of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consumer {
    /// Its name.
    pub name: String,
    /// Entries delivered to it and not acknowledged.
    pub pending: u64,
    /// Milliseconds since it last asked for something.
    pub idle_ms: u64,
}

/// What stands in one stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamInfo {
    /// The stream.
    pub key: String,
    /// Whether the stream exists.
    pub exists: bool,
    /// Whether the group exists.
    pub group: bool,
    /// Entries in it.
    pub length: u64,
    /// Entries not delivered yet; `None`: Redis does not know, which is not 0.
    pub lag: Option<u64>,
    /// Entries delivered and not acknowledged.
    pub pending: u64,
    /// The oldest entry that is delivered and not acknowledged, or not delivered at all.
    pub oldest_unacknowledged: Option<EntryId>,
    /// Entries that were trimmed before the group read them, as far as can be seen now.
    pub lost: u64,
    /// Consumers of the group.
    pub consumers: Vec<Consumer>,
    /// Dead letters.
    pub dead_letters: u64,
}

/// Losses seen so far in one stream. They stay visible in what Redis tells until the group reads on, and count once.
#[derive(Debug, Default)]
pub struct Losses(Mutex<u64>);

impl Losses {
    /// Counts, and tells of, what was lost since the last look.
    pub fn note(&self, stream: &StreamInfo, metrics: &LaneMetrics) {
        let before = std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), stream.lost);
        let lost = stream.lost.saturating_sub(before);
        if lost > 0 {
            metrics.entries_lost.increment(lost);
            tracing::warn!(stream = stream.key, entries = lost, "entries were trimmed away before they were read: they are lost");
        }
    }
}

fn map(value: Value) -> HashMap<String, Value> {
    let (Value::Array(items) | Value::Set(items)) = value else {
        return ::redis::from_redis_value(value).unwrap_or_default();
    };
    let mut map = HashMap::new();
    let mut items = items.into_iter();
    while let (Some(key), Some(value)) = (items.next(), items.next()) {
        if let Ok(key) = ::redis::from_redis_value::<String>(key) {
            map.insert(key, value);
        }
    }
    map
}

fn number(map: &HashMap<String, Value>, key: &str) -> Option<u64> {
    map.get(key).and_then(|value| ::redis::from_redis_value_ref::<u64>(value).ok())
}

fn id(map: &HashMap<String, Value>, key: &str) -> Option<EntryId> {
    map.get(key).and_then(|value| ::redis::from_redis_value_ref::<String>(value).ok()).and_then(|text| text.parse().ok())
}

/// Where it stands who trims a stream, and how much went.
pub(super) fn trimmer_key(key: &str) -> String {
    format!("{key}:trimmer")
}

/// Entries that went since the stream began, every one of them settled by the group before.
///
/// # Errors
/// Redis is away or refuses.
async fn trimmed(redis: &Redis, key: &str) -> Result<u64, RedisError> {
    let found: Option<u64> = query(redis, key, ::redis::cmd("HGET").arg(trimmer_key(key)).arg("trimmed")).await?;
    Ok(found.unwrap_or_default())
}

/// Looks at one stream and its group.
///
/// # Errors
/// Redis is away or refuses.
pub async fn stream(redis: &Redis, streams: &Streams, key: &str) -> Result<StreamInfo, RedisError> {
    let mut info = StreamInfo { key: key.to_owned(), ..StreamInfo::default() };
    info.dead_letters = query(redis, key, ::redis::cmd("XLEN").arg(Streams::dead(key))).await?;
    let found = match query::<Value>(redis, key, ::redis::cmd("XINFO").arg("STREAM").arg(key)).await {
        Ok(found) => map(found),
        Err(RedisError::Unexpected(text)) if text.contains("no such key") => return Ok(info),
        Err(error) => return Err(error),
    };
    info.exists = true;
    info.length = number(&found, "length").unwrap_or_default();
    let added = number(&found, "entries-added");
    let Some(group) = group(redis, streams, key).await? else { return Ok(info) };
    info.group = true;
    info.pending = number(&group, "pending").unwrap_or_default();
    info.lag = number(&group, "lag");
    let delivered = id(&group, "last-delivered-id").unwrap_or_default();
    let read = match number(&group, "entries-read") {
        // A group that was made at the beginning and never read has no count yet; what was trimmed before it had been settled.
        None if delivered == EntryId::default() => Some(trimmed(redis, key).await?),
        read => read,
    };
    if let (Some(added), Some(read), Some(lag)) = (added, read, info.lag) {
        info.lost = added.saturating_sub(read).saturating_sub(lag);
    }
    info.oldest_unacknowledged = oldest(redis, streams, key, info.pending, info.lag, delivered).await?;
    let consumers: Vec<Value> = match query(redis, key, ::redis::cmd("XINFO").arg("CONSUMERS").arg(key).arg(&streams.group)).await
    {
        Ok(consumers) => consumers,
        Err(RedisError::Unexpected(text)) if text.contains("no such key") => Vec::new(),
        Err(error) => return Err(error),
    };
    for consumer in consumers.into_iter().map(map) {
        info.consumers.push(Consumer {
            name: consumer.get("name").and_then(|name| ::redis::from_redis_value_ref::<String>(name).ok()).unwrap_or_default(),
            pending: number(&consumer, "pending").unwrap_or_default(),
            idle_ms: number(&consumer, "idle").unwrap_or_default(),
        });
    }
    Ok(info)
}

/// Entries that a group has before it: not read yet, or read and not acknowledged. All of them where there is no group, since it
/// will be made at the beginning. `None`: Redis does not know, which is not 0.
///
/// # Errors
/// Redis is away or refuses.
pub async fn unsettled(redis: &Redis, streams: &Streams, key: &str) -> Result<Option<u64>, RedisError> {
    match group(redis, streams, key).await? {
        Some(group) => Ok(number(&group, "lag").map(|lag| lag + number(&group, "pending").unwrap_or_default())),
        None => query(redis, key, ::redis::cmd("XLEN").arg(key)).await.map(Some),
    }
}

/// Entries that were in a stream once and are not any more.
///
/// # Errors
/// Redis is away or refuses.
pub(super) async fn removed(redis: &Redis, key: &str) -> Result<u64, RedisError> {
    match query::<Value>(redis, key, ::redis::cmd("XINFO").arg("STREAM").arg(key)).await {
        Ok(found) => {
            let found = map(found);
            let (added, length) = (number(&found, "entries-added"), number(&found, "length"));
            Ok(added.unwrap_or_default().saturating_sub(length.unwrap_or_default()))
        }
        Err(RedisError::Unexpected(text)) if text.contains("no such key") => Ok(0),
        Err(error) => Err(error),
    }
}

/// How far a stream goes, and whether the group is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tail {
    /// Id of the newest entry that it ever had.
    pub last: EntryId,
    /// Whether somebody has read through the group.
    pub group: bool,
}

/// Looks how far a stream goes.
///
/// # Errors
/// Redis is away or refuses.
pub async fn tail(redis: &Redis, streams: &Streams, key: &str) -> Result<Tail, RedisError> {
    let found = match query::<Value>(redis, key, ::redis::cmd("XINFO").arg("STREAM").arg(key)).await {
        Ok(found) => map(found),
        Err(RedisError::Unexpected(text)) if text.contains("no such key") => return Ok(Tail::default()),
        Err(error) => return Err(error),
    };
    let last = id(&found, "last-generated-id").unwrap_or_default();
    Ok(Tail { last, group: group(redis, streams, key).await?.is_some() })
}

async fn group(redis: &Redis, streams: &Streams, key: &str) -> Result<Option<HashMap<String, Value>>, RedisError> {
    let groups: Vec<Value> = match query(redis, key, ::redis::cmd("XINFO").arg("GROUPS").arg(key)).await {
        Ok(groups) => groups,
        Err(RedisError::Unexpected(text)) if text.contains("no such key") => Vec::new(),
        Err(error) => return Err(error),
    };
    let named = |group: &HashMap<String, Value>| {
        group.get("name").and_then(|name| ::redis::from_redis_value_ref::<String>(name).ok()).as_deref() == Some(&streams.group)
    };
    Ok(groups.into_iter().map(map).find(named))
}

/// Whether the group has settled every entry up to this one.
///
/// # Errors
/// Redis is away or refuses.
pub async fn is_settled(redis: &Redis, streams: &Streams, key: &str, until: EntryId) -> Result<bool, RedisError> {
    let Some(group) = group(redis, streams, key).await? else { return Ok(false) };
    let delivered = id(&group, "last-delivered-id").unwrap_or_default();
    let mut unread = ::redis::cmd("XRANGE");
    unread.arg(key).arg(format!("({delivered}")).arg(until.to_string()).arg("COUNT").arg(1);
    if delivered < until && !query::<Vec<Value>>(redis, key, &unread).await?.is_empty() {
        return Ok(false);
    }
    let mut pending = ::redis::cmd("XPENDING");
    pending.arg(key).arg(&streams.group).arg("-").arg(until.to_string()).arg(1);
    Ok(query::<Vec<Value>>(redis, key, &pending).await?.is_empty())
}

async fn oldest(
    redis: &Redis,
    streams: &Streams,
    key: &str,
    pending: u64,
    lag: Option<u64>,
    delivered: EntryId,
) -> Result<Option<EntryId>, RedisError> {
    if pending > 0 {
        let summary: Vec<Value> = query(redis, key, ::redis::cmd("XPENDING").arg(key).arg(&streams.group)).await?;
        let first = summary.get(1).and_then(|first| ::redis::from_redis_value_ref::<String>(first).ok());
        if let Some(first) = first.and_then(|first| first.parse().ok()) {
            return Ok(Some(first));
        }
    }
    if lag == Some(0) {
        return Ok(None);
    }
    let mut command = ::redis::cmd("XRANGE");
    command.arg(key).arg(format!("({delivered}")).arg("+").arg("COUNT").arg(1);
    let next: Vec<(String, Value)> = query(redis, key, &command).await?;
    Ok(next.first().and_then(|(id, _)| id.parse().ok()))
}

/// What the server is and how full it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerInfo {
    /// Host and port.
    pub name: String,
    /// As the server spells it; Valkey tells its own version here when it says it is one.
    pub version: String,
    /// `standalone` or `cluster`.
    pub mode: String,
    /// Bytes in use.
    pub memory_used: u64,
    /// Bytes allowed; 0 is no limit.
    pub memory_max: u64,
    /// What happens when memory runs out, where the server tells.
    pub eviction: Option<String>,
    /// Whether an append-only file is written, where the server tells.
    pub append_only: Option<bool>,
}

/// Asks every server that serves keys about itself. CONFIG is forbidden on managed servers; INFO tells enough.
///
/// # Errors
/// One of them is away or refuses.
pub async fn servers(redis: &Redis) -> Result<Vec<ServerInfo>, RedisError> {
    let answers: Vec<(String, String)> = redis.each(&::redis::cmd("INFO")).await?;
    Ok(answers.into_iter().map(|(name, text)| read_info(name, &text)).collect())
}

/// Asks the server of a key about itself.
///
/// # Errors
/// It is away or refuses.
pub async fn server(redis: &Redis, key: &str) -> Result<ServerInfo, RedisError> {
    let text: String = query(redis, key, &::redis::cmd("INFO")).await?;
    Ok(read_info(String::new(), &text))
}

fn read_info(name: String, text: &str) -> ServerInfo {
    let fields: HashMap<_, _> = text.lines().filter_map(|line| line.split_once(':')).collect();
    let field = |key: &str| fields.get(key).map(|value| value.trim().to_owned());
    let number = |key: &str| field(key).and_then(|value| value.parse().ok()).unwrap_or_default();
    ServerInfo {
        name,
        version: field("redis_version").unwrap_or_default(),
        mode: field("redis_mode").unwrap_or_default(),
        memory_used: number("used_memory"),
        memory_max: number("maxmemory"),
        eviction: field("maxmemory_policy"),
        append_only: field("aof_enabled").map(|value| value == "1"),
    }
}

/// The server that is nearest to its limit: the first that will refuse producers. Without limits the one that uses most.
pub fn fullest(servers: &[ServerInfo]) -> Option<&ServerInfo> {
    let share = |server: &ServerInfo| {
        server.memory_used as f64 / server.memory_max.max(1) as f64 * f64::from(u8::from(server.memory_max > 0))
    };
    (servers.iter()).max_by(|a, b| share(a).total_cmp(&share(b)).then(a.memory_used.cmp(&b.memory_used)))
}
