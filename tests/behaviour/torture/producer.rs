//! Producers that never stop, and the ledger of what they issued.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use redis::aio::MultiplexedConnection;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::arena::Arena;
use super::event::{self, Event};
use super::schedule::PARTITIONS;
use crate::support::Space;
use crate::support::send::now_ms;

/// Producers.
const PRODUCERS: u64 = 4;
/// Mean pause between two entries of one producer.
const PAUSE: Duration = Duration::from_millis(40);
/// Deadline of one XADD.
const DEADLINE: Duration = Duration::from_secs(2);

/// One XADD that carried an event.
#[derive(Clone, Debug)]
pub struct Copy {
    /// From the start of the run.
    pub at: Duration,
    /// What Redis answered; `None`: the answer was lost, so it may be there or not.
    pub entry: Option<(u64, u64)>,
    /// Position in the entry's array.
    pub index: u32,
    /// The partition that it was sent to.
    pub partition: u16,
}

/// An event and every XADD that carried it.
#[derive(Clone, Debug)]
pub struct Issued {
    pub event: Event,
    pub copies: Vec<Copy>,
}

impl Issued {
    /// Whether Redis accepted it for certain.
    pub fn certain(&self) -> bool {
        self.copies.iter().any(|copy| copy.entry.is_some())
    }
}

/// Every event that was issued, by number.
pub struct Ledger {
    began: Instant,
    next: AtomicU64,
    events: Mutex<Vec<Option<Issued>>>,
}

impl Ledger {
    pub fn new() -> Self {
        Self { began: Instant::now(), next: AtomicU64::new(0), events: Mutex::default() }
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn note(&self, events: &[Event], partition: u16, entry: Option<(u64, u64)>) {
        let at = self.began.elapsed();
        let mut ledger = self.events.lock().unwrap();
        for (index, event) in events.iter().enumerate() {
            let slot = event.number as usize;
            if ledger.len() <= slot {
                ledger.resize(slot + 1, None);
            }
            let issued = ledger[slot].get_or_insert_with(|| Issued { event: event.clone(), copies: Vec::new() });
            issued.copies.push(Copy { at, entry, index: index as u32, partition });
        }
    }

    /// All of it, in the order of the numbers.
    pub fn read(&self) -> Vec<Issued> {
        self.events.lock().unwrap().iter().flatten().cloned().collect()
    }

    /// How many so far.
    pub fn count(&self) -> usize {
        self.events.lock().unwrap().iter().flatten().count()
    }
}

/// Producers at work.
pub struct Producers {
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Producers {
    /// Lets each finish the entry that it has begun.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a producer does not panic");
        }
    }
}

pub fn start(seed: u64, arena: &Arena, ledger: &Arc<Ledger>) -> Producers {
    let mut producers = Producers { stop: CancellationToken::new(), tasks: JoinSet::new() };
    for number in 0..PRODUCERS {
        let producer = Producer {
            rng: SmallRng::seed_from_u64(seed ^ (number + 1) << 40),
            space: arena.space.clone(),
            ledger: Arc::clone(ledger),
            connection: None,
            again: Vec::new(),
        };
        producers.tasks.spawn(producer.run(producers.stop.clone()));
    }
    producers
}

struct Producer {
    rng: SmallRng,
    space: Space,
    ledger: Arc<Ledger>,
    connection: Option<MultiplexedConnection>,
    /// Events that are sent once more some time, as producers do that are unsure.
    again: Vec<Event>,
}

impl Producer {
    async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let events = self.draw();
            self.issue(&events).await;
            let pause = PAUSE.mul_f64(self.rng.random_range(0.0..2.0));
            stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        }
    }

    /// One entry's events, all of one lane.
    fn draw(&mut self) -> Vec<Event> {
        if self.again.len() > 20 || (!self.again.is_empty() && self.rng.random_bool(0.03)) {
            let event = self.again.swap_remove(self.rng.random_range(0..self.again.len()));
            return vec![event];
        }
        let wanted = if self.rng.random_bool(0.5) { 1 } else { self.rng.random_range(2..40) };
        let now_us = now_ms() * 1000;
        let mut events: Vec<Event> = Vec::new();
        while events.len() < wanted {
            let event = Event::draw(&mut self.rng, self.ledger.number(), now_us);
            if event.garbage.is_some() && wanted > 1 {
                // It is no event and cannot stand in an array; its number stays unused.
                continue;
            }
            if events.first().is_none_or(|first| first.lane == event.lane) {
                events.push(event);
            }
        }
        let sure = events.iter().filter(|event| event.has_identity());
        self.again.extend(sure.filter(|event| event.number % 50 == 0).cloned());
        events
    }

    /// Sends an entry until Redis says that it has it, where a second copy does no harm; once where it would.
    async fn issue(&mut self, events: &[Event]) {
        let harmless = events.iter().all(Event::has_identity);
        let as_array = events.len() > 1 || self.rng.random_bool(0.2) && events[0].garbage.is_none();
        let references: Vec<&Event> = events.iter().collect();
        let (field, value) = event::encode(&references, self.rng.random_bool(0.4), as_array);
        // Any will do: by session is the custom, and nothing depends on it.
        let partition = self.rng.random_range(0..PARTITIONS);
        let stream = self.space.partition(events[0].lane.name(), partition);
        loop {
            match self.add(&stream, field, &value).await {
                Sent::Accepted(entry) => return self.ledger.note(events, partition, Some(entry)),
                Sent::Unsure => {
                    self.ledger.note(events, partition, None);
                    if !harmless {
                        return;
                    }
                }
                Sent::Refused => {}
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn add(&mut self, stream: &str, field: &str, value: &[u8]) -> Sent {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => match connect(&self.space.redis_url_of("producer")).await {
                Some(connection) => connection,
                None => return Sent::Refused,
            },
        };
        let mut command = redis::cmd("XADD");
        command.arg(stream).arg("*").arg(field).arg(value);
        match command.query_async::<String>(&mut connection).await {
            Ok(id) => {
                self.connection = Some(connection);
                let (ms, seq) = id.split_once('-').expect("an entry id");
                Sent::Accepted((ms.parse().expect("an entry id"), seq.parse().expect("an entry id")))
            }
            // An error that the server told: it did not take the entry.
            Err(error) if error.code().is_some() => Sent::Refused,
            Err(_) => Sent::Unsure,
        }
    }
}

async fn connect(url: &str) -> Option<MultiplexedConnection> {
    let config = redis::AsyncConnectionConfig::new().set_connection_timeout(Some(DEADLINE)).set_response_timeout(Some(DEADLINE));
    redis::Client::open(url).ok()?.get_multiplexed_async_connection_with_config(&config).await.ok()
}

enum Sent {
    Accepted((u64, u64)),
    /// Sent, and no answer came.
    Unsure,
    Refused,
}
