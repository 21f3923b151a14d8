//! The system calls of a process, counted by strace from outside.
#![allow(clippy::expect_used, reason = "a test without its count cannot go on")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::NamedTempFile;

use crate::daemon::{Ground, thinroot_binary};
use crate::skip::skip;

/// How long strace may take to attach and to let go.
const PATIENCE: Duration = Duration::from_secs(20);

/// Counts of all threads, a row a call.
const COUNTED: [&str; 6] = ["-f", "-qq", "-c", "-U", "calls,name", "-o"];

/// How often each call was made, by its name.
pub type Calls = BTreeMap<String, u64>;

/// Counts what a process calls, in all its threads, until it is asked.
#[derive(Debug)]
pub struct Trace {
    strace: Child,
    summary: NamedTempFile,
}

impl Trace {
    /// Attaches to a process; `None`, aloud, where that cannot be done.
    ///
    /// # Panics
    /// If strace neither attaches nor ends.
    pub fn of(test: &str, pid: u32) -> Option<Self> {
        let summary = NamedTempFile::new().expect("a file for the summary");
        let mut command = Command::new("strace");
        command.args(COUNTED).arg(summary.path()).args(["-p", &pid.to_string()]);
        let started = command.stderr(Stdio::null()).spawn();
        let Ok(strace) = started else {
            skip(test, "there is no strace (cargo xtask setup installs it)");
            return None;
        };
        let mut trace = Self { strace, summary };
        let start = Instant::now();
        while !is_traced(pid) {
            if trace.strace.try_wait().expect("strace").is_some() {
                skip(test, "strace may not attach here");
                return None;
            }
            assert!(start.elapsed() < PATIENCE, "strace does not attach");
            sleep(Duration::from_millis(5));
        }
        Some(trace)
    }

    /// Lets go of the process, and gives what it called meanwhile.
    ///
    /// # Panics
    /// If strace does not say.
    pub fn calls(mut self) -> Calls {
        interrupt(&self.strace);
        let status = self.strace.wait().expect("strace");
        counts(self.summary.path(), status)
    }

    /// All that a daemon on `ground` calls from its start, with a guest that mounts and unmounts, to its
    /// end; `None`, aloud, without strace.
    ///
    /// # Panics
    /// If strace does not say.
    pub fn of_a_life(test: &str, ground: &Ground) -> Option<Calls> {
        if !Command::new("strace")
            .arg("-V")
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|s| s.success())
        {
            skip(test, "there is no strace (cargo xtask setup installs it)");
            return None;
        }
        let summary = NamedTempFile::new().expect("a file for the summary");
        let mut strace = Command::new("strace");
        strace.args(COUNTED).arg(summary.path()).arg(thinroot_binary());
        let mut daemon = ground.serve_by(strace, &["--once"]);
        daemon.mount().unmount();
        let status = daemon.wait();
        Some(counts(summary.path(), status))
    }
}

fn counts(summary: &Path, status: ExitStatus) -> Calls {
    let summary = fs::read_to_string(summary).expect("its summary");
    assert!(!summary.is_empty(), "strace ended with {status} and no summary");
    let row = |line: &str| {
        let mut words = line.split_whitespace();
        let calls = words.next()?.parse().ok()?;
        Some((words.next()?.to_owned(), calls))
    };
    summary.lines().filter_map(row).filter(|(name, _)| name != "total").collect()
}

impl Drop for Trace {
    fn drop(&mut self) {
        if let Ok(None) = self.strace.try_wait() {
            interrupt(&self.strace);
            if let Err(cause) = self.strace.wait() {
                eprintln!("strace: {cause}");
            }
        }
    }
}

fn interrupt(strace: &Child) {
    if let Err(cause) = kill_process(Pid::from_child(strace), Signal::INT) {
        eprintln!("ending strace: {cause}");
    }
}

/// Whether every thread of a process has a tracer.
fn is_traced(pid: u32) -> bool {
    let tasks = Path::new("/proc").join(pid.to_string()).join("task");
    let is_traced = |task: fs::DirEntry| {
        fs::read_to_string(task.path().join("status"))
            .is_ok_and(|status| !status.contains("TracerPid:\t0\n"))
    };
    fs::read_dir(tasks).is_ok_and(|mut tasks| tasks.all(|task| task.is_ok_and(is_traced)))
}
