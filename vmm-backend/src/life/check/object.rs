//! The marks of one upper object, judged.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use super::damage::Damage;
use super::work::WorkSeen;
use super::{Check, Spot};
use crate::filesystem::{Errno, Kind};
use crate::layer::blocks::BlocksMark;
use crate::layer::index::{IndexId, ObjectId};
use crate::layer::mark::{DANGLING, Mark, MarkSpace, Meaning, NlinkMark, Origin};
use crate::layer::owner::{self, Owner, Ownership};
use crate::layer::unsettled::sidecar_name;
use crate::sys::fs;

/// An object as it is on disk.
pub struct Object {
    /// An `O_PATH` descriptor of it.
    pub handle: OwnedFd,
    /// The host's attributes.
    pub stat: fs::Statx,
    /// What a guest sees of its kind.
    pub kind: Kind,
    /// Its marks, each with its value.
    pub marks: Vec<(Mark, Vec<u8>)>,
    /// Names of marks we do not read.
    pub unknown: Vec<Vec<u8>>,
}

/// What the walk needs to know of an object.
#[derive(Default)]
pub struct Verdict {
    /// The lower directory that shows through.
    pub merged: Option<ObjectId>,
    /// What is below a directory cannot be told.
    pub is_closed: bool,
}

impl Object {
    /// Reads an object's marks.
    pub fn read(space: MarkSpace, handle: OwnedFd) -> Result<Self, Errno> {
        let stat = fs::stat(handle.as_fd())?;
        let kind = Kind::from_mode(u32::from(stat.stx_mode)).ok_or(Errno::IO)?;
        let (mut marks, mut unknown) = (Vec::new(), Vec::new());
        for name in fs::list_xattrs(handle.as_fd())?.split(|byte| *byte == 0) {
            match space.meaning(name) {
                Meaning::Mark(mark) => {
                    marks.push((mark, fs::xattr(handle.as_fd(), name)?.unwrap_or_default()));
                }
                Meaning::Unknown => unknown.push(name.to_owned()),
                Meaning::Guest | Meaning::Idle => {}
            }
        }
        Ok(Self { handle, stat, kind, marks, unknown })
    }

    /// The value of a mark.
    pub fn mark(&self, mark: Mark) -> Option<&[u8]> {
        self.marks.iter().find(|(found, _)| *found == mark).map(|(_, value)| value.as_slice())
    }

    fn is_metacopy(&self) -> bool {
        self.kind == Kind::File && self.mark(Mark::Metacopy).is_some()
    }

    /// Whether the kernel's overlayfs wants its directory marked.
    pub fn has_origin(&self) -> bool {
        self.mark(Mark::Origin).is_some() || self.mark(Mark::OwnOrigin).is_some()
    }

    /// Whether its stat mark counts: in a native upper on stand-ins only.
    fn has_owner_mark(&self, ownership: Ownership) -> bool {
        ownership == Ownership::Override || owner::is_stand_in(&self.stat)
    }
}

/// A name to be judged.
pub struct Entry<'a> {
    /// Its directory, and its name there.
    pub entry: Option<(BorrowedFd<'a>, &'a [u8])>,
    /// Its path from the root.
    pub path: &'a [u8],
    /// The lower directory its directory shows.
    pub lower: Option<ObjectId>,
}

