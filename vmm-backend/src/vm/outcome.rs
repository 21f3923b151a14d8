//! How a run ended, and what is said of it.

use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::config::{Accelerator, RunConfig};
use super::error::say;
use super::ground::Ground;
use super::traffic::Traffic;

/// Our own failures.
pub const STATUS_OURS: u8 = 125;
/// `--timeout` ran out.
pub const STATUS_TIMEOUT: u8 = 124;
/// The guest panicked, hung in its boot, or vanished without a report.
pub const STATUS_VANISHED: u8 = 123;
/// How many lines of a console are shown when something failed.
const TAIL_LINES: usize = 40;

/// How a run ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// The command ended with this status.
    Exited(u8),
    /// A guest without a command powered itself off, or rebooted, in order.
    Off,
    /// guest-init could not do its work and said why.
    Failed(String),
    /// The guest panicked or vanished; the text says what was seen.
    Vanished(String),
    /// Nothing at all came from the guest.
    Silent,
    /// The guest did not come to its command or init in time.
    NotReady,
    /// `--timeout` ran out.
    Timeout,
    /// A signal to us.
    Signal(i32),
    /// The daemon refused what was asked for, and said so itself.
    Refused,
    /// The daemon ended.
    Daemon(String),
    /// The VMM could not start.
    Vmm(String),
}

impl End {
    /// The exit status of `thinroot run`.
    pub fn status(&self) -> u8 {
        match self {
            Self::Exited(status) => *status,
            Self::Off => 0,
            Self::Failed(_) | Self::Refused | Self::Daemon(_) | Self::Vmm(_) => STATUS_OURS,
            Self::Vanished(_) | Self::Silent | Self::NotReady => STATUS_VANISHED,
            Self::Timeout => STATUS_TIMEOUT,
            Self::Signal(number) => u8::try_from(128 + number).unwrap_or(STATUS_OURS),
        }
    }

    /// One word for `--json`.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Exited(_) => "exited",
            Self::Off => "powered-off",
            Self::Failed(_) => "guest-init-failed",
            Self::Vanished(_) => "vanished",
            Self::Silent => "no-sign-of-life",
            Self::NotReady => "boot-timeout",
            Self::Timeout => "timeout",
            Self::Signal(_) => "signal",
            Self::Refused => "refused",
            Self::Daemon(_) => "daemon-failed",
            Self::Vmm(_) => "vmm-failed",
        }
    }

    /// The guest ended otherwise than it should, so that its upper may be worth a look.
    pub const fn is_crash(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::Vanished(_) | Self::Silent | Self::NotReady)
    }

    /// One line for the person, where there is something to say.
    fn line(&self) -> Option<String> {
        Some(match self {
            Self::Exited(_) | Self::Off | Self::Refused => return None,
            Self::Failed(message) => format!("the guest could not start: {message}"),
            Self::Vanished(what) => format!("the guest vanished without a report: {what}"),
            Self::Silent => "no sign of life from the guest".to_owned(),
            Self::NotReady => {
                "the guest did not come up in time (--boot-timeout SECONDS gives it more)"
                    .to_owned()
            }
            Self::Timeout => "--timeout ran out; the guest was stopped".to_owned(),
            Self::Signal(number) => format!("stopped by signal {number}"),
            Self::Daemon(what) => format!("the file system daemon failed: {what}"),
            Self::Vmm(what) => format!("the VMM failed: {what}"),
        })
    }

    /// Whether the console's last lines help to understand it.
    const fn wants_console(&self, is_ready: bool) -> bool {
        match self {
            Self::Vanished(_) | Self::Silent | Self::NotReady => true,
            Self::Failed(_) | Self::Timeout => !is_ready,
            _ => false,
        }
    }
}

/// When each stage was reached, from the start of the attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stages {
    /// The VMM was connected to the daemon.
    pub connected: Option<Duration>,
    /// The guest's root stood and its init or command started.
    pub ready: Option<Duration>,
    /// The command's status, or guest-init's failure, was known.
    pub reported: Option<Duration>,
    /// The VMM was gone.
    pub vmm_gone: Option<Duration>,
    /// Everything was over.
    pub total: Duration,
}

