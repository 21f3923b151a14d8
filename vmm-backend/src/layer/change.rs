//! What the union asks of upper objects it already has: their data, attributes and names.
//!
//! Thin by intent: each function is one step on one object; the union decides the order.

use std::os::fd::BorrowedFd;

use super::mark::{Mark, NlinkMark};
use super::owner::Owner;
use super::upper::Upper;
use crate::filesystem::{Errno, FileSystemStatistics, SetTime, Timestamp};
pub use crate::sys::fs::Grip;
use crate::sys::fs::{self, RenameFlags};

/// A name in a directory of the upper.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The directory.
    pub dir: BorrowedFd<'a>,
    /// The name in it.
    pub name: &'a [u8],
}

/// What a host rename does to the place it leaves or takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostRename {
    /// Moves, replacing what the target name has.
    Replace,
    /// Moves, and leaves a whiteout behind.
    LeaveWhiteout,
    /// Both change places.
    Exchange,
}

impl Upper {
    /// Moves an object within the upper in one step.
    pub fn rename(&self, from: Place<'_>, to: Place<'_>, how: HostRename) -> Result<(), Errno> {
        let flags = match how {
            HostRename::Replace => RenameFlags::empty(),
            HostRename::LeaveWhiteout => RenameFlags::WHITEOUT,
            HostRename::Exchange => RenameFlags::EXCHANGE,
        };
        fs::rename((from.dir, from.name), (to.dir, to.name), flags)
    }

    /// Removes a name that is no directory and that nothing below shows through.
    pub fn unlink(&self, place: Place<'_>) -> Result<(), Errno> {
        fs::unlink(place.dir, place.name)
    }

    /// Gives the object a descriptor names a further name, which must be free.
    pub fn link(&self, object: BorrowedFd<'_>, to: Place<'_>) -> Result<(), Errno> {
        fs::link_descriptor(object, to.dir, to.name)
    }

    /// Gives the object a descriptor names a further name in place of a whiteout.
    pub fn link_over_whiteout(&self, object: BorrowedFd<'_>, to: Place<'_>) -> Result<(), Errno> {
        let staged = self.work().stage(false, |dir, name| {
            fs::link_descriptor(object, dir, name)?;
            Ok(None)
        })?;
        self.work().publish(staged, to.dir, to.name, super::work::Over::Whiteout)?;
        Ok(())
    }

