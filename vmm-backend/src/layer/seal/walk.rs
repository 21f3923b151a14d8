//! Walks the lowers once, merged, directory by directory in path order, and fills the draft.
//!
//! All names of a directory are numbered before those of its first subdirectory, so that the
//! records a listing needs stand together.

use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::AsFd;

use super::draft::{Draft, Source, object_of, position};
use super::found::{Found, Known, LayerRoot, Spot};
use super::merge::{Ground, Hit, OpenPart, PartAt, Search, join};
use super::{Progress, SealError, display};
use crate::filesystem::{Errno, Kind};
use crate::layer::index::format::{
    DataRecord, DirectoryRecord, EntryRecord, NONE, ObjectRecord, PartRecord, flags,
};
use crate::layer::index::stat::{fill, witness};
use crate::layer::index::{Index, LayerKind, ObjectId};
use crate::sys::fs::Statx;
use crate::sys::scan::{self, Scanner};

/// How often a directory that changes while it is read is read again.
const ATTEMPTS: usize = 5;

/// How many paths an error names; the rest is counted.
const NAMED_MAX: usize = 20;

/// How many objects pass between two reports of progress.
const REPORT_EVERY: usize = 1024;

/// A directory still to be read.
#[derive(Debug)]
struct Pending {
    object: u32,
    path: Vec<u8>,
    parts: Vec<PartAt>,
    /// The same path in the index that is refreshed.
    before: Option<ObjectId>,
}

/// The names in all parts of a directory.
#[derive(Debug, Default)]
struct Listing {
    bytes: Vec<u8>,
    rows: Vec<(Range<usize>, usize)>,
}

/// A name and where it is listed.
struct Shown<'a> {
    open: &'a [OpenPart],
    /// Parts, ascending.
    listed: &'a [usize],
    name: &'a [u8],
    range: Range<usize>,
    before: Option<ObjectId>,
}

/// A name that the merged directory shows.
#[derive(Debug)]
struct Child {
    name: Range<usize>,
    /// The part that shows it.
    top: usize,
    found: Found,
    /// Further real directories it merges.
    below: Vec<Hit>,
    /// Where the data is, of a metacopy file.
    data: Option<Hit>,
    before: Option<ObjectId>,
}

/// The walk and what it has found.
pub struct Walk<'a> {
    layers: &'a [LayerRoot],
    before: Option<&'a Index>,
    progress: &'a mut dyn FnMut(&Progress),
    scanner: Scanner,
    roots: Vec<u32>,
    /// Objects with several names: layer, device, inode.
    linked: HashMap<(usize, u32, u32, u64), u32>,
    unreadable: Vec<String>,
    unreadable_count: u64,
    /// The tables.
    pub draft: Draft,
    /// Paths at which another file system is mounted; they are served empty.
    pub mount_points: Vec<String>,
}

impl<'a> Walk<'a> {
    /// A walk over `layers`, top first; `before` is the index that is refreshed.
    pub fn new(
        layers: &'a [LayerRoot],
        before: Option<&'a Index>,
        progress: &'a mut dyn FnMut(&Progress),
    ) -> Self {
        Self {
            layers,
            before,
            progress,
            scanner: Scanner::default(),
            roots: Vec::new(),
            linked: HashMap::new(),
            unreadable: Vec::new(),
            unreadable_count: 0,
            draft: Draft::default(),
            mount_points: Vec::new(),
        }
    }

    /// Walks everything.
    pub fn run(&mut self) -> Result<(), SealError> {
        let mut pending = vec![self.root()?];
        while let Some(directory) = pending.pop() {
            let mut further = self.visit(&directory)?;
            further.reverse();
            pending.append(&mut further);
        }
        if self.unreadable_count > 0 {
            return Err(SealError::Unreadable {
                count: self.unreadable_count,
                first: std::mem::take(&mut self.unreadable),
            });
        }
        self.report();
        Ok(())
    }

