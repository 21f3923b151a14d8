//! Rename in all its forms, judged on the union: what the host is asked for follows from what each
//! layer has at the two names.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::copy_up::Purpose;
use super::inherit::inherit;
use super::lookup::{Seen, Sight};
use super::node::Node;
use super::remove::loses_its_map;
use super::{ELSEWHERE, INDEXED, UNSETTLED, Union, directory};
use crate::filesystem::{
    Caller, Errno, Kind, Name, NewKind, NewObject, NodeId, Rename, RenameFlags,
};
use crate::layer::change::{HostRename, Place};
use crate::layer::leaving::Leaving;
use crate::layer::mark::Mark;
use crate::layer::upper::Birth;
use crate::layer::work::{Over, Staged};

/// How often a rename is begun again when a name changed between copy-up and the move.
const TRIES_MAX: u32 = 16;

/// One name of a rename, with what is there.
#[derive(Debug)]
struct End<'a> {
    dir: Node,
    handle: Arc<OwnedFd>,
    name: Name<'a>,
    /// What the union shows there.
    seen: Option<Seen>,
    /// The upper has a whiteout there.
    is_whiteout: bool,
    /// What the lower has there, hidden or not.
    beneath: Option<Kind>,
}

impl End<'_> {
    fn place(&self) -> Place<'_> {
        Place { dir: self.handle.as_fd(), name: self.name.as_bytes() }
    }

    fn is_directory(&self) -> bool {
        self.seen.as_ref().is_some_and(|seen| seen.node.kind == Kind::Directory)
    }
}

/// What the host is asked to do so that the union shows the rename.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Plan {
    how: HostRename,
    /// The exchange left a whiteout at the old name that hides nothing.
    drops_whiteout: bool,
}

/// Decides the host's rename from what is at the two names.
fn plan(flags: RenameFlags, old_beneath: bool, moves_directory: bool, onto_whiteout: bool) -> Plan {
    let how = if flags.exchange || (moves_directory && onto_whiteout) {
        // A directory cannot replace a whiteout, which is no directory: they change places.
        HostRename::Exchange
    } else if old_beneath {
        HostRename::LeaveWhiteout
    } else {
        HostRename::Replace
    };
    let drops_whiteout = !flags.exchange && how == HostRename::Exchange && !old_beneath;
    Plan { how, drops_whiteout }
}

/// Judges a rename by what the union shows at both names.
fn judge(flags: RenameFlags, old: &End<'_>, new: &End<'_>) -> Result<(), Errno> {
    if old.seen.is_none() {
        return Err(Errno::NOENT);
    }
    match (&new.seen, flags.exchange) {
        (None, true) => Err(Errno::NOENT),
        (None, false) | (Some(_), true) => Ok(()),
        (Some(_), false) if flags.no_replace => Err(Errno::EXIST),
        (Some(_), false) => match (old.is_directory(), new.is_directory()) {
            (true, false) => Err(Errno::NOTDIR),
            (false, true) => Err(Errno::ISDIR),
            _ => Ok(()),
        },
    }
}

impl Union {
    pub(super) fn move_name(&self, caller: &Caller, rename: &Rename<'_>) -> Result<(), Errno> {
        for _ in 0..TRIES_MAX {
            match self.try_move(caller, rename) {
                Err(Errno::AGAIN) => {}
                done => return done,
            }
        }
        log::error!("union: a rename met other changes each of {TRIES_MAX} times");
        Err(Errno::IO)
    }

    fn try_move(&self, caller: &Caller, rename: &Rename<'_>) -> Result<(), Errno> {
        directory(self.nodes.get(rename.from)?)?;
        directory(self.nodes.get(rename.to)?)?;
        let old = self.bring_up(rename.from, rename.name, true)?.ok_or(Errno::NOENT)?;
        let moved = self.bring_up(rename.to, rename.new_name, rename.flags.exchange);
        let done = moved.and_then(|new| {
            let done = self.move_prepared(caller, rename);
            self.put_down(new);
            done
        });
        self.put_down(Some(old));
        done
    }

