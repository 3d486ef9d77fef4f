//! What is seen while it runs: a bar on a terminal, else a line now and then. All of it on stderr.

use std::fmt::Write;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

const LINE_EVERY: Duration = Duration::from_secs(5);

/// A handle to the one progress display.
#[derive(Clone)]
pub(super) enum Progress {
    /// Nothing but what goes wrong.
    Quiet,
    /// A bar.
    Bar(ProgressBar),
    /// Lines.
    Lines(Arc<Mutex<Lines>>),
}

pub(super) struct Lines {
    begin: Instant,
    last: Instant,
    events: u64,
    events_at_last: u64,
    total: Option<u64>,
}

impl Progress {
    /// A display for `total` events, or for an unknown number.
    pub(super) fn new(quiet: bool, total: Option<u64>) -> Self {
        if quiet {
            return Self::Quiet;
        }
        if !std::io::stderr().is_terminal() {
            let now = Instant::now();
            return Self::Lines(Arc::new(Mutex::new(Lines { begin: now, last: now, events: 0, events_at_last: 0, total })));
        }
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(8));
        let template = match total {
            Some(_) => "{bar:32.cyan/dim} {human_pos} of {human_len} events  {rate}/s  {eta} left",
            None => "{spinner:.cyan} {human_pos} events  {rate}/s  {elapsed}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            let rate = |state: &ProgressState, out: &mut dyn Write| {
                let _ = write!(out, "{}", HumanCount(state.per_sec() as u64));
            };
            bar.set_style(style.with_key("rate", rate));
        }
        bar.enable_steady_tick(Duration::from_millis(250));
        Self::Bar(bar)
    }

    /// Counts events that Redis has taken.
    pub(super) fn add(&self, events: u64) {
        match self {
            Self::Quiet => {}
            Self::Bar(bar) => bar.inc(events),
            Self::Lines(lines) => {
                let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                lines.events += events;
                if lines.last.elapsed() >= LINE_EVERY {
                    eprintln!("{}", lines.line(Instant::now()));
                    (lines.last, lines.events_at_last) = (Instant::now(), lines.events);
                }
            }
        }
    }

    /// Says something beside the display.
    pub(super) fn say(&self, text: &str) {
        match self {
            Self::Bar(bar) => bar.suspend(|| eprintln!("{text}")),
            Self::Quiet | Self::Lines(_) => eprintln!("{text}"),
        }
    }

    /// Takes the display away.
    pub(super) fn finish(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

impl Lines {
    fn line(&self, now: Instant) -> String {
        let rate = (self.events - self.events_at_last) as f64 / (now - self.last).as_secs_f64().max(1e-9);
        let of_total = self.total.map(|total| format!(" of {}", HumanCount(total))).unwrap_or_default();
        let seconds = (now - self.begin).as_secs_f64();
        format!("{seconds:.0} s: {}{of_total} events, {} events/s", HumanCount(self.events), HumanCount(rate as u64))
    }
}
