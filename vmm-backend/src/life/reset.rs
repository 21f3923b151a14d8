//! `thinroot reset`: an upper is empty again at once, however much was in it.
//!
//! What was in it is exchanged for an empty directory and deleted behind the caller's back.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, RenameFlags, Uid, chmodat, chownat, fstat, mkdirat, open, openat,
    renameat_with,
};
use rustix::io::Errno;
use thiserror::Error;

use crate::layer::lock::{LockError, UpperLock};
use crate::layer::work::remove_tree;
use crate::sys::fork::{fork, release_standard_streams};
use crate::sys::fs;

/// How many random hexadecimal digits end the name of what is being deleted.
const SUFFIX_DIGITS: usize = 16;

/// Why an upper was not reset. Nothing has changed then, but for [`ResetError::Delete`].
#[derive(Debug, Error)]
pub enum ResetError {
    /// A path that names no upper.
    #[error("--upper {path}: {reason}")]
    NoUpper {
        /// What was given.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Somebody uses it.
    #[error("upper {path} is {cause}; stop it first")]
    Locked {
        /// The upper.
        path: PathBuf,
        /// By whom.
        cause: LockError,
    },
    /// It could not be moved aside.
    #[error("cannot replace {path} by an empty directory: {cause}")]
    Replace {
        /// Upper or work directory.
        path: PathBuf,
        /// Why not.
        cause: Errno,
    },
    /// It was moved aside but is still there.
    #[error("{path} is empty again, but what was in it is not deleted yet: {cause}; reset again")]
    Delete {
        /// The upper.
        path: PathBuf,
        /// Why not.
        cause: std::io::Error,
    },
}

/// Empties `upper` and, where it exists, `work`; returns when that is so. What was in them is
/// deleted by a process that stays behind, or before the return with `wait`.
///
/// Both keep owner and mode, and lose everything else. For a process with one thread.
///
/// Errors: as [`ResetError`] says.
pub fn reset(upper: &Path, work: &Path, wait: bool) -> Result<(), ResetError> {
    let upper = Place::find(upper)?.ok_or_else(|| ResetError::NoUpper {
        path: upper.to_owned(),
        reason: "does not exist; expected the directory given to serve or run as --upper".into(),
    })?;
    let work = Place::find(work)?;
    let lock = upper.lock(work.as_ref())?;
    let mut leftovers = vec![upper.replace()?];
    // A work directory without its upper is swept at the next start, an upper without its work
    // directory would lose its index: so the upper goes first.
    if let Some(work) = work {
        leftovers.push(work.replace()?);
    }
    drop(lock);
    let deleted = if wait {
        leftovers.iter().try_for_each(Leftovers::delete).map_err(Into::into)
    } else {
        fork(|| delete_behind(&leftovers)).map(drop)
    };
    deleted.map_err(|cause| ResetError::Delete { path: upper.path.clone(), cause })
}

fn delete_behind(leftovers: &[Leftovers]) {
    // A reader of our output shall not wait for us.
    if release_standard_streams().is_ok() {
        // Nobody is left to hear of a failure; the next reset tries again.
        for leftovers in leftovers {
            leftovers.delete().ok();
        }
    }
}

/// A directory with the directory it is in.
struct Place {
    path: PathBuf,
    parent: OwnedFd,
    name: OsString,
    directory: OwnedFd,
}

impl Place {
    /// Opens the directory; `None` if it does not exist.
    fn find(path: &Path) -> Result<Option<Self>, ResetError> {
        let wrong = |reason: String| ResetError::NoUpper { path: path.to_owned(), reason };
        let found = match path.canonicalize() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            found => found.map_err(|error| wrong(error.to_string()))?,
        };
        let (Some(parent), Some(name)) = (found.parent(), found.file_name()) else {
            return Err(wrong("is the root directory".into()));
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = open(parent, flags, Mode::empty());
        let parent = parent.map_err(|cause| wrong(format!("its directory: {cause}")))?;
        let directory = openat(&parent, name, flags | OFlags::NOFOLLOW, Mode::empty());
        let directory = directory.map_err(|cause| wrong(cause.to_string()))?;
        Ok(Some(Self { path: path.to_owned(), parent, name: name.to_owned(), directory }))
    }

    fn lock(&self, work: Option<&Self>) -> Result<UpperLock, ResetError> {
        let work = work.map(|work| work.directory.as_fd());
        let lock = UpperLock::take(self.directory.as_fd(), work);
        lock.map_err(|cause| ResetError::Locked { path: self.path.clone(), cause })
    }

    /// Exchanges the directory for an empty one.
    fn replace(&self) -> Result<Leftovers, ResetError> {
        let replace = || {
            let name = self.aside(&random_suffix()?);
            let (parent, name) = (self.parent.as_fd(), name.as_os_str());
            mkdirat(parent, name, Mode::RWXU)?;
            let exchanged = take_looks(parent, name, self.directory.as_fd()).and_then(|()| {
                renameat_with(parent, name, parent, &self.name, RenameFlags::EXCHANGE)
            });
            if exchanged.is_err() {
                fs::remove_directory(parent, name.as_bytes())?;
            }
            exchanged
        };
        let parent = self.parent.try_clone();
        match (replace(), parent) {
            (Ok(()), Ok(parent)) => Ok(Leftovers { parent, prefix: self.aside("") }),
            (Err(cause), _) => Err(ResetError::Replace { path: self.path.clone(), cause }),
            (_, Err(cause)) => Err(ResetError::Delete { path: self.path.clone(), cause }),
        }
    }

