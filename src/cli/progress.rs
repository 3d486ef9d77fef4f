//! How far a long command is: a bar on a terminal, a line every few seconds elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::table::grouped;

/// Often enough to see that it lives, seldom enough for a log.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Progress on standard error.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    verb: &'static str,
    total: u64,
    at: u64,
    line_at: Instant,
}

impl Progress {
    /// Towards `total`.
    pub(super) fn new(verb: &'static str, total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total);
            if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:32}] {human_pos} of {human_len}, {eta} left") {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(verb);
            bar
        });
        Self { bar, verb, total, at: 0, line_at: Instant::now() + LINE_EVERY }
    }

    /// So many more are through.
    pub(super) fn add(&mut self, count: u64) {
        self.at += count;
        if let Some(bar) = &self.bar {
            bar.set_position(self.at);
        } else if Instant::now() >= self.line_at {
            self.line_at = Instant::now() + LINE_EVERY;
            eprintln!("{} {} of {}", self.verb, grouped(self.at), grouped(self.total));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
