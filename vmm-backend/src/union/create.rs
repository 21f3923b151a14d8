//! The one birth that create, mkdir, mknod and symlink share, and the further name of link.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use super::copy_up::Purpose;
use super::descriptors::Use;
use super::inherit::{Legacy, inherit};
use super::lookup::{Seen, Sight, generation};
use super::node::Node;
use super::stripes::Guard;
use super::{ELSEWHERE, HANDS_NOTHING_DOWN, NO_CAPABILITY, UNSETTLED, Union, directory};
use crate::filesystem::{Caller, Entry, Errno, Kind, Name, NewKind, NewObject, NodeId, SetTime};
use crate::layer::acl::DEFAULT_ACL;
use crate::layer::change::Place;
use crate::layer::upper::Birth;
use crate::layer::work::Over;

impl Union {
    pub(super) fn give_birth(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: Name<'_>,
        new: &NewObject<'_>,
    ) -> Result<Entry, Errno> {
        directory(self.copy_up(parent, Purpose::Attributes)?)?;
        let heritage = inherit(&self.legacy(parent)?, caller, new)?;
        let _names = self.names_shared();
        let _dir = self.directories.lock(parent);
        let dir = self.living_directory(parent)?;
        let over = self.room_for(&dir, name)?;
        let dir_handle = self.handle(&dir)?;
        let birth = Birth {
            owner: heritage.owner,
            target: if let NewKind::Symlink { target } = new.kind { target } else { b"" },
            xattrs: &heritage.acls,
            is_opaque: over == Over::Whiteout && matches!(new.kind, NewKind::Directory),
        };
        let place = Place { dir: dir_handle.as_fd(), name: name.as_bytes() };
        let (handle, attributes) = self.upper.bear(&birth, place, over)?;
        let number = handle.as_raw_fd();
        let mut seen = self.newborn(&dir, attributes);
        seen.handle = Some(Arc::new(handle));
        let (id, kind) = (seen.node.id, seen.node.kind);
        self.set_row(&dir, name.as_bytes(), Some((kind, id)))?;
        let entry = self.enter(seen, name.as_bytes())?;
        if kind == Kind::Directory
            && let Err(e) = self.begin_rows(id)
        {
            log::debug!("union: the rows of newborn directory {id} are read when asked for: {e}");
        }
        if kind == Kind::File {
            self.descriptors.lend_for_writing(id, number);
            self.times.set(id, SetTime::To(entry.attributes.mtime));
        }
        Ok(entry)
    }

    pub(super) fn give_unnamed_birth(
        &self,
        caller: &Caller,
        parent: NodeId,
        new: &NewObject<'_>,
    ) -> Result<Entry, Errno> {
        directory(self.copy_up(parent, Purpose::Attributes)?)?;
        let heritage = inherit(&self.legacy(parent)?, caller, new)?;
        let _names = self.names_shared();
        let dir = self.living_directory(parent)?;
        let file = self.upper.create_unnamed(&heritage.owner)?;
        for (name, value) in &heritage.acls {
            self.upper.set_xattr(file.as_fd(), (name, value), 0)?;
        }
        let attributes = self.upper.attributes(file.as_fd())?;
        let mut seen = self.newborn(&dir, attributes);
        seen.node.is_named = false;
        let id = seen.node.id;
        let entry = self.enter(seen, b"#unnamed")?;
        self.times.set(id, SetTime::To(entry.attributes.mtime));
        self.descriptors.keep(id, Use::Path, file);
        if !self.descriptors.hold(id)
            && let Err(e) = self.park(id)
        {
            self.nodes.forget(id, 1);
            self.descriptors.close(id);
            return Err(e);
        }
        Ok(entry)
    }

