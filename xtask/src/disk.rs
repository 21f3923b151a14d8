//! A file system of a lane's own, in an image or in memory, gone when it is dropped.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};

use crate::steps::{Step, file_error, note, run};

/// Sparse: it takes what is written.
const IMAGE_BYTES: u64 = 4 << 30;
/// How long others may hold a mount that is to go.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a file system is made and mounted by.
#[derive(Debug)]
pub struct Kind {
    /// What it is called on the command line.
    pub name: &'static str,
    /// The program that makes it in an image, with its options; none for one in memory.
    pub mkfs: &'static [&'static str],
    /// Its Debian package.
    pub package: &'static str,
    /// mount(8)'s options.
    pub mount: &'static [&'static str],
}

/// Debian's own, and what the suites compare with.
pub const EXT4: Kind = Kind {
    name: "ext4",
    mkfs: &["mkfs.ext4", "-q", "-F"],
    package: "e2fsprogs",
    mount: &["-o", "loop"],
};

/// A mounted file system.
#[derive(Debug)]
pub struct Disk {
    directory: PathBuf,
}

impl Disk {
    /// Makes and mounts one below `directory`, which is the disk's own.
    pub fn make(directory: &Path, kind: &Kind) -> Step<Self> {
        fs::create_dir_all(directory).map_err(file_error(directory))?;
        let disk = Self { directory: directory.to_owned() };
        let point = disk.path();
        fs::create_dir_all(&point).map_err(file_error(&point))?;
        let mut mount = Command::new("mount");
        mount.args(kind.mount);
        if let [program, options @ ..] = kind.mkfs {
            let image = directory.join("image");
            let made = File::create(&image).and_then(|file| file.set_len(IMAGE_BYTES));
            made.map_err(file_error(&image))?;
            run(Command::new(program).args(options).arg(&image))?;
            mount.arg(&image);
        } else {
            mount.arg("thinroot-lane");
        }
        run(mount.arg(&point))?;
        Ok(disk)
    }

    /// Its root.
    pub fn path(&self) -> PathBuf {
        self.directory.join("disk")
    }

    /// On the file system that holds the image.
    pub fn outside(&self) -> &Path {
        &self.directory
    }

    fn clear(&self) -> Step {
        match leave(&self.path()) {
            // Making it failed before it was mounted.
            Err(_) if !is_mounted(&self.path()) => {}
            left => left?,
        }
        fs::remove_dir_all(&self.directory).map_err(file_error(&self.directory))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(cause) = self.clear() {
            note(&format!("{} stays behind: {cause}", self.directory.display()));
        }
    }
}

fn is_mounted(point: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().any(|row| row.split(' ').nth(4) == point.to_str())
}

/// Unmounts, waiting for who closes a descriptor just now.
pub fn leave(point: &Path) -> Step {
    let start = Instant::now();
    loop {
        match unmount(point, UnmountFlags::NOFOLLOW) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::BUSY) if start.elapsed() < PATIENCE => {
                sleep(Duration::from_millis(50));
            }
            Err(error) => return Err(file_error(point)(error.into())),
        }
    }
}
