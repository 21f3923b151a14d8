//! `thinroot import`: a tar archive becomes a base that an ordinary user can read whole.
//!
//! Everything is a plain file or directory of the user's own; owner, mode, type and attributes of
//! others' namespaces stand in marks, in the form of docs/ON-DISK.md. It is made beside its place,
//! and takes that when it is whole.

use std::io::Read;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;

use crate::filesystem::{Errno, Kind, Name, Timestamp};
use crate::layer::data::write_whole;
use crate::layer::imported::{FORM, MARKER};
use crate::layer::mark::MarkSpace;
use crate::layer::owner::{Owner, pack_device};
use crate::layer::work::remove_tree;
use crate::life::export::ExportError;
use crate::sys::fs::{self, RenameFlags};

mod acl;
mod archive;
pub mod fuse_overlayfs;
mod pax;

pub use archive::ArchiveError;
use archive::{Archive, Entry, EntryKind};

/// How much is moved at once.
const PIECE_BYTES: usize = 256 << 10;

/// So many names a path may have: its directories are opened one after the other.
const DEPTH_MAX: usize = 4096;

/// linux/xattr.h: `XATTR_NAME_POSIX_ACL_ACCESS` and its sibling.
const ACL_NAMES: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];

/// Why there is no base.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The archive.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A path with more names than a root has anywhere.
    #[error(
        "an entry lies below {DEPTH_MAX} directories and more; nothing was made: expected the archive of a root"
    )]
    Deep,
    /// A name that could lead out of the base, or that no file system has.
    #[error("the archive names {0:?}, which is no path below a root; nothing was made")]
    Name(String),
    /// An entry below something that is no directory.
    #[error("{0}: something above it in the archive is no directory; nothing was made")]
    Above(String),
    /// A hard link to nothing.
    #[error("{path}: a hard link to {target:?}, which is no file before it in the archive")]
    Link {
        /// The entry.
        path: String,
        /// What it links to.
        target: String,
    },
    /// An ACL that cannot be read.
    #[error(
        "{0}: an ACL that names somebody without a number; make the archive with --numeric-owner"
    )]
    Acl(String),
    /// The place is taken.
    #[error("there is something already; expected a directory that is to be made")]
    Taken,
    /// Something of an upper cannot be read, or written anew.
    #[error(transparent)]
    Upper(#[from] ExportError),
    /// An upper of another program's.
    #[error(
        "/{path}: has {mark}, which fuse-overlayfs does not write; give an upper of the kernel's overlayfs to --upper as it is"
    )]
    Foreign {
        /// The object.
        path: String,
        /// What it bears.
        mark: String,
    },
    /// An owner mark that says nothing.
    #[error("/{path}: an owner mark that cannot be read: {mark}")]
    Owner {
        /// The object.
        path: String,
        /// The mark's value.
        mark: String,
    },
    /// An object could not be made.
    #[error("{path}: {cause}{hint}")]
    Make {
        /// The entry.
        path: String,
        /// Why not.
        cause: Errno,
        /// What may help.
        hint: &'static str,
    },
}

/// What was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Imported {
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of data.
    pub bytes: u64,
}

/// Makes the base `name` in `dir`, where there must be nothing of that name, of an archive.
///
/// Errors: as [`ImportError`] says; nothing is left behind then.
pub fn import(
    archive: &mut dyn Read,
    dir: BorrowedFd<'_>,
    name: &[u8],
) -> Result<Imported, ImportError> {
    check_free(dir, name)?;
    let mut staged = Staged::make(dir, name, "")?;
    let root = fs::open_beneath(dir, &staged.name, OFlags::RDONLY | OFlags::DIRECTORY);
    let root = root.map_err(|cause| making(name, cause))?;
    let mut tree = Tree { root, directories: Vec::new(), done: Imported::default() };
    let mut archive = Archive::new(archive);
    tree.begin().map_err(|cause| making(b".", cause))?;
    while let Some(entry) = archive.next()? {
        tree.add(&entry, &mut archive)?;
    }
    tree.end()?;
    staged.publish(name)?;
    Ok(tree.done)
}

