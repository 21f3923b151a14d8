//! The requests a Linux guest issues, one method each, and the sequences it makes of them.
//!
//! Every reply is checked as recent kernels check it: used length, `len` of the header and
//! `unique` agree, or the test ends.
#![allow(clippy::expect_used, reason = "a test whose daemon answers nonsense cannot go on")]

use std::sync::Arc;

use rustix::io::Errno;

use crate::guest::{HIPRIO, VirtualGuest};
use crate::virtqueue::Used;
use crate::wire::{
    ATTR_OUT_BYTES, Attr, Bytes, ENTRY_BYTES, Entry, OUT_HEADER_BYTES, Row, Time, error_of, opcode,
    rows, u32_at, u64_at,
};

/// The root's node id.
pub const ROOT: u64 = 1;

/// `FUSE_INIT_EXT`: the upper 32 flags count.
const INIT_EXT: u64 = 1 << 30;

/// What a guest like Linux 6.12 offers at INIT: everything it knows that the daemon may take.
pub const OFFERED: u64 = INIT_EXT
    | (1 << 0) // ASYNC_READ
    | (1 << 3) // ATOMIC_O_TRUNC
    | (1 << 4) // EXPORT_SUPPORT
    | (1 << 5) // BIG_WRITES
    | (1 << 6) // DONT_MASK
    | (1 << 7) // SPLICE_WRITE
    | (1 << 12) // AUTO_INVAL_DATA
    | (1 << 13) // DO_READDIRPLUS
    | (1 << 14) // READDIRPLUS_AUTO
    | (1 << 15) // ASYNC_DIO
    | (1 << 16) // WRITEBACK_CACHE
    | (1 << 17) // NO_OPEN_SUPPORT
    | (1 << 18) // PARALLEL_DIROPS
    | (1 << 19) // HANDLE_KILLPRIV
    | (1 << 20) // POSIX_ACL
    | (1 << 21) // ABORT_ERROR
    | (1 << 22) // MAX_PAGES
    | (1 << 23) // CACHE_SYMLINKS
    | (1 << 24) // NO_OPENDIR_SUPPORT
    | (1 << 25) // EXPLICIT_INVAL_DATA
    | (1 << 28) // HANDLE_KILLPRIV_V2
    | (1 << 29) // SETXATTR_EXT
    | (1 << 34); // CREATE_SUPP_GROUP

/// `FUSE_SETXATTR_EXT`: SETXATTR carries two more numbers.
const SETXATTR_EXT: u64 = 1 << 29;

/// What INIT agreed on.
#[derive(Clone, Copy, Debug)]
pub struct Agreed {
    /// Flags of both words.
    pub flags: u64,
    /// The longest WRITE in bytes.
    pub max_write: u32,
    /// The longest READ or WRITE in pages.
    pub max_pages: u16,
}

/// A guest task as the daemon sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Task {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Thread id; 1 is the guest's init.
    pub pid: u32,
}

/// The guest's root: a task at a queue of a mounted guest.
#[derive(Clone, Debug)]
pub struct Mount {
    /// The guest below.
    pub guest: Arc<VirtualGuest>,
    /// What INIT said.
    pub agreed: Agreed,
    /// The request queue in use.
    pub queue: usize,
    /// Who asks.
    pub task: Task,
}

/// The changes of a SETATTR; only what is `Some` changes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change {
    /// Mode bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<Time>,
    /// Last change of the contents.
    pub mtime: Option<Time>,
    /// Clear setuid and the like.
    pub kills_privileges: bool,
}

impl Mount {
    /// Mounts with what Linux 6.12 offers.
    pub fn new(guest: VirtualGuest) -> Self {
        Self::with_flags(guest, OFFERED)
    }

    /// Mounts with these INIT flags.
    pub fn with_flags(guest: VirtualGuest, flags: u64) -> Self {
        let task = Task { uid: 0, gid: 0, pid: 100 };
        let agreed = Agreed { flags: 0, max_write: 0, max_pages: 0 };
        let mut mount = Self { guest: Arc::new(guest), agreed, queue: 1, task };
        mount.agreed = mount.init(7, 41, flags).expect("INIT");
        mount
    }

