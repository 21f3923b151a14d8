//! Rings and chains no driver makes: the daemon survives, says so once, and serves the others.
#![allow(clippy::expect_used, reason = "a test that cannot go on says so")]

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tests::echo::{Door, INLINE, POOL, echo, message};
use tests::guest::{GuestOptions, VirtualGuest};
use tests::memory::{BASE, BYTES, PAGE_BYTES, SPLIT, memory};
use tests::raw_ring::{Descriptor, INDIRECT, NEXT, RawRing, WRITE, write_descriptor};
use tests::virtqueue::QUEUE_SIZE;

/// Long enough for an answer, short enough to wait for none.
const SOON: Duration = Duration::from_millis(500);

const OPTIONS: GuestOptions =
    GuestOptions { queues: 1, has_event_idx: false, has_indirect: true, has_raw_ring: true };

/// A page of guest memory.
fn page() -> u64 {
    memory().allocate(1)
}

fn readable(address: u64, bytes: u32) -> Descriptor {
    Descriptor { address, bytes, flags: 0, next: 0 }
}

fn writable(address: u64, bytes: u32) -> Descriptor {
    Descriptor { address, bytes, flags: WRITE, next: 0 }
}

fn indirect(address: u64, bytes: u32) -> Descriptor {
    Descriptor { address, bytes, flags: INDIRECT, next: 0 }
}

const fn then(mut descriptor: Descriptor, next: u16) -> Descriptor {
    descriptor.flags |= NEXT;
    descriptor.next = next;
    descriptor
}

/// A message to be echoed, in a page of its own.
fn written_message(body: &[u8]) -> (u64, u32) {
    let message = message(INLINE, 42, body);
    let address = page();
    memory().write(address, &message);
    (address, u32::try_from(message.len()).expect("short"))
}

/// Makes `chain` available from descriptor 0 on.
fn offer(ring: &mut RawRing, chain: &[Descriptor]) {
    for (index, descriptor) in (0..).zip(chain) {
        ring.describe(index, *descriptor);
    }
    ring.make_available(0);
    ring.kick();
}

/// Each row: a chain, and the used length it gets.
fn chains() -> Vec<(&'static str, Vec<Descriptor>, u32)> {
    let (message, bytes) = written_message(b"twelve bytes");
    let reply = page();
    let nested = page();
    write_descriptor(nested, 0, indirect(page(), 16));
    let outside = page();
    write_descriptor(outside, 0, then(readable(message, bytes), 700));
    let looped = page();
    write_descriptor(looped, 0, then(readable(message, bytes), 0));
    let last_page = BASE + BYTES - PAGE_BYTES;
    vec![
        ("sound", vec![then(readable(message, bytes), 1), writable(reply, 28)], 28),
        (
            "sound, short reply room",
            vec![then(readable(message, bytes), 1), writable(reply, 20)],
            20,
        ),
        ("no room for a header", vec![then(readable(message, bytes), 1), writable(reply, 15)], 0),
        ("loop to itself", vec![then(readable(message, bytes), 0)], 0),
        ("loop of two", vec![then(readable(message, 8), 1), then(readable(message, 8), 0)], 0),
        ("next beyond the table", vec![then(readable(message, bytes), QUEUE_SIZE)], 0),
        ("address beyond memory", vec![readable(BASE + BYTES, 40)], 0),
        ("address below memory", vec![readable(8, 40)], 0),
        ("end beyond memory", vec![readable(last_page, 8192)], 0),
        ("end beyond all addresses", vec![readable(u64::MAX - 8, 64)], 0),
        ("reply beyond memory", vec![then(readable(message, bytes), 1), writable(0, 28)], 0),
        ("empty", vec![readable(message, 0)], 0),
        ("short header", vec![readable(message, 39)], 0),
        ("writable only", vec![writable(reply, 4096)], 0),
        ("readable only", vec![readable(message, bytes)], 0),
        (
            "readable after writable",
            vec![then(writable(reply, 28), 1), readable(message, bytes)],
            0,
        ),
        (
            "zero-length between",
            vec![then(readable(message, bytes), 1), then(readable(0, 0), 2), writable(reply, 28)],
            28,
        ),
        ("overlapping itself", vec![then(readable(message, bytes), 1), writable(message, 28)], 28),
        ("indirect, empty", vec![indirect(page(), 0)], 0),
        ("indirect, ragged", vec![indirect(page(), 17)], 0),
        ("indirect, outside", vec![indirect(BASE + BYTES - 16, 32)], 0),
        ("indirect, across regions", vec![indirect(SPLIT - 16, 32)], 0),
        ("indirect with next", vec![then(indirect(page(), 16), 1), readable(message, bytes)], 0),
        ("indirect in indirect", vec![indirect(nested, 16)], 0),
        ("indirect, next beyond it", vec![indirect(outside, 32)], 0),
        ("indirect, loop", vec![indirect(looped, 16)], 0),
    ]
}

