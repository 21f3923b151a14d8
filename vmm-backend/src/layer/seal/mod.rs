//! Builds and refreshes an index: walks the lowers, merges them, numbers the objects, writes.
//!
//! A mount point inside a lower is not crossed: a directory is served empty and reported, any
//! other object is refused.

mod commit;
mod draft;
mod found;
mod merge;
mod number;
#[cfg(test)]
mod tests;
mod walk;
mod write;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use thiserror::Error;

use self::found::LayerRoot;
use super::imported::is_imported;
use super::index::digest::Digest;
use super::index::stat::witness;
use super::index::{Index, IndexError, IndexId, LayerKind};
use crate::filesystem::Errno;
use crate::sys::scan;

/// One lower as the user gives it; in a list the first is on top.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LowerSpec {
    /// The directory.
    pub path: PathBuf,
    /// Whether its marks count.
    pub kind: LayerKind,
}

/// How far a walk has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Objects found so far.
    pub objects: u64,
    /// How many there were in the index that is refreshed: about where it will end.
    pub objects_before: Option<u64>,
}

/// What was sealed.
#[derive(Debug, Clone)]
pub struct SealReport {
    /// The index file.
    pub path: PathBuf,
    /// What identical copies of the lowers have in common.
    pub identity: IndexId,
    /// Objects in the merged view.
    pub objects: u64,
    /// Names in the merged view.
    pub entries: u64,
    /// Directories in the merged view.
    pub directories: u64,
    /// The length of the index file.
    pub file_bytes: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// For a refresh: how many objects kept their number.
    pub kept: Option<u64>,
    /// Directories on which another file system is mounted; they are served empty.
    pub mount_points: Vec<String>,
    /// What the user should know besides.
    pub warnings: Vec<String>,
}

/// Why there is no index.
#[derive(Debug, Error)]
pub enum SealError {
    /// No lower was given.
    #[error("no lower: expected at least one --lower or --layer directory")]
    NoLower,
    /// A lower cannot be opened.
    #[error("lower {path}: {source}; expected a directory that thinroot may read")]
    Lower {
        /// The lower.
        path: PathBuf,
        /// What the kernel said.
        source: Errno,
    },
    /// Some objects cannot be read by this user.
    #[error("{}", unreadable_text(*.count, .first))]
    Unreadable {
        /// How many there are.
        count: u64,
        /// The first of them, as merged paths.
        first: Vec<String>,
    },
    /// Something in a lower cannot be looked at.
    #[error("reading {path} in a lower: {source}")]
    Read {
        /// The object on the host.
        path: String,
        /// What the kernel said.
        source: Errno,
    },
    /// Somebody writes to a lower.
    #[error("/{path} in a lower changes while it is read; expected lowers that nobody writes to")]
    Changing {
        /// The merged path.
        path: String,
    },
    /// A mark of an overlay layer makes no sense.
    #[error("/{path} in a --layer: {reason}; settle or remove it, or give the tree as --lower")]
    Mark {
        /// The merged path.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// Something other than a directory is a mount point.
    #[error("/{path} in a lower is a file mounted over another; unmount it or give another lower")]
    MountedFile {
        /// The merged path.
        path: String,
    },
    /// A table would have more than 2^32 rows or bytes.
    #[error("the lowers hold more than an index can: at most 4 GiB of names and of values")]
    TooLarge,
    /// Refreshes have used up the numbers.
    #[error(
        "no number is left below those of the uppers for all {objects} objects; delete the index \
         and start the uppers over (--rebase)"
    )]
    NumbersExhausted {
        /// Objects in the merged view.
        objects: usize,
    },
    /// The index would lie inside what it indexes, which would change by that.
    #[error(
        "the index {path} would be written into the lower {lower}, which must not change; choose \
         another place with --index or XDG_CACHE_HOME"
    )]
    InsideLower {
        /// The index file.
        path: PathBuf,
        /// The lower.
        lower: PathBuf,
    },
    /// There is no place for indexes.
    #[error("no place for the index: neither XDG_CACHE_HOME nor HOME is set; use --index")]
    NoCache,
    /// The index cannot be written.
    #[error("writing the index {path}: {source}")]
    Write {
        /// The index file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The index that was just written, or one that is in the way, cannot be used.
    #[error(transparent)]
    Index(#[from] IndexError),
}

impl SealError {
    fn reading(layer: &LayerRoot, below: &[&[u8]], source: Errno) -> Self {
        let mut path = layer.path.as_os_str().as_bytes().to_vec();
        for name in below.iter().filter(|name| !name.is_empty()) {
            path = merge::join(&path, name);
        }
        let path = display(&path);
        if source == Errno::BUSY { Self::Changing { path } } else { Self::Read { path, source } }
    }
}

/// Where indexes are kept unless told otherwise: `/var/cache/thinroot` for root,
/// `$XDG_CACHE_HOME/thinroot` or `~/.cache/thinroot` for others.
pub fn default_cache() -> Result<PathBuf, SealError> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/cache/thinroot"));
    }
    let absolute =
        |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("thinroot"))
        .ok_or(SealError::NoCache)
}

