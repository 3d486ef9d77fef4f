//! Whether the other sides answer: the truth behind `/readyz`, and the few log lines that an outage is worth.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use metrics::{Counter, Gauge};
use tracing::{debug, info, warn};

pub use super::metric::Component;
use super::metric::{LaneMetrics, Recorder};
use crate::config::Lane;

/// A component is down once failures span this long with no success between. One lost connection is noticed by every
/// writer of a lane within milliseconds and is mended by the next try: that is one failure, not many. Probes stand a
/// second apart, so the second that fails is past it.
const FAILURES_APART: Duration = Duration::from_millis(200);

/// A component is down at the first failure when its last success is older than this: a probe that ran into its deadline
/// has waited long enough already. Twice the period of probes, so that a single one between two good ones does not count.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// What is known of a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It has never answered, and has not been given up either.
    Starting,
    /// It answers.
    Up,
    /// It does not.
    Down,
}

impl Condition {
    /// The word in `/readyz`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// The conditions of all components that the configured lanes need; a clone is the same one.
///
/// Whoever probes a component reports about once a second and gives each probe a deadline of at most 2 s: then readiness
/// follows the truth within 4 s down and 1 s up.
#[derive(Clone, Debug)]
pub struct Health(Arc<Vec<Watched>>);

#[derive(Debug)]
struct Watched {
    component: Component,
    up: Gauge,
    /// Never held across an await.
    course: Mutex<Course>,
}

impl Health {
    /// All components that these lanes need, starting.
    pub fn new(recorder: &Recorder, lanes: &[Lane]) -> Self {
        let now = Instant::now();
        let watch = |component| {
            let up = recorder.component_up(component);
            up.set(0.0);
            Watched { component, up, course: Mutex::new(Course::new(now)) }
        };
        Self(Arc::new(Component::needed_by(lanes).into_iter().map(watch).collect()))
    }

    /// What a probe or a lane found: the component answered, or an error text, which goes to the log and must not
    /// hold credentials. Reports on components that no lane needs are dropped.
    pub fn report(&self, component: Component, outcome: Result<(), String>) {
        self.report_at(component, outcome, Instant::now());
    }

    fn report_at(&self, component: Component, outcome: Result<(), String>, now: Instant) {
        let Some(watched) = self.0.iter().find(|watched| watched.component == component) else { return };
        let turn = lock(&watched.course).take(outcome.is_ok(), now);
        match turn {
            Turn::None => {}
            Turn::Up => {
                watched.up.set(1.0);
                debug!(component = component.name(), "answers");
            }
            Turn::Back { outage } => {
                watched.up.set(1.0);
                info!(component = component.name(), outage_seconds = seconds(outage), "answers again");
            }
            Turn::Down => {
                watched.up.set(0.0);
                let error = outcome.err().unwrap_or_default();
                warn!(component = component.name(), error, "does not answer: not ready until it does");
            }
        }
    }

    /// Whether every component answers.
    pub fn ready(&self) -> bool {
        self.0.iter().all(|watched| lock(&watched.course).condition == Condition::Up)
    }

    /// Each component with its condition, in the order of [`Component::ALL`].
    pub fn conditions(&self) -> Vec<(Component, Condition)> {
        self.0.iter().map(|watched| (watched.component, lock(&watched.course).condition)).collect()
    }

    /// Whether every component answers, and the conditions as one JSON object. Both come from the same look. Error
    /// texts are left out, since they may hold addresses.
    pub fn snapshot(&self) -> (bool, String) {
        let conditions = self.conditions();
        let ready = conditions.iter().all(|(_, condition)| *condition == Condition::Up);
        let status = if ready { "ready" } else { "not ready" };
        let words: Vec<_> =
            (conditions.iter()).map(|(component, condition)| format!("\"{component}\":\"{}\"", condition.name())).collect();
        (ready, format!("{{\"status\":\"{status}\",\"components\":{{{}}}}}", words.join(",")))
    }
}

/// How one component fared so far; pure.
#[derive(Debug)]
struct Course {
    condition: Condition,
    /// Last success, or the start.
    good: Instant,
    /// First failure since then.
    bad: Option<Instant>,
}

#[derive(Debug, PartialEq, Eq)]
enum Turn {
    None,
    Up,
    Back { outage: Duration },
    Down,
}

impl Course {
    fn new(now: Instant) -> Self {
        Self { condition: Condition::Starting, good: now, bad: None }
    }

