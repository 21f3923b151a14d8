//! Writes a numbered draft as an index file, whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use zerocopy::{Immutable, IntoBytes};

use super::draft::{Draft, position};
use super::found::LayerRoot;
use super::number::Numbering;
use super::{SealError, sibling};
use crate::filesystem::Kind;
use crate::layer::index::digest::Digest;
use crate::layer::index::format::{
    Header, LayerRecord, MAGIC, NONE, ObjectRecord, Section, VERSION,
};
use crate::layer::index::{Index, LayerKind};

/// How many earlier identities an index remembers.
const ANCESTORS_MAX: usize = 256;

/// An index ready to be written.
pub struct Finished {
    draft: Draft,
    objects: Vec<ObjectRecord>,
    layers: Vec<LayerRecord>,
    ancestors: Vec<[u8; 16]>,
    header: Header,
}

impl Finished {
    /// Puts every object at its number.
    pub fn new(
        mut draft: Draft,
        numbering: &Numbering,
        layers: &[LayerRoot],
        before: Option<&Index>,
    ) -> Result<Self, SealError> {
        let number_of = |at: u32| {
            usize::try_from(at)
                .ok()
                .and_then(|at| numbering.numbers.get(at))
                .copied()
                .ok_or(SealError::TooLarge)
        };
        let identity = identity(&draft, numbering);
        let count = usize::try_from(numbering.last).map_err(|_| SealError::TooLarge)? + 1;
        let mut objects = vec![ObjectRecord::default(); count];
        for (object, number) in draft.objects.iter().zip(&numbering.numbers) {
            let slot = usize::try_from(*number).ok().and_then(|number| objects.get_mut(number));
            let slot = slot.ok_or(SealError::TooLarge)?;
            *slot = ObjectRecord { parent: number_of(object.parent.get())?.into(), ..*object };
        }
        for directory in &mut draft.directories {
            directory.object = number_of(directory.object.get())?.into();
        }
        for entry in &mut draft.entries {
            entry.object = number_of(entry.object.get())?.into();
        }
        let layers = layer_records(&mut draft, layers)?;
        let mut ancestors = before.map_or_else(Vec::new, |index| index.ancestors().to_vec());
        ancestors.extend(before.map(|index| index.identity().0).filter(|id| *id != identity));
        ancestors.retain({
            let mut seen = std::collections::HashSet::new();
            move |id| *id != identity && seen.insert(*id)
        });
        ancestors.drain(..ancestors.len().saturating_sub(ANCESTORS_MAX));
        let header = Header {
            magic: MAGIC,
            version: VERSION.into(),
            last_number: numbering.last.into(),
            identity,
            upper_numbers_start: numbering.upper_start.into(),
            objects_present: u64::try_from(draft.objects.len()).unwrap_or(u64::MAX).into(),
            ..Header::default()
        };
        let mut finished = Self { draft, objects, layers, ancestors, header };
        finished.lay_out();
        Ok(finished)
    }

    /// What the index is to be called.
    pub const fn identity(&self) -> [u8; 16] {
        self.header.identity
    }

    /// The length of the file in bytes.
    pub const fn file_bytes(&self) -> u64 {
        self.header.file_bytes.get()
    }

    /// Decides where each section stands.
    fn lay_out(&mut self) {
        let mut end = u64::try_from(size_of::<Header>()).unwrap_or(u64::MAX);
        let mut section = |records: usize, record_bytes: usize| {
            let count = u64::try_from(records).unwrap_or(u64::MAX);
            let section = Section { offset: end.into(), count: count.into() };
            end += count * u64::try_from(record_bytes).unwrap_or(u64::MAX);
            section
        };
        let draft = &self.draft;
        self.header.layers = section(self.layers.len(), size_of_item(&self.layers));
        self.header.ancestors = section(self.ancestors.len(), size_of_item(&self.ancestors));
        self.header.objects = section(self.objects.len(), size_of_item(&self.objects));
        self.header.directories =
            section(draft.directories.len(), size_of_item(&draft.directories));
        self.header.entries = section(draft.entries.len(), size_of_item(&draft.entries));
        self.header.parts = section(draft.parts.len(), size_of_item(&draft.parts));
        self.header.data = section(draft.data.len(), size_of_item(&draft.data));
        self.header.sets = section(draft.sets.len(), size_of_item(&draft.sets));
        self.header.pairs = section(draft.pairs.len(), size_of_item(&draft.pairs));
        self.header.names = section(draft.names.len(), 1);
        self.header.blobs = section(draft.blobs.len(), 1);
        self.header.file_bytes = end.into();
        let bytes = self.header.as_bytes();
        let mut check = Digest::new();
        check.update(&bytes[..bytes.len() - self.header.check.len()]);
        self.header.check = check.finish();
    }

