//! The worker as users start it: the release binary, nothing set but where the servers are, and what the bench was told by
//! `AEGIS_BATCH_…` and `AEGIS_WRITERS` in its own environment.

use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use super::process::{self, pause_ms};
use super::servers::{free_port, signal, wait_exit};
use super::stage::Stage;

/// A running worker.
pub struct Worker {
    child: Child,
    port: u16,
}

impl Worker {
    /// Starts it; it reads as soon as it is up.
    pub fn start(stage: &Stage, database: &str) -> Result<Self> {
        Self::start_with(stage, database, &[])
    }

    /// The same with further settings.
    pub fn start_with(stage: &Stage, database: &str, settings: &[(&str, &str)]) -> Result<Self> {
        let port = free_port()?;
        let log = std::fs::File::create(stage.folder.path().join("worker.log"))?;
        let mut command = stage.program(database, &["run"]);
        command.envs(settings.iter().copied());
        command.env("AEGIS_HTTP_ADDR", format!("127.0.0.1:{port}")).stdout(log.try_clone()?).stderr(log);
        Ok(Self { child: command.spawn().context("aegis-ingest run")?, port })
    }

    /// Waits until `/readyz` says so.
    pub fn ready(&self) -> Result<()> {
        let began = Instant::now();
        while self.get("readyz").is_err() {
            ensure!(began.elapsed() < Duration::from_secs(30), "the worker does not get ready");
            pause_ms(20);
        }
        Ok(())
    }

    fn get(&self, path: &str) -> Result<String> {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET /{path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{path} does not answer 200");
        Ok(answer)
    }

    /// Its own histogram of ingest latency: upper bound in seconds, and events up to there.
    pub fn latencies(&self) -> Result<Vec<(f64, f64)>> {
        let text = self.get("metrics")?;
        let lines =
            text.lines().filter_map(|line| line.strip_prefix("aegis_ingest_latency_seconds_bucket{lane=\"interactions\",le=\""));
        Ok(lines
            .filter_map(|line| line.split_once("\"} "))
            .filter_map(|(le, count)| Some((le.parse().ok()?, count.trim().parse().ok()?)))
            .collect())
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory now, MiB.
    pub fn rss_mib(&self) -> f64 {
        process::status_kib(self.pid(), "VmRSS:") as f64 / 1024.0
    }

    /// Highest resident memory so far, MiB.
    pub fn rss_max_mib(&self) -> f64 {
        process::status_kib(self.pid(), "VmHWM:") as f64 / 1024.0
    }

    /// SIGTERM, and its end with status 0.
    pub fn stop(mut self) -> Result<()> {
        signal(&self.child, Signal::TERM);
        let status = wait_exit(&mut self.child, Duration::from_secs(30))?.context("the worker does not end")?;
        ensure!(status.success(), "the worker ended with {status}");
        Ok(())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
