//! Waiting for something to become true: a sleep is never an assertion.

use std::time::{Duration, Instant};

/// For what takes milliseconds on an idle machine: generous, since tests share two cores.
pub const SOON: Duration = Duration::from_secs(20);
/// For restarts, take-overs and thousands of events.
pub const LONG: Duration = Duration::from_secs(90);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Looks until `probe` has an answer and returns it; panics with `what` when `within` is over. A look that hangs counts as
/// none.
pub async fn until<T>(what: &str, within: Duration, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    let mut looks = 0_u32;
    loop {
        looks += 1;
        let left = within.saturating_sub(began.elapsed());
        if let Ok(Some(answer)) = tokio::time::timeout(left, probe()).await {
            return answer;
        }
        assert!(began.elapsed() < within, "waited {:.1?} in vain ({looks} looks) for: {what}", began.elapsed());
        tokio::time::sleep(PAUSE).await;
    }
}

/// Looks until two values are equal and panics with both when they never are.
pub async fn until_equal<T: PartialEq + std::fmt::Debug>(
    what: &str,
    within: Duration,
    wanted: T,
    mut probe: impl AsyncFnMut() -> T,
) {
    let began = Instant::now();
    loop {
        let found = probe().await;
        if found == wanted {
            return;
        }
        assert!(
            began.elapsed() < within,
            "waited {:.1?} in vain for: {what}\n  wanted {wanted:?}\n  found  {found:?}",
            began.elapsed()
        );
        tokio::time::sleep(PAUSE).await;
    }
}

/// Like [`until`] without a runtime.
pub fn until_blocking<T>(what: &str, within: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = probe() {
            return answer;
        }
        assert!(began.elapsed() < within, "waited {:.1?} in vain for: {what}", began.elapsed());
        std::thread::sleep(PAUSE);
    }
}
