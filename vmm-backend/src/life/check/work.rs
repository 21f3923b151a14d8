//! The work directory: what is staged, parked, mapped and linked in it, and for whom.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;

use super::damage::Damage;
use super::object::Object;
use super::{Check, Place, Spot, join, subdirectory};
use crate::filesystem::{Errno, Kind};
use crate::layer::index::{IndexId, ObjectId};
use crate::layer::mark::{Mark, NlinkMark, Origin};
use crate::layer::work::{FEATURES, READY_WHITEOUT, SPARE, features};
use crate::sys::fs;

/// What a work directory holds, and what the walk through the upper says of it.
#[derive(Default)]
pub struct WorkSeen {
    /// The maps in `blocks/`, by name.
    pub maps: HashMap<Vec<u8>, Map>,
    /// Which inode, and where, has an origin.
    pub origins: HashMap<ObjectId, (u64, Vec<u8>)>,
    /// Something could not be looked at: names were missed.
    pub is_partial: bool,
    links: HashMap<ObjectId, Link>,
    by_inode: HashMap<u64, ObjectId>,
}

/// A map in `blocks/`.
pub struct Map {
    /// Its length in bytes.
    pub bytes: u64,
    /// The file it is of.
    pub owner: Option<(u64, Vec<u8>)>,
}

/// A hard link in `index/`.
struct Link {
    name: Vec<u8>,
    handle: OwnedFd,
    /// Links the upper's inode has: names in the upper, and the one in the index.
    own: u32,
    mark: NlinkMark,
    names: u32,
}

impl WorkSeen {
    /// Whether names have to be counted.
    pub fn counts_names(&self) -> bool {
        !self.links.is_empty()
    }

    /// A name of the upper leads to an inode.
    pub fn count_upper(&mut self, ino: u64) {
        if let Some(object) = self.by_inode.get(&ino).copied() {
            self.count_lower(object);
        }
    }

    /// A name of the union leads to a lower object.
    pub fn count_lower(&mut self, object: ObjectId) {
        if let Some(link) = self.links.get_mut(&object) {
            link.names += 1;
        }
    }
}

/// Judges what can be judged without the upper.
pub fn look(check: &mut Check<'_>) -> Result<WorkSeen, Errno> {
    let mut seen = WorkSeen::default();
    let Some(work) = check.subject.work else { return Ok(seen) };
    for row in fs::list(work)? {
        check.report.objects += 1;
        match row.name.as_slice() {
            b"pid" => {}
            b"work" | b"orphans" | b"blocks" | b"live" | b"index" => {
                let Some(dir) = subdirectory(work, &row.name)? else {
                    at(check, (work, &row.name), &row.name, Damage::Stranger);
                    continue;
                };
                match row.name.as_slice() {
                    b"work" => staged(check, dir.as_fd())?,
                    b"orphans" => all(check, (dir.as_fd(), b"orphans"), Damage::Orphan)?,
                    b"blocks" => maps(check, dir.as_fd(), &mut seen)?,
                    // Believed or swept by who serves the upper next; no one else uses them.
                    b"live" => {}
                    _ => links(check, dir.as_fd(), &mut seen)?,
                }
            }
            name => at(check, (work, name), name, Damage::Stranger),
        }
    }
    Ok(seen)
}

/// Records what is wrong with a name in the work directory.
fn at(check: &mut Check<'_>, entry: (BorrowedFd<'_>, &[u8]), path: &[u8], damage: Damage) {
    let handle = fs::open_name(entry.0, entry.1, OFlags::PATH).ok();
    let handle = handle.as_ref().map(OwnedFd::as_fd);
    check.find(&Spot { place: Place::Work, path, entry: Some(entry), handle }, damage);
}

