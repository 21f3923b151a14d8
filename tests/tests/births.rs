//! Law U36: what is born is whole when it is seen, whoever makes it; and what the host makes whole
//! by itself costs no step in `work`.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use tests::mount::{Site, may_mount};

/// What a shell makes with umask 027, and the permissions of it.
const BIRTHS: [(&str, u32); 4] = [
    ("echo x > file", 0o640),
    ("mkdir directory", 0o750),
    ("mkfifo pipe", 0o640),
    ("ln -s target link", 0o777),
];

/// `script` in `dir`, as this user and group.
fn make(dir: &Path, script: &str, (uid, gid): (u32, u32)) {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", &format!("umask 027; {script}")]).current_dir(dir).uid(uid).gid(gid);
    assert!(shell.status().unwrap().success(), "{script}");
}

#[test]
fn newborn_has_its_makers_owner_and_mode_and_roots_is_born_in_place() {
    if !may_mount("newborn_has_its_makers_owner_and_mode_and_roots_is_born_in_place") {
        return;
    }
    let site = Site::new();
    // As an administrator may have it: what is born here is the group's.
    let group = site.lower().join("group");
    fs::create_dir(&group).unwrap();
    chown(&group, None, Some(50)).unwrap();
    fs::set_permissions(&group, fs::Permissions::from_mode(0o2777)).unwrap();
    let mount = site.mount(&[]);
    let staging = site.work().join("work");
    // Copied up, it takes no more steps.
    make(&mount.root().join("group"), "echo x > first", (0, 0));

    for (place, maker, owner, is_staged) in [
        ("root", (0, 0), (0, 0), false),
        ("user", (7, 8), (7, 8), true),
        ("group", (0, 0), (0, 50), true),
    ] {
        let dir = mount.root().join(place);
        if place != "group" {
            fs::create_dir(&dir).unwrap();
            chown(&dir, Some(maker.0), Some(maker.1)).unwrap();
        }
        for (script, mode) in BIRTHS {
            // The clock that dates files ticks every few milliseconds.
            sleep(Duration::from_millis(20));
            let before = fs::metadata(&staging).unwrap();
            make(&dir, script, maker);
            let after = fs::metadata(&staging).unwrap();
            let changed =
                (before.ctime(), before.ctime_nsec()) != (after.ctime(), after.ctime_nsec());
            assert_eq!(changed, is_staged, "{place}: {script}");

            let name = script.split(' ').nth_back(0).unwrap();
            let born = fs::symlink_metadata(dir.join(name)).unwrap();
            assert_eq!((born.uid(), born.gid()), owner, "{place}: {script}");
            let setgid = if place == "group" && born.is_dir() { 0o2000 } else { 0 };
            assert_eq!(born.mode() & 0o7777, mode | setgid, "{place}: {script}");
        }
        assert_eq!(fs::read_to_string(dir.join("file")).unwrap(), "x\n", "{place}");
    }
    mount.unmount();
}
