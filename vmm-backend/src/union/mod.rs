//! Policy: what a guest sees of the index and the upper, and what each change becomes.
//!
//! Locks, in the order they may be taken: that of a file's capabilities (shared by its writers), an
//! object's (a copy-up holds it while data moves), then
//! `names` (shared by all that look at or change names, exclusive for a rename), then a
//! directory's (its rows and its entries in the upper). Which of them the marks of a file's data need,
//! `elsewhere` says.

pub mod acl;
pub mod attributes;
pub mod copy_up;
pub mod create;
pub mod descriptors;
mod elsewhere;
pub mod file;
mod find;
pub mod inherit;
pub mod links;
pub mod listing;
pub mod lookup;
pub mod node;
mod node_table;
pub mod readdir;
mod ready;
pub mod remove;
pub mod rename;
pub mod rows;
mod seek;
pub mod stripes;
pub mod times;
pub mod unsettled;
pub mod xattr;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::filesystem::{
    Allocate, Attributes, Caller, CopyRange, DataSink, DataSource, DirectorySink, Entry, Errno,
    FileSystem, FileSystemStatistics, Kind, Name, NewObject, NodeId, Rename, Seek, SetAttributes,
    SetXattr, Write,
};
use crate::layer::index::{IndexId, ObjectId};
use crate::layer::lower::Lower;
use crate::layer::mark::{Mark, Origin};
use crate::layer::owner::Owner;
use crate::layer::upper::Upper;
use descriptors::{Descriptors, Use};
use links::Links;
use node::{Node, Nodes};
use rows::Hidden;
use stripes::{SharedStripes, Stripes};
use times::{GuestTimes, ReadTimes};
use unsettled::UnsettledFiles;

/// Descriptors kept open whatever the number of known nodes.
pub const DESCRIPTORS_MAX: usize = 384;

/// The node is a copied-up hard link of the lower, kept in `work/index`.
pub(crate) const INDEXED: u32 = 1;

/// The node's upper file was found to have no capabilities: a write need not save them.
pub(crate) const NO_CAPABILITY: u32 = 2;

/// The node's upper file has a block map: data that was not written falls through to the lower.
pub(crate) const UNSETTLED: u32 = 4;

/// The node's upper object has a link in `work/orphans`, which is no name of the union.
pub(crate) const PARKED: u32 = 8;

/// The node's upper file has attributes alone: its data is the lower's, all of it.
pub(crate) const ELSEWHERE: u32 = 16;

/// The guest's kernel removed the node's capabilities, or tried to, since it last said what becomes of
/// its mode or owner.
pub(crate) const CAPABILITY_WENT: u32 = 32;

/// Somebody was about to change the node's content when its capabilities had just gone: whether
/// setuid and setgid are to go too was not to be told.
pub(crate) const IN_DOUBT: u32 = 64;

/// The node's upper directory is marked as one that may hold objects with an origin.
pub(crate) const IMPURE: u32 = 128;

/// The node's upper file was copied up with the marks by which it is found at any name.
pub(crate) const FOUND_ANYWHERE: u32 = 256;

/// The node's directory was found to hand nothing down to what is born in it: it has neither setgid nor
/// a default ACL.
pub(crate) const HANDS_NOTHING_DOWN: u32 = 512;

/// Why a union cannot be made of a lower and an upper.
#[derive(Debug, thiserror::Error)]
pub enum UnionError {
    /// The upper was made over another base.
    #[error(
        "the upper was made over another base (its root names {found}, this base is {expected}); \
         expected the base it was made over: give that one, or accept this one with --rebase"
    )]
    OtherBase {
        /// What the upper's root says.
        found: String,
        /// This index.
        expected: String,
    },
    /// A call failed.
    #[error("the upper cannot be taken into use: {0}")]
    Call(#[from] Errno),
}

