//! What producers do.

use serde_json::Value as Json;

use super::msgpack::Mp;
use super::rights::Produces;

/// One stream entry to be: its fields.
pub type Fields = Vec<(String, Vec<u8>)>;

/// Fields of an entry with `data`.
pub fn data_entry(bytes: impl Into<Vec<u8>>) -> Fields {
    vec![("data".to_owned(), bytes.into())]
}

/// Fields of an entry with `json`.
pub fn json_entry(event: &Json) -> Fields {
    vec![("json".to_owned(), event.to_string().into_bytes())]
}

/// XADD with any fields; returns the entry id.
pub async fn fields(redis: &mut impl Produces, stream: &str, fields: &[(String, Vec<u8>)]) -> String {
    let mut command = redis::cmd("XADD");
    command.arg(stream).arg("*");
    for (name, value) in fields {
        command.arg(name).arg(value.as_slice());
    }
    command.query_async(redis.producer()).await.expect("XADD")
}

/// XADD of one event or array as `json`; returns the entry id.
pub async fn json(redis: &mut impl Produces, stream: &str, event: &Json) -> String {
    fields(redis, stream, &json_entry(event)).await
}

/// XADD of one event or array as `data`; returns the entry id.
pub async fn data(redis: &mut impl Produces, stream: &str, event: &Mp) -> String {
    fields(redis, stream, &data_entry(event.bytes())).await
}

/// XADD of many entries in pipelines; returns their ids in order.
pub async fn many(redis: &mut impl Produces, stream: &str, entries: &[Fields]) -> Vec<String> {
    let mut ids = Vec::with_capacity(entries.len());
    for entries in entries.chunks(500) {
        let mut pipeline = redis::pipe();
        for fields in entries {
            let command = pipeline.cmd("XADD").arg(stream).arg("*");
            for (name, value) in fields {
                command.arg(name).arg(value.as_slice());
            }
        }
        ids.extend(pipeline.query_async::<Vec<String>>(redis.producer()).await.expect("XADD"));
    }
    ids
}

/// Events in entries of `size` each, as arrays under `data` (single events when `size` is 1).
pub fn packed(events: &[Json], size: usize) -> Vec<Fields> {
    let pack = |events: &[Json]| match events {
        [event] if size == 1 => Mp::from(event).bytes(),
        events => Mp::Array(events.iter().map(Mp::from).collect()).bytes(),
    };
    events.chunks(size).map(|events| data_entry(pack(events))).collect()
}

/// Now, Unix milliseconds.
pub fn now_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    now.as_millis() as i64
}
