//! The laws of docs/UNION.md: on a private copy, which keeps them all, and through the mount door,
//! before and after a remount.

#![allow(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::fs;
use std::path::Path;

use rustix::fs::FileType;
use tests::disk::kind;
use tests::laws::listed::{Judged, Listed};
use tests::laws::plot::{Done, Plot};
use tests::laws::{Law, all, ground, lay_out, report, try_all};
use tests::mount::{Mount, Site, may_mount};
use tests::skip::skip;
use tests::tree::{differences, manifest};

/// linux/magic.h.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Every law holds, but those that are listed for the file system below.
fn check(directory: &Path, laws: &[Law], kind: Option<&str>, refresh: &mut dyn FnMut()) {
    let listed = Listed::on(kind);
    let verdicts = try_all(directory, laws, refresh);
    let mut text = String::new();
    report(&verdicts, &mut text).unwrap();
    let others: Vec<_> = text.lines().filter(|line| !line.starts_with("pass")).collect();
    println!("{}", others.join("\n"));
    let Judged { held, wrong, .. } = listed.judge(&verdicts);
    assert!(held > 0 && wrong.is_empty(), "{}", wrong.join("\n"));
}

fn check_union(site: &Site, kind: Option<&str>) {
    lay_out(&site.lower(), &all()).unwrap();
    let before = manifest(&site.lower());
    let mut mount = Some(site.mount(&[]));
    check(&site.point(), &all(), kind, &mut || {
        if let Some(mounted) = mount.take() {
            mounted.unmount();
        }
        mount = Some(site.mount(&[]));
    });
    mount.into_iter().for_each(Mount::unmount);
    assert_eq!(differences(&before, &manifest(&site.lower())), Vec::<String>::new());
}

/// The laws are those of a private copy: a law that ext4 breaks is none.
#[test]
fn private_copy_keeps_every_law() {
    if !may_mount("private_copy_keeps_every_law") {
        return;
    }
    if let Some(kind) = kind() {
        return skip("private_copy_keeps_every_law", &format!("the laws are ext4's, not {kind}'s"));
    }
    let site = Site::new();
    lay_out(&site.lower(), &all()).unwrap();
    check(&site.lower(), &all(), None, &mut || ());
}

/// And the lower is byte for byte and inode for inode what it was: law U45.
#[test]
fn mounted_union_keeps_every_law_and_leaves_the_lower_alone() {
    if !may_mount("mounted_union_keeps_every_law_and_leaves_the_lower_alone") {
        return;
    }
    check_union(&Site::new(), kind().as_deref());
}

/// The other file systems are `cargo xtask filesystems`'.
#[test]
fn union_in_memory_keeps_every_law() {
    const TEST: &str = "union_in_memory_keeps_every_law";
    if !may_mount(TEST) || kind().is_some() {
        return;
    }
    let shared = Path::new("/dev/shm");
    if rustix::fs::statfs(shared).is_ok_and(|found| found.f_type == TMPFS_MAGIC) {
        let site = Site::inside(shared);
        match Plot::new(site.lower()).set_xattr("", "user.probe", b"") {
            Ok(()) => check_union(&site, Some("tmpfs")),
            Err(problem) => skip(TEST, &format!("tmpfs has user.* from Linux 6.6 on: {problem}")),
        }
    } else {
        skip(TEST, "/dev/shm is no tmpfs");
    }
}

/// Of each directory one lower has some names, the other the others, and below the first's there is
/// always something else: laws U5 to U24 with three layers.
#[test]
fn union_of_several_lowers_keeps_every_law() {
    let test = "union_of_several_lowers_keeps_every_law";
    if !may_mount(test) {
        return;
    }
    let site = Site::new();
    let below = site.path().join("below");
    fs::create_dir(&below).unwrap();
    let is_of_lower = |law: &Law| (4..=24).contains(&law.number);
    let laws: Vec<_> = all().into_iter().filter(is_of_lower).collect();
    for (lower, is_top) in [(site.lower(), true), (below.clone(), false)] {
        lay_out(&lower, &laws).unwrap();
        for law in &laws {
            let plot = Plot::new(lower.join(law.name));
            share(&plot, Path::new(""), is_top).unwrap();
            ground::age(&plot, Path::new("")).unwrap();
        }
    }
    let site = site.below(below);
    let mut mount = Some(site.mount(&[]));
    check(&site.point(), &laws, kind().as_deref(), &mut || {
        mount.take().into_iter().for_each(Mount::unmount);
        mount = Some(site.mount(&[]));
    });
    mount.into_iter().for_each(Mount::unmount);
}

