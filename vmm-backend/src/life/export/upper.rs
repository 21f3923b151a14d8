//! A layer as an upper of the kernel's overlayfs: whiteouts, opaque directories, native owners.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;

use super::{ExportError, Object, Target, parent, writing};
use crate::filesystem::{Attributes, Errno, Kind, NodeId};
use crate::layer::change::Place;
use crate::layer::data::write_whole;
use crate::layer::mark::{Mark, MarkSpace};
use crate::layer::owner::{Owner, Ownership};
use crate::layer::upper::{Birth, Upper, UpperConfig};
use crate::layer::work::Over;
use crate::sys::fs;

/// How much is moved at once.
const PIECE_BYTES: usize = 1 << 20;

/// Writes an upper.
#[derive(Debug)]
pub struct UpperTarget {
    upper: Upper,
    /// The first path of each object that has several.
    linked: HashMap<NodeId, Vec<u8>>,
    /// Directories get their times when nothing is put into them any more.
    times: Vec<(Vec<u8>, Attributes)>,
}

impl UpperTarget {
    /// Writes into an empty directory; what is on its way is staged in another beside it.
    ///
    /// Errors: the calls' own; `EPERM` without the privilege that overlayfs marks take.
    pub fn new(root: OwnedFd, work: BorrowedFd<'_>) -> Result<Self, Errno> {
        Self::in_form(root, work, (MarkSpace::Trusted, Ownership::Native))
    }

    /// The same in one of the forms an upper can have.
    ///
    /// Errors: the calls' own.
    pub fn in_form(
        root: OwnedFd,
        work: BorrowedFd<'_>,
        (space, ownership): (MarkSpace, Ownership),
    ) -> Result<Self, Errno> {
        // Nothing reads this upper before it is whole: it is synced once.
        let config = UpperConfig { space, ownership, is_volatile: true, attachment: None };
        let upper = Upper::open(root, work, config)?;
        Ok(Self { upper, linked: HashMap::new(), times: Vec::new() })
    }

    fn directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        fs::open_beneath(self.upper.root(), path, OFlags::PATH | OFlags::DIRECTORY)
    }

    fn born(&mut self, object: &Object<'_>) -> Result<Option<OwnedFd>, Errno> {
        let shown = &object.attributes;
        let owner = Owner { uid: shown.uid, gid: shown.gid, mode: shown.mode, rdev: shown.rdev };
        if object.path.is_empty() {
            for (name, value) in &object.xattrs {
                self.upper.set_xattr(self.upper.root(), (name, value), 0)?;
            }
            self.upper.set_owner(self.upper.root(), &owner)?;
            return Ok(None);
        }
        let directory = self.directory(parent(object.path))?;
        let name = name(object.path);
        if shown.kind() != Kind::Directory && shown.nlink > 1 {
            if let Some(first) = self.linked.get(&shown.node) {
                let first = self.upper.handle(first)?;
                self.upper.link(first.as_fd(), Place { dir: directory.as_fd(), name })?;
                return Ok(None);
            }
            self.linked.insert(shown.node, object.path.to_vec());
        }
        let (target, xattrs) = (object.target.as_slice(), object.xattrs.as_slice());
        let staged = self.upper.stage(&Birth { owner, target, xattrs, is_opaque: false })?;
        self.upper.work().publish(staged, directory.as_fd(), name, Over::Nothing).map(Some)
    }

    fn fill(&self, object: &Object<'_>, handle: BorrowedFd<'_>) -> Result<(), ExportError> {
        let failed = writing::<Errno>(object.path);
        let file = self.upper.open_file(handle, true).map_err(&failed)?;
        let mut piece = vec![0; PIECE_BYTES];
        for (offset, bytes) in object.segments()? {
            let mut done = 0;
            while done < bytes {
                let size = usize::try_from(bytes - done).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
                object.read(offset + done, &mut piece[..size])?;
                write_whole(file.as_fd(), &piece[..size], offset + done).map_err(&failed)?;
                done += size as u64;
            }
        }
        self.upper.truncate(file.as_fd(), object.attributes.size).map_err(&failed)?;
        // A write takes privileges away, whoever makes it.
        let owner = &object.attributes;
        let owner = Owner { uid: owner.uid, gid: owner.gid, mode: owner.mode, rdev: owner.rdev };
        self.upper.set_owner(handle, &owner).map_err(&failed)?;
        let capability = object.xattrs.iter().find(|(name, _)| name == b"security.capability");
        if let Some((name, value)) = capability {
            self.upper.set_xattr(handle, (name, value), 0).map_err(&failed)?;
        }
        Ok(())
    }
}

impl Target for UpperTarget {
    fn object(&mut self, object: &Object<'_>) -> Result<(), ExportError> {
        let failed = writing::<Errno>(object.path);
        let kind = object.attributes.kind();
        let born = self.born(object).map_err(&failed)?;
        if kind == Kind::Directory {
            self.times.push((object.path.to_vec(), object.attributes));
            return Ok(());
        }
        let Some(born) = born else { return Ok(()) };
        if kind == Kind::File && object.attributes.size > 0 {
            self.fill(object, born.as_fd())?;
        }
        self.upper.set_times(born.as_fd(), &object.attributes).map_err(failed)
    }

    fn whiteout(&mut self, path: &[u8]) -> Result<(), ExportError> {
        let directory = self.directory(parent(path)).map_err(writing(path))?;
        let done = self.upper.work().put_whiteout(directory.as_fd(), name(path));
        done.map_err(writing(path))
    }

    fn opaque(&mut self, path: &[u8]) -> Result<(), ExportError> {
        let directory = self.directory(path).map_err(writing(path))?;
        self.upper.set_mark(directory.as_fd(), Mark::Opaque, b"y").map_err(writing(path))
    }

    fn finish(&mut self) -> Result<(), ExportError> {
        for (path, attributes) in self.times.iter().rev() {
            let directory = self.directory(path).map_err(writing(path))?;
            self.upper.set_times(directory.as_fd(), attributes).map_err(writing(path))?;
        }
        let root = self.upper.open_file(self.upper.root(), false).map_err(writing(b""))?;
        fs::sync_file_system(root.as_fd()).map_err(writing(b""))
    }
}

fn name(path: &[u8]) -> &[u8] {
    let above = parent(path);
    if above.is_empty() { path } else { &path[above.len() + 1..] }
}
