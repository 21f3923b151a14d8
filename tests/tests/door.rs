//! The vhost-user door, served in this process behind a FUSE layer that only echoes.
#![allow(clippy::expect_used, reason = "a test that cannot go on says so")]

use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use tests::guest::{GuestOptions, HIPRIO, VirtualGuest};
use thinroot::door::Serve;
use thinroot::door::vhost_user::{DoorConfig, DoorEvent, End, Endpoint, Stop, serve};
use thinroot::filesystem::DataSource;
use thinroot::fuse::session::{Answer, Placement, ReplyBuffer};

/// Replies with the message's own bytes; the opcode says where it is handled.
const INLINE: u32 = 1000;
const POOL: u32 = 1001;
const STREAM: u32 = 1002;
const SILENT: u32 = 1003;
const LATER: u32 = 1004;

#[derive(Default)]
struct Echo {
    /// Requests with this opcode wait.
    held: Mutex<Option<u32>>,
    released: Condvar,
    silent: Mutex<u64>,
}

impl Echo {
    fn hold(&self, opcode: Option<u32>) {
        *self.held.lock().expect("no panic") = opcode;
        self.released.notify_all();
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

struct Door {
    echo: Arc<Echo>,
    stop: Arc<Stop>,
    events: Receiver<DoorEvent>,
    thread: Option<JoinHandle<()>>,
}

impl Door {
    fn open(endpoint: Endpoint, config: DoorConfig) -> Self {
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
        Self { echo, stop, events, thread: Some(thread) }
    }

    fn with_guest(options: GuestOptions) -> (Self, VirtualGuest) {
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

fn config(queues: u16) -> DoorConfig {
    DoorConfig { queues, tag: None, once: false }
}

fn message(opcode: u32, unique: u64, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    message.extend_from_slice(&0_u32.to_ne_bytes());
    message.extend_from_slice(&opcode.to_ne_bytes());
    message.extend_from_slice(&unique.to_ne_bytes());
    message.resize(40, 0);
    message.extend_from_slice(body);
    message
}

fn echo(guest: &VirtualGuest, queue: usize, opcode: u32, body: &[u8]) {
    let unique = guest.unique();
    let used = guest.request(queue, &[&message(opcode, unique, body)], &[16, body.len()]);
    assert_eq!(used.bytes as usize, 16 + body.len());
    assert_eq!(used.written[8..16], unique.to_ne_bytes());
    assert_eq!(&used.written[16..], body);
}

#[test]
fn requests_come_back_from_every_place_and_queue() {
    for has_event_idx in [true, false] {
        for has_indirect in [true, false] {
            let options =
                GuestOptions { queues: 3, has_event_idx, has_indirect, has_raw_ring: false };
            let (_door, guest) = Door::with_guest(options);
            for queue in 0..=3 {
                for opcode in [INLINE, POOL, STREAM, LATER] {
                    for size in [1, 100, 5000] {
                        echo(&guest, queue, opcode, &vec![7; size]);
                    }
                }
            }
        }
    }
}

#[test]
fn rings_wrap() {
    for has_event_idx in [true, false] {
        let options = GuestOptions { has_event_idx, ..GuestOptions::default() };
        let (_door, guest) = Door::with_guest(options);
        for turn in 0..70_000_u32 {
            echo(&guest, 1, INLINE, &turn.to_ne_bytes());
        }
    }
}

#[test]
fn what_waits_holds_up_nothing_else() {
    for (waits, other) in [(POOL, STREAM), (STREAM, POOL)] {
        let options = GuestOptions { queues: 2, ..GuestOptions::default() };
        let (door, guest) = Door::with_guest(options);
        door.echo.hold(Some(waits));
        let send = |_| guest.send(1, &[&message(waits, guest.unique(), b"stuck")], &[16, 5]);
        let stuck: Vec<_> = (0..100).map(send).collect();
        for _ in 0..1000 {
            let used = guest.request(HIPRIO, &[&message(SILENT, guest.unique(), &[0; 8])], &[]);
            assert_eq!(used.bytes, 0);
        }
        assert_eq!(*door.echo.silent.lock().expect("no panic"), 1000);
        echo(&guest, 1, INLINE, b"the same queue");
        echo(&guest, 2, INLINE, b"the other queue");
        echo(&guest, 1, other, b"the other pool");
        door.echo.hold(None);
        for token in stuck {
            assert_eq!(guest.queue(1).wait(token).bytes, 21);
        }
    }
}

#[test]
fn door_listens_again_after_each_guest() {
    let dir = tempfile::tempdir().expect("temp dir");
    let socket = dir.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&socket).expect("bind");
    let door = Door::open(Endpoint::Listening(listener), config(2));
    assert_eq!(door.events.recv(), Ok(DoorEvent::Listening));
    for turn in 0..20 {
        let guest = VirtualGuest::connect(&socket, GuestOptions::default());
        assert_eq!(door.events.recv(), Ok(DoorEvent::Connected));
        echo(&guest, 1, INLINE, b"hello");
        let end = if turn % 2 == 0 { End::Clean } else { End::Crash };
        if turn % 2 == 0 {
            guest.shut_down()
        } else {
            guest.crash()
        }
        assert_eq!(door.events.recv(), Ok(DoorEvent::Disconnected(end)));
    }
}
