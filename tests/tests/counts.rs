//! What is exact about speed: the system calls of single requests.
#![allow(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tests::bench::client::Client;
use tests::daemon::{Daemon, Ground};
use tests::laws::plot::pattern;
use tests::requests::{Change, Mount, ROOT};
use tests::trace::Trace;

const TEST: &str = "hot_requests_make_few_system_calls";

/// So many requests of each kind; one more comes before them.
const COUNT: u32 = 200;

/// A request, the most system calls it may make, and what makes it, given its turn.
type Row<'a> = (&'a str, f64, &'a dyn Fn(u32) -> bool);

/// How often each system call is made for one request, one request at a time.
fn calls_each(daemon: &Daemon, mut request: impl FnMut(u32)) -> Option<BTreeMap<String, f64>> {
    request(COUNT);
    let trace = Trace::of(TEST, daemon.pid())?;
    (0..COUNT).for_each(&mut request);
    let each = |count| f64::from(u32::try_from(count).unwrap()) / f64::from(COUNT);
    Some(trace.calls().into_iter().map(|(name, count)| (name, each(count))).collect())
}

fn small(turn: u32) -> String {
    format!("small-{turn}")
}

#[test]
fn hot_requests_make_few_system_calls() {
    let ground = Ground::new();
    ground.file("lower", [7; 8192]);
    for turn in 0..=COUNT {
        ground.file(&small(turn), [7; 2500]);
    }
    let daemon = ground.serve();
    let mount = daemon.mount();
    let lower = mount.resolve("lower").unwrap();
    let unread: Vec<u64> = (0..=COUNT).map(|n| mount.resolve(&small(n)).unwrap()).collect();
    let unread = |turn: u32| unread[usize::try_from(turn).unwrap()];
    let new = mount.write_new(ROOT, b"new", 0o644, &[7; 8192]).unwrap().node;

    let touched = Change { mtime: Some((1, 2)), ..Change::default() };
    // At most one to wait for the kick, one to interrupt the guest, and what the request itself
    // needs. A WRITE gives the file the mtime its guest knows, once more. A lower file that is read
    // for the first time is opened, compared with what was sealed, and opened again for reading;
    // without optimisation std also asks whether what it closes is open.
    let rows: [Row<'_>; 8] = [
        ("GETATTR", 2.0, &|_| mount.getattr(lower).is_ok()),
        ("LOOKUP", 2.0, &|_| mount.lookup(ROOT, b"lower").is_ok()),
        ("LOOKUP of what is not there", 2.0, &|_| mount.lookup(ROOT, b"no").is_err()),
        ("READ of a lower file", 3.0, &|_| mount.read(lower, 0, 4096).is_ok()),
        ("first READ of a lower file", 8.0, &|turn| mount.read(unread(turn), 0, 4096).is_ok()),
        ("READ of an upper file", 3.0, &|_| mount.read(new, 0, 4096).is_ok()),
        ("WRITE to an upper file", 4.0, &|_| mount.write(new, 0, &[8; 4096]).is_ok()),
        ("SETATTR of an upper file", 4.0, &|_| mount.setattr(new, touched).is_ok()),
    ];
    for (name, most, request) in rows {
        let Some(calls) = calls_each(&daemon, |turn| assert!(request(turn), "{name}")) else {
            return;
        };
        let all: f64 = calls.values().sum();
        println!("{name}: {all:.2} calls: {calls:?}");
        // A tenth more: strace's own coming and going interrupts a wait now and then.
        assert!(all <= most * 1.1, "{name} makes {all} system calls: {calls:?}");
        assert!(all > 0.9, "strace saw the daemon at work: {calls:?}");
    }
}

/// Linux sends one for each object that it removes, and waits for none.
#[test]
fn forgets_of_a_burst_are_taken_together() {
    const TEST: &str = "forgets_of_a_burst_are_taken_together";
    let ground = Ground::new();
    for turn in 0..COUNT {
        ground.file(&small(turn), [7; 100]);
    }
    let daemon = ground.serve();
    let mut client =
        Client::mount(UnixStream::connect(daemon.socket()).unwrap(), Duration::ZERO).unwrap();
    let known: Vec<u64> = (0..COUNT)
        .map(|turn| client.lookup(ROOT, small(turn).as_bytes()).unwrap().unwrap().node)
        .collect();
    let Some(trace) = Trace::of(TEST, daemon.pid()) else {
        client.unmount();
        return;
    };
    for node in known {
        client.forget_behind(node);
        client.getattr(ROOT).unwrap();
    }
    client.settle();
    let calls: u64 = trace.calls().into_values().sum();
    client.unmount();
    // A GETATTR makes two; a FORGET that is woken for makes as many.
    assert!(calls < u64::from(COUNT) * 3, "{calls} calls for {COUNT} pairs");
}

