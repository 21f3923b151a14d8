//! The index of the merged lowers: one file, mapped read-only, shared by all who serve the base.
//!
//! `format` says where each byte is, `read` finds it again, `digest` is the hash that names an
//! index. Writing one is `seal`'s business.

pub(super) mod digest;
pub(super) mod format;
mod read;
pub(super) mod stat;
#[cfg(test)]
mod tests;

pub use read::{Index, IndexError, LayerKind};

/// An object's number: its place in the index, and the guest's name for it. The root is 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ObjectId(pub u32);

impl ObjectId {
    /// The root of the merged lowers.
    pub const ROOT: Self = Self(1);
}

/// A position in a directory, counted from zero in the order of the names' bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Slot(pub u32);

/// What identical copies of the lowers have in common on any host, and nothing else has.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct IndexId(pub [u8; 16]);

/// One name in a directory of the index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexEntry<'a> {
    /// The name, valid as one path component.
    pub name: &'a [u8],
    /// Where it stands in its directory.
    pub slot: Slot,
    /// What it names.
    pub object: ObjectId,
    /// What that is.
    pub kind: crate::filesystem::Kind,
}
