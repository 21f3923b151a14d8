//! `thinroot import`: a base that an ordinary user can read whole shows what the archive holds,
//! whoever wrote it and in whatever form; and nothing of it leaves its place. Law U55.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tests::disk::{keeps_room, kind};
use tests::laws::{all, lay_out};
use tests::mount::{Site, may_mount, thinroot};
use tests::tree::{Tree, compare, differences, manifest};

fn tar(from: &Path, to: &Path, options: &[&str]) {
    let mut tar = Command::new("tar");
    tar.arg("--create").arg("--file").arg(to).arg("--numeric-owner").args(options);
    let output = tar.arg("--directory").arg(from).arg(".").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn import(archive: &Path, out: &Path) -> Output {
    Command::new(thinroot()).arg("import").arg(archive).arg("--out").arg(out).output().unwrap()
}

fn imported(archive: &Path, out: &Path) {
    let output = import(archive, out);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What a union over an imported base shows.
fn shown(site: &Site, base: &Path) -> Tree {
    let mut command = Command::new(thinroot());
    command.arg("mount").arg("--lower").arg(base).arg("--upper").arg(site.upper());
    command.arg("--work").arg(site.work()).arg("--index").arg(site.path().join("imported.index"));
    let mount = site.mount_by(command);
    let tree = tests::tree::read_short(mount.root());
    mount.unmount();
    tree
}

/// No archive has sockets, and a directory's size is its file system's.
fn as_archived(mut tree: Tree) -> Tree {
    const KIND: u32 = 0o170_000;
    tree.retain(|_, object| object.mode & KIND != 0o140_000);
    for object in tree.values_mut().filter(|object| object.mode & KIND == 0o040_000) {
        object.size = 0;
    }
    tree
}

fn assert_same(what: &str, expected: &Tree, found: &Tree) {
    let lines = compare(expected, found);
    assert!(
        lines.is_empty(),
        "{what}: {} differences: {:#?}",
        lines.len(),
        &lines[..lines.len().min(12)]
    );
}

#[test]
fn imported_base_shows_all_that_the_archive_holds() {
    if !may_mount("imported_base_shows_all_that_the_archive_holds") {
        return;
    }
    let site = Site::new();
    lay_out(&site.lower(), &all()[..20]).unwrap();
    let expected = as_archived(tests::tree::read_short(&site.lower()));
    // What an archive of a tree on xfs has beside ACLs is none of the tree's.
    mark_as_xfs_does(&site.lower());
    let archive = site.path().join("base.tar");
    let full = ["--format=pax", "--xattrs", "--xattrs-include=*", "--acls", "--sparse"];
    tar(&site.lower(), &archive, &full);
    let base = site.path().join("base");
    imported(&archive, &base);
    assert_same("pax", &expected, &as_archived(shown(&site, &base)));
}

/// Where the disk is xfs it has done so itself, and takes nothing else for an ACL.
fn mark_as_xfs_does(root: &Path) {
    const NAME: &str = "trusted.SGI_ACL_FILE";
    if kind().as_deref() != Some("xfs") {
        let set = rustix::fs::setxattr(root, NAME, b"an ACL", rustix::fs::XattrFlags::empty());
        set.unwrap();
    }
}

/// On disk there is nothing that another user, or a set-user-id program, could make use of.
#[test]
fn imported_base_is_plain_files_of_the_user_alone() {
    if !may_mount("imported_base_is_plain_files_of_the_user_alone") {
        return;
    }
    let site = Site::new();
    lay_out(&site.lower(), &all()[..3]).unwrap();
    let archive = site.path().join("base.tar");
    tar(&site.lower(), &archive, &["--format=pax", "--xattrs", "--xattrs-include=*"]);
    let base = site.path().join("base");
    imported(&archive, &base);
    let mut waiting = vec![base];
    while let Some(path) = waiting.pop() {
        let found = fs::symlink_metadata(&path).unwrap();
        let kind = found.mode() & 0o170_000;
        match found.mode() & 0o170_000 {
            0o040_000 => {
                assert_eq!(found.mode() & 0o7777, 0o700, "{}", path.display());
                waiting.extend(fs::read_dir(&path).unwrap().map(|row| row.unwrap().path()));
            }
            0o100_000 => assert_eq!(found.mode() & 0o7777, 0o600, "{}", path.display()),
            _ => assert_eq!(kind, 0o120_000, "{}", path.display()),
        }
        assert_eq!((found.uid(), found.gid()), (0, 0), "{}", path.display());
    }
}

#[test]
fn archive_of_any_form_is_read() {
    if !may_mount("archive_of_any_form_is_read") {
        return;
    }
    let site = Site::new();
    let lower = site.lower();
    let long = "l".repeat(120);
    fs::create_dir_all(lower.join(&long).join(&long)).unwrap();
    fs::write(lower.join(&long).join(&long).join(&long), "deep").unwrap();
    symlink("t".repeat(300), lower.join("link")).unwrap();
    fs::hard_link(lower.join(&long).join(&long).join(&long), lower.join("hard")).unwrap();
    let sparse = File::create(lower.join("sparse")).unwrap();
    // The length first: xfs takes room ahead of what makes a file longer, and tells it as data when it was read.
    sparse.set_len(50 << 20).unwrap();
    for at in 0..40_u64 {
        sparse.write_at(b"data", at << 20).unwrap();
    }
    fs::write(lower.join("empty"), "").unwrap();
    fs::write(lower.join("block"), [b'x'; 512]).unwrap();
    fs::set_permissions(lower.join("block"), fs::Permissions::from_mode(0o4750)).unwrap();
    // Whole seconds: the older forms have no others.
    let touched = Command::new("find")
        .arg(&lower)
        .args(["-exec", "touch", "-h", "-d", "@1000000000"])
        .arg("{}")
        .arg("+")
        .status();
    assert!(touched.unwrap().success());
    let expected = as_archived(tests::tree::read_short(&lower));
    let rows: [&[&str]; 7] = [
        &["--format=gnu"],
        &["--format=gnu", "--sparse"],
        &["--format=oldgnu", "--sparse"],
        &["--format=pax"],
        &["--format=pax", "--sparse", "--sparse-version=0.0"],
        &["--format=pax", "--sparse", "--sparse-version=0.1"],
        &["--format=pax", "--sparse", "--sparse-version=1.0"],
    ];
    for (number, options) in rows.into_iter().enumerate() {
        let archive = site.path().join("form.tar");
        tar(&lower, &archive, options);
        let base = site.path().join(format!("base{number}"));
        imported(&archive, &base);
        let blocks = fs::metadata(base.join("sparse")).unwrap().blocks();
        let is_sparse = options.contains(&"--sparse");
        // Pages of 2 MiB leave no hole.
        if keeps_room() {
            assert_eq!(blocks < 2000, is_sparse, "{options:?}: {blocks} blocks");
        }
        let fresh = Site::new();
        assert_same(&format!("{options:?}"), &expected, &as_archived(shown(&fresh, &base)));
    }
}

/// One header of an archive, and what is behind it.
fn entry(path: &[u8], kind: u8, link: &[u8], data: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    header[..path.len()].copy_from_slice(path);
    header[100..108].copy_from_slice(b"0000644\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[156] = kind;
    header[157..157 + link.len()].copy_from_slice(link);
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut whole = [&header[..], data].concat();
    whole.resize(whole.len().next_multiple_of(512), 0);
    whole
}

/// What is wrong, the archive, and what is said of it.
type BadRow = (&'static str, Vec<u8>, &'static str);

/// Archives that would put something outside.
fn leading_out(outside: &[u8]) -> Vec<BadRow> {
    let file = |path: &[u8]| entry(path, b'0', b"", b"x");
    let link = |to: &[u8]| entry(b"l", b'2', to, b"");
    let hard = |to: &[u8]| entry(b"h", b'1', to, b"");
    let pax = |text: &str| entry(b"x", b'x', b"", text.as_bytes());
    // "2000014 path=" and the newline are 14 bytes.
    let endless = pax(&format!("2000014 path={}\n", "p/".repeat(1_000_000)));
    let long = pax(&format!("266 path={}\n", "p".repeat(256)));
    vec![
        ("a step up", file(b"../outside"), "../outside"),
        ("a step up inside", file(b"a/../../outside"), "no path below a root"),
        ("below a link", [link(b".."), file(b"l/outside")].concat(), "l/outside: something above"),
        ("below an absolute link", [link(b"/"), file(b"l/etc/x")].concat(), "something above it"),
        ("below a file", [file(b"f"), file(b"f/x")].concat(), "f/x: something above it"),
        ("a hard link up", hard(b"../outside"), "../outside"),
        ("a hard link out", hard(outside), "a hard link to"),
        ("a hard link by a link", [link(b".."), hard(b"l/outside")].concat(), "a hard link to"),
        (
            "a hard link to a directory",
            [entry(b"d/", b'5', b"", b""), hard(b"d")].concat(),
            "a hard link to",
        ),
        ("a name that is too long", [long, file(b"n")].concat(), "no path below a root"),
        ("a path without end", [endless, file(b"n")].concat(), "below 4096 directories and more"),
        ("a link to nothing at all", link(b""), "l: "),
    ]
}

/// Archives that are none, or are broken.
fn broken() -> Vec<BadRow> {
    let empty = entry(b"f", b'0', b"", b"");
    vec![
        ("cut off", entry(b"f", b'0', b"", &[b'x'; 5000])[..3000].to_vec(), "reading the archive"),
        (
            "broken behind the first",
            [empty.clone(), vec![7; 512]].concat(),
            "damaged behind its header number 1",
        ),
        ("broken records", [entry(b"x", b'x', b"", b"9 x"), empty].concat(), "broken pax records"),
        ("compressed", b"\x1f\x8b\x08 and so on".to_vec(), "gzip -dc"),
        ("no archive", b"hello".to_vec(), "no tar archive"),
    ]
}

/// Nothing is written outside, nothing is left behind, and the entry is named.
#[test]
fn archive_that_would_lead_out_or_is_broken_makes_nothing() {
    let site = Site::new();
    let outside = site.path().join("outside");
    fs::write(&outside, "untouched").unwrap();
    let rows = [leading_out(outside.as_os_str().as_bytes()), broken()].concat();
    for (row, bytes, told) in rows {
        let out = site.path().join("base");
        let mut child = Command::new(thinroot());
        child.arg("import").arg("-").arg("--out").arg(&out);
        child.stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = child.spawn().unwrap();
        // It may end before it has read everything.
        child.stdin.take().unwrap().write_all(&bytes).ok();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{row}: {said}");
        assert!(said.contains(told) && said.lines().count() == 1, "{row}: {said}");
        assert_eq!(fs::read_to_string(site.path().join("outside")).unwrap(), "untouched", "{row}");
        let mut names: Vec<_> =
            fs::read_dir(site.path()).unwrap().map(|row| row.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["lower", "outside", "own", "root"], "{row}");
    }
}

#[test]
fn what_is_in_the_way_of_an_import_stays() {
    let site = Site::new();
    let archive = site.path().join("a.tar");
    fs::write(&archive, entry(b"f", b'0', b"", b"data")).unwrap();
    let before = manifest(&site.lower());
    for out in [site.lower(), archive.clone()] {
        let output = import(&archive, &out);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains("something already"), "{said}");
    }
    assert_eq!(differences(&before, &manifest(&site.lower())), Vec::<String>::new());
    // An absolute path is one below the root, as for any tar; the last of two entries counts.
    let bytes = [entry(b"/f", b'0', b"", b"old"), entry(b"./f", b'0', b"", b"new")].concat();
    fs::write(&archive, bytes).unwrap();
    imported(&archive, &site.path().join("base"));
    assert_eq!(fs::read_to_string(site.path().join("base/f")).unwrap(), "new");
}
