//! Real guests: `thinroot run` boots Debian's kernels from a real base and is held to what its users
//! rely on, and every law is tried inside.
//!
//! Needs the ground that `cargo xtask test` makes (`THINROOT_GROUND`); without it each test says
//! aloud that it is skipped.

#![allow(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tests::laws::{all, lay_out};
use tests::tree::{differences, manifest};

/// Guests are emulated: two at once on a small machine run into each other's deadlines.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// No guest here may take longer.
const DEADLINE: Duration = Duration::from_secs(300);

struct Ground {
    directory: PathBuf,
    program: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

fn ground(test: &str) -> Option<Ground> {
    let (Some(directory), Some(program)) =
        (std::env::var_os("THINROOT_GROUND"), std::env::var_os("THINROOT_PROGRAM"))
    else {
        eprintln!("SKIPPED {test}: no base and no boot image; run cargo xtask test");
        return None;
    };
    let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    Some(Ground { directory: directory.into(), program: program.into(), _turn: turn })
}

impl Ground {
    fn base(&self) -> PathBuf {
        self.directory.join("base")
    }

    /// `thinroot run` of the base with these options, up to the command.
    fn run(&self, suite: &str, options: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("run").arg("--image").arg(self.directory.join("images").join(suite));
        command.args(["--memory", "512M"]).args(options);
        command.arg("--lower").arg(self.base());
        command
    }
}

/// What a command gave, within the deadline.
fn finish(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdin, mut stdout, mut stderr) =
        (child.stdin.take().unwrap(), child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let status = std::thread::scope(|scope| {
        scope.spawn(move || {
            // A guest that wants no more input closes its end.
            stdin.write_all(input).ok();
        });
        scope.spawn(|| stdout.read_to_end(&mut out).unwrap());
        scope.spawn(|| stderr.read_to_end(&mut err).unwrap());
        let begun = Instant::now();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            if begun.elapsed() > DEADLINE {
                child.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    Output { status, stdout: out, stderr: err }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn command_keeps_its_streams_and_its_status() {
    let Some(ground) = ground("command_keeps_its_streams_and_its_status") else { return };
    let before = manifest(&ground.base());
    let mut command = ground.run("bookworm", &[]);
    let done = finish(command.args(["--", "sh", "-c", "echo out; echo err >&2; exit 7"]), b"");
    assert_eq!(done.status.code(), Some(7), "{}", text(&done.stderr));
    assert_eq!(text(&done.stdout), "out\n");
    let errors = text(&done.stderr);
    assert!(errors.lines().any(|line| line == "err"), "{errors}");

    // Ten mebibytes in, ten out, and not a byte of another kind in them.
    let input: Vec<u8> = (0_u32..10 << 20).map(|at| (at ^ (at >> 11)).to_le_bytes()[0]).collect();
    let done = finish(ground.run("bookworm", &[]).args(["--", "cat"]), &input);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    assert!(done.stdout == input, "{} bytes came back of {}", done.stdout.len(), input.len());

    let changes = differences(&before, &manifest(&ground.base()));
    assert!(changes.is_empty(), "the base has changed: {changes:?}");
}

#[test]
fn command_gets_its_arguments_environment_and_directory() {
    let Some(ground) = ground("command_gets_its_arguments_environment_and_directory") else {
        return;
    };
    let mut command = ground.run("bookworm", &["--env", "GREETING=hello there", "--cwd", "/usr"]);
    let script =
        r#"pwd; echo "$GREETING"; printf '[%s]' "$@"; readlink /proc/self/fd/0 | cut -c1-4"#;
    command.args(["--", "sh", "-c", script, "sh", "a b", "c\nd", ""]);
    command.arg(std::ffi::OsStr::from_bytes(b"\xff"));
    let done = finish(&mut command, b"");
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    assert_eq!(done.stdout, b"/usr\nhello there\n[a b][c\nd][][\xff]pipe\n");
}

#[test]
fn every_end_of_a_command_has_its_status() {
    let Some(ground) = ground("every_end_of_a_command_has_its_status") else { return };
    let rows: [(&str, &[&str], &[&str], i32); 6] = [
        ("not found", &[], &["no-such-command"], 127),
        ("no program", &[], &["/etc/passwd"], 126),
        ("a signal", &[], &["sh", "-c", "kill -TERM $$"], 143),
        ("a timeout", &["--timeout", "15"], &["sleep", "1000"], 124),
        ("a panic", &[], &["sh", "-c", "echo c > /proc/sysrq-trigger; sleep 100"], 123),
        ("no VMM", &["--vmm", "/no/such/vmm"], &["true"], 125),
    ];
    for (row, options, arguments, status) in rows {
        let done = finish(ground.run("bookworm", options).arg("--").args(arguments), b"");
        assert_eq!(done.status.code(), Some(status), "{row}: {}", text(&done.stderr));
        assert_eq!(text(&done.stdout), "", "{row}");
    }
}

#[test]
fn guests_of_one_base_see_only_their_own_changes() {
    let Some(ground) = ground("guests_of_one_base_see_only_their_own_changes") else { return };
    let place = tempfile::tempdir().unwrap();
    let upper = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let (one, two) = (upper("one"), upper("two"));
    let changes = "echo edited > /etc/motd; rm /etc/issue; mv /etc/apt /etc/moved; \
                   chmod 0711 /srv; ln /etc/passwd /etc/passwd-too; mkdir /new; echo x > /new/file";
    let run = |upper: &str, script: &str| {
        let mut command = ground.run("bookworm", &["--upper", upper]);
        let done = finish(command.args(["--", "sh", "-c", script]), b"");
        assert_eq!(done.status.code(), Some(0), "{script}: {}", text(&done.stderr));
        text(&done.stdout)
    };
    run(&one, changes);
    let look = "cat /etc/motd; ls -d /etc/issue /etc/apt /etc/moved /new 2>/dev/null; \
                stat -c %a%h /srv /etc/passwd";
    let theirs = run(&two, look);
    assert!(!theirs.contains("edited") && !theirs.contains("/new"), "{theirs}");
    assert!(theirs.contains("/etc/issue\n") && theirs.contains("/etc/apt\n"), "{theirs}");
    // The same upper again: what was changed is there still.
    let ours = run(&one, look);
    assert_eq!(ours, "edited\n/etc/moved\n/new\n7112\n6442\n");
    let reset = Command::new(&ground.program).arg("reset").arg(&one).status().unwrap();
    assert!(reset.success());
    assert_eq!(run(&one, look), theirs);
}

/// Laws on the kernels of Debian 12, of Debian 13 and the newest: all are tried, none is broken.
#[test]
fn every_kernel_keeps_every_law() {
    let Some(ground) = ground("every_kernel_keeps_every_law") else { return };
    let top = tempfile::tempdir().unwrap();
    fs::set_permissions(top.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(top.path().join("plot")).unwrap();
    lay_out(&top.path().join("plot"), &all()).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_laws"), top.path().join("laws")).unwrap();
    for suite in ["bookworm", "trixie", "sid"] {
        let passed = try_laws(&ground, suite, top.path());
        assert!(passed > 80, "{suite}: only {passed} laws were tried");
    }
}

/// Tries all laws in a guest and gives how many held.
fn try_laws(ground: &Ground, suite: &str, top: &Path) -> usize {
    let mut command = ground.run(suite, &["--timeout", "280", "--lower", top.to_str().unwrap()]);
    let done = finish(command.args(["--", "/laws", "/plot"]), b"");
    let told = text(&done.stdout);
    let failed: Vec<_> = told.lines().filter(|line| !line.starts_with("pass")).collect();
    eprintln!("{suite}:\n{}", failed.join("\n"));
    assert_eq!(
        done.status.code(),
        Some(0),
        "{suite}:\n{}\n{}",
        failed.join("\n"),
        text(&done.stderr)
    );
    told.lines().filter(|line| line.starts_with("pass")).count()
}