    /// The same mount for another task.
    pub fn as_task(&self, uid: u32, gid: u32, pid: u32) -> Self {
        Self { task: Task { uid, gid, pid }, ..self.clone() }
    }

    /// The same mount at another queue.
    pub fn at_queue(&self, queue: usize) -> Self {
        Self { queue, ..self.clone() }
    }

    /// Hangs up as a VMM that was killed does. Other clones of the mount must be gone.
    pub fn crash(self) {
        Arc::into_inner(self.guest).expect("the last clone").crash();
    }

    /// DESTROY, then an orderly end. Other clones of the mount must be gone.
    pub fn unmount(self) {
        self.call(opcode::DESTROY, 0, &[], 0).expect("DESTROY");
        Arc::into_inner(self.guest).expect("the last clone").shut_down();
    }

    /// A message: header and body.
    pub fn message(&self, opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
        let bytes = u32::try_from(40 + body.len()).expect("a message below 4 GiB");
        let Task { uid, gid, pid } = self.task;
        let header = Bytes::new().u32(bytes).u32(opcode).u64(self.guest.unique()).u64(node);
        header.u32(uid).u32(gid).u32(pid).u32(0).raw(body).0
    }

    /// Any request with room for `room` bytes of reply body; gives the body.
    pub fn call(&self, opcode: u32, node: u64, body: &[u8], room: usize) -> Result<Vec<u8>, Errno> {
        self.exchange(self.message(opcode, node, body), &[], room)
    }

    /// Sends `message` with `data` behind it.
    fn exchange(&self, mut message: Vec<u8>, data: &[u8], room: usize) -> Result<Vec<u8>, Errno> {
        let bytes = u32::try_from(message.len() + data.len()).expect("a message below 4 GiB");
        message[..4].copy_from_slice(&bytes.to_ne_bytes());
        let (header, body) = message.split_at(40);
        // As Linux does: the header apart, its arguments apart, data in pages.
        let mut pieces = vec![header, body];
        pieces.extend(data.chunks(64 * 1024));
        let writable: Vec<usize> = std::iter::once(OUT_HEADER_BYTES).chain(pages(room)).collect();
        let used = self.guest.request(self.queue, &pieces, &writable);
        body_of(&used, &message)
    }

    /// INIT.
    pub fn init(&self, major: u32, minor: u32, flags: u64) -> Result<Agreed, Errno> {
        let (low, high) = halves(flags);
        let mut body = Bytes::new().u32(major).u32(minor).u32(128 * 1024).u32(low).u32(high);
        body.0.resize(64, 0);
        let out = self.call(opcode::INIT, 0, &body.0, 64)?;
        let high = if u64::from(u32_at(&out, 12)) & INIT_EXT != 0 { u32_at(&out, 32) } else { 0 };
        Ok(Agreed {
            flags: u64::from(u32_at(&out, 12)) | u64::from(high) << 32,
            max_write: u32_at(&out, 20),
            max_pages: u16::from_ne_bytes([out[28], out[29]]),
        })
    }

