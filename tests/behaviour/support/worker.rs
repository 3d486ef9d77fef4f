//! The real program: `aegis-ingest run` as a process of its own with nothing in its environment but what the test gives it.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use super::http::{self, Answer};
use super::servers::{free_port, signal, spawn, tail, wait_exit};
use super::space::Space;
use super::wait::{LONG, until, until_equal};

/// The program.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_aegis-ingest");

/// The program that the tests run: [`PROGRAM`], or another build of it that `AEGIS_BIN` names.
fn program() -> std::ffi::OsString {
    std::env::var_os("AEGIS_BIN").filter(|path| !path.is_empty()).unwrap_or_else(|| PROGRAM.into())
}

/// Where the program finds nothing that the test did not put there: no `.env`, no variable.
fn bare(directory: &TempDir) -> Command {
    // Ends with this process, however that ends; see `spawn`.
    let setpriv = ["/usr/bin/setpriv", "/bin/setpriv"].into_iter().find(|path| std::path::Path::new(path).exists());
    let mut command = match setpriv {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL"]).arg(program());
            command
        }
        None => Command::new(program()),
    };
    command.env_clear().current_dir(directory.path()).stdin(Stdio::null());
    command
}

/// Runs a command of the program to its end (at most a minute) and returns what it said.
pub fn command(arguments: &[&str], settings: &[(&str, &str)]) -> Output {
    let directory = TempDir::new().expect("a temporary folder");
    command_in(&directory, arguments, settings)
}

/// Like [`command`] in a working folder of the test's, for `.env` and files.
pub fn command_in(directory: &TempDir, arguments: &[&str], settings: &[(&str, &str)]) -> Output {
    let mut command = bare(directory);
    command.args(arguments).envs(settings.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = spawn(command).expect("the program");
    let pid = child.id();
    let (done, waiter) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(child.wait_with_output()));
    match waiter.recv_timeout(Duration::from_mins(1)) {
        Ok(output) => output.expect("a child of ours"),
        Err(_) => {
            let _ = rustix::process::kill_process(rustix::process::Pid::from_raw(pid as i32).unwrap(), Signal::KILL);
            panic!("aegis-ingest {arguments:?} with {settings:?} did not end within a minute");
        }
    }
}

/// A running worker; killed when the value goes, and its log is printed when the test fails.
pub struct Worker {
    child: Child,
    directory: TempDir,
    address: SocketAddr,
    api_key: Option<String>,
    ended: Option<ExitStatus>,
}

impl Worker {
    /// Starts `run` in a space, with further settings on top of the space's own; does not wait until it is ready.
    pub fn start(space: &Space, settings: &[(&str, &str)]) -> Self {
        Self::start_with(space, settings, &[])
    }

    /// Like [`Worker::start`], with further arguments.
    pub fn start_with(space: &Space, settings: &[(&str, &str)], arguments: &[&str]) -> Self {
        let directory = TempDir::new().expect("a temporary folder");
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let log = File::create(directory.path().join("log")).expect("a log file");
        let mut command = bare(&directory);
        command.arg("run").args(arguments);
        command.envs(space.settings()).env("AEGIS_HTTP_ADDR", address.to_string()).envs(settings.iter().copied());
        command.stdout(log.try_clone().expect("a log file")).stderr(log);
        let api_key = settings.iter().find(|(name, _)| *name == "AEGIS_API_KEYS");
        let api_key = api_key.and_then(|(_, keys)| keys.split(',').next()).map(str::to_owned);
        Self { child: spawn(command).expect("the program"), directory, address, api_key, ended: None }
    }

    /// Waits until `/readyz` says 200: the stores answer. The schema may still be looked at; who takes a store away next waits
    /// for something that the worker did first.
    pub async fn ready(&self) {
        until("the worker to be ready", LONG, async || {
            assert!(!self.is_gone(), "the worker ended by itself");
            (self.get("/readyz").await?.status == 200).then_some(())
        })
        .await;
    }

