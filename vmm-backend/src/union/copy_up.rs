//! Copy up: a lower object becomes an upper one, with all it was, before it is changed.
//!
//! Data moves while only the object's own lock is held; names are locked for the moment of
//! publishing alone.

use std::os::fd::{AsFd, OwnedFd};

use super::descriptors::Use;
use super::links::{index_name, more_in_upper};
use super::node::Node;
use super::{INDEXED, PARKED, UNSETTLED, Union};
use crate::filesystem::{Errno, Kind, NodeId};
use crate::layer::index::ObjectId;
use crate::layer::mark::Origin;
use crate::layer::owner::Owner;
use crate::layer::upper::{Birth, CopyUp};
use crate::layer::work::{Over, Staged};

/// How often a copy-up is begun again when its directory was moved meanwhile.
const TRIES_MAX: u32 = 16;

impl Union {
    /// Sees to it that the upper has the node, with at most `size_max` bytes of its data if that
    /// is given (a truncation follows). Directories above it come first.
    ///
    /// Errors: `ENOSPC` and the like leave the lower object visible and whole.
    pub(super) fn copy_up(&self, id: NodeId, size_max: Option<u64>) -> Result<Node, Errno> {
        // Renames of directories above may come between again and again, but not for ever.
        for _ in 0..TRIES_MAX {
            match self.try_copy_up(id, size_max) {
                Err(Errno::AGAIN) => {}
                done => return done,
            }
        }
        log::error!("union: node {id} was moved each of {TRIES_MAX} times it was copied up");
        Err(Errno::IO)
    }

    fn try_copy_up(&self, id: NodeId, size_max: Option<u64>) -> Result<Node, Errno> {
        let node = self.nodes.get(id)?;
        if node.is_upper {
            return Ok(node);
        }
        let object = node.lower.ok_or(Errno::STALE)?;
        let is_linked = node.kind != Kind::Directory && self.lower.is_hard_linked(object)?;
        // An indexed link lives in work/index: no directory has to be there for it.
        if node.is_named && !is_linked {
            self.copy_up_ancestors(&node)?;
        }
        let _object = self.objects.lock(id);
        self.copy_up_one(id, object, size_max)
    }

    /// Copies up all directories above a node, from the top.
    fn copy_up_ancestors(&self, node: &Node) -> Result<(), Errno> {
        let mut above = Vec::new();
        let mut at = self.nodes.get(node.parent)?;
        while !at.is_upper {
            above.push(at);
            at = self.nodes.get(at.parent)?;
        }
        for dir in above.into_iter().rev() {
            let object = dir.lower.ok_or(Errno::STALE)?;
            let _object = self.objects.lock(dir.id);
            self.copy_up_one(dir.id, object, None)?;
        }
        Ok(())
    }

    /// Copies up one object whose directory is up already. The caller holds its lock.
    fn copy_up_one(
        &self,
        id: NodeId,
        object: ObjectId,
        size_max: Option<u64>,
    ) -> Result<Node, Errno> {
        let node = self.nodes.get(id)?;
        if node.is_upper {
            return Ok(node);
        }
        let (staged, is_unsettled) = self.stage_copy(object, size_max)?;
        let unsettled = if is_unsettled { UNSETTLED } else { 0 };
        let _names = self.names_shared();
        // A rename or removal may have come between.
        let node = self.nodes.get(id)?;
        let handle = if !node.is_named {
            let parked = self.keep_unnamed(&node, staged)?;
            let node = self.nodes.update(id, |node| {
                node.is_upper = true;
                node.flags |= unsettled | parked;
            })?;
            self.descriptors.close_one(id, Use::Read);
            return Ok(node);
        } else if node.kind != Kind::Directory && self.lower.is_hard_linked(object)? {
            self.publish_link(object, staged)?
        } else {
            self.publish_copy(&node, staged)?
        };
        self.descriptors.keep(id, Use::Path, handle);
        let is_linked = self.links.get(object).is_some() && node.kind != Kind::Directory;
        let node = self.nodes.update(id, |node| {
            node.is_upper = true;
            node.flags |= if is_linked { INDEXED | unsettled } else { unsettled };
        })?;
        // After the update: who opens the lower file later than this sees that it is up.
        self.descriptors.close_one(id, Use::Read);
        Ok(node)
    }

