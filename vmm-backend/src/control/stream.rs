//! A guest's standard streams: host descriptors read and written so that a waiting call can be
//! called off.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::{Errno, read, retry_on_intr, write};

use crate::filesystem::{DataSink, DataSource};

/// The most one READ of standard input gives, in bytes; a short read is normal for a stream.
const READ_BYTES_MAX: usize = 128 * 1024;

/// limits.h: `PIPE_BUF`. A pipe that polls as writable takes this much without blocking.
const PIPE_BUF: usize = 4096;

/// Calls off every read and write that waits.
///
/// Each guest life has its own eventfd, which stays readable once signalled: a call that began
/// in that life sees it however late it looks, and one of the next life never does.
#[derive(Debug)]
pub struct Cancellation {
    current: Mutex<Arc<OwnedFd>>,
}

impl Cancellation {
    /// Errors: those of `eventfd2`.
    pub fn new() -> Result<Self, Errno> {
        Ok(Self { current: Mutex::new(Arc::new(new_event()?)) })
    }

    /// Calls off what waits now; what begins later waits again.
    pub fn renew(&self) {
        let mut current = self.lock();
        signal(&current);
        match new_event() {
            Ok(event) => *current = Arc::new(event),
            Err(error) => log::error!("control: no event for the next guest's streams: {error}"),
        }
    }

    /// Calls off what waits now and all that begins later: the daemon ends.
    pub fn stop(&self) {
        signal(&self.lock());
    }

    fn token(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Arc<OwnedFd>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn new_event() -> Result<OwnedFd, Errno> {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
}

fn signal(event: &OwnedFd) {
    if let Err(error) = write(event, &1_u64.to_ne_bytes()) {
        log::error!("control: cannot call off waiting streams: {error}");
    }
}

/// One host descriptor that a guest reads from or writes to.
#[derive(Debug)]
pub struct Stream {
    descriptor: OwnedFd,
    /// One reader or writer at a time, so that a readiness seen by `poll` is not taken by
    /// another before the call. Nothing is locked inside it.
    turn: Mutex<()>,
}

impl Stream {
    /// The stream over `descriptor`, whose flags (`O_NONBLOCK`) stay as they are.
    pub const fn new(descriptor: OwnedFd) -> Self {
        Self { descriptor, turn: Mutex::new(()) }
    }

    /// Waits for bytes and appends at most `size` of them; appends none at the end.
    ///
    /// Errors: `ECANCELED` when called off, else the read's own.
    pub fn read(
        &self,
        size: usize,
        sink: &mut dyn DataSink,
        cancellation: &Cancellation,
    ) -> Result<(), Errno> {
        let token = cancellation.token();
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = vec![0; size.min(sink.capacity()).min(READ_BYTES_MAX)];
        loop {
            let (_, called_off) = wait(self.descriptor.as_fd(), PollFlags::IN, &token)?;
            if called_off {
                // Bytes that came meanwhile are the next guest's.
                return Err(Errno::CANCELED);
            }
            match read(&self.descriptor, &mut bytes[..]) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error),
                Ok(count) => return sink.append(bytes.get(..count).unwrap_or_default()),
            }
        }
    }

    /// Writes all that `source` has, at most `size` bytes, and says how many were written:
    /// fewer only if an error came after the first of them.
    ///
    /// Errors: `EPIPE` if nobody reads any more, `ECANCELED` when called off.
    pub fn write(
        &self,
        size: usize,
        source: &mut dyn DataSource,
        cancellation: &Cancellation,
    ) -> Result<usize, Errno> {
        let token = cancellation.token();
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let size = size.min(source.remaining());
        let mut written = 0;
        let mut bytes = [0; PIPE_BUF];
        while written < size {
            let chunk = &mut bytes[..PIPE_BUF.min(size - written)];
            source.take(chunk)?;
            let (count, result) = self.write_chunk(chunk, &token);
            written += count;
            match result {
                Err(error) if written == 0 => return Err(error),
                Err(_) => break,
                Ok(()) => {}
            }
        }
        Ok(written)
    }

    /// Writes `chunk`, at most [`PIPE_BUF`] bytes; how much of it, and whether all.
    fn write_chunk(&self, chunk: &[u8], token: &OwnedFd) -> (usize, Result<(), Errno>) {
        let mut written = 0;
        while let Some(rest) = chunk.get(written..).filter(|rest| !rest.is_empty()) {
            match wait(self.descriptor.as_fd(), PollFlags::OUT, token) {
                Err(error) => return (written, Err(error)),
                // What can be said without waiting is said, even by a guest that is gone.
                Ok((false, _)) => return (written, Err(Errno::CANCELED)),
                Ok((true, _)) => {}
            }
            match write(&self.descriptor, rest) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return (written, Err(error)),
                Ok(count) => written += count,
            }
        }
        (written, Ok(()))
    }
}

/// Waits until `descriptor` is ready (or at its end, or broken: the next call tells) or the
/// call is called off; which of the two.
fn wait(
    descriptor: BorrowedFd<'_>,
    ready: PollFlags,
    token: &OwnedFd,
) -> Result<(bool, bool), Errno> {
    let mut waiting =
        [PollFd::from_borrowed_fd(descriptor, ready), PollFd::new(token, PollFlags::IN)];
    retry_on_intr(|| poll(&mut waiting, None))?;
    let [is_ready, called_off] = waiting.map(|waiting| !waiting.revents().is_empty());
    Ok((is_ready, called_off))
}
