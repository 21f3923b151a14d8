//! What the host says: CPU time, memory and descriptors of a daemon; who runs where; how busy it is.
#![allow(clippy::expect_used, reason = "a bench that cannot read /proc cannot go on")]

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// More than this share of the machine's CPUs in use by others is too much.
const BUSY_MAX: f64 = 0.25;

/// A process and everything it started.
#[derive(Debug)]
pub struct Family {
    eldest: u32,
    /// The CPU time of each thread that was ever seen: those that ended count on.
    seen: BTreeMap<(u32, u32), Duration>,
}

impl Family {
    /// The family of `pid`.
    pub const fn of(pid: u32) -> Self {
        Self { eldest: pid, seen: BTreeMap::new() }
    }

    /// All members that live.
    pub fn members(&self) -> Vec<u32> {
        let mut members = vec![self.eldest];
        let mut at = 0;
        while let Some(&pid) = members.get(at) {
            for thread in threads(pid) {
                let path = format!("/proc/{pid}/task/{thread}/children");
                let children = fs::read_to_string(path).unwrap_or_default();
                members.extend(children.split_whitespace().filter_map(|c| c.parse::<u32>().ok()));
            }
            at += 1;
        }
        members
    }

    /// Kills them all; who is gone already is as good.
    pub fn end(&self) {
        for pid in self.members().into_iter().filter_map(|pid| i32::try_from(pid).ok()) {
            if let Some(pid) = Pid::from_raw(pid) {
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
            }
        }
    }

    /// The memory of all of them in KiB, what they share with others in equal parts.
    pub fn pss_kib(&self) -> u64 {
        self.members().into_iter().map(|pid| memory_kib(pid, "Pss:")).sum()
    }

    /// The CPU time all of them spent, to a nanosecond.
    pub fn cpu(&mut self) -> Duration {
        for pid in self.members() {
            for thread in threads(pid) {
                // sched-stats.rst: time on the CPU in nanoseconds comes first.
                let path = format!("/proc/{pid}/task/{thread}/schedstat");
                let Ok(text) = fs::read_to_string(path) else { continue };
                let spent = text.split_whitespace().next().and_then(|field| field.parse().ok());
                let spent = Duration::from_nanos(spent.unwrap_or(0));
                self.seen.insert((pid, thread), spent);
            }
        }
        self.seen.values().sum()
    }

    /// The memory that is each one's own, in KiB, and the open descriptors.
    pub fn memory_and_descriptors(&self) -> (f64, f64) {
        let mut private: u64 = 0;
        let mut descriptors = 0;
        for pid in self.members() {
            private += private_kib(pid);
            descriptors += fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        }
        let private = u32::try_from(private).expect("less than 4 TiB");
        (f64::from(private), f64::from(u32::try_from(descriptors).expect("few descriptors")))
    }
}

/// proc(5), smaps_rollup: the sum of the rows whose names begin so.
fn memory_kib(pid: u32, rows: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let lines = text.lines().filter(|line| line.starts_with(rows));
    lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}

/// proc(5), smaps: what only this process has, without read-only mappings of files. Those are page
/// cache of programs, libraries and indices, which the next daemon shares: that nobody does just now
/// says only that one daemon runs alone.
fn private_kib(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let mut counts = true;
    let mut private = 0;
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        let Some(first) = fields.next() else { continue };
        if !first.ends_with(':') {
            let (mode, path) = (fields.next().unwrap_or_default(), fields.nth(3));
            counts = mode.contains('w') || !path.is_some_and(|path| path.starts_with('/'));
        } else if counts && first.starts_with("Private_") {
            private += fields.next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    private
}

fn threads(pid: u32) -> Vec<u32> {
    let rows = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    rows.filter_map(|row| row.file_name().to_str()?.parse().ok()).collect()
}

/// Gives this process, and with it every daemon it starts, the right of way over whatever else
/// runs; says whether we may.
pub fn take_precedence() -> bool {
    rustix::process::setpriority_process(None, -20).is_ok()
}

/// Where the client runs, and where every daemon does: as far apart as the machine allows.
#[derive(Clone, Copy, Debug)]
pub struct Pins {
    /// The client's CPU.
    pub client: usize,
    /// The daemon's.
    pub daemon: usize,
}

impl Pins {
    /// The first two CPUs we may use.
    pub fn choose() -> Self {
        let may = sched_getaffinity(None).expect("affinity");
        let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| may.is_set(*cpu));
        let client = cpus.next().expect("a CPU to run on");
        Self { client, daemon: cpus.next().unwrap_or(client) }
    }

    /// Moves this thread; what it starts runs there, too.
    pub fn move_to(cpu: usize) {
        let mut set = CpuSet::new();
        set.set(cpu);
        sched_setaffinity(None::<Pid>, &set).expect("a CPU we may use");
    }
}

/// The share of all CPUs in use while we sleep for `patience`, 0 to 1; what is stolen from this
/// machine by its host counts.
pub fn busy_share(patience: Duration) -> f64 {
    let before = cpu_ticks();
    std::thread::sleep(patience);
    let after = cpu_ticks();
    let (all, idle) = (after.0 - before.0, after.1 - before.1);
    if all == 0 { 0.0 } else { 1.0 - f64::from(idle) / f64::from(all) }
}

/// Whether so much is too much to measure.
pub fn is_too_busy(share: f64) -> bool {
    share > BUSY_MAX
}

/// proc(5), /proc/stat: all ticks of all CPUs, and the idle ones (idle and iowait), modulo 2^32.
fn cpu_ticks() -> (u32, u32) {
    let text = fs::read_to_string("/proc/stat").expect("proc");
    let fields = text.lines().next().unwrap_or_default().split_whitespace().skip(1).take(8);
    let ticks: Vec<u64> = fields.filter_map(|field| field.parse().ok()).collect();
    let low = |sum: u64| u32::try_from(sum & 0xffff_ffff).expect("32 bits");
    (low(ticks.iter().sum()), low(ticks.iter().skip(3).take(2).sum()))
}

/// What a person wants to know of this machine beside a figure.
pub fn machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cpus} CPUs, {}, Linux {}", model.unwrap_or("unknown"), kernel.trim())
}
