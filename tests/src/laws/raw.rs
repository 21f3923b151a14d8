//! What no safe crate has and a law needs: file handles, record locks, mappings.
#![allow(
    unsafe_code,
    reason = "name_to_handle_at, open_by_handle_at, OFD locks and unshare have no safe wrapper"
)]

use std::ffi::{c_int, c_uint, c_void};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use super::plot::{Done, Failure, call};

/// fcntl.h: MAX_HANDLE_SZ.
const HANDLE_BYTES: usize = 128;

/// What names an object for as long as it lives (fcntl.h: `struct file_handle`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Handle {
    size: c_uint,
    kind: c_int,
    bytes: [u8; HANDLE_BYTES],
}

fn last<T>(what: &str) -> Done<T> {
    let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
    call(what, Err(Errno::from_raw_os_error(errno)))
}

/// name_to_handle_at(2) of what a descriptor holds.
pub fn handle_of(object: impl AsFd) -> Done<Handle> {
    let mut size = 0;
    let length = u32::try_from(HANDLE_BYTES).unwrap_or(0);
    let mut handle = Handle { size: length, kind: 0, bytes: [0; HANDLE_BYTES] };
    // SAFETY: the path is an empty C string, `handle` has the room its size claims, and both
    // out-pointers are of locals that live through the call.
    let done = unsafe {
        libc::name_to_handle_at(
            object.as_fd().as_raw_fd(),
            c"".as_ptr(),
            (&raw mut handle).cast(),
            &raw mut size,
            libc::AT_EMPTY_PATH,
        )
    };
    if done == 0 { Ok(handle) } else { last("name_to_handle_at") }
}

/// open_by_handle_at(2) on the file system `mount` is on.
pub fn open_handle(mount: impl AsFd, handle: &Handle, flags: c_int) -> Done<OwnedFd> {
    let mut handle = *handle;
    let mount = mount.as_fd().as_raw_fd();
    // SAFETY: `handle` is as long as it says and lives through the call.
    let fd = unsafe { libc::open_by_handle_at(mount, (&raw mut handle).cast(), flags) };
    if fd < 0 {
        return last("open_by_handle_at");
    }
    // SAFETY: the call just made this descriptor, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whose a record lock is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// The process: POSIX locks.
    Process,
    /// The open file description: OFD locks.
    Description,
}

/// Takes (`F_RDLCK`, `F_WRLCK`) or gives back (`F_UNLCK`) the lock of `length` bytes from `start`.
pub fn lock(file: impl AsFd, owner: Owner, kind: c_int, (start, length): (i64, i64)) -> Done {
    let command = match owner {
        Owner::Process => libc::F_SETLK,
        Owner::Description => libc::F_OFD_SETLK,
    };
    let range = libc::flock {
        l_type: i16::try_from(kind).unwrap_or(-1),
        l_whence: 0,
        l_start: start,
        l_len: length,
        l_pid: 0,
    };
    // SAFETY: `range` is a `struct flock`, which these commands read, and lives through the call.
    let done = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), command, &raw const range) };
    if done == 0 { Ok(()) } else { last("fcntl") }
}

/// Runs `run` in a thread with descriptors and a working directory of its own: to POSIX locks
/// another process.
pub fn as_another_process<T: Send>(run: impl FnOnce() -> Done<T> + Send) -> Done<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the thread gets a copy of the descriptors and the working directory it has;
            // what it opens, closes and enters from now on is its own, and it ends here.
            if unsafe { libc::unshare(libc::CLONE_FILES | libc::CLONE_FS) } != 0 {
                return last("unshare");
            }
            run()
        });
        thread.join().unwrap_or_else(|_| Err(Failure::new("the other process panicked")))
    })
}

/// A shared mapping of a file from its start.
#[derive(Debug)]
pub struct Mapping(MmapRegion);

impl Mapping {
    /// mmap(2), `MAP_SHARED`; for reading alone unless `is_writable`.
    pub fn new(file: &OwnedFd, length: usize, is_writable: bool) -> Done<Self> {
        let file = call("dup", file.try_clone().map_err(|_| Errno::MFILE))?;
        let write = if is_writable { libc::PROT_WRITE } else { 0 };
        let region = MmapRegion::build(
            Some(FileOffset::new(File::from(file), 0)),
            length,
            libc::PROT_READ | write,
            libc::MAP_SHARED,
        );
        region.map(Self).map_err(|error| Failure::new(format!("mmap: {error}")))
    }

    /// `length` bytes from `offset`, which must be in the file.
    pub fn read(&self, offset: usize, length: usize) -> Done<Vec<u8>> {
        let mut bytes = vec![0; length];
        let slice = self.0.get_slice(offset, length);
        let slice = slice.map_err(|error| Failure::new(format!("mapping: {error}")))?;
        slice.copy_to(&mut bytes[..]);
        Ok(bytes)
    }

    /// Stores bytes from `offset` on, which must be in the file.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Done {
        let slice = self.0.get_slice(offset, bytes.len());
        let slice = slice.map_err(|error| Failure::new(format!("mapping: {error}")))?;
        slice.copy_from(bytes);
        Ok(())
    }

    /// msync(2), `MS_SYNC`, of all of it.
    pub fn sync(&self) -> Done {
        let start = self.0.as_ptr().cast::<c_void>();
        // SAFETY: the range is that of the mapping, which lives as long as `self`.
        let done = unsafe { libc::msync(start, self.0.size(), libc::MS_SYNC) };
        if done == 0 { Ok(()) } else { last("msync") }
    }
}
