//! The three workers: restarted after what the schedule does to them, and watched for ends that nobody asked for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::block_in_place;

use super::schedule::{CLAIM_IDLE, PARTITIONS, RETAIN, WORKERS};
use crate::support::{LONG, Space, Worker};

/// Longest drain, and what may come on top of it: the last words to Redis, and a machine that is busy.
const DRAIN: &str = "4s";
const LEAVE_MAX: Duration = Duration::from_secs(25);

/// Workers in their places.
pub struct Workers {
    places: [Mutex<Worker>; WORKERS],
    space: Space,
    memory_max: AtomicU64,
    offences: std::sync::Mutex<Vec<String>>,
}

fn start(space: &Space, place: usize) -> Worker {
    let claim_idle = format!("{}ms", CLAIM_IDLE.as_millis());
    let (partitions, retain) = (PARTITIONS.to_string(), format!("{}ms", RETAIN.as_millis()));
    let mut settings = vec![
        ("AEGIS_PARTITIONS", partitions.as_str()),
        ("AEGIS_RETAIN", &retain),
        ("AEGIS_CLAIM_IDLE", claim_idle.as_str()),
        ("AEGIS_DRAIN_TIMEOUT", DRAIN),
        ("AEGIS_REDIS_TIMEOUT", "1500ms"),
        ("AEGIS_DATABASE_CONNECT_TIMEOUT", "2s"),
        ("AEGIS_DATABASE_WRITE_TIMEOUT", "5s"),
        ("AEGIS_CHROMA_TIMEOUT", "5s"),
    ];
    // Two come back under their own names and settle their own first; the third is a stranger each time.
    let name = format!("worker-{place}");
    if place < 2 {
        settings.push(("AEGIS_CONSUMER", &name));
    }
    Worker::start(space, &settings)
}

impl Workers {
    pub async fn start(space: &Space) -> Self {
        let places = std::array::from_fn(|place| Mutex::new(start(space, place)));
        let workers = Self { places, space: space.clone(), memory_max: AtomicU64::new(0), offences: std::sync::Mutex::default() };
        for place in &workers.places {
            place.lock().await.ready().await;
        }
        workers
    }

    fn weigh(&self, worker: &Worker) {
        self.memory_max.fetch_max(worker.rss_max(), Ordering::Relaxed);
    }

    /// What a worker says when it goes: nobody deletes entries here, so none may count as lost.
    fn judge(&self, number: usize, worker: &Worker) {
        let log = worker.log();
        for line in log.lines().filter(|line| line.contains("they are lost") || line.contains("before they were settled")) {
            self.offend(format!("worker {number} tells of a loss: {line}"));
        }
    }

    /// Highest memory of any of them so far.
    pub fn memory_max(&self) -> u64 {
        self.memory_max.load(Ordering::Relaxed)
    }

    /// What went wrong so far.
    pub fn offences(&self) -> Vec<String> {
        std::mem::take(&mut self.offences.lock().unwrap())
    }

    fn offend(&self, text: String) {
        self.offences.lock().unwrap().push(text);
    }

    fn replace(&self, place: usize, worker: &mut MutexGuard<'_, Worker>) {
        **worker = start(&self.space, place);
    }

    /// It answers, so that the next signal does not come before it listens to signals.
    async fn is_there(worker: &Worker) {
        let began = Instant::now();
        while worker.get("/healthz").await.is_none() {
            assert!(began.elapsed() < LONG, "a worker does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn kill(&self, place: usize, away: Duration) {
        let mut worker = self.places[place].lock().await;
        self.weigh(&worker);
        self.judge(place, &worker);
        block_in_place(|| worker.kill());
        tokio::time::sleep(away).await;
        self.replace(place, &mut worker);
        Self::is_there(&worker).await;
    }

    pub async fn terminate(&self, place: usize, away: Duration) {
        let mut worker = self.places[place].lock().await;
        self.weigh(&worker);
        worker.signal(Signal::TERM);
        let status = block_in_place(|| worker.wait_exit(LEAVE_MAX));
        if !status.success() {
            self.offend(format!("worker {place} was asked to leave and ended with {status}:\n{}", last_words(&worker)));
        }
        self.judge(place, &worker);
        tokio::time::sleep(away).await;
        self.replace(place, &mut worker);
        Self::is_there(&worker).await;
    }

    pub async fn freeze(&self, place: usize, time: Duration) {
        let worker = self.places[place].lock().await;
        worker.signal(Signal::STOP);
        tokio::time::sleep(time).await;
        worker.signal(Signal::CONT);
    }

    /// Looks whether all run; starts those again that do not.
    pub async fn watch(&self) {
        for (number, place) in self.places.iter().enumerate() {
            let Ok(mut worker) = place.try_lock() else { continue };
            self.weigh(&worker);
            if !worker.is_running() {
                let status = block_in_place(|| worker.wait_exit(Duration::from_secs(1)));
                self.offend(format!("worker {number} ended by itself with {status}:\n{}", last_words(&worker)));
                self.replace(number, &mut worker);
                Self::is_there(&worker).await;
            }
        }
    }

    /// All leave in order.
    pub async fn stop(&self) {
        for (number, place) in self.places.iter().enumerate() {
            let mut worker = place.lock().await;
            self.weigh(&worker);
            worker.signal(Signal::TERM);
            let status = block_in_place(|| worker.wait_exit(LEAVE_MAX));
            if !status.success() {
                self.offend(format!("worker {number} ended with {status} at the end:\n{}", last_words(&worker)));
            }
            self.judge(number, &worker);
        }
    }
}

fn last_words(worker: &Worker) -> String {
    let log = worker.log();
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}
