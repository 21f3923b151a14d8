//! `thinroot serve`: one guest's root over vhost-user.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, retry_on_intr};
use thinroot::control::{Cancellation, Control, ControlFiles, DIRECTORY_NAME};
use thinroot::door::vhost_user::{
    DoorConfig, DoorError, DoorEvent, End, Endpoint, Stop, serve as serve_door,
};
use thinroot::fuse::init::SessionConfig;
use thinroot::fuse::session::Session;
use thinroot::sys::process::take_inherited;
use thinroot::sys::signal::{ENDING, Signals};
use thinroot::vm::events::{Disconnect, Event, EventWriter};

use super::events::{Events, take_traffic};
use super::ground::{Ground, GroundError};
use super::janitor::Janitor;
use super::notify::Notify;
use super::socket::{SocketError, bind, inherited};
use crate::config::{EndpointConfig, EventsConfig, ServeConfig};

/// Why a guest is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The union.
    #[error(transparent)]
    Ground(#[from] GroundError),
    /// The VMM's socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The door.
    #[error(transparent)]
    Door(#[from] DoorError),
    /// A descriptor `run` passes.
    #[error("{option} {number}: {cause}; expected an open descriptor")]
    Descriptor {
        /// The option.
        option: &'static str,
        /// Its value.
        number: RawFd,
        /// What is wrong.
        cause: std::io::Error,
    },
    /// The events cannot be written.
    #[error("--events {path}: {cause}; expected a file that can be appended to")]
    Events {
        /// Where to.
        path: PathBuf,
        /// Why not.
        cause: std::io::Error,
    },
    /// Something the process needs.
    #[error("{what}: {cause}")]
    Process {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        cause: std::io::Error,
    },
}

fn process<E: Into<std::io::Error>>(what: &'static str) -> impl FnOnce(E) -> ServeError {
    move |cause| ServeError::Process { what, cause: cause.into() }
}

/// Serves until told to end; returns when every request is answered.
pub fn serve(config: &ServeConfig) -> Result<(), ServeError> {
    let inherited = Inherited::take(config)?;
    let ground = Ground::prepare(&config.union, None)?;
    let notify = Notify::from_environment();
    let door = DoorConfig {
        queues: config.queues,
        tag: config.tag.clone(),
        once: config.once,
        poll: config.poll,
    };
    let (endpoint, name, janitor) = match (inherited.endpoint, &config.endpoint) {
        (Some((endpoint, number)), _) => (endpoint, format!("fd {number}"), None),
        (None, EndpointConfig::Descriptor(number)) => return Err(closed("--fd", *number)),
        (None, EndpointConfig::Socket(path)) => {
            let endpoint = Endpoint::Listening(bind(path)?);
            let janitor = Janitor::remove_socket(path).map_err(process("fork"))?;
            (endpoint, path.display().to_string(), Some(janitor))
        }
    };
    let events = Events::to(inherited.events);
    let index = ground.open_index()?;
    let (union, lock) = ground.join(index, &config.union, events.on_change())?;
    let events_of_guest = events.clone();
    let on_report = Box::new(move |report| events_of_guest.report(report));
    let control = Control::new(union, inherited.control, on_report).map_err(process("eventfd"))?;
    let cancellation = control.cancellation();
    let session = Arc::new(Session::new(
        Arc::new(control),
        SessionConfig {
            writeback_cache: config.union.writeback,
            unremembered: Some(DIRECTORY_NAME),
        },
    ));
    // Until here a signal ends us where we stand, in the midst of indexing too.
    let signals = Signals::catch(&ENDING).map_err(process("signals"))?;
    let stop = Arc::new(Stop::new().map_err(process("eventfd"))?);
    end_on_signal(signals, Arc::clone(&stop), Arc::clone(&cancellation))?;
    let on_event = |event| match event {
        DoorEvent::Listening => {
            events.emit(Event::Listening { socket: name.clone() });
            notify.ready();
        }
        DoorEvent::Connected => events.emit(Event::Connected),
        DoorEvent::Disconnected(end) => {
            cancellation.renew();
            let requests = take_traffic(&session, config.stats);
            events.emit(Event::Disconnected { how: how(end), requests });
        }
    };
    let served = serve_door(endpoint, Arc::clone(&session) as _, &door, &stop, &on_event);
    // What a blocked stream was answered after its guest had gone.
    take_traffic(&session, config.stats);
    drop((lock, janitor));
    Ok(served?)
}

/// What the command line names by number; taken before anything else is opened.
struct Inherited {
    endpoint: Option<(Endpoint, RawFd)>,
    events: Option<EventWriter>,
    control: Option<ControlFiles>,
}

impl Inherited {
    fn take(config: &ServeConfig) -> Result<Self, ServeError> {
        let endpoint = match config.endpoint {
            EndpointConfig::Descriptor(number) => Some((inherited(number)?, number)),
            EndpointConfig::Socket(_) => None,
        };
        let events = config.events.as_ref().map(open_events).transpose()?;
        Ok(Self { endpoint, events, control: control_files(config)? })
    }
}

fn open_events(events: &EventsConfig) -> Result<EventWriter, ServeError> {
    match events {
        EventsConfig::Path(path) => EventWriter::append(path)
            .map_err(|cause| ServeError::Events { path: path.clone(), cause }),
        EventsConfig::StandardOutput => {
            take("--events -, descriptor", 1).map(EventWriter::from_descriptor)
        }
        EventsConfig::Descriptor(number) => {
            take("--events-fd", *number).map(EventWriter::from_descriptor)
        }
    }
}

fn control_files(config: &ServeConfig) -> Result<Option<ControlFiles>, ServeError> {
    if config.command_fd.is_none() && config.stdio_fds.is_none() {
        return Ok(None);
    }
    let mut files = ControlFiles::default();
    if let Some(number) = config.command_fd {
        let mut file = File::from(take("--command-fd", number)?);
        // A file whose writer did not go back is read whole all the same; a pipe cannot seek.
        file.rewind().ok();
        file.read_to_end(&mut files.command).map_err(|cause| ServeError::Descriptor {
            option: "--command-fd",
            number,
            cause,
        })?;
    }
    if let Some([input, output, error]) = config.stdio_fds {
        files.stdin = Some(take("--stdio-fds", input)?);
        files.stdout = Some(take("--stdio-fds", output)?);
        files.stderr = Some(take("--stdio-fds", error)?);
    }
    Ok(Some(files))
}

fn take(option: &'static str, number: RawFd) -> Result<std::os::fd::OwnedFd, ServeError> {
    take_inherited(number).map_err(|cause| ServeError::Descriptor { option, number, cause })
}

fn closed(option: &'static str, number: RawFd) -> ServeError {
    ServeError::Descriptor { option, number, cause: Errno::BADF.into() }
}

/// Ends the door at the first of [`ENDING`], from a thread of its own.
fn end_on_signal(
    signals: Signals,
    stop: Arc<Stop>,
    cancellation: Arc<Cancellation>,
) -> Result<(), ServeError> {
    let wait = move || {
        let mut waiting = [PollFd::new(&signals, PollFlags::IN)];
        match retry_on_intr(|| poll(&mut waiting, None)) {
            Ok(_) => log::info!("told to end by signal {}", signals.take().unwrap_or_default()),
            Err(error) => log::error!("waiting for signals: {error}"),
        }
        cancellation.stop();
        stop.request();
    };
    let thread = std::thread::Builder::new().name("signals".to_owned());
    thread.spawn(wait).map(drop).map_err(process("thread"))
}

const fn how(end: End) -> Disconnect {
    match end {
        End::Clean => Disconnect::Clean,
        End::Crash => Disconnect::Crash,
    }
}