/// After UNLINK a guest's kernel sends the times of what it removed (fs/fuse/dir.c:
/// `fuse_update_ctime_in_cache`).
#[test]
fn removal_of_a_lower_file_copies_nothing_up() {
    const COUNT: u32 = 30;
    let ground = Ground::new();
    let name = |number: u32| format!("lower{number}");
    for number in 0..COUNT {
        ground.file(&name(number), [7; 8192]);
    }
    let daemon = ground.serve();
    let mount = daemon.mount();
    let files: Vec<_> =
        (0..COUNT).map(|number| mount.lookup(ROOT, name(number).as_bytes()).unwrap()).collect();
    let Some(trace) = Trace::of(TEST, daemon.pid()) else { return };
    for (number, file) in (0..COUNT).zip(&files) {
        mount.unlink(ROOT, name(number).as_bytes()).unwrap();
        let told = Change { mtime: Some(file.attr.mtime), ..Change::default() };
        assert_eq!(mount.setattr(file.node, told).unwrap().mtime, file.attr.mtime);
    }
    let calls = trace.calls();
    println!("removals of {COUNT} files: {calls:?}");
    // Two kicks, two interrupts, and one link: the mark that hides the name.
    let all: u64 = calls.into_values().sum();
    assert!(all < u64::from(COUNT) * 6, "{all} calls");
}

/// SPECIFICATION: start-up does not depend on the size of a sealed base.
#[test]
fn start_makes_as_many_system_calls_over_a_large_base_as_over_a_small_one() {
    const TEST: &str = "start_makes_as_many_system_calls_over_a_large_base_as_over_a_small_one";
    let mut all = Vec::new();
    for (directories, files) in [(1, 1), (100, 100)] {
        let ground = Ground::new();
        for directory in 0..directories {
            for n in 0..files {
                ground.file(&format!("{directory}/{n}"), []);
            }
        }
        // Sealed by the first.
        ground.serve().mount().unmount();
        let Some(calls) = Trace::of_a_life(TEST, &ground) else { return };
        all.push((calls.values().sum::<u64>(), calls));
    }
    let [(small, _), (large, calls)] = &all[..] else { unreachable!("two rows") };
    println!("starts: {small} and {large} calls");
    // Threads wait for each other more or less often.
    assert!(*large <= small + 60, "{small} calls, and over 10,000 files {large}: {calls:?}");
}

/// Bytes that a daemon has read from and written to files, by whatever call.
fn moved(daemon: &Daemon) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/io", daemon.pid())).unwrap();
    let fields = text.lines().filter_map(|line| {
        let (name, bytes) = line.split_once(": ")?;
        matches!(name, "rchar" | "wchar").then(|| bytes.parse::<u64>().unwrap())
    });
    fields.sum()
}

/// Law U48: a first write takes its block along, and no change of attributes moves data; a truncation
/// moves no more than it leaves.
#[test]
fn large_files_move_no_more_than_is_written() {
    const MIB: u64 = 1 << 20;
    const MIB_BYTES: usize = 1 << 20;
    let ground = Ground::new();
    let content = pattern(64 * MIB_BYTES);
    ground.file("64", &content).file("cut", &content);
    ground.file("1024", []);
    let sparse = File::options().write(true).open(ground.lower().join("1024")).unwrap();
    sparse.set_len(1024 * MIB).unwrap();
    (0..16).for_each(|n| sparse.write_all_at(&content[..MIB_BYTES], n * 64 * MIB).unwrap());
    drop(sparse);
    let daemon = ground.serve();
    let mount = daemon.mount();
    let node = |name: &str| mount.resolve(name).unwrap();
    let chmod = Change { mode: Some(0o600), ..Change::default() };
    let chown = Change { uid: Some(5), ..Change::default() };
    let set = |name: &str, change| assert!(mount.setattr(node(name), change).is_ok(), "{name}");
    let to = |size| Change { size: Some(size), ..Change::default() };
    let rows: [(&str, u64, &dyn Fn()); 6] = [
        ("the first 4 KiB into 64 MiB", 64 << 10, &|| {
            mount.write_all(node("64"), 20 * MIB, &[7; 4096]).unwrap();
        }),
        ("a later 4 KiB", 16 << 10, &|| {
            mount.write_all(node("64"), 40 * MIB, &[7; 4096]).unwrap();
        }),
        ("chmod of 1 GiB", 16 << 10, &|| set("1024", chmod)),
        ("chown of 1 GiB", 16 << 10, &|| set("1024", chown)),
        ("a cut to 1 MiB", 2 * MIB + (64 << 10), &|| set("cut", to(MIB))),
        ("a cut to nothing", 16 << 10, &|| set("cut", to(0))),
    ];
    for (what, most, change) in rows {
        let before = moved(&daemon);
        change();
        let bytes = moved(&daemon) - before;
        println!("{what}: {bytes} bytes are moved");
        assert!(bytes <= most, "{what} moves {bytes} bytes, at most {most}");
    }
    let blocks = |name: &str| fs::metadata(ground.upper().join(name)).unwrap().blocks() * 512;
    let held = blocks("64");
    // Where blocks are shared they count as held.
    assert!(held <= 128 << 10 || held >= 64 * MIB, "64 holds {held} bytes");
    let found = mount.read(node("64"), 20 * MIB - 4096, 12_288).unwrap();
    let mut expected = content[20 * MIB_BYTES - 4096..][..12_288].to_vec();
    expected[4096..8192].fill(7);
    assert!(found == expected, "what was not written is the lower's");
    mount.unmount();
}

