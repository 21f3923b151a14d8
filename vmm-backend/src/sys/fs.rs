//! File-system calls: rustix behind the fault hook, and the ways to act on an `O_PATH` descriptor.
//!
//! Changing calls pass [`super::fault::point`]; looking ones do not.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags, XattrFlags};
pub use rustix::fs::{
    FallocateFlags, Gid, RenameFlags, StatVfs, Statx, StatxTimestamp, Timespec, Timestamps, Uid,
};
use rustix::io::Errno;

use super::fault::point;

/// Beneath the directory, following nothing, on one mount: how the host resolves guest paths.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// limits.h: `PATH_MAX` counts the NUL.
const PATH_BYTES_MAX: usize = 4095;

/// limits.h: `XATTR_SIZE_MAX` and `XATTR_LIST_MAX`. Rustix gives no size for an empty buffer.
const XATTR_BYTES_MAX: usize = 64 << 10;

static PROC_SELF_FD: OnceLock<OwnedFd> = OnceLock::new();
static PROC_IS_CWD: AtomicBool = AtomicBool::new(false);

/// A descriptor of `/proc/self/fd`, opened at first use and kept: it outlives a `pivot_root`.
///
/// A forked child must not use its parent's: it names the parent's descriptors.
pub fn proc_self_fd() -> Result<BorrowedFd<'static>, Errno> {
    if let Some(fd) = PROC_SELF_FD.get() {
        return Ok(fd.as_fd());
    }
    let fd = fs::open(
        "/proc/self/fd",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    Ok(PROC_SELF_FD.get_or_init(|| fd).as_fd())
}

/// Whether a forked child would find its parent's descriptors behind [`proc_self_fd`].
pub(super) fn is_proc_open() -> bool {
    PROC_SELF_FD.get().is_some()
}

/// Makes `/proc/self/fd` the working directory, so that calls which take only a path (the xattr
/// calls) reach an `O_PATH` descriptor also where `/proc` is out of sight.
pub fn work_from_proc() -> Result<(), Errno> {
    rustix::process::fchdir(proc_self_fd()?)?;
    PROC_IS_CWD.store(true, Ordering::Release);
    Ok(())
}

/// The path of a descriptor for calls that take nothing else.
fn path_of(fd: BorrowedFd<'_>) -> String {
    if PROC_IS_CWD.load(Ordering::Acquire) {
        fd.as_raw_fd().to_string()
    } else {
        format!("/proc/self/fd/{}", fd.as_raw_fd())
    }
}

/// A descriptor, by what is known of it.
#[derive(Clone, Copy, Debug)]
pub enum Grip<'a> {
    /// `O_PATH` or not: most calls have to look up what it names.
    Any(BorrowedFd<'a>),
    /// Opened for reading or writing: the calls that take such a descriptor look nothing up.
    Opened(BorrowedFd<'a>),
}

impl<'a> Grip<'a> {
    /// The descriptor itself.
    pub const fn descriptor(self) -> BorrowedFd<'a> {
        match self {
            Self::Any(fd) | Self::Opened(fd) => fd,
        }
    }
}

impl<'a> From<BorrowedFd<'a>> for Grip<'a> {
    fn from(fd: BorrowedFd<'a>) -> Self {
        Self::Any(fd)
    }
}

/// `openat2` of `path` (components joined by `/`; empty: `dir` itself), beneath `dir`, whatever
/// its length. `O_CLOEXEC|O_NOFOLLOW` are added.
///
/// Errors: `ELOOP` at a symbolic link, `EXDEV` at a mount point, else openat2(2)'s.
pub fn open_beneath(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    if path.is_empty() {
        return open_step(dir, b".", flags);
    }
    let mut rest = path;
    let mut walked: Option<OwnedFd> = None;
    while rest.len() > PATH_BYTES_MAX {
        let cut =
            rest[..PATH_BYTES_MAX].iter().rposition(|b| *b == b'/').ok_or(Errno::NAMETOOLONG)?;
        let from = walked.as_ref().map_or(dir, AsFd::as_fd);
        let next = open_step(from, &rest[..cut], OFlags::PATH | OFlags::CLOEXEC)?;
        walked = Some(next);
        rest = &rest[cut + 1..];
    }
    open_step(walked.as_ref().map_or(dir, AsFd::as_fd), rest, flags)
}

