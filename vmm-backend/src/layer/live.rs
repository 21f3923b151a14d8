//! Live maps: what the disk does not know yet of unsettled files, kept so that the death of the
//! daemon alone loses nothing.
//!
//! The bits of a map reach `blocks/` after the data they speak of, when the guest syncs. Until then
//! they are in a file of `live/` too, which is written after each block and never synced: like the
//! block itself it outlives the process in the host's page cache. After a power loss it says
//! nothing, for pages reach the disk in any order: it is believed in the same boot of the host and
//! attachment of the disk alone.
//!
//! The file is made before the first write, with room for the map's way to disk: a full disk is
//! told by that write, not by a later sync.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;

use super::blocks::BlockMap;
use super::data::{read_up_to, write_whole};
use super::upper::Upper;
use crate::filesystem::Errno;
use crate::sys::attachment::Attachment;
use crate::sys::fs;

/// What a live map begins with.
const MAGIC: &[u8; 8] = b"thinlive";

/// The magic, the attachment, the upper file's time of birth, and where the bits end.
const HEADER_BYTES: u64 = 64;

/// The live map of one unsettled file.
#[derive(Debug)]
pub struct LiveMap {
    file: OwnedFd,
    name: Vec<u8>,
    /// Where the room for the map's way to disk begins, as long as it is kept.
    room: Option<u64>,
    /// What it begins with, until that is written with the first block's bit. Without it it says
    /// nothing, as nothing needs to be said until then.
    header: Option<Vec<u8>>,
}

/// Which upper file a live map is of: its inode's number names the map, its birth tells it from
/// a later inode of that number.
#[derive(Clone, Copy, Debug)]
struct Subject {
    ino: u64,
    seconds: i64,
    nanoseconds: u32,
    /// What its file system gives and takes at once.
    block_bytes: u64,
}

impl Subject {
    fn of(file: BorrowedFd<'_>) -> Result<Self, Errno> {
        let stat = fs::stat(file)?;
        let (seconds, nanoseconds) = (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec);
        let block_bytes = u64::from(stat.stx_blksize).max(1);
        Ok(Self { ino: stat.stx_ino, seconds, nanoseconds, block_bytes })
    }

    fn name(self) -> Vec<u8> {
        format!("{:016x}", self.ino).into_bytes()
    }

    fn header(self, attachment: Attachment, map_bytes: u64) -> Vec<u8> {
        let mut header = MAGIC.to_vec();
        header.extend(attachment.0);
        header.extend(self.seconds.to_le_bytes());
        header.extend(self.nanoseconds.to_le_bytes());
        header.extend([0; 4]);
        header.extend(map_bytes.to_le_bytes());
        header
    }
}

impl Upper {
    /// Begins the live map of a file that is about to be written.
    ///
    /// Errors: `ENOSPC`, `EDQUOT` if there is no room for it or for the map on disk.
    pub(super) fn begin_live(
        &self,
        file: BorrowedFd<'_>,
        map: &BlockMap,
    ) -> Result<LiveMap, Errno> {
        let subject = Subject::of(file)?;
        let (dir, name) = (self.work().live(), subject.name());
        let made = match fs::create_file(dir, &name, 0o600) {
            // Of an earlier file of this number.
            Err(Errno::EXIST) => {
                fs::unlink(dir, &name)?;
                fs::create_file(dir, &name, 0o600)?
            }
            made => made?,
        };
        let map_end = HEADER_BYTES + map.byte_count() as u64;
        // In blocks of its own: what shares one with the map could not be given back.
        let room = map_end.next_multiple_of(subject.block_bytes);
        let map_bytes = map.byte_count() as u64;
        let header = subject.header(self.attachment().unwrap_or_default(), map_bytes);
        let mut live = LiveMap { file: made, name, room: Some(room), header: Some(header) };
        let no_range = fs::FallocateFlags::empty();
        let readied = match fs::allocate(live.file.as_fd(), no_range, 0, room + map_bytes) {
            // No promise of room here: what is full is told by as much as can be written now.
            Err(Errno::NOTSUP | Errno::NOSYS) => live.write_from_start(map),
            done => done,
        };
        if let Err(e) = readied {
            self.drop_live(live)?;
            return Err(e);
        }
        Ok(live)
    }

