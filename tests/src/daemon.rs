//! A real `thinroot serve` over directories of a test's own.
#![allow(clippy::expect_used, reason = "a test without its daemon cannot go on")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::guest::{GuestOptions, VirtualGuest};
use crate::requests::Mount;

/// How long a daemon may take to listen, or to end.
const DEADLINE: Duration = Duration::from_secs(30);

/// The `thinroot` of this build, brought up to date once per test process.
/// `THINROOT_BINARY` names another.
pub fn thinroot_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("THINROOT_BINARY") {
            return path.into();
        }
        // target/PROFILE/deps/TEST
        let test = std::env::current_exe().expect("a path of our own");
        let profile = test.ancestors().nth(2).expect("target/PROFILE").to_owned();
        let mut build = Command::new(env!("CARGO"));
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        build.args(["build", "--quiet", "--package", "thinroot", "--bin", "thinroot"]);
        if profile.ends_with("release") {
            build.arg("--release");
        }
        let built = build.stdin(Stdio::null()).status().expect("cargo");
        assert!(built.success(), "cargo build of thinroot: {built}");
        profile.join("thinroot")
    })
}

/// The directories of one guest: a lower to fill, an upper, and what lies between.
#[derive(Debug)]
pub struct Ground {
    directory: TempDir,
}

impl Default for Ground {
    fn default() -> Self {
        Self::new()
    }
}

impl Ground {
    /// Empty directories.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("temp dir");
        for name in ["lower", "upper"] {
            fs::create_dir(directory.path().join(name)).expect("mkdir");
        }
        Self { directory }
    }

    /// A path beside the lower and the upper.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The lower.
    pub fn lower(&self) -> PathBuf {
        self.path("lower")
    }

    /// The upper.
    pub fn upper(&self) -> PathBuf {
        self.path("upper")
    }

    /// Makes a file of the lower, and the directories above it.
    pub fn file(&self, path: &str, contents: impl AsRef<[u8]>) -> &Self {
        let path = self.lower().join(path);
        fs::create_dir_all(path.parent().expect("inside the lower")).expect("mkdir");
        fs::write(path, contents).expect("write");
        self
    }

    /// Makes a directory of the lower, and those above it.
    pub fn directory(&self, path: &str) -> &Self {
        fs::create_dir_all(self.lower().join(path)).expect("mkdir");
        self
    }

    /// Serves it.
    pub fn serve(&self) -> Daemon {
        self.serve_with(&[])
    }

    /// Serves it with further options.
    pub fn serve_with(&self, options: &[&str]) -> Daemon {
        self.serve_by(Command::new(thinroot_binary()), options)
    }

    /// Serves it by a command that wants the daemon's arguments.
    pub fn serve_by(&self, mut command: Command, options: &[&str]) -> Daemon {
        let socket = self.path("s");
        let log = self.path("log");
        let output = File::options().create(true).append(true).open(&log).expect("log");
        command.arg("serve").arg("--lower").arg(self.lower()).arg("--upper").arg(self.upper());
        command.arg("--index").arg(self.path("index")).arg("--socket").arg(&socket).args(options);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
        let child = command.spawn().expect("thinroot");
        let mut daemon = Daemon { child, socket, log };
        daemon.wait_for_socket();
        daemon
    }
}

/// A running daemon; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Daemon {
    fn wait_for_socket(&mut self) {
        let end = Instant::now() + DEADLINE;
        while !self.socket.exists() {
            if let Some(status) = self.child.try_wait().expect("wait") {
                panic!("thinroot serve: {status}\n{}", self.log());
            }
            assert!(Instant::now() < end, "no socket within {DEADLINE:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The CPU time it has spent, to a hundredth of a second.
    pub fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("proc");
        // proc(5): the name, in parentheses, may hold anything; utime and stime are 14 and 15.
        let fields = stat.rsplit(')').next().expect("fields").split_whitespace().skip(11);
        let ticks: u64 = fields.take(2).map(|field| field.parse::<u64>().expect("ticks")).sum();
        Duration::from_millis(ticks * 10)
    }

    /// What it and its forerunners on this ground logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Connects a guest.
    pub fn guest(&self, options: GuestOptions) -> VirtualGuest {
        VirtualGuest::connect(&self.socket, options)
    }

    /// Connects a guest and mounts.
    pub fn mount(&self) -> Mount {
        Mount::new(self.guest(GuestOptions::default()))
    }

    /// SIGTERM, and what came of it.
    pub fn terminate(mut self) -> ExitStatus {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, Signal::TERM).expect("kill");
        self.wait()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status;
            }
            assert!(Instant::now() < end, "still there after {DEADLINE:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// SIGKILL, as when the host runs out of memory.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // Already gone is as good.
        self.child.kill().ok();
        self.child.wait().ok();
        fs::remove_file(&self.socket).ok();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
    }
}
