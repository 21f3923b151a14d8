//! What names one life of a file system in the host's memory.

use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{AtFlags, StatxFlags, fstatfs, statx};

/// linux/magic.h: TMPFS_MAGIC.
const TMPFS: u64 = 0x0102_1994;

/// One boot of the host and one attachment of the disk: 16 bytes of boot id, the file system's
/// device number, the disk's sequence number. While it is the same, what was written is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Attachment(pub [u8; 32]);

impl Attachment {
    /// That of the file system `fd` is on; `None` where it cannot be told: before Linux 5.15, and
    /// on file systems that are on no one disk.
    ///
    /// Source: sysfs-block, `diskseq`; proc_sys_kernel(5), `random/boot_id`.
    pub fn of(fd: BorrowedFd<'_>) -> Option<Self> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let boot = u128::from_str_radix(&boot.trim().replace('-', ""), 16).ok()?;
        let stat = statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).ok()?;
        let (major, minor) = (stat.stx_dev_major, stat.stx_dev_minor);
        let is_memory = fstatfs(fd).is_ok_and(|fs| u64::try_from(fs.f_type) == Ok(TMPFS));
        let sequence = if is_memory { 0 } else { disk_sequence(major, minor)? };
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&boot.to_le_bytes());
        bytes[16..20].copy_from_slice(&major.to_le_bytes());
        bytes[20..24].copy_from_slice(&minor.to_le_bytes());
        bytes[24..].copy_from_slice(&sequence.to_le_bytes());
        Some(Self(bytes))
    }
}

/// A partition has its disk's.
fn disk_sequence(major: u32, minor: u32) -> Option<u64> {
    let device = Path::new("/sys/dev/block").join(format!("{major}:{minor}"));
    ["diskseq", "../diskseq"]
        .iter()
        .find_map(|name| std::fs::read_to_string(device.join(name)).ok()?.trim().parse().ok())
}
