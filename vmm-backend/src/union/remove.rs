//! Unlink and rmdir: one visible step each, and no copy-up to delete.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::copy_up::Purpose;
use super::descriptors::Use;
use super::lookup::{Seen, Sight};
use super::node::Node;
use super::{INDEXED, PARKED, UNSETTLED, Union, directory};
use crate::filesystem::{Errno, Kind, Name, NodeId};
use crate::layer::change::Place;
use crate::layer::index::Slot;
use crate::layer::work::Staged;

impl Union {
    pub(super) fn remove_name(&self, parent: NodeId, name: Name<'_>) -> Result<(), Errno> {
        directory(self.copy_up(parent, Purpose::Attributes)?)?;
        self.index_link_first(parent, name)?;
        let _names = self.names_shared();
        let _dir = self.directories.lock(parent);
        let dir = self.living_directory(parent)?;
        let mut seen = self.object_at(&dir, name)?;
        if seen.node.kind == Kind::Directory {
            return Err(Errno::ISDIR);
        }
        self.count_name(&dir, name, &mut seen)?;
        self.before_removal(&dir, name, &seen)?;
        let aside = self.take_away(&dir, name, &seen)?;
        self.after_removal(&seen, aside);
        Ok(())
    }

    pub(super) fn remove_empty_directory(
        &self,
        parent: NodeId,
        name: Name<'_>,
    ) -> Result<(), Errno> {
        directory(self.copy_up(parent, Purpose::Attributes)?)?;
        let _names = self.names_shared();
        let victim = {
            let _dir = self.directories.lock(parent);
            let dir = self.living_directory(parent)?;
            self.object_at(&dir, name)?.node.id
        };
        let _both = self.directories.lock_two(parent, victim);
        let dir = self.living_directory(parent)?;
        let seen = self.object_at(&dir, name)?;
        if seen.node.kind != Kind::Directory {
            return Err(Errno::NOTDIR);
        }
        if seen.node.id != victim {
            // Replaced between the two looks; the guest's kernel, which locks both, never sees it.
            return Err(Errno::NOTEMPTY);
        }
        if !self.shows_nothing(&seen)? {
            return Err(Errno::NOTEMPTY);
        }
        self.before_removal(&dir, name, &seen)?;
        self.take_away(&dir, name, &seen).map(drop)
    }

    fn object_at(&self, dir: &Node, name: Name<'_>) -> Result<Seen, Errno> {
        match self.sight(dir, name.as_bytes())? {
            Sight::Object(seen) => Ok(*seen),
            Sight::Nothing | Sight::Whiteout => Err(Errno::NOENT),
        }
    }

    /// The link count of a hard link of the lower is kept with its index entry: it needs one
    /// before a name of it goes.
    pub(super) fn index_link_first(&self, parent: NodeId, name: Name<'_>) -> Result<(), Errno> {
        let node = {
            let _names = self.names_shared();
            let _dir = self.directories.lock(parent);
            let dir = self.living_directory(parent)?;
            if self.has_upper_alone(&dir, name) {
                return Ok(());
            }
            let node = self.object_at(&dir, name)?.node;
            let Some(object) =
                node.lower.filter(|_| node.kind != Kind::Directory && !node.is_upper)
            else {
                return Ok(());
            };
            if !self.lower.is_hard_linked(object)? {
                return Ok(());
            }
            // The copy-up needs a node; this one lives as long as it takes. Before the name can
            // change again.
            self.nodes.remember(node, name.as_bytes())?
        };
        let done = self.copy_up(node.id, Purpose::Attributes);
        for gone in self.nodes.forget(node.id, 1) {
            self.let_go(&gone);
        }
        done.map(|_| ())
    }

    /// Whether what is at a name, if anything, is known to be in the upper.
    fn has_upper_alone(&self, dir: &Node, name: Name<'_>) -> bool {
        dir.is_upper && (dir.lower.is_none() || self.nodes.row(dir.id, name.as_bytes()).is_some())
    }

    /// The link count of an indexed inode falls in the same step in which a name of it goes: with
    /// the name's own link in the upper.
    pub(super) fn count_name(
        &self,
        dir: &Node,
        name: Name<'_>,
        seen: &mut Seen,
    ) -> Result<(), Errno> {
        if seen.node.flags & INDEXED == 0 {
            return Ok(());
        }
        if seen.has_upper_entry {
            return self.count_by_upper(&seen.node);
        }
        let handle = self.handle(dir)?;
        self.link_up(dir, Place { dir: handle.as_fd(), name: name.as_bytes() }, seen)
    }

    /// Whether a directory is empty in the union. The caller holds its lock.
    pub(super) fn shows_nothing(&self, seen: &Seen) -> Result<bool, Errno> {
        let node = &seen.node;
        let mut hidden = std::collections::HashSet::new();
        if let Some(handle) = &seen.handle {
            for row in self.upper.names(handle.as_fd())? {
                if row.kind.is_some() {
                    return Ok(false);
                }
                hidden.insert(row.name);
            }
        }
        let Some(lower) = node.lower else { return Ok(true) };
        let mut slot = 0;
        while let Some(entry) = self.lower.entry(lower, Slot(slot))? {
            if !hidden.contains(entry.name) {
                return Ok(false);
            }
            slot += 1;
        }
        Ok(true)
    }

