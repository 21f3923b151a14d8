//! One VM: starts QEMU, reads what its guest tells, and measures it from outside.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use images::Image;
use thinroot::sys::process::die_with_parent;

use super::super::BenchError;
use super::super::ending::Ending;
use super::super::host::Family;
use super::rival::{Requests, Side};

/// No workload takes longer, however little of a busy machine its guest gets.
const PATIENCE: Duration = Duration::from_secs(1800);
/// No workload takes so much CPU time, without KVM, either: a guest that does turns in circles.
const CPU_MAX: Duration = Duration::from_secs(300);
/// How often we look whether we are to end.
const GLANCE: Duration = Duration::from_millis(200);
/// How much of a console is shown where a guest failed.
const TAIL_LINES: usize = 15;

/// What every guest gets.
#[derive(Clone, Copy, Debug)]
pub struct Machine<'a> {
    /// The kernel.
    pub image: &'a Image,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Processors.
    pub cpus: u32,
    /// Whether we are to end.
    pub ending: Ending,
}

/// What one phase of a workload took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timing {
    /// Seconds by the guest's clock, from the command's start to its end.
    pub guest: f64,
    /// Seconds by the host's clock, from the VMM's start to the command's end.
    pub since_start: f64,
    /// CPU seconds of VMM and daemon in the command, or, where the clock starts with the VMM,
    /// since then.
    pub vmm_cpu: f64,
    /// The daemon's part of it.
    pub daemon_cpu: f64,
    /// What the command printed.
    pub value: String,
}

/// What one VM gave.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// By phase.
    pub timings: BTreeMap<String, Timing>,
    /// Memory of VMM and daemon at the end, in KiB, shared pages in equal parts.
    pub pss_kib: u64,
    /// What the VM's changes take of the disk, in KiB.
    pub disk_kib: u64,
    /// FUSE requests, where the daemon counts them.
    pub requests: Requests,
}

/// A QEMU without KVM, killed when dropped.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    start: Instant,
    lines: Receiver<(Instant, String)>,
    tail: Vec<String>,
    stderr: PathBuf,
    ending: Ending,
}

/// What a line of the guest's says to us.
#[derive(Debug, PartialEq)]
enum Mark {
    Begin { phase: String, uptime: f64 },
    End { phase: String, uptime: f64, status: i32, value: String },
    Done,
}

