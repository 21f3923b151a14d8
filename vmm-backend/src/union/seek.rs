//! SEEK_DATA and SEEK_HOLE, as a private copy would answer.

use std::os::fd::{AsFd, BorrowedFd};

use super::Union;
use super::descriptors::Use;
use crate::filesystem::{Errno, NodeId, Seek};
use crate::layer::data;

impl Union {
    pub(super) fn seek_file(&self, id: NodeId, seek: Seek) -> Result<u64, Errno> {
        let file = self.opened(id, Use::Read)?;
        // Asked when it is open: a copy-up by block may have come between.
        if self.is_unsettled(id)? {
            return self.seek_unsettled(id, file.as_fd(), seek);
        }
        data::seek(file.as_fd(), seek)
    }

    fn seek_unsettled(&self, id: NodeId, upper: BorrowedFd<'_>, seek: Seek) -> Result<u64, Errno> {
        let size = self.attributes_by_id(id)?.size;
        let (Seek::Data(offset) | Seek::Hole(offset)) = seek;
        if offset >= size {
            return Err(Errno::NXIO);
        }
        let Some(segments) = self.segments_of(id, (offset, size - offset))? else {
            return data::seek(upper, seek);
        };
        let lower = self.beneath(id)?;
        for part in segments {
            let from = match seek {
                Seek::Data(_) => Seek::Data(part.offset),
                Seek::Hole(_) => Seek::Hole(part.offset),
            };
            let holder = if part.is_upper { upper } else { lower.as_fd() };
            let found = data::seek(holder, from);
            match found {
                Ok(found) if found < part.offset + part.size => return Ok(found),
                Ok(_) | Err(Errno::NXIO) => {}
                Err(e) => return Err(e),
            }
        }
        match seek {
            Seek::Data(_) => Err(Errno::NXIO),
            Seek::Hole(_) => Ok(size),
        }
    }
}
