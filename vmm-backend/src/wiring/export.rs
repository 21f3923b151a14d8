//! `thinroot export`: what a guest has, for others.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use thinroot::filesystem::Errno;
use thinroot::life::diff::{DiffError, Row, diff as compare};
use thinroot::life::export::{
    ExportError, TarTarget, Target, UpperTarget, export_changes, export_whole,
};
use thinroot::union::Union;

use super::ground::{Ground, GroundError};
use super::look::{Hold, Look, LookError};
use crate::config::{ExportConfig, ExportTarget};

/// One write of an archive.
const PIECE_BYTES: usize = 256 << 10;

/// Why nothing was exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportCommandError {
    /// Upper or base.
    #[error(transparent)]
    Look(#[from] LookError),
    /// The union.
    #[error(transparent)]
    Ground(#[from] GroundError),
    /// What changed cannot be told.
    #[error("--upper {path}: {cause}")]
    Diff {
        /// The upper.
        path: PathBuf,
        /// Why not.
        cause: DiffError,
    },
    /// The place cannot be used.
    #[error("--to {path}: {cause}; expected a file or directory that is to be made, or -")]
    To {
        /// As it was given.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// Overlay marks take privilege.
    #[error(
        "--to {0}: an upper for the kernel's overlayfs can be made by root alone; give an archive, as in --to {0}.tar"
    )]
    NoRight(String),
    /// The export.
    #[error("--to {path}: {cause}")]
    Export {
        /// As it was given.
        path: PathBuf,
        /// What failed.
        cause: ExportError,
    },
}

/// Exports.
pub fn export(config: &ExportConfig) -> Result<(), ExportCommandError> {
    let union_config = &config.union;
    let rows = if config.whole { Vec::new() } else { changes(config)? };
    let ground = Ground::prepare(union_config, None)?;
    let index = ground.open_index()?;
    let place = Made::begin(&config.to)?;
    let (union, _lock) = ground.join(index, union_config, Box::new(|_| {}))?;
    let path = config.to.path();
    let failed = |cause| ExportCommandError::Export { path: path.clone(), cause };
    place.write(|target| write(&union, &rows, config.whole, target).map_err(failed))?;
    log::info!("export: {} is in {}", union_config.upper.display(), path.display());
    Ok(())
}

fn write(union: &Union, rows: &[Row], whole: bool, to: &mut dyn Target) -> Result<(), ExportError> {
    if whole { export_whole(union, to) } else { export_changes(union, rows, to) }
}

fn changes(config: &ExportConfig) -> Result<Vec<Row>, ExportCommandError> {
    let union = &config.union;
    let look = Look::open(&union.base, (&union.upper, &union.work), Hold::Shared)?;
    let links = File::open(union.work.join("index")).ok();
    let links = links.as_ref().map(File::as_fd);
    compare(&look.lower, &look.upper, links)
        .map_err(|cause| ExportCommandError::Diff { path: union.upper.clone(), cause })
}

/// What is being made; gone again unless it is whole.
enum Made {
    Stream,
    Archive(File, Guard),
    Upper(Guard),
}

/// A path that is removed again unless it is kept.
struct Guard {
    path: PathBuf,
    is_kept: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        let removed = match self.path.is_dir() {
            true => std::fs::remove_dir_all(&self.path),
            false => std::fs::remove_file(&self.path),
        };
        if let Err(error) = removed {
            log::warn!("{} stays behind: {error}", self.path.display());
        }
    }
}

impl Made {
    fn begin(to: &ExportTarget) -> Result<Self, ExportCommandError> {
        let failed = |path: &Path, cause| ExportCommandError::To { path: path.to_owned(), cause };
        match to {
            ExportTarget::StandardOutput => Ok(Self::Stream),
            ExportTarget::Archive(path) => {
                // What is in it may be root's secrets.
                let mut options = OpenOptions::new();
                let file = options.write(true).create_new(true).mode(0o600).open(path);
                let file = file.map_err(|cause| failed(path, cause))?;
                Ok(Self::Archive(file, Guard { path: path.clone(), is_kept: false }))
            }
            ExportTarget::Upper(path) if !rustix::process::geteuid().is_root() => {
                Err(ExportCommandError::NoRight(path.display().to_string()))
            }
            ExportTarget::Upper(path) => {
                let made = DirBuilder::new().mode(0o700).create(path);
                made.map_err(|cause| failed(path, cause))?;
                Ok(Self::Upper(Guard { path: path.clone(), is_kept: false }))
            }
        }
    }

    fn write(
        self,
        write: impl Fn(&mut dyn Target) -> Result<(), ExportCommandError>,
    ) -> Result<(), ExportCommandError> {
        match self {
            Self::Stream => {
                let out = io::stdout().lock();
                write(&mut TarTarget::new(BufWriter::with_capacity(PIECE_BYTES, out)))
            }
            Self::Archive(file, mut guard) => {
                let failed = |cause| ExportCommandError::To { path: guard.path.clone(), cause };
                let to = BufWriter::with_capacity(PIECE_BYTES, &file);
                write(&mut TarTarget::new(to))?;
                file.sync_all().map_err(failed)?;
                guard.is_kept = true;
                Ok(())
            }
            Self::Upper(mut guard) => {
                let failed = |cause| ExportCommandError::To { path: guard.path.clone(), cause };
                let stage = guard.path.with_added_extension("export");
                DirBuilder::new().mode(0o700).create(&stage).map_err(failed)?;
                let _stage = Guard { path: stage.clone(), is_kept: false };
                let open = |path: &Path| File::open(path).map(OwnedFd::from);
                let (root, work) =
                    (open(&guard.path).map_err(failed)?, open(&stage).map_err(failed)?);
                let target = UpperTarget::new(root, work.as_fd());
                let mut target = target.map_err(|cause: Errno| failed(cause.into()))?;
                write(&mut target)?;
                guard.is_kept = true;
                Ok(())
            }
        }
    }
}
