//! Namespaces and mount attributes, which rustix lacks or leaves unsafe.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;
pub use rustix::mount::MountAttrFlags;
pub use rustix::thread::UnshareFlags;

/// `unshare` of namespaces.
///
/// Errors: `EINVAL` for flags that are no namespaces, and for a user namespace of a process with
/// several threads; else unshare(2)'s.
pub fn unshare_namespaces(flags: UnshareFlags) -> Result<(), Errno> {
    let namespaces = UnshareFlags::NEWNS | UnshareFlags::NEWUSER;
    if !namespaces.contains(flags) {
        return Err(Errno::INVAL);
    }
    // SAFETY: `FILES` is not among the flags, so that no thread loses sight of another's
    // descriptors.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// `mount_setattr`: sets attributes on the mount `fd` is the root of, and with `recursive` on all
/// below it.
///
/// Errors: `ENOSYS` before Linux 5.12, else mount_setattr(2)'s.
pub fn set_attributes(
    fd: BorrowedFd<'_>,
    set: MountAttrFlags,
    recursive: bool,
) -> Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: u64::from(set.bits()),
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a literal with its NUL, and the structure lives through the call, which
    // is told its true size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
