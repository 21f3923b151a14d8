//! `cargo xtask bench`: thinroot beside virtiofsd on the virtual guest.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::build::{self, cargo, target, workspace};
use crate::setup::{self, is_root};
use crate::steps::{Step, StepError, capture, note, run, step};

/// The rival, as its users get it.
const VIRTIOFSD: &str = "1.14.0";

/// What building it needs, by the file that proves it.
const NEEDS: &[(&str, &str)] = &[
    ("/usr/include/seccomp.h", "libseccomp-dev"),
    ("/usr/include/cap-ng.h", "libcap-ng-dev"),
    ("cc", "gcc"),
];

/// Builds everything and measures; the words are options and workloads of the `bench` program.
pub fn bench(words: &[&str]) -> Step {
    if !is_root() {
        return Err(StepError::Wrong(
            "the bench mounts overlayfs and pins daemons: run it as root".to_owned(),
        ));
    }
    let programs = step("thinroot is built", build::release)?;
    step("the bench is built", || {
        run(&mut cargo(&["build", "--release", "--package", "tests", "--bin", "bench"]))
    })?;
    let virtiofsd = step(&format!("virtiofsd {VIRTIOFSD} is there"), virtiofsd)?;
    let mut command = Command::new(target().join("release/bench"));
    command.arg("--thinroot").arg(programs.thinroot).arg("--virtiofsd").arg(virtiofsd);
    command.arg("--directory").arg(workspace().join(".thinroot/bench")).args(words);
    run(&mut command)
}

/// The rival's program, built once into a place of our own.
pub fn virtiofsd() -> Step<PathBuf> {
    let place = workspace().join(".thinroot/rivals/virtiofsd");
    let program = place.join("bin/virtiofsd");
    if !is_this_version(&program) {
        setup::install_packages(NEEDS)?;
        note("cargo install virtiofsd, a minute or two, once");
        let version = ["install", "virtiofsd", "--version", VIRTIOFSD, "--locked", "--quiet"];
        run(cargo(&version).arg("--root").arg(&place))?;
    }
    Ok(program)
}

fn is_this_version(program: &Path) -> bool {
    program.is_file()
        && capture(Command::new(program).arg("--version"))
            .is_ok_and(|text| text.split_whitespace().any(|word| word == VIRTIOFSD))
}
