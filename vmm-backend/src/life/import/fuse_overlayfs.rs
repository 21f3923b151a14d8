//! An upper that fuse-overlayfs wrote becomes one of ours.
//!
//! Its whiteouts are files `.wh.NAME` where it may make no devices, its opaque directories hold
//! `.wh..wh..opq` (some a `.wh..opq` too) or bear a mark, and where it may not give files away owner
//! and mode stand in a mark (containers/fuse-overlayfs, main.c). It is read as a new mount of it shows
//! it, and written anew.

use std::collections::HashSet;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;

use super::{ImportError, Imported, Staged, check_free, making};
use crate::filesystem::{Attributes, Kind};
use crate::layer::mark::{Mark, MarkSpace, Marks};
use crate::layer::owner::{self, Owner, Ownership};
use crate::life::export::{Content, Object, Target, UpperTarget, reading};
use crate::sys::fs::{self, Statx};
use crate::sys::scan::{Scanner, Xattr, open_directory, read_link_name};

/// Names a whiteout begins with, and the one that makes its directory opaque.
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Owner and mode, in the order in which they are believed.
const OWNER_MARKS: [&[u8]; 3] = [
    b"user.containers.override_stat",
    b"user.fuseoverlayfs.override_stat",
    b"security.fuseoverlayfs.override_stat",
];

/// `y`: nothing of the lower shows.
const OPAQUE_MARKS: [&[u8]; 3] =
    [b"user.fuseoverlayfs.opaque", b"user.overlay.opaque", b"trusted.overlay.opaque"];

/// An attribute by a name of its own marks, which a guest may set where owners are marks.
const ENCODED: &[u8] = b"user.containers.override_";

/// Makes the upper `name` in `dir`, where there must be nothing of that name, of the one of
/// fuse-overlayfs that `from` is. Nobody may write to that meanwhile.
///
/// Errors: as [`ImportError`] says; nothing is left behind then.
pub fn import_upper(
    from: BorrowedFd<'_>,
    dir: BorrowedFd<'_>,
    name: &[u8],
) -> Result<Imported, ImportError> {
    check_free(dir, name)?;
    let mut staged = Staged::make(dir, name, "")?;
    let work = Staged::make(dir, name, "-work")?;
    let open = |name: &[u8]| {
        fs::open_beneath(dir, name, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(|cause| making(name, cause))
    };
    let (root, stage) = (open(&staged.name)?, open(&work.name)?);
    let form = form(root.as_fd());
    let mut to = UpperTarget::in_form(root, stage.as_fd(), form)
        .map_err(|cause| making(&staged.name, cause))?;
    let (scanner, opaque) = (Scanner::default(), HashSet::new());
    let mut walk = Walk { from, scanner, opaque, done: Imported::default() };
    walk.tree(&mut to)?;
    to.finish()?;
    let done = walk.done;
    drop(to);
    staged.publish(name)?;
    Ok(done)
}

/// The kernel's marks and native owners where we may set them, else ours.
fn form(root: BorrowedFd<'_>) -> (MarkSpace, Ownership) {
    let probe = MarkSpace::Trusted.name(Mark::Opaque);
    let may = fs::set_xattr(root, probe, b"y", 0).and_then(|()| fs::remove_xattr(root, probe));
    match may {
        Ok(()) => (MarkSpace::Trusted, Ownership::Native),
        Err(_) => (MarkSpace::User, Ownership::Override),
    }
}

/// Reads the upper.
struct Walk<'a> {
    from: BorrowedFd<'a>,
    scanner: Scanner,
    /// Directories not yet listed that bear a mark which makes them opaque.
    opaque: HashSet<Vec<u8>>,
    done: Imported,
}

