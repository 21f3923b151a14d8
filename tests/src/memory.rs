//! The guests' memory: one memfd per test process, shared with the daemon.
//!
//! All virtual guests of a process live in it, each with pages of its own. The daemon sees it as
//! two regions that touch at [`SPLIT`], so that a buffer across them is a buffer across regions.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Where the memory begins for the guest. Not 0: virtio-drivers takes that for "none".
pub const BASE: u64 = 0x10_0000;

/// Its size; only what is touched exists.
pub const BYTES: u64 = 1 << 30;

/// Where the first region the daemon sees ends and the second begins. A page on each side is
/// never handed out.
pub const SPLIT: u64 = BASE + (16 << 20);

/// virtio-drivers' unit of allocation.
pub const PAGE_BYTES: u64 = 4096;

/// The memory of this process's virtual guests.
#[derive(Debug)]
pub struct Memory {
    file: File,
    mapped: GuestMemoryMmap<()>,
    free: Mutex<Free>,
}

#[derive(Debug)]
struct Free {
    /// The first page never handed out.
    next: u64,
    /// Runs given back, by their number of pages.
    runs: BTreeMap<u64, Vec<u64>>,
}

/// The one memory of this process.
pub fn memory() -> &'static Memory {
    static MEMORY: OnceLock<Memory> = OnceLock::new();
    MEMORY.get_or_init(Memory::new)
}

#[allow(clippy::expect_used, reason = "a test without memory cannot go on")]
impl Memory {
    fn new() -> Self {
        let file = memfd_create("virtual-guest", MemfdFlags::CLOEXEC).expect("memfd");
        ftruncate(&file, BYTES).expect("room in memory");
        let file = File::from(file);
        let shared = FileOffset::new(file.try_clone().expect("descriptor"), 0);
        let bytes = usize::try_from(BYTES).expect("64 bits");
        let range = (GuestAddress(BASE), bytes, Some(shared));
        let mapped = GuestMemoryMmap::from_ranges_with_files([range]).expect("mapping");
        let free = Free { next: BASE, runs: BTreeMap::new() };
        Self { file, mapped, free: Mutex::new(free) }
    }

    /// Zeroed pages; gives their guest address.
    pub fn allocate(&self, pages: u64) -> u64 {
        let address = self.allocate_dirty(pages);
        for page in 0..pages {
            self.write(address + page * PAGE_BYTES, &[0; 4096]);
        }
        address
    }

    /// Pages with anything in them.
    pub fn allocate_dirty(&self, pages: u64) -> u64 {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(address) = free.runs.get_mut(&pages).and_then(Vec::pop) {
            return address;
        }
        let reserved = SPLIT - PAGE_BYTES..SPLIT + PAGE_BYTES;
        if free.next < reserved.end && free.next + pages * PAGE_BYTES > reserved.start {
            free.next = reserved.end;
        }
        let address = free.next;
        free.next += pages * PAGE_BYTES;
        assert!(free.next <= BASE + BYTES, "the virtual guests' memory is used up");
        address
    }

    /// Gives pages back.
    pub fn release(&self, address: u64, pages: u64) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.runs.entry(pages).or_default().push(address);
    }

    /// The address of this process at which `address` lies.
    pub fn host(&self, address: u64) -> *mut u8 {
        self.mapped.get_host_address(GuestAddress(address)).expect("an address of the guest's")
    }

    /// Writes guest memory.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.mapped.write_slice(bytes, GuestAddress(address)).expect("inside the guest's memory");
    }

    /// Reads guest memory.
    pub fn read(&self, address: u64, into: &mut [u8]) {
        self.mapped.read_slice(into, GuestAddress(address)).expect("inside the guest's memory");
    }

    /// Reads two bytes, little endian.
    pub fn read_u16(&self, address: u64) -> u16 {
        let mut raw = [0; 2];
        self.read(address, &mut raw);
        u16::from_le_bytes(raw)
    }

    /// Reads four bytes, little endian.
    pub fn read_u32(&self, address: u64) -> u32 {
        let mut raw = [0; 4];
        self.read(address, &mut raw);
        u32::from_le_bytes(raw)
    }

    /// What SET_MEM_TABLE says of it.
    pub fn regions(&self) -> [VhostUserMemoryRegionInfo; 2] {
        let region = |from: u64, to: u64| VhostUserMemoryRegionInfo {
            guest_phys_addr: from,
            memory_size: to - from,
            userspace_addr: self.vmm_address(from),
            mmap_offset: from - BASE,
            mmap_handle: self.file.as_raw_fd(),
        };
        [region(BASE, SPLIT), region(SPLIT, BASE + BYTES)]
    }

    /// The address by which the VMM names guest memory in SET_VRING_ADDR.
    pub fn vmm_address(&self, address: u64) -> u64 {
        u64::try_from(self.host(address).addr()).expect("64 bits")
    }
}
