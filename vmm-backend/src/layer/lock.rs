//! One user of an upper at a time.
//!
//! The lock is the kernel's, on the upper directory itself, and ends with its holder however that
//! ends. The file `pid` in the work directory only says whom to ask.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::process::getpid;
use thiserror::Error;

use crate::filesystem::Errno;
use crate::sys::fs;

/// In the work directory: the number of the process that holds the upper, in decimal.
const PID_NAME: &[u8] = b"pid";

/// So long a holder that is on its way out may take: the kernel frees a killed process' locks
/// some time after its parent, and whoever looks for it by name, have seen it go.
const PATIENCE: Duration = Duration::from_secs(1);

/// The right to use an upper, for as long as this lives.
#[derive(Debug)]
pub struct UpperLock {
    /// The open file description that holds the lock.
    _directory: OwnedFd,
}

/// Why an upper cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum LockError {
    /// Somebody else uses it.
    #[error("in use by process {}", .holder.map_or("(unknown)".to_owned(), |pid| pid.to_string()))]
    InUse {
        /// The user's process, where it said so.
        holder: Option<u32>,
    },
    /// The upper or its work directory cannot be used at all.
    #[error("cannot be locked: {0}")]
    Call(#[from] Errno),
}

impl UpperLock {
    /// Takes the upper for changing, and says so in `work`, if there is one yet.
    ///
    /// Errors: [`LockError::InUse`] if anybody still has it after a second.
    pub fn take(upper: BorrowedFd<'_>, work: Option<BorrowedFd<'_>>) -> Result<Self, LockError> {
        let take = || Self::lock(upper, work, FlockOperation::NonBlockingLockExclusive);
        let lock = patiently(take)?;
        work.map_or(Ok(()), write_pid)?;
        Ok(lock)
    }

    /// Takes the upper for reading: nobody changes it meanwhile.
    ///
    /// Errors: [`LockError::InUse`] if somebody still has it for changing after a second.
    pub fn share(upper: BorrowedFd<'_>, work: Option<BorrowedFd<'_>>) -> Result<Self, LockError> {
        patiently(|| Self::share_now(upper, work))
    }

    /// [`Self::share`] that asks once, for who can do without the lock.
    pub fn share_now(
        upper: BorrowedFd<'_>,
        work: Option<BorrowedFd<'_>>,
    ) -> Result<Self, LockError> {
        Self::lock(upper, work, FlockOperation::NonBlockingLockShared)
    }

    fn lock(
        upper: BorrowedFd<'_>,
        work: Option<BorrowedFd<'_>>,
        operation: FlockOperation,
    ) -> Result<Self, LockError> {
        // A description of our own: a lock belongs to one, and a caller's may be shared.
        let directory = fs::open_name(upper, b".", OFlags::RDONLY | OFlags::DIRECTORY)?;
        match flock(&directory, operation) {
            Ok(()) => Ok(Self { _directory: directory }),
            Err(Errno::WOULDBLOCK) => Err(LockError::InUse { holder: work.and_then(read_pid) }),
            Err(error) => Err(error.into()),
        }
    }
}

/// Asks until the upper is free or patience ends.
fn patiently(ask: impl Fn() -> Result<UpperLock, LockError>) -> Result<UpperLock, LockError> {
    let start = Instant::now();
    loop {
        let told = ask();
        let in_use = matches!(told, Err(LockError::InUse { .. }));
        if !in_use || start.elapsed() > PATIENCE {
            return told;
        }
        sleep(Duration::from_millis(10));
    }
}

fn write_pid(work: BorrowedFd<'_>) -> Result<(), Errno> {
    match fs::unlink(work, PID_NAME) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error),
    }
    let file = fs::create_file(work, PID_NAME, 0o644)?;
    let pid = format!("{}\n", getpid().as_raw_nonzero());
    fs::write_at(file.as_fd(), pid.as_bytes(), 0).map(drop)
}

fn read_pid(work: BorrowedFd<'_>) -> Option<u32> {
    let handle = fs::open_name(work, PID_NAME, OFlags::RDONLY | OFlags::NONBLOCK).ok()?;
    let mut text = [0; 16];
    let bytes = rustix::io::pread(&handle, &mut text, 0).ok()?;
    str::from_utf8(text.get(..bytes)?).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &std::path::Path) -> OwnedFd {
        std::fs::File::open(path).unwrap().into()
    }

    #[test]
    fn second_user_of_an_upper_is_told_the_first() {
        let (upper, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (upper, work) = (open(upper.path()), open(work.path()));
        let (upper, work) = (upper.as_fd(), work.as_fd());
        let holder = Some(std::process::id());
        let in_use = Err(LockError::InUse { holder });

        let held = UpperLock::take(upper, Some(work)).unwrap();
        assert_eq!(UpperLock::take(upper, Some(work)).map(drop), in_use);
        assert_eq!(UpperLock::share(upper, Some(work)).map(drop), in_use);
        drop(held);
        let readers = [(); 2].map(|()| UpperLock::share(upper, None).unwrap());
        assert_eq!(UpperLock::take(upper, Some(work)).map(drop), in_use);
        drop(readers);
        assert!(UpperLock::take(upper, Some(work)).is_ok());
    }

    #[test]
    fn upper_that_is_let_go_a_moment_later_is_waited_for() {
        let upper = tempfile::tempdir().unwrap();
        let upper = open(upper.path());
        for ask in [UpperLock::take, UpperLock::share] {
            let held = UpperLock::take(upper.as_fd(), None).unwrap();
            assert!(UpperLock::share_now(upper.as_fd(), None).is_err());
            let holder = std::thread::spawn(move || {
                sleep(Duration::from_millis(50));
                drop(held);
            });
            assert!(ask(upper.as_fd(), None).is_ok());
            holder.join().unwrap();
        }
    }
}