    fn aside(&self, suffix: &str) -> OsString {
        let mut name = OsString::from(".");
        name.push(&self.name);
        name.push(".reset-");
        name.push(suffix);
        name
    }
}

/// Gives the new directory owner and mode of the old one.
fn take_looks(parent: BorrowedFd<'_>, name: &OsStr, old: BorrowedFd<'_>) -> Result<(), Errno> {
    let stat = fstat(old)?;
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    chmodat(parent, name, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())
}

fn random_suffix() -> Result<String, Errno> {
    let mut bytes = [0; SUFFIX_DIGITS / 2];
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What resets of one directory have moved aside: this one's, and earlier ones' that were not
/// deleted to the end.
struct Leftovers {
    parent: OwnedFd,
    prefix: OsString,
}

impl Leftovers {
    fn delete(&self) -> Result<(), Errno> {
        for row in fs::list(self.parent.as_fd())? {
            if self.is_one(&row.name) {
                remove_tree(self.parent.as_fd(), &row.name)?;
            }
        }
        Ok(())
    }

    fn is_one(&self, name: &[u8]) -> bool {
        name.strip_prefix(self.prefix.as_bytes()).is_some_and(|suffix| {
            suffix.len() == SUFFIX_DIGITS && suffix.iter().all(u8::is_ascii_hexdigit)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    fn names(directory: &Path) -> Vec<OsString> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|row| row.unwrap().file_name()).collect();
        names.sort();
        names
    }

    #[test]
    fn upper_is_empty_again_and_nothing_else_is_touched() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        fs::create_dir_all(path("up/closed/inner")).unwrap();
        fs::create_dir(path(".up.work")).unwrap();
        fs::write(path("kept"), "kept").unwrap();
        fs::create_dir(path(".up.reset-mine")).unwrap();
        // An earlier reset was killed.
        fs::create_dir_all(path(".up.reset-0123456789abcdef/a")).unwrap();
        symlink("../kept", path("up/link")).unwrap();
        fs::set_permissions(path("up/closed"), fs::Permissions::from_mode(0o0)).unwrap();
        fs::set_permissions(path("up"), fs::Permissions::from_mode(0o1750)).unwrap();

        reset(&path("up"), &path(".up.work"), true).unwrap();
        assert_eq!(names(place.path()), [".up.reset-mine", ".up.work", "kept", "up"]);
        assert_eq!(names(&path("up")), [""; 0]);
        assert_eq!(names(&path(".up.work")), [""; 0]);
        assert_eq!(fs::metadata(path("up")).unwrap().mode() & 0o7777, 0o1750);
        assert_eq!(fs::read(path("kept")).unwrap(), b"kept");
    }

    #[test]
    fn very_deep_tree_is_deleted() {
        let place = tempfile::tempdir().unwrap();
        let upper = place.path().join("up");
        fs::create_dir(&upper).unwrap();
        let mut directory: OwnedFd = File::open(&upper).unwrap().into();
        for _ in 0..4096 {
            mkdirat(&directory, "d", Mode::RWXU).unwrap();
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            directory = openat(&directory, "d", flags, Mode::empty()).unwrap();
        }
        reset(&upper, &place.path().join("none"), true).unwrap();
        assert_eq!(names(place.path()), ["up"]);
    }

    /// A second reset finds what the first is still deleting.
    #[test]
    fn two_who_delete_one_tree_leave_nothing() {
        let place = tempfile::tempdir().unwrap();
        for round in 0..4 {
            let tree = place.path().join("tree");
            for directory in 0..20 {
                let deep: PathBuf = (0..8).map(|depth| format!("{directory}-{depth}")).collect();
                fs::create_dir_all(tree.join(&deep)).unwrap();
                fs::write(tree.join(deep).join("file"), "").unwrap();
            }
            let parent = File::open(place.path()).unwrap();
            let delete = || remove_tree(parent.as_fd(), b"tree");
            let done = std::thread::scope(|scope| {
                let other = scope.spawn(delete);
                [delete(), other.join().unwrap()]
            });
            assert_eq!((done, names(place.path())), ([Ok(()); 2], vec![]), "round {round}");
        }
    }

    #[test]
    fn upper_in_use_and_what_is_no_upper_are_refused_untouched() {
        let place = tempfile::tempdir().unwrap();
        let (upper, work) = (place.path().join("up"), place.path().join("work"));
        fs::create_dir_all(upper.join("a")).unwrap();
        fs::create_dir(&work).unwrap();
        let open = |path| -> OwnedFd { File::open(path).unwrap().into() };
        let (held, held_work) = (open(&upper), open(&work));
        let lock = UpperLock::take(held.as_fd(), Some(held_work.as_fd())).unwrap();
        let error = reset(&upper, &work, true).unwrap_err().to_string();
        let pid = std::process::id();
        assert!(error.ends_with(&format!("is in use by process {pid}; stop it first")), "{error}");
        assert_eq!(names(&upper), ["a"]);
        drop(lock);

        let missing = reset(&place.path().join("none"), &work, true).unwrap_err();
        assert!(missing.to_string().contains("does not exist"), "{missing}");
        fs::write(place.path().join("file"), "").unwrap();
        assert!(reset(&place.path().join("file"), &work, true).is_err());
        assert!(reset(Path::new("/"), &work, true).is_err());
    }
}
