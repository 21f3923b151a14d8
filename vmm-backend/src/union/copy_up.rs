//! Copy up: a lower object becomes an upper one, with all it was, before it is changed.
//!
//! Data moves while only the object's own lock is held; names are locked for the moment of
//! publishing alone.

use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use super::attributes::CAPABILITY;
use super::descriptors::Use;
use super::links::{index_name, more_in_upper};
use super::node::Node;
use super::{ELSEWHERE, FOUND_ANYWHERE, INDEXED, NO_CAPABILITY, PARKED, UNSETTLED, Union};
use crate::filesystem::{Attributes, Errno, Kind, NodeId};
use crate::layer::blocks::WHOLE_BYTES_MAX;
use crate::layer::index::ObjectId;
use crate::layer::owner::Owner;
use crate::layer::upper::{Birth, Contents, CopyUp, Form};
use crate::layer::work::{Over, Staged};

/// How often a copy-up is begun again when its directory was moved meanwhile.
const TRIES_MAX: u32 = 16;

/// A file at a longer path comes with its data: marks must leave room for the guest's attributes
/// (the kernel's overlayfs writes no longer one: fs/overlayfs/dir.c, `OVL_REDIRECT_MAX`).
const REDIRECT_BYTES_MAX: usize = 255;

/// What a node comes to the upper for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// A change of its attributes or its name, or of what is below it.
    Attributes,
    /// A change of its data.
    Data,
    /// A truncation to so many bytes.
    Cut(u64),
}

/// A node that is in the upper.
#[derive(Clone, Copy, Debug)]
pub(super) struct Raised {
    pub node: Node,
    /// It came there by this very call, cut to the size that was asked for.
    pub is_cut: bool,
}

impl Union {
    /// Sees to it that the upper has the node, with what of its data the purpose needs. Directories
    /// above it come first.
    ///
    /// Errors: `ENOSPC` and the like leave the lower object visible and whole.
    pub(super) fn copy_up(&self, id: NodeId, purpose: Purpose) -> Result<Node, Errno> {
        self.raise(id, purpose).map(|raised| raised.node)
    }

    /// The same, and whether a truncation is done by it.
    pub(super) fn raise(&self, id: NodeId, purpose: Purpose) -> Result<Raised, Errno> {
        // Renames of directories above may come between again and again, but not for ever.
        for _ in 0..TRIES_MAX {
            match self.try_raise(id, purpose) {
                Err(Errno::AGAIN) => {}
                done => return done,
            }
        }
        log::error!("union: node {id} was moved each of {TRIES_MAX} times it was copied up");
        Err(Errno::IO)
    }

