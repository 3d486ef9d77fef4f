//! Real servers: one Redis, one PostgreSQL and one Chroma that all tests of a process share, and servers of its own for a test
//! that stops, kills or freezes them.
//!
//! All end with the process, however it ends: the kernel signals them when the thread that started them is gone, and that
//! thread ([`spawn`]) lives as long as the process.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::rights;
use super::wait::until_blocking;

/// How long a server may take to answer after its start; PostgreSQL may have a crash to recover from.
const START_MAX: Duration = Duration::from_mins(1);
/// How long it may take to end.
const STOP_MAX: Duration = Duration::from_mins(1);

/// The repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Starts a process from the one thread that lives as long as this process, so that what is bound to its parent's life
/// (`in-root --die-with-parent`, `setpriv --pdeathsig`) is not ended by the end of a test's thread.
pub fn spawn(command: Command) -> std::io::Result<Child> {
    type Request = (Command, Sender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<Mutex<Sender<Request>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (requests, incoming) = channel::<Request>();
        std::thread::Builder::new()
            .name("spawner".to_owned())
            .spawn(move || {
                for (mut command, answer) in incoming {
                    let _ = answer.send(command.spawn());
                }
            })
            .expect("a thread");
        Mutex::new(requests)
    });
    let (answer, child) = channel();
    spawner.lock().unwrap().send((command, answer)).expect("the spawner lives");
    child.recv().expect("the spawner answers")
}

/// Sends a signal to a child that was not waited for yet.
pub fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap_or_else(|error| panic!("signal {signal:?} to {}: {error}", child.id()));
}

/// Waits until a child ends by itself.
pub fn wait_exit(what: &str, child: &mut Child, within: Duration) -> ExitStatus {
    until_blocking(&format!("the end of {what}"), within, || child.try_wait().expect("a child of ours"))
}

/// A port that nothing listens on. Taken from below the range of outgoing connections, each once a process, so that nothing
/// takes it between now and its use.
pub fn free_port() -> u16 {
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 15_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id().wrapping_mul(257) % u32::from(COUNT)) as u16;
    for _ in 0..COUNT {
        let port = FIRST + (start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed))) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}

fn stack_directory() -> PathBuf {
    std::env::var_os("AEGIS_STACK_DIR").map_or_else(|| repository().join(".stack"), PathBuf::from)
}

/// Runs `infra/local/stack` and returns its last line.
fn stack(arguments: &[&str]) -> String {
    let output = Command::new(repository().join("infra/local/stack"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("infra/local/stack");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "infra/local/stack {arguments:?}:\n{text}{}", String::from_utf8_lossy(&output.stderr));
    text.trim_end().lines().last().unwrap_or_default().to_owned()
}

/// Installs what is missing, once, and removes the data of test processes that are gone.
fn prepare() {
    static DONE: OnceLock<()> = OnceLock::new();
    DONE.get_or_init(|| {
        if !stack_directory().join("root/.stamp").exists() {
            eprintln!("installing Redis, TimescaleDB and Chroma into .stack (a minute or two) …");
        }
        stack(&["install"]);
        for entry in std::fs::read_dir(stack_directory().join("root/data")).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(rest) = name.strip_prefix("test-") else { continue };
            let owner: Vec<_> = rest.split('-').take(2).collect();
            let alive = owner.len() == 2 && start_time(owner[0]).is_some_and(|began| began == owner[1]);
            if !alive {
                // A server that is still ending may hold on to it: the next process removes the rest.
                let _ = std::fs::remove_dir_all(entry.path());
                let _ = std::fs::remove_file(stack_directory().join("log").join(format!("{name}.log")));
            }
        }
    });
}

/// When a process began, in the kernel's own unit: tells it from a later one of the same number.
fn start_time(pid: &str) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(19).map(str::to_owned)
}

