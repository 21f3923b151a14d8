//! A ring written by hand: for chains and indices no driver would make.

use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::memory::{PAGE_BYTES, memory};
use crate::virtqueue::{Layout, Place, QUEUE_SIZE};

/// `VRING_DESC_F_NEXT`.
pub const NEXT: u16 = 1;
/// `VRING_DESC_F_WRITE`.
pub const WRITE: u16 = 2;
/// `VRING_DESC_F_INDIRECT`.
pub const INDIRECT: u16 = 4;

/// A descriptor as it stands in a table.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    /// Guest address.
    pub address: u64,
    /// Length in bytes.
    pub bytes: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// Index of the next.
    pub next: u16,
}

/// One virtqueue without a driver.
#[derive(Debug)]
pub struct RawRing {
    layout: Layout,
    kick: EventFd,
    call: EventFd,
    available: u16,
    used: u16,
}

#[allow(clippy::expect_used, reason = "a test that cannot write its ring cannot go on")]
impl RawRing {
    /// An empty ring in fresh memory.
    pub fn new() -> Self {
        let size = u64::from(QUEUE_SIZE);
        let table = memory().allocate((size * 16).div_ceil(PAGE_BYTES));
        let available = memory().allocate((size * 2 + 6).div_ceil(PAGE_BYTES));
        let used = memory().allocate((size * 8 + 6).div_ceil(PAGE_BYTES));
        Self {
            layout: Layout { descriptors: table, available, used },
            kick: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).expect("eventfd"),
            call: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).expect("eventfd"),
            available: 0,
            used: 0,
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

    /// Writes descriptor `index` of the queue's own table.
    pub fn describe(&self, index: u16, descriptor: Descriptor) {
        write_descriptor(self.layout.descriptors, index, descriptor);
    }

    /// Puts `head` into the available ring and moves the index; kicks not.
    pub fn make_available(&mut self, head: u16) {
        let slot = u64::from(self.available % QUEUE_SIZE);
        memory().write(self.layout.available + 4 + slot * 2, &head.to_le_bytes());
        self.set_available_index(self.available.wrapping_add(1));
    }

    /// Sets the available index to anything.
    pub fn set_available_index(&mut self, index: u16) {
        self.available = index;
        memory().write(self.layout.available + 2, &index.to_le_bytes());
    }

    /// Kicks.
    pub fn kick(&self) {
        self.kick.write(1).expect("kick");
    }

    /// The next used entry (head, length) if it comes within `patience`.
    pub fn wait_used(&mut self, patience: Duration) -> Option<(u32, u32)> {
        let end = Instant::now() + patience;
        while memory().read_u16(self.layout.used + 2) == self.used {
            if Instant::now() >= end {
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let entry = self.layout.used + 4 + u64::from(self.used % QUEUE_SIZE) * 8;
        self.used = self.used.wrapping_add(1);
        Some((memory().read_u32(entry), memory().read_u32(entry + 4)))
    }
}

impl Default for RawRing {
    fn default() -> Self {
        Self::new()
    }
}

/// Writes descriptor `index` of the table at `table`, which may be an indirect one.
pub fn write_descriptor(table: u64, index: u16, descriptor: Descriptor) {
    let mut raw = Vec::with_capacity(16);
    raw.extend_from_slice(&descriptor.address.to_le_bytes());
    raw.extend_from_slice(&descriptor.bytes.to_le_bytes());
    raw.extend_from_slice(&descriptor.flags.to_le_bytes());
    raw.extend_from_slice(&descriptor.next.to_le_bytes());
    memory().write(table + u64::from(index) * 16, &raw);
}