fn check_free(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), ImportError> {
    match fs::stat_name(dir, name) {
        Err(Errno::NOENT) => Ok(()),
        Ok(_) => Err(ImportError::Taken),
        Err(cause) => Err(making(name, cause)),
    }
}

fn making(path: &[u8], cause: Errno) -> ImportError {
    let hint = match cause {
        Errno::OPNOTSUPP => "; expected a file system with extended attributes (user.*)",
        Errno::NOSPC => "; the disk is full, or the attributes are too large for its file system",
        _ => "",
    };
    ImportError::Make { path: path.escape_ascii().to_string(), cause, hint }
}

/// A base or an upper on its way, gone unless it is published.
struct Staged<'a> {
    dir: BorrowedFd<'a>,
    name: Vec<u8>,
    is_published: bool,
}

impl<'a> Staged<'a> {
    fn make(dir: BorrowedFd<'a>, name: &[u8], what: &str) -> Result<Self, ImportError> {
        let own = format!(".import{what}-{}", std::process::id()).into_bytes();
        // Short enough beside a name of any length.
        let own = [b".", &name[..name.len().min(200)], &own].concat();
        fs::create_directory(dir, &own, 0o700).map_err(|cause| making(&own, cause))?;
        Ok(Self { dir, name: own, is_published: false })
    }

    fn publish(&mut self, name: &[u8]) -> Result<(), ImportError> {
        let (from, to) = ((self.dir, self.name.as_slice()), (self.dir, name));
        match fs::rename(from, to, RenameFlags::NOREPLACE) {
            Ok(()) => self.is_published = true,
            Err(Errno::EXIST) => return Err(ImportError::Taken),
            Err(cause) => return Err(making(name, cause)),
        }
        Ok(())
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if !self.is_published
            && let Err(error) = remove_tree(self.dir, &self.name)
        {
            log::warn!("import: {} stays behind: {error}", self.name.escape_ascii());
        }
    }
}

/// The base while it grows.
struct Tree {
    root: OwnedFd,
    /// Directories get their times when nothing is put into them any more.
    directories: Vec<(Vec<u8>, fs::Timestamps)>,
    done: Imported,
}

impl Tree {
    /// The root says what this is; what it is to a guest if the archive does not say is Debian's.
    fn begin(&self) -> Result<(), Errno> {
        fs::set_xattr(self.root.as_fd(), MARKER, FORM, 0)?;
        set_owner(self.root.as_fd(), &root_owner())
    }

    fn add(
        &mut self,
        entry: &Entry,
        archive: &mut Archive<&mut dyn Read>,
    ) -> Result<(), ImportError> {
        let names = names(&entry.path)?;
        let path = names.join(&b'/');
        self.done.entries += 1;
        let failed = |cause| making(&path, cause);
        let Some((name, above)) = names.split_last() else {
            if entry.kind != EntryKind::Directory {
                return Err(ImportError::Name(entry.path.escape_ascii().to_string()));
            }
            self.dress(self.root.as_fd(), entry, &path)?;
            self.directories.push((path, times(entry)));
            return Ok(());
        };
        let parent = self.parent(above, &path)?;
        let place = (parent.as_fd(), *name);
        match &entry.kind {
            EntryKind::Directory => {
                let made = make_directory(place).map_err(failed)?;
                self.dress(made.as_fd(), entry, &path)?;
                self.directories.push((path, times(entry)));
                Ok(())
            }
            EntryKind::Link(target) => self.link(target, place, &path),
            EntryKind::Symlink(target) if is_bare(entry) => {
                clear(place).map_err(failed)?;
                fs::create_symlink(place.0, place.1, target).map_err(failed)?;
                let made = fs::open_name(place.0, place.1, OFlags::PATH).map_err(failed)?;
                fs::change_times(made.as_fd(), &times(entry)).map_err(failed)
            }
            _ => {
                clear(place).map_err(failed)?;
                let file = fs::create_file(place.0, place.1, 0o600).map_err(failed)?;
                match &entry.kind {
                    EntryKind::File => self.fill(file.as_fd(), entry, archive, &path)?,
                    EntryKind::Symlink(target) => {
                        write_whole(file.as_fd(), target, 0).map_err(failed)?;
                    }
                    _ => {}
                }
                self.dress(file.as_fd(), entry, &path)?;
                fs::change_times(file.as_fd(), &times(entry)).map_err(failed)
            }
        }
    }

