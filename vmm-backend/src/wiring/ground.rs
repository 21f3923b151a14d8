//! The ground a union stands on: every directory checked before anything is changed, then made,
//! confined, locked and joined.

use std::fs::{DirBuilder, File, Metadata, remove_dir};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use thinroot::filesystem::Errno;
use thinroot::layer::index::Index;
use thinroot::layer::lock::{LockError, UpperLock};
use thinroot::layer::lower::{Change, Lower, LowerError, LowerPolicy, Strictness};
use thinroot::layer::mark::{Mark, MarkSpace};
use thinroot::layer::owner::Ownership;
use thinroot::layer::upper::{Upper, UpperConfig};
use thinroot::layer::work::give_up_spare;
use thinroot::sandbox::{self, Confine, Confined, SandboxError};
use thinroot::sys::attachment::Attachment;
use thinroot::sys::fs;
use thinroot::union::{Union, UnionError};
use thinroot::vm::error::RunError;
use thinroot::vm::features::{self, Features};

use super::base::{Base, BaseError};
use crate::config::UnionConfig;

/// Why there is no union.
#[derive(Debug, thiserror::Error)]
pub enum GroundError {
    /// The lowers or their index.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// `--upper` or `--work` cannot be used.
    #[error("{option} {path}: {reason}")]
    Directory {
        /// The option.
        option: &'static str,
        /// Its value.
        path: PathBuf,
        /// What is wrong, what was expected, and the next step.
        reason: String,
    },
    /// One directory lies in another.
    #[error("{inner} lies inside {outer}; expected directories apart: move one of them")]
    Inside {
        /// Option and value.
        inner: String,
        /// Option and value.
        outer: String,
    },
    /// The file system of the upper cannot hold one.
    #[error(
        "--upper {upper}: its file system has no {lacking}; expected one with extended attributes \
         and renameat2, such as ext4, xfs, btrfs or tmpfs"
    )]
    FileSystem {
        /// The upper.
        upper: PathBuf,
        /// What it lacks.
        lacking: String,
    },
    /// The features could not be tried.
    #[error(transparent)]
    Probe(#[from] RunError),
    /// Somebody uses the upper.
    #[error("--upper {upper} is {cause}; stop it, or give another upper")]
    Locked {
        /// The upper.
        upper: PathBuf,
        /// By whom.
        cause: LockError,
    },
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The lowers do not fit the index.
    #[error(transparent)]
    Lower(#[from] LowerError),
    /// The upper's work directory could not be prepared.
    #[error("--work {work}: {cause}; expected a directory that only thinroot uses")]
    Work {
        /// The work directory.
        work: PathBuf,
        /// What failed.
        cause: Errno,
    },
    /// Lower and upper do not fit.
    #[error("--upper {upper}: {cause}")]
    Union {
        /// The upper.
        upper: PathBuf,
        /// Why not.
        cause: UnionError,
    },
}

/// Checked directories.
#[derive(Debug)]
pub struct Ground {
    base: Base,
    features: Features,
    upper: PathBuf,
    work: PathBuf,
    /// Gone again if the start fails before they are used.
    made: [Made; 2],
}

/// Told of each lower object that was changed.
pub type OnChange = Box<dyn Fn(&Change) + Send + Sync>;

impl Ground {
    /// Checks all that was asked for, and makes upper and work where they are missing; what it
    /// made is gone again when it fails. A mountpoint has to be apart from all of them.
    pub fn prepare(config: &UnionConfig, mountpoint: Option<&Path>) -> Result<Self, GroundError> {
        let base = Base::check(&config.base)?;
        check_apart(config, mountpoint)?;
        let upper = Made::ensure("--upper", &config.upper, 0o755)?;
        let work = Made::ensure("--work", &config.work, 0o700)?;
        check_same_file_system(config)?;
        check_free(config)?;
        let features = tried_features(&config.work)?;
        let lacking = features.lacking_for_upper().join(", no ");
        if !lacking.is_empty() {
            return Err(GroundError::FileSystem { upper: config.upper.clone(), lacking });
        }
        warn_of_open_upper(&config.upper, &features);
        let made = [upper, work];
        let (upper, work) = (config.upper.clone(), config.work.clone());
        Ok(Self { base, features, upper, work, made })
    }

    /// Opens the index; builds or refreshes it where that is needed.
    pub fn open_index(&self) -> Result<Index, GroundError> {
        Ok(self.base.open_index()?)
    }

    /// Gives up power, and joins lower and upper. The lock lasts as long as what it comes with.
    ///
    /// For a process with one thread.
    pub fn join(
        self,
        index: Index,
        config: &UnionConfig,
        on_change: OnChange,
    ) -> Result<(Union, UpperLock), GroundError> {
        // By the host's own view: the sandbox has no /sys.
        let attachment = File::open(&self.upper).ok().and_then(|dir| Attachment::of(dir.as_fd()));
        let lowers: Vec<_> = self.base.specs.iter().map(|spec| spec.path.clone()).collect();
        let confine = Confine { lowers: &lowers, upper: &self.upper, work: &self.work };
        let Confined { lowers, upper, work, report } =
            if config.sandbox { sandbox::enter(&confine)? } else { sandbox::open_only(&confine)? };
        log::info!("{report}");
        self.made.into_iter().for_each(Made::keep);
        // Whatever is made from here on is the guest's, and so is its mode.
        rustix::process::umask(rustix::fs::Mode::empty());
        let lock = take_lock(&self.upper, &upper, &work)?;
        let is_privileged = self.features.trusted_xattrs && rustix::process::geteuid().is_root();
        let ways = ways_of(&upper, is_privileged);
        let (space, ownership) = ways.map_err(|cause| directory("--upper", &self.upper, cause))?;
        let is_volatile = config.volatile;
        let upper_config = UpperConfig { space, ownership, is_volatile, attachment };
        let upper = Upper::open(upper, work.as_fd(), upper_config)
            .map_err(|cause| GroundError::Work { work: self.work, cause })?;
        let strictness = if config.lax { Strictness::Lax } else { Strictness::Strict };
        let lower = Lower::new(index, lowers, LowerPolicy { strictness, on_change })?;
        let union = Union::new(lower, upper, config.rebase)
            .map_err(|cause| GroundError::Union { upper: self.upper, cause })?;
        Ok((union, lock))
    }
}

/// Where an upper has its marks and how it keeps ownership: as it was begun, else as this process
/// can. Native ownership and the kernel's own marks take the same privilege; without it both are
/// ours.
pub fn ways_of(upper: &OwnedFd, is_privileged: bool) -> Result<(MarkSpace, Ownership), Errno> {
    let has = |space: MarkSpace| {
        fs::xattr(upper.as_fd(), space.name(Mark::OwnOrigin)).map(|mark| mark.is_some())
    };
    let trusted = (MarkSpace::Trusted, Ownership::Native);
    let user = (MarkSpace::User, Ownership::Override);
    if has(MarkSpace::Trusted)? {
        return Ok(trusted);
    }
    Ok(if has(MarkSpace::User)? || !is_privileged { user } else { trusted })
}

fn take_lock(path: &Path, upper: &OwnedFd, work: &OwnedFd) -> Result<UpperLock, GroundError> {
    UpperLock::take(upper.as_fd(), Some(work.as_fd()))
        .map_err(|cause| GroundError::Locked { upper: path.to_owned(), cause })
}

/// What the file system of a work directory that nobody uses can do. Trying takes room, which a full disk
/// has but for what is kept aside; that is kept aside again when the upper is opened.
fn tried_features(work: &Path) -> Result<Features, RunError> {
    match features::probe(work) {
        Err(error) if error.is_of_a_full_disk() && give_up_spare(work) => features::probe(work),
        tried => tried,
    }
}

/// Says early that somebody has the upper, before an index is built for nothing.
fn check_free(config: &UnionConfig) -> Result<(), GroundError> {
    let open = |option, path: &Path| {
        File::open(path).map(OwnedFd::from).map_err(|error| directory(option, path, error))
    };
    let (upper, work) = (open("--upper", &config.upper)?, open("--work", &config.work)?);
    match UpperLock::share(upper.as_fd(), Some(work.as_fd())) {
        Ok(lock) => {
            drop(lock);
            Ok(())
        }
        Err(cause) => Err(GroundError::Locked { upper: config.upper.clone(), cause }),
    }
}

fn directory(option: &'static str, path: &Path, reason: impl ToString) -> GroundError {
    GroundError::Directory { option, path: path.to_owned(), reason: reason.to_string() }
}

/// No two of lowers, upper, work and mountpoint lie in each other.
fn check_apart(config: &UnionConfig, mountpoint: Option<&Path>) -> Result<(), GroundError> {
    let mut named = vec![("--upper", config.upper.as_path()), ("--work", config.work.as_path())];
    named.extend(mountpoint.map(|path| ("the mountpoint", path)));
    named.extend(config.base.lowers.iter().map(|lower| ("--lower", lower.path())));
    for (at, (inner_option, inner)) in named.iter().enumerate() {
        for (other, (outer_option, outer)) in named.iter().enumerate() {
            // Lowers may share directories: nobody writes to them.
            let both_lower = *inner_option == "--lower" && *outer_option == "--lower";
            if at != other && !both_lower && is_inside(inner, outer) {
                return Err(GroundError::Inside {
                    inner: format!("{inner_option} {}", inner.display()),
                    outer: format!("{outer_option} {}", outer.display()),
                });
            }
        }
    }
    Ok(())
}

/// Whether `inner`, or the directory it would be made in, is `outer` or below it, by whatever
/// name or mount.
fn is_inside(inner: &Path, outer: &Path) -> bool {
    let Ok(outer) = outer.metadata() else { return false };
    let is_outer = |found: Metadata| (found.dev(), found.ino()) == (outer.dev(), outer.ino());
    let parent = || inner.parent().filter(|parent| !parent.as_os_str().is_empty());
    let Ok(inner) =
        inner.canonicalize().or_else(|_| parent().unwrap_or(Path::new(".")).canonicalize())
    else {
        return false;
    };
    inner.ancestors().any(|path| path.metadata().is_ok_and(is_outer))
}

fn check_same_file_system(config: &UnionConfig) -> Result<(), GroundError> {
    let device = |option, path: &Path| match path.metadata() {
        Ok(found) => Ok(found.dev()),
        Err(error) => Err(directory(option, path, error)),
    };
    if device("--upper", &config.upper)? == device("--work", &config.work)? {
        return Ok(());
    }
    let reason = format!(
        "is on another file system than --upper {}; expected the same, since files are renamed \
         from one to the other: give a --work beside the upper",
        config.upper.display()
    );
    Err(directory("--work", &config.work, reason))
}

/// A guest's setuid files and device nodes are real in a privileged upper.
fn warn_of_open_upper(upper: &Path, features: &Features) {
    if !features.trusted_xattrs || !rustix::process::geteuid().is_root() {
        return;
    }
    let Ok(upper) = upper.canonicalize() else { return };
    let is_open = |path: &Path| path.metadata().is_ok_and(|found| found.mode() & 0o011 != 0);
    if upper.ancestors().skip(1).all(is_open) {
        log::warn!(
            "upper {}: users of this host can reach the setuid files a guest makes there; chmod \
             700 a directory above it",
            upper.display()
        );
    }
}

/// A directory that is removed again unless it is kept.
#[derive(Debug)]
struct Made(Option<PathBuf>);

impl Made {
    fn ensure(option: &'static str, path: &Path, mode: u32) -> Result<Self, GroundError> {
        match path.metadata() {
            Ok(found) if found.is_dir() => return Ok(Self(None)),
            Ok(_) => return Err(directory(option, path, "is no directory; expected one")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(directory(option, path, error)),
        }
        match DirBuilder::new().mode(mode).create(path) {
            Ok(()) => Ok(Self(Some(path.to_owned()))),
            Err(error) => {
                let reason = format!("cannot be made: {error}; expected a directory to make it in");
                Err(directory(option, path, reason))
            }
        }
    }

    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = remove_dir(path)
        {
            log::warn!("{} stays behind: {error}", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use thinroot::vm::config::LowerArgument;

    use super::*;
    use crate::config::BaseConfig;

    fn config(place: &Path, lower: &str, upper: &str, work: &str) -> UnionConfig {
        UnionConfig {
            base: BaseConfig {
                lowers: vec![LowerArgument::Tree(place.join(lower))],
                image: None,
                index: Some(place.join("index")),
            },
            upper: place.join(upper),
            work: place.join(work),
            lax: false,
            volatile: false,
            rebase: false,
            writeback: true,
            sandbox: false,
        }
    }

    #[test]
    fn bad_directories_are_refused_by_name_and_nothing_is_made() {
        let place = tempfile::tempdir().unwrap();
        let place = place.path();
        fs::create_dir_all(place.join("base/etc")).unwrap();
        fs::create_dir_all(place.join("up")).unwrap();
        fs::write(place.join("file"), "").unwrap();
        std::os::unix::fs::symlink(place.join("base"), place.join("link")).unwrap();
        let rows = [
            ("none", "new", "work", "--lower"),
            ("file", "new", "work", "is no directory"),
            ("base", "base/etc", "work", "--upper"),
            ("base", "base/new", "work", "lies inside --lower"),
            ("base", "link/new", "work", "lies inside --lower"),
            ("base/etc", "base", "work", "lies inside --upper"),
            ("base", "new", "base/work", "--work"),
            ("base", "up", "up/work", "lies inside --upper"),
            ("base", "up", "up", "--work"),
            ("base", "file", "work", "is no directory"),
            ("base", "none/new", "work", "cannot be made"),
            ("base", "new", "none/work", "cannot be made"),
            ("base", "new", "/dev/shm/thinroot-test-work", "another file system"),
        ];
        for (lower, upper, work, told) in rows {
            let error = Ground::prepare(&config(place, lower, upper, work), None).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(told) && !text.contains('\n'), "{lower} {upper} {work}: {text}");
        }
        let mut names: Vec<_> =
            fs::read_dir(place).unwrap().map(|row| row.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["base", "file", "link", "up"]);
        assert!(!Path::new("/dev/shm/thinroot-test-work").exists());
    }

    #[test]
    fn upper_in_use_is_refused_with_its_holder() {
        let place = tempfile::tempdir().unwrap();
        let config = config(place.path(), "base", "up", "work");
        for name in ["base", "up", "work"] {
            fs::create_dir(place.path().join(name)).unwrap();
        }
        let open = |path: &Path| OwnedFd::from(File::open(path).unwrap());
        let (upper, work) = (open(&config.upper), open(&config.work));
        let held = UpperLock::take(upper.as_fd(), Some(work.as_fd())).unwrap();
        let text = Ground::prepare(&config, None).unwrap_err().to_string();
        assert!(text.contains(&format!("in use by process {}", std::process::id())), "{text}");
        drop(held);
        assert!(Ground::prepare(&config, None).is_ok());
    }
}
