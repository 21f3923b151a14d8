//! What is exact about speed: the system calls of single requests.
#![allow(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::collections::BTreeMap;

use tests::daemon::{Daemon, Ground};
use tests::requests::{Change, ROOT};
use tests::trace::Trace;

const TEST: &str = "hot_requests_make_few_system_calls";

/// How often each system call is made for one request, one request at a time.
fn calls_each(daemon: &Daemon, mut request: impl FnMut(u32)) -> Option<BTreeMap<String, f64>> {
    const COUNT: u32 = 200;
    request(COUNT);
    let trace = Trace::of(TEST, daemon.pid())?;
    (0..COUNT).for_each(&mut request);
    let each = |count| f64::from(u32::try_from(count).unwrap()) / f64::from(COUNT);
    Some(trace.calls().into_iter().map(|(name, count)| (name, each(count))).collect())
}

#[test]
fn hot_requests_make_few_system_calls() {
    let ground = Ground::new();
    ground.file("lower", [7; 8192]);
    let daemon = ground.serve();
    let mount = daemon.mount();
    let lower = mount.resolve("lower").unwrap();
    let new = mount.write_new(ROOT, b"new", 0o644, &[7; 8192]).unwrap().node;

    let touched = Change { mtime: Some((1, 2)), ..Change::default() };
    // One to wait for the kick, one to interrupt the guest, and what the request itself needs. A
    // WRITE gives the file the mtime its guest knows, once more.
    let rows: [(&str, f64, &dyn Fn() -> bool); 7] = [
        ("GETATTR", 2.0, &|| mount.getattr(lower).is_ok()),
        ("LOOKUP", 2.0, &|| mount.lookup(ROOT, b"lower").is_ok()),
        ("LOOKUP of what is not there", 2.0, &|| mount.lookup(ROOT, b"no").is_err()),
        ("READ of a lower file", 3.0, &|| mount.read(lower, 0, 4096).is_ok()),
        ("READ of an upper file", 3.0, &|| mount.read(new, 0, 4096).is_ok()),
        ("WRITE to an upper file", 4.0, &|| mount.write(new, 0, &[8; 4096]).is_ok()),
        ("SETATTR of an upper file", 4.0, &|| mount.setattr(new, touched).is_ok()),
    ];
    for (name, most, request) in rows {
        let Some(calls) = calls_each(&daemon, |_| assert!(request(), "{name}")) else { return };
        let all: f64 = calls.values().sum();
        println!("{name}: {all:.2} calls: {calls:?}");
        // A tenth more: strace's own coming and going interrupts a wait now and then.
        assert!(all <= most * 1.1, "{name} makes {all} system calls: {calls:?}");
        assert!(all > 0.9, "strace saw the daemon at work: {calls:?}");
    }
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