/// Takes every second name away from the top, and puts something else in the way of the others below.
fn share(plot: &Plot, directory: &Path, is_top: bool) -> Done {
    let mut entries = plot.entries(directory)?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    for (number, entry) in entries.into_iter().enumerate() {
        let path = directory.join(&entry.name);
        let is_one_of_many = plot.links(&path)? > 1;
        match entry.kind {
            FileType::Directory => share(plot, &path, is_top)?,
            // Names of one object are in one lower.
            _ if is_one_of_many => {}
            _ if is_top && number % 2 == 0 => plot.unlink(&path)?,
            _ if !is_top && number % 2 == 1 => {
                plot.unlink(&path)?;
                plot.symlink("hidden", &path)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Law U39: what a guest that holds writes back cannot be told, it is told where it does not.
#[test]
fn holes_are_told_where_the_guest_holds_nothing_back() {
    if !may_mount("holes_are_told_where_the_guest_holds_nothing_back") {
        return;
    }
    let laws: Vec<_> = all().into_iter().filter(|law| law.number == 39).collect();
    let site = Site::new();
    lay_out(&site.lower(), &laws).unwrap();
    let mount = site.mount(&["--writeback", "off"]);
    let verdicts = try_all(&site.point(), &laws, &mut || ());
    let mut text = String::new();
    let all_hold = report(&verdicts, &mut text).unwrap();
    // On others they are skipped, or listed.
    if kind().is_none() {
        assert!(all_hold, "{text}");
        for law in ["seek_finds_data", "extents_of_a_copied", "punched_ranges"] {
            assert!(text.contains(&format!("pass U39 {law}")), "{law} was tried: {text}");
        }
    }
    mount.unmount();
}

#[test]
fn every_law_has_a_name_of_its_own() {
    let mut names: Vec<_> = all().iter().map(|law| law.name).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}

/// docs/UNION.md names, for each law, tests that exist; and each law's test is named there.
#[test]
fn union_document_and_tests_name_each_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let document = fs::read_to_string(root.join("docs/UNION.md")).unwrap();
    let mut sources = String::new();
    for directory in ["vmm-backend/src", "tests/src", "tests/tests", "guest-init/src"] {
        read_sources(&root.join(directory), &mut sources);
    }
    let laws = document.split("\n**U").skip(1).map(|law| {
        let number =
            law.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse::<u32>().unwrap();
        (number, law.split("\n\n").next().unwrap().to_owned())
    });
    let laws: Vec<_> = laws.collect();
    for (position, (number, text)) in (1..).zip(&laws) {
        assert_eq!(position, *number, "laws are numbered without gaps");
        let names: Vec<_> =
            text.split('`').skip(1).step_by(2).filter(|name| is_test(name)).collect();
        assert!(!names.is_empty(), "U{number} names no test");
        for name in names {
            assert!(
                sources.contains(&format!("fn {name}(")),
                "U{number} names {name}: no such test"
            );
        }
    }
    for law in all() {
        let text = laws.iter().find(|(number, _)| *number == law.number).map(|(_, text)| text);
        let is_named = text.is_some_and(|text| text.contains(&format!("`{}`", law.name)));
        assert!(is_named, "docs/UNION.md does not name {law:?} at its law");
    }
}

/// A test is a sentence; a mark, an option or a system call is not.
fn is_test(name: &str) -> bool {
    name.matches('_').count() >= 2 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn read_sources(directory: &Path, into: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}
