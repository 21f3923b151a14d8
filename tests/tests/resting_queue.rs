//! A queue that is broken, or has nothing to do, must cost nothing. Alone in its process, whose CPU time is measured.
#![allow(clippy::expect_used, reason = "a test that cannot go on says so")]

use std::time::Duration;

use tests::echo::{Door, INLINE, echo};
use tests::guest::GuestOptions;
use tests::virtqueue::QUEUE_SIZE;

#[test]
fn broken_or_idle_queue_burns_no_cpu() {
    let options = GuestOptions { has_raw_ring: true, ..GuestOptions::default() };
    let (_door, mut guest) = Door::with_guest(options);
    echo(&guest, 1, INLINE, b"");
    guest.raw().set_available_index(QUEUE_SIZE + 1);
    for _ in 0..10 {
        guest.raw().kick();
    }
    std::thread::sleep(Duration::from_millis(50));
    let spent = spent_cpu(Duration::from_secs(1));
    assert!(spent < Duration::from_millis(100), "{spent:?} in a second of rest");
    // Requests that follow at once have the queue watch for the next.
    (0..2000).for_each(|_| echo(&guest, 1, INLINE, b""));
    let spent = spent_cpu(Duration::from_secs(1));
    assert!(spent < Duration::from_millis(100), "{spent:?} in a second of idleness");
    echo(&guest, 1, INLINE, b"");
}

/// The CPU this process spends while nothing is asked of it for `time`.
fn spent_cpu(time: Duration) -> Duration {
    let clock = rustix::time::ClockId::ProcessCPUTime;
    let seconds = |t: rustix::time::Timespec| {
        Duration::new(
            u64::try_from(t.tv_sec).expect("positive"),
            u32::try_from(t.tv_nsec).expect("below a second"),
        )
    };
    let before = seconds(rustix::time::clock_gettime(clock));
    std::thread::sleep(time);
    seconds(rustix::time::clock_gettime(clock)).saturating_sub(before)
}
