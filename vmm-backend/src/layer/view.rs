//! What is in an upper, for those who only look.
//!
//! Objects are reached through `O_PATH` descriptors resolved beneath the root; what they say to
//! the guest goes through [`super::owner`] and [`super::mark`].

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;

use super::acl::{ACCESS_ACL, Acl};
use super::blocks::BlocksMark;
use super::mark::{self, Mark, MarkSpace, Marks};
use super::owner::{self, Ownership};
use crate::filesystem::{Attributes, Errno, Kind};
use crate::sys::fs;

/// An upper to be looked at.
#[derive(Debug)]
pub struct UpperView {
    root: OwnedFd,
    space: MarkSpace,
    ownership: Ownership,
}

/// What the upper has at a name.
#[derive(Debug)]
pub enum Found {
    /// Nothing: a lower object of that name shows.
    Absent,
    /// A whiteout: nothing of that name shows.
    Whiteout,
    /// An object.
    Object(Box<UpperObject>),
}

/// An object of the upper.
#[derive(Debug)]
pub struct UpperObject {
    /// An `O_PATH` descriptor of it.
    pub handle: OwnedFd,
    /// What the guest sees, but for `node`, which is the host's inode number, and `nlink`, which
    /// counts the upper's links only.
    pub attributes: Attributes,
    /// Its marks.
    pub marks: Marks,
}

/// A hard link of the lower that was copied up.
#[derive(Debug)]
pub struct IndexedLink {
    /// The number of its lower object.
    pub object: u32,
    /// Its name in the index.
    pub name: Vec<u8>,
    /// An `O_PATH` descriptor of it.
    pub handle: OwnedFd,
}

/// What is in `index/`.
#[derive(Debug, Default)]
pub struct Indexed {
    /// Links of this base.
    pub ours: Vec<IndexedLink>,
    /// Names without a mark of ours for this base, and whether they have one for another: else the
    /// kernel's overlayfs wrote them.
    pub unmarked: Vec<(Vec<u8>, bool)>,
}

/// One row of an upper directory.
#[derive(Debug)]
pub struct UpperName {
    /// The name.
    pub name: Vec<u8>,
    /// What it is; `None`: a whiteout.
    pub kind: Option<Kind>,
    /// The host's inode number.
    pub ino: u64,
}

impl UpperView {
    /// The upper below `root`, which keeps its marks and ownership so.
    pub fn new(root: OwnedFd, space: MarkSpace, ownership: Ownership) -> Self {
        Self { root, space, ownership }
    }

    /// The root's descriptor.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Where its marks are.
    pub fn space(&self) -> MarkSpace {
        self.space
    }

    /// How ownership is kept.
    pub fn ownership(&self) -> Ownership {
        self.ownership
    }

    /// Whether ACLs are kept as any attribute, so that the host's chmod does not change them.
    pub fn maps_acls(&self) -> bool {
        self.ownership == Ownership::Override
    }

    /// Opens the object at a path from the root, `O_PATH`, beneath the root.
    pub fn handle(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        fs::open_beneath(self.root.as_fd(), path, OFlags::PATH)
    }

