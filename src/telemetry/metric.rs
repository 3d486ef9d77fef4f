//! Every metric of the program, its name, labels and help text, once.
//!
//! [`Recorder`] is an argument and not a global: a test reads what its own subject counted. Handles ([`LaneMetrics`]) are
//! made once a lane, so that nothing is looked up by name while events pass, and every family of a configured lane stands
//! in `/metrics` with 0 from the start: a rate over a counter that appears with its first error misses that error.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder as _, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use crate::config::Lane;
use crate::event::Code;

mod latency;

pub use latency::{LatencyBatch, LatencyHistogram};

/// How often [`Recorder::upkeep`] wants to be called. The exporter keeps every observation of a histogram until then; two
/// histograms take one a batch, so 5 s are some thousands of numbers at most.
pub const UPKEEP_PERIOD: Duration = Duration::from_secs(5);

/// Other sides that can be away, as they are called in logs, in `/readyz` and in the label `component`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Component {
    /// Where events come from.
    Redis,
    /// `PostgreSQL` with `TimescaleDB`.
    Database,
    /// The vector store.
    Chroma,
}

impl Component {
    /// All components, in the order in which they are listed to people.
    pub const ALL: [Self; 3] = [Self::Redis, Self::Database, Self::Chroma];

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Database => "database",
            Self::Chroma => "chroma",
        }
    }

    /// The store that a lane writes to.
    pub const fn store_of(lane: Lane) -> Self {
        if lane.needs_database() { Self::Database } else { Self::Chroma }
    }

    /// What a worker with these lanes cannot do without.
    pub fn needed_by(lanes: &[Lane]) -> Vec<Self> {
        let stores = |component| lanes.iter().any(|lane| Self::store_of(*lane) == component);
        Self::ALL.into_iter().filter(|component| *component == Self::Redis || stores(*component)).collect()
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A metric family; to register one of its series is to describe it, so none stands in `/metrics` without a help text.
struct Family {
    name: &'static str,
    unit: Unit,
    help: &'static str,
}

type Labels<'a> = &'a [(&'static str, &'static str)];

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

impl Family {
    const fn new(name: &'static str, unit: Unit, help: &'static str) -> Self {
        Self { name, unit, help }
    }

    fn key(&self, labels: Labels<'_>) -> Key {
        let labels: Vec<_> = labels.iter().map(|(key, value)| Label::from_static_parts(key, value)).collect();
        Key::from_parts(self.name, labels)
    }

    fn counter(&self, recorder: &PrometheusRecorder, labels: Labels<'_>) -> Counter {
        recorder.describe_counter(self.name.into(), Some(self.unit), self.help.into());
        recorder.register_counter(&self.key(labels), &METADATA)
    }

    fn gauge(&self, recorder: &PrometheusRecorder, labels: Labels<'_>) -> Gauge {
        recorder.describe_gauge(self.name.into(), Some(self.unit), self.help.into());
        recorder.register_gauge(&self.key(labels), &METADATA)
    }

    fn histogram(&self, recorder: &PrometheusRecorder, labels: Labels<'_>) -> Histogram {
        recorder.describe_histogram(self.name.into(), Some(self.unit), self.help.into());
        recorder.register_histogram(&self.key(labels), &METADATA)
    }
}

#[rustfmt::skip]
mod family {
    use super::Family;
    use metrics::Unit::{Bytes, Count, Seconds};

    pub(super) const ENTRIES_READ: Family = Family::new("aegis_entries_read_total", Count, "Stream entries read, redelivered ones included");
    pub(super) const ENTRIES_RECLAIMED: Family = Family::new("aegis_entries_reclaimed_total", Count, "Pending entries taken over from a worker that left them idle");
    pub(super) const ENTRIES_LOST: Family = Family::new("aegis_entries_lost_total", Count, "Entries trimmed away by someone before this group read them");
    pub(super) const ENTRIES_TRIMMED: Family = Family::new("aegis_entries_trimmed_total", Count, "Entries trimmed by this worker after every group had settled them");
    pub(super) const ENTRIES_RENEWED: Family = Family::new("aegis_renewed_total", Count, "Renewals of the idle time of entries in hand, so that no other worker takes them over");
    pub(super) const EVENTS_WRITTEN: Family = Family::new("aegis_events_written_total", Count, "Events made durable at their destination that were not there before");
    pub(super) const EVENTS_DUPLICATE: Family = Family::new("aegis_events_duplicate_total", Count, "Events that were durable at their destination already");
    pub(super) const EVENTS_DEAD: Family = Family::new("aegis_events_dead_total", Count, "Events set aside in a dead-letter stream, by code");
    pub(super) const EVENTS_FORWARDED: Family = Family::new("aegis_events_forwarded_total", Count, "Events handed on to another lane, such as inline embeddings");
    pub(super) const EVENTS_PASSED: Family = Family::new("aegis_events_passed_total", Count, "Unusable events that were left to the lane that sets them aside: acknowledged here without a dead letter");
    pub(super) const RETRIES: Family = Family::new("aegis_retries_total", Count, "Tries that failed because the other side was away, by component");
    pub(super) const GROUPS_RECREATED: Family = Family::new("aegis_groups_recreated_total", Count, "Consumer groups that had vanished from Redis and were made again");
    pub(super) const DEAD_DROPPED: Family = Family::new("aegis_dead_letters_dropped_total", Count, "Oldest dead letters dropped because their stream was full");

    pub(super) const BATCH_EVENTS: Family = Family::new("aegis_batch_events", Count, "Events in one write to the destination");
    pub(super) const WRITE_DURATION: Family = Family::new("aegis_write_duration_seconds", Seconds, "Duration of one write to the destination, failed tries included");
    pub(super) const INGEST_LATENCY: Family = Family::new("aegis_ingest_latency_seconds", Seconds, "Time from the entry id's milliseconds until the event was durable");

    pub(super) const STREAM_LENGTH: Family = Family::new("aegis_stream_length", Count, "Entries in the lane's streams, acknowledged ones included; NaN when unknown");
    pub(super) const STREAM_LAG: Family = Family::new("aegis_stream_lag", Count, "Entries that the group has not read yet; NaN when Redis does not know");
    pub(super) const STREAM_PENDING: Family = Family::new("aegis_stream_pending", Count, "Entries read by a worker and not acknowledged yet; NaN when unknown");
    pub(super) const DEAD_LETTERS: Family = Family::new("aegis_dead_letters", Count, "Dead letters that stand in the lane's dead-letter streams; NaN when unknown");
    pub(super) const OLDEST_UNACKNOWLEDGED: Family = Family::new("aegis_oldest_unacknowledged_seconds", Seconds, "Age of the oldest entry that is not acknowledged, 0 when there is none; NaN when unknown");
    pub(super) const CONSUMERS: Family = Family::new("aegis_consumers", Count, "Consumers known to the lane's group; NaN when unknown");
    pub(super) const TRIMMING_HELD: Family = Family::new("aegis_trimming_held_seconds", Seconds, "How long another group's first unsettled entry has been older than AEGIS_RETAIN, as the worker that trims sees it; 0 when none is");
    pub(super) const BATCHES_IN_FLIGHT: Family = Family::new("aegis_batches_in_flight", Count, "Batches that are being written or settled now");

    pub(super) const COMPONENT_UP: Family = Family::new("aegis_component_up", Count, "Whether the other side answers (1) or not (0)");
    pub(super) const BUILD_INFO: Family = Family::new("aegis_build_info", Count, "Always 1; what is running stands in the labels");
    pub(super) const CHUNKS_DROPPED: Family = Family::new("aegis_chunks_dropped_total", Count, "Chunks that this worker dropped because they are older than AEGIS_RETENTION; where TimescaleDB has a policy for it, none");
    pub(super) const REDIS_MEMORY_USED: Family = Family::new("aegis_redis_memory_used_bytes", Bytes, "Memory that Redis uses; NaN when unknown");
    pub(super) const REDIS_MEMORY_LIMIT: Family = Family::new("aegis_redis_memory_limit_bytes", Bytes, "Memory that Redis may use, 0 for no limit; NaN when unknown");
}

/// Up to the largest batch that can be set; steps of 2 to 2.5 around the default.
const BATCH_EVENTS_BUCKETS: [f64; 14] = [1.0, 10.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 2.5e4, 5e4, 1e5, 1e6];

/// Seconds. A commit on a quick disk takes 1 ms; past a minute deadlines have ended the write.
const WRITE_DURATION_BUCKETS: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Where metrics are kept; a clone is the same place.
#[derive(Clone)]
pub struct Recorder(Arc<Inner>);

struct Inner {
    exporter: PrometheusRecorder,
    handle: PrometheusHandle,
    /// By lane; a lane that is not served has none.
    latencies: [OnceLock<Arc<LatencyHistogram>>; Lane::ALL.len()],
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorder")
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl Recorder {
    /// A place of its own, which holds `aegis_build_info` and nothing else yet.
    pub fn new() -> Self {
        let mut builder = PrometheusBuilder::new();
        // The one error is an empty list of buckets; the lists above are not, and a test renders them.
        let buckets: [(&Family, &[f64]); 2] =
            [(&family::BATCH_EVENTS, &BATCH_EVENTS_BUCKETS), (&family::WRITE_DURATION, &WRITE_DURATION_BUCKETS)];
        for (family, bounds) in buckets {
            builder = builder.set_buckets_for_metric(Matcher::Full(family.name.to_owned()), bounds).unwrap_or_default();
        }
        let exporter = builder.build_recorder();
        let build = [
            ("version", env!("CARGO_PKG_VERSION")),
            // A debug build in production explains most complaints about throughput.
            ("profile", if cfg!(debug_assertions) { "debug" } else { "release" }),
            ("os", std::env::consts::OS),
            ("arch", std::env::consts::ARCH),
        ];
        family::BUILD_INFO.gauge(&exporter, &build).set(1.0);
        let handle = exporter.handle();
        Self(Arc::new(Inner { exporter, handle, latencies: Default::default() }))
    }

    /// The handles of a lane, all at 0 or unknown at first; asked for again, they count on where the first ones stand.
    pub fn lane(&self, lane: Lane) -> LaneMetrics {
        LaneMetrics::new(&self.0, lane)
    }

    /// `aegis_component_up` of a component: 1 while it answers, else 0.
    pub fn component_up(&self, component: Component) -> Gauge {
        family::COMPONENT_UP.gauge(&self.0.exporter, &[("component", component.name())])
    }

    /// Chunks dropped because of their age.
    pub fn chunks_dropped(&self) -> Counter {
        family::CHUNKS_DROPPED.counter(&self.0.exporter, &[])
    }

    /// What Redis says of its memory, unknown at first.
    pub fn redis_memory(&self) -> RedisMemory {
        let exporter = &self.0.exporter;
        let memory = RedisMemory {
            used_bytes: family::REDIS_MEMORY_USED.gauge(exporter, &[]),
            limit_bytes: family::REDIS_MEMORY_LIMIT.gauge(exporter, &[]),
        };
        memory.set_unknown();
        memory
    }

    /// All metrics as Prometheus text, version 0.0.4.
    pub fn render(&self) -> String {
        let mut text = self.0.handle.render();
        let latencies: Vec<_> = (Lane::ALL.into_iter().zip(&self.0.latencies))
            .filter_map(|(lane, latency)| latency.get().map(|latency| (lane.name(), &**latency)))
            .collect();
        latency::render(&mut text, family::INGEST_LATENCY.name, family::INGEST_LATENCY.help, "lane", &latencies);
        text
    }

    /// Folds the observations kept since the last time into their buckets; see [`UPKEEP_PERIOD`].
    pub fn upkeep(&self) {
        self.0.handle.run_upkeep();
    }
}

/// Memory of the Redis server.
#[derive(Clone, Debug)]
pub struct RedisMemory {
    /// In use.
    pub used_bytes: Gauge,
    /// Allowed; 0 for no limit.
    pub limit_bytes: Gauge,
}

impl RedisMemory {
    /// Redis does not say.
    pub fn set_unknown(&self) {
        self.used_bytes.set(f64::NAN);
        self.limit_bytes.set(f64::NAN);
    }
}

/// What one look at all streams of a lane found, summed over its partitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamState {
    /// Entries in the streams.
    pub length: u64,
    /// Entries not read yet; `None` when Redis does not know it of every partition: null is not 0.
    pub lag: Option<u64>,
    /// Entries read and not acknowledged.
    pub pending: u64,
    /// Entries in the dead-letter streams.
    pub dead_letters: u64,
    /// Age of the oldest entry that is not acknowledged; zero when there is none.
    pub oldest_unacknowledged: Duration,
    /// Consumers of the group.
    pub consumers: u64,
}

/// The handles of one lane. Cheap to clone, and a clone counts in the same place.
#[derive(Clone, Debug)]
pub struct LaneMetrics {
    /// Whose they are.
    pub lane: Lane,
    /// Entries read, redelivered ones included.
    pub entries_read: Counter,
    /// Entries taken over from another worker.
    pub entries_reclaimed: Counter,
    /// Entries trimmed away unread.
    pub entries_lost: Counter,
    /// Entries trimmed after every group had settled them.
    pub entries_trimmed: Counter,
    /// Renewals of the idle time of entries in hand, one an entry.
    pub entries_renewed: Counter,
    /// Events that are durable now and were not before.
    pub events_written: Counter,
    /// Events that were there already.
    pub events_duplicate: Counter,
    /// Events handed on to another lane.
    pub events_forwarded: Counter,
    /// Unusable events left to the lane that sets them aside.
    pub events_passed: Counter,
    /// Consumer groups made again.
    pub groups_recreated: Counter,
    /// Dead letters dropped from a full dead-letter stream.
    pub dead_dropped: Counter,
    /// Events a batch, one observation a batch.
    pub batch_events: Histogram,
    /// Seconds a write, one observation a try.
    pub write_duration: Histogram,
    /// From the entry id's time until durable: fed by a [`LatencyBatch`].
    pub ingest_latency: Arc<LatencyHistogram>,
    /// Seconds for which another group has held back trimming.
    pub trimming_held: Gauge,
    /// Batches being written or settled: incremented and decremented by their writers.
    pub batches_in_flight: Gauge,
    events_dead: [Counter; Code::ALL.len()],
    retries: [Counter; 2],
    streams: StreamGauges,
}

#[derive(Clone, Debug)]
struct StreamGauges {
    length: Gauge,
    lag: Gauge,
    pending: Gauge,
    dead_letters: Gauge,
    oldest_unacknowledged: Gauge,
    consumers: Gauge,
}

impl LaneMetrics {
    fn new(inner: &Inner, lane: Lane) -> Self {
        let exporter = &inner.exporter;
        let label = ("lane", lane.name());
        let counter = |family: &Family| family.counter(exporter, &[label]);
        let gauge = |family: &Family| family.gauge(exporter, &[label]);
        let retries = |component: Component| family::RETRIES.counter(exporter, &[label, ("component", component.name())]);
        let metrics = Self {
            lane,
            entries_read: counter(&family::ENTRIES_READ),
            entries_reclaimed: counter(&family::ENTRIES_RECLAIMED),
            entries_lost: counter(&family::ENTRIES_LOST),
            entries_trimmed: counter(&family::ENTRIES_TRIMMED),
            entries_renewed: counter(&family::ENTRIES_RENEWED),
            events_written: counter(&family::EVENTS_WRITTEN),
            events_duplicate: counter(&family::EVENTS_DUPLICATE),
            events_forwarded: counter(&family::EVENTS_FORWARDED),
            events_passed: counter(&family::EVENTS_PASSED),
            groups_recreated: counter(&family::GROUPS_RECREATED),
            dead_dropped: counter(&family::DEAD_DROPPED),
            batch_events: family::BATCH_EVENTS.histogram(exporter, &[label]),
            write_duration: family::WRITE_DURATION.histogram(exporter, &[label]),
            ingest_latency: Arc::clone(inner.latencies[lane as usize].get_or_init(Arc::default)),
            trimming_held: gauge(&family::TRIMMING_HELD),
            batches_in_flight: gauge(&family::BATCHES_IN_FLIGHT),
            events_dead: Code::ALL.map(|code| family::EVENTS_DEAD.counter(exporter, &[label, ("code", code.name())])),
            retries: [Component::Redis, Component::store_of(lane)].map(retries),
            streams: StreamGauges {
                length: gauge(&family::STREAM_LENGTH),
                lag: gauge(&family::STREAM_LAG),
                pending: gauge(&family::STREAM_PENDING),
                dead_letters: gauge(&family::DEAD_LETTERS),
                oldest_unacknowledged: gauge(&family::OLDEST_UNACKNOWLEDGED),
                consumers: gauge(&family::CONSUMERS),
            },
        };
        metrics.set_streams_unknown();
        metrics
    }

    /// Events set aside for this reason.
    pub fn events_dead(&self, code: Code) -> &Counter {
        &self.events_dead[code as usize]
    }

    /// Tries that failed because this component was away; whatever is not Redis is the lane's store.
    pub fn retries(&self, component: Component) -> &Counter {
        &self.retries[usize::from(component != Component::Redis)]
    }

    /// Shows what the poller found.
    pub fn set_streams(&self, state: &StreamState) {
        let gauges = &self.streams;
        gauges.length.set(state.length as f64);
        gauges.lag.set(state.lag.map_or(f64::NAN, |lag| lag as f64));
        gauges.pending.set(state.pending as f64);
        gauges.dead_letters.set(state.dead_letters as f64);
        gauges.oldest_unacknowledged.set(state.oldest_unacknowledged.as_secs_f64());
        gauges.consumers.set(state.consumers as f64);
    }

    /// Nobody could look: the last numbers are no longer true, and a lag of 0 would be a lie.
    pub fn set_streams_unknown(&self) {
        let StreamGauges { length, lag, pending, dead_letters, oldest_unacknowledged, consumers } = &self.streams;
        for gauge in [length, lag, pending, dead_letters, oldest_unacknowledged, consumers] {
            gauge.set(f64::NAN);
        }
    }
}

#[cfg(test)]
mod tests;
