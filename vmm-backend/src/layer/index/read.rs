//! Finds things in an index file: every position is checked where it is used, so that a damaged
//! file gives `EIO` and never more.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::digest::Digest;
use super::format::{
    DataRecord, DirectoryRecord, EntryRecord, Header, LayerRecord, MAGIC, NONE, ObjectRecord,
    PairRecord, PartRecord, Section, SetRecord, VERSION,
};
use super::{IndexEntry, IndexId, ObjectId, Slot};
use crate::filesystem::{Errno, Kind};
use crate::sys::mapping::Mapping;

/// Whether a lower's marks count.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LayerKind {
    /// A plain tree (`--lower`): whiteout-like devices and overlay xattrs mean nothing.
    Plain,
    /// An overlayfs layer (`--layer`): whiteouts, opaque, redirect and metacopy count.
    Layer,
}

/// Why a file is not used as an index.
#[derive(Debug, Error)]
pub enum IndexError {
    /// It cannot be opened or mapped.
    #[error("index {path}: {source}")]
    Open {
        /// The index file.
        path: PathBuf,
        /// What the kernel said.
        source: Errno,
    },
    /// Somebody else could have written it.
    #[error(
        "index {path} is not to be trusted: {reason}; expected a regular file owned by root or by \
         the user who runs thinroot, writable by nobody else; delete it and it is built again"
    )]
    Untrusted {
        /// The index file.
        path: PathBuf,
        /// What is wrong with its owner, mode or type.
        reason: String,
    },
    /// It is something else.
    #[error("{path} is not an index of thinroot; name another file with --index")]
    NotAnIndex {
        /// The file.
        path: PathBuf,
    },
    /// It is damaged, or of another version.
    #[error("index {path} is not usable: {reason}")]
    Damaged {
        /// The index file.
        path: PathBuf,
        /// What is wrong with its contents.
        reason: &'static str,
    },
}

impl IndexError {
    /// Whether an index may be built where this one should be: there is none, or an unusable one.
    pub const fn is_replaceable(&self) -> bool {
        matches!(self, Self::Open { source: Errno::NOENT, .. } | Self::Damaged { .. })
    }
}

/// One lower, as the index knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::layer) struct Layer {
    /// The canonical path where it was sealed.
    pub path: Vec<u8>,
    /// Whether its marks count.
    pub kind: LayerKind,
    /// The part that is its root.
    pub root: u32,
}

/// An open index. Its methods make no system call.
#[derive(Debug)]
pub struct Index {
    mapping: Mapping,
    header: Header,
}

impl Index {
    /// Opens the index file at `path`.
    ///
    /// Only a regular file owned by root or by us, not writable by group or others, with the
    /// right magic, version, length and header is taken. What is in it is checked at each use.
    pub fn open(path: &Path) -> Result<Self, IndexError> {
        let open_error = |source| IndexError::Open { path: path.to_owned(), source };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::open(path, flags, Mode::empty()).map_err(open_error)?;
        let stat = rustix::fs::fstat(&file).map_err(open_error)?;
        if let Some(reason) = distrust(&stat) {
            return Err(IndexError::Untrusted { path: path.to_owned(), reason });
        }
        let damaged = |reason| IndexError::Damaged { path: path.to_owned(), reason };
        let bytes =
            usize::try_from(stat.st_size).map_err(|_| damaged("it is too long to be mapped"))?;
        if bytes < MAGIC.len() {
            return Err(IndexError::NotAnIndex { path: path.to_owned() });
        }
        let mapping = Mapping::read_only(file.as_fd(), bytes).map_err(open_error)?;
        if !mapping.as_bytes().starts_with(&MAGIC) {
            return Err(IndexError::NotAnIndex { path: path.to_owned() });
        }
        let header = checked_header(mapping.as_bytes()).map_err(damaged)?;
        Ok(Self { mapping, header })
    }

    /// What identical copies of the lowers have in common.
    pub const fn identity(&self) -> IndexId {
        IndexId(self.header.identity)
    }

