//! Replies to bytes.

use std::cell::Cell;
use std::time::Duration;

use zerocopy::{Immutable, IntoBytes};

use super::abi;
use crate::filesystem::{
    Attributes, DataSink, DirectoryEntry, DirectorySink, Entry, Errno, FOREVER,
    FileSystemStatistics, NAME_BYTES_MAX, NodeId, Timestamp,
};

/// Takes one reply into memory that the door owns: a body, appended, and the header before it.
///
/// What [`DataSink`] says of capacity and appending is about the body alone; the door keeps room
/// for the header.
pub trait ReplyBuffer: DataSink {
    /// Sets the 16 bytes before the body.
    fn set_header(&mut self, header: [u8; abi::OUT_HEADER_BYTES]);

    /// Forgets the body: the whole capacity is there again.
    fn clear(&mut self);

    /// Whether the door lets this request wait; if not, [`DataSink::append_file`] may give
    /// `EAGAIN`, and a change that may take long is not begun.
    fn may_wait(&self) -> bool;
}

/// The header of a reply with a body of `body_bytes`.
pub(super) fn header(unique: u64, body_bytes: usize) -> Result<abi::OutHeader, Errno> {
    let len = u32::try_from(abi::OUT_HEADER_BYTES + body_bytes).map_err(|_| Errno::IO)?;
    Ok(abi::OutHeader { len, error: 0, unique })
}

/// The header of a reply that is an error, and all of it.
pub(super) fn error(unique: u64, errno: Errno) -> abi::OutHeader {
    // fs/fuse/dev.c, `fuse_dev_do_write`: errors reach from -511 to 0, anything else breaks the
    // connection's trust.
    let error = match errno.raw_os_error() {
        raw @ 1..=511 => -raw,
        _ => -Errno::IO.raw_os_error(),
    };
    abi::OutHeader { len: 16, error, unique }
}

/// Appends one structure.
pub(super) fn append<T>(reply: &mut dyn ReplyBuffer, value: &T) -> Result<(), Errno>
where
    T: IntoBytes + Immutable,
{
    reply.append(value.as_bytes())
}

/// A timeout as the wire has it.
fn seconds_and_nanoseconds(duration: Duration) -> (u64, u32) {
    (duration.as_secs(), duration.subsec_nanos())
}

/// The attributes of an object.
pub(super) fn attr(attributes: &Attributes) -> abi::Attr {
    abi::Attr {
        ino: attributes.node.0,
        size: attributes.size,
        blocks: attributes.blocks,
        atime: attributes.atime.seconds.cast_unsigned(),
        mtime: attributes.mtime.seconds.cast_unsigned(),
        ctime: attributes.ctime.seconds.cast_unsigned(),
        atimensec: attributes.atime.nanoseconds,
        mtimensec: attributes.mtime.nanoseconds,
        ctimensec: attributes.ctime.nanoseconds,
        mode: attributes.mode,
        nlink: attributes.nlink,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: attributes.rdev,
        blksize: attributes.block_size,
        flags: 0,
    }
}

/// GETATTR's and SETATTR's answer.
pub(super) fn attr_out(attributes: &Attributes) -> abi::AttrOut {
    let (attr_valid, attr_valid_nsec) = seconds_and_nanoseconds(FOREVER);
    abi::AttrOut { attr_valid, attr_valid_nsec, dummy: 0, attr: attr(attributes) }
}

/// An object that was found or born.
pub(super) fn entry_out(entry: &Entry) -> abi::EntryOut {
    let (entry_valid, entry_valid_nsec) = seconds_and_nanoseconds(entry.valid_for);
    let (attr_valid, attr_valid_nsec) = seconds_and_nanoseconds(FOREVER);
    abi::EntryOut {
        nodeid: entry.attributes.node.0,
        generation: entry.generation,
        entry_valid,
        attr_valid,
        entry_valid_nsec,
        attr_valid_nsec,
        attr: attr(&entry.attributes),
    }
}

/// A name that is absent for ever (fs/fuse/dir.c, `fuse_lookup_name`: zero nodeid is the same
/// as `ENOENT`, but valid for a time).
pub(super) fn negative_entry_out() -> abi::EntryOut {
    let (entry_valid, entry_valid_nsec) = seconds_and_nanoseconds(FOREVER);
    abi::EntryOut { entry_valid, entry_valid_nsec, ..Default::default() }
}

