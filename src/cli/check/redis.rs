//! Redis: reachable, new enough, set up so that it loses nothing; the streams and their group.

use super::super::table::{bytes, counted, grouped};
use super::Findings;
use crate::config::{Config, Lane};
use crate::redis::inspect::{self, ServerInfo, StreamInfo};
use crate::redis::{Redis, RedisError};
use crate::tls::Refusal;

/// Functions in `#!lua` form, which keep a script from running half when memory is out, came with it.
const REDIS_MAJOR_MIN: u32 = 7;
/// Beyond so much of its limit, Redis is about to refuse producers.
const MEMORY_PERCENT_MAX: u64 = 90;

/// What to do about an error of Redis.
fn advice(error: &RedisError) -> &'static str {
    match error {
        RedisError::Unreachable(_) => "is it running, and does AEGIS_REDIS_URL lead to it (rediss:// for TLS)?",
        RedisError::Unavailable(_) => "wait until it serves again, or give it memory",
        RedisError::Moved(_) => "for a cluster AEGIS_REDIS_URL is redis+cluster://, behind sentinels redis+sentinel://",
        RedisError::Refused(Refusal::Tls(_)) => "see AEGIS_REDIS_URL and the AEGIS_TLS_ settings",
        RedisError::Refused(Refusal::User(_)) => "check user and password in AEGIS_REDIS_URL, and what its ACL allows this user",
        RedisError::NoGroup(_) => "start the worker, which makes the group",
        RedisError::WrongType(_) => "another program uses this key: choose another AEGIS_KEY_PREFIX",
        RedisError::NoScript => "try again",
        RedisError::Unexpected(_) => "is it Redis 7 or later, or Valkey, that answers at AEGIS_REDIS_URL?",
    }
}

/// An error of Redis with what to do about it, for the commands that stop at it.
pub(in crate::cli) fn explained(error: &RedisError) -> anyhow::Error {
    anyhow::anyhow!("{}; {}", error.to_string().trim_end_matches('.'), advice(error))
}

pub(super) async fn check(config: &Config) -> Findings {
    let mut found = Findings::about("Redis");
    let fail = |found: &mut Findings, error: &RedisError| found.fail(error.to_string(), advice(error));
    let redis = match Redis::new(&config.redis) {
        Ok(redis) => redis,
        Err(error) => {
            fail(&mut found, &error);
            return found;
        }
    };
    match inspect::servers(&redis).await {
        Ok(servers) => {
            for server in &servers {
                if servers.len() > 1 {
                    found.ok(format!("{} serves a part of the keys", server.name));
                }
                judge_server(&mut found, server, config.redis.address.is_cluster());
            }
        }
        Err(error) => {
            fail(&mut found, &error);
            return found;
        }
    }
    for lane in &config.lanes {
        let mut streams = Vec::new();
        let own = config.streams.of(*lane);
        for key in own.keys(*lane) {
            match inspect::stream(&redis, &own, &key).await {
                Ok(stream) => streams.push(stream),
                Err(error) => {
                    found.fail(format!("{key}: {error}"), advice(&error));
                    return found;
                }
            }
        }
        judge_streams(&mut found, *lane, &own.group, &streams);
    }
    found
}

