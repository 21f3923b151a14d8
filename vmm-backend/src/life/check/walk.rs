//! The walk through an upper: every name of it, and what shows through beside them.

use std::collections::HashSet;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;

use super::damage::Damage;
use super::object::{Entry, Object, Verdict};
use super::work::WorkSeen;
use super::{Check, CheckError, Place, Spot, join};
use crate::filesystem::{Errno, Kind};
use crate::layer::index::{ObjectId, Slot};
use crate::layer::mark::{Mark, MarkSpace};
use crate::sys::fs;

/// A directory of the upper to be walked; by its path, since there may be more of them than
/// descriptors.
struct Directory {
    path: Vec<u8>,
    /// The lower directory that shows through.
    merged: Option<ObjectId>,
    is_impure: bool,
}

/// Judges everything in the upper, and counts the names of the work directory's hard links.
pub fn walk(check: &mut Check<'_>, work: &mut WorkSeen) -> Result<(), CheckError> {
    let root = check.subject.upper.root().try_clone_to_owned().map_err(|_| Errno::MFILE)?;
    let root = Object::read(check.space(), root)?;
    let entry = Entry { entry: None, path: b"", lower: None };
    let (verdict, root) = check.judge(&entry, root, work);
    let is_impure = root.mark(Mark::Impure).is_some();
    let mut waiting = vec![Directory { path: Vec::new(), merged: verdict.merged, is_impure }];
    while let Some(directory) = waiting.pop() {
        if let Err(error) = enter(check, work, &directory, &mut waiting) {
            work.is_partial = true;
            let spot =
                Spot { place: Place::Upper, path: &directory.path, entry: None, handle: None };
            check.find(&spot, Damage::Unreadable(error));
        }
    }
    Ok(())
}

fn enter(
    check: &mut Check<'_>,
    work: &mut WorkSeen,
    directory: &Directory,
    waiting: &mut Vec<Directory>,
) -> Result<(), Errno> {
    let handle = check.subject.upper.handle(&directory.path)?;
    let mut hidden = HashSet::new();
    let mut has_origins = false;
    for row in fs::list(handle.as_fd())? {
        let path = join(&directory.path, &row.name);
        let entry = Entry {
            entry: Some((handle.as_fd(), &row.name)),
            path: &path,
            lower: directory.merged,
        };
        check.report.objects += 1;
        match look(check, work, &entry) {
            Ok(Some((verdict, object))) => {
                has_origins |= object.has_origin();
                if object.kind == Kind::Directory && !verdict.is_closed {
                    let is_impure = object.mark(Mark::Impure).is_some();
                    let merged = verdict.merged;
                    waiting.push(Directory { path: path.clone(), merged, is_impure });
                }
                work.is_partial |= verdict.is_closed;
            }
            Ok(None) => {}
            Err(error) => {
                work.is_partial = true;
                let spot =
                    Spot { place: Place::Upper, path: &path, entry: entry.entry, handle: None };
                check.find(&spot, Damage::Unreadable(error));
            }
        }
        hidden.insert(row.name);
    }
    if has_origins && !directory.is_impure && check.space() == MarkSpace::Trusted {
        let handle = Some(handle.as_fd());
        let spot = Spot { place: Place::Upper, path: &directory.path, entry: None, handle };
        check.find(&spot, Damage::NotImpure);
    }
    if work.counts_names() {
        count_beneath(check, work, directory.merged, &hidden)?;
    }
    Ok(())
}

/// Looks at one name. `None`: a whiteout.
fn look(
    check: &mut Check<'_>,
    work: &mut WorkSeen,
    entry: &Entry<'_>,
) -> Result<Option<(Verdict, Object)>, Errno> {
    let Some((dir, name)) = entry.entry else { return Ok(None) };
    let handle: OwnedFd = fs::open_name(dir, name, OFlags::PATH)?;
    let stat = fs::stat(handle.as_fd())?;
    if crate::layer::view::is_whiteout(&stat) {
        if check.child(entry.lower, name).is_ok_and(|found| found.is_none()) {
            let handle: Option<BorrowedFd<'_>> = Some(handle.as_fd());
            let spot = Spot { place: Place::Upper, path: entry.path, entry: entry.entry, handle };
            check.find(&spot, Damage::HidesNothing);
        }
        return Ok(None);
    }
    work.count_upper(stat.stx_ino);
    let object = Object::read(check.space(), handle)?;
    Ok(Some(check.judge(entry, object, work)))
}

/// Counts the names of hard links that show through a directory, at any depth.
fn count_beneath(
    check: &Check<'_>,
    work: &mut WorkSeen,
    merged: Option<ObjectId>,
    hidden: &HashSet<Vec<u8>>,
) -> Result<(), Errno> {
    let lower = check.subject.lower;
    let mut waiting = Vec::new();
    let mut visit = |directory, hidden: Option<&HashSet<Vec<u8>>>, waiting: &mut Vec<_>| {
        let mut slot = Slot(0);
        while let Some(entry) = lower.entry(directory, slot)? {
            slot.0 += 1;
            if hidden.is_some_and(|hidden| hidden.contains(entry.name)) {
                continue;
            }
            match entry.kind {
                Kind::Directory => waiting.push(entry.object),
                _ => work.count_lower(entry.object),
            }
        }
        Ok::<_, Errno>(())
    };
    if let Some(merged) = merged {
        visit(merged, Some(hidden), &mut waiting)?;
    }
    while let Some(directory) = waiting.pop() {
        visit(directory, None, &mut waiting)?;
    }
    Ok(())
}
