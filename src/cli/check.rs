//! `check`: the configuration and every connection, in words, before or beside a running worker. It changes nothing.

mod chroma;
mod database;
mod redis;

pub(super) use redis::explained;

use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use super::table::{Paint, Style, clean, counted, say};
use crate::config::{Config, Lane, SETTINGS};

/// What a component may take beyond the deadline of its connection.
const ANSWERS: Duration = Duration::from_secs(10);
/// A request to Chroma may be allowed a minute when it brings vectors; these bring none.
const CHROMA_MAX: Duration = Duration::from_secs(15);
/// Checks the settings and every connection, in words.
///
/// Looks only at what the configured lanes need, and changes nothing. Exit status 0 when a worker can run (warnings included), 1 when
/// something would keep it from its work.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  \
    aegis-ingest check\n  \
    aegis-ingest check --lanes embeddings\n  \
    aegis-ingest check --json | jq -r '.findings[] | select(.level != \"ok\") | .advice'")]
pub(super) struct Args {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Ok,
    Warn,
    Fail,
}

impl Level {
    const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }

    const fn paint(self) -> Paint {
        match self {
            Self::Ok => Paint::Green,
            Self::Warn => Paint::Yellow,
            Self::Fail => Paint::Red,
        }
    }
}

/// One line: what was found, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    level: Level,
    part: &'static str,
    what: String,
    advice: Option<String>,
}

/// Gathers what is found about one part.
struct Findings {
    part: &'static str,
    all: Vec<Finding>,
}

impl Findings {
    #[cfg(test)]
    fn worst(&self) -> Level {
        let all = [Level::Fail, Level::Warn];
        all.into_iter().find(|level| self.all.iter().any(|finding| finding.level == *level)).unwrap_or(Level::Ok)
    }

    const fn about(part: &'static str) -> Self {
        Self { part, all: Vec::new() }
    }

    fn ok(&mut self, what: impl Into<String>) {
        self.all.push(Finding { level: Level::Ok, part: self.part, what: what.into(), advice: None });
    }

    fn warn(&mut self, what: impl Into<String>, advice: impl Into<String>) {
        self.all.push(Finding { level: Level::Warn, part: self.part, what: what.into(), advice: Some(advice.into()) });
    }

    fn fail(&mut self, what: impl Into<String>, advice: impl Into<String>) {
        self.all.push(Finding { level: Level::Fail, part: self.part, what: what.into(), advice: Some(advice.into()) });
    }
}

/// Looks at everything at once, so that a part that is down hides no other.
///
/// # Errors
/// Standard output's own failure.
pub(super) async fn run(config: &Config, args: &Args) -> anyhow::Result<ExitCode> {
    let database_used = config.lanes.iter().any(|lane| lane.needs_database());
    let chroma_used = config.lanes.contains(&Lane::Embeddings);
    let redis_found = in_time("Redis", config.redis.timeout + ANSWERS, redis::check(config));
    let database_found = async {
        if !database_used {
            return Vec::new();
        }
        in_time("database", config.database.connect_timeout + ANSWERS, database::check(config)).await
    };
    let chroma_found = async {
        if !chroma_used {
            return Vec::new();
        }
        in_time("Chroma", config.chroma.timeout.min(CHROMA_MAX), chroma::check(config)).await
    };
    let mut findings = settings(config);
    let (of_redis, of_database, of_chroma) = tokio::join!(redis_found, database_found, chroma_found);
    findings.extend(of_redis.into_iter().chain(of_database).chain(of_chroma));
    let failed = findings.iter().any(|finding| finding.level == Level::Fail);
    say(&if args.json { json(&findings) } else { render(&findings, Style::stdout()) })?;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn in_time(part: &'static str, limit: Duration, findings: impl Future<Output = Findings>) -> Vec<Finding> {
    if let Ok(found) = tokio::time::timeout(limit, findings).await {
        return found.all;
    }
    let mut found = Findings::about(part);
    found.fail(
        format!("no whole answer within {} s", limit.as_secs()),
        "it is overloaded, or something on the way swallows packets",
    );
    found.all
}

fn settings(config: &Config) -> Vec<Finding> {
    let mut found = Findings::about("settings");
    let lanes: Vec<_> = config.lanes.iter().map(|lane| lane.name()).collect();
    found.ok(format!("all {} are valid; lanes: {}", SETTINGS.len(), lanes.join(", ")));
    for unknown in &config.unknown {
        found.warn(unknown.clone(), "correct its name, or remove it: it has no effect");
    }
    if !config.http.addr.ip().is_loopback() && config.http.api_keys.is_empty() {
        found.warn(
            format!("/metrics is open to everybody who reaches {}", config.http.addr),
            "set AEGIS_API_KEYS, unless the network guards it",
        );
    }
    found.all
}

fn render(findings: &[Finding], style: Style) -> String {
    let width = findings.iter().map(|finding| finding.part.len()).max().unwrap_or_default();
    let line = |finding: &Finding| {
        let level = style.paint(finding.level.paint(), &format!("{:4}", finding.level.word()));
        let joint = if finding.what.ends_with('?') { " " } else { "; " };
        let advice = finding.advice.as_ref().map(|advice| format!("{joint}{advice}")).unwrap_or_default();
        format!("{level}  {:width$}  {}\n", finding.part, clean(&format!("{}{advice}", finding.what)))
    };
    let text: String = findings.iter().map(line).collect();
    let number = |level| findings.iter().filter(|finding| finding.level == level).count() as u64;
    let verdict = match (number(Level::Fail), number(Level::Warn)) {
        (0, 0) => style.paint(Paint::Green, "All is well."),
        (0, warnings) => style.paint(Paint::Yellow, &format!("A worker can run; {}.", counted(warnings, "warning"))),
        (failures, 0) => style.paint(Paint::Red, &format!("{}.", counted(failures, "failure"))),
        (failures, warnings) => {
            style.paint(Paint::Red, &format!("{}, {}.", counted(failures, "failure"), counted(warnings, "warning")))
        }
    };
    text + &verdict + "\n"
}

fn json(findings: &[Finding]) -> String {
    let all: Vec<_> = (findings.iter())
        .map(|finding| {
            let level = finding.level.word().to_lowercase();
            serde_json::json!({ "level": level, "part": finding.part, "finding": finding.what, "advice": finding.advice })
        })
        .collect();
    let ok = findings.iter().all(|finding| finding.level != Level::Fail);
    format!("{:#}\n", serde_json::json!({ "ok": ok, "findings": all }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_align_and_the_verdict_counts() {
        let mut found = Findings::about("Redis");
        found.ok("fine");
        found.fail("gone", "start it");
        found.all.push(Finding { level: Level::Warn, part: "settings", what: "odd".to_owned(), advice: None });
        let text = render(&found.all, Style::plain());
        assert_eq!(text, "ok    Redis     fine\nFAIL  Redis     gone; start it\nwarn  settings  odd\n1 failure, 1 warning.\n");
        assert!(json(&found.all).contains("\"ok\": false"));
    }
}
