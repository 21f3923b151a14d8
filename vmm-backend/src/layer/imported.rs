//! A base that an ordinary user can read whole, as `thinroot import` makes it: plain files and
//! directories of the user's own, and marks that say what each of them is.
//!
//! The form is the one an unprivileged upper has (docs/ON-DISK.md). The root carries a mark of its
//! own, without which such marks are ordinary attributes of an ordinary tree.

use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::OFlags;

use super::data::read_up_to;
use super::mark::{Mark, MarkSpace};
use super::owner::{self, Owner, unpack_device};
use crate::filesystem::{Errno, Kind};
use crate::sys::fs::{self, Statx};
use crate::sys::scan::Xattr;

/// On the root of an imported base.
pub const MARKER: &[u8] = b"user.overlay.thinroot.import";

/// The value of [`MARKER`] that we write and read.
pub const FORM: &[u8] = b"1";

/// limits.h: `PATH_MAX` bounds a target.
const TARGET_BYTES_MAX: usize = 4096;

/// Whether the directory is the root of an imported base.
///
/// Errors: `EOPNOTSUPP` for a form of a later version (logged), else the call's own.
pub fn is_imported(root: BorrowedFd<'_>) -> Result<bool, Errno> {
    match fs::xattr(root, MARKER)?.as_deref() {
        None => Ok(false),
        Some(FORM) => Ok(true),
        Some(form) => {
            log::error!(
                "lower: imported in form {}, which this version does not read; import it again",
                form.escape_ascii()
            );
            Err(Errno::OPNOTSUPP)
        }
    }
}

/// What an object of an imported base is, but for its data.
#[derive(Debug)]
pub struct Shown {
    /// Its attributes by the guest's names.
    pub xattrs: Vec<Xattr>,
    /// The target of a symbolic link that is a file on disk.
    pub target: Option<Vec<u8>>,
}

/// Gives `stat` what the marks among `host` say, and reads the target of a link.
///
/// Errors: `EIO` for an owner that cannot be read, else the calls' own.
pub fn show(
    dir: BorrowedFd<'_>,
    name: &[u8],
    stat: &mut Statx,
    host: Vec<Xattr>,
) -> Result<Shown, Errno> {
    let own = MarkSpace::User.name(Mark::Stat);
    let is_file = Kind::from_mode(u32::from(stat.stx_mode)) == Some(Kind::File);
    let mark = host.iter().find(|(name, _)| name == own).map(|(_, value)| value.as_slice());
    wear(stat, mark)?;
    let is_link = Kind::from_mode(u32::from(stat.stx_mode)) == Some(Kind::Symlink);
    let target = if is_link && is_file { Some(read_target(dir, name)?) } else { None };
    let guests = host.into_iter().filter_map(|(name, value)| {
        MarkSpace::User.to_guest(&name).map(|name| (name.into_owned(), value))
    });
    Ok(Shown { xattrs: guests.collect(), target })
}

/// The same for a directory whose attributes are known already.
pub fn show_directory(dir: BorrowedFd<'_>, stat: &mut Statx) -> Result<(), Errno> {
    wear(stat, fs::xattr(dir, MarkSpace::User.name(Mark::Stat))?.as_deref())
}

/// What bears no mark is root's: the kernel allows none on a symbolic link.
fn wear(stat: &mut Statx, mark: Option<&[u8]>) -> Result<(), Errno> {
    let Some(mark) = mark else {
        (stat.stx_uid, stat.stx_gid) = (0, 0);
        return Ok(());
    };
    let Some(owner) = Owner::from_mark(mark).filter(|owner| owner::fits(owner, stat)) else {
        log::error!("lower: an owner mark cannot be read: {}", mark.escape_ascii());
        return Err(Errno::IO);
    };
    stat.stx_mode = u16::try_from(owner.mode).map_err(|_| Errno::IO)?;
    (stat.stx_uid, stat.stx_gid) = (owner.uid, owner.gid);
    (stat.stx_rdev_major, stat.stx_rdev_minor) = unpack_device(owner.rdev);
    Ok(())
}

fn read_target(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>, Errno> {
    let file = fs::open_name(dir, name, OFlags::RDONLY | OFlags::NONBLOCK)?;
    let mut target = vec![0; TARGET_BYTES_MAX];
    let bytes = read_up_to(file.as_fd(), &mut target, 0)?;
    target.truncate(bytes);
    Ok(target)
}
