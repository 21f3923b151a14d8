//! Guest memory: checked ranges of it, copies out and in, and vectored file input and output
//! straight to and from it.
//!
//! The guest may write its memory while we use it. So no `&[u8]` or `&mut [u8]` of it ever
//! exists: bytes are copied through vm-memory's volatile accesses, or the kernel moves them.

use std::borrow::Cow;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use libc::iovec;
use rustix::io::Errno;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

/// A guest's memory as the VMM shared it. Live migration will want a bitmap here.
pub type GuestMemory = GuestMemoryMmap<()>;

/// limits.h: `IOV_MAX` (UIO_MAXIOV), the most ranges one vectored call takes.
const IOVECS_MAX: usize = 1024;

/// Read and write calls move at most this much at once (fs.h: `MAX_RW_COUNT` is just below 2 GiB).
const CALL_BYTES_MAX: usize = 1 << 30;

/// The page cache is filled in pages, so a read that stops elsewhere has met the end of the file.
const PAGE_BYTES: u64 = 4096;

/// Whether a read may wait for the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// Only what is in the page cache (`RWF_NOWAIT`).
    Never,
    /// Until the bytes are there.
    Allowed,
}

/// Ranges of one guest's memory, in order, each inside a region of it.
///
/// Invariant: every range lies in a mapping that `memory` keeps alive.
#[derive(Debug, Default)]
pub struct GuestBuffers {
    memory: Option<Arc<GuestMemory>>,
    ranges: Vec<iovec>,
    bytes: usize,
}

// SAFETY: the pointers lead into shared mappings owned through `memory`, which is `Send + Sync`;
// no thread owns them, and every access is one that tolerates others.
unsafe impl Send for GuestBuffers {}
// SAFETY: as for `Send`; `&GuestBuffers` copies bytes of memory that others may change anyway.
unsafe impl Sync for GuestBuffers {}

impl GuestBuffers {
    /// Empties the list and lets go of the memory.
    pub fn clear(&mut self) {
        self.ranges.clear();
        self.memory = None;
        self.bytes = 0;
    }

    /// Empties the list; what is pushed next lies in `memory`.
    pub fn reset(&mut self, memory: &Arc<GuestMemory>) {
        self.ranges.clear();
        self.bytes = 0;
        if !self.memory.as_ref().is_some_and(|held| Arc::ptr_eq(held, memory)) {
            self.memory = Some(Arc::clone(memory));
        }
    }

    /// Appends `bytes` bytes of guest memory from `address`; a range that crosses regions becomes
    /// several.
    ///
    /// Errors: `EFAULT` if any byte lies outside the guest's memory, `E2BIG` if the list would
    /// pass `ranges_max`; the list is then as it was.
    pub fn push(&mut self, address: u64, bytes: u32, ranges_max: usize) -> Result<(), Errno> {
        let memory = self.memory.as_ref().ok_or(Errno::FAULT)?;
        let bytes = usize::try_from(bytes).map_err(|_| Errno::FAULT)?;
        let before = self.ranges.len();
        for slice in memory.get_slices(GuestAddress(address), bytes) {
            let Ok(slice) = slice else {
                self.ranges.truncate(before);
                return Err(Errno::FAULT);
            };
            if self.ranges.len() == ranges_max {
                self.ranges.truncate(before);
                return Err(Errno::TOOBIG);
            }
            let guard = slice.ptr_guard_mut();
            self.ranges.push(iovec { iov_base: guard.as_ptr().cast(), iov_len: slice.len() });
        }
        self.bytes += bytes;
        Ok(())
    }

    /// How many bytes all ranges have together.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies bytes from `offset` on into `into` and says how many there were.
    pub fn copy_out(&self, offset: usize, into: &mut [u8]) -> usize {
        let mut done = 0;
        for range in self.slices(offset) {
            if done == into.len() {
                break;
            }
            done += range.copy_to(&mut into[done..]);
        }
        done
    }

    /// Copies `from` to `offset` and says how many bytes fitted.
    pub fn copy_in(&self, offset: usize, from: &[u8]) -> usize {
        let mut done = 0;
        for range in self.slices(offset) {
            if done == from.len() {
                break;
            }
            let fits = range.len().min(from.len() - done);
            range.copy_from(&from[done..done + fits]);
            done += fits;
        }
        done
    }