fn all(
    check: &mut Check<'_>,
    (dir, path): (BorrowedFd<'_>, &[u8]),
    damage: Damage,
) -> Result<(), Errno> {
    for row in fs::list(dir)? {
        check.report.objects += 1;
        at(check, (dir, &row.name), &join(path, &row.name), damage.clone());
    }
    Ok(())
}

/// What a daemon takes away when it starts, and what forbids it to start.
fn staged(check: &mut Check<'_>, dir: BorrowedFd<'_>) -> Result<(), Errno> {
    let features = features(dir)?;
    for row in fs::list(dir)? {
        check.report.objects += 1;
        let path = join(b"work", &row.name);
        match row.name.as_slice() {
            READY_WHITEOUT | SPARE => {}
            FEATURES => {
                for feature in &features {
                    let text = feature.escape_ascii().to_string();
                    at(check, (dir, FEATURES), &join(&path, feature), Damage::Feature(text));
                }
            }
            name => at(check, (dir, name), &path, Damage::Staged),
        }
    }
    Ok(())
}

fn maps(check: &mut Check<'_>, dir: BorrowedFd<'_>, seen: &mut WorkSeen) -> Result<(), Errno> {
    for row in fs::list(dir)? {
        check.report.objects += 1;
        let stat = fs::stat_name(dir, &row.name)?;
        let is_file = Kind::from_mode(u32::from(stat.stx_mode)) == Some(Kind::File);
        let is_name = row.name.len() == 16 && row.name.iter().all(u8::is_ascii_hexdigit);
        if is_file && is_name {
            seen.maps.insert(row.name, Map { bytes: stat.stx_size, owner: None });
        } else {
            at(check, (dir, &row.name), &join(b"blocks", &row.name), Damage::Stranger);
        }
    }
    Ok(())
}

fn links(check: &mut Check<'_>, dir: BorrowedFd<'_>, seen: &mut WorkSeen) -> Result<(), Errno> {
    for row in fs::list(dir)? {
        check.report.objects += 1;
        let path = join(b"index", &row.name);
        // The kernel's overlayfs works in its index too, and leaves `#…` there.
        if row.name.starts_with(b"#") {
            at(check, (dir, &row.name), &path, Damage::Staged);
            continue;
        }
        let handle = fs::open_name(dir, &row.name, OFlags::PATH)?;
        let object = Object::read(check.space(), handle)?;
        let origin = object.mark(Mark::OwnOrigin).and_then(Origin::from_bytes);
        let is_kernels = row.name.iter().all(u8::is_ascii_hexdigit);
        match origin {
            Some(origin) if is_link(check, origin) => link(seen, origin, row.name, object),
            // The kernel keeps directories and whiteouts there too; its links become ours when the
            // upper is served.
            None if is_kernels && object.unknown.is_empty() => {}
            _ => at(check, (dir, &row.name), &path, Damage::LinkOfNothing),
        }
    }
    Ok(())
}

fn is_link(check: &Check<'_>, origin: Origin) -> bool {
    let lower = check.subject.lower;
    lower.continues(IndexId(origin.identity))
        && lower.is_hard_linked(ObjectId(origin.object)) == Ok(true)
}

fn link(seen: &mut WorkSeen, origin: Origin, name: Vec<u8>, object: Object) {
    let id = ObjectId(origin.object);
    let mark = object.mark(Mark::Nlink).and_then(NlinkMark::from_bytes);
    let (mark, own) = (mark.unwrap_or(NlinkMark::Upper(0)), object.stat.stx_nlink);
    seen.by_inode.insert(object.stat.stx_ino, id);
    seen.origins.insert(id, (object.stat.stx_ino, join(b"index", &name)));
    seen.links.insert(id, Link { name, handle: object.handle, own, mark, names: 0 });
}

/// Judges what only the walk could tell: which maps and links are used.
pub fn judge(check: &mut Check<'_>, seen: &WorkSeen) {
    let Some(work) = check.subject.work else { return };
    if seen.is_partial {
        // What was missed may be their user.
        return;
    }
    if let Ok(Some(blocks)) = subdirectory(work, b"blocks") {
        for (name, _) in seen.maps.iter().filter(|(_, map)| map.owner.is_none()) {
            at(check, (blocks.as_fd(), name), &join(b"blocks", name), Damage::LooseMap);
        }
    }
    if let Ok(Some(index)) = subdirectory(work, b"index") {
        for (object, link) in &seen.links {
            judge_link(check, index.as_fd(), *object, link);
        }
    }
}

fn judge_link(check: &mut Check<'_>, index: BorrowedFd<'_>, object: ObjectId, link: &Link) {
    let (base, more) = match link.mark {
        NlinkMark::Upper(more) => (link.own, more),
        NlinkMark::Lower(more) => {
            (check.subject.lower.attributes(object).map_or(0, |shown| shown.nlink), more)
        }
    };
    let (counted, names) = (base.saturating_add_signed(more), link.names);
    let damage = if names == 0 {
        Damage::LinkUnused
    } else if counted != names {
        let more = i64::from(names) - i64::from(link.own);
        Damage::WrongLinks { counted, names, more: i32::try_from(more).unwrap_or(0) }
    } else {
        return;
    };
    let path = join(b"index", &link.name);
    let (entry, handle) = (Some((index, link.name.as_slice())), Some(link.handle.as_fd()));
    check.find(&Spot { place: Place::Work, path: &path, entry, handle }, damage);
}
