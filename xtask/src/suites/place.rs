//! An ext4 image with a plain directory and the layers of a union on it, gone when it is dropped.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::disk::{Disk, EXT4, PATIENCE, leave};
use crate::steps::{Step, StepError, check, file_error, note};

/// A mounted image, and the union on it while there is one.
pub struct Place {
    disk: Disk,
    thinroot: PathBuf,
    daemon: Option<Child>,
}

impl Place {
    /// Makes and mounts the image below `directory`, which is the place's own.
    pub fn make(directory: &Path, thinroot: &Path) -> Step<Self> {
        let disk = Disk::make(directory, &EXT4)?;
        let place = Self { disk, thinroot: thinroot.to_owned(), daemon: None };
        let modes = [
            (place.disk.path(), 0o755),
            (place.plain(), 0o755),
            (place.lower(), 0o755),
            (place.own(), 0o700),
            (place.root(), 0o755),
        ];
        for (path, mode) in modes {
            fs::create_dir_all(&path)
                .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(mode)))
                .map_err(file_error(&path))?;
        }
        Ok(place)
    }

    /// A directory of the ext4, for the run to compare with.
    pub fn plain(&self) -> PathBuf {
        self.disk.path().join("plain")
    }

    /// The lower of the union.
    pub fn lower(&self) -> PathBuf {
        self.disk.path().join("lower")
    }

    /// Where the union is mounted; on the root file system, so that unmounting the disk is not held
    /// up by it.
    pub fn root(&self) -> PathBuf {
        self.disk.outside().join("root")
    }

    /// Outside of both, for what a suite writes down.
    pub fn notes(&self) -> &Path {
        self.disk.outside()
    }

    fn own(&self) -> PathBuf {
        self.disk.path().join("own")
    }

    /// Mounts the union.
    pub fn mount(&mut self) -> Step {
        let (own, root) = (self.own(), self.root());
        let mut command = Command::new(&self.thinroot);
        command.args(["mount", "--log-level", "warn", "--lower"]).arg(self.lower());
        command.arg("--upper").arg(own.join("upper")).arg("--work").arg(own.join("work"));
        command.arg("--index").arg(own.join("index")).arg(&root).stdin(Stdio::null());
        let mut daemon = command.spawn().map_err(file_error(&self.thinroot))?;
        let outside = device(self.disk.outside());
        let start = Instant::now();
        while device(&root).is_none_or(|device| Some(device) == outside) {
            if let Ok(Some(status)) = daemon.try_wait() {
                return Err(StepError::Wrong(format!("thinroot mount ended with {status}")));
            }
            if start.elapsed() > PATIENCE {
                self.daemon = Some(daemon);
                return Err(StepError::Wrong(format!("nothing is mounted on {}", root.display())));
            }
            sleep(Duration::from_millis(5));
        }
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Unmounts the union, and waits for its daemon to end in order.
    pub fn unmount(&mut self) -> Step {
        let Some(mut daemon) = self.daemon.take() else { return Ok(()) };
        let ended = leave(&self.root()).and_then(|()| {
            let start = Instant::now();
            loop {
                match daemon.try_wait() {
                    Ok(Some(status)) => {
                        return check(status.success(), format!("the daemon ended with {status}"));
                    }
                    _ if start.elapsed() > PATIENCE => break,
                    _ => sleep(Duration::from_millis(5)),
                }
            }
            Err(StepError::Wrong("the daemon did not end".to_owned()))
        });
        if ended.is_err() {
            self.daemon = Some(daemon);
        }
        ended
    }

    /// Ends the union, so that the disk can go.
    fn clear(&mut self) -> Step {
        if self.unmount().is_err()
            && let Some(mut daemon) = self.daemon.take()
        {
            // Its janitor unmounts behind it.
            daemon.kill().and_then(|()| daemon.wait()).map_err(file_error(&self.thinroot))?;
            sleep(Duration::from_secs(3));
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(cause) = self.clear() {
            note(&format!("{} stays behind: {cause}", self.root().display()));
        }
    }
}

fn device(path: &Path) -> Option<u64> {
    path.metadata().ok().map(|found| found.dev())
}
