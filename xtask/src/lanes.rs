//! The lanes: what is run to trust a change.

use std::process::Command;
use std::time::Instant;

use crate::build::{cargo, workspace};
use crate::ground::Ground;
use crate::setup::{self, is_there};
use crate::steps::{Step, note, run, step};
use crate::suites;

/// The fast lane promises to be quicker than this.
const CHECK_SECONDS_MAX: u64 = 120;

/// The fast lane: format, lints, arrows, and every test that needs no VM.
pub fn check() -> Step {
    let start = Instant::now();
    step("rustfmt and clippy are there", setup::install_components)?;
    lints()?;
    step("tests without VMs, and the arrows", || {
        let tests = ["test", "--workspace", "--lib", "--bins", "--test", "arrows", "--test", "run"];
        run(&mut cargo(&tests))
    })?;
    let took = start.elapsed().as_secs();
    note(&format!("the fast lane took {took} s"));
    if took > CHECK_SECONDS_MAX {
        note(&format!(
            "more than {CHECK_SECONDS_MAX} s: something does not belong here (or was just built)"
        ));
    }
    Ok(())
}

/// Everything, set-up included.
pub fn test() -> Step {
    let mut ground = Ground::prepare_all()?;
    step("rustfmt and clippy are there", setup::install_components)?;
    lints()?;
    licences_if_cheap()?;
    step("all tests", || {
        // The tests start the daemon as its users do.
        run(&mut cargo(&["build", "--workspace"]))?;
        ground.test(&["test", "--workspace", "--no-fail-fast"])
    })?;
    ground.say_what_lacks();
    Ok(())
}

/// What takes longer than a change may wait: every licence, and the tests again, optimised.
pub fn nightly() -> Step {
    let mut ground = Ground::prepare_all()?;
    licences()?;
    step("all tests, optimised", || {
        ground.test(&["test", "--workspace", "--release", "--no-fail-fast"])
    })?;
    if suites::may_mount() {
        suites::suites(&[suites::ALL])?;
    } else {
        note("SKIPPED: foreign suites: they need root and /dev/fuse");
    }
    ground.say_what_lacks();
    Ok(())
}

fn lints() -> Step {
    step("format", || run(&mut cargo(&["fmt", "--all", "--check"])))?;
    step("lints", || {
        run(&mut cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ]))
    })
}

/// Licences, bans and sources of every dependency (advisories would need a network).
pub fn licences() -> Step {
    if !is_there("cargo-deny") {
        step("cargo-deny is built (minutes, once)", || {
            run(&mut cargo(&["install", "--quiet", "--locked", "cargo-deny"]))
        })?;
    }
    step("licences, bans, sources", || {
        run(Command::new("cargo-deny")
            .current_dir(workspace())
            .args(["check", "licenses", "bans", "sources"]))
    })
}

/// Building cargo-deny takes longer than all tests together: only nightly does it.
fn licences_if_cheap() -> Step {
    if is_there("cargo-deny") {
        return licences();
    }
    step("licences, bans, sources", || {
        note("skipped: cargo-deny is not installed (cargo xtask nightly, or cargo xtask licences)");
        Ok(())
    })
}
