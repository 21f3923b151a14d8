//! Hard links of the lower that were copied up: one inode each, in `work/index`, by origin.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::node::Node;
use super::{INDEXED, Union};
use crate::filesystem::{Errno, NodeId};
use crate::layer::index::{IndexId, ObjectId};
use crate::layer::lower::Lower;
use crate::layer::mark::{Mark, Origin};
use crate::layer::upper::Upper;

/// Names in `work/index`, by lower object.
#[derive(Debug, Default)]
pub struct Links(Mutex<HashMap<ObjectId, Vec<u8>>>);

impl Links {
    /// Reads what earlier runs copied up.
    pub fn load(lower: &Lower, upper: &Upper) -> Result<Self, Errno> {
        let is_ours = |identity| lower.continues(IndexId(identity));
        let found = upper.indexed(upper.work().index(), is_ours)?;
        let ours = found.ours.into_iter().map(|link| (ObjectId(link.object), link.name));
        let mut names: HashMap<_, _> = ours.collect();
        if !found.unmarked.is_empty() {
            adopt_unmarked(lower, upper, found.unmarked, &mut names)?;
        }
        Ok(Self(Mutex::new(names)))
    }

    /// The index name of a lower object, if it was copied up.
    pub fn get(&self, object: ObjectId) -> Option<Vec<u8>> {
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
        self.lock().insert(object, name);
    }

    /// Forgets one whose last name is gone.
    pub fn remove(&self, object: ObjectId) -> Option<Vec<u8>> {
        self.lock().remove(&object)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ObjectId, Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Marks what the kernel's overlayfs indexed as ours: its names say which lower objects they are.
fn adopt_unmarked(
    lower: &Lower,
    upper: &Upper,
    unmarked: Vec<Vec<u8>>,
    names: &mut HashMap<ObjectId, Vec<u8>>,
) -> Result<(), Errno> {
    let mut objects: HashMap<Vec<u8>, ObjectId> = lower
        .hard_linked()
        .filter_map(|object| {
            Some((index_name(object, Some(&lower.origin_handle(object)?)), object))
        })
        .collect();
    for name in unmarked {
        let Some(object) = objects.remove(&name) else {
            let name = name.escape_ascii();
            log::warn!(
                "work: index/{name} names no object of this base; its links are served apart"
            );
            continue;
        };
        let handle = upper.open_indexed(&name)?;
        let origin = Origin { identity: lower.identity().0, object: object.0 };
        upper.set_mark(handle.as_fd(), Mark::OwnOrigin, &origin.to_bytes())?;
        names.insert(object, name);
    }
    Ok(())
}

/// The name of an index entry: the hexadecimal origin, as the kernel's overlayfs names it.
pub(super) fn index_name(object: ObjectId, kernel_origin: Option<&[u8]>) -> Vec<u8> {
    match kernel_origin {
        None => format!("thinroot-{}", object.0).into_bytes(),
        Some(bytes) => super::hexadecimal(bytes).into_bytes(),
    }
}

impl Union {
    /// Names an indexed inode has in the union.
    pub(super) fn indexed_links(
        &self,
        object: ObjectId,
        handle: BorrowedFd<'_>,
        own: u32,
    ) -> Result<u32, Errno> {
        let lower_links = self.lower.attributes(object)?.nlink;
        let more = self.upper.extra_links(handle, lower_links)?;
        Ok(u32::try_from(i64::from(own) + more).unwrap_or(0))
    }

    /// A lower name of an indexed inode got (`by` = -1) or lost (1) its own link in the upper, or
    /// was hidden without ever having one (-1).
    pub(super) fn adjust_extra_links(
        &self,
        object: ObjectId,
        handle: BorrowedFd<'_>,
        by: i64,
    ) -> Result<(), Errno> {
        let lower_links = self.lower.attributes(object)?.nlink;
        let more = self.upper.extra_links(handle, lower_links)?;
        self.upper.set_extra_links(handle, more + by)
    }

    /// Removes the index entry of an inode that no name of the union leads to any more.
    pub(super) fn drop_index_if_unlinked(
        &self,
        object: ObjectId,
        handle: BorrowedFd<'_>,
    ) -> Result<(), Errno> {
        let own = self.upper.attributes(handle)?.nlink;
        if self.indexed_links(object, handle, own)? > 0 {
            return Ok(());
        }
        if let Some(name) = self.links.remove(object) {
            self.upper.remove_indexed(&name)?;
        }
        if self.nodes.get(NodeId(object.0.into())).is_ok() {
            self.nodes.update(NodeId(object.0.into()), |node| node.flags &= !INDEXED)?;
        }
        Ok(())
    }
}
