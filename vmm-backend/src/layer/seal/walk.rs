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
use crate::layer::imported::show_directory;
use crate::layer::index::format::{DirectoryRecord, NONE, ObjectRecord, PartRecord};
use crate::layer::index::stat::{fill, witness};
use crate::layer::index::{Index, LayerKind, ObjectId};
use crate::sys::fs::Statx;
use crate::sys::scan::{self, Scanner};

/// How often a directory that changes while it is read is read again.
const ATTEMPTS: usize = 5;

/// How many paths an error names; the rest is counted.
const NAMED_MAX: usize = 20;

/// A directory still to be read.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) object: u32,
    pub(super) path: Vec<u8>,
    pub(super) parts: Vec<PartAt>,
    /// The same path in the index that is refreshed.
    pub(super) before: Option<ObjectId>,
}

/// The names in all parts of a directory.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) bytes: Vec<u8>,
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
pub(super) struct Child {
    pub(super) name: Range<usize>,
    /// The part that shows it.
    pub(super) top: usize,
    pub(super) found: Found,
    /// Further real directories it merges.
    pub(super) below: Vec<Hit>,
    /// Where the data is, of a metacopy file.
    pub(super) data: Option<Hit>,
    pub(super) before: Option<ObjectId>,
}

/// The walk and what it has found.
pub struct Walk<'a> {
    layers: &'a [LayerRoot],
    before: Option<&'a Index>,
    progress: &'a mut dyn FnMut(&Progress),
    scanner: Scanner,
    roots: Vec<u32>,
    /// Objects with several names: layer, device, inode.
    pub(super) linked: HashMap<(usize, u32, u32, u64), u32>,
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
            let mut stat =
                Spot { layer, dir: fd.as_fd(), name: b"" }.stat_at_rest().map_err(reading)?;
            if layer.is_imported {
                show_directory(fd.as_fd(), &mut stat).map_err(reading)?;
            }
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

    fn before_child(&self, directory: Option<ObjectId>, name: &[u8]) -> Option<ObjectId> {
        let index = self.before?;
        let (_, directory) = index.directory(directory?).ok()?;
        index.child(directory, name).ok()?.map(|entry| entry.object)
    }

    pub(super) fn refuse(&mut self, path: &[u8]) {
        self.unreadable_count += 1;
        if self.unreadable.len() < NAMED_MAX {
            self.unreadable.push(display(path));
        }
    }

    pub(super) fn report(&mut self) {
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
pub(super) fn usize_of(position: u32) -> usize {
    usize::try_from(position).unwrap_or(usize::MAX)
}