#[test]
fn malformed_chain_comes_back_empty_and_the_queue_goes_on() {
    let (_door, mut guest) = Door::with_guest(OPTIONS);
    for (name, chain, expected) in chains() {
        offer(guest.raw(), &chain);
        let used = guest.raw().wait_used(SOON);
        assert_eq!(used, Some((0, expected)), "{name}");
        echo(&guest, 1, INLINE, name.as_bytes());
    }
    let (_, sound, expected) = chains().swap_remove(0);
    offer(guest.raw(), &sound);
    assert_eq!(guest.raw().wait_used(SOON), Some((0, expected)));
}

#[test]
fn buffer_across_regions_is_whole() {
    let (_door, mut guest) = Door::with_guest(OPTIONS);
    let message = message(INLINE, 42, &[9; 40]);
    let bytes = u32::try_from(message.len()).expect("short");
    memory().write(SPLIT - 44, &message);
    let reply = SPLIT - 1000;
    memory().write(reply, &[0; 56]);
    offer(guest.raw(), &[then(readable(SPLIT - 44, bytes), 1), writable(reply, 56)]);
    assert_eq!(guest.raw().wait_used(SOON), Some((0, 56)));
    let mut echoed = [0; 56];
    memory().read(reply, &mut echoed);
    assert_eq!(echoed[16..], [9; 40]);

    let reply = SPLIT - 20;
    memory().write(reply - 600, &message);
    offer(guest.raw(), &[then(readable(reply - 600, bytes), 1), writable(reply, 56)]);
    assert_eq!(guest.raw().wait_used(SOON), Some((0, 56)));
    memory().read(reply, &mut echoed);
    assert_eq!(echoed[16..], [9; 40]);
}

#[test]
fn huge_indirect_tables_cost_little() {
    // Other tests of this process run beside: the least of three tries had fewest of them.
    let least = |entries| (0..3).map(|_| cpu_of_indirect_tables(entries)).min();
    let within = least(1024).expect("three tries");
    let beyond = least(u16::MAX).expect("three tries");
    // Who reads the whole table takes 64 times as long.
    assert!(beyond < within * 8, "{beyond:?} of CPU, {within:?} for as much as a chain may have");
}

/// CPU time of a queue full of chains whose table has so many entries.
fn cpu_of_indirect_tables(entries: u16) -> Duration {
    let (_door, mut guest) = Door::with_guest(OPTIONS);
    let (message, bytes) = written_message(b"");
    let table = memory().allocate(u64::from(entries) * 16 / PAGE_BYTES + 1);
    for index in 0..entries {
        write_descriptor(table, index, then(readable(message, bytes), index.wrapping_add(1)));
    }
    let start = clock_gettime(ClockId::ProcessCPUTime);
    guest.raw().describe(0, indirect(table, u32::from(entries) * 16));
    for _ in 0..QUEUE_SIZE {
        guest.raw().make_available(0);
    }
    guest.raw().kick();
    for _ in 0..QUEUE_SIZE {
        assert_eq!(guest.raw().wait_used(SOON * 10), Some((0, 0)), "{entries} entries");
    }
    let end = clock_gettime(ClockId::ProcessCPUTime);
    echo(&guest, 1, INLINE, b"");
    Duration::try_from(end - start).expect("a clock that goes forward")
}