/// The index file of these lowers in the directory `cache`: named by their canonical paths and
/// kinds, in order.
pub fn index_path(specs: &[LowerSpec], cache: &Path) -> Result<PathBuf, SealError> {
    let mut digest = Digest::new();
    for spec in canonical(specs)? {
        digest.update_number(u64::from(spec.kind == LayerKind::Layer));
        digest.update_counted(spec.path.as_os_str().as_bytes());
    }
    let name: String = digest.finish().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(cache.join(name + ".index"))
}

/// Opens the roots of the lowers, for [`super::lower::Lower::new`].
pub fn open_roots(specs: &[LowerSpec]) -> Result<Vec<OwnedFd>, SealError> {
    let open = |spec: &LowerSpec| {
        scan::open_root(&spec.path)
            .map_err(|source| SealError::Lower { path: spec.path.clone(), source })
    };
    specs.iter().map(open).collect()
}

/// Opens the index at `path` if it is one of these lowers and their roots have not changed since;
/// else builds or refreshes it first. The report says what was built.
pub fn open_or_seal(
    specs: &[LowerSpec],
    path: &Path,
    progress: &mut dyn FnMut(&Progress),
) -> Result<(Index, Option<SealReport>), SealError> {
    let specs = canonical(specs)?;
    if let Some(index) = usable(&specs, path)? {
        return Ok((index, None));
    }
    check_place(&specs, path)?;
    let _lock = Lock::take(path)?;
    // Another daemon may have built it while we waited for the lock.
    if let Some(index) = usable(&specs, path)? {
        return Ok((index, None));
    }
    let report = seal_locked(&specs, path, progress)?;
    Ok((Index::open(path)?, Some(report)))
}

/// Builds the index of these lowers at `path`, or refreshes the one that is there: objects then
/// keep their numbers.
pub fn seal(
    specs: &[LowerSpec],
    path: &Path,
    progress: &mut dyn FnMut(&Progress),
) -> Result<SealReport, SealError> {
    let specs = canonical(specs)?;
    check_place(&specs, path)?;
    let _lock = Lock::take(path)?;
    seal_locked(&specs, path, progress)
}

fn seal_locked(
    specs: &[LowerSpec],
    path: &Path,
    progress: &mut dyn FnMut(&Progress),
) -> Result<SealReport, SealError> {
    let start = Instant::now();
    let before = open_existing(path)?.filter(|index| is_of(index, specs));
    let layers = open_layers(specs)?;
    let mut walk = walk::Walk::new(&layers, before.as_ref(), progress);
    walk.run()?;
    let (draft, mount_points) = (walk.draft, walk.mount_points);
    let (entries, directories) = (count(draft.entries.len()), count(draft.directories.len()));
    let objects = count(draft.objects.len());
    let numbering = number::number(&draft, before.as_ref())?;
    let finished = write::Finished::new(draft, &numbering, &layers, before.as_ref())?;
    finished.publish(path)?;
    Ok(SealReport {
        path: path.to_owned(),
        identity: IndexId(finished.identity()),
        objects,
        entries,
        directories,
        file_bytes: finished.file_bytes(),
        elapsed: start.elapsed(),
        kept: before.map(|_| numbering.kept),
        mount_points,
        warnings: warnings(specs),
    })
}

fn warnings(specs: &[LowerSpec]) -> Vec<String> {
    if found::mark_prefix().starts_with(b"trusted.") {
        return Vec::new();
    }
    let text = |spec: &LowerSpec| {
        format!(
            "--layer {}: trusted.overlay.* marks cannot be seen without root; only user.overlay.* \
             marks and whiteout devices count",
            spec.path.display()
        )
    };
    specs.iter().filter(|spec| spec.kind == LayerKind::Layer).map(text).collect()
}

