//! Log lines: JSON for machines, plain for people, on standard error.

use std::io::{self, IsTerminal};
use std::panic::PanicHookInfo;

use tracing::subscriber::SetGlobalDefaultError;
use tracing::{Subscriber, error};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{Log, LogFormat};

/// Longest literal panic message that is logged, bytes.
const PANIC_MESSAGE_MAX: usize = 200;

/// Why logs could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter does not parse. The configuration refuses such a filter first.
    #[error("the log filter is not usable: {0}")]
    Filter(#[from] ParseError),
    /// Logs are set up already.
    #[error("logs are set up already: {0}")]
    Installed(#[from] SetGlobalDefaultError),
}

/// Sends all log lines of the process to standard error and logs panics; once a process.
///
/// # Errors
/// A filter that does not parse, or a second call.
pub fn install(log: &Log) -> Result<(), LogError> {
    let stderr = io::stderr();
    // https://no-color.org: set and not empty.
    let colour = stderr.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    tracing::subscriber::set_global_default(subscriber(log, colour, io::stderr)?)?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

type AnySubscriber = Box<dyn Subscriber + Send + Sync>;

fn subscriber<W>(log: &Log, colour: bool, writer: W) -> Result<AnySubscriber, ParseError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(&log.filter)?)
        .with_writer(writer)
        // A full disk or a closed pipe behind standard error is no reason to end a worker, and the line that would tell
        // of it panics when it cannot be written either.
        .log_internal_errors(false);
    Ok(match log.format {
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_current_span(false).with_span_list(false);
            Box::new(lines.finish())
        }
        LogFormat::Pretty => Box::new(lines.with_ansi(colour).finish()),
    })
}

/// Takes the place of the standard hook, which prints the whole message. What happens to the panicking thread is not the
/// hook's to decide and stays as it was.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    error!(
        place,
        thread = thread.name().unwrap_or_default(),
        reason = reason(panic.payload().downcast_ref::<&'static str>().copied()),
        "a task panicked: this is a bug"
    );
}

/// Messages put together at run time may hold what an event said; a literal in the source cannot.
fn reason(literal: Option<&'static str>) -> &'static str {
    match literal {
        Some(text) => &text[..text.floor_char_boundary(PANIC_MESSAGE_MAX)],
        None => "not shown, since it may hold data",
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex, PoisonError};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Lines {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()).unwrap()
        }
    }

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(format: LogFormat, filter: &str, speak: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let log = Log { filter: filter.to_owned(), format };
        let subscriber = subscriber(&log, false, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, speak);
        lines.text()
    }

    #[test]
    fn a_json_line_is_one_flat_object_without_spans() {
        let text = written(LogFormat::Json, "info", || {
            let span = tracing::info_span!("batch", secret_of_span = 1);
            let _inside = span.enter();
            tracing::info!(lane = "sessions", rows = 3, "batch\nwritten");
            tracing::debug!("too much");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["message"], "batch\nwritten");
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["lane"], "sessions");
        assert_eq!(line["rows"], 3);
        assert!(line["target"].as_str().unwrap().ends_with("telemetry::log::tests"));
        let mut keys: Vec<_> = line.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["lane", "level", "message", "rows", "target", "timestamp"]);
        let timestamp = line["timestamp"].as_str().unwrap();
        assert!(timestamp.ends_with('Z') && timestamp.as_bytes()[10] == b'T', "{timestamp}");
    }

    #[test]
    fn a_plain_line_has_no_colour_away_from_a_terminal() {
        let text = written(LogFormat::Pretty, "warn", || tracing::warn!(lane = "sessions", "slow"));
        assert!(text.contains("WARN") && text.contains("slow") && text.contains("lane=\"sessions\""), "{text}");
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }

    #[test]
    fn a_filter_that_does_not_parse_is_an_error() {
        let log = Log { filter: "info,=,=".to_owned(), format: LogFormat::Json };
        assert!(subscriber(&log, false, io::sink).is_err());
    }

    #[test]
    fn only_literal_panic_messages_are_shown_and_only_in_part() {
        let text = "é".repeat(300);
        assert_eq!(reason(Some("queue closed")), "queue closed");
        assert!(reason(Some(Box::leak(text.into_boxed_str()))).len() <= PANIC_MESSAGE_MAX);
        assert!(!reason(None).is_empty());
    }
}
