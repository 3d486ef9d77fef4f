//! Trimming: what every group of a stream has settled goes, once it is older than `AEGIS_RETAIN`.
//!
//! **Architecture invariant:** what may go is found and removed in one script, so nothing can happen in between: no new group,
//! no claim, no XGROUP SETID, no other trimmer. Without our groups nothing goes.
//!
//! An entry may go when its id is below the last delivered id of every group and it is pending in none. Up to the first pending
//! entry that is a plain XTRIM. Behind it, where the server knows `ACKED` (Redis since 8.2), the settled ones go from between
//! the pending ones; elsewhere they wait, and who holds them back is told ([`Hold`]).

use std::time::Duration;

use super::{Redis, RedisError, inspect, query};
use crate::seam::EntryId;

/// How long a worker is the only one to trim a stream after it last did.
const LEASE: Duration = Duration::from_secs(15);

/// Ids as texts, since a number of Lua holds only 53 bits; and `due`, below which entries are old enough (by Redis's clock, which
/// made their ids).
macro_rules! ids {
    () => {
        "
local function less(a, b)
  local am, as = string.match(a, '^(%d+)%-(%d+)$')
  local bm, bs = string.match(b, '^(%d+)%-(%d+)$')
  if am ~= bm then return #am < #bm or (#am == #bm and am < bm) end
  return #as < #bs or (#as == #bs and as < bs)
end
local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
local due_ms = math.max(0, now_ms - ARGV[1])
local due = string.format('%.0f-0', due_ms)
"
    };
}

/// How the groups stand: `unread` and `pending` are the lowest ids that some group has not read or not acknowledged, `holds` are
/// the groups for whose sake entries stay that are old enough, with the consumer where they are pending, and the first such entry.
macro_rules! stand {
    () => {
        "
local unread, pending, pending_count, holds = nil, nil, 0, {}
local missing = ' ' .. ARGV[2] .. ' '
local function after(id)
  local ms, seq = string.match(id, '^(%d+)%-(%d+)$')
  if #seq > 15 then return id end
  return ms .. '-' .. string.format('%.0f', seq + 1)
end
local function lesser(a, b) if a and (not b or less(a, b)) then return a end return b end
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
if groups.err then
  if string.find(groups.err, 'no such key', 1, true) then groups = {} else return groups end
end
for _, group in ipairs(groups) do
  local it = {}
  for i = 1, #group, 2 do it[group[i]] = group[i+1] end
  local from, to = string.find(missing, ' ' .. it['name'] .. ' ', 1, true)
  if from then missing = string.sub(missing, 1, from) .. string.sub(missing, to) end
  local read = after(it['last-delivered-id'])
  unread = lesser(read, unread)
  local held, consumer
  if it['pending'] > 0 then
    pending_count = pending_count + it['pending']
    local first = redis.call('XPENDING', KEYS[1], it['name'], '-', '+', 1)[1]
    if first then
      pending = lesser(first[1], pending)
      if less(first[1], read) and less(first[1], due) then held, consumer = first[1], first[2] end
    end
  end
  if not held and less(read, due) then
    local next = redis.call('XRANGE', KEYS[1], read, '(' .. due, 'COUNT', 1)[1]
    if next then held, consumer = next[1], '' end
  end
  if held and #holds < 16 then holds[#holds+1] = {it['name'], consumer, held} end
end
local own = not string.find(missing, '%S')
"
    };
}

