//! The hook that fails or stops at the N-th system call.
//!
//! Every changing file-system call of [`super::fs`] passes [`point`] first. Disarmed, which it is
//! unless a test arms it, that costs one relaxed load.

use std::sync::atomic::{AtomicI32, AtomicI64, Ordering};

use rustix::io::Errno;

/// Calls until the hook acts; 0 when it has acted, negative when disarmed.
static COUNTDOWN: AtomicI64 = AtomicI64::new(-1);
/// What it does then: the raw errno to answer, or one of those below.
static ACTION: AtomicI32 = AtomicI32::new(KILL);

/// Ends the process on the spot.
const KILL: i32 = 0;
/// Lets nothing more be changed.
const FREEZE: i32 = -1;
/// The same, once it has begun.
const FROZEN: i32 = -2;

/// The variable that arms the hook at start-up: `N:ERRNO` fails the N-th call with that number,
/// `N:kill` ends the process before it.
pub const VARIABLE: &str = "THINROOT_FAULT";

/// Arms the hook: the `nth` call from now (1 is the next) fails with `errno`.
pub fn fail_at(nth: u32, errno: Errno) {
    ACTION.store(errno.raw_os_error(), Ordering::Relaxed);
    COUNTDOWN.store(i64::from(nth), Ordering::Release);
}

/// Arms the hook: the process ends before the `nth` call from now, as by `SIGKILL`.
pub fn kill_at(nth: u32) {
    ACTION.store(KILL, Ordering::Relaxed);
    COUNTDOWN.store(i64::from(nth), Ordering::Release);
}

/// Arms the hook: the `nth` call from now and all after it fail with `EIO`, until it is disarmed. What
/// is on disk then is what a process leaves that ends there, and no process had to end for it.
pub fn freeze_at(nth: u32) {
    ACTION.store(FREEZE, Ordering::Relaxed);
    COUNTDOWN.store(i64::from(nth), Ordering::Release);
}

/// Disarms the hook and says whether it had acted.
pub fn disarm() -> bool {
    let is_frozen = ACTION.swap(KILL, Ordering::Relaxed) == FROZEN;
    COUNTDOWN.swap(-1, Ordering::AcqRel) == 0 || is_frozen
}

/// Arms the hook from [`VARIABLE`]; anything but `N:ERRNO` or `N:kill` is refused.
///
/// Errors: the value that could not be read.
pub fn arm_from_environment() -> Result<(), String> {
    let Ok(value) = std::env::var(VARIABLE) else { return Ok(()) };
    let (nth, action) = value.split_once(':').ok_or_else(|| value.clone())?;
    let nth = nth.parse().map_err(|_| value.clone())?;
    match action {
        "kill" => kill_at(nth),
        number => {
            fail_at(nth, Errno::from_raw_os_error(number.parse().map_err(|_| value.clone())?));
        }
    }
    Ok(())
}

#[cfg(test)]
thread_local! {
    static BEFORE_NEXT: std::cell::Cell<Option<Box<dyn FnOnce()>>> = const { std::cell::Cell::new(None) };
}

/// Has this thread do something before its next call: meet another within what it is doing.
#[cfg(test)]
pub(crate) fn before_next_call(act: impl FnOnce() + 'static) {
    BEFORE_NEXT.set(Some(Box::new(act)));
}

/// One call is about to be made.
pub(crate) fn point() -> Result<(), Errno> {
    #[cfg(test)]
    BEFORE_NEXT.take().into_iter().for_each(|act| act());
    if COUNTDOWN.load(Ordering::Relaxed) <= 0 {
        return Ok(());
    }
    if COUNTDOWN.fetch_sub(1, Ordering::AcqRel) != 1 {
        return Ok(());
    }
    match ACTION.load(Ordering::Relaxed) {
        KILL => {
            // The crash tests need the state exactly as it is now: no destructor may tidy up.
            std::process::abort()
        }
        FREEZE | FROZEN => {
            ACTION.store(FROZEN, Ordering::Relaxed);
            // The next call is the first again.
            COUNTDOWN.store(1, Ordering::Release);
            Err(Errno::IO)
        }
        errno => Err(Errno::from_raw_os_error(errno)),
    }
}
