//! The vhost-user door, served in this process behind a FUSE layer that only echoes.
#![allow(clippy::expect_used, reason = "a test that cannot go on says so")]

use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use tests::echo::{Door, INLINE, LATER, POOL, SILENT, STREAM, config, echo, message};
use tests::guest::{GuestOptions, HIPRIO, VirtualGuest};
use tests::memory::memory;
use thinroot::door::vhost_user::{DoorConfig, DoorEvent, End, Endpoint};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;

#[test]
fn requests_come_back_from_every_place_and_queue() {
    for has_event_idx in [true, false] {
        for has_indirect in [true, false] {
            let options =
                GuestOptions { queues: 3, has_event_idx, has_indirect, has_raw_ring: false };
            let (_door, guest) = Door::with_guest(options);
            for queue in 0..=3 {
                for opcode in [INLINE, POOL, STREAM, LATER] {
                    for size in [1, 100, 5000] {
                        echo(&guest, queue, opcode, &vec![7; size]);
                    }
                }
            }
        }
    }
}

#[test]
fn rings_wrap() {
    for has_event_idx in [true, false] {
        let options = GuestOptions { has_event_idx, ..GuestOptions::default() };
        let (_door, guest) = Door::with_guest(options);
        for turn in 0..70_000_u32 {
            echo(&guest, 1, INLINE, &turn.to_ne_bytes());
        }
    }
}

#[test]
fn what_waits_holds_up_nothing_else() {
    for (waits, other) in [(POOL, STREAM), (STREAM, POOL)] {
        let options = GuestOptions { queues: 2, ..GuestOptions::default() };
        let (door, guest) = Door::with_guest(options);
        door.echo.hold(Some(waits));
        let send = |_| guest.send(1, &[&message(waits, guest.unique(), b"stuck")], &[16, 5]);
        let stuck: Vec<_> = (0..100).map(send).collect();
        for _ in 0..1000 {
            let used = guest.request(HIPRIO, &[&message(SILENT, guest.unique(), &[0; 8])], &[]);
            assert_eq!(used.bytes, 0);
        }
        assert_eq!(door.echo.silent(), 1000);
        echo(&guest, 1, INLINE, b"the same queue");
        echo(&guest, 2, INLINE, b"the other queue");
        echo(&guest, 1, other, b"the other pool");
        door.echo.hold(None);
        for token in stuck {
            assert_eq!(guest.queue(1).wait(token).bytes, 21);
        }
    }
}

#[test]
fn door_listens_again_after_each_guest() {
    let dir = tempfile::tempdir().expect("temp dir");
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).expect("bind");
    let door = Door::open(Endpoint::Listening(listener), config(2));
    assert_eq!(door.events.recv(), Ok(DoorEvent::Listening));
    for turn in 0..20 {
        let guest = VirtualGuest::connect(&socket, GuestOptions::default());
        assert_eq!(door.events.recv(), Ok(DoorEvent::Connected));
        echo(&guest, 1, INLINE, b"hello");
        let end = if turn % 2 == 0 { End::Clean } else { End::Crash };
        if turn % 2 == 0 {
            guest.shut_down()
        } else {
            guest.crash()
        }
        assert_eq!(door.events.recv(), Ok(DoorEvent::Disconnected(end)));
    }
}

#[test]
fn stopped_queue_goes_on_where_it_was() {
    for has_event_idx in [true, false] {
        let options = GuestOptions { has_event_idx, ..GuestOptions::default() };
        let (_door, mut guest) = Door::with_guest(options);
        for turn in 0..50_u32 {
            for _ in 0..turn {
                echo(&guest, 1, INLINE, b"before");
            }
            let base = guest.stop(1);
            let missed = guest.send(1, &[&message(INLINE, 2, b"while stopped")], &[29]);
            let early = guest.queue(1).wait_for(missed, Duration::from_millis(2));
            assert_eq!(early, None, "a stopped queue is not looked at");
            guest.resume(1, base);
            assert_eq!(guest.queue(1).wait(missed).bytes, 29);
        }
    }
}

#[test]
fn disabled_queue_waits() {
    let (_door, mut guest) = Door::with_guest(GuestOptions::default());
    guest.frontend().set_vring_enable(1, false).expect("SET_VRING_ENABLE");
    let sent = guest.send(1, &[&message(INLINE, 2, b"")], &[16]);
    assert_eq!(guest.queue(1).wait_for(sent, Duration::from_millis(50)), None);
    guest.frontend().set_vring_enable(1, true).expect("SET_VRING_ENABLE");
    assert_eq!(guest.queue(1).wait(sent).bytes, 16);
}

