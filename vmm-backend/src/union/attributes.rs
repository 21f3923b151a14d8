//! Reading and changing attributes. A change copies up; a truncation copies only what stays.

use std::os::fd::{AsFd, BorrowedFd};

use super::copy_up::Purpose;
use super::descriptors::Use;
use super::node::Node;
use super::{CAPABILITY_WENT, ELSEWHERE, IN_DOUBT, NO_CAPABILITY, PARKED, UNSETTLED, Union};
use crate::filesystem::{
    Attributes, Errno, Kind, NodeId, Privileges, SetAttributes, SetTime, Timestamp,
};
use crate::layer::change::Grip;
use crate::layer::index::ObjectId;
use crate::layer::owner::Owner;

/// stat.h.
pub(super) const S_ISUID: u32 = 0o4000;
/// stat.h.
pub(super) const S_ISGID: u32 = 0o2000;
/// stat.h.
pub(super) const S_IXGRP: u32 = 0o0010;

/// The attribute that holds file capabilities.
pub(super) const CAPABILITY: &[u8] = b"security.capability";

impl Union {
    pub(super) fn attributes_by_id(&self, id: NodeId) -> Result<Attributes, Errno> {
        let _names = self.names_shared();
        let node = self.nodes.get(id)?;
        self.attributes_of(&node)
    }

    /// What `stat` shows of a known node. The caller holds `names`.
    pub(super) fn attributes_of(&self, node: &Node) -> Result<Attributes, Errno> {
        if !node.is_upper {
            let mut shown = self.lower_attributes(node.lower.ok_or(Errno::STALE)?)?;
            if !node.is_named {
                shown.nlink = 0;
            }
            return Ok(shown);
        }
        let handle = self.handle(node)?;
        let mut shown = self.upper.attributes(handle.as_fd())?;
        shown.node = node.id;
        if node.kind == Kind::Directory {
            let is_there = node.is_named || node.id == NodeId::ROOT;
            shown.nlink = if is_there { 2 + self.subdirectories(node, shown.nlink)? } else { 0 };
        } else if let (Some(_), Some(object)) = (self.links.name_of(node), node.lower) {
            shown.nlink = self.indexed_links(object, handle.as_fd())?;
        }
        if node.flags & PARKED != 0 {
            shown.nlink = shown.nlink.saturating_sub(1);
        }
        if let (true, Some(object)) = (node.flags & (UNSETTLED | ELSEWHERE) != 0, node.lower) {
            self.show_blocks(object, &mut shown)?;
        }
        Ok(shown)
    }

    /// An unsettled file takes as much room as it would as a copy, as far as that is known.
    pub(super) fn show_blocks(
        &self,
        object: ObjectId,
        shown: &mut Attributes,
    ) -> Result<(), Errno> {
        let lower = self.lower.attributes(object)?;
        // In units of 512 bytes; no more than its size now needs.
        shown.blocks = shown.blocks.max(lower.blocks.min(shown.size.div_ceil(4096) * 8));
        Ok(())
    }

    pub(super) fn change_attributes(
        &self,
        id: NodeId,
        change: &SetAttributes,
    ) -> Result<Attributes, Errno> {
        if change.size.is_some() && self.nodes.get(id)?.kind != Kind::File {
            return Err(Errno::INVAL);
        }
        if change.precedes_change {
            self.prepare_change(id)?;
            return self.attributes_by_id(id);
        }
        if self.keeps_attributes(id, change) {
            return self.attributes_by_id(id);
        }
        match change.size {
            None => drop(self.copy_up(id, Purpose::Attributes)?),
            Some(size) => self.cut(id, size)?,
        }
        let (node, handle) = self.reach(id)?;
        self.change_owner(&node, handle.as_fd(), change)?;
        self.change_times(&node, handle.as_fd(), change)?;
        self.attributes_by_id(id)
    }

    /// Whether a change is none, so that nothing is copied up for it.
    ///
    /// A host cannot set ctime: a change of it alone is none. Nor is what a guest's kernel says
    /// after each removal under the writeback cache: the ctime, which it keeps itself while
    /// anybody has the object open, and the mtime it knows (fs/fuse/dir.c: `fuse_entry_unlinked`,
    /// `fuse_update_ctime_in_cache`, `fuse_flush_times`). Each removed file of a lower would be
    /// copied up to be thrown away.
    pub(super) fn keeps_attributes(&self, id: NodeId, change: &SetAttributes) -> bool {
        let but_times = SetAttributes { ctime: None, mtime: None, ..*change };
        if but_times != SetAttributes::default() {
            return false;
        }
        match change.mtime {
            None => true,
            Some(SetTime::Now) => false,
            Some(SetTime::To(mtime)) => self.is_removed_with(id, mtime),
        }
    }

