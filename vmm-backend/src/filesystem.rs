//! The contract between the FUSE layer and a file system: one trait and the plain types it speaks.
//!
//! No wire structure lives here, and no system call but those that move file data to and from plain
//! memory. The FUSE layer decodes requests into these
//! types and encodes what comes back; the union implements the trait; the doors implement
//! [`DataSink`] and [`DataSource`], so that file data moves once, between the page cache and the
//! guest's memory.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::Duration;

pub mod memory;
mod name;
mod statistics;

pub use name::{NAME_BYTES_MAX, Name};
/// The protocol's error: what one guest request answers when it fails.
pub use rustix::io::Errno;
pub use statistics::FileSystemStatistics;

/// The number by which a guest names an object: node id, `st_ino` and `d_ino` in one.
///
/// Lives as long as the guest's lookup count for it is above zero; the root lives always.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The union's root (fuse.h: `FUSE_ROOT_ID`).
    pub const ROOT: Self = Self(1);
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who asks, as the guest kernel says it. Ids are the guest's; the host never trusts them for
/// access, only for the ownership of what is born; in other requests uid and gid are `u32::MAX`
/// where the guest's kernel maps ids (fuse.h: `FUSE_ALLOW_IDMAP`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// The file-system user id of the calling task.
    pub uid: u32,
    /// The file-system group id of the calling task.
    pub gid: u32,
    /// The thread id of the calling task in the guest; 0 for work the guest kernel does itself.
    pub pid: u32,
}

/// What an object is (the `S_IFMT` part of its mode).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A FIFO.
    Fifo,
    /// A unix socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

impl Kind {
    /// The kind named by the `S_IFMT` bits of `mode`; `None` where they name none.
    pub const fn from_mode(mode: u32) -> Option<Self> {
        // stat.h: S_IFMT and friends; the values are the same on every Linux.
        Some(match mode & 0o170_000 {
            0o100_000 => Self::File,
            0o040_000 => Self::Directory,
            0o120_000 => Self::Symlink,
            0o010_000 => Self::Fifo,
            0o140_000 => Self::Socket,
            0o020_000 => Self::CharDevice,
            0o060_000 => Self::BlockDevice,
            _ => return None,
        })
    }

    /// The `S_IFMT` bits.
    pub const fn mode_bits(self) -> u32 {
        match self {
            Self::File => 0o100_000,
            Self::Directory => 0o040_000,
            Self::Symlink => 0o120_000,
            Self::Fifo => 0o010_000,
            Self::Socket => 0o140_000,
            Self::CharDevice => 0o020_000,
            Self::BlockDevice => 0o060_000,
        }
    }

    /// The `DT_*` number of a directory entry of this kind (dirent.h).
    #[allow(clippy::cast_possible_truncation, reason = "S_IFMT >> 12 fits four bits")]
    pub const fn dirent_type(self) -> u8 {
        (self.mode_bits() >> 12) as u8
    }
}

/// A point in time: seconds since the epoch (negative before it) and nanoseconds below 10^9.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Timestamp {
    /// Seconds since the epoch.
    pub seconds: i64,
    /// Nanoseconds, 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// Everything `stat` shows of an object. Sizes in bytes, `blocks` in units of 512 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attributes {
    /// Node id, `st_ino` and `d_ino`.
    pub node: NodeId,
    /// `S_IFMT` bits, setuid, setgid, sticky and permissions.
    pub mode: u32,
    /// Names of this object in the union; for a directory 2 + its subdirectories.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node (major << 8 | minor, the kernel's `new_encode_dev`), else 0.
    pub rdev: u32,
    /// Size in bytes.
    pub size: u64,
    /// Allocated units of 512 bytes.
    pub blocks: u64,
    /// Preferred block size in bytes.
    pub block_size: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the contents.
    pub mtime: Timestamp,
    /// Last change of the object.
    pub ctime: Timestamp,
    /// Birth, where the layer knows it.
    pub btime: Option<Timestamp>,
}

impl Attributes {
    /// What the object is; a mode without a known kind counts as a regular file.
    pub fn kind(&self) -> Kind {
        Kind::from_mode(self.mode).unwrap_or(Kind::File)
    }
}

