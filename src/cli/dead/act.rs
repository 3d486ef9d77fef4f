//! `dead replay` and `dead drop`: choose, say how many, do it page by page.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::process::ExitCode;

use anyhow::{Context as _, bail};

use super::super::check::explained;
use super::super::progress::Progress;
use super::super::table::{counted, grouped, say};
use super::super::when::now_ms;
use super::select::{Filter, Place, holders, id};
use crate::config::Config;
use crate::redis::dead::{self, Letter, Order, Outcome, Pages, Range};
use crate::redis::{Redis, RedisError};
use crate::seam::EntryId;

/// Puts events back into their streams.
///
/// Each goes back to the stream whose dead letter it is, with the identity that it had there: the field aegis-origin keeps the
/// event id and time that were derived for it. Its dead letter is removed in the same step. An entry that was set aside as a
/// whole goes back with its own fields. Those set aside after the start are left alone, so that an event that fails again does
/// not go round for ever.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  \
    aegis-ingest dead replay 1763820000000-0\n  \
    aegis-ingest dead replay --all --lane embeddings --code dimension_mismatch --dry-run\n  \
    aegis-ingest dead replay --all --since 2h")]
pub(super) struct ReplayArgs {
    #[command(flatten)]
    chosen: Chosen,
}

/// Drops dead letters for good.
///
/// Asks first; without a terminal to ask on, --yes is needed.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  \
    aegis-ingest dead drop 1763820000000-0\n  \
    aegis-ingest dead drop --all --code malformed --until 7d --dry-run\n  \
    aegis-ingest dead drop --all --lane sessions --yes")]
pub(super) struct DropArgs {
    #[command(flatten)]
    chosen: Chosen,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("which").required(true).args(["ids", "all"])))]
struct Chosen {
    /// Ids of dead letters, as `dead list` shows them
    #[arg(value_name = "ID", value_parser = id, conflicts_with_all = ["codes", "since", "until"])]
    ids: Vec<EntryId>,
    /// All that the filters leave
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    filter: Filter,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

/// What is done to the letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Replay,
    Drop,
}

/// The letters of one stream that are meant.
struct Part {
    stream: String,
    which: Which,
    count: u64,
}

enum Which {
    Ids(Vec<EntryId>),
    Range(Range),
}

pub(super) async fn replay(redis: &Redis, config: &Config, args: &ReplayArgs) -> anyhow::Result<ExitCode> {
    let (parts, missing) = choose(redis, config, &args.chosen).await?;
    run(redis, &args.chosen, Action::Replay, &parts, missing).await
}

pub(super) async fn drop(redis: &Redis, config: &Config, args: &DropArgs) -> anyhow::Result<ExitCode> {
    let (parts, missing) = choose(redis, config, &args.chosen).await?;
    let count: u64 = parts.iter().map(|part| part.count).sum();
    if count > 0 && !args.yes && !args.chosen.dry_run && !confirm(count, &parts)? {
        say("Nothing was dropped.\n")?;
        return Ok(ExitCode::FAILURE);
    }
    run(redis, &args.chosen, Action::Drop, &parts, missing).await
}

fn confirm(count: u64, parts: &[Part]) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("{} would be dropped for good: without a terminal to ask on, add --yes", counted(count, "dead letter"));
    }
    eprint!(
        "Drop {} for good ({})? [y/N] ",
        counted(count, "dead letter"),
        spread(parts.iter().map(|part| (part.count, part)), "of")
    );
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// `10 to aegis:interactions, 2 to aegis:sessions`
fn spread<'a>(counts: impl Iterator<Item = (u64, &'a Part)>, word: &str) -> String {
    let parts: Vec<_> = counts
        .filter(|(count, _)| *count > 0)
        .map(|(count, part)| format!("{} {word} {}", grouped(count), part.stream))
        .collect();
    parts.join(", ")
}

/// The letters that are meant, by stream, and how many ids stand nowhere.
async fn choose(redis: &Redis, config: &Config, chosen: &Chosen) -> anyhow::Result<(Vec<Part>, u64)> {
    let streams = chosen.place.streams(config)?;
    let mut parts: Vec<Part> = Vec::new();
    if chosen.all {
        for (_, stream) in streams {
            let Some(newest) = dead::newest(redis, &stream).await.map_err(|error| explained(&error))? else { continue };
            let range = chosen.filter.range(newest, now_ms());
            let mut pages = Pages::new(redis, &stream, range, Order::HeadsOldestFirst);
            let mut count = 0;
            loop {
                let page = pages.next().await.map_err(|error| explained(&error))?;
                if page.is_empty() {
                    break;
                }
                count += page.iter().filter(|letter| chosen.filter.takes(letter)).count() as u64;
            }
            parts.push(Part { stream, which: Which::Range(range), count });
        }
        return Ok((parts, 0));
    }
    let mut missing = 0;
    let mut ids = chosen.ids.clone();
    ids.sort_unstable();
    ids.dedup();
    for id in ids {
        let found = holders(redis, &streams, id).await?;
        let [(_, stream, _)] = found.as_slice() else {
            if found.is_empty() {
                eprintln!("{id}: no such dead letter in {}", if streams.len() == 1 { &streams[0].1 } else { "any stream" });
                missing += 1;
                continue;
            }
            let names: Vec<_> = found.iter().map(|(_, stream, _)| stream.as_str()).collect();
            bail!("{id} stands among the dead letters of {}: say which with --lane or --partition", names.join(" and "));
        };
        match parts.iter_mut().find(|part| part.stream == *stream) {
            Some(Part { which: Which::Ids(ids), count, .. }) => {
                ids.push(id);
                *count += 1;
            }
            _ => parts.push(Part { stream: stream.clone(), which: Which::Ids(vec![id]), count: 1 }),
        }
    }
    Ok((parts, missing))
}

