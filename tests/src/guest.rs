//! A VMM and its guest in one: vhost-user frontend, virtqueues, raw FUSE messages.
#![allow(clippy::expect_used, reason = "a test whose daemon refuses it cannot go on")]

use std::fmt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{
    VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VringConfigData};

use crate::memory::memory;
use crate::raw_ring::RawRing;
use crate::virtqueue::{Driver, Place, QUEUE_SIZE, Token, Used};

/// The queue for FORGET and what else must not wait.
pub const HIPRIO: usize = 0;

const VERSION_1: u64 = 1 << 32;
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;

/// What a guest is like.
#[derive(Clone, Copy, Debug)]
pub struct GuestOptions {
    /// Request queues with a driver.
    pub queues: usize,
    /// Whether it takes VIRTIO_RING_F_EVENT_IDX.
    pub has_event_idx: bool,
    /// Whether it uses indirect descriptors.
    pub has_indirect: bool,
    /// One more request queue, behind the others, that is written by hand.
    pub has_raw_ring: bool,
}

impl Default for GuestOptions {
    fn default() -> Self {
        Self { queues: 1, has_event_idx: true, has_indirect: true, has_raw_ring: false }
    }
}

/// A connected guest whose queues run.
pub struct VirtualGuest {
    frontend: Frontend,
    options: GuestOptions,
    queues: Vec<Mutex<Driver>>,
    raw: Option<RawRing>,
    unique: AtomicU64,
}

impl fmt::Debug for VirtualGuest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtualGuest").field("options", &self.options).finish_non_exhaustive()
    }
}

impl VirtualGuest {
    /// Connects to the socket of a daemon, which may not be there yet.
    pub fn connect(socket: &Path, options: GuestOptions) -> Self {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            match UnixStream::connect(socket) {
                Ok(stream) => return Self::over(stream, options),
                Err(error) => assert!(Instant::now() < end, "{}: {error}", socket.display()),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Takes a connected socket and negotiates, with no driver at any of `total` queues: who
    /// brings rings of his own starts and stops them.
    pub fn without_queues(stream: UnixStream, total: usize) -> Self {
        let options = GuestOptions { queues: total - 1, ..GuestOptions::default() };
        Self::negotiated(stream, options)
    }

    fn negotiated(stream: UnixStream, options: GuestOptions) -> Self {
        let total = 1 + options.queues + usize::from(options.has_raw_ring);
        let mut frontend = Frontend::from_stream(stream, u64::try_from(total).expect("64 bits"));
        negotiate(&mut frontend, options);
        frontend.set_mem_table(&memory().regions()).expect("SET_MEM_TABLE");
        Self { frontend, options, queues: Vec::new(), raw: None, unique: AtomicU64::new(0) }
    }

    /// Takes a connected socket, negotiates, and starts all queues.
    pub fn over(stream: UnixStream, options: GuestOptions) -> Self {
        let total = 1 + options.queues + usize::from(options.has_raw_ring);
        let mut guest = Self::negotiated(stream, options);
        for index in 0..=options.queues {
            let number = u16::try_from(index).expect("few queues");
            let driver = Driver::new(number, options.has_indirect, options.has_event_idx);
            guest.start(index, 0, &driver.place());
            guest.queues.push(Mutex::new(driver));
        }
        if options.has_raw_ring {
            let ring = RawRing::new();
            guest.start(total - 1, 0, &ring.place());
            guest.raw = Some(ring);
        }
        guest
    }

    /// Sets a queue up and starts it at available index `base`.
    pub fn start(&mut self, index: usize, base: u16, place: &Place) {
        let Place { layout, kick, call } = place;
        let memory = memory();
        let addresses = VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            flags: 0,
            desc_table_addr: memory.vmm_address(layout.descriptors),
            used_ring_addr: memory.vmm_address(layout.used),
            avail_ring_addr: memory.vmm_address(layout.available),
            log_addr: None,
        };
        let frontend = &mut self.frontend;
        frontend.set_vring_num(index, QUEUE_SIZE).expect("SET_VRING_NUM");
        frontend.set_vring_base(index, base).expect("SET_VRING_BASE");
        frontend.set_vring_addr(index, &addresses).expect("SET_VRING_ADDR");
        frontend.set_vring_call(index, call).expect("SET_VRING_CALL");
        frontend.set_vring_kick(index, kick).expect("SET_VRING_KICK");
        frontend.set_vring_enable(index, true).expect("SET_VRING_ENABLE");
    }

    /// Stops a queue and gives its next available index.
    pub fn stop(&mut self, index: usize) -> u32 {
        self.frontend.get_vring_base(index).expect("GET_VRING_BASE")
    }

    /// Starts a queue again after [`VirtualGuest::stop`], where it was.
    pub fn resume(&mut self, index: usize, base: u32) {
        let place = self.queue(index).place();
        self.start(index, u16::try_from(base).expect("16 bits"), &place);
    }

    /// What the VMM says to the daemon, for tests of that.
    pub fn frontend(&mut self) -> &mut Frontend {
        &mut self.frontend
    }

    /// The ring written by hand.
    pub fn raw(&mut self) -> &mut RawRing {
        self.raw.as_mut().expect("GuestOptions::has_raw_ring")
    }

    /// What this guest is like.
    pub const fn options(&self) -> GuestOptions {
        self.options
    }

    /// A number no request of this guest had.
    pub fn unique(&self) -> u64 {
        self.unique.fetch_add(2, Ordering::Relaxed) + 2
    }

    /// The driver of queue `index`; 0 is hiprio.
    pub fn queue(&self, index: usize) -> MutexGuard<'_, Driver> {
        self.queues[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a message in any pieces to queue `index`; full queues are waited for.
    pub fn send(&self, index: usize, readable: &[&[u8]], writable: &[usize]) -> Token {
        let end = Instant::now() + crate::virtqueue::DEADLINE;
        loop {
            let pieces = readable.iter().map(|piece| piece.to_vec()).collect();
            if let Some(token) = self.queue(index).submit(pieces, writable) {
                return token;
            }
            assert!(Instant::now() < end, "queue {index} stays full");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sends a message in any pieces and waits for what comes back.
    pub fn request(&self, index: usize, readable: &[&[u8]], writable: &[usize]) -> Used {
        let token = self.send(index, readable, writable);
        self.queue(index).wait(token)
    }

    /// Hangs up as a VMM that was killed does: nothing is stopped.
    pub fn crash(self) {}

    /// Stops all queues, then hangs up.
    pub fn shut_down(mut self) {
        for index in 0..self.queues.len() + usize::from(self.raw.is_some()) {
            self.stop(index);
        }
    }
}

fn negotiate(frontend: &mut Frontend, options: GuestOptions) {
    frontend.set_owner().expect("SET_OWNER");
    let offered = frontend.get_features().expect("GET_FEATURES");
    let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    let wanted = VERSION_1
        | protocol
        | if options.has_event_idx { EVENT_IDX } else { 0 }
        | if options.has_indirect { INDIRECT_DESC } else { 0 };
    assert_eq!(offered & wanted, wanted, "features offered: {offered:#x}");
    let offered = frontend.get_protocol_features().expect("GET_PROTOCOL_FEATURES");
    let known = VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::CONFIG;
    frontend.set_protocol_features(offered & known).expect("SET_PROTOCOL_FEATURES");
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    let queues = frontend.get_queue_num().expect("GET_QUEUE_NUM");
    let needed = 1 + options.queues + usize::from(options.has_raw_ring);
    assert!(queues >= u64::try_from(needed).expect("64 bits"), "only {queues} queues");
    frontend.set_features(wanted).expect("SET_FEATURES");
}
