//! The timed KVM probe: a KVM that opens may still be a thousand times too slow.
//!
//! A host that is itself a virtual machine often has a `/dev/kvm` that makes virtual machines and
//! even runs a few instructions, yet never finishes a boot. Only the clock tells: one CPU runs a
//! loop of 100,000 turns in a child process, which is killed when it takes too long.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::sys::kvm::{LOOP_TURNS, time_loop};
use crate::sys::process::{die_with_parent, wait_readable};

/// The hidden subcommand of the program that runs [`probe_child`].
pub const PROBE_COMMAND: &str = "kvm-probe";

const DEVICE: &str = "/dev/kvm";
/// The child's start-up: generous, the host may be loaded.
const START_TIMEOUT: Duration = Duration::from_secs(5);
/// From the child's word that its CPU starts to the end of its loop.
const LOOP_TIMEOUT: Duration = Duration::from_millis(50);
/// Real hardware takes 0.05 ms; a KVM without hardware behind it took 431 ms.
const LOOP_ACCEPTED: Duration = Duration::from_millis(20);
/// How the reason begins when nothing was measured.
const NOT_STARTED: &str = "unknown: the probe could not start";
/// A child stuck in the kernel is left behind after this (it dies when the kernel lets it).
const REAP_TIMEOUT: Duration = Duration::from_secs(2);

/// What the probe found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KvmProbe {
    /// Guests may run on KVM.
    pub usable: bool,
    /// Why, in a few words that fit behind "KVM: ".
    pub reason: String,
}

impl KvmProbe {
    fn unusable(reason: impl Into<String>) -> Self {
        Self { usable: false, reason: reason.into() }
    }
}

/// Says whether this host's KVM can be used, from this boot's cache or by measuring.
///
/// `program` is the `thinroot` binary, run with [`PROBE_COMMAND`]. A measured answer is kept under
/// `$XDG_RUNTIME_DIR/thinroot` (or `/run/thinroot` for root) until the next boot.
pub fn probe(program: &Path) -> KvmProbe {
    if let Err(cause) = OpenOptions::new().read(true).write(true).open(DEVICE) {
        return KvmProbe::unusable(explain_open(&cause));
    }
    let cache = cache_path();
    let boot = boot_id().unwrap_or_default();
    if let Some(known) = cache.as_deref().and_then(|path| cached(path, &boot)) {
        return known;
    }
    let found = probe_now(program);
    // A probe that did not run measured nothing.
    if let Some(path) = cache
        && !boot.is_empty()
        && !found.reason.starts_with(NOT_STARTED)
        && let Err(cause) = remember(&path, &Cached { boot, probe: found.clone() })
    {
        log::debug!("KVM probe not cached in {}: {cause}", path.display());
    }
    found
}

/// Measures, whatever the cache says.
pub fn probe_now(program: &Path) -> KvmProbe {
    let mut command = Command::new(program);
    command.arg(PROBE_COMMAND);
    run_child(command)
}

/// The child's side: runs the loop and prints `started`, then how long it took or why it failed.
pub fn probe_child() -> ExitCode {
    match OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(device) => report_loop(device),
        Err(cause) => say(&format!("failed {DEVICE}: {cause}")),
    }
}

fn report_loop(device: File) -> ExitCode {
    let outcome = time_loop(device, || {
        say("started");
    });
    match outcome {
        Ok(took) => say(&format!("done {}", took.as_micros())),
        Err(cause) => say(&format!("failed {cause}")),
    }
}

fn say(line: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE, // The parent is gone: nobody is left to tell.
    }
}

fn explain_open(cause: &io::Error) -> String {
    match cause.kind() {
        io::ErrorKind::NotFound => {
            format!("{DEVICE} is missing (no virtualization here, or the kvm module is not loaded)")
        }
        io::ErrorKind::PermissionDenied => {
            format!("{DEVICE}: permission denied (join the group that owns it, often \"kvm\")")
        }
        _ => format!("{DEVICE}: {cause}"),
    }
}

fn run_child(mut command: Command) -> KvmProbe {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    die_with_parent(&mut command);
    match command.spawn() {
        Ok(mut child) => {
            let found = follow(&mut child);
            reap(&mut child);
            found
        }
        Err(cause) => KvmProbe::unusable(format!("{NOT_STARTED}: {cause}")),
    }
}

fn follow(child: &mut Child) -> KvmProbe {
    let Some(out) = child.stdout.take() else {
        return KvmProbe::unusable("the probe has no output");
    };
    let mut out = BufReader::with_capacity(256, out);
    match next_line(&mut out, START_TIMEOUT) {
        Answer::Line(line) if line == "started" => {}
        Answer::Line(line) => return KvmProbe::unusable(line.trim_start_matches("failed ")),
        Answer::Silence => {
            return KvmProbe::unusable("making a virtual machine took more than 5 s");
        }
        Answer::End => return KvmProbe::unusable("the probe ended without a word"),
    }
    match next_line(&mut out, LOOP_TIMEOUT) {
        Answer::Line(line) => judge(&line),
        Answer::Silence => KvmProbe::unusable(format!(
            "opens, but is far too slow ({LOOP_TURNS} turns of a loop took more than {} ms)",
            LOOP_TIMEOUT.as_millis()
        )),
        Answer::End => KvmProbe::unusable("the probe ended in the middle of its loop"),
    }
}