    fn try_raise(&self, id: NodeId, purpose: Purpose) -> Result<Raised, Errno> {
        let node = self.nodes.get(id)?;
        if node.is_upper && (node.flags & ELSEWHERE == 0 || purpose == Purpose::Attributes) {
            return Ok(Raised { node, is_cut: false });
        }
        let object = node.lower.ok_or(Errno::STALE)?;
        let is_linked = node.kind != Kind::Directory && self.lower.is_hard_linked(object)?;
        // An indexed link lives in work/index: no directory has to be there for it.
        if node.is_named && !is_linked {
            self.copy_up_ancestors(&node)?;
        }
        let _object = self.objects.lock(id);
        self.copy_up_one(id, object, purpose)
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
            self.copy_up_one(dir.id, object, Purpose::Attributes)?;
        }
        Ok(())
    }

    /// Copies up one object whose directory is up already. The caller holds its lock.
    fn copy_up_one(&self, id: NodeId, object: ObjectId, purpose: Purpose) -> Result<Raised, Errno> {
        let node = self.nodes.get(id)?;
        if node.is_upper {
            return Ok(Raised { node: self.bring_data(node, purpose)?, is_cut: false });
        }
        let Copy { staged, form, is_cut, lower } = self.stage_copy(object, purpose)?;
        let facts = self.facts_of_copy(object, form)?;
        let _names = self.names_shared();
        // A rename or removal may have come between.
        let node = self.nodes.get(id)?;
        let handle = if !node.is_named {
            let parked = self.keep_unnamed(&node, staged)?;
            let node = self.nodes.update(id, |node| {
                node.is_upper = true;
                node.flags |= facts | parked;
            })?;
            self.descriptors.close_one(id, Use::Read);
            return Ok(Raised { node, is_cut });
        } else if node.kind != Kind::Directory && self.lower.is_hard_linked(object)? {
            self.publish_link(object, staged)?
        } else {
            self.publish_copy(&node, staged)?
        };
        let handle = self.descriptors.keep(id, Use::Path, handle);
        let is_linked = self.links.get(object).is_some() && node.kind != Kind::Directory;
        let node = self.nodes.update(id, |node| {
            node.is_upper = true;
            node.flags |= if is_linked { INDEXED | facts } else { facts };
        })?;
        // After the update: who opens the lower file later than this sees that it is up.
        self.descriptors.close_one(id, Use::Read);
        match (node.kind, form) {
            (Kind::File, Form::Whole) => self.descriptors.lend_for_writing(id, handle.as_raw_fd()),
            (Kind::File, Form::Unsettled) if purpose == Purpose::Data => {
                self.begin_map(id, handle, &lower);
            }
            _ => {}
        }
        Ok(Raised { node, is_cut })
    }

    /// What is known of a copy for having just been made.
    fn facts_of_copy(&self, object: ObjectId, form: Form) -> Result<u32, Errno> {
        let form = match form {
            Form::Whole => 0,
            Form::Unsettled => UNSETTLED | FOUND_ANYWHERE,
            Form::Elsewhere => ELSEWHERE | FOUND_ANYWHERE,
        };
        let has_capability = self.lower.xattr(object, CAPABILITY)?.is_some();
        Ok(if has_capability { form } else { form | NO_CAPABILITY })
    }

    /// Whether a lower object comes to the upper without moving data, and so without waiting.
    pub(super) fn comes_without_data(
        &self,
        object: ObjectId,
        purpose: Purpose,
    ) -> Result<bool, Errno> {
        let source = self.source(object)?;
        Ok(!plan(purpose, source).needs_file(source, self.upper.shares_blocks()))
    }

    fn source(&self, object: ObjectId) -> Result<Source, Errno> {
        let attributes = self.lower.attributes(object)?;
        Ok(Source {
            bytes: (attributes.kind() == Kind::File).then_some(attributes.size),
            path_bytes: self.lower.path(object)?.len(),
            is_linked: self.lower.is_hard_linked(object)?,
        })
    }

    fn stage_copy(&self, object: ObjectId, purpose: Purpose) -> Result<Copy<'_>, Errno> {
        let attributes = self.lower_attributes(object)?;
        let kind = attributes.kind();
        let target = if kind == Kind::Symlink { self.lower.target(object)? } else { b"" };
        let xattrs: Vec<_> = self
            .lower
            .xattrs(object)?
            .map(|(name, value)| (name.to_vec(), value.to_vec()))
            .collect();
        let found = match kind {
            Kind::File => Some(self.lower.find_file(object)?),
            _ => None,
        };
        let kernel_origin = match &found {
            Some(found) => self.lower.origin_handle_of(object, found),
            None => self.lower.origin_handle(object),
        };
        let path = self.lower.path(object)?;
        let source = self.source(object)?;
        let plan = plan(purpose, source);
        let opened = match &found {
            Some(found) if plan.needs_file(source, self.upper.shares_blocks()) => {
                Some(found.open()?)
            }
            _ => None,
        };
        let from = opened.as_ref().map(AsFd::as_fd);
        let contents = match (plan, from) {
            (Plan::Elsewhere, from) => Contents::Elsewhere(from, &path),
            (Plan::Move(bytes), Some(from)) => Contents::Whole(from, bytes),
            (Plan::ByBlock(bytes), from) => Contents::Blocks(from, bytes),
            (Plan::Nothing | Plan::Move(_), _) => Contents::None,
        };
        let is_cut = matches!(purpose, Purpose::Cut(size) if size <= attributes.size);
        let owner = Owner {
            uid: attributes.uid,
            gid: attributes.gid,
            mode: attributes.mode,
            rdev: attributes.rdev,
        };
        let mut copy = CopyUp {
            attributes,
            birth: Birth { owner, target, xattrs: &xattrs, is_opaque: false },
            contents,
            is_cut,
            origin: self.own_origin(object),
            kernel_origin: kernel_origin.as_deref(),
        };
        let (staged, form) = match self.upper.stage_copy(&copy) {
            // The marks may not fit beside the guest's own attributes.
            Err(Errno::NOSPC | Errno::TOOBIG | Errno::RANGE)
                if matches!(contents, Contents::Elsewhere(..)) =>
            {
                let file = self.lower.open_file(object)?;
                copy.contents = Contents::Whole(file.as_fd(), copy.attributes.size);
                let staged = self.upper.stage_copy(&copy)?;
                self.lower.verify_file(object, file.as_fd())?;
                staged
            }
            staged => staged?,
        };
        if let (Some(from), Form::Whole) = (from, form) {
            // Somebody may have edited the base while it was copied.
            self.lower.verify_file(object, from)?;
        }
        Ok(Copy { staged, form, is_cut, lower: attributes })
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
        self.mark_impure(&dir)?;
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