/// One step of trimming. The second key says who trims until when, and how much went in all since the stream began. Each XTRIM is bounded: `~` by its limit, `=` by the node that `~` left, `ACKED` by 20 ms of the stream
/// and by the number of pending entries, which it walks past. A server that is out of memory needs this more than ever.
const TRIM: &str = concat!(
    "#!lua flags=allow-oom
",
    ids!(),
    "
local lease = redis.call('HMGET', KEYS[2], 'by', 'until')
if lease[1] and lease[1] ~= ARGV[3] and tonumber(lease[2]) > now_ms then return {0, 0, ARGV[5], ARGV[6], 0, {}} end
",
    stand!(),
    "
if not own then return {0, 0, ARGV[5], ARGV[6], due_ms, {}} end
local limit = lesser(due, unread)
local plain = lesser(limit, pending)
local more, acked, from, trimmed = 0, ARGV[5], ARGV[6], 0
local function added()
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do if info[i] == 'entries-added' then return info[i+1] end end
  return math.huge
end
local behind = nil
if acked == '1' and less(plain, limit) and pending_count <= 1000 then
  if less(from, pending) then from = pending end
  behind = redis.call('XRANGE', KEYS[1], from, '(' .. limit, 'COUNT', 1)[1]
end
local first = redis.call('XRANGE', KEYS[1], '-', '(' .. plain, 'COUNT', 1)[1]
if not first and not behind then return {0, 0, acked, from, due_ms, holds} end
redis.call('HSET', KEYS[2], 'by', ARGV[3], 'until', string.format('%.0f', now_ms + ARGV[4]))
local function done()
  if trimmed > 0 and redis.call('HINCRBY', KEYS[2], 'trimmed', trimmed) > added() then redis.call('HSET', KEYS[2], 'trimmed', trimmed) end
  return {trimmed, more, acked, from, due_ms, holds}
end
if first then
  -- Where nodes hold more than that many entries, the server's own bound: a hundred nodes.
  trimmed = redis.call('XTRIM', KEYS[1], 'MINID', '~', plain, 'LIMIT', 2000)
  if trimmed == 0 then trimmed = redis.call('XTRIM', KEYS[1], 'MINID', '~', plain) end
  if trimmed > 0 then
    more = 1
    return done()
  end
  trimmed = redis.call('XTRIM', KEYS[1], 'MINID', '=', plain)
end
if behind then
  local until_id = limit
  local ms = string.match(behind[1], '^(%d+)')
  if #ms <= 15 then until_id = lesser(limit, string.format('%.0f-0', ms + 20)) end
  local gone = redis.pcall('XTRIM', KEYS[1], 'MINID', '=', until_id, 'ACKED')
  if type(gone) == 'table' then
    acked = '0'
  else
    trimmed, from = trimmed + gone, until_id
    if less(until_id, limit) then more = 1 end
  end
end
return done()
"
);

/// Who holds back trimming, without trimming.
const LOOK: &str = concat!(
    "#!lua flags=no-writes
",
    ids!(),
    stand!(),
    "
if not own then return {due_ms, {}} end
return {due_ms, holds}
"
);

/// Of own pending entries that are old enough to be trimmed once they are settled: those that are pending and that the stream does
/// not hold any more. They were lost; they are acknowledged. What is missing and not pending was settled, and then trimmed.
const GONE: &str = concat!(
    "#!lua flags=allow-oom
",
    ids!(),
    "
local gone = {}
for i = 3, #ARGV do
  local id = ARGV[i]
  if less(id, due) and not redis.call('XRANGE', KEYS[1], id, id)[1] and redis.call('XPENDING', KEYS[1], ARGV[2], id, id, 1)[1] then
    redis.call('XACK', KEYS[1], ARGV[2], id)
    gone[#gone+1] = id
  end
end
return {due_ms, gone}
"
);

/// A group for whose sake entries stay in the stream that are older than `AEGIS_RETAIN`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Its name.
    pub group: String,
    /// Whose pending entry it is; `None`: the group has not read it.
    pub consumer: Option<String>,
    /// The first entry that the group has not settled.
    pub entry: EntryId,
    /// How long the entry has been older than `AEGIS_RETAIN`.
    pub past: Duration,
}

/// What one step did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Entries that went.
    pub trimmed: u64,
    /// Whether more can go at once.
    pub more: bool,
    /// Groups that hold trimming back, at most 16; none also when another worker trims this stream.
    pub holds: Vec<Hold>,
}

type Holds = Vec<(String, String, String)>;

fn holds(found: Holds, due_ms: u64) -> Vec<Hold> {
    let hold = |(group, consumer, entry): (String, String, String)| {
        let entry: EntryId = entry.parse().ok()?;
        let past = Duration::from_millis(due_ms.saturating_sub(entry.ms));
        Some(Hold { group, consumer: Some(consumer).filter(|name| !name.is_empty()), entry, past })
    };
    found.into_iter().filter_map(hold).collect()
}