    /// Whether `id` is this index's identity or that of one whose numbers it kept in refreshes.
    pub fn continues(&self, id: IndexId) -> bool {
        id == self.identity() || self.ancestors().contains(&id.0)
    }

    /// Objects in the merged view.
    pub const fn objects_present(&self) -> u64 {
        self.header.objects_present.get()
    }

    /// Names in the merged view.
    pub const fn entries_present(&self) -> u64 {
        self.header.entries.count.get()
    }

    /// Directories in the merged view.
    pub const fn directories_present(&self) -> u64 {
        self.header.directories.count.get()
    }

    /// The length of the file in bytes.
    pub const fn file_bytes(&self) -> u64 {
        self.header.file_bytes.get()
    }

    /// The first number of what is born in the upper; the same in every refresh.
    pub const fn upper_numbers_start(&self) -> u64 {
        self.header.upper_numbers_start.get()
    }

    /// The highest number ever given to a lower object.
    pub const fn last_number(&self) -> u32 {
        self.header.last_number.get()
    }

    pub(in crate::layer) fn ancestors(&self) -> &[[u8; 16]] {
        self.section(self.header.ancestors)
    }

    pub(in crate::layer) fn layers(&self) -> Result<Vec<Layer>, Errno> {
        let records: &[LayerRecord] = self.section(self.header.layers);
        records
            .iter()
            .map(|record| {
                let kind = match record.kind.get() {
                    0 => LayerKind::Plain,
                    1 => LayerKind::Layer,
                    _ => return Err(Errno::IO),
                };
                let path = self.blob(record.path.get())?.to_vec();
                Ok(Layer { path, kind, root: record.root.get() })
            })
            .collect()
    }

    /// Errors: `ESTALE` for a number that names no object, `EIO` for a damaged file.
    pub(in crate::layer) fn object(&self, id: ObjectId) -> Result<&ObjectRecord, Errno> {
        let records: &[ObjectRecord] = self.section(self.header.objects);
        match records.get(position(id.0)?) {
            Some(record) if record.mode.get() != 0 => Ok(record),
            _ => Err(Errno::STALE),
        }
    }

    pub(in crate::layer) fn kind(&self, id: ObjectId) -> Result<Kind, Errno> {
        Kind::from_mode(self.object(id)?.mode.get()).ok_or(Errno::IO)
    }

    /// The directory record of `id` and its position. Errors: `ENOTDIR`.
    pub(in crate::layer) fn directory(
        &self,
        id: ObjectId,
    ) -> Result<(u32, &DirectoryRecord), Errno> {
        let object = self.object(id)?;
        if Kind::from_mode(object.mode.get()) != Some(Kind::Directory) {
            return Err(Errno::NOTDIR);
        }
        let records: &[DirectoryRecord] = self.section(self.header.directories);
        let detail = object.detail.get();
        let record = records.get(position(detail)?).ok_or(Errno::IO)?;
        if record.object.get() != id.0 {
            return Err(Errno::IO);
        }
        Ok((detail, record))
    }

    pub(in crate::layer) fn entries(
        &self,
        directory: &DirectoryRecord,
    ) -> Result<&[EntryRecord], Errno> {
        self.range(self.header.entries, directory.first_entry.get(), directory.entries.get())
    }

