//! `thinroot diff`: what an upper changes, path by path.
//!
//! Walks the upper and looks its objects up in the index; of the lowers it reads only what has to
//! be compared. Letters, as `git status --short` has them: `A` added, `M` contents changed, `D`
//! deleted (a directory with all below it), `R` renamed, `T` replaced by another kind, and `m`:
//! only owner, mode, times or extended attributes changed.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::io::{pread, retry_on_intr};

use crate::filesystem::{Attributes, Errno, Kind};
use crate::layer::index::{IndexId, ObjectId, Slot};
use crate::layer::lower::Lower;
use crate::layer::mark::Marks;
use crate::layer::view::{Found, UpperObject, UpperView};

mod listing;

pub use listing::{write_json, write_text};

/// Files are compared in pieces of this size.
const COMPARE_BYTES: usize = 256 * 1024;

/// How a path differs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// It is new.
    Added,
    /// Its contents changed: data, a link's target or a device's number.
    Modified,
    /// It is gone, and what was below it.
    Deleted,
    /// It was at this path before.
    Renamed(Vec<u8>),
    /// It is of another kind.
    Replaced,
    /// Only what `stat` and the extended attributes say of it changed.
    Metadata,
}

impl Change {
    /// The letter of the listing.
    pub const fn letter(&self) -> char {
        match self {
            Self::Added => 'A',
            Self::Modified => 'M',
            Self::Deleted => 'D',
            Self::Renamed(_) => 'R',
            Self::Replaced => 'T',
            Self::Metadata => 'm',
        }
    }

    /// The word of the JSON lines.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Modified => "modified",
            Self::Deleted => "deleted",
            Self::Renamed(_) => "renamed",
            Self::Replaced => "replaced",
            Self::Metadata => "metadata",
        }
    }
}

/// One row. A renamed object that changed besides has a second row of its new path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// From the root, without a leading `/`; empty for the root itself. Any bytes.
    pub path: Vec<u8>,
    /// What it is now; what it was, for a deleted one.
    pub kind: Kind,
    /// How it differs.
    pub change: Change,
}

/// Why no difference can be told.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// The upper belongs to another base.
    #[error("the upper was made over another base; expected the lowers it was made over")]
    OtherBase,
    /// Something could not be read.
    #[error("/{path}: {cause}")]
    Read {
        /// The path in the union.
        path: String,
        /// Why not.
        cause: Errno,
    },
}

/// What `upper` changes in `lower`, in the order of the paths. `index` is the directory of its
/// copied-up hard links, which need no entry of their own in the upper.
///
/// Errors: as [`DiffError`] says.
pub fn diff(
    lower: &Lower,
    upper: &UpperView,
    index: Option<BorrowedFd<'_>>,
) -> Result<Vec<Row>, DiffError> {
    let mut walk = Walk { lower, upper, rows: Vec::new(), arrived: Vec::new(), left: Vec::new() };
    let root = upper.root().try_clone_to_owned().map_err(|_| Errno::MFILE);
    let root = root.and_then(|root| upper.object(root)).map_err(at(b""))?;
    match root.marks.origin {
        Some(origin) if !lower.continues(IndexId(origin.identity)) => {
            return Err(DiffError::OtherBase);
        }
        // Never used: the host's directory says nothing of the guest's root.
        None => {}
        Some(_) => walk.tell_directory(b"", &root, ObjectId::ROOT).map_err(at(b""))?,
    }
    walk.run(root.handle)?;
    if let Some(index) = index {
        walk.tell_links(index).map_err(at(b""))?;
    }
    Ok(walk.finish())
}

fn at(path: &[u8]) -> impl FnOnce(Errno) -> DiffError {
    let path = path.escape_ascii().to_string();
    move |cause| DiffError::Read { path, cause }
}

/// An upper directory to be walked.
struct Directory {
    handle: OwnedFd,
    path: Vec<u8>,
    /// The lower directory it merges with, or stands in the place of.
    lower: Option<ObjectId>,
    /// It merges with that one: names it does not have show through.
    is_merged: bool,
}

/// An upper object that came from a lower one of another name.
struct Arrived {
    path: Vec<u8>,
    kind: Kind,
    object: ObjectId,
}

/// A name of the union that no longer leads to its lower object.
struct Left {
    path: Vec<u8>,
    object: ObjectId,
    kind: Kind,
    /// What has its place, if anything, and how that differs.
    replaced_by: Option<(Kind, Option<Change>)>,
}

struct Walk<'a> {
    lower: &'a Lower,
    upper: &'a UpperView,
    rows: Vec<Row>,
    arrived: Vec<Arrived>,
    left: Vec<Left>,
}

