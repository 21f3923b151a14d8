//! A disk of its own for a test: a file system in an image, mounted, and gone when the test ends.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::UnmountFlags;
use tempfile::TempDir;

use crate::skip::skip;

/// Room on a disk. Its image holds no more than is written.
const DISK_BYTES: u64 = 1 << 30;

/// Room on one that is to be filled.
const SMALL_BYTES: u64 = 32 << 20;

/// The file system that `cargo xtask filesystems` has the tests run on, if it is not ext4.
pub fn kind() -> Option<String> {
    std::env::var("THINROOT_TEST_DISK").ok().filter(|kind| kind != "ext4")
}

/// Whether the room that a file takes changes with the file alone. tmpfs with huge pages splits them when memory
/// runs short, and gives back what lies behind a file's end: its other files' `st_blocks` fall by themselves.
pub fn keeps_room() -> bool {
    kind().is_none_or(|kind| kind != "tmpfs-huge")
}

/// Whether a private copy on the disk under test keeps the laws. One on xfs keeps not all: RENAME_WHITEOUT minds neither setgid
/// nor default ACLs there, and what is not empty is EEXIST. Its unions are compared with copies on ext4.
pub fn has_lawful_copies() -> bool {
    kind().is_none_or(|kind| kind != "xfs")
}

/// Has the disk give back the room it holds ready for writes to come, which `st_blocks` counts: xfs holds some
/// 128 KiB around a write to shared blocks, and some behind a file that grows, and gives it back after five minutes.
///
/// Errors: why it does not.
pub fn give_back_room() -> Result<(), String> {
    match (kind().as_deref(), std::env::var_os("THINROOT_TEST_DIR")) {
        (Some("xfs"), Some(directory)) => {
            // Of files with something unwritten it takes none away.
            run(Command::new("sync").arg("--file-system").arg(&directory))?;
            run(Command::new("xfs_spaceman").args(["-c", "prealloc -s"]).arg(&directory))
        }
        _ => Ok(()),
    }
}

/// Whether a plain directory's link count tells of its subdirectories. On btrfs it is always 1; a union counts.
pub fn counts_subdirectories() -> bool {
    kind().is_none_or(|kind| kind != "btrfs")
}

/// A mounted file system.
#[derive(Debug)]
pub struct Disk {
    directory: TempDir,
    image: PathBuf,
    is_mounted: bool,
}

impl Disk {
    /// A fresh file system of this kind (what `mkfs.KIND` makes). Where the machine has no loop
    /// devices it says so, and is a directory below /var/tmp.
    ///
    /// # Panics
    /// If there is no room for it.
    pub fn new(kind: &str) -> Self {
        Self::with(kind).unwrap_or_else(|problem| {
            let problem = format!("{problem}; a directory of /var/tmp instead");
            skip(&format!("a disk with {kind}"), &problem);
            let directory = directory(Path::new("/var/tmp"));
            Self { image: directory.path().join("image"), directory, is_mounted: false }
        })
    }

    /// What tests lay a union out on: a directory of `THINROOT_TEST_DIR`, or a fresh ext4.
    pub fn under_test() -> Self {
        std::env::var_os("THINROOT_TEST_DIR").map_or_else(
            || Self::new("ext4"),
            |base| {
                let directory = directory(Path::new(&base));
                Self { image: directory.path().join("image"), directory, is_mounted: false }
            },
        )
    }

    /// A fresh file system of this kind, in memory.
    ///
    /// Errors: what the machine lacks for it.
    ///
    /// # Panics
    /// If there is no room for it.
    pub fn with(kind: &str) -> Result<Self, String> {
        Self::of_size(kind, DISK_BYTES)
    }

    /// One that is soon full.
    ///
    /// Errors: what the machine lacks for it.
    ///
    /// # Panics
    /// If there is no room for it.
    pub fn small(kind: &str) -> Result<Self, String> {
        Self::of_size(kind, SMALL_BYTES)
    }

