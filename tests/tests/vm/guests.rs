//! Guests of one base, side by side: none sees another, and none changes the base.

use std::os::unix::ffi::OsStrExt as _;
use std::process::Command;

use tests::mount::thinroot;
use tests::real_guest::RealGround;
use tests::tree::{differences, manifest};

#[test]
fn guests_of_one_base_see_only_their_own_changes() {
    let Some(ground) = RealGround::find("guests_of_one_base_see_only_their_own_changes") else {
        return;
    };
    let before = manifest(&ground.base());
    let place = tempfile::Builder::new().prefix("thinroot-two-").tempdir_in("/var/tmp").unwrap();
    let upper = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let (one, two) = (upper("one"), upper("two"));
    let changes = "echo edited > /etc/motd; rm /etc/issue; mv /etc/apt /etc/moved; \
                   chmod 0711 /srv; ln /etc/passwd /etc/passwd-too; mkdir /new; echo x > /new/file";
    let run = |upper: &str, script: &str| {
        let ended = ground.run().options(&["--upper", upper]).to_end(&["sh", "-c", script], b"");
        assert_eq!(ended.status.code(), Some(0), "{script}: {}", ended.stderr);
        String::from_utf8_lossy(&ended.stdout).into_owned()
    };
    run(&one, changes);
    let look = "cat /etc/motd; ls -d /etc/issue /etc/apt /etc/moved /new 2>/dev/null; \
                stat -c %a%h /srv /etc/passwd";
    let theirs = run(&two, look);
    assert!(!theirs.contains("edited") && !theirs.contains("/new"), "{theirs}");
    assert!(theirs.contains("/etc/issue\n") && theirs.contains("/etc/apt\n"), "{theirs}");
    // The same upper again: what was changed is there still.
    let ours = run(&one, look);
    assert_eq!(ours, "edited\n/etc/moved\n/new\n7112\n6442\n");
    // What is deleted behind our back would be in the way of who removes the whole.
    let reset = Command::new(thinroot()).args(["reset", "--wait"]).arg(&one).status();
    assert!(reset.unwrap().success());
    assert_eq!(run(&one, look), theirs);

    let changes = differences(&before, &manifest(&ground.base()));
    assert!(changes.is_empty(), "the base has changed: {changes:?}");
    place.close().unwrap();
}

#[test]
fn arguments_are_bytes() {
    let Some(ground) = RealGround::find("arguments_are_bytes") else { return };
    let script = "printf '[%s]' \"$@\"";
    let arguments = ["sh", "-c", script, "sh", "a b"].map(|word| word.as_bytes().to_vec());
    let mut arguments: Vec<_> = arguments.into_iter().collect();
    arguments.push(b"\xff".to_vec());
    let arguments: Vec<_> =
        arguments.iter().map(|word| std::ffi::OsStr::from_bytes(word)).collect();
    let ended = ground.run().to_end(&arguments, b"");
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert_eq!(ended.stdout, b"[a b][\xff]");
}
