//! The laws with an ordinary user's daemon, without any privilege: over an imported base, with
//! owners and types in marks, before and after a remount. What such a user cannot have is listed in
//! docs/UNION.md, and each of it is a law that fails here and nowhere else.
#![allow(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, chown};
use std::path::Path;
use std::process::Command;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags, setxattr, utimensat};
use tests::laws::{all, lay_out, try_all};
use tests::mount::{Mount, Site, may_mount};

/// Nobody on this host.
const USER: u32 = 4242;

/// The heading in docs/UNION.md below which each row names a test and a reason.
const HEADING: &str = "## What an ordinary user cannot have";

/// A base with the ground of every law, imported by the user.
fn import_ground(site: &Site) {
    lay_out(&site.lower(), &all()).unwrap();
    let archive = site.path().join("ground.tar");
    let mut tar = Command::new("tar");
    tar.args(["--create", "--format=pax", "--numeric-owner", "--acls", "--sparse"]);
    tar.args(["--xattrs", "--xattrs-include=*", "--warning=none"]);
    tar.arg("--file").arg(&archive).arg("--directory").arg(site.lower()).arg(".");
    assert!(tar.status().unwrap().success());
    let mut import = site.command_of(USER, "import");
    import.args(["--log-level", "warn"]).arg(&archive).arg("--out").arg(site.path().join("base"));
    assert!(import.status().unwrap().success());
    fs::remove_file(archive).unwrap();
    add_sockets(&site.lower(), &site.path().join("base"));
}

/// A tar archive has none: as an import would write them.
fn add_sockets(from: &Path, to: &Path) {
    for row in fs::read_dir(from).unwrap() {
        let row = row.unwrap();
        let (path, found) = (to.join(row.file_name()), row.metadata().unwrap());
        if found.is_dir() && path.as_os_str().len() < 3000 {
            let times = fs::metadata(&path).unwrap();
            add_sockets(&row.path(), &path);
            set_mtime(&path, &times);
        } else if found.file_type().is_socket() {
            fs::write(&path, "").unwrap();
            let owner =
                format!("{}:{}:{:o}:socket", found.uid(), found.gid(), found.mode() & 0o7777);
            let name = "user.containers.override_stat";
            setxattr(&path, name, owner.as_bytes(), XattrFlags::empty()).unwrap();
            chown(&path, Some(USER), Some(USER)).unwrap();
            set_mtime(&path, &found);
        }
    }
}

fn set_mtime(path: &Path, like: &fs::Metadata) {
    let time = Timespec { tv_sec: like.mtime(), tv_nsec: like.mtime_nsec() };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// The rows of the document: the test's name, and why.
fn listed() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let document = fs::read_to_string(root.join("docs/UNION.md")).unwrap();
    let (_, section) = document.split_once(HEADING).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.split("\n- `").skip(1).map(|row| {
        let (name, reason) = row.split_once("`: ").unwrap();
        (name.to_owned(), reason.split_whitespace().collect::<Vec<_>>().join(" "))
    });
    let rows: BTreeMap<_, _> = rows.collect();
    for (name, reason) in &rows {
        assert!(all().iter().any(|law| law.name == name), "{name} is listed and is no law");
        assert!(reason.len() > 20, "{name} is listed without a reason");
    }
    rows
}

#[test]
fn ordinary_user_keeps_every_law_but_those_that_are_listed() {
    if !may_mount("ordinary_user_keeps_every_law_but_those_that_are_listed") {
        return;
    }
    let listed = listed();
    let site = Site::new();
    import_ground(&site);
    let base = site.path().join("base");
    let mut mount = Some(site.mount_of(USER, &base));
    let verdicts = try_all(&site.point(), &all(), &mut || {
        mount.take().into_iter().for_each(Mount::unmount);
        mount = Some(site.mount_of(USER, &base));
    });
    mount.into_iter().for_each(Mount::unmount);
    let mut wrong = Vec::new();
    let (mut held, mut skipped) = (0, 0);
    for verdict in verdicts {
        let name = verdict.law.name;
        match (&verdict.failure, listed.get(name)) {
            (Some(failure), _) if failure.is_skip => skipped += 1,
            (Some(failure), None) => wrong.push(format!("{name} fails: {failure}")),
            (None, Some(_)) => wrong.push(format!("{name} is listed, and holds")),
            (None, None) => held += 1,
            (Some(_), Some(_)) => {}
        }
    }
    println!("{held} laws hold, {} are listed, {skipped} were not tried", listed.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let mut check = site.command_of(USER, "check");
    check.arg("--lower").arg(&base).arg("--upper").arg(site.upper());
    check.arg("--work").arg(site.work()).arg("--index").arg(site.path().join("index"));
    let output = check.output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && told.is_empty(), "{told}");
}