    /// Adds what a live map from before a death knows, and gives it back to be gone on with. One
    /// that says nothing any more is removed.
    pub(super) fn load_live(
        &self,
        file: BorrowedFd<'_>,
        map: &mut BlockMap,
    ) -> Result<Option<LiveMap>, Errno> {
        let subject = Subject::of(file)?;
        let (dir, name) = (self.work().live(), subject.name());
        let file = match fs::open_name(dir, &name, OFlags::RDWR | OFlags::NONBLOCK) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut header = [0; 64];
        let read = read_up_to(file.as_fd(), &mut header, 0)?;
        let map_bytes = u64::from_le_bytes(header[56..].try_into().map_err(|_| Errno::IO)?);
        let own = self.attachment().map(|attachment| subject.header(attachment, map_bytes));
        let live = LiveMap { file, name, room: None, header: None };
        if read < header.len() || own.as_deref() != Some(&header[..]) {
            self.drop_live(live)?;
            return Ok(None);
        }
        let mut bits = vec![0; map.to_bytes().len()];
        let read = read_up_to(live.file.as_fd(), &mut bits, HEADER_BYTES)?;
        bits.truncate(read.min(usize::try_from(map_bytes).unwrap_or(0)));
        map.add(&bits);
        Ok(Some(live))
    }

    /// Removes a live map: the disk knows all of it, or nobody needs it.
    pub(super) fn drop_live(&self, live: LiveMap) -> Result<(), Errno> {
        match fs::unlink(self.work().live(), &live.name) {
            Err(Errno::NOENT) => Ok(()),
            done => done,
        }
    }

    /// Removes the live map of a file that goes, if it has one.
    pub(super) fn forget_live(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        match fs::unlink(self.work().live(), &Subject::of(file)?.name()) {
            Err(Errno::NOENT) => Ok(()),
            done => done,
        }
    }

    /// Removes the live maps that say nothing any more: of another boot, or of another attachment
    /// of the disk.
    pub(super) fn sweep_live(&self) -> Result<(), Errno> {
        let dir = self.work().live();
        for row in fs::list(dir)? {
            if !self.is_believed(dir, &row.name)? {
                fs::unlink(dir, &row.name)?;
            }
        }
        Ok(())
    }

    fn is_believed(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<bool, Errno> {
        let Some(own) = self.attachment() else { return Ok(false) };
        let file = fs::open_name(dir, name, OFlags::RDONLY | OFlags::NONBLOCK)?;
        let mut header = [0; 40];
        let read = read_up_to(file.as_fd(), &mut header, 0)?;
        Ok(read == header.len() && header[..8] == *MAGIC && header[8..] == own.0)
    }
}

impl LiveMap {
    /// These words of the map are what they are now.
    pub(super) fn record(&mut self, map: &BlockMap, words: Range<usize>) -> Result<(), Errno> {
        if self.header.is_some() {
            return self.write_from_start(map);
        }
        let at = HEADER_BYTES + 8 * words.start as u64;
        write_whole(self.file.as_fd(), &map.words(words), at)
    }

    /// Bits that were set before are on disk, too: it does no harm if the header is seen first.
    fn write_from_start(&mut self, map: &BlockMap) -> Result<(), Errno> {
        let mut start = self.header.take().unwrap_or_default();
        let bits = map.to_bytes();
        let last = bits.iter().rposition(|byte| *byte != 0);
        start.extend_from_slice(&bits[..last.map_or(0, |last| last + 1)]);
        write_whole(self.file.as_fd(), &start, 0)
    }

    /// The map is about to reach the disk: the room kept for it is free.
    pub(super) fn give_back_room(&mut self) -> Result<(), Errno> {
        match self.room.take() {
            Some(room) => fs::truncate(self.file.as_fd(), room),
            None => Ok(()),
        }
    }
}