/// For ever, as the wire can say it: what the guest may cache of an exclusive union.
pub const FOREVER: Duration = Duration::from_secs(u64::MAX >> 1);

/// The answer to a LOOKUP or a birth: an object, and how long the guest may believe it.
///
/// Each entry handed to the session counts one lookup of `attributes.node`; the session gives
/// back with [`FileSystem::forget`] what it could not deliver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The object.
    pub attributes: Attributes,
    /// Tells two objects apart that had the same number one after the other.
    pub generation: u64,
    /// How long the name means this object; [`FOREVER`] for all but synthetic files. What the
    /// attributes say holds for ever: nobody but the guest changes them.
    pub valid_for: Duration,
    /// Reads and writes must reach us each time, in order, past the guest's page cache
    /// (synthetic streams). Such a node gets a real OPEN.
    pub is_stream: bool,
}

/// What is to be born. `mode` carries permission bits, setuid, setgid and sticky, before the
/// umask.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewObject<'a> {
    /// The kind, with what only that kind has.
    pub kind: NewKind<'a>,
    /// Mode bits below `S_IFMT`.
    pub mode: u32,
    /// The caller's umask; it does not count under a directory with a default ACL.
    pub umask: u32,
    /// A group the caller is in besides its own and that the parent directory has
    /// (fuse.h: `FUSE_CREATE_SUPP_GROUP`).
    pub supplementary_group: Option<u32>,
}

/// The kinds of a birth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NewKind<'a> {
    /// An empty regular file.
    File,
    /// An empty directory.
    Directory,
    /// A symbolic link to this target.
    Symlink {
        /// What the link says: any bytes but NUL, at most 4095.
        target: &'a [u8],
    },
    /// A FIFO, a socket or a device.
    Special {
        /// `Fifo`, `Socket`, `CharDevice` or `BlockDevice`.
        kind: Kind,
        /// Device number, 0 for FIFO and socket.
        rdev: u32,
    },
}

/// A time to set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetTime {
    /// This point in time.
    To(Timestamp),
    /// The host's clock.
    Now,
}

/// A SETATTR: only what is `Some` changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SetAttributes {
    /// Mode bits below `S_IFMT`.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
    /// Change time, which the guest owns under the writeback cache; a host cannot set it.
    pub ctime: Option<Timestamp>,
    /// Clear setuid, setgid (where group-executable) and file capabilities
    /// (fuse.h: `FATTR_KILL_SUIDGID`).
    pub kill_privileges: bool,
    /// Nothing is asked: somebody is about to change the content, and has no right to setuid and
    /// setgid, or the file capabilities that it had just before are to go, which says nothing of
    /// those. The guest's kernel goes by the mode that is answered until it asks again.
    pub precedes_change: bool,
}

/// How RENAME2 treats its two names. At most one flag is set, `whiteout` and `no_replace` apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RenameFlags {
    /// `RENAME_NOREPLACE`: `EEXIST` if the target exists in the union.
    pub no_replace: bool,
    /// `RENAME_EXCHANGE`: both must exist and change places.
    pub exchange: bool,
    /// `RENAME_WHITEOUT`: leave a char 0:0 device at the old name, an object of the guest's.
    pub whiteout: bool,
}

/// Both ends of a RENAME.
#[derive(Clone, Copy, Debug)]
pub struct Rename<'a> {
    /// The directory that holds the old name.
    pub from: NodeId,
    /// The old name.
    pub name: Name<'a>,
    /// The directory that gets the new name.
    pub to: NodeId,
    /// The new name.
    pub new_name: Name<'a>,
    /// NOREPLACE, EXCHANGE, WHITEOUT.
    pub flags: RenameFlags,
}

/// A WRITE's place and manner; the bytes come from a [`DataSource`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Write {
    /// First byte.
    pub offset: u64,
    /// How many bytes.
    pub size: usize,
    /// Clear setuid, setgid and capabilities: a write by one without `CAP_FSETID`
    /// (fuse.h: `FUSE_WRITE_KILL_SUIDGID`). Never set for cached writes.
    pub kill_privileges: bool,
    /// The guest's kernel owns the file's mtime: a `set_attributes` of its own brings it, before or
    /// after this (fuse.h: `FUSE_WRITE_CACHE` under `FUSE_WRITEBACK_CACHE`).
    pub keeps_mtime: bool,
}

