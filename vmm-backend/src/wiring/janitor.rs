//! A process that cleans up behind the daemon, which cannot do it itself: confined, it sees
//! neither its socket nor its mountpoint any more.
//!
//! It is forked before the daemon gives up power, holds nothing but one end of a socket pair, and
//! waits for the other end to close, which it does however the daemon ends.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use thinroot::sys::fork::{close_others, fork};

use super::mount_table::MountRow;

/// How long users of a mount may take to leave it before it is detached from under them: a little
/// less than the door waits before it cuts them off.
const GRACE: Duration = Duration::from_millis(1500);

/// The daemon's end. When it is dropped, or its process ends, the work is done.
#[derive(Debug)]
pub struct Janitor {
    line: UnixStream,
}

impl Janitor {
    /// Will remove the socket at `path`, if it still is the one that is there now.
    ///
    /// For a process with one thread, as the other.
    pub fn remove_socket(path: &Path) -> io::Result<Self> {
        let before = identity(path)?;
        Self::start(|_| {
            // Another daemon may have replaced it.
            if identity(path).ok() == Some(before) {
                fs::remove_file(path)?;
            }
            Ok(())
        })
    }

    /// Will unmount what [`Janitor::take_over`] finds to be mounted on `mountpoint`.
    pub fn unmount(mountpoint: &Path) -> io::Result<Self> {
        let path = mountpoint.canonicalize()?;
        Self::start(|told| match str::from_utf8(told).ok().and_then(MountNumber::parse) {
            Some(mount) => detach(mount, &path),
            // The daemon ended before it mounted anything.
            None => Ok(()),
        })
    }

    fn start(work: impl FnOnce(&[u8]) -> io::Result<()>) -> io::Result<Self> {
        let (line, mut theirs) = UnixStream::pair()?;
        fork(|| {
            let mut told = Vec::new();
            let listened = close_others(theirs.as_fd());
            let listened = listened.and_then(|()| theirs.read_to_end(&mut told));
            // Standard error is closed here: there is nobody to tell of a failure.
            listened.and_then(|_| work(&told)).ok();
        })?;
        Ok(Self { line })
    }

    /// Names the mount that is on top at `path` now as the one to be unmounted.
    pub fn take_over(&self, path: &Path) -> io::Result<()> {
        let mount = top_mount(path)?.ok_or(Errno::NOENT)?;
        (&self.line).write_all(format!("{} {}", mount.number, mount.unique).as_bytes())
    }

    /// There is nothing to unmount any more. The kernel gives a mount's number to the next mount,
    /// which may be at the same place and not ours.
    pub fn dismiss(&self) {
        if let Err(error) = (&self.line).write_all(b" is gone") {
            // Told to work before, it finds out by itself.
            log::debug!("janitor: {error}");
        }
    }

    /// Has the work done now, while this process still lives.
    pub fn work_now(&self) {
        if let Err(error) = self.line.shutdown(Shutdown::Write) {
            log::warn!("janitor: {error}");
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    path.symlink_metadata().map(|found| (found.dev(), found.ino()))
}

/// The number of the mount on top at `path`, asked of the kernel's table and not of the file
/// system, which may be dead.
fn top_mount(path: &Path) -> io::Result<Option<MountNumber>> {
    let row = MountRow::on_top_at(path)?;
    Ok(row.map(|row| MountNumber { number: row.number, unique: unique_number(path) }))
}

/// Which mount is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct MountNumber {
    /// As mountinfo has it; the next mount may get it when this one is gone.
    number: u64,
    /// Never given again; 0 where the kernel has none.
    unique: u64,
}

impl MountNumber {
    fn parse(text: &str) -> Option<Self> {
        let (number, unique) = text.split_once(' ')?;
        Some(Self { number: number.parse().ok()?, unique: unique.parse().ok()? })
    }
}

/// The number that no other mount gets (statx(2): STATX_MNT_ID_UNIQUE, Linux 6.8). What is cached
/// is enough for it: a dead mount is not asked.
fn unique_number(path: &Path) -> u64 {
    const MNT_ID_UNIQUE: u32 = 0x4000;
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT | AtFlags::SYMLINK_NOFOLLOW;
    match statx(CWD, path, flags, StatxFlags::from_bits_retain(MNT_ID_UNIQUE)) {
        Ok(found) if found.stx_mask & MNT_ID_UNIQUE != 0 => found.stx_mnt_id,
        _ => 0,
    }
}

/// Unmounts `mount` if it is still on top at `path`: at once where nobody uses it, so that what
/// is cached arrives first, else when its users leave or their time is over.
fn detach(mount: MountNumber, path: &PathBuf) -> io::Result<()> {
    let begun = Instant::now();
    while top_mount(path)? == Some(mount) {
        let lazily = begun.elapsed() >= GRACE;
        let flags = if lazily { UnmountFlags::DETACH } else { UnmountFlags::empty() };
        match unmount(path, flags | UnmountFlags::NOFOLLOW) {
            Ok(()) => return Ok(()),
            Err(Errno::PERM) => by_helper(path, lazily)?,
            Err(Errno::BUSY) => {}
            Err(error) => return Err(error.into()),
        }
        sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn by_helper(path: &Path, lazily: bool) -> io::Result<()> {
    let mut command = Command::new("fusermount3");
    command.arg("-u").args(lazily.then_some("-z")).arg("--").arg(path);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().map(drop)
}