    /// Says whether the copy is unsettled.
    fn stage_copy(
        &self,
        object: ObjectId,
        size_max: Option<u64>,
    ) -> Result<(Staged<'_>, bool), Errno> {
        let attributes = self.lower_attributes(object)?;
        let kind = attributes.kind();
        let target = if kind == Kind::Symlink { self.lower.target(object)? } else { b"" };
        let xattrs: Vec<_> = self
            .lower
            .xattrs(object)?
            .map(|(name, value)| (name.to_vec(), value.to_vec()))
            .collect();
        let size = size_max.unwrap_or(u64::MAX).min(attributes.size);
        let file = match kind {
            Kind::File => Some(self.lower.open_file(object)?),
            _ => None,
        };
        let kernel_origin = self.lower.origin_handle(object);
        let owner = Owner {
            uid: attributes.uid,
            gid: attributes.gid,
            mode: attributes.mode,
            rdev: attributes.rdev,
        };
        let staged = self.upper.stage_copy(&CopyUp {
            attributes,
            birth: Birth { owner, target, xattrs: &xattrs, is_opaque: false },
            data: file.as_ref().map(|file: &OwnedFd| (file.as_fd(), size)),
            // The kernel's overlayfs finds the data of an indexed inode by its lower name, whatever
            // its redirect says: it would show what the guest has overwritten.
            may_fall_through: !self.lower.is_hard_linked(object)?,
            origin: Origin { identity: self.lower.identity().0, object: object.0 },
            kernel_origin: kernel_origin.as_deref(),
        })?;
        if let Some(file) = &file {
            // Somebody may have edited the base while it was copied.
            self.lower.verify_file(object, file.as_fd())?;
        }
        Ok(staged)
    }

    /// Publishes at the node's name. Its directory shows the same entries as before, so its times
    /// stay.
    fn publish_copy(&self, node: &Node, staged: Staged<'_>) -> Result<OwnedFd, Errno> {
        let dir = self.nodes.get(node.parent)?;
        if !dir.is_upper {
            // The directory changed by a rename meanwhile, to one that is not up yet.
            return Err(Errno::AGAIN);
        }
        let _dir = self.directories.lock(dir.id);
        let dir_handle = self.handle(&dir)?;
        let before = self.upper.attributes(dir_handle.as_fd())?;
        self.upper.mark_impure(dir_handle.as_fd())?;
        let name = self.nodes.name(node.id)?;
        let handle = self.upper.work().publish(staged, dir_handle.as_fd(), &name, Over::Nothing)?;
        self.set_row(&dir, &name, Some((node.kind, node.id)))?;
        // The copy is there: what fails now must not make it seem that it is not.
        if let Err(e) = self.upper.set_times(dir_handle.as_fd(), &before) {
            log::warn!("union: a directory's times show that {} was copied up: {e}", node.id);
        }
        Ok(handle)
    }

    /// A hard link of the lower is one inode in `work/index` for all its names.
    fn publish_link(&self, object: ObjectId, staged: Staged<'_>) -> Result<OwnedFd, Errno> {
        let links = self.lower.attributes(object)?.nlink;
        // Its one link of its own is the index entry, which is no name of the union.
        self.upper.set_links(staged.handle(), more_in_upper(links, 1))?;
        let name = index_name(object, self.lower.origin_handle(object).as_deref());
        let handle = self.upper.work().publish_indexed(staged, &name)?;
        self.links.insert(object, name);
        Ok(handle)
    }

    /// What was removed while the guest holds it is copied up without a name. Gives the flags it
    /// gets by it.
    fn keep_unnamed(&self, node: &Node, staged: Staged<'_>) -> Result<u32, Errno> {
        let handle = staged.handle().try_clone_to_owned().map_err(|_| Errno::MFILE)?;
        self.descriptors.keep(node.id, Use::Path, handle);
        if self.descriptors.hold(node.id) {
            return Ok(0);
        }
        self.upper.work().park_staged(staged, node.id)?;
        Ok(PARKED)
    }
}
