//! A growable shared memory (memfd) with a safe face.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

/// Bytes of one word.
pub const WORD_BYTES: usize = size_of::<u64>();

/// A memfd as a growing slice of atomic words.
///
/// The whole address range is reserved at the start, so growing never moves a word, and the file
/// can never shrink (`F_SEAL_SHRINK`), so a word once there stays readable while `self` lives.
/// The file outlives the process that has it mapped, as long as somebody holds a descriptor.
pub struct SharedMemory {
    file: OwnedFd,
    base: NonNull<AtomicU64>,
    reserved_bytes: usize,
    /// Length of the file in words; only ever grows.
    words: AtomicUsize,
}

// SAFETY: the mapping belongs to `self` alone, has no thread affinity, and is reached only as
// atomic words.
unsafe impl Send for SharedMemory {}
// SAFETY: as above; concurrent access through `&self` is access to atomics.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// Makes an empty memory that can grow to `reserved_bytes`.
    ///
    /// Source: memfd_create(2).
    pub fn new(name: &str, reserved_bytes: usize) -> Result<Self, Errno> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create(name, flags)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK)?;
        Self::attach(file, reserved_bytes)
    }

    /// Maps a memory that [`SharedMemory::new`] made, perhaps in a process that is gone.
    ///
    /// Errors: `EINVAL` if the file could be shortened under us (a word would then be a SIGBUS)
    /// or is longer than `reserved_bytes`.
    pub fn attach(file: OwnedFd, reserved_bytes: usize) -> Result<Self, Errno> {
        if !rustix::fs::fcntl_get_seals(&file)?.contains(SealFlags::SHRINK) {
            return Err(Errno::INVAL);
        }
        let size = rustix::fs::fstat(&file)?.st_size;
        let size = usize::try_from(size).map_err(|_| Errno::INVAL)?;
        if size > reserved_bytes {
            return Err(Errno::INVAL);
        }
        // SAFETY: a new mapping at an address the kernel chooses; it replaces nothing.
        let address = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                reserved_bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                &file,
                0,
            )
        }?;
        let base = NonNull::new(address.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { file, base, reserved_bytes, words: AtomicUsize::new(size / WORD_BYTES) })
    }

    /// All words there are now.
    pub fn words(&self) -> &[AtomicU64] {
        let words = self.words.load(Ordering::Acquire);
        // SAFETY: `base` is page aligned and maps `reserved_bytes`; the file holds at least
        // `words` words, no more than that, and is sealed against shrinking, so each is backed.
        // The mapping lives as long as `self`. Other processes may write too: the words are
        // atomics, and any bits are a valid u64.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), words) }
    }

    /// Makes it at least `bytes` long; what is new reads as zeros.
    ///
    /// Errors: `ENOSPC` above the reserved size.
    pub fn grow(&self, bytes: usize) -> Result<(), Errno> {
        if bytes > self.reserved_bytes {
            return Err(Errno::NOSPC);
        }
        let words = bytes / WORD_BYTES;
        if words <= self.words.load(Ordering::Acquire) {
            return Ok(());
        }
        // Two growers at once: the seal refuses the shorter one, and the memory is long enough.
        let length = u64::try_from(bytes).map_err(|_| Errno::NOSPC)?;
        if let Err(error) = rustix::fs::ftruncate(&self.file, length) {
            let size = u64::try_from(rustix::fs::fstat(&self.file)?.st_size);
            if error != Errno::PERM || !size.is_ok_and(|size| size >= length) {
                return Err(error);
            }
        }
        self.words.fetch_max(words, Ordering::AcqRel);
        Ok(())
    }

    /// Gives the memory behind `offset` back; it reads as zeros until written again.
    pub fn discard(&self, offset: usize) -> Result<(), Errno> {
        let end = self.words.load(Ordering::Acquire) * WORD_BYTES;
        let Some(size) = end.checked_sub(offset).filter(|size| *size > 0) else { return Ok(()) };
        rustix::fs::fallocate(
            &self.file,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            u64::try_from(offset).map_err(|_| Errno::INVAL)?,
            u64::try_from(size).map_err(|_| Errno::INVAL)?,
        )
    }
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl fmt::Debug for SharedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMemory").field("words", &self.words).finish_non_exhaustive()
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: the range is the one `attach` mapped, and no slice of it outlives `self`.
        let unmapped =
            unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.reserved_bytes) };
        if let Err(error) = unmapped {
            log::error!("munmap of a shared memory: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESERVED: usize = 1 << 20;

    #[test]
    fn words_survive_growth_and_a_second_mapping() {
        let memory = SharedMemory::new("test", RESERVED).unwrap();
        assert!(memory.words().is_empty());
        memory.grow(4096).unwrap();
        let first = &memory.words()[0];
        first.store(7, Ordering::Relaxed);
        memory.grow(8192).unwrap();
        memory.grow(4096).unwrap();
        assert_eq!(memory.words().len(), 1024);
        assert_eq!(first.load(Ordering::Relaxed), 7);

        let file = memory.as_fd().try_clone_to_owned().unwrap();
        drop(memory);
        let again = SharedMemory::attach(file, RESERVED).unwrap();
        assert_eq!(again.words().len(), 1024);
        assert_eq!(again.words()[0].load(Ordering::Relaxed), 7);
    }

    #[test]
    fn discarded_words_read_as_zeros() {
        let memory = SharedMemory::new("test", RESERVED).unwrap();
        memory.grow(8192).unwrap();
        memory.words()[600].store(7, Ordering::Relaxed);
        memory.discard(4096).unwrap();
        assert_eq!(memory.words()[600].load(Ordering::Relaxed), 0);
        memory.discard(RESERVED).unwrap();
    }

    #[test]
    fn what_could_shrink_or_is_too_long_is_refused() {
        let file = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        assert_eq!(SharedMemory::attach(file, RESERVED).err(), Some(Errno::INVAL));
        let memory = SharedMemory::new("test", RESERVED).unwrap();
        assert_eq!(memory.grow(RESERVED + 1), Err(Errno::NOSPC));
        memory.grow(8192).unwrap();
        let file = memory.as_fd().try_clone_to_owned().unwrap();
        assert_eq!(SharedMemory::attach(file, 4096).err(), Some(Errno::INVAL));
    }
}
