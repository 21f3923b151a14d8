//! Writes a directory that the walk has read into the draft: entries, new objects, parts.

use super::draft::{Source, object_of, position};
use super::merge::{Hit, OpenPart, PartAt, join};
use super::walk::{Child, Listing, Pending, Walk, usize_of};
use super::{SealError, display};
use crate::filesystem::Kind;
use crate::layer::index::format::{
    DataRecord, DirectoryRecord, EntryRecord, NONE, ObjectRecord, PartRecord, flags,
};
use crate::layer::index::stat::{fill, witness};
use crate::sys::fs::Statx;

/// How many objects pass between two reports of progress.
const REPORT_EVERY: usize = 1024;

impl Walk<'_> {
    /// Writes a directory that was read at rest into the draft.
    pub(super) fn commit(
        &mut self,
        pending: &Pending,
        open: &[OpenPart],
        listing: &Listing,
        children: Vec<Child>,
    ) -> Result<Vec<Pending>, SealError> {
        for part in open {
            self.draft.parts[usize_of(part.at.part)].witness = witness(&part.stat);
        }
        fill(&mut self.draft.objects[usize_of(pending.object)], &open[0].stat);
        let first_entry = self.draft.entries.len();
        let mut further = Vec::new();
        let mut subdirectories = 0;
        for child in children {
            let path = join(&pending.path, &listing.bytes[child.name.clone()]);
            let readable = child.found.is_readable
                && child.data.as_ref().is_none_or(|data| data.found.is_readable)
                && child.below.iter().all(|below| below.found.is_readable);
            if readable {
                subdirectories += usize::from(child.found.kind == Kind::Directory);
                further.extend(self.add(pending, &open[child.top], child, path)?);
            } else {
                self.refuse(&path);
            }
        }
        let directory = self.draft.objects[usize_of(pending.object)].detail.get();
        let record = &mut self.draft.directories[usize_of(directory)];
        record.first_entry = position(first_entry)?.into();
        record.entries = position(self.draft.entries.len() - first_entry)?.into();
        record.subdirectories = position(subdirectories)?.into();
        let nlink = position(subdirectories)?.checked_add(2).ok_or(SealError::TooLarge)?;
        self.draft.objects[usize_of(pending.object)].nlink = nlink.into();
        Ok(further)
    }

    /// Adds a name, and its object if this is the first.
    fn add(
        &mut self,
        pending: &Pending,
        top: &OpenPart,
        child: Child,
        path: Vec<u8>,
    ) -> Result<Option<Pending>, SealError> {
        let name = &path[path.len() - child.name.len()..];
        let entry_name = self.draft.name(name)?;
        let kind = child.found.kind;
        let stat = &child.found.stat;
        // One layer's links are links; the same inode in two layers is one object twice, as it
        // would be in a copy of them.
        let key = (top.at.layer, stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino);
        let may_be_linked = kind != Kind::Directory && stat.stx_nlink > 1;
        let first = may_be_linked.then(|| self.linked.get(&key).copied()).flatten();
        let object = if let Some(object) = first {
            self.draft.objects[usize_of(object)].flags |= flags::HARD_LINKED;
            object
        } else {
            let object = ObjectRecord {
                parent: pending.object.into(),
                name: entry_name.into(),
                part: top.at.part.into(),
                ..object_of(stat)
            };
            let source = Source {
                layer: position(top.at.layer)?,
                number_before: child.before.map_or(0, |id| id.0),
            };
            let object = self.draft.object(object, source)?;
            if may_be_linked {
                self.linked.insert(key, object);
            }
            if usize_of(object).is_multiple_of(REPORT_EVERY) {
                self.report();
            }
            object
        };
        self.draft.entries.push(EntryRecord {
            name: entry_name.into(),
            object: object.into(),
            kind: kind.dirent_type(),
        });
        let record = &mut self.draft.objects[usize_of(object)];
        // A directory's links are counted when it is read; one that is not read is empty.
        record.nlink = if kind == Kind::Directory { 2.into() } else { record.nlink + 1 };
        if first.is_some() {
            return Ok(None);
        }
        self.detail(object, top, child, path)
    }

    /// Completes a new object with what only its kind has.
    fn detail(
        &mut self,
        object: u32,
        top: &OpenPart,
        child: Child,
        path: Vec<u8>,
    ) -> Result<Option<Pending>, SealError> {
        let Child { found, below, data, before, .. } = child;
        let name = self.draft.objects[usize_of(object)].name.get();
        let xattrs = self.draft.xattrs(found.xattrs)?;
        let mut pending = None;
        let detail = match found.kind {
            Kind::Directory if found.is_mount_point => {
                self.mount_points.push(display(&path));
                self.directory(object, 0, 0)?
            }
            Kind::Directory => {
                let (first, parts) = self.parts(top, name, &found.stat, below)?;
                pending = Some(Pending { object, path, parts, before });
                let count = pending.as_ref().map_or(0, |pending| pending.parts.len());
                self.directory(object, first, position(count)?)?
            }
            _ if found.is_mount_point => {
                return Err(SealError::MountedFile { path: display(&path) });
            }
            Kind::Symlink => self.draft.blob(&found.target.unwrap_or_default())?,
            _ => match data {
                Some(data) => self.data(object, &data)?,
                None => NONE,
            },
        };
        let record = &mut self.draft.objects[usize_of(object)];
        record.detail = detail.into();
        record.xattrs = xattrs.into();
        if found.kind == Kind::Directory {
            let directory = &self.draft.directories[usize_of(detail)];
            record.part =
                if directory.parts.get() == 0 { NONE.into() } else { directory.first_part };
        }
        Ok(pending)
    }

    fn directory(&mut self, object: u32, first: u32, parts: u32) -> Result<u32, SealError> {
        let at = position(self.draft.directories.len())?;
        self.draft.directories.push(DirectoryRecord {
            object: object.into(),
            first_part: first.into(),
            parts: parts.into(),
            ..DirectoryRecord::default()
        });
        Ok(at)
    }

    /// Adds the parts of a new directory, one behind the other.
    fn parts(
        &mut self,
        top: &OpenPart,
        name: u32,
        stat: &Statx,
        below: Vec<Hit>,
    ) -> Result<(u32, Vec<PartAt>), SealError> {
        let own_name = self.draft.names[usize_of(name) + 1..]
            [..usize::from(self.draft.names[usize_of(name)])]
            .to_vec();
        let first = self.draft.part(PartRecord {
            layer: position(top.at.layer)?.into(),
            parent: top.at.part.into(),
            name: name.into(),
            witness: witness(stat),
        })?;
        let mut parts =
            vec![PartAt { part: first, layer: top.at.layer, path: join(&top.at.path, &own_name) }];
        for hit in below {
            let name = if hit.name == own_name { name } else { self.draft.name(&hit.name)? };
            let part = self.draft.part(PartRecord {
                layer: position(hit.parent.layer)?.into(),
                parent: hit.parent.part.into(),
                name: name.into(),
                witness: witness(&hit.found.stat),
            })?;
            let path = join(&hit.parent.path, &hit.name);
            parts.push(PartAt { part, layer: hit.parent.layer, path });
        }
        Ok((first, parts))
    }

    fn data(&mut self, object: u32, data: &Hit) -> Result<u32, SealError> {
        self.draft.objects[usize_of(object)].blocks = data.found.stat.stx_blocks.into();
        let at = position(self.draft.data.len())?;
        let record = DataRecord {
            part: data.parent.part.into(),
            name: self.draft.name(&data.name)?.into(),
            witness: witness(&data.found.stat),
        };
        self.draft.data.push(record);
        Ok(at)
    }
}
