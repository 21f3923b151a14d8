//! What a name means in the union: upper names win, whiteouts hide, the rest is the lower's.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::descriptors::Use;
use super::node::Node;
use super::{ELSEWHERE, FOUND_ANYWHERE, INDEXED, PARKED, UNSETTLED, Union, directory};
use crate::filesystem::{Attributes, Entry, Errno, FOREVER, Kind, Name, NodeId};
use crate::layer::index::{IndexId, ObjectId};
use crate::layer::mark::Marks;
use crate::layer::upper::{Found, UpperObject};

/// What the union has at a name.
#[derive(Debug)]
pub(super) enum Sight {
    /// Nothing, and nothing is in the way of a birth.
    Nothing,
    /// Nothing, by a whiteout that a birth has to replace.
    Whiteout,
    /// An object.
    Object(Box<Seen>),
}

/// An object at a name.
#[derive(Debug)]
pub(super) struct Seen {
    /// The node it is; not remembered yet.
    pub node: Node,
    /// What it shows; a directory's link count is not filled in yet.
    pub attributes: Attributes,
    /// The upper object, where there is one.
    pub handle: Option<Arc<OwnedFd>>,
    /// The upper has an entry of this name (an indexed hard link may be seen without one).
    pub has_upper_entry: bool,
    /// Wherever it moves, its marks lead to what it has in the lower.
    pub is_found_anywhere: bool,
}

impl Union {
    pub(super) fn look_up(&self, parent: NodeId, name: Name<'_>) -> Result<Entry, Errno> {
        let _names = self.names_shared();
        let _dir = self.directories.lock(parent);
        let dir = directory(self.nodes.get(parent)?)?;
        match self.sight(&dir, name.as_bytes())? {
            Sight::Nothing | Sight::Whiteout => Err(Errno::NOENT),
            Sight::Object(seen) => self.enter(*seen, name.as_bytes()),
        }
    }

    pub(super) fn look_up_self(&self, id: NodeId) -> Result<Entry, Errno> {
        let _names = self.names_shared();
        let node = self.nodes.get(id)?;
        let name = self.nodes.name(id)?;
        let attributes = self.attributes_of(&node)?;
        if id != NodeId::ROOT {
            self.nodes.remember(node, &name)?;
        }
        Ok(entry(attributes, node.generation))
    }

    pub(super) fn look_up_parent(&self, id: NodeId) -> Result<Entry, Errno> {
        let parent = directory(self.nodes.get(id)?)?.parent;
        self.look_up_self(parent)
    }

    /// What is at `name` in `dir`. The caller holds `names` and the directory's lock.
    pub(super) fn sight(&self, dir: &Node, name: &[u8]) -> Result<Sight, Errno> {
        if !dir.is_named && dir.id != NodeId::ROOT {
            // A removed directory is empty for ever.
            return Ok(Sight::Nothing);
        }
        if let Some(seen) = self.known_at(dir, name)? {
            return Ok(Sight::Object(Box::new(seen)));
        }
        match self.upper_entry(dir, name)? {
            Found::Whiteout => Ok(Sight::Whiteout),
            Found::Object(object) => {
                Ok(Sight::Object(Box::new(self.seen_in_upper(dir, name, *object)?)))
            }
            Found::Absent => match self.lower_child(dir, name)? {
                None => Ok(Sight::Nothing),
                Some((object, kind)) => {
                    Ok(Sight::Object(Box::new(self.seen_in_lower(dir, object, kind)?)))
                }
            },
        }
    }

    /// The object at a name, if the row there leads to a node that is at hand: the disk need not be
    /// asked what it is. An indexed one counts its names elsewhere. Whether a directory shows the lower
    /// is its marks' to say: a rename that failed may have made it opaque.
    fn known_at(&self, dir: &Node, name: &[u8]) -> Result<Option<Seen>, Errno> {
        let id = self.nodes.row(dir.id, name).and_then(|row| row.kind.and(row.id));
        let Some(node) = id.and_then(|id| self.nodes.get(id).ok()) else { return Ok(None) };
        let is_there = dir.is_upper
            && node.is_upper
            && node.is_named
            && node.parent == dir.id
            && node.flags & INDEXED == 0
            && node.kind != Kind::Directory
            && self.nodes.name(node.id)? == name;
        let handle = self.descriptors.get(node.id, Use::Path).filter(|_| is_there);
        let Some(handle) = handle else { return Ok(None) };
        let mut attributes = self.upper.attributes(handle.as_fd())?;
        attributes.node = node.id;
        if let (true, Some(object)) = (node.flags & (UNSETTLED | ELSEWHERE) != 0, node.lower) {
            self.show_blocks(object, &mut attributes)?;
        }
        let is_found_anywhere = node.flags & FOUND_ANYWHERE != 0;
        let handle = Some(handle);
        Ok(Some(Seen { node, attributes, handle, has_upper_entry: true, is_found_anywhere }))
    }

