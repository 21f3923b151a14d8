//! Who owns an upper object, and what it is: natively, or by a mark.
//!
//! Natively, owner, mode and type are the inode's own; only the guest's char 0:0, which on disk is
//! our whiteout, and a device that the disk cannot keep are stored as 0:1 with a mark. With `Override` (no privilege) everything is a
//! plain 0600 file or 0700 directory of ours, and the mark says what the guest sees.

use super::mark::{Mark, MarkSpace, Marks};
use crate::filesystem::{Attributes, Errno, Kind, NodeId, Timestamp};
use crate::sys::fs::{self, Grip, Statx, StatxTimestamp};

/// How an upper keeps ownership.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ownership {
    /// As inode attributes; needs the capabilities.
    Native,
    /// As marks on plain files.
    Override,
}

/// Owner, mode and device number as the guest sees them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// `S_IFMT` bits and permissions.
    pub mode: u32,
    /// Device number, packed as in [`Attributes::rdev`].
    pub rdev: u32,
}

/// The device that stands for a guest's char 0:0, which would be a whiteout, and for one whose number
/// the host's file system cannot keep.
pub const STAND_IN: (u32, u32) = (0, 1);

/// Whether an object of a native upper may stand for another one, as its mark says.
pub fn is_stand_in(stat: &Statx) -> bool {
    let kind = Kind::from_mode(u32::from(stat.stx_mode));
    matches!(kind, Some(Kind::CharDevice | Kind::BlockDevice))
        && (stat.stx_rdev_major, stat.stx_rdev_minor) == STAND_IN
}

/// Whether a file system may not be able to keep a device number: xfs has 18 bits for a minor one
/// (linux/kdev_t.h: `sysv_valid_dev`).
pub const fn is_large(rdev: u32) -> bool {
    unpack_device(rdev).1 >= 1 << 18
}

impl Owner {
    /// The mark's value: `uid:gid:mode:type`, mode in octal, type as containers/storage writes it.
    pub fn to_mark(self) -> Vec<u8> {
        let (major, minor) = unpack_device(self.rdev);
        let kind = match Kind::from_mode(self.mode).unwrap_or(Kind::File) {
            Kind::File => "file".to_owned(),
            Kind::Directory => "dir".to_owned(),
            Kind::Symlink => "symlink".to_owned(),
            Kind::Fifo => "pipe".to_owned(),
            Kind::Socket => "socket".to_owned(),
            Kind::CharDevice => format!("char-{major}-{minor}"),
            Kind::BlockDevice => format!("block-{major}-{minor}"),
        };
        format!("{}:{}:{:04o}:{kind}", self.uid, self.gid, self.mode & 0o7777).into_bytes()
    }

    /// Reads a mark's value; `None` if it is malformed.
    pub fn from_mark(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut fields = text.splitn(4, ':');
        let uid = fields.next()?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let mode = u32::from_str_radix(fields.next()?, 8).ok()? & 0o7777;
        let mut kind = fields.next()?.splitn(3, '-');
        let (name, major, minor) = (kind.next()?, kind.next(), kind.next());
        let kind = match name {
            "file" => Kind::File,
            "dir" => Kind::Directory,
            "symlink" => Kind::Symlink,
            "pipe" => Kind::Fifo,
            "socket" => Kind::Socket,
            "char" => Kind::CharDevice,
            "block" => Kind::BlockDevice,
            _ => return None,
        };
        let rdev = match (major, minor) {
            (Some(major), Some(minor)) => pack_device(major.parse().ok()?, minor.parse().ok()?),
            _ => 0,
        };
        Some(Self { uid, gid, mode: mode | kind.mode_bits(), rdev })
    }
}

/// The kernel's `new_encode_dev`: how a device number travels in 32 bits.
pub const fn pack_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The major and minor number of a packed device.
pub const fn unpack_device(device: u32) -> (u32, u32) {
    ((device & 0xf_ff00) >> 8, (device & 0xff) | ((device >> 12) & 0xf_ff00))
}

