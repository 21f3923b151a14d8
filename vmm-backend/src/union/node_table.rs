//! Where a known node's record stands in the arena.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

use crate::filesystem::NodeId;
use crate::layer::arena::CellIndex;

/// Which cell is whose record: several maps, so that growing one stops nobody for long.
pub(super) struct Table {
    shards: [HashMap<NodeId, CellIndex, NodeHash>; SHARDS],
    hash: NodeHash,
}

const SHARDS: usize = 64;

impl Default for Table {
    fn default() -> Self {
        let hash = NodeHash { seed: RandomState::new().build_hasher().finish() };
        Self { shards: std::array::from_fn(|_| HashMap::with_hasher(hash)), hash }
    }
}

impl Table {
    pub(super) fn get(&self, id: NodeId) -> Option<CellIndex> {
        self.shards.get(self.shard(id))?.get(&id).copied()
    }

    pub(super) fn insert(&mut self, id: NodeId, index: CellIndex) {
        let shard = self.shard(id);
        if let Some(shard) = self.shards.get_mut(shard) {
            shard.insert(id, index);
        }
    }

    pub(super) fn remove(&mut self, id: NodeId) {
        let shard = self.shard(id);
        if let Some(shard) = self.shards.get_mut(shard) {
            shard.remove(&id);
        }
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = NodeId> {
        self.shards.iter().flat_map(|shard| shard.keys().copied())
    }

    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(HashMap::len).sum()
    }

    pub(super) fn shrink(&mut self) {
        self.shards.iter_mut().for_each(HashMap::shrink_to_fit);
    }

    /// Bits of the hash that the maps themselves use least: hashbrown takes the lowest for the
    /// bucket and the highest seven for the tag.
    fn shard(&self, id: NodeId) -> usize {
        usize::from(self.hash.hash_one(id).to_le_bytes()[5]) % SHARDS
    }
}

/// Hashes a node number in two multiplications, seeded: a guest chooses some of the numbers.
#[derive(Clone, Copy)]
struct NodeHash {
    seed: u64,
}

impl BuildHasher for NodeHash {
    type Hasher = NodeHasher;

    fn build_hasher(&self) -> NodeHasher {
        NodeHasher(self.seed)
    }
}

struct NodeHasher(u64);

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