impl Walk<'_> {
    fn tree(&mut self, to: &mut dyn Target) -> Result<(), ImportError> {
        let root = fs::stat(self.from).map_err(reading(b""))?;
        self.object((self.from, b""), b"", &root, to)?;
        let mut waiting = vec![Vec::new()];
        while let Some(path) = waiting.pop() {
            let directory = open_directory(self.from, if path.is_empty() { b"." } else { &path });
            let directory = directory.map_err(reading(&path))?;
            self.directory(&directory, &path, to, &mut waiting)?;
        }
        Ok(())
    }

    fn directory(
        &mut self,
        directory: &OwnedFd,
        path: &[u8],
        to: &mut dyn Target,
        waiting: &mut Vec<Vec<u8>>,
    ) -> Result<(), ImportError> {
        let mut names = Vec::new();
        let listed = self.scanner.names(directory.as_fd(), |name| names.push(name.to_vec()));
        listed.map_err(reading(path))?;
        names.sort();
        let is_opaque = self.opaque.remove(path) | names.iter().any(|name| name == OPAQUE);
        if is_opaque {
            to.opaque(path)?;
        }
        for name in &names {
            let below = |name: &[u8]| match path {
                b"" => name.to_vec(),
                above => [above, b"/", name].concat(),
            };
            // Whatever bears such a name: its mount shows none of it.
            if let Some(gone) = name.strip_prefix(WHITEOUT) {
                let is_there = names.binary_search_by(|other| other.as_slice().cmp(gone)).is_ok();
                if !is_opaque && !is_there && !gone.is_empty() {
                    to.whiteout(&below(gone))?;
                }
                continue;
            }
            let path = below(name);
            let stat = fs::stat_name(directory.as_fd(), name).map_err(reading(&path))?;
            if is_whiteout(&stat) {
                if !is_opaque {
                    to.whiteout(&path)?;
                }
            } else if self.object((directory.as_fd(), name), &path, &stat, to)? == Kind::Directory {
                waiting.push(path);
            }
        }
        Ok(())
    }

    /// Gives an object on, and says what it is.
    fn object(
        &mut self,
        (dir, name): (BorrowedFd<'_>, &[u8]),
        path: &[u8],
        stat: &Statx,
        to: &mut dyn Target,
    ) -> Result<Kind, ImportError> {
        let failed = reading(path);
        let host = self.scanner.xattrs(dir, name).map_err(&failed)?;
        let (attributes, xattrs, is_opaque) = read(path, stat, host)?;
        let is_file = Kind::from_mode(u32::from(stat.stx_mode)) == Some(Kind::File);
        let kind = attributes.kind();
        let target = match kind {
            Kind::Symlink if is_file => return Err(foreign(path, "a link that is a file")),
            Kind::Symlink => read_link_name(dir, name).map_err(&failed)?,
            _ => Vec::new(),
        };
        let flags = if kind == Kind::File { OFlags::RDONLY } else { OFlags::PATH };
        let name = if name.is_empty() { b"." } else { name };
        let opened = fs::open_name(dir, name, flags | OFlags::NOFOLLOW).map_err(&failed)?;
        self.done.entries += 1;
        self.done.bytes += attributes.size;
        let content = Content::File(opened);
        to.object(&Object { path, attributes, target, xattrs, content })?;
        if is_opaque && kind == Kind::Directory {
            self.opaque.insert(path.to_vec());
        }
        Ok(kind)
    }
}

fn is_whiteout(stat: &Statx) -> bool {
    Kind::from_mode(u32::from(stat.stx_mode)) == Some(Kind::CharDevice)
        && (stat.stx_rdev_major, stat.stx_rdev_minor) == (0, 0)
}

fn foreign(path: &[u8], mark: &str) -> ImportError {
    ImportError::Foreign { path: path.escape_ascii().to_string(), mark: mark.to_owned() }
}

