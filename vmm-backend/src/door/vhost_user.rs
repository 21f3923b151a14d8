//! The vhost-user door: listening, and one connection after the other.
//!
//! What a connection sets up ends with it; the pools outlive it, because a request on one may
//! still be blocked when its guest is long gone.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use thiserror::Error;
use vhost::vhost_user::{BackendReqHandler, Error as VhostError};

use super::Serve;
use super::connection::Connection;
use super::pool::Pool;
use super::ring::{Pools, Service};

/// The most request queues: a VMM names a vring by one byte, and QEMU has at most 64 of a device.
pub const REQUEST_QUEUES_MAX: u16 = 63;

/// virtio_fs.h: `struct virtio_fs_config`: the tag, then the number of request queues.
pub(super) const TAG_BYTES: usize = 36;

/// How many requests may wait at the disk at once.
const WAITING_THREADS_MAX: usize = 16;

/// How many requests may wait at streams at once.
const STREAM_THREADS_MAX: usize = 16;

/// How the door is built.
#[derive(Clone, Debug)]
pub struct DoorConfig {
    /// Request queues, 1 to [`REQUEST_QUEUES_MAX`]; the hiprio queue comes on top.
    pub queues: u16,
    /// Serve this tag in the device's configuration, 1 to 36 bytes. Only where the VMM does not:
    /// QEMU 7.1 to 8.0 stumble over a daemon that has one.
    pub tag: Option<String>,
    /// End after the first connection instead of listening again.
    pub once: bool,
    /// How long a queue may watch for the guest's next request before its thread sleeps, if that
    /// pays; zero: not at all.
    pub poll: Duration,
}

/// Where VMMs come from.
#[derive(Debug)]
pub enum Endpoint {
    /// A listening socket: one VMM at a time.
    Listening(UnixListener),
    /// A VMM that is already connected; served once.
    Connected(UnixStream),
}

/// How a connection ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The guest unmounted, the VMM stopped its queues first, or we were told to stop.
    Clean,
    /// The VMM went away with its queues running and the file system mounted.
    Crash,
}

/// What a door reports while it serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DoorEvent {
    /// A VMM may connect.
    Listening,
    /// One did.
    Connected,
    /// It is gone.
    Disconnected(End),
}

/// Why a door cannot be opened, or closes.
#[derive(Debug, Error)]
pub enum DoorError {
    /// More or fewer queues than can be.
    #[error("{queues} request queues: expected 1 to {REQUEST_QUEUES_MAX}")]
    Queues {
        /// What was asked for.
        queues: u16,
    },
    /// A tag the configuration space cannot hold.
    #[error("tag \"{tag}\": expected 1 to {TAG_BYTES} bytes")]
    Tag {
        /// What was asked for.
        tag: String,
    },
    /// The listening socket failed.
    #[error("accepting a VMM")]
    Accept(#[source] io::Error),
    /// A connection's queues could not be made.
    #[error("setting up queue {index}")]
    Queue {
        /// Which one; 0 is hiprio.
        index: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Waiting for the socket failed.
    #[error("waiting for the VMM")]
    Wait(#[source] io::Error),
}

/// Tells a serving door to close, from any thread or a signal handler.
#[derive(Debug)]
pub struct Stop(OwnedFd);

impl Stop {
    /// A stop nobody asked for yet.
    ///
    /// Errors: eventfd(2)'s.
    pub fn new() -> Result<Self, Errno> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Asks for it; one system call, and safe where only few things are.
    pub fn request(&self) {
        // It can only fail when it was asked for 2^64 times already.
        if rustix::io::write(&self.0, &1_u64.to_ne_bytes()).is_err() {}
    }
}

/// Serves VMMs until told to stop, or after one connection where `config.once` or the endpoint
/// say so.
///
/// Errors: a configuration out of range, a dead listening socket, no threads or descriptors. A
/// VMM that misbehaves or hangs up ends only its connection.
pub fn serve(
    endpoint: Endpoint,
    session: Arc<dyn Serve>,
    config: &DoorConfig,
    stop: &Stop,
    events: &dyn Fn(DoorEvent),
) -> Result<(), DoorError> {
    check(config)?;
    let pools = Pools {
        waits: Pool::new("wait", WAITING_THREADS_MAX),
        streams: Pool::new("stream", STREAM_THREADS_MAX),
    };
    let service = Arc::new(Service { session, pools, poll: config.poll });
    let listener = match endpoint {
        Endpoint::Connected(stream) => {
            return serve_connection(stream, &service, config, stop, events);
        }
        Endpoint::Listening(listener) => listener,
    };
    events(DoorEvent::Listening);
    while wait_readable(&listener, stop)? {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if is_transient(&error) => continue,
            Err(error) => return Err(DoorError::Accept(error)),
        };
        serve_connection(stream, &service, config, stop, events)?;
        if config.once {
            break;
        }
    }
    Ok(())
}

fn check(config: &DoorConfig) -> Result<(), DoorError> {
    if !(1..=REQUEST_QUEUES_MAX).contains(&config.queues) {
        return Err(DoorError::Queues { queues: config.queues });
    }
    match &config.tag {
        Some(tag) if !(1..=TAG_BYTES).contains(&tag.len()) => {
            Err(DoorError::Tag { tag: tag.clone() })
        }
        _ => Ok(()),
    }
}

/// accept(2): the connection died before we took it, or a signal came.
fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::Interrupted
            | io::ErrorKind::WouldBlock
            | io::ErrorKind::ConnectionReset
    )
}

