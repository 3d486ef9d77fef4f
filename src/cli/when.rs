//! Points in time as a person gives them.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::config;

/// A point in time as a person gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// Unix milliseconds.
    At(u64),
    /// Milliseconds ago.
    Ago(u64),
}

impl When {
    /// Unix milliseconds, seen from now.
    pub(super) fn ms(self, now_ms: u64) -> u64 {
        match self {
            Self::At(ms) => ms,
            Self::Ago(ms) => now_ms.saturating_sub(ms),
        }
    }
}

/// Reads a point in time.
pub(super) fn when(text: &str) -> Result<When, String> {
    if let Ok(ago) = config::duration(text, 0, u64::MAX) {
        return Ok(When::Ago(ago.as_millis() as u64));
    }
    let at: jiff::Timestamp = text
        .parse()
        .map_err(|_| "expected a time such as 2026-11-22T14:00:00Z, or how long ago, such as 30m, 2h or 7d".to_owned())?;
    u64::try_from(at.as_millisecond()).map(When::At).map_err(|_| "expected a time after 1970".to_owned())
}

/// Unix milliseconds.
pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_absolute_or_ago() {
        assert_eq!(when("2h"), Ok(When::Ago(7_200_000)));
        assert_eq!(when("1970-01-01T00:00:01Z"), Ok(When::At(1_000)));
        assert!(when("yesterday").unwrap_err().contains("2h"));
        assert!(when("1969-01-01T00:00:00Z").is_err());
    }
}
