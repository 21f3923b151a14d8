//! Mount helpers at the only place where mount(8) looks for them, while a suite runs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::steps::{Step, StepError, file_error, note};

const NAMES: [&str; 2] = ["/sbin/mount.fuse.thinroot", "/sbin/umount.fuse.thinroot"];

/// Links to our program, gone when dropped.
pub struct Helpers {
    made: Vec<PathBuf>,
}

impl Helpers {
    /// Errors: another thinroot is installed there.
    pub fn install(thinroot: &Path) -> Step<Self> {
        let mut helpers = Self { made: Vec::new() };
        for name in NAMES.map(PathBuf::from) {
            match fs::read_link(&name) {
                // Left by a run that was killed.
                Ok(target) if target == thinroot => {}
                Ok(_) => {
                    return Err(StepError::Wrong(format!(
                        "{} is another program's; expected none: remove it for this run",
                        name.display()
                    )));
                }
                Err(_) => symlink(thinroot, &name).map_err(file_error(&name))?,
            }
            helpers.made.push(name);
        }
        Ok(helpers)
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        for name in &self.made {
            if let Err(error) = fs::remove_file(name) {
                note(&format!("{} stays behind: {error}", name.display()));
            }
        }
    }
}
