//! The kernel's overlayfs on the host, with its own defaults, as people mount it.

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::BenchError;

/// A mount, gone when dropped.
#[derive(Debug)]
pub struct Overlay(PathBuf);

impl Overlay {
    /// The lowers alone.
    pub fn read_only(lowers: &[PathBuf], point: &Path) -> Result<Self, BenchError> {
        Self::mount(&lower_option(lowers), point)
    }

    /// The lowers with `upper` and `work` on top, in a directory of its own.
    pub fn writable(lowers: &[PathBuf], directory: &Path) -> Result<Self, BenchError> {
        let [upper, work] = ["upper", "work"].map(|name| directory.join(name));
        for path in [&upper, &work] {
            fs::create_dir_all(path).map_err(BenchError::file(path))?;
        }
        let (upper, work) = (upper.display(), work.display());
        let options = format!("{},upperdir={upper},workdir={work}", lower_option(lowers));
        Self::mount(&options, &directory.join("merged"))
    }

    fn mount(options: &str, point: &Path) -> Result<Self, BenchError> {
        fs::create_dir_all(point).map_err(BenchError::file(point))?;
        let data = CString::new(options).unwrap_or_default();
        mount("overlay", point, "overlay", MountFlags::empty(), &*data)
            .map_err(|errno| BenchError::Overlay { point: point.to_owned(), errno })?;
        Ok(Self(point.to_owned()))
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.0
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let unmounted = unmount(&self.0, UnmountFlags::DETACH).map_err(std::io::Error::from);
        if let Err(error) = unmounted.and_then(|()| fs::remove_dir(&self.0)) {
            eprintln!("bench: unmounting {}: {error}", self.0.display());
        }
    }
}

fn lower_option(lowers: &[PathBuf]) -> String {
    let lowers: Vec<_> = lowers.iter().map(|path| path.display().to_string()).collect();
    format!("lowerdir={}", lowers.join(":"))
}
