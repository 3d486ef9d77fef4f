//! What is told to Redis about entries: forwarded, set aside, acknowledged, renewed, released.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::redis::Pipeline;

use super::error::RedisError;
use super::pending::CLAIM_COUNT;
use super::{Line, Redis, query};
use crate::config::Streams;
use crate::seam::{Answer, DeadBody, EntryId, Setaside, Settle, Settlement, WriteError};

/// Ids a command: an acknowledgement of 2,000 keeps the server for under a millisecond.
const IDS_MAX: usize = 2_000;
/// Entries whose dead letters are written in one pipeline.
const DEAD_MAX: usize = 32;
/// Bytes of forwarded events in one pipeline.
const FORWARD_BYTES_MAX: usize = 1 << 20;

/// Acknowledges an entry and writes its dead letters in one step. Only who really acknowledges it writes them: whatever is
/// delivered twice, claimed in between or asked again after a lost reply, an event has one dead letter.
///
/// The `#!lua` line makes Redis refuse the script as a whole when it is out of memory.
const SET_ASIDE: &str = "#!lua
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
local at = 5
for _ = 1, tonumber(ARGV[4]) do
  local own = {'src', ARGV[at], 'src_id', ARGV[at+1], 'index', ARGV[at+2], 'code', ARGV[at+3], 'reason', ARGV[at+4], 'failed_at', ARGV[at+5]}
  if ARGV[at+6] == '*' then
    local found = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])
    local fields = found[1] and found[1][2] or {}
    for i = #fields, 2001, -1 do fields[i] = nil end
    for i = 1, #own do fields[#fields+1] = own[i] end
    redis.call('XADD', KEYS[2], '*', unpack(fields))
  else
    own[13] = ARGV[at+6]
    own[14] = ARGV[at+7]
    redis.call('XADD', KEYS[2], '*', unpack(own))
  end
  at = at + 8
end
return redis.call('XTRIM', KEYS[2], 'MAXLEN', ARGV[3])
";

