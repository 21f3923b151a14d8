//! The two ioctls of a file that are answered: its inode flags, in the old form and in the new.
//!
//! Without them an overlayfs inside the guest cannot copy up.

use zerocopy::{Immutable, IntoBytes};

use super::abi;
use crate::filesystem::Errno;

/// fs.h: `FS_IOC_GETFLAGS`, `_IOR('f', 1, long)`, as 64-bit and as 32-bit programs say it.
const GETFLAGS: [u32; 2] = [0x8008_6601, 0x8004_6601];
/// fs.h: `FS_IOC_FSGETXATTR`, `_IOR('X', 31, struct fsxattr)`.
const FSGETXATTR: u32 = 0x801c_581f;

/// Which flags of an inode (fs.h: `FS_*_FL`) are which of `struct fsxattr` (`FS_XFLAG_*`).
const XFLAGS: [(u32, u32); 6] = [
    (0x0000_0008, 0x0000_0020), // SYNC
    (0x0000_0010, 0x0000_0008), // IMMUTABLE
    (0x0000_0020, 0x0000_0010), // APPEND
    (0x0000_0040, 0x0000_0080), // NODUMP
    (0x0000_0080, 0x0000_0040), // NOATIME
    (0x2000_0000, 0x0000_0200), // PROJINHERIT
];

/// fs.h: `struct fsxattr`.
#[derive(IntoBytes, Immutable, Default)]
#[repr(C)]
struct FsXattr {
    xflags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    copy_on_write_extent_size: u32,
    padding: [u8; 8],
}

/// What is asked of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum InodeQuestion {
    /// `FS_IOC_GETFLAGS`.
    Flags,
    /// `FS_IOC_FSGETXATTR`.
    ExtendedFlags,
}

impl InodeQuestion {
    /// Errors: `ENOTTY` for every other command.
    pub(super) fn new(command: u32) -> Result<Self, Errno> {
        if GETFLAGS.contains(&command) {
            Ok(Self::Flags)
        } else if command == FSGETXATTR {
            Ok(Self::ExtendedFlags)
        } else {
            Err(Errno::NOTTY)
        }
    }

    /// The reply's body for a guest's buffer of `size` bytes.
    ///
    /// The kernel asks for as many bytes as the command carries: 4 or 8 for the old form, whose
    /// flags are 32 bits either way, and 28 for the new.
    ///
    /// Errors: `EINVAL` for a buffer of any other size.
    pub(super) fn answer(self, flags: u32, size: usize) -> Result<Vec<u8>, Errno> {
        let mut body = abi::IoCtlOut::default().as_bytes().to_vec();
        match (self, size) {
            (Self::Flags, 4) => body.extend_from_slice(&flags.to_ne_bytes()),
            (Self::Flags, 8) => body.extend_from_slice(&u64::from(flags).to_ne_bytes()),
            (Self::ExtendedFlags, 28) => {
                let xflags = XFLAGS.iter().filter(|(flag, _)| flags & flag != 0);
                let xflags = xflags.fold(0, |all, (_, xflag)| all | xflag);
                body.extend_from_slice(FsXattr { xflags, ..Default::default() }.as_bytes());
            }
            _ => return Err(Errno::INVAL),
        }
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inode_flags_keep_their_meaning_in_both_forms() {
        let old = InodeQuestion::new(GETFLAGS[0]).unwrap().answer(0x30, 8).unwrap();
        assert_eq!(old[16..], [0x30, 0, 0, 0, 0, 0, 0, 0]);
        let new = InodeQuestion::new(FSGETXATTR).unwrap().answer(0x30, 28).unwrap();
        assert_eq!(new.len(), 16 + 28);
        assert_eq!(new[16..20], [0x18, 0, 0, 0]);
    }

    #[test]
    fn other_questions_are_no_typewriter() {
        // TCGETS, FS_IOC_SETFLAGS, FICLONE.
        for command in [0x5401, 0x4008_6602, 0x4004_9409, 0, u32::MAX] {
            assert_eq!(InodeQuestion::new(command), Err(Errno::NOTTY));
        }
        assert_eq!(InodeQuestion::Flags.answer(0, 3), Err(Errno::INVAL));
        assert_eq!(InodeQuestion::ExtendedFlags.answer(0, usize::MAX), Err(Errno::INVAL));
    }
}
