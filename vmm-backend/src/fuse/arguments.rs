//! The numbers of a request, range-checked into the contract's types.

use super::abi;
use super::init::Agreed;
use crate::filesystem::{
    Allocate, Errno, Privileges, RenameFlags, Seek, SetAttributes, SetTime, Timestamp, Write,
};

/// The greatest file offset (`loff_t` is signed).
pub(super) const OFFSET_MAX: u64 = i64::MAX as u64;
/// stat.h: `S_IALLUGO`.
pub(super) const PERMISSION_BITS: u32 = 0o7777;

/// Errors: `EINVAL` for bits not in fuse.h, a size or a time out of range, or an owner that is
/// none (chown(2) would take it for "as it is").
pub(super) fn set_attributes(set: &abi::SetAttrIn, agreed: Agreed) -> Result<SetAttributes, Errno> {
    const KNOWN: u32 = (abi::FATTR_KILL_SUIDGID << 1) - 1;
    let has = |bit: u32| set.valid & bit != 0;
    let owner = |id: u32| if id == u32::MAX { Err(Errno::INVAL) } else { Ok(id) };
    let time = |bit, now_bit, seconds, nanoseconds| {
        if has(now_bit) {
            Ok(Some(SetTime::Now))
        } else if has(bit) {
            timestamp(seconds, nanoseconds).map(|time| Some(SetTime::To(time)))
        } else {
            Ok(None)
        }
    };
    if set.valid & !KNOWN != 0 {
        return Err(Errno::INVAL);
    }
    Ok(SetAttributes {
        mode: has(abi::FATTR_MODE).then_some(set.mode & PERMISSION_BITS),
        uid: has(abi::FATTR_UID).then(|| owner(set.uid)).transpose()?,
        gid: has(abi::FATTR_GID).then(|| owner(set.gid)).transpose()?,
        size: has(abi::FATTR_SIZE).then(|| offset(set.size)).transpose()?,
        atime: time(abi::FATTR_ATIME, abi::FATTR_ATIME_NOW, set.atime, set.atimensec)?,
        mtime: time(abi::FATTR_MTIME, abi::FATTR_MTIME_NOW, set.mtime, set.mtimensec)?,
        ctime: has(abi::FATTR_CTIME).then(|| timestamp(set.ctime, set.ctimensec)).transpose()?,
        kill_privileges: has(abi::FATTR_KILL_SUIDGID),
        // Linux: file_remove_privs, of which fs/fuse/dir.c (fuse_setattr) leaves nothing.
        precedes_change: set.valid == 0 && agreed.has(abi::INIT_HANDLE_KILLPRIV_V2),
    })
}

/// Seconds travel as the bits of a signed number.
fn timestamp(seconds: u64, nanoseconds: u32) -> Result<Timestamp, Errno> {
    if nanoseconds > 999_999_999 {
        return Err(Errno::INVAL);
    }
    Ok(Timestamp { seconds: seconds.cast_signed(), nanoseconds })
}

pub(super) fn rename_flags(flags: u32) -> Result<RenameFlags, Errno> {
    // fs.h: RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT.
    let flags = match flags {
        0..=7 => RenameFlags {
            no_replace: flags & 1 != 0,
            exchange: flags & 2 != 0,
            whiteout: flags & 4 != 0,
        },
        _ => return Err(Errno::INVAL),
    };
    if flags.exchange && (flags.no_replace || flags.whiteout) {
        return Err(Errno::INVAL);
    }
    Ok(flags)
}

pub(super) fn write(write: &abi::WriteIn, agreed: Agreed) -> Result<Write, Errno> {
    if write.size > agreed.data_bytes_max() {
        return Err(Errno::INVAL);
    }
    let cached = write.write_flags & abi::WRITE_CACHE != 0;
    Ok(Write {
        offset: range(write.offset, u64::from(write.size))?,
        size: bytes(write.size)?,
        // What the page cache writes back was judged when it went in.
        kill_privileges: write.write_flags & abi::WRITE_KILL_SUIDGID != 0 && !cached,
        keeps_mtime: cached && agreed.has(abi::INIT_WRITEBACK_CACHE),
    })
}

pub(super) fn allocate(
    allocate: &abi::FAllocateIn,
    privileges: Privileges,
) -> Result<Allocate, Errno> {
    if allocate.length == 0 {
        return Err(Errno::INVAL);
    }
    let offset = range(allocate.offset, allocate.length)?;
    Ok(Allocate { mode: allocate.mode, offset, size: allocate.length, privileges })
}

pub(super) fn seek(seek: &abi::LSeekIn) -> Result<Seek, Errno> {
    let offset = offset(seek.offset)?;
    // fs.h: SEEK_DATA and SEEK_HOLE; the guest answers the others itself.
    match seek.whence {
        3 => Ok(Seek::Data(offset)),
        4 => Ok(Seek::Hole(offset)),
        _ => Err(Errno::INVAL),
    }
}

/// Errors: `EINVAL` for an offset no file has.
pub(super) fn offset(offset: u64) -> Result<u64, Errno> {
    if offset > OFFSET_MAX { Err(Errno::INVAL) } else { Ok(offset) }
}

/// The offset of a range whose end a file can have. Errors: `EFBIG`, `EINVAL`.
fn range(start: u64, size: u64) -> Result<u64, Errno> {
    match offset(start)?.checked_add(size) {
        Some(end) if end <= OFFSET_MAX => Ok(start),
        _ => Err(Errno::FBIG),
    }
}

pub(super) fn bytes(size: u32) -> Result<usize, Errno> {
    usize::try_from(size).map_err(|_| Errno::INVAL)
}