fn judge(line: &str) -> KvmProbe {
    let Some(micros) = line.strip_prefix("done ").and_then(|n| n.parse::<u64>().ok()) else {
        return KvmProbe::unusable(line.trim_start_matches("failed "));
    };
    let took = Duration::from_micros(micros);
    let measured = format!("{LOOP_TURNS} turns of a loop took {:.2} ms", took.as_secs_f64() * 1e3);
    if took <= LOOP_ACCEPTED {
        KvmProbe { usable: true, reason: format!("works ({measured})") }
    } else {
        KvmProbe::unusable(format!("opens, but is far too slow ({measured})"))
    }
}

/// What came from the child.
enum Answer {
    Line(String),
    Silence,
    End,
}

fn next_line(out: &mut BufReader<ChildStdout>, timeout: Duration) -> Answer {
    if out.buffer().is_empty() && !wait_readable(out.get_ref(), timeout).unwrap_or(false) {
        return Answer::Silence;
    }
    let mut line = String::new();
    match out.by_ref().take(4096).read_line(&mut line) {
        Ok(1..) => Answer::Line(line.trim_end().to_owned()),
        Ok(0) | Err(_) => Answer::End,
    }
}

fn reap(child: &mut Child) {
    if let Err(cause) = child.kill() {
        log::debug!("KVM probe: kill: {cause}");
    }
    let deadline = Instant::now() + REAP_TIMEOUT;
    while Instant::now() < deadline {
        match child.try_wait() {
            Ok(None) => std::thread::sleep(Duration::from_millis(2)),
            Ok(Some(_)) | Err(_) => return,
        }
    }
    log::warn!("the KVM probe (pid {}) hangs in the kernel and was left behind", child.id());
}

#[derive(Serialize, Deserialize)]
struct Cached {
    boot: String,
    probe: KvmProbe,
}

fn boot_id() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

fn cache_path() -> Option<PathBuf> {
    let directory = match std::env::var_os("XDG_RUNTIME_DIR").filter(|value| !value.is_empty()) {
        Some(directory) => PathBuf::from(directory),
        None if rustix::process::geteuid().is_root() => PathBuf::from("/run"),
        None => return None,
    };
    Some(directory.join("thinroot").join("kvm-probe.json"))
}

fn cached(path: &Path, boot: &str) -> Option<KvmProbe> {
    let known: Cached = serde_json::from_str(&fs::read_to_string(path).ok()?).ok()?;
    (known.boot == boot && !boot.is_empty()).then_some(known.probe)
}

fn remember(path: &Path, known: &Cached) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let staged = path.with_extension(format!("{}", std::process::id()));
    fs::write(&staged, serde_json::to_string(known)?)?;
    fs::rename(&staged, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> KvmProbe {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run_child(command)
    }

    #[test]
    fn only_a_loop_that_ends_in_time_makes_kvm_usable() {
        let rows = [
            (
                "fast",
                "echo started; echo done 51",
                true,
                "works (100000 turns of a loop took 0.05 ms)",
            ),
            ("too slow", "echo started; echo done 20001", false, "too slow"),
            ("never ends", "echo started; exec sleep 60", false, "more than 50 ms"),
            (
                "a KVM call fails",
                "echo failed KVM: KVM_CREATE_VM: no",
                false,
                "KVM: KVM_CREATE_VM: no",
            ),
            ("stops elsewhere", "echo started; echo failed KVM: stopped", false, "KVM: stopped"),
            ("dies at once", "exit 1", false, "without a word"),
            ("dies later", "echo started", false, "in the middle"),
        ];
        for (row, script, usable, reason) in rows {
            let found = sh(script);
            assert_eq!(found.usable, usable, "{row}: {found:?}");
            assert!(found.reason.contains(reason), "{row}: {found:?}");
        }
    }

    #[test]
    fn a_hanging_probe_is_killed_in_time() {
        let start = Instant::now();
        assert!(!sh("echo started; exec sleep 60").usable);
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn cache_counts_for_one_boot_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("thinroot/kvm-probe.json");
        let probe = KvmProbe { usable: true, reason: "works".to_owned() };
        remember(&path, &Cached { boot: "one".to_owned(), probe: probe.clone() }).unwrap();
        assert_eq!(cached(&path, "one"), Some(probe));
        assert_eq!(cached(&path, "two"), None);
        fs::write(&path, "no json").unwrap();
        assert_eq!(cached(&path, "one"), None);
    }
}
