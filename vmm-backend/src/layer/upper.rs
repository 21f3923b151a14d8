//! The upper: one guest's own tree, with the marks that join it to the lowers.
//!
//! What is there is told by its [`UpperView`]; this adds what changes it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;

use super::change::Place;
use super::data::{clone_data, copy_data};
use super::mark::{Mark, MarkSpace, Origin};
use super::owner::{Owner, Ownership, STAND_IN, is_large, unpack_device};
pub use super::view::{Found, UpperName, UpperObject, UpperView};
use super::work::{Over, Staged, Work, hand_nothing_down};
use crate::filesystem::{Attributes, Errno, Kind, SetTime};
use crate::sys::attachment::Attachment;
use crate::sys::fs::{self, Grip};

/// How an upper is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UpperConfig {
    /// Where its marks are.
    pub space: MarkSpace,
    /// How it keeps ownership.
    pub ownership: Ownership,
    /// Skip what only a power loss would need (an upper that will be discarded).
    pub is_volatile: bool,
    /// While it is the same, what an earlier process wrote is read; `None`: it cannot be told.
    pub attachment: Option<Attachment>,
}

/// One guest's own tree.
#[derive(Debug)]
pub struct Upper {
    view: UpperView,
    work: Work,
    is_volatile: bool,
    attachment: Option<Attachment>,
    /// Who owns what this process makes, where the host takes nothing from its mode.
    natural_owner: Option<(u32, u32)>,
    /// Files of this file system may share blocks.
    shares_blocks: bool,
    /// An fsync of one file brings along all changes of metadata before it.
    orders_changes: bool,
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
    /// What becomes of its data.
    pub contents: Contents<'a>,
    /// A truncation is part of the step: it is of now.
    pub is_cut: bool,
    /// Our origin mark.
    pub origin: Origin,
    /// The kernel's origin mark, where the lower's file system gives handles.
    pub kernel_origin: Option<&'a [u8]>,
}

/// How a copy comes by its data. Where the file system shares blocks between files, a file that is
/// given here does so, and is whole.
#[derive(Clone, Copy, Debug)]
pub enum Contents<'a> {
    /// It is no regular file.
    None,
    /// So many bytes of a file move.
    Whole(BorrowedFd<'a>, u64),
    /// None moves: of so many bytes what is not written falls through.
    Blocks(Option<BorrowedFd<'a>>, u64),
    /// None moves: all of it is that of a lower file, at this path of the base.
    Elsewhere(Option<BorrowedFd<'a>>, &'a [u8]),
}

/// Where the data of a copy is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// In the upper.
    Whole,
    /// By block, in either.
    Unsettled,
    /// In the lower: the upper has attributes alone.
    Elsewhere,
}

impl Upper {
    /// Takes an upper and its work directory; creates what the work directory lacks and sweeps it.
    ///
    /// Errors: the calls' own.
    pub fn open(root: OwnedFd, work: BorrowedFd<'_>, config: UpperConfig) -> Result<Self, Errno> {
        let view = UpperView::new(root, config.space, config.ownership);
        let work = Work::open(work)?;
        let newborn = fs::create_unnamed(work.staging(), 0o777).ok();
        let natural_owner = match (config.ownership, &newborn) {
            (Ownership::Native, Some(newborn)) => natural_owner(newborn.as_fd()),
            _ => None,
        };
        let shares_blocks = newborn.is_none_or(|newborn| may_share(newborn.as_fd()));
        let UpperConfig { is_volatile, attachment, .. } = config;
        let orders_changes = fs::orders_changes(view.root())?;
        let upper = Self {
            view,
            work,
            is_volatile,
            attachment,
            natural_owner,
            shares_blocks,
            orders_changes,
        };
        upper.finish_leaving()?;
        upper.sweep_live()?;
        upper.sweep()?;
        if !is_volatile {
            upper.work.keep_spare();
        }
        Ok(upper)
    }

    /// Frees its root of what the host's directory handed down to it: setgid and ACLs.
    pub fn hand_nothing_down(&self) -> Result<(), Errno> {
        hand_nothing_down(self.root())
    }

    /// Its work directory.
    pub fn work(&self) -> &Work {
        &self.work
    }

