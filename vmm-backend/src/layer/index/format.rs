//! The bytes of an index file: little-endian records without padding, in sections.
//!
//! The file is a header, then one section after another, each a plain array: layers, ancestors,
//! objects (record N is number N; record 0 and numbers without an object are all zero), directories,
//! entries (those of one directory stand together, in the order of the names' bytes), parts, data
//! places, xattr sets, xattr pairs; then two heaps: names (one byte of length before each) and
//! blobs (four bytes of length before each). Everything that points does so by position, and
//! `NONE` points nowhere.

use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Begins every index file.
pub const MAGIC: [u8; 8] = *b"thinroot";

/// Raised whenever a byte below changes its meaning; files of other versions are built anew.
pub const VERSION: u32 = 1;

/// A position that points nowhere.
pub const NONE: u32 = u32::MAX;

/// An array of records: its first byte in the file and how many there are.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Section {
    /// First byte, counted from the start of the file.
    pub offset: U64,
    /// Records; for the heaps, bytes.
    pub count: U64,
}

/// The start of the file.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: U32,
    /// The highest number ever given to an object, in this index or those it refreshes.
    pub last_number: U32,
    /// The length of the file.
    pub file_bytes: U64,
    /// `IndexId`.
    pub identity: [u8; 16],
    /// What is born in the upper is numbered from here.
    pub upper_numbers_start: U64,
    /// Objects with a number now.
    pub objects_present: U64,
    /// [`LayerRecord`]s, top first.
    pub layers: Section,
    /// Identities (16 bytes each) of the indexes this one was refreshed from, oldest first.
    pub ancestors: Section,
    /// [`ObjectRecord`]s.
    pub objects: Section,
    /// [`DirectoryRecord`]s.
    pub directories: Section,
    /// [`EntryRecord`]s.
    pub entries: Section,
    /// [`PartRecord`]s.
    pub parts: Section,
    /// [`DataRecord`]s.
    pub data: Section,
    /// [`SetRecord`]s.
    pub sets: Section,
    /// [`PairRecord`]s.
    pub pairs: Section,
    /// The names heap.
    pub names: Section,
    /// The blobs heap.
    pub blobs: Section,
    /// `Digest` of all header bytes before this field.
    pub check: [u8; 16],
}

/// One lower.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct LayerRecord {
    /// Blob: the canonical path on this host.
    pub path: U32,
    /// 0: plain tree; 1: overlay layer.
    pub kind: U32,
    /// The part that is the layer's root.
    pub root: U32,
}

/// A point in time.
#[derive(
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
)]
#[repr(C)]
pub struct Time {
    /// Seconds since the epoch.
    pub seconds: I64,
    /// Nanoseconds.
    pub nanoseconds: U32,
}

/// Bits of [`ObjectRecord::flags`].
pub mod flags {
    /// More than one name in the merged view.
    pub const HARD_LINKED: u8 = 1;
    /// `btime` is known.
    pub const BIRTH_KNOWN: u8 = 2;
}

/// One object. 116 bytes: this is what an entry costs before its name.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct ObjectRecord {
    /// `st_mode`; 0 where no object has this number.
    pub mode: U32,
    /// Names in the merged view; directories: 2 + subdirectories.
    pub nlink: U32,
    /// Owner.
    pub uid: U32,
    /// Group.
    pub gid: U32,
    /// Device number of a device node, the kernel's `new_encode_dev`.
    pub rdev: U32,
    /// The directory that holds the first name; a root's is itself.
    pub parent: U32,
    /// Name: the first in path order.
    pub name: U32,
    /// The part that holds the real object under that name; a root's is itself.
    pub part: U32,
    /// Directory: its [`DirectoryRecord`]. Symbolic link: the blob of its target. File: its
    /// [`DataRecord`], or `NONE` where the real object holds its own data.
    pub detail: U32,
    /// Its [`SetRecord`], or `NONE`.
    pub xattrs: U32,
    /// The binary logarithm of `st_blksize`.
    pub block_size_log2: u8,
    /// See [`flags`].
    pub flags: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// `st_ino` of the real object.
    pub ino: U64,
    /// Size in bytes.
    pub size: U64,
    /// Units of 512 bytes.
    pub blocks: U64,
    /// Last access.
    pub atime: Time,
    /// Last change of the contents.
    pub mtime: Time,
    /// Last change of the object.
    pub ctime: Time,
    /// Birth.
    pub btime: Time,
}

/// One merged directory.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct DirectoryRecord {
    /// Its object.
    pub object: U32,
    /// The first of its [`EntryRecord`]s.
    pub first_entry: U32,
    /// How many there are.
    pub entries: U32,
    /// How many of them are directories.
    pub subdirectories: U32,
    /// The first of its [`PartRecord`]s, top first.
    pub first_part: U32,
    /// How many there are; 0 for a mount point, which is served empty.
    pub parts: U32,
}

/// One name.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct EntryRecord {
    /// Name.
    pub name: U32,
    /// Object number.
    pub object: U32,
    /// `DT_*`.
    pub kind: u8,
}

/// What is compared to tell whether a real directory or file is still what was sealed.
#[derive(
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
)]
#[repr(C)]
pub struct Witness {
    /// `st_ino`.
    pub ino: U64,
    /// `st_size`.
    pub size: U64,
    /// `st_mtime`.
    pub mtime: Time,
    /// `st_ctime`.
    pub ctime: Time,
    /// `st_nlink`.
    pub nlink: U32,
}

impl Witness {
    /// Whether inode, size and mtime agree: then so do the contents.
    pub fn is_same_content(&self, other: &Self) -> bool {
        (self.ino, self.size, self.mtime) == (other.ino, other.size, other.mtime)
    }
}

/// One real directory of one layer. A part stands after its parent.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct PartRecord {
    /// The layer it is in.
    pub layer: U32,
    /// The part it is in; `NONE` for the layer's root.
    pub parent: U32,
    /// Its name there.
    pub name: U32,
    /// What it was when sealed.
    pub witness: Witness,
}

/// Where the data of a metacopy file is.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct DataRecord {
    /// The part that holds it.
    pub part: U32,
    /// Its name there.
    pub name: U32,
    /// What it was when sealed.
    pub witness: Witness,
}

/// The xattrs of the objects that have exactly these.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct SetRecord {
    /// The first of its [`PairRecord`]s.
    pub first_pair: U32,
    /// How many there are.
    pub pairs: U32,
}

/// One xattr.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct PairRecord {
    /// Name.
    pub name: U32,
    /// Blob.
    pub value: U32,
}
