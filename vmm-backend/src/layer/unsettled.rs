//! Files copied up by block: how a map is begun, kept on disk and ended.
//!
//! The order is what makes it safe: data reaches the disk before the bits that speak of it, a limit
//! is lowered before anything may grow the file again, and the kernel's mark goes first when
//! nothing falls through any more. A crash in between falls through to what was there before.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;

use super::blocks::{BlockMap, BlocksMark, Segment};
use super::data::{copy_data, copy_over, give_back, read_up_to, write_whole};
use super::live::LiveMap;
use super::mark::{DANGLING, Mark, Origin};
use super::upper::Upper;
use crate::filesystem::{Attributes, Errno, Kind};
use crate::sys::fs::{self, Grip};

/// A file whose data is partly in the lower still.
#[derive(Debug)]
pub struct Unsettled {
    mark: BlocksMark,
    map: BlockMap,
    sidecar: Option<OwnedFd>,
    /// What is not on disk yet, where it outlives this process.
    live: Option<LiveMap>,
    is_dirty: bool,
    /// The mark on disk says less than this one.
    is_mark_stale: bool,
    /// Nothing falls through any more, on disk too.
    is_settled: bool,
    /// It lost its last name: nothing of it is to be kept.
    is_orphan: bool,
}

impl Unsettled {
    /// The layers of a range.
    pub fn segments(&self, offset: u64, size: u64) -> Vec<Segment> {
        if self.is_settled {
            return vec![Segment { offset, size, is_upper: true }];
        }
        self.map.segments(offset, size)
    }

    /// The range a write has to cover.
    pub fn widened(&self, offset: u64, size: u64) -> (u64, u64) {
        if self.is_settled { (offset, offset + size) } else { self.map.widened(offset, size) }
    }

    /// The upper has this widened range now.
    pub fn mark(&mut self, range: (u64, u64)) {
        let words = self.map.mark(range);
        self.is_dirty = true;
        if let Some(live) = &mut self.live
            && let Err(e) = live.record(&self.map, words)
        {
            // The map is here still, for all but our death.
            log::warn!("work: a live map cannot be written: {e}");
            self.live = None;
        }
    }

    /// The upper has a range now whose start is a widened one's. Says where what shows ends: at
    /// the last block that falls through still, if the range covers it in part.
    pub fn mark_short(&mut self, (start, end): (u64, u64)) -> u64 {
        let end = if self.is_settled { end } else { self.map.shown_until(start, end) };
        self.mark((start, end));
        end
    }

    /// Whether the lower is what it was when this was copied up.
    pub fn is_over(&self, lower: &Attributes) -> bool {
        self.mark.is_over(lower)
    }

    /// What is on disk lacks blocks that were written, or a cut.
    pub const fn is_dirty(&self) -> bool {
        (self.is_dirty || self.is_mark_stale) && !self.is_orphan && !self.is_settled
    }

    /// It lost its last name.
    pub const fn is_orphan(&self) -> bool {
        self.is_orphan
    }

    /// Nothing falls through any more.
    pub const fn is_settled(&self) -> bool {
        self.is_settled
    }
}

impl Upper {
    /// Makes a staged, empty file an unsettled copy of the first `size` bytes of a lower one.
    pub fn begin_unsettled(
        &self,
        staged: Grip<'_>,
        lower: &Attributes,
        size: u64,
    ) -> Result<(), Errno> {
        fs::truncate(staged.descriptor(), size)?;
        self.set_mark(staged, Mark::Metacopy, b"")?;
        self.set_mark(staged, Mark::Redirect, DANGLING)?;
        self.set_mark(staged, Mark::Blocks, &untouched(lower, size).to_bytes())
    }

    /// Makes a staged, empty file one whose data is a lower file's, in the kernel's own form: its
    /// overlayfs finds the data by the redirect. Our mark says which data that was.
    pub(super) fn begin_elsewhere(
        &self,
        staged: Grip<'_>,
        lower: &Attributes,
        path: &[u8],
    ) -> Result<(), Errno> {
        fs::truncate(staged.descriptor(), lower.size)?;
        self.set_mark(staged, Mark::Metacopy, b"")?;
        self.set_redirect(staged, path)?;
        self.set_mark(staged, Mark::Blocks, &untouched(lower, lower.size).to_bytes())
    }

