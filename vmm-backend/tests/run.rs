//! How `thinroot run` ends, whatever its daemon and its VMM do: both are shell scripts here, which
//! speak on the descriptors the real ones get.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thinroot::vm::boot::BootFiles;
use thinroot::vm::config::{
    AccelChoice, Accelerator, BootSource, Network, OnCrash, RunConfig, UpperArgument, VmmChoice,
};
use thinroot::vm::ground::{Ground, Vmm};
use thinroot::vm::outcome::End;
use thinroot::vm::places::Places;
use thinroot::vm::supervise::{Attempt, attempt};
use thinroot::vm::traffic::Requests;

/// A daemon says `events`, waits for the VMM to hang up, and ends.
fn daemon(events: &[&str], end: &str) -> String {
    let says: String = events.iter().map(|event| format!("echo '{event}' >&61\n")).collect();
    format!("#!/bin/bash\n{says}{end}\n")
}

const HANG_UP: &str = "cat <&60 >/dev/null";
const CONNECTED: &str = r#"{"time":1,"event":"connected"}"#;
const READY: &str = r#"{"time":1,"event":"ready","message":"command"}"#;
const EXITED: &str = r#"{"time":1,"event":"exited","status":7}"#;
const FAILED: &str = r#"{"time":1,"event":"failure","message":"no virtiofs"}"#;
const GONE: &str = concat!(
    r#"{"time":1,"event":"disconnected","how":"crash","requests":"#,
    r#"{"LOOKUP":{"count":57,"request_bytes":2850,"reply_bytes":8208}}}"#
);

struct Row {
    name: &'static str,
    daemon: String,
    vmm: &'static str,
    config: RunConfig,
    expected: fn(&End) -> bool,
}