/// One attempt, told to its end.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// When.
    pub stages: Stages,
    /// Requests the daemon served.
    pub requests: Traffic,
    /// The last lines of the guest's console.
    pub console_tail: String,
    /// What the VMM said on its standard error.
    pub vmm_tail: String,
}

/// `--json`: one object.
#[derive(Serialize, Debug)]
struct Report<'a> {
    exit: u8,
    reason: &'a str,
    message: Option<String>,
    accelerator: &'a str,
    accelerator_reason: &'a str,
    kernel: String,
    stages_ms: StagesMs,
    requests: &'a Traffic,
}

#[derive(Serialize, Debug)]
struct StagesMs {
    connected: Option<u128>,
    ready: Option<u128>,
    reported: Option<u128>,
    vmm_gone: Option<u128>,
    total: u128,
}

impl Outcome {
    /// Says on standard error what went wrong, if anything did, and writes the `--json` report.
    pub fn report(&self, config: &RunConfig, ground: &Ground) {
        let is_ready = self.stages.ready.is_some();
        match self.end.line() {
            None => {}
            // What it runs on was said when it was ready.
            Some(line) if is_ready => say(&line),
            Some(line) => {
                say(&format!("{line} ({})", accelerator_line(ground.accelerator, ground)));
            }
        }
        // With an interactive console the person has seen it all.
        if self.end.wants_console(is_ready) && !config.command.is_empty() && !config.verbose {
            show("the console's last lines", &self.console_tail, config.console.as_deref());
        }
        if matches!(self.end, End::Vmm(_) | End::Vanished(_) | End::Silent) {
            show("the VMM said", &self.vmm_tail, None);
        }
        if config.verbose && !self.requests.is_empty() {
            say(&format!("requests of the guest:\n{}", self.requests));
        }
        if let Some(path) = &config.json
            && let Err(cause) = self.write_json(path, ground)
        {
            say(&format!("--json {}: {cause}", path.display()));
        }
    }

    fn write_json(&self, path: &Path, ground: &Ground) -> io::Result<()> {
        let text = serde_json::to_string(&self.json(ground))? + "\n";
        if path == Path::new("-") {
            io::stderr().lock().write_all(text.as_bytes())
        } else {
            std::fs::write(path, text)
        }
    }

    fn json<'a>(&'a self, ground: &'a Ground) -> Report<'a> {
        let ms = |stage: Option<Duration>| stage.map(|at| at.as_millis());
        Report {
            exit: self.end.status(),
            reason: self.end.reason(),
            message: self.end.line(),
            accelerator: ground.accelerator.name(),
            accelerator_reason: &ground.accelerator_reason,
            kernel: ground.boot.kernel_name(),
            stages_ms: StagesMs {
                connected: ms(self.stages.connected),
                ready: ms(self.stages.ready),
                reported: ms(self.stages.reported),
                vmm_gone: ms(self.stages.vmm_gone),
                total: self.stages.total.as_millis(),
            },
            requests: &self.requests,
        }
    }
}

/// The line that says what a guest runs on, printed when it is ready.
pub fn ready_line(ground: &Ground, took: Duration) -> String {
    format!(
        "{}, kernel {}, ready after {:.1} s",
        accelerator_line(ground.accelerator, ground),
        ground.boot.kernel_name(),
        took.as_secs_f64()
    )
}

fn accelerator_line(accelerator: Accelerator, ground: &Ground) -> String {
    format!("{}: {}", accelerator.name(), ground.accelerator_reason)
}

fn show(title: &str, text: &str, kept: Option<&Path>) {
    if text.is_empty() {
        return;
    }
    let kept = kept.map(|path| format!(" (all of it: {})", path.display())).unwrap_or_default();
    say(&format!("{title}{kept}:\n{text}"));
}

/// The last lines of the file at `path`, each indented and free of control bytes.
pub fn tail(path: &Path) -> String {
    let text = last_text(path);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let shown = lines.iter().skip(lines.len().saturating_sub(TAIL_LINES));
    shown.map(|line| format!("  | {}", clean(line))).collect::<Vec<_>>().join("\n")
}