    /// The directory an entry is in; what the archive does not mention of it is made.
    fn parent(&self, above: &[&[u8]], path: &[u8]) -> Result<OwnedFd, ImportError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match fs::open_beneath(self.root.as_fd(), &above.join(&b'/'), flags) {
            Err(Errno::NOENT) => {}
            Err(Errno::NOTDIR | Errno::LOOP) => {
                return Err(ImportError::Above(path.escape_ascii().to_string()));
            }
            opened => return opened.map_err(|cause| making(path, cause)),
        }
        // What is not there yet is made from the top down.
        let open = |from: BorrowedFd<'_>, name| fs::open_beneath(from, name, flags);
        let mut parent = open(self.root.as_fd(), b"").map_err(|cause| making(path, cause))?;
        for name in above {
            parent = match open(parent.as_fd(), name) {
                Err(Errno::NOENT) => Self::bear(parent.as_fd(), name),
                opened => opened,
            }
            .map_err(|cause| making(path, cause))?;
        }
        Ok(parent)
    }

    /// A directory that the archive has not told of (yet).
    fn bear(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
        fs::create_directory(parent, name, 0o700)?;
        let made = fs::open_name(parent, name, OFlags::PATH | OFlags::DIRECTORY)?;
        set_owner(made.as_fd(), &root_owner())?;
        Ok(made)
    }

    fn link(
        &self,
        target: &[u8],
        place: (BorrowedFd<'_>, &[u8]),
        path: &[u8],
    ) -> Result<(), ImportError> {
        let failed = |cause| making(path, cause);
        let nothing = || ImportError::Link {
            path: path.escape_ascii().to_string(),
            target: target.escape_ascii().to_string(),
        };
        let names = names(target)?;
        let (name, above) = names.split_last().ok_or_else(nothing)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let from = fs::open_beneath(self.root.as_fd(), &above.join(&b'/'), flags);
        let from = from.map_err(|_| nothing())?;
        let stat = fs::stat_name(from.as_fd(), name).map_err(|_| nothing())?;
        if Kind::from_mode(u32::from(stat.stx_mode)) == Some(Kind::Directory) {
            return Err(nothing());
        }
        let there = fs::stat_name(place.0, place.1).ok();
        if there.is_some_and(|there| there.stx_ino == stat.stx_ino) {
            return Ok(());
        }
        clear(place).map_err(failed)?;
        fs::link(from.as_fd(), name, place.0, place.1).map_err(failed)
    }

    /// Owner, mode and attributes.
    fn dress(&self, made: BorrowedFd<'_>, entry: &Entry, path: &[u8]) -> Result<(), ImportError> {
        let failed = |cause| making(path, cause);
        let (kind, rdev) = match entry.kind {
            EntryKind::Directory => (Kind::Directory, 0),
            EntryKind::Symlink(_) => (Kind::Symlink, 0),
            EntryKind::Fifo => (Kind::Fifo, 0),
            EntryKind::CharDevice(major, minor) => (Kind::CharDevice, pack_device(major, minor)),
            EntryKind::BlockDevice(major, minor) => (Kind::BlockDevice, pack_device(major, minor)),
            EntryKind::File | EntryKind::Link(_) => (Kind::File, 0),
        };
        let mode = kind.mode_bits() | if kind == Kind::Symlink { 0o777 } else { entry.mode };
        set_owner(made, &Owner { uid: entry.uid, gid: entry.gid, mode, rdev }).map_err(failed)?;
        let mut xattrs = entry.xattrs.clone();
        for (name, text) in ACL_NAMES.iter().zip(&entry.acls) {
            let Some(text) = text else { continue };
            let value = acl::to_xattr(text);
            let value = value.ok_or_else(|| ImportError::Acl(path.escape_ascii().to_string()))?;
            xattrs.retain(|(own, _)| own != name);
            // An access ACL that says no more than the mode is none, as on any file system.
            if *name != ACL_NAMES[0] || value.len() > acl::BARE_BYTES {
                xattrs.push((name.to_vec(), value));
            }
        }
        for (name, value) in &xattrs {
            let name = MarkSpace::User.to_host(name).map_err(failed)?;
            fs::set_xattr(made, &name, value, 0).map_err(failed)?;
        }
        Ok(())
    }

    fn fill(
        &mut self,
        file: BorrowedFd<'_>,
        entry: &Entry,
        archive: &mut Archive<&mut dyn Read>,
        path: &[u8],
    ) -> Result<(), ImportError> {
        let failed = |cause| making(path, cause);
        let whole = [(0, entry.size)];
        if entry.segments.is_some() {
            // Before the data: xfs takes room ahead of what makes a file longer, which would fill
            // the holes.
            fs::truncate(file, entry.size).map_err(failed)?;
        }
        let segments = entry.segments.as_deref().unwrap_or(&whole);
        let mut piece = vec![0; PIECE_BYTES];
        for (offset, size) in segments {
            let mut done = 0;
            while done < *size {
                let most = usize::try_from(size - done).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
                let bytes = archive.read(&mut piece[..most])?;
                if bytes == 0 {
                    return Err(failed(Errno::IO));
                }
                write_whole(file, &piece[..bytes], offset + done).map_err(failed)?;
                done += bytes as u64;
            }
            self.done.bytes += size;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), ImportError> {
        // The deepest may be made last, and making it changes those above.
        for (path, times) in self.directories.iter().rev() {
            let failed = |cause| making(path, cause);
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            match fs::open_beneath(self.root.as_fd(), path, flags) {
                // Something else took its place later in the archive.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(cause) => return Err(failed(cause)),
                Ok(dir) => fs::change_times(dir.as_fd(), times).map_err(failed)?,
            }
        }
        fs::sync_file_system(self.root.as_fd()).map_err(|cause| making(b".", cause))
    }
}

/// The names of an entry's path: none for the root. A leading `/` and `.` say nothing.
fn names(path: &[u8]) -> Result<Vec<&[u8]>, ImportError> {
    let steps = || path.split(|byte| *byte == b'/').filter(|step| !matches!(*step, b"" | b"."));
    if steps().count() > DEPTH_MAX {
        return Err(ImportError::Deep);
    }
    steps()
        .map(|step| Name::new(step).map(|_| step))
        .collect::<Result<_, _>>()
        .map_err(|_| ImportError::Name(path.escape_ascii().to_string()))
}

/// Whether a symbolic link can be one on disk: root's, and without attributes.
fn is_bare(entry: &Entry) -> bool {
    (entry.uid, entry.gid) == (0, 0) && entry.xattrs.is_empty()
}

fn root_owner() -> Owner {
    Owner { uid: 0, gid: 0, mode: Kind::Directory.mode_bits() | 0o755, rdev: 0 }
}

/// What an object is stands in a mark, also where the object is that already.
fn set_owner(made: BorrowedFd<'_>, owner: &Owner) -> Result<(), Errno> {
    let mark = MarkSpace::User.name(crate::layer::mark::Mark::Stat);
    fs::set_xattr(made, mark, &owner.to_mark(), 0)
}

/// A directory, which may be there already: its attributes are those told last.
fn make_directory((dir, name): (BorrowedFd<'_>, &[u8])) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    match fs::create_directory(dir, name, 0o700) {
        Err(Errno::EXIST) => match fs::open_name(dir, name, flags) {
            Err(Errno::NOTDIR | Errno::LOOP) => {
                fs::unlink(dir, name)?;
                fs::create_directory(dir, name, 0o700)?;
            }
            opened => return opened,
        },
        done => done?,
    }
    fs::open_name(dir, name, flags)
}

/// What an entry before this one had put at the name goes: the last one counts.
fn clear((dir, name): (BorrowedFd<'_>, &[u8])) -> Result<(), Errno> {
    remove_tree(dir, name)
}

fn times(entry: &Entry) -> fs::Timestamps {
    let spec = |time: Timestamp| fs::Timespec {
        tv_sec: time.seconds,
        tv_nsec: i64::from(time.nanoseconds),
    };
    fs::Timestamps {
        last_access: spec(entry.atime.unwrap_or(entry.mtime)),
        last_modification: spec(entry.mtime),
    }
}
