//! RENAME_WHITEOUT in one step: what moves away leaves a device, which is an object of its own.
//!
//! The host can move a name or put one, not both at once. So what is to be left is written down
//! before the move: a record in `work/` says which staged object belongs at which name, once
//! another has left it. If we die in between, who starts next does it before anybody looks.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::OFlags;

use super::data::{read_up_to, write_whole};
use super::upper::Upper;
use super::view::is_whiteout;
use super::work::Staged;
use crate::filesystem::Errno;
use crate::sys::fs::{self, RenameFlags};

/// What the names of records begin with.
const RECORD: &[u8] = b"#leave";

/// Bytes of a record at most: three names, the longest a path that is no longer than an upper's
/// can be served.
const RECORD_BYTES_MAX: usize = 1 << 20;

/// Where something is to be left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaving<'a> {
    /// The directory, from the upper's root.
    pub dir: &'a [u8],
    /// The name in it.
    pub name: &'a [u8],
    /// The inode that moves away from there: while it is there, nothing has happened.
    pub moved: u64,
}

impl Leaving<'_> {
    /// The inode, then the staged object, the name and the directory, each with its length.
    fn to_bytes(self, staged: &[u8]) -> Vec<u8> {
        let mut bytes = self.moved.to_le_bytes().to_vec();
        for part in [staged, self.name, self.dir] {
            bytes.extend((part.len() as u64).to_le_bytes());
            bytes.extend(part);
        }
        bytes
    }
}

/// The staged object's name, and where it belongs; `None` for a record that was not written whole.
fn parse(bytes: &[u8]) -> Option<(&[u8], Leaving<'_>)> {
    let (moved, mut rest) = bytes.split_first_chunk()?;
    let mut part = || {
        let (length, more) = rest.split_first_chunk()?;
        let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
        let (part, left) = more.split_at_checked(length)?;
        rest = left;
        Some(part)
    };
    let (staged, name, dir) = (part()?, part()?, part()?);
    let is_name = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/');
    let is_whole = rest.is_empty() && is_name(staged) && is_name(name);
    is_whole.then_some((staged, Leaving { dir, name, moved: u64::from_le_bytes(*moved) }))
}

impl Upper {
    /// Writes down where a staged object is to be left. The record goes when what this gives is
    /// dropped.
    pub fn record_leaving(
        &self,
        staged: &Staged<'_>,
        leaving: Leaving<'_>,
    ) -> Result<Staged<'_>, Errno> {
        let bytes = leaving.to_bytes(staged.name());
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let name = [RECORD, staged.name()].concat();
        let record = self
            .work()
            .stage_as(name, false, |dir, name| fs::create_file(dir, name, 0o600).map(Some))?;
        write_whole(record.handle(), &bytes, 0)?;
        Ok(record)
    }

    /// Does what was written down and not done.
    ///
    /// Errors: the calls' own. A record that says nothing, and one whose object is not to be
    /// found, are left to the sweep.
    pub(super) fn finish_leaving(&self) -> Result<(), Errno> {
        let staging = self.work().staging();
        for row in fs::list(staging)? {
            if !row.name.starts_with(RECORD) {
                continue;
            }
            let file = fs::open_name(staging, &row.name, OFlags::RDONLY | OFlags::NONBLOCK)?;
            let mut bytes = vec![0; RECORD_BYTES_MAX];
            let read = read_up_to(file.as_fd(), &mut bytes, 0)?;
            match parse(&bytes[..read]) {
                Some((staged, leaving)) => self.finish_one(staging, staged, leaving)?,
                None => log::warn!("work: a record of a rename is not whole; it did not happen"),
            }
        }
        Ok(())
    }

    fn finish_one(
        &self,
        staging: BorrowedFd<'_>,
        staged: &[u8],
        leaving: Leaving<'_>,
    ) -> Result<(), Errno> {
        let Ok(dir) = self.handle(leaving.dir) else { return Ok(()) };
        let is_free = match fs::stat_name(dir.as_fd(), leaving.name) {
            // Nothing, or the whiteout that the move left: it has happened.
            Err(Errno::NOENT) => true,
            Ok(stat) => stat.stx_ino != leaving.moved && is_whiteout(&stat),
            Err(e) => return Err(e),
        };
        if !is_free {
            return Ok(());
        }
        let to = (dir.as_fd(), leaving.name);
        match fs::rename((staging, staged), to, RenameFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            done => done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_survives_its_bytes_and_says_nothing_when_it_is_cut() {
        let leaving = Leaving { dir: b"a/b", name: b"c", moved: 7 };
        let bytes = leaving.to_bytes(b"#1");
        assert_eq!(parse(&bytes), Some((&b"#1"[..], leaving)));
        for cut in 0..bytes.len() {
            assert_eq!(parse(&bytes[..cut]), None, "{cut}");
        }
        assert_eq!(parse(&[&bytes[..], b"x"].concat()), None);
    }
}