impl Check<'_> {
    /// Judges an object by all its marks.
    pub fn judge(
        &mut self,
        entry: &Entry<'_>,
        mut object: Object,
        work: &mut WorkSeen,
    ) -> (Verdict, Object) {
        let mut found: Vec<Damage> = Vec::new();
        let text = |name: &[u8]| name.escape_ascii().to_string();
        found.extend(object.unknown.iter().map(|name| Damage::UnknownMark(text(name))));
        let mut verdict = Verdict { merged: None, is_closed: !object.unknown.is_empty() };
        self.judge_owner(&mut object, &mut found);
        self.judge_values(&object, &mut found);
        self.judge_origin(entry, &object, work, &mut found);
        match object.kind {
            Kind::Directory => match self.judge_redirect(entry, &object) {
                Ok(merged) => verdict.merged = merged,
                Err(damage) => {
                    // What is below is judged as a repair would have it.
                    verdict.merged = self.home(&object, &damage);
                    verdict.is_closed |= verdict.merged.is_none();
                    found.push(damage);
                }
            },
            Kind::File => found.extend(self.judge_data(entry, &object, work).err()),
            _ => {}
        }
        let spot = Spot {
            place: super::Place::Upper,
            path: entry.path,
            entry: entry.entry,
            handle: Some(object.handle.as_fd()),
        };
        found.into_iter().for_each(|damage| self.find(&spot, damage));
        (verdict, object)
    }

    /// What a guest sees it is may stand in a mark.
    fn judge_owner(&self, object: &mut Object, found: &mut Vec<Damage>) {
        if !object.has_owner_mark(self.subject.upper.ownership()) {
            return;
        }
        let Some(value) = object.mark(Mark::Stat) else { return };
        match Owner::from_mark(value).filter(|owner| owner::fits(owner, &object.stat)) {
            Some(owner) => object.kind = Kind::from_mode(owner.mode).unwrap_or(object.kind),
            None => found.push(Damage::BadOwner(value.escape_ascii().to_string())),
        }
    }

    /// Marks that mean nothing: by their value, or on an object of this kind.
    fn judge_values(&self, object: &Object, found: &mut Vec<Damage>) {
        let is_metacopy = object.is_metacopy();
        for (mark, value) in &object.marks {
            let (mark, name) = (*mark, self.space().name(*mark).escape_ascii().to_string());
            let misplaced = match (mark, object.kind) {
                (Mark::Opaque | Mark::Impure, Kind::Directory)
                | (Mark::Redirect, Kind::Directory | Kind::File)
                | (Mark::Metacopy | Mark::Blocks, Kind::File)
                | (Mark::Origin | Mark::OwnOrigin | Mark::Nlink | Mark::Stat, _) => None,
                (_, kind) => Some(kind),
            };
            if let Some(kind) = misplaced {
                found.push(Damage::Misplaced { name, mark, kind: noun(kind) });
                continue;
            }
            let is_whole_file = object.kind == Kind::File && !is_metacopy;
            match mark {
                Mark::Redirect | Mark::Blocks if is_whole_file => {
                    found.push(Damage::Spent { name, mark });
                }
                Mark::Opaque if value != b"y" => {
                    found.push(Damage::BadValue { name, mark, is_spare: false });
                }
                Mark::Nlink if NlinkMark::from_bytes(value).is_none() => {
                    let is_spare = object.stat.stx_nlink == 1;
                    found.push(Damage::BadValue { name, mark, is_spare });
                }
                Mark::OwnOrigin if Origin::from_bytes(value).is_none() => {
                    found.push(Damage::BadValue { name, mark, is_spare: !is_metacopy });
                }
                Mark::Blocks if BlocksMark::from_bytes(value).is_none() => {
                    found.push(Damage::BadValue { name, mark, is_spare: false });
                }
                _ => {}
            }
        }
    }

    /// The object an origin mark names, if it could have become this one.
    fn origin(&self, object: &Object) -> Option<ObjectId> {
        let origin = Origin::from_bytes(object.mark(Mark::OwnOrigin)?)?;
        let (lower, id) = (self.subject.lower, ObjectId(origin.object));
        let is_ours = lower.continues(IndexId(origin.identity))
            && id != ObjectId::ROOT
            && lower.kind(id) == Ok(object.kind);
        is_ours.then_some(id)
    }

    fn judge_origin(
        &self,
        entry: &Entry<'_>,
        object: &Object,
        work: &mut WorkSeen,
        found: &mut Vec<Damage>,
    ) {
        let Some(origin) = object.mark(Mark::OwnOrigin).and_then(Origin::from_bytes) else {
            return;
        };
        if entry.entry.is_none() {
            // The root's says which base this is.
            return;
        }
        let is_whole = !object.is_metacopy();
        if !self.subject.lower.continues(IndexId(origin.identity)) {
            found.push(Damage::OriginElsewhere { is_whole });
            return;
        }
        let Some(id) = self.origin(object) else {
            found.push(Damage::OriginOfNothing { object: origin.object, is_whole });
            return;
        };
        let own = (object.stat.stx_ino, entry.path.to_owned());
        let (ino, with) = work.origins.entry(id).or_insert(own);
        if *ino != object.stat.stx_ino {
            let with = with.escape_ascii().to_string();
            found.push(Damage::OriginTwice { with, is_whole });
        }
    }

    /// The lower directory that shows through a directory.
    fn judge_redirect(
        &self,
        entry: &Entry<'_>,
        object: &Object,
    ) -> Result<Option<ObjectId>, Damage> {
        if entry.entry.is_none() {
            return Ok(Some(ObjectId::ROOT));
        }
        if object.mark(Mark::Opaque).is_some() {
            return Ok(None);
        }
        let lower = self.subject.lower;
        let Some(redirect) = object.mark(Mark::Redirect) else {
            let Some((_, name)) = entry.entry else { return Ok(None) };
            let found = self.child(entry.lower, name)?;
            return Ok(found.filter(|id| lower.kind(*id) == Ok(Kind::Directory)));
        };
        let found = self.redirected(entry.lower, redirect)?;
        match found.filter(|id| lower.kind(*id) == Ok(Kind::Directory) && *id != ObjectId::ROOT) {
            Some(id) => Ok(Some(id)),
            None => {
                let home = self.origin(object).and_then(|id| lower.path(id).ok());
                Err(Damage::RedirectDangles { to: redirect.escape_ascii().to_string(), home })
            }
        }
    }

    /// The lower directory by which a redirect is mended.
    fn home(&self, object: &Object, damage: &Damage) -> Option<ObjectId> {
        let has_home = matches!(damage, Damage::RedirectDangles { home: Some(_), .. });
        self.origin(object).filter(|_| has_home)
    }

    /// The lower object a redirect names.
    fn redirected(
        &self,
        dir: Option<ObjectId>,
        redirect: &[u8],
    ) -> Result<Option<ObjectId>, Damage> {
        let climbs = || Damage::RedirectClimbs(redirect.escape_ascii().to_string());
        let is_name = |step: &[u8]| !matches!(step, b"" | b"." | b"..");
        match redirect.strip_prefix(b"/") {
            Some(path) if path.split(|byte| *byte == b'/').all(is_name) => {
                self.subject.lower.resolve(path).map_err(Damage::Unreadable)
            }
            None if is_name(redirect) && !redirect.contains(&b'/') => self.child(dir, redirect),
            _ => Err(climbs()),
        }
    }

    /// What the lower has at a name.
    pub fn child(&self, dir: Option<ObjectId>, name: &[u8]) -> Result<Option<ObjectId>, Damage> {
        let Some(dir) = dir else { return Ok(None) };
        let found = self.subject.lower.child(dir, name).map_err(Damage::Unreadable)?;
        Ok(found.map(|entry| entry.object))
    }

    /// Whether the data of an unsettled file is where its marks say.
    fn judge_data(
        &self,
        entry: &Entry<'_>,
        object: &Object,
        work: &mut WorkSeen,
    ) -> Result<(), Damage> {
        let blocks = object.mark(Mark::Blocks).and_then(BlocksMark::from_bytes);
        if let Some(blocks) = blocks.filter(|blocks| blocks.sidecar != 0) {
            judge_map(entry, object, &blocks, work)?;
        }
        if !object.is_metacopy() {
            return Ok(());
        }
        let lower = self.subject.lower;
        let id = self.data_of(entry, object)?.ok_or(Damage::NoData)?;
        let shown = lower.attributes(id).map_err(Damage::Unreadable)?;
        let path = || lower.path(id).unwrap_or_default().escape_ascii().to_string();
        if blocks.is_some_and(|blocks| !blocks.is_over(&shown)) {
            return Err(Damage::LowerChanged { lower: path() });
        }
        match lower.open_file(id) {
            Ok(_) => Ok(()),
            Err(cause) => Err(Damage::LowerLost { lower: path(), cause }),
        }
    }

    /// The lower file an unsettled one falls through to.
    fn data_of(&self, entry: &Entry<'_>, object: &Object) -> Result<Option<ObjectId>, Damage> {
        if let Some(id) = self.origin(object) {
            return Ok(Some(id));
        }
        let found = match (object.mark(Mark::Redirect), entry.entry) {
            (Some(DANGLING), _) => None,
            (Some(redirect), _) => self.redirected(entry.lower, redirect)?,
            (None, Some((_, name))) => self.child(entry.lower, name)?,
            (None, None) => None,
        };
        Ok(found.filter(|id| self.subject.lower.kind(*id) == Ok(Kind::File)))
    }
}

