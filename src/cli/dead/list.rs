//! `dead list`: newest first, without what the letters carry.

use std::cmp::Reverse;
use std::fmt::Write as _;
use std::process::ExitCode;

use super::super::check::explained;
use super::super::table::{Column, Paint, Style, Table, counted, grouped, say};
use super::super::when::now_ms;
use super::select::{Filter, Place};
use crate::config::{Config, Lane, Streams};
use crate::redis::Redis;
use crate::redis::dead::{self, Letter, Order, Pages};

/// Lists dead letters, newest first.
///
/// What they carry is not shown: `dead show ID` does that.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  \
    aegis-ingest dead list\n  \
    aegis-ingest dead list --lane sessions --code missing_field,invalid_field --since 2h\n  \
    aegis-ingest dead list --json --limit 100000 | jq -r .reason | sort | uniq -c")]
pub(super) struct Args {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    filter: Filter,
    /// At most so many, 1 to 100000
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// As JSON, an object a line
    #[arg(long)]
    json: bool,
}

struct Row {
    lane: Lane,
    stream: String,
    letter: Letter,
}

pub(super) async fn run(redis: &Redis, config: &Config, args: &Args) -> anyhow::Result<ExitCode> {
    let limit = args.limit as usize;
    let (mut rows, mut more) = (Vec::new(), false);
    for (lane, stream) in args.place.streams(config)? {
        let (letters, left_out) = newest_of(redis, &stream, &args.filter, limit).await?;
        more |= left_out;
        rows.extend(letters.into_iter().map(|letter| Row { lane, stream: stream.clone(), letter }));
        // Over all streams at most twice the limit is held.
        rows.sort_by_key(|row: &Row| Reverse(row.letter.id));
        more |= rows.len() > limit;
        rows.truncate(limit);
    }
    say(&if args.json { json(&rows) } else { render(&rows, more, &args.filter, Style::stdout()) })?;
    Ok(ExitCode::SUCCESS)
}

/// The newest letters of one stream that the filter takes, and whether there are more.
async fn newest_of(redis: &Redis, stream: &str, filter: &Filter, limit: usize) -> anyhow::Result<(Vec<Letter>, bool)> {
    let Some(newest) = dead::newest(redis, stream).await.map_err(|error| explained(&error))? else {
        return Ok((Vec::new(), false));
    };
    let mut pages = Pages::new(redis, stream, filter.range(newest, now_ms()), Order::HeadsNewestFirst);
    let mut letters = Vec::new();
    loop {
        let page = pages.next().await.map_err(|error| explained(&error))?;
        if page.is_empty() {
            return Ok((letters, false));
        }
        letters.extend(page.into_iter().filter(|letter| filter.takes(letter)));
        if letters.len() > limit {
            letters.truncate(limit);
            return Ok((letters, true));
        }
    }
}

fn render(rows: &[Row], more: bool, filter: &Filter, style: Style) -> String {
    if rows.is_empty() {
        return format!("No dead letters{}.\n", if filter.is_narrow() { " that fit" } else { "" });
    }
    let mut table = Table::new(&[
        Column::Left("ID"),
        Column::Left("STREAM"),
        Column::Left("ENTRY"),
        Column::Right("INDEX"),
        Column::Left("CODE"),
        Column::Left("FAILED AT"),
        Column::Left("REASON"),
    ]);
    for Row { stream, letter, .. } in rows {
        let dash = || "-".to_owned();
        let (code, reason) = match &letter.origin {
            Some(_) => (letter.code.clone(), letter.reason.clone()),
            None => (dash(), "another program wrote this".to_owned()),
        };
        table.row(&[
            letter.id.to_string(),
            letter.origin.as_ref().map_or_else(|| stream.clone(), |origin| origin.stream.clone()),
            letter.origin.as_ref().map_or_else(dash, |origin| origin.id.to_string()),
            letter.origin.as_ref().map_or_else(dash, |origin| origin.index.to_string()),
            code,
            to_the_second(&letter.failed_at),
            reason,
        ]);
    }
    let mut text = table.render(style);
    if more {
        let shown = format!("The newest {} are shown; --limit shows more.\n", grouped(rows.len() as u64));
        text.push_str(&style.paint(Paint::Yellow, &shown));
    } else {
        let _ = writeln!(text, "{}.", counted(rows.len() as u64, "dead letter"));
    }
    text
}

fn to_the_second(rfc3339: &str) -> String {
    match rfc3339.split_once('.') {
        Some((seconds, _)) if rfc3339.ends_with('Z') => format!("{seconds}Z"),
        _ => rfc3339.to_owned(),
    }
}

/// What `list` and `show` say of a letter in JSON.
pub(super) fn head(lane: Lane, stream: &str, letter: &Letter) -> serde_json::Map<String, serde_json::Value> {
    let origin = letter.origin.as_ref();
    let own = |text: &str| origin.map(|_| text.to_owned());
    let fields = [
        ("id", serde_json::json!(letter.id.to_string())),
        ("lane", serde_json::json!(lane.name())),
        ("dead_stream", serde_json::json!(Streams::dead(stream))),
        ("stream", serde_json::json!(origin.map(|origin| &origin.stream))),
        ("entry", serde_json::json!(origin.map(|origin| origin.id.to_string()))),
        ("index", serde_json::json!(origin.map(|origin| origin.index))),
        ("code", serde_json::json!(own(&letter.code))),
        ("reason", serde_json::json!(own(&letter.reason))),
        ("failed_at", serde_json::json!(own(&letter.failed_at))),
        ("bytes", serde_json::json!(letter.bytes)),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn json(rows: &[Row]) -> String {
    let line = |row: &Row| format!("{}\n", serde_json::Value::Object(head(row.lane, &row.stream, &row.letter)));
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_of_a_second_are_left_out() {
        assert_eq!(to_the_second("2026-11-22T10:00:00.123Z"), "2026-11-22T10:00:00Z");
        assert_eq!(to_the_second("2026-11-22T10:00:00Z"), "2026-11-22T10:00:00Z");
        assert_eq!(to_the_second("soon.ish"), "soon.ish");
    }
}
