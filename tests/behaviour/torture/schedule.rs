//! What will go wrong and when: drawn from a seed, so that a run can be had again.

use std::fmt;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Streams a lane; see `AEGIS_PARTITIONS`.
pub const PARTITIONS: u16 = 2;
/// See `AEGIS_RETAIN`: entries go while the faults last, and the verdict does not ask the streams.
pub const RETAIN: Duration = Duration::from_secs(2);
/// Workers.
pub const WORKERS: usize = 3;
/// See `AEGIS_CLAIM_IDLE`.
pub const CLAIM_IDLE: Duration = Duration::from_secs(2);
/// Mean time between two faults.
const GAP: Duration = Duration::from_millis(1_800);

/// A server whose connections go through a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Server {
    Redis,
    Postgres,
    Chroma,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    ToServer,
    ToClient,
}

/// What happens to a connection at a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cut {
    /// Both sides get a reset.
    Reset,
    /// Both sides get an end.
    Close,
    /// The receiver gets an end; the other way goes on.
    Half,
}

/// One fault.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    WorkerKilled { worker: usize, away: Duration },
    WorkerTerminated { worker: usize, away: Duration },
    WorkerFrozen { worker: usize, time: Duration },
    PostgresRestarted { away: Duration },
    BackendTerminated,
    RedisKilled { away: Duration },
    ChromaRestarted { away: Duration },
    Cut { server: Server, direction: Direction, after_bytes: u64, cut: Cut },
    AllCut { server: Server },
    Delayed { server: Server, delay: Duration, time: Duration },
}

impl Fault {
    /// Its kind, as the table at the end calls it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::WorkerKilled { .. } => "worker killed (SIGKILL)",
            Self::WorkerTerminated { .. } => "worker asked to leave (SIGTERM)",
            Self::WorkerFrozen { .. } => "worker frozen past the claim idle time (SIGSTOP, SIGCONT)",
            Self::PostgresRestarted { .. } => "PostgreSQL restarted at once (SIGQUIT)",
            Self::BackendTerminated => "pg_terminate_backend in mid-COPY",
            Self::RedisKilled { .. } => "Redis killed and restarted from its AOF",
            Self::ChromaRestarted { .. } => "Chroma restarted (SIGTERM)",
            Self::Cut { server: Server::Redis, cut: Cut::Half, .. } => "Redis connection half-closed at a random byte",
            Self::Cut { server: Server::Postgres, cut: Cut::Half, .. } => "PostgreSQL connection half-closed at a random byte",
            Self::Cut { server: Server::Redis, .. } => "Redis connection cut at a random byte",
            Self::Cut { server: Server::Postgres, .. } => "PostgreSQL connection cut at a random byte",
            Self::Cut { server: Server::Chroma, .. } => "Chroma connection cut at a random byte",
            Self::AllCut { .. } => "every connection to one server cut at once",
            Self::Delayed { .. } => "connections to one server delayed",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// When, from the start of the load, and what.
pub type Schedule = Vec<(Duration, Fault)>;

/// The faults of `seed` within `length`.
pub fn draw(seed: u64, length: Duration) -> Schedule {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut at = Duration::from_secs(3);
    let mut schedule = Vec::new();
    // Each kind comes once before any comes twice, in an order of the seed's own.
    let mut kinds: Vec<u32> = Vec::new();
    while at < length {
        if kinds.is_empty() {
            kinds = (0..KINDS).collect();
            for i in (1..kinds.len()).rev() {
                kinds.swap(i, rng.random_range(0..=i));
            }
        }
        let kind = kinds.pop().unwrap_or_default();
        schedule.push((at, fault(&mut rng, kind)));
        at += GAP.mul_f64(rng.random_range(0.4..1.6));
    }
    schedule
}

const KINDS: u32 = 18;

fn fault(rng: &mut SmallRng, kind: u32) -> Fault {
    let ms = |rng: &mut SmallRng, from: u64, to: u64| Duration::from_millis(rng.random_range(from..to));
    let worker = rng.random_range(0..WORKERS);
    let cut = |rng: &mut SmallRng, server, cut| Fault::Cut {
        server,
        direction: if rng.random_bool(0.5) { Direction::ToServer } else { Direction::ToClient },
        after_bytes: match server {
            Server::Redis => rng.random_range(0..60_000),
            Server::Postgres | Server::Chroma => rng.random_range(0..20_000),
        },
        cut,
    };
    let sharp = if rng.random_bool(0.5) { Cut::Reset } else { Cut::Close };
    match kind {
        0..3 => Fault::WorkerKilled { worker, away: ms(rng, 0, 3_000) },
        3 | 4 => Fault::WorkerTerminated { worker, away: ms(rng, 0, 2_000) },
        5 => Fault::WorkerFrozen { worker, time: CLAIM_IDLE + ms(rng, 500, 3_000) },
        6 => Fault::PostgresRestarted { away: ms(rng, 0, 2_000) },
        7 | 8 => Fault::BackendTerminated,
        9 => Fault::RedisKilled { away: ms(rng, 0, 1_500) },
        10 => Fault::ChromaRestarted { away: ms(rng, 0, 1_500) },
        11 => cut(rng, Server::Redis, sharp),
        12 => cut(rng, Server::Postgres, sharp),
        13 => cut(rng, Server::Redis, Cut::Half),
        14 => cut(rng, Server::Postgres, Cut::Half),
        15 => cut(rng, Server::Chroma, sharp),
        16 => Fault::AllCut { server: [Server::Redis, Server::Postgres, Server::Chroma][rng.random_range(0..3)] },
        _ => Fault::Delayed {
            server: [Server::Redis, Server::Postgres, Server::Chroma][rng.random_range(0..3)],
            delay: ms(rng, 20, 2_500),
            time: ms(rng, 1_000, 4_000),
        },
    }
}

#[test]
fn a_seed_is_a_schedule() {
    let minutes = Duration::from_mins(10);
    assert_eq!(draw(7, minutes), draw(7, minutes));
    assert_ne!(draw(7, minutes), draw(8, minutes));
    assert!(draw(7, minutes).len() >= 200, "{}", draw(7, minutes).len());
    assert!(draw(7, Duration::from_secs(75)).len() >= 35);
}
