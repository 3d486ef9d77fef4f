//! `dead show`: everything about one dead letter, the event included.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::bail;

use super::super::table::{bytes, clean, say};
use super::display::{self, Readable};
use super::list::head;
use super::select::{Place, holders, id};
use crate::config::{Config, Lane, Streams};
use crate::redis::Redis;
use crate::redis::dead::{Kept, Letter};
use crate::seam::EntryId;

/// Shows one dead letter with its event.
///
/// This prints what the event holds, transcripts included. Long vectors and bytes are abbreviated.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  \
    aegis-ingest dead show 1763820000000-0\n  \
    aegis-ingest dead show 1763820000000-0 --json --full | jq .event\n  \
    aegis-ingest dead show 1763820000000-0 --raw > event.msgpack")]
pub(super) struct Args {
    /// Its id, as `dead list` shows it
    #[arg(value_name = "ID", value_parser = id)]
    id: EntryId,
    #[command(flatten)]
    place: Place,
    /// Vectors and bytes whole
    #[arg(long)]
    full: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Only the event's own bytes, as they came
    #[arg(long, conflicts_with_all = ["json", "full"])]
    raw: bool,
}

pub(super) async fn run(redis: &Redis, config: &Config, args: &Args) -> anyhow::Result<ExitCode> {
    let found = holders(redis, &args.place.streams(config)?, args.id).await?;
    if found.is_empty() {
        bail!("no dead letter {}: `aegis-ingest dead list` shows those that there are", args.id);
    }
    if args.raw {
        let [(.., letter)] = found.as_slice() else {
            let names: Vec<_> = found.iter().map(|(_, stream, _)| stream.as_str()).collect();
            bail!("{} stands among the dead letters of {}: say which with --lane or --partition", args.id, names.join(" and "));
        };
        let (Kept::MessagePack(payload) | Kept::Json(payload)) = &letter.kept else {
            bail!("{} keeps the fields of an entry and no single event: leave out --raw", args.id);
        };
        std::io::stdout().write_all(payload)?;
        std::io::stdout().flush()?;
        return Ok(ExitCode::SUCCESS);
    }
    for (i, (lane, stream, letter)) in found.iter().enumerate() {
        if args.json {
            say(&json(*lane, stream, letter, args.full)?)?;
        } else {
            say(&format!("{}{}", if i > 0 { "\n" } else { "" }, render(stream, letter, args.full)))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn render(stream: &str, letter: &Letter, full: bool) -> String {
    let mut lines = vec![("dead letter", format!("{} in {}", letter.id, Streams::dead(stream)))];
    match &letter.origin {
        Some(origin) => lines.extend([
            ("stream", origin.stream.clone()),
            ("entry", origin.id.to_string()),
            ("index", origin.index.to_string()),
            ("code", letter.code.clone()),
            ("reason", letter.reason.clone()),
            ("failed at", letter.failed_at.clone()),
        ]),
        None => lines.push(("origin", "another program wrote this entry".to_owned())),
    }
    let (kind, parts) = match &letter.kept {
        Kept::MessagePack(payload) => {
            (format!("{} of MessagePack (field data)", bytes(payload.len() as u64)), vec![display::msgpack(payload, full)])
        }
        Kept::Json(payload) => {
            (format!("{} of JSON (field json)", bytes(payload.len() as u64)), vec![display::json(payload, full)])
        }
        Kept::Entry(fields) if fields.is_empty() => {
            ("none: the entry was deleted before it was set aside".to_owned(), Vec::new())
        }
        Kept::Entry(fields) => ("the fields of the entry as they were".to_owned(), vec![entry(fields, full)]),
    };
    lines.push(("event", kind));
    lines.extend(parts.iter().filter_map(|part| part.problem.clone()).map(|problem| ("", format!("not readable: {problem}"))));
    let mut text = String::new();
    for (name, value) in lines {
        let _ = writeln!(text, "{name:12}  {}", clean(&value));
    }
    for part in parts {
        text.push_str(&part.json);
        text.push('\n');
    }
    text
}

/// An entry's own fields as one JSON object, in their order.
fn entry(fields: &[(Vec<u8>, Vec<u8>)], full: bool) -> Readable {
    let (mut members, mut problem) = (Vec::new(), None);
    for (name, value) in fields {
        let shown = display::field(name, value, full);
        problem = problem.or(shown.problem);
        members.push(format!("  {}: {}", display::field(b"", name, full).json, shown.json.replace('\n', "\n  ")));
    }
    Readable { json: format!("{{\n{}\n}}", members.join(",\n")), problem }
}

fn json(lane: Lane, stream: &str, letter: &Letter, full: bool) -> anyhow::Result<String> {
    let mut object = head(lane, stream, letter);
    let (field, readable) = match &letter.kept {
        Kept::MessagePack(payload) => (Some("data"), Some(display::msgpack(payload, full))),
        Kept::Json(payload) => (Some("json"), Some(display::json(payload, full))),
        Kept::Entry(fields) if fields.is_empty() => (None, None),
        Kept::Entry(fields) => (None, Some(entry(fields, full))),
    };
    object.insert("field".to_owned(), serde_json::json!(field));
    let problem = readable.as_ref().and_then(|readable| readable.problem.as_ref());
    object.insert("problem".to_owned(), serde_json::json!(problem));
    let head = serde_json::to_string_pretty(&object)?;
    let event = readable.map_or_else(|| "null".to_owned(), |readable| readable.json.replace('\n', "\n  "));
    // Spliced in as text: read into a map, the event would lose its order and its doubled keys.
    let name = if matches!(letter.kept, Kept::Entry(_)) { "fields" } else { "event" };
    Ok(format!("{},\n  \"{name}\": {event}\n}}\n", head.trim_end_matches('}').trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seam::ReplayOrigin;

    fn letter(kept: Kept) -> Letter {
        let id = EntryId { ms: 7, seq: 0 };
        let origin = Some(ReplayOrigin { stream: "s".to_owned(), id, index: 2 });
        let [code, reason, failed_at] = ["malformed", "it is\nnot", "2026-11-22T00:00:00Z"].map(str::to_owned);
        Letter { id, bytes: 99, origin, code, reason, failed_at, kept }
    }

    #[test]
    fn words_hold_everything() {
        let text = render("s", &letter(Kept::Json(b"{\"a\":1}".to_vec())), false);
        for part in ["7-0 in s:dead\n", "index         2\n", "it is\\u{a}not\n", "7 B of JSON (field json)\n{\n  \"a\": 1\n}\n"] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
    }

    #[test]
    fn json_is_one_object() {
        let fields = vec![(b"x".to_vec(), b"\xff".to_vec()), (b"json".to_vec(), b"{\"b\":[{}]}".to_vec())];
        for (kept, name) in [
            (Kept::Entry(fields), "fields"),
            (Kept::Entry(Vec::new()), "fields"),
            (Kept::MessagePack(vec![0x80]), "event"),
            (Kept::Json(b"{".to_vec()), "event"),
        ] {
            let text = json(Lane::Sessions, "s", &letter(kept), false).unwrap();
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert!(value.get(name).is_some() && value["reason"] == "it is\nnot", "{text}");
        }
    }
}
