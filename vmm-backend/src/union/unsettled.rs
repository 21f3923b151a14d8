//! Files copied up by block: reads find each byte's layer, a first write takes its block along.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::attributes::CAPABILITY;
use super::descriptors::Use;
use super::lookup::Seen;
use super::{PARKED, UNSETTLED, Union};
use crate::filesystem::{Allocate, Attributes, DataSink, DataSource, Errno, Kind, NodeId};
use crate::layer::blocks::Segment;
use crate::layer::data;
use crate::layer::index::ObjectId;
use crate::layer::unsettled::Unsettled;
use crate::layer::upper::UpperObject;

/// So many are kept in use; then those at rest are closed.
const FILES_MAX: usize = 64;

/// One unsettled file in use.
#[derive(Debug)]
pub(super) struct Open {
    /// The upper file, for reading and writing: the map can be saved when the node is long gone.
    file: Arc<OwnedFd>,
    /// A first write and what ends the map hold this for as long as they take; nothing else is
    /// locked inside but descriptors.
    map: Mutex<Unsettled>,
}

/// The unsettled files in use, and those with a map that is not on disk yet. Within this lock no other
/// is taken but the nodes', and a map's if nobody holds it.
#[derive(Debug, Default)]
pub struct UnsettledFiles(Mutex<HashMap<NodeId, Arc<Open>>>);

impl UnsettledFiles {
    /// Whether one more may be used without others being saved first.
    pub fn has_room(&self) -> bool {
        self.lock().len() < FILES_MAX
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Arc<Open>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn hold(&self) -> MutexGuard<'_, Unsettled> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody uses it right now, which its count tells, or its map is nowhere else. The caller
    /// holds what keeps others from finding it.
    fn is_needed(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) > 1
            || self.map.try_lock().map_or(true, |map| map.is_dirty() || map.is_orphan())
    }

    fn is_orphan(&self) -> bool {
        self.map.try_lock().is_ok_and(|map| map.is_orphan())
    }
}

impl Union {
    /// The file and map of a node, if it is unsettled. The caller does not hold `names`.
    fn map_of(&self, id: NodeId) -> Result<Option<Arc<Open>>, Errno> {
        if self.nodes.get(id)?.flags & UNSETTLED == 0 {
            return Ok(None);
        }
        if let Some(open) = self.unsettled.lock().get(&id) {
            return Ok(Some(Arc::clone(open)));
        }
        self.make_room_for_map();
        let (_, handle) = self.reach(id)?;
        self.open_map(id, handle.as_fd())
    }

    /// Opens the map of a node, unless that ended since the caller looked at the node. Locks no names:
    /// who removes it holds them.
    pub(super) fn open_map(
        &self,
        id: NodeId,
        handle: BorrowedFd<'_>,
    ) -> Result<Option<Arc<Open>>, Errno> {
        let mut files = self.unsettled.lock();
        if let Some(open) = files.get(&id) {
            return Ok(Some(Arc::clone(open)));
        }
        // Who ends a map changes the node first: from here on it says what is so.
        let node = self.nodes.get(id)?;
        if node.flags & UNSETTLED == 0 {
            return Ok(None);
        }
        let object = node.lower.ok_or(Errno::IO)?;
        let lower = self.lower.attributes(object)?;
        if !self.upper.adopt_unsettled(handle, &lower, self.own_origin(object))? {
            // It ended between a look at the marks and the node that came of it.
            self.nodes.update(id, |node| node.flags &= !UNSETTLED)?;
            return Ok(None);
        }
        let mut map = self.upper.load_unsettled(handle, &lower)?;
        if !map.is_over(&lower) {
            log::error!(
                "union: node {} was copied up from a lower file that has changed since",
                node.id
            );
            return Err(Errno::IO);
        }
        let parked = u32::from(node.flags & PARKED != 0);
        if !node.is_named && self.upper.attributes(handle)?.nlink <= parked {
            self.upper.orphan_unsettled(&mut map)?;
        }
        let file = self.upper.open_file(handle, true)?;
        let open = Arc::new(Open { file: Arc::new(file), map: Mutex::new(map) });
        files.insert(id, Arc::clone(&open));
        Ok(Some(open))
    }

