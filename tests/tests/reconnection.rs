//! A guest that comes and goes leaves nothing behind. Alone in its process, whose descriptors and
//! threads are counted.
#![allow(clippy::expect_used, reason = "a test that cannot go on says so")]

use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use tests::echo::{Door, POOL, config, echo};
use tests::guest::{GuestOptions, VirtualGuest};
use thinroot::door::vhost_user::{DoorEvent, Endpoint};

/// Descriptors, and threads apart from the pools', which come and go.
fn held() -> (usize, usize) {
    let descriptors = std::fs::read_dir("/proc/self/fd").expect("proc").count();
    let threads = std::fs::read_dir("/proc/self/task").expect("proc").flatten();
    let names = threads.flat_map(|thread| std::fs::read_to_string(thread.path().join("comm")));
    (descriptors, names.filter(|name| name.trim() != "wait").count())
}

#[test]
fn descriptors_and_threads_stay_constant_over_reconnections() {
    let dir = tempfile::tempdir().expect("temp dir");
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).expect("bind");
    let door = Door::open(Endpoint::Listening(listener), config(4));
    let connect = || {
        let guest = VirtualGuest::connect(&socket, GuestOptions::default());
        echo(&guest, 1, POOL, b"");
        guest.crash();
        let is_over = |event| matches!(event, Ok(DoorEvent::Disconnected(_)));
        while !is_over(door.events.recv()) {}
    };
    connect();
    // The thread of the pool may be a moment behind.
    std::thread::sleep(Duration::from_millis(200));
    let before = held();
    for _ in 0..100 {
        connect();
    }
    // A joined thread may be listed for a moment longer.
    let end = Instant::now() + Duration::from_secs(5);
    while held() != before {
        assert!(Instant::now() < end, "{before:?} before, {:?} now", held());
        std::thread::sleep(Duration::from_millis(10));
    }
}
