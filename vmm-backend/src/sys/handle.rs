//! `name_to_handle_at`, and the UUID of the file system a descriptor is on.

use std::ffi::{c_int, c_ulong};
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// What names an object of a file system for ever (exportfs.h).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileHandle {
    /// How the file system wrote it (exportfs.h: `enum fid_type`).
    pub kind: u8,
    /// The bytes it wrote.
    pub bytes: Vec<u8>,
}

// fcntl.h: MAX_HANDLE_SZ, AT_EMPTY_PATH.
const HANDLE_BYTES_MAX: usize = 128;
const AT_EMPTY_PATH: c_int = 0x1000;

/// fcntl.h: `struct file_handle` with room for the longest handle.
#[repr(C)]
struct RawHandle {
    handle_bytes: u32,
    handle_type: c_int,
    f_handle: [u8; HANDLE_BYTES_MAX],
}

/// fs.h: `struct fsuuid2`.
#[repr(C)]
struct RawUuid {
    len: u8,
    uuid: [u8; 16],
}

/// ext4.h: `struct fsuuid` with room for one UUID.
#[repr(C)]
struct RawExt4Uuid {
    len: u32,
    flags: u32,
    uuid: [u8; 16],
}

/// linux/btrfs.h: `struct btrfs_ioctl_fs_info_args`, a kibibyte.
#[repr(C)]
struct RawBtrfsInfo {
    before: [u64; 2],
    uuid: [u8; 16],
    behind: [u64; 124],
}

unsafe extern "C" {
    fn name_to_handle_at(
        dirfd: c_int,
        path: *const u8,
        handle: *mut RawHandle,
        mount_id: *mut c_int,
        flags: c_int,
    ) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
}

/// The file handle of what `fd` names, `O_PATH` or not.
///
/// Errors: `EOPNOTSUPP` where the file system has none.
///
/// Source: name_to_handle_at(2).
pub fn file_handle(fd: BorrowedFd<'_>) -> Result<FileHandle, Errno> {
    let mut handle = RawHandle {
        handle_bytes: u32::try_from(HANDLE_BYTES_MAX).map_err(|_| Errno::OVERFLOW)?,
        handle_type: 0,
        f_handle: [0; HANDLE_BYTES_MAX],
    };
    let mut mount_id = 0;
    // SAFETY: the path is an empty C string; `handle` has the room its `handle_bytes` claims; both
    // out-pointers are of locals that live through the call.
    let done = unsafe {
        name_to_handle_at(
            fd.as_raw_fd(),
            c"".as_ptr().cast(),
            &raw mut handle,
            &raw mut mount_id,
            AT_EMPTY_PATH,
        )
    };
    if done != 0 {
        return Err(last_error());
    }
    let bytes = usize::try_from(handle.handle_bytes).map_err(|_| Errno::OVERFLOW)?;
    Ok(FileHandle {
        kind: u8::try_from(handle.handle_type).map_err(|_| Errno::OVERFLOW)?,
        bytes: handle.f_handle.get(..bytes).ok_or(Errno::OVERFLOW)?.to_vec(),
    })
}

/// The UUID in the superblock below `fd`, which must be opened (not `O_PATH`).
///
/// Errors: `ENOTTY` where neither the generic call (Linux 6.9) nor ext4's own (Linux 6.0) is known.
///
/// Source: fs.h `FS_IOC_GETFSUUID`, ext4.h `EXT4_IOC_GETFSUUID`.
pub fn file_system_uuid(fd: BorrowedFd<'_>) -> Result<[u8; 16], Errno> {
    // fs.h: _IOR(0x15, 0, struct fsuuid2).
    const FS_IOC_GETFSUUID: c_ulong = 0x8011_1500;
    // ext4.h: _IOR('f', 44, struct fsuuid), the struct without its flexible array.
    const EXT4_IOC_GETFSUUID: c_ulong = 0x8008_662c;
    // linux/btrfs.h: _IOR(0x94, 31, struct btrfs_ioctl_fs_info_args).
    const BTRFS_IOC_FS_INFO: c_ulong = 0x8400_941f;
    let mut generic = RawUuid { len: 0, uuid: [0; 16] };
    // SAFETY: FS_IOC_GETFSUUID writes a `struct fsuuid2`, which `generic` is, and reads nothing.
    if unsafe { ioctl(fd.as_raw_fd(), FS_IOC_GETFSUUID, &raw mut generic) } == 0 {
        return Ok(generic.uuid);
    }
    let mut ext4 = RawExt4Uuid { len: 16, flags: 0, uuid: [0; 16] };
    // SAFETY: EXT4_IOC_GETFSUUID reads `len` and `flags` and writes at most `len` bytes behind them,
    // for which `ext4` has room.
    if unsafe { ioctl(fd.as_raw_fd(), EXT4_IOC_GETFSUUID, &raw mut ext4) } == 0 {
        return Ok(ext4.uuid);
    }
    // btrfs has a number for its super block, and tells it to those alone who ask as follows.
    let mut btrfs = RawBtrfsInfo { before: [0; 2], uuid: [0; 16], behind: [0; 124] };
    // SAFETY: BTRFS_IOC_FS_INFO reads and writes a `struct btrfs_ioctl_fs_info_args`, which `btrfs` is.
    if unsafe { ioctl(fd.as_raw_fd(), BTRFS_IOC_FS_INFO, &raw mut btrfs) } == 0 {
        return Ok(btrfs.uuid);
    }
    Err(last_error())
}

fn last_error() -> Errno {
    let error = std::io::Error::last_os_error();
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
