//! Signals as something to poll: a handler that only writes down what came.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::register_signal_handler;

/// The signals by which others ask a process to end.
pub const ENDING: [i32; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// Woken by each caught signal.
static WAKE: OnceLock<EventFd> = OnceLock::new();
/// The last caught signal; 0 before the first.
static LAST: AtomicI32 = AtomicI32::new(0);

/// The caught signals of this process.
#[derive(Clone, Copy, Debug)]
pub struct Signals {
    wake: &'static EventFd,
}

impl Signals {
    /// Catches these signals from now on, instead of dying of them.
    ///
    /// Errors: the system's.
    pub fn catch(numbers: &[i32]) -> io::Result<Self> {
        let made = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
        let wake = WAKE.get_or_init(|| made);
        for &number in numbers {
            register_signal_handler(number, note)?;
        }
        Ok(Self { wake })
    }

    /// The last signal that came, once.
    pub fn take(self) -> Option<i32> {
        if let Err(cause) = self.wake.read()
            && cause.kind() != io::ErrorKind::WouldBlock
        {
            log::debug!("signal eventfd: {cause}");
        }
        match LAST.swap(0, Ordering::SeqCst) {
            0 => None,
            number => Some(number),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the eventfd lives in a static and is never closed.
        unsafe { BorrowedFd::borrow_raw(self.wake.as_raw_fd()) }
    }
}

/// The handler: an atomic store and a write(2), both allowed in there (man 7 signal-safety).
extern "C" fn note(number: i32, _: *mut libc::siginfo_t, _: *mut c_void) {
    LAST.store(number, Ordering::SeqCst);
    if let Some(wake) = WAKE.get() {
        // A full counter has woken the reader already; nothing can be said from here anyway.
        drop(wake.write(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Signal, getpid, kill_process};

    #[test]
    fn caught_signal_is_seen_once() {
        let signals = Signals::catch(&[libc::SIGUSR1]).unwrap();
        kill_process(getpid(), Signal::USR1).unwrap();
        let waited = crate::sys::process::wait_readable(signals, std::time::Duration::from_secs(5));
        assert!(waited.unwrap());
        assert_eq!(signals.take(), Some(libc::SIGUSR1));
        assert_eq!(signals.take(), None);
    }
}
