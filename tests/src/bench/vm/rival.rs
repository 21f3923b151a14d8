//! Who gives a guest its root, and how: the host's side of one VM.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use thinroot::sys::process::die_with_parent;

use super::super::BenchError;
use super::super::host::Family;
use super::super::overlay::Overlay;
use super::super::subject::Programs;
use super::ground::{Root, run};

/// How long a daemon may take to listen, or to end.
const DEADLINE: Duration = Duration::from_secs(60);

/// Who gives the root.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum)]
pub enum Rival {
    /// `thinroot serve` over the sealed lowers.
    Thinroot,
    /// virtiofsd on a host overlayfs of the lowers: what people run today.
    Virtiofsd,
    /// QEMU's own 9p server on such an overlayfs.
    #[value(name = "9p")]
    NineP,
    /// A qcow2 overlay on one ext4 image of the lowers.
    Qcow2,
    /// One EROFS image of the lowers, and in the guest an overlayfs of it and a tmpfs.
    Erofs,
}

/// All, in the order of a round.
pub const RIVALS: [Rival; 5] =
    [Rival::Thinroot, Rival::Virtiofsd, Rival::NineP, Rival::Qcow2, Rival::Erofs];

impl Rival {
    /// On the command line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Thinroot => "thinroot",
            Self::Virtiofsd => "virtiofsd",
            Self::NineP => "9p",
            Self::Qcow2 => "qcow2",
            Self::Erofs => "erofs",
        }
    }

    /// In tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Thinroot => "thinroot",
            Self::Virtiofsd => "virtiofsd on overlayfs",
            Self::NineP => "9p on overlayfs",
            Self::Qcow2 => "qcow2 on ext4",
            Self::Erofs => "EROFS, overlayfs in the guest",
        }
    }

    /// What the guest's init mounts.
    pub const fn root(self) -> &'static str {
        match self {
            Self::Thinroot | Self::Virtiofsd => "virtiofs",
            Self::NineP => "9p",
            Self::Qcow2 => "ext4",
            Self::Erofs => "erofs",
        }
    }

    /// The modules for that.
    pub const fn modules(self) -> &'static [&'static str] {
        match self {
            Self::Thinroot | Self::Virtiofsd => &["virtio_pci", "virtiofs"],
            Self::NineP => &["virtio_pci", "9pnet_virtio", "9p"],
            Self::Qcow2 => &["virtio_pci", "virtio_blk", "ext4"],
            Self::Erofs => &["virtio_pci", "virtio_blk", "erofs", "overlay"],
        }
    }

    /// Starts the host's side in an empty directory.
    pub fn start(
        self,
        root: &Root,
        programs: &Programs,
        directory: &Path,
    ) -> Result<Side, BenchError> {
        match self {
            Self::Thinroot => {
                let mut command = Command::new(&programs.thinroot);
                command.args(["serve", "--once", "--events"]).arg(directory.join("events"));
                for lower in &root.lowers {
                    command.arg("--lower").arg(lower);
                }
                command.arg("--index").arg(&root.index);
                command.arg("--upper").arg(directory.join("upper"));
                let written = vec![directory.join("upper"), directory.join(".upper.work")];
                Side::daemon(command.arg("--socket"), directory, written)
            }
            Self::Virtiofsd => {
                let overlay = Overlay::writable(&root.lowers, directory)?;
                let mut command = Command::new(&programs.virtiofsd);
                command.args(["--cache", "always", "--writeback", "--log-level", "error"]);
                command.arg("--shared-dir").arg(overlay.root());
                let written = vec![directory.join("upper"), directory.join("work")];
                let side = Side::daemon(command.arg("--socket-path"), directory, written)?;
                Ok(Side { _overlay: Some(overlay), ..side })
            }
            Self::NineP => {
                let overlay = Overlay::writable(&root.lowers, directory)?;
                let shared = overlay.root().display();
                let fsdev = format!(
                    "local,id=root,path={shared},security_model=passthrough,multidevs=remap"
                );
                let device =
                    ["-fsdev", &fsdev, "-device", "virtio-9p-pci,fsdev=root,mount_tag=root"];
                let device = device.map(OsString::from).to_vec();
                let written = vec![directory.join("upper"), directory.join("work")];
                Ok(Side { device, daemon: None, _overlay: Some(overlay), written })
            }
            Self::Qcow2 => {
                let disk = directory.join("disk.qcow2");
                let mut make = Command::new("qemu-img");
                make.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]);
                run(make.arg(&root.ext4).arg(&disk))?;
                Ok(Side::block("qcow2", &disk, "", vec![disk.clone()]))
            }
            Self::Erofs => Ok(Side::block("raw", &root.erofs, ",read-only=on", Vec::new())),
        }
    }
}

