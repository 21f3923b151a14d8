//! The FUSE wire as the tests see it: numbers by offset, written down apart from the daemon's own
//! structures, so that one mistake cannot hide in both. Source: include/uapi/linux/fuse.h.

use rustix::io::Errno;

/// `enum fuse_opcode`.
pub mod opcode {
    #![allow(missing_docs, reason = "the names are fuse.h's, without FUSE_")]
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SYNCFS: u32 = 50;
    pub const TMPFILE: u32 = 51;
}

/// `struct fuse_out_header`.
pub const OUT_HEADER_BYTES: usize = 16;
/// `struct fuse_entry_out`.
pub const ENTRY_BYTES: usize = 128;
/// `struct fuse_attr_out`.
pub const ATTR_OUT_BYTES: usize = 104;

/// Writes numbers one after the other.
#[derive(Clone, Debug, Default)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Two bytes.
    pub fn u16(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    /// Four bytes.
    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    /// Eight bytes.
    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    /// A name and its NUL.
    pub fn name(mut self, name: &[u8]) -> Self {
        self.0.extend_from_slice(name);
        self.0.push(0);
        self
    }

    /// Bytes as they are.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

/// Four bytes at `at`.
#[allow(clippy::expect_used, reason = "a reply that is too short fails the test")]
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let field = bytes.get(at..at + 4).expect("a reply long enough");
    u32::from_ne_bytes(field.try_into().expect("four bytes"))
}

/// Eight bytes at `at`.
#[allow(clippy::expect_used, reason = "a reply that is too short fails the test")]
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let field = bytes.get(at..at + 8).expect("a reply long enough");
    u64::from_ne_bytes(field.try_into().expect("eight bytes"))
}

/// A point in time: seconds, nanoseconds.
pub type Time = (u64, u32);

/// `struct fuse_attr`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Units of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of the contents.
    pub mtime: Time,
    /// Last change.
    pub ctime: Time,
    /// Kind and permissions.
    pub mode: u32,
    /// Names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number.
    pub rdev: u32,
    /// Preferred block size.
    pub blksize: u32,
}

impl Attr {
    /// Reads it from the front of `bytes`.
    pub fn parse(bytes: &[u8]) -> Self {
        let time = |seconds, nanoseconds| (u64_at(bytes, seconds), u32_at(bytes, nanoseconds));
        Self {
            ino: u64_at(bytes, 0),
            size: u64_at(bytes, 8),
            blocks: u64_at(bytes, 16),
            atime: time(24, 48),
            mtime: time(32, 52),
            ctime: time(40, 56),
            mode: u32_at(bytes, 60),
            nlink: u32_at(bytes, 64),
            uid: u32_at(bytes, 68),
            gid: u32_at(bytes, 72),
            rdev: u32_at(bytes, 76),
            blksize: u32_at(bytes, 80),
        }
    }

    /// The `S_IFMT` bits.
    pub const fn kind(&self) -> u32 {
        self.mode & 0o170_000
    }
}

/// `struct fuse_entry_out`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Node id; 0 for a negative entry.
    pub node: u64,
    /// Generation.
    pub generation: u64,
    /// How long the name holds, in seconds.
    pub entry_valid: u64,
    /// How long the attributes hold, in seconds.
    pub attr_valid: u64,
    /// The attributes.
    pub attr: Attr,
}

impl Entry {
    /// Reads it from the front of `bytes`.
    pub fn parse(bytes: &[u8]) -> Self {
        Self {
            node: u64_at(bytes, 0),
            generation: u64_at(bytes, 8),
            entry_valid: u64_at(bytes, 16),
            attr_valid: u64_at(bytes, 24),
            attr: Attr::parse(&bytes[40..]),
        }
    }
}

/// A row of READDIR or READDIRPLUS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// The name.
    pub name: Vec<u8>,
    /// `d_ino`.
    pub ino: u64,
    /// Cookie of what comes next.
    pub cookie: u64,
    /// `DT_*`.
    pub kind: u32,
    /// READDIRPLUS: the entry; `None` where its node id is 0 (`.`, `..`).
    pub entry: Option<Entry>,
}

/// Cuts a listing into rows.
pub fn rows(mut bytes: &[u8], is_plus: bool) -> Vec<Row> {
    let mut rows = Vec::new();
    while !bytes.is_empty() {
        let entry = is_plus.then(|| Entry::parse(bytes)).filter(|entry| entry.node != 0);
        let dirent = if is_plus { &bytes[ENTRY_BYTES..] } else { bytes };
        let name_bytes = usize::try_from(u32_at(dirent, 16)).unwrap_or(usize::MAX);
        rows.push(Row {
            name: dirent[24..24 + name_bytes].to_vec(),
            ino: u64_at(dirent, 0),
            cookie: u64_at(dirent, 8),
            kind: u32_at(dirent, 20),
            entry,
        });
        let padded = (24 + name_bytes).next_multiple_of(8);
        bytes = &dirent[padded..];
    }
    rows
}

/// The cookie of the last row of a READDIRPLUS; `None` if there is no row.
pub fn last_cookie(mut bytes: &[u8]) -> Option<u64> {
    let mut last = None;
    while !bytes.is_empty() {
        let dirent = &bytes[ENTRY_BYTES..];
        let name_bytes = usize::try_from(u32_at(dirent, 16)).unwrap_or(usize::MAX);
        last = Some(u64_at(dirent, 8));
        bytes = &dirent[(24 + name_bytes).next_multiple_of(8)..];
    }
    last
}

/// The error a header carries; `None` for success.
pub fn error_of(header: &[u8]) -> Option<Errno> {
    let raw = u32_at(header, 4).cast_signed();
    assert!((-511..=0).contains(&raw), "error {raw} is none a guest accepts");
    (raw != 0).then(|| Errno::from_raw_os_error(-raw))
}