/// Trims one stream, step by step.
pub struct Trimmer {
    redis: Redis,
    key: String,
    /// Separated by spaces, of which a group's name has none.
    groups: String,
    consumer: String,
    retain: Duration,
    /// Whether the server knows `ACKED`; `None`: not asked yet.
    acked: Option<bool>,
    /// Up to where entries behind pending ones have gone.
    from: String,
}

impl Trimmer {
    /// For the stream `key`, of which entries younger than `retain` stay, and all as long as one of our `groups` is absent.
    pub fn new(redis: Redis, key: &str, groups: &[String], consumer: &str, retain: Duration) -> Self {
        let [key, consumer] = [key, consumer].map(str::to_owned);
        Self { redis, key, groups: groups.join(" "), consumer, retain, acked: None, from: "0-0".to_owned() }
    }

    /// The stream.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Takes away some entries, about 2,000 at most: some hundred microseconds of the server.
    ///
    /// # Errors
    /// Redis is away or refuses.
    pub async fn step(&mut self) -> Result<Step, RedisError> {
        let acked = match self.acked {
            Some(acked) => acked,
            None => knows_acked(&inspect::server(&self.redis, &self.key).await?.version),
        };
        let mut command = ::redis::cmd("EVAL");
        command.arg(TRIM).arg(2).arg(&self.key).arg(inspect::trimmer_key(&self.key));
        command.arg(self.retain.as_millis() as u64).arg(&self.groups).arg(&self.consumer).arg(LEASE.as_millis() as u64);
        command.arg(u8::from(acked)).arg(&self.from);
        // Another server may answer after a failure.
        self.acked = None;
        let reply: (u64, u8, String, String, u64, Holds) = query(&self.redis, &self.key, &command).await?;
        let (trimmed, more, acked, from, due_ms, found) = reply;
        self.acked = Some(acked == "1");
        self.from = from;
        Ok(Step { trimmed, more: more == 1, holds: holds(found, due_ms) })
    }
}

/// Redis has `XTRIM … ACKED` since 8.2; 8.2.0 could end over it.
fn knows_acked(version: &str) -> bool {
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next(), next()) >= (8, 2, 1)
}

/// Groups that hold back the trimming of a stream, at most 16.
///
/// # Errors
/// Redis is away or refuses.
pub async fn look(redis: &Redis, key: &str, groups: &[String], retain: Duration) -> Result<Vec<Hold>, RedisError> {
    let mut command = ::redis::cmd("EVAL");
    command.arg(LOOK).arg(1).arg(key).arg(retain.as_millis() as u64).arg(groups.join(" "));
    let (due_ms, found): (u64, Holds) = query(redis, key, &command).await?;
    Ok(holds(found, due_ms))
}

/// Acknowledges those of the given pending entries that are old enough for trimming and were deleted before they were settled, and
/// returns them, with the time below which a missing entry may have been settled and trimmed.
///
/// # Errors
/// Redis is away or refuses.
pub(super) async fn deleted_unsettled(
    redis: &Redis,
    key: &str,
    group: &str,
    retain: Duration,
    ids: impl Iterator<Item = EntryId>,
) -> Result<(Vec<EntryId>, EntryId), RedisError> {
    let mut command = ::redis::cmd("EVAL");
    command.arg(GONE).arg(1).arg(key).arg(retain.as_millis() as u64).arg(group);
    for id in ids {
        command.arg(id.to_string());
    }
    let (due_ms, gone): (u64, Vec<String>) = query(redis, key, &command).await?;
    Ok((gone.iter().filter_map(|id| id.parse().ok()).collect(), EntryId { ms: due_ms, seq: 0 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acked_is_asked_of_servers_that_have_it() {
        for (version, knows) in [
            ("8.2.1", true),
            ("8.6.3", true),
            ("9.0.0", true),
            ("8.10.0", true),
            ("8.2.0", false),
            ("8.0.2", false),
            ("7.2.4", false),
            ("", false),
        ] {
            assert_eq!(knows_acked(version), knows, "{version}");
        }
    }
}
