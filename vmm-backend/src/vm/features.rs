//! What the file system of a directory can do, tried out in a private directory in it.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, Mode, OFlags, RenameFlags, XattrFlags, fsetxattr, ioctl_ficlone, ioctl_getflags, open,
    openat, renameat_with, unlinkat,
};
use rustix::io::Errno;

use super::discard::ScratchDirectory;
use super::error::RunError;

/// What was tried, and whether it worked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// `user.*` extended attributes.
    pub user_xattrs: bool,
    /// `trusted.*` extended attributes, and the capability to use them.
    pub trusted_xattrs: bool,
    /// `RENAME_WHITEOUT`.
    pub rename_whiteout: bool,
    /// `RENAME_EXCHANGE`.
    pub rename_exchange: bool,
    /// `O_TMPFILE`.
    pub tmpfile: bool,
    /// `FICLONE`.
    pub reflink: bool,
    /// `FS_IOC_GETFLAGS`.
    pub inode_flags: bool,
}

impl Features {
    /// What an upper cannot do without and this file system lacks.
    pub fn lacking_for_upper(&self) -> Vec<&'static str> {
        let rows = [
            (self.user_xattrs || self.trusted_xattrs, "extended attributes"),
            (self.rename_whiteout, "RENAME_WHITEOUT"),
            (self.rename_exchange, "RENAME_EXCHANGE"),
        ];
        rows.into_iter().filter(|(has, _)| !has).map(|(_, name)| name).collect()
    }
}

/// Tries the features of the file system that holds `directory`, which must be writable.
pub fn probe(directory: &Path) -> Result<Features, RunError> {
    let scratch = ScratchDirectory::make(directory, "thinroot-probe-")?;
    let failed = || RunError::system(format!("probing {}", directory.display()));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = open(scratch.path(), flags, Mode::empty()).map_err(failed())?;
    let (a, b) =
        (file(dir.as_fd(), "a").map_err(failed())?, file(dir.as_fd(), "b").map_err(failed())?);
    let set = |name| fsetxattr(&a, name, b"1", XattrFlags::empty()).is_ok();
    Ok(Features {
        user_xattrs: set("user.thinroot"),
        trusted_xattrs: set("trusted.thinroot"),
        rename_exchange: renameat_with(&dir, "a", &dir, "b", RenameFlags::EXCHANGE).is_ok(),
        rename_whiteout: whiteout(dir.as_fd()),
        tmpfile: openat(&dir, ".", OFlags::TMPFILE | OFlags::RDWR, Mode::RUSR).is_ok(),
        reflink: ioctl_ficlone(&a, &b).is_ok(),
        inode_flags: ioctl_getflags(&a).is_ok(),
    })
}

fn file(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    openat(dir, name, OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)
}

fn whiteout(dir: BorrowedFd<'_>) -> bool {
    let works = renameat_with(dir, "a", dir, "c", RenameFlags::WHITEOUT).is_ok();
    if works && let Err(cause) = unlinkat(dir, "a", AtFlags::empty()) {
        log::debug!("whiteout of the probe: {cause}");
    }
    works
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upper_needs_are_named() {
        let none = Features {
            user_xattrs: false,
            trusted_xattrs: false,
            rename_whiteout: false,
            rename_exchange: true,
            tmpfile: false,
            reflink: false,
            inode_flags: false,
        };
        assert_eq!(none.lacking_for_upper(), ["extended attributes", "RENAME_WHITEOUT"]);
        assert!(
            Features { user_xattrs: true, rename_whiteout: true, ..none }
                .lacking_for_upper()
                .is_empty()
        );
    }

    #[test]
    fn probe_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let found = probe(directory.path()).unwrap();
        assert!(found.rename_exchange, "{found:?}");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