    fn root(&mut self) -> Result<Pending, SealError> {
        let mut parts = Vec::new();
        let mut top = None;
        for (number, layer) in self.layers.iter().enumerate() {
            let dir = scan::open_directory(layer.fd.as_fd(), b"")
                .map_err(|error| SealError::reading(layer, &[], error))?;
            let spot = Spot { layer, dir: dir.as_fd(), name: b"" };
            let found = spot
                .look(&mut self.scanner, |_| None)
                .and_then(|found| found.ok_or(Errno::NOENT))
                .map_err(|error| SealError::reading(layer, &[], error))?;
            let record = PartRecord {
                layer: position(number)?.into(),
                parent: NONE.into(),
                name: self.draft.name(b"")?.into(),
                witness: witness(&found.stat),
            };
            let part = self.draft.part(record)?;
            self.roots.push(part);
            parts.push(PartAt { part, layer: number, path: Vec::new() });
            top.get_or_insert(found);
        }
        let top = top.ok_or(SealError::NoLower)?;
        let object = ObjectRecord {
            parent: 0.into(),
            name: self.draft.name(b"")?.into(),
            part: 0.into(),
            detail: 0.into(),
            xattrs: self.draft.xattrs(top.xattrs)?.into(),
            ..object_of(&top.stat)
        };
        let source = Source { layer: 0, number_before: ObjectId::ROOT.0 };
        let object = self.draft.object(object, source)?;
        self.draft.directories.push(DirectoryRecord {
            object: object.into(),
            parts: position(parts.len())?.into(),
            ..DirectoryRecord::default()
        });
        let before = self.before.map(|_| ObjectId::ROOT);
        Ok(Pending { object, path: Vec::new(), parts, before })
    }

    /// Reads one merged directory and gives the directories in it.
    fn visit(&mut self, pending: &Pending) -> Result<Vec<Pending>, SealError> {
        for _ in 0..ATTEMPTS {
            let Some(open) = self.open(pending)? else {
                self.refuse(&pending.path);
                return Ok(Vec::new());
            };
            let listing = self.list(&open)?;
            let children = self.children(pending, &open, &listing)?;
            if self.is_unchanged(&open)? {
                return self.commit(pending, &open, &listing, children);
            }
        }
        Err(SealError::Changing { path: display(&pending.path) })
    }

    /// Opens all parts; `None` if one cannot be read.
    fn open(&self, pending: &Pending) -> Result<Option<Vec<OpenPart>>, SealError> {
        let mut open = Vec::with_capacity(pending.parts.len());
        for at in &pending.parts {
            let layer = &self.layers[at.layer];
            let reading = |error| SealError::reading(layer, &[&at.path], error);
            let fd = match scan::open_directory(layer.fd.as_fd(), &at.path) {
                Err(Errno::ACCESS) => return Ok(None),
                opened => opened.map_err(reading)?,
            };
            let stat =
                Spot { layer, dir: fd.as_fd(), name: b"" }.stat_at_rest().map_err(reading)?;
            open.push(OpenPart { at: at.clone(), fd, stat });
        }
        Ok(Some(open))
    }

    fn list(&mut self, open: &[OpenPart]) -> Result<Listing, SealError> {
        let mut listing = Listing::default();
        for (part, from) in open.iter().enumerate() {
            let Listing { bytes, rows } = &mut listing;
            self.scanner
                .names(from.fd.as_fd(), |name| {
                    let start = bytes.len();
                    bytes.extend_from_slice(name);
                    rows.push((start..bytes.len(), part));
                })
                .map_err(|e| {
                    SealError::reading(&self.layers[from.at.layer], &[&from.at.path], e)
                })?;
        }
        let Listing { bytes, rows } = &mut listing;
        rows.sort_unstable_by(|a, b| (&bytes[a.0.clone()], a.1).cmp(&(&bytes[b.0.clone()], b.1)));
        Ok(listing)
    }

    fn children(
        &mut self,
        pending: &Pending,
        open: &[OpenPart],
        listing: &Listing,
    ) -> Result<Vec<Child>, SealError> {
        let name_of = |row: &(Range<usize>, usize)| &listing.bytes[row.0.clone()];
        let mut children = Vec::with_capacity(listing.rows.len());
        let mut listed = Vec::new();
        for rows in listing.rows.chunk_by(|a, b| name_of(a) == name_of(b)) {
            listed.clear();
            listed.extend(rows.iter().map(|row| row.1));
            let name = name_of(&rows[0]);
            let before = self.before_child(pending.before, name);
            let shown = Shown { open, listed: &listed, name, range: rows[0].0.clone(), before };
            if let Some(mut child) = self.top_child(&shown)? {
                self.search_below(&shown, &mut child, &pending.path)?;
                children.push(child);
            }
        }
        Ok(children)
    }

