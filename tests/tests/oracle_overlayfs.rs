//! Law U52: the kernel's overlayfs reads what we wrote, and we read what it wrote.
//!
//! `THINROOT_ORACLE_SEEDS`, `THINROOT_ORACLE_FIRST` and `THINROOT_ORACLE_OPERATIONS` as in
//! oracle_private_copy.rs.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::path::Path;

use rustix::fs::FileType;
use rustix::io::Errno;
use tests::laws::plot::Plot;
use tests::mount::{Site, may_mount};
use tests::oracle::cast::Cast;
use tests::oracle::script::{Operation, Who};
use tests::oracle::{comparable, dice, remove, setting};
use tests::overlayfs::{Overlay, without_what_overlayfs_lacks};
use tests::tree;

/// Operations whose outcome overlayfs can hold: no character device 0:0 is made, and no overlay
/// attribute set.
fn plain(operation: &Operation) -> bool {
    let is_word = |word: &str| operation.words().iter().any(|other| other == word);
    match operation.verb() {
        "mknod" => !(is_word("char") && is_word("0")),
        "rename" => !is_word("whiteout"),
        "set-xattr" | "held-set-xattr" => {
            !operation.words().iter().any(|word| word.contains(".overlay."))
        }
        _ => operation.who() != Who::Stage,
    }
}

fn seeds() -> std::ops::Range<u64> {
    let first = setting("THINROOT_ORACLE_FIRST", 1);
    first..first + setting("THINROOT_ORACLE_SEEDS", 6)
}

fn prepared(seed: u64) -> (Site, Vec<Operation>) {
    let site = Site::new();
    run(&site.lower(), &dice::tree(seed));
    tests::laws::ground::age(&Plot::new(site.lower()), Path::new("")).unwrap();
    forget_overlay_marks(&site.lower());
    let count = usize::try_from(setting("THINROOT_ORACLE_OPERATIONS", 250)).unwrap();
    (site, dice::operations(seed, count))
}

/// In a lower they would mean something to the kernel, and mean nothing to us.
fn forget_overlay_marks(lower: &Path) {
    let plot = Plot::new(lower);
    for (path, object) in &tree::read(lower) {
        for key in object.xattrs.keys().filter(|key| key.contains(".overlay.")) {
            // Another of its names may have been here before.
            let removed = plot.remove_xattr(path, key);
            let is_gone = matches!(&removed, Err(failure) if failure.errno == Some(Errno::NODATA));
            assert!(removed.is_ok() || is_gone, "{removed:?}");
        }
        if FileType::from_raw_mode(object.mode) == FileType::CharacterDevice && object.rdev == 0 {
            plot.unlink(path).unwrap();
        }
    }
}

fn run(root: &Path, operations: &[Operation]) {
    let mut cast = Cast::on(root, Path::new(env!("CARGO_BIN_EXE_actor")));
    for operation in operations.iter().filter(|operation| plain(operation)) {
        cast.perform(operation);
    }
}

#[test]
fn kernel_reads_what_we_wrote() {
    if !may_mount("kernel_reads_what_we_wrote") {
        return;
    }
    let mut failures = Vec::new();
    for seed in seeds() {
        let (site, operations) = prepared(seed);
        let mount = site.mount(&[]);
        run(&site.point(), &operations);
        let mut ours = comparable(&site.point());
        mount.unmount();
        // Until then the kernel answers an error for a file copied up by block.
        assert!(site.command("settle").args(["--log-level", "warn"]).status().unwrap().success());
        let Some(overlay) = Overlay::of(&site, "on") else { return };
        let mut theirs = comparable(overlay.root());
        without_what_overlayfs_lacks(&mut ours, &mut theirs);
        let found = tree::compare(&ours, &theirs);
        if !found.is_empty() {
            failures.push(format!("seed {seed}: {}", found.join("; ")));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn we_read_what_the_kernel_wrote() {
    if !may_mount("we_read_what_the_kernel_wrote") {
        return;
    }
    let mut failures = Vec::new();
    for seed in seeds() {
        let (site, operations) = prepared(seed);
        // We refuse metadata-only copies: there the data is elsewhere.
        let Some(overlay) = Overlay::of(&site, "off") else { return };
        run(overlay.root(), &operations);
        let mut theirs = comparable(overlay.root());
        drop(overlay);
        let mount = site.mount(&[]);
        let mut ours = comparable(&site.point());
        mount.unmount();
        without_what_overlayfs_lacks(&mut ours, &mut theirs);
        let found = tree::compare(&theirs, &ours);
        if !found.is_empty() {
            failures.push(format!("seed {seed}: {}", found.join("; ")));
        }
        remove(&site.upper());
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
