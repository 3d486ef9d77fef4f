//! `produce`: writes what voice services would write.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Lane, duration};
use crate::redis::RedisError;
use crate::traffic::timeline::{self, Sending, Timeline, Vectors};
use crate::traffic::{Entries, Entry, Event, Format, Generator, Mix, Mixer, Options, Packer};

mod link;
mod pace;
mod progress;
mod summary;

use link::Link;
use pace::{Pace, Schedule};
use progress::Progress;
use summary::{Summary, Tally};

const EXAMPLES: &str = "\
Examples:
  aegis-ingest produce                                     10,000 events as fast as it goes
  aegis-ingest produce --for 30s --rate 2000               a steady load for half a minute
  aegis-ingest produce --count 1000000 --events-per-entry 100
  aegis-ingest produce --mix embeddings=1 --count 5000     vectors alone
  aegis-ingest produce --count 1000 --poison 0.05          with events that must become dead letters
  aegis-ingest produce --timeline dialogues.jsonl.gz --start 2026-11-01T00:00:00Z --repeat 2 --shuffle 7
  aegis-ingest produce --timeline d.jsonl.gz --vectors v.f32 --vector-ids v.ids.jsonl --speed 60

The same --seed, --start, --count, --rate and sizes give the same events to the byte. Without --start the times shift with
the clock: at a rate or a speed events carry about the time at which they are written, else the last one carries the
present. A timeline's event ids derive from its file name and line numbers, so that with the same --start a file can be sent
again without a second row.";

/// Which events to write, how fast, and how.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Events to write, of a timeline the first ones [default: 10000, of a timeline all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Write for so long, such as 30s or 10m, instead of a count
    #[arg(long = "for", id = "for", value_name = "DURATION", conflicts_with = "count", value_parser = time)]
    time: Option<Duration>,
    /// Events a second [default: as fast as it goes]
    #[arg(long, value_name = "N", value_parser = positive)]
    rate: Option<f64>,
    /// Events an entry, 1 to 10000; entries stay below AEGIS_MAX_ENTRY_BYTES
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    events_per_entry: u16,
    /// The field that carries the events: `data` is MessagePack
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Time of the first event, or of a timeline's offset 0, such as 2026-11-01T00:00:00Z
    #[arg(long, value_name = "RFC3339")]
    start: Option<jiff::Timestamp>,

    /// Everything random follows from it
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// How often each lane comes up, as weights
    #[arg(long, value_name = "WEIGHTS", default_value = "interactions=70,sessions=20,embeddings=10")]
    mix: Mix,
    /// Sessions open at the same time
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    sessions: u32,
    /// Users that sessions belong to
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..))]
    users: u32,
    /// Numbers a vector
    #[arg(long, value_name = "N", default_value_t = 384, value_parser = clap::value_parser!(u16).range(1..=16_384))]
    dimensions: u16,
    /// Share of interactions that carry their vector, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    inline_embeddings: f64,

    /// Send a timeline (JSON lines, also gzipped) instead of made-up traffic
    #[arg(long, value_name = "FILE", conflicts_with_all = ["mix", "sessions", "users", "dimensions", "inline_embeddings"])]
    timeline: Option<PathBuf>,
    /// Vectors of the timeline's lines: rows of little-endian float32
    #[arg(long, value_name = "FILE", requires_all = ["timeline", "vector_ids"])]
    vectors: Option<PathBuf>,
    /// JSON lines that say which line each vector belongs to
    #[arg(long, value_name = "FILE", requires = "vectors")]
    vector_ids: Option<PathBuf>,
    /// Keep the timeline's pace, so many times faster; 1 is real time [default: as fast as it goes]
    #[arg(long, value_name = "X", requires = "timeline", conflicts_with_all = ["rate", "shuffle"], value_parser = positive)]
    speed: Option<f64>,
    /// Put before the timeline's session ids, which are unique within one file only
    #[arg(long, value_name = "TEXT", requires = "timeline", default_value = "", hide_default_value = true)]
    session_prefix: String,

    /// Send the entries in another order, drawn from this seed; holds all of them in memory
    #[arg(long, value_name = "SEED", conflicts_with = "for")]
    shuffle: Option<u64>,
    /// Send everything so many times, with the same event ids
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "for", value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Besides, events that must become dead letters, so many for each good one, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    poison: f64,

    /// Entries a round trip to Redis
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pipeline: u32,
    /// Round trips under way at the same time; 1 keeps the order of entries
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    in_flight: u32,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
    /// Show no progress, and no summary unless --json
    #[arg(long, short)]
    quiet: bool,
}

