//! The upper: one guest's own tree, with the marks that join it to the lowers.
//!
//! What is there is told by its [`UpperView`]; this adds what changes it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::blocks::WHOLE_BYTES_MAX;
use super::data::{clone_data, copy_data};
use super::mark::{Mark, MarkSpace, Origin};
use super::owner::{Owner, Ownership, STAND_IN, unpack_device};
pub use super::view::{Found, UpperName, UpperObject, UpperView};
use super::work::{Staged, Work};
use crate::filesystem::{Attributes, Errno, Kind};
use crate::sys::fs;

/// How an upper is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UpperConfig {
    /// Where its marks are.
    pub space: MarkSpace,
    /// How it keeps ownership.
    pub ownership: Ownership,
    /// Skip what only a power loss would need (an upper that will be discarded).
    pub is_volatile: bool,
}

/// One guest's own tree.
#[derive(Debug)]
pub struct Upper {
    view: UpperView,
    work: Work,
    is_volatile: bool,
}

impl std::ops::Deref for Upper {
    type Target = UpperView;

    fn deref(&self) -> &UpperView {
        &self.view
    }
}

/// An object to be born in the upper.
#[derive(Clone, Copy, Debug)]
pub struct Birth<'a> {
    /// Owner, mode with its kind, device number.
    pub owner: Owner,
    /// The target of a symbolic link, else empty.
    pub target: &'a [u8],
    /// Extended attributes by the guest's names.
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
    /// Hides a lower directory of its name.
    pub is_opaque: bool,
}

/// A lower object on its way up.
#[derive(Debug)]
pub struct CopyUp<'a> {
    /// What it is, with all attributes it keeps.
    pub attributes: Attributes,
    /// What is born: kind, owner, target, xattrs.
    pub birth: Birth<'a>,
    /// Its data and how many bytes of it, for a regular file.
    pub data: Option<(BorrowedFd<'a>, u64)>,
    /// A large file may come without its data, which then falls through.
    pub may_fall_through: bool,
    /// Our origin mark.
    pub origin: Origin,
    /// The kernel's origin mark, where the lower's file system gives handles.
    pub kernel_origin: Option<&'a [u8]>,
}

impl Upper {
    /// Takes an upper and its work directory; creates what the work directory lacks and sweeps it.
    ///
    /// Errors: the calls' own.
    pub fn open(root: OwnedFd, work: BorrowedFd<'_>, config: UpperConfig) -> Result<Self, Errno> {
        let view = UpperView::new(root, config.space, config.ownership);
        Ok(Self { view, work: Work::open(work)?, is_volatile: config.is_volatile })
    }

    /// Its work directory.
    pub fn work(&self) -> &Work {
        &self.work
    }

    /// Gives an object owner and mode.
    pub fn set_owner(&self, handle: BorrowedFd<'_>, owner: &Owner) -> Result<(), Errno> {
        self.ownership().set(self.space(), handle, owner)
    }

    /// Sets a mark.
    pub fn set_mark(&self, handle: BorrowedFd<'_>, mark: Mark, value: &[u8]) -> Result<(), Errno> {
        fs::set_xattr(handle, self.space().name(mark), value, 0)
    }

    /// Sees to it that a directory is marked as one that may hold objects with an origin.
    pub fn mark_impure(&self, dir: BorrowedFd<'_>) -> Result<(), Errno> {
        if fs::xattr(dir, self.space().name(Mark::Impure))?.is_some() {
            return Ok(());
        }
        self.set_mark(dir, Mark::Impure, b"y")
    }

