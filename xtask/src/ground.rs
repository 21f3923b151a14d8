//! What demo and tests stand on: programs, boot images, a base; made once, under `.thinroot`.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::path::{Path, PathBuf};

use images::base::Recipe;
use images::kernels::{self, Flavour};
use images::{BuildImage, Image, KernelSource};

use crate::build::{self, Programs, workspace};
use crate::setup;
use crate::steps::{Step, file_error, note, run_tests, step};

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
    /// What could not be had, and why.
    pub lacking: Vec<String>,
}

impl Ground {
    /// Installs, builds and makes what the demo lacks.
    pub fn prepare() -> Step<Self> {
        step("what this machine lacks is installed", setup::install)?;
        let programs = step("thinroot and guest-init are built", build::release)?;
        let ground = Self { programs, directory: workspace().join(".thinroot"), lacking: vec![] };
        fs::create_dir_all(&ground.directory).map_err(file_error(&ground.directory))?;
        step("the boot image is there", || {
            ground.image_of(SUITE, Flavour::Cloud)?;
            link(&format!("images/{SUITE}"), &ground.image())
        })?;
        step("the base is there", || ground.make_base())?;
        Ok(ground)
    }

    /// The same, with a boot image of every kernel the tests boot. A suite that cannot be had (its
    /// mirror is away, or stale) is named in `lacking` and tested without.
    pub fn prepare_all() -> Step<Self> {
        let mut ground = Self::prepare()?;
        for suite in SUITES.into_iter().filter(|suite| *suite != SUITE) {
            let made = step(&format!("the boot image of {suite} is there"), || {
                ground.image_of(suite, Flavour::Cloud)
            });
            if let Err(cause) = made {
                ground.lacking.push(format!("SKIPPED: guests with the kernel of {suite}: {cause}"));
            }
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

    /// Says once more, at the end, what was not tested.
    pub fn say_what_lacks(&self) {
        self.lacking.iter().for_each(|line| note(line));
    }

    /// Runs cargo's tests on this ground; what they skip is lacking.
    pub fn test(&mut self, arguments: &[&str]) -> Step {
        let mut command = build::cargo(arguments);
        let skips = run_tests(command.env("THINROOT_GROUND", &self.directory))?;
        self.lacking.extend(skips);
        Ok(())
    }

    /// The boot image with a kernel of a suite, made unless it is there.
    pub fn image_of(&self, suite: &str, flavour: Flavour) -> Step<PathBuf> {
        let name = match flavour {
            Flavour::Cloud => suite.to_owned(),
            Flavour::Generic => format!("{suite}-generic"),
        };
        let directory = self.directory.join("images").join(name);
        let stamp = Stamp::of(&directory, self.image_sources()?)?;
        if !stamp.holds() || Image::open(&directory).is_err() {
            note(&format!("the kernel of {suite}: fetched unless it is in .thinroot/kernels"));
            let packages = kernels::fetch(suite, flavour, &self.directory.join("kernels"))?;
            images::build(&BuildImage {
                kernel: KernelSource::Packages(packages),
                guest_init: self.programs.guest_init.clone(),
                directory: directory.clone(),
            })?;
            stamp.set()?;
        }
        note(&format!("kernel {}", Image::open(&directory)?.version()));
        Ok(directory)
    }

    /// What makes an image what it is, besides the kernel.
    fn image_sources(&self) -> Step<Vec<PathBuf>> {
        let source = workspace().join("images/src");
        let mut sources = vec![self.programs.guest_init.clone()];
        for row in fs::read_dir(&source).map_err(file_error(&source))? {
            sources.push(row.map_err(file_error(&source))?.path());
        }
        sources.sort();
        Ok(sources)
    }

    fn make_base(&self) -> Step {
        self.base_with("base", &[]).map(drop)
    }

    /// These packages of the base's suite as files, fetched unless they are there.
    pub fn packages(&self, names: &[&str]) -> Step<Vec<PathBuf>> {
        let directory = self.directory.join("packages").join(names.join("+"));
        Ok(images::packages::fetch(SUITE, names, &directory)?)
    }

    /// A base by this name with further packages, made unless it is there.
    pub fn base_with(&self, name: &str, packages: &[&str]) -> Step<PathBuf> {
        let base = self.directory.join(name);
        let stamp = Stamp::of(&base, vec![workspace().join("images/src/base.rs")])?;
        if !stamp.holds() {
            note(&format!("mmdebstrap makes a small Debian {SUITE} with systemd, about a minute"));
            if base.exists() {
                fs::remove_dir_all(&base).map_err(file_error(&base))?;
            }
            let mut recipe = Recipe::minimal(SUITE);
            recipe.packages.extend(packages.iter().copied().map(str::to_owned));
            recipe.build(&base)?;
            stamp.set()?;
        }
        note(&base.display().to_string());
        Ok(base)
    }
}

/// Remembers beside a thing what it was made from, so that it is made again when that changes.
struct Stamp {
    thing: PathBuf,
    path: PathBuf,
    text: String,
}

impl Stamp {
    /// The stamp of `thing`, made from these files.
    fn of(thing: &Path, sources: Vec<PathBuf>) -> Step<Self> {
        let mut hasher = DefaultHasher::new();
        for source in sources {
            fs::read(&source).map_err(file_error(&source))?.hash(&mut hasher);
        }
        let path = thing.with_extension("stamp");
        Ok(Self { thing: thing.to_owned(), path, text: format!("{:016x}\n", hasher.finish()) })
    }

    /// Whether the thing is there, and made from just this.
    fn holds(&self) -> bool {
        self.thing.exists() && fs::read_to_string(&self.path).is_ok_and(|text| text == self.text)
    }

    fn set(&self) -> Step {
        fs::write(&self.path, &self.text).map_err(file_error(&self.path))
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
    fn thing_is_made_again_when_what_it_is_made_from_changes() {
        let directory = std::env::temp_dir().join(format!("thinroot-stamp-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let (thing, source) = (directory.join("thing"), directory.join("source"));
        let stamp = || Stamp::of(&thing, vec![source.clone()]).unwrap();
        fs::write(&source, "one").unwrap();
        stamp().set().unwrap();
        assert!(!stamp().holds(), "there is a stamp, but no thing");
        fs::write(&thing, "").unwrap();
        assert!(stamp().holds());
        fs::write(&source, "two").unwrap();
        assert!(!stamp().holds());
        fs::remove_dir_all(&directory).unwrap();
    }
}
