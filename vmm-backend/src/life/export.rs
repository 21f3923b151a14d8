//! `thinroot export`: what a guest has, for others: the changes as a layer, or the whole root.
//!
//! A layer is a tar archive with `.wh.` names, as containers have it, or a directory in the form of
//! the kernel's overlayfs. Both come from the difference to the base and are read through the
//! union, so that neither redirects nor unsettled files nor marks of ours are in them.

use std::collections::HashSet;
use std::os::fd::{AsFd as _, OwnedFd};
use std::{fmt, io};

use super::diff::Row;
use crate::filesystem::memory::MemorySink;
use crate::filesystem::{
    Attributes, Caller, DataSink as _, DirectoryEntry, DirectorySink, Entry, Errno, FileSystem,
    Kind, Name, NodeId, Seek,
};
use crate::layer::data;

mod plan;
mod tar;
mod upper;

use plan::{Item, plan};
pub use tar::TarTarget;
pub use upper::UpperTarget;

/// The host looks as a guest's root does.
const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 0 };

/// Why nothing, or not all, was exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Something of the union cannot be read.
    #[error("/{path}: {cause}")]
    Read {
        /// The object.
        path: String,
        /// Why not.
        cause: Errno,
    },
    /// Something cannot be written.
    #[error("writing /{path}: {cause}")]
    Write {
        /// The object.
        path: String,
        /// Why not.
        cause: io::Error,
    },
}

pub(super) fn reading(path: &[u8]) -> impl Fn(Errno) -> ExportError {
    let path = path.escape_ascii().to_string();
    move |cause| ExportError::Read { path: path.clone(), cause }
}

fn writing<E: Into<io::Error>>(path: &[u8]) -> impl Fn(E) -> ExportError {
    let path = path.escape_ascii().to_string();
    move |cause| ExportError::Write { path: path.clone(), cause: cause.into() }
}

/// Takes a layer or a root, parents before what is in them.
pub trait Target {
    /// An object, with its data.
    fn object(&mut self, object: &Object<'_>) -> Result<(), ExportError>;
    /// A name of the base that is gone.
    fn whiteout(&mut self, path: &[u8]) -> Result<(), ExportError>;
    /// Nothing of the base shows in this directory, which came before.
    fn opaque(&mut self, path: &[u8]) -> Result<(), ExportError>;
    /// All is there.
    fn finish(&mut self) -> Result<(), ExportError>;
}

/// An object on its way.
pub struct Object<'a> {
    /// Its path, without a leading `/`; empty for the root.
    pub path: &'a [u8],
    /// What it shows.
    pub attributes: Attributes,
    /// The target of a symbolic link, else empty.
    pub target: Vec<u8>,
    /// Its attributes, by the guest's names.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where a file's bytes are.
    pub content: Content<'a>,
}

/// Where the bytes of a file are.
pub enum Content<'a> {
    /// In a union: the object's node has them.
    Union(&'a dyn FileSystem),
    /// In a file of the host's.
    File(OwnedFd),
}

impl fmt::Debug for Object<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.escape_ascii().to_string();
        f.debug_struct("Object").field("path", &path).finish_non_exhaustive()
    }
}

impl Object<'_> {
    /// Where a file has data: offsets and sizes, in order.
    pub fn segments(&self) -> Result<Vec<(u64, u64)>, ExportError> {
        let size = self.attributes.size;
        let mut segments = Vec::new();
        let mut at = 0;
        while at < size {
            let start = match self.seek(Seek::Data(at)) {
                Err(Errno::NXIO) => break,
                found => found.map_err(reading(self.path))?,
            };
            let end = self.seek(Seek::Hole(start)).map_err(reading(self.path))?;
            let end = end.min(size).max(start + 1);
            segments.push((start, end - start));
            at = end;
        }
        Ok(segments)
    }

    /// Fills `piece` from `offset`; the file has as much.
    pub fn read(&self, offset: u64, piece: &mut [u8]) -> Result<(), ExportError> {
        let mut done = 0;
        while done < piece.len() {
            let (from, size) = (offset + done as u64, piece.len() - done);
            let mut sink = MemorySink::new(&mut piece[done..]);
            let read = match &self.content {
                Content::Union(union) => union.read(self.attributes.node, from, size, &mut sink),
                Content::File(file) => sink.append_file(file.as_fd(), from, size).map(drop),
            };
            read.map_err(reading(self.path))?;
            match sink.filled() {
                0 => return Err(reading(self.path)(Errno::IO)),
                bytes => done += bytes,
            }
        }
        Ok(())
    }

    fn seek(&self, seek: Seek) -> Result<u64, Errno> {
        match &self.content {
            Content::Union(union) => union.seek(self.attributes.node, seek),
            Content::File(file) => data::seek(file.as_fd(), seek),
        }
    }
}

impl fmt::Debug for Content<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Union(_) => f.write_str("Union"),
            Self::File(file) => f.debug_tuple("File").field(file).finish(),
        }
    }
}

/// The names of a directory, without `.` and `..`.
#[derive(Default)]
struct Names {
    names: Vec<Vec<u8>>,
    last: u64,
}

impl DirectorySink for Names {
    fn fits(&self, _: usize) -> bool {
        true
    }

    fn push(&mut self, row: &DirectoryEntry<'_>, _: Option<&Entry>) {
        self.last = row.cookie;
        if !matches!(row.name, b"." | b"..") {
            self.names.push(row.name.to_vec());
        }
    }
}

