//! What a confined daemon can and cannot do, seen from inside and from outside.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use tests::mount::copy_program;
use tests::skip::skip;

/// Debian's `nobody`, who has no right anywhere.
const NOBODY: u32 = 65534;

/// One probe at a time: a fork while another's binary is being written makes it busy (ETXTBSY).
static TURN: Mutex<()> = Mutex::new(());

struct Seen {
    lines: Vec<String>,
    mounts: Vec<String>,
}

/// Runs the probe over a fresh lower, upper and work, as `uid` where given.
fn probe(uid: Option<u32>) -> Seen {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name);
    for name in ["lower", "upper", "work"] {
        fs::create_dir(path(name)).unwrap();
    }
    fs::write(path("lower/file"), "lower").unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // The build directory may lie where another user may not look.
    let binary = path("probe");
    copy_program(Path::new(env!("CARGO_BIN_EXE_sandbox_probe")), &binary);
    let mut command = Command::new(&binary);
    command.args([path("lower"), path("upper"), path("work")]);
    if let Some(uid) = uid {
        for name in ["lower", "lower/file", "upper", "work"] {
            chown(path(name), Some(uid), Some(uid)).unwrap();
        }
        command.uid(uid).gid(uid);
    }
    let seen = watch(&mut command);
    assert_eq!(fs::read(path("lower/file")).unwrap(), b"lower");
    seen
}

fn watch(command: &mut Command) -> Seen {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    let lines: Vec<_> = out.lines().map_while(Result::ok).take_while(|l| l != "done").collect();
    let mounts =
        fs::read_to_string(Path::new("/proc").join(child.id().to_string()).join("mountinfo"));
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success(), "{lines:?}");
    Seen { lines, mounts: mounts.unwrap().lines().map(str::to_owned).collect() }
}

fn assert_confined(seen: &Seen) {
    let report = &seen.lines[0];
    assert!(report.starts_with("sandbox: own mount namespace, lowers read-only"), "{report}");
    for line in &seen.lines[1..] {
        let (what, result) = line.split_once(": ").unwrap();
        match what {
            "lower read" => assert_eq!(result, "ok", "{line}"),
            // Landlock may speak before the mount does where the caller could open at all.
            what if what.starts_with("lower write") => {
                assert!(["EROFS", "EACCES"].contains(&result), "{line}");
            }
            what if what.starts_with("lower") => assert_eq!(result, "EROFS", "{line}"),
            "root" => assert_eq!(result, "[]"),
            "unmount" => assert_ne!(result, "ok"),
            "unseen" => {}
            "seen" => panic!("{line}"),
            _ => assert_eq!(result, "ok", "{line}"),
        }
    }
    let places: Vec<_> = seen.mounts.iter().map(|row| row.split(' ').nth(4).unwrap()).collect();
    assert_eq!(places, ["/", "/lower.0", "/home"]);
    for (row, options) in seen.mounts.iter().zip(["ro", "ro", "rw"]) {
        let has = row.split(' ').nth(5).unwrap();
        for option in [options, "nosuid", "nodev", "noexec"] {
            assert!(has.split(',').any(|has| has == option), "{option} in {row}");
        }
    }
}

#[test]
fn daemon_of_root_cannot_change_a_lower_or_see_the_host() {
    if !rustix::process::geteuid().is_root() {
        return skip("daemon_of_root_cannot_change_a_lower_or_see_the_host", "needs root");
    }
    let seen = probe(None);
    assert_confined(&seen);
    assert!(seen.lines[0].ends_with("Landlock, 8 capabilities"), "{}", seen.lines[0]);
}

#[test]
fn daemon_of_a_user_cannot_change_a_lower_or_see_the_host() {
    // user_namespaces(7): a process in a chroot may make none.
    let can_unshare = Command::new("unshare").args(["--user", "true"]).status();
    if !can_unshare.is_ok_and(|status| status.success()) {
        let problem = "no user namespace can be made here (a bare chroot?)";
        skip("daemon_of_a_user_cannot_change_a_lower_or_see_the_host", problem);
        return;
    }
    let uid = rustix::process::geteuid().is_root().then_some(NOBODY);
    let seen = probe(uid);
    assert_confined(&seen);
    assert!(seen.lines[0].ends_with("no capabilities"), "{}", seen.lines[0]);
}