async fn run(redis: &Redis, chosen: &Chosen, action: Action, parts: &[Part], missing: u64) -> anyhow::Result<ExitCode> {
    let (verb, past, word) = match action {
        Action::Replay => ("replaying", "Replayed", "to"),
        Action::Drop => ("dropping", "Dropped", "of"),
    };
    let count: u64 = parts.iter().map(|part| part.count).sum();
    if count == 0 {
        say(if missing > 0 { "Nothing to do.\n" } else { "No dead letters that fit: nothing to do.\n" })?;
        return Ok(if missing > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    if chosen.dry_run {
        let would = if action == Action::Replay { "replay" } else { "drop" };
        let spread = spread(parts.iter().map(|part| (part.count, part)), word);
        say(&format!("Would {would} {}: {spread}.\n", counted(count, "dead letter")))?;
        return Ok(if missing > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    let mut progress = Progress::new(verb, count);
    let mut outcomes: Vec<(Outcome, &Part)> = Vec::new();
    let mut failed = None;
    for part in parts.iter().filter(|part| part.count > 0) {
        let mut outcome = Outcome::default();
        let done = act_on(redis, part, &chosen.filter, action, &mut outcome, &mut progress).await;
        outcomes.push((outcome, part));
        if let Err(error) = done {
            failed = Some(error);
            break;
        }
    }
    std::mem::drop(progress);
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(|(outcome, _)| of(outcome)).sum::<u64>();
    let (done, gone, empty) = (sum(|outcome| outcome.done), sum(|outcome| outcome.gone), sum(|outcome| outcome.empty));
    let spread = spread(outcomes.iter().map(|(outcome, part)| (outcome.done, *part)), word);
    let spread = if spread.is_empty() { String::new() } else { format!(": {spread}") };
    let mut text = format!("{past} {}{spread}.\n", counted(done, "dead letter"));
    if gone > 0 {
        let _ = writeln!(text, "{} were gone before their turn came: another command was faster.", grouped(gone));
    }
    if empty > 0 {
        let _ = writeln!(
            text,
            "{} hold no event (the entry was deleted before it was set aside, or another program wrote them) and stay: \
             `dead drop` removes them.",
            grouped(empty)
        );
    }
    say(&text)?;
    if let Some(error) = failed {
        return Err(explained(&error)).context("stopped on the way; the same command goes on from here");
    }
    Ok(if missing > 0 || empty > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn act_on(
    redis: &Redis,
    part: &Part,
    filter: &Filter,
    action: Action,
    outcome: &mut Outcome,
    progress: &mut Progress,
) -> Result<(), RedisError> {
    match &part.which {
        Which::Ids(ids) => {
            for id in ids {
                // Read again one by one: all of them at once might not fit into memory.
                let letters: Vec<_> = dead::get(redis, &part.stream, *id).await?.into_iter().collect();
                outcome.gone += u64::from(letters.is_empty());
                act(redis, &part.stream, &letters, action, outcome).await?;
                progress.add(1);
            }
        }
        Which::Range(range) => {
            let order = if action == Action::Replay { Order::Whole } else { Order::HeadsOldestFirst };
            let mut pages = Pages::new(redis, &part.stream, *range, order);
            loop {
                let mut page = pages.next().await?;
                if page.is_empty() {
                    break;
                }
                page.retain(|letter| filter.takes(letter));
                act(redis, &part.stream, &page, action, outcome).await?;
                progress.add(page.len() as u64);
            }
        }
    }
    Ok(())
}

async fn act(redis: &Redis, stream: &str, letters: &[Letter], action: Action, outcome: &mut Outcome) -> Result<(), RedisError> {
    match action {
        Action::Replay => dead::replay(redis, stream, letters, outcome).await,
        Action::Drop => {
            let ids: Vec<_> = letters.iter().map(|letter| letter.id).collect();
            dead::drop_letters(redis, stream, &ids, outcome).await
        }
    }
}