    /// Reads `file` from `offset` into the bytes `window` of these buffers; fewer bytes mean the
    /// end of the file.
    ///
    /// Errors: `EAGAIN` under [`Wait::Never`] if not all bytes are in the page cache, or the file
    /// system cannot tell; else preadv2(2)'s, also after some bytes: a short answer would be read
    /// as the end of the file.
    pub fn read_file(
        &self,
        window: Range<usize>,
        file: BorrowedFd<'_>,
        offset: u64,
        wait: Wait,
    ) -> Result<usize, Errno> {
        libc::off_t::try_from(offset).map_err(|_| Errno::INVAL)?;
        let flags = if wait == Wait::Never { libc::RWF_NOWAIT } else { 0 };
        let mut done = 0;
        while done < window.len() {
            let part = self.part(window.start + done, window.end);
            let at = offset + as_u64(done);
            match read_part(file, &part, at, flags) {
                Ok(0) => break,
                Ok(bytes) => {
                    done += bytes;
                    let ended_inside_page = !(offset + as_u64(done)).is_multiple_of(PAGE_BYTES);
                    if bytes < part_bytes(&part) && ended_inside_page {
                        break;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP) if wait == Wait::Never => return Err(Errno::AGAIN),
                Err(errno) => return Err(errno),
            }
        }
        Ok(done)
    }

    /// Writes the bytes `window` of these buffers to `file` at `offset`; says how many it took.
    ///
    /// Errors: pwritev(2)'s, if nothing was written before.
    pub fn write_file(
        &self,
        window: Range<usize>,
        file: BorrowedFd<'_>,
        offset: u64,
    ) -> Result<usize, Errno> {
        libc::off_t::try_from(offset).map_err(|_| Errno::INVAL)?;
        let mut done = 0;
        while done < window.len() {
            let part = self.part(window.start + done, window.end);
            match write_part(file, &part, offset + as_u64(done)) {
                Ok(0) => break,
                Ok(bytes) => done += bytes,
                Err(Errno::INTR) => {}
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// The ranges from byte `offset` on, as memory that others may change.
    fn slices(&self, offset: usize) -> impl Iterator<Item = VolatileSlice<'_>> {
        let mut skip = offset;
        self.ranges.iter().filter_map(move |range| {
            let skipped = skip.min(range.iov_len);
            skip -= skipped;
            if skipped == range.iov_len {
                return None;
            }
            // SAFETY: `self.memory` keeps the range mapped (invariant of the type) as long as
            // `self` is borrowed, and all accesses to guest memory here are volatile.
            let slice = unsafe { VolatileSlice::new(range.iov_base.cast(), range.iov_len) };
            slice.offset(skipped).ok()
        })
    }

    /// What one call may move of the bytes from `start` to `end`: at most [`IOVECS_MAX`] ranges.
    fn part(&self, start: usize, end: usize) -> Cow<'_, [iovec]> {
        let (mut first, mut skip) = (0, start);
        while first < self.ranges.len() && skip >= self.ranges[first].iov_len {
            skip -= self.ranges[first].iov_len;
            first += 1;
        }
        let wanted = end.saturating_sub(start).min(CALL_BYTES_MAX) + skip;
        let (mut last, mut bytes) = (first, 0);
        while last < self.ranges.len() && last - first < IOVECS_MAX && bytes < wanted {
            bytes += self.ranges[last].iov_len;
            last += 1;
        }
        let whole = &self.ranges[first..last];
        if skip == 0 && bytes <= wanted {
            return Cow::Borrowed(whole);
        }
        let mut trimmed = whole.to_vec();
        if let Some(range) = trimmed.last_mut() {
            range.iov_len -= bytes.saturating_sub(wanted);
        }
        if let Some(range) = trimmed.first_mut() {
            range.iov_base = range.iov_base.wrapping_byte_add(skip);
            range.iov_len -= skip;
        }
        Cow::Owned(trimmed)
    }
}

/// One preadv2 into ranges of live guest memory.
fn read_part(file: BorrowedFd<'_>, part: &[iovec], at: u64, flags: i32) -> Result<usize, Errno> {
    let at = libc::off_t::try_from(at).map_err(|_| Errno::INVAL)?;
    let count = i32::try_from(part.len()).map_err(|_| Errno::INVAL)?;
    // SAFETY: `part` comes from `GuestBuffers::part`: writable ranges that the borrowed
    // `GuestBuffers` keep mapped, `count` of them.
    let moved = unsafe { libc::preadv2(file.as_raw_fd(), part.as_ptr(), count, at, flags) };
    usize::try_from(moved).map_err(|_| last_errno())
}

/// One pwritev from ranges of live guest memory.
fn write_part(file: BorrowedFd<'_>, part: &[iovec], at: u64) -> Result<usize, Errno> {
    super::fault::point()?;
    let at = libc::off_t::try_from(at).map_err(|_| Errno::INVAL)?;
    let count = i32::try_from(part.len()).map_err(|_| Errno::INVAL)?;
    // SAFETY: `part` comes from `GuestBuffers::part`: readable ranges that the borrowed
    // `GuestBuffers` keep mapped, `count` of them.
    let moved = unsafe { libc::pwritev(file.as_raw_fd(), part.as_ptr(), count, at) };
    usize::try_from(moved).map_err(|_| last_errno())
}

fn part_bytes(part: &[iovec]) -> usize {
    part.iter().map(|range| range.iov_len).sum()
}

fn last_errno() -> Errno {
    let raw = std::io::Error::last_os_error().raw_os_error();
    Errno::from_raw_os_error(raw.unwrap_or(libc::EIO))
}

/// A count of bytes in memory fits 64 bits on every Linux.
fn as_u64(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::fd::AsFd as _;
    use vm_memory::Bytes as _;

    const REGION: usize = 0x4000;

    /// Two regions that touch.
    fn memory() -> Arc<GuestMemory> {
        let second = GuestAddress(0x1_0000 + REGION as u64);
        let ranges = [(GuestAddress(0x1_0000), REGION), (second, REGION)];
        Arc::new(GuestMemory::from_ranges(&ranges).unwrap())
    }

    fn buffers(memory: &Arc<GuestMemory>, ranges: &[(u64, u32)]) -> GuestBuffers {
        let mut buffers = GuestBuffers::default();
        buffers.reset(memory);
        for (address, bytes) in ranges {
            buffers.push(*address, *bytes, 64).unwrap();
        }
        buffers
    }

    fn pattern(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|n| (n * 7 + n / 251).to_le_bytes()[0]).collect()
    }

    #[test]
    fn ranges_outside_the_memory_never_become_pointers() {
        let memory = memory();
        let mut buffers = buffers(&memory, &[(0x1_0000, 16)]);
        let end = 0x1_0000 + 2 * REGION as u64;
        for (address, bytes) in [(0, 1), (0xffff, 2), (end, 1), (end - 1, 2), (u64::MAX, 2)] {
            assert_eq!(buffers.push(address, bytes, 64), Err(Errno::FAULT), "{address:#x}");
        }
        assert_eq!(buffers.push(0x1_0000, u32::MAX, 64), Err(Errno::FAULT));
        assert_eq!(buffers.push(0x1_0000, 1, 1), Err(Errno::TOOBIG));
        let split = 0x1_0000 + REGION as u64;
        assert_eq!(buffers.push(split - 8, 16, 2), Err(Errno::TOOBIG), "two ranges");
        assert_eq!(buffers.bytes(), 16);
        assert_eq!(GuestBuffers::default().push(0x1_0000, 1, 64), Err(Errno::FAULT));
    }

    #[test]
    fn bytes_go_in_and_out_at_any_offset() {
        let memory = memory();
        let split = 0x1_0000 + REGION as u64;
        let buffers =
            buffers(&memory, &[(0x1_0000, 5), (0x1_1000, 0), (split - 10, 30), (0x1_2000, 7)]);
        assert_eq!(buffers.bytes(), 42);
        let data = pattern(42);
        for start in 0..=42 {
            for end in start..=42 {
                assert_eq!(buffers.copy_in(start, &data[start..end]), end - start);
                let mut out = vec![0; end - start];
                assert_eq!(buffers.copy_out(start, &mut out), end - start);
                assert_eq!(out, data[start..end]);
            }
        }
        assert_eq!(buffers.copy_in(40, &data), 2);
        assert_eq!(buffers.copy_out(41, &mut [0; 9]), 1);
        assert_eq!(buffers.copy_out(43, &mut [0; 9]), 0);
        let mut crossing = [0; 30];
        memory.read_slice(&mut crossing, GuestAddress(split - 10)).unwrap();
        assert_eq!(crossing[..], data[5..35]);
    }

    #[test]
    fn files_are_read_and_written_through_any_window() {
        let memory = memory();
        let ranges = [(0x1_0000, 100), (0x1_1000, 5000), (0x1_3f00, 600)];
        let buffers = buffers(&memory, &ranges);
        let data = pattern(9000);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&data).unwrap();
        for start in [0, 1, 16, 99, 100, 101, 5000, 5100, 5699] {
            for bytes in [0, 1, 84, 100, 4096, 5700] {
                for offset in [0, 1, 4096, 8990, 9000, 20_000] {
                    let name = format!("{bytes} bytes at {start} from {offset}");
                    let window = start..(start + bytes).min(5700);
                    buffers.copy_in(0, &[0xee; 5700]);
                    let at = u64::try_from(offset).unwrap();
                    let read = buffers.read_file(window.clone(), file.as_fd(), at, Wait::Allowed);
                    let from = offset.min(9000);
                    let expected = window.len().min(9000 - from);
                    assert_eq!(read, Ok(expected), "{name}");
                    let mut all = vec![0; 5700];
                    buffers.copy_out(0, &mut all);
                    let mut model = vec![0xee; 5700];
                    model[start..start + expected].copy_from_slice(&data[from..from + expected]);
                    assert!(all == model, "{name}");

                    let copy = tempfile::tempfile().unwrap();
                    let written = buffers.write_file(window.clone(), copy.as_fd(), at);
                    assert_eq!(written, Ok(window.len()), "{name}");
                    let mut back = vec![0; window.len()];
                    let got = rustix::io::pread(&copy, &mut back, at).unwrap();
                    assert!(got == window.len() && back == model[window], "{name}");
                }
            }
        }
        let far = u64::MAX - 10;
        assert_eq!(buffers.read_file(0..9, file.as_fd(), far, Wait::Allowed), Err(Errno::INVAL));
        assert_eq!(buffers.write_file(0..9, file.as_fd(), far), Err(Errno::INVAL));
    }

