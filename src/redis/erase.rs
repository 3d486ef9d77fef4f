//! Removing what somebody wrote: entries of streams, dead letters, session hashes.
//!
//! **Architecture invariant:** no entry is taken out of a worker's hand. One that was delivered and renewed of late is left until
//! it is settled; one that was idle for `AEGIS_CLAIM_IDLE` is in nobody's hand, by the same rule by which it would be taken over.

use std::collections::HashSet;

use ::redis::Value;

use super::dead::{self, Kept, Letter, Order, Pages, Range};
use super::reply::ORIGIN_FIELD;
use super::{Redis, RedisError, query};
use crate::config::Streams;
use crate::event::Payload;
use crate::event::subject::{Split, Wanted, split};
use crate::seam::{EntryId, ReplayOrigin};

/// Entries a page at most.
const PAGE_MAX: usize = 2_000;
/// A page ends with the entry that takes it past this many bytes.
const PAGE_BYTES: usize = 4 << 20;
/// Keys looked at by one SCAN, and hashes asked by one pipeline.
const SCAN_COUNT: usize = 1_000;

/// Reads a page one entry at a time, so that neither server nor client holds more than the bound.
const PAGE: &str = "#!lua flags=no-writes
local from, page, bytes = ARGV[1], {}, 0
while #page < tonumber(ARGV[3]) and bytes < tonumber(ARGV[4]) do
  local found = redis.call('XRANGE', KEYS[1], from, ARGV[2], 'COUNT', 1)[1]
  if not found then break end
  for i = 1, #found[2] do bytes = bytes + #found[2][i] end
  page[#page+1] = found
  from = '(' .. found[1]
end
return page
";

/// Removes an entry for every group, in one step. What others have in it goes back to the stream's end as entries of its own, with
/// the field that keeps its identity, unless every group has settled it.
///
/// A deleted entry leaves a gap behind which Redis cannot count: the lag of groups that stand at it or before it would be unknown, and
/// wrong later on. So the counters are put right as if it had never been written: the stream's, and those of groups that had read it.
const REMOVE: &str = "#!lua
local key, id = KEYS[1], ARGV[1]
if not redis.call('XRANGE', key, id, id)[1] then return 0 end
local function named(list)
  local it = {}
  for i = 1, #list, 2 do it[list[i]] = list[i+1] end
  return it
end
local function less(a, b)
  local am, as, bm, bs = a:match('(%d+)-(%d+)')
  bm, bs = b:match('(%d+)-(%d+)')
  if am ~= bm then return #am < #bm or (#am == #bm and am < bm) end
  return #as < #bs or (#as == #bs and as < bs)
end
local groups, settled = {}, true
for _, group in ipairs(redis.call('XINFO', 'GROUPS', key)) do
  local it = named(group)
  local pending = redis.call('XPENDING', key, it['name'], id, id, 1)[1]
  if pending then
    if pending[3] < tonumber(ARGV[2]) then return -1 end
    it.pending, settled = true, false
  elseif less(it['last-delivered-id'], id) then
    it.unread, settled = true, false
  end
  groups[#groups+1] = it
end
if #groups == 0 then settled = false end
local before = named(redis.call('XINFO', 'STREAM', key))['max-deleted-entry-id']
if not settled then
  for at = 4, #ARGV, 3 do
    if ARGV[3] == '' then
      redis.call('XADD', key, '*', ARGV[at], ARGV[at+1], '{origin}', ARGV[at+2])
    else
      redis.call('XADD', key, '*', ARGV[at], ARGV[at+1], '{origin}', ARGV[at+2], 'traceparent', ARGV[3])
    end
  end
end
for _, it in ipairs(groups) do
  if it.pending then redis.call('XACK', key, it['name'], id) end
end
redis.call('XDEL', key, id)
local now = named(redis.call('XINFO', 'STREAM', key))
if before == '0-0' then before = '0-1' end
redis.call('XSETID', key, now['last-generated-id'], 'ENTRIESADDED', now['entries-added'] - 1, 'MAXDELETEDID', before)
for _, it in ipairs(groups) do
  if not it.unread and it['entries-read'] and it['entries-read'] > 0 then
    redis.call('XGROUP', 'SETID', key, it['name'], it['last-delivered-id'], 'ENTRIESREAD', it['entries-read'] - 1)
  end
end
return 1
";

/// Removes a dead letter, in the place of which those come that others need.
const REPLACE_LETTER: &str = "#!lua
if not redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1] then return 0 end
local at = 2
while at <= #ARGV do
  local count = tonumber(ARGV[at])
  redis.call('XADD', KEYS[1], '*', unpack(ARGV, at + 1, at + count))
  at = at + count + 1
end
redis.call('XDEL', KEYS[1], ARGV[1])
return 1
";

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// An entry as it stands in its stream.
#[derive(Clone, Debug)]
pub struct RawEntry {
    /// Its id.
    pub id: EntryId,
    /// Names and values.
    pub fields: Fields,
}

impl RawEntry {
    /// Its payload, if it has exactly one.
    pub fn payload(&self) -> Option<Payload<'_>> {
        payload(&self.fields)
    }

    /// What of it is to go.
    pub fn split(&self, wanted: &Wanted) -> Split {
        judge(&self.fields, wanted)
    }

    fn field(&self, name: &str) -> Option<&[u8]> {
        self.fields.iter().find(|(own, _)| own == name.as_bytes()).map(|(_, value)| value.as_slice())
    }
}