    /// Whether a file whose data is elsewhere was made of this lower file. One that the kernel's
    /// overlayfs made does not say.
    pub fn is_over(&self, handle: BorrowedFd<'_>, lower: &Attributes) -> Result<bool, Errno> {
        let Some(value) = fs::xattr(handle, self.space().name(Mark::Blocks))? else {
            return Ok(true);
        };
        Ok(read_mark(&value)?.is_over(lower))
    }

    /// A file whose data is elsewhere is about to be written or cut: what is not falls through,
    /// and the kernel's overlayfs must not read it any more.
    pub fn go_by_block(
        &self,
        handle: BorrowedFd<'_>,
        lower: &Attributes,
        origin: Origin,
    ) -> Result<(), Errno> {
        if !self.is_ours(handle)? {
            self.make_ours(handle, lower, origin)?;
        }
        self.set_mark(handle, Mark::Redirect, DANGLING)
    }

    fn is_ours(&self, handle: BorrowedFd<'_>) -> Result<bool, Errno> {
        Ok(fs::xattr(handle, self.space().name(Mark::Blocks))?.is_some())
    }

    /// A metacopy of the kernel's overlayfs was found by its name until now.
    fn make_ours(
        &self,
        handle: BorrowedFd<'_>,
        lower: &Attributes,
        origin: Origin,
    ) -> Result<(), Errno> {
        self.set_mark(handle, Mark::OwnOrigin, &origin.to_bytes())?;
        let mark = untouched(lower, fs::stat(handle)?.stx_size.min(lower.size));
        self.set_mark(handle, Mark::Blocks, &mark.to_bytes())
    }

    /// As [`Upper::go_by_block`], for one that may do so already. Says no, and does nothing, if its
    /// data is all its own by now.
    pub fn adopt_unsettled(
        &self,
        handle: BorrowedFd<'_>,
        lower: &Attributes,
        origin: Origin,
    ) -> Result<bool, Errno> {
        if self.is_ours(handle)? {
            return Ok(true);
        }
        if !self.is_metacopy(handle)? {
            return Ok(false);
        }
        self.make_ours(handle, lower, origin)?;
        self.set_mark(handle, Mark::Redirect, DANGLING)?;
        Ok(true)
    }

    /// Takes the data of a file that had none along from an opened lower one, and waits until it is
    /// on disk; if the lower is then what it was, the file is whole. Whatever comes of it, its times
    /// stay.
    ///
    /// Errors: `ENOSPC` and the like; the data is elsewhere still.
    pub fn bring_data(
        &self,
        file: BorrowedFd<'_>,
        lower: BorrowedFd<'_>,
        is_what_it_was: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let before = self.attributes(file)?;
        let moved = self.move_data(file, lower, before.size).and_then(|()| is_what_it_was());
        let kept = self.set_times(file, &before);
        moved.and(kept)?;
        self.end_marks(file, 0)
    }

    fn move_data(
        &self,
        file: BorrowedFd<'_>,
        lower: BorrowedFd<'_>,
        size: u64,
    ) -> Result<(), Errno> {
        let moved = copy_data(lower, file, size).and_then(|()| self.sync(file, false));
        if moved.is_err() {
            // The room it took is given back; what it holds nobody reads.
            fs::truncate(file, 0)?;
            fs::truncate(file, size)?;
        }
        moved
    }

    /// Reads the map of an unsettled file, with what a process that died knew of it. One the
    /// kernel's overlayfs wrote, a metacopy without a mark of ours, falls through as a whole.
    ///
    /// Errors: `EIO` if the mark is malformed or its sidecar is gone.
    pub fn load_unsettled(
        &self,
        handle: BorrowedFd<'_>,
        lower: &Attributes,
    ) -> Result<Unsettled, Errno> {
        let mut unsettled = self.load_saved(handle, lower)?;
        unsettled.live = self.load_live(handle, &mut unsettled.map)?;
        unsettled.is_dirty = unsettled.live.is_some();
        Ok(unsettled)
    }

