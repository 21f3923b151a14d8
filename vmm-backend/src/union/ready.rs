//! What ends soon: a change that moves no data, and so waits for no disk. The queue's own thread
//! does it then; whatever is not known without a system call may wait.

use super::copy_up::Purpose;
use super::{ELSEWHERE, UNSETTLED, Union};
use crate::filesystem::{Name, NodeId};
use crate::layer::blocks::BLOCK_BYTES;
use crate::layer::index::ObjectId;

impl Union {
    /// Whether a node takes a write at this range, or a change of its attributes, as it is.
    pub(super) fn is_ready(&self, id: NodeId, range: Option<(u64, usize)>) -> bool {
        let Ok(node) = self.nodes.get(id) else { return false };
        match (node.is_upper, range) {
            (true, None) => true,
            (true, Some(_)) => node.flags & (UNSETTLED | ELSEWHERE) == 0,
            (false, None) => self.comes_soon(node.lower, Purpose::Attributes),
            // What it does not cover of a block would have to be read.
            (false, Some(range)) => {
                is_whole_blocks(range)
                    && self.unsettled.has_room()
                    && self.comes_soon(node.lower, Purpose::Data)
            }
        }
    }

    /// Whether a truncation is a copy-up without data. To give room back may take long.
    pub(super) fn cuts_without_data(&self, id: NodeId, size: u64) -> bool {
        let Ok(node) = self.nodes.get(id) else { return false };
        let lower = node.lower.filter(|_| !node.is_upper);
        lower.is_some() && self.comes_soon(lower, Purpose::Cut(size))
    }

    /// Whether what is at a name, if anything, moves or is replaced without its data coming up.
    pub(super) fn moves_without_data(&self, dir: NodeId, name: Name<'_>) -> bool {
        let Ok(dir) = self.nodes.get(dir) else { return false };
        let name = name.as_bytes();
        if dir.is_upper && dir.lower.is_some() {
            if !self.nodes.has_listing(dir.id) {
                return false;
            }
            if let Some(row) = self.nodes.row(dir.id, name) {
                let is_up = |id| self.nodes.get(id).is_ok_and(|node| node.is_upper);
                return row.kind.is_none() || row.id.is_some_and(is_up);
            }
        } else if dir.is_upper {
            // Whatever is there is up already.
            return true;
        }
        match self.lower_child(&dir, name) {
            Ok(Some((object, _))) => self.comes_soon(Some(object), Purpose::Attributes),
            Ok(None) => true,
            Err(_) => false,
        }
    }

    fn comes_soon(&self, object: Option<ObjectId>, purpose: Purpose) -> bool {
        object.is_some_and(|object| self.comes_without_data(object, purpose).unwrap_or(false))
    }
}

fn is_whole_blocks((offset, bytes): (u64, usize)) -> bool {
    offset.is_multiple_of(BLOCK_BYTES) && (bytes as u64).is_multiple_of(BLOCK_BYTES)
}
