//! The hash of a session: the convergent state for reads in under a millisecond.

use std::time::Duration;

use ::redis::{Pipeline, Script};

use super::{Redis, RedisError};
use crate::config::SessionTtl;
use crate::event::SessionState;

/// Merges one session's state into its hash: two registers, each replaced by a later version only. Versions are texts of
/// fixed width that order like (`seq`, `occurred_at`, `event_id`).
const MERGE: &str = "#!lua
local old = redis.call('HMGET', KEYS[1], 'status_version', 'state_version', 'started_at')
local set, started = {}, tonumber(ARGV[3])
if old[3] and tonumber(old[3]) < started then started = tonumber(old[3]) end
set[1], set[2] = 'started_at', string.format('%.0f', started)
if not old[1] or old[1] <= ARGV[1] then
  set[3], set[4], set[5], set[6], set[7], set[8] = 'user_id', ARGV[4], 'status', ARGV[5], 'seq', ARGV[6]
  set[9], set[10], set[11], set[12] = 'updated_at', ARGV[7], 'status_version', ARGV[1]
  if ARGV[8] == '' then redis.call('HDEL', KEYS[1], 'ended_at') else set[13], set[14] = 'ended_at', ARGV[8] end
end
if ARGV[2] ~= '' and (not old[2] or old[2] <= ARGV[2]) then
  local n = #set
  set[n+1], set[n+2], set[n+3], set[n+4] = 'state', ARGV[9], 'state_version', ARGV[2]
end
redis.call('HSET', KEYS[1], unpack(set))
if not old[1] or old[1] <= ARGV[1] then redis.call('PEXPIRE', KEYS[1], ARGV[10]) end
return 1
";

/// Hashes merged in one pipeline.
const PIPELINE_MAX: usize = 500;

/// Writes session hashes.
#[derive(Clone)]
pub struct SessionHashes {
    redis: Redis,
    prefix: String,
    ttl: SessionTtl,
    script: Script,
}

impl SessionHashes {
    /// Hashes under `<prefix>:session:`.
    pub fn new(redis: Redis, prefix: &str, ttl: SessionTtl) -> Self {
        Self { redis, prefix: prefix.to_owned(), ttl, script: Script::new(MERGE) }
    }

    /// Merges sessions into their hashes; any number of times and in any order with the same outcome.
    ///
    /// # Errors
    /// Redis is away or refuses; some hashes may be merged.
    pub async fn merge(&self, sessions: &[SessionState]) -> Result<(), RedisError> {
        let mut connection = self.redis.connection().await?;
        for sessions in sessions.chunks(PIPELINE_MAX) {
            loop {
                match self.pipeline(sessions).exec_async(&mut connection).await.map_err(|error| RedisError::from(&error)) {
                    Ok(()) => break,
                    // A restart or SCRIPT FLUSH forgot it.
                    Err(RedisError::NoScript) => {
                        let load = self.script.prepare_invoke().load_async(&mut connection).await;
                        load.map_err(|error| RedisError::from(&error))?;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn pipeline(&self, sessions: &[SessionState]) -> Pipeline {
        let ms = |us: i64| us.div_euclid(1000);
        let ttl = |ttl: Duration| ttl.as_millis() as u64;
        let mut pipeline = Pipeline::new();
        for session in sessions {
            let (state, state_version) = match &session.state {
                Some((version, state)) => (state.as_str(), version.text()),
                None => ("", String::new()),
            };
            let ended = session.ended_at_us.map(|us| ms(us).to_string()).unwrap_or_default();
            let (updated, started) = (ms(session.status_version.at_us), ms(session.started_at_us));
            pipeline
                .cmd("EVALSHA")
                .arg(self.script.get_hash())
                .arg(1)
                .arg(format!("{}:session:{}", self.prefix, session.session_id))
                .arg(session.status_version.text())
                .arg(state_version)
                .arg(started)
                .arg(&session.user_id)
                .arg(&session.status)
                .arg(session.status_version.seq)
                .arg(updated)
                .arg(ended)
                .arg(state)
                .arg(if session.ended_at_us.is_some() { ttl(self.ttl.ended) } else { ttl(self.ttl.open) })
                .ignore();
        }
        pipeline
    }
}
