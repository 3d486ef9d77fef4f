//! `embeddings`: what can be done about collections of Chroma.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use super::progress::Progress;
use super::table::{Column, Style, Table, counted, grouped, say};
use super::when::{When, now_ms, when};
use crate::app::rebuild::{self, Options, Outcome, Planned, Told};
use crate::config::{self, Config};

/// Rebuilds collections of Chroma out of the archive.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    Rebuild(RebuildArgs),
}

/// Upserts all archived vectors again, while the workers run.
///
/// Reads embedding_log, which workers that serve the lane archive fill, in the order of the streams, and makes collections that
/// are missing. Each record ends as it was: its last vector, its document, its merged metadata. Safe to end at any time and to
/// run again.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  \
    aegis-ingest embeddings rebuild --dry-run\n  \
    aegis-ingest embeddings rebuild                                       # collections that were deleted, or have gaps\n  \
    aegis-ingest embeddings rebuild --collection interactions --replace   # one that is ruined\n  \
    aegis-ingest embeddings rebuild --since 6h                            # after a restore of last night's backup")]
struct RebuildArgs {
    /// Only this collection [default: all that are archived]
    #[arg(long, value_name = "NAME")]
    collection: Option<String>,
    /// Only vectors written to their stream at this time or later: RFC 3339, or a duration such as 2h, which is that long ago
    #[arg(long, value_name = "TIME", value_parser = when)]
    since: Option<When>,
    /// Delete each collection first, with all that is in it: for one that Chroma cannot read any more
    #[arg(long, conflicts_with = "since")]
    replace: bool,
    /// How long to wait for the archive lane to catch up, and for Chroma when it is away
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = patience)]
    wait: Duration,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

fn patience(text: &str) -> Result<Duration, String> {
    config::duration(text, 0, 86_400_000)
}

/// Does what was asked. Exit status 0 when all of it is done, 1 when something is left to do.
///
/// # Errors
/// A store is away or refuses, or nothing is archived; the message says what would do.
pub(super) async fn run(config: &Config, args: &Args) -> anyhow::Result<ExitCode> {
    let Command::Rebuild(args) = &args.command;
    let options = Options {
        collection: args.collection.clone(),
        since_ms: args.since.map_or(0, |since| since.ms(now_ms())),
        replace: args.replace,
        patience: args.wait,
    };
    if args.dry_run {
        let planned = rebuild::plan(config, &options).await?;
        say(&if args.json { json_plan(&planned) } else { table(&planned, args.replace) })?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut progress = None;
    let outcome = rebuild::run(config, &options, &mut |told| match told {
        Told::Total(total) => progress = Some(Progress::new("upserting", total)),
        Told::Done(count) => progress.iter_mut().for_each(|progress| progress.add(count)),
        Told::Note(note) => eprintln!("{note}"),
    })
    .await?;
    drop(progress);
    say(&if args.json { json(&outcome) } else { words(&outcome) })?;
    Ok(if outcome.incomplete.is_none() && outcome.refused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn table(planned: &[Planned], replace: bool) -> String {
    let mut table = Table::new(&[
        Column::Left("COLLECTION"),
        Column::Right("ARCHIVED"),
        Column::Right("DIMENSION"),
        Column::Right("OF OTHERS"),
        Column::Right("IN CHROMA"),
    ]);
    for one in planned {
        let held = one.held.map_or_else(|| "not there".to_owned(), grouped);
        table.row(&[one.name.clone(), grouped(one.records), one.dimension.to_string(), grouped(one.others), held]);
    }
    let sum = planned.iter().map(|one| one.records).sum();
    let deleting = if replace { "delete these collections and " } else { "" };
    format!(
        "{}\nWould {deleting}upsert {}, several under one id included.\n",
        table.render(Style::stdout()),
        counted(sum, "vector")
    )
}

fn json_plan(planned: &[Planned]) -> String {
    let collections: Vec<_> = (planned.iter())
        .map(|one| {
            serde_json::json!({
                "collection": one.name,
                "dimension": one.dimension,
                "archived": one.records,
                "archived_of_other_dimensions": one.others,
                "in_chroma": one.held,
            })
        })
        .collect();
    format!("{:#}\n", serde_json::json!({ "dry_run": true, "collections": collections }))
}

fn words(outcome: &Outcome) -> String {
    let sum = outcome.upserted.values().sum();
    let parts: Vec<_> = outcome.upserted.iter().map(|(name, count)| format!("{} into {name}", grouped(*count))).collect();
    let parts = if parts.is_empty() { String::new() } else { format!(": {}", parts.join(", ")) };
    let mut text = format!("Upserted {}{parts}.\n", counted(sum, "vector"));
    if outcome.renewed > 0 {
        let _ = writeln!(text, "{} once more, since newer ones had come meanwhile.", counted(outcome.renewed, "vector"));
    }
    if outcome.others > 0 {
        let _ = writeln!(
            text,
            "{} left out: of another dimension than their collection, as they were set aside the first time.",
            counted(outcome.others, "vector")
        );
    }
    if outcome.refused > 0 {
        let reason = outcome.reason.as_deref().unwrap_or("no reason told");
        let _ = writeln!(text, "Chroma refused {}, the last of them because: {reason}", counted(outcome.refused, "vector"));
    }
    if let Some(incomplete) = &outcome.incomplete {
        let _ = writeln!(text, "Perhaps not complete: {incomplete}. Run it again when that is mended.");
    }
    text
}

fn json(outcome: &Outcome) -> String {
    let json = serde_json::json!({
        "dry_run": false,
        "upserted": outcome.upserted,
        "renewed": outcome.renewed,
        "of_other_dimensions": outcome.others,
        "refused": outcome.refused,
        "refused_reason": outcome.reason,
        "incomplete": outcome.incomplete,
    });
    format!("{json:#}\n")
}