    /// Whether the union has no name any more for an object that a lower alone has, and this is
    /// its mtime.
    fn is_removed_with(&self, id: NodeId, mtime: Timestamp) -> bool {
        let removed = self.nodes.get(id).ok().filter(|node| !node.is_named && !node.is_upper);
        let object = removed.and_then(|node| node.lower);
        object.is_some_and(|object| {
            self.lower.attributes(object).is_ok_and(|lower| lower.mtime == mtime)
        })
    }

    fn cut(&self, id: NodeId, size: u64) -> Result<(), Errno> {
        // What was not in the upper came there in this size, or not at all.
        if self.raise(id, Purpose::Cut(size))?.is_cut || self.cut_unsettled(id, size)? {
            return Ok(());
        }
        let file = self.opened(id, Use::Write)?;
        let _shared = self.capabilities.share(id);
        self.upper.truncate(file.as_fd(), size)
    }

    fn change_times(
        &self,
        node: &Node,
        handle: BorrowedFd<'_>,
        change: &SetAttributes,
    ) -> Result<(), Errno> {
        // With a write that ends at the same time, the later of the two must know of the other.
        let _object = self.objects.lock(node.id);
        match change.mtime {
            Some(mtime) if node.kind == Kind::File => self.times.set(node.id, mtime),
            None if change.size.is_some() => self.times.forget(node.id),
            _ => {}
        }
        if change.atime.is_some() || change.mtime.is_some() {
            self.upper.change_times(handle, change.atime, change.mtime)?;
        }
        Ok(())
    }

    /// After a write whose mtime is the guest's: what the guest said stays.
    pub(super) fn restore_mtime(&self, id: NodeId) -> Result<(), Errno> {
        // What the guest says from here on, it says of this write too.
        if self.times.of(id).is_none() {
            return Ok(());
        }
        let _object = self.objects.lock(id);
        let Some(mtime) = self.times.of(id) else { return Ok(()) };
        let mtime = Some(SetTime::To(mtime));
        if let Some(file) = self.descriptors.get(id, Use::Write) {
            return self.upper.change_times(Grip::Opened(file.as_fd()), None, mtime);
        }
        let (_, handle) = self.reach(id)?;
        self.upper.change_times(handle.as_fd(), None, mtime)
    }

    /// Owner, mode, and the privileges that Linux takes away with a change.
    fn change_owner(
        &self,
        node: &Node,
        handle: BorrowedFd<'_>,
        change: &SetAttributes,
    ) -> Result<(), Errno> {
        let changes_owner = change.uid.is_some() || change.gid.is_some();
        if !changes_owner && change.mode.is_none() && !change.kill_privileges {
            return Ok(());
        }
        let sets_mode = change.mode.is_some() && node.kind == Kind::Directory;
        let _legacy = sets_mode.then(|| self.look_up_legacy_anew(node.id)).transpose()?;
        if node.flags & (CAPABILITY_WENT | IN_DOUBT) != 0 {
            self.nodes.update(node.id, |node| node.flags &= !(CAPABILITY_WENT | IN_DOUBT))?;
        }
        let shown = self.upper.attributes(handle)?;
        let owner = decide_owner(&shown, change);
        if (owner.uid, owner.gid, owner.mode) != (shown.uid, shown.gid, shown.mode)
            || changes_owner
            || change.mode.is_some()
        {
            self.upper.change_owner(handle, &shown, &owner)?;
        }
        if change.mode.is_some() && self.upper.maps_acls() {
            self.chmod_acl(handle, owner.mode)?;
        }
        if node.kind == Kind::File && (change.kill_privileges || changes_owner) {
            let _owned = self.own_capability(node.id);
            self.kill_capability(handle)?;
        }
        Ok(())
    }

    /// Takes setuid, setgid and capabilities from a file that one without the right to them
    /// writes.
    pub(super) fn kill_privileges(&self, id: NodeId) -> Result<(), Errno> {
        let (node, handle) = self.reach(id)?;
        let change = SetAttributes { kill_privileges: true, ..SetAttributes::default() };
        self.change_owner(&node, handle.as_fd(), &change)
    }

    /// Before a change of content that has no flag of its own for it.
    pub(super) fn clear_privileges(&self, id: NodeId, privileges: Privileges) -> Result<(), Errno> {
        let clears = match privileges {
            Privileges::Keep => false,
            Privileges::Clear => true,
            Privileges::AsSaid => self.nodes.get(id)?.flags & IN_DOUBT != 0,
        };
        if clears { self.kill_privileges(id) } else { Ok(()) }
    }

