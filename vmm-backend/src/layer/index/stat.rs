//! What `statx` shows, as the records of an index have it.

use zerocopy::little_endian::{I64, U32, U64};

use super::format::{ObjectRecord, Time, Witness, flags};
use crate::sys::fs::{Statx, StatxTimestamp};

/// Takes over what `stat` shows, but for the link count, which the merged view decides.
pub fn fill(object: &mut ObjectRecord, stat: &Statx) {
    object.mode = u32::from(stat.stx_mode).into();
    object.uid = stat.stx_uid.into();
    object.gid = stat.stx_gid.into();
    object.rdev = encode_device(stat.stx_rdev_major, stat.stx_rdev_minor).into();
    object.ino = stat.stx_ino.into();
    object.size = stat.stx_size.into();
    object.blocks = stat.stx_blocks.into();
    object.block_size_log2 = u8::try_from(stat.stx_blksize.max(1).ilog2()).unwrap_or(12);
    object.atime = time(stat.stx_atime);
    object.mtime = time(stat.stx_mtime);
    object.ctime = time(stat.stx_ctime);
    // stat.h: STATX_BTIME.
    if stat.stx_mask & 0x800 != 0 {
        object.btime = time(stat.stx_btime);
        object.flags |= flags::BIRTH_KNOWN;
    }
}

/// kdev_t.h: `new_encode_dev`.
pub const fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// What tells later whether the object is still the one in `stat`.
pub fn witness(stat: &Statx) -> Witness {
    Witness {
        ino: U64::new(stat.stx_ino),
        size: U64::new(stat.stx_size),
        mtime: time(stat.stx_mtime),
        ctime: time(stat.stx_ctime),
        nlink: U32::new(stat.stx_nlink),
    }
}

/// A time as the file has it.
pub fn time(time: StatxTimestamp) -> Time {
    Time { seconds: I64::new(time.tv_sec), nanoseconds: U32::new(time.tv_nsec) }
}