    /// The upper's part of the answer. The rows of a merged directory are known, so that names the
    /// upper does not have cost no system call.
    fn upper_entry(&self, dir: &Node, name: &[u8]) -> Result<Found, Errno> {
        if !dir.is_upper {
            return Ok(Found::Absent);
        }
        if dir.lower.is_some() {
            self.load_rows(dir)?;
        }
        if self.nodes.has_listing(dir.id) {
            match self.nodes.row(dir.id, name) {
                None => return Ok(Found::Absent),
                Some(row) if row.kind.is_none() => return Ok(Found::Whiteout),
                Some(_) => {}
            }
        }
        self.upper.find(self.handle(dir)?.as_fd(), name)
    }

    fn seen_in_upper(&self, dir: &Node, name: &[u8], object: UpperObject) -> Result<Seen, Errno> {
        let UpperObject { handle, mut attributes, marks } = object;
        let kind = attributes.kind();
        let origin = self.origin_of(&marks, kind);
        if let (Some(named), None) = (marks.origin, origin) {
            log::warn!(
                "union: {:?} names object {} of base {} as its origin, which is none of its kind \
                 here: it is served as an object of the upper alone",
                Name::new(name),
                named.object,
                super::hexadecimal(&named.identity)
            );
        }
        if kind == Kind::File
            && !marks.is_metacopy
            && (marks.redirect.is_some() || marks.has_blocks)
        {
            self.upper.end_spent(handle.as_fd())?;
        }
        let lower = match kind {
            Kind::Directory => self.merged_beneath(dir, name, &marks)?,
            Kind::File if marks.is_metacopy && origin.is_none() => {
                Some(self.data_beneath(dir, name, &marks)?)
            }
            _ => origin,
        };
        let id = match origin.or(lower) {
            Some(object) => NodeId(object.0.into()),
            None => NodeId(self.lower.upper_numbers_start() + attributes.node.0),
        };
        let mut flags = 0;
        if let Some(object) = lower.filter(|_| kind != Kind::Directory) {
            if self.links.get(object).is_some() {
                flags |= INDEXED;
                attributes.nlink = self.indexed_links(object, handle.as_fd())?;
            }
            if marks.is_metacopy && kind == Kind::File {
                flags |= self.form_of_metacopy(flags, &marks);
                self.show_blocks(object, &mut attributes)?;
            }
        }
        attributes.node = id;
        let node = Node {
            id,
            parent: dir.id,
            generation: if self.is_upper_born(id) { generation(&attributes) } else { 0 },
            kind,
            lower,
            is_upper: true,
            is_named: true,
            flags,
            lookups: 0,
        };
        let leads_there = |to: &[u8]| to.starts_with(b"/");
        let is_found_anywhere =
            origin.is_some() && marks.redirect.as_deref().is_some_and(leads_there);
        let handle = Some(Arc::new(handle));
        let mut seen = Seen { node, attributes, handle, has_upper_entry: true, is_found_anywhere };
        if let (ELSEWHERE, Some(object)) = (flags & ELSEWHERE, lower)
            && self.nodes.get(id).is_err()
        {
            // As long as nobody can be cutting it.
            self.mend_length(&mut seen, &self.lower.attributes(object)?)?;
        }
        Ok(seen)
    }

    /// The lower object a mark names, if it is one of this base's and could have become this. No
    /// other object was ever the root.
    pub(super) fn origin_of(&self, marks: &Marks, kind: Kind) -> Option<ObjectId> {
        let origin = marks.origin?;
        let object = ObjectId(origin.object);
        let is_ours = self.lower.continues(IndexId(origin.identity))
            && object != ObjectId::ROOT
            && self.lower.kind(object) == Ok(kind);
        is_ours.then_some(object)
    }

    /// The lower file that has the data of a metacopy the kernel's overlayfs wrote.
    fn data_beneath(&self, dir: &Node, name: &[u8], marks: &Marks) -> Result<ObjectId, Errno> {
        match self.redirected(dir, name, marks)? {
            Some((object, Kind::File)) => Ok(object),
            _ => {
                log::error!("union: {:?} is a metacopy without data in this base", Name::new(name));
                Err(Errno::IO)
            }
        }
    }

    /// What the lower has where an object is redirected to, or else at its name. Steps that are no
    /// names lead nowhere.
    fn redirected(
        &self,
        dir: &Node,
        name: &[u8],
        marks: &Marks,
    ) -> Result<Option<(ObjectId, Kind)>, Errno> {
        match marks.redirect.as_deref() {
            None => self.lower_child(dir, name),
            Some([b'/', path @ ..]) => {
                let object = self.lower.resolve(path)?;
                object.map(|object| Ok((object, self.lower.kind(object)?))).transpose()
            }
            Some(sibling) => match Name::new(sibling) {
                Ok(sibling) => self.lower_child(dir, sibling.as_bytes()),
                Err(_) => Ok(None),
            },
        }
    }

