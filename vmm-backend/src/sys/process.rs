//! What rustix and std lack for processes: children that die with us, and descriptors they keep.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Lets the kernel kill the child when the *thread* that starts it ends, whatever ends it.
///
/// Start such children from a thread that lives as long as they shall, or they die early.
///
/// Source: man 2 `PR_SET_PDEATHSIG`.
pub fn die_with_parent(command: &mut Command) -> &mut Command {
    let parent = getpid();
    // SAFETY: between fork and exec the closure makes two system calls and allocates nothing, as
    // `pre_exec` demands of a process that may have had other threads.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // A parent that died before the line above sends no signal any more.
            if getppid() == Some(parent) { Ok(()) } else { Err(io::Error::from(Errno::SRCH)) }
        })
    }
}

/// Lets the child keep these descriptors under the numbers they have here.
///
/// Their numbers go on the child's command line; each stays open here as well.
pub fn keep_descriptors(command: &mut Command, kept: Vec<OwnedFd>) -> &mut Command {
    // SAFETY: between fork and exec the closure makes one system call per descriptor on
    // descriptors it owns, and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            kept.iter().try_for_each(|kept| Ok(fcntl_setfd(kept, FdFlags::empty())?))
        })
    }
}

/// The number a descriptor has, for a command line.
pub fn number(descriptor: BorrowedFd<'_>) -> i32 {
    descriptor.as_raw_fd()
}

/// Takes over an open descriptor that was inherited under `number`; it will not be inherited
/// further. The standard streams, which others here use too, are duplicated.
///
/// Errors: `EBADF` for a number that is not open or was taken before.
pub fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());
    match number {
        0 => return Ok(fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?),
        1 => return Ok(fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?),
        2 => return Ok(fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3)?),
        ..0 => return Err(Errno::BADF.into()),
        _ => {}
    }
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if !taken.insert(number) {
        return Err(Errno::BADF.into());
    }
    // SAFETY: the number is only looked at: a call on one that is not open answers EBADF.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    // SAFETY: it is open, as the call above says, and taken once, as the set says. Callers take
    // what their parent left them before they open anything themselves.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Waits at most `timeout` until `descriptor` has bytes or an end to read; says whether it has.
pub fn wait_readable(descriptor: impl AsFd, timeout: Duration) -> io::Result<bool> {
    let mut set = [PollFd::new(&descriptor, PollFlags::IN)];
    let timeout = Timespec::try_from(timeout).map_err(|_| io::Error::from(Errno::INVAL))?;
    Ok(poll(&mut set, Some(&timeout))? > 0)
}

/// Lets the child start in a user namespace of its own; starting fails where none can be made.
pub fn in_user_namespace(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(unshare_user) }
}

fn unshare_user() -> io::Result<()> {
    // SAFETY: a new user namespace shares no descriptors or memory with anybody that relied on it.
    Ok(unsafe { unshare_unsafe(UnshareFlags::NEWUSER) }?)
}
