//! Gives up power, once, before serving.
//!
//! The second line, never the first: every promise holds with it off. What it adds, from the
//! outside in: an own mount namespace in which the lowers are read-only and nothing of the host
//! is in sight but them and the directory that holds upper and work; no new privileges; Landlock;
//! and of the capabilities only those that keeping a guest's files takes.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, open, openat, statx};
use rustix::io::Errno;
use thiserror::Error;

use crate::sys;

mod capabilities;
mod landlock;
mod namespace;

/// What the daemon is confined to.
#[derive(Debug)]
pub struct Confine<'a> {
    /// The directories to be read, `--lower` and `--layer` alike.
    pub lowers: &'a [PathBuf],
    /// The directory to be written.
    pub upper: &'a Path,
    /// Its work directory, on the same mount.
    pub work: &'a Path,
}

/// The descriptors a confined daemon works with, and how well it is confined.
#[derive(Debug)]
pub struct Confined {
    /// One read-only directory for each of [`Confine::lowers`].
    pub lowers: Vec<OwnedFd>,
    /// The upper, of the same mount as `work`: renames between them work.
    pub upper: OwnedFd,
    /// The work directory.
    pub work: OwnedFd,
    /// One line for the log: what holds, and what this host could not give.
    pub report: String,
}

/// Why the daemon could not be confined as asked.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// A directory could not be opened.
    #[error("cannot open {path}: {cause}")]
    Open {
        /// The directory.
        path: PathBuf,
        /// Why not.
        cause: Errno,
    },
    /// Upper and work are not one tree to the kernel.
    #[error(
        "--work {work} is on another mount than --upper {upper}; renames between them would fail: \
         give a --work beside the upper"
    )]
    OtherMount {
        /// The upper.
        upper: PathBuf,
        /// The work directory.
        work: PathBuf,
    },
    /// A step failed from which there is no way back.
    #[error("sandbox: {step}: {cause}; --sandbox off serves without one")]
    Step {
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        cause: Errno,
    },
}

/// Opens the directories and confines this process to them.
///
/// For a process that has only one thread. What the host cannot give is left out and said in the
/// report; what fails half way is an error.
///
/// Errors: as [`SandboxError`] says.
pub fn enter(confine: &Confine<'_>) -> Result<Confined, SandboxError> {
    // Held across the change of roots; and the directories are opened in the namespace that they
    // are to be bound in, since the kernel clones no mount of another.
    step("opening /proc/self/fd", sys::fs::proc_self_fd().map(drop))?;
    let unshared = namespace::unshare()?;
    let places = Places::open(confine)?;
    let (directories, namespace) = namespace::enter(&places, &unshared)?;
    let directories = match directories {
        Some(directories) => directories,
        None => Directories::open(&places, confine)?,
    };
    step("working from /proc/self/fd", sys::fs::work_from_proc())?;
    step("no_new_privs", rustix::thread::set_no_new_privs(true))?;
    let landlock = landlock::restrict(&directories);
    // In a user namespace capabilities reach no file that the user's own id does not.
    let keep = !matches!(unshared, namespace::Unshared::UserAndMount);
    let capabilities = step("dropping capabilities", capabilities::drop_unneeded(keep))?;
    let report = report(&[namespace, landlock, capabilities]);
    let Directories { lowers, upper, work } = directories;
    Ok(Confined { lowers, upper, work, report })
}

/// Opens the directories without confining anything (`--sandbox off`).
///
/// Errors: as [`SandboxError`] says.
pub fn open_only(confine: &Confine<'_>) -> Result<Confined, SandboxError> {
    let directories = Directories::open(&Places::open(confine)?, confine)?;
    let Directories { lowers, upper, work } = directories;
    Ok(Confined { lowers, upper, work, report: "sandbox: off".to_owned() })
}

/// What one part of the confinement came to.
enum Held {
    /// It holds.
    Yes(String),
    /// The host cannot, or not all of it.
    No(String),
}

fn report(parts: &[Held]) -> String {
    let join = |wanted: fn(&Held) -> Option<&str>| {
        parts.iter().filter_map(wanted).collect::<Vec<_>>().join(", ")
    };
    let yes = join(|part| if let Held::Yes(text) = part { Some(text) } else { None });
    let no = join(|part| if let Held::No(text) = part { Some(text) } else { None });
    match (yes.as_str(), no.as_str()) {
        (yes, "") => format!("sandbox: {yes}"),
        ("", no) => format!("sandbox: reduced: {no}"),
        (yes, no) => format!("sandbox: reduced: {no}; {yes}"),
    }
}