/// The host's side of one VM; its mount is gone when dropped.
#[derive(Debug)]
pub struct Side {
    /// QEMU's words for the device.
    pub device: Vec<OsString>,
    daemon: Option<Daemon>,
    _overlay: Option<Overlay>,
    /// Files and directories that belong to this VM alone.
    written: Vec<PathBuf>,
}

/// A daemon and what it says.
#[derive(Debug)]
struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Side {
    fn block(format: &str, path: &Path, more: &str, written: Vec<PathBuf>) -> Self {
        let path = path.display();
        let drive = format!("file={path},format={format},if=none,id=root{more}");
        let device = ["-drive", &drive, "-device", "virtio-blk-pci,drive=root"];
        let device = device.map(OsString::from).to_vec();
        Self { device, daemon: None, _overlay: None, written }
    }

    /// `command` lacks its socket alone.
    fn daemon(
        command: &mut Command,
        directory: &Path,
        written: Vec<PathBuf>,
    ) -> Result<Self, BenchError> {
        let (socket, log) = (directory.join("s"), directory.join("log"));
        let output = File::create(&log).map_err(BenchError::file(&log))?;
        command.arg(&socket).stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
        let program = command.get_program().to_owned();
        let child =
            die_with_parent(command).spawn().map_err(BenchError::file(Path::new(&program)))?;
        let mut daemon = Daemon { child, log };
        daemon.wait_for(&socket)?;
        let chardev = format!("socket,id=fs,path={}", socket.display());
        let device = "vhost-user-fs-pci,chardev=fs,tag=root,queue-size=1024";
        let device = ["-chardev", &chardev, "-device", device].map(OsString::from).to_vec();
        Ok(Self { device, daemon: Some(daemon), _overlay: None, written })
    }

    /// What the host says of the daemon's processes.
    pub fn family(&self) -> Option<Family> {
        self.daemon.as_ref().map(|daemon| Family::of(daemon.child.id()))
    }

    /// What this VM alone takes of the disk, in KiB.
    pub fn disk_kib(&self) -> u64 {
        self.written.iter().map(|path| allocated_kib(path)).sum()
    }

    /// Ends the daemon after its VM and gives the FUSE requests it served, if it says.
    pub fn end(mut self) -> Requests {
        let Some(daemon) = self.daemon.take() else { return Requests::new() };
        let events = daemon.log.with_file_name("events");
        daemon.end();
        let text = fs::read_to_string(events).unwrap_or_default();
        text.lines().find_map(requests).unwrap_or_default()
    }
}

/// By operation (`LOOKUP`): how many, and the bytes of requests and replies.
pub type Requests = BTreeMap<String, (u64, u64)>;

/// What our daemon says when its VM is gone.
fn requests(event: &str) -> Option<Requests> {
    let event: serde_json::Value = serde_json::from_str(event).ok()?;
    let kinds = event.get("requests")?.as_object()?;
    let row = |kind: &serde_json::Value| {
        let field = |name: &str| kind.get(name).and_then(serde_json::Value::as_u64);
        let bytes = field("request_bytes").unwrap_or(0) + field("reply_bytes").unwrap_or(0);
        Some((field("count")?, bytes))
    };
    Some(kinds.iter().filter_map(|(name, kind)| Some((name.clone(), row(kind)?))).collect())
}

impl Daemon {
    fn wait_for(&mut self, socket: &Path) -> Result<(), BenchError> {
        let end = Instant::now() + DEADLINE;
        while !socket.exists() {
            let what = match self.child.try_wait() {
                Ok(Some(status)) => format!("ended early, {status}"),
                _ if Instant::now() > end => format!("does not listen within {DEADLINE:?}"),
                _ => {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
            };
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            return Err(BenchError::Subject { kind: "daemon", what, log });
        }
        // Bound is not listening yet.
        std::thread::sleep(Duration::from_millis(20));
        Ok(())
    }

    /// It ends when its VMM is gone; what does not is ended by [`Drop`].
    fn end(mut self) {
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            Family::of(self.child.id()).end();
        }
        self.child.wait().ok();
    }
}

/// Of a file, or of everything in a directory.
fn allocated_kib(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
    let inner = if metadata.is_dir() { fs::read_dir(path).ok() } else { None };
    let inner = inner.into_iter().flatten().flatten().map(|row| allocated_kib(&row.path()));
    // stat(2): blocks of 512 bytes.
    metadata.blocks() / 2 + inner.sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_by_kind() {
        let event = r#"{"event":"disconnected","requests":{
            "LOOKUP":{"count":3,"request_bytes":150,"reply_bytes":400},"READ":{"count":4}}}"#;
        let kinds = [("LOOKUP".to_owned(), (3, 550)), ("READ".to_owned(), (4, 0))];
        assert_eq!(requests(event), Some(kinds.into()));
        assert_eq!(requests(r#"{"event":"connected"}"#), None);
    }
}