fn time(text: &str) -> Result<Duration, String> {
    duration(text, 1, 365 * 86_400_000)
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|value: &f64| value.is_finite() && *value > 0.0).ok_or_else(|| "a number above 0".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|value| (0.0..=1.0).contains(value)).ok_or_else(|| "a number from 0 to 1".to_owned())
}

/// Events written when neither a count nor a time is given.
const COUNT: u64 = 10_000;
/// Payload bytes after which a pipeline is sent however few entries it has, so that a few of them do not fill memory.
const PIPELINE_BYTES: usize = 4 << 20;
/// What is due within one tick goes in one round trip.
const TICK: Duration = Duration::from_millis(2);
/// How long entries under way are waited for once a signal came.
const GRACE: Duration = Duration::from_secs(2);
/// Made-up events lie this far apart when nothing else sets their pace, microseconds, so that sessions last a while;
const GAP_US: i64 = 1_000;
/// but no further back than this altogether, since workers refuse events that are too old.
const SPAN_US: i64 = 30 * 86_400_000_000;

/// Where events come from.
enum Source {
    MadeUp(Options),
    Timeline { timeline: Timeline, vectors: Option<Vectors>, start_us: i64 },
}

impl Source {
    fn of(args: &Args, now_us: i64) -> anyhow::Result<Self> {
        let given_us = args.start.map(jiff::Timestamp::as_microsecond);
        let Some(path) = &args.timeline else {
            return Ok(Self::MadeUp(made_up(args, given_us, now_us)));
        };
        let timeline = timeline::read(path)?;
        let vectors = match (&args.vectors, &args.vector_ids) {
            (Some(numbers), Some(ids)) => Some(timeline::vectors(numbers, ids, &timeline)?),
            _ => None,
        };
        // Sent at a speed, the last event carries the time at which it is written.
        let running_us = args.speed.map_or(0.0, |speed| timeline.span_us() as f64 / speed) as i64;
        let start_us = given_us.unwrap_or_else(|| now_us.min(now_us.saturating_add(running_us).saturating_sub(timeline.span_us())));
        Ok(Self::Timeline { timeline, vectors, start_us })
    }

    fn start_us(&self) -> i64 {
        match self {
            Self::MadeUp(options) => options.start_us,
            Self::Timeline { start_us, .. } => *start_us,
        }
    }

    /// How many events it has, when it ends by itself.
    fn len(&self) -> Option<u64> {
        match self {
            Self::MadeUp(_) => None,
            Self::Timeline { timeline, vectors, .. } => {
                Some((timeline.len() + vectors.as_ref().map_or(0, Vectors::len)) as u64)
            }
        }
    }

    fn lanes(&self) -> Vec<Lane> {
        match self {
            Self::MadeUp(options) => Lane::ALL.into_iter().filter(|lane| options.mix.weight(*lane) > 0).collect(),
            Self::Timeline { .. } => vec![Lane::Interactions, Lane::Sessions],
        }
    }

    fn dimensions(&self) -> Option<usize> {
        match self {
            Self::MadeUp(options) => Some(options.dimensions),
            Self::Timeline { vectors, .. } => vectors.as_ref().map(Vectors::dimensions),
        }
    }

    fn events<'a>(&'a self, args: &'a Args) -> Box<dyn Iterator<Item = Event> + Send + 'a> {
        match self {
            Self::MadeUp(options) => Box::new(Generator::new(options.clone())),
            Self::Timeline { timeline, vectors, start_us } => {
                let sending = Sending {
                    start_us: *start_us,
                    session_prefix: &args.session_prefix,
                    format: args.format,
                    vectors: vectors.as_ref(),
                };
                Box::new(timeline.events(sending))
            }
        }
    }
}