/// STATX's answer.
pub(super) fn statx_out(attributes: &Attributes) -> abi::StatXOut {
    let (attr_valid, attr_valid_nsec) = seconds_and_nanoseconds(FOREVER);
    let birth = attributes.btime.map_or(0, |_| abi::STATX_BTIME);
    let (rdev_major, rdev_minor) = major_minor(attributes.rdev);
    let [mode_low, mode_high, ..] = attributes.mode.to_le_bytes();
    let stat = abi::StatX {
        mask: abi::STATX_BASIC_STATS | birth,
        blksize: attributes.block_size,
        nlink: attributes.nlink,
        uid: attributes.uid,
        gid: attributes.gid,
        mode: u16::from_le_bytes([mode_low, mode_high]),
        ino: attributes.node.0,
        size: attributes.size,
        blocks: attributes.blocks,
        atime: sx_time(attributes.atime),
        btime: sx_time(attributes.btime.unwrap_or_default()),
        ctime: sx_time(attributes.ctime),
        mtime: sx_time(attributes.mtime),
        rdev_major,
        rdev_minor,
        ..Default::default()
    };
    abi::StatXOut { attr_valid, attr_valid_nsec, stat, ..Default::default() }
}

fn sx_time(time: Timestamp) -> abi::SxTime {
    abi::SxTime { tv_sec: time.seconds, tv_nsec: time.nanoseconds, reserved: 0 }
}

/// Takes a device number apart (include/linux/kdev_t.h, `new_decode_dev`).
const fn major_minor(rdev: u32) -> (u32, u32) {
    ((rdev & 0x000f_ff00) >> 8, (rdev & 0xff) | ((rdev >> 12) & 0x000f_ff00))
}

/// STATFS's answer.
pub(super) fn statfs_out(statistics: &FileSystemStatistics) -> abi::StatFsOut {
    abi::StatFsOut {
        blocks: statistics.blocks,
        bfree: statistics.blocks_free,
        bavail: statistics.blocks_available,
        files: statistics.files,
        ffree: statistics.files_free,
        bsize: statistics.block_size,
        namelen: statistics.name_bytes_max,
        frsize: statistics.fragment_size,
        ..Default::default()
    }
}

/// The longest row: an entry, a header and a name, padded.
const ROW_BYTES_MAX: usize =
    row_bytes(size_of::<abi::EntryOut>() + size_of::<abi::DirentHeader>(), NAME_BYTES_MAX);

/// fuse.h: `FUSE_DIRENT_ALIGN`.
const fn row_bytes(header_bytes: usize, name_bytes: usize) -> usize {
    (header_bytes + name_bytes).next_multiple_of(8)
}

/// So many bytes of rows are gathered before they go into the reply: a page of the guest's and a row.
const GATHERED_BYTES_MAX: usize = 4096 + ROW_BYTES_MAX;

/// The rows of a READDIR or READDIRPLUS, packed into its reply.
///
/// Rows are gathered and go there together: the guest's memory is in another CPU's cache, and what comes
/// between two rows would wait for each.
pub(super) struct DirectoryReply<'a> {
    reply: &'a mut dyn ReplyBuffer,
    /// Bytes the guest takes, less those of all rows so far.
    room: usize,
    plus: bool,
    gathered: Vec<u8>,
    /// Nodes whose rows are among them.
    entered: Vec<NodeId>,
    is_empty: bool,
    /// A row was turned away.
    is_full: Cell<bool>,
    /// Nodes whose lookups count though their rows could not be written.
    lost: Vec<NodeId>,
}

impl<'a> DirectoryReply<'a> {
    /// Rows of at most `size` bytes, and at most what `reply` holds.
    pub(super) fn new(reply: &'a mut dyn ReplyBuffer, size: usize, plus: bool) -> Self {
        let room = size.min(reply.capacity());
        let gathered = Vec::with_capacity(room.min(GATHERED_BYTES_MAX));
        let is_full = Cell::new(false);
        let (entered, lost) = (Vec::new(), Vec::new());
        Self { reply, room, plus, gathered, entered, is_empty: true, is_full, lost }
    }

    /// Writes what is gathered. To be called after the last row; what cannot be written is lost.
    pub(super) fn flush(&mut self) {
        if self.gathered.is_empty() {
            return;
        }
        match self.reply.append(&self.gathered) {
            Ok(()) => self.is_empty = false,
            Err(error) => {
                log::error!("directory rows cannot be written: {error}");
                self.is_full.set(true);
                self.lost.append(&mut self.entered);
            }
        }
        self.gathered.clear();
        self.entered.clear();
    }

