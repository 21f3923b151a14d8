//! What is measured: our daemon, and virtiofsd on the kernel's overlayfs or on a plain copy.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;

use super::BenchError;
use super::client::Client;
use super::host::{Family, Pins};
use super::overlay::Overlay;

/// How long a daemon may take to listen, or to end.
const DEADLINE: Duration = Duration::from_secs(30);

/// Who serves the same tree.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// `thinroot serve` over the sealed lower.
    Thinroot,
    /// virtiofsd on a host overlayfs of the lower: what people run today.
    Overlayfs,
    /// virtiofsd on the lower itself, where nothing is changed: what a private copy would cost.
    Plain,
}

impl Kind {
    /// Its column in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Thinroot => "thinroot",
            Self::Overlayfs => "virtiofsd on overlayfs",
            Self::Plain => "virtiofsd, plain",
        }
    }
}

/// The programs that are compared.
#[derive(Clone, Debug, Args)]
pub struct Programs {
    /// A release build of ours.
    #[arg(long, value_name = "PROGRAM")]
    pub thinroot: PathBuf,
    /// The rival.
    #[arg(long, value_name = "PROGRAM")]
    pub virtiofsd: PathBuf,
}

/// A running daemon with a fresh upper; everything of it is gone when dropped.
#[derive(Debug)]
pub struct Subject {
    /// Who it is.
    pub kind: Kind,
    child: Child,
    family: Family,
    directory: PathBuf,
    overlay: Option<Overlay>,
    log: PathBuf,
}

/// What a subject is made of.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// The programs.
    pub programs: &'a Programs,
    /// The lower.
    pub lower: &'a Path,
    /// The sealed index of it.
    pub index: &'a Path,
    /// Where uppers may be made, on the lower's file system.
    pub scratch: &'a Path,
    /// Who runs where.
    pub pins: Pins,
    /// How long a client watches for a reply before it sleeps.
    pub client_watch: Duration,
}

impl Subject {
    /// Starts a daemon on its CPU with an empty upper; gives it with a mounted client and the
    /// time from its start to the answer to INIT.
    pub fn start(kind: Kind, site: Site<'_>) -> Result<(Self, Client, Duration), BenchError> {
        let directory = site.scratch.join("subject");
        fs::create_dir_all(&directory).map_err(BenchError::file(&directory))?;
        let overlay = match kind {
            Kind::Overlayfs => Some(Overlay::writable(&[site.lower.to_owned()], &directory)?),
            Kind::Thinroot | Kind::Plain => None,
        };
        let log = site.scratch.join("log");
        let output = File::create(&log).map_err(BenchError::file(&log))?;
        let socket = directory.join("s");
        let mut command = match kind {
            Kind::Thinroot => thinroot(site, &directory, &socket),
            Kind::Overlayfs | Kind::Plain => {
                virtiofsd(site, overlay.as_ref().map_or(site.lower, Overlay::root), &socket)
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
        Pins::move_to(site.pins.daemon);
        let start = Instant::now();
        let child = command.spawn();
        Pins::move_to(site.pins.client);
        let child = child.map_err(BenchError::file(Path::new(command.get_program())))?;
        let family = Family::of(child.id());
        let mut subject = Self { kind, child, family, directory, overlay, log };
        let stream = subject.connect(&socket)?;
        // The virtual guest panics where a daemon hangs up on it: one whose sandbox fails does.
        let mounted = catch_unwind(AssertUnwindSafe(|| Client::mount(stream, site.client_watch)));
        let mounted = mounted.map_err(|_| subject.failed("hangs up on its guest"))?;
        let client = mounted.map_err(|errno| subject.failed(&format!("INIT: {errno}")))?;
        Ok((subject, client, start.elapsed()))
    }

    fn connect(&mut self, socket: &Path) -> Result<UnixStream, BenchError> {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Ok(stream) = UnixStream::connect(socket) {
                return Ok(stream);
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(self.failed(&format!("ended early, {status}")));
            }
            if Instant::now() > end {
                return Err(self.failed(&format!("does not listen within {DEADLINE:?}")));
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    fn failed(&self, what: &str) -> BenchError {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        BenchError::Subject { kind: self.kind.name(), what: what.to_owned(), log }
    }

    /// What the host says of its processes.
    pub const fn family(&mut self) -> &mut Family {
        &mut self.family
    }

    /// Where its upper is on the host; the plain one has none.
    pub fn upper(&self) -> PathBuf {
        self.directory.join("upper")
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        // Whoever of its family is left goes with it; already gone is as good.
        if matches!(self.child.try_wait(), Ok(None)) {
            self.family.end();
        }
        self.child.wait().ok();
        drop(self.overlay.take());
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            eprintln!("bench: removing {}: {error}", self.directory.display());
        }
    }
}

fn thinroot(site: Site<'_>, directory: &Path, socket: &Path) -> Command {
    let mut command = Command::new(&site.programs.thinroot);
    command.arg("serve").arg("--lower").arg(site.lower).arg("--index").arg(site.index);
    command.arg("--upper").arg(directory.join("upper")).arg("--socket").arg(socket);
    command.args(["--log-level", "warn"]);
    command
}

/// The rival at its best: everything cached for ever, as we do.
fn virtiofsd(site: Site<'_>, shared: &Path, socket: &Path) -> Command {
    let mut command = Command::new(&site.programs.virtiofsd);
    command.arg("--shared-dir").arg(shared).arg("--socket-path").arg(socket);
    command.args(["--cache", "always", "--log-level", "error"]);
    command
}