    /// The lower directory an upper directory shows through.
    fn merged_beneath(
        &self,
        dir: &Node,
        name: &[u8],
        marks: &Marks,
    ) -> Result<Option<ObjectId>, Errno> {
        if marks.is_opaque {
            return Ok(None);
        }
        match self.redirected(dir, name, marks)? {
            Some((object, Kind::Directory)) if object != ObjectId::ROOT => Ok(Some(object)),
            None if marks.redirect.is_none() => Ok(None),
            Some(_) if marks.redirect.is_none() => Ok(None),
            _ => {
                log::error!(
                    "union: directory {:?} is redirected to {:?}, which is no directory of this \
                     base",
                    Name::new(name),
                    marks.redirect.as_deref().map(|path| path.escape_ascii().to_string())
                );
                Err(Errno::IO)
            }
        }
    }

    /// A lower object that nothing in the upper hides, at its name in `dir`.
    pub(super) fn seen_in_lower(
        &self,
        dir: &Node,
        object: ObjectId,
        kind: Kind,
    ) -> Result<Seen, Errno> {
        let mut node = Node {
            id: NodeId(object.0.into()),
            parent: dir.id,
            generation: 0,
            kind,
            lower: Some(object),
            is_upper: false,
            is_named: true,
            flags: 0,
            lookups: 0,
        };
        let Some(indexed) = self.links.get(object).filter(|_| kind != Kind::Directory) else {
            let attributes = self.lower_attributes(object)?;
            let (handle, has_upper_entry, is_found_anywhere) = (None, false, false);
            return Ok(Seen { node, attributes, handle, has_upper_entry, is_found_anywhere });
        };
        node.is_upper = true;
        node.flags = INDEXED;
        let handle = self.upper.open_indexed(&indexed)?;
        let mut attributes = self.upper.attributes(handle.as_fd())?;
        attributes.node = node.id;
        attributes.nlink = self.indexed_links(object, handle.as_fd())?;
        if self.upper.is_metacopy(handle.as_fd())? {
            node.flags |= UNSETTLED;
            self.show_blocks(object, &mut attributes)?;
        }
        let (has_upper_entry, is_found_anywhere) = (false, false);
        let handle = Some(Arc::new(handle));
        Ok(Seen { node, attributes, handle, has_upper_entry, is_found_anywhere })
    }

    /// Counts a lookup of what was seen and gives it to the guest.
    pub(super) fn enter(&self, seen: Seen, name: &[u8]) -> Result<Entry, Errno> {
        let mut attributes = seen.attributes;
        let again = self.nodes.remember_again(&seen.node, name)?;
        let known = match again {
            Some(_) => None,
            None => self.nodes.get(seen.node.id).ok().filter(|known| !known.is_named),
        };
        if let Some(known) = known
            && known.is_another_than(&seen.node)
        {
            // The host gave the number of a removed object out again.
            self.descriptors.close(known.id);
            self.hidden.forget(known.id);
            self.times.forget(known.id);
            self.nodes.drop_listing(known.id);
        }
        let node = match again {
            Some(node) => node,
            None => self.nodes.remember_anew(seen.node, name)?,
        };
        if let Some(handle) = seen.handle
            && self.descriptors.get(node.id, Use::Path).is_none()
        {
            self.descriptors.keep(node.id, Use::Path, handle);
        }
        if known.is_some() && node.is_named {
            attributes.nlink = attributes.nlink.saturating_sub(self.named_again(node.id)?);
        }
        if node.kind == Kind::Directory && node.is_upper {
            attributes.nlink = 2 + self.subdirectories(&node, attributes.nlink)?;
        }
        Ok(entry(attributes, node.generation))
    }

    /// A node has a name by which it lives. Gives the number of links that go by it.
    pub(super) fn named_again(&self, id: NodeId) -> Result<u32, Errno> {
        self.descriptors.release(id);
        let mut is_parked = false;
        // Before the link goes: what counts it as no name does so as long as it is there.
        self.nodes.update(id, |node| {
            is_parked = node.flags & PARKED != 0;
            node.flags &= !PARKED;
        })?;
        if !is_parked {
            return Ok(0);
        }
        if let Err(e) = self.upper.work().drop_parked(id) {
            self.nodes.update(id, |node| node.flags |= PARKED)?;
            return Err(e);
        }
        Ok(1)
    }

    /// The guest let go of a node for good.
    pub(super) fn let_go(&self, node: &Node) {
        self.descriptors.close(node.id);
        self.hidden.forget(node.id);
        self.times.forget(node.id);
        self.let_go_unsettled(node.id);
        if node.flags & PARKED != 0
            && let Err(e) = self.upper.work().drop_parked(node.id)
        {
            log::warn!("union: orphan {} stays until the next start: {e}", node.id);
        }
    }
}

fn entry(attributes: Attributes, generation: u32) -> Entry {
    Entry { attributes, generation: generation.into(), valid_for: FOREVER, is_stream: false }
}

/// Tells two upper objects apart that had the same inode number: by their time of birth.
pub(super) fn generation(attributes: &Attributes) -> u32 {
    let birth = attributes.btime.unwrap_or_default();
    let mixed = birth.seconds.unsigned_abs().wrapping_mul(1_000_000_007)
        ^ u64::from(birth.nanoseconds).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    u32::try_from(mixed >> 32).unwrap_or(0)
}
