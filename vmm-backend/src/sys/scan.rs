//! What a walk over a tree asks of each directory and object, with few system calls.
//!
//! Names here are single components relative to a directory's descriptor, never followed.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, Access, AtFlags, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::fs::{Statx, StatxTimestamp, Timespec, open_beneath};

/// Large enough that most directories are one `getdents64` and the end of it.
const LISTING_BYTES: usize = 256 << 10;

/// The longest list of names and the longest value an object may have
/// (limits.h: `XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const XATTR_BYTES_MAX: usize = 64 << 10;

/// The memory a walk reads into, used again and again.
#[derive(Debug)]
pub struct Scanner {
    listing: Vec<MaybeUninit<u8>>,
    xattr_names: Vec<u8>,
    xattr_value: Vec<u8>,
    path: Vec<u8>,
}

/// What the names of attributes begin with in which xfs keeps ACLs: what is stored there is an ACL, or
/// makes xfs call the object damaged.
pub const ACLS_OF_XFS: &[u8] = b"trusted.SGI_ACL_";

/// One extended attribute: name and value.
pub type Xattr = (Vec<u8>, Vec<u8>);

impl Default for Scanner {
    fn default() -> Self {
        Self {
            listing: vec![MaybeUninit::uninit(); LISTING_BYTES],
            xattr_names: vec![0; XATTR_BYTES_MAX],
            xattr_value: vec![0; XATTR_BYTES_MAX],
            path: Vec::new(),
        }
    }
}

impl Scanner {
    /// Hands each name in `dir` to `each`, in the file system's order, without `.` and `..`.
    pub fn names(&mut self, dir: BorrowedFd<'_>, mut each: impl FnMut(&[u8])) -> Result<(), Errno> {
        let mut rows = fs::RawDir::new(dir, &mut self.listing);
        while let Some(row) = rows.next() {
            let row = row?;
            let name = row.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                each(name);
            }
        }
        Ok(())
    }

    /// All extended attributes of `name` in `dir` that we may see, in the file system's order; of
    /// `dir` itself for an empty name. The object is not opened.
    pub fn xattrs(&mut self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<Xattr>, Errno> {
        // No call takes a directory and a name before Linux 6.13 (listxattrat), hence /proc.
        self.path.clear();
        self.path.extend_from_slice(b"/proc/self/fd/");
        self.path.extend_from_slice(dir.as_raw_fd().to_string().as_bytes());
        self.path.push(b'/');
        self.path.extend_from_slice(if name.is_empty() { b"." } else { name });
        let path = self.path.as_slice();
        let bytes = match fs::llistxattr(path, &mut self.xattr_names[..]) {
            Err(Errno::NOTSUP) => 0,
            listed => listed?,
        };
        let mut names = self.xattr_names[..bytes].to_vec();
        keep_shown(path, &mut names);
        let mut found = Vec::new();
        for name in names.split(|byte| *byte == 0).filter(|n| !n.is_empty()) {
            match fs::lgetxattr(path, name, &mut self.xattr_value[..]) {
                Ok(bytes) => found.push((name.to_vec(), self.xattr_value[..bytes].to_vec())),
                Err(Errno::NODATA) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }
}

/// Takes out of a list of names those in which xfs keeps ACLs: it lists them to root beside the ACLs,
/// and they mean nothing, or something else, on any other disk.
fn keep_shown(path: impl rustix::path::Arg + Copy, names: &mut Vec<u8>) {
    // linux/magic.h: XFS_SUPER_MAGIC.
    let is_xfs = || fs::statfs(path).is_ok_and(|found| found.f_type == 0x5846_5342);
    let of_xfs = |name: &[u8]| name.starts_with(ACLS_OF_XFS);
    if names.split(|byte| *byte == 0).any(of_xfs) && is_xfs() {
        let kept = names.split_inclusive(|byte| *byte == 0).filter(|name| !of_xfs(name));
        *names = kept.collect::<Vec<_>>().concat();
    }
}

/// Opens a directory for reading, below `root`, without touching its access time where we may.
pub fn open_directory(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    match open_beneath(root, path, flags | OFlags::NOATIME) {
        Err(Errno::PERM) => open_beneath(root, path, flags),
        opened => opened,
    }
}

/// `statx` of `name` in `dir`, of `dir` itself for an empty name; `stx_mnt_id` tells mounts apart.
pub fn stat_on_mount(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Statx, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW
        | AtFlags::EMPTY_PATH
        | AtFlags::NO_AUTOMOUNT
        | AtFlags::STATX_DONT_SYNC;
    let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID;
    fs::statx(dir, name, flags, mask)
}

/// The target of the symbolic link `name` in `dir`.
pub fn read_link_name(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>, Errno> {
    Ok(fs::readlinkat(dir, name, Vec::with_capacity(256))?.into_bytes())
}

/// Whether we may read `name` in `dir`, and pass through it if it is a directory: by mode, owner,
/// ACL and user namespace. An empty name is `dir` itself.
pub fn is_readable(dir: BorrowedFd<'_>, name: &[u8], is_directory: bool) -> Result<bool, Errno> {
    let flags = AtFlags::EACCESS | AtFlags::SYMLINK_NOFOLLOW;
    let name = if name.is_empty() { b"." } else { name };
    let access = if is_directory { Access::READ_OK | Access::EXEC_OK } else { Access::READ_OK };
    match fs::accessat(dir, name, access, flags) {
        Ok(()) => Ok(true),
        Err(Errno::ACCESS | Errno::PERM) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Opens a path of the host's own choosing as a directory to resolve beneath.
pub fn open_root(path: &std::path::Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::open(path, flags, fs::Mode::empty())
}

/// The clock that file times are taken from (`CLOCK_REALTIME_COARSE`).
pub fn file_clock() -> Timespec {
    clock_gettime(ClockId::RealtimeCoarse)
}

/// Whether something stamped `changed` could be changed again without its stamp showing it: the
/// clock has not gone 20 ms beyond it (its tick is at most 10 ms). Stamps from the future do not
/// count: they say nothing about this clock.
pub fn may_change_unseen(changed: StatxTimestamp) -> bool {
    const TWENTY_MS: i128 = 20_000_000;
    let now = file_clock();
    let nanoseconds =
        |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
    let age = nanoseconds(now.tv_sec, now.tv_nsec)
        - nanoseconds(changed.tv_sec, i64::from(changed.tv_nsec));
    (-TWENTY_MS..TWENTY_MS).contains(&age)
}

/// A second descriptor for the same open file.
pub fn duplicate(fd: &OwnedFd) -> Result<OwnedFd, Errno> {
    rustix::io::fcntl_dupfd_cloexec(fd.as_fd(), 0)
}
