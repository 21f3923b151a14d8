//! unionmount-testsuite: what the kernel's overlayfs is tested with, its layers turning.

use std::fs;
use std::path::{Path, PathBuf};

use super::helpers::Helpers;
use super::verdict::{End, Results};
use super::{Bench, bounded, install};
use crate::setup;
use crate::steps::{Step, check, file_error, note, output};

const SOURCE: install::Source = install::Source {
    url: "https://github.com/amir73il/unionmount-testsuite.git",
    commit: "f48a57d2a7db5f86ff3dbc4444c3c3041e182d7d",
};

/// The suite's own list: not `rename-exdev`, which is for unions that refuse to rename directories,
/// nor `dir-weird-open-dir`, which asks what the kernel refuses itself since Linux 6.3.
const SCRIPTS: usize = 58;

/// How the union is made, as the suite's own options.
const VARIANTS: &[(&str, &[&str])] = &[
    ("two-layers", &["--ov", "--fuse=thinroot"]),
    // After a change the upper becomes a lower, and is served below a new one.
    ("turning-layers", &["--ov=10", "--fuse=thinroot"]),
    ("turning-file-systems", &["--ov=4", "--fuse=thinroot", "--maxfs=2"]),
    ("terminal-slash", &["--ov", "--fuse=thinroot", "--ts=1"]),
];

pub fn install(bench: &Bench) -> Step {
    setup::install_packages(&[("python3", "python3")])?;
    SOURCE.fetch(&directory(bench))
}

fn directory(bench: &Bench) -> PathBuf {
    bench.directory.join("unionmount-testsuite")
}

pub fn run(bench: &Bench) -> Step<Results> {
    let place = bench.place("unionmount")?;
    let _helpers = Helpers::install(&bench.thinroot)?;
    let mut results = Results::default();
    for (variant, words) in VARIANTS {
        for script in scripts(bench)? {
            let end = one(bench, &place.plain(), words, &script)?;
            results.union.insert(format!("{variant}/{script}"), end);
        }
    }
    Ok(results)
}

fn scripts(bench: &Bench) -> Step<Vec<String>> {
    let tests = directory(bench).join("tests");
    let mut names = Vec::new();
    for row in fs::read_dir(&tests).map_err(file_error(&tests))? {
        let name = row.map_err(file_error(&tests))?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".py").map(str::to_owned));
    }
    names.retain(|name| !matches!(&**name, "rename-exdev" | "dir-weird-open-dir"));
    names.sort();
    check(names.len() == SCRIPTS, format!("{} scripts; expected {SCRIPTS}", names.len()))?;
    Ok(names)
}

/// In mounts of its own, where dropping caches drops nobody's: the suite does so at each remount,
/// for the whole machine, and what it asks is asked of a new mount anyway.
const SCRIPT: &str = "\
mount --bind /dev/null /proc/sys/vm/drop_caches || exit
script=$1; shift
python3 run \"$@\" $script; status=$?
python3 run --clean-up >/dev/null 2>&1
exit $status
";

/// The suite ends at the first failure: each script runs by itself.
fn one(bench: &Bench, base: &Path, words: &[&str], script: &str) -> Step<End> {
    let mut command = bounded(600, "unshare");
    command.args(["--mount", "sh", "-c", SCRIPT, "sh", script]).args(words);
    command.env("UNIONMOUNT_BASEDIR", base).env("UNIONMOUNT_MNTOPTIONS", "rw,trusted");
    let said = output(command.current_dir(directory(bench)))?;
    if said.status.success() {
        return Ok(End::Passed);
    }
    let text = String::from_utf8_lossy(&said.stdout);
    let last: Vec<_> = text.lines().rev().take(3).collect();
    note(&format!("{words:?} {script}: {last:?} {}", String::from_utf8_lossy(&said.stderr)));
    Ok(End::Failed)
}
