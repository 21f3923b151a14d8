//! A single-pass, limited walk of descriptor chains.
//!
//! A chain becomes two bounded lists of checked ranges of guest memory. Each descriptor is read
//! once, because the guest may change it any time; what was read is then checked and used.
//! A malformed chain is an error, never a silently shorter chain.

use std::sync::Arc;

use rustix::io::Errno;
use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

use crate::sys::guest_memory::{GuestBuffers, GuestMemory};

/// The most descriptors a chain may have, the indirect one aside; also the largest queue offered.
/// A driver must not make a chain longer than its queue (virtio 1.2, 2.7.5.2).
pub const CHAIN_DESCRIPTORS_MAX: usize = 1024;

/// virtio 1.2, 2.7.5: address (8), length (4), flags (2), next (2), little endian.
const DESCRIPTOR_BYTES: usize = 16;

/// virtio_ring.h: `VRING_DESC_F_NEXT`.
const FLAG_NEXT: u16 = 1;
/// virtio_ring.h: `VRING_DESC_F_WRITE`.
const FLAG_WRITE: u16 = 2;
/// virtio_ring.h: `VRING_DESC_F_INDIRECT`.
const FLAG_INDIRECT: u16 = 4;

/// What makes a chain unusable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Malformed {
    /// A head or next index beyond the table.
    #[error("descriptor {index} of a table of {size}")]
    Index {
        /// The index.
        index: u16,
        /// Descriptors in the table.
        size: usize,
    },
    /// A table that is not wholly inside one region of the guest's memory.
    #[error("descriptor table at {address:#x} outside the guest's memory")]
    Table {
        /// Its guest address.
        address: u64,
    },
    /// An indirect table that is empty or not a whole number of descriptors.
    #[error("indirect table of {bytes} bytes")]
    IndirectSize {
        /// Its length in bytes.
        bytes: u32,
    },
    /// An indirect descriptor inside an indirect table, or one that also has a next.
    #[error("indirect descriptor where none may be")]
    Nested,
    /// More than [`CHAIN_DESCRIPTORS_MAX`] descriptors, which a loop has as well.
    #[error("more than {CHAIN_DESCRIPTORS_MAX} descriptors in a chain (or a loop)")]
    TooLong,
    /// A readable descriptor behind a writable one.
    #[error("readable descriptor after a writable one")]
    Order,
    /// Memory the guest does not have.
    #[error("{bytes} bytes at {address:#x} outside the guest's memory")]
    Memory {
        /// Guest address.
        address: u64,
        /// Length in bytes.
        bytes: u32,
    },
}

/// Where a queue's descriptor table lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Table {
    /// Guest address.
    pub address: u64,
    /// Descriptors in it.
    pub size: u16,
}

/// One request as the guest laid it out: what it wrote for us, and where our reply goes.
#[derive(Debug, Default)]
pub struct Chain {
    /// The index that goes back with the used entry.
    pub head: u16,
    /// The request.
    pub readable: GuestBuffers,
    /// Room for the reply.
    pub writable: GuestBuffers,
}

impl Chain {
    /// Reads the chain that starts at `head` into `self`, whose former content is dropped.
    ///
    /// Errors: what is wrong with it; `self` is then not to be used, but its `head` is set.
    pub fn walk(
        &mut self,
        memory: &Arc<GuestMemory>,
        table: Table,
        head: u16,
    ) -> Result<(), Malformed> {
        self.head = head;
        self.readable.reset(memory);
        self.writable.reset(memory);
        let direct = Descriptors::direct(memory, table)?;
        let mut walked = Walked::default();
        match self.follow(&direct, head, &mut walked)? {
            None => Ok(()),
            Some(last) => {
                let indirect = Descriptors::indirect(memory, &last)?;
                match self.follow(&indirect, 0, &mut walked)? {
                    None => Ok(()),
                    Some(_) => Err(Malformed::Nested),
                }
            }
        }
    }

    /// Forgets the guest's memory, so that an idle worker does not keep it mapped.
    pub fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
    }

    /// Takes descriptors from `start` on until the chain ends (`None`) or goes on in an indirect
    /// table (the descriptor of that table).
    fn follow(
        &mut self,
        table: &Descriptors<'_>,
        start: u16,
        walked: &mut Walked,
    ) -> Result<Option<Descriptor>, Malformed> {
        let mut index = start;
        loop {
            let descriptor = table.read(index)?;
            let has_next = descriptor.flags & FLAG_NEXT != 0;
            if descriptor.flags & FLAG_INDIRECT != 0 {
                return if has_next { Err(Malformed::Nested) } else { Ok(Some(descriptor)) };
            }
            walked.count(&descriptor)?;
            self.push(&descriptor)?;
            if !has_next {
                return Ok(None);
            }
            index = descriptor.next;
        }
    }

    fn push(&mut self, descriptor: &Descriptor) -> Result<(), Malformed> {
        let is_writable = descriptor.flags & FLAG_WRITE != 0;
        let list = if is_writable { &mut self.writable } else { &mut self.readable };
        list.push(descriptor.address, descriptor.bytes, CHAIN_DESCRIPTORS_MAX).map_err(|errno| {
            match errno {
                Errno::TOOBIG => Malformed::TooLong,
                _ => Malformed::Memory { address: descriptor.address, bytes: descriptor.bytes },
            }
        })
    }
}

