//! The Python worker that a team would write instead: made ready where its packages can be had.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::servers::{repository, wait_exit};
use super::stage::{Drained, Stage};

/// What it is made of.
const PACKAGES: [&str; 4] = ["redis[hiredis]", "asyncpg", "msgpack", "uvloop"];

/// Its interpreter, installed on first use; else why there is none.
pub fn prepare() -> Result<PathBuf, String> {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-worker");
    let python = home.join("bin/python");
    let works = || {
        let mut command = Command::new(&python);
        command.args(["-c", "import redis, hiredis, asyncpg, msgpack, uvloop"]).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    if works() {
        return Ok(python);
    }
    println!("Installing the Python worker's packages into {} …", home.strip_prefix(repository()).unwrap_or(&home).display());
    let run = |program: &Path, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
        let errors = String::from_utf8_lossy(&output.stderr);
        let last = errors.lines().last().unwrap_or_default();
        if output.status.success() { Ok(()) } else { Err(format!("{} {}: {last}", program.display(), arguments.join(" "))) }
    };
    run(Path::new("python3"), &["-m", "venv", &home.to_string_lossy()])?;
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    run(&python, &[&install[..], &PACKAGES[..]].concat())?;
    if works() { Ok(python) } else { Err("its packages do not load".to_owned()) }
}

/// Versions of what it runs on.
pub fn versions(python: &Path) -> String {
    let script = "import sys, importlib.metadata as m; print('Python', sys.version.split()[0] + ',', ', '.join(p + ' ' + m.version(p) for p in ('redis', 'hiredis', 'asyncpg', 'msgpack', 'uvloop')))";
    let output = Command::new(python).args(["-c", script]).output();
    output.map_or_else(|_| "unknown".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Lets it drain the stream into the empty table, through a group of its own.
pub fn drain(stage: &Stage, python: &Path, stream: &str, events: u64) -> Result<Drained> {
    const GROUP: &str = "peer";
    stage.empty_tables("aegis")?;
    stage.unread(stream, GROUP)?;
    let mut command = Command::new(python);
    command.arg(repository().join("benches/end_to_end/python_worker.py"));
    command.args([
        "--redis",
        &stage.redis_url(),
        "--database",
        &stage.database_url("aegis"),
        "--stream",
        stream,
        "--group",
        GROUP,
    ]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let drained = stage.watch(stream, GROUP, &[("python worker", child.id())], || ());
    if drained.is_err() {
        let _ = child.kill();
    }
    let status = wait_exit(&mut child, Duration::from_mins(1))?.context("the Python worker does not end")?;
    let drained = drained?;
    ensure!(status.success(), "the Python worker ended with {status}");
    let rows = stage.number("aegis", "SELECT count(*) FROM interaction_logs")?;
    ensure!(rows.unsigned_abs() == events, "the Python worker wrote {rows} rows of {events}");
    stage.unread(stream, GROUP)?;
    Ok(drained)
}
