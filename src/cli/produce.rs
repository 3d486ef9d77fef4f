//! `produce`: writes what voice services would write.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Lane, duration};
use crate::traffic::timeline::{self, Sending, Timeline, Vectors};
use crate::traffic::{Entries, Event, Format, Generator, Mix, Mixer, Options, Packer};

mod brake;
mod link;
mod pace;
mod progress;
mod summary;
mod writing;

use brake::Brake;
use link::Link;
use pace::Pace;
use progress::Progress;
use summary::Summary;
use writing::Writing;

const EXAMPLES: &str = "\
Examples:
  aegis-ingest produce                                     10,000 events as fast as it goes
  aegis-ingest produce --for 30s --rate 2000               a steady load for half a minute
  aegis-ingest produce --count 1000000 --events-per-entry 100
  aegis-ingest produce --mix embeddings=1 --count 5000     vectors alone
  aegis-ingest produce --count 1000 --poison 0.05          with events that must become dead letters
  aegis-ingest produce --timeline dialogues.jsonl.gz --start 2026-11-01T00:00:00Z --repeat 2 --shuffle 7
  aegis-ingest produce --timeline d.jsonl.gz --vectors v.f32 --vector-ids v.ids.jsonl --speed 60
  aegis-ingest produce --timeline old.jsonl.gz --start 2026-09-01T00:00:00Z --max-lag 2000
                                                           a backfill that live traffic hardly feels

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
    /// Events an entry, 1 to 10000, and fewer where an entry would get too large for the worker
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    events_per_entry: u16,
    /// How events are encoded
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

    /// Let workers have at most so many unsettled entries of a stream before them: live ones never wait behind more. Needs a user
    /// that may look at the streams, such as aegis-operator
    #[arg(long, value_name = "ENTRIES", value_parser = clap::value_parser!(u64).range(1..))]
    max_lag: Option<u64>,
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
        let start_us =
            given_us.unwrap_or_else(|| now_us.min(now_us.saturating_add(running_us).saturating_sub(timeline.span_us())));
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
            Self::Timeline { timeline, vectors, .. } => Some((timeline.len() + vectors.as_ref().map_or(0, Vectors::len)) as u64),
        }
    }

    fn lanes(&self) -> Vec<Lane> {
        match self {
            Self::MadeUp(options) => Lane::PRODUCED.into_iter().filter(|lane| options.mix.weight(*lane) > 0).collect(),
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
    let brake = match args.max_lag {
        None => None,
        Some(lag_max) => {
            let vectors = matches!(source, Source::Timeline { vectors: Some(_), .. }) || args.inline_embeddings > 0.0;
            let lanes =
                Lane::ALL.into_iter().filter(|lane| source.lanes().contains(lane) || (vectors && *lane == Lane::Embeddings));
            let keys = lanes.flat_map(|lane| config.streams.keys(lane)).collect();
            let redis = crate::redis::Redis::new(&config.redis)?;
            let brake = Brake::new(redis, config.streams.clone(), keys, lag_max, progress.clone()).await;
            Some(brake.context("--max-lag has to see how far the workers are (XINFO GROUPS); nothing was written")?)
        }
    };
    let stop = CancellationToken::new();
    let signals = tokio::spawn(until_signal(stop.clone()));
    let begin = Instant::now();
    let mut writing = Writing::new(args, Arc::new(link), brake, progress.clone(), stop.clone(), begin);
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
    progress.finish();
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Alone {
        #[command(flatten)]
        args: Args,
    }

    const NOW_US: i64 = 1_790_000_000_000_000;

    fn made_up_by(flags: &str) -> Options {
        let words = std::iter::once("produce").chain(flags.split_whitespace());
        made_up(&Alone::try_parse_from(words).unwrap().args, None, NOW_US)
    }

    #[test]
    fn times_end_at_the_present_or_go_with_it_and_never_run_ahead() {
        let options = made_up_by("");
        assert_eq!((options.gap_us, options.start_us), (1_000, NOW_US - 9_999 * 1_000));
        let options = made_up_by("--count 10000000000");
        assert!(options.gap_us == 259 && options.start_us > NOW_US - SPAN_US);
        let options = made_up_by("--rate 2000 --count 50");
        assert_eq!((options.gap_us, options.start_us), (500, NOW_US));
        let options = made_up_by("--for 10s");
        assert_eq!((options.gap_us, options.start_us), (1, NOW_US));
    }

    #[test]
    fn flags_that_contradict_each_other_are_refused() {
        for flags in
            ["--count 5 --for 3s", "--for 3s --repeat 2", "--speed 2", "--rate 0", "--poison 2", "--mix a=1", "--count 0"]
        {
            let words = std::iter::once("produce").chain(flags.split_whitespace());
            assert!(Alone::try_parse_from(words).is_err(), "{flags}");
        }
    }
}
