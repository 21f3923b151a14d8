//! Where the files of one attempt are.

use std::path::{Path, PathBuf};

use super::config::{RunConfig, UpperArgument};
use super::discard::{scratch_parent, upper_parent};
use super::error::RunError;

/// The paths of one attempt.
#[derive(Clone, Debug)]
pub struct Places {
    /// The upper.
    pub upper: PathBuf,
    /// The work directory, where it is not `serve`'s default.
    pub work: Option<PathBuf>,
    /// The console's file.
    pub console: PathBuf,
    /// What the VMM says on its own standard error.
    pub vmm_log: PathBuf,
    /// The socket for a VMM that takes no descriptor.
    pub socket: PathBuf,
}

impl Places {
    /// The paths below what was made for this attempt.
    ///
    /// Errors: [`RunError::Refused`] where a socket's path would be too long.
    pub fn new(
        config: &RunConfig,
        scratch: &Path,
        discarded: Option<&Path>,
    ) -> Result<Self, RunError> {
        let (upper, work) = match (&config.upper, discarded) {
            (UpperArgument::Keep { upper, work }, _) => (upper.clone(), work.clone()),
            (UpperArgument::Discard { .. }, made) => {
                let made = made.unwrap_or(scratch);
                (made.join("upper"), Some(made.join("work")))
            }
        };
        let socket = scratch.join("fs");
        // unix(7): sun_path has 108 bytes, one of them NUL.
        if socket.as_os_str().len() > 107 {
            return Err(RunError::Refused(format!(
                "socket path {} is longer than 107 bytes; point XDG_RUNTIME_DIR or TMPDIR at a shorter directory",
                socket.display()
            )));
        }
        let console = config.console.clone().unwrap_or_else(|| scratch.join("console"));
        Ok(Self { upper, work, console, vmm_log: scratch.join("vmm.log"), socket })
    }

    /// What `--print` shows where a directory would be made.
    pub fn example(config: &RunConfig) -> Result<Self, RunError> {
        let scratch = scratch_parent().join("thinroot-run-XXXXXX");
        let discarded = match &config.upper {
            UpperArgument::Keep { .. } => None,
            UpperArgument::Discard { parent } => Some(
                upper_parent(parent.as_deref(), &config.lowers)?.join("thinroot-discard-XXXXXX"),
            ),
        };
        Self::new(config, &scratch, discarded.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::testbed::config;

    #[test]
    fn socket_path_over_107_bytes_is_refused() {
        let long = PathBuf::from("/tmp").join("x".repeat(120));
        let refused = Places::new(&config(), &long, None).unwrap_err().to_string();
        assert!(refused.contains("107 bytes"), "{refused}");
    }
}
