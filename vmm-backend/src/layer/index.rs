//! The index of the merged lowers: one file, mapped read-only.

/// An object of the index: its number, which is also its node's. The root is 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ObjectId(pub u32);
