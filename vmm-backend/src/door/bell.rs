//! What a queue's thread sleeps on: the guest's kick, and the connection that wants something.

use std::os::fd::OwnedFd;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

const WAKE: EventData = EventData::new_u64(0);
const KICK: EventData = EventData::new_u64(1);

/// Rings for each kick and each wake.
///
/// A kick is edge-triggered and never read, which saves a system call for each: only that it
/// happened counts, and every write to an eventfd is an edge of its own.
#[derive(Debug)]
pub(super) struct Bell {
    epoll: OwnedFd,
    wake: OwnedFd,
}

impl Bell {
    /// A bell that no kick is tied to.
    ///
    /// Errors: those of epoll and eventfd.
    pub(super) fn new() -> Result<Self, Errno> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &wake, WAKE, EventFlags::IN)?;
        Ok(Self { epoll, wake })
    }

    /// Rings for `kick` from now on, and once at once if it was kicked before.
    ///
    /// Errors: epoll_ctl(2)'s: `EPERM` for a file that cannot be waited for.
    pub(super) fn listen(&self, kick: &OwnedFd) -> Result<(), Errno> {
        epoll::add(&self.epoll, kick, KICK, EventFlags::IN | EventFlags::ET)
    }

    /// No longer rings for `kick`. Closing it does not do that: the VMM has it open too.
    pub(super) fn ignore(&self, kick: &OwnedFd) {
        if let Err(errno) = epoll::delete(&self.epoll, kick) {
            log::debug!("epoll: {errno}");
        }
    }

    /// Ends a wait, this one or the next.
    pub(super) fn wake(&self) {
        if let Err(errno) = rustix::io::write(&self.wake, &1_u64.to_ne_bytes()) {
            log::debug!("wake: {errno}");
        }
    }

    /// Sleeps until it rings; says whether it was a kick (and perhaps a wake, too).
    ///
    /// Errors: epoll_wait(2)'s, but not `EINTR`.
    pub(super) fn wait(&self) -> Result<bool, Errno> {
        let mut events = [Event { flags: EventFlags::empty(), data: WAKE }; 2];
        let rung = match epoll::wait(&self.epoll, &mut events[..], None) {
            Err(Errno::INTR) => 0,
            rung => rung?,
        };
        let mut is_kick = false;
        for event in &events[..rung] {
            let data = event.data;
            if data == KICK {
                is_kick = true;
            } else if let Err(errno) = rustix::io::read(&self.wake, &mut [0; 8][..]) {
                log::debug!("wake: {errno}");
            }
        }
        Ok(is_kick)
    }
}