fn open_step(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    loop {
        // openat2(2): EAGAIN when a rename elsewhere made the check for ".." unsure.
        match fs::openat2(dir, path, flags, Mode::empty(), BENEATH) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            done => return done,
        }
    }
}

/// Opens one component without following it.
pub fn open_name(dir: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    fs::openat(dir, name, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
}

/// Opens again what `fd` names. Only for what `fstat` has shown to be a regular file or a
/// directory: a FIFO would block, a device would wake its driver.
pub fn reopen(fd: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
    let name = fd.as_raw_fd().to_string();
    fs::openat(proc_self_fd()?, name, flags | OFlags::CLOEXEC, Mode::empty())
}

/// `statx` of the object a descriptor names.
pub fn stat(fd: BorrowedFd<'_>) -> Result<Statx, Errno> {
    fs::statx(fd, "", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, stat_mask())
}

/// `statx` of one component, not followed.
pub fn stat_name(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Statx, Errno> {
    fs::statx(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC, stat_mask())
}

fn stat_mask() -> fs::StatxFlags {
    fs::StatxFlags::BASIC_STATS | fs::StatxFlags::BTIME
}

/// When what `fd` names was read and changed last, to be given to [`change_times`].
pub fn times(fd: BorrowedFd<'_>) -> Result<Timestamps, Errno> {
    let shown = stat(fd)?;
    let spec = |time: fs::StatxTimestamp| Timespec {
        tv_sec: time.tv_sec,
        tv_nsec: i64::from(time.tv_nsec),
    };
    Ok(Timestamps { last_access: spec(shown.stx_atime), last_modification: spec(shown.stx_mtime) })
}

/// Creates an empty regular file for reading and writing, which must not be there yet.
pub fn create_file(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> Result<OwnedFd, Errno> {
    point()?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    fs::openat(dir, name, flags, Mode::from_raw_mode(mode))
}

/// `O_TMPFILE` in `dir`, for reading and writing.
pub fn create_unnamed(dir: BorrowedFd<'_>, mode: u32) -> Result<OwnedFd, Errno> {
    point()?;
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    fs::openat(dir, ".", flags, Mode::from_raw_mode(mode))
}

/// `mkdirat`.
pub fn create_directory(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> Result<(), Errno> {
    point()?;
    fs::mkdirat(dir, name, Mode::from_raw_mode(mode))
}

/// `mknodat`; `mode` carries the `S_IFMT` bits.
pub fn create_special(
    dir: BorrowedFd<'_>,
    name: &[u8],
    mode: u32,
    device: (u32, u32),
) -> Result<(), Errno> {
    point()?;
    let kind = FileType::from_raw_mode(mode);
    fs::mknodat(dir, name, kind, Mode::from_raw_mode(mode), fs::makedev(device.0, device.1))
}

/// `symlinkat`.
pub fn create_symlink(dir: BorrowedFd<'_>, name: &[u8], target: &[u8]) -> Result<(), Errno> {
    point()?;
    fs::symlinkat(target, dir, name)
}

/// `linkat` from one name to another.
pub fn link(
    from: BorrowedFd<'_>,
    name: &[u8],
    to: BorrowedFd<'_>,
    new_name: &[u8],
) -> Result<(), Errno> {
    point()?;
    fs::linkat(from, name, to, new_name, AtFlags::empty())
}

/// `linkat` of what a descriptor names, unnamed files included.
pub fn link_descriptor(
    fd: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    new_name: &[u8],
) -> Result<(), Errno> {
    point()?;
    let name = fd.as_raw_fd().to_string();
    fs::linkat(proc_self_fd()?, name, to, new_name, AtFlags::SYMLINK_FOLLOW)
}

/// `unlinkat`.
pub fn unlink(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    point()?;
    fs::unlinkat(dir, name, AtFlags::empty())
}

/// `unlinkat(AT_REMOVEDIR)`.
pub fn remove_directory(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    point()?;
    fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}

/// `renameat2`.
pub fn rename(
    from: (BorrowedFd<'_>, &[u8]),
    to: (BorrowedFd<'_>, &[u8]),
    flags: RenameFlags,
) -> Result<(), Errno> {
    point()?;
    fs::renameat_with(from.0, from.1, to.0, to.1, flags)
}

/// `readlinkat` of the symbolic link a descriptor names.
pub fn read_link(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    fs::readlinkat(fd, "", Vec::with_capacity(256)).map(CString::into_bytes)
}

/// `fchownat`; works on `O_PATH` descriptors of anything.
pub fn change_owner(fd: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
    point()?;
    let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
    fs::chownat(fd, "", uid, gid, AtFlags::EMPTY_PATH)
}

/// `chmod` of what a descriptor names; not for symbolic links.
pub fn change_mode<'a>(object: impl Into<Grip<'a>>, mode: u32) -> Result<(), Errno> {
    point()?;
    let mode = Mode::from_raw_mode(mode);
    match object.into() {
        Grip::Opened(fd) => fs::fchmod(fd, mode),
        Grip::Any(fd) => {
            fs::chmodat(proc_self_fd()?, fd.as_raw_fd().to_string(), mode, AtFlags::empty())
        }
    }
}

/// `utimensat` of what a descriptor names, symbolic links included.
pub fn change_times<'a>(object: impl Into<Grip<'a>>, times: &Timestamps) -> Result<(), Errno> {
    point()?;
    match object.into() {
        Grip::Opened(fd) => fs::futimens(fd, times),
        Grip::Any(fd) => match fs::utimensat(fd, "", times, AtFlags::EMPTY_PATH) {
            // Before Linux 5.8 it knows no empty path.
            Err(Errno::INVAL) => {
                let name = fd.as_raw_fd().to_string();
                fs::utimensat(proc_self_fd()?, name, times, AtFlags::empty())
            }
            done => done,
        },
    }
}

/// `ftruncate`.
pub fn truncate(fd: BorrowedFd<'_>, size: u64) -> Result<(), Errno> {
    point()?;
    fs::ftruncate(fd, size)
}

/// `fallocate`.
pub fn allocate(
    fd: BorrowedFd<'_>,
    flags: FallocateFlags,
    offset: u64,
    size: u64,
) -> Result<(), Errno> {
    point()?;
    fs::fallocate(fd, flags, offset, size)
}

/// `pwrite`.
pub fn write_at(fd: BorrowedFd<'_>, bytes: &[u8], offset: u64) -> Result<usize, Errno> {
    point()?;
    rustix::io::pwrite(fd, bytes, offset)
}

/// `copy_file_range` with both offsets given. Gives the bytes copied, 0 at the end of the source.
pub fn copy_range(
    from: (BorrowedFd<'_>, u64),
    to: (BorrowedFd<'_>, u64),
    size: usize,
) -> Result<usize, Errno> {
    point()?;
    let (mut from_offset, mut to_offset) = (from.1, to.1);
    fs::copy_file_range(from.0, Some(&mut from_offset), to.0, Some(&mut to_offset), size)
}

/// `ioctl(FICLONE)`: the whole of `from` becomes the contents of `to`, sharing blocks.
pub fn clone_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    point()?;
    fs::ioctl_ficlone(to, from)
}

/// `lseek(SEEK_DATA)`. Errors: `ENXIO` past the last data.
pub fn seek_data(fd: BorrowedFd<'_>, offset: u64) -> Result<u64, Errno> {
    fs::seek(fd, fs::SeekFrom::Data(offset))
}

/// `lseek(SEEK_HOLE)`. Errors: `ENXIO` past the end.
pub fn seek_hole(fd: BorrowedFd<'_>, offset: u64) -> Result<u64, Errno> {
    fs::seek(fd, fs::SeekFrom::Hole(offset))
}

/// `fsync`, or `fdatasync` with `data_only`.
pub fn sync(fd: BorrowedFd<'_>, data_only: bool) -> Result<(), Errno> {
    point()?;
    if data_only { fs::fdatasync(fd) } else { fs::fsync(fd) }
}

/// `syncfs` of the file system that holds `fd`.
pub fn sync_file_system(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    point()?;
    fs::syncfs(fd)
}

/// `fstatvfs`.
pub fn statistics(fd: BorrowedFd<'_>) -> Result<StatVfs, Errno> {
    fs::fstatvfs(fd)
}

/// `FS_IOC_GETFLAGS` of an opened file or directory.
pub fn inode_flags(fd: BorrowedFd<'_>) -> Result<u32, Errno> {
    Ok(fs::ioctl_getflags(fd)?.bits())
}

/// The value of an extended attribute of what `fd` names, `O_PATH` or not; `None` where it is
/// absent or the file system has no such attributes.
pub fn xattr(fd: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
    let path = path_of(fd);
    // Marks and most attributes are short: one small buffer then.
    let mut value = vec![0; 256];
    loop {
        match fs::getxattr(path.as_str(), name, &mut value) {
            Ok(bytes) => {
                value.truncate(bytes);
                return Ok(Some(value));
            }
            Err(Errno::RANGE) if value.len() < XATTR_BYTES_MAX => value = vec![0; XATTR_BYTES_MAX],
            Err(Errno::NODATA | Errno::NOTSUP) => return Ok(None),
            Err(e) => return Err(e),
        }
    }
}

/// The names of all extended attributes of what `fd` names, each with a NUL behind it.
pub fn list_xattrs(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let path = path_of(fd);
    let mut names = vec![0; 1024];
    loop {
        match fs::listxattr(path.as_str(), &mut names) {
            Ok(bytes) => {
                names.truncate(bytes);
                return Ok(names);
            }
            Err(Errno::RANGE) if names.len() < XATTR_BYTES_MAX => names = vec![0; XATTR_BYTES_MAX],
            Err(Errno::NOTSUP) => return Ok(Vec::new()),
            Err(e) => return Err(e),
        }
    }
}

/// Whether an fsync of one file brings to the disk all changes of names, owners and attributes that were
/// made before it, whatever they were of: one journal for all, in its order. So do ext4 and xfs; tmpfs has
/// no disk.
pub fn orders_changes(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    // linux/magic.h: EXT4_SUPER_MAGIC (and ext2's and ext3's), XFS_SUPER_MAGIC, TMPFS_MAGIC.
    const ORDERED: [i64; 3] = [0xef53, 0x5846_5342, 0x0102_1994];
    let kind = fs::fstatfs(fd)?.f_type;
    Ok(ORDERED.contains(&kind))
}

/// Sets an extended attribute of what a descriptor names. `flags`: `XATTR_CREATE`, `XATTR_REPLACE`
/// or 0.
pub fn set_xattr<'a>(
    object: impl Into<Grip<'a>>,
    name: &[u8],
    value: &[u8],
    flags: u32,
) -> Result<(), Errno> {
    point()?;
    let flags = XattrFlags::from_bits_retain(flags);
    match object.into() {
        Grip::Opened(fd) => fs::fsetxattr(fd, name, value, flags),
        Grip::Any(fd) => fs::setxattr(path_of(fd).as_str(), name, value, flags),
    }
}

/// Removes an extended attribute of what `fd` names. Errors: `ENODATA`.
pub fn remove_xattr(fd: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    point()?;
    fs::removexattr(path_of(fd).as_str(), name)
}

/// One row of a host directory: its name, `DT_*` (0: unknown) and inode number.
#[derive(Debug)]
pub struct Row {
    /// The name; never `.` or `..`.
    pub name: Vec<u8>,
    /// dirent.h: `DT_*`.
    pub kind: u8,
    /// `d_ino`.
    pub ino: u64,
}

/// Lists the directory `fd` names, `O_PATH` or not, in the file system's order. Its time of access
/// stays, where it is ours to say so.
pub fn list(fd: BorrowedFd<'_>) -> Result<Vec<Row>, Errno> {
    const READ: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);
    let dir = match open_name(fd, b".", READ | OFlags::NOATIME) {
        Err(Errno::PERM) => open_name(fd, b".", READ)?,
        opened => opened?,
    };
    let mut buffer = Vec::with_capacity(64 << 10);
    let mut iterator = fs::RawDir::new(dir, buffer.spare_capacity_mut());
    let mut rows = Vec::new();
    while let Some(entry) = iterator.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            rows.push(Row {
                name: name.to_vec(),
                kind: dirent_type(entry.file_type()),
                ino: entry.ino(),
            });
        }
    }
    Ok(rows)
}

/// Reads a little of a directory, so that it was accessed just now.
pub fn access_directory(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let dir = open_name(fd, b".", OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut buffer = Vec::with_capacity(512);
    fs::RawDir::new(dir, buffer.spare_capacity_mut()).next().transpose()?;
    Ok(())
}

const fn dirent_type(kind: FileType) -> u8 {
    match kind {
        FileType::Fifo => 1,
        FileType::CharacterDevice => 2,
        FileType::Directory => 4,
        FileType::BlockDevice => 6,
        FileType::RegularFile => 8,
        FileType::Symlink => 10,
        FileType::Socket => 12,
        FileType::Unknown => 0,
    }
}
