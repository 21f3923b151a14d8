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