/// The directories as this process sees them before it is confined.
struct Places {
    /// `O_PATH`.
    lowers: Vec<OwnedFd>,
    /// The directory that holds both upper and work, `O_PATH`.
    home: OwnedFd,
    /// The upper below `home`.
    upper: PathBuf,
    /// The work directory below `home`.
    work: PathBuf,
}

impl Places {
    fn open(confine: &Confine<'_>) -> Result<Self, SandboxError> {
        let lowers =
            confine.lowers.iter().map(|path| open_place(path)).collect::<Result<_, _>>()?;
        let upper = canonical(confine.upper)?;
        let work = canonical(confine.work)?;
        let home = common_parent(&upper, &work);
        let place = Self {
            lowers,
            home: open_place(&home)?,
            upper: below(&upper, &home),
            work: below(&work, &home),
        };
        let mount_of = |path| statx(&place.home, path, AtFlags::empty(), StatxFlags::MNT_ID);
        let same = match (mount_of(&place.upper), mount_of(&place.work)) {
            (Ok(upper), Ok(work)) => upper.stx_mnt_id == work.stx_mnt_id,
            _ => false,
        };
        if same { Ok(place) } else { Err(SandboxError::OtherMount { upper, work }) }
    }
}

/// The descriptors, under whichever mounts they are.
struct Directories {
    lowers: Vec<OwnedFd>,
    upper: OwnedFd,
    work: OwnedFd,
}

impl Directories {
    /// Opens what `places` found, without a mount in between.
    fn open(places: &Places, confine: &Confine<'_>) -> Result<Self, SandboxError> {
        let lowers = places.lowers.iter().zip(confine.lowers);
        let lowers = lowers.map(|(place, path)| opened(path, open_below(place, Path::new(""))));
        Ok(Self {
            lowers: lowers.collect::<Result<_, _>>()?,
            upper: opened(confine.upper, open_below(&places.home, &places.upper))?,
            work: opened(confine.work, open_below(&places.home, &places.work))?,
        })
    }
}

/// Opens a directory for reading; it is followed nowhere, since `path` is canonical.
fn open_below(directory: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(directory, path, flags, Mode::empty())
}

fn open_place(path: &Path) -> Result<OwnedFd, SandboxError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    opened(path, open(path, flags, Mode::empty()))
}

fn opened(path: &Path, result: Result<OwnedFd, Errno>) -> Result<OwnedFd, SandboxError> {
    result.map_err(|cause| SandboxError::Open { path: path.to_owned(), cause })
}

fn canonical(path: &Path) -> Result<PathBuf, SandboxError> {
    path.canonicalize().map_err(|error| SandboxError::Open {
        path: path.to_owned(),
        cause: Errno::from_io_error(&error).unwrap_or(Errno::IO),
    })
}

/// The deepest directory above both paths, and never one of them.
fn common_parent(one: &Path, other: &Path) -> PathBuf {
    let parents = |path: &Path| path.parent().unwrap_or(path).to_owned();
    let (one, other) = (parents(one), parents(other));
    let shared = one.components().zip(other.components()).take_while(|(one, other)| one == other);
    shared.map(|(component, _)| component).collect()
}

fn below(path: &Path, home: &Path) -> PathBuf {
    path.strip_prefix(home).unwrap_or(path).to_owned()
}

fn step<T>(step: &'static str, result: Result<T, Errno>) -> Result<T, SandboxError> {
    result.map_err(|cause| SandboxError::Step { step, cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_of_upper_and_work_is_the_least_directory_above_both() {
        let rows = [
            ("/vm/a", "/vm/.a.work", "/vm"),
            ("/vm/a/upper", "/vm/a/work", "/vm/a"),
            ("/vm/a/upper", "/vm/b/work", "/vm"),
            ("/a", "/b", "/"),
            ("/", "/a", "/"),
        ];
        for (upper, work, home) in rows {
            let found = common_parent(Path::new(upper), Path::new(work));
            assert_eq!(found, Path::new(home), "{upper} {work}");
        }
    }

    #[test]
    fn report_is_one_line_that_names_what_is_missing() {
        let yes = |text: &str| Held::Yes(text.to_owned());
        let no = |text: &str| Held::No(text.to_owned());
        assert_eq!(report(&[yes("a"), yes("b")]), "sandbox: a, b");
        assert_eq!(report(&[yes("a"), no("no b")]), "sandbox: reduced: no b; a");
        assert_eq!(report(&[no("no a")]), "sandbox: reduced: no a");
    }
}
