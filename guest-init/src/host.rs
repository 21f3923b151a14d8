//! How the guest talks to the daemon: control files in the union, reports on its root.
//!
//! The daemon answers only thread 1 of the guest (the FUSE header carries the thread's number),
//! so everything here is called from the main thread.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode as FileMode, OFlags, XattrFlags, openat};
use rustix::io::Errno;

use crate::command::{Mode, Plan};
use crate::failure::{Failure, OrFail};

/// More than the kernel takes as one command's arguments and environment (execve(2)).
const COMMAND_BYTES_MAX: u64 = 8 << 20;
/// A failure line longer than this says nothing more.
const REPORT_BYTES_MAX: usize = 1000;

/// What the daemon is told.
#[derive(Clone, Copy, Debug)]
pub enum Report<'a> {
    /// The union is the root and the guest's work begins.
    Ready(&'a str),
    /// The command ended with this status.
    Exit(u8),
    /// The guest gives up.
    Failure(&'a str),
}

/// The command's three streams on the host; each is a synthetic file of the daemon's.
#[derive(Debug)]
pub struct Streams {
    /// Gives no more bytes when the host's stdin is at its end.
    pub stdin: Option<File>,
    /// Takes stdout.
    pub stdout: File,
    /// Takes stderr.
    pub stderr: File,
}

/// Sends `report` through the root of the union, which is mounted at `root`.
pub fn report(root: &Path, report: Report<'_>) -> Result<(), rustix::io::Errno> {
    let (name, value) = match report {
        Report::Ready(text) => ("trusted.thinroot.ready", text.to_owned()),
        Report::Exit(status) => ("trusted.thinroot.exit", status.to_string()),
        Report::Failure(text) => ("trusted.thinroot.failure", text.to_owned()),
    };
    let value = value.as_bytes();
    let value = &value[..value.len().min(REPORT_BYTES_MAX)];
    rustix::fs::setxattr(root, name, value, XattrFlags::empty())
}

/// Reads the host's plan from the union at `root` and opens the streams a command needs.
///
/// Nothing else on the union may have been opened before: the daemon answers every other OPEN
/// with ENOSYS, after which the kernel sends none, and the streams live by theirs.
/// A daemon that has no control files wants the base's init booted.
pub fn plan(root: &Path) -> Result<(Plan, Option<Streams>), Failure> {
    // Names of control files are never remembered: one descriptor saves asking for each again.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let control = match openat(CWD, root.join(".thinroot"), flags, FileMode::empty()) {
        Err(Errno::NOENT) => return Ok((Plan::boot_default(), None)),
        control => control.or_fail(|| "open the host's control files".to_owned())?,
    };
    let control = control.as_fd();
    let file = match openat(control, "command", OFlags::RDONLY | OFlags::CLOEXEC, FileMode::empty())
    {
        Err(Errno::NOENT) => return Ok((Plan::boot_default(), None)),
        file => File::from(file.or_fail(|| "open the host's command".to_owned())?),
    };
    let mut blob = Vec::new();
    let read = file.take(COMMAND_BYTES_MAX).read_to_end(&mut blob);
    read.or_fail(|| "read the host's command".to_owned())?;
    let plan = Plan::parse(&blob)?;
    let streams = match &plan.mode {
        Mode::Boot(_) => None,
        Mode::Command(command) => Some(Streams::open(control, command.has_stdin)?),
    };
    Ok((plan, streams))
}

impl Streams {
    fn open(control: BorrowedFd<'_>, has_stdin: bool) -> Result<Streams, Failure> {
        let open = |name: &str, way: OFlags| {
            let opened = openat(control, name, way | OFlags::CLOEXEC, FileMode::empty());
            opened.map(File::from).or_fail(|| format!("open the host's {name}"))
        };
        let stdin = match has_stdin {
            true => Some(open("stdin", OFlags::RDONLY)?),
            false => None,
        };
        Ok(Streams {
            stdin,
            stdout: open("stdout", OFlags::WRONLY)?,
            stderr: open("stderr", OFlags::WRONLY)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn union_without_control_files_boots_its_own_init() {
        let (plan, streams) = plan(Path::new("/nonexistent")).unwrap();
        assert_eq!(plan, Plan::boot_default());
        assert!(streams.is_none());
    }
}
