//! `fork` for a process that has one thread.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

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

/// Closes every descriptor but `kept`, and puts `/dev/null` in the place of the standard streams.
/// For a child of [`fork`], in which nobody uses the others any more.
///
/// Errors: `ENOSYS` before Linux 5.9, else close_range(2)'s and those of opening `/dev/null`.
pub fn close_others(kept: BorrowedFd<'_>) -> io::Result<()> {
    release_standard_streams()?;
    let kept = kept.as_raw_fd().unsigned_abs();
    for (first, last) in [(3, kept.saturating_sub(1)), (kept.saturating_add(1), u32::MAX)] {
        if first <= last {
            close_range(first, last)?;
        }
    }
    Ok(())
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: no memory is passed. The descriptors belong to values that this child, by the
    // promise of its caller, neither uses nor drops before it ends.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
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
