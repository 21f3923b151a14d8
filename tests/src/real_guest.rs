//! Real guests: `thinroot run` on the base and the boot images that `cargo xtask` makes.
#![allow(clippy::expect_used, reason = "a test without its guest cannot go on")]

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use crate::mount::thinroot;
use crate::skip::skip;

/// A boot without KVM and a command, on a machine that runs other tests too.
const GUEST_SECONDS: &str = "240";

/// For what gets longer, and says so by `--timeout`, too.
const PATIENCE: Duration = Duration::from_secs(1560);

/// The base and the boot images.
#[derive(Clone, Debug)]
pub struct RealGround {
    directory: PathBuf,
}

impl RealGround {
    /// `THINROOT_GROUND`, or `.thinroot` of this workspace. Without one, or without QEMU or root,
    /// says aloud that `test` is skipped.
    pub fn find(test: &str) -> Option<Self> {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.thinroot");
        let directory = std::env::var_os("THINROOT_GROUND").map_or(workspace, PathBuf::from);
        let problem = if !directory.join("base").is_dir() || !directory.join("image").is_dir() {
            "there is no base and no boot image (cargo xtask setup makes them)"
        } else if !Path::new("/usr/bin/qemu-system-x86_64").exists() {
            "there is no QEMU (cargo xtask setup installs it)"
        } else if !rustix::process::geteuid().is_root() {
            "the base is root's"
        } else {
            return Some(Self { directory });
        };
        skip(test, problem);
        None
    }

    /// The base.
    pub fn base(&self) -> PathBuf {
        self.directory.join("base")
    }

    /// The boot image that is booted where no other is asked for.
    pub fn image(&self) -> PathBuf {
        self.directory.join("image")
    }

    /// The boot images of every kernel there is.
    pub fn images(&self) -> Vec<PathBuf> {
        let rows = std::fs::read_dir(self.directory.join("images")).expect("images");
        let mut images: Vec<_> = rows.map(|row| row.expect("row").path()).collect();
        images.retain(|path| path.join("image.txt").is_file());
        images.sort();
        images
    }

    /// `thinroot run` on the base; without KVM, which tests cannot count on.
    pub fn run(&self) -> Run {
        let mut command = Command::new(thinroot());
        command.arg("run").arg("--lower").arg(self.base());
        Self::run_by(command, &self.image())
    }

    /// What a `thinroot run` command says, and a boot image; without KVM too.
    pub fn run_by(mut command: Command, image: &Path) -> Run {
        command.args(["--accel", "tcg", "--memory", "512M"]);
        Run { command, image: Some(image.to_owned()) }
    }
}

/// A `thinroot run` in the making.
#[derive(Debug)]
pub struct Run {
    command: Command,
    /// What it boots; `None` where the options name a kernel.
    image: Option<PathBuf>,
}

impl Run {
    /// Adds options.
    #[must_use]
    pub fn options(mut self, options: &[impl AsRef<OsStr>]) -> Self {
        self.command.args(options);
        self
    }

    /// Boots another image.
    #[must_use]
    pub fn image(mut self, image: &Path) -> Self {
        self.image = Some(image.to_owned());
        self
    }

    /// Boots the kernel of an image without its modules, which the caller has among the lowers.
    #[must_use]
    pub fn kernel_of(mut self, image: &Path) -> Self {
        self.command.arg("--kernel").arg(image.join("vmlinux"));
        self.command.arg("--initramfs").arg(image.join("initramfs.cpio"));
        self.image = None;
        self
    }

    /// Starts it.
    pub fn start(mut self, guest_command: &[impl AsRef<OsStr>]) -> Running {
        if !self.command.get_args().any(|option| option == "--timeout") {
            self.command.args(["--timeout", GUEST_SECONDS]);
        }
        if let Some(image) = &self.image {
            self.command.arg("--image").arg(image);
        }
        self.command.arg("--").args(guest_command);
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().expect("thinroot run");
        let stdout = collect(child.stdout.take().expect("stdout"));
        let stderr = collect(child.stderr.take().expect("stderr"));
        Running { child, stdout, stderr }
    }

    /// Runs a command with these bytes as its standard input, to its end.
    pub fn to_end(self, guest_command: &[impl AsRef<OsStr>], input: &[u8]) -> Ended {
        let mut running = self.start(guest_command);
        let mut stdin = running.child.stdin.take().expect("stdin");
        let input = input.to_vec();
        // A guest that ends early does not read it all.
        let feeder = spawn(move || stdin.write_all(&input).ok());
        let ended = running.wait();
        feeder.join().expect("feeder");
        ended
    }
}

fn collect(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).expect("read");
        bytes
    })
}

/// A `thinroot run` that runs.
#[derive(Debug)]
pub struct Running {
    /// The process.
    pub child: Child,
    stdout: JoinHandle<Vec<u8>>,
    stderr: JoinHandle<Vec<u8>>,
}

/// A `thinroot run` that ended.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error, as text.
    pub stderr: String,
}

impl Running {
    /// Waits for its end.
    ///
    /// # Panics
    /// If it does not end.
    pub fn wait(mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                break status;
            }
            if Instant::now() >= deadline {
                self.child.kill().expect("kill");
                panic!("thinroot run did not end");
            }
            sleep(Duration::from_millis(20));
        };
        let stdout = self.stdout.join().expect("stdout");
        let stderr = self.stderr.join().expect("stderr");
        Ended { status, stdout, stderr: String::from_utf8_lossy(&stderr).into_owned() }
    }

    /// Waits until `path` is there.
    ///
    /// # Panics
    /// If it does not appear, or the guest ends before.
    pub fn wait_for(&mut self, path: &Path) {
        let deadline = Instant::now() + PATIENCE;
        while !path.exists() {
            let ended = self.child.try_wait().expect("wait");
            assert!(ended.is_none(), "{} did not appear: {ended:?}", path.display());
            assert!(Instant::now() < deadline, "{} did not appear", path.display());
            sleep(Duration::from_millis(20));
        }
    }
}

/// The processes, other than our own, whose command lines hold `word`: number and command line.
pub fn processes_with(word: &str) -> Vec<(i32, String)> {
    let mut found = Vec::new();
    for row in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = row.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let line = std::fs::read(row.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(word) && i64::from(pid) != i64::from(std::process::id()) {
            found.push((pid, line));
        }
    }
    found
}
