//! virtio-drivers' queue over the shared memory: the only unsafe code of the tests.
#![allow(
    unsafe_code,
    reason = "virtio-drivers' Hal and its add/pop_used are unsafe by signature; nothing else is"
)]
#![allow(clippy::expect_used, reason = "a test that cannot drive its queue cannot go on")]

use std::collections::HashMap;
use std::fmt;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::memory::{PAGE_BYTES, memory};

/// Descriptors per queue: a READ of 1 MiB in pages needs 258.
pub const QUEUE_SIZE: u16 = 512;

/// How long a reply may take before the test gives up.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// How long we sleep before we look whether an interrupt was lost.
const NAP_MS: i32 = 2000;

/// Buffers for DMA are copied through the shared memory.
#[derive(Debug)]
enum Bounce {}

fn pages_of(bytes: usize) -> u64 {
    u64::try_from(bytes).expect("64 bits").div_ceil(PAGE_BYTES)
}

// SAFETY: pages come from a shared mapping that lives as long as the process, are page-aligned,
// zeroed, and handed out once until released.
unsafe impl Hal for Bounce {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let address = memory().allocate(u64::try_from(pages).expect("64 bits"));
        (address, NonNull::new(memory().host(address)).expect("a mapping is not at 0"))
    }

    unsafe fn dma_dealloc(address: PhysAddr, _: NonNull<u8>, pages: usize) -> i32 {
        memory().release(address, u64::try_from(pages).expect("64 bits"));
        0
    }

    unsafe fn mmio_phys_to_virt(_: PhysAddr, _: usize) -> NonNull<u8> {
        unreachable!("vhost-user has no MMIO")
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        let address = memory().allocate_dirty(pages_of(buffer.len()));
        if direction == BufferDirection::DriverToDevice {
            // SAFETY: the caller says that `buffer` is valid and nobody else touches it now.
            memory().write(address, unsafe { buffer.as_ref() });
        }
        address
    }

    unsafe fn unshare(address: PhysAddr, mut buffer: NonNull<[u8]>, direction: BufferDirection) {
        if direction == BufferDirection::DeviceToDriver {
            // SAFETY: the caller says that `buffer` is valid and nobody else touches it now.
            memory().read(address, unsafe { buffer.as_mut() });
        }
        memory().release(address, pages_of(buffer.len()));
    }
}

/// Where a queue lies in guest memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layout {
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring.
    pub available: u64,
    /// Used ring.
    pub used: u64,
}

/// What the VMM tells the daemon of a queue.
#[derive(Debug)]
pub struct Place {
    /// Where it lies.
    pub layout: Layout,
    /// What the guest kicks.
    pub kick: EventFd,
    /// What the daemon interrupts.
    pub call: EventFd,
}

/// All of a transport that a queue needs: it learns where the queue lies.
#[derive(Debug, Default)]
struct Learner(Layout);

impl Transport for Learner {
    fn device_type(&self) -> DeviceType {
        // There is none for file systems; nothing looks at it.
        DeviceType::Block
    }
    fn read_device_features(&mut self) -> u64 {
        0
    }
    fn write_driver_features(&mut self, _: u64) {}
    fn max_queue_size(&mut self, _: u16) -> u32 {
        u32::from(QUEUE_SIZE)
    }
    fn notify(&mut self, _: u16) {}
    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::empty()
    }
    fn set_status(&mut self, _: DeviceStatus) {}
    fn set_guest_page_size(&mut self, _: u32) {}
    fn requires_legacy_layout(&self) -> bool {
        false
    }
    fn queue_set(&mut self, _: u16, _: u32, descriptors: u64, available: u64, used: u64) {
        self.0 = Layout { descriptors, available, used };
    }
    fn queue_unset(&mut self, _: u16) {}
    fn queue_used(&mut self, _: u16) -> bool {
        false
    }
    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::empty()
    }
    fn read_config_generation(&self) -> u32 {
        0
    }
    fn read_config_space<T: FromBytes + IntoBytes>(&self, _: usize) -> virtio_drivers::Result<T> {
        Err(virtio_drivers::Error::Unsupported)
    }
    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        _: usize,
        _: T,
    ) -> virtio_drivers::Result<()> {
        Err(virtio_drivers::Error::Unsupported)
    }
}

/// What came back for one request: the used length, and the writable buffers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Used {
    /// The used length.
    pub bytes: u32,
    /// All writable buffers, one after the other, whole.
    pub written: Vec<u8>,
}

/// Names a request until its reply is taken, when its descriptors may long serve another.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Token(u64);

/// One virtqueue as a Linux driver drives it.
pub struct Driver {
    queue: VirtQueue<Bounce, { QUEUE_SIZE as usize }>,
    layout: Layout,
    kick: EventFd,
    call: EventFd,
    /// Waits for `call`.
    poll: Epoll,
    /// Buffers of what is under way; their heap memory must not move.
    pending: HashMap<u16, (Token, Buffers)>,
    submitted: u64,
    done: HashMap<Token, Used>,
}

