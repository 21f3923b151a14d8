//! What `thinroot run` promises, asked of real guests under QEMU.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tests::real_guest::{RealGround, processes_with};

/// A command, and what must come of it.
struct Row {
    name: &'static str,
    options: &'static [&'static str],
    command: &'static [&'static str],
    input: &'static str,
    status: i32,
    stdout: &'static str,
    /// A part of standard error.
    stderr: &'static str,
}

const ROW: Row =
    Row { name: "", options: &[], command: &[], input: "", status: 0, stdout: "", stderr: "tcg" };

const ROWS: &[Row] = &[
    Row {
        name: "streams and status are the command's",
        command: &["sh", "-c", "echo out; echo err >&2; exit 7"],
        status: 7,
        stdout: "out\n",
        stderr: "\nerr\n",
        ..ROW
    },
    Row {
        name: "a signal is 128 + n",
        command: &["sh", "-c", "kill -TERM $$"],
        status: 143,
        ..ROW
    },
    Row { name: "no such command", command: &["/no/such"], status: 127, stderr: "/no/such", ..ROW },
    Row {
        name: "no program",
        command: &["/etc/passwd"],
        status: 126,
        stderr: "/etc/passwd",
        ..ROW
    },
    Row {
        name: "arguments, variables, directory and host name arrive as they are",
        options: &["--env", "A=b c=d", "--cwd", "/usr", "--hostname", "guest-7"],
        command: &[
            "sh",
            "-c",
            "printf '%s|' \"$A\" \"$PWD\" \"$(uname -n)\" \"$@\"",
            "0",
            "",
            "x\ny",
        ],
        stdout: "b c=d|/usr|guest-7||x\ny|",
        ..ROW
    },
    Row {
        name: "standard input has an end",
        command: &["sh", "-c", "cat; echo end"],
        input: "one\ntwo",
        stdout: "one\ntwoend\n",
        ..ROW
    },
    Row {
        name: "a directory that is not there",
        options: &["--cwd", "/no/such"],
        command: &["true"],
        status: 125,
        stderr: "/no/such",
        ..ROW
    },
    Row {
        name: "a timeout",
        options: &["--timeout", "4"],
        command: &["sleep", "1000"],
        status: 124,
        stderr: "--timeout",
        ..ROW
    },
    Row {
        name: "a panic",
        command: &["sh", "-c", "echo c > /proc/sysrq-trigger; sleep 1000"],
        status: 123,
        stderr: "its kernel panicked: sysrq triggered crash",
        ..ROW
    },
    Row {
        name: "a VMM that is not there",
        options: &["--vmm", "/no/such/vmm"],
        command: &["true"],
        status: 125,
        stderr: "/no/such/vmm",
        ..ROW
    },
    Row {
        name: "standard input is no terminal",
        command: &["sh", "-c", "readlink /proc/self/fd/0 | cut -c1-4"],
        stdout: "pipe\n",
        ..ROW
    },
    Row {
        name: "a tag that nobody serves",
        options: &["--append", "thinroot.tag=other"],
        command: &["true"],
        status: 123,
        stderr: "other",
        ..ROW
    },
];

#[test]
fn command_ends_as_promised_whatever_it_does() {
    let Some(ground) = RealGround::find("command_ends_as_promised_whatever_it_does") else {
        return;
    };
    for row in ROWS {
        let ended = ground.run().options(row.options).to_end(row.command, row.input.as_bytes());
        let told = format!("{}: {:?}", row.name, ended);
        assert_eq!(ended.status.code(), Some(row.status), "{told}");
        assert_eq!(String::from_utf8_lossy(&ended.stdout), row.stdout, "{told}");
        assert!(ended.stderr.contains(row.stderr), "{told}");
    }
}

#[test]
fn ten_mebibytes_go_through_a_guest_and_come_back_as_they_were() {
    let Some(ground) = RealGround::find("ten_mebibytes_go_through_a_guest") else { return };
    // Every byte value, in no order that a line discipline or a text mode would survive.
    let bytes: Vec<u8> =
        (0..10_u32 << 20).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[1]).collect();
    let ended = ground.run().to_end(&["cat"], &bytes);
    assert!(ended.status.success(), "{}", ended.stderr);
    assert!(ended.stdout == bytes, "{} of {} bytes", ended.stdout.len(), bytes.len());
}

#[test]
fn killing_run_or_its_vmm_leaves_no_process_and_an_intact_upper() {
    let Some(ground) = RealGround::find("killing_run_or_its_vmm_leaves_no_process") else { return };
    for victim in ["run", "vmm"] {
        let place =
            tempfile::Builder::new().prefix("thinroot-kill-").tempdir_in("/var/tmp").unwrap();
        let upper = place.path().join("upper");
        let word = upper.to_str().unwrap().to_owned();
        let mut running = ground
            .run()
            .options(&[
                "--upper",
                &word,
                "--console",
                place.path().join("console").to_str().unwrap(),
            ])
            .start(&["sh", "-c", "echo kept > /kept; sync; echo on > /ready; sync; sleep 1000"]);
        running.wait_for(&upper.join("ready"));
        let run = i32::try_from(running.child.id()).unwrap();
        let pid = match victim {
            "run" => run,
            _ => vmm_of(run).unwrap(),
        };
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        let ended = running.wait();
        if victim == "vmm" {
            assert_eq!(ended.status.code(), Some(123), "{}", ended.stderr);
        }
        nothing_is_left_with(place.path().to_str().unwrap());
        assert_eq!(std::fs::read_to_string(upper.join("kept")).unwrap(), "kept\n", "{victim}");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&word), "{mounts}");
        // The next guest takes it up.
        let ended = ground.run().options(&["--upper", &word]).to_end(&["cat", "/kept"], b"");
        assert_eq!(ended.stdout, b"kept\n", "{}", ended.stderr);
    }
}

fn vmm_of(run: i32) -> Option<i32> {
    let is_child = |pid: i32| {
        let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
        // proc(5): the parent is the second field behind the name's bracket.
        let stat = stat.unwrap_or_default();
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
        parent == Some(&run.to_string())
    };
    let vmms = processes_with("vhost-user-fs-pci");
    vmms.into_iter().map(|(pid, _)| pid).find(|pid| is_child(*pid))
}

fn nothing_is_left_with(word: &str) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let left = processes_with(word);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left: {left:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn upper_in_use_is_refused_with_the_holders_pid() {
    let Some(ground) = RealGround::find("upper_in_use_is_refused") else { return };
    let place = tempfile::Builder::new().prefix("thinroot-busy-").tempdir_in("/var/tmp").unwrap();
    let upper = place.path().join("upper");
    let options = ["--upper", upper.to_str().unwrap()];
    let mut running =
        ground.run().options(&options).start(&["sh", "-c", "echo on > /ready; sync; sleep 1000"]);
    running.wait_for(&upper.join("ready"));
    let refused = ground.run().options(&options).to_end(&["true"], b"");
    assert_eq!(refused.status.code(), Some(125), "{}", refused.stderr);
    assert!(refused.stderr.contains("in use by process"), "{}", refused.stderr);
    assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
    running.child.kill().unwrap();
    running.wait();
}
