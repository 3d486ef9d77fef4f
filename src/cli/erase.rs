//! `erase`: a person, or a session, out of all stores.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::table::{Column, Style, Table, clean, grouped, say};
use crate::app::erase::{self, Erased};
use crate::config::{self, Config};
use crate::event::ID_BYTES_MAX;
use crate::event::subject::Subject;

/// Removes what was written before the command started: rows, session hashes, vectors, dead letters, and stream entries, those
/// included that nobody has read yet.
///
/// Needs rights of its own: the role `aegis_eraser` and the Redis user `aegis-eraser` of infra/. Workers may run meanwhile; what they
/// have in hand is waited for. Safe to end at any time, and to run twice.
#[derive(clap::Args, Debug)]
#[command(
    group(clap::ArgGroup::new("whose").required(true).args(["user_id", "user_id_file", "session_id"])),
    after_help = "Examples:\n  \
    aegis-ingest erase --user-id u-4711 --dry-run\n  \
    aegis-ingest erase --user-id-file - --yes < id       # the id stands in no history and no list of processes\n  \
    aegis-ingest erase --session-id 6f1c --json"
)]
pub(super) struct Args {
    /// The user
    #[arg(long, value_name = "ID")]
    user_id: Option<String>,
    /// A file with the user's id, - for standard input
    #[arg(long, value_name = "FILE")]
    user_id_file: Option<PathBuf>,
    /// One session alone, whoever took part in it
    #[arg(long, value_name = "ID")]
    session_id: Option<String>,
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Do not ask on a terminal
    #[arg(long, short)]
    yes: bool,
    /// How long to wait for workers to settle what they have in hand
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = patience)]
    wait: Duration,
    /// As JSON
    #[arg(long)]
    json: bool,
}

fn patience(text: &str) -> Result<Duration, String> {
    config::duration(text, 0, 86_400_000)
}

/// What stays for a while, and until when.
const STAYS: [(&str, &str); 6] = [
    (
        "PostgreSQL, dead rows",
        "until VACUUM, which autovacuum does by itself; at once by `VACUUM FULL` of the tables, which locks them",
    ),
    ("PostgreSQL, write-ahead log", "until its segments are recycled, and in their archive as long as that is kept"),
    ("Chroma, log and index files", "until it compacts and vacuums (`chroma vacuum`, with the server stopped)"),
    ("Redis, append-only file", "until it is rewritten (BGREWRITEAOF does it now)"),
    ("replicas", "until they have caught up"),
    ("backups of all three", "until they expire; erase again after a restore"),
];

/// Does what was asked.
///
/// # Errors
/// A store is away or refuses, or workers do not settle what they have in hand; the message says what would do.
pub(super) async fn run(config: &Config, args: &Args) -> anyhow::Result<ExitCode> {
    let subject = subject(args)?;
    if !args.dry_run && !args.yes && std::io::stdin().is_terminal() && args.user_id_file.as_deref() != Some(Path::new("-")) {
        let what = if matches!(subject, Subject::User(_)) { "this user" } else { "this session" };
        eprint!("Erase all data of {what} for good (--dry-run shows how much that is)? [y/N] ");
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            say("Nothing was erased.\n")?;
            return Ok(ExitCode::FAILURE);
        }
    }
    let is_user = matches!(subject, Subject::User(_));
    let erased = erase::run(config, subject, !args.dry_run, args.wait, &mut |step| eprintln!("{step} …")).await?;
    say(&if args.json { json(&erased, args.dry_run) } else { words(&erased, args.dry_run, is_user) })?;
    Ok(ExitCode::SUCCESS)
}

fn subject(args: &Args) -> anyhow::Result<Subject> {
    let subject = match (&args.user_id, &args.user_id_file, &args.session_id) {
        (Some(id), ..) => Subject::User(id.clone()),
        (None, Some(path), _) => {
            let mut id = String::new();
            let read = if path == Path::new("-") {
                std::io::stdin().read_to_string(&mut id).map(drop)
            } else {
                std::fs::read_to_string(path).map(|text| id = text)
            };
            read.with_context(|| format!("--user-id-file {}: cannot be read", path.display()))?;
            Subject::User(id.trim_end_matches(['\n', '\r']).to_owned())
        }
        (None, None, Some(id)) => Subject::Session(id.clone()),
        (None, None, None) => bail!("say whose data: --user-id, --user-id-file or --session-id"),
    };
    match subject.id().len() {
        1..=ID_BYTES_MAX if !subject.id().contains(['\0', '\n']) => Ok(subject),
        len => bail!("the id is {len} bytes long, or more than a line: an id is 1 to {ID_BYTES_MAX} bytes on one line"),
    }
}