/// The union of the merged lowers and one upper, served to one guest.
#[derive(Debug)]
pub struct Union {
    lower: Lower,
    upper: Upper,
    nodes: Nodes,
    descriptors: Descriptors,
    links: Links,
    hidden: Hidden,
    unsettled: UnsettledFiles,
    times: GuestTimes,
    read_times: ReadTimes,
    /// Guards where names lead: shared while a path is resolved or an entry changes, exclusive
    /// while a rename moves a subtree. A directory's lock may be taken inside.
    names: RwLock<()>,
    /// One lock per directory (striped): its rows, and its entries in the upper.
    directories: Stripes,
    /// One lock per object (striped): its copy-up, the marks of where its data is, its mtime. Taken before
    /// `names`.
    objects: Stripes,
    /// One lock per file (striped): shared by what writes, which the host takes capabilities away for;
    /// owned by who gives them back, sets or removes them. Taken before `objects`.
    capabilities: SharedStripes,
    /// Held while the whole upper is searched, so that a guest makes us do and hold that once at a
    /// time. Nothing is locked inside.
    search: Mutex<()>,
}

impl Union {
    /// Joins a lower and an upper. A fresh upper is marked with the base's identity.
    ///
    /// Errors: [`UnionError::OtherBase`] if the upper's mark names another base and `rebase` is
    /// not set.
    pub fn new(lower: Lower, upper: Upper, rebase: bool) -> Result<Self, UnionError> {
        let own = Origin { identity: lower.identity().0, object: 1 };
        let root = upper.root().try_clone_to_owned().map_err(|_| Errno::MFILE)?;
        match upper.object(root)?.marks.origin {
            Some(origin) if origin == own => {}
            // Made before the base was refreshed: the numbers it knows are still right.
            Some(origin) if lower.continues(IndexId(origin.identity)) => {
                upper.set_mark(upper.root(), Mark::OwnOrigin, &own.to_bytes())?;
            }
            Some(origin) if !rebase => {
                return Err(UnionError::OtherBase {
                    found: hexadecimal(&origin.identity),
                    expected: hexadecimal(&own.identity),
                });
            }
            Some(found) => {
                log::warn!(
                    "union: the upper was made over base {}; its origins there are dropped",
                    hexadecimal(&found.identity)
                );
                upper.set_mark(upper.root(), Mark::OwnOrigin, &own.to_bytes())?;
            }
            None => adopt(&lower, &upper, own)?,
        }
        let links = Links::load(&lower, &upper)?;
        Ok(Self {
            nodes: Nodes::new()?,
            descriptors: Descriptors::new(DESCRIPTORS_MAX),
            links,
            search: Mutex::default(),
            hidden: Hidden::default(),
            unsettled: UnsettledFiles::default(),
            times: GuestTimes::default(),
            read_times: ReadTimes::default(),
            names: RwLock::new(()),
            directories: Stripes::default(),
            objects: Stripes::default(),
            capabilities: SharedStripes::default(),
            lower,
            upper,
        })
    }

    /// The node table, for figures.
    pub fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// How many descriptors are kept open for known nodes.
    pub fn open_descriptors(&self) -> usize {
        self.descriptors.open()
    }

    /// Until this is dropped nobody gives back, sets or removes a file's capabilities.
    fn own_capability(&self, id: NodeId) -> (RwLockWriteGuard<'_, ()>, stripes::Guard<'_>) {
        (self.capabilities.own(id), self.objects.lock(id))
    }

    /// Whether a change of this object waits for nobody, as things are.
    fn is_free(&self, id: NodeId) -> bool {
        self.objects.is_free(id) && self.capabilities.is_free(id)
    }

    fn names_shared(&self) -> RwLockReadGuard<'_, ()> {
        self.names.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn names_exclusive(&self) -> RwLockWriteGuard<'_, ()> {
        self.names.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a number was given to an object born in the upper.
    fn is_upper_born(&self, id: NodeId) -> bool {
        id.0 >= self.lower.upper_numbers_start()
    }

