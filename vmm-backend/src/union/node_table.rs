//! Where a known node's record stands in the arena.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

use crate::filesystem::NodeId;
use crate::layer::arena::CellIndex;

/// Which cell is whose record: several maps, so that growing one stops nobody for long.
///
/// Numbers that follow each other stand together, as a directory's objects mostly do: who asks for one
/// after the other finds them in one line of the processor's cache.
pub(super) struct Table {
    shards: [HashMap<u64, Run, NodeHash>; SHARDS],
    hash: NodeHash,
    known: usize,
}

const SHARDS: usize = 64;

/// Numbers of one run.
const RUN: usize = 8;

/// The cells of the nodes `RUN * n` and on; 0, which is no node's cell, for what is not known.
type Run = [CellIndex; RUN];

impl Default for Table {
    fn default() -> Self {
        let hash = NodeHash::default();
        let shards = std::array::from_fn(|_| HashMap::with_hasher(hash));
        Self { shards, hash, known: 0 }
    }
}

/// Which run a node is of, and its place there.
const fn place(id: NodeId) -> (u64, usize) {
    #[allow(clippy::cast_possible_truncation, reason = "below RUN")]
    let at = (id.0 % RUN as u64) as usize;
    (id.0 / RUN as u64, at)
}

impl Table {
    pub(super) fn get(&self, id: NodeId) -> Option<CellIndex> {
        let (run, at) = place(id);
        self.shards.get(self.shard(run))?.get(&run)?.get(at).copied().filter(|cell| *cell != 0)
    }

    pub(super) fn insert(&mut self, id: NodeId, index: CellIndex) {
        let (run, at) = place(id);
        let shard = self.shard(run);
        let Some(shard) = self.shards.get_mut(shard) else { return };
        if let Some(cell) = shard.entry(run).or_default().get_mut(at) {
            self.known += usize::from(*cell == 0);
            *cell = index;
        }
    }

    pub(super) fn remove(&mut self, id: NodeId) {
        let (run, at) = place(id);
        let shard = self.shard(run);
        let Some(shard) = self.shards.get_mut(shard) else { return };
        let Some(cells) = shard.get_mut(&run) else { return };
        if let Some(cell) = cells.get_mut(at) {
            self.known -= usize::from(*cell != 0);
            *cell = 0;
        }
        if cells.iter().all(|cell| *cell == 0) {
            shard.remove(&run);
        }
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = NodeId> {
        self.shards.iter().flatten().flat_map(|(run, cells)| {
            let ids = (0..RUN as u64).map(move |at| NodeId(run * RUN as u64 + at));
            ids.zip(cells).filter(|(_, cell)| **cell != 0).map(|(id, _)| id)
        })
    }

    pub(super) const fn len(&self) -> usize {
        self.known
    }

    pub(super) fn shrink(&mut self) {
        self.shards.iter_mut().for_each(HashMap::shrink_to_fit);
    }

    /// Bits of the hash that the maps themselves use least: hashbrown takes the lowest for the
    /// bucket and the highest seven for the tag.
    fn shard(&self, run: u64) -> usize {
        usize::from(self.hash.hash_one(run).to_le_bytes()[5]) % SHARDS
    }
}

/// Hashes a node number in two multiplications, seeded: a guest chooses some of the numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct NodeHash {
    seed: u64,
}

impl Default for NodeHash {
    /// A seed of its own.
    fn default() -> Self {
        Self { seed: RandomState::new().build_hasher().finish() }
    }
}

impl BuildHasher for NodeHash {
    type Hasher = NodeHasher;

    fn build_hasher(&self) -> NodeHasher {
        NodeHasher(self.seed)
    }
}

#[derive(Debug)]
pub(super) struct NodeHasher(u64);

impl Hasher for NodeHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        // splitmix64's finalizer.
        let mut mixed = number ^ self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.0 = mixed ^ (mixed >> 31);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_share_a_run_come_and_go_one_by_one() {
        let mut table = Table::default();
        let ids = [1, 7, 8, 9, 15, 16, u64::MAX - 1, u64::MAX].map(NodeId);
        for (cell, id) in (100..).zip(ids) {
            table.insert(id, cell);
        }
        table.insert(NodeId(9), 200);
        assert_eq!(table.len(), ids.len());
        let mut known: Vec<_> = table.ids().collect();
        known.sort_unstable();
        assert_eq!(known, ids);
        assert_eq!(
            ids.map(|id| table.get(id).unwrap_or(0)),
            [100, 101, 102, 200, 104, 105, 106, 107]
        );
        assert_eq!([0, 2, 10, 14, 17].map(|id| table.get(NodeId(id))), [None; 5]);
        for (gone, id) in ids.into_iter().enumerate() {
            table.remove(NodeId(3));
            assert_eq!(table.len(), ids.len() - gone);
            table.remove(id);
            table.remove(id);
            assert_eq!(table.get(id), None);
        }
        assert!(table.ids().next().is_none() && table.shards.iter().all(HashMap::is_empty));
    }
}
