//! `thinroot` as a shell sees it: what bad input gets, and how `serve` begins and ends.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tests::daemon::thinroot_binary;

const DEADLINE: Duration = Duration::from_secs(30);

fn thinroot(place: &Path, line: &str) -> Command {
    let mut command = Command::new(thinroot_binary());
    command.current_dir(place).args(line.split_whitespace()).stdin(Stdio::null());
    command
}

/// Every path below, so that what appeared or went is seen.
fn tree(place: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut waiting = vec![place.to_owned()];
    while let Some(directory) = waiting.pop() {
        for row in fs::read_dir(directory).unwrap() {
            let path = row.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                waiting.push(path.clone());
            }
            found.insert(path);
        }
    }
    found
}

#[test]
fn bad_input_gets_one_line_and_changes_nothing() {
    let place = tempfile::tempdir().unwrap();
    for name in ["base/etc", "up", "other"] {
        fs::create_dir_all(place.path().join(name)).unwrap();
    }
    fs::write(place.path().join("file"), "").unwrap();
    let _busy = UnixListener::bind(place.path().join("busy")).unwrap();
    let long = "x".repeat(120);
    let serve = "serve --lower base --index index";
    let rows = [
        (2, "serve --upper up --socket s".to_owned(), "--lower"),
        (2, format!("{serve} --upper up"), "--socket"),
        (2, format!("{serve} --upper up --socket s --frobnicate"), "--frobnicate"),
        (2, "frobnicate".to_owned(), "frobnicate"),
        (2, String::new(), "expected a command"),
        (1, "serve --lower none --upper up --socket s".to_owned(), "--lower none"),
        (1, "serve --lower file --upper up --socket s".to_owned(), "is no directory"),
        (1, format!("{serve} --upper file --socket s"), "--upper file"),
        (1, format!("{serve} --upper base/etc --socket s"), "lies inside"),
        (1, format!("{serve} --upper up --work base/work --socket s"), "lies inside"),
        (1, format!("{serve} --upper up --work up/work --socket s"), "lies inside"),
        (1, format!("{serve} --upper up --work /dev/shm/thinroot.cl --socket s"), "file system"),
        (1, format!("{serve} --upper up --work work --socket file"), "no socket"),
        (1, format!("{serve} --upper up --work work --fd 77"), "--fd 77"),
        (1, format!("{serve} --upper up --work work --socket none/s"), "--socket none/s"),
        (1, "diff --lower base --index index --upper none".to_owned(), "--upper none"),
        (1, "reset none".to_owned(), "none"),
        (1, "reset file".to_owned(), "file"),
        (1, "mount --lower base --index index --upper base/etc other".to_owned(), "lies inside"),
        (1, "mount --lower base --index index --upper up base".to_owned(), "lies inside"),
        (1, format!("{serve} --upper up --work work --socket busy"), "listens there"),
        (1, format!("{serve} --upper up --work work --socket {long}"), "at most 107"),
    ];
    let before = tree(place.path());
    for (status, line, told) in rows {
        let output = thinroot(place.path(), &line).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{line}: {text}");
        assert!(output.stdout.is_empty(), "{line}");
        let errors: Vec<_> =
            text.lines().filter(|line| !line.starts_with("thinroot: warn")).collect();
        assert!(errors.len() == 1 && errors[0].contains(told), "{line}: {text}");
        assert_eq!(tree(place.path()), before, "{line}");
    }
}

#[test]
fn help_shows_every_default_and_version_is_told() {
    let place = tempfile::tempdir().unwrap();
    for command in ["serve", "mount", "run", "reset", "diff", "seal", "image", "doctor"] {
        let output = thinroot(place.path(), &format!("{command} --help")).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.ends_with('\n'), "{command}");
        assert!(text.contains("[default: info]"), "{command}: {text}");
    }
    let output = thinroot(place.path(), "--version").output().unwrap();
    let expected = format!("thinroot {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        sleep(Duration::from_millis(5));
    }
}

/// A daemon with a socket `s`, which has said that it is ready.
fn serve(place: &Path) -> Child {
    let notify = UnixDatagram::bind(place.join("notify")).unwrap();
    notify.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut command =
        thinroot(place, "serve --lower base --upper up --index index --socket s --events -");
    command.env("NOTIFY_SOCKET", place.join("notify")).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut message = [0; 32];
    let bytes = notify.recv(&mut message).unwrap();
    assert_eq!(&message[..bytes], b"READY=1");
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("\"event\":\"listening\",\"socket\":\"s\""), "{line}");
    fs::remove_file(place.join("notify")).unwrap();
    child
}

#[test]
fn socket_goes_with_its_daemon_however_that_ends() {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir(place.path().join("base")).unwrap();
    let socket = place.path().join("s");
    for signal in [Signal::TERM, Signal::INT, Signal::KILL] {
        let mut daemon = serve(place.path());
        assert!(socket.exists());
        let second =
            thinroot(place.path(), "serve --lower base --upper up --index index --socket other");
        let told = { second }.output().unwrap();
        let told = String::from_utf8(told.stderr).unwrap();
        assert!(told.contains(&format!("in use by process {}", daemon.id())), "{told}");
        kill_process(Pid::from_child(&daemon), signal).unwrap();
        assert_eq!(daemon.wait().unwrap().success(), signal != Signal::KILL);
        wait_for("the socket is still there", || !socket.exists());
    }
    // A socket whose daemon could not clean up is replaced.
    drop(UnixListener::bind(&socket).unwrap());
    let mut daemon = serve(place.path());
    kill_process(Pid::from_child(&daemon), Signal::TERM).unwrap();
    assert!(daemon.wait().unwrap().success());
    wait_for("the socket is still there", || !socket.exists());
}