    /// Sets times; `None` leaves one as it is.
    pub fn change_times<'a>(
        &self,
        object: impl Into<Grip<'a>>,
        atime: Option<SetTime>,
        mtime: Option<SetTime>,
    ) -> Result<(), Errno> {
        let times =
            fs::Timestamps { last_access: timespec(atime), last_modification: timespec(mtime) };
        fs::change_times(object, &times)
    }

    /// Sets the size of an opened file.
    pub fn truncate(&self, file: BorrowedFd<'_>, size: u64) -> Result<(), Errno> {
        fs::truncate(file, size)
    }

    /// `fallocate` of an opened file; unknown flags are `EOPNOTSUPP`.
    pub fn allocate(
        &self,
        file: BorrowedFd<'_>,
        mode: u32,
        (offset, size): (u64, u64),
    ) -> Result<(), Errno> {
        let flags = fs::FallocateFlags::from_bits(mode).ok_or(Errno::OPNOTSUPP)?;
        match fs::allocate(file, flags, offset, size) {
            Err(Errno::OPNOTSUPP) if flags.contains(fs::FallocateFlags::ZERO_RANGE) => {
                // tmpfs: what is punched reads zeros, and gets its room anew.
                let keep_size = flags & fs::FallocateFlags::KEEP_SIZE;
                let punch = fs::FallocateFlags::PUNCH_HOLE | fs::FallocateFlags::KEEP_SIZE;
                fs::allocate(file, punch, offset, size)?;
                fs::allocate(file, keep_size, offset, size)
            }
            done => done,
        }
    }

    /// Waits until an opened file or directory is on disk, with the marks and whiteouts of the directories
    /// above it, which are other inodes (docs/decisions/0014); nothing in a volatile upper.
    pub fn sync(&self, file: BorrowedFd<'_>, data_only: bool) -> Result<(), Errno> {
        if !self.orders_changes() {
            self.sync_all()
        } else if self.is_volatile() {
            Ok(())
        } else {
            fs::sync(file, data_only)
        }
    }

    /// Waits until the file system of this upper is on disk; nothing in a volatile upper.
    pub fn sync_all(&self) -> Result<(), Errno> {
        if self.is_volatile() {
            return Ok(());
        }
        // syncfs(2) wants an opened descriptor, not an O_PATH one.
        let root = self.open_file(self.root(), false)?;
        fs::sync_file_system(std::os::fd::AsFd::as_fd(&root))
    }

    /// Size and room of the file system the upper is on.
    pub fn statistics(&self) -> Result<FileSystemStatistics, Errno> {
        let found = fs::statistics(self.root())?;
        let size = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        Ok(FileSystemStatistics {
            blocks: found.f_blocks,
            blocks_free: found.f_bfree,
            blocks_available: found.f_bavail,
            files: found.f_files,
            files_free: found.f_ffree,
            block_size: size(found.f_bsize),
            name_bytes_max: size(found.f_namemax),
            fragment_size: size(found.f_frsize),
        })
    }

    /// Sets a guest's attribute; `flags` as setxattr(2) has them.
    pub fn set_xattr(
        &self,
        object: BorrowedFd<'_>,
        (name, value): (&[u8], &[u8]),
        flags: u32,
    ) -> Result<(), Errno> {
        fs::set_xattr(object, &self.space().to_host(name)?, value, flags)
    }

    /// Removes a guest's attribute.
    pub fn remove_xattr(&self, object: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
        fs::remove_xattr(object, &self.space().to_host(name)?)
    }

    /// The lower path a directory merges with, to be set before it moves.
    pub fn set_redirect<'a>(
        &self,
        object: impl Into<Grip<'a>>,
        lower_path: &[u8],
    ) -> Result<(), Errno> {
        self.set_mark(object, Mark::Redirect, &[b"/", lower_path].concat())
    }

    /// Whether a file's data may fall through.
    pub fn is_metacopy(&self, object: BorrowedFd<'_>) -> Result<bool, Errno> {
        Ok(fs::xattr(object, self.space().name(Mark::Metacopy))?.is_some())
    }

    /// How the links of an indexed inode are counted, and how many it has in the upper.
    pub fn links(&self, object: BorrowedFd<'_>) -> Result<(NlinkMark, u32), Errno> {
        let value = fs::xattr(object, self.space().name(Mark::Nlink))?;
        let mark = value.as_deref().and_then(NlinkMark::from_bytes);
        Ok((mark.unwrap_or(NlinkMark::Upper(0)), fs::stat(object)?.stx_nlink))
    }

    /// Sets how the links of an indexed inode are counted.
    pub fn set_links(&self, object: BorrowedFd<'_>, mark: NlinkMark) -> Result<(), Errno> {
        self.set_mark(object, Mark::Nlink, &mark.to_bytes())
    }

    /// Opens an indexed hard link.
    pub fn open_indexed(&self, name: &[u8]) -> Result<std::os::fd::OwnedFd, Errno> {
        fs::open_name(self.work().index(), name, rustix::fs::OFlags::PATH)
    }

    /// The last name of an indexed hard link is gone.
    pub fn remove_indexed(&self, name: &[u8]) -> Result<(), Errno> {
        fs::unlink(self.work().index(), name)
    }

    /// An unnamed regular file, as `O_TMPFILE` makes it.
    pub fn create_unnamed(&self, owner: &Owner) -> Result<std::os::fd::OwnedFd, Errno> {
        let file = fs::create_unnamed(self.work().staging(), 0o600)?;
        self.set_owner(std::os::fd::AsFd::as_fd(&file), owner)?;
        Ok(file)
    }

    /// The host's inode number of what a descriptor names.
    pub fn inode_number(&self, object: BorrowedFd<'_>) -> Result<u64, Errno> {
        Ok(fs::stat(object)?.stx_ino)
    }
}

fn timespec(time: Option<SetTime>) -> fs::Timespec {
    // utimensat(2): UTIME_NOW, UTIME_OMIT.
    const NOW: i64 = (1 << 30) - 1;
    const OMIT: i64 = (1 << 30) - 2;
    match time {
        None => fs::Timespec { tv_sec: 0, tv_nsec: OMIT },
        Some(SetTime::Now) => fs::Timespec { tv_sec: 0, tv_nsec: NOW },
        Some(SetTime::To(Timestamp { seconds, nanoseconds })) => {
            fs::Timespec { tv_sec: seconds, tv_nsec: i64::from(nanoseconds) }
        }
    }
}
