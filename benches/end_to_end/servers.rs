//! Redis, PostgreSQL with TimescaleDB and Chroma of the bench's own, set as `make up` sets them, on ports and data of their own.
//!
//! All are started from the main thread: the kernel ends them when that thread is gone, however it went.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

const START_MAX: Duration = Duration::from_mins(1);
const STOP_MAX: Duration = Duration::from_mins(1);

/// The repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn stack_directory() -> PathBuf {
    std::env::var_os("AEGIS_STACK_DIR").map_or_else(|| repository().join(".stack"), PathBuf::from)
}

/// Runs `infra/local/stack` and returns its last line.
fn stack(arguments: &[&str]) -> Result<String> {
    let output = Command::new(repository().join("infra/local/stack")).args(arguments).stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "infra/local/stack {arguments:?}:\n{text}{errors}");
    Ok(text.trim_end().lines().last().unwrap_or_default().to_owned())
}

/// A command inside of the private root folder.
pub fn in_root(arguments: &[&str]) -> Command {
    let mut command = Command::new(repository().join("infra/local/in-root"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs it and returns what it printed.
pub fn output_of(mut command: Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {errors}");
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// When a process began, in the kernel's own unit: tells it from a later one of the same number.
fn start_time(pid: &str) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(19).map(str::to_owned)
}

/// Installs what is missing, and removes the data of benches that are gone.
pub fn prepare() -> Result<()> {
    stack(&["install"])?;
    for entry in std::fs::read_dir(stack_directory().join("root/data"))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix("bench-") else { continue };
        let owner: Vec<_> = rest.split('-').take(2).collect();
        if !matches!(owner[..], [pid, began] if start_time(pid).is_some_and(|now| now == began)) {
            // A server that is still ending may hold on to it: the next run removes the rest.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

/// A port that nothing listens on, below the range of outgoing connections.
pub fn free_port() -> Result<u16> {
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 15_000;
    static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(0);
    let start = (std::process::id().wrapping_mul(257) % u32::from(COUNT)) as u16;
    for _ in 0..COUNT {
        let port = FIRST + start.wrapping_add(NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port");
}

/// Sends a signal to a child that was not waited for yet.
pub fn signal(child: &Child, which: Signal) {
    if let Some(pid) = Pid::from_raw(child.id().cast_signed()) {
        // One that has ended by itself needs none.
        let _ = kill_process(pid, which);
    }
}

/// Waits until a child ends by itself; `None`: it did not in time.
pub fn wait_exit(child: &mut Child, within: Duration) -> Result<Option<std::process::ExitStatus>> {
    let began = Instant::now();
    while began.elapsed() < within {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(None)
}

/// A server process and its data, which are removed with it.
pub struct Server {
    name: String,
    data: PathBuf,
    ending: Signal,
    child: Child,
    /// Where it listens on 127.0.0.1.
    pub port: u16,
}

impl Server {
    fn start(
        kind: &str,
        ending: Signal,
        prepare: impl FnOnce(&Path) -> Result<()>,
        command: impl FnOnce(&str, &str) -> String,
    ) -> Result<Self> {
        let pid = std::process::id().to_string();
        let name = format!("bench-{pid}-{}-{kind}", start_time(&pid).unwrap_or_default());
        let data = PathBuf::from(stack(&["data-dir", &name])?);
        prepare(&data)?;
        let port = free_port()?;
        let line = command(&format!("/data/{name}"), &port.to_string());
        let log = stack_directory().join("log").join(format!("{name}.log"));
        let log = File::create(&log).with_context(|| format!("{}", log.display()))?;
        let die = if ending == Signal::INT { "--die-with-parent=INT" } else { "--die-with-parent=TERM" };
        let mut arguments = vec![die];
        // Two spaces hold an empty argument.
        arguments.extend(line.split(' '));
        let child = in_root(&arguments).stdout(log.try_clone()?).stderr(log).spawn()?;
        Ok(Self { name, data, ending, child, port })
    }

    fn wait_until(&mut self, mut ready: impl FnMut(u16) -> bool) -> Result<()> {
        let began = Instant::now();
        while !ready(self.port) {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}; see its log in .stack/log", self.name);
            }
            ensure!(began.elapsed() < START_MAX, "{} does not answer; see its log in .stack/log", self.name);
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Process id: the server's own, since `in-root` becomes it.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A path in its data folder, as the server itself sees it.
    pub fn own_path(&self, file: &str) -> String {
        format!("/data/{}/{file}", self.name)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        signal(&self.child, self.ending);
        if !matches!(wait_exit(&mut self.child, STOP_MAX), Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.data);
        let _ = std::fs::remove_file(stack_directory().join("log").join(format!("{}.log", self.name)));
    }
}

fn asks(port: u16, question: &[u8], answer: &str) -> bool {
    use std::io::{Read as _, Write as _};
    let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", port)) else { return false };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
    let mut bytes = [0; 64];
    stream.write_all(question).is_ok()
        && stream.read(&mut bytes).is_ok_and(|read| String::from_utf8_lossy(&bytes[..read]).contains(answer))
}

/// Redis: AOF, an fsync each second, as `make up` has it; but the file is rewritten between runs and not within one.
pub fn redis() -> Result<Server> {
    let mut server = Server::start(
        "redis",
        Signal::TERM,
        |_| Ok(()),
        |data, port| {
            format!(
                "redis-server --port {port} --bind 127.0.0.1 --dir {data} --save  --appendonly yes --appendfsync everysec \
             --maxmemory-policy noeviction --hash-max-listpack-value 1024 --daemonize no --auto-aof-rewrite-percentage 0"
            )
        },
    )?;
    server.wait_until(|port| asks(port, b"PING\r\n", "+PONG"))?;
    Ok(server)
}

/// PostgreSQL: fsync on, and the settings that `make up` writes to `aegis.conf`.
pub fn postgres() -> Result<Server> {
    let template = stack(&["pg-template"])?;
    let memory_kib: u64 = super::process::meminfo("MemTotal:");
    let shared_mib = (memory_kib / 1024 / 8).min(512);
    let copy = |data: &Path| {
        let copied = Command::new("cp").args(["-a", &format!("{template}/.")]).arg(data).status()?;
        ensure!(copied.success(), "cp -a {template}");
        let _ = std::fs::remove_file(data.join(".complete"));
        Ok(())
    };
    let mut server = Server::start("postgres", Signal::INT, copy, |data, port| {
        format!(
            "postgres -D {data} -p {port} -c shared_buffers={shared_mib}MB -c max_wal_size=4GB -c checkpoint_timeout=15min \
             -c wal_compression=lz4"
        )
    })?;
    server.wait_until(|port| {
        let mut ask = in_root(&["pg_isready", "-q", "-h", "127.0.0.1", "-d", "aegis", "-p", &port.to_string()]);
        ask.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    })?;
    // For the bench's own statements: TimescaleDB lets only a superuser copy from a file. The worker's role stays what it is.
    let role = "CREATE ROLE bench SUPERUSER LOGIN PASSWORD 'bench'";
    let port = server.port.to_string();
    output_of(in_root(&["psql", "-q", "-h", "/tmp", "-p", &port, "-U", "postgres", "-d", "aegis", "-c", role]))?;
    Ok(server)
}

/// Chroma, as `make up` starts it.
pub fn chroma() -> Result<Server> {
    let mut server = Server::start(
        "chroma",
        Signal::TERM,
        |_| Ok(()),
        |data, port| format!("chroma run --path {data} --host 127.0.0.1 --port {port}"),
    )?;
    server.wait_until(|port| asks(port, b"GET /api/v2/heartbeat HTTP/1.0\r\n\r\n", " 200 "))?;
    Ok(server)
}