    /// Takes the map of a file into use that was just copied up to be written, by the descriptor that
    /// made it, if there is room. The caller holds the node's lock and `names`.
    pub(super) fn begin_map(&self, id: NodeId, file: Arc<OwnedFd>, lower: &Attributes) {
        let mut files = self.unsettled.lock();
        if files.len() < FILES_MAX {
            let map = Mutex::new(Unsettled::untouched(lower, lower.size));
            files.entry(id).or_insert_with(|| Arc::new(Open { file, map }));
        }
    }

    /// Closes files at rest when too many are in use. One whose map is in memory alone stays: who
    /// reads another file must not hear of a full disk.
    fn make_room_for_map(&self) {
        if self.unsettled.lock().len() < FILES_MAX {
            return;
        }
        if let Err(e) = self.save_all_unsettled() {
            log::warn!("union: a block map cannot be saved for now: {e}");
        }
        let orphans: Vec<_> = {
            let mut files = self.unsettled.lock();
            files.retain(|_, open| {
                let is_needed = open.is_needed();
                if !is_needed {
                    self.rest(open);
                }
                is_needed
            });
            if files.len() < FILES_MAX {
                return;
            }
            files.iter().filter(|(_, open)| open.is_orphan()).map(|(id, _)| *id).collect()
        };
        // Their maps are never saved: they have to do without one.
        for id in orphans {
            match self.settle(id) {
                Ok(()) | Err(Errno::STALE) => {}
                Err(e) => log::warn!("union: removed file {id} keeps its map in memory: {e}"),
            }
        }
    }

    /// The layers of a range.
    pub(super) fn segments_of(
        &self,
        id: NodeId,
        (offset, size): (u64, u64),
    ) -> Result<Option<Vec<Segment>>, Errno> {
        let Some(open) = self.map_of(id)? else { return Ok(None) };
        let segments = open.hold().segments(offset, size);
        Ok(Some(segments))
    }

