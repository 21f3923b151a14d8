//! `thinroot diff`: what an upper changes.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use thinroot::layer::lock::{LockError, UpperLock};
use thinroot::layer::lower::{Lower, LowerError, LowerPolicy, Strictness};
use thinroot::layer::seal::{SealError, open_roots};
use thinroot::layer::view::UpperView;
use thinroot::life::diff::{DiffError, diff as compare, write_json, write_text};

use super::base::{Base, BaseError};
use super::ground::ways_of;
use crate::config::DiffConfig;

/// Why no difference is told.
#[derive(Debug, thiserror::Error)]
pub enum DiffCommandError {
    /// The lowers.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// The lowers cannot be opened.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The lowers do not fit the index.
    #[error(transparent)]
    Lower(#[from] LowerError),
    /// The upper cannot be opened.
    #[error("--upper {path}: {cause}; expected the directory given to serve or run as --upper")]
    Upper {
        /// The upper.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// The upper cannot be locked.
    #[error("--upper {path}: {cause}")]
    Lock {
        /// The upper.
        path: PathBuf,
        /// Why not.
        cause: LockError,
    },
    /// The comparison.
    #[error("--upper {path}: {cause}")]
    Diff {
        /// The upper.
        path: PathBuf,
        /// What failed.
        cause: DiffError,
    },
    /// The listing cannot be written.
    #[error("standard output: {0}")]
    Output(io::Error),
}

/// Prints what the upper changes. An upper in use is read as it is, and that is said.
pub fn diff(config: &DiffConfig) -> Result<(), DiffCommandError> {
    let base = Base::check(&config.base)?;
    let path = &config.upper;
    let upper = File::open(path).and_then(|file| match file.metadata()?.is_dir() {
        true => Ok(OwnedFd::from(file)),
        false => Err(io::ErrorKind::NotADirectory.into()),
    });
    let upper = upper.map_err(|cause| DiffCommandError::Upper { path: path.clone(), cause })?;
    let work = File::open(&config.work).ok();
    let lock = match UpperLock::share(upper.as_fd(), work.as_ref().map(File::as_fd)) {
        Ok(lock) => Some(lock),
        Err(cause @ LockError::InUse { .. }) => {
            log::warn!(
                "upper {} is {cause}: what its guest has not written is not here",
                path.display()
            );
            None
        }
        Err(cause) => return Err(DiffCommandError::Lock { path: path.clone(), cause }),
    };
    let index = base.open_index()?;
    let policy = LowerPolicy { strictness: Strictness::Strict, on_change: Box::new(|_| {}) };
    let lower = Lower::new(index, open_roots(&base.specs)?, policy)?;
    let ways = ways_of(&upper, rustix::process::geteuid().is_root());
    let (space, ownership) =
        ways.map_err(|cause| DiffCommandError::Upper { path: path.clone(), cause: cause.into() })?;
    let links = File::open(config.work.join("index")).ok();
    let links = links.as_ref().map(File::as_fd);
    let rows = compare(&lower, &UpperView::new(upper, space, ownership), links)
        .map_err(|cause| DiffCommandError::Diff { path: path.clone(), cause })?;
    drop(lock);
    let mut out = io::BufWriter::new(io::stdout().lock());
    let written =
        if config.json { write_json(&rows, &mut out) } else { write_text(&rows, &mut out) };
    match written {
        // Whoever read it has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(DiffCommandError::Output),
    }
}
