//! The descriptors kept open for nodes: a bounded cache, and those an unnamed node lives by.

use std::collections::HashMap;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::filesystem::NodeId;

/// What a descriptor can do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Use {
    /// `O_PATH` of the upper object.
    Path,
    /// Reading the node's data, in whichever layer it is.
    Read,
    /// Reading and writing the upper file.
    Write,
    /// Reading the lower file an unsettled upper file falls through to.
    Lower,
}

#[derive(Debug)]
struct Kept {
    descriptor: Arc<OwnedFd>,
    used: u64,
    /// An unnamed object lives by this descriptor: it is not evicted.
    is_held: bool,
}

/// At most `capacity` cached descriptors; as many again may be held for unnamed objects.
#[derive(Debug)]
pub struct Descriptors {
    kept: Mutex<HashMap<(NodeId, Use), Kept>>,
    clock: AtomicU64,
    capacity: usize,
}

/// Evicting in batches keeps the search for the oldest off most insertions.
const EVICTED_AT_ONCE: usize = 32;

/// How many unnamed objects may live by a descriptor; more are parked in `work/orphans`.
const HELD_MAX: usize = 128;

impl Descriptors {
    /// An empty cache.
    pub fn new(capacity: usize) -> Self {
        Self { kept: Mutex::new(HashMap::new()), clock: AtomicU64::new(0), capacity }
    }

    /// The descriptor of `node` for this use, if it is kept.
    pub fn get(&self, node: NodeId, for_use: Use) -> Option<Arc<OwnedFd>> {
        let mut kept = self.lock();
        let found = kept.get_mut(&(node, for_use))?;
        found.used = self.tick();
        Some(Arc::clone(&found.descriptor))
    }

    /// Keeps a descriptor, perhaps closing the longest unused ones. One that an object lives by
    /// stays, and is given instead.
    pub fn keep(
        &self,
        node: NodeId,
        for_use: Use,
        descriptor: impl Into<Arc<OwnedFd>>,
    ) -> Arc<OwnedFd> {
        let descriptor = descriptor.into();
        let mut kept = self.lock();
        if let Some(held) = kept.get(&(node, for_use)).filter(|row| row.is_held) {
            return Arc::clone(&held.descriptor);
        }
        if kept.len() >= self.capacity {
            evict(&mut kept);
        }
        let row = Kept { descriptor: Arc::clone(&descriptor), used: self.tick(), is_held: false };
        kept.insert((node, for_use), row);
        descriptor
    }

    /// The kept `Path` descriptor of a file that was just made is one for reading and writing, if it is
    /// still this one: its data needs no other.
    pub fn lend_for_writing(&self, node: NodeId, number: RawFd) {
        let mut kept = self.lock();
        let row = kept.get(&(node, Use::Path));
        if let Some(row) = row.filter(|row| row.descriptor.as_raw_fd() == number) {
            let descriptor = Arc::clone(&row.descriptor);
            let row = Kept { descriptor, used: row.used, is_held: false };
            kept.insert((node, Use::Write), row);
        }
    }

    /// Makes the kept `Path` descriptor of a node one it lives by. Says no if there is none or
    /// there are too many.
    pub fn hold(&self, node: NodeId) -> bool {
        let mut kept = self.lock();
        if kept.values().filter(|row| row.is_held).count() >= HELD_MAX {
            return false;
        }
        match kept.get_mut(&(node, Use::Path)) {
            Some(row) => {
                row.is_held = true;
                true
            }
            None => false,
        }
    }

    /// The node has a name again: its descriptor is like any other.
    pub fn release(&self, node: NodeId) {
        if let Some(row) = self.lock().get_mut(&(node, Use::Path)) {
            row.is_held = false;
        }
    }

    /// Closes one descriptor of a node.
    pub fn close_one(&self, node: NodeId, for_use: Use) {
        self.lock().remove(&(node, for_use));
    }

    /// Closes all descriptors of a node.
    pub fn close(&self, node: NodeId) {
        let mut kept = self.lock();
        for for_use in [Use::Path, Use::Read, Use::Write, Use::Lower] {
            kept.remove(&(node, for_use));
        }
    }

    /// Closes all.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(NodeId, Use), Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }
}

fn evict(kept: &mut HashMap<(NodeId, Use), Kept>) {
    let mut by_age: Vec<_> =
        kept.iter().filter(|(_, row)| !row.is_held).map(|(key, row)| (row.used, *key)).collect();
    if by_age.len() > EVICTED_AT_ONCE {
        by_age.select_nth_unstable_by_key(EVICTED_AT_ONCE, |(used, _)| *used);
        by_age.truncate(EVICTED_AT_ONCE);
    }
    for (_, key) in by_age {
        kept.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn descriptors_stay_below_their_bound_and_held_ones_stay() {
        let descriptors = Descriptors::new(64);
        descriptors.keep(NodeId(1), Use::Path, null());
        assert!(descriptors.hold(NodeId(1)));
        for id in 2..1000 {
            descriptors.keep(NodeId(id), Use::Read, null());
            assert!(descriptors.open() <= 64);
        }
        assert!(descriptors.get(NodeId(1), Use::Path).is_some());
        assert!(descriptors.get(NodeId(999), Use::Read).is_some());
        assert!(descriptors.get(NodeId(2), Use::Read).is_none());
    }
}