/// What the guest sees of an upper object; `node` is the host's inode number still.
///
/// Errors: `EIO` for a stat mark that cannot be read.
pub fn attributes(stat: &Statx, marks: &Marks) -> Result<Attributes, Errno> {
    let mut shown = Attributes {
        node: NodeId(stat.stx_ino),
        mode: u32::from(stat.stx_mode),
        nlink: stat.stx_nlink,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        rdev: pack_device(stat.stx_rdev_major, stat.stx_rdev_minor),
        size: stat.stx_size,
        blocks: stat.stx_blocks,
        block_size: stat.stx_blksize,
        atime: timestamp(stat.stx_atime),
        mtime: timestamp(stat.stx_mtime),
        ctime: timestamp(stat.stx_ctime),
        btime: (stat.stx_mask & rustix_btime() != 0).then(|| timestamp(stat.stx_btime)),
    };
    if let Some(mark) = &marks.stat {
        let owner = Owner::from_mark(mark).filter(|owner| fits(owner, stat)).ok_or_else(|| {
            log::error!("upper: inode {} has an unreadable stat mark", stat.stx_ino);
            Errno::IO
        })?;
        shown.mode = owner.mode;
        shown.uid = owner.uid;
        shown.gid = owner.gid;
        shown.rdev = owner.rdev;
        if !matches!(shown.kind(), Kind::File | Kind::Directory | Kind::Symlink) {
            shown.size = 0;
        }
    }
    Ok(shown)
}

/// Whether an object can stand for what its mark says: a directory for nothing else, nor anything
/// else for one.
pub fn fits(owner: &Owner, stat: &Statx) -> bool {
    let shown = Kind::from_mode(owner.mode);
    match Kind::from_mode(u32::from(stat.stx_mode)) {
        Some(Kind::File) => shown != Some(Kind::Directory),
        kind => shown == kind,
    }
}

fn rustix_btime() -> u32 {
    // linux/stat.h: STATX_BTIME.
    0x800
}

/// A host's time as the contract says it.
pub fn timestamp(time: StatxTimestamp) -> Timestamp {
    Timestamp { seconds: time.tv_sec, nanoseconds: time.tv_nsec }
}

impl Ownership {
    /// Whether an object of this kind and device must be stored as a stand-in with a mark.
    pub fn stands_in(self, owner: &Owner) -> bool {
        match self {
            Self::Native => {
                Kind::from_mode(owner.mode) == Some(Kind::CharDevice) && owner.rdev == 0
            }
            // Symbolic links too: the kernel lets them bear no mark.
            Self::Override => true,
        }
    }

    /// Gives an object this owner and mode.
    pub fn set(self, space: MarkSpace, object: Grip<'_>, owner: &Owner) -> Result<(), Errno> {
        let fd = object.descriptor();
        let found = (self == Self::Native).then(|| fs::stat(fd)).transpose()?;
        if self.stands_in(owner) || found.as_ref().is_some_and(is_stand_in) {
            fs::set_xattr(object, space.name(Mark::Stat), &owner.to_mark(), 0)?;
        }
        match found {
            Some(found) => set_native(object, (found.stx_uid, found.stx_gid), owner),
            None => Ok(()),
        }
    }

    /// The same for what shows `from` now.
    pub(super) fn change(
        self,
        space: MarkSpace,
        object: Grip<'_>,
        (from, to): (&Attributes, &Owner),
    ) -> Result<(), Errno> {
        let may_stand_in = matches!(from.kind(), Kind::CharDevice | Kind::BlockDevice);
        match self == Self::Native && !may_stand_in {
            true => set_native(object, (from.uid, from.gid), to),
            false => self.set(space, object, to),
        }
    }
}

fn set_native(object: Grip<'_>, found: (u32, u32), owner: &Owner) -> Result<(), Errno> {
    // A change of owner to the same one would clear file capabilities.
    if found != (owner.uid, owner.gid) {
        fs::change_owner(object.descriptor(), Some(owner.uid), Some(owner.gid))?;
    }
    if Kind::from_mode(owner.mode) != Some(Kind::Symlink) {
        // After the owner: a change of owner clears setuid and setgid.
        fs::change_mode(object, owner.mode & 0o7777)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_survives_its_mark() {
        for (kind, rdev) in [
            (Kind::File, 0),
            (Kind::Directory, 0),
            (Kind::Symlink, 0),
            (Kind::Fifo, 0),
            (Kind::Socket, 0),
            (Kind::CharDevice, 0),
            (Kind::CharDevice, pack_device(4095, 1_048_575)),
            (Kind::BlockDevice, pack_device(8, 1)),
        ] {
            let owner = Owner { uid: 1000, gid: 0, mode: kind.mode_bits() | 0o4755, rdev };
            assert_eq!(Owner::from_mark(&owner.to_mark()), Some(owner), "{kind:?}");
        }
        for bad in [b"".as_slice(), b"1:2", b"1:2:9:file", b"1:2:0644:door", b"x:2:0644:file"] {
            assert_eq!(Owner::from_mark(bad), None, "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn device_numbers_survive_packing() {
        for device in [(0, 0), (0, 1), (8, 300), (4095, 1_048_575)] {
            assert_eq!(unpack_device(pack_device(device.0, device.1)), device);
        }
    }
}
