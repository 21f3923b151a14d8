//! Why a run did not come about, and how a person is told.

use std::io::{self, Write as _};

/// Why a run did not come about.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Something asked for is not there or does not fit; the text names it and the next step.
    #[error("{0}")]
    Refused(String),
    /// A system call failed on something.
    #[error("{what}: {cause}")]
    System {
        /// What was tried, and on what.
        what: String,
        /// What the system said.
        cause: io::Error,
    },
}

impl RunError {
    /// Wraps what the system said about `what`.
    pub fn system<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |cause| Self::System { what, cause: cause.into() }
    }

    /// Whether a call found no room.
    pub fn is_of_a_full_disk(&self) -> bool {
        let kinds = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        matches!(self, Self::System { cause, .. } if kinds.contains(&cause.kind()))
    }
}

/// One line of ours on standard error.
pub fn say(line: &str) {
    if let Err(cause) = writeln!(io::stderr().lock(), "thinroot: {line}") {
        log::debug!("standard error is gone: {cause}");
    }
}