    /// Whether it has ended, without asking for its status.
    fn is_gone(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
    }

    /// Where its endpoints are.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Asks an endpoint, with the first of its API keys if it has any; `None`: nothing answers.
    pub async fn get(&self, path: &str) -> Option<Answer> {
        let key = self.api_key.as_ref().map(|key| format!("X-API-Key: {key}\r\n")).unwrap_or_default();
        http::request(self.address, "GET", path, &key).await
    }

    /// Its metrics now.
    pub async fn metrics(&self) -> Metrics {
        until("the metrics", LONG, async || {
            assert!(!self.is_gone(), "the worker ended by itself");
            Some(Metrics::parse(&self.get("/metrics").await.filter(|answer| answer.status == 200)?.body))
        })
        .await
    }

    /// Waits until entries of a lane have all been settled: read, and none pending or left. Asks Redis, not the worker.
    pub async fn settled(&self, space: &Space, lanes: &[&str], within: Duration) {
        let mut redis = space.redis().await;
        for lane in lanes {
            let stream = space.stream(lane);
            until_equal(&format!("{stream} to be read and settled"), within, (0, 0), async || {
                super::stores::lag_and_pending(&mut redis, &stream, "aegis").await.unwrap_or((-1, -1))
            })
            .await;
        }
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, which: Signal) {
        assert!(self.ended.is_none(), "the worker has ended");
        signal(&self.child, which);
    }

    /// Waits for its end.
    pub fn wait_exit(&mut self, within: Duration) -> ExitStatus {
        let status = wait_exit("the worker", &mut self.child, within);
        self.ended = Some(status);
        status
    }

    /// SIGTERM, and a status of 0 within the time a drain may take.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.wait_exit(Duration::from_secs(30));
        assert!(status.success(), "the worker ended with {status}:\n{}", self.log());
    }

    /// SIGKILL, and its end.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait_exit(Duration::from_secs(10));
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("a child of ours");
        }
        self.ended.is_none()
    }

    /// Resident memory, bytes.
    pub fn rss(&self) -> u64 {
        self.status_kib("VmRSS:") * 1024
    }

    /// Highest resident memory so far, bytes.
    pub fn rss_max(&self) -> u64 {
        self.status_kib("VmHWM:") * 1024
    }

    fn status_kib(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse().unwrap_or_default()
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("log")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.ended.is_none() {
            // Also ends a frozen one.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- log of worker {} ---\n{}\n---", self.pid(), tail(&self.log_path()));
        }
    }
}

/// Prometheus text, read: the value of each series, by its name and labels as they stand there.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// `name{label="value"}` to its value.
    pub series: BTreeMap<String, f64>,
    /// Names after `# TYPE`, with their type.
    pub families: BTreeMap<String, String>,
}

impl Metrics {
    /// Reads Prometheus text; panics at a line that is none.
    pub fn parse(text: &str) -> Self {
        let mut metrics = Self::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(family) = line.strip_prefix("# TYPE ") {
                let (name, kind) = family.split_once(' ').expect("a type");
                metrics.families.insert(name.to_owned(), kind.to_owned());
            } else if !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').expect("a value");
                metrics.series.insert(series.to_owned(), value.parse().unwrap_or_else(|_| panic!("no number: {line}")));
            }
        }
        metrics
    }

    /// The one series of that name with (at least) these labels; 0 when there is none.
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.find(name, labels).unwrap_or(0.0)
    }

    /// The one series of that name with (at least) these labels.
    pub fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut found = self.series.iter().filter(|(series, _)| {
            let (own, rest) = series.split_once('{').unwrap_or((series, ""));
            own == name && labels.iter().all(|(key, value)| rest.contains(&format!("{key}=\"{value}\"")))
        });
        let first = found.next().map(|(_, value)| *value);
        assert!(found.next().is_none(), "several series match {name} {labels:?}");
        first
    }
}