    pub(in crate::layer) fn entry<'a>(
        &'a self,
        slot: usize,
        record: &EntryRecord,
    ) -> Result<IndexEntry<'a>, Errno> {
        Ok(IndexEntry {
            name: self.name(record.name.get())?,
            slot: Slot(u32::try_from(slot).map_err(|_| Errno::IO)?),
            object: ObjectId(record.object.get()),
            kind: Kind::from_mode(u32::from(record.kind) << 12).ok_or(Errno::IO)?,
        })
    }

    /// Finds a name by halving: about log2 of the directory's size many looks.
    pub(in crate::layer) fn child(
        &self,
        directory: &DirectoryRecord,
        name: &[u8],
    ) -> Result<Option<IndexEntry<'_>>, Errno> {
        let entries = self.entries(directory)?;
        let (mut low, mut high) = (0, entries.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let record = entries.get(middle).ok_or(Errno::IO)?;
            match self.name(record.name.get())?.cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return self.entry(middle, record).map(Some),
            }
        }
        Ok(None)
    }

    /// The real directories that make up a merged one, top first.
    pub(in crate::layer) fn parts(
        &self,
        directory: &DirectoryRecord,
    ) -> Result<&[PartRecord], Errno> {
        self.range(self.header.parts, directory.first_part.get(), directory.parts.get())
    }

    pub(in crate::layer) fn part(&self, part: u32) -> Result<&PartRecord, Errno> {
        let records: &[PartRecord] = self.section(self.header.parts);
        records.get(position(part)?).ok_or(Errno::IO)
    }

    /// The layer of a part, and its path below that layer's root.
    pub(in crate::layer) fn part_path(&self, part: u32) -> Result<(usize, Vec<u8>), Errno> {
        let mut names = Vec::new();
        let mut here = part;
        loop {
            let record = self.part(here)?;
            let parent = record.parent.get();
            if parent == NONE {
                let layer = position(record.layer.get())?;
                return Ok((layer, join(names.into_iter().rev())));
            }
            // Parents stand before their children, so this ends whatever the file says.
            if parent >= here {
                return Err(Errno::IO);
            }
            names.push(self.name(record.name.get())?);
            here = parent;
        }
    }

    /// The merged path of an object's first name, without a leading `/`; empty for the root.
    pub(in crate::layer) fn path(&self, id: ObjectId) -> Result<Vec<u8>, Errno> {
        let mut names = Vec::new();
        let mut here = id;
        // No path has more components than there are directories, a file's own name apart.
        let mut left = self.header.directories.count.get();
        while here != ObjectId::ROOT {
            let record = self.object(here)?;
            names.push(self.name(record.name.get())?);
            here = ObjectId(record.parent.get());
            left = left.checked_sub(1).ok_or(Errno::IO)?;
        }
        Ok(join(names.into_iter().rev()))
    }

    /// The merged paths of all names of an object. Reads every entry of the index.
    pub(in crate::layer) fn paths(&self, id: ObjectId) -> Result<Vec<Vec<u8>>, Errno> {
        let directories: &[DirectoryRecord] = self.section(self.header.directories);
        let mut paths = Vec::new();
        for directory in directories {
            for entry in self.entries(directory)?.iter().filter(|entry| entry.object.get() == id.0)
            {
                let above = self.path(ObjectId(directory.object.get()))?;
                let name = self.name(entry.name.get())?;
                paths.push(join([&above[..], name].into_iter().filter(|part| !part.is_empty())));
            }
        }
        Ok(paths)
    }

    /// Where the data of a metacopy file is; `None` for every other file.
    pub(in crate::layer) fn data(
        &self,
        object: &ObjectRecord,
    ) -> Result<Option<&DataRecord>, Errno> {
        let detail = object.detail.get();
        if detail == NONE {
            return Ok(None);
        }
        let records: &[DataRecord] = self.section(self.header.data);
        records.get(position(detail)?).map(Some).ok_or(Errno::IO)
    }

    /// The xattrs of an object.
    pub(in crate::layer) fn xattrs(&self, object: &ObjectRecord) -> Result<&[PairRecord], Errno> {
        let set = object.xattrs.get();
        if set == NONE {
            return Ok(&[]);
        }
        let sets: &[SetRecord] = self.section(self.header.sets);
        let set = sets.get(position(set)?).ok_or(Errno::IO)?;
        self.range(self.header.pairs, set.first_pair.get(), set.pairs.get())
    }

    /// A string of the names heap.
    pub(in crate::layer) fn name(&self, name: u32) -> Result<&[u8], Errno> {
        let heap: &[u8] = self.section(self.header.names);
        let (length, rest) =
            heap.get(position(name)?..).and_then(<[u8]>::split_first).ok_or(Errno::IO)?;
        rest.get(..usize::from(*length)).ok_or(Errno::IO)
    }

    /// A string of the blobs heap.
    pub(in crate::layer) fn blob(&self, blob: u32) -> Result<&[u8], Errno> {
        let heap: &[u8] = self.section(self.header.blobs);
        let (length, rest) =
            heap.get(position(blob)?..).and_then(<[u8]>::split_first_chunk).ok_or(Errno::IO)?;
        rest.get(..position(u32::from_le_bytes(*length))?).ok_or(Errno::IO)
    }

    /// `checked_header` has seen every section in bounds; a section that is not is empty.
    fn section<T>(&self, section: Section) -> &[T]
    where
        T: FromBytes + Immutable + KnownLayout + Unaligned,
    {
        bounds::<T>(section)
            .and_then(|range| self.mapping.as_bytes().get(range))
            .and_then(|bytes| <[T]>::ref_from_bytes(bytes).ok())
            .unwrap_or(&[])
    }

    fn range<T>(&self, section: Section, first: u32, count: u32) -> Result<&[T], Errno>
    where
        T: FromBytes + Immutable + KnownLayout + Unaligned,
    {
        let first = position(first)?;
        let end = first.checked_add(position(count)?).ok_or(Errno::IO)?;
        self.section(section).get(first..end).ok_or(Errno::IO)
    }
}

