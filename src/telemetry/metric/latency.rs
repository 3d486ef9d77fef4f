//! The histogram of ingest latency, which takes every event.
//!
//! The exporter's own histograms keep each observation until upkeep: at 350,000 events a second that is 14 MB between two
//! upkeeps of 5 s, and as many pushes. Here an event costs a few comparisons in an array of its batch, and a batch costs
//! one addition for each bucket that it touched.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Upper bounds, microseconds, inclusive. A quick path takes some milliseconds and a backlog after an outage takes hours,
/// and both shall be seen; entry ids count whole milliseconds, so the first bucket is the same millisecond.
const BOUNDS_US: [i64; 21] = [
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    900_000_000,
    3_600_000_000,
    14_400_000_000,
    86_400_000_000,
];

/// The last one has no bound.
const BUCKETS: usize = BOUNDS_US.len() + 1;

/// Counted without a branch to predict: all bounds are compared, which the compiler does several at a time.
#[inline]
fn bucket(us: i64) -> usize {
    BOUNDS_US.iter().map(|bound| usize::from(us > *bound)).sum()
}

/// Latencies of all events of one lane since the start.
#[derive(Debug)]
pub struct LatencyHistogram {
    /// Events by bucket, not cumulative. Their sum is the count, so count and buckets never disagree.
    buckets: [AtomicU64; BUCKETS],
    /// Bits of an f64: entry ids that are no times (`1-1`) would overflow an integer within the minute.
    sum_seconds: AtomicU64,
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| AtomicU64::new(0)), sum_seconds: AtomicU64::new(0_f64.to_bits()) }
    }
}

impl LatencyHistogram {
    /// Adds `count` events of the same latency; a negative or non-finite one counts as 0.
    pub fn observe_many(&self, seconds: f64, count: u64) {
        let seconds = if seconds.is_finite() { seconds.max(0.0) } else { 0.0 };
        self.buckets[bucket((seconds * 1e6).round() as i64)].fetch_add(count, Relaxed);
        self.add_seconds(seconds * count as f64);
    }

    /// Events so far.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Relaxed)).sum()
    }

    fn add_seconds(&self, seconds: f64) {
        // Never fails: the closure always has an answer.
        let _ = self.sum_seconds.fetch_update(Relaxed, Relaxed, |bits| Some((f64::from_bits(bits) + seconds).to_bits()));
    }
}

/// Latencies of one batch, gathered by its writer alone and added to the lane's histogram at once.
#[derive(Clone, Debug, Default)]
pub struct LatencyBatch {
    buckets: [u64; BUCKETS],
    sum_seconds: f64,
}

impl LatencyBatch {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `events` of one entry that was written `ms` milliseconds ago. Clocks of two machines differ, so an entry may
    /// come from the future: that counts as 0.
    #[inline]
    pub fn add(&mut self, ms: i64, events: u64) {
        let ms = ms.max(0);
        self.buckets[bucket(ms.saturating_mul(1_000))] += events;
        self.sum_seconds += ms as f64 * 1e-3 * events as f64;
    }

    /// Hands all of it over and is empty again.
    pub fn flush(&mut self, histogram: &LatencyHistogram) {
        for (from, to) in self.buckets.iter().zip(&histogram.buckets) {
            if *from > 0 {
                to.fetch_add(*from, Relaxed);
            }
        }
        histogram.add_seconds(self.sum_seconds);
        *self = Self::default();
    }
}

/// Appends the family in Prometheus text, a series for each label value; nothing when there is none.
pub(super) fn render(text: &mut String, name: &str, help: &str, label: &str, series: &[(&str, &LatencyHistogram)]) {
    if series.is_empty() {
        return;
    }
    // Writing to a String does not fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} histogram");
    for (value, histogram) in series {
        let sum = f64::from_bits(histogram.sum_seconds.load(Relaxed));
        let mut count = 0;
        for (index, bucket) in histogram.buckets.iter().enumerate() {
            count += bucket.load(Relaxed);
            let bound = BOUNDS_US.get(index).map_or("+Inf".to_owned(), |us| (*us as f64 / 1e6).to_string());
            let _ = writeln!(text, "{name}_bucket{{{label}=\"{value}\",le=\"{bound}\"}} {count}");
        }
        let _ = writeln!(text, "{name}_sum{{{label}=\"{value}\"}} {sum}\n{name}_count{{{label}=\"{value}\"}} {count}");
    }
    text.push('\n');
}
