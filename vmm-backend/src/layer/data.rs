//! File data of opened files of either layer: reading, writing, seeking and copying ranges.

use std::os::fd::BorrowedFd;

use crate::filesystem::{Errno, Seek};
use crate::sys::fs;

/// How much is copied at once where the host cannot move data by itself.
const COPY_CHUNK_BYTES: usize = 1 << 20;

/// SEEK_DATA or SEEK_HOLE in an opened file.
///
/// Errors: `ENXIO` past the end, or past the last data.
pub fn seek(file: BorrowedFd<'_>, seek: Seek) -> Result<u64, Errno> {
    match seek {
        Seek::Data(offset) => fs::seek_data(file, offset),
        Seek::Hole(offset) => fs::seek_hole(file, offset),
    }
}

/// Fills `into` from `offset` and says how many bytes there were before the end.
pub fn read_up_to(file: BorrowedFd<'_>, into: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let mut done = 0;
    while done < into.len() {
        match rustix::io::pread(file, &mut into[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(bytes) => done += bytes,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// Writes all of `bytes` at `offset`.
pub fn write_whole(file: BorrowedFd<'_>, bytes: &[u8], offset: u64) -> Result<(), Errno> {
    write_most(file, bytes, offset).map_err(|(_, e)| e)
}

/// As [`write_whole`].
///
/// Errors: how many bytes were written, and why no more.
pub fn write_most(file: BorrowedFd<'_>, bytes: &[u8], offset: u64) -> Result<(), (usize, Errno)> {
    let mut done = 0;
    while done < bytes.len() {
        done += fs::write_at(file, &bytes[done..], offset + done as u64).map_err(|e| (done, e))?;
    }
    Ok(())
}

/// Copies a range between opened files by the host's `copy_file_range`; gives the bytes copied,
/// 0 at the end of the source.
///
/// Errors: `EXDEV`, `EOPNOTSUPP` where the host cannot: the guest then copies by itself.
pub fn copy_range(
    from: (BorrowedFd<'_>, u64),
    to: (BorrowedFd<'_>, u64),
    size: u64,
) -> Result<u64, Errno> {
    // One request must not hold a worker for long: fuse.h answers a partial copy.
    let size = usize::try_from(size).unwrap_or(usize::MAX).min(1 << 30);
    fs::copy_range(from, to, size).map(|bytes| bytes as u64)
}

/// `FS_IOC_GETFLAGS` of an opened file or directory.
pub fn inode_flags(file: BorrowedFd<'_>) -> Result<u32, Errno> {
    fs::inode_flags(file)
}

/// Shares the blocks of the first `size` bytes; says no where the file system cannot.
pub fn clone_data(from: BorrowedFd<'_>, to: BorrowedFd<'_>, size: u64) -> Result<bool, Errno> {
    if fs::clone_file(from, to).is_err() {
        return Ok(false);
    }
    // Setting even the size it has would zero the rest of the last block, which is no longer shared
    // then, and on xfs keeps 128 KiB of room beside it.
    if fs::stat(to)?.stx_size != size {
        fs::truncate(to, size)?;
    }
    Ok(true)
}

/// Copies the first `size` bytes: blocks shared where the file system can, holes kept.
pub fn copy_data(from: BorrowedFd<'_>, to: BorrowedFd<'_>, size: u64) -> Result<(), Errno> {
    if size == 0 {
        return Ok(());
    }
    if clone_data(from, to, size)? {
        return Ok(());
    }
    fs::truncate(to, size)?;
    let mut at = 0;
    while let Some((data, hole)) = next_data(from, at, size)? {
        copy_extent(from, to, data, hole)?;
        at = hole;
    }
    Ok(())
}

/// Copies what is from `start` to `end` over whatever the target has there: holes stay holes.
pub fn copy_over(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    start: u64,
    end: u64,
) -> Result<(), Errno> {
    let mut at = start;
    while let Some((data, hole)) = next_data(from, at, end)? {
        clear(to, at, data)?;
        copy_extent(from, to, data, hole)?;
        at = hole;
    }
    clear(to, at, end)
}

/// The first stretch of data at `at` or after it, as start and end, both up to `end`.
fn next_data(file: BorrowedFd<'_>, at: u64, end: u64) -> Result<Option<(u64, u64)>, Errno> {
    if at >= end {
        return Ok(None);
    }
    let data = match fs::seek_data(file, at) {
        Ok(data) if data >= end => return Ok(None),
        Ok(data) => data,
        // Only a hole is left. Anything else: no map here, so all of it is data.
        Err(Errno::NXIO) => return Ok(None),
        Err(_) => at,
    };
    let hole = fs::seek_hole(file, data).unwrap_or(end).min(end);
    Ok(Some((data, hole.max(data + 1))))
}

/// Takes away the room of a range, which reads as zeros then; says no where the file system cannot.
pub fn give_back(file: BorrowedFd<'_>, start: u64, end: u64) -> Result<bool, Errno> {
    let punch = fs::FallocateFlags::PUNCH_HOLE | fs::FallocateFlags::KEEP_SIZE;
    match fs::allocate(file, punch, start, end - start) {
        Err(Errno::NOTSUP | Errno::NOSYS) => Ok(false),
        done => done.map(|()| true),
    }
}

/// Makes a range read as zeros, and takes its room away where the file system can.
fn clear(file: BorrowedFd<'_>, start: u64, end: u64) -> Result<(), Errno> {
    if start >= end || give_back(file, start, end)? {
        return Ok(());
    }
    let zeros = vec![0; COPY_CHUNK_BYTES];
    let mut at = start;
    while at < end {
        let length = usize::try_from(end - at).unwrap_or(usize::MAX).min(zeros.len());
        write_whole(file, &zeros[..length], at)?;
        at += length as u64;
    }
    Ok(())
}

/// Copies the bytes from `start` to `end`, which the source must have.
///
/// Errors: `EIO` if it is shorter: somebody edited it.
pub fn copy_extent(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    start: u64,
    end: u64,
) -> Result<(), Errno> {
    let mut at = start;
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(COPY_CHUNK_BYTES << 6);
        match fs::copy_range((from, at), (to, at), want) {
            // The file shrank beneath us: the base was edited.
            Ok(0) => return Err(Errno::IO),
            Ok(bytes) => at += bytes as u64,
            Err(Errno::INTR) => {}
            // Two file systems, or one that cannot.
            Err(Errno::XDEV | Errno::NOTSUP | Errno::INVAL | Errno::NOSYS) => {
                return copy_by_hand(from, to, at, end);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn copy_by_hand(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    start: u64,
    end: u64,
) -> Result<(), Errno> {
    let mut buffer = vec![0; COPY_CHUNK_BYTES];
    let mut at = start;
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        let bytes = read_up_to(from, &mut buffer[..want], at)?;
        if bytes == 0 {
            return Err(Errno::IO);
        }
        write_whole(to, &buffer[..bytes], at)?;
        at += bytes as u64;
    }
    Ok(())
}