fn made_up(args: &Args, given_us: Option<i64>, now_us: i64) -> Options {
    let count = args.count.unwrap_or(COUNT).min(i64::MAX.cast_unsigned()).cast_signed();
    let gap_us = match (args.rate, args.time) {
        // Rounded down: events must not run ahead of the clock.
        (Some(rate), _) => (1e6 / rate) as i64,
        // Written for a time as fast as it goes, any larger gap would run ahead of the clock.
        (None, Some(_)) => 1,
        (None, None) => (SPAN_US / count).min(GAP_US),
    }
    .max(1);
    let behind_us = if args.rate.is_some() || args.time.is_some() { 0 } else { (count - 1).saturating_mul(gap_us) };
    Options {
        seed: args.seed,
        start_us: given_us.unwrap_or(now_us.saturating_sub(behind_us)),
        gap_us,
        mix: args.mix,
        sessions: args.sessions,
        users: args.users,
        dimensions: usize::from(args.dimensions),
        inline_embeddings: args.inline_embeddings,
        format: args.format,
    }
}

/// Writes the events that `args` describe, to the streams of `config`.
///
/// # Errors
/// A file cannot be used, Redis is away at the start, or refuses entries for a reason that waiting does not change. An outage
/// in between is waited out.
pub async fn run(config: &Config, args: &Args) -> anyhow::Result<()> {
    let source = Source::of(args, jiff::Timestamp::now().as_microsecond())?;
    // Also for a timeline, whose iterator ends by itself.
    let count = match (&source, args.time) {
        (_, Some(_)) => None,
        (Source::MadeUp(_), None) => Some(args.count.unwrap_or(COUNT)),
        (Source::Timeline { .. }, None) => args.count.into_iter().chain(source.len()).min(),
    };
    let total = count.map(|count| count.saturating_mul(u64::from(args.repeat)));
    let expected = total.or_else(|| Some((args.rate? * args.time?.as_secs_f64()) as u64));
    let pace = match (args.rate, args.speed) {
        (Some(rate), _) => Pace::Rate(rate),
        (None, Some(speed)) => Pace::Speed { start_us: source.start_us(), speed },
        (None, None) => Pace::Free,
    };

    let progress = Progress::new(args.quiet, expected);
    let link = Link::open(config, progress.clone()).await.context("nothing was written")?;
    let stop = CancellationToken::new();
    let signals = tokio::spawn(until_signal(stop.clone()));
    let begin = Instant::now();
    let mut writing = Writing::new(args, Arc::new(link), progress, stop.clone(), begin);
    let mut outcome = Ok(());
    for pass in 0..args.repeat {
        let good = source.events(args).take(usize::try_from(count.unwrap_or(u64::MAX)).unwrap_or(usize::MAX));
        let dimensions = source.dimensions().filter(|_| args.shuffle.is_none());
        let bytes_max = config.events.entry_bytes_max;
        let mixed = Mixer::new(good, args.poison, args.seed, source.lanes(), args.format, bytes_max, dimensions);
        // Room for what the worker may count beside the payload.
        let packer =
            Packer::new(args.format, usize::from(args.events_per_entry), bytes_max - bytes_max / 16, config.streams.partitions);
        let entries = Entries::new(mixed, packer);
        outcome = match args.shuffle {
            None => writing.pass(entries, pace).await,
            Some(seed) => {
                let mut entries: Vec<_> = entries.collect();
                entries.shuffle(&mut SmallRng::seed_from_u64(seed.wrapping_add(u64::from(pass))));
                writing.pass(entries.into_iter(), pace).await
            }
        };
        if outcome.is_err() || stop.is_cancelled() {
            break;
        }
    }
    let finished = match outcome {
        Ok(()) => writing.finish().await,
        Err(error) => Err(error),
    };
    signals.abort();
    writing.progress.finish();
    let summary = Summary {
        unconfirmed: writing.sent - writing.tally.entries(),
        tally: std::mem::take(&mut writing.tally),
        took: begin.elapsed(),
        start_us: source.start_us(),
        interrupted: stop.is_cancelled(),
    };
    if args.json {
        println!("{}", summary.json());
    } else if !args.quiet {
        println!("{}", summary.words());
    }
    finished.context("Redis does not take these entries")
}