    /// An `O_PATH` descriptor of a node's upper object. The caller holds `names`.
    fn handle(&self, node: &Node) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(handle) = self.descriptors.get(node.id, Use::Path) {
            return Ok(handle);
        }
        let handle = if node.id == NodeId::ROOT {
            self.upper.root().try_clone_to_owned().map_err(|_| Errno::MFILE)?
        } else if let Some(indexed) = self.links.name_of(node) {
            self.upper.open_indexed(&indexed)?
        } else if !node.is_named {
            self.upper.work().parked(node.id).map_err(|_| Errno::STALE)?
        } else {
            let found = self.upper.handle(&self.nodes.path(node.id)?);
            // It may have been removed meanwhile, and something else may stand at its name.
            let now = self.nodes.get(node.id)?;
            if (now.parent, now.is_named) != (node.parent, node.is_named) {
                return self.handle(&now);
            }
            found?
        };
        if self.is_upper_born(node.id) {
            let found = self.upper.inode_number(handle.as_fd())?;
            if self.lower.upper_numbers_start() + found != node.id.0 {
                log::error!("union: node {} is no longer at its place in the upper", node.id);
                return Err(Errno::STALE);
            }
        }
        Ok(self.descriptors.keep(node.id, Use::Path, handle))
    }

    /// Sees to it that a directory is marked as one that may hold objects with an origin. The caller
    /// holds `names`.
    fn mark_impure(&self, dir: &Node) -> Result<(), Errno> {
        if self.nodes.get(dir.id)?.flags & IMPURE == 0 {
            self.upper.mark_impure(self.handle(dir)?.as_fd())?;
            self.nodes.update(dir.id, |node| node.flags |= IMPURE)?;
        }
        Ok(())
    }

    /// The node, and a descriptor of its upper object.
    fn reach(&self, id: NodeId) -> Result<(Node, Arc<OwnedFd>), Errno> {
        let _names = self.names_shared();
        let node = self.nodes.get(id)?;
        let handle = self.handle(&node)?;
        Ok((node, handle))
    }
}