    /// The lower file an unsettled node falls through to.
    pub(super) fn beneath(&self, id: NodeId) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(file) = self.descriptors.get(id, Use::Lower) {
            return Ok(file);
        }
        let object = self.nodes.get(id)?.lower.ok_or(Errno::IO)?;
        Ok(self.descriptors.keep(id, Use::Lower, self.lower.open_file(object)?))
    }

    /// Reads an unsettled file; says no if it is none.
    pub(super) fn read_unsettled(
        &self,
        id: NodeId,
        (offset, size): (u64, usize),
        sink: &mut dyn DataSink,
    ) -> Result<bool, Errno> {
        let Some(open) = self.map_of(id)? else { return Ok(false) };
        let segments = open.hold().segments(offset, size as u64);
        for part in segments {
            let bytes = usize::try_from(part.size).map_err(|_| Errno::INVAL)?;
            let lower;
            let file = if part.is_upper {
                open.file.as_fd()
            } else {
                lower = self.beneath(id)?;
                lower.as_fd()
            };
            let mut done = 0;
            while done < bytes {
                match sink.append_file(file, part.offset + done as u64, bytes - done)? {
                    // The end of the file; in the lower that would be a base that shrank.
                    0 if part.is_upper => return Ok(true),
                    0 => return Err(Errno::IO),
                    more => done += more,
                }
            }
        }
        Ok(true)
    }

    /// Writes to an unsettled file; `None` if it is none.
    pub(super) fn write_unsettled(
        &self,
        id: NodeId,
        (offset, size): (u64, usize),
        source: &mut dyn DataSource,
    ) -> Result<Option<usize>, Errno> {
        let Some(open) = self.map_of(id)? else { return Ok(None) };
        let upper = &open.file;
        let mut unsettled = open.hold();
        if size == 0 {
            return Ok(Some(0));
        }
        let (start, end) = unsettled.widened(offset, size as u64);
        self.upper.ready_unsettled(upper.as_fd(), &mut unsettled, (start, end))?;
        if (start, end) == (offset, offset + size as u64) {
            let written = source.write_file(upper.as_fd(), offset, size)?;
            let shown = unsettled.mark_short((offset, offset + written as u64));
            return match usize::try_from(shown - offset).map_err(|_| Errno::INVAL)? {
                // What was written is part of a block that falls through: the disk is full.
                0 if written > 0 => Err(Errno::NOSPC),
                shown => Ok(Some(shown)),
            };
        }
        // Edge, data and edge in one write: a block is never half the upper's.
        let mut bytes = vec![0; usize::try_from(end - start).map_err(|_| Errno::INVAL)?];
        let file_end = self.fill(id, (upper.as_fd(), &unsettled), start, &mut bytes)?;
        let at = usize::try_from(offset - start).map_err(|_| Errno::INVAL)?;
        source.take(&mut bytes[at..at + size])?;
        let Err((written, e)) = data::write_most(upper.as_fd(), &bytes, start) else {
            unsettled.mark((start, end));
            return Ok(Some(size));
        };
        if written == 0 {
            return Err(e);
        }
        // The disk is full: what it took counts as far as it shows.
        let written_end = start + written as u64;
        let shown = unsettled.mark_short((start, written_end));
        if shown > offset {
            let shown = usize::try_from(shown - offset).map_err(|_| Errno::INVAL)?;
            return Ok(Some(shown.min(size)));
        }
        if written_end > file_end {
            self.upper.truncate(upper.as_fd(), file_end)?;
        }
        Err(e)
    }

    /// Reads what a range shows now; what is beyond the end is zeros. Says where the file ends, or the
    /// range if that does first.
    fn fill(
        &self,
        id: NodeId,
        (upper, unsettled): (BorrowedFd<'_>, &Unsettled),
        start: u64,
        bytes: &mut [u8],
    ) -> Result<u64, Errno> {
        let mut end = start + bytes.len() as u64;
        for part in unsettled.segments(start, bytes.len() as u64) {
            let from = usize::try_from(part.offset - start).map_err(|_| Errno::INVAL)?;
            let size = usize::try_from(part.size).map_err(|_| Errno::INVAL)?;
            let into = &mut bytes[from..from + size];
            if part.is_upper {
                let read = data::read_up_to(upper, into, part.offset)?;
                if read < size {
                    end = end.min(part.offset + read as u64);
                }
            } else if data::read_up_to(self.beneath(id)?.as_fd(), into, part.offset)? < size {
                return Err(Errno::IO);
            }
        }
        Ok(end)
    }

    /// A file was cut: what is beyond falls through never again.
    pub(super) fn cut_unsettled(&self, id: NodeId, size: u64) -> Result<bool, Errno> {
        let Some(open) = self.map_of(id)? else { return Ok(false) };
        let upper = &open.file;
        let mut unsettled = open.hold();
        self.upper.ready_growth(upper.as_fd(), &mut unsettled)?;
        self.upper.truncate(upper.as_fd(), size)?;
        self.upper.cut_unsettled(upper.as_fd(), &mut unsettled, size)?;
        self.note_settled(id, &unsettled)?;
        Ok(true)
    }

    /// Allocates room for an unsettled file, which may grow by it, or punches or zeroes a range of it;
    /// says no if it is none.
    pub(super) fn allocate_unsettled(
        &self,
        id: NodeId,
        allocate: &Allocate,
    ) -> Result<bool, Errno> {
        let Some(open) = self.map_of(id)? else { return Ok(false) };
        let upper = open.file.as_fd();
        let mut unsettled = open.hold();
        let (offset, size) = (allocate.offset, allocate.size);
        if !allocate.clears() {
            self.upper.ready_growth(upper, &mut unsettled)?;
            self.upper.allocate(upper, allocate.mode, (offset, size))?;
            return Ok(true);
        }
        let (start, end) = unsettled.widened(offset, size);
        self.upper.ready_unsettled(upper, &mut unsettled, (start, end))?;
        // What falls through is brought at the edges: a block is never half the upper's.
        for (from, to) in [(start, offset), (offset.saturating_add(size), end)] {
            let mut edge = vec![0; usize::try_from(to - from).map_err(|_| Errno::INVAL)?];
            self.fill(id, (upper, &unsettled), from, &mut edge)?;
            data::write_whole(upper, &edge, from)?;
        }
        self.upper.allocate(upper, allocate.mode, (offset, size))?;
        unsettled.mark((start, end));
        Ok(true)
    }

    /// Takes along all that still falls through, and ends the map.
    pub(super) fn settle(&self, id: NodeId) -> Result<(), Errno> {
        let Some(open) = self.map_of(id)? else { return Ok(()) };
        let upper = &open.file;
        let mut unsettled = open.hold();
        self.upper.settle(upper.as_fd(), self.beneath(id)?.as_fd(), &mut unsettled)?;
        self.note_settled(id, &unsettled)
    }

    /// Brings a file's data to disk, and its map after; says no if it is not unsettled.
    pub(super) fn save_unsettled(&self, id: NodeId) -> Result<bool, Errno> {
        let Some(open) = self.map_of(id)? else { return Ok(false) };
        self.save(id, &open)?;
        Ok(true)
    }

    fn save(&self, id: NodeId, open: &Open) -> Result<(), Errno> {
        let mut unsettled = open.hold();
        self.upper.save_unsettled(open.file.as_fd(), &mut unsettled)?;
        self.note_settled(id, &unsettled)
    }

    /// Brings the maps of all files in use to disk, as many as it can.
    ///
    /// Errors: the last file's that could not be saved.
    pub(super) fn save_all_unsettled(&self) -> Result<(), Errno> {
        let files: Vec<_> =
            self.unsettled.lock().iter().map(|(id, open)| (*id, Arc::clone(open))).collect();
        let mut all = Ok(());
        for (id, open) in files {
            if open.hold().is_dirty() {
                all = self.save(id, &open).and(all);
            }
        }
        all
    }

    /// A guest starts anew, or none comes any more.
    pub(super) fn close_all_unsettled(&self) {
        if let Err(e) = self.save_all_unsettled() {
            log::error!("union: a block map could not be saved, what was written may be lost: {e}");
        }
        self.unsettled.lock().retain(|_, open| {
            self.rest(open);
            // What the disk does not know yet is tried again: another guest may come, or our end.
            open.map.try_lock().map_or(true, |map| map.is_dirty())
        });
    }

    /// The guest let go of a node: its map stays until it is on disk.
    pub(super) fn let_go_unsettled(&self, id: NodeId) {
        let mut files = self.unsettled.lock();
        let Some(open) = files.get(&id) else { return };
        // FORGET must not wait: one that is being written or saved stays for now.
        if open.map.try_lock().is_ok_and(|map| !map.is_dirty()) {
            self.rest(open);
            files.remove(&id);
        }
    }

    /// What the disk knows needs no live map any more. The caller holds what keeps others from
    /// finding it.
    fn rest(&self, open: &Open) {
        let Ok(mut unsettled) = open.map.try_lock() else { return };
        if !unsettled.is_dirty()
            && let Err(e) = self.upper.rest_unsettled(&mut unsettled)
        {
            log::warn!("union: a live map that nobody needs stays in work: {e}");
        }
    }

    /// Whether a file is unsettled.
    pub(super) fn is_unsettled(&self, id: NodeId) -> Result<bool, Errno> {
        Ok(self.nodes.get(id)?.flags & UNSETTLED != 0)
    }

    /// A file loses its last name: its map is kept in memory alone, for as long as it is held.
    pub(super) fn orphan_unsettled(&self, seen: &Seen) -> Result<(), Errno> {
        let id = seen.node.id;
        let (Some(object), Some(handle)) = (seen.node.lower, &seen.handle) else { return Ok(()) };
        if let Ok(node) = self.nodes.get(id) {
            if node.flags & UNSETTLED == 0 {
                return Ok(());
            }
            return match self.open_map(id, handle.as_fd())? {
                Some(open) => self.upper.orphan_unsettled(&mut open.hold()),
                None => Ok(()),
            };
        }
        let known = self.unsettled.lock().remove(&id);
        if let Some(open) = known {
            return self.upper.orphan_unsettled(&mut open.hold());
        }
        let lower = self.lower.attributes(object)?;
        self.upper.orphan_unsettled(&mut self.upper.load_unsettled(handle.as_fd(), &lower)?)
    }

    fn note_settled(&self, id: NodeId, unsettled: &Unsettled) -> Result<(), Errno> {
        if unsettled.is_settled() {
            self.descriptors.close_one(id, Use::Lower);
            match self.nodes.update(id, |node| node.flags &= !UNSETTLED) {
                // The guest let go of it before its map was saved.
                Ok(_) | Err(Errno::STALE) => {}
                Err(e) => return Err(e),
            }
            self.unsettled.lock().remove(&id);
        }
        Ok(())
    }

    /// Settles every file of the upper, for `thinroot settle`: then it needs its lowers for what it
    /// never had alone, and the kernel's overlayfs can mount it. Gives the number of files.
    ///
    /// Errors: the first file's that could not be settled; those before it are.
    pub fn settle_all(&self) -> Result<u64, Errno> {
        let mut settled = 0;
        for (object, name) in self.links.all() {
            let handle = self.upper.open_indexed(&name)?;
            settled += u64::from(self.settle_object(object, self.upper.object(handle)?)?);
        }
        let mut directories = vec![Vec::new()];
        while let Some(path) = directories.pop() {
            let dir = self.upper.handle(&path)?;
            for row in self.upper.names(dir.as_fd())? {
                let below = if path.is_empty() {
                    row.name.clone()
                } else {
                    [path.as_slice(), b"/", &row.name].concat()
                };
                match row.kind {
                    Some(Kind::Directory) => directories.push(below),
                    Some(Kind::File) => settled += u64::from(self.settle_path(&below)?),
                    _ => {}
                }
            }
        }
        Ok(settled)
    }

    /// Settles the file at a path of the upper; says whether it had to be.
    fn settle_path(&self, path: &[u8]) -> Result<bool, Errno> {
        let object = self.upper.object(self.upper.handle(path)?)?;
        if !object.marks.is_metacopy {
            return Ok(false);
        }
        let Some(lower) = self.origin_of(&object.marks, Kind::File) else {
            log::error!(
                "settle: /{} is a metacopy of something that is not in this base; expected the \
                 base it was made over",
                path.escape_ascii()
            );
            return Err(Errno::IO);
        };
        self.settle_object(lower, object)
    }

    fn settle_object(&self, lower: ObjectId, object: UpperObject) -> Result<bool, Errno> {
        if !object.marks.is_metacopy {
            return Ok(false);
        }
        let shown = self.lower.attributes(lower)?;
        let mut unsettled = self.upper.load_unsettled(object.handle.as_fd(), &shown)?;
        if !unsettled.is_over(&shown) {
            return Err(Errno::IO);
        }
        let file = self.upper.open_file(object.handle.as_fd(), true)?;
        let data = self.lower.open_file(lower)?;
        // The host takes them away with the first byte that it writes.
        let capability = self.upper.xattr(object.handle.as_fd(), CAPABILITY);
        let settled = self.upper.settle(file.as_fd(), data.as_fd(), &mut unsettled);
        if let Ok(value) = capability {
            self.upper.set_xattr(object.handle.as_fd(), (CAPABILITY, &value), 0)?;
        }
        // Whatever came of it.
        self.upper.set_times(file.as_fd(), &object.attributes)?;
        settled.map(|()| true)
    }
}