fn payload(fields: &Fields) -> Option<Payload<'_>> {
    let mut payloads = fields.iter().filter(|(name, _)| matches!(name.as_slice(), b"data" | b"json"));
    match (payloads.next(), payloads.next()) {
        (Some((name, value)), None) if name == b"data" => Some(Payload::MessagePack(value)),
        (Some((_, value)), None) => Some(Payload::Json(value)),
        _ => None,
    }
}

fn judge(fields: &Fields, wanted: &Wanted) -> Split {
    match payload(fields) {
        Some(payload) => split(payload, wanted),
        None if fields.iter().any(|(_, value)| wanted.mentioned_in(value)) => Split::Whole(1),
        None => Split::Untouched,
    }
}

/// The entries of a stream up to an end, a page of at most some 4 MiB at a time.
pub struct Entries {
    redis: Redis,
    key: String,
    from: String,
    until: EntryId,
}

impl Entries {
    /// All up to `until`.
    pub fn new(redis: &Redis, key: &str, until: EntryId) -> Self {
        Self { redis: redis.clone(), key: key.to_owned(), from: "-".to_owned(), until }
    }

    /// Only that one entry.
    pub fn one(redis: &Redis, key: &str, id: EntryId) -> Self {
        Self { redis: redis.clone(), key: key.to_owned(), from: id.to_string(), until: id }
    }

    /// The next page; empty: that was all.
    ///
    /// # Errors
    /// Redis is away or refuses.
    pub async fn next(&mut self) -> Result<Vec<RawEntry>, RedisError> {
        let mut eval = ::redis::cmd("EVAL");
        eval.arg(PAGE).arg(1).arg(&self.key).arg(&self.from).arg(self.until.to_string()).arg(PAGE_MAX).arg(PAGE_BYTES);
        let page: Vec<(String, Vec<Vec<u8>>)> = query(&self.redis, &self.key, &eval).await?;
        if let Some((last, _)) = page.last() {
            self.from = format!("({last}");
        }
        let entry = |(id, fields): (String, Vec<Vec<u8>>)| {
            let mut fields = fields.into_iter();
            let pairs = std::iter::from_fn(|| Some((fields.next()?, fields.next().unwrap_or_default())));
            Some(RawEntry { id: id.parse().ok()?, fields: pairs.collect() })
        };
        Ok(page.into_iter().filter_map(entry).collect())
    }
}

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// It is gone, by this or by somebody else.
    Done,
    /// A worker has it in hand.
    InHand,
}

/// Removes an entry, or of one of several people what is to go.
///
/// # Errors
/// Redis is away or refuses.
pub async fn remove(
    redis: &Redis,
    stream: &str,
    entry: &RawEntry,
    runs: &[(u32, Vec<u8>)],
    claim_idle_ms: u64,
) -> Result<Removed, RedisError> {
    let replayed = entry.field(ORIGIN_FIELD).and_then(ReplayOrigin::parse);
    let origin = replayed.unwrap_or_else(|| ReplayOrigin { stream: stream.to_owned(), id: entry.id, index: 0 });
    let name = if let Some(Payload::MessagePack(_)) = entry.payload() { "data" } else { "json" };
    let mut eval = ::redis::cmd("EVAL");
    eval.arg(REMOVE.replace("{origin}", ORIGIN_FIELD)).arg(1).arg(stream).arg(entry.id.to_string()).arg(claim_idle_ms);
    eval.arg(entry.field("traceparent").unwrap_or_default());
    for (from, run) in runs {
        let origin = ReplayOrigin { index: origin.index.saturating_add(*from), ..origin.clone() };
        eval.arg(name).arg(run.as_slice()).arg(origin.to_string());
    }
    match query::<i64>(redis, stream, &eval).await? {
        -1 => Ok(Removed::InHand),
        _ => Ok(Removed::Done),
    }
}

