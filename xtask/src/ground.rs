//! What demo and tests stand on: programs, boot images, a base; made once, under `.thinroot`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use images::base::Recipe;
use images::{BuildImage, Image, KernelSource, kernels};

use crate::build::{self, Programs, workspace};
use crate::setup;
use crate::steps::{Step, file_error, note, step};

/// The suite of the base, and of the kernel that boots it where no other is asked for.
const SUITE: &str = "bookworm";
/// Every suite whose kernel the tests boot: Debian 12, 13 and what comes next.
const SUITES: [&str; 3] = [SUITE, "trixie", "sid"];

/// Everything a VM needs.
#[derive(Clone, Debug)]
pub struct Ground {
    /// Our programs.
    pub programs: Programs,
    /// `.thinroot`, with `base`, `image` (a link to `images/SUITE`) and `images/SUITE`.
    pub directory: PathBuf,
}

impl Ground {
    /// Installs, builds and makes what the demo lacks.
    pub fn prepare() -> Step<Self> {
        step("what this machine lacks is installed", setup::install)?;
        let programs = step("thinroot and guest-init are built", build::release)?;
        let ground = Self { programs, directory: workspace().join(".thinroot") };
        fs::create_dir_all(&ground.directory).map_err(file_error(&ground.directory))?;
        step("the boot image is there", || ground.make_image(SUITE))?;
        step("the base is there", || ground.make_base())?;
        Ok(ground)
    }

    /// The same, with a boot image of every kernel the tests boot.
    pub fn prepare_all() -> Step<Self> {
        let ground = Self::prepare()?;
        for suite in SUITES.into_iter().filter(|suite| *suite != SUITE) {
            step(&format!("the boot image of {suite} is there"), || ground.make_image(suite))?;
        }
        Ok(ground)
    }

    /// The base.
    pub fn base(&self) -> PathBuf {
        self.directory.join("base")
    }

    /// The boot image.
    pub fn image(&self) -> PathBuf {
        self.directory.join("image")
    }

    /// Tells tests where everything is.
    pub fn describe<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("THINROOT_GROUND", &self.directory)
            .env("THINROOT_PROGRAM", &self.programs.thinroot)
    }

    fn make_image(&self, suite: &str) -> Step {
        let directory = self.directory.join("images").join(suite);
        let stamp = directory.with_extension("guest-init");
        if !is_current(&self.programs.guest_init, &stamp) || Image::open(&directory).is_err() {
            note(&format!("the kernel of {suite}: fetched unless it is in .thinroot/kernels"));
            let packages = kernels::fetch(suite, &self.directory.join("kernels"))?;
            images::build(&BuildImage {
                kernel: KernelSource::Packages(packages),
                guest_init: self.programs.guest_init.clone(),
                directory: directory.clone(),
            })?;
            fs::copy(&self.programs.guest_init, &stamp).map_err(file_error(&stamp))?;
        }
        note(&format!("kernel {}", Image::open(&directory)?.version()));
        if suite == SUITE { link(&format!("images/{suite}"), &self.image()) } else { Ok(()) }
    }

    fn make_base(&self) -> Step {
        let base = self.base();
        if !base.exists() {
            note(&format!("mmdebstrap makes a small Debian {SUITE} with systemd, about a minute"));
            Recipe::minimal(SUITE).build(&base)?;
        }
        note(&base.display().to_string());
        Ok(())
    }
}

/// Whether the image was built from this very guest-init.
fn is_current(guest_init: &Path, stamp: &Path) -> bool {
    match (fs::read(guest_init), fs::read(stamp)) {
        (Ok(now), Ok(then)) => now == then,
        _ => false,
    }
}

fn link(target: &str, path: &Path) -> Step {
    match std::os::unix::fs::symlink(target, path) {
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(file_error(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_guest_init_makes_another_image() {
        assert!(!is_current(Path::new("/no/such"), Path::new("/no/such")));
        assert!(is_current(Path::new("/bin/sh"), Path::new("/bin/sh")));
        assert!(!is_current(Path::new("/bin/sh"), Path::new("/bin/cat")));
    }
}