/// A LSEEK that the guest's own cache cannot answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seek {
    /// `SEEK_DATA` from this offset.
    Data(u64),
    /// `SEEK_HOLE` from this offset.
    Hole(u64),
}

/// A FALLOCATE; `mode` holds the `FALLOC_FL_*` bits of falloc.h.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allocate {
    /// `FALLOC_FL_*`.
    pub mode: u32,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// What becomes of the file's privileges.
    pub privileges: Privileges,
}

impl Allocate {
    /// falloc.h: FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE.
    const KEEP_SIZE: u32 = 1;
    const PUNCH_HOLE: u32 = 2;
    const ZERO_RANGE: u32 = 0x10;

    /// The range reads as zeros afterwards, and nothing else changes.
    pub const fn clears(&self) -> bool {
        matches!(self.mode & !Self::KEEP_SIZE, Self::PUNCH_HOLE | Self::ZERO_RANGE)
    }

    /// More than what a range holds may change: what follows moves, or it is not known.
    pub const fn moves(&self) -> bool {
        self.mode & !Self::KEEP_SIZE != 0 && !self.clears()
    }
}

/// What becomes of setuid, setgid and capabilities of a file whose content changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Privileges {
    /// They stay, as far as the host leaves them: root changes it.
    Keep,
    /// They go, for it is not known who changes it.
    Clear,
    /// The guest's kernel said so before ([`SetAttributes::precedes_change`]); they go where that
    /// was in doubt.
    AsSaid,
}

/// A COPY_FILE_RANGE within the union.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CopyRange {
    /// Where the bytes come from.
    pub from: NodeId,
    /// First byte there.
    pub from_offset: u64,
    /// Where they go.
    pub to: NodeId,
    /// First byte there.
    pub to_offset: u64,
    /// Bytes.
    pub size: u64,
    /// What becomes of the privileges of `to`.
    pub privileges: Privileges,
}

/// A SETXATTR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SetXattr<'a> {
    /// The name with its namespace, without NUL, 1 to 255 bytes.
    pub name: &'a [u8],
    /// The value, at most 64 KiB.
    pub value: &'a [u8],
    /// `XATTR_CREATE` (1), `XATTR_REPLACE` (2) or 0.
    pub flags: u32,
    /// An access ACL by one without `CAP_FSETID` outside its group clears setgid
    /// (fuse.h: `FUSE_SETXATTR_ACL_KILL_SGID`).
    pub kill_setgid: bool,
}

/// One row of a directory listing.
#[derive(Clone, Copy, Debug)]
pub struct DirectoryEntry<'a> {
    /// `d_ino`.
    pub node: NodeId,
    /// Where the listing goes on after this row; opaque, never 0, below 2^32.
    pub cookie: u64,
    /// `DT_*`.
    pub kind: Kind,
    /// The name: checked, or `.` or `..`.
    pub name: &'a [u8],
}

/// Takes the rows of a listing until the guest's buffer is full.
pub trait DirectorySink {
    /// Whether a row with a name of `name_bytes` still fits. A row that does not fit must not
    /// be looked up: it would count.
    fn fits(&self, name_bytes: usize) -> bool;

    /// Appends a row; `entry` is `Some` for READDIRPLUS rows other than `.` and `..`, and then
    /// counts one lookup. Call only after [`DirectorySink::fits`] said yes.
    fn push(&mut self, row: &DirectoryEntry<'_>, entry: Option<&Entry>);
}

/// Takes the bytes of a READ into memory that the door owns.
pub trait DataSink {
    /// How many bytes still fit.
    fn capacity(&self) -> usize;

    /// Appends at most `size` bytes of `file` from `offset`, fewer at the end of the file, and
    /// says how many. One read system call where the memory allows it.
    ///
    /// Errors: `EAGAIN` if the door asked for no waiting and the bytes are not in the page
    /// cache: return it as it is, the door asks again where it may wait. Else the read's own.
    fn append_file(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        size: usize,
    ) -> Result<usize, Errno>;

