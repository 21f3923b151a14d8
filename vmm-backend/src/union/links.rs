//! Hard links of the lower that were copied up: one inode each, in `work/index`, by origin.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::lookup::Seen;
use super::node::Node;
use super::{INDEXED, Union};
use crate::filesystem::{Errno, NodeId};
use crate::layer::change::Place;
use crate::layer::index::{IndexId, ObjectId};
use crate::layer::lower::Lower;
use crate::layer::mark::{Mark, NlinkMark, Origin};
use crate::layer::upper::Upper;

/// Names in `work/index`, by lower object.
#[derive(Debug, Default)]
pub struct Links {
    names: Mutex<HashMap<ObjectId, Vec<u8>>>,
    /// There may be some: most uppers have none, and each object seen in the lower is asked for.
    has_any: AtomicBool,
}

impl Links {
    /// Reads what earlier runs copied up.
    pub fn load(lower: &Lower, upper: &Upper) -> Result<Self, Errno> {
        let is_ours = |identity| lower.continues(IndexId(identity));
        let found = upper.indexed(upper.work().index(), is_ours)?;
        let mut names = HashMap::new();
        for link in found.ours {
            let object = ObjectId(link.object);
            if is_unused(lower, upper, object, link.handle.as_fd())? {
                upper.remove_unused_link(&link.name, link.handle.as_fd())?;
            } else {
                names.insert(object, link.name);
            }
        }
        if !found.unmarked.is_empty() {
            adopt_unmarked(lower, upper, found.unmarked, &mut names)?;
        }
        let has_any = AtomicBool::new(!names.is_empty());
        Ok(Self { names: Mutex::new(names), has_any })
    }

    /// The index name of a lower object, if it was copied up.
    pub fn get(&self, object: ObjectId) -> Option<Vec<u8>> {
        if !self.has_any.load(Ordering::Acquire) {
            return None;
        }
        self.lock().get(&object).cloned()
    }

    /// The index name of a node, if it is an indexed one.
    pub fn name_of(&self, node: &Node) -> Option<Vec<u8>> {
        if node.flags & INDEXED == 0 {
            return None;
        }
        self.get(node.lower?)
    }

    /// All of them.
    pub fn all(&self) -> Vec<(ObjectId, Vec<u8>)> {
        self.lock().iter().map(|(object, name)| (*object, name.clone())).collect()
    }

    /// Remembers a copied-up link.
    pub fn insert(&self, object: ObjectId, name: Vec<u8>) {
        let mut names = self.lock();
        names.insert(object, name);
        self.has_any.store(true, Ordering::Release);
    }