    /// The map as it is on disk.
    fn load_saved(&self, handle: BorrowedFd<'_>, lower: &Attributes) -> Result<Unsettled, Errno> {
        let size = fs::stat(handle)?.stx_size;
        let Some(value) = fs::xattr(handle, self.space().name(Mark::Blocks))? else {
            let mark = untouched(lower, size.min(lower.size));
            return Ok(Unsettled::with(mark, BlockMap::new(mark.limit), None));
        };
        let mut mark = read_mark(&value)?;
        // The lower's own size bounds what a planted mark can make us allocate.
        let limit = mark.limit.min(size).min(mark.lower_size).min(lower.size);
        // A death came between a cut and its mark.
        let is_mark_stale = limit < mark.limit;
        mark.limit = limit;
        let (map, sidecar) = match mark.saved_map() {
            None => (BlockMap::new(limit), None),
            Some(map) => self.load_sidecar(map, limit)?,
        };
        Ok(Unsettled { is_mark_stale, ..Unsettled::with(mark, map, sidecar) })
    }

    fn load_sidecar(&self, map: u64, limit: u64) -> Result<(BlockMap, Option<OwnedFd>), Errno> {
        let name = sidecar_name(map);
        let flags = OFlags::RDWR | OFlags::NONBLOCK;
        let sidecar = fs::open_name(self.work().blocks(), &name, flags).map_err(|e| {
            log::error!(
                "work: blocks/{} is gone ({e}); the file it is the map of cannot be read",
                name.escape_ascii()
            );
            Errno::IO
        })?;
        let bytes = usize::try_from(limit.div_ceil(8 * 4096)).map_err(|_| Errno::FBIG)?;
        let mut bits = vec![0; bytes];
        if read_up_to(sidecar.as_fd(), &mut bits, 0)? < bytes {
            // What it lacks must not fall through: the upper may have it.
            log::error!("work: blocks/{} is cut off; its file cannot be read", name.escape_ascii());
            return Err(Errno::IO);
        }
        Ok((BlockMap::from_bytes(limit, &bits), Some(sidecar)))
    }

    /// Sees to it that a write of this range will outlive the process, and that there is room for
    /// the map's way to disk.
    ///
    /// Errors: `ENOSPC`, `EDQUOT`; the write must not be begun then.
    pub fn ready_unsettled(
        &self,
        file: BorrowedFd<'_>,
        unsettled: &mut Unsettled,
        (start, end): (u64, u64),
    ) -> Result<(), Errno> {
        self.ready_growth(file, unsettled)?;
        if unsettled.live.is_some() || unsettled.is_orphan || self.is_volatile() {
            return Ok(());
        }
        // Of a dirty map the disk may not know that the upper has this range.
        let parts = unsettled.segments(start, end - start);
        if unsettled.is_dirty || parts.iter().any(|part| !part.is_upper) {
            unsettled.live = Some(self.begin_live(file, &unsettled.map)?);
        }
        Ok(())
    }

    /// Sees to it that the mark on disk knows of each cut. Until it does nothing may let the file
    /// grow: what was cut off would fall through again after a death.
    ///
    /// Errors: those of the mark; the file must not grow then.
    pub fn ready_growth(
        &self,
        file: BorrowedFd<'_>,
        unsettled: &mut Unsettled,
    ) -> Result<(), Errno> {
        if !unsettled.is_mark_stale || unsettled.is_orphan || unsettled.is_settled {
            return Ok(());
        }
        self.tell_cut(file, unsettled)
    }

    /// Until it is told, it is told before the file grows.
    fn tell_cut(&self, file: BorrowedFd<'_>, unsettled: &mut Unsettled) -> Result<(), Errno> {
        unsettled.is_mark_stale = true;
        match unsettled.map.limit() {
            0 => self.end_unsettled(file, unsettled),
            _ => self.write_blocks_mark(file, unsettled),
        }
    }

    /// What is in memory is on disk, and nobody uses it now.
    pub fn rest_unsettled(&self, unsettled: &mut Unsettled) -> Result<(), Errno> {
        unsettled.live.take().map_or(Ok(()), |live| self.drop_live(live))
    }

    /// Brings the map of an opened file to disk, after its data; ends it if nothing falls through.
    pub fn save_unsettled(
        &self,
        file: BorrowedFd<'_>,
        unsettled: &mut Unsettled,
    ) -> Result<(), Errno> {
        self.sync(file, false)?;
        if !unsettled.is_dirty() {
            return Ok(());
        }
        if unsettled.map.is_complete() {
            return self.end_unsettled(file, unsettled);
        }
        let sidecar = match unsettled.sidecar.take() {
            Some(sidecar) => sidecar,
            None => self.begin_sidecar(file, unsettled)?,
        };
        let sidecar = unsettled.sidecar.insert(sidecar);
        write_whole(sidecar.as_fd(), &unsettled.map.to_bytes(), 0)?;
        self.sync(sidecar.as_fd(), true)?;
        if unsettled.mark.is_begun {
            unsettled.mark.is_begun = false;
            unsettled.is_mark_stale = true;
        }
        if unsettled.is_mark_stale {
            self.write_blocks_mark(file, unsettled)?;
            self.sync(file, false)?;
        }
        unsettled.is_dirty = false;
        Ok(())
    }

