//! The laws with the upper on every file system we know: `cargo xtask filesystems [KIND…]`.

use std::path::Path;

use crate::build::cargo;
use crate::disk::{Disk, EXT4, Kind};
use crate::setup;
use crate::steps::{Step, StepError, check, run_tests, step};
use crate::suites;

const KINDS: &[Kind] = &[
    EXT4,
    Kind {
        name: "xfs",
        mkfs: &["mkfs.xfs", "-q", "-f"],
        package: "xfsprogs",
        mount: &["-o", "loop"],
    },
    Kind {
        name: "btrfs",
        mkfs: &["mkfs.btrfs", "-q", "-f"],
        package: "btrfs-progs",
        mount: &["-o", "loop"],
    },
    Kind {
        name: "tmpfs",
        mkfs: &[],
        package: "mount",
        mount: &["-t", "tmpfs", "-o", "size=4g,mode=755"],
    },
    // A write of 4 KiB allocates 2 MiB there, and SEEK_DATA says so.
    Kind {
        name: "tmpfs-huge",
        mkfs: &[],
        package: "mount",
        mount: &["-t", "tmpfs", "-o", "size=4g,mode=755,huge=always"],
    },
];

/// The package and the target of each test that depends on what is below an upper.
const TESTS: &[(&str, &str)] = &[
    ("thinroot", "--lib"),
    ("thinroot", "faults"),
    ("tests", "laws"),
    ("tests", "laws_user"),
    ("tests", "laws_daemon"),
    ("tests", "check"),
    ("tests", "import"),
    ("tests", "export"),
    ("tests", "oracle_private_copy"),
    ("tests", "oracle_overlayfs"),
    ("tests", "power_loss"),
];

/// Runs every test that depends on what is below an upper, on each of the named kinds, or on all.
pub fn filesystems(names: &[&str]) -> Step {
    if let Some(wrong) = names.iter().find(|name| KINDS.iter().all(|kind| kind.name != **name)) {
        let known: Vec<_> = KINDS.iter().map(|kind| kind.name).collect();
        let known = known.join(", ");
        return Err(StepError::Wrong(format!("file system {wrong}: expected one of {known}")));
    }
    if !suites::may_mount() {
        return Err(StepError::Wrong(
            "file systems are mounted: expected root and /dev/fuse; become root, or load fuse"
                .into(),
        ));
    }
    let chosen = KINDS.iter().filter(|kind| names.is_empty() || names.contains(&kind.name));
    let mut wrong = Vec::new();
    for kind in chosen {
        // The next kind has something to say too.
        if let Err(cause) = step(kind.name, || one(kind)) {
            wrong.push(format!("{}: {cause}", kind.name));
        }
    }
    check(wrong.is_empty(), wrong.join("\n"))
}

fn one(kind: &Kind) -> Step {
    setup::install_packages(&[(kind.mkfs.first().unwrap_or(&"mount"), kind.package)])?;
    // Below a directory that every user may pass.
    let name = format!("thinroot-{}-{}", kind.name, std::process::id());
    let disk = Disk::make(&Path::new("/var/tmp").join(name), kind)?;
    let mut skips = Vec::new();
    let mut wrong = Vec::new();
    for (package, target) in TESTS {
        let mut test = cargo(&["test", "--quiet", "--package", package]);
        match *target {
            "--lib" => test.arg("--lib"),
            target => test.args(["--test", target]),
        };
        // Where tests lay out their layers, and what those are on that make disks of their own.
        test.env("TMPDIR", disk.path()).env("THINROOT_TEST_DIR", disk.path());
        test.env("THINROOT_TEST_DISK", kind.name);
        match run_tests(&mut test) {
            Ok(said) => skips.extend(said),
            Err(cause) => wrong.push(format!("{target}: {cause}")),
        }
    }
    skips.iter().for_each(|line| crate::steps::note(line));
    check(wrong.is_empty(), wrong.join("\n"))
}