    /// The topmost object of a name; `None` if that is a whiteout.
    fn top_child(&mut self, shown: &Shown<'_>) -> Result<Option<Child>, SealError> {
        let (index, before, name) = (self.before, shown.before, shown.name);
        for top in shown.listed {
            let part = &shown.open[*top];
            let layer = &self.layers[part.at.layer];
            let known = |stat: &Statx| known(index?, before?, part.at.layer, layer.kind, stat);
            let found =
                Spot { layer, dir: part.fd.as_fd(), name }
                    .look(&mut self.scanner, known)
                    .map_err(|error| SealError::reading(layer, &[&part.at.path, name], error))?;
            match found {
                Some(found) if found.marks.is_whiteout => return Ok(None),
                Some(found) => {
                    let name = shown.range.clone();
                    let (below, data) = (Vec::new(), None);
                    return Ok(Some(Child { name, top: *top, found, below, data, before }));
                }
                // It went between listing and looking: the directory will show that it changed.
                None => {}
            }
        }
        Ok(None)
    }

    /// Finds what a directory merges, and the data of a metacopy file.
    fn search_below(
        &mut self,
        shown: &Shown<'_>,
        child: &mut Child,
        directory: &[u8],
    ) -> Result<(), SealError> {
        let is_directory = child.found.kind == Kind::Directory && !child.found.is_mount_point;
        if !is_directory && !child.found.marks.is_metacopy {
            return Ok(());
        }
        let from = shown.listed.iter().position(|part| *part == child.top).unwrap_or(0);
        let mut search = Search::new(shown.open, &shown.listed[from..], shown.name);
        let mut ground = Ground {
            layers: self.layers,
            roots: &self.roots,
            draft: &mut self.draft,
            scanner: &mut self.scanner,
        };
        let path = join(directory, shown.name);
        search.follow(&child.found.marks, &path)?;
        while let Some(hit) = search.next(&mut ground)? {
            if is_directory {
                if hit.found.kind != Kind::Directory || hit.found.is_mount_point {
                    break;
                }
                search.follow(&hit.found.marks, &path)?;
                child.below.push(hit);
            } else if hit.found.kind != Kind::File {
                break;
            } else if hit.found.marks.is_metacopy {
                search.follow(&hit.found.marks, &path)?;
            } else {
                child.data = Some(hit);
                return Ok(());
            }
        }
        if is_directory {
            return Ok(());
        }
        Err(SealError::Mark {
            path: display(&path),
            reason: "it is a metacopy and no layer below holds its data".to_owned(),
        })
    }

