//! A virtqueue whose driver costs next to nothing, so that what is measured is the daemon.
//!
//! Its buffers lie ready in guest memory, one slot per request in flight; a chain is described
//! anew only when its shape changes. As Linux does it: header, arguments and data in pieces of
//! their own, data in pages, everything behind one indirect descriptor.
#![allow(clippy::expect_used, reason = "a bench that cannot drive its queue cannot go on")]

use std::os::fd::AsRawFd as _;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::memory::{PAGE_BYTES, memory};
use crate::raw_ring::{Descriptor, INDIRECT, NEXT, WRITE, write_descriptor};
use crate::virtqueue::{Layout, Place, QUEUE_SIZE};
use crate::wire::OUT_HEADER_BYTES;

/// How long a reply may take: a copy of 1 GiB on a busy disk is within it.
const DEADLINE: Duration = Duration::from_secs(120);

/// How many microseconds a client watches for a reply before it sleeps, unless it is told otherwise: as long as
/// KVM on x86 polls for a halted vCPU's interrupt before the vCPU's thread sleeps.
///
/// Source: arch/x86/include/asm/kvm_host.h, `KVM_HALT_POLL_NS_DEFAULT`; docs/decisions/0016.
pub const WATCH_US: u64 = 200;

/// The same.
pub const WATCH: Duration = Duration::from_micros(WATCH_US);

/// Looks between two glances at the clock.
const LOOKS: u32 = 32;

/// The most data a request or a reply carries.
pub const DATA_BYTES_MAX: usize = 1 << 20;

/// `struct fuse_in_header`.
const IN_HEADER_BYTES: usize = 40;

/// Requests in flight at once.
pub const SLOTS: usize = 17;

/// FORGETs in flight at once.
pub const FORGETS: usize = 256;

/// Bytes of the largest BATCH_FORGET's nodes, and more.
const FORGET_BYTES: usize = 4096;

/// The sizes of a request's parts; the chain's layout follows from them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Shape {
    message: usize,
    data: usize,
    room: usize,
    has_reply: bool,
}

/// Where one request's parts lie in guest memory.
#[derive(Debug)]
struct Slot {
    table: u64,
    message: u64,
    data: u64,
    header: u64,
    body: u64,
    shape: Shape,
}

/// One hand-driven queue with EVENT_IDX.
#[derive(Debug)]
pub struct Lane {
    layout: Layout,
    kick: EventFd,
    call: EventFd,
    poll: Epoll,
    slots: Vec<Slot>,
    /// The most data one of them carries.
    data_bytes: usize,
    available: u16,
    used: u16,
    watch_for: Duration,
}

fn bytes_of(pages: usize) -> u64 {
    memory().allocate(u64::try_from(pages).expect("64 bits"))
}

fn guest(bytes: usize) -> u64 {
    u64::try_from(bytes).expect("64 bits")
}

impl Lane {
    /// An empty queue for requests in fresh memory, which the caller gives back with [`Lane::release`]. Its driver
    /// watches for each reply for `watch_for`, then sleeps; if that is zero, it sleeps at once.
    pub fn for_requests(watch_for: Duration) -> Self {
        Self::new(watch_for, SLOTS, DATA_BYTES_MAX)
    }

    /// The same for what gets no reply.
    pub fn for_forgets(watch_for: Duration) -> Self {
        Self::new(watch_for, FORGETS, FORGET_BYTES)
    }

