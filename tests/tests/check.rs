//! `thinroot check`: planted damage is found, named and, where nothing has to be invented, mended;
//! and an upper that a guest made is clean. Law U53.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, mknodat};
use tests::laws::{all, lay_out, try_all};
use tests::mount::{Mount, Site, may_mount};
use tests::skip::skip;

/// What a check said, and whether it was content.
struct Told {
    is_clean: bool,
    lines: Vec<String>,
}

fn check(site: &Site, options: &[&str]) -> Told {
    let output = site.command("check").args(options).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!errors.contains("panicked"), "{errors}");
    let mut lines: Vec<_> =
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    if lines.is_empty() && !output.status.success() {
        lines.push(errors);
    }
    Told { is_clean: output.status.success(), lines }
}

/// The same again, without the time it takes.
fn copy_of(first: &Site) -> Site {
    let site = Site::new();
    for name in ["lower", "own"] {
        let from = first.path().join(name).join(".");
        let mut copy = Command::new("cp");
        assert!(copy.arg("-a").args([&from, &site.path().join(name)]).status().unwrap().success());
    }
    site
}

/// An upper with an object of every form that one can have.
fn lived_in() -> Site {
    let site = Site::new();
    let lower = |path: &str| site.lower().join(path);
    for path in ["etc", "srv/a/sub", "srv/b", "gone"] {
        fs::create_dir_all(lower(path)).unwrap();
    }
    for path in ["etc/passwd", "etc/hosts", "etc/motd", "srv/a/sub/f", "srv/b/f", "gone/f", "hard"]
    {
        fs::write(lower(path), path).unwrap();
    }
    for (path, byte) in [("big", b'a'), ("big2", b'b'), ("big3", b'c')] {
        fs::write(lower(path), vec![byte; 512 << 10]).unwrap();
    }
    for path in ["hard2", "etc/hard3"] {
        fs::hard_link(lower("hard"), lower(path)).unwrap();
    }
    let mount = site.mount(&[]);
    let root = |path: &str| mount.root().join(path);
    fs::write(root("etc/passwd"), "changed").unwrap();
    fs::write(root("etc/motd"), "changed").unwrap();
    fs::remove_file(root("etc/hosts")).unwrap();
    fs::remove_dir_all(root("gone")).unwrap();
    fs::rename(root("srv/a"), root("srv/moved")).unwrap();
    fs::create_dir(root("new")).unwrap();
    fs::write(root("new/file"), "new").unwrap();
    for path in ["big", "big3"] {
        File::options().write(true).open(root(path)).unwrap().write_at(b"x", 5000).unwrap();
    }
    fs::set_permissions(root("big2"), Permissions::from_mode(0o600)).unwrap();
    fs::write(root("hard"), "linked").unwrap();
    fs::remove_file(root("hard2")).unwrap();
    mount.unmount();
    site
}

fn mark(path: &Path, name: &str, value: &[u8]) {
    let name = format!("trusted.overlay.{name}");
    lsetxattr(path, name.as_str(), value, XattrFlags::empty()).unwrap();
}

fn value(path: &Path, name: &str) -> Vec<u8> {
    let mut value = vec![0; 256];
    let bytes = rustix::fs::lgetxattr(path, format!("trusted.overlay.{name}"), &mut value);
    value.truncate(bytes.unwrap());
    value
}

fn device(path: &Path) {
    let mode = Mode::from_raw_mode(0o600);
    mknodat(CWD, path, FileType::CharacterDevice, mode, rustix::fs::makedev(0, 0)).unwrap();
}

fn only_entry(directory: &Path) -> PathBuf {
    fs::read_dir(directory).unwrap().next().unwrap().unwrap().path()
}

/// What becomes of planted damage.
#[derive(Clone, Copy, PartialEq, Debug)]
enum End {
    /// Nothing can be done without inventing something.
    Stays,
    /// A repair makes it good.
    Mended,
    /// It is no harm, and a repair takes it away.
    Swept,
}

use End::{Mended, Stays, Swept};

