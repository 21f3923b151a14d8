//! A read-only file mapping with a safe face.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// The bytes of a file, shared through the page cache with everyone who maps it.
///
/// For files that are only ever replaced by rename: one that is truncated while it is mapped
/// ends the process with SIGBUS, and one that is written to changes under the reader.
pub struct Mapping {
    address: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is read-only and belongs to no thread; unmapping happens once, in drop.
unsafe impl Send for Mapping {}
// SAFETY: shared references only ever read.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `bytes` of `fd`.
    ///
    /// Errors: `EINVAL` for no bytes at all, else mmap(2)'s.
    pub fn read_only(fd: BorrowedFd<'_>, bytes: usize) -> Result<Self, Errno> {
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory of ours.
        let address =
            unsafe { mmap(ptr::null_mut(), bytes, ProtFlags::READ, MapFlags::SHARED, fd, 0) }?;
        let address = NonNull::new(address.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { address, bytes })
    }

    /// The mapped bytes.
    pub const fn as_bytes(&self) -> &[u8] {
        // SAFETY: mmap gave `bytes` readable bytes at `address`, which stay until drop; the caller
        // of `read_only` vouches that the file's contents do not change (it is only renamed over).
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.bytes) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: address and length are those mmap gave, and no borrow of the bytes outlives us.
        let unmapped = unsafe { munmap(self.address.as_ptr().cast(), self.bytes) };
        if let Err(error) = unmapped {
            log::error!("unmapping {} bytes: {error}", self.bytes);
        }
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}