    /// LOOKUP. Errors: `ENOENT` also for a negative entry.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<Entry, Errno> {
        let entry = self.entry(opcode::LOOKUP, parent, Bytes::new().name(name))?;
        if entry.node == 0 { Err(Errno::NOENT) } else { Ok(entry) }
    }

    fn entry(&self, opcode: u32, parent: u64, body: Bytes) -> Result<Entry, Errno> {
        let out = self.call(opcode, parent, &body.0, ENTRY_BYTES)?;
        assert_eq!(out.len(), ENTRY_BYTES);
        Ok(Entry::parse(&out))
    }

    /// FORGET, on the hiprio queue.
    pub fn forget(&self, node: u64, count: u64) {
        self.silent(&self.message(opcode::FORGET, node, &Bytes::new().u64(count).0));
    }

    /// BATCH_FORGET of (node, count) pairs, on the hiprio queue.
    pub fn batch_forget(&self, forgotten: &[(u64, u64)]) {
        let count = u32::try_from(forgotten.len()).expect("few nodes");
        let body = Bytes::new().u32(count).u32(0);
        let body = forgotten.iter().fold(body, |body, (node, count)| body.u64(*node).u64(*count));
        self.silent(&self.message(opcode::BATCH_FORGET, 0, &body.0));
    }

    fn silent(&self, message: &[u8]) {
        assert_eq!(self.guest.request(HIPRIO, &[message], &[]).bytes, 0);
    }

    /// GETATTR.
    pub fn getattr(&self, node: u64) -> Result<Attr, Errno> {
        let out = self.call(opcode::GETATTR, node, &[0; 16], ATTR_OUT_BYTES)?;
        Ok(Attr::parse(&out[16..]))
    }

    /// SETATTR.
    pub fn setattr(&self, node: u64, change: Change) -> Result<Attr, Errno> {
        let bit = |is_set: bool, bit: u32| u32::from(is_set) << bit;
        let valid = bit(change.mode.is_some(), 0)
            | bit(change.uid.is_some(), 1)
            | bit(change.gid.is_some(), 2)
            | bit(change.size.is_some(), 3)
            | bit(change.atime.is_some(), 4)
            | bit(change.mtime.is_some(), 5)
            | bit(change.kills_privileges, 11);
        let (atime, mtime) = (change.atime.unwrap_or_default(), change.mtime.unwrap_or_default());
        let body = Bytes::new()
            .u32(valid)
            .u32(0)
            .u64(0)
            .u64(change.size.unwrap_or(0))
            .u64(0)
            .u64(atime.0)
            .u64(mtime.0)
            .u64(0)
            .u32(atime.1)
            .u32(mtime.1)
            .u32(0)
            .u32(change.mode.unwrap_or(0))
            .u32(0)
            .u32(change.uid.unwrap_or(0))
            .u32(change.gid.unwrap_or(0))
            .u32(0);
        let out = self.call(opcode::SETATTR, node, &body.0, ATTR_OUT_BYTES)?;
        Ok(Attr::parse(&out[16..]))
    }

    /// READLINK.
    pub fn readlink(&self, node: u64) -> Result<Vec<u8>, Errno> {
        self.call(opcode::READLINK, node, &[], 4096)
    }

    /// SYMLINK.
    pub fn symlink(&self, parent: u64, name: &[u8], target: &[u8]) -> Result<Entry, Errno> {
        self.entry(opcode::SYMLINK, parent, Bytes::new().name(name).name(target))
    }

    /// MKNOD; `mode` carries the kind.
    pub fn mknod(&self, parent: u64, name: &[u8], mode: u32, rdev: u32) -> Result<Entry, Errno> {
        let body = Bytes::new().u32(mode).u32(rdev).u32(0o022).u32(0).name(name);
        self.entry(opcode::MKNOD, parent, body)
    }

    /// MKDIR.
    pub fn mkdir(&self, parent: u64, name: &[u8], mode: u32) -> Result<Entry, Errno> {
        self.entry(opcode::MKDIR, parent, Bytes::new().u32(mode).u32(0o022).name(name))
    }

    /// CREATE alone; a guest asks LOOKUP first ([`Mount::create_new`]).
    pub fn create(&self, parent: u64, name: &[u8], mode: u32) -> Result<Entry, Errno> {
        // O_RDWR | O_CREAT, a regular file, umask 022.
        let body = Bytes::new().u32(0o102).u32(0o100_000 | mode).u32(0o022).u32(0).name(name);
        let out = self.call(opcode::CREATE, parent, &body.0, ENTRY_BYTES + 16)?;
        assert_eq!(out.len(), ENTRY_BYTES + 16);
        Ok(Entry::parse(&out))
    }

    /// TMPFILE.
    pub fn tmpfile(&self, parent: u64, mode: u32) -> Result<Entry, Errno> {
        let body = Bytes::new().u32(0o2).u32(0o100_000 | mode).u32(0o022).u32(0).name(b"/");
        let out = self.call(opcode::TMPFILE, parent, &body.0, ENTRY_BYTES + 16)?;
        Ok(Entry::parse(&out))
    }

    /// LINK.
    pub fn link(&self, node: u64, parent: u64, name: &[u8]) -> Result<Entry, Errno> {
        self.entry(opcode::LINK, parent, Bytes::new().u64(node).name(name))
    }

    /// UNLINK.
    pub fn unlink(&self, parent: u64, name: &[u8]) -> Result<(), Errno> {
        self.call(opcode::UNLINK, parent, &Bytes::new().name(name).0, 0).map(drop)
    }

    /// RMDIR.
    pub fn rmdir(&self, parent: u64, name: &[u8]) -> Result<(), Errno> {
        self.call(opcode::RMDIR, parent, &Bytes::new().name(name).0, 0).map(drop)
    }

    /// RENAME2 with `RENAME_*` flags.
    pub fn rename2(
        &self,
        (from, name): (u64, &[u8]),
        (to, new_name): (u64, &[u8]),
        flags: u32,
    ) -> Result<(), Errno> {
        let body = Bytes::new().u64(to).u32(flags).u32(0).name(name).name(new_name);
        self.call(opcode::RENAME2, from, &body.0, 0).map(drop)
    }

    /// OPEN; a guest that gets `ENOSYS` never asks again.
    pub fn open(&self, node: u64, flags: u32) -> Result<u64, Errno> {
        let out = self.call(opcode::OPEN, node, &Bytes::new().u32(flags).u32(0).0, 16)?;
        Ok(u64_at(&out, 0))
    }

    /// READ of at most `size` bytes.
    pub fn read(&self, node: u64, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        let body = Bytes::new().u64(0).u64(offset).u32(size).u32(0).u64(0).u32(0).u32(0);
        let room = usize::try_from(size).expect("64 bits");
        self.call(opcode::READ, node, &body.0, room)
    }

    /// WRITE as the page cache does it.
    pub fn write(&self, node: u64, offset: u64, data: &[u8]) -> Result<u32, Errno> {
        // fuse.h: FUSE_WRITE_CACHE.
        self.write_with(node, offset, data, 1)
    }

    /// WRITE with `FUSE_WRITE_*` flags.
    pub fn write_with(
        &self,
        node: u64,
        offset: u64,
        data: &[u8],
        flags: u32,
    ) -> Result<u32, Errno> {
        let size = u32::try_from(data.len()).expect("a write below 4 GiB");
        let body = Bytes::new().u64(0).u64(offset).u32(size).u32(flags).u64(0).u32(0).u32(0);
        let out = self.exchange(self.message(opcode::WRITE, node, &body.0), data, 8)?;
        Ok(u32_at(&out, 0))
    }

    /// STATFS: blocks, free blocks, available blocks.
    pub fn statfs(&self) -> Result<(u64, u64, u64), Errno> {
        let out = self.call(opcode::STATFS, ROOT, &[], 80)?;
        Ok((u64_at(&out, 0), u64_at(&out, 8), u64_at(&out, 16)))
    }

    /// FSYNC.
    pub fn fsync(&self, node: u64) -> Result<(), Errno> {
        self.call(opcode::FSYNC, node, &[0; 16], 0).map(drop)
    }

    /// SYNCFS.
    pub fn syncfs(&self) -> Result<(), Errno> {
        self.call(opcode::SYNCFS, ROOT, &[0; 8], 0).map(drop)
    }

    /// SETXATTR with `XATTR_CREATE`, `XATTR_REPLACE` or 0.
    pub fn setxattr(&self, node: u64, name: &[u8], value: &[u8], flags: u32) -> Result<(), Errno> {
        let size = u32::try_from(value.len()).expect("a value below 4 GiB");
        let body = Bytes::new().u32(size).u32(flags);
        let is_long = self.agreed.flags & SETXATTR_EXT != 0;
        let body = if is_long { body.u32(0).u32(0) } else { body };
        self.call(opcode::SETXATTR, node, &body.name(name).raw(value).0, 0).map(drop)
    }

    /// GETXATTR as `getxattr` does it: the size, then the value.
    pub fn getxattr(&self, node: u64, name: &[u8]) -> Result<Vec<u8>, Errno> {
        self.sized(opcode::GETXATTR, node, name)
    }

    /// LISTXATTR as `listxattr` does it; the names.
    pub fn listxattr(&self, node: u64) -> Result<Vec<Vec<u8>>, Errno> {
        let list = self.sized(opcode::LISTXATTR, node, b"")?;
        let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        Ok(names.map(<[u8]>::to_vec).collect())
    }

    fn sized(&self, opcode: u32, node: u64, name: &[u8]) -> Result<Vec<u8>, Errno> {
        let ask = |size: u32, room: usize| {
            let body = Bytes::new().u32(size).u32(0);
            let body = if name.is_empty() { body } else { body.name(name) };
            self.call(opcode, node, &body.0, room)
        };
        let size = u32_at(&ask(0, 8)?, 0);
        if size == 0 {
            return Ok(Vec::new());
        }
        let value = ask(size, usize::try_from(size).expect("64 bits"))?;
        assert_eq!(u32::try_from(value.len()), Ok(size), "count call and fill call agree");
        Ok(value)
    }

    /// REMOVEXATTR.
    pub fn removexattr(&self, node: u64, name: &[u8]) -> Result<(), Errno> {
        self.call(opcode::REMOVEXATTR, node, &Bytes::new().name(name).0, 0).map(drop)
    }

    /// One READDIR or READDIRPLUS into `room` bytes.
    pub fn readdir_once(
        &self,
        node: u64,
        cookie: u64,
        room: u32,
        is_plus: bool,
    ) -> Result<Vec<Row>, Errno> {
        let opcode = if is_plus { opcode::READDIRPLUS } else { opcode::READDIR };
        let body = Bytes::new().u64(0).u64(cookie).u32(room).u32(0).u64(0).u32(0).u32(0);
        let out = self.call(opcode, node, &body.0, usize::try_from(room).expect("64 bits"))?;
        Ok(rows(&out, is_plus))
    }

    /// The whole directory, in pages as the guest asks for it.
    pub fn readdir(&self, node: u64, is_plus: bool) -> Result<Vec<Row>, Errno> {
        let mut all: Vec<Row> = Vec::new();
        loop {
            let cookie = all.last().map_or(0, |row| row.cookie);
            let more = self.readdir_once(node, cookie, 4096, is_plus)?;
            if more.is_empty() {
                return Ok(all);
            }
            all.extend(more);
        }
    }

    /// FALLOCATE with `FALLOC_FL_*`.
    pub fn fallocate(&self, node: u64, mode: u32, offset: u64, size: u64) -> Result<(), Errno> {
        let body = Bytes::new().u64(0).u64(offset).u64(size).u32(mode).u32(0);
        self.call(opcode::FALLOCATE, node, &body.0, 0).map(drop)
    }

    /// LSEEK with `SEEK_DATA` (3) or `SEEK_HOLE` (4).
    pub fn lseek(&self, node: u64, offset: u64, whence: u32) -> Result<u64, Errno> {
        let body = Bytes::new().u64(0).u64(offset).u32(whence).u32(0);
        Ok(u64_at(&self.call(opcode::LSEEK, node, &body.0, 8)?, 0))
    }

    /// COPY_FILE_RANGE from (node, offset) to (node, offset).
    pub fn copy_file_range(
        &self,
        (from, from_offset): (u64, u64),
        (to, to_offset): (u64, u64),
        size: u64,
    ) -> Result<u32, Errno> {
        let body = Bytes::new().u64(0).u64(from_offset).u64(to).u64(0).u64(to_offset);
        let out = self.call(opcode::COPY_FILE_RANGE, from, &body.u64(size).u64(0).0, 8)?;
        Ok(u32_at(&out, 0))
    }
}