impl Walk<'_> {
    fn run(&mut self, root: OwnedFd) -> Result<(), DiffError> {
        let lower = Some(ObjectId::ROOT);
        let mut waiting = vec![Directory { handle: root, path: vec![], lower, is_merged: true }];
        while let Some(directory) = waiting.pop() {
            let names = self.upper.names(directory.handle.as_fd()).map_err(at(&directory.path))?;
            let mut present = Vec::with_capacity(names.len());
            for name in names {
                let path = join(&directory.path, &name.name);
                let below = self.visit(&directory, &name.name, &path).map_err(at(&path))?;
                waiting.extend(below);
                present.push(name.name);
            }
            if !directory.is_merged {
                self.leave_hidden(&directory, present).map_err(at(&directory.path))?;
            }
        }
        Ok(())
    }

    /// Compares one upper name with the lower one; a directory is given back to be walked.
    fn visit(
        &mut self,
        directory: &Directory,
        name: &[u8],
        path: &[u8],
    ) -> Result<Option<Directory>, Errno> {
        let before = match directory.lower {
            Some(lower) => self.lower.child(lower, name)?.map(|entry| (entry.object, entry.kind)),
            None => None,
        };
        match self.upper.find(directory.handle.as_fd(), name)? {
            Found::Absent => Ok(None),
            Found::Whiteout => {
                self.leave(path, before, None);
                Ok(None)
            }
            Found::Object(object) if object.attributes.kind() == Kind::Directory => {
                self.visit_directory(path, *object, before).map(Some)
            }
            Found::Object(object) => {
                self.visit_other(path, &object, before)?;
                Ok(None)
            }
        }
    }

    fn visit_directory(
        &mut self,
        path: &[u8],
        object: UpperObject,
        before: Option<(ObjectId, Kind)>,
    ) -> Result<Directory, Errno> {
        let merged = self.merged_with(&object.marks, before)?;
        match (merged, before) {
            (Some(lower), Some((before, _))) if lower == before => {}
            (Some(lower), _) => {
                self.leave(path, before, Some((Kind::Directory, None)));
                self.arrive(path, Kind::Directory, lower);
            }
            // Removed and made anew: what is in it tells the difference.
            (None, Some((before, Kind::Directory))) => {
                self.tell_directory(path, &object, before)?;
                let (handle, path) = (object.handle, path.to_owned());
                return Ok(Directory { handle, path, lower: Some(before), is_merged: false });
            }
            (None, Some(_)) => {
                let replaced_by = Some((Kind::Directory, Some(Change::Replaced)));
                self.leave(path, before, replaced_by);
            }
            (None, None) => self.tell(path, Kind::Directory, Change::Added),
        }
        if let Some(lower) = merged {
            self.tell_directory(path, &object, lower)?;
        }
        let (handle, path) = (object.handle, path.to_owned());
        Ok(Directory { handle, path, lower: merged, is_merged: true })
    }

    /// The lower directory that shows through an upper one.
    fn merged_with(
        &self,
        marks: &Marks,
        before: Option<(ObjectId, Kind)>,
    ) -> Result<Option<ObjectId>, Errno> {
        if marks.is_opaque {
            return Ok(None);
        }
        let lower = match (&marks.redirect, self.origin(marks)) {
            (Some(redirect), _) if redirect.starts_with(b"/") => self.lower.resolve(redirect)?,
            // A name in the same directory, as the kernel writes it, needs the parent: our origin
            // mark says the same.
            (Some(_), origin) => origin,
            (None, _) => before.map(|(object, _)| object),
        };
        Ok(lower.filter(|object| self.lower.kind(*object) == Ok(Kind::Directory)))
    }

    fn origin(&self, marks: &Marks) -> Option<ObjectId> {
        let origin = marks.origin?;
        self.lower.continues(IndexId(origin.identity)).then_some(ObjectId(origin.object))
    }

    fn visit_other(
        &mut self,
        path: &[u8],
        object: &UpperObject,
        before: Option<(ObjectId, Kind)>,
    ) -> Result<(), Errno> {
        let kind = object.attributes.kind();
        // An upper that the kernel's overlayfs wrote has marks of its own: by name, then.
        let by_name = before.filter(|_| object.marks.has_kernel_origin);
        let origin = self.origin(&object.marks).or(by_name.map(|(object, _)| object));
        let origin = origin.filter(|origin| self.lower.kind(*origin) == Ok(kind));
        match (origin, before) {
            (None, None) => self.tell(path, kind, Change::Added),
            (None, Some((lower, was))) if was == kind => {
                let change = self.compare(object, lower)?;
                self.leave(path, before, Some((kind, change)));
            }
            (None, Some(_)) => self.leave(path, before, Some((kind, Some(Change::Replaced)))),
            (Some(origin), _) => {
                if before.is_none_or(|(before, _)| before != origin) {
                    self.leave(path, before, Some((kind, None)));
                    self.arrive(path, kind, origin);
                }
                if let Some(change) = self.compare(object, origin)? {
                    self.tell(path, kind, change);
                }
            }
        }
        Ok(())
    }

    /// How an upper object differs from a lower one of its kind.
    fn compare(&self, object: &UpperObject, lower: ObjectId) -> Result<Option<Change>, Errno> {
        if self.has_other_contents(object, lower)? {
            return Ok(Some(Change::Modified));
        }
        let before = self.lower.attributes(lower)?;
        let same =
            has_same_looks(&object.attributes, &before) && self.has_same_xattrs(object, lower)?;
        Ok((!same).then_some(Change::Metadata))
    }

    /// Names of the lower directory that an unmerged one in its place does not have.
    fn leave_hidden(
        &mut self,
        directory: &Directory,
        mut present: Vec<Vec<u8>>,
    ) -> Result<(), Errno> {
        present.sort();
        let Some(lower) = directory.lower else { return Ok(()) };
        for (name, object, kind) in self.entries(lower)? {
            if present.binary_search(&name).is_err() {
                self.leave(&join(&directory.path, &name), Some((object, kind)), None);
            }
        }
        Ok(())
    }

    /// The names of changed hard links that the upper has no entry for.
    fn tell_links(&mut self, index: BorrowedFd<'_>) -> Result<(), Errno> {
        let mut changed = HashMap::new();
        for link in
            self.upper.indexed(index, |identity| self.lower.continues(IndexId(identity)))?.ours
        {
            let object = ObjectId(link.object);
            let found = self.upper.object(link.handle)?;
            if let Some(change) = self.compare(&found, object)? {
                changed.insert(object, (found.attributes.kind(), change));
            }
        }
        if changed.is_empty() {
            return Ok(());
        }
        let left: HashSet<_> = self.left.iter().map(|left| left.path.clone()).collect();
        let mut told: HashSet<_> = self.rows.iter().map(|row| row.path.clone()).collect();
        let arrived = self.arrived.iter().filter(|arrived| arrived.kind == Kind::Directory);
        let mut waiting: Vec<_> =
            arrived.map(|arrived| (arrived.object, arrived.path.clone())).collect();
        waiting.push((ObjectId::ROOT, Vec::new()));
        while let Some((directory, path)) = waiting.pop() {
            for (name, object, kind) in self.entries(directory)? {
                let path = join(&path, &name);
                if left.contains(&path) {
                    continue;
                }
                if kind == Kind::Directory {
                    waiting.push((object, path));
                } else if let Some((kind, change)) = changed.get(&object)
                    && told.insert(path.clone())
                {
                    self.tell(&path, *kind, change.clone());
                }
            }
        }
        Ok(())
    }

    fn entries(&self, directory: ObjectId) -> Result<Vec<(Vec<u8>, ObjectId, Kind)>, Errno> {
        let mut entries = Vec::new();
        let mut slot = Slot(0);
        while let Some(entry) = self.lower.entry(directory, slot)? {
            entries.push((entry.name.to_owned(), entry.object, entry.kind));
            slot.0 += 1;
        }
        Ok(entries)
    }

    fn tell_directory(
        &mut self,
        path: &[u8],
        object: &UpperObject,
        lower: ObjectId,
    ) -> Result<(), Errno> {
        if let Some(change) = self.compare(object, lower)? {
            self.tell(path, Kind::Directory, change);
        }
        Ok(())
    }

    fn tell(&mut self, path: &[u8], kind: Kind, change: Change) {
        self.rows.push(Row { path: path.to_owned(), kind, change });
    }

    fn arrive(&mut self, path: &[u8], kind: Kind, object: ObjectId) {
        self.arrived.push(Arrived { path: path.to_owned(), kind, object });
    }

    fn leave(
        &mut self,
        path: &[u8],
        before: Option<(ObjectId, Kind)>,
        replaced_by: Option<(Kind, Option<Change>)>,
    ) {
        if let Some((object, kind)) = before {
            self.left.push(Left { path: path.to_owned(), object, kind, replaced_by });
        }
    }

    fn has_same_xattrs(&self, object: &UpperObject, lower: ObjectId) -> Result<bool, Errno> {
        let handle = object.handle.as_fd();
        let names = self.upper.list_xattrs(handle)?;
        let mut now = HashMap::new();
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            now.insert(name.to_vec(), self.upper.xattr(handle, name)?);
        }
        let mut before = self.lower.xattrs(lower)?;
        let mut count = 0;
        let same = before.all(|(name, value)| {
            count += 1;
            now.get(name).is_some_and(|now| now == value)
        });
        Ok(same && count == now.len())
    }

    fn has_other_contents(&self, object: &UpperObject, lower: ObjectId) -> Result<bool, Errno> {
        let (now, before) = (&object.attributes, self.lower.attributes(lower)?);
        match now.kind() {
            Kind::File if now.size != before.size => Ok(true),
            Kind::File if object.marks.is_metacopy => {
                self.upper.has_own_blocks(object.handle.as_fd())
            }
            Kind::File => {
                let now = self.upper.open_file(object.handle.as_fd(), false)?;
                differ(&now, &self.lower.open_file(lower)?)
            }
            Kind::Symlink => {
                Ok(self.upper.target(object.handle.as_fd())? != self.lower.target(lower)?)
            }
            Kind::Directory => Ok(false),
            _ => Ok(now.rdev != before.rdev),
        }
    }

    /// Joins what left one name with what arrived at another, and sorts.
    fn finish(mut self) -> Vec<Row> {
        let mut by_object: HashMap<ObjectId, Vec<usize>> = HashMap::new();
        for (at, left) in self.left.iter().enumerate() {
            by_object.entry(left.object).or_default().push(at);
        }
        let mut moved = vec![false; self.left.len()];
        let told = self.rows.len();
        for arrived in std::mem::take(&mut self.arrived) {
            let at = by_object.get_mut(&arrived.object).and_then(Vec::pop);
            let change = match at.and_then(|at| self.left.get(at).map(|left| (at, left))) {
                Some((at, left)) => {
                    moved[at] = true;
                    Change::Renamed(left.path.clone())
                }
                // Its name went with the directory above; or it is there still, and this is a
                // further link.
                None => self.path_in_left(arrived.object).map_or(Change::Added, Change::Renamed),
            };
            self.rows.push(Row { path: arrived.path, kind: arrived.kind, change });
        }
        let arrived: HashSet<_> = self.rows[told..].iter().map(|row| row.path.clone()).collect();
        for (left, moved) in self.left.into_iter().zip(moved) {
            let (kind, change) = match left.replaced_by {
                None if moved => continue,
                None => (left.kind, Change::Deleted),
                Some(_) if arrived.contains(&left.path) => continue,
                Some((kind, _)) if moved => (kind, Change::Added),
                Some((_, None)) => continue,
                Some((kind, Some(change))) => (kind, change),
            };
            self.rows.push(Row { path: left.path, kind, change });
        }
        self.rows.sort_by(|one, other| {
            (&one.path, one.change.letter() != 'R')
                .cmp(&(&other.path, other.change.letter() != 'R'))
        });
        self.rows
    }

    /// The lower path of an object below a directory that left its place.
    fn path_in_left(&self, object: ObjectId) -> Option<Vec<u8>> {
        let path = self.lower.path(object).ok()?;
        let is_above = |left: &&Left| {
            left.kind == Kind::Directory
                && self.lower.path(left.object).is_ok_and(|above| {
                    path.strip_prefix(above.as_slice()).is_some_and(|rest| rest.starts_with(b"/"))
                })
        };
        self.left.iter().find(is_above)?;
        Some(path)
    }
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

/// Whether owner, mode and, but for a directory, whose entries change it, mtime are the same.
fn has_same_looks(now: &Attributes, before: &Attributes) -> bool {
    let times = now.kind() == Kind::Directory || now.mtime == before.mtime;
    times && (now.mode, now.uid, now.gid) == (before.mode, before.uid, before.gid)
}

/// Whether two files of the same length have other bytes.
fn differ(one: &OwnedFd, other: &OwnedFd) -> Result<bool, Errno> {
    let (mut first, mut second) = (vec![0; COMPARE_BYTES], vec![0; COMPARE_BYTES]);
    let mut offset = 0;
    loop {
        let bytes = retry_on_intr(|| pread(one, &mut first, offset))?;
        if bytes == 0 {
            return Ok(false);
        }
        let mut filled = 0;
        while filled < bytes {
            let place = &mut second[filled..bytes];
            let from = offset + u64::try_from(filled).unwrap_or_default();
            match retry_on_intr(|| pread(other, &mut *place, from))? {
                0 => return Ok(true),
                more => filled += more,
            }
        }
        if first[..bytes] != second[..bytes] {
            return Ok(true);
        }
        offset += u64::try_from(bytes).unwrap_or_default();
    }
}