/// What breaks a whole queue: nothing more comes from it, all others go on, and the VMM may set
/// it up again.
#[test]
fn broken_queue_rests_alone() {
    type Break = fn(&mut RawRing);
    let rows: [(&str, Break); 4] = [
        ("available index far ahead", |ring| ring.set_available_index(QUEUE_SIZE + 1)),
        ("available index behind", |ring| ring.set_available_index(u16::MAX)),
        ("head beyond the table", |ring| ring.make_available(QUEUE_SIZE)),
        ("head far beyond the table", |ring| ring.make_available(u16::MAX)),
    ];
    for (name, break_it) in rows {
        let (_door, mut guest) = Door::with_guest(OPTIONS);
        break_it(guest.raw());
        guest.raw().kick();
        assert_eq!(guest.raw().wait_used(SOON / 5), None, "{name}");
        let (_, sound, expected) = chains().swap_remove(0);
        offer(guest.raw(), &sound);
        assert_eq!(guest.raw().wait_used(SOON / 5), None, "{name}");
        echo(&guest, 1, INLINE, name.as_bytes());
        guest.stop(2);
        restart_raw(&mut guest);
        offer(guest.raw(), &sound);
        assert_eq!(guest.raw().wait_used(SOON), Some((0, expected)), "{name}");
    }
}

fn restart_raw(guest: &mut VirtualGuest) {
    *guest.raw() = RawRing::new();
    let place = guest.raw().place();
    guest.start(2, 0, &place);
}

#[test]
fn the_same_chain_over_and_over_is_bounded() {
    let (door, mut guest) = Door::with_guest(OPTIONS);
    door.echo.hold(Some(POOL));
    let (address, message) = (page(), message(POOL, 7, b""));
    memory().write(address, &message);
    guest.raw().describe(0, readable(address, 40));
    for _ in 0..20 {
        for _ in 0..QUEUE_SIZE / 2 {
            guest.raw().make_available(0);
        }
        guest.raw().kick();
        std::thread::sleep(Duration::from_millis(5));
    }
    echo(&guest, 1, INLINE, b"the other queue");
    door.echo.hold(None);
    let mut answered = 0;
    while guest.raw().wait_used(SOON).is_some() {
        answered += 1;
    }
    assert_eq!(answered, QUEUE_SIZE);
}

#[test]
fn rings_outside_memory_are_refused() {
    let (_door, mut guest) = Door::with_guest(OPTIONS);
    guest.stop(2);
    let mut place = guest.raw().place();
    // The last page of memory: the table would end beyond.
    place.layout.descriptors = BASE + BYTES - PAGE_BYTES;
    let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        guest.start(2, 0, &place);
    }));
    assert!(refused.is_err());
    echo(&guest, 1, INLINE, b"the connection holds");
}

#[test]
fn inline_requests_are_answered_in_order() {
    let (_door, mut guest) = Door::with_guest(OPTIONS);
    let (message, bytes) = written_message(b"");
    let reply = page();
    let heads: Vec<u16> = (0..QUEUE_SIZE).step_by(2).map(|head| (head * 7) % QUEUE_SIZE).collect();
    for &head in &heads {
        guest.raw().describe(head, then(readable(message, bytes), head + 1));
        guest.raw().describe(head + 1, writable(reply, 16));
        guest.raw().make_available(head);
    }
    guest.raw().kick();
    for head in heads {
        assert_eq!(guest.raw().wait_used(SOON), Some((u32::from(head), 16)));
    }
}