    /// Until it is written it is tried again with each save.
    fn write_blocks_mark(
        &self,
        file: BorrowedFd<'_>,
        unsettled: &mut Unsettled,
    ) -> Result<(), Errno> {
        unsettled.is_mark_stale = true;
        self.set_mark(file, Mark::Blocks, &unsettled.mark.to_bytes())?;
        unsettled.is_mark_stale = false;
        Ok(())
    }

    /// The file was cut to `size`: on disk before it may grow again.
    pub fn cut_unsettled(
        &self,
        file: BorrowedFd<'_>,
        unsettled: &mut Unsettled,
        size: u64,
    ) -> Result<(), Errno> {
        if size >= unsettled.map.limit() || unsettled.is_settled {
            return Ok(());
        }
        unsettled.map.cut(size);
        unsettled.mark.limit = unsettled.map.limit();
        if unsettled.is_orphan {
            return Ok(());
        }
        self.tell_cut(file, unsettled)
    }

    /// Nothing falls through any more: the marks go, the kernel's first.
    pub fn end_unsettled(
        &self,
        file: BorrowedFd<'_>,
        unsettled: &mut Unsettled,
    ) -> Result<(), Errno> {
        self.end_marks(file, unsettled.mark.sidecar)?;
        unsettled.is_settled = true;
        unsettled.is_dirty = false;
        self.drop_sidecar(unsettled)
    }

    /// Ends what a death left of the end of a map: the file has all of its data.
    pub fn end_spent(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        let mark = fs::xattr(file, self.space().name(Mark::Blocks))?;
        let mark = mark.as_deref().and_then(BlocksMark::from_bytes);
        self.end_marks(file, mark.map_or(0, |mark| mark.sidecar))
    }

    /// Takes away what says that data is elsewhere: the kernel's mark first, and last what names the
    /// map, which is gone by then. What a death leaves of them says nothing.
    fn end_marks(&self, file: BorrowedFd<'_>, sidecar: u64) -> Result<(), Errno> {
        self.remove_mark(file, Mark::Metacopy)?;
        self.remove_mark(file, Mark::Redirect)?;
        self.remove_sidecar(sidecar)?;
        self.remove_mark(file, Mark::Blocks)
    }

    fn remove_mark(&self, file: BorrowedFd<'_>, mark: Mark) -> Result<(), Errno> {
        match fs::remove_xattr(file, self.space().name(mark)) {
            Err(Errno::NODATA) => Ok(()),
            done => done,
        }
    }

    /// Takes along all that still falls through to the opened lower file, and ends the map.
    ///
    /// Errors: `ENOSPC` and the like; what falls through does so still, and the room it was to have is
    /// given back.
    pub fn settle(
        &self,
        file: BorrowedFd<'_>,
        lower: BorrowedFd<'_>,
        unsettled: &mut Unsettled,
    ) -> Result<(), Errno> {
        let limit = unsettled.map.limit();
        let mut missing = unsettled.segments(0, limit);
        missing.retain(|part| !part.is_upper);
        let moved = missing
            .iter()
            .try_for_each(|part| copy_over(lower, file, part.offset, part.offset + part.size))
            .and_then(|()| self.sync(file, false));
        if let Err(e) = moved {
            give_back_all(file, &missing);
            return Err(e);
        }
        // If the marks cannot all be taken away now, nothing of it may be given back any more.
        unsettled.mark((0, limit));
        self.end_unsettled(file, unsettled)
    }

    /// The file lost its last name: its map is kept in memory alone from now on.
    pub fn orphan_unsettled(&self, unsettled: &mut Unsettled) -> Result<(), Errno> {
        unsettled.is_orphan = true;
        self.drop_sidecar(unsettled)
    }

    fn drop_sidecar(&self, unsettled: &mut Unsettled) -> Result<(), Errno> {
        self.rest_unsettled(unsettled)?;
        unsettled.sidecar = None;
        self.remove_sidecar(unsettled.mark.sidecar)
    }