fn judge_map(
    entry: &Entry<'_>,
    object: &Object,
    blocks: &BlocksMark,
    work: &mut WorkSeen,
) -> Result<(), Damage> {
    let name = sidecar_name(blocks.sidecar);
    let map = name.escape_ascii().to_string();
    let Some(seen) = work.maps.get_mut(&name) else {
        // A file with all its data has lost nothing with its map.
        let is_needed = object.is_metacopy() && !blocks.is_begun;
        return if is_needed { Err(Damage::NoMap { map }) } else { Ok(()) };
    };
    let owner = seen.owner.get_or_insert_with(|| (object.stat.stx_ino, entry.path.to_owned()));
    if owner.0 != object.stat.stx_ino {
        let with = owner.1.escape_ascii().to_string();
        return Err(Damage::SharedMap { map, with });
    }
    if object.is_metacopy()
        && !blocks.is_begun
        && seen.bytes < blocks.map_bytes(object.stat.stx_size)
    {
        return Err(Damage::ShortMap { map });
    }
    Ok(())
}

const fn noun(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "a file",
        Kind::Directory => "a directory",
        Kind::Symlink => "a symbolic link",
        Kind::Fifo => "a FIFO",
        Kind::Socket => "a socket",
        Kind::CharDevice => "a character device",
        Kind::BlockDevice => "a block device",
    }
}
