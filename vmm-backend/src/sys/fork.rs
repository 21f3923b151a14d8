//! `fork` for a process that has one thread.

use std::fs;
use std::io;

use rustix::io::Errno;
use rustix::process::{Pid, setsid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

/// Starts a process that does `work` and ends. It has every descriptor of ours, and the terminal's
/// signals do not reach it.
///
/// Errors: `EBUSY` for a process with several threads, or with `/proc/self/fd` open, which would
/// name our descriptors to the child; else fork(2)'s.
pub fn fork(work: impl FnOnce()) -> io::Result<Pid> {
    if fs::read_dir("/proc/self/task")?.count() != 1 || super::fs::is_proc_open() {
        return Err(Errno::BUSY.into());
    }
    // SAFETY: this is the only thread, as was just seen, so that no lock of any library is held
    // by a thread the child does not have.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            if let Err(cause) = setsid() {
                log::debug!("setsid: {cause}");
            }
            work();
            // SAFETY: ends the child without the destructors and exit handlers of its parent.
            unsafe { libc::_exit(0) }
        }
        pid => Pid::from_raw(pid).ok_or_else(|| Errno::SRCH.into()),
    }
}

/// Puts `/dev/null` in the place of the standard streams, so that whoever reads them sees their
/// end.
pub fn release_standard_streams() -> io::Result<()> {
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn process_with_threads_is_not_forked() {
        let error = super::fork(|| {}).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::BUSY.raw_os_error()));
    }
}
