//! Foreign suites on a union that this host mounts, beside the same run on ext4: `cargo xtask suites [SUITE…]`.

mod fio;
mod fsx;
mod helpers;
mod install;
mod pjdfstest;
mod pjdfstest_c;
mod place;
mod shims;
mod unionmount;
mod verdict;
mod xfstests;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::build::{self, workspace};
use crate::setup;
use crate::steps::{Step, StepError, note, step};
use place::Place;
use verdict::{Exclusions, Results};

/// A foreign suite.
struct Suite {
    /// Its name on the command line, and its exclusion list's.
    name: &'static str,
    /// Gets it where it is missing.
    install: fn(&Bench) -> Step,
    /// Runs it on a place.
    run: fn(&Bench) -> Step<Results>,
    /// It takes hours: run by night, or by name.
    is_long: bool,
}

const SUITES: &[Suite] = &[
    Suite { name: "pjdfstest", install: pjdfstest::install, run: pjdfstest::run, is_long: false },
    Suite { name: "fsx", install: fsx::install, run: fsx::run, is_long: false },
    Suite { name: "fio", install: fio::install, run: fio::run, is_long: false },
    Suite {
        name: "unionmount",
        install: unionmount::install,
        run: unionmount::run,
        is_long: false,
    },
    Suite {
        name: "pjdfstest-c",
        install: pjdfstest_c::install,
        run: pjdfstest_c::run,
        is_long: false,
    },
    Suite { name: "xfstests", install: xfstests::install, run: xfstests::run, is_long: true },
];

/// The word for every suite, the long ones too.
pub const ALL: &str = "all";

/// What every suite works with.
struct Bench {
    /// The optimised program.
    thinroot: PathBuf,
    /// `.thinroot/suites`, where suites are kept.
    directory: PathBuf,
}

impl Bench {
    /// An ext4 image for a suite, with layers for a union.
    fn place(&self, suite: &str) -> Step<Place> {
        // Below a directory that every user may pass: some tests become others.
        let name = format!("thinroot-suite-{suite}-{}", std::process::id());
        Place::make(&Path::new("/var/tmp").join(name), &self.thinroot)
    }
}

/// Runs the named suites, those that take minutes, or [`ALL`]; fails if a test outside of a suite's list fails on the union and
/// not on ext4, or one on it passes.
pub fn suites(names: &[&str]) -> Step {
    let known = || SUITES.iter().map(|suite| suite.name).collect::<Vec<_>>().join(", ");
    let is_known = |name: &str| name == ALL || SUITES.iter().any(|suite| suite.name == name);
    if let Some(wrong) = names.iter().find(|name| !is_known(name)) {
        return Err(StepError::Wrong(format!(
            "suite {wrong}: expected {ALL} or one of {}",
            known()
        )));
    }
    if !may_mount() {
        return Err(StepError::Wrong(
            "foreign suites mount: expected root and /dev/fuse; become root, or load fuse".into(),
        ));
    }
    let programs = step("thinroot is built", build::release)?;
    let bench =
        Bench { thinroot: programs.thinroot, directory: workspace().join(".thinroot/suites") };
    let chosen = SUITES.iter().filter(|suite| {
        names.contains(&ALL) || names.contains(&suite.name) || names.is_empty() && !suite.is_long
    });
    let mut wrong = Vec::new();
    for suite in chosen {
        // The next suite has something to say too.
        if let Err(cause) = step(suite.name, || one(suite, &bench)) {
            wrong.push(format!("{}: {cause}", suite.name));
        }
    }
    crate::steps::check(wrong.is_empty(), wrong.join("\n"))
}

/// Whether suites can be run here.
pub fn may_mount() -> bool {
    setup::is_root() && Path::new("/dev/fuse").exists()
}

fn one(suite: &Suite, bench: &Bench) -> Step {
    (suite.install)(bench)?;
    let start = Instant::now();
    let results = (suite.run)(bench)?;
    let list = workspace().join("tests/suites").join(format!("{}.txt", suite.name));
    let verdict = Exclusions::read(&list)?.judge(&results);
    note(&format!("{}: {verdict}; {} s", suite.name, start.elapsed().as_secs()));
    verdict.into_step()
}

/// A program that is stopped when it takes longer than a suite may.
fn bounded(seconds: u32, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=10", &seconds.to_string()]).arg(program);
    command
}