    /// Whether no row was written.
    pub(super) const fn is_empty(&self) -> bool {
        self.is_empty
    }

    /// Whether there was a row, but no room for even one: an empty reply would be taken for the
    /// end of the directory.
    pub(super) fn is_too_small(&self) -> bool {
        self.is_empty && self.is_full.get()
    }

    /// The nodes whose rows were pushed without room for them: each counts one lookup that must
    /// be forgotten.
    pub(super) fn lost(&self) -> &[NodeId] {
        &self.lost
    }

    fn row_bytes(&self, name_bytes: usize) -> usize {
        let entry_bytes = if self.plus { size_of::<abi::EntryOut>() } else { 0 };
        row_bytes(entry_bytes + size_of::<abi::DirentHeader>(), name_bytes)
    }

    /// Errors: `EIO` if the row does not fit; nothing is written then.
    fn write(&mut self, row: &DirectoryEntry<'_>, entry: Option<&Entry>) -> Result<(), Errno> {
        let header = abi::DirentHeader {
            ino: row.node.0,
            off: row.cookie,
            namelen: u32::try_from(row.name.len()).map_err(|_| Errno::IO)?,
            kind: u32::from(row.kind.dirent_type()),
        };
        // A row without entry, `.` and `..`, has nodeid 0, which the guest takes for no lookup
        // (fs/fuse/readdir.c, `fuse_direntplus_link`).
        let node = entry.map(|entry| entry.attributes.node);
        let entry = entry.map(entry_out).unwrap_or_default();
        let entry: &[u8] = if self.plus { entry.as_bytes() } else { &[] };
        let size = self.row_bytes(row.name.len());
        self.room = self.room.checked_sub(size).ok_or(Errno::IO)?;
        let end = self.gathered.len() + size;
        for part in [entry, header.as_bytes(), row.name] {
            self.gathered.extend_from_slice(part);
        }
        self.gathered.resize(end, 0);
        self.entered.extend(node);
        if end >= GATHERED_BYTES_MAX {
            self.flush();
        }
        Ok(())
    }
}

impl DirectorySink for DirectoryReply<'_> {
    fn fits(&self, name_bytes: usize) -> bool {
        let fits = self.row_bytes(name_bytes) <= self.room && self.lost.is_empty();
        if !fits {
            self.is_full.set(true);
        }
        fits
    }

    fn push(&mut self, row: &DirectoryEntry<'_>, entry: Option<&Entry>) {
        if self.write(row, entry).is_err() {
            debug_assert!(false, "row pushed without asking whether it fits: {row:?}");
            log::error!("directory row pushed without room for it: {row:?}");
            self.is_full.set(true);
            self.lost.extend(entry.map(|entry| entry.attributes.node));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_hold_for_ever_even_where_the_name_does_not() {
        let zero = crate::filesystem::Timestamp::default();
        let attributes = Attributes {
            node: NodeId(2),
            mode: 0o100_400,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            blocks: 0,
            block_size: 4096,
            atime: zero,
            mtime: zero,
            ctime: zero,
            btime: None,
        };
        let valid_for = Duration::ZERO;
        let entry = Entry { attributes, generation: 0, valid_for, is_stream: true };
        let out = entry_out(&entry);
        assert_eq!((out.entry_valid, out.attr_valid), (0, FOREVER.as_secs()));
        assert_eq!(attr_out(&attributes).attr_valid, FOREVER.as_secs());
    }

    #[test]
    fn errors_stay_where_the_guest_believes_them() {
        for (raw, wire) in [(1, -1), (2, -2), (95, -95), (511, -511), (512, -5), (4095, -5)] {
            let header = error(7, Errno::from_raw_os_error(raw));
            assert_eq!((header.len, header.error, header.unique), (16, wire, 7), "errno {raw}");
        }
    }

    #[test]
    fn device_number_comes_apart_as_the_kernel_put_it_together() {
        // new_encode_dev(major, minor): (minor & 0xff) | major << 8 | (minor & ~0xff) << 12
        for (major, minor) in [(0, 0), (1, 3), (259, 0x12345), (0xfff, 0xf_ffff)] {
            let rdev = (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12);
            assert_eq!(major_minor(rdev), (major, minor));
        }
    }
}
