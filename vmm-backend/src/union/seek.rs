//! SEEK_DATA and SEEK_HOLE, as a private copy would answer.

use std::os::fd::{AsFd, BorrowedFd};

use super::Union;
use super::descriptors::Use;
use crate::filesystem::{Errno, NodeId, Seek};
use crate::layer::blocks::Segment;
use crate::layer::data;

/// Whose word it is what a stretch of an unsettled file holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Holder {
    /// It falls through, with the holes it has there.
    Lower,
    /// It was written: data, whatever the host's file system makes of it.
    Written,
    /// Beyond what ever fell through: the host tells.
    Upper,
}

/// Splits segments at the limit below which a block that does not fall through was written.
fn holders(segments: Vec<Segment>, limit: u64) -> impl Iterator<Item = (u64, u64, Holder)> {
    segments.into_iter().flat_map(move |part| {
        let end = part.offset + part.size;
        if !part.is_upper {
            return [Some((part.offset, end, Holder::Lower)), None].into_iter().flatten();
        }
        let split = limit.clamp(part.offset, end);
        let below = (split > part.offset).then_some((part.offset, split, Holder::Written));
        let beyond = (end > split).then_some((split, end, Holder::Upper));
        [below, beyond].into_iter().flatten()
    })
}

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
        let Some((segments, limit)) = self.segments_of(id, (offset, size - offset))? else {
            return data::seek(upper, seek);
        };
        let lower = self.beneath(id)?;
        for (start, end, holder) in holders(segments, limit) {
            let from = |start| match seek {
                Seek::Data(_) => Seek::Data(start),
                Seek::Hole(_) => Seek::Hole(start),
            };
            let found = match (holder, seek) {
                (Holder::Written, Seek::Data(_)) => Ok(start),
                (Holder::Written, Seek::Hole(_)) => continue,
                (Holder::Lower, _) => data::seek(lower.as_fd(), from(start)),
                (Holder::Upper, _) => data::seek(upper, from(start)),
            };
            match found {
                Ok(found) if found < end => return Ok(found),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_parts_what_was_written_from_what_never_fell_through() {
        let part = |offset, size, is_upper| Segment { offset, size, is_upper };
        let rows = [
            (vec![part(0, 10, false)], vec![(0, 10, Holder::Lower)]),
            (vec![part(0, 10, true)], vec![(0, 10, Holder::Written)]),
            (vec![part(50, 70, true)], vec![(50, 100, Holder::Written), (100, 120, Holder::Upper)]),
            (vec![part(100, 20, true)], vec![(100, 120, Holder::Upper)]),
            (
                vec![part(90, 10, false), part(100, 5, true)],
                vec![(90, 100, Holder::Lower), (100, 105, Holder::Upper)],
            ),
        ];
        for (segments, expected) in rows {
            let found: Vec<_> = holders(segments.clone(), 100).collect();
            assert_eq!(found, expected, "{segments:?}");
        }
    }
}