    /// Copies up what is at a name, if it is to move, and the directory it is in. The node it gives
    /// counts a lookup until [`Union::put_down`].
    fn bring_up(
        &self,
        parent: NodeId,
        name: Name<'_>,
        moves: bool,
    ) -> Result<Option<NodeId>, Errno> {
        let seen = {
            let _names = self.names_shared();
            let _dir = self.directories.lock(parent);
            let dir = self.living_directory(parent)?;
            match self.sight(&dir, name.as_bytes())? {
                Sight::Object(seen) => {
                    // Before the name can change again.
                    self.nodes.remember(seen.node, name.as_bytes())?;
                    seen
                }
                Sight::Nothing | Sight::Whiteout => {
                    drop(_dir);
                    drop(_names);
                    self.copy_up(parent, Purpose::Attributes)?;
                    return Ok(None);
                }
            }
        };
        let node = seen.node;
        let is_up = self.copy_up(parent, Purpose::Attributes).and_then(|_| match node.lower {
            Some(object) if node.kind != Kind::Directory => self.lower.is_hard_linked(object),
            _ => Ok(false),
        });
        let is_up = is_up.and_then(|needs_index| match moves || needs_index {
            true => self.copy_up(node.id, Purpose::Attributes).map(drop),
            false => Ok(()),
        });
        if let Err(e) = is_up {
            self.put_down(Some(node.id));
            return Err(e);
        }
        Ok(Some(node.id))
    }

    pub(super) fn put_down(&self, id: Option<NodeId>) {
        for gone in id.into_iter().flat_map(|id| self.nodes.forget(id, 1)) {
            self.let_go(&gone);
        }
    }

    /// The move itself, all names being held still.
    fn move_prepared(&self, caller: &Caller, rename: &Rename<'_>) -> Result<(), Errno> {
        let _names = self.names_exclusive();
        let mut old = self.end(rename.from, rename.name)?;
        let mut new = self.end(rename.to, rename.new_name)?;
        judge(rename.flags, &old, &new)?;
        if let (Some(one), Some(other)) = (&old.seen, &new.seen)
            && one.node.id == other.node.id
        {
            // rename(2): two names of one file, nothing happens.
            return Ok(());
        }
        self.refuse_own_subtree(&old, &new)?;
        if rename.flags.exchange {
            self.refuse_own_subtree(&new, &old)?;
        }
        self.make_movable(&mut old, &new)?;
        if rename.flags.exchange {
            self.make_movable(&mut new, &old)?;
            return self.exchange(&old, &new);
        }
        if let Some(target) = &mut new.seen {
            self.count_name(&new.dir, new.name, target)?;
        }
        self.replace(caller, rename.flags, &old, &new)
    }