    /// Stages a new object. It is whole but for its data when this returns.
    pub fn stage(&self, birth: &Birth<'_>) -> Result<Staged<'_>, Errno> {
        let staged = self.stage_bare(birth)?;
        self.dress(staged.handle(), birth)?;
        Ok(staged)
    }

    /// Owner, attributes and marks, in the order in which none takes another away.
    fn dress(&self, handle: BorrowedFd<'_>, birth: &Birth<'_>) -> Result<(), Errno> {
        self.set_owner(handle, &birth.owner)?;
        for (name, value) in birth.xattrs {
            fs::set_xattr(handle, &self.space().to_host(name)?, value, 0)?;
        }
        if birth.is_opaque {
            self.set_mark(handle, Mark::Opaque, b"y")?;
        }
        Ok(())
    }

    fn stage_bare(&self, birth: &Birth<'_>) -> Result<Staged<'_>, Errno> {
        let kind = Kind::from_mode(birth.owner.mode).ok_or(Errno::INVAL)?;
        self.work.stage(kind == Kind::Directory, |dir, name| self.create(dir, name, kind, birth))
    }

    /// Creates the object with the least rights; owner, mode and marks follow.
    fn create(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        kind: Kind,
        birth: &Birth<'_>,
    ) -> Result<Option<OwnedFd>, Errno> {
        let is_override = self.ownership() == Ownership::Override;
        match kind {
            Kind::Directory => fs::create_directory(dir, name, 0o700)?,
            Kind::File => return fs::create_file(dir, name, 0o600).map(Some),
            Kind::Symlink if self.ownership().stands_in(&birth.owner) => {
                let file = fs::create_file(dir, name, 0o600)?;
                fs::write_at(file.as_fd(), birth.target, 0)?;
                return Ok(Some(file));
            }
            Kind::Symlink => fs::create_symlink(dir, name, birth.target)?,
            _ if is_override => return fs::create_file(dir, name, 0o600).map(Some),
            _ => {
                let stands_in = self.ownership().stands_in(&birth.owner);
                let device = if stands_in { STAND_IN } else { unpack_device(birth.owner.rdev) };
                fs::create_special(dir, name, kind.mode_bits(), device)?;
            }
        }
        Ok(None)
    }

    /// Stages a copy of a lower object: data, attributes, origin, and times last. Says whether it
    /// is unsettled: then no data moved, and it falls through. What did move is on disk when this
    /// returns, so that a power loss never replaces a good lower by an empty file.
    pub fn stage_copy(&self, copy: &CopyUp<'_>) -> Result<(Staged<'_>, bool), Errno> {
        let staged = self.stage_bare(&copy.birth)?;
        // Data first: a write takes file capabilities away.
        let is_unsettled = match copy.data {
            Some((from, size)) if size >= WHOLE_BYTES_MAX && copy.may_fall_through => {
                let is_cloned = clone_data(from, staged.handle(), size)?;
                if !is_cloned {
                    self.begin_unsettled(staged.handle(), &copy.attributes, size)?;
                }
                !is_cloned
            }
            Some((from, size)) => {
                copy_data(from, staged.handle(), size)?;
                false
            }
            None => false,
        };
        self.dress(staged.handle(), &copy.birth)?;
        // user.* attributes cannot sit on special files and links, trusted ones can.
        let may_be_marked = self.space() == MarkSpace::Trusted
            || matches!(copy.attributes.kind(), Kind::File | Kind::Directory);
        if may_be_marked {
            self.set_mark(staged.handle(), Mark::OwnOrigin, &copy.origin.to_bytes())?;
            if let Some(kernel_origin) = copy.kernel_origin {
                self.set_mark(staged.handle(), Mark::Origin, kernel_origin)?;
            }
        }
        self.set_times(staged.handle(), &copy.attributes)?;
        if copy.data.is_some() && !is_unsettled && !self.is_volatile {
            fs::sync(staged.handle(), false)?;
        }
        Ok((staged, is_unsettled))
    }

    /// Sets access and modification time to those of `attributes`.
    pub fn set_times(&self, handle: BorrowedFd<'_>, attributes: &Attributes) -> Result<(), Errno> {
        let spec = |time: crate::filesystem::Timestamp| fs::Timespec {
            tv_sec: time.seconds,
            tv_nsec: i64::from(time.nanoseconds),
        };
        let times = fs::Timestamps {
            last_access: spec(attributes.atime),
            last_modification: spec(attributes.mtime),
        };
        fs::change_times(handle, &times)
    }

    /// Whether what reaches the disk matters here.
    pub fn is_volatile(&self) -> bool {
        self.is_volatile
    }
}