/// Exports what `rows` say has changed.
///
/// Errors: as [`ExportError`] says; what was written until then is to be thrown away.
pub fn export_changes(
    union: &dyn FileSystem,
    rows: &[Row],
    to: &mut dyn Target,
) -> Result<(), ExportError> {
    let mut source = Source { union, to, directories: HashSet::new() };
    for (path, item) in plan(rows) {
        match item {
            Item::Gone => source.gone(&path)?,
            Item::Object => source.object(&path)?,
            Item::Tree => source.tree(&path)?,
        }
    }
    source.to.finish()
}

/// Exports everything.
///
/// Errors: as [`export_changes`] has them.
pub fn export_whole(union: &dyn FileSystem, to: &mut dyn Target) -> Result<(), ExportError> {
    let mut source = Source { union, to, directories: HashSet::new() };
    source.object(b"")?;
    source.below(b"")?;
    source.to.finish()
}

/// The union, while it is read.
struct Source<'a> {
    union: &'a dyn FileSystem,
    to: &'a mut dyn Target,
    /// Directories that the target has.
    directories: HashSet<Vec<u8>>,
}

impl Source<'_> {
    /// A name that is gone, if there is still a directory that it could be in.
    fn gone(&mut self, path: &[u8]) -> Result<(), ExportError> {
        let is_directory = |found: &Attributes| found.kind() == Kind::Directory;
        if self.find(path)?.is_some()
            || !self.find(parent(path))?.is_some_and(|it| is_directory(&it))
        {
            return Ok(());
        }
        self.directories_above(path)?;
        self.to.whiteout(path)
    }

    /// An object alone. The directories above it are there first, as they are.
    fn object(&mut self, path: &[u8]) -> Result<(), ExportError> {
        self.directories_above(path)?;
        self.give(path)
    }

    /// A directory that came from elsewhere, with all that it shows.
    fn tree(&mut self, path: &[u8]) -> Result<(), ExportError> {
        self.object(path)?;
        if self.directories.contains(path) {
            self.to.opaque(path)?;
            self.below(path)?;
        }
        Ok(())
    }

    /// All that is in a directory, at any depth.
    fn below(&mut self, path: &[u8]) -> Result<(), ExportError> {
        let mut waiting = vec![path.to_vec()];
        while let Some(path) = waiting.pop() {
            let mut names = self.names(&path)?;
            names.sort();
            for name in names {
                let path = if path.is_empty() { name } else { [&path, &b"/"[..], &name].concat() };
                self.give(&path)?;
                if self.directories.contains(&path) {
                    waiting.push(path);
                }
            }
        }
        Ok(())
    }

    fn directories_above(&mut self, path: &[u8]) -> Result<(), ExportError> {
        let mut above = vec![];
        let mut at = path;
        while !at.is_empty() {
            at = parent(at);
            if self.directories.contains(at) {
                break;
            }
            above.push(at.to_vec());
        }
        above.iter().rev().try_for_each(|path| self.give(path))
    }

    fn names(&self, path: &[u8]) -> Result<Vec<Vec<u8>>, ExportError> {
        let mut names = Names::default();
        self.hold(path, |found| {
            let node = found.ok_or(Errno::NOENT)?.node;
            loop {
                let before = names.last;
                self.union.read_directory(node, before, false, &mut names)?;
                if names.last == before {
                    return Ok(());
                }
            }
        })
        .map_err(reading(path))?;
        Ok(names.names)
    }

    fn give(&mut self, path: &[u8]) -> Result<(), ExportError> {
        if self.directories.contains(path) {
            return Ok(());
        }
        let union = self.union;
        let mut kind = Kind::File;
        let to = &mut *self.to;
        hold(union, path, |found| {
            let attributes = found.ok_or(Errno::NOENT).map_err(reading(path))?;
            kind = attributes.kind();
            to.object(&look(union, path, attributes).map_err(reading(path))?)
        })
        .map_err(reading(path))??;
        if kind == Kind::Directory {
            self.directories.insert(path.to_vec());
        }
        Ok(())
    }

    fn find(&self, path: &[u8]) -> Result<Option<Attributes>, ExportError> {
        hold(self.union, path, |found| found).map_err(reading(path))
    }

    fn hold(
        &self,
        path: &[u8],
        with: impl FnOnce(Option<Attributes>) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        hold(self.union, path, with)?
    }
}

fn look<'a>(
    union: &'a dyn FileSystem,
    path: &'a [u8],
    attributes: Attributes,
) -> Result<Object<'a>, Errno> {
    let node = attributes.node;
    let target = match attributes.kind() {
        Kind::Symlink => union.read_link(node)?,
        _ => Vec::new(),
    };
    let mut xattrs = Vec::new();
    for name in union.list_xattrs(&ROOT, node)?.split(|byte| *byte == 0) {
        if !name.is_empty() {
            xattrs.push((name.to_vec(), union.xattr(&ROOT, node, name)?));
        }
    }
    Ok(Object { path, attributes, target, xattrs, content: Content::Union(union) })
}

/// Holds what is at a path, and all above it, as a guest does, for as long as `with` takes.
fn hold<T>(
    union: &dyn FileSystem,
    path: &[u8],
    with: impl FnOnce(Option<Attributes>) -> T,
) -> Result<T, Errno> {
    let mut held = Vec::new();
    let mut at = union.attributes(NodeId::ROOT).map(Some);
    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        let Ok(Some(above)) = at else { break };
        at = match Name::new(name).and_then(|name| union.lookup(&ROOT, above.node, name)) {
            Ok(found) => {
                held.push(found.attributes.node);
                Ok(Some(found.attributes))
            }
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error),
        };
    }
    let done = at.map(with);
    held.into_iter().rev().for_each(|node| union.forget(node, 1));
    done
}

/// The path of the directory a path is in.
fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(b"", |slash| &path[..slash])
}