/// A fresh upper's root becomes the copied-up root of the base: a guest must not see when or by
/// whom its upper was made. One that already holds something keeps what it has.
fn adopt(lower: &Lower, upper: &Upper, own: Origin) -> Result<(), Errno> {
    let root = upper.root();
    if upper.names(root)?.is_empty() {
        let shown = lower.attributes(ObjectId::ROOT)?;
        let owner = Owner { uid: shown.uid, gid: shown.gid, mode: shown.mode, rdev: shown.rdev };
        upper.hand_nothing_down()?;
        for (name, value) in lower.xattrs(ObjectId::ROOT)? {
            upper.set_xattr(root, (name, value), 0)?;
        }
        upper.set_owner(root, &owner)?;
        upper.set_mark(root, Mark::OwnOrigin, &own.to_bytes())?;
        return upper.set_times(root, &shown);
    }
    upper.set_mark(root, Mark::OwnOrigin, &own.to_bytes())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A node that must be a directory.
fn directory(node: Node) -> Result<Node, Errno> {
    if node.kind == Kind::Directory { Ok(node) } else { Err(Errno::NOTDIR) }
}

impl Drop for Union {
    fn drop(&mut self) {
        self.close_all_unsettled();
    }
}

impl FileSystem for Union {
    fn init(&self) {
        self.close_all_unsettled();
        for node in self.nodes.forget_all() {
            self.let_go(&node);
        }
        self.descriptors.clear();
        self.hidden.clear();
        self.read_times.clear();
    }

    fn destroy(&self) {
        self.close_all_unsettled();
    }

    fn lookup(&self, _: &Caller, parent: NodeId, name: Name<'_>) -> Result<Entry, Errno> {
        self.look_up(parent, name)
    }

    fn lookup_self(&self, node: NodeId) -> Result<Entry, Errno> {
        self.look_up_self(node)
    }

    fn find_again(&self, node: NodeId) -> Result<Entry, Errno> {
        self.find_by_number(node)
    }

    fn lookup_parent(&self, node: NodeId) -> Result<Entry, Errno> {
        self.look_up_parent(node)
    }

    fn forget(&self, node: NodeId, count: u64) {
        for gone in self.nodes.forget(node, count) {
            self.let_go(&gone);
        }
    }

    fn attributes(&self, node: NodeId) -> Result<Attributes, Errno> {
        self.attributes_by_id(node)
    }

    fn set_attributes(
        &self,
        _: &Caller,
        node: NodeId,
        change: &SetAttributes,
    ) -> Result<Attributes, Errno> {
        self.change_attributes(node, change)
    }

    fn read_link(&self, node: NodeId) -> Result<Vec<u8>, Errno> {
        self.target(node)
    }

    fn create(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: Name<'_>,
        new: &NewObject<'_>,
    ) -> Result<Entry, Errno> {
        self.give_birth(caller, parent, name, new)
    }

    fn create_unnamed(
        &self,
        caller: &Caller,
        parent: NodeId,
        new: &NewObject<'_>,
    ) -> Result<Entry, Errno> {
        self.give_unnamed_birth(caller, parent, new)
    }

    fn link(&self, node: NodeId, parent: NodeId, name: Name<'_>) -> Result<Entry, Errno> {
        self.add_name(node, parent, name)
    }

    fn unlink(&self, parent: NodeId, name: Name<'_>) -> Result<(), Errno> {
        self.upper.work().with_spare(|| self.remove_name(parent, name))
    }

    fn remove_directory(&self, parent: NodeId, name: Name<'_>) -> Result<(), Errno> {
        self.upper.work().with_spare(|| self.remove_empty_directory(parent, name))
    }

    fn rename(&self, caller: &Caller, rename: &Rename<'_>) -> Result<(), Errno> {
        self.move_name(caller, rename)
    }

    fn read(
        &self,
        node: NodeId,
        offset: u64,
        size: usize,
        sink: &mut dyn DataSink,
    ) -> Result<(), Errno> {
        self.read_file(node, offset, size, sink)
    }

    fn write(
        &self,
        node: NodeId,
        write: &Write,
        source: &mut dyn DataSource,
    ) -> Result<usize, Errno> {
        self.write_file(node, write, source)
    }

    fn read_directory(
        &self,
        node: NodeId,
        cookie: u64,
        plus: bool,
        sink: &mut dyn DirectorySink,
    ) -> Result<(), Errno> {
        self.list(node, cookie, plus, sink)
    }

    fn allocate(&self, node: NodeId, allocate: &Allocate) -> Result<(), Errno> {
        self.allocate_file(node, allocate)
    }

    fn seek(&self, node: NodeId, seek: Seek) -> Result<u64, Errno> {
        self.seek_file(node, seek)
    }

    fn copy_range(&self, copy: &CopyRange) -> Result<u64, Errno> {
        self.copy_file_range(copy)
    }

    fn sync(&self, node: NodeId, data_only: bool) -> Result<(), Errno> {
        self.sync_object(node, data_only)
    }

    fn sync_all(&self) -> Result<(), Errno> {
        self.save_all_unsettled()?;
        self.upper.sync_all()
    }

    fn statistics(&self) -> Result<FileSystemStatistics, Errno> {
        self.upper.statistics()
    }

    fn xattr(&self, _: &Caller, node: NodeId, name: &[u8]) -> Result<Vec<u8>, Errno> {
        self.get_xattr(node, name)
    }

    fn list_xattrs(&self, caller: &Caller, node: NodeId) -> Result<Vec<u8>, Errno> {
        self.xattr_names(node).map(|names| xattr::shown_to(caller, names))
    }

    fn set_xattr(&self, _: &Caller, node: NodeId, set: &SetXattr<'_>) -> Result<(), Errno> {
        self.change_xattr(node, set)
    }

    fn remove_xattr(&self, node: NodeId, name: &[u8]) -> Result<(), Errno> {
        self.drop_xattr(node, name)
    }

    fn inode_flags(&self, node: NodeId) -> Result<u32, Errno> {
        self.flags_of(node)
    }

    fn is_stream(&self, _: NodeId) -> bool {
        false
    }

    fn changes_at_once(&self, node: NodeId, change: &SetAttributes) -> bool {
        let is_ready = match change.size {
            None => self.is_ready(node, None),
            Some(size) => self.cuts_without_data(node, size),
        };
        self.keeps_attributes(node, change) || (is_ready && self.is_free(node))
    }

    fn writes_at_once(&self, node: NodeId, range: (u64, usize)) -> bool {
        self.is_ready(node, Some(range)) && self.is_free(node)
    }

    fn renames_at_once(&self, rename: &Rename<'_>) -> bool {
        self.moves_without_data(rename.from, rename.name)
            && self.moves_without_data(rename.to, rename.new_name)
    }
}

#[cfg(test)]
mod tests;