fn rows() -> Vec<Row> {
    let all = [CONNECTED, READY, EXITED];
    let row = |name, daemon, vmm, expected| Row { name, daemon, vmm, config: config(), expected };
    let mut rows = vec![
        row("discarded upper: the report ends it", daemon(&all, HANG_UP), "sleep 60", |end| {
            *end == End::Exited(7)
        }),
        row("panic: QEMU ends with 0", daemon(&[CONNECTED, READY], HANG_UP), "exit 0", |end| {
            matches!(end, End::Vanished(_))
        }),
        row("killed VMM", daemon(&[CONNECTED], HANG_UP), "kill -9 $$", |end| {
            *end == End::Vanished("the VMM was killed by signal 9".to_owned())
        }),
        row(
            "VMM that does not start",
            daemon(&[], HANG_UP),
            "echo bad option >&2; exit 1",
            |end| matches!(end, End::Vmm(_)),
        ),
        row("daemon that refuses", daemon(&[], "exit 1"), "sleep 60", |end| *end == End::Refused),
        row("VMM that refuses late", daemon(&[CONNECTED], HANG_UP), "sleep 0.1; exit 1", |end| {
            matches!(end, End::Vmm(_))
        }),
        row("daemon that dies", daemon(&[CONNECTED, READY], "kill -9 $$"), "sleep 60", |end| {
            matches!(end, End::Daemon(_))
        }),
        row("guest-init's word", daemon(&[CONNECTED, FAILED], HANG_UP), "sleep 60", |end| {
            *end == End::Failed("no virtiofs".to_owned())
        }),
        row(
            "last words behind the hang-up",
            daemon(&[CONNECTED], &format!("{HANG_UP}; echo '{EXITED}' >&61; echo '{GONE}' >&61")),
            "sleep 0.1",
            |end| *end == End::Exited(7),
        ),
        row(
            "odd events",
            daemon(&["no json", r#"{"time":1,"event":"new"}"#, CONNECTED, EXITED], HANG_UP),
            "sleep 60",
            |end| *end == End::Exited(7),
        ),
    ];
    rows.push(Row {
        config: RunConfig { timeout: Some(Duration::from_millis(300)), ..config() },
        ..row("timeout", daemon(&[CONNECTED, READY], HANG_UP), "sleep 60", |e| *e == End::Timeout)
    });
    rows.push(Row {
        config: RunConfig { boot_timeout: Some(Duration::from_millis(300)), ..config() },
        ..row("boot timeout", daemon(&[CONNECTED], HANG_UP), "sleep 60", |e| *e == End::NotReady)
    });
    let keep = || UpperArgument::Keep { upper: "/up".into(), work: None };
    rows.push(Row {
        config: RunConfig { upper: keep(), ..config() },
        ..row("kept upper: the guest powers off", daemon(&all, HANG_UP), "sleep 0.3", |end| {
            *end == End::Exited(7)
        })
    });
    rows.push(Row {
        config: RunConfig { upper: keep(), command: vec![], ..config() },
        ..row(
            "boot: the kernel says it goes",
            daemon(&[CONNECTED, READY], HANG_UP),
            "echo 'reboot: Power down' > $CONSOLE; exit 0",
            |end| *end == End::Off,
        )
    });
    rows
}

fn config() -> RunConfig {
    RunConfig {
        program: PathBuf::new(),
        lowers: Vec::new(),
        upper: UpperArgument::Discard { parent: None },
        boot: BootSource::Default,
        accel: AccelChoice::Tcg,
        vmm: VmmChoice::Qemu,
        memory_bytes: 1 << 30,
        cpus: 1,
        queues: 1,
        tag: "thinroot".to_owned(),
        network: Network::None,
        command: vec!["true".into()],
        environment: Vec::new(),
        directory: None,
        hostname: None,
        tty: false,
        timeout: None,
        boot_timeout: None,
        on_crash: OnCrash::Discard,
        print: false,
        json: None,
        verbose: false,
        console: None,
        kernel_arguments: Vec::new(),
        vmm_arguments: Vec::new(),
        daemon_arguments: Vec::new(),
    }
}

fn ground(vmm: PathBuf) -> Ground {
    Ground {
        vmm: Vmm::Qemu(vmm),
        boot: BootFiles { kernel: "/k".into(), is_pvh: false, initramfs: "/i".into(), image: None },
        modules: None,
        accelerator: Accelerator::Tcg,
        accelerator_reason: "a test".to_owned(),
    }
}

#[test]
fn every_end_is_told_from_the_others_and_leaves_no_process() {
    let directory = tempfile::tempdir().unwrap();
    let rows = rows();
    let script = |path: PathBuf, text: &str| {
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    // All scripts are written before any is started: one that is open for writing cannot start.
    for (number, row) in rows.iter().enumerate() {
        let place = directory.path().join(number.to_string());
        fs::create_dir(&place).unwrap();
        script(place.join("daemon"), &row.daemon);
        let console = place.join("console");
        let vmm = format!(
            "#!/bin/bash\nCONSOLE={}\necho $$ > $CONSOLE.pid\n{}\n",
            console.display(),
            row.vmm
        );
        script(place.join("vmm"), &vmm);
    }
    for (number, row) in rows.into_iter().enumerate() {
        let place = directory.path().join(number.to_string());
        let places = Places {
            upper: place.join("upper"),
            work: Some(place.join("work")),
            console: place.join("console"),
            vmm_log: place.join("vmm.log"),
            socket: place.join("fs"),
        };
        let config = RunConfig { program: place.join("daemon"), ..row.config };
        let ground = ground(place.join("vmm"));
        let start = Instant::now();
        let outcome =
            attempt(&Attempt { config: &config, ground: &ground, places: &places }).unwrap();
        assert!((row.expected)(&outcome.end), "{}: {:?}", row.name, outcome.end);
        assert!(start.elapsed() < Duration::from_secs(10), "{}: {:?}", row.name, outcome.stages);
        if row.name.starts_with("last words") {
            let lookups = Requests { count: 57, request_bytes: 2850, reply_bytes: 8208 };
            assert_eq!(outcome.requests.0.get("LOOKUP"), Some(&lookups));
        }
        // A VMM that was killed before it wrote its number left an empty file.
        if let Ok(pid) = fs::read_to_string(place.join("console.pid"))
            && !pid.is_empty()
        {
            let left = Path::new("/proc").join(pid.trim());
            assert!(!left.exists(), "{}: the VMM is left", row.name);
        }
    }
}
