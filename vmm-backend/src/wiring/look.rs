//! An upper and its base, opened for those who only look, or mend.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use thinroot::layer::lock::{LockError, UpperLock};
use thinroot::layer::lower::{Change, Lower, LowerError, LowerPolicy, Strictness};
use thinroot::layer::seal::{SealError, open_roots};
use thinroot::layer::view::UpperView;

use super::base::{Base, BaseError};
use super::ground::ways_of;
use crate::config::BaseConfig;

/// Why an upper cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
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
    #[error("--upper {path}: {cause}; stop whoever uses it")]
    Lock {
        /// The upper.
        path: PathBuf,
        /// Why not.
        cause: LockError,
    },
}

/// How the upper is held meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hold {
    /// Not at all if somebody uses it, which is said.
    IfFree,
    /// Nobody changes it.
    Shared,
    /// Nobody else looks at it.
    Exclusive,
}

/// What is looked at.
#[derive(Debug)]
pub struct Look {
    /// The base.
    pub lower: Lower,
    /// The upper.
    pub upper: UpperView,
    /// Its work directory, where there is one.
    pub work: Option<OwnedFd>,
    _lock: Option<UpperLock>,
}

impl Look {
    /// Opens an upper, its work directory and the index of its base.
    pub fn open(
        base: &BaseConfig,
        (path, work): (&Path, &Path),
        hold: Hold,
    ) -> Result<Self, LookError> {
        let base = Base::check(base)?;
        let opened = File::open(path).and_then(|file| match file.metadata()?.is_dir() {
            true => Ok(OwnedFd::from(file)),
            false => Err(io::ErrorKind::NotADirectory.into()),
        });
        let failed = |cause| LookError::Upper { path: path.to_owned(), cause };
        let upper = opened.map_err(failed)?;
        let work = File::open(work).ok().map(OwnedFd::from);
        let (held, work_fd) = (upper.as_fd(), work.as_ref().map(OwnedFd::as_fd));
        let lock = match hold {
            Hold::Exclusive => UpperLock::take(held, work_fd),
            Hold::Shared => UpperLock::share(held, work_fd),
            Hold::IfFree => UpperLock::share_now(held, work_fd),
        };
        let lock = match lock {
            Ok(lock) => Some(lock),
            Err(cause @ LockError::InUse { .. }) if hold == Hold::IfFree => {
                log::warn!(
                    "upper {} is {cause}: what its guest has not written is not here",
                    path.display()
                );
                None
            }
            Err(cause) => return Err(LookError::Lock { path: path.to_owned(), cause }),
        };
        let index = base.open_index()?;
        let on_change = Box::new(|change: &Change| {
            let path = change.path.escape_ascii();
            log::warn!("/{path} of the base has changed since it was sealed");
        });
        let policy = LowerPolicy { strictness: Strictness::Strict, on_change };
        let lower = Lower::new(index, open_roots(&base.specs)?, policy)?;
        let ways = ways_of(&upper, rustix::process::geteuid().is_root());
        let (space, ownership) = ways.map_err(|cause| failed(cause.into()))?;
        let upper = UpperView::new(upper, space, ownership);
        Ok(Self { lower, upper, work, _lock: lock })
    }
}
