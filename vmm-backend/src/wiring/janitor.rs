//! A process that cleans up behind the daemon, which cannot do it itself: confined, it sees
//! neither its socket nor its mountpoint any more.
//!
//! It is forked before the daemon gives up power, holds nothing but one end of a socket pair, and
//! waits for the other end to close, which it does however the daemon ends.

use std::io::{self, Read as _};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{UnmountFlags, unmount};
use thinroot::sys::fork::{close_others, fork};

/// What is cleaned up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Task {
    /// Remove this socket, if it still is the one that was bound.
    RemoveSocket(PathBuf),
    /// Unmount the file system that was mounted here.
    #[allow(dead_code, reason = "its command is not wired yet")]
    Unmount(PathBuf),
}

/// The daemon's end. When it is dropped, or its process ends, the work is done.
#[derive(Debug)]
pub struct Janitor {
    line: UnixStream,
}

impl Janitor {
    /// Starts the process. For a process with one thread.
    pub fn start(task: &Task) -> io::Result<Self> {
        let (line, theirs) = UnixStream::pair()?;
        let identity = match task {
            Task::RemoveSocket(path) => Some(identity(path)?),
            Task::Unmount(_) => None,
        };
        fork(|| {
            if close_others(theirs.as_fd()).is_ok() {
                wait(theirs);
                clean(task, identity);
            }
        })?;
        Ok(Self { line })
    }

    /// Has the work done now, while this process still lives.
    #[allow(dead_code, reason = "its command is not wired yet")]
    pub fn work_now(&self) {
        if let Err(error) = self.line.shutdown(Shutdown::Write) {
            log::warn!("janitor: {error}");
        }
    }
}

/// Returns when the daemon closes its end.
fn wait(mut line: UnixStream) {
    let mut byte = [0];
    while !matches!(line.read(&mut byte), Ok(0) | Err(_)) {}
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    path.symlink_metadata().map(|found| (found.dev(), found.ino()))
}

fn clean(task: &Task, before: Option<(u64, u64)>) {
    let done = match task {
        // Another daemon may have replaced it.
        Task::RemoveSocket(path) if identity(path).ok() == before => std::fs::remove_file(path),
        Task::RemoveSocket(_) => Ok(()),
        Task::Unmount(path) => detach(path),
    };
    if let Err(error) = done {
        // Standard error is closed here: there is nobody to tell.
        log::debug!("janitor: {error}");
    }
}

/// Unmounts; what still uses the mount keeps it until it is done.
fn detach(path: &Path) -> io::Result<()> {
    match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Err(rustix::io::Errno::PERM) => {
            Command::new("fusermount3").args(["-u", "-z", "--"]).arg(path).status().map(drop)
        }
        done => Ok(done?),
    }
}