    /// What the guest holds must outlive its last name: it lives on by a descriptor, or parked.
    pub(super) fn before_removal(
        &self,
        dir: &Node,
        name: Name<'_>,
        seen: &Seen,
    ) -> Result<(), Errno> {
        let id = seen.node.id;
        let Ok(known) = self.nodes.get(id) else { return Ok(()) };
        let is_its_place =
            known.parent == dir.id && known.is_named && self.nodes.name(id)? == name.as_bytes();
        let loses_its_way = if known.flags & INDEXED == 0 {
            is_its_place
        } else {
            // The index entry leads to it while any name does.
            seen.attributes.nlink <= 1
        };
        if known.is_upper && loses_its_way {
            match &seen.handle {
                Some(handle) if self.descriptors.get(id, Use::Path).is_none() => {
                    self.descriptors.keep(id, Use::Path, Arc::clone(handle));
                }
                _ => drop(self.handle(&known)?),
            }
            if !self.descriptors.hold(id) && known.kind != Kind::Directory {
                self.park(id)?;
            }
        }
        if is_its_place {
            self.nodes.update(id, |node| node.is_named = false)?;
        }
        Ok(())
    }

    /// Gives a node's upper object a link to live by. The caller holds `names`.
    pub(super) fn park(&self, id: NodeId) -> Result<(), Errno> {
        let node = self.nodes.get(id)?;
        if node.flags & PARKED == 0 {
            self.upper.work().park_link(self.handle(&node)?.as_fd(), id)?;
            self.nodes.update(id, |node| node.flags |= PARKED)?;
        }
        Ok(())
    }

    /// The name of an object stays after all.
    pub(super) fn removal_failed(
        &self,
        dir: &Node,
        name: Name<'_>,
        seen: &Seen,
    ) -> Result<(), Errno> {
        let id = seen.node.id;
        if self.nodes.get(id).is_ok_and(|known| !known.is_named) {
            self.nodes.moved(id, dir.id, name.as_bytes())?;
            self.named_again(id)?;
        }
        Ok(())
    }

    /// Takes the name away, leaving a whiteout exactly where a lower object would show. Gives what
    /// has a map, which goes first.
    fn take_away(
        &self,
        dir: &Node,
        name: Name<'_>,
        seen: &Seen,
    ) -> Result<Option<Staged<'_>>, Errno> {
        let done = self.take_away_on_disk(dir, name, seen);
        if done.is_err() {
            self.removal_failed(dir, name, seen)?;
        }
        done
    }

    fn take_away_on_disk(
        &self,
        dir: &Node,
        name: Name<'_>,
        seen: &Seen,
    ) -> Result<Option<Staged<'_>>, Errno> {
        let handle = self.handle(dir)?;
        let place = Place { dir: handle.as_fd(), name: name.as_bytes() };
        let is_directory = seen.node.kind == Kind::Directory;
        let has_beneath = self.lower_child(dir, place.name)?.is_some();
        let work = self.upper.work();
        let mut aside = None;
        match (seen.has_upper_entry, has_beneath) {
            (true, true) if is_directory => {
                work.remove_directory_behind_whiteout(place.dir, place.name)?;
            }
            (true, false) if is_directory => work.remove_whole(place.dir, place.name)?,
            (true, leaves) if loses_its_map(seen) => {
                aside = Some(work.take_aside(place.dir, place.name, leaves)?);
            }
            (true, true) => work.replace_by_whiteout(place.dir, place.name)?,
            (true, false) => self.upper.unlink(place)?,
            (false, _) => work.put_whiteout(place.dir, place.name)?,
        }
        if has_beneath {
            self.set_row(dir, place.name, None)?;
        } else {
            self.remove_row(dir, place.name)?;
        }
        Ok(aside)
    }

    /// Keeps no map and no index entry of what lost its last name. The name is gone whatever
    /// becomes of them, so the guest must not hear of a failure. What was taken aside goes last: as
    /// long as it is there, the next start finds the map by it.
    pub(super) fn after_removal(&self, seen: &Seen, aside: Option<Staged<'_>>) {
        if let Err(e) = self.clean_up_after(seen) {
            log::warn!("union: something of removed node {} stays in work: {e}", seen.node.id);
            aside.into_iter().for_each(Staged::leave);
        }
    }

    fn clean_up_after(&self, seen: &Seen) -> Result<(), Errno> {
        if self.has_lost_its_map(seen)? {
            self.orphan_unsettled(seen)?;
        }
        match (seen.node.lower, &seen.handle) {
            (Some(object), Some(handle)) if seen.node.flags & INDEXED != 0 => {
                self.drop_index_if_unlinked(object, handle.as_fd())
            }
            _ => Ok(()),
        }
    }

    /// Whether what went was the last name of an unsettled file. It may have become one since it was
    /// looked at, and have a link that is no name.
    fn has_lost_its_map(&self, seen: &Seen) -> Result<bool, Errno> {
        let id = seen.node.id;
        let flags = self.nodes.get(id).map_or(seen.node.flags, |known| known.flags);
        let Some(handle) = seen.handle.as_ref().filter(|_| flags & UNSETTLED != 0) else {
            return Ok(false);
        };
        if seen.attributes.nlink <= 1 {
            return Ok(true);
        }
        let links = self.upper.attributes(handle.as_fd())?.nlink;
        Ok(links <= self.parked_links(id))
    }

    /// Links of a node's upper object that are no names of the union. Who counts them has counted all
    /// links before: so one that is taken away meanwhile makes it seem that a name is left, never that
    /// none is.
    pub(super) fn parked_links(&self, id: NodeId) -> u32 {
        self.nodes.get(id).map_or(0, |node| u32::from(node.flags & PARKED != 0))
    }
}

/// Whether what goes is the last name of an unsettled file.
pub(super) fn loses_its_map(seen: &Seen) -> bool {
    seen.node.flags & UNSETTLED != 0 && seen.attributes.nlink <= 1
}