    /// Writes the file beside `path` and renames it there. The caller holds the lock.
    pub fn publish(&self, path: &Path) -> Result<(), SealError> {
        let staged = Staged(sibling(path, ".new"));
        let failed = |source| SealError::Write { path: path.to_owned(), source };
        match fs::remove_file(&staged.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let options = OpenOptions::new().write(true).create_new(true).mode(0o600).clone();
        let file = options.open(&staged.0).map_err(failed)?;
        self.write_to(&file).map_err(failed)?;
        // A power loss must leave an index whole: nothing but the header is checked at start-up.
        file.sync_data().map_err(failed)?;
        fs::rename(&staged.0, path).map_err(failed)
    }

    fn write_to(&self, file: &File) -> io::Result<()> {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        let draft = &self.draft;
        out.write_all(self.header.as_bytes())?;
        out.write_all(bytes_of(&self.layers))?;
        out.write_all(bytes_of(&self.ancestors))?;
        out.write_all(bytes_of(&self.objects))?;
        out.write_all(bytes_of(&draft.directories))?;
        out.write_all(bytes_of(&draft.entries))?;
        out.write_all(bytes_of(&draft.parts))?;
        out.write_all(bytes_of(&draft.data))?;
        out.write_all(bytes_of(&draft.sets))?;
        out.write_all(bytes_of(&draft.pairs))?;
        out.write_all(&draft.names)?;
        out.write_all(&draft.blobs)?;
        out.flush()
    }
}

/// Removes a file that was not renamed to where it belongs.
struct Staged(PathBuf);

impl Drop for Staged {
    fn drop(&mut self) {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!("{}: {error}", self.0.display());
            }
            _ => {}
        }
    }
}

fn bytes_of<T: IntoBytes + Immutable>(records: &[T]) -> &[u8] {
    records.as_bytes()
}

const fn size_of_item<T>(_: &[T]) -> usize {
    size_of::<T>()
}

fn layer_records(draft: &mut Draft, layers: &[LayerRoot]) -> Result<Vec<LayerRecord>, SealError> {
    let mut records = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        records.push(LayerRecord {
            path: draft.blob(layer.path.as_os_str().as_bytes())?.into(),
            kind: match layer.kind {
                LayerKind::Plain => 0,
                LayerKind::Layer => 1,
            }
            .into(),
            // The walk adds the roots before every other part.
            root: position(number)?.into(),
        });
    }
    Ok(records)
}

/// The digest of what identical copies have in common: numbers, names, kinds, modes, owners,
/// sizes of files, mtimes, targets, devices, xattrs; not inodes, devices, atimes and ctimes, nor
/// the sizes of directories.
fn identity(draft: &Draft, numbering: &Numbering) -> [u8; 16] {
    let mut digest = Digest::new();
    digest.update_number(numbering.upper_start);
    for (object, number) in draft.objects.iter().zip(&numbering.numbers) {
        digest_object(&mut digest, draft, object, *number);
    }
    for directory in &draft.directories {
        digest.update_number(u64::from(directory.object.get()));
        let first = usize::try_from(directory.first_entry.get()).unwrap_or(usize::MAX);
        let count = usize::try_from(directory.entries.get()).unwrap_or(0);
        for entry in draft.entries.iter().skip(first).take(count) {
            digest.update_counted(heap_name(draft, entry.name.get()));
            digest.update_number(u64::from(entry.object.get()));
        }
    }
    digest.finish()
}

fn digest_object(digest: &mut Digest, draft: &Draft, object: &ObjectRecord, number: u32) {
    let kind = Kind::from_mode(object.mode.get());
    digest.update_number(u64::from(number));
    digest.update(object.mode.as_bytes());
    digest.update(object.uid.as_bytes());
    digest.update(object.gid.as_bytes());
    digest.update(object.rdev.as_bytes());
    digest.update(object.mtime.as_bytes());
    match kind {
        Some(Kind::File) => digest.update(object.size.as_bytes()),
        Some(Kind::Symlink) => digest.update_counted(heap_blob(draft, object.detail.get())),
        _ => {}
    }
    if object.xattrs.get() == NONE {
        return;
    }
    let set = usize::try_from(object.xattrs.get()).ok().and_then(|set| draft.sets.get(set));
    if let Some(set) = set {
        let first = usize::try_from(set.first_pair.get()).unwrap_or(usize::MAX);
        let count = usize::try_from(set.pairs.get()).unwrap_or(0);
        digest.update_number(u64::from(set.pairs.get()));
        for pair in draft.pairs.iter().skip(first).take(count) {
            digest.update_counted(heap_name(draft, pair.name.get()));
            digest.update_counted(heap_blob(draft, pair.value.get()));
        }
    }
}

fn heap_name(draft: &Draft, at: u32) -> &[u8] {
    usize::try_from(at)
        .ok()
        .and_then(|at| draft.names.get(at..))
        .and_then(<[u8]>::split_first)
        .and_then(|(length, rest)| rest.get(..usize::from(*length)))
        .unwrap_or_default()
}

fn heap_blob(draft: &Draft, at: u32) -> &[u8] {
    usize::try_from(at)
        .ok()
        .and_then(|at| draft.blobs.get(at..))
        .and_then(<[u8]>::split_first_chunk)
        .and_then(|(length, rest)| rest.get(..usize::try_from(u32::from_le_bytes(*length)).ok()?))
        .unwrap_or_default()
}