    fn is_unchanged(&self, open: &[OpenPart]) -> Result<bool, SealError> {
        for part in open {
            let now = scan::stat_on_mount(part.fd.as_fd(), b"").map_err(|error| {
                SealError::reading(&self.layers[part.at.layer], &[&part.at.path], error)
            })?;
            if witness(&now) != witness(&part.stat) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes a directory that was read at rest into the draft.
    fn commit(
        &mut self,
        pending: &Pending,
        open: &[OpenPart],
        listing: &Listing,
        children: Vec<Child>,
    ) -> Result<Vec<Pending>, SealError> {
        for part in open {
            self.draft.parts[usize_of(part.at.part)].witness = witness(&part.stat);
        }
        fill(&mut self.draft.objects[usize_of(pending.object)], &open[0].stat);
        let first_entry = self.draft.entries.len();
        let mut further = Vec::new();
        let mut subdirectories = 0;
        for child in children {
            let path = join(&pending.path, &listing.bytes[child.name.clone()]);
            let readable = child.found.is_readable
                && child.data.as_ref().is_none_or(|data| data.found.is_readable)
                && child.below.iter().all(|below| below.found.is_readable);
            if readable {
                subdirectories += usize::from(child.found.kind == Kind::Directory);
                further.extend(self.add(pending, &open[child.top], child, path)?);
            } else {
                self.refuse(&path);
            }
        }
        let directory = self.draft.objects[usize_of(pending.object)].detail.get();
        let record = &mut self.draft.directories[usize_of(directory)];
        record.first_entry = position(first_entry)?.into();
        record.entries = position(self.draft.entries.len() - first_entry)?.into();
        record.subdirectories = position(subdirectories)?.into();
        let nlink = position(subdirectories)?.checked_add(2).ok_or(SealError::TooLarge)?;
        self.draft.objects[usize_of(pending.object)].nlink = nlink.into();
        Ok(further)
    }

    /// Adds a name, and its object if this is the first.
    fn add(
        &mut self,
        pending: &Pending,
        top: &OpenPart,
        child: Child,
        path: Vec<u8>,
    ) -> Result<Option<Pending>, SealError> {
        let name = &path[path.len() - child.name.len()..];
        let entry_name = self.draft.name(name)?;
        let kind = child.found.kind;
        let stat = &child.found.stat;
        // One layer's links are links; the same inode in two layers is one object twice, as it
        // would be in a copy of them.
        let key = (top.at.layer, stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino);
        let may_be_linked = kind != Kind::Directory && stat.stx_nlink > 1;
        let first = may_be_linked.then(|| self.linked.get(&key).copied()).flatten();
        let object = if let Some(object) = first {
            self.draft.objects[usize_of(object)].flags |= flags::HARD_LINKED;
            object
        } else {
            let object = ObjectRecord {
                parent: pending.object.into(),
                name: entry_name.into(),
                part: top.at.part.into(),
                ..object_of(stat)
            };
            let source = Source {
                layer: position(top.at.layer)?,
                number_before: child.before.map_or(0, |id| id.0),
            };
            let object = self.draft.object(object, source)?;
            if may_be_linked {
                self.linked.insert(key, object);
            }
            if usize_of(object).is_multiple_of(REPORT_EVERY) {
                self.report();
            }
            object
        };
        self.draft.entries.push(EntryRecord {
            name: entry_name.into(),
            object: object.into(),
            kind: kind.dirent_type(),
        });
        let record = &mut self.draft.objects[usize_of(object)];
        // A directory's links are counted when it is read; one that is not read is empty.
        record.nlink = if kind == Kind::Directory { 2.into() } else { record.nlink + 1 };
        if first.is_some() {
            return Ok(None);
        }
        self.detail(object, top, child, path)
    }

    /// Completes a new object with what only its kind has.
    fn detail(
        &mut self,
        object: u32,
        top: &OpenPart,
        child: Child,
        path: Vec<u8>,
    ) -> Result<Option<Pending>, SealError> {
        let Child { found, below, data, before, .. } = child;
        let name = self.draft.objects[usize_of(object)].name.get();
        let xattrs = self.draft.xattrs(found.xattrs)?;
        let mut pending = None;
        let detail = match found.kind {
            Kind::Directory if found.is_mount_point => {
                self.mount_points.push(display(&path));
                self.directory(object, 0, 0)?
            }
            Kind::Directory => {
                let (first, parts) = self.parts(top, name, &found.stat, below)?;
                pending = Some(Pending { object, path, parts, before });
                let count = pending.as_ref().map_or(0, |pending| pending.parts.len());
                self.directory(object, first, position(count)?)?
            }
            _ if found.is_mount_point => {
                return Err(SealError::MountedFile { path: display(&path) });
            }
            Kind::Symlink => self.draft.blob(&found.target.unwrap_or_default())?,
            _ => match data {
                Some(data) => self.data(object, &data)?,
                None => NONE,
            },
        };
        let record = &mut self.draft.objects[usize_of(object)];
        record.detail = detail.into();
        record.xattrs = xattrs.into();
        if found.kind == Kind::Directory {
            let directory = &self.draft.directories[usize_of(detail)];
            record.part =
                if directory.parts.get() == 0 { NONE.into() } else { directory.first_part };
        }
        Ok(pending)
    }

    fn directory(&mut self, object: u32, first: u32, parts: u32) -> Result<u32, SealError> {
        let at = position(self.draft.directories.len())?;
        self.draft.directories.push(DirectoryRecord {
            object: object.into(),
            first_part: first.into(),
            parts: parts.into(),
            ..DirectoryRecord::default()
        });
        Ok(at)
    }

    /// Adds the parts of a new directory, one behind the other.
    fn parts(
        &mut self,
        top: &OpenPart,
        name: u32,
        stat: &Statx,
        below: Vec<Hit>,
    ) -> Result<(u32, Vec<PartAt>), SealError> {
        let own_name = self.draft.names[usize_of(name) + 1..]
            [..usize::from(self.draft.names[usize_of(name)])]
            .to_vec();
        let first = self.draft.part(PartRecord {
            layer: position(top.at.layer)?.into(),
            parent: top.at.part.into(),
            name: name.into(),
            witness: witness(stat),
        })?;
        let mut parts =
            vec![PartAt { part: first, layer: top.at.layer, path: join(&top.at.path, &own_name) }];
        for hit in below {
            let name = if hit.name == own_name { name } else { self.draft.name(&hit.name)? };
            let part = self.draft.part(PartRecord {
                layer: position(hit.parent.layer)?.into(),
                parent: hit.parent.part.into(),
                name: name.into(),
                witness: witness(&hit.found.stat),
            })?;
            let path = join(&hit.parent.path, &hit.name);
            parts.push(PartAt { part, layer: hit.parent.layer, path });
        }
        Ok((first, parts))
    }

    fn data(&mut self, object: u32, data: &Hit) -> Result<u32, SealError> {
        self.draft.objects[usize_of(object)].blocks = data.found.stat.stx_blocks.into();
        let at = position(self.draft.data.len())?;
        let record = DataRecord {
            part: data.parent.part.into(),
            name: self.draft.name(&data.name)?.into(),
            witness: witness(&data.found.stat),
        };
        self.draft.data.push(record);
        Ok(at)
    }

    fn before_child(&self, directory: Option<ObjectId>, name: &[u8]) -> Option<ObjectId> {
        let index = self.before?;
        let (_, directory) = index.directory(directory?).ok()?;
        index.child(directory, name).ok()?.map(|entry| entry.object)
    }

    fn refuse(&mut self, path: &[u8]) {
        self.unreadable_count += 1;
        if self.unreadable.len() < NAMED_MAX {
            self.unreadable.push(display(path));
        }
    }

    fn report(&mut self) {
        (self.progress)(&Progress {
            objects: u64::try_from(self.draft.objects.len()).unwrap_or(u64::MAX),
            objects_before: self.before.map(Index::objects_present),
        });
    }
}

/// What an earlier index has read of the object at the same path, if it is the same and has not
/// changed since. In an overlay layer the marks are wanted as well, and those it does not keep.
fn known(
    index: &Index,
    before: ObjectId,
    layer: usize,
    kind: LayerKind,
    stat: &Statx,
) -> Option<Known> {
    let object = index.object(before).ok()?;
    let mut now = ObjectRecord::default();
    fill(&mut now, stat);
    let is_same = kind == LayerKind::Plain
        && usize_of(index.part(object.part.get()).ok()?.layer.get()) == layer
        && (now.mode, now.ino, now.size) == (object.mode, object.ino, object.size)
        && (now.mtime, now.ctime) == (object.mtime, object.ctime);
    if !is_same {
        return None;
    }
    let mut xattrs = Vec::new();
    for pair in index.xattrs(object).ok()? {
        let name = index.name(pair.name.get()).ok()?.to_vec();
        xattrs.push((name, index.blob(pair.value.get()).ok()?.to_vec()));
    }
    let target = match Kind::from_mode(now.mode.get()) {
        Some(Kind::Symlink) => Some(index.blob(object.detail.get()).ok()?.to_vec()),
        _ => None,
    };
    Some(Known { xattrs, target })
}

/// Positions were `usize` before they were 32 bits.
fn usize_of(position: u32) -> usize {
    usize::try_from(position).unwrap_or(usize::MAX)
}
