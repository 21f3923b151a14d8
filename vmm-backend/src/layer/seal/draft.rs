//! An index while it grows: the tables of the file, with objects at their position in the walk
//! instead of their number.

use std::collections::HashMap;

use super::SealError;
use crate::layer::index::format::{
    DataRecord, DirectoryRecord, EntryRecord, NONE, ObjectRecord, PairRecord, PartRecord, SetRecord,
};
use crate::layer::index::stat::fill;
use crate::sys::fs::Statx;
use crate::sys::scan::Xattr;

/// The tables. Every number of an object in them is a position in `objects`.
#[derive(Debug, Default)]
pub struct Draft {
    pub objects: Vec<ObjectRecord>,
    /// For each object where it comes from, which numbering asks for.
    pub sources: Vec<Source>,
    pub directories: Vec<DirectoryRecord>,
    pub entries: Vec<EntryRecord>,
    pub parts: Vec<PartRecord>,
    pub data: Vec<DataRecord>,
    pub sets: Vec<SetRecord>,
    pub pairs: Vec<PairRecord>,
    pub names: Vec<u8>,
    pub blobs: Vec<u8>,
    sets_known: HashMap<Vec<Xattr>, u32>,
    xattr_names_known: HashMap<Vec<u8>, u32>,
    values_known: HashMap<Vec<u8>, u32>,
}

/// Where an object comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// The layer that holds the real object.
    pub layer: u32,
    /// The number the object at this path had in the index that is refreshed; 0 for none.
    pub number_before: u32,
}

impl Draft {
    /// Adds a string to the names heap.
    pub fn name(&mut self, name: &[u8]) -> Result<u32, SealError> {
        let at = position(self.names.len())?;
        self.names.push(u8::try_from(name.len()).map_err(|_| SealError::TooLarge)?);
        self.names.extend_from_slice(name);
        Ok(at)
    }

    /// Adds a string to the blobs heap.
    pub fn blob(&mut self, blob: &[u8]) -> Result<u32, SealError> {
        let at = position(self.blobs.len())?;
        self.blobs.extend_from_slice(&position(blob.len())?.to_le_bytes());
        self.blobs.extend_from_slice(blob);
        Ok(at)
    }

    /// The set of exactly these xattrs, which many objects may share; `NONE` for none.
    pub fn xattrs(&mut self, mut xattrs: Vec<Xattr>) -> Result<u32, SealError> {
        if xattrs.is_empty() {
            return Ok(NONE);
        }
        // File systems list xattrs in different orders; an identity must not depend on that.
        xattrs.sort_unstable();
        if let Some(set) = self.sets_known.get(&xattrs) {
            return Ok(*set);
        }
        let first_pair = position(self.pairs.len())?.into();
        for (name, value) in &xattrs {
            let pair = PairRecord {
                name: self.xattr_name(name)?.into(),
                value: self.value(value)?.into(),
            };
            self.pairs.push(pair);
        }
        let set = position(self.sets.len())?;
        self.sets.push(SetRecord { first_pair, pairs: position(xattrs.len())?.into() });
        self.sets_known.insert(xattrs, set);
        Ok(set)
    }

    fn xattr_name(&mut self, name: &[u8]) -> Result<u32, SealError> {
        if let Some(at) = self.xattr_names_known.get(name) {
            return Ok(*at);
        }
        let at = self.name(name)?;
        self.xattr_names_known.insert(name.to_vec(), at);
        Ok(at)
    }

    fn value(&mut self, value: &[u8]) -> Result<u32, SealError> {
        if let Some(at) = self.values_known.get(value) {
            return Ok(*at);
        }
        let at = self.blob(value)?;
        self.values_known.insert(value.to_vec(), at);
        Ok(at)
    }

    /// Adds a part and gives its position.
    pub fn part(&mut self, part: PartRecord) -> Result<u32, SealError> {
        let at = position(self.parts.len())?;
        self.parts.push(part);
        Ok(at)
    }

    /// Adds an object and gives its position.
    pub fn object(&mut self, object: ObjectRecord, source: Source) -> Result<u32, SealError> {
        let at = position(self.objects.len())?;
        self.objects.push(object);
        self.sources.push(source);
        Ok(at)
    }
}

/// A position in a table or heap, all of which are addressed with 32 bits.
pub fn position(at: usize) -> Result<u32, SealError> {
    u32::try_from(at).ok().filter(|at| *at != NONE).ok_or(SealError::TooLarge)
}

/// The record of an object with what `stat` shows; where it is comes later.
pub fn object_of(stat: &Statx) -> ObjectRecord {
    let mut object = ObjectRecord {
        parent: NONE.into(),
        part: NONE.into(),
        detail: NONE.into(),
        xattrs: NONE.into(),
        ..ObjectRecord::default()
    };
    fill(&mut object, stat);
    object
}