/// Waits until `socket` can be read (true) or a stop was asked for (false).
fn wait_readable(socket: impl AsFd, stop: &Stop) -> Result<bool, DoorError> {
    loop {
        let mut fds = [
            PollFd::new(&stop.0, PollFlags::IN),
            PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(DoorError::Wait(errno.into())),
            Ok(_) => {}
        }
        if !fds[0].revents().is_empty() {
            return Ok(false);
        }
        if !fds[1].revents().is_empty() {
            return Ok(true);
        }
    }
}

fn serve_connection(
    stream: UnixStream,
    service: &Arc<Service>,
    config: &DoorConfig,
    stop: &Stop,
    events: &dyn Fn(DoorEvent),
) -> Result<(), DoorError> {
    let (connection, threads) = Connection::new(service, config)?;
    let connection = Arc::new(Mutex::new(connection));
    events(DoorEvent::Connected);
    let served = answer(stream, &connection, stop);
    let is_running = lock(&connection).close(matches!(served, Ok(Left::Told)));
    let is_crash = is_running && service.session.is_mounted();
    let end = if is_crash { End::Crash } else { End::Clean };
    for thread in threads {
        if thread.join().is_err() {
            log::error!("a queue's thread panicked");
        }
    }
    // Who hears of the end may count on the guest's memory being let go.
    drop(connection);
    events(DoorEvent::Disconnected(end));
    served.map(drop)
}

/// Who ended a connection.
enum Left {
    Vmm,
    Told,
}

/// Answers the VMM until it hangs up or a stop is asked for.
fn answer(
    stream: UnixStream,
    connection: &Arc<Mutex<Connection>>,
    stop: &Stop,
) -> Result<Left, DoorError> {
    let socket = stream.try_clone().map_err(DoorError::Wait)?;
    let mut requests = BackendReqHandler::from_stream(stream, Arc::clone(connection));
    while wait_readable(&socket, stop)? {
        match requests.handle_request() {
            Ok(()) | Err(VhostError::SocketRetry(_)) => {}
            Err(VhostError::Disconnected) => return Ok(Left::Vmm),
            Err(error) if is_refusal(&error) => log::warn!("refused the VMM: {error}"),
            Err(error) => {
                log::error!("hanging up on the VMM: {error}");
                return Ok(Left::Vmm);
            }
        }
    }
    Ok(Left::Told)
}

/// Whether the message was whole and answered where an answer is due: we go on with the next.
fn is_refusal(error: &VhostError) -> bool {
    matches!(
        error,
        VhostError::InvalidParam
            | VhostError::InvalidOperation(_)
            | VhostError::InactiveFeature(_)
            | VhostError::InactiveOperation(_)
            | VhostError::ReqHandlerError(_)
            | VhostError::BackendInternalError
            | VhostError::FeatureMismatch
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