    /// Leaves room for `bytes` on the disk and no more, by a file that is `filler`.
    ///
    /// Errors: why it cannot be filled.
    pub fn fill(&self, bytes: u64) -> std::io::Result<()> {
        let filler = self.path().join("filler");
        let file = std::fs::File::create(&filler)?;
        let free = rustix::fs::statvfs(self.path())?;
        let mut step = free.f_bfree * free.f_frsize;
        let (mut size, block) = (0, free.f_frsize);
        while step >= block {
            let flags = rustix::fs::FallocateFlags::empty();
            match rustix::fs::fallocate(&file, flags, size, step) {
                Ok(()) => size += step,
                Err(rustix::io::Errno::NOSPC) => step /= 2,
                Err(error) => return Err(error.into()),
            }
        }
        file.set_len(size.saturating_sub(bytes))?;
        file.sync_all()
    }

    fn of_size(kind: &str, bytes: u64) -> Result<Self, String> {
        let shared = Path::new("/dev/shm");
        let home = if shared.is_dir() { shared } else { Path::new("/var/tmp") };
        Self::sized_inside(home, bytes, (kind, "loop"))
    }

    /// A fresh file system whose image is in a directory, mounted with options.
    ///
    /// Errors: what the machine lacks for it.
    ///
    /// # Panics
    /// If there is no room for it.
    pub fn inside(home: &Path, kind: &str, options: &str) -> Result<Self, String> {
        Self::sized_inside(home, DISK_BYTES, (kind, options))
    }

    /// One of `bytes`, of a kind and with options.
    ///
    /// Errors: what the machine lacks for it.
    ///
    /// # Panics
    /// If there is no room for it.
    pub fn sized_inside(
        home: &Path,
        bytes: u64,
        (kind, options): (&str, &str),
    ) -> Result<Self, String> {
        let directory = directory(home);
        let image = directory.path().join("image");
        let file = std::fs::File::create(&image).map_err(|error| error.to_string())?;
        file.set_len(bytes).map_err(|error| error.to_string())?;
        let quiet: &[&str] = if kind == "ext4" { &["-q", "-F"] } else { &["-q"] };
        run(Command::new(format!("mkfs.{kind}")).args(quiet).arg(&image))?;
        Self::mount(directory, image, kind, options)
    }

    /// Memory as a disk, mounted in a directory.
    ///
    /// Errors: why it cannot be.
    ///
    /// # Panics
    /// If there is no room for a directory.
    pub fn of_memory(home: &Path) -> Result<Self, String> {
        Self::mount(directory(home), "none".into(), "tmpfs", "mode=0755")
    }

    /// The file system that an image holds, as after a power loss.
    ///
    /// Errors: why it cannot be mounted.
    ///
    /// # Panics
    /// If there is no room for a directory to mount it on.
    pub fn of_image(image: &Path, kind: &str) -> Result<Self, String> {
        // It has the number of the disk it is a copy of, which xfs refuses while that is mounted.
        let options = if kind == "xfs" { "loop,nouuid" } else { "loop" };
        Self::mount(directory(&std::env::temp_dir()), image.to_owned(), kind, options)
    }

    fn mount(
        directory: TempDir,
        image: PathBuf,
        kind: &str,
        options: &str,
    ) -> Result<Self, String> {
        let mut disk = Self { directory, image, is_mounted: false };
        std::fs::create_dir(disk.point()).map_err(|error| error.to_string())?;
        let mut mount = Command::new("mount");
        mount.args(["-t", kind, "-o", options]).arg(&disk.image).arg(disk.point());
        run(&mut mount)?;
        disk.is_mounted = true;
        Ok(disk)
    }

    /// The root of the file system.
    pub fn path(&self) -> PathBuf {
        if self.is_mounted { self.point() } else { self.directory.path().to_owned() }
    }

    fn point(&self) -> PathBuf {
        self.directory.path().join("disk")
    }

    /// What it lies in.
    pub fn image(&self) -> &Path {
        &self.image
    }
}

fn directory(base: &Path) -> TempDir {
    let directory = tempfile::Builder::new().prefix("thinroot-disk-").tempdir_in(base);
    directory.unwrap_or_else(|error| panic!("a directory in {}: {error}", base.display()))
}

fn run(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim_end()))
}

impl Drop for Disk {
    fn drop(&mut self) {
        if !self.is_mounted {
            return;
        }
        if let Err(error) = rustix::mount::unmount(self.point(), UnmountFlags::DETACH) {
            eprintln!("unmounting {}: {error}", self.point().display());
        }
    }
}