/// Sequences: what a guest's kernel makes of one system call.
impl Mount {
    /// Walks `path` from the root to its node id; each component counts one lookup.
    pub fn resolve(&self, path: &str) -> Result<u64, Errno> {
        let mut names = path.split('/').filter(|name| !name.is_empty());
        names.try_fold(ROOT, |at, name| Ok(self.lookup(at, name.as_bytes())?.node))
    }

    /// `open(O_CREAT|O_EXCL)`: LOOKUP, which must say `ENOENT`, then CREATE.
    pub fn create_new(&self, parent: u64, name: &[u8], mode: u32) -> Result<Entry, Errno> {
        match self.lookup(parent, name) {
            Err(Errno::NOENT) => self.create(parent, name, mode),
            Ok(_) => Err(Errno::EXIST),
            Err(errno) => Err(errno),
        }
    }

    /// `cp` to a new file: CREATE, WRITE in the negotiated size, then as the writeback cache
    /// does at close: SETATTR of the mtime, GETATTR.
    pub fn write_new(
        &self,
        parent: u64,
        name: &[u8],
        mode: u32,
        data: &[u8],
    ) -> Result<Entry, Errno> {
        let mut entry = self.create_new(parent, name, mode)?;
        self.write_all(entry.node, 0, data)?;
        self.setattr(entry.node, Change { mtime: Some(entry.attr.mtime), ..Change::default() })?;
        entry.attr = self.getattr(entry.node)?;
        Ok(entry)
    }