    /// Appends these bytes.
    ///
    /// Errors: `EIO` if they do not fit; nothing is appended then.
    fn append(&mut self, bytes: &[u8]) -> Result<(), Errno>;
}

/// Gives the bytes of a WRITE from memory that the door owns.
pub trait DataSource {
    /// How many bytes are left.
    fn remaining(&self) -> usize;

    /// Writes at most `size` of the bytes left to `file` at `offset` and says how many.
    ///
    /// Errors: the write's own; the bytes it took are gone from the source.
    fn write_file(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        size: usize,
    ) -> Result<usize, Errno>;

    /// Fills `into` with the next bytes.
    ///
    /// Errors: `EIO` if fewer are left; none are taken then.
    fn take(&mut self, into: &mut [u8]) -> Result<(), Errno>;
}

/// A file system a guest can be served from. Every request names a node, never a handle.
///
/// Any method answers `ESTALE` for a node it does not know, `ENOTDIR` for a directory request on
/// something else and `EIO` where the layers disagree with themselves. Methods may be called
/// from several threads at once. Access rights are checked by the guest's kernel
/// (`default_permissions`).
pub trait FileSystem: Send + Sync {
    /// A guest (re)started the protocol: everything it held is forgotten but the root.
    fn init(&self) {}

    /// The guest unmounted in order (DESTROY).
    fn destroy(&self) {}