type Row = (&'static str, &'static str, &'static str, End, fn(&Site));

const ROWS: &[Row] = &[
    ("unknown mark", "/etc/passwd", "of.the.future", Stays, |site| {
        mark(&site.upper().join("etc/passwd"), "of.the.future", b"y");
    }),
    ("unknown mark on a directory", "/new", "of.the.future", Stays, |site| {
        mark(&site.upper().join("new"), "of.the.future", b"y");
    }),
    ("whiteouts that are no devices", "/new", "opaque has a value", Stays, |site| {
        mark(&site.upper().join("new"), "opaque", b"x");
    }),
    ("redirect to nothing", "/new", "\"/no/such\", which is no directory", Stays, |site| {
        mark(&site.upper().join("new"), "redirect", b"/no/such");
    }),
    ("redirect to a file", "/new", "no directory of this base", Stays, |site| {
        mark(&site.upper().join("new"), "redirect", b"/etc/hosts");
    }),
    (
        "redirect to nothing, origin is there",
        "/srv/moved",
        "to its origin, /srv/a",
        Mended,
        |site| {
            mark(&site.upper().join("srv/moved"), "redirect", b"/srv/nowhere");
        },
    ),
    ("climbing redirect", "/new", "no path below the base's root", Stays, |site| {
        mark(&site.upper().join("new"), "redirect", b"/../../etc");
    }),
    ("climbing sibling", "/new", "no path below the base's root", Stays, |site| {
        mark(&site.upper().join("new"), "redirect", b"../etc");
    }),
    ("redirect on a symlink", "/link", "means nothing on a symbolic link", Mended, |site| {
        std::os::unix::fs::symlink("x", site.upper().join("link")).unwrap();
        mark(&site.upper().join("link"), "redirect", b"/etc");
    }),
    ("opaque on a file", "/new/file", "opaque, which means nothing on a file", Mended, |site| {
        mark(&site.upper().join("new/file"), "opaque", b"y");
    }),
    ("origin of nothing", "/new/file", "object 4000000 of the base", Mended, |site| {
        let mut origin = value(&site.upper(), "thinroot.origin");
        origin[16..].copy_from_slice(&4_000_000_u32.to_le_bytes());
        mark(&site.upper().join("new/file"), "thinroot.origin", &origin);
        mark(&site.upper().join("new"), "impure", b"y");
    }),
    ("origin of another kind", "/new", "none of its kind", Mended, |site| {
        let origin = value(&site.upper().join("etc/passwd"), "thinroot.origin");
        mark(&site.upper().join("new"), "thinroot.origin", &origin);
    }),
    ("origin in another base", "/etc/passwd", "in another base", Mended, |site| {
        mark(&site.upper().join("etc/passwd"), "thinroot.origin", &[9; 20]);
    }),
    ("one origin twice", "/etc/", "the same origin as /etc/", Mended, |site| {
        let origin = value(&site.upper().join("etc/passwd"), "thinroot.origin");
        mark(&site.upper().join("etc/motd"), "thinroot.origin", &origin);
    }),
    ("origin cut off", "/etc/passwd", "thinroot.origin has a value", Mended, |site| {
        mark(&site.upper().join("etc/passwd"), "thinroot.origin", b"short");
    }),
    ("metacopy without data", "/new/file", "its data is nowhere", Stays, |site| {
        mark(&site.upper().join("new/file"), "metacopy", b"");
    }),
    ("metacopy of another base", "/big2", "in another base", Stays, |site| {
        mark(&site.upper().join("big2"), "thinroot.origin", &[9; 20]);
    }),
    ("lower of a metacopy gone", "/big2", "is a metacopy of /big2", Stays, |site| {
        assert!(check(site, &[]).is_clean, "sealed");
        fs::write(site.lower().join("big2"), "edited").unwrap();
    }),
    ("map gone", "/big", "its map, blocks/", Stays, |site| {
        for map in fs::read_dir(site.work().join("blocks")).unwrap() {
            fs::remove_file(map.unwrap().path()).unwrap();
        }
    }),
    ("map cut off", "/big", "is cut off", Stays, |site| {
        for map in fs::read_dir(site.work().join("blocks")).unwrap() {
            File::options().write(true).open(map.unwrap().path()).unwrap().set_len(1).unwrap();
        }
    }),
    ("map shared", "/big", "is that of /big", Stays, |site| {
        let blocks = value(&site.upper().join("big"), "thinroot.blocks");
        let mut other = value(&site.upper().join("big3"), "thinroot.blocks");
        other[9..17].copy_from_slice(&blocks[9..17]);
        mark(&site.upper().join("big3"), "thinroot.blocks", &other);
    }),
    ("blocks that mean nothing", "/big", "thinroot.blocks has a value", Stays, |site| {
        mark(&site.upper().join("big"), "thinroot.blocks", b"\x07odd");
    }),
    ("map of nothing", "work directory, blocks/00", "is the map of no file", Swept, |site| {
        fs::write(site.work().join("blocks/0000000000000001"), "").unwrap();
    }),
    ("marks of a settled file", "/new/file", "does not need", Swept, |site| {
        mark(&site.upper().join("new/file"), "redirect", b"/thinroot:unsettled");
    }),
    ("whiteout of nothing", "/new/none", "no lower has the name", Swept, |site| {
        device(&site.upper().join("new/none"));
    }),
    (
        "count of links",
        "work directory, index/",
        "counts 7 names in the union, and has 2",
        Mended,
        |site| {
            let entry = only_entry(&site.work().join("index"));
            let links = fs::metadata(&entry).unwrap().nlink();
            mark(&entry, "nlink", format!("U+{}", 7 - links).as_bytes());
        },
    ),
    ("count of links that is none", "work directory, index/", "counts", Mended, |site| {
        mark(&only_entry(&site.work().join("index")), "nlink", b"U+5");
    }),
    ("link of nothing", "work directory, index/junk", "of nothing in this base", Stays, |site| {
        fs::write(site.work().join("index/junk"), "").unwrap();
    }),
    ("directory not impure", "/etc", "is not marked", Mended, |site| {
        rustix::fs::lremovexattr(site.upper().join("etc"), "trusted.overlay.impure").unwrap();
    }),
    ("owner mark that is none", "/new/dev", "owner mark", Stays, |site| {
        let path = site.upper().join("new/dev");
        let mode = Mode::from_raw_mode(0o600);
        mknodat(CWD, &path, FileType::CharacterDevice, mode, rustix::fs::makedev(0, 1)).unwrap();
        mark(&path, "thinroot.stat", b"0:0:0644:dir");
    }),
    ("staging debris", "work directory, work/#1", "on its way into the upper", Swept, |site| {
        fs::create_dir_all(site.work().join("work/#1/below")).unwrap();
    }),
    ("orphan", "work directory, orphans/17", "the guest that held it is gone", Swept, |site| {
        fs::write(site.work().join("orphans/17"), "").unwrap();
    }),
    (
        "a stranger",
        "work directory, notes",
        "nothing that this version puts there",
        Stays,
        |site| {
            fs::write(site.work().join("notes"), "").unwrap();
        },
    ),
    ("feature", "work directory, work/incompat/volatile", "feature \"volatile\"", Stays, |site| {
        fs::create_dir_all(site.work().join("work/incompat/volatile/dirty")).unwrap();
    }),
];

#[test]
fn planted_damage_is_found_named_and_mended_where_nothing_is_invented() {
    if !may_mount("planted_damage_is_found_named_and_mended_where_nothing_is_invented") {
        return;
    }
    let first = lived_in();
    let clean = check(&first, &[]);
    assert!(clean.is_clean && clean.lines.is_empty(), "untouched: {:?}", clean.lines);
    let comes_up_by_block = fs::read_dir(first.work().join("blocks")).unwrap().next().is_some();
    for (row, path, says, end, plant) in ROWS {
        if path.starts_with("/big") && !comes_up_by_block {
            skip(row, "large files come up whole here, sharing blocks");
            continue;
        }
        let site = copy_of(&first);
        plant(&site);
        let told = check(&site, &[]);
        let is_told = |line: &String| line.contains(path) && line.contains(says);
        assert!(told.lines.iter().any(is_told), "{row}: {:?}", told.lines);
        assert_eq!(told.is_clean, *end == Swept, "{row}: {:?}", told.lines);
        let repaired = check(&site, &["--repair"]);
        let is_repaired = |line: &String| line.contains(path) && line.ends_with("; repaired");
        assert_eq!(
            repaired.lines.iter().any(is_repaired),
            *end != Stays,
            "{row}: {:?}",
            repaired.lines
        );
        let after = check(&site, &[]);
        assert_eq!(after.is_clean, *end != Stays, "{row}: {:?}", after.lines);
        assert_eq!(after.lines.is_empty(), *end != Stays, "{row}: {:?}", after.lines);
    }
}

/// What is mended shows what it showed before, but for what was wrong.
#[test]
fn repair_keeps_what_a_guest_saw() {
    if !may_mount("repair_keeps_what_a_guest_saw") {
        return;
    }
    let site = lived_in();
    mark(&site.upper().join("srv/moved"), "redirect", b"/srv/nowhere");
    device(&site.upper().join("new/none"));
    mark(&only_entry(&site.work().join("index")), "nlink", b"U+5");
    let time = fs::metadata(site.upper().join("new")).unwrap().mtime();
    assert!(check(&site, &["--repair"]).is_clean);
    assert_eq!(fs::metadata(site.upper().join("new")).unwrap().mtime(), time);
    let mount = site.mount(&[]);
    let read = |path: &str| fs::read_to_string(mount.root().join(path)).unwrap();
    assert_eq!(read("srv/moved/sub/f"), "srv/a/sub/f");
    assert_eq!((read("hard"), read("etc/hard3")), ("linked".into(), "linked".into()));
    assert_eq!(fs::metadata(mount.root().join("hard")).unwrap().nlink(), 2);
    assert_eq!(read("etc/passwd"), "changed");
    mount.unmount();
}

/// Every law has left its traces: none of them is damage, nor is anything left over.
#[test]
fn upper_that_a_guest_made_is_clean() {
    if !may_mount("upper_that_a_guest_made_is_clean") {
        return;
    }
    let site = Site::new();
    lay_out(&site.lower(), &all()).unwrap();
    let mut mount = Some(site.mount(&[]));
    let refresh = &mut || {
        mount.take().into_iter().for_each(Mount::unmount);
        mount = Some(site.mount(&[]));
    };
    try_all(&site.point(), &all(), refresh);
    mount.into_iter().for_each(Mount::unmount);
    let told = check(&site, &[]);
    assert!(told.is_clean && told.lines.is_empty(), "{:#?}", told.lines);
}

#[test]
fn upper_in_use_or_of_another_base_is_not_checked() {
    if !may_mount("upper_in_use_or_of_another_base_is_not_checked") {
        return;
    }
    let site = lived_in();
    let mount = site.mount(&[]);
    for options in [&[][..], &["--repair"]] {
        let told = check(&site, options);
        assert!(!told.is_clean && told.lines[0].contains("in use by process"), "{:?}", told.lines);
    }
    mount.unmount();
    mark(&site.upper(), "thinroot.origin", &[9; 20]);
    let told = check(&site, &["--repair"]);
    assert!(!told.is_clean && told.lines[0].contains("another base"), "{:?}", told.lines);
}

#[test]
fn listing_for_programs_has_one_object_a_line() {
    if !may_mount("listing_for_programs_has_one_object_a_line") {
        return;
    }
    let site = lived_in();
    mark(&site.upper().join("new"), "redirect", b"/no/such");
    let told = check(&site, &["--json"]);
    assert!(!told.is_clean);
    assert_eq!(told.lines.len(), 1, "{:?}", told.lines);
    let line = &told.lines[0];
    for part in [
        r#""worth":"damage""#,
        r#""place":"upper""#,
        r#""path":"new""#,
        r#""repaired":false"#,
        r#""remedy":"cannot be repaired"#,
    ] {
        assert!(line.starts_with('{') && line.contains(part), "{part} in {line}");
    }
}
