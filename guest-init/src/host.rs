//! How the guest talks to the daemon: control files in the union, reports on its root.
//!
//! The daemon answers only thread 1 of the guest (the FUSE header carries the thread's number),
//! so everything here is called from the main thread.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::XattrFlags;

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
    let control = root.join(".thinroot");
    let command = control.join("command");
    let mut blob = Vec::new();
    match File::open(&command) {
        Ok(file) => {
            let read = file.take(COMMAND_BYTES_MAX).read_to_end(&mut blob);
            read.or_fail(|| "read the host's command".to_owned())?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok((Plan::boot_default(), None));
        }
        Err(error) => return Err(error).or_fail(|| "open the host's command".to_owned()),
    }
    let plan = Plan::parse(&blob)?;
    let streams = match &plan.mode {
        Mode::Boot(_) => None,
        Mode::Command(command) => Some(Streams::open(&control, command.has_stdin)?),
    };
    Ok((plan, streams))
}

impl Streams {
    fn open(control: &Path, has_stdin: bool) -> Result<Streams, Failure> {
        let open = |name: &str, options: &OpenOptions| {
            options.open(control.join(name)).or_fail(|| format!("open the host's {name}"))
        };
        let stdin = match has_stdin {
            true => Some(open("stdin", OpenOptions::new().read(true))?),
            false => None,
        };
        Ok(Streams {
            stdin,
            stdout: open("stdout", OpenOptions::new().write(true))?,
            stderr: open("stderr", OpenOptions::new().write(true))?,
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
