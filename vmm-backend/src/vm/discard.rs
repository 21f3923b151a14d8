//! Private directories that vanish: with their run, or when the next run finds them left behind.
//!
//! Each is locked by the run that made it. After a `kill -9` the lock is free and the directory
//! stays; whoever makes the next one beside it deletes it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};

use super::config::LowerArgument;
use super::error::RunError;
use super::features;

/// Names tried before we believe that something is wrong with the directory.
const ATTEMPTS_MAX: u32 = 64;

/// A directory of mode 0700 with a random name, deleted when dropped.
#[derive(Debug)]
pub struct ScratchDirectory {
    path: PathBuf,
    /// Holds the lock that says "in use".
    lock: Option<File>,
}

impl ScratchDirectory {
    /// Makes one in `parent`, its name starting with `prefix`; deletes those left behind there.
    ///
    /// Errors: the system's, with the path.
    pub fn make(parent: &Path, prefix: &str) -> Result<Self, RunError> {
        sweep(parent, prefix);
        for _ in 0..ATTEMPTS_MAX {
            let path = parent.join(format!("{prefix}{}", random_suffix()?));
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made.map_err(RunError::system(format!("mkdir {}", path.display())))?,
            }
            // A sweeper may have taken the lock first: then the directory is its to delete.
            if let Some(lock) = lock(&path) {
                return Ok(Self { path, lock: Some(lock) });
            }
        }
        Err(RunError::Refused(format!(
            "no private directory could be made in {}",
            parent.display()
        )))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets the directory stay under another name, which no sweep takes, and gives its path.
    pub fn keep(mut self) -> PathBuf {
        self.lock = None;
        let kept = self.path.with_extension("kept");
        let path = std::mem::take(&mut self.path);
        match fs::rename(&path, &kept) {
            Ok(()) => kept,
            Err(cause) => {
                log::warn!("rename {} to {}: {cause}", path.display(), kept.display());
                path
            }
        }
    }
}

impl Drop for ScratchDirectory {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            delete(&self.path);
        }
    }
}

fn random_suffix() -> Result<String, RunError> {
    let mut bytes = [0; 6];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(RunError::system("getrandom"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Locks the directory at `path`, if nobody else has and it is still there.
fn lock(path: &Path) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
    flock(&directory, FlockOperation::NonBlockingLockExclusive).ok()?;
    let (held, there) = (directory.metadata().ok()?, fs::symlink_metadata(path).ok()?);
    (held.ino() == there.ino() && held.dev() == there.dev()).then_some(directory)
}

/// Deletes directories of ours that nobody holds any more.
fn sweep(parent: &Path, prefix: &str) {
    let Ok(rows) = fs::read_dir(parent) else { return };
    for row in rows.flatten() {
        let is_ours = row.file_name().to_string_lossy().strip_prefix(prefix).is_some_and(is_suffix)
            && row.metadata().is_ok_and(|m| m.uid() == rustix::process::geteuid().as_raw());
        if is_ours && let Some(_held) = lock(&row.path()) {
            log::info!("deleting {}, left behind by a killed run", row.path().display());
            delete(&row.path());
        }
    }
}

fn is_suffix(rest: &str) -> bool {
    rest.len() == 12 && rest.bytes().all(|b| b.is_ascii_hexdigit())
}

fn delete(path: &Path) {
    if let Err(cause) = fs::remove_dir_all(path)
        && cause.kind() != io::ErrorKind::NotFound
    {
        log::warn!("deleting {}: {cause}", path.display());
    }
}

/// Where sockets and logs of a run go: short, private, in memory where there is such a place.
pub fn scratch_parent() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    runtime.filter(|path| path.is_dir()).unwrap_or_else(|| PathBuf::from("/tmp"))
}

/// Where a discarded upper goes: `asked`, or the first of `$TMPDIR`, `/var/tmp` and `/tmp` that has
/// what an upper needs and lies in no lower.
///
/// Errors: [`RunError::Refused`] with what each place lacks.
pub fn upper_parent(asked: Option<&Path>, lowers: &[LowerArgument]) -> Result<PathBuf, RunError> {
    let mut reasons = Vec::new();
    let places = match asked {
        Some(asked) => vec![asked.to_owned()],
        None => upper_places(),
    };
    for place in places {
        match unfit(&place, lowers) {
            None => return Ok(place),
            Some(reason) => reasons.push(format!("{}: {reason}", place.display())),
        }
    }
    Err(RunError::Refused(format!(
        "no place for a discarded upper ({}); name one with --discard-dir DIR, or keep the upper with --upper DIR",
        reasons.join("; ")
    )))
}

fn upper_places() -> Vec<PathBuf> {
    let asked = std::env::var_os("TMPDIR").filter(|value| !value.is_empty()).map(PathBuf::from);
    asked.into_iter().chain(["/var/tmp".into(), "/tmp".into()]).collect()
}

fn unfit(place: &Path, lowers: &[LowerArgument]) -> Option<String> {
    let real = match place.canonicalize() {
        Ok(real) => real,
        Err(cause) => return Some(cause.to_string()),
    };
    if let Some(lower) = lowers.iter().find(|lower| contains(lower, &real)) {
        return Some(format!("lies inside the lower {}", lower.path().display()));
    }
    match features::probe(&real) {
        Ok(found) => {
            let lacking = found.lacking_for_upper();
            (!lacking.is_empty()).then(|| format!("no {}", lacking.join(", no ")))
        }
        Err(cause) => Some(cause.to_string()),
    }
}

fn contains(lower: &LowerArgument, place: &Path) -> bool {
    lower.path().canonicalize().is_ok_and(|lower| place.starts_with(lower))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_vanishes_with_its_run_and_those_left_behind_with_the_next() {
        let parent = tempfile::tempdir().unwrap();
        let left = parent.path().join("thinroot-x-0123456789ab");
        let foreign = parent.path().join("thinroot-x-notours");
        fs::create_dir_all(left.join("upper/a")).unwrap();
        fs::create_dir(&foreign).unwrap();
        let first = ScratchDirectory::make(parent.path(), "thinroot-x-").unwrap();
        assert!(!left.exists() && foreign.exists());
        let second = ScratchDirectory::make(parent.path(), "thinroot-x-").unwrap();
        assert!(first.path().exists(), "a held directory is nobody else's to delete");
        assert_eq!(first.path().metadata().unwrap().mode() & 0o777, 0o700);
        let gone = first.path().to_owned();
        drop(first);
        assert!(!gone.exists());
        let kept = second.keep();
        drop(ScratchDirectory::make(parent.path(), "thinroot-x-").unwrap());
        assert!(kept.exists());
    }

    #[test]
    fn place_inside_a_lower_is_refused() {
        let lower = tempfile::tempdir().unwrap();
        let lowers = [LowerArgument::Tree(lower.path().into())];
        let inside = lower.path().join("tmp");
        fs::create_dir(&inside).unwrap();
        let refused = upper_parent(Some(&inside), &lowers).unwrap_err().to_string();
        assert!(
            refused.contains("inside the lower") && refused.contains("--discard-dir"),
            "{refused}"
        );
        let missing = upper_parent(Some(Path::new("/no/such")), &lowers).unwrap_err().to_string();
        assert!(missing.contains("/no/such"), "{missing}");
    }
}