fn judge_server(found: &mut Findings, server: &ServerInfo, as_cluster: bool) {
    let major: Option<u32> = server.version.split('.').next().and_then(|major| major.parse().ok());
    match major {
        Some(major) if major < REDIS_MAJOR_MIN => {
            found.fail(format!("version {} is too old", server.version), "upgrade to Redis 7 or later, or Valkey");
        }
        Some(_) => found.ok(format!("version {} answers", server.version)),
        None => found.warn("it does not tell its version", "make sure that it is Redis 7 or later, or Valkey"),
    }
    if server.mode == "cluster" && !as_cluster {
        found.fail(
            "it is a node of a cluster, and AEGIS_REDIS_URL names it alone",
            "write it redis+cluster://, and set AEGIS_PARTITIONS to 2 or more, for the producers as well",
        );
    }
    match server.eviction.as_deref() {
        Some("noeviction") => found.ok("evicts nothing when memory runs out"),
        Some(policy) => found.fail(
            format!("evicts keys when memory runs out (maxmemory-policy {policy}): streams or session states would be lost"),
            "set maxmemory-policy noeviction",
        ),
        None => {
            found.warn("it does not tell what it evicts when memory runs out", "make sure that maxmemory-policy is noeviction");
        }
    }
    let used = bytes(server.memory_used);
    if let Some(percent) = server.memory_used.saturating_mul(100).checked_div(server.memory_max) {
        let what = format!("uses {used} of {} of memory ({percent} %)", bytes(server.memory_max));
        if percent > MEMORY_PERCENT_MAX {
            found.warn(what, "raise maxmemory, or trim the streams: at the limit producers are refused");
        } else {
            found.ok(what);
        }
    } else {
        found.warn(
            format!("has no memory limit ({used} in use)"),
            "set maxmemory below what the machine has: Redis then refuses writes, instead of being killed",
        );
    }
    match server.append_only {
        Some(true) => found.ok("writes an append-only file"),
        Some(false) => found.warn("writes no append-only file: a crash loses what is in the streams", "set appendonly yes"),
        None => found.warn("it does not tell whether it writes an append-only file", "make sure that appendonly is yes"),
    }
}

fn judge_streams(found: &mut Findings, lane: Lane, group: &str, streams: &[StreamInfo]) {
    let name = match streams {
        [stream] => stream.key.clone(),
        _ => format!("{} streams of {lane}", streams.len()),
    };
    let grouped_streams = streams.iter().filter(|stream| stream.group).count();
    let dead: u64 = streams.iter().map(|stream| stream.dead_letters).sum();
    let lost: u64 = streams.iter().map(|stream| stream.lost).sum();
    if grouped_streams == streams.len() {
        let entries: u64 = streams.iter().map(|stream| stream.length).sum();
        let (word, count) = if entries == 1 { ("entry", "1".to_owned()) } else { ("entries", grouped(entries)) };
        found.ok(format!("{name}: {count} {word}, group {group} is there"));
    } else {
        // No fault: the worker makes stream and group, and reads from the beginning.
        let absent = streams.len() - grouped_streams;
        found.ok(format!("{name}: group {group} is not there yet on {absent} of {}; the worker makes it", streams.len()));
    }
    if lost > 0 {
        found.warn(
            format!("{name}: {} entries were trimmed before they were read", grouped(lost)),
            "let producers keep more (XADD MAXLEN), or add workers",
        );
    }
    if dead > 0 && lane.source() == lane {
        found.warn(format!("{name}: {}", counted(dead, "dead letter")), format!("see `aegis-ingest dead list --lane {lane}`"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn server() -> ServerInfo {
        let (version, mode) = ("8.0.2".to_owned(), "standalone".to_owned());
        let eviction = Some("noeviction".to_owned());
        ServerInfo { name: "h:1".to_owned(), version, mode, memory_used: 1, memory_max: 100, eviction, append_only: Some(true) }
    }

    #[test]
    fn a_server_is_judged_by_what_would_lose_data() {
        let judge = |change: fn(&mut ServerInfo), as_cluster| {
            let (mut found, mut server) = (Findings::about("Redis"), server());
            change(&mut server);
            judge_server(&mut found, &server, as_cluster);
            found.worst()
        };
        assert_eq!(judge(|_| (), false), Level::Ok);
        assert_eq!(judge(|server| server.version = "6.2.14".to_owned(), false), Level::Fail);
        assert_eq!(judge(|server| server.eviction = Some("allkeys-lru".to_owned()), false), Level::Fail);
        assert_eq!(judge(|server| server.mode = "cluster".to_owned(), false), Level::Fail);
        assert_eq!(judge(|server| server.mode = "cluster".to_owned(), true), Level::Ok);
        assert_eq!(judge(|server| server.memory_used = 95, false), Level::Warn);
        assert_eq!(judge(|server| server.memory_max = 0, false), Level::Warn);
        assert_eq!(judge(|server| server.append_only = None, false), Level::Warn);
    }
}