#[derive(Debug)]
struct Buffers {
    readable: Vec<Vec<u8>>,
    writable: Vec<Vec<u8>>,
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("layout", &self.layout).finish_non_exhaustive()
    }
}

impl Driver {
    /// A queue in fresh memory.
    pub fn new(index: u16, has_indirect: bool, has_event_idx: bool) -> Self {
        let mut learner = Learner::default();
        let queue = VirtQueue::new(&mut learner, index, has_indirect, has_event_idx);
        let call = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).expect("eventfd");
        let poll = Epoll::new().expect("epoll");
        let watch = EpollEvent::new(EventSet::IN, 0);
        poll.ctl(ControlOperation::Add, call.as_raw_fd(), watch).expect("epoll");
        Self {
            queue: queue.expect("memory for a queue"),
            layout: learner.0,
            kick: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).expect("eventfd"),
            call,
            poll,
            pending: HashMap::new(),
            submitted: 0,
            done: HashMap::new(),
        }
    }

    /// What the VMM tells the daemon of it.
    pub fn place(&self) -> Place {
        Place {
            layout: self.layout,
            kick: self.kick.try_clone().expect("descriptor"),
            call: self.call.try_clone().expect("descriptor"),
        }
    }

    /// How many requests are under way.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Makes a chain available and kicks if the daemon wants that; `None` if the queue is full.
    /// Empty pieces are left out, as a driver does.
    pub fn submit(&mut self, mut readable: Vec<Vec<u8>>, writable: &[usize]) -> Option<Token> {
        readable.retain(|piece| !piece.is_empty());
        let writable = writable.iter().filter(|bytes| **bytes > 0);
        let writable: Vec<_> = writable.map(|bytes| vec![0; *bytes]).collect();
        let mut buffers = Buffers { readable, writable };
        let inputs: Vec<&[u8]> = buffers.readable.iter().map(Vec::as_slice).collect();
        let mut outputs: Vec<&mut [u8]> =
            buffers.writable.iter_mut().map(Vec::as_mut_slice).collect();
        // SAFETY: the buffers go into `pending`, which nobody touches until the token is popped;
        // moving the vectors leaves their heap memory where it is.
        let added = unsafe { self.queue.add(&inputs, &mut outputs) };
        let head = match added {
            Ok(head) => head,
            Err(virtio_drivers::Error::QueueFull) => return None,
            Err(error) => panic!("add: {error}"),
        };
        self.submitted += 1;
        let token = Token(self.submitted);
        self.pending.insert(head, (token, buffers));
        // The available index must be visible before the daemon's wish is read: it may be going
        // to sleep just now.
        fence(Ordering::SeqCst);
        if self.queue.should_notify() {
            self.kick.write(1).expect("kick");
        }
        Some(token)
    }

    /// Waits for the reply to `token`. Panics when it takes longer than [`DEADLINE`], or when the
    /// reply was there and no interrupt told us.
    pub fn wait(&mut self, token: Token) -> Used {
        let end = Instant::now() + DEADLINE;
        loop {
            self.collect();
            if let Some(used) = self.done.remove(&token) {
                return used;
            }
            assert!(Instant::now() < end, "no reply to {token:?} within {DEADLINE:?}");
            self.sleep();
        }
    }

    /// The reply to `token` if it came within `patience`.
    pub fn wait_for(&mut self, token: Token, patience: Duration) -> Option<Used> {
        let end = Instant::now() + patience;
        loop {
            self.collect();
            if let Some(used) = self.done.remove(&token) {
                return Some(used);
            }
            if Instant::now() >= end {
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Takes everything off the used ring.
    fn collect(&mut self) {
        loop {
            // The event index was stored by the last pop: it must be visible before we look and
            // then sleep.
            fence(Ordering::SeqCst);
            let Some(head) = self.queue.peek_used() else { return };
            let pending = self.pending.remove(&head);
            let (token, mut buffers) = pending.expect("a used entry for a pending chain");
            let inputs: Vec<&[u8]> = buffers.readable.iter().map(Vec::as_slice).collect();
            let mut outputs: Vec<&mut [u8]> =
                buffers.writable.iter_mut().map(Vec::as_mut_slice).collect();
            // SAFETY: these are the buffers `submit` added under this token.
            let popped = unsafe { self.queue.pop_used(head, &inputs, &mut outputs) };
            let bytes = popped.expect("the entry just peeked at");
            self.done.insert(token, Used { bytes, written: buffers.writable.concat() });
        }
    }

    fn sleep(&mut self) {
        let mut events = [EpollEvent::default()];
        let woken = self.poll.wait(NAP_MS, &mut events).expect("epoll");
        if woken > 0 {
            self.call.read().expect("an interrupt");
        } else {
            assert!(!self.queue.can_pop(), "a reply came without an interrupt");
        }
    }
}