/// Every place with its count.
fn counts(erased: &Erased) -> Vec<(String, String, u64)> {
    let rows = &erased.rows;
    let mut counts: Vec<(String, String, u64)> = [
        ("interaction_logs", rows.interactions),
        ("session_events", rows.session_events),
        ("sessions", rows.sessions),
        ("embedding_log", rows.embeddings),
    ]
    .map(|(table, count)| ("PostgreSQL".to_owned(), format!("rows of {table}"), count))
    .into();
    counts.push(("Redis".to_owned(), "session hashes".to_owned(), erased.hashes));
    for (stream, from) in &erased.streams {
        counts.push(("Redis".to_owned(), format!("events in {} entries of {stream}", grouped(from.entries)), from.events));
    }
    for (stream, count) in erased.letters.iter().filter(|(_, count)| **count > 0) {
        counts.push(("Redis".to_owned(), format!("dead letters of {stream}"), *count));
    }
    for (collection, count) in &erased.vectors {
        counts.push(("Chroma".to_owned(), format!("records of {collection}"), *count));
    }
    counts
}

fn words(erased: &Erased, dry_run: bool, is_user: bool) -> String {
    let heading = if dry_run { "WOULD BE REMOVED" } else { "REMOVED" };
    let mut table = Table::new(&[Column::Left("STORE"), Column::Left("WHAT"), Column::Right(heading)]);
    for (store, what, count) in counts(erased) {
        table.row(&[store, what, grouped(count)]);
    }
    let mut text = table.render(Style::stdout());
    text.push('\n');
    for (stream, from) in erased.streams.iter().filter(|(_, from)| from.mixed > 0) {
        let _ = writeln!(
            text,
            "{} of {}: others' events stood in the same entries; those not settled yet {} back to the stream with the same identity.",
            grouped(from.mixed),
            clean(stream),
            if dry_run { "would go" } else { "went" }
        );
    }
    if erased.overwritten > 0 {
        let _ =
            writeln!(text, "{} records were the subject's once and are somebody else's now: left.", grouped(erased.overwritten));
    }
    if erased.ambiguous > 0 && is_user {
        let _ = writeln!(
            text,
            "{} records name no user, in sessions that others shared: left; `erase --session-id` removes such a session.",
            grouped(erased.ambiguous)
        );
    }
    if dry_run {
        return text;
    }
    text.push_str("Bytes of it stay for a while:\n");
    for (place, until) in STAYS {
        let _ = writeln!(text, "  {place}: {until}");
    }
    text
}

fn json(erased: &Erased, dry_run: bool) -> String {
    let streams: serde_json::Map<_, _> = (erased.streams.iter())
        .map(|(stream, from)| {
            (
                stream.clone(),
                serde_json::json!({ "entries": from.entries, "events": from.events, "entries_with_others": from.mixed }),
            )
        })
        .collect();
    let letters: serde_json::Map<_, _> =
        erased.letters.iter().filter(|(_, count)| **count > 0).map(|(stream, count)| (stream.clone(), (*count).into())).collect();
    let stays: Vec<_> = STAYS.iter().map(|(place, until)| serde_json::json!({ "where": place, "until": until })).collect();
    let json = serde_json::json!({
        "dry_run": dry_run,
        "rows": {
            "interaction_logs": erased.rows.interactions,
            "session_events": erased.rows.session_events,
            "sessions": erased.rows.sessions,
            "embedding_log": erased.rows.embeddings,
        },
        "session_hashes": erased.hashes,
        "vectors": erased.vectors,
        "dead_letters": letters,
        "streams": streams,
        "left": { "records_overwritten_by_others": erased.overwritten, "records_without_user_in_shared_sessions": erased.ambiguous },
        "stays": stays,
    });
    format!("{json:#}\n")
}