async fn until_signal(stop: CancellationToken) {
    let terminated = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated => {}
    }
    stop.cancel();
}

/// Entries on their way.
struct Writing {
    link: Arc<Link>,
    progress: Progress,
    stop: CancellationToken,
    deadline: Option<Instant>,
    pipeline: usize,
    room: Arc<Semaphore>,
    flights: JoinSet<Result<Tally, RedisError>>,
    batch: Vec<Entry>,
    batch_bytes: usize,
    /// Entries handed over.
    sent: u64,
    tally: Tally,
}

impl Writing {
    fn new(args: &Args, link: Arc<Link>, progress: Progress, stop: CancellationToken, begin: Instant) -> Self {
        Self {
            link,
            progress,
            stop,
            deadline: args.time.and_then(|time| begin.checked_add(time)),
            pipeline: args.pipeline as usize,
            room: Arc::new(Semaphore::new(args.in_flight as usize)),
            flights: JoinSet::new(),
            batch: Vec::new(),
            batch_bytes: 0,
            sent: 0,
            tally: Tally::default(),
        }
    }

    fn is_over(&self) -> bool {
        self.stop.is_cancelled() || self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Writes entries at their pace until they, the time or the patience end.
    async fn pass(&mut self, entries: impl Iterator<Item = Entry>, pace: Pace) -> Result<(), RedisError> {
        let begin = Instant::now();
        let mut schedule = Schedule::default();
        let mut before = 0;
        for entry in entries {
            if pace != Pace::Free {
                let due = pace.due(before, entry.at_us);
                before += u64::from(entry.events);
                while let Some(wait) = schedule.wait(begin.elapsed(), due) {
                    self.send().await?;
                    let left = self.deadline.map_or(wait, |deadline| deadline.saturating_duration_since(Instant::now()));
                    tokio::select! {
                        () = tokio::time::sleep(wait.max(TICK).min(left)) => {}
                        () = self.stop.cancelled() => {}
                    }
                    if self.is_over() {
                        return Ok(());
                    }
                }
            }
            self.batch_bytes += entry.payload.len();
            self.batch.push(entry);
            if self.batch.len() >= self.pipeline || self.batch_bytes >= PIPELINE_BYTES {
                self.send().await?;
                if self.is_over() {
                    break;
                }
            }
        }
        self.send().await
    }

    /// Sends what has gathered, once there is room.
    async fn send(&mut self) -> Result<(), RedisError> {
        while let Some(flight) = self.flights.try_join_next() {
            self.landed(flight)?;
        }
        if self.batch.is_empty() {
            return Ok(());
        }
        let permit = tokio::select! {
            // Closed never.
            permit = Arc::clone(&self.room).acquire_owned() => permit.ok(),
            () = self.stop.cancelled() => return Ok(()),
        };
        let entries = std::mem::replace(&mut self.batch, Vec::with_capacity(self.pipeline));
        self.batch_bytes = 0;
        self.sent += entries.len() as u64;
        let link = Arc::clone(&self.link);
        self.flights.spawn(async move {
            let tally = link.write(&entries).await;
            drop(permit);
            tally
        });
        Ok(())
    }

    fn landed(&mut self, flight: Result<Result<Tally, RedisError>, tokio::task::JoinError>) -> Result<(), RedisError> {
        let tally = flight.map_err(|error| RedisError::Unexpected(format!("writing ended early: {error}")))??;
        self.progress.add(tally.events());
        self.tally.add(&tally);
        Ok(())
    }

    /// Waits for what is under way; after a signal only for a while.
    async fn finish(&mut self) -> Result<(), RedisError> {
        let stop = self.stop.clone();
        let impatience = async {
            stop.cancelled().await;
            tokio::time::sleep(GRACE).await;
        };
        tokio::pin!(impatience);
        loop {
            tokio::select! {
                flight = self.flights.join_next() => match flight {
                    Some(flight) => self.landed(flight)?,
                    None => return Ok(()),
                },
                () = &mut impatience => return Ok(()),
            }
        }
    }
}
