//! What arrived, read by means of the stores' own clients.

use std::collections::{BTreeMap, HashMap};

use redis::aio::MultiplexedConnection;
use serde_json::Value as Json;
use tokio_postgres::{Client, Row};
use uuid::Uuid;

/// A row of `interaction_logs`; times in Unix microseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct InteractionRow {
    pub occurred_at_us: i64,
    pub event_id: Uuid,
    pub session_id: String,
    pub user_id: String,
    pub intent: Option<String>,
    pub latency_ms: Option<f64>,
    pub confidence: Option<f32>,
    pub channel: Option<String>,
    pub locale: Option<String>,
    pub transcript: Option<String>,
    pub attributes: Option<Json>,
}

/// A row of `session_events`.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionEventRow {
    pub occurred_at_us: i64,
    pub event_id: Uuid,
    pub session_id: String,
    pub user_id: String,
    pub status: String,
    pub seq: i64,
    pub state: Option<Json>,
}

/// A row of `sessions`.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionRow {
    pub user_id: String,
    pub status: String,
    pub seq: i64,
    pub started_at_us: i64,
    pub updated_at_us: i64,
    pub ended_at_us: Option<i64>,
    pub state: Option<Json>,
}

const US: &str = "(extract(epoch FROM {}) * 1000000)::int8";

fn us(column: &str) -> String {
    US.replace("{}", column)
}

fn json(row: &Row, column: usize) -> Option<Json> {
    row.get::<_, Option<String>>(column).map(|text| serde_json::from_str(&text).expect("jsonb is JSON"))
}

/// All rows of `interaction_logs`, by time and id.
pub async fn interactions(database: &Client) -> Vec<InteractionRow> {
    let query = format!(
        "SELECT {}, event_id, session_id, user_id, intent, latency_ms, confidence, channel, locale, transcript, attributes::text
         FROM interaction_logs ORDER BY occurred_at, event_id",
        us("occurred_at")
    );
    let row = |row: &Row| InteractionRow {
        occurred_at_us: row.get(0),
        event_id: row.get(1),
        session_id: row.get(2),
        user_id: row.get(3),
        intent: row.get(4),
        latency_ms: row.get(5),
        confidence: row.get(6),
        channel: row.get(7),
        locale: row.get(8),
        transcript: row.get(9),
        attributes: json(row, 10),
    };
    database.query(&query, &[]).await.expect("interaction_logs").iter().map(row).collect()
}

/// All rows of `session_events`, by time and id.
pub async fn session_events(database: &Client) -> Vec<SessionEventRow> {
    let query = format!(
        "SELECT {}, event_id, session_id, user_id, status, seq, state::text FROM session_events ORDER BY occurred_at, event_id",
        us("occurred_at")
    );
    let row = |row: &Row| SessionEventRow {
        occurred_at_us: row.get(0),
        event_id: row.get(1),
        session_id: row.get(2),
        user_id: row.get(3),
        status: row.get(4),
        seq: row.get(5),
        state: json(row, 6),
    };
    database.query(&query, &[]).await.expect("session_events").iter().map(row).collect()
}

/// All rows of `sessions`, by session.
pub async fn sessions(database: &Client) -> BTreeMap<String, SessionRow> {
    let query = format!(
        "SELECT session_id, user_id, status, seq, {}, {}, {}, state::text FROM sessions",
        us("started_at"),
        us("updated_at"),
        us("ended_at")
    );
    let row = |row: &Row| SessionRow {
        user_id: row.get(1),
        status: row.get(2),
        seq: row.get(3),
        started_at_us: row.get(4),
        updated_at_us: row.get(5),
        ended_at_us: row.get(6),
        state: json(row, 7),
    };
    database.query(&query, &[]).await.expect("sessions").iter().map(|it| (it.get(0), row(it))).collect()
}

/// Rows of a table.
pub async fn count(database: &Client, table: &str) -> i64 {
    database.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await.expect("a count").get(0)
}

/// The hash of a session, without what the contract does not name; empty when there is none.
pub async fn session_hash(redis: &mut MultiplexedConnection, key: &str) -> BTreeMap<String, String> {
    const NAMED: [&str; 7] = ["user_id", "status", "seq", "started_at", "updated_at", "ended_at", "state"];
    let all: HashMap<String, String> = redis::cmd("HGETALL").arg(key).query_async(redis).await.expect("HGETALL");
    all.into_iter().filter(|(name, _)| NAMED.contains(&name.as_str())).collect()
}

/// The hashes of many sessions, by key, in the order of the keys.
pub async fn session_hashes(redis: &mut MultiplexedConnection, keys: &[String]) -> Vec<BTreeMap<String, String>> {
    let mut hashes = Vec::new();
    for keys in keys.chunks(1000) {
        let mut pipeline = redis::pipe();
        for key in keys {
            pipeline.cmd("HGETALL").arg(key);
        }
        hashes.extend(pipeline.query_async::<Vec<BTreeMap<String, String>>>(redis).await.expect("HGETALL"));
    }
    hashes
}

