//! Files of which the upper has the attributes alone, and the lower all the data: what a change of
//! attributes or of a name makes of a lower file.
//!
//! On disk it is what the kernel's overlayfs makes of one (`metacopy`), and found as it finds it. The
//! first change of its data takes a small file's along as a whole, and lets a large one's fall
//! through by block from then on.
//!
//! Three marks say where a file's data is: metacopy, redirect and the block map's. Whoever looks at a
//! node's flags (`ELSEWHERE`, `UNSETTLED`) and then writes those marks keeps both from changing in
//! between. A copy-up, a first change of data and a link hold the node's lock. A rename holds `names`
//! exclusively, for it knows its nodes only then; so a first change of data that lets a file fall
//! through by block holds `names`, shared, from its marks to its flag. Of a file that is whole a
//! redirect says nothing and goes at the next look: one whose data was taken along needs no more.
//! What has a map ends it, and writes all marks of it, with the map held; link and rename write the
//! origin of such a file alone, which is the same whoever writes it. Marks of names (origin, opaque
//! and redirect of directories, links) are written with `names` held, and those of what is staged by
//! whoever stages it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::copy_up::Purpose;
use super::descriptors::Use;
use super::lookup::Seen;
use super::node::Node;
use super::{ELSEWHERE, INDEXED, UNSETTLED, Union};
use crate::filesystem::{Attributes, Errno};
use crate::layer::blocks::WHOLE_BYTES_MAX;
use crate::layer::index::ObjectId;
use crate::layer::mark::{Mark, Marks, Origin};

impl Union {
    /// What the marks of an object of ours say of its origin.
    pub(super) fn own_origin(&self, object: ObjectId) -> Origin {
        Origin { identity: self.lower.identity().0, object: object.0 }
    }

    /// Opens the lower file that has all the data of a node. The caller holds `names`.
    ///
    /// Errors: `EIO` if it is not the one the node was made of any more.
    pub(super) fn open_elsewhere(&self, node: &Node) -> Result<OwnedFd, Errno> {
        let object = node.lower.ok_or(Errno::IO)?;
        // First: what has changed is known by it, also where changes are put up with.
        let file = self.lower.open_file(object)?;
        let lower = self.lower.attributes(object)?;
        if !self.upper.is_over(self.handle(node)?.as_fd(), &lower)? {
            log::error!(
                "union: node {} was copied up from a lower file that has changed since",
                node.id
            );
            return Err(Errno::IO);
        }
        Ok(file)
    }

    /// Readies a node whose data is elsewhere for what is to come; a node of any other form is
    /// ready. The caller holds its lock.
    pub(super) fn bring_data(&self, node: Node, purpose: Purpose) -> Result<Node, Errno> {
        if node.flags & ELSEWHERE == 0 {
            return Ok(node);
        }
        let object = node.lower.ok_or(Errno::IO)?;
        let lower = self.lower.attributes(object)?;
        let node = match purpose {
            Purpose::Attributes => return Ok(node),
            Purpose::Data if lower.size < WHOLE_BYTES_MAX => self.take_data_along(&node, object)?,
            Purpose::Data | Purpose::Cut(_) => self.go_by_block(&node, object, &lower)?,
        };
        // After the update: who opens the lower file later than this sees that it is up.
        self.descriptors.close_one(node.id, Use::Read);
        Ok(node)
    }

    fn take_data_along(&self, node: &Node, object: ObjectId) -> Result<Node, Errno> {
        let capability = self.capability_of(node)?;
        let (from, file) = {
            let _names = self.names_shared();
            let handle = self.handle(node)?;
            // One that the kernel's overlayfs made was found by its name until now.
            self.mark_origin(object, handle.as_fd())?;
            (self.open_elsewhere(node)?, self.upper.open_file(handle.as_fd(), true)?)
        };
        // Somebody may have edited the base while it was copied.
        let is_what_it_was = || self.lower.verify_file(object, from.as_fd());
        let brought = self.upper.bring_data(file.as_fd(), from.as_fd(), is_what_it_was);
        if let Some(value) = capability {
            self.restore_capability(node.id, &value)?;
        }
        brought?;
        let node = self.nodes.update(node.id, |node| node.flags &= !ELSEWHERE)?;
        self.descriptors.keep(node.id, Use::Write, file);
        Ok(node)
    }

    fn go_by_block(
        &self,
        node: &Node,
        object: ObjectId,
        lower: &Attributes,
    ) -> Result<Node, Errno> {
        // Over marks and flag: a rename that saw the one must not find the other.
        let _names = self.names_shared();
        let handle = self.handle(&self.nodes.get(node.id)?)?;
        self.upper.go_by_block(handle.as_fd(), lower, self.own_origin(object))?;
        self.nodes.update(node.id, |node| {
            node.flags = node.flags & !ELSEWHERE | UNSETTLED;
        })
    }

    /// The form of a file that is a metacopy, by its marks. The data of an indexed one is found by a
    /// name that leads to something else when the lower's own is gone.
    pub(super) const fn form_of_metacopy(&self, flags: u32, marks: &Marks) -> u32 {
        if flags & INDEXED != 0 || marks.is_by_block { UNSETTLED } else { ELSEWHERE }
    }

    /// Sees to it that a file is found by whoever knows it at a new name: by its origin, and by the
    /// kernel's overlayfs by its redirect, if that has all its data to read. The caller holds the
    /// node's lock, or `names` as a rename does, since before it looked at the node.
    pub(super) fn find_anywhere(&self, node: &Node, handle: BorrowedFd<'_>) -> Result<(), Errno> {
        let object = node.lower.ok_or(Errno::IO)?;
        self.mark_origin(object, handle)?;
        if node.flags & ELSEWHERE != 0 {
            self.upper.set_redirect(handle, &self.lower.path(object)?)?;
        }
        Ok(())
    }

    fn mark_origin(&self, object: ObjectId, handle: BorrowedFd<'_>) -> Result<(), Errno> {
        self.upper.set_mark(handle, Mark::OwnOrigin, &self.own_origin(object).to_bytes())
    }

    /// A file whose data is elsewhere is as long as that: a power loss may have kept its marks and
    /// not its length (btrfs writes down a file that is not synced itself without its length).
    pub(super) fn mend_length(&self, seen: &mut Seen, lower: &Attributes) -> Result<(), Errno> {
        if seen.attributes.size == lower.size {
            return Ok(());
        }
        let Some(handle) = &seen.handle else { return Err(Errno::IO) };
        let file = self.upper.open_file(handle.as_fd(), true)?;
        self.upper.truncate(file.as_fd(), lower.size)?;
        self.upper.set_times(file.as_fd(), &seen.attributes)?;
        seen.attributes.size = lower.size;
        Ok(())
    }
}
