//! `thinroot diff`: what an upper changes.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use thinroot::life::diff::{DiffError, diff as compare, write_json, write_text};

use super::look::{Hold, Look, LookError};
use crate::config::DiffConfig;

/// Why no difference is told.
#[derive(Debug, thiserror::Error)]
pub enum DiffCommandError {
    /// Upper or base.
    #[error(transparent)]
    Look(#[from] LookError),
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
    let path = &config.upper;
    let look = Look::open(&config.base, (path, &config.work), Hold::IfFree)?;
    let links = File::open(config.work.join("index")).ok();
    let links = links.as_ref().map(File::as_fd);
    let rows = compare(&look.lower, &look.upper, links)
        .map_err(|cause| DiffCommandError::Diff { path: path.clone(), cause })?;
    drop(look);
    print(|out| if config.json { write_json(&rows, out) } else { write_text(&rows, out) })
        .map_err(DiffCommandError::Output)
}

/// Writes a listing to standard output.
pub fn print(write: impl FnOnce(&mut dyn io::Write) -> io::Result<()>) -> io::Result<()> {
    match write(&mut io::BufWriter::new(io::stdout().lock())) {
        // Whoever read it has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}