/// A copy that nobody sees yet.
#[derive(Debug)]
struct Copy<'u> {
    staged: Staged<'u>,
    /// Where its data is.
    form: Form,
    /// It has the size that was asked for.
    is_cut: bool,
    /// What it was made of.
    lower: Attributes,
}

/// What decides how a copy comes by its data.
#[derive(Clone, Copy, Debug)]
struct Source {
    /// Of a regular file.
    bytes: Option<u64>,
    /// Its path in the base.
    path_bytes: usize,
    /// It has several names there.
    is_linked: bool,
}

/// How a copy comes by its data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Plan {
    /// It has none.
    Nothing,
    /// So many bytes move.
    Move(u64),
    /// So many bytes fall through but where they are written.
    ByBlock(u64),
    /// It stays in the lower, all of it.
    Elsewhere,
}

impl Plan {
    /// Whether the lower file has to be open. Of a small one whose data stays, blocks are not
    /// shared where they could be: its marks do as well, and need no waiting.
    fn needs_file(self, source: Source, shares_blocks: bool) -> bool {
        match self {
            Self::Nothing => false,
            Self::Move(_) => true,
            Self::ByBlock(_) => shares_blocks,
            Self::Elsewhere => shares_blocks && source.bytes >= Some(WHOLE_BYTES_MAX),
        }
    }
}

fn plan(purpose: Purpose, source: Source) -> Plan {
    let Some(lower_bytes) = source.bytes else { return Plan::Nothing };
    let bytes = match purpose {
        Purpose::Cut(size) => size.min(lower_bytes),
        Purpose::Attributes | Purpose::Data => lower_bytes,
    };
    match purpose {
        _ if bytes == 0 => Plan::Nothing,
        // The kernel's overlayfs finds the data of an indexed inode by its lower name, whatever
        // its redirect says: it would show what the guest has overwritten.
        _ if source.is_linked => Plan::Move(bytes),
        Purpose::Attributes if source.path_bytes <= REDIRECT_BYTES_MAX => Plan::Elsewhere,
        _ if lower_bytes >= WHOLE_BYTES_MAX => Plan::ByBlock(bytes),
        _ => Plan::Move(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_moves_only_for_who_changes_it_and_never_of_what_is_large() {
        const SMALL: u64 = 5000;
        const LARGE: u64 = 1 << 20;
        let (attributes, data) = (Purpose::Attributes, Purpose::Data);
        let rows = [
            (attributes, SMALL, false, Plan::Elsewhere, false),
            (attributes, LARGE, false, Plan::Elsewhere, true),
            (attributes, LARGE, true, Plan::Move(LARGE), true),
            (attributes, 0, false, Plan::Nothing, false),
            (data, SMALL, false, Plan::Move(SMALL), true),
            (data, LARGE, false, Plan::ByBlock(LARGE), true),
            (data, LARGE, true, Plan::Move(LARGE), true),
            (Purpose::Cut(0), LARGE, false, Plan::Nothing, false),
            (Purpose::Cut(9), SMALL, false, Plan::Move(9), true),
            (Purpose::Cut(9), LARGE, false, Plan::ByBlock(9), true),
            (Purpose::Cut(9), LARGE, true, Plan::Move(9), true),
            (Purpose::Cut(LARGE + 1), LARGE, false, Plan::ByBlock(LARGE), true),
        ];
        for (purpose, bytes, is_linked, expected, opens) in rows {
            let source = Source { bytes: Some(bytes), path_bytes: 3, is_linked };
            let decided = plan(purpose, source);
            let row = format!("{purpose:?} of {bytes}, linked: {is_linked}");
            assert_eq!((decided, decided.needs_file(source, true)), (expected, opens), "{row}");
            let moves = matches!(decided, Plan::Move(_));
            assert_eq!(decided.needs_file(source, false), moves, "{row}: no shared blocks");
        }
        let deep = Source { bytes: Some(SMALL), path_bytes: 256, is_linked: false };
        assert_eq!(plan(attributes, deep), Plan::Move(SMALL), "a path beyond a redirect's length");
        let none = Source { bytes: None, ..deep };
        assert_eq!(plan(data, none), Plan::Nothing, "no regular file");
    }
}
