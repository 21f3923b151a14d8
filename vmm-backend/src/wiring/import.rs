//! `thinroot import`: a tar archive becomes a base, or a foreign upper one of ours.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use thinroot::life::import::fuse_overlayfs::import_upper;
use thinroot::life::import::{ImportError, import as unpack};

use crate::config::{ImportConfig, ImportSource};

/// One read of the archive.
const PIECE_BYTES: usize = 256 << 10;

/// Why there is no base.
#[derive(Debug, thiserror::Error)]
pub enum ImportCommandError {
    /// The archive cannot be opened.
    #[error("{path}: {cause}; expected a tar archive, or - for standard input")]
    Archive {
        /// As it was given.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// The foreign upper cannot be opened.
    #[error("--fuse-overlayfs {path}: {cause}; expected an upper directory")]
    Upper {
        /// As it was given.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// The place cannot be used.
    #[error("--out {path}: {cause}; expected a directory to be made in one that exists")]
    Out {
        /// As it was given.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// The import.
    #[error("--out {path}: {cause}")]
    Import {
        /// As it was given.
        path: PathBuf,
        /// What failed.
        cause: ImportError,
    },
}

/// Makes the base, or the upper.
pub fn import(config: &ImportConfig) -> Result<(), ImportCommandError> {
    let path = &config.directory;
    let failed = |cause| ImportCommandError::Out { path: path.clone(), cause };
    let name = path.file_name().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = File::open(parent.unwrap_or(Path::new("."))).map_err(failed)?;
    let place = (parent.as_fd(), name.as_bytes());
    let done = match &config.source {
        ImportSource::Archive(archive) => unpack(&mut *open_archive(archive)?, place.0, place.1),
        ImportSource::FuseOverlayfs(upper) => {
            let opened = File::open(upper)
                .map_err(|cause| ImportCommandError::Upper { path: upper.clone(), cause })?;
            import_upper(opened.as_fd(), place.0, place.1)
        }
    };
    let done = done.map_err(|cause| ImportCommandError::Import { path: path.clone(), cause })?;
    log::info!(
        "import: {} entries, {} MiB in {}",
        done.entries,
        done.bytes.div_ceil(1 << 20),
        path.display()
    );
    Ok(())
}

fn open_archive(path: &Path) -> Result<Box<dyn Read>, ImportCommandError> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdin().lock()));
    }
    let opened = File::open(path)
        .map_err(|cause| ImportCommandError::Archive { path: path.to_owned(), cause })?;
    Ok(Box::new(BufReader::with_capacity(PIECE_BYTES, opened)))
}