    /// Finds `name` in `parent`; counts one lookup.
    ///
    /// Errors: `ENOENT`, which the guest may remember for ever.
    fn lookup(&self, caller: &Caller, parent: NodeId, name: Name<'_>) -> Result<Entry, Errno>;

    /// The node itself as an entry (LOOKUP of `.`, for file handles); counts one lookup.
    fn lookup_self(&self, node: NodeId) -> Result<Entry, Errno>;

    /// An object by its number alone, which the guest holds no more, or held before it started anew;
    /// counts one lookup. Searching for it may take long.
    ///
    /// Errors: `ESTALE` for what is gone, and where nothing is searched for.
    fn find_again(&self, _node: NodeId) -> Result<Entry, Errno> {
        Err(Errno::STALE)
    }

    /// The parent of a directory as an entry (LOOKUP of `..`); counts one lookup.
    fn lookup_parent(&self, node: NodeId) -> Result<Entry, Errno>;

    /// The guest gives back `count` lookups. Unknown nodes and counts above what is known are
    /// clamped.
    fn forget(&self, node: NodeId, count: u64);

    /// `stat`.
    fn attributes(&self, node: NodeId) -> Result<Attributes, Errno>;

    /// Changes attributes; copies up. Gives the attributes after the change.
    fn set_attributes(
        &self,
        caller: &Caller,
        node: NodeId,
        change: &SetAttributes,
    ) -> Result<Attributes, Errno>;

    /// The target of a symbolic link. Errors: `EINVAL` for anything else.
    fn read_link(&self, node: NodeId) -> Result<Vec<u8>, Errno>;

    /// The one birth of CREATE, MKNOD, MKDIR and SYMLINK; counts one lookup.
    ///
    /// Errors: `EEXIST` if the union shows the name already.
    fn create(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: Name<'_>,
        new: &NewObject<'_>,
    ) -> Result<Entry, Errno>;

    /// A regular file without a name in `parent` (`O_TMPFILE`); counts one lookup.
    fn create_unnamed(
        &self,
        caller: &Caller,
        parent: NodeId,
        new: &NewObject<'_>,
    ) -> Result<Entry, Errno>;

    /// A further name for `node`; counts one lookup of it.
    fn link(&self, node: NodeId, parent: NodeId, name: Name<'_>) -> Result<Entry, Errno>;

    /// Removes a name that is no directory. Errors: `EISDIR`.
    fn unlink(&self, parent: NodeId, name: Name<'_>) -> Result<(), Errno>;

    /// Removes a directory that is empty in the union. Errors: `ENOTEMPTY`.
    fn remove_directory(&self, parent: NodeId, name: Name<'_>) -> Result<(), Errno>;

    /// Moves, replaces, exchanges; WHITEOUT leaves the caller's. Errors: `EINVAL` below oneself.
    fn rename(&self, caller: &Caller, rename: &Rename<'_>) -> Result<(), Errno>;

    /// Reads at most `size` bytes from `offset` into `sink`.
    fn read(
        &self,
        node: NodeId,
        offset: u64,
        size: usize,
        sink: &mut dyn DataSink,
    ) -> Result<(), Errno>;

    /// Writes from `source`; copies up. Gives the bytes written.
    fn write(
        &self,
        node: NodeId,
        write: &Write,
        source: &mut dyn DataSource,
    ) -> Result<usize, Errno>;

    /// Lists `node` after `cookie` (0: from the start) until `sink` is full; with `plus` each
    /// row carries its entry.
    fn read_directory(
        &self,
        node: NodeId,
        cookie: u64,
        plus: bool,
        sink: &mut dyn DirectorySink,
    ) -> Result<(), Errno>;

    /// FALLOCATE; copies up.
    fn allocate(&self, node: NodeId, allocate: &Allocate) -> Result<(), Errno>;

    /// SEEK_DATA or SEEK_HOLE. Errors: `ENXIO` past the end.
    fn seek(&self, node: NodeId, seek: Seek) -> Result<u64, Errno>;

    /// COPY_FILE_RANGE; copies the target up. Gives the bytes copied.
    fn copy_range(&self, copy: &CopyRange) -> Result<u64, Errno>;

    /// FSYNC and FSYNCDIR; `data_only` is fdatasync.
    fn sync(&self, node: NodeId, data_only: bool) -> Result<(), Errno>;

    /// SYNCFS: this upper's dirty files reach the disk.
    fn sync_all(&self) -> Result<(), Errno>;

    /// STATFS.
    fn statistics(&self) -> Result<FileSystemStatistics, Errno>;

    /// The value of an extended attribute. Errors: `ENODATA`.
    fn xattr(&self, caller: &Caller, node: NodeId, name: &[u8]) -> Result<Vec<u8>, Errno>;

    /// The names of all extended attributes that `caller` may see, each with a NUL behind it.
    fn list_xattrs(&self, caller: &Caller, node: NodeId) -> Result<Vec<u8>, Errno>;

    /// Sets an extended attribute; copies up.
    fn set_xattr(&self, caller: &Caller, node: NodeId, set: &SetXattr<'_>) -> Result<(), Errno>;

    /// Removes an extended attribute; copies up. Errors: `ENODATA`.
    fn remove_xattr(&self, node: NodeId, name: &[u8]) -> Result<(), Errno>;

    /// Inode flags as FS_IOC_GETFLAGS shows them (`FS_*_FL`). Errors: `ENOTTY`.
    fn inode_flags(&self, node: NodeId) -> Result<u32, Errno> {
        Err(self.attributes(node).err().unwrap_or(Errno::NOTTY))
    }

    /// Whether `node` is a stream that must be really opened ([`Entry::is_stream`]).
    fn is_stream(&self, node: NodeId) -> bool;

    /// Whether this change of a node's attributes ends soon: no data has to be moved first, and
    /// nobody moves its just now. The answer of a moment; who acts on it waits longer now and then,
    /// and nothing worse.
    fn changes_at_once(&self, _node: NodeId, _change: &SetAttributes) -> bool {
        false
    }

    /// Whether a small write at this range does, by the same measure.
    fn writes_at_once(&self, _node: NodeId, _range: (u64, usize)) -> bool {
        false
    }

    /// Whether a rename does.
    fn renames_at_once(&self, _rename: &Rename<'_>) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_survives_its_mode_bits() {
        for kind in [
            Kind::File,
            Kind::Directory,
            Kind::Symlink,
            Kind::Fifo,
            Kind::Socket,
            Kind::CharDevice,
            Kind::BlockDevice,
        ] {
            assert_eq!(Kind::from_mode(kind.mode_bits() | 0o7777), Some(kind));
        }
        assert_eq!(Kind::from_mode(0), None);
    }
}