/// Claims a consumer's entries for itself, in one step: a server that is slow to answer is asked once for a thousand, and what
/// another consumer took over stays with that one. It takes no memory to speak of, so a server that has none left runs it as well.
const CLAIM_OWN: &str = "#!lua flags=allow-oom
local key, group, consumer, idle, to, after, count = KEYS[1], unpack(ARGV)
local found = redis.call('XPENDING', key, group, 'IDLE', idle, after, '+', count, consumer)
if #found == 0 then return {0, ''} end
local claim = {'XCLAIM', key, group, consumer, idle}
for _, entry in ipairs(found) do claim[#claim+1] = entry[1] end
claim[#claim+1] = 'IDLE'
claim[#claim+1] = to
claim[#claim+1] = 'JUSTID'
redis.call(unpack(claim))
return {#found, found[#found][1]}
";

/// Removes consumers that hold nothing: the one named, or all that were idle for long. Checked and done in one step, so that
/// no pending entry can be discarded, whoever else cleans at the same time. It frees memory, so a server without any runs it too.
const REMOVE_CONSUMERS: &str = "#!lua flags=allow-oom
local removed = 0
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local it = {}
  for i = 1, #consumer, 2 do it[consumer[i]] = consumer[i+1] end
  local meant
  if ARGV[2] == '' then meant = it['idle'] > tonumber(ARGV[3]) else meant = it['name'] == ARGV[2] end
  if meant and it['pending'] == 0 then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], it['name'])
    removed = removed + 1
  end
end
return removed
";

/// Settles entries of one stream.
pub struct Settler {
    redis: Redis,
    key: String,
    dead_key: String,
    forward_key: String,
    group: String,
    consumer: String,
    dead_max: u64,
    claim_idle: Duration,
}

/// What a settler is made with.
pub struct SettlerSettings {
    /// The stream.
    pub key: String,
    /// Where events for the embeddings lane go.
    pub forward_key: String,
    /// Dead letters kept.
    pub dead_max: u64,
    /// See `AEGIS_CLAIM_IDLE`.
    pub claim_idle: Duration,
}

impl Settler {
    /// A settler for one stream.
    pub fn new(redis: Redis, streams: &Streams, settings: SettlerSettings) -> Self {
        Self {
            redis,
            dead_key: Streams::dead(&settings.key),
            key: settings.key,
            forward_key: settings.forward_key,
            group: streams.group.clone(),
            consumer: streams.consumer.clone(),
            dead_max: settings.dead_max,
            claim_idle: settings.claim_idle,
        }
    }

    async fn forward(&self, line: &mut Line<'_>, forwards: &[Vec<u8>]) -> Result<(), RedisError> {
        let mut left = forwards;
        while !left.is_empty() {
            let mut pipeline = Pipeline::new();
            let (mut count, mut bytes) = (0, 0);
            for data in left {
                if count > 0 && bytes + data.len() > FORWARD_BYTES_MAX {
                    break;
                }
                pipeline.cmd("XADD").arg(&self.forward_key).arg("*").arg("data").arg(data.as_slice()).ignore();
                count += 1;
                bytes += data.len();
            }
            line.pipeline::<()>(&pipeline).await?;
            left = &left[count..];
        }
        Ok(())
    }

    async fn set_aside(&self, line: &mut Line<'_>, dead: &mut Vec<(EntryId, Vec<Setaside>)>) -> Result<u64, RedisError> {
        let mut dropped = 0;
        while !dead.is_empty() {
            let from = dead.len().saturating_sub(DEAD_MAX);
            let failed_at = rfc3339_now();
            let mut pipeline = Pipeline::new();
            for (id, letters) in &dead[from..] {
                let command = pipeline.cmd("EVAL").arg(SET_ASIDE).arg(2).arg(&self.key).arg(&self.dead_key);
                command.arg(&self.group).arg(id.to_string()).arg(self.dead_max).arg(letters.len());
                for letter in letters {
                    let origin = &letter.origin;
                    command.arg(&origin.stream).arg(origin.id.to_string()).arg(origin.index);
                    command.arg(letter.fault.code.name()).arg(&letter.fault.reason).arg(&failed_at);
                    match &letter.body {
                        DeadBody::MessagePack(bytes) => command.arg("data").arg(bytes.as_ref()),
                        DeadBody::Json(bytes) => command.arg("json").arg(bytes.as_ref()),
                        DeadBody::WholeEntry => command.arg("*").arg(""),
                    };
                }
            }
            dropped += line.pipeline::<Vec<u64>>(&pipeline).await?.iter().sum::<u64>();
            dead.truncate(from);
        }
        Ok(dropped)
    }

    async fn settle_at_once(&self, settlement: &mut Settlement) -> Result<u64, RedisError> {
        // One connection: a replica that is promoted in between may lack what was forwarded, and an acknowledgement that it
        // takes must not outlive that.
        let mut line = Line::to(&self.redis, &self.key).await?;
        // What others depend on comes first, the acknowledgement last.
        self.forward(&mut line, &settlement.forwards).await?;
        let dropped = self.set_aside(&mut line, &mut settlement.dead).await?;
        self.acknowledge(&mut line, &mut settlement.acks).await?;
        // Not before, for the same reason. Twice forwarded is one vector.
        settlement.forwards.clear();
        Ok(dropped)
    }

    async fn acknowledge(&self, line: &mut Line<'_>, acks: &mut Vec<EntryId>) -> Result<(), RedisError> {
        while !acks.is_empty() {
            let from = acks.len().saturating_sub(IDS_MAX);
            let mut command = ::redis::cmd("XACK");
            command.arg(&self.key).arg(&self.group);
            // One for each entry that was ever read: the general formatting of numbers shows.
            let (mut text, mut digits) = (Vec::with_capacity(41), itoa::Buffer::new());
            for id in &acks[from..] {
                text.clear();
                text.extend_from_slice(digits.format(id.ms).as_bytes());
                text.push(b'-');
                text.extend_from_slice(digits.format(id.seq).as_bytes());
                command.arg(text.as_slice());
            }
            line.query::<u64>(&command).await?;
            acks.truncate(from);
        }
        Ok(())
    }

    /// Claims all of this worker's pending entries that were idle for at least `from` for it again and gives them the idle time
    /// `to`: 0 renews them, a long one leaves them to the next. Returns how many.
    async fn claim_own(&self, from: Duration, to: Duration) -> Result<usize, RedisError> {
        let (mut after, mut claimed) = ("-".to_owned(), 0);
        loop {
            let mut command = ::redis::cmd("EVAL");
            command.arg(CLAIM_OWN).arg(1).arg(&self.key).arg(&self.group).arg(&self.consumer);
            command.arg(from.as_millis() as u64).arg(to.as_millis() as u64).arg(&after).arg(CLAIM_COUNT);
            let (found, last): (usize, String) = query(&self.redis, &self.key, &command).await?;
            claimed += found;
            if found < CLAIM_COUNT {
                return Ok(claimed);
            }
            after = format!("({last}");
        }
    }

    /// Renews the idle time of what has been this worker's for a third of `AEGIS_CLAIM_IDLE` or longer. Returns how many.
    ///
    /// Not of what is in hand alone: part of a reply may still be on its way, while nothing can be written. What nobody waits
    /// for, since its delivery was lost, the reader finds by itself.
    ///
    /// # Errors
    /// Redis is away or refuses.
    pub async fn renew(&self) -> Result<usize, RedisError> {
        self.claim_own(self.claim_idle / 3, Duration::ZERO).await
    }

    /// Leaves the group: what is still pending for this worker is left for others to take at once, and the consumer is removed
    /// if it holds nothing. Returns how many entries were left.
    ///
    /// # Errors
    /// Redis is away or refuses; the entries are taken over after `AEGIS_CLAIM_IDLE` then.
    pub async fn leave(&self) -> Result<usize, RedisError> {
        // Any idle time above everybody's AEGIS_CLAIM_IDLE will do; a day is the longest that can be set.
        let left = self.claim_own(Duration::ZERO, Duration::from_hours(48)).await?;
        self.remove_consumers(&self.consumer, Duration::ZERO).await?;
        Ok(left)
    }

    async fn remove_consumers(&self, name: &str, idle: Duration) -> Result<u64, RedisError> {
        let mut command = ::redis::cmd("EVAL");
        command.arg(REMOVE_CONSUMERS).arg(1).arg(&self.key).arg(&self.group).arg(name).arg(idle.as_millis() as u64);
        query(&self.redis, &self.key, &command).await
    }
}

/// Removes consumers that hold nothing and have not asked for anything for long. Returns how many.
///
/// # Errors
/// Redis is away or refuses.
pub async fn remove_gone_consumers(settler: &Settler) -> Result<u64, RedisError> {
    // A living reader asks each second; one that is removed by mistake comes back with its next read, having lost nothing.
    settler.remove_consumers("", (settler.claim_idle * 2).max(Duration::from_secs(10))).await
}

impl Settle for Settler {
    async fn settle(&self, settlement: &mut Settlement) -> Result<u64, WriteError> {
        let mut done = self.settle_at_once(settlement).await;
        if let Err(RedisError::Moved(_)) = done {
            // The map that is asked for now knows where to; when not, it is an outage.
            done = self.settle_at_once(settlement).await;
        }
        done.map_err(|error| match error.answer() {
            // A group that is gone has no pending entries to settle; the reader makes it again and the entries come back.
            Answer::Wait => WriteError::Away(error.to_string()),
            Answer::Stop | Answer::SetAside => WriteError::Bug(error.to_string()),
        })
    }
}

fn rfc3339_now() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    jiff::Timestamp::from_millisecond(now.as_millis() as i64).map_or_else(|_| String::new(), |now| now.to_string())
}