impl Guest {
    /// Starts a VM whose initramfs and kernel words are given.
    pub fn start(
        machine: Machine<'_>,
        initramfs: &Path,
        words: &str,
        device: &[OsString],
    ) -> Result<Self, BenchError> {
        let stderr = initramfs.with_extension("qemu");
        let output = File::create(&stderr).map_err(BenchError::file(&stderr))?;
        let mut command = command(machine, initramfs, words);
        command.args(device).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(output);
        let start = Instant::now();
        let mut child =
            die_with_parent(&mut command).spawn().map_err(BenchError::file(Path::new("qemu")))?;
        let (sender, lines) = channel();
        if let Some(console) = child.stdout.take() {
            std::thread::spawn(move || {
                let mut console = BufReader::new(console);
                let mut line = Vec::new();
                while console.by_ref().read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
                    let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                    if sender.send((Instant::now(), text)).is_err() {
                        return; // Nobody listens any more.
                    }
                    line.clear();
                }
            });
        }
        Ok(Self { child, start, lines, tail: Vec::new(), stderr, ending: machine.ending })
    }

    /// Reads on until the guest is done with everything, and measures.
    pub fn finish(&mut self, side: &Side, from_start: bool) -> Result<Sample, BenchError> {
        let mut vmm = Family::of(self.child.id());
        let mut daemon = side.family();
        let mut cpu = || {
            let daemon = daemon.as_mut().map_or(Duration::ZERO, Family::cpu);
            (vmm.cpu().as_secs_f64(), daemon.as_secs_f64())
        };
        let mut sample = Sample::default();
        let (mut began, mut before) = (0.0, (0.0, 0.0));
        loop {
            let (at, mark) = self.next_mark()?;
            match mark {
                Mark::Begin { uptime, .. } => {
                    began = uptime;
                    before = if from_start { (0.0, 0.0) } else { cpu() };
                }
                Mark::End { phase, uptime, status: 0, value } => {
                    let after = cpu();
                    let timing = Timing {
                        guest: uptime - began,
                        since_start: (at - self.start).as_secs_f64(),
                        vmm_cpu: after.0 - before.0,
                        daemon_cpu: after.1 - before.1,
                        value,
                    };
                    sample.timings.insert(phase, timing);
                }
                Mark::End { phase, status, value, .. } => {
                    let what = format!("{phase} ended with status {status}: {value}");
                    return Err(self.failed(&what));
                }
                Mark::Done => break,
            }
        }
        sample.pss_kib = vmm.pss_kib() + daemon.as_ref().map_or(0, Family::pss_kib);
        sample.disk_kib = side.disk_kib();
        Ok(sample)
    }

    fn next_mark(&mut self) -> Result<(Instant, Mark), BenchError> {
        loop {
            self.ending.check()?;
            match self.lines.recv_timeout(GLANCE) {
                Ok((at, line)) => {
                    if let Some(mark) = parse(&line) {
                        return Ok((at, mark));
                    }
                    self.tail.push(line);
                }
                Err(RecvTimeoutError::Timeout) => self.may_go_on()?,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.failed("the VM ended early"));
                }
            }
        }
    }

    /// Errors: it had all the time that any workload needs. How much of that it could use is
    /// said: translated guests at the bottom of a busy machine get less than their clock takes.
    fn may_go_on(&self) -> Result<(), BenchError> {
        let (wall, cpu) = (self.start.elapsed(), Family::of(self.child.id()).cpu());
        if wall < PATIENCE && cpu < CPU_MAX {
            return Ok(());
        }
        let what = format!("not done after {wall:.0?}, in which it got {cpu:.1?} of CPU time");
        Err(self.failed(&what))
    }

    fn failed(&self, what: &str) -> BenchError {
        let tail = self.tail.get(self.tail.len().saturating_sub(TAIL_LINES)..).unwrap_or_default();
        let stderr = fs::read_to_string(&self.stderr).unwrap_or_default();
        let log = format!("{}\n{stderr}", tail.join("\n"));
        BenchError::Subject { kind: "guest", what: what.to_owned(), log }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The machine that `thinroot run` gives its guests (`vm/qemu.rs`), with any root device.
fn command(machine: Machine<'_>, initramfs: &Path, words: &str) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    command.args(["-machine", "q35,memory-backend=mem,sata=off,smbus=off,vmport=off"]);
    command.args(["-accel", "tcg", "-cpu", "qemu64,-cx16", "-net", "none"]);
    let size = machine.memory_mib;
    command.args(["-smp", &machine.cpus.to_string(), "-m", &format!("{size}M")]);
    command.args(["-object", &format!("memory-backend-memfd,id=mem,size={size}M,share=on")]);
    let qboot = Path::new("/usr/share/qemu/qboot.rom");
    match machine.image.vmlinux().filter(|_| qboot.exists()) {
        Some(vmlinux) => command.arg("-bios").arg(qboot).arg("-kernel").arg(vmlinux),
        None => command.arg("-kernel").arg(machine.image.kernel()),
    };
    command.arg("-initrd").arg(initramfs);
    let fixed = "console=ttyS0 panic=-1 no_timer_check loglevel=3";
    command.args(["-append", &format!("{fixed} {words}")]);
    command.args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]);
    command
}

/// A line of the prelude's; nothing for any other.
fn parse(line: &str) -> Option<Mark> {
    let (_, rest) = line.split_once("@@ ")?;
    let mut words = rest.splitn(5, ' ');
    match words.next()? {
        "done" => Some(Mark::Done),
        "begin" => {
            let (phase, uptime) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
            Some(Mark::Begin { phase, uptime })
        }
        "end" => {
            let (phase, uptime) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
            let status = words.next()?.parse().ok()?;
            let value = words.next().unwrap_or_default().trim().to_owned();
            Some(Mark::End { phase, uptime, status, value })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_told_from_what_else_a_console_shows() {
        let phase = || "find-cold".to_owned();
        let end = |status, value: &str| {
            Some(Mark::End { phase: phase(), uptime: 12.5, status, value: value.to_owned() })
        };
        let rows = [
            ("[ OK ] @@ begin find-cold 3.25", Some(Mark::Begin { phase: phase(), uptime: 3.25 })),
            ("@@ end find-cold 12.5 0 1234", end(0, "1234")),
            ("@@ end find-cold 12.5 1 ", end(1, "")),
            ("@@ end find-cold 12.5 0 two words", end(0, "two words")),
            ("@@ done", Some(Mark::Done)),
            ("@@ begin find-cold", None),
            ("login: ", None),
        ];
        for (line, mark) in rows {
            assert_eq!(parse(line), mark, "{line}");
        }
    }
}