const FILES: u32 = 24;
const SMALL: usize = 4096;
/// Above the size from which files are copied up by block.
const LARGE: usize = 200_000;

/// One change of an object of the base: its directory, node and name there.
type Step = fn(&Mount, u64, (u64, &[u8])) -> bool;

/// Its name, the bytes of its files, how many system calls it makes at most (of a debug build, which
/// looks at each descriptor it closes), and the change.
const STEPS: [(&str, usize, f64, Step); 9] = [
    ("unlink", SMALL, 3.0, |mount, dir, (_, name)| mount.unlink(dir, name).is_ok()),
    ("rename", SMALL, 20.0, |mount, dir, (_, name)| {
        mount.rename2((dir, name), (dir, &new(name)), 0).is_ok()
    }),
    ("chmod", SMALL, 21.0, |mount, _, (file, _)| mount.setattr(file, MODE).is_ok()),
    ("write", SMALL, 32.0, |mount, _, (file, _)| mount.write(file, 7, b"new").is_ok()),
    ("mkdir", 0, 5.0, |mount, dir, (_, name)| mount.mkdir(dir, &new(name), 0o755).is_ok()),
    ("create", 0, 4.0, |mount, dir, (_, name)| mount.create(dir, &new(name), 0o644).is_ok()),
    ("large-chmod", LARGE, 21.0, |mount, _, (file, _)| mount.setattr(file, MODE).is_ok()),
    ("large-write", LARGE, 22.0, |mount, _, (file, _)| mount.write(file, 8192, &[7; 4096]).is_ok()),
    ("large-cut", LARGE, 19.0, |mount, _, (file, _)| mount.setattr(file, SIZE).is_ok()),
];

const NOTHING: Change = Change {
    mode: None,
    uid: None,
    gid: None,
    size: None,
    atime: None,
    mtime: None,
    kills_privileges: false,
};
const MODE: Change = Change { mode: Some(0o600), ..NOTHING };
const SIZE: Change = Change { size: Some(4096), ..NOTHING };

fn new(name: &[u8]) -> Vec<u8> {
    [b"new-", name].concat()
}

/// First changes of objects of the base, each of another one.
#[test]
fn first_changes_make_few_system_calls_and_wait_for_no_disk() {
    const TEST: &str = "first_changes_make_few_system_calls_and_wait_for_no_disk";
    let ground = Ground::new();
    for (name, bytes, ..) in STEPS {
        ground.directory(name);
        for number in 0..=FILES {
            ground.file(&format!("{name}/{number}"), vec![7; bytes]);
        }
    }
    let daemon = ground.serve();
    let mount = daemon.mount();
    for (row, bytes, most, step) in STEPS {
        let directory = mount.resolve(row).unwrap();
        let names: Vec<_> = (0..=FILES).map(|number| number.to_string().into_bytes()).collect();
        let nodes: Vec<_> =
            names.iter().map(|name| mount.lookup(directory, name).unwrap().node).collect();
        let change = |at: usize| assert!(step(&mount, directory, (nodes[at], &names[at])), "{row}");
        // The directory itself is copied up.
        change(0);
        let Some(trace) = Trace::of(TEST, daemon.pid()) else { return };
        (1..names.len()).for_each(change);
        let calls = trace.calls();
        let all = f64::from(u32::try_from(calls.values().sum::<u64>()).unwrap()) / f64::from(FILES);
        println!("{row}: {all:.1} calls: {calls:?}");
        assert!(all <= most * 1.1, "{row} makes {all} system calls: {calls:?}");
        // What moved is waited for; only the data of a small file that is written to does.
        let waits = ["fsync", "fdatasync", "sync_file_range", "syncfs"];
        let waits: u64 = waits.iter().filter_map(|name| calls.get(*name)).sum();
        let moves: u64 = ["copy_file_range", "pread64"].iter().filter_map(|n| calls.get(*n)).sum();
        let is_moved = row == "write" && bytes == SMALL;
        assert_eq!((waits > 0, moves > 0), (is_moved, is_moved), "{row}: {calls:?}");
    }
}