    fn take(&mut self, success: bool, now: Instant) -> Turn {
        let was = self.condition;
        if success {
            let bad = self.bad.take();
            self.good = now;
            self.condition = Condition::Up;
            return match was {
                Condition::Up => Turn::None,
                Condition::Starting => Turn::Up,
                Condition::Down => Turn::Back { outage: now.saturating_duration_since(bad.unwrap_or(now)) },
            };
        }
        let bad = *self.bad.get_or_insert(now);
        let lasting = now.saturating_duration_since(bad) >= FAILURES_APART;
        let silent = now.saturating_duration_since(self.good) > SILENCE_MAX;
        if was == Condition::Down || !(lasting || silent) {
            return Turn::None;
        }
        self.condition = Condition::Down;
        Turn::Down
    }
}

/// Waiting for a component, as one writer of a lane sees it. Clones are for the lane's other writers: together they log
/// one line when the first of them starts to wait and one when none waits any more, however often each of them tries.
#[derive(Debug)]
pub struct Outage {
    shared: Arc<SharedOutage>,
    /// Whether this writer waits.
    waits: bool,
}

#[derive(Debug)]
struct SharedOutage {
    lane: Lane,
    component: Component,
    retries: Counter,
    /// Never held across an await.
    state: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    writers: usize,
    tries: u64,
    since: Option<Instant>,
}

impl Outage {
    /// Nobody waits yet.
    pub fn new(metrics: &LaneMetrics, component: Component) -> Self {
        let retries = metrics.retries(component).clone();
        let shared = SharedOutage { lane: metrics.lane, component, retries, state: Mutex::default() };
        Self { shared: Arc::new(shared), waits: false }
    }

    /// A try failed because the component was away; `error` holds no credentials.
    pub fn failed(&mut self, error: &str) {
        self.shared.retries.increment(1);
        let mut state = lock(&self.shared.state);
        state.tries += 1;
        if self.waits {
            return;
        }
        self.waits = true;
        state.writers += 1;
        if state.since.is_some() {
            return;
        }
        state.since = Some(Instant::now());
        drop(state);
        warn!(
            lane = self.shared.lane.name(),
            component = self.shared.component.name(),
            error,
            "waiting: tries again until it answers; nothing is acknowledged meanwhile, so nothing is lost"
        );
    }

    /// A try got through; costs nothing when this writer did not wait.
    pub fn recovered(&mut self) {
        let Some((since, tries)) = self.leave() else { return };
        info!(
            lane = self.shared.lane.name(),
            component = self.shared.component.name(),
            waited_seconds = seconds(since.elapsed()),
            tries,
            "waiting is over"
        );
    }

    /// Whether this writer waits.
    pub fn waits(&self) -> bool {
        self.waits
    }

    /// When and after how many tries the last waiting writer left.
    fn leave(&mut self) -> Option<(Instant, u64)> {
        if !std::mem::take(&mut self.waits) {
            return None;
        }
        let mut state = lock(&self.shared.state);
        state.writers -= 1;
        if state.writers > 0 {
            return None;
        }
        let tries = std::mem::take(&mut state.tries);
        state.since.take().map(|since| (since, tries))
    }
}

impl Clone for Outage {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), waits: false }
    }
}

impl Drop for Outage {
    /// A writer that is stopped while it waits has not seen the component back.
    fn drop(&mut self) {
        self.leave();
    }
}

/// Seconds for a log line, to the millisecond.
fn seconds(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1e3
}

/// A panic elsewhere leaves plain values that are whole at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
