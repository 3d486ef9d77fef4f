//! `status`: what stands in the streams, and how Redis is.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{StreamExt as _, TryStreamExt as _};

use super::check::explained;
use super::table::{Column, Paint, Style, Table, age, bytes, clean, grouped, say};
use crate::config::{self, Config, Lane};
use crate::redis::inspect::{self, ServerInfo, StreamInfo};
use crate::redis::trim::{self, Hold};
use crate::redis::{Redis, RedisError};

/// Streams looked at at once: each takes some six answers, and a cluster has up to 3,072 streams.
const AT_ONCE: usize = 16;

/// Shows streams, lag, pending entries and dead letters.
///
/// Lag is what the group has not read yet; pending is read and not acknowledged yet. A lag of ? means that Redis does not know
/// it, which is not 0.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  \
    aegis-ingest status\n  \
    aegis-ingest status --watch --consumers\n  \
    aegis-ingest status --json | jq '.streams[] | select(.dead_letters > 0)'")]
pub(super) struct Args {
    /// Look again every INTERVAL (100ms to 1h; 2s unless given) until Ctrl-C
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, default_missing_value = "2s", value_parser = interval)]
    watch: Option<Duration>,
    /// Also a row for each consumer
    #[arg(long)]
    consumers: bool,
    /// As JSON; with --watch an object a line
    #[arg(long)]
    json: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    config::duration(text, 100, 3_600_000)
}

/// Everything that one look brings.
struct Look {
    servers: Vec<ServerInfo>,
    streams: Vec<(Lane, StreamInfo, Vec<Hold>)>,
    /// Groups of the workers.
    groups: Vec<String>,
    /// Unix milliseconds of the look.
    now_ms: u64,
}

