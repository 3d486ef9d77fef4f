//! What processes and the machine have used, out of `/proc`.

use std::collections::HashMap;
use std::time::Duration;

/// Clock ticks a second of `/proc/PID/stat`: 100 on every Linux that Rust's standard library runs on.
const TICKS: f64 = 100.0;

/// The number behind a name in `/proc/meminfo`, KiB.
pub fn meminfo(name: &str) -> u64 {
    number_behind(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default(), name)
}

/// The number behind a name in `/proc/PID/status`, KiB.
pub fn status_kib(pid: u32, name: &str) -> u64 {
    number_behind(&std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default(), name)
}

fn number_behind(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or_default()
}

/// Parent, own CPU and that of children that have ended and were waited for; seconds.
fn stat(pid: u32) -> Option<(u32, f64, f64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let ticks = |i: usize| fields.get(i).and_then(|field| field.parse::<f64>().ok()).unwrap_or_default() / TICKS;
    Some((fields.get(1)?.parse().ok()?, ticks(11) + ticks(12), ticks(13) + ticks(14)))
}

/// CPU of a process, all its threads; seconds.
pub fn cpu(pid: u32) -> f64 {
    stat(pid).map_or(0.0, |(_, own, _)| own)
}

/// CPU of a process and its children, gone ones included; seconds.
pub fn cpu_with_children(pid: u32) -> f64 {
    loop {
        let Some((_, own, gone)) = stat(pid) else { return 0.0 };
        let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let living: f64 = pids.filter_map(stat).filter(|(parent, ..)| *parent == pid).map(|(_, own, gone)| own + gone).sum();
        // A child that ended meanwhile would count twice or not at all.
        if stat(pid).is_none_or(|(.., now)| now <= gone) {
            return own + gone + living;
        }
    }
}

/// The whole machine so far: seconds busy (what the host took away included) and altogether.
#[derive(Clone, Copy, Debug, Default)]
pub struct Machine {
    busy: f64,
    all: f64,
}

impl Machine {
    /// Up to now.
    pub fn now() -> Self {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let ticks: Vec<f64> = stat
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .skip(1)
            .take(8)
            .map(|field| field.parse().unwrap_or(0.0) / TICKS)
            .collect();
        let all: f64 = ticks.iter().sum();
        let at = |i: usize| ticks.get(i).copied().unwrap_or_default();
        Self { busy: all - at(3) - at(4), all }
    }
}

/// Processes whose CPU is counted, by name.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    /// Name, process, and whether its children count.
    pub processes: Vec<(&'static str, u32, bool)>,
}

/// CPU of each watched process at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    each: HashMap<&'static str, f64>,
    own: f64,
    machine: Machine,
}

/// CPU used between two moments.
#[derive(Clone, Debug, Default)]
pub struct Used {
    /// Seconds a process.
    pub each: HashMap<&'static str, f64>,
    /// Share of the machine that went to processes that are no part of the bench, 0 to 1.
    pub strangers: f64,
}

impl Watched {
    /// Now.
    pub fn snapshot(&self) -> Snapshot {
        let mut each = HashMap::new();
        for (name, pid, children) in &self.processes {
            *each.entry(*name).or_default() += if *children { cpu_with_children(*pid) } else { cpu(*pid) };
        }
        Snapshot { each, own: cpu(std::process::id()), machine: Machine::now() }
    }
}

impl Snapshot {
    /// What was used since.
    pub fn until(&self, later: &Self) -> Used {
        let each: HashMap<_, _> =
            later.each.iter().map(|(name, now)| (*name, now - self.each.get(name).copied().unwrap_or_default())).collect();
        let ours = each.values().sum::<f64>() + later.own - self.own;
        let (busy, all) = (later.machine.busy - self.machine.busy, later.machine.all - self.machine.all);
        Used { each, strangers: if all > 0.0 { ((busy - ours) / all).max(0.0) } else { 0.0 } }
    }
}

/// What the figures were taken on.
pub fn machine() -> Vec<(&'static str, String)> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    vec![
        ("cores", std::thread::available_parallelism().map_or_else(|_| "unknown".to_owned(), |cores| cores.to_string())),
        ("cpu", model.trim_start_matches([' ', '\t', ':']).to_owned()),
        ("memory", format!("{:.1} GiB", meminfo("MemTotal:") as f64 / 1_048_576.0)),
        ("kernel", read("/proc/sys/kernel/osrelease")),
        ("load average at the start", load()),
    ]
}

/// Processes that ran or wanted to, averaged over 1, 5 and 15 minutes.
pub fn load() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// Sleeps; for loops that look at something.
pub fn pause_ms(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}