    /// Gives an object owner and mode.
    pub fn set_owner<'a>(&self, object: impl Into<Grip<'a>>, owner: &Owner) -> Result<(), Errno> {
        self.ownership().set(self.space(), object.into(), owner)
    }

    /// Gives an object that shows `from` owner and mode.
    pub fn change_owner(
        &self,
        handle: BorrowedFd<'_>,
        from: &Attributes,
        to: &Owner,
    ) -> Result<(), Errno> {
        self.ownership().change(self.space(), handle.into(), (from, to))
    }

    /// Sets a mark.
    pub fn set_mark<'a>(
        &self,
        object: impl Into<Grip<'a>>,
        mark: Mark,
        value: &[u8],
    ) -> Result<(), Errno> {
        fs::set_xattr(object, self.space().name(mark), value, 0)
    }

    /// Sees to it that a directory is marked as one that may hold objects with an origin.
    pub fn mark_impure(&self, dir: BorrowedFd<'_>) -> Result<(), Errno> {
        if fs::xattr(dir, self.space().name(Mark::Impure))?.is_some() {
            return Ok(());
        }
        self.set_mark(dir, Mark::Impure, b"y")
    }

    /// Makes an object at a name, where it appears whole and in one step. Gives it, and what it
    /// shows: an `O_PATH` descriptor, or one for reading and writing of a regular file.
    ///
    /// Errors: `EEXIST` if something stands at a name that should have been free, else the calls'
    /// own; nothing is there then.
    pub fn bear(
        &self,
        birth: &Birth<'_>,
        place: Place<'_>,
        over: Over,
    ) -> Result<(OwnedFd, Attributes), Errno> {
        if over == Over::Nothing && self.comes_whole(birth) {
            return self.bear_in_place(birth, place);
        }
        let staged = self.stage(birth)?;
        let handle = self.work.publish(staged, place.dir, place.name, over)?;
        let attributes = self.attributes(handle.as_fd())?;
        Ok((handle, attributes))
    }

    /// Whether the one call that makes an object gives it all it needs.
    fn comes_whole(&self, birth: &Birth<'_>) -> bool {
        self.is_natural(&birth.owner) && birth.xattrs.is_empty() && !birth.is_opaque
    }

    /// Whether the call that makes an object gives it this owner and mode. Setuid, setgid and sticky
    /// bits may be taken from a mode, and what the host would store as a whiteout needs a mark.
    fn is_natural(&self, owner: &Owner) -> bool {
        self.natural_owner == Some((owner.uid, owner.gid))
            && owner.mode & 0o7000 == 0
            && !self.ownership().stands_in(owner)
            && !is_large(owner.rdev)
    }

    fn bear_in_place(
        &self,
        birth: &Birth<'_>,
        place: Place<'_>,
    ) -> Result<(OwnedFd, Attributes), Errno> {
        let owner = &birth.owner;
        let made = self.create(place, owner.mode & 0o777, birth)?;
        let seen = || {
            let handle = match made {
                Some(handle) => handle,
                None => fs::open_name(place.dir, place.name, OFlags::PATH)?,
            };
            let mut shown = self.attributes(handle.as_fd())?;
            if (shown.uid, shown.gid, shown.mode) != (owner.uid, owner.gid, owner.mode) {
                // mount(8): with bsdgroups, all is born with its directory's group.
                self.set_owner(handle.as_fd(), owner)?;
                shown = self.attributes(handle.as_fd())?;
            }
            Ok((handle, shown))
        };
        seen().inspect_err(|_| {
            let undone = match Kind::from_mode(owner.mode) {
                Some(Kind::Directory) => fs::remove_directory(place.dir, place.name),
                _ => fs::unlink(place.dir, place.name),
            };
            if let Err(left) = undone {
                log::error!("upper: {} stays, half born: {left}", place.name.escape_ascii());
            }
        })
    }

    /// Stages a new object. It is whole but for its data when this returns.
    pub fn stage(&self, birth: &Birth<'_>) -> Result<Staged<'_>, Errno> {
        let staged = self.stage_bare(birth)?;
        self.dress(staged.grip(), birth)?;
        Ok(staged)
    }

    /// Owner, attributes and marks, in the order in which none takes another away.
    fn dress(&self, object: Grip<'_>, birth: &Birth<'_>) -> Result<(), Errno> {
        if !self.is_natural(&birth.owner) {
            self.set_owner(object, &birth.owner)?;
        }
        for (name, value) in birth.xattrs {
            fs::set_xattr(object, &self.space().to_host(name)?, value, 0)?;
        }
        if birth.is_opaque {
            self.set_mark(object, Mark::Opaque, b"y")?;
        }
        Ok(())
    }

    fn stage_bare(&self, birth: &Birth<'_>) -> Result<Staged<'_>, Errno> {
        let kind = Kind::from_mode(birth.owner.mode).ok_or(Errno::INVAL)?;
        let is_directory = kind == Kind::Directory;
        // What is not given at once: the least rights; owner, mode and marks follow. Nobody else
        // gets into `work/`.
        let permissions = match kind {
            _ if self.is_natural(&birth.owner) => birth.owner.mode & 0o777,
            Kind::Directory => 0o700,
            Kind::File => 0o600,
            _ => 0,
        };
        self.work
            .stage(is_directory, |dir, name| self.create(Place { dir, name }, permissions, birth))
    }

    /// Makes the object, and gives a descriptor of a regular file.
    fn create(
        &self,
        Place { dir, name }: Place<'_>,
        permissions: u32,
        birth: &Birth<'_>,
    ) -> Result<Option<OwnedFd>, Errno> {
        let kind = Kind::from_mode(birth.owner.mode).ok_or(Errno::INVAL)?;
        let is_override = self.ownership() == Ownership::Override;
        match kind {
            Kind::Directory => fs::create_directory(dir, name, permissions)?,
            Kind::File => return fs::create_file(dir, name, permissions).map(Some),
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
                let mode = kind.mode_bits() | permissions;
                match fs::create_special(dir, name, mode, device) {
                    Err(Errno::INVAL) if is_large(birth.owner.rdev) => {
                        fs::create_special(dir, name, mode, STAND_IN)?;
                    }
                    made => made?,
                }
            }
        }
        Ok(None)
    }

    /// Stages a copy of a lower object: data, attributes, origin, and times last. What moved is on
    /// disk when this returns, so that a power loss never replaces a good lower by an empty file.
    /// What did not move needs no waiting: a file system that keeps its metadata in order shows the
    /// marks before the name.
    pub fn stage_copy(&self, copy: &CopyUp<'_>) -> Result<(Staged<'_>, Form), Errno> {
        let staged = self.stage_bare(&copy.birth)?;
        // Data first: a write takes file capabilities away.
        let (form, has_moved) = self.fill(staged.grip(), copy)?;
        self.dress(staged.grip(), &copy.birth)?;
        self.set_mark(staged.grip(), Mark::OwnOrigin, &copy.origin.to_bytes())?;
        if let Some(kernel_origin) = copy.kernel_origin {
            self.set_mark(staged.grip(), Mark::Origin, kernel_origin)?;
        }
        if copy.is_cut {
            let atime = Some(SetTime::To(copy.attributes.atime));
            self.change_times(staged.grip(), atime, Some(SetTime::Now))?;
        } else {
            self.set_times(staged.grip(), &copy.attributes)?;
        }
        if has_moved {
            self.sync(staged.handle(), false)?;
        }
        Ok((staged, form))
    }

    /// Gives a staged file its data, or says where it is; and whether any moved.
    fn fill(&self, staged: Grip<'_>, copy: &CopyUp<'_>) -> Result<(Form, bool), Errno> {
        let lower = &copy.attributes;
        let file = staged.descriptor();
        let is_shared = |from: Option<BorrowedFd<'_>>, size| {
            from.map_or(Ok(false), |from| clone_data(from, file, size))
        };
        match copy.contents {
            Contents::None => Ok((Form::Whole, false)),
            Contents::Whole(from, size) => {
                copy_data(from, file, size)?;
                Ok((Form::Whole, size > 0))
            }
            Contents::Blocks(from, size) if !is_shared(from, size)? => {
                self.begin_unsettled(staged, lower, size)?;
                Ok((Form::Unsettled, false))
            }
            Contents::Elsewhere(from, path) if !is_shared(from, lower.size)? => {
                self.begin_elsewhere(staged, lower, path)?;
                Ok((Form::Elsewhere, false))
            }
            Contents::Blocks(..) | Contents::Elsewhere(..) => Ok((Form::Whole, true)),
        }
    }

    /// Sets access and modification time to those of `attributes`.
    pub fn set_times<'a>(
        &self,
        object: impl Into<Grip<'a>>,
        attributes: &Attributes,
    ) -> Result<(), Errno> {
        let spec = |time: crate::filesystem::Timestamp| fs::Timespec {
            tv_sec: time.seconds,
            tv_nsec: i64::from(time.nanoseconds),
        };
        let times = fs::Timestamps {
            last_access: spec(attributes.atime),
            last_modification: spec(attributes.mtime),
        };
        fs::change_times(object, &times)
    }

    /// The life of the host's page cache that this upper is served in.
    pub fn attachment(&self) -> Option<Attachment> {
        self.attachment
    }

    /// Whether files of its file system may share blocks, as far as that can be told.
    pub fn shares_blocks(&self) -> bool {
        self.shares_blocks
    }

    /// Whether an fsync of one file is one of all names and marks that lead to it.
    pub(super) fn orders_changes(&self) -> bool {
        self.orders_changes
    }

    /// Whether what reaches the disk matters here.
    pub fn is_volatile(&self) -> bool {
        self.is_volatile
    }
}

/// Who owns what this process makes; `None` where its umask, or the file system, takes from a
/// mode: then every birth is staged and dressed.
fn natural_owner(newborn: BorrowedFd<'_>) -> Option<(u32, u32)> {
    let found = fs::stat(newborn).ok()?;
    (found.stx_mode & 0o777 == 0o777).then_some((found.stx_uid, found.stx_gid))
}

/// A file system without reflinks refuses any (ioctl_ficlone(2)); one with them may refuse this one.
fn may_share(newborn: BorrowedFd<'_>) -> bool {
    !matches!(fs::clone_file(newborn, newborn), Err(Errno::NOTSUP | Errno::NOTTY))
}