    pub(super) fn add_name(
        &self,
        id: NodeId,
        parent: NodeId,
        name: Name<'_>,
    ) -> Result<Entry, Errno> {
        if self.nodes.get(id)?.kind == Kind::Directory {
            return Err(Errno::PERM);
        }
        self.copy_up(id, Purpose::Attributes)?;
        directory(self.copy_up(parent, Purpose::Attributes)?)?;
        // A first change of its data writes the same marks.
        let _object = self.objects.lock(id);
        let _names = self.names_shared();
        let _dir = self.directories.lock(parent);
        let dir = self.living_directory(parent)?;
        let over = self.room_for(&dir, name)?;
        let node = self.nodes.get(id)?;
        let handle = self.handle(&node)?;
        let dir_handle = self.handle(&dir)?;
        let place = Place { dir: dir_handle.as_fd(), name: name.as_bytes() };
        if node.lower.is_some() {
            self.mark_impure(&dir)?;
        }
        self.count_by_upper(&node)?;
        if node.flags & (UNSETTLED | ELSEWHERE) != 0 {
            self.find_anywhere(&node, handle.as_fd())?;
        }
        match over {
            Over::Nothing => self.upper.link(handle.as_fd(), place)?,
            Over::Whiteout => self.upper.link_over_whiteout(handle.as_fd(), place)?,
        }
        self.set_row(&dir, name.as_bytes(), Some((node.kind, id)))?;
        self.named_again(id)?;
        let mut attributes = self.upper.attributes(handle.as_fd())?;
        attributes.node = id;
        if let (Some(_), Some(object)) = (self.links.name_of(&node), node.lower) {
            attributes.nlink = self.indexed_links(object, handle.as_fd())?;
        }
        let node = Node { parent: dir.id, is_named: true, ..node };
        let seen = Seen {
            node,
            attributes,
            handle: None,
            has_upper_entry: true,
            is_found_anywhere: false,
        };
        self.enter(seen, name.as_bytes())
    }

    /// A directory that can take entries. The caller holds `names`.
    pub(super) fn living_directory(&self, id: NodeId) -> Result<Node, Errno> {
        let dir = directory(self.nodes.get(id)?)?;
        if dir.is_named || id == NodeId::ROOT { Ok(dir) } else { Err(Errno::NOENT) }
    }

    /// Whether a name is free, and what of ours is in its place. Errors: `EEXIST`.
    fn room_for(&self, dir: &Node, name: Name<'_>) -> Result<Over, Errno> {
        match self.sight(dir, name.as_bytes())? {
            Sight::Nothing => Ok(Over::Nothing),
            Sight::Whiteout => Ok(Over::Whiteout),
            Sight::Object(_) => Err(Errno::EXIST),
        }
    }

    /// What a directory of the upper hands down. That it is nothing is looked up once.
    fn legacy(&self, dir: NodeId) -> Result<Legacy, Errno> {
        if self.nodes.get(dir)?.flags & HANDS_NOTHING_DOWN != 0 {
            return Ok(Legacy::default());
        }
        // What is found here and remembered must not be set in between.
        let _object = self.objects.lock(dir);
        let _names = self.names_shared();
        let handle = self.handle(&self.living_directory(dir)?)?;
        let legacy = self.legacy_of(handle.as_fd())?;
        if legacy.is_nothing() {
            self.nodes.update(dir, |node| node.flags |= HANDS_NOTHING_DOWN)?;
        }
        Ok(legacy)
    }

    /// A directory is about to get a mode or an ACL: what it hands down is looked up anew, once this
    /// is let go of.
    pub(super) fn look_up_legacy_anew(&self, dir: NodeId) -> Result<Guard<'_>, Errno> {
        let object = self.objects.lock(dir);
        self.nodes.update(dir, |node| node.flags &= !HANDS_NOTHING_DOWN)?;
        Ok(object)
    }

    pub(super) fn legacy_of(&self, dir: BorrowedFd<'_>) -> Result<Legacy, Errno> {
        let shown = self.upper.attributes(dir)?;
        let default_acl = match self.upper.xattr(dir, DEFAULT_ACL) {
            Ok(acl) => Some(acl),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => None,
            Err(e) => return Err(e),
        };
        Ok(Legacy::of(&shown, default_acl))
    }

    /// The node of an object that was just born in `dir`.
    fn newborn(&self, dir: &Node, mut attributes: crate::filesystem::Attributes) -> Seen {
        let id = NodeId(self.lower.upper_numbers_start() + attributes.node.0);
        let node = Node {
            id,
            parent: dir.id,
            generation: generation(&attributes),
            kind: attributes.kind(),
            lower: None,
            is_upper: true,
            is_named: true,
            flags: NO_CAPABILITY,
            lookups: 0,
        };
        attributes.node = id;
        Seen { node, attributes, handle: None, has_upper_entry: true, is_found_anywhere: false }
    }
}