    fn remove_sidecar(&self, sidecar: u64) -> Result<(), Errno> {
        match sidecar {
            0 => Ok(()),
            name => match fs::unlink(self.work().blocks(), &sidecar_name(name)) {
                Err(Errno::NOENT) => Ok(()),
                done => done,
            },
        }
    }

    /// Begins the map's file. Its name is in the mark before it is there: so whoever removes the
    /// file removes the map, whenever we die.
    fn begin_sidecar(
        &self,
        file: BorrowedFd<'_>,
        unsettled: &mut Unsettled,
    ) -> Result<OwnedFd, Errno> {
        if let Some(live) = &mut unsettled.live {
            live.give_back_room()?;
        }
        let blocks = self.work().blocks();
        if unsettled.mark.sidecar == 0 {
            let mark = BlocksMark {
                sidecar: self.work().free_map_number()?,
                is_begun: true,
                ..unsettled.mark
            };
            self.set_mark(file, Mark::Blocks, &mark.to_bytes())?;
            unsettled.mark = mark;
            unsettled.is_mark_stale = false;
        }
        let name = sidecar_name(unsettled.mark.sidecar);
        match fs::create_file(blocks, &name, 0o600) {
            // Begun before, and not ended.
            Err(Errno::EXIST) => fs::open_name(blocks, &name, OFlags::RDWR | OFlags::NONBLOCK),
            made => made,
        }
    }

    /// Sweeps what a death left in `work/`: the map of a file goes before its last name.
    pub(super) fn sweep(&self) -> Result<(), Errno> {
        self.work().sweep(|dir, name| {
            let file = match fs::open_name(dir, name, OFlags::PATH) {
                Ok(file) => file,
                Err(Errno::NOENT) => return Ok(()),
                Err(e) => return Err(e),
            };
            self.drop_map_of_last_name(file.as_fd())
        })
    }

    /// Removes an indexed hard link that no name leads to, with its map before it.
    pub fn remove_unused_link(&self, name: &[u8], file: BorrowedFd<'_>) -> Result<(), Errno> {
        self.drop_map_of_last_name(file)?;
        self.remove_indexed(name)
    }

    /// Removes the map and the live map of a file that is about to lose its last link.
    pub(super) fn drop_map_of_last_name(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        let stat = fs::stat(file)?;
        if Kind::from_mode(u32::from(stat.stx_mode)) != Some(Kind::File) || stat.stx_nlink > 1 {
            return Ok(());
        }
        let Some(mark) = fs::xattr(file, self.space().name(Mark::Blocks))? else { return Ok(()) };
        self.forget_live(file)?;
        self.remove_sidecar(BlocksMark::from_bytes(&mark).map_or(0, |mark| mark.sidecar))
    }
}

impl Unsettled {
    /// Of a file that was just made: so many bytes of the lower one fall through.
    pub fn untouched(lower: &Attributes, size: u64) -> Self {
        Self::with(untouched(lower, size), BlockMap::new(size), None)
    }

    fn with(mark: BlocksMark, map: BlockMap, sidecar: Option<OwnedFd>) -> Self {
        Self {
            mark,
            map,
            sidecar,
            live: None,
            is_dirty: false,
            is_mark_stale: false,
            is_settled: false,
            is_orphan: false,
        }
    }
}

/// The mark of a file of which so many bytes of a lower one fall through.
fn untouched(lower: &Attributes, limit: u64) -> BlocksMark {
    let (lower_size, lower_mtime) = (lower.size, lower.mtime);
    BlocksMark { limit, sidecar: 0, is_begun: false, lower_size, lower_mtime }
}

fn read_mark(value: &[u8]) -> Result<BlocksMark, Errno> {
    BlocksMark::from_bytes(value).ok_or_else(|| {
        log::error!("upper: an unsettled file has an unreadable blocks mark");
        Errno::IO
    })
}

/// What these parts hold nobody reads.
fn give_back_all(file: BorrowedFd<'_>, parts: &[Segment]) {
    for part in parts {
        if let Err(e) = give_back(file, part.offset, part.offset + part.size) {
            log::warn!("upper: a file that could not be settled keeps its room: {e}");
        }
    }
}

/// The name of a map in `work/blocks`.
pub fn sidecar_name(name: u64) -> Vec<u8> {
    format!("{name:016x}").into_bytes()
}