/// Removes the dead letters of one stream that are meant, or counts them. Returns how many.
///
/// # Errors
/// Redis is away or refuses; what is done is done.
pub async fn letters(redis: &Redis, stream: &str, wanted: &Wanted, act: bool) -> Result<u64, RedisError> {
    // What is put in the place of a letter comes behind the newest of now.
    let Some(newest) = dead::newest(redis, stream).await? else { return Ok(0) };
    let range = Range { from: EntryId::default(), until: newest };
    let mut pages = Pages::new(redis, stream, range, Order::Whole);
    let mut count = 0;
    loop {
        let page = pages.next().await?;
        if page.is_empty() {
            return Ok(count);
        }
        for letter in page {
            let verdict = match &letter.kept {
                Kept::MessagePack(payload) => split(Payload::MessagePack(payload), wanted),
                Kept::Json(payload) => split(Payload::Json(payload), wanted),
                Kept::Entry(fields) => judge(fields, wanted),
            };
            let runs = match verdict {
                Split::Untouched => continue,
                Split::Whole(_) => Vec::new(),
                Split::Mixed(_, runs) => runs,
            };
            count += 1;
            if !act {
                continue;
            }
            let mut eval = ::redis::cmd("EVAL");
            eval.arg(REPLACE_LETTER).arg(1).arg(Streams::dead(stream)).arg(letter.id.to_string());
            for (from, run) in runs {
                let fields = replacement(&letter, from, run);
                eval.arg(2 * fields.len());
                for (name, value) in fields {
                    eval.arg(name).arg(value);
                }
            }
            query::<u64>(redis, stream, &eval).await?;
        }
    }
}

/// The fields of the letter with a run of the events of another.
fn replacement(letter: &Letter, from: u32, run: Vec<u8>) -> Fields {
    let origin = letter.origin.clone().unwrap_or_else(|| ReplayOrigin { stream: String::new(), id: letter.id, index: 0 });
    let index = origin.index.saturating_add(from).to_string();
    let ours = [
        ("src", origin.stream.as_str()),
        ("src_id", &origin.id.to_string()),
        ("index", &index),
        ("code", &letter.code),
        ("reason", &letter.reason),
        ("failed_at", &letter.failed_at),
    ]
    .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()));
    match &letter.kept {
        Kept::MessagePack(_) => ours.into_iter().chain([(b"data".to_vec(), run)]).collect(),
        Kept::Json(_) => ours.into_iter().chain([(b"json".to_vec(), run)]).collect(),
        Kept::Entry(own) => {
            let is_payload = |name: &[u8]| matches!(name, b"data" | b"json");
            let own = own.iter().map(|(name, value)| (name.clone(), if is_payload(name) { run.clone() } else { value.clone() }));
            own.chain(ours).collect()
        }
    }
}

/// Keys of the session hashes that say they are of this user.
///
/// # Errors
/// Redis is away or refuses.
pub async fn hashes_of(redis: &Redis, streams: &Streams, user: &str) -> Result<HashSet<String>, RedisError> {
    // A prefix may hold what means something in a pattern.
    let escaped: String =
        streams.session("").chars().flat_map(|c| (r"*?[]\".contains(c)).then_some('\\').into_iter().chain([c])).collect();
    let mut keys = HashSet::new();
    // In a cluster every server has its part of the keys.
    for node in &redis.topology.map().await?.nodes {
        let mut cursor = "0".to_owned();
        loop {
            let mut scan = ::redis::cmd("SCAN");
            scan.arg(&cursor).arg("MATCH").arg(format!("{escaped}*")).arg("COUNT").arg(SCAN_COUNT);
            let (next, found): (String, Vec<String>) = node.query(&scan).await?;
            for found in found.chunks(SCAN_COUNT) {
                let mut pipeline = ::redis::Pipeline::new();
                pipeline.ignore_errors();
                for key in found {
                    pipeline.cmd("HGET").arg(key).arg("user_id");
                }
                let users: Vec<::redis::RedisResult<Value>> = node.pipeline(&pipeline).await?;
                let is_user =
                    |value: &::redis::RedisResult<Value>| matches!(value, Ok(Value::BulkString(text)) if text == user.as_bytes());
                keys.extend(found.iter().zip(&users).filter(|(_, value)| is_user(value)).map(|(key, _)| key.clone()));
            }
            if next == "0" {
                break;
            }
            cursor = next;
        }
    }
    Ok(keys)
}

/// Which of these keys are there; removes them if asked to. Returns how many.
///
/// # Errors
/// Redis is away or refuses.
pub async fn hashes(redis: &Redis, keys: &[String], act: bool) -> Result<u64, RedisError> {
    let mut count = 0;
    for (place, keys) in redis.by_server(keys, Clone::clone).await? {
        for keys in keys.chunks(SCAN_COUNT) {
            // One command a key: in a cluster each has its own slot.
            let mut pipeline = ::redis::Pipeline::new();
            for key in keys {
                pipeline.cmd(if act { "DEL" } else { "EXISTS" }).arg(*key);
            }
            let done: Vec<u64> = place.node.pipeline(&pipeline).await.inspect_err(|error| redis.doubt(&place, error))?;
            count += done.iter().sum::<u64>();
        }
    }
    Ok(count)
}