/// A guest's text must not steer our terminal.
fn clean(line: &str) -> String {
    line.chars().filter(|c| !c.is_control() || *c == '\t').collect()
}

/// Whether the console tells of an orderly end: kernel/reboot.c prints one of these, at a level
/// that no `quiet` hides, before the machine goes.
pub fn ended_in_order(console: &Path) -> bool {
    let text = last_text(console);
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    says(&["reboot: Power down", "reboot: Restarting system", "reboot: System halted"])
        && panic(console).is_none()
}

/// What the kernel's panic said, if the console tells of one.
pub fn panic(console: &Path) -> Option<String> {
    let text = last_text(console);
    let (_, said) = text.split_once("Kernel panic - not syncing: ")?;
    said.lines().next().map(clean)
}

fn last_text(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let from = bytes.len().saturating_sub(64 << 10);
    String::from_utf8_lossy(bytes.get(from..).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::testbed::ground;
    use crate::vm::traffic::Requests;

    #[test]
    fn statuses_are_the_promised_ones() {
        let rows = [
            (End::Exited(7), 7, "exited"),
            (End::Exited(143), 143, "exited"),
            (End::Off, 0, "powered-off"),
            (End::Failed("no tag".into()), 125, "guest-init-failed"),
            (End::Refused, 125, "refused"),
            (End::Daemon("signal 9".into()), 125, "daemon-failed"),
            (End::Vmm("no".into()), 125, "vmm-failed"),
            (End::Timeout, 124, "timeout"),
            (End::Vanished("panic".into()), 123, "vanished"),
            (End::Silent, 123, "no-sign-of-life"),
            (End::NotReady, 123, "boot-timeout"),
            (End::Signal(15), 143, "signal"),
        ];
        for (end, status, reason) in rows {
            assert_eq!((end.status(), end.reason()), (status, reason), "{end:?}");
        }
    }

    #[test]
    fn console_decides_whether_a_guest_went_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        let rows = [
            ("[ 3.1] reboot: Power down\r\n", true),
            ("[ 3.1] reboot: Restarting system\r\n", true),
            (
                "[ 3.1] Kernel panic - not syncing: Attempted\r\nreboot: Restarting system\r\n",
                false,
            ),
            ("login: ", false),
            ("", false),
        ];
        for (text, expected) in rows {
            std::fs::write(&path, text).unwrap();
            assert_eq!(ended_in_order(&path), expected, "{text}");
        }
        assert!(!ended_in_order(Path::new("/no/such")));
        assert_eq!(panic(&path), None);
        std::fs::write(&path, "[ 3.1] Kernel panic - not syncing: Attempted to kill init!\r\n")
            .unwrap();
        assert_eq!(panic(&path).as_deref(), Some("Attempted to kill init!"));
    }

    #[test]
    fn tail_shows_the_end_and_steers_no_terminal() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        let text: String = (0..100).map(|n| format!("\x1b[31mline {n}\x07\r\n\r\n")).collect();
        std::fs::write(&path, text).unwrap();
        let tail = tail(&path);
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.ends_with("  | [31mline 99"), "{tail}");
        assert!(!tail.contains('\x1b'));
    }

    #[test]
    fn json_tells_exit_reason_stages_and_requests() {
        let lookups = Requests { count: 57, request_bytes: 2850, reply_bytes: 8208 };
        let outcome = Outcome {
            end: End::Exited(7),
            stages: Stages { ready: Some(Duration::from_millis(4100)), ..Stages::default() },
            requests: Traffic([("LOOKUP".to_owned(), lookups)].into()),
            console_tail: String::new(),
            vmm_tail: String::new(),
        };
        let text = serde_json::to_string(&outcome.json(&ground())).unwrap();
        for part in [
            r#""exit":7"#,
            r#""reason":"exited""#,
            r#""accelerator":"tcg""#,
            r#""kernel":"/image/vmlinuz""#,
            r#""ready":4100"#,
            r#""LOOKUP":{"count":57,"request_bytes":2850,"reply_bytes":8208}"#,
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