/// What a walk has seen so far.
#[derive(Default)]
struct Walked {
    descriptors: usize,
    has_writable: bool,
}

impl Walked {
    fn count(&mut self, descriptor: &Descriptor) -> Result<(), Malformed> {
        self.descriptors += 1;
        if self.descriptors > CHAIN_DESCRIPTORS_MAX {
            return Err(Malformed::TooLong);
        }
        if descriptor.flags & FLAG_WRITE != 0 {
            self.has_writable = true;
        } else if self.has_writable {
            return Err(Malformed::Order);
        }
        Ok(())
    }
}

/// A descriptor as it was when we read it.
#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    bytes: u32,
    flags: u16,
    next: u16,
}

/// A descriptor table in guest memory, found once per chain.
struct Descriptors<'a> {
    slice: VolatileSlice<'a>,
    size: usize,
}

impl<'a> Descriptors<'a> {
    fn direct(memory: &'a GuestMemory, table: Table) -> Result<Self, Malformed> {
        Self::at(memory, table.address, usize::from(table.size))
    }

    fn indirect(memory: &'a GuestMemory, descriptor: &Descriptor) -> Result<Self, Malformed> {
        let bytes = usize::try_from(descriptor.bytes).unwrap_or(usize::MAX);
        if bytes == 0 || !bytes.is_multiple_of(DESCRIPTOR_BYTES) {
            return Err(Malformed::IndirectSize { bytes: descriptor.bytes });
        }
        Self::at(memory, descriptor.address, bytes / DESCRIPTOR_BYTES)
    }

    fn at(memory: &'a GuestMemory, address: u64, size: usize) -> Result<Self, Malformed> {
        let slice = memory
            .get_slice(GuestAddress(address), size * DESCRIPTOR_BYTES)
            .map_err(|_| Malformed::Table { address })?;
        Ok(Self { slice, size })
    }

    fn read(&self, index: u16) -> Result<Descriptor, Malformed> {
        let outside = Malformed::Index { index, size: self.size };
        let at = usize::from(index);
        if at >= self.size {
            return Err(outside);
        }
        let mut raw = [0; DESCRIPTOR_BYTES];
        let slice = self.slice.subslice(at * DESCRIPTOR_BYTES, DESCRIPTOR_BYTES);
        slice.map_err(|_| outside)?.copy_to(&mut raw);
        let [a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, f0, f1, n0, n1] = raw;
        Ok(Descriptor {
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            bytes: u32::from_le_bytes([b0, b1, b2, b3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes as _;

    const TABLE: Table = Table { address: 0x1000, size: 16 };

    fn memory() -> Arc<GuestMemory> {
        let ranges = [(GuestAddress(0), 0x8000), (GuestAddress(0x8000), 0x8000)];
        Arc::new(GuestMemory::from_ranges(&ranges).unwrap())
    }

    fn describe(
        memory: &GuestMemory,
        at: u64,
        (address, bytes, flags, next): (u64, u32, u16, u16),
    ) {
        let mut raw = address.to_le_bytes().to_vec();
        raw.extend_from_slice(&bytes.to_le_bytes());
        raw.extend_from_slice(&flags.to_le_bytes());
        raw.extend_from_slice(&next.to_le_bytes());
        memory.write_slice(&raw, GuestAddress(at)).unwrap();
    }

    #[test]
    fn direct_descriptors_may_end_in_an_indirect_table() {
        let memory = memory();
        describe(&memory, 0x1000 + 5 * 16, (0x2000, 40, FLAG_NEXT, 2));
        describe(&memory, 0x1000 + 2 * 16, (0x3000, 32, FLAG_INDIRECT | FLAG_WRITE, 0));
        describe(&memory, 0x3000, (0x2100, 8, FLAG_NEXT, 1));
        describe(&memory, 0x3010, (0x7ff0, 32, FLAG_WRITE, 0));
        let mut chain = Chain::default();
        assert_eq!(chain.walk(&memory, TABLE, 5), Ok(()));
        let bytes = (chain.head, chain.readable.bytes(), chain.writable.bytes());
        assert_eq!(bytes, (5, 48, 32));
    }

    /// Random tables over a memory full of random descriptors: whatever a walk says, it says it
    /// within its limits.
    #[test]
    fn random_tables_never_pass_the_limits() {
        let memory = memory();
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut chain = Chain::default();
        let mut sound = 0;
        for _ in 0..20_000 {
            for index in 0..16 {
                let [a, b, c, d, ..] = random().to_le_bytes();
                let address = u64::from(a) << 8;
                let bytes = if b < 200 { u32::from(b) * 16 } else { u32::from(b) << 24 };
                let next = u16::from(d % 18);
                describe(&memory, 0x1000 + index * 16, (address, bytes, u16::from(c % 8), next));
            }
            let head = random().to_le_bytes()[0] % 17;
            if chain.walk(&memory, TABLE, u16::from(head)).is_ok() {
                sound += 1;
                let most = CHAIN_DESCRIPTORS_MAX * 0x1_0000;
                assert!(chain.readable.bytes() + chain.writable.bytes() <= most);
            }
        }
        assert!((100..19_000).contains(&sound), "{sound} sound chains: both kinds must occur");
    }
}
