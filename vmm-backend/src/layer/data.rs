//! File data of opened files of either layer: seeking and copying ranges.

use std::os::fd::BorrowedFd;

use crate::filesystem::{Errno, Seek};
use crate::sys::fs;

/// SEEK_DATA or SEEK_HOLE in an opened file.
///
/// Errors: `ENXIO` past the end, or past the last data.
pub fn seek(file: BorrowedFd<'_>, seek: Seek) -> Result<u64, Errno> {
    match seek {
        Seek::Data(offset) => fs::seek_data(file, offset),
        Seek::Hole(offset) => fs::seek_hole(file, offset),
    }
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