    #[test]
    fn more_ranges_than_one_call_takes_are_read_whole() {
        let memory = memory();
        let mut buffers = GuestBuffers::default();
        buffers.reset(&memory);
        for n in 0..3000_u64 {
            buffers.push(0x1_0000 + n * 5, 3, 4000).unwrap();
        }
        let data = pattern(9000);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&data).unwrap();
        assert_eq!(buffers.read_file(0..9000, file.as_fd(), 0, Wait::Allowed), Ok(9000));
        let mut all = vec![0; 9000];
        buffers.copy_out(0, &mut all);
        assert!(all == data);
    }

    #[test]
    fn read_that_may_not_wait_reads_all_or_says_again() {
        let directory = std::env::current_dir().unwrap();
        let data = pattern(3 * REGION / 2);
        let mut file = tempfile::tempfile_in(directory).unwrap();
        file.write_all(&data).unwrap();
        let buffers = buffers(&memory(), &[(0x1_0000, 0x8000)]);
        let read = || buffers.read_file(0..2 * REGION, file.as_fd(), 0, Wait::Never);
        match read() {
            Ok(bytes) => assert_eq!(bytes, data.len(), "in the page cache, up to the end"),
            Err(errno) => {
                assert_eq!(errno, Errno::AGAIN);
                crate::skipped::skip("no RWF_NOWAIT on this file system");
                return;
            }
        }
        file.sync_all().unwrap();
        let second_half = std::num::NonZeroU64::new(data.len() as u64);
        let drop = rustix::fs::Advice::DontNeed;
        rustix::fs::fadvise(&file, 2 * 4096, second_half, drop).unwrap();
        match read() {
            Err(errno) => assert_eq!(errno, Errno::AGAIN, "half of it is out of the cache"),
            Ok(bytes) => {
                assert_eq!(bytes, data.len());
                crate::skipped::skip("this file system kept its pages");
            }
        }
        let waited = buffers.read_file(0..2 * REGION, file.as_fd(), 0, Wait::Allowed);
        assert_eq!(waited, Ok(data.len()));
    }
}