    /// WRITEs as large as agreed.
    pub fn write_all(&self, node: u64, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let most = usize::try_from(self.agreed.max_write).expect("64 bits");
        let mut at = offset;
        for part in data.chunks(most) {
            let written = self.write(node, at, part)?;
            assert_eq!(usize::try_from(written), Ok(part.len()), "a short write");
            at += u64::from(written);
        }
        Ok(())
    }

    /// The whole file, as `cat` reads it.
    pub fn read_all(&self, node: u64) -> Result<Vec<u8>, Errno> {
        let mut all = Vec::new();
        loop {
            let offset = u64::try_from(all.len()).expect("64 bits");
            let part = self.read(node, offset, 128 * 1024)?;
            if part.is_empty() {
                return Ok(all);
            }
            all.extend(part);
        }
    }

    /// `ls`: the names without `.` and `..`, sorted; gives back the lookups READDIRPLUS counted.
    pub fn names(&self, node: u64) -> Result<Vec<String>, Errno> {
        let rows = self.readdir(node, true)?;
        let counted: Vec<_> =
            rows.iter().filter_map(|row| row.entry).map(|entry| (entry.node, 1)).collect();
        if !counted.is_empty() {
            self.batch_forget(&counted);
        }
        let name = |row: &Row| String::from_utf8_lossy(&row.name).into_owned();
        let mut names: Vec<_> =
            rows.iter().map(name).filter(|name| name != "." && name != "..").collect();
        names.sort_unstable();
        Ok(names)
    }
}

fn halves(flags: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = flags.to_le_bytes();
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}

/// Room for a reply body, in pages as the page cache has it up to the queue's length.
fn pages(room: usize) -> Vec<usize> {
    let unit = if room > 256 * 4096 { 64 * 1024 } else { 4096 };
    let mut pages = vec![unit; room / unit];
    pages.push(room % unit);
    pages
}

/// Checks the reply to `message` as a guest's kernel does and gives its body.
fn body_of(used: &Used, message: &[u8]) -> Result<Vec<u8>, Errno> {
    let bytes = usize::try_from(used.bytes).expect("64 bits");
    assert!(bytes >= OUT_HEADER_BYTES, "used length {bytes}");
    assert_eq!(u32_at(&used.written, 0), used.bytes, "len and the used length");
    assert_eq!(used.written[8..16], message[8..16], "unique");
    match error_of(&used.written) {
        Some(errno) => {
            assert_eq!(bytes, OUT_HEADER_BYTES, "an error has no body");
            Err(errno)
        }
        None => Ok(used.written[OUT_HEADER_BYTES..bytes].to_vec()),
    }
}