/// Why a file's owner, type or mode forbid its use.
fn distrust(stat: &rustix::fs::Stat) -> Option<String> {
    if Kind::from_mode(stat.st_mode) != Some(Kind::File) {
        return Some("it is not a regular file".to_owned());
    }
    let us = rustix::process::geteuid().as_raw();
    if stat.st_uid != 0 && stat.st_uid != us {
        return Some(format!("it is owned by user {}", stat.st_uid));
    }
    // stat.h: S_IWGRP | S_IWOTH.
    if stat.st_mode & 0o022 != 0 {
        return Some(format!("its mode {:04o} lets others write", stat.st_mode & 0o7777));
    }
    None
}

fn checked_header(file: &[u8]) -> Result<Header, &'static str> {
    let (header, _) =
        Header::read_from_prefix(file).map_err(|_| "it is shorter than its header")?;
    if header.version.get() != VERSION {
        return Err("it is of another version");
    }
    let bytes = header.as_bytes();
    let mut check = Digest::new();
    check.update(&bytes[..bytes.len() - header.check.len()]);
    if check.finish() != header.check {
        return Err("its header is damaged");
    }
    if u64::try_from(file.len()) != Ok(header.file_bytes.get()) {
        return Err("its length is not what its header says");
    }
    let ranges = [
        bounds::<LayerRecord>(header.layers),
        bounds::<[u8; 16]>(header.ancestors),
        bounds::<ObjectRecord>(header.objects),
        bounds::<DirectoryRecord>(header.directories),
        bounds::<EntryRecord>(header.entries),
        bounds::<PartRecord>(header.parts),
        bounds::<DataRecord>(header.data),
        bounds::<SetRecord>(header.sets),
        bounds::<PairRecord>(header.pairs),
        bounds::<u8>(header.names),
        bounds::<u8>(header.blobs),
    ];
    if ranges.iter().any(|range| range.as_ref().is_none_or(|range| range.end > file.len())) {
        return Err("its sections leave the file");
    }
    Ok(header)
}

/// The bytes of a section; `None` where they overflow.
fn bounds<T>(section: Section) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(section.offset.get()).ok()?;
    let bytes = usize::try_from(section.count.get()).ok()?.checked_mul(size_of::<T>())?;
    Some(start..start.checked_add(bytes)?)
}

fn position(number: u32) -> Result<usize, Errno> {
    usize::try_from(number).map_err(|_| Errno::IO)
}

fn join<'a>(names: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut path = Vec::new();
    for name in names {
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
    }
    path
}