/// A hash as the row it must equal (in milliseconds, which is all a hash holds); `None` when there is no hash.
pub fn hash_as_row(hash: &BTreeMap<String, String>) -> Option<SessionRow> {
    if hash.is_empty() {
        return None;
    }
    let number = |name: &str| hash[name].parse::<i64>().unwrap_or_else(|_| panic!("{name} of {hash:?}"));
    Some(SessionRow {
        user_id: hash["user_id"].clone(),
        status: hash["status"].clone(),
        seq: number("seq"),
        started_at_us: number("started_at") * 1000,
        updated_at_us: number("updated_at") * 1000,
        ended_at_us: hash.contains_key("ended_at").then(|| number("ended_at") * 1000),
        state: hash.get("state").map(|text| serde_json::from_str(text).expect("state is JSON")),
    })
}

impl SessionRow {
    /// The same with times cut to milliseconds, as the hash has them.
    #[must_use]
    pub fn in_milliseconds(&self) -> Self {
        let cut = |us: i64| us.div_euclid(1000) * 1000;
        Self {
            started_at_us: cut(self.started_at_us),
            updated_at_us: cut(self.updated_at_us),
            ended_at_us: self.ended_at_us.map(cut),
            ..self.clone()
        }
    }
}

/// A dead letter: its fields in order.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    /// Entry id in the dead-letter stream.
    pub id: String,
    /// Names and values.
    pub fields: Vec<(String, Vec<u8>)>,
}

impl DeadLetter {
    /// Value of the last field of that name (an entry's own fields come first).
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.fields.iter().rev().find(|(own, _)| own == name).map(|(_, value)| value.as_slice())
    }

    /// The same as text; empty when there is none.
    pub fn text(&self, name: &str) -> String {
        String::from_utf8_lossy(self.bytes(name).unwrap_or_default()).into_owned()
    }

    /// `index` as a number.
    pub fn index(&self) -> u32 {
        self.text("index").parse().unwrap_or_else(|_| panic!("no index: {self:?}"))
    }
}

/// All dead letters of a dead-letter stream (`Space::dead`), oldest first.
pub async fn dead_letters(redis: &mut MultiplexedConnection, dead_stream: &str) -> Vec<DeadLetter> {
    entries(redis, dead_stream).await.into_iter().map(|(id, fields)| DeadLetter { id, fields }).collect()
}

/// All entries of a stream with their fields.
pub async fn entries(redis: &mut MultiplexedConnection, stream: &str) -> Vec<(String, Vec<(String, Vec<u8>)>)> {
    let reply: Vec<(String, Vec<Vec<u8>>)> =
        redis::cmd("XRANGE").arg(stream).arg("-").arg("+").query_async(redis).await.expect("XRANGE");
    let pairs = |fields: Vec<Vec<u8>>| {
        let pairs = fields.chunks_exact(2).map(|pair| (String::from_utf8_lossy(&pair[0]).into_owned(), pair[1].clone()));
        pairs.collect::<Vec<_>>()
    };
    reply.into_iter().map(|(id, fields)| (id, pairs(fields))).collect()
}

/// Entries of a stream.
pub async fn length(redis: &mut MultiplexedConnection, stream: &str) -> u64 {
    redis::cmd("XLEN").arg(stream).query_async(redis).await.expect("XLEN")
}

/// Entries that a group has not read (−1 when Redis does not know), and those read and not acknowledged; `None` without the
/// stream or the group.
pub async fn lag_and_pending(redis: &mut MultiplexedConnection, stream: &str, group: &str) -> Option<(i64, i64)> {
    let groups: Vec<HashMap<String, redis::Value>> =
        redis::cmd("XINFO").arg("GROUPS").arg(stream).query_async(redis).await.ok()?;
    let text = |value: &redis::Value| redis::from_redis_value::<String>(value.clone()).unwrap_or_default();
    let number = |value: &redis::Value| redis::from_redis_value::<i64>(value.clone()).unwrap_or(-1);
    let group = groups.iter().find(|it| text(&it["name"]) == group)?;
    Some((number(&group["lag"]), number(&group["pending"])))
}

/// Entries that are read and not acknowledged.
pub async fn pending(redis: &mut MultiplexedConnection, stream: &str, group: &str) -> i64 {
    lag_and_pending(redis, stream, group).await.map_or(0, |(_, pending)| pending)
}

/// All records of a collection with these ids, by id; empty when there is no collection.
pub async fn records(
    chroma: &aegis_ingest::chroma::Client,
    collection: &str,
    ids: &[&str],
) -> BTreeMap<String, aegis_ingest::chroma::Record> {
    let Some(collection) = chroma.collection(collection).await.expect("Chroma") else { return BTreeMap::new() };
    let mut records = BTreeMap::new();
    for ids in ids.chunks(500) {
        let found = chroma.get(collection.id, ids).await.expect("Chroma");
        records.extend(found.into_iter().map(|record| (record.id.clone(), record)));
    }
    records
}

/// Records of a collection; 0 when there is none.
pub async fn record_count(chroma: &aegis_ingest::chroma::Client, collection: &str) -> u64 {
    match chroma.collection(collection).await {
        Ok(Some(collection)) => chroma.count(collection.id).await.expect("Chroma"),
        Ok(None) => 0,
        Err(error) => panic!("Chroma: {error}"),
    }
}
