//! When the next entry is due.

use std::time::Duration;

/// How fast to write.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Pace {
    /// As fast as it goes.
    Free,
    /// Events a second.
    Rate(f64),
    /// As the events' own times say, so many times faster.
    Speed { start_us: i64, speed: f64 },
}

impl Pace {
    /// When an entry is due, from the beginning, if it has `before` events before it and carries the time `at_us`.
    pub(super) fn due(self, before: u64, at_us: i64) -> Duration {
        let seconds = match self {
            Self::Free => 0.0,
            Self::Rate(rate) => before as f64 / rate,
            Self::Speed { start_us, speed } => at_us.saturating_sub(start_us) as f64 / 1e6 / speed,
        };
        Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
    }
}

/// A schedule that gives way when it cannot be kept: after a stall the backlog is written at once only as far as this, for
/// a burst would measure the stall and not the pipeline.
const BACKLOG_MAX: Duration = Duration::from_millis(100);

/// Holds what is due against the clock.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    slip: Duration,
}

impl Schedule {
    /// How long to wait, `elapsed` after the beginning, for what is due at `due`; nothing when it is time.
    pub(super) fn wait(&mut self, elapsed: Duration, due: Duration) -> Option<Duration> {
        let planned = due.saturating_add(self.slip);
        if let Some(late) = elapsed.checked_sub(planned) {
            self.slip += late.saturating_sub(BACKLOG_MAX);
            return None;
        }
        Some(planned.saturating_sub(elapsed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn an_entry_is_due_by_count_or_by_its_time() {
        assert_eq!(Pace::Free.due(1_000_000, 5), Duration::ZERO);
        assert_eq!(Pace::Rate(200.0).due(100, 5), ms(500));
        let pace = Pace::Speed { start_us: 1_000_000, speed: 2.0 };
        assert_eq!(pace.due(0, 2_000_000), ms(500));
        assert_eq!(pace.due(0, 0), Duration::ZERO);
        assert_eq!(Pace::Rate(f64::MIN_POSITIVE).due(u64::MAX, 0), Duration::MAX);
    }

    #[test]
    fn a_stall_is_caught_up_by_a_tenth_of_a_second_and_no_more() {
        let mut schedule = Schedule::default();
        assert_eq!(schedule.wait(ms(5), ms(20)), Some(ms(15)));
        assert_eq!(schedule.wait(ms(60), ms(20)), None);
        assert_eq!(schedule.wait(ms(60), ms(80)), Some(ms(20)), "a short delay is caught up");
        assert_eq!(schedule.wait(ms(1_080), ms(80)), None);
        assert_eq!(schedule.wait(ms(1_080), ms(181)), Some(ms(1)), "100 ms of backlog go at once, the rest is let go");
    }
}