/// Name of a data folder of this process, which `in-root` sees as `/data/NAME`.
fn data_name(kind: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let pid = std::process::id().to_string();
    let began = start_time(&pid).unwrap_or_default();
    format!("test-{pid}-{began}-{}-{kind}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A command inside of the private root folder; `--die-with-parent` is up to the caller.
pub fn in_root(arguments: &[&str]) -> Command {
    prepare();
    let mut command = Command::new(repository().join("infra/local/in-root"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// One server process: its data stay while it is stopped and started again, and are removed with it.
struct Server {
    name: String,
    path: PathBuf,
    /// Ends the server in order: SIGTERM, for PostgreSQL SIGINT.
    ending: &'static str,
    command: Vec<String>,
    child: Option<Child>,
}

impl Server {
    fn new(kind: &str, ending: &'static str, command: impl FnOnce(&str) -> Vec<String>) -> Self {
        prepare();
        let name = data_name(kind);
        let path = PathBuf::from(stack(&["data-dir", &name]));
        let command = command(&format!("/data/{name}"));
        Self { name, path, ending, command, child: None }
    }

    fn log(&self) -> PathBuf {
        stack_directory().join("log").join(format!("{}.log", self.name))
    }

    fn spawn(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let _ = std::fs::create_dir_all(stack_directory().join("log"));
        let log = File::options().create(true).append(true).open(self.log()).expect("a log file");
        let die = format!("--die-with-parent={}", self.ending);
        let mut arguments = vec![die.as_str()];
        arguments.extend(self.command.iter().map(String::as_str));
        let mut command = in_root(&arguments);
        command.stdout(log.try_clone().expect("a log file")).stderr(log);
        self.child = Some(spawn(command).expect("infra/local/in-root"));
    }

    /// Starts and waits until `ready`.
    fn start(&mut self, ready: impl Fn() -> bool) {
        self.spawn();
        let began = std::time::Instant::now();
        while !ready() {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if let Some(status) = ended {
                panic!("{} ended with {status}:\n{}", self.name, tail(&self.log()));
            }
            assert!(began.elapsed() < START_MAX, "{} does not answer:\n{}", self.name, tail(&self.log()));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn child(&self) -> &Child {
        self.child.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name))
    }

    fn signal(&self, which: Signal) {
        signal(self.child(), which);
    }

    fn end(&mut self, which: Signal) {
        self.signal(which);
        let mut child = self.child.take().unwrap();
        wait_exit(&self.name, &mut child, STOP_MAX);
    }

    fn is_running(&self) -> bool {
        self.child.is_some()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Also ends a frozen one.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- {} ---\n{}", self.name, tail(&self.log()));
        }
        let _ = std::fs::remove_dir_all(&self.path);
        let _ = std::fs::remove_file(self.log());
    }
}

/// The last lines of a file.
pub fn tail(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

macro_rules! life_of_a_server {
    () => {
        /// Starts it and waits until it answers; its data are those it had.
        pub fn start(&mut self) {
            let port = self.port;
            self.server.start(|| Self::answers(port));
        }

        /// Ends it with a signal and waits for its end; the data stay.
        pub fn stop(&mut self, signal: Signal) {
            self.server.end(signal);
        }

        /// SIGKILL.
        pub fn kill(&mut self) {
            self.server.end(Signal::KILL);
        }

        /// SIGSTOP: connections stay open and nothing answers. For PostgreSQL: the postmaster alone, so no new connection.
        pub fn pause(&self) {
            self.server.signal(Signal::STOP);
        }

        /// SIGCONT.
        pub fn resume(&self) {
            self.server.signal(Signal::CONT);
        }

        /// Ends it in order and starts it again.
        pub fn restart(&mut self) {
            self.stop(Self::IN_ORDER);
            self.start();
        }

        /// Where it listens, whether it runs or not; the same after a restart.
        pub fn port(&self) -> u16 {
            self.port
        }

        /// Its data folder as this process sees it.
        pub fn data(&self) -> &Path {
            &self.server.path
        }

        /// Whether it was started and not stopped since.
        pub fn is_running(&self) -> bool {
            self.server.is_running()
        }
    };
}

/// A Redis server of a test's own.
pub struct OwnRedis {
    server: Server,
    port: u16,
}

impl OwnRedis {
    const IN_ORDER: Signal = Signal::TERM;
    life_of_a_server!();

    /// Started, with an append-only file that is synced each second, and `noeviction`.
    pub fn new() -> Self {
        Self::with(&["--appendonly", "yes", "--appendfsync", "everysec"])
    }

    /// Started with further arguments of `redis-server`.
    pub fn with(arguments: &[&str]) -> Self {
        let mut redis = Self::prepared(|_| "redis-server".to_owned(), arguments);
        redis.start();
        redis
    }

    /// A Redis 8.2, which has XTRIM … ACKED; `None` where none is to be had for this machine's kind of processor.
    pub fn newer(arguments: &[&str]) -> Option<Self> {
        let script = repository().join("tests/behaviour/support/redis-8.2");
        let output = Command::new(script).arg(env!("CARGO_TARGET_TMPDIR")).output().expect("tests/behaviour/support/redis-8.2");
        if output.status.code() == Some(3) {
            eprintln!("######## NOT LOOKED AT: Redis 8.2. {} ########", String::from_utf8_lossy(&output.stderr));
            return None;
        }
        assert!(output.status.success(), "redis-8.2: {}", String::from_utf8_lossy(&output.stderr));
        let program = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let mut redis = Self::prepared(|data| format!("{data}/redis-server"), arguments);
        std::fs::copy(program, redis.server.path.join("redis-server")).expect("a copy of the server");
        redis.start();
        Some(redis)
    }

    fn prepared(program: impl FnOnce(&str) -> String, arguments: &[&str]) -> Self {
        let port = free_port();
        let server = Server::new("redis", "TERM", |data| {
            let mut command = vec![program(data)];
            command.extend(["--bind", "127.0.0.1", "--save", "", "--maxmemory-policy", "noeviction"].map(str::to_owned));
            command.extend(["--port".to_owned(), port.to_string(), "--dir".to_owned(), data.to_owned()]);
            // Users outlive a restart.
            command.extend(["--aclfile".to_owned(), format!("{data}/users.acl")]);
            command.extend(arguments.iter().map(|&argument| argument.to_owned()));
            command
        });
        std::fs::write(server.path.join("users.acl"), "").expect("users.acl");
        Self { server, port }
    }

    /// The administrator's address.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn answers(port: u16) -> bool {
        let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", port)) else { return false };
        let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
        let mut answer = [0; 5];
        std::io::Write::write_all(&mut stream, b"PING\r\n").is_ok()
            && std::io::Read::read_exact(&mut stream, &mut answer).is_ok()
            && (&answer == b"+PONG" || &answer == b"-NOAU")
    }
}

/// A sentinel of a test's own.
pub struct OwnSentinel {
    server: Server,
    port: u16,
}

impl OwnSentinel {
    const IN_ORDER: Signal = Signal::TERM;
    life_of_a_server!();

    /// Started; two of them have to agree that the server at `port` is gone.
    pub fn new(name: &str, port: u16) -> Self {
        let own = free_port();
        let server = Server::new("sentinel", "TERM", |data| {
            ["redis-server", &format!("{data}/sentinel.conf"), "--sentinel"].map(str::to_owned).to_vec()
        });
        let text = format!(
            "port {own}\nbind 127.0.0.1\nsentinel monitor {name} 127.0.0.1 {port} 2\n\
             sentinel down-after-milliseconds {name} 1500\nsentinel failover-timeout {name} 5000\n"
        );
        // It writes what it learns into its own file.
        let (path, owner) = (server.path.join("sentinel.conf"), std::fs::metadata(&server.path).expect("its folder"));
        std::fs::write(&path, text).expect("its file");
        std::os::unix::fs::chown(&path, Some(owner.uid()), Some(owner.gid())).expect("its file");
        let mut sentinel = Self { server, port: own };
        sentinel.start();
        sentinel
    }

    fn answers(port: u16) -> bool {
        OwnRedis::answers(port)
    }
}

/// The cluster that all are copied from: made once a process.
fn prepared_cluster() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        prepare();
        let (template, name) = (stack(&["pg-template"]), data_name("cluster"));
        let path = PathBuf::from(stack(&["data-dir", &name]));
        copy(Path::new(&template), &path);
        let _ = std::fs::remove_file(path.join(".complete"));
        rights::prepare_cluster(&path, &format!("/data/{name}"));
        path
    })
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status();
    assert!(copied.is_ok_and(|status| status.success()), "cp -a {}", from.display());
}

/// A PostgreSQL server of a test's own, copied from a cluster with the roles and databases of [`rights::prepare_cluster`].
pub struct OwnPostgres {
    server: Server,
    port: u16,
}

impl OwnPostgres {
    /// Fast shutdown: SIGTERM would wait for the clients.
    const IN_ORDER: Signal = Signal::INT;
    life_of_a_server!();

    /// Started.
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// Started with further settings, each `name=value`.
    pub fn with(settings: &[&str]) -> Self {
        let port = free_port();
        let template = prepared_cluster();
        let server = Server::new("postgres", "INT", |data| {
            let mut command = vec!["postgres".to_owned(), "-D".to_owned(), data.to_owned(), "-p".to_owned(), port.to_string()];
            let ours = [
                "fsync=off",
                "unix_socket_directories=",
                "max_connections=400",
                "shared_buffers=128MB",
                "max_wal_size=2GB",
                // Background jobs of hundreds of databases would only contend with the tests.
                "timescaledb.bgw_launcher_poll_time=600000",
            ];
            for setting in ours.iter().chain(settings) {
                command.extend(["-c".to_owned(), (*setting).to_owned()]);
            }
            command
        });
        copy(template, &server.path);
        let mut postgres = Self { server, port };
        postgres.start();
        postgres
    }

    /// The administrator's address of a database; `aegis` is migrated.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://aegis:aegis@127.0.0.1:{}/{database}", self.port)
    }

    fn answers(port: u16) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let url = format!("postgres://aegis:aegis@127.0.0.1:{port}/aegis?connect_timeout=2");
        // A thread of its own, since tests call this from within a runtime.
        std::thread::scope(|scope| {
            let asked = scope
                .spawn(move || runtime.block_on(async { tokio_postgres::connect(&url, tokio_postgres::NoTls).await.is_ok() }));
            asked.join().unwrap_or(false)
        })
    }
}

