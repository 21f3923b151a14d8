//! `cargo xtask bench vm`: thinroot beside its rivals in real guests.

use std::path::PathBuf;
use std::process::Command;

use images::kernels::Flavour;

use crate::bench::virtiofsd;
use crate::build::{cargo, target};
use crate::ground::Ground;
use crate::setup::{self, is_root};
use crate::steps::{Step, StepError, run, step};

/// The suite whose kernel every guest boots: it has virtiofs and ext4 built in.
const SUITE: &str = "trixie";

/// What the workloads need besides a small Debian.
const PACKAGES: &[&str] = &["git", "gcc", "libc6-dev", "make"];

/// What a workload installs: some 900 small files, and nothing that the base lacks.
const INSTALLED: &[&str] = &["bash-completion"];

/// What the rivals need, by the file that proves it.
const NEEDS: &[(&str, &str)] = &[
    ("qemu-img", "qemu-utils"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.erofs", "erofs-utils"),
    ("/bin/busybox", "busybox-static"),
    ("git", "git"),
];

/// Makes everything and measures; the words are options and workloads of the `bench_vm` program.
pub fn bench_vm(words: &[&str]) -> Step {
    if !is_root() {
        return Err(StepError::Wrong(
            "the bench mounts overlayfs and makes disk images: run it as root".to_owned(),
        ));
    }
    let ground = Ground::prepare()?;
    step("what the rivals need is installed", || setup::install_packages(NEEDS))?;
    let image = step(&format!("the boot image of {SUITE} is there"), || {
        ground.image_of(SUITE, Flavour::Cloud)
    })?;
    let generic = step(&format!("the boot image of {SUITE} with 9p is there"), || {
        ground.image_of(SUITE, Flavour::Generic)
    })?;
    let work_base =
        step("a base with git and gcc is there", || ground.base_with("base-bench", PACKAGES))?;
    let packages = step("the package that guests install is there", || ground.packages(INSTALLED))?;
    let virtiofsd = step("virtiofsd is there", virtiofsd)?;
    let program = step("the bench is built", build)?;
    let mut command = Command::new(program);
    command.arg("--thinroot").arg(&ground.programs.thinroot).arg("--virtiofsd").arg(virtiofsd);
    command.arg("--image").arg(image).arg("--image-9p").arg(generic);
    command.arg("--base").arg(ground.base()).arg("--work-base").arg(work_base);
    command.arg("--package").args(packages.first());
    command.arg("--directory").arg(ground.directory.join("bench")).args(words);
    run(&mut command)
}

fn build() -> Step<PathBuf> {
    run(&mut cargo(&["build", "--release", "--package", "tests", "--bin", "bench_vm"]))?;
    Ok(target().join("release/bench_vm"))
}
