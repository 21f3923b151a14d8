//! The rows of a directory that the upper has, loaded once and kept in step with each change.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Union;
use super::listing::UpperRow;
use super::node::Node;
use super::stripes::Stripes;
use crate::filesystem::{Errno, Kind, NodeId};
use crate::layer::index::ObjectId;

/// How many lower subdirectories the rows of a directory hide or stand for.
#[derive(Debug, Default)]
pub struct Hidden {
    /// Loading a listing and changing its rows happen under the directory's lock here, so that a
    /// change is never lost between the two. The count's lock may be taken inside.
    rows: Stripes,
    counts: Mutex<HashMap<NodeId, u32>>,
}

impl Hidden {
    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, u32>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets a directory the guest let go of.
    pub fn forget(&self, dir: NodeId) {
        self.lock().remove(&dir);
    }

    /// Forgets all.
    pub fn clear(&self) {
        self.lock().clear();
    }
}

impl Union {
    /// Sees to it that the rows of an upper directory are loaded. The caller holds `names`.
    pub(super) fn load_rows(&self, dir: &Node) -> Result<(), Errno> {
        if self.nodes.has_listing(dir.id) {
            return Ok(());
        }
        let handle = self.handle(dir)?;
        let _rows = self.hidden.rows.lock(dir.id);
        if self.nodes.has_listing(dir.id) {
            return Ok(());
        }
        let names = self.upper.names(handle.as_fd())?;
        let mut count = 0;
        let mut rows = Vec::with_capacity(names.len());
        for row in names {
            count += u32::from(self.is_lower_directory(dir, &row.name)?);
            rows.push((row.name, UpperRow { kind: row.kind, id: None }));
        }
        self.nodes.load_listing(dir.id, rows)?;
        self.hidden.lock().insert(dir.id, count);
        Ok(())
    }

    /// A directory that was just born has no rows: what it gets from now on is known without reading
    /// it.
    pub(super) fn begin_rows(&self, dir: NodeId) -> Result<(), Errno> {
        let _rows = self.hidden.rows.lock(dir);
        self.nodes.load_listing(dir, Vec::new())
    }

    /// What an upper directory has is to be looked for on disk again.
    pub(super) fn forget_rows(&self, dir: NodeId) {
        let _rows = self.hidden.rows.lock(dir);
        self.nodes.drop_listing(dir);
        self.hidden.forget(dir);
    }

    /// A name of an upper directory now has an object (`Some`) or a whiteout (`None`).
    pub(super) fn set_row(
        &self,
        dir: &Node,
        name: &[u8],
        object: Option<(Kind, NodeId)>,
    ) -> Result<(), Errno> {
        self.read_times.forget(dir.id);
        let _rows = self.hidden.rows.lock(dir.id);
        if !self.nodes.has_listing(dir.id) {
            return Ok(());
        }
        if self.nodes.row(dir.id, name).is_none() && self.is_lower_directory(dir, name)? {
            *self.hidden.lock().entry(dir.id).or_default() += 1;
        }
        let row = UpperRow { kind: object.map(|(kind, _)| kind), id: object.map(|(_, id)| id) };
        self.nodes.set_row(dir.id, name, row)
    }

    /// A name of an upper directory has nothing any more.
    pub(super) fn remove_row(&self, dir: &Node, name: &[u8]) -> Result<(), Errno> {
        self.read_times.forget(dir.id);
        let _rows = self.hidden.rows.lock(dir.id);
        if !self.nodes.has_listing(dir.id) {
            return Ok(());
        }
        if self.nodes.row(dir.id, name).is_some() && self.is_lower_directory(dir, name)? {
            let mut hidden = self.hidden.lock();
            let count = hidden.entry(dir.id).or_default();
            *count = count.saturating_sub(1);
        }
        self.nodes.remove_row(dir.id, name);
        Ok(())
    }

    /// Subdirectories a directory shows. The caller holds `names`; the node is known.
    pub(super) fn subdirectories(&self, dir: &Node, own_links: u32) -> Result<u32, Errno> {
        let Some(lower) = dir.lower else {
            // Not every file system counts subdirectories in a directory's links (btrfs).
            if own_links >= 2 && !self.nodes.has_listing(dir.id) {
                return Ok(own_links - 2);
            }
            self.load_rows(dir)?;
            return Ok(u32::try_from(self.nodes.subdirectories(dir.id)).unwrap_or(u32::MAX));
        };
        self.load_rows(dir)?;
        let hidden = self.hidden.lock().get(&dir.id).copied().unwrap_or(0);
        let upper = u32::try_from(self.nodes.subdirectories(dir.id)).unwrap_or(u32::MAX);
        Ok(self.lower.subdirectories(lower)?.saturating_sub(hidden).saturating_add(upper))
    }

    fn is_lower_directory(&self, dir: &Node, name: &[u8]) -> Result<bool, Errno> {
        Ok(self.lower_child(dir, name)?.is_some_and(|(_, kind)| kind == Kind::Directory))
    }

    /// What the lower has at a name of a directory, hidden or not.
    pub(super) fn lower_child(
        &self,
        dir: &Node,
        name: &[u8],
    ) -> Result<Option<(ObjectId, Kind)>, Errno> {
        let Some(lower) = dir.lower.filter(|_| dir.kind == Kind::Directory) else {
            return Ok(None);
        };
        Ok(self.lower.child(lower, name)?.map(|entry| (entry.object, entry.kind)))
    }
}
