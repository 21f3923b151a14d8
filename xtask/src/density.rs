//! `cargo xtask bench density`: what many guests on one base cost this host.

use std::process::Command;

use crate::bench::virtiofsd;
use crate::build::{cargo, target};
use crate::ground::Ground;
use crate::setup::is_root;
use crate::steps::{Step, StepError, run, step};

/// Makes the ground and measures; the words are options and parts of the `density` program.
pub fn density(words: &[&str]) -> Step {
    if !is_root() {
        return Err(StepError::Wrong(
            "the bench reads the memory of daemons in their own namespaces: run it as root"
                .to_owned(),
        ));
    }
    let ground = Ground::prepare()?;
    let virtiofsd = step("virtiofsd is there", virtiofsd)?;
    step("the bench is built", || {
        run(&mut cargo(&["build", "--release", "--package", "tests", "--bin", "density"]))
    })?;
    let mut command = Command::new(target().join("release/density"));
    command.arg("--thinroot").arg(&ground.programs.thinroot).arg("--virtiofsd").arg(virtiofsd);
    command.arg("--base").arg(ground.base()).arg("--image").arg(ground.image());
    command.arg("--directory").arg(ground.directory.join("bench")).args(words);
    run(&mut command)
}