    fn end<'a>(&self, parent: NodeId, name: Name<'a>) -> Result<End<'a>, Errno> {
        let dir = self.living_directory(parent)?;
        if !dir.is_upper {
            return Err(Errno::AGAIN);
        }
        let (seen, is_whiteout) = match self.sight(&dir, name.as_bytes())? {
            Sight::Object(seen) => (Some(*seen), false),
            Sight::Whiteout => (None, true),
            Sight::Nothing => (None, false),
        };
        let beneath = self.lower_child(&dir, name.as_bytes())?.map(|(_, kind)| kind);
        let handle = self.handle(&dir)?;
        Ok(End { dir, handle, name, seen, is_whiteout, beneath })
    }

    fn refuse_own_subtree(&self, moved: &End<'_>, into: &End<'_>) -> Result<(), Errno> {
        match &moved.seen {
            Some(seen)
                if moved.is_directory() && self.nodes.is_ancestor(seen.node.id, into.dir.id) =>
            {
                Err(Errno::INVAL)
            }
            _ => Ok(()),
        }
    }

    /// Gives an object the marks by which it stays what it is at its new name.
    fn make_movable(&self, moved: &mut End<'_>, to: &End<'_>) -> Result<(), Errno> {
        let Some(seen) = &mut moved.seen else { return Err(Errno::NOENT) };
        if !seen.has_upper_entry {
            // A lower name of an indexed inode gets its own link in the upper, to be moved.
            let place = Place { dir: moved.handle.as_fd(), name: moved.name.as_bytes() };
            self.link_up(&moved.dir, place, seen)?;
        }
        let Some(handle) = &seen.handle else { return Err(Errno::AGAIN) };
        if seen.node.lower.is_some() {
            self.mark_impure(&to.dir)?;
        }
        if seen.node.flags & (UNSETTLED | ELSEWHERE) != 0 && !seen.is_found_anywhere {
            self.find_anywhere(&seen.node, handle.as_fd())?;
        }
        if seen.node.kind != Kind::Directory {
            return Ok(());
        }
        match seen.node.lower {
            Some(lower) => self.upper.set_redirect(handle.as_fd(), &self.lower.path(lower)?),
            None if to.beneath == Some(Kind::Directory) => {
                self.upper.set_mark(handle.as_fd(), Mark::Opaque, b"y")
            }
            None => Ok(()),
        }
    }

    fn exchange(&self, old: &End<'_>, new: &End<'_>) -> Result<(), Errno> {
        self.upper.rename(old.place(), new.place(), HostRename::Exchange)?;
        self.arrive(old, new)?;
        self.arrive(new, old)
    }

    /// Records that what was at `moved` is at `to` now.
    fn arrive(&self, moved: &End<'_>, to: &End<'_>) -> Result<(), Errno> {
        let node = moved.seen.as_ref().ok_or(Errno::IO)?.node;
        self.set_row(&to.dir, to.name.as_bytes(), Some((node.kind, node.id)))?;
        self.nodes.moved(node.id, to.dir.id, to.name.as_bytes())
    }

    fn replace(
        &self,
        caller: &Caller,
        flags: RenameFlags,
        old: &End<'_>,
        new: &End<'_>,
    ) -> Result<(), Errno> {
        if let Some(target) = &new.seen {
            self.make_room(old, new, target)?;
        }
        // Made before anything is seen to move: the disk may be full.
        let guest_whiteout =
            flags.whiteout.then(|| self.stage_guest_whiteout(caller, old)).transpose();
        let plan = plan(flags, old.beneath.is_some(), old.is_directory(), new.is_whiteout);
        let moved = guest_whiteout.and_then(|staged| {
            let record = staged.as_ref().map(|staged| self.record_leaving(old, staged));
            let record = record.transpose()?;
            let aside = self.link_aside(new)?;
            self.upper.rename(old.place(), new.place(), plan.how)?;
            Ok((staged.zip(record), aside))
        });
        let (guest_whiteout, aside) = moved.or_else(|e| {
            if let Some(target) = &new.seen {
                self.removal_failed(&new.dir, new.name, target)?;
            }
            Err(e)
        })?;
        if old.beneath.is_some() {
            self.set_row(&old.dir, old.name.as_bytes(), None)?;
        } else {
            self.remove_row(&old.dir, old.name.as_bytes())?;
        }
        self.arrive(old, new)?;
        if plan.drops_whiteout
            && let Err(e) = self.upper.unlink(old.place())
        {
            log::warn!("union: a whiteout that hides nothing stays: {e}");
            self.set_row(&old.dir, old.name.as_bytes(), None)?;
        }
        if let Some(target) = &new.seen {
            self.after_removal(target, aside);
        }
        match guest_whiteout {
            Some((staged, record)) => {
                let left = self.leave_guest_whiteout(caller, old, staged);
                drop(record);
                left
            }
            None => Ok(()),
        }
    }

    /// Readies what is about to be replaced: the guest may hold it, and a directory must be empty
    /// for the host too.
    fn make_room(&self, old: &End<'_>, new: &End<'_>, target: &Seen) -> Result<(), Errno> {
        if old.is_directory() {
            if !self.shows_nothing(target)? {
                return Err(Errno::NOTEMPTY);
            }
            if let (Some(handle), true) = (&target.handle, target.has_upper_entry) {
                self.clear(target.node.id, handle.as_fd())?;
            }
        } else if target.node.flags & INDEXED == 0
            && !target.node.is_upper
            && self.lower.is_hard_linked(target.node.lower.ok_or(Errno::IO)?)?
        {
            return Err(Errno::AGAIN);
        }
        self.before_removal(&new.dir, new.name, target)
    }

    /// Takes the whiteouts out of a directory that shows nothing, of which no lower is to show any more. The
    /// move may fail, and it stays: what is known of it is as on disk at each step.
    fn clear(&self, id: NodeId, dir: BorrowedFd<'_>) -> Result<(), Errno> {
        self.upper.set_mark(dir, Mark::Opaque, b"y")?;
        let is_known = self.nodes.get(id).is_ok();
        if is_known {
            self.nodes.update(id, |node| node.lower = None)?;
        }
        let cleared = self.upper.work().clear_whiteouts(dir);
        if is_known {
            self.forget_rows(id);
        }
        cleared
    }

    /// What is replaced goes with the move. If it has a map it stays until that has gone.
    fn link_aside(&self, new: &End<'_>) -> Result<Option<Staged<'_>>, Errno> {
        let target = new.seen.as_ref().filter(|target| loses_its_map(target));
        let handle = target.and_then(|target| target.handle.as_ref());
        handle.map(|handle| self.upper.work().link_aside(handle.as_fd())).transpose()
    }

    /// RENAME_WHITEOUT: the guest wants a char 0:0 at the old name, which is an object of its own,
    /// born there like any other. Source: fs/ext4/namei.c, `ext4_whiteout_for_rename`.
    fn stage_guest_whiteout(&self, caller: &Caller, old: &End<'_>) -> Result<Staged<'_>, Errno> {
        let kind = NewKind::Special { kind: Kind::CharDevice, rdev: 0 };
        let new = NewObject { kind, mode: 0, umask: 0, supplementary_group: None };
        let heritage = inherit(&self.legacy_of(old.handle.as_fd())?, caller, &new)?;
        let (owner, xattrs) = (heritage.owner, &heritage.acls[..]);
        let birth = Birth { owner, target: b"", xattrs, is_opaque: false };
        self.upper.stage(&birth)
    }

    /// What is to be left is written down before anything moves: both happen or none, though the
    /// host can do one at a time.
    fn record_leaving(&self, old: &End<'_>, staged: &Staged<'_>) -> Result<Staged<'_>, Errno> {
        let handle = old.seen.as_ref().and_then(|seen| seen.handle.as_ref()).ok_or(Errno::IO)?;
        let dir = self.nodes.path(old.dir.id)?;
        let moved = self.upper.inode_number(handle.as_fd())?;
        let leaving = Leaving { dir: &dir, name: old.name.as_bytes(), moved };
        self.upper.record_leaving(staged, leaving)
    }

    fn leave_guest_whiteout(
        &self,
        caller: &Caller,
        old: &End<'_>,
        staged: Staged<'_>,
    ) -> Result<(), Errno> {
        let over = if old.beneath.is_some() { Over::Whiteout } else { Over::Nothing };
        let place = old.place();
        let publish = |staged| self.upper.work().publish(staged, place.dir, place.name, over);
        let handle = publish(staged).or_else(|e| {
            // The move is seen already, so this must not fail where it can be helped.
            log::warn!("union: what a rename leaves is put once more: {e}");
            publish(self.stage_guest_whiteout(caller, old)?)
        })?;
        let number = self.upper.inode_number(handle.as_fd())?;
        let id = NodeId(self.lower.upper_numbers_start() + number);
        self.set_row(&old.dir, place.name, Some((Kind::CharDevice, id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rename_leaves_a_whiteout_exactly_where_a_lower_would_show() {
        let plain = RenameFlags::default();
        let exchange = RenameFlags { exchange: true, ..plain };
        let rows = [
            ("file, nothing beneath", plain, (false, false, false), HostRename::Replace, false),
            ("file over a whiteout", plain, (false, false, true), HostRename::Replace, false),
            ("file, lower beneath", plain, (true, false, false), HostRename::LeaveWhiteout, false),
            ("directory onto a whiteout", plain, (false, true, true), HostRename::Exchange, true),
            (
                "lower directory onto a whiteout: the whiteout it got is wanted",
                plain,
                (true, true, true),
                HostRename::Exchange,
                false,
            ),
            ("exchange", exchange, (true, true, false), HostRename::Exchange, false),
        ];
        for (row, flags, (beneath, is_directory, whiteout), how, drops_whiteout) in rows {
            assert_eq!(
                plan(flags, beneath, is_directory, whiteout),
                Plan { how, drops_whiteout },
                "{row}"
            );
        }
    }
}
