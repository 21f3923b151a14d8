//! The one ioctl of /dev/fuse that is needed: another queue on a connection that is mounted.

use std::os::fd::{AsFd, AsRawFd as _};

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, ioctl, opcode};

/// fuse.h: `FUSE_DEV_IOC_CLONE`, `_IOR(229, 0, uint32_t)`.
const CLONE: Opcode = opcode::read::<u32>(229, 0);

/// Joins `device`, a freshly opened /dev/fuse, to the connection `mounted` serves, with requests
/// under way of its own.
///
/// Errors: `EINVAL` if `mounted` is not mounted or `device` is already joined.
pub fn clone_device(device: impl AsFd, mounted: impl AsFd) -> Result<(), Errno> {
    let number = u32::try_from(mounted.as_fd().as_raw_fd()).map_err(|_| Errno::BADF)?;
    // SAFETY: the opcode is that of fuse.h, whose argument is a pointer to a `uint32_t`.
    let clone = unsafe { Setter::<CLONE, u32>::new(number) };
    // SAFETY: the kernel reads four bytes at the pointer, which are in `clone`, and changes no
    // memory of ours (fs/fuse/dev.c, `fuse_dev_ioctl_clone`).
    unsafe { ioctl(device, clone) }
}