#[test]
fn stopping_waits_for_the_disk_and_cuts_streams_off() {
    let (door, mut guest) = Door::with_guest(GuestOptions::default());
    door.echo.hold(Some(STREAM));
    let stream = guest.send(1, &[&message(STREAM, 77, b"never")], &[16, 5]);
    let disk = guest.send(1, &[&message(POOL, 78, b"soon")], &[16, 4]);
    // Chains are taken in order: when this one is back, those two are on their way.
    echo(&guest, 1, INLINE, b"");
    let base = guest.stop(1);
    let used = guest.queue(1).wait(disk);
    assert_eq!((used.bytes, &used.written[16..]), (20, &b"soon"[..]));
    let used = guest.queue(1).wait(stream);
    assert_eq!(used.bytes, 16);
    assert_eq!(used.written[4..8], (-4_i32).to_ne_bytes(), "EINTR: ask again");
    assert_eq!(used.written[8..16], 77_u64.to_ne_bytes());
    // What was cut off ends later, and must not reach the guest any more.
    door.echo.hold(None);
    guest.resume(1, base);
    for _ in 0..100 {
        echo(&guest, 1, INLINE, b"goes on");
        echo(&guest, 1, STREAM, b"goes on");
    }
}

#[test]
fn memory_changes_under_running_queues() {
    let (_door, mut guest) =
        Door::with_guest(GuestOptions { queues: 3, ..GuestOptions::default() });
    for turn in 0..200_u32 {
        let under_way: Vec<_> = (0..30)
            .map(|_| (guest.send(2, &[&message(POOL, 9, b"x")], &[17]), 2))
            .chain((0..30).map(|_| (guest.send(3, &[&message(INLINE, 9, b"x")], &[17]), 3)))
            .collect();
        if turn % 2 == 0 {
            guest.frontend().set_mem_table(&memory().regions()).expect("SET_MEM_TABLE");
        } else {
            // The upper region goes and comes: nothing lies in it yet.
            let upper = memory().regions()[1];
            guest.frontend().remove_mem_region(&upper).expect("REM_MEM_REG");
            guest.frontend().add_mem_region(&upper).expect("ADD_MEM_REG");
        }
        for (token, queue) in under_way {
            assert_eq!(guest.queue(queue).wait(token).bytes, 17);
        }
    }
}

#[test]
fn stray_messages_are_refused_and_the_connection_holds() {
    let (_door, mut guest) = Door::with_guest(GuestOptions::default());
    let frontend = guest.frontend();
    assert!(frontend.set_vring_num(1, 3).is_err(), "no power of two");
    assert!(frontend.set_vring_num(1, 0).is_err());
    assert!(frontend.set_features(u64::MAX).is_err());
    let [lower, upper] = memory().regions();
    frontend.remove_mem_region(&upper).expect("REM_MEM_REG");
    assert!(frontend.remove_mem_region(&upper).is_err(), "gone already");
    assert!(frontend.add_mem_region(&lower).is_err(), "overlaps");
    frontend.add_mem_region(&upper).expect("ADD_MEM_REG");
    frontend.set_owner().expect("a second SET_OWNER");
    echo(&guest, 1, INLINE, b"");
}

#[test]
fn configuration_is_there_only_with_a_tag() {
    let flags = VhostUserConfigFlags::empty();
    let (_door, mut guest) = Door::with_guest(GuestOptions::default());
    assert!(guest.frontend().get_config(0, 40, flags, &[0; 40]).is_err());

    let (ours, theirs) = UnixStream::pair().expect("socket pair");
    let with_tag = DoorConfig { tag: Some("rootfs".to_owned()), ..config(4) };
    let _door = Door::open(Endpoint::Connected(theirs), with_tag);
    let mut guest = VirtualGuest::over(ours, GuestOptions::default());
    let (_, space) = guest.frontend().get_config(0, 60, flags, &[0; 60]).expect("GET_CONFIG");
    assert_eq!(&space[..7], b"rootfs\0");
    assert_eq!(space[36..40], 4_u32.to_le_bytes());
    assert!(space[7..36].iter().chain(&space[40..]).all(|byte| *byte == 0));
}

#[test]
fn many_requests_of_many_threads_all_come_back() {
    let (_door, guest) = Door::with_guest(GuestOptions { queues: 3, ..GuestOptions::default() });
    std::thread::scope(|scope| {
        for queue in 1..=3 {
            let guest = &guest;
            scope.spawn(move || {
                for turn in 0..200_u32 {
                    let body = turn.to_ne_bytes();
                    let opcodes = [INLINE, POOL, STREAM, LATER];
                    let sent: Vec<_> = (0..40)
                        .map(|n| {
                            let message = message(opcodes[n % 4], guest.unique(), &body);
                            (guest.send(queue, &[&message], &[16, 4]), message)
                        })
                        .collect();
                    for (token, message) in sent {
                        let used = guest.queue(queue).wait(token);
                        assert_eq!(used.bytes, 20);
                        assert_eq!(used.written[8..16], message[8..16]);
                        assert_eq!(used.written[16..], body);
                    }
                }
            });
        }
    });
}
