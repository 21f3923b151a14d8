//! A lock per node, as a bounded set of locks that nodes share by number.

use std::sync::{
    Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError,
};

use crate::filesystem::NodeId;

const STRIPES: usize = 256;

/// Locks by node number. Two different nodes may share one: never hold one while taking another
/// of the same set, but by [`Stripes::lock_two`].
#[derive(Debug)]
pub struct Stripes(Vec<Mutex<()>>);

/// Holds one or two stripes.
#[derive(Debug)]
pub struct Guard<'a>(#[allow(dead_code, reason = "held for its drop")] MutexGuard<'a, ()>);

impl Default for Stripes {
    fn default() -> Self {
        Self((0..STRIPES).map(|_| Mutex::new(())).collect())
    }
}

impl Stripes {
    /// Waits for the lock of `node`.
    pub fn lock(&self, node: NodeId) -> Guard<'_> {
        Guard(self.0[stripe(node)].lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether nobody holds the lock of `node` at this moment.
    pub fn is_free(&self, node: NodeId) -> bool {
        !matches!(self.0[stripe(node)].try_lock(), Err(TryLockError::WouldBlock))
    }

    /// Waits for the locks of both nodes, in an order that cannot deadlock.
    pub fn lock_two(&self, one: NodeId, other: NodeId) -> (Guard<'_>, Option<Guard<'_>>) {
        let (first, second) = (stripe(one), stripe(other));
        match first.cmp(&second) {
            std::cmp::Ordering::Equal => (self.lock(one), None),
            std::cmp::Ordering::Less => {
                let guard = self.lock(one);
                (guard, Some(self.lock(other)))
            }
            std::cmp::Ordering::Greater => {
                let guard = self.lock(other);
                (guard, Some(self.lock(one)))
            }
        }
    }
}

/// As [`Stripes`], with locks that many may share. Whoever shares one takes none of the same set again.
#[derive(Debug)]
pub struct SharedStripes(Vec<RwLock<()>>);

impl Default for SharedStripes {
    fn default() -> Self {
        Self((0..STRIPES).map(|_| RwLock::new(())).collect())
    }
}

impl SharedStripes {
    /// Whether nobody has the lock of `node` at this moment.
    pub fn is_free(&self, node: NodeId) -> bool {
        !matches!(self.0[stripe(node)].try_write(), Err(TryLockError::WouldBlock))
    }

    /// Waits until nobody has the lock of `node` alone.
    pub fn share(&self, node: NodeId) -> RwLockReadGuard<'_, ()> {
        self.0[stripe(node)].read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody has the lock of `node`.
    pub fn own(&self, node: NodeId) -> RwLockWriteGuard<'_, ()> {
        self.0[stripe(node)].write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stripe(node: NodeId) -> usize {
    usize::try_from(node.0 % STRIPES as u64).unwrap_or(0)
}