    fn new(watch_for: Duration, slots: usize, data_bytes: usize) -> Self {
        let size = u64::from(QUEUE_SIZE);
        let area = |bytes: u64| memory().allocate(bytes.div_ceil(PAGE_BYTES));
        let layout = Layout {
            descriptors: area(size * 16),
            available: area(size * 2 + 6),
            used: area(size * 8 + 6),
        };
        let data_pages = data_bytes / 4096;
        let slots = (0..slots).map(|_| Slot {
            table: bytes_of(3),
            message: bytes_of(1),
            data: bytes_of(data_pages),
            header: bytes_of(1),
            body: bytes_of(data_pages),
            shape: Shape::default(),
        });
        let slots = slots.collect();
        let call = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).expect("eventfd");
        let poll = Epoll::new().expect("epoll");
        // Never read: each write is an edge of its own, which saves the client a call.
        let watch = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
        poll.ctl(ControlOperation::Add, call.as_raw_fd(), watch).expect("epoll");
        let kick = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).expect("eventfd");
        Self { layout, kick, call, poll, slots, data_bytes, available: 0, used: 0, watch_for }
    }

    /// What the VMM tells the daemon of it.
    pub fn place(&self) -> Place {
        Place {
            layout: self.layout,
            kick: self.kick.try_clone().expect("descriptor"),
            call: self.call.try_clone().expect("descriptor"),
        }
    }

    /// Gives the memory back. The daemon must not use the queue any more.
    pub fn release(self) {
        let size = u64::from(QUEUE_SIZE);
        let memory = memory();
        let give = |address, bytes: u64| memory.release(address, bytes.div_ceil(PAGE_BYTES));
        give(self.layout.descriptors, size * 16);
        give(self.layout.available, size * 2 + 6);
        give(self.layout.used, size * 8 + 6);
        for slot in self.slots {
            give(slot.table, 3 * PAGE_BYTES);
            give(slot.message, PAGE_BYTES);
            give(slot.data, guest(self.data_bytes));
            give(slot.header, PAGE_BYTES);
            give(slot.body, guest(self.data_bytes));
        }
    }

    /// Puts a WRITE's data into a slot.
    pub fn fill(&self, slot: usize, data: &[u8]) {
        memory().write(self.slots[slot].data, data);
    }

    /// Makes a request available: `message`, then `data` bytes of what [`Lane::fill`] left, with
    /// room for a reply body of `room` bytes (`None`: it gets no reply). Kicks if wanted.
    pub fn submit(&mut self, slot: usize, message: &[u8], data: usize, room: Option<usize>) {
        let shape = Shape {
            message: message.len(),
            data,
            room: room.unwrap_or(0),
            has_reply: room.is_some(),
        };
        memory().write(self.slots[slot].message, message);
        let index = u16::try_from(slot).expect("few slots");
        if self.slots[slot].shape != shape {
            self.describe(index, shape);
        }
        if !self.watch_for.is_zero() {
            // As Linux does, which asks for an interrupt again once it has drained the ring.
            self.ask_for_interrupt();
        }
        let entry = self.layout.available + 4 + u64::from(self.available % QUEUE_SIZE) * 2;
        memory().write(entry, &index.to_le_bytes());
        let old = self.available;
        self.available = old.wrapping_add(1);
        fence(Ordering::Release);
        memory().write(self.layout.available + 2, &self.available.to_le_bytes());
        // The index must be visible before the daemon's wish is read: it may be going to sleep.
        fence(Ordering::SeqCst);
        // virtio_ring.h: vring_need_event.
        let event = memory().read_u16(self.layout.used + 4 + u64::from(QUEUE_SIZE) * 8);
        if self.available.wrapping_sub(event).wrapping_sub(1) < self.available.wrapping_sub(old) {
            self.kick.write(1).expect("kick");
        }
    }

    fn describe(&mut self, index: u16, shape: Shape) {
        let slot = &mut self.slots[usize::from(index)];
        slot.shape = shape;
        let mut parts = pieces(slot.message, IN_HEADER_BYTES, 0);
        parts.extend(pieces(slot.message + 40, shape.message - IN_HEADER_BYTES, 0));
        parts.extend(pieces(slot.data, shape.data, 0));
        if shape.has_reply {
            parts.extend(pieces(slot.header, OUT_HEADER_BYTES, WRITE));
            parts.extend(pieces(slot.body, shape.room, WRITE));
        }
        let last = parts.len() - 1;
        for (at, part) in parts.iter_mut().enumerate() {
            let number = u16::try_from(at).expect("few pieces");
            part.flags |= if at == last { 0 } else { NEXT };
            part.next = if at == last { 0 } else { number + 1 };
            write_descriptor(slot.table, number, *part);
        }
        let bytes = u32::try_from(parts.len() * 16).expect("a short table");
        let whole = Descriptor { address: slot.table, bytes, flags: INDIRECT, next: 0 };
        write_descriptor(self.layout.descriptors, index, whole);
    }

    /// Waits for any reply; gives its slot and used length.
    pub fn wait(&mut self) -> (usize, usize) {
        if !self.has_come() && !self.watch() {
            self.sleep();
        }
        fence(Ordering::Acquire);
        let entry = self.layout.used + 4 + u64::from(self.used % QUEUE_SIZE) * 8;
        self.used = self.used.wrapping_add(1);
        let field = |at| usize::try_from(memory().read_u32(at)).expect("64 bits");
        (field(entry), field(entry + 4))
    }

    /// Whether there is a reply to take.
    fn has_come(&self) -> bool {
        memory().read_u16(self.layout.used + 2) != self.used
    }

    /// used_event: interrupt us for the next entry.
    fn ask_for_interrupt(&self) {
        let event = self.layout.available + 4 + u64::from(QUEUE_SIZE) * 2;
        memory().write(event, &self.used.to_le_bytes());
        fence(Ordering::SeqCst);
    }

    /// Watches for a reply, with interrupts on; says whether one came.
    fn watch(&self) -> bool {
        if self.watch_for.is_zero() {
            return false;
        }
        self.ask_for_interrupt();
        let start = Instant::now();
        while start.elapsed() < self.watch_for {
            for _ in 0..LOOKS {
                if self.has_come() {
                    return true;
                }
                std::hint::spin_loop();
            }
        }
        false
    }

    /// Sleeps until the used index moves. An interrupt that came while nobody slept ends the sleep
    /// once, to no purpose.
    fn sleep(&self) {
        let end = Instant::now() + DEADLINE;
        loop {
            self.ask_for_interrupt();
            if self.has_come() {
                return;
            }
            let woken = self.poll.wait(1000, &mut [EpollEvent::default()]).expect("epoll");
            assert!(woken > 0 || !self.has_come(), "a reply came without an interrupt");
            assert!(Instant::now() < end, "no reply within {DEADLINE:?}");
        }
    }

    /// How many interrupts came since this was last asked.
    pub fn take_interrupts(&self) -> u64 {
        // EAGAIN: none.
        self.call.read().unwrap_or(0)
    }

    /// The reply's header, as the daemon wrote it.
    pub fn header(&self, slot: usize) -> [u8; OUT_HEADER_BYTES] {
        let mut header = [0; OUT_HEADER_BYTES];
        memory().read(self.slots[slot].header, &mut header);
        header
    }

    /// Copies the front of a reply's body.
    pub fn body(&self, slot: usize, into: &mut [u8]) {
        memory().read(self.slots[slot].body, into);
    }
}

impl Default for Lane {
    fn default() -> Self {
        Self::for_requests(WATCH)
    }
}

/// `bytes` from `address` on, in pages.
fn pieces(address: u64, bytes: usize, flags: u16) -> Vec<Descriptor> {
    let piece = |at: usize| Descriptor {
        address: address + guest(at),
        bytes: u32::try_from((bytes - at).min(4096)).expect("a page"),
        flags,
        next: 0,
    };
    (0..bytes).step_by(4096).map(piece).collect()
}