    /// Forgets one whose last name is gone.
    pub fn remove(&self, object: ObjectId) -> Option<Vec<u8>> {
        self.lock().remove(&object)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ObjectId, Vec<u8>>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a death came between an inode's last name and its index entry. Nobody holds it now, and
/// what is in `work/` has been swept.
fn is_unused(
    lower: &Lower,
    upper: &Upper,
    object: ObjectId,
    handle: BorrowedFd<'_>,
) -> Result<bool, Errno> {
    let has_own_names = upper.attributes(handle)?.nlink > 1;
    Ok(!has_own_names && count_links(lower, upper, object, handle)? == 0)
}

/// Names an indexed inode has in the union.
fn count_links(
    lower: &Lower,
    upper: &Upper,
    object: ObjectId,
    handle: BorrowedFd<'_>,
) -> Result<u32, Errno> {
    let (mark, own) = upper.links(handle)?;
    let (base, more) = match mark {
        NlinkMark::Upper(more) => (own, more),
        NlinkMark::Lower(more) => (lower.attributes(object)?.nlink, more),
    };
    Ok(base.saturating_add_signed(more))
}

/// Marks what the kernel's overlayfs indexed as ours: its names say which lower objects they are.
fn adopt_unmarked(
    lower: &Lower,
    upper: &Upper,
    unmarked: Vec<(Vec<u8>, bool)>,
    names: &mut HashMap<ObjectId, Vec<u8>>,
) -> Result<(), Errno> {
    let mut objects: HashMap<Vec<u8>, ObjectId> = lower
        .hard_linked()
        .filter_map(|object| {
            Some((index_name(object, Some(&lower.origin_handle(object)?)), object))
        })
        .collect();
    for (name, is_of_another) in unmarked {
        let Some(object) = objects.remove(&name) else {
            log::warn!(
                "work: index/{} names no object of this base; its links are served apart",
                name.escape_ascii()
            );
            if is_of_another {
                leave_to_its_names(upper, &name)?;
            }
            continue;
        };
        let handle = upper.open_indexed(&name)?;
        let origin = Origin { identity: lower.identity().0, object: object.0 };
        upper.set_mark(handle.as_fd(), Mark::OwnOrigin, &origin.to_bytes())?;
        names.insert(object, name);
    }
    Ok(())
}

/// A hard link that we indexed for another base is what its names in the upper make of it. If it has
/// none it stays: only there is what the guest wrote.
fn leave_to_its_names(upper: &Upper, name: &[u8]) -> Result<(), Errno> {
    let handle = upper.open_indexed(name)?;
    if upper.attributes(handle.as_fd())?.nlink > 1 { upper.remove_indexed(name) } else { Ok(()) }
}

/// The name of an index entry: the hexadecimal origin, as the kernel's overlayfs names it.
pub(super) fn index_name(object: ObjectId, kernel_origin: Option<&[u8]>) -> Vec<u8> {
    match kernel_origin {
        None => format!("thinroot-{}", object.0).into_bytes(),
        Some(bytes) => super::hexadecimal(bytes).into_bytes(),
    }
}

/// The mark of an inode with `all` links in the union and `own` in the upper.
pub(super) fn more_in_upper(all: u32, own: u32) -> NlinkMark {
    NlinkMark::Upper(difference(all, own))
}

fn difference(all: u32, some: u32) -> i32 {
    i32::try_from(i64::from(all) - i64::from(some)).unwrap_or(0)
}

impl Union {
    /// Names an indexed inode has in the union.
    pub(super) fn indexed_links(
        &self,
        object: ObjectId,
        handle: BorrowedFd<'_>,
    ) -> Result<u32, Errno> {
        count_links(&self.lower, &self.upper, object, handle)
    }

    /// From here on names that come and go in the upper count by themselves: an indexed inode's
    /// links are counted by those it has there.
    pub(super) fn count_by_upper(&self, node: &Node) -> Result<(), Errno> {
        let (Some(object), INDEXED) = (node.lower, node.flags & INDEXED) else { return Ok(()) };
        let handle = self.handle(node)?;
        if let (NlinkMark::Lower(_), own) = self.upper.links(handle.as_fd())? {
            let all = self.indexed_links(object, handle.as_fd())?;
            self.upper.set_links(handle.as_fd(), more_in_upper(all, own))?;
        }
        Ok(())
    }

    /// A lower name of an indexed inode gets its own link in the upper, by which it then moves or
    /// goes. Whoever dies in between leaves the right count: while the upper's own links change,
    /// it does not depend on them.
    pub(super) fn link_up(
        &self,
        dir: &Node,
        place: Place<'_>,
        seen: &mut Seen,
    ) -> Result<(), Errno> {
        let node = seen.node;
        let (Some(object), Some(handle)) = (node.lower, &seen.handle) else {
            return Err(Errno::AGAIN);
        };
        let all = self.indexed_links(object, handle.as_fd())?;
        let lower_links = self.lower.attributes(object)?.nlink;
        // The directory is to hold an object with an origin.
        self.mark_impure(dir)?;
        self.upper.set_links(handle.as_fd(), NlinkMark::Lower(difference(all, lower_links)))?;
        self.upper.link(handle.as_fd(), place)?;
        self.set_row(dir, place.name, Some((node.kind, node.id)))?;
        seen.has_upper_entry = true;
        self.count_by_upper(&node)
    }

    /// Removes the index entry of an inode that no name of the union leads to any more.
    pub(super) fn drop_index_if_unlinked(
        &self,
        object: ObjectId,
        handle: BorrowedFd<'_>,
    ) -> Result<(), Errno> {
        let id = NodeId(object.0.into());
        if self.indexed_links(object, handle)? > self.parked_links(id) {
            return Ok(());
        }
        if let Some(name) = self.links.remove(object) {
            self.upper.remove_indexed(&name)?;
        }
        if self.nodes.get(id).is_ok() {
            self.nodes.update(id, |node| node.flags &= !INDEXED)?;
        }
        Ok(())
    }
}
