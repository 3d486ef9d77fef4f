//! Session hashes out of what the table of sessions has, while workers go on writing.

use std::time::Duration;

use super::{Redis, RedisError};
use crate::config::SessionTtl;
use crate::event::SessionState;

/// Brings a hash to what the table has: two registers, each replaced by a later version only, as workers do. One that is there
/// keeps its time to live unless its status moves on: workers have set it.
const RESTORE: &str = "#!lua
local old = redis.call('HMGET', KEYS[1], 'status_version', 'state_version', 'started_at')
local later = not old[1] or old[1] < ARGV[1]
local new_state = ARGV[2] ~= '' and (not old[2] or old[2] < ARGV[2])
local earlier = not old[3] or tonumber(ARGV[3]) < tonumber(old[3])
if not (later or new_state or earlier) then return 0 end
if earlier then redis.call('HSET', KEYS[1], 'started_at', ARGV[3]) end
if later then
  redis.call('HSET', KEYS[1], 'user_id', ARGV[4], 'status', ARGV[5], 'seq', ARGV[6], 'updated_at', ARGV[7], 'status_version', ARGV[1])
  if ARGV[5] == 'ended' then redis.call('HSET', KEYS[1], 'ended_at', ARGV[7]) else redis.call('HDEL', KEYS[1], 'ended_at') end
  redis.call('PEXPIRE', KEYS[1], ARGV[9])
end
if new_state then redis.call('HSET', KEYS[1], 'state', ARGV[8], 'state_version', ARGV[2]) end
return 1
";

/// Hashes restored in one pipeline.
const PIPELINE_MAX: usize = 100;

/// For how long a hash of this session would live yet, had a worker written it when the update came; `None`: no longer.
fn left(session: &SessionState, ttl: SessionTtl, now_us: i64) -> Option<Duration> {
    let ttl = if session.has_ended() { ttl.ended } else { ttl.open };
    let age = Duration::from_micros(u64::try_from(now_us.saturating_sub(session.status_version.at_us)).unwrap_or(0));
    ttl.checked_sub(age).filter(|left| !left.is_zero())
}

/// Sessions whose hashes would still live.
pub fn living(sessions: &[SessionState], ttl: SessionTtl, now_us: i64) -> u64 {
    sessions.iter().filter(|session| left(session, ttl, now_us).is_some()).count() as u64
}

/// Brings the hashes of these sessions to what the table has, except those whose time is over. Returns how many hashes were made or
/// changed.
///
/// # Errors
/// Redis is away or refuses; some hashes may be restored.
pub async fn restore(
    redis: &Redis,
    prefix: &str,
    sessions: &[SessionState],
    ttl: SessionTtl,
    now_us: i64,
) -> Result<u64, RedisError> {
    let ms = |us: i64| us.div_euclid(1000);
    let key = |session: &SessionState| format!("{prefix}:session:{}", session.session_id);
    let mut restored = 0;
    let living: Vec<_> = sessions.iter().filter_map(|session| Some((session, left(session, ttl, now_us)?))).collect();
    let parts = redis.by_server(&living, |(session, _)| key(session)).await?;
    for (place, sessions) in
        parts.iter().flat_map(|(place, part)| part.chunks(PIPELINE_MAX).map(move |sessions| (place, sessions)))
    {
        let mut pipeline = ::redis::Pipeline::new();
        for (session, left) in sessions {
            let call = pipeline.cmd("EVAL").arg(RESTORE).arg(1).arg(key(session));
            call.arg(session.status_version.text());
            call.arg(session.state.as_ref().map(|(version, _)| version.text()).unwrap_or_default());
            call.arg(ms(session.started_at_us)).arg(&session.user_id).arg(&session.status).arg(session.status_version.seq);
            call.arg(ms(session.status_version.at_us));
            call.arg(session.state.as_ref().map_or(&[][..], |(_, state)| state));
            call.arg((left.as_millis() as u64).max(1));
        }
        let changed: Vec<u64> = place.node.pipeline(&pipeline).await.inspect_err(|error| redis.doubt(place, error))?;
        restored += changed.iter().sum::<u64>();
    }
    Ok(restored)
}