/// Looks once, or again and again. Exit status 0 when the (last) look succeeded.
///
/// # Errors
/// Redis is away or refuses; while watching, only standard output's own failure.
pub(super) async fn run(config: &Config, args: &Args) -> anyhow::Result<ExitCode> {
    let redis = Redis::new(&config.redis)?;
    let Some(interval) = args.watch else {
        say(&render(&look(&redis, config).await.map_err(|error| explained(&error))?, args, Style::stdout()))?;
        return Ok(ExitCode::SUCCESS);
    };
    let in_place = std::io::stdout().is_terminal() && !args.json;
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    loop {
        let found = tokio::select! {
            biased;
            _ = &mut interrupted => return Ok(ExitCode::SUCCESS),
            found = look(&redis, config) => found,
        };
        let seen = found.is_ok();
        let block = match found {
            Ok(look) => render(&look, args, Style::stdout()),
            Err(error) if args.json => format!("{}\n", serde_json::json!({ "error": error.to_string() })),
            Err(error) => format!("{error}\n"),
        };
        let read_on = say(&if in_place {
            // Home, the block, then away with what is left of the block before: no moment of an empty screen.
            let lines = block.replace('\n', "\x1b[K\n");
            format!("\x1b[H{lines}every {}, Ctrl-C ends\x1b[J", crate::event::spoken(interval.as_millis() as u64))
        } else {
            format!("{block}{}", if args.json { "" } else { "\n" })
        })?;
        if !read_on {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::select! {
            biased;
            _ = &mut interrupted => {
                if in_place { println!() }
                return Ok(if seen { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            }
            () = tokio::time::sleep(interval) => {}
        }
    }
}

async fn look(redis: &Redis, config: &Config) -> Result<Look, RedisError> {
    let servers = inspect::servers(redis).await?;
    let keys = config.lanes.iter().flat_map(|lane| {
        let streams = config.streams.of(*lane);
        streams.keys(*lane).into_iter().map(move |key| (*lane, streams.clone(), key))
    });
    let streams = futures_util::stream::iter(keys)
        .map(|(lane, streams, key)| async move {
            let info = inspect::stream(redis, &streams, &key).await?;
            let holds = match config.delivery.retain.filter(|_| lane.source() == lane) {
                Some(retain) => trim::look(redis, &key, &config.groups_of(lane), retain).await?,
                None => Vec::new(),
            };
            Ok::<_, RedisError>((lane, info, holds))
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    let groups = config.lanes.iter().map(|lane| config.streams.of(*lane).group).collect();
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    Ok(Look { servers, streams, groups, now_ms })
}

fn render(look: &Look, args: &Args, style: Style) -> String {
    if args.json {
        let json = json(look);
        return if args.watch.is_some() { format!("{json}\n") } else { format!("{json:#}\n") };
    }
    let mut table = Table::new(&[
        Column::Left("STREAM"),
        Column::Right("LENGTH"),
        Column::Right("LAG"),
        Column::Right("PENDING"),
        Column::Right("OLDEST"),
        Column::Right("CONSUMERS"),
        Column::Right("DEAD"),
    ]);
    let mut consumers =
        Table::new(&[Column::Left("STREAM"), Column::Left("CONSUMER"), Column::Right("PENDING"), Column::Right("IDLE")]);
    let mut notes = Vec::new();
    for (lane, info, holds) in &look.streams {
        // Two lanes read one stream: what stands in it stands in both rows, its dead letters in the row of the lane that has them.
        let own = lane.source() == *lane;
        let name = if own { info.key.clone() } else { format!("{} ({lane})", info.key) };
        let oldest = info.oldest_unacknowledged.map_or_else(|| "-".to_owned(), |id| age(look.now_ms.saturating_sub(id.ms)));
        let lag = if info.group { info.lag.map_or_else(|| "?".to_owned(), grouped) } else { "-".to_owned() };
        table.row(&[
            name.clone(),
            grouped(info.length),
            lag,
            grouped(info.pending),
            oldest,
            info.consumers.len().to_string(),
            if own { grouped(info.dead_letters) } else { "-".to_owned() },
        ]);
        for consumer in &info.consumers {
            consumers.row(&[name.clone(), consumer.name.clone(), grouped(consumer.pending), age(consumer.idle_ms)]);
        }
        if !info.exists {
            notes.push(format!("{name}: not there yet; the worker makes it"));
        } else if !info.group {
            notes.push(format!("{name}: the consumer group is not there yet; the worker makes it, from the beginning"));
        }
        if info.lost > 0 {
            notes.push(format!("{name}: {} entries were trimmed before they were read", grouped(info.lost)));
        }
        notes.extend(holds.iter().map(|hold| format!("{name}: {}", held(hold, &look.groups))));
    }
    let mut text = table.render(style);
    if args.consumers && !consumers.is_empty() {
        text.push('\n');
        text.push_str(&consumers.render(style));
    }
    text.push('\n');
    for note in notes {
        let _ = writeln!(text, "{}", style.paint(Paint::Yellow, &clean(&note)));
    }
    for server in &look.servers {
        let name = if look.servers.len() > 1 { format!("{}: ", server.name) } else { String::new() };
        let _ = writeln!(text, "{}", clean(&format!("{name}{}", server_line(server))));
    }
    text
}

/// Who holds trimming back, in words.
fn held(hold: &Hold, own: &[String]) -> String {
    let whose = if own.contains(&hold.group) { "the workers' own group" } else { "group" };
    let group = format!("{whose} {}", hold.group);
    let what = match &hold.consumer {
        Some(consumer) => format!("consumer {consumer} has read entry {} and not acknowledged it", hold.entry),
        None => format!("it has not read entry {}", hold.entry),
    };
    format!("{group} holds back trimming: {what}, {} past AEGIS_RETAIN", age(hold.past.as_millis() as u64))
}

/// The server in one line.
pub(super) fn server_line(server: &ServerInfo) -> String {
    let version = if server.version.is_empty() { "(version not told)" } else { &server.version };
    let mode = if server.mode.is_empty() || server.mode == "standalone" { String::new() } else { format!(" ({})", server.mode) };
    let memory = match server.memory_used.saturating_mul(100).checked_div(server.memory_max) {
        None => format!("{} of memory, no limit", bytes(server.memory_used)),
        Some(percent) => format!("{} of {} memory ({percent} %)", bytes(server.memory_used), bytes(server.memory_max)),
    };
    let eviction = server.eviction.as_deref().unwrap_or("not told");
    let append_only = match server.append_only {
        Some(true) => "on",
        Some(false) => "off",
        None => "not told",
    };
    format!("Redis {version}{mode}, {memory}, eviction {eviction}, append-only file {append_only}")
}

fn json(look: &Look) -> serde_json::Value {
    let streams: Vec<_> = (look.streams.iter())
        .map(|(lane, info, holds)| {
            let oldest = info.oldest_unacknowledged;
            let consumers: Vec<_> = (info.consumers.iter())
                .map(|consumer| serde_json::json!({ "name": consumer.name, "pending": consumer.pending, "idle_ms": consumer.idle_ms }))
                .collect();
            let holds: Vec<_> = (holds.iter())
                .map(|hold| serde_json::json!({ "group": hold.group, "consumer": hold.consumer, "entry": hold.entry.to_string(), "past_retain_ms": hold.past.as_millis() as u64 }))
                .collect();
            serde_json::json!({
                "stream": info.key,
                "lane": lane.name(),
                "exists": info.exists,
                "group_exists": info.group,
                "length": info.length,
                "lag": info.lag,
                "pending": info.pending,
                "oldest_unacknowledged": oldest.map(|id| id.to_string()),
                "oldest_unacknowledged_age_ms": oldest.map(|id| look.now_ms.saturating_sub(id.ms)),
                "lost": info.lost,
                "consumers": consumers,
                "dead_letters": info.dead_letters,
                "trimming_held_by": holds,
            })
        })
        .collect();
    let servers: Vec<_> = (look.servers.iter())
        .map(|server| {
            serde_json::json!({
                "address": server.name,
                "version": server.version,
                "mode": server.mode,
                "memory_used_bytes": server.memory_used,
                "memory_limit_bytes": (server.memory_max > 0).then_some(server.memory_max),
                "eviction": server.eviction,
                "append_only": server.append_only,
            })
        })
        .collect();
    // `redis`: the one, of several the fullest.
    let fullest = inspect::fullest(&look.servers).and_then(|full| look.servers.iter().position(|server| server == full));
    serde_json::json!({
        "at_ms": look.now_ms,
        "redis": fullest.map(|at| &servers[at]),
        "servers": servers,
        "streams": streams,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seam::EntryId;

    fn sample() -> Look {
        let key = "aegis:sessions".to_owned();
        let oldest_unacknowledged = Some(EntryId { ms: 1_000, seq: 0 });
        let info = StreamInfo {
            key,
            exists: true,
            group: true,
            length: 1200,
            pending: 3,
            oldest_unacknowledged,
            ..StreamInfo::default()
        };
        let hold = |group: &str, consumer: Option<&str>| Hold {
            group: group.to_owned(),
            consumer: consumer.map(str::to_owned),
            entry: EntryId { ms: 7, seq: 1 },
            past: std::time::Duration::from_secs(120),
        };
        let holds = vec![hold("aegis", None), hold("analytics", Some("c1"))];
        let server =
            ServerInfo { version: "8.0.2".to_owned(), memory_used: 1 << 20, memory_max: 4 << 20, ..ServerInfo::default() };
        Look {
            servers: vec![server],
            streams: vec![(Lane::Sessions, info, holds)],
            groups: vec!["aegis".to_owned()],
            now_ms: 62_000,
        }
    }

    #[test]
    fn an_unknown_lag_is_not_zero() {
        let args = Args { watch: None, consumers: false, json: false };
        let text = render(&sample(), &args, Style::plain());
        let row: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row, ["aegis:sessions", "1,200", "?", "3", "1m", "01s", "0", "0"]);
        assert!(
            text.ends_with("Redis 8.0.2, 1.0 MiB of 4.0 MiB memory (25 %), eviction not told, append-only file not told\n"),
            "{text}"
        );
        assert!(
            text.contains(
                "aegis:sessions: group analytics holds back trimming: consumer c1 has read entry 7-1 and not acknowledged it"
            ),
            "{text}"
        );
        assert!(text.contains("the workers' own group aegis holds back trimming: it has not read entry 7-1, 2m"), "{text}");
        assert_eq!(json(&sample())["streams"][0]["trimming_held_by"][1]["past_retain_ms"], 120_000);
        assert!(json(&sample())["streams"][0]["lag"].is_null());
        assert_eq!(json(&sample())["streams"][0]["oldest_unacknowledged_age_ms"], 61_000);
    }
}