/// A Chroma server of a test's own.
pub struct OwnChroma {
    server: Server,
    port: u16,
}

impl OwnChroma {
    const IN_ORDER: Signal = Signal::TERM;
    life_of_a_server!();

    /// Started.
    pub fn new() -> Self {
        let port = free_port();
        let server = Server::new("chroma", "TERM", |data| {
            ["chroma", "run", "--host", "127.0.0.1", "--path", data, "--port", &port.to_string()].map(str::to_owned).to_vec()
        });
        let mut chroma = Self { server, port };
        chroma.start();
        chroma
    }

    /// For `AEGIS_CHROMA_URL`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn answers(port: u16) -> bool {
        let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", port)) else { return false };
        let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
        let mut answer = [0; 12];
        std::io::Write::write_all(&mut stream, b"GET /api/v2/heartbeat HTTP/1.0\r\n\r\n").is_ok()
            && std::io::Read::read_exact(&mut stream, &mut answer).is_ok()
            && answer.ends_with(b" 200")
    }
}

/// The Redis server that all tests share.
pub fn redis() -> &'static OwnRedis {
    static SERVER: OnceLock<OwnRedis> = OnceLock::new();
    SERVER.get_or_init(|| OwnRedis::with(&["--appendonly", "no"]))
}

/// The PostgreSQL server that all tests share.
pub fn postgres() -> &'static OwnPostgres {
    static SERVER: OnceLock<OwnPostgres> = OnceLock::new();
    SERVER.get_or_init(OwnPostgres::new)
}

/// The Chroma server that all tests share.
pub fn chroma() -> &'static OwnChroma {
    static SERVER: OnceLock<OwnChroma> = OnceLock::new();
    SERVER.get_or_init(OwnChroma::new)
}
