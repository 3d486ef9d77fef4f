//! The hash of a session: the convergent state for reads in under a millisecond.

use ::redis::{Pipeline, Script};

use super::{Place, Redis, RedisError};
use crate::config::SessionTtl;
use crate::event::SessionState;

/// Merges the states of sessions into their hashes: two registers, each replaced by a later version only. Versions are texts
/// of fixed width that order like (`seq`, `occurred_at`, `event_id`). Returns which hashes were not there and got no state map.
const MERGE: &str = "#!lua
local keys, argv, call = KEYS, ARGV, redis.call
local bare, ttl_open, ttl_ended = {}, argv[1], argv[2]
for i = 1, #keys do
  local key, at = keys[i], (i - 1) * 8 + 2
  local status_version, state_version, started = argv[at+1], argv[at+2], argv[at+3]
  local old = call('HMGET', key, 'status_version', 'state_version', 'started_at', 'ended_at')
  local later = not old[1] or old[1] <= status_version
  local new_state = state_version ~= '' and (not old[2] or old[2] <= state_version)
  if old[3] and old[3] ~= started and tonumber(old[3]) < tonumber(started) then started = old[3] end
  if later then
    local user, status, seq, updated = argv[at+4], argv[at+5], argv[at+6], argv[at+7]
    local ended = status == 'ended'
    if new_state and ended then
      call('HSET', key, 'started_at', started, 'user_id', user, 'status', status, 'seq', seq, 'updated_at', updated,
        'status_version', status_version, 'ended_at', updated, 'state', argv[at+8], 'state_version', state_version)
    elseif new_state then
      call('HSET', key, 'started_at', started, 'user_id', user, 'status', status, 'seq', seq, 'updated_at', updated,
        'status_version', status_version, 'state', argv[at+8], 'state_version', state_version)
    else
      call('HSET', key, 'started_at', started, 'user_id', user, 'status', status, 'seq', seq, 'updated_at', updated,
        'status_version', status_version)
      if ended then call('HSET', key, 'ended_at', updated) end
    end
    if old[4] and not ended then call('HDEL', key, 'ended_at') end
    call('PEXPIRE', key, ended and ttl_ended or ttl_open)
  elseif new_state then
    call('HSET', key, 'started_at', started, 'state', argv[at+8], 'state_version', state_version)
  elseif started ~= old[3] then
    call('HSET', key, 'started_at', started)
  end
  if not old[2] and state_version == '' then bare[#bare+1] = i end
end
return bare
";

/// Hashes merged by one call: some hundred microseconds of the server.
const CALL_MAX: usize = 32;
/// Calls in one pipeline.
const PIPELINE_MAX: usize = 16;

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

    /// Merges sessions into their hashes; any number of times and in any order with the same outcome. Returns the sessions
    /// whose hash lacks a state map that the table has: it had expired, or was lost.
    ///
    /// # Errors
    /// Redis is away or refuses; some hashes may be merged.
    pub async fn merge<'a>(&self, sessions: &'a [SessionState]) -> Result<Vec<&'a SessionState>, RedisError> {
        let parts = self.redis.by_server(sessions, |session| self.key(session)).await?;
        let merged = parts.iter().map(async |(place, sessions)| {
            let bare = self.merge_at(place, sessions).await;
            bare.inspect_err(|error| self.redis.doubt(place, error))
        });
        Ok(futures_util::future::try_join_all(merged).await?.concat())
    }

    /// The same for sessions whose hashes are on one server.
    async fn merge_at<'a>(&self, place: &Place, sessions: &[&'a SessionState]) -> Result<Vec<&'a SessionState>, RedisError> {
        // The hashes of one call have to be in one slot.
        let call_max = if self.redis.topology.is_cluster() { 1 } else { CALL_MAX };
        let mut connection = place.node.connection().await?;
        let mut bare = Vec::new();
        for sessions in sessions.chunks(CALL_MAX * PIPELINE_MAX) {
            let replies: Vec<Vec<usize>> = loop {
                let replies = self.pipeline(sessions, call_max).query_async(&mut connection).await;
                match replies.map_err(|error| RedisError::from(&error)) {
                    Ok(replies) => break replies,
                    // A restart or SCRIPT FLUSH forgot it.
                    Err(RedisError::NoScript) => {
                        let load = self.script.prepare_invoke().load_async(&mut connection).await;
                        load.map_err(|error| RedisError::from(&error))?;
                    }
                    Err(error) => return Err(error),
                }
            };
            for (sessions, reply) in sessions.chunks(call_max).zip(replies) {
                let lacking = reply.into_iter().filter_map(|number| sessions.get(number.checked_sub(1)?).copied());
                bare.extend(lacking.filter(|session| session.stateful));
            }
        }
        Ok(bare)
    }

    fn key(&self, session: &SessionState) -> String {
        format!("{}:session:{}", self.prefix, session.session_id)
    }

    fn pipeline(&self, sessions: &[&SessionState], call_max: usize) -> Pipeline {
        let ms = |us: i64| us.div_euclid(1000);
        let mut pipeline = Pipeline::new();
        for sessions in sessions.chunks(call_max) {
            let call = pipeline.cmd("EVALSHA").arg(self.script.get_hash()).arg(sessions.len());
            for session in sessions {
                call.arg(self.key(session));
            }
            call.arg(self.ttl.open.as_millis() as u64).arg(self.ttl.ended.as_millis() as u64);
            for session in sessions {
                call.arg(session.status_version.text());
                match &session.state {
                    Some((version, _)) => call.arg(version.text()),
                    None => call.arg(""),
                };
                call.arg(ms(session.started_at_us)).arg(&session.user_id).arg(&session.status).arg(session.status_version.seq);
                call.arg(ms(session.status_version.at_us));
                call.arg(session.state.as_ref().map_or(&[][..], |(_, state)| state));
            }
        }
        pipeline
    }
}
