//! `thinroot check`: whether every mark of an upper and its work directory says something true.
//!
//! Walks the upper and looks at each object's marks as they are on disk, beside the index of the
//! base. Repairs only what can be mended without inventing: what it takes away says nothing, and
//! what it writes is told by something else that is there.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::OFlags;

use crate::filesystem::Errno;
use crate::layer::index::IndexId;
use crate::layer::lower::Lower;
use crate::layer::mark::{Mark, MarkSpace, NlinkMark, Origin};
use crate::layer::view::UpperView;
use crate::layer::work::remove_tree;
use crate::sys::fs;

mod damage;
mod listing;
mod object;
mod walk;
mod work;

pub use damage::{Damage, Remedy};
pub use listing::{write_json, write_text};

/// Which of an upper's two directories something is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// The upper.
    Upper,
    /// Its work directory.
    Work,
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Where its path begins.
    pub place: Place,
    /// The object, without a leading `/`; empty for the directory itself. Any bytes.
    pub path: Vec<u8>,
    /// What is wrong with it.
    pub damage: Damage,
    /// What became of it.
    pub fate: Fate,
}

/// What became of a finding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It is as it was.
    Left,
    /// It was mended.
    Repaired,
    /// It could not be mended.
    Failed(Errno),
}

impl Finding {
    /// Whether an upper with it is not clean: damage that is still there. What a crash may leave
    /// behind, and nobody ever sees, is none.
    pub fn is_harm(&self) -> bool {
        !self.damage.is_leftover() && self.fate != Fate::Repaired
    }
}

/// What was looked at, and what was found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Names of the upper and of its work directory that were looked at.
    pub objects: u64,
    /// All findings: the work directory's first, then in the order of the walk.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether nothing is damaged, or nothing is any more.
    pub fn is_clean(&self) -> bool {
        !self.findings.iter().any(Finding::is_harm)
    }
}

/// Why an upper cannot be checked.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The upper belongs to another base.
    #[error("the upper was made over another base; expected the lowers it was made over")]
    OtherBase,
    /// The upper or its work directory cannot be read at all.
    #[error("{0}")]
    Call(#[from] Errno),
}

/// What is checked.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The base it was made over.
    pub lower: &'a Lower,
    /// The upper, which nobody may be using.
    pub upper: &'a UpperView,
    /// Its work directory, where there is one.
    pub work: Option<BorrowedFd<'a>>,
}

/// Checks an upper, and mends what can be mended if `repairs` is set.
///
/// Errors: as [`CheckError`] says. What cannot be read of a single object is a finding.
pub fn check(subject: Subject<'_>, repairs: bool) -> Result<Report, CheckError> {
    let root = subject.upper.root();
    let origin = fs::xattr(root, subject.upper.space().name(Mark::OwnOrigin))?;
    if let Some(origin) = origin.as_deref().and_then(Origin::from_bytes)
        && !subject.lower.continues(IndexId(origin.identity))
    {
        return Err(CheckError::OtherBase);
    }
    let mut check = Check { subject, repairs, report: Report::default() };
    let mut work = work::look(&mut check)?;
    walk::walk(&mut check, &mut work)?;
    work::judge(&mut check, &work);
    Ok(check.report)
}

/// A check under way.
struct Check<'a> {
    subject: Subject<'a>,
    repairs: bool,
    report: Report,
}

/// An object on disk, for its repair.
struct Spot<'a> {
    place: Place,
    path: &'a [u8],
    /// Where it is, and its name there; none for a root.
    entry: Option<(BorrowedFd<'a>, &'a [u8])>,
    handle: Option<BorrowedFd<'a>>,
}

impl Check<'_> {
    fn space(&self) -> MarkSpace {
        self.subject.upper.space()
    }

    /// Records what is wrong with an object, and mends it where that was asked for.
    fn find(&mut self, spot: &Spot<'_>, damage: Damage) {
        let remedy = damage.remedy();
        let fate = match remedy {
            Remedy::None(_) => Fate::Left,
            _ if !self.repairs => Fate::Left,
            _ => match self.mend(spot, &remedy) {
                Ok(()) => Fate::Repaired,
                Err(error) => Fate::Failed(error),
            },
        };
        let (place, path) = (spot.place, spot.path.to_owned());
        self.report.findings.push(Finding { place, path, damage, fate });
    }

    fn mend(&self, spot: &Spot<'_>, remedy: &Remedy) -> Result<(), Errno> {
        let handle = spot.handle.ok_or(Errno::IO);
        match remedy {
            Remedy::None(_) => Ok(()),
            Remedy::RemoveMark(mark) => fs::remove_xattr(handle?, self.space().name(*mark)),
            Remedy::SetRedirect(path) => {
                let value = [b"/", path.as_slice()].concat();
                fs::set_xattr(handle?, self.space().name(Mark::Redirect), &value, 0)
            }
            Remedy::MarkImpure => fs::set_xattr(handle?, self.space().name(Mark::Impure), b"y", 0),
            Remedy::SetLinks(more) => {
                let value = NlinkMark::Upper(*more).to_bytes();
                fs::set_xattr(handle?, self.space().name(Mark::Nlink), &value, 0)
            }
            Remedy::Remove => {
                let (dir, name) = spot.entry.ok_or(Errno::IO)?;
                let before = fs::stat(dir)?;
                remove_tree(dir, name)?;
                // Nothing that shows has changed: nor has the directory's time.
                keep_times(dir, &before)
            }
        }
    }
}

fn keep_times(dir: BorrowedFd<'_>, before: &fs::Statx) -> Result<(), Errno> {
    let spec = |time: fs::StatxTimestamp| fs::Timespec {
        tv_sec: time.tv_sec,
        tv_nsec: i64::from(time.tv_nsec),
    };
    let times = fs::Timestamps {
        last_access: spec(before.stx_atime),
        last_modification: spec(before.stx_mtime),
    };
    fs::change_times(dir, &times)
}

/// A subdirectory, if there is one.
fn subdirectory(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Option<OwnedFd>, Errno> {
    match fs::open_beneath(dir, name, OFlags::PATH | OFlags::DIRECTORY) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error),
    }
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}
