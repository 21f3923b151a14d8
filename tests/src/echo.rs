//! A vhost-user door in this process, behind it a FUSE layer that only echoes: what the door does
//! of itself shows, and no file system is in the way.
#![allow(clippy::expect_used, reason = "a test that cannot go on says so")]

use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use thinroot::door::Serve;
use thinroot::door::vhost_user::{DoorConfig, DoorEvent, Endpoint, Stop, serve};
use thinroot::filesystem::DataSource;
use thinroot::fuse::session::{Answer, Placement, ReplyBuffer};

use crate::guest::{GuestOptions, VirtualGuest};

/// An opcode whose message comes back from the queue's own thread.
pub const INLINE: u32 = 1000;
/// From the pool.
pub const POOL: u32 = 1001;
/// From the pool for streams.
pub const STREAM: u32 = 1002;
/// Gets no reply.
pub const SILENT: u32 = 1003;
/// Inline it cannot be answered, on the pool it can.
pub const LATER: u32 = 1004;

/// The FUSE layer that echoes.
#[derive(Debug, Default)]
pub struct Echo {
    /// Requests with this opcode wait.
    held: Mutex<Option<u32>>,
    released: Condvar,
    /// How many [`SILENT`] requests came.
    silent: Mutex<u64>,
}

impl Echo {
    /// From now on requests with this opcode wait.
    pub fn hold(&self, opcode: Option<u32>) {
        *self.held.lock().expect("no panic") = opcode;
        self.released.notify_all();
    }

    /// How many [`SILENT`] requests came.
    pub fn silent(&self) -> u64 {
        *self.silent.lock().expect("no panic")
    }
}

fn opcode(message: &[u8]) -> u32 {
    u32::from_ne_bytes(message[4..8].try_into().expect("a header"))
}

impl Serve for Echo {
    fn placement(&self, header: &[u8; 40]) -> Placement {
        match opcode(header) {
            POOL => Placement::Pool,
            STREAM => Placement::Stream,
            LATER => Placement::TryInline,
            _ => Placement::Inline,
        }
    }

    fn message_bytes(&self, _: &[u8; 40], total: usize) -> usize {
        total.min(80)
    }

    fn handle(
        &self,
        message: &[u8],
        source: &mut dyn DataSource,
        reply: &mut dyn ReplyBuffer,
    ) -> Answer {
        match opcode(message) {
            SILENT => {
                *self.silent.lock().expect("no panic") += 1;
                return Answer::None;
            }
            LATER if !reply.may_wait() => return Answer::Later,
            opcode @ (POOL | STREAM) => {
                let held = self.held.lock().expect("no panic");
                drop(self.released.wait_while(held, |held| *held == Some(opcode)));
            }
            _ => {}
        }
        let mut data = vec![0; source.remaining().min(reply.capacity())];
        let echoed = message[40..].len().min(reply.capacity());
        if reply.append(&message[40..40 + echoed]).is_ok() && source.take(&mut data).is_ok() {
            data.truncate(reply.capacity());
            assert_eq!(reply.append(&data), Ok(()));
        }
        let mut header = [0; 16];
        header[8..].copy_from_slice(&message[8..16]);
        reply.set_header(header);
        Answer::Reply { bytes: 0 }
    }

    fn is_mounted(&self) -> bool {
        true
    }
}

/// An open door; closes, and waits for it, when dropped.
#[derive(Debug)]
pub struct Door {
    /// What it serves.
    pub echo: Arc<Echo>,
    /// What it reported.
    pub events: Receiver<DoorEvent>,
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

impl Door {
    /// Serves `endpoint` in a thread.
    pub fn open(endpoint: Endpoint, config: DoorConfig) -> Self {
        let echo = Arc::new(Echo::default());
        let stop = Arc::new(Stop::new().expect("eventfd"));
        let (sender, events) = channel();
        let (session, told) = (Arc::clone(&echo), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            serve(endpoint, session, &config, &told, &|event| {
                // The test may have stopped listening.
                sender.send(event).unwrap_or_default();
            })
            .expect("a door");
        });
        Self { echo, events, stop, thread: Some(thread) }
    }

    /// A door of four request queues, and a guest connected to it.
    pub fn with_guest(options: GuestOptions) -> (Self, VirtualGuest) {
        let (ours, theirs) = UnixStream::pair().expect("socket pair");
        let door = Self::open(Endpoint::Connected(theirs), config(4));
        (door, VirtualGuest::over(ours, options))
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.echo.hold(None);
        self.stop.request();
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))));
    }
}

/// Without a tag, and listening again.
pub const fn config(queues: u16) -> DoorConfig {
    DoorConfig { queues, tag: None, once: false, poll: Duration::from_micros(20) }
}

/// A FUSE message.
pub fn message(opcode: u32, unique: u64, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    message.extend_from_slice(&0_u32.to_ne_bytes());
    message.extend_from_slice(&opcode.to_ne_bytes());
    message.extend_from_slice(&unique.to_ne_bytes());
    message.resize(40, 0);
    message.extend_from_slice(body);
    message
}

/// Sends a message and checks its echo.
pub fn echo(guest: &VirtualGuest, queue: usize, opcode: u32, body: &[u8]) {
    let unique = guest.unique();
    let used = guest.request(queue, &[&message(opcode, unique, body)], &[16, body.len()]);
    assert_eq!(usize::try_from(used.bytes), Ok(16 + body.len()));
    assert_eq!(used.written[8..16], unique.to_ne_bytes());
    assert_eq!(&used.written[16..], body);
}
