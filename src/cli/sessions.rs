//! `sessions rebuild`: the table and the hashes of sessions out of their updates.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::check::explained;
use super::table::{counted, grouped, say};
use super::when::{When, now_ms, when};
use crate::config::Config;
use crate::redis::{Redis, session_rebuild};
use crate::timescale::Database;
use crate::timescale::session_rebuild::{Cursor, Scope, SessionRebuild};

/// Between two words about how it goes.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);

/// Rebuilds sessions out of their updates.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    Rebuild(RebuildArgs),
}

/// Brings the table `sessions` and the session hashes to what `session_events` says.
///
/// Workers may go on: nothing ever goes back in time. What the table knows from updates that are no longer kept stays. Hashes are
/// made for as long as they would still live, and none whose time is over. May be ended and begun again at any time.
///
/// Wants a database role that reads session_events and writes sessions (aegis_migrator is one), and the Redis user aegis-operator.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  \
    aegis-ingest sessions rebuild --dry-run\n  \
    aegis-ingest sessions rebuild --since 24h\n  \
    aegis-ingest sessions rebuild --session-id s-1763820000")]
pub(super) struct RebuildArgs {
    /// Only updates from this time on, and sessions updated since: RFC 3339, or a duration such as 24h, which is that long ago
    #[arg(long, value_name = "TIME", value_parser = when)]
    since: Option<When>,
    /// Only this session; without an index of your own on session_id all updates are looked at
    #[arg(long, value_name = "ID")]
    session_id: Option<String>,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// What was done as JSON
    #[arg(long)]
    json: bool,
}

/// Does what was asked.
///
/// # Errors
/// A store is away or refuses; the message says how to go on.
pub(super) async fn run(config: &Config, args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Rebuild(args) => rebuild(config, args).await,
    }
}

/// What was done.
#[derive(Default)]
struct Done {
    events: u64,
    changed: u64,
    sessions: u64,
    hashes: u64,
}

async fn rebuild(config: &Config, args: &RebuildArgs) -> anyhow::Result<ExitCode> {
    let scope = Scope {
        since_us: args.since.map(|since| (since.ms(now_ms()) as i64).saturating_mul(1000)),
        session_id: args.session_id.clone(),
    };
    let rebuild = SessionRebuild::new(Database::new(&config.database, 1)?, scope, args.dry_run);
    let redis = Redis::new(&config.redis)?;
    // Nothing is begun that cannot be ended.
    redis.ping().await.map_err(|error| explained(&error))?;
    let mut done = Done::default();
    let mut progress = Progress::new();
    table(&rebuild, &mut done, &mut progress).await?;
    hashes(&rebuild, &redis, config, args.dry_run, &mut done, &mut progress)
        .await
        .context("the table is rebuilt and the hashes are not; the same command goes through both again, to the same end")?;
    drop(progress);
    if args.json {
        let json = serde_json::json!({
            "dry_run": args.dry_run,
            "events": done.events,
            "table_changes": done.changed,
            "living_sessions": done.sessions,
            "hashes_changed": (!args.dry_run).then_some(done.hashes),
        });
        say(&format!("{json:#}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::new();
    if args.dry_run {
        let _ = writeln!(
            text,
            "Would go through {} and make or bring forward a session {} times; {} would have a hash.",
            counted(done.events, "update"),
            grouped(done.changed),
            counted(done.sessions, "session")
        );
    } else {
        let _ = writeln!(
            text,
            "Went through {}: the table was changed {} times, and of {} session hashes that still live {} were made or brought forward.",
            counted(done.events, "update"),
            grouped(done.changed),
            grouped(done.sessions),
            grouped(done.hashes)
        );
    }
    say(&text)?;
    Ok(ExitCode::SUCCESS)
}

async fn table(rebuild: &SessionRebuild, done: &mut Done, progress: &mut Progress) -> anyhow::Result<()> {
    let Some((first, last)) = rebuild.span().await? else { return Ok(()) };
    let mut cursor = Cursor::before(first);
    loop {
        let page = rebuild.page(cursor, last).await.with_context(|| {
            format!(
                "stopped on the way; the same command begins again, with --since {} it goes on from here",
                time(cursor.at_us())
            )
        })?;
        let Some(page) = page else { return Ok(()) };
        cursor = page.end;
        done.events += page.events;
        done.changed += page.changed;
        let percent = 100.0 * (cursor.at_us() - first) as f64 / (last - first).max(1) as f64;
        progress.tell(|| format!("updates: {} up to {} ({percent:.0} %)", grouped(done.events), time(cursor.at_us())));
    }
}

async fn hashes(
    rebuild: &SessionRebuild,
    redis: &Redis,
    config: &Config,
    dry_run: bool,
    done: &mut Done,
    progress: &mut Progress,
) -> anyhow::Result<()> {
    let ttl = config.session_ttl;
    let now_us = || (now_ms() as i64).saturating_mul(1000);
    let living_since = now_us().saturating_sub(ttl.open.max(ttl.ended).as_micros() as i64);
    let mut after = String::new();
    loop {
        let sessions = rebuild.sessions(&after, living_since).await?;
        let Some(last) = sessions.last() else { return Ok(()) };
        after.clone_from(&last.session_id);
        done.sessions += session_rebuild::living(&sessions, ttl, now_us());
        if !dry_run {
            let restored = session_rebuild::restore(redis, &config.streams.prefix, &sessions, ttl, now_us()).await;
            done.hashes += restored.map_err(|error| explained(&error))?;
        }
        progress.tell(|| format!("hashes: {}", grouped(done.sessions)));
    }
}

/// RFC 3339 of Unix microseconds, to the second below.
fn time(us: i64) -> String {
    jiff::Timestamp::from_second(us.div_euclid(1_000_000)).map_or_else(|_| us.to_string(), |at| at.to_string())
}

/// A line every two seconds, on a terminal in place of the one before.
struct Progress {
    terminal: bool,
    next: Instant,
    told: bool,
}

impl Progress {
    fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), next: Instant::now() + PROGRESS_EVERY, told: false }
    }

    fn tell(&mut self, words: impl FnOnce() -> String) {
        if Instant::now() < self.next {
            return;
        }
        self.next = Instant::now() + PROGRESS_EVERY;
        self.told = true;
        // Nobody may be listening; that is no reason to stop.
        let _ = if self.terminal {
            write!(std::io::stderr(), "\r{}\x1b[K", words())
        } else {
            writeln!(std::io::stderr(), "{}", words())
        };
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.terminal && self.told {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