/// What a mount of fuse-overlayfs shows of an object, its attributes, and whether it is opaque.
fn read(
    path: &[u8],
    stat: &Statx,
    host: Vec<Xattr>,
) -> Result<(Attributes, Vec<Xattr>, bool), ImportError> {
    let value = |name: &[u8]| host.iter().find(|(own, _)| own == name).map(|(_, value)| value);
    let mut attributes = owner::attributes(stat, &Marks::default()).map_err(reading(path))?;
    if let Some(mark) = OWNER_MARKS.iter().find_map(|name| value(name)) {
        let owner = owner_of(mark, stat).ok_or_else(|| ImportError::Owner {
            path: path.escape_ascii().to_string(),
            mark: mark.escape_ascii().to_string(),
        })?;
        (attributes.uid, attributes.gid) = (owner.uid, owner.gid);
        (attributes.mode, attributes.rdev) = (owner.mode, owner.rdev);
        if !matches!(attributes.kind(), Kind::File | Kind::Directory | Kind::Symlink) {
            attributes.size = 0;
        }
    }
    let is_opaque = OPAQUE_MARKS.iter().any(|name| value(name).is_some_and(|value| value == b"y"));
    // The kernel shows user.* of nothing else, and marks may be on a file that stands for a device.
    let may_be_users = matches!(attributes.kind(), Kind::File | Kind::Directory);
    let mut xattrs = Vec::new();
    for (name, value) in host {
        // The kernel's: to leave these out would show another tree.
        if [&b"trusted.overlay."[..], b"user.overlay."].iter().any(|space| {
            let mark = name.strip_prefix(*space);
            matches!(mark, Some(b"redirect" | b"metacopy"))
        }) {
            return Err(foreign(path, &name.escape_ascii().to_string()));
        }
        if let Some(own) = name.strip_prefix(ENCODED).filter(|_| !OWNER_MARKS.contains(&&*name)) {
            xattrs.push((own.to_vec(), value));
        } else if !is_hidden(&name) && (may_be_users || !name.starts_with(b"user.")) {
            xattrs.push((name, value));
        }
    }
    Ok((attributes, xattrs, is_opaque))
}

/// Marks, which its mount does not show.
fn is_hidden(name: &[u8]) -> bool {
    let spaces = [&b"user.fuseoverlayfs."[..], b"user.overlay.", b"trusted.overlay."];
    OWNER_MARKS.contains(&name) || spaces.iter().any(|space| name.starts_with(space))
}

/// `uid:gid:mode`, with a type behind it where it may be another than the file's. Where somebody asked
/// to leave an owner as he was, old versions wrote -1: he is the file's own.
fn owner_of(mark: &[u8], stat: &Statx) -> Option<Owner> {
    let mut fields: Vec<_> = mark.split(|byte| *byte == b':').collect();
    let own = [stat.stx_uid.to_string(), stat.stx_gid.to_string()];
    for (field, own) in fields.iter_mut().zip(&own).filter(|(field, _)| **field == b"-1") {
        *field = own.as_bytes();
    }
    let is_typed = fields.len() > 3;
    if !is_typed {
        fields.push(b"file");
    }
    let mut owner = Owner::from_mark(&fields.join(&b':'))?;
    if !is_typed {
        owner.mode = owner.mode & 0o7777 | Kind::from_mode(u32::from(stat.stx_mode))?.mode_bits();
    }
    owner::fits(&owner, stat).then_some(owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_marks_of_every_form_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let stat = |name: &str| {
            let dir = std::fs::File::open(dir.path()).unwrap();
            fs::stat_name(dir.as_fd(), name.as_bytes()).unwrap()
        };
        std::fs::write(dir.path().join("file"), "").unwrap();
        std::fs::create_dir(dir.path().join("dir")).unwrap();
        let own = stat("dir").stx_uid;
        type Row = (&'static [u8], &'static str, Option<(u32, u32, u32)>);
        let rows: [Row; 7] = [
            (b"-1:8:40700", "dir", Some((own, 8, 0o040_700))),
            (b"7:8:4755", "file", Some((7, 8, 0o104_755))),
            (b"7:8:1777", "dir", Some((7, 8, 0o041_777))),
            (b"7:8:0600:file", "file", Some((7, 8, 0o100_600))),
            (b"7:8:0600:pipe", "file", Some((7, 8, 0o010_600))),
            (b"7:8:0600:pipe", "dir", None),
            (b"7:8", "file", None),
        ];
        for (mark, name, expected) in rows {
            let found = owner_of(mark, &stat(name)).map(|it| (it.uid, it.gid, it.mode));
            assert_eq!(found, expected, "{} on {name}", mark.escape_ascii());
        }
    }
}