    /// What is at `name` in `dir`.
    pub fn find(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<Found, Errno> {
        let handle = match fs::open_name(dir, name, OFlags::PATH) {
            Ok(handle) => handle,
            Err(Errno::NOENT) => return Ok(Found::Absent),
            Err(e) => return Err(e),
        };
        let stat = fs::stat(handle.as_fd())?;
        if is_whiteout(&stat) {
            return Ok(Found::Whiteout);
        }
        let marks = mark::read(self.space, handle.as_fd())?;
        let attributes = self.shown_of(handle.as_fd(), &stat, &marks)?;
        Ok(Found::Object(Box::new(UpperObject { handle, attributes, marks })))
    }

    /// The object a descriptor names.
    pub fn object(&self, handle: OwnedFd) -> Result<UpperObject, Errno> {
        let marks = mark::read(self.space, handle.as_fd())?;
        let stat = fs::stat(handle.as_fd())?;
        let attributes = self.shown_of(handle.as_fd(), &stat, &marks)?;
        Ok(UpperObject { handle, attributes, marks })
    }

    /// What the guest sees of the object a descriptor names, by [`UpperObject::attributes`]' rules.
    pub fn attributes(&self, handle: BorrowedFd<'_>) -> Result<Attributes, Errno> {
        let stat = fs::stat(handle)?;
        let mut marks = Marks::default();
        if self.may_have_stat_mark(&stat) {
            marks.stat = fs::xattr(handle, self.space.name(Mark::Stat))?;
        }
        self.shown_of(handle, &stat, &marks)
    }

    /// What an access ACL says of permissions is the mode, whatever a mark has: so one step changes
    /// both.
    fn shown_of(
        &self,
        handle: BorrowedFd<'_>,
        stat: &fs::Statx,
        marks: &Marks,
    ) -> Result<Attributes, Errno> {
        let mut shown = self.shown(stat, marks)?;
        if self.maps_acls() && shown.kind() != Kind::Symlink {
            let value = fs::xattr(handle, &self.space.to_host(ACCESS_ACL)?)?;
            if let Some(acl) = value.as_deref().and_then(Acl::parse) {
                shown.mode = (shown.mode & !0o777) | acl.permissions();
            }
        }
        Ok(shown)
    }

    fn shown(&self, stat: &fs::Statx, marks: &Marks) -> Result<Attributes, Errno> {
        if self.may_have_stat_mark(stat) {
            let mut shown = owner::attributes(stat, marks)?;
            if self.ownership == Ownership::Override && marks.stat.is_none() {
                // A symbolic link can bear no mark, and is root's: others are stored as files.
                (shown.uid, shown.gid) = (0, 0);
            }
            Ok(shown)
        } else {
            owner::attributes(stat, &Marks::default())
        }
    }

    /// A native upper has stat marks on stand-ins only: a planted one elsewhere means nothing.
    fn may_have_stat_mark(&self, stat: &fs::Statx) -> bool {
        match self.ownership {
            Ownership::Override => true,
            Ownership::Native => owner::is_stand_in(stat),
        }
    }

    /// A guest read this directory.
    pub fn see_listed(&self, dir: BorrowedFd<'_>) -> Result<(), Errno> {
        fs::access_directory(dir)
    }

    /// All names in a directory, whiteouts too. It does not count as accessed by that.
    pub fn names(&self, dir: BorrowedFd<'_>) -> Result<Vec<UpperName>, Errno> {
        let rows = fs::list(dir)?;
        let mut names = Vec::with_capacity(rows.len());
        for row in rows {
            let kind = match Kind::from_mode(u32::from(row.kind) << 12) {
                // A whiteout, a stand-in, or a type the file system did not tell.
                None | Some(Kind::CharDevice) => self.kind_of(dir, &row.name)?,
                Some(Kind::File) if self.ownership == Ownership::Override => {
                    self.kind_of(dir, &row.name)?
                }
                kind => kind,
            };
            names.push(UpperName { name: row.name, kind, ino: row.ino });
        }
        Ok(names)
    }

    fn kind_of(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Kind>, Errno> {
        match self.find(dir, name) {
            Ok(Found::Object(object)) => Ok(Some(object.attributes.kind())),
            Ok(Found::Absent | Found::Whiteout) => Ok(None),
            // Marks that cannot be read spoil their own entry, not the whole listing.
            Err(Errno::IO) => Ok(Kind::from_mode(fs::stat_name(dir, name)?.stx_mode.into())),
            Err(e) => Err(e),
        }
    }

    /// Opens a regular file or directory behind a handle for reading, or for both.
    pub fn open_file(&self, handle: BorrowedFd<'_>, for_writing: bool) -> Result<OwnedFd, Errno> {
        let flags = if for_writing { OFlags::RDWR } else { OFlags::RDONLY };
        match Kind::from_mode(u32::from(fs::stat(handle)?.stx_mode)) {
            Some(Kind::File) => fs::reopen(handle, flags),
            Some(Kind::Directory) => fs::reopen(handle, OFlags::RDONLY | OFlags::DIRECTORY),
            _ => Err(Errno::INVAL),
        }
    }

    /// Whether an unsettled file of a lower file's size has data of its own: blocks written, or
    /// an end that was cut off and grown again.
    pub fn has_own_blocks(&self, handle: BorrowedFd<'_>) -> Result<bool, Errno> {
        let mark = fs::xattr(handle, self.space.name(Mark::Blocks))?;
        let mark = mark.map(|value| BlocksMark::from_bytes(&value).ok_or(Errno::IO)).transpose()?;
        // Without a mark the kernel's overlayfs wrote it, which copies data whole or not at all.
        Ok(mark.is_some_and(|mark| mark.saved_map().is_some() || mark.limit < mark.lower_size))
    }

    /// The target of a symbolic link, native or stored as a file.
    pub fn target(&self, handle: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
        let stat = fs::stat(handle)?;
        if Kind::from_mode(u32::from(stat.stx_mode)) == Some(Kind::Symlink) {
            return fs::read_link(handle);
        }
        let file = self.open_file(handle, false)?;
        // limits.h: PATH_MAX bounds a target.
        let mut target = vec![0; usize::try_from(stat.stx_size).unwrap_or(4096).min(4096)];
        let bytes = rustix::io::pread(&file, &mut target, 0)?;
        target.truncate(bytes);
        Ok(target)
    }

    /// The copied-up hard links that are in `index`. `is_ours` tells an identity of
    /// this base.
    pub fn indexed(
        &self,
        index: BorrowedFd<'_>,
        is_ours: impl Fn([u8; 16]) -> bool,
    ) -> Result<Indexed, Errno> {
        let mut found = Indexed::default();
        for row in fs::list(index)? {
            // The kernel's overlayfs works in its index too, and leaves `#…` there.
            if row.name.starts_with(b"#") {
                continue;
            }
            let handle = fs::open_name(index, &row.name, OFlags::PATH)?;
            match mark::read(self.space, handle.as_fd())?.origin {
                Some(origin) if is_ours(origin.identity) => {
                    found.ours.push(IndexedLink { object: origin.object, name: row.name, handle });
                }
                other => found.unmarked.push((row.name, other.is_some())),
            }
        }
        Ok(found)
    }

    /// The value of a guest's attribute.
    pub fn xattr(&self, object: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>, Errno> {
        fs::xattr(object, &self.space().to_host(name)?)?.ok_or(Errno::NODATA)
    }

    /// The names a guest sees, each with a NUL behind it.
    pub fn list_xattrs(&self, object: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
        let host = fs::list_xattrs(object)?;
        let mut guest = Vec::with_capacity(host.len());
        for name in host.split(|b| *b == 0).filter(|name| !name.is_empty()) {
            if let Some(name) = self.space().to_guest(name) {
                guest.extend_from_slice(&name);
                guest.push(0);
            }
        }
        Ok(guest)
    }
}

fn is_char(stat: &fs::Statx) -> bool {
    Kind::from_mode(u32::from(stat.stx_mode)) == Some(Kind::CharDevice)
}

/// Char 0:0 (fs/overlayfs: `WHITEOUT_DEV`).
pub fn is_whiteout(stat: &fs::Statx) -> bool {
    is_char(stat) && (stat.stx_rdev_major, stat.stx_rdev_minor) == (0, 0)
}