/// The index at `path`, if there is one to be used or refreshed. A damaged one may be replaced,
/// anything else is in the way.
fn open_existing(path: &Path) -> Result<Option<Index>, SealError> {
    match Index::open(path) {
        Ok(index) => Ok(Some(index)),
        Err(error @ IndexError::Damaged { .. }) => {
            log::warn!("{error}: it is built anew");
            Ok(None)
        }
        Err(error) if error.is_replaceable() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The index at `path`, if it can be served as it is. At start-up only the roots are looked at.
fn usable(specs: &[LowerSpec], path: &Path) -> Result<Option<Index>, SealError> {
    let Some(index) = open_existing(path)?.filter(|index| is_of(index, specs)) else {
        return Ok(None);
    };
    for (spec, layer) in specs.iter().zip(index.layers().unwrap_or_default()) {
        let lower = |source| SealError::Lower { path: spec.path.clone(), source };
        let root = scan::open_root(&spec.path).map_err(lower)?;
        let now = scan::stat_on_mount(root.as_fd(), b"").map_err(lower)?;
        let now = witness(&now);
        if index.part(layer.root).ok().is_none_or(|part| !now.is_same_content(&part.witness)) {
            return Ok(None);
        }
    }
    Ok(Some(index))
}

/// Whether an index is one of these lowers, in this order.
fn is_of(index: &Index, specs: &[LowerSpec]) -> bool {
    index.layers().is_ok_and(|layers| {
        layers.len() == specs.len()
            && layers.iter().zip(specs).all(|(layer, spec)| {
                layer.kind == spec.kind && layer.path == spec.path.as_os_str().as_bytes()
            })
    })
}

fn canonical(specs: &[LowerSpec]) -> Result<Vec<LowerSpec>, SealError> {
    if specs.is_empty() {
        return Err(SealError::NoLower);
    }
    let canonical = |spec: &LowerSpec| {
        let lower = |source| SealError::Lower { path: spec.path.clone(), source };
        let path = fs::canonicalize(&spec.path)
            .map_err(|error| lower(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        if !path.is_dir() {
            return Err(lower(Errno::NOTDIR));
        }
        Ok(LowerSpec { path, kind: spec.kind })
    };
    specs.iter().map(canonical).collect()
}

fn open_layers(specs: &[LowerSpec]) -> Result<Vec<LayerRoot>, SealError> {
    let open = |spec: &LowerSpec| {
        let lower = |source| SealError::Lower { path: spec.path.clone(), source };
        let fd = scan::open_root(&spec.path).map_err(lower)?;
        let mount = scan::stat_on_mount(fd.as_fd(), b"").map_err(lower)?.stx_mnt_id;
        let is_plain = spec.kind == LayerKind::Plain;
        let is_imported = is_plain && is_imported(fd.as_fd()).map_err(lower)?;
        Ok(LayerRoot { path: spec.path.clone(), kind: spec.kind, fd, mount, is_imported })
    };
    specs.iter().map(open).collect()
}

/// Makes the directory of the index and sees that it is in no lower.
fn check_place(specs: &[LowerSpec], path: &Path) -> Result<(), SealError> {
    let failed = |source| SealError::Write { path: path.to_owned(), source };
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // Looked at before it is made: making it would change the lower.
    let mut existing = parent;
    while !existing.exists() {
        existing =
            existing.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    }
    let existing = fs::canonicalize(existing).map_err(failed)?;
    for spec in specs {
        // Beneath the path, yet on another file system: mounted over the lower, not in it.
        let is_inside = existing.starts_with(&spec.path)
            && fs::metadata(&existing).map_err(failed)?.dev()
                == fs::metadata(&spec.path).map_err(failed)?.dev();
        if is_inside {
            return Err(SealError::InsideLower { path: path.to_owned(), lower: spec.path.clone() });
        }
    }
    DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(failed)
}

/// The right to replace one index; given back when dropped.
#[derive(Debug)]
struct Lock {
    _file: File,
}

impl Lock {
    fn take(index: &Path) -> Result<Self, SealError> {
        let path = sibling(index, ".lock");
        let failed = |source| SealError::Write { path: path.clone(), source };
        let options =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).clone();
        let file = options.open(&path).map_err(failed)?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            log::info!("waiting for another thinroot that builds {}", index.display());
            rustix::fs::flock(&file, FlockOperation::LockExclusive)
                .map_err(|error| failed(error.into()))?;
        }
        Ok(Self { _file: file })
    }
}

/// `path` with something behind its name.
fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned().into_vec();
    name.extend_from_slice(suffix.as_bytes());
    PathBuf::from(std::ffi::OsString::from_vec(name))
}

/// Bytes as a message shows them.
fn display(path: &[u8]) -> String {
    String::from_utf8(path.to_vec()).unwrap_or_else(|_| path.escape_ascii().to_string())
}

fn count(rows: usize) -> u64 {
    u64::try_from(rows).unwrap_or(u64::MAX)
}

fn unreadable_text(count: u64, first: &[String]) -> String {
    let paths: Vec<_> = first.iter().map(|path| format!("/{path}")).collect();
    let shown = u64::try_from(first.len()).unwrap_or(u64::MAX);
    let more = match count.saturating_sub(shown) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "{count} files or directories of the lowers cannot be read by this user: {}{more}; make a \
         base that can be read whole with `thinroot import`, or run as root",
        paths.join(", ")
    )
}