    /// Takes setuid and setgid away before the content changes, for the guest's kernel would go by
    /// those it knows until it asks again: it forgets size and times with a write, not the mode
    /// (fs/fuse/file.c: `fuse_write_update_attr`), and who ran the file would have its rights.
    ///
    /// It asks alike for the sake of capabilities, which it removes just before, also where the
    /// caller keeps the rest; and chown(2) to nobody in particular does. Then only the change
    /// itself says whether they go.
    fn prepare_change(&self, id: NodeId) -> Result<(), Errno> {
        let node = self.nodes.get(id)?;
        let mode = self.attributes_by_id(id)?.mode;
        let has_privileges = node.kind == Kind::File && mode & (S_ISUID | S_ISGID) != 0;
        if !has_privileges {
            return Ok(());
        }
        if node.flags & CAPABILITY_WENT != 0 {
            self.nodes.update(id, |node| {
                node.flags = (node.flags & !CAPABILITY_WENT) | IN_DOUBT;
            })?;
            return Ok(());
        }
        self.copy_up(id, Purpose::Attributes)?;
        let (node, handle) = self.reach(id)?;
        let clear =
            SetAttributes { kill_privileges: true, precedes_change: true, ..Default::default() };
        self.change_owner(&node, handle.as_fd(), &clear)
    }

    fn kill_capability(&self, handle: BorrowedFd<'_>) -> Result<(), Errno> {
        match self.upper.remove_xattr(handle, CAPABILITY) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// The capabilities of a file, which a write by the host would strip though the guest's
    /// kernel has decided that they stay. The caller keeps others from setting them: it owns their lock, or
    /// has the node's.
    pub(super) fn capability_of(&self, node: &Node) -> Result<Option<Vec<u8>>, Errno> {
        if node.flags & NO_CAPABILITY != 0 {
            return Ok(None);
        }
        let (_, handle) = self.reach(node.id)?;
        match self.upper.xattr(handle.as_fd(), CAPABILITY) {
            Ok(value) => Ok(Some(value)),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {
                self.nodes.update(node.id, |node| node.flags |= NO_CAPABILITY)?;
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Gives capabilities back after a write.
    pub(super) fn restore_capability(&self, id: NodeId, value: &[u8]) -> Result<(), Errno> {
        let (_, handle) = self.reach(id)?;
        self.upper.set_xattr(handle.as_fd(), (CAPABILITY, value), 0)
    }
}

/// The owner and mode after a change.
fn decide_owner(shown: &Attributes, change: &SetAttributes) -> Owner {
    let mut mode = shown.mode;
    if let Some(new) = change.mode {
        mode = (mode & !0o7777) | (new & 0o7777);
    }
    let changes_owner = change.uid.is_some() || change.gid.is_some();
    // chown(2): a change of owner clears them on all but directories, whoever makes it; a mode
    // that comes with it says what the guest's kernel has decided.
    let clears = change.kill_privileges || (changes_owner && change.mode.is_none());
    if clears && shown.kind() != Kind::Directory {
        mode &= !S_ISUID;
        // Where the group may not execute, it goes only if the writer is not of the group. A kernel
        // that asks before a change has looked.
        if mode & S_IXGRP != 0 || change.precedes_change {
            mode &= !S_ISGID;
        }
    }
    Owner {
        uid: change.uid.unwrap_or(shown.uid),
        gid: change.gid.unwrap_or(shown.gid),
        mode,
        rdev: shown.rdev,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filesystem::Timestamp;

    #[test]
    fn privileges_go_as_linux_takes_them() {
        let of_mode = |mode| Attributes {
            node: NodeId(2),
            mode,
            nlink: 1,
            uid: 5,
            gid: 6,
            rdev: 0,
            size: 0,
            blocks: 0,
            block_size: 4096,
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            btime: None,
        };
        let kill = SetAttributes { kill_privileges: true, ..SetAttributes::default() };
        let chown = SetAttributes { uid: Some(9), ..SetAttributes::default() };
        let both = SetAttributes { mode: Some(0o4755), ..chown };
        let asked = SetAttributes { precedes_change: true, ..kill };
        let rows = [
            ("a kernel that asks before clears both", 0o106_745, asked, 0o100_745),
            ("kill clears setuid", 0o104_755, kill, 0o100_755),
            ("kill clears setgid where the group may execute", 0o102_755, kill, 0o100_755),
            ("kill keeps mandatory locking's setgid", 0o102_745, kill, 0o102_745),
            ("chown clears as a write does", 0o106_755, chown, 0o100_755),
            ("a mode that comes with a chown is the guest's word", 0o100_755, both, 0o104_755),
            ("so it does on a device", 0o062_775, chown, 0o060_775),
            ("directories keep theirs", 0o042_755, chown, 0o042_755),
        ];
        for (row, before, change, after) in rows {
            let owner = decide_owner(&of_mode(before), &change);
            assert_eq!(owner.mode, after, "{row}");
        }
    }
}
