//! What a guest is promised, asked of a real `thinroot serve` through its socket.
#![allow(clippy::expect_used, reason = "a test that cannot go on says so")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tests::daemon::Ground;
use tests::guest::{GuestOptions, HIPRIO};
use tests::requests::{Change, Mount, OFFERED, ROOT};
use tests::wire::{Bytes, error_of, opcode, u32_at};
use thinroot::vm::events::{Event, Record};
use thinroot::vm::traffic::Requests;

/// As long as the wire can say, near enough.
const FOREVER: u64 = 1 << 31;

const NO_OPEN_SUPPORT: u64 = 1 << 17;
const WRITEBACK_CACHE: u64 = 1 << 16;

fn ground() -> Ground {
    let ground = Ground::new();
    ground.file("etc/hostname", "base\n").file("etc/passwd", "root\n").file("bin/sh", [7; 9000]);
    ground.directory("var/empty");
    fs::set_permissions(ground.lower().join("bin/sh"), fs::Permissions::from_mode(0o755))
        .expect("chmod");
    std::os::unix::fs::symlink("../etc", ground.lower().join("var/etc")).expect("symlink");
    fs::hard_link(ground.lower().join("bin/sh"), ground.lower().join("bin/bash")).expect("link");
    ground
}

#[test]
fn guest_may_cache_for_ever_and_never_opens() {
    let ground = ground();
    let daemon = ground.serve();
    let mount = daemon.mount();
    assert_ne!(mount.agreed.flags & NO_OPEN_SUPPORT, 0);
    assert_ne!(mount.agreed.flags & WRITEBACK_CACHE, 0);
    assert_eq!(mount.agreed.flags & !OFFERED, 0, "only what was offered");
    assert!(mount.agreed.max_pages >= 256);
    let etc = mount.lookup(ROOT, b"etc").expect("etc");
    assert!(etc.entry_valid > FOREVER && etc.attr_valid > FOREVER);
    assert_eq!(mount.open(mount.resolve("etc/hostname").expect("a file"), 0), Err(Errno::NOSYS));
    let absent = mount.call(opcode::LOOKUP, ROOT, b"absent\0", 128).expect("a negative entry");
    assert_eq!(absent[..8], [0; 8]);
    mount.unmount();
}

#[test]
fn lower_is_seen_as_it_is() {
    let ground = ground();
    let daemon = ground.serve();
    let mount = daemon.mount();
    assert_eq!(mount.names(ROOT).expect("root"), ["bin", "etc", "var"]);
    let sh = mount.lookup(mount.resolve("bin").expect("bin"), b"sh").expect("sh");
    let bash = mount.resolve("bin/bash").expect("bash");
    assert_eq!((sh.node, sh.attr.nlink), (bash, 2), "a hard link is one node");
    let host = fs::metadata(ground.lower().join("bin/sh")).expect("stat");
    assert_eq!((sh.attr.mode, sh.attr.size), (host.mode(), host.size()));
    assert_eq!(i64::try_from(sh.attr.mtime.0), Ok(host.mtime()));
    assert_eq!(mount.read_all(sh.node), Ok(vec![7; 9000]));
    let link = mount.resolve("var/etc").expect("a symlink");
    assert_eq!(mount.readlink(link), Ok(b"../etc".to_vec()));
    assert_eq!(mount.getattr(mount.resolve("var").expect("var")).map(|a| a.nlink), Ok(3));
    let (blocks, free, _) = mount.statfs().expect("statfs");
    assert!(free <= blocks);
}

#[test]
fn changes_stay_in_the_upper_and_survive_everything() {
    let ground = ground();
    let before = fs::metadata(ground.lower().join("etc/hostname")).expect("stat");
    let daemon = ground.serve();
    let mount = daemon.mount();
    let etc = mount.resolve("etc").expect("etc");
    let hostname = mount.lookup(etc, b"hostname").expect("hostname");
    mount.write_all(hostname.node, 0, b"guest").expect("write");
    assert_eq!(mount.read_all(hostname.node), Ok(b"guest".to_vec()));
    mount.unlink(etc, b"passwd").expect("unlink");
    assert_eq!(mount.lookup(etc, b"passwd"), Err(Errno::NOENT));
    let data: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let new = mount.write_new(etc, b"big", 0o640, &data).expect("create");
    assert_eq!((new.attr.mode, new.attr.size), (0o100_640, 3_000_000));
    mount.rename2((ROOT, b"var"), (etc, b"moved"), 0).expect("rename of a directory");
    mount.setxattr(new.node, b"user.colour", b"blue", 0).expect("setxattr");
    mount.crash();

    let check = |mount: &Mount, turn: &str| {
        let etc = mount.resolve("etc").expect(turn);
        assert_eq!(mount.names(etc).expect(turn), ["big", "hostname", "moved"], "{turn}");
        assert_eq!(mount.names(ROOT).expect(turn), ["bin", "etc"], "{turn}");
        let again = mount.lookup(etc, b"hostname").expect(turn);
        assert_eq!(again.node, hostname.node, "{turn}: copied up, the same number");
        assert_eq!(mount.read_all(again.node), Ok(b"guest".to_vec()), "{turn}");
        let big = mount.resolve("etc/big").expect(turn);
        assert_eq!(big, new.node, "{turn}");
        assert!(mount.read_all(big).expect(turn) == data, "{turn}");
        assert_eq!(mount.getxattr(big, b"user.colour"), Ok(b"blue".to_vec()), "{turn}");
        mount.resolve("etc/moved/empty").expect(turn);
    };
    let mount = daemon.mount();
    check(&mount, "after the VMM died");
    mount.unmount();
    assert!(daemon.terminate().success());
    let daemon = ground.serve();
    let mount = daemon.mount();
    check(&mount, "after the daemon ended");
    mount.crash();
    daemon.kill();
    let daemon = ground.serve();
    check(&daemon.mount(), "after the daemon was killed");

    let after = fs::metadata(ground.lower().join("etc/hostname")).expect("stat");
    assert_eq!((before.mtime(), before.ctime_nsec()), (after.mtime(), after.ctime_nsec()));
    assert_eq!(fs::read(ground.lower().join("etc/hostname")).expect("read"), b"base\n");
}

#[test]
fn requests_of_every_kind_answer() {
    let ground = ground();
    let daemon = ground.serve();
    let mount = daemon.mount();
    let dir = mount.mkdir(ROOT, b"dir", 0o777).expect("mkdir");
    assert_eq!(dir.attr.mode & 0o7777, 0o755, "the umask counts");
    assert_eq!(mount.mkdir(ROOT, b"dir", 0o777), Err(Errno::EXIST));
    let file = mount.create_new(dir.node, b"file", 0o644).expect("create");
    let fifo = mount.mknod(dir.node, b"fifo", 0o010_600, 0).expect("mknod");
    assert_eq!(fifo.attr.kind(), 0o010_000);
    let link = mount.symlink(dir.node, b"link", b"file").expect("symlink");
    assert_eq!(mount.readlink(link.node), Ok(b"file".to_vec()));
    let second = mount.link(file.node, dir.node, b"second").expect("link");
    assert_eq!((second.node, second.attr.nlink), (file.node, 2));
    let loose = mount.tmpfile(dir.node, 0o600).expect("tmpfile");
    mount.write_all(loose.node, 0, b"loose").expect("write");
    assert_eq!(mount.read_all(loose.node), Ok(b"loose".to_vec()));
    mount.write_all(file.node, 100, b"tail").expect("write");
    let changed = mount
        .setattr(file.node, Change { size: Some(102), mode: Some(0o600), ..Change::default() })
        .expect("setattr");
    assert_eq!((changed.size, changed.mode), (102, 0o100_600));
    mount.fallocate(file.node, 0, 0, 8192).expect("fallocate");
    assert_eq!(mount.getattr(file.node).map(|attr| attr.size), Ok(8192));
    // Holes are not told where the guest may hold data of them back.
    assert_eq!(mount.lseek(file.node, 9000, 3), Err(Errno::NOSYS));
    assert_eq!(mount.copy_file_range((file.node, 100), (loose.node, 0), 2), Ok(2));
    assert_eq!(mount.read_all(loose.node), Ok(b"taose".to_vec()));
    mount.fsync(file.node).expect("fsync");
    mount.syncfs().expect("syncfs");
    mount.setxattr(file.node, b"user.a", b"1", 1).expect("setxattr");
    assert_eq!(mount.setxattr(file.node, b"user.a", b"2", 1), Err(Errno::EXIST));
    assert_eq!(mount.listxattr(file.node), Ok(vec![b"user.a".to_vec()]));
    mount.removexattr(file.node, b"user.a").expect("removexattr");
    assert_eq!(mount.getxattr(file.node, b"user.a"), Err(Errno::NODATA));
    assert_eq!(mount.rmdir(ROOT, b"dir"), Err(Errno::NOTEMPTY));
    for name in mount.names(dir.node).expect("readdir") {
        mount.unlink(dir.node, name.as_bytes()).expect("unlink");
    }
    mount.rmdir(ROOT, b"dir").expect("rmdir");
    let rename = mount.rename2((ROOT, b"etc"), (ROOT, b"bin"), 2);
    rename.expect("RENAME_EXCHANGE of two lower directories");
    assert_eq!(
        mount.names(mount.resolve("bin").expect("bin")).expect("ls"),
        ["hostname", "passwd"]
    );
    mount.forget(file.node, 1);
    mount.batch_forget(&[(file.node, u64::MAX), (loose.node, 1), (u64::MAX, 5)]);
    assert_eq!(mount.getattr(ROOT).map(|attr| attr.ino), Ok(1));
}

#[test]
fn no_name_leaves_its_directory() {
    let ground = ground();
    fs::write(ground.path("outside"), "host").expect("write");
    let daemon = ground.serve();
    let mount = daemon.mount();
    let etc = mount.resolve("etc").expect("etc");
    let long = [b'n'; 256];
    let names: [&[u8]; 6] = [b"", b".", b"..", b"a/b", b"../../outside", &long];
    let bodies: [(u32, &[u8]); 10] = [
        (opcode::MKDIR, &[0; 8]),
        (opcode::MKNOD, &[0; 16]),
        (opcode::CREATE, &[0; 16]),
        (opcode::UNLINK, &[]),
        (opcode::RMDIR, &[]),
        (opcode::LINK, &[1, 0, 0, 0, 0, 0, 0, 0]),
        (opcode::SYMLINK, &[]),
        (opcode::RENAME, &[1, 0, 0, 0, 0, 0, 0, 0]),
        (opcode::RENAME2, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        (opcode::LOOKUP, &[]),
    ];
    for (opcode, body) in bodies {
        for name in names {
            let is_link_to_oneself = opcode == opcode::LOOKUP && matches!(name, b"." | b"..");
            let body = Bytes::new().raw(body).name(name);
            let has_two = matches!(opcode, opcode::SYMLINK | opcode::RENAME | opcode::RENAME2);
            let body = if has_two { body.name(b"x") } else { body };
            let answer = mount.call(opcode, etc, &body.0, 256);
            assert_eq!(answer.is_ok(), is_link_to_oneself, "opcode {opcode}: {name:?}");
        }
        // Without any NUL, and with nothing at all.
        let body = Bytes::new().raw(body).raw(b"unterminated");
        assert!(mount.call(opcode, etc, &body.0, 256).is_err(), "opcode {opcode}");
        assert!(mount.call(opcode, etc, &[], 256).is_err(), "opcode {opcode}");
    }
    assert_eq!(fs::read(ground.path("outside")).expect("still there"), b"host");
    assert_eq!(mount.names(etc).expect("ls"), ["hostname", "passwd"]);
}

#[test]
fn reply_that_does_not_fit_is_an_error() {
    let ground = ground();
    let daemon = ground.serve();
    let mount = daemon.mount();
    let hostname = mount.resolve("etc/hostname").expect("a file");
    let value = [b'v'; 1000];
    mount.setxattr(hostname, b"user.v", &value, 0).expect("setxattr");
    let ask = Bytes::new().u32(10).u32(0).name(b"user.v");
    assert_eq!(mount.call(opcode::GETXATTR, hostname, &ask.0, 10), Err(Errno::RANGE));
    for (opcode, body) in [(opcode::LOOKUP, &b"etc\0"[..]), (opcode::GETATTR, &[0; 16])] {
        for room in [0, 1, 87, 100] {
            let answer = mount.call(opcode, ROOT, body, room);
            assert_eq!(answer, Err(Errno::IO), "opcode {opcode} into {room}");
        }
    }
    for room in 0..16 {
        let message = mount.message(opcode::GETATTR, ROOT, &[0; 16]);
        assert_eq!(mount.guest.request(1, &[&message], &[room]).bytes, 0, "{room}");
    }
    let all = mount.readdir(ROOT, true).expect("readdir");
    for room in [160, 200, 500] {
        let mut rows = Vec::new();
        loop {
            let cookie = rows.last().map_or(0, |row: &tests::wire::Row| row.cookie);
            match mount.readdir_once(ROOT, cookie, room, true) {
                Ok(more) if more.is_empty() => break,
                Ok(more) => rows.extend(more),
                Err(errno) => panic!("room {room}: {errno}"),
            }
        }
        assert_eq!(rows.len(), all.len(), "room {room}");
    }
}

#[test]
fn lying_headers_are_answered_or_dropped() {
    let ground = ground();
    let daemon = ground.serve();
    let mount = daemon.mount();
    let guest = &mount.guest;
    let sound = mount.message(opcode::GETATTR, ROOT, &[0; 16]);
    for length in [0, 1, 39, 40, 41, 57, 1 << 20, u32::MAX] {
        let mut lying = sound.clone();
        lying[..4].copy_from_slice(&length.to_ne_bytes());
        let used = guest.request(1, &[&lying], &[16, 104]);
        assert!(used.bytes == 0 || u32_at(&used.written, 0) == used.bytes, "len {length}");
    }
    for opcode in [0, 7, 99, 4096, u32::MAX] {
        let used = guest.request(1, &[&mount.message(opcode, ROOT, &[0; 64])], &[4096]);
        assert_eq!(error_of(&used.written), Some(Errno::NOSYS), "opcode {opcode}");
    }
    for node in [0, 999_999, u64::MAX] {
        assert!(mount.getattr(node).is_err(), "node {node}");
    }
    let before_init = daemon_without_init(&ground);
    assert_ne!(before_init, None, "nothing is served before INIT");
    assert_eq!(mount.getattr(ROOT).map(|attr| attr.ino), Ok(1));
}

fn daemon_without_init(ground: &Ground) -> Option<Errno> {
    let other = Ground::new();
    fs::write(other.lower().join("x"), ground.path("x").as_os_str().as_encoded_bytes())
        .expect("write");
    let daemon = other.serve();
    let guest = daemon.guest(GuestOptions::default());
    let message = Bytes::new().u32(56).u32(opcode::GETATTR).u64(2).u64(ROOT).raw(&[0; 32]);
    error_of(&guest.request(1, &[&message.0], &[16, 104]).written)
}

#[test]
fn queues_work_side_by_side() {
    let ground = ground();
    let daemon = ground.serve();
    let guest = daemon.guest(GuestOptions { queues: 3, ..GuestOptions::default() });
    let mount = Mount::new(guest);
    std::thread::scope(|scope| {
        for queue in 1..=3 {
            let mount = mount.at_queue(queue);
            scope.spawn(move || {
                let name = format!("dir{queue}");
                let dir = mount.mkdir(ROOT, name.as_bytes(), 0o755).expect("mkdir").node;
                for turn in 0..60 {
                    let name = format!("file{turn}");
                    let data = vec![u8::try_from(turn).expect("small"); 5000];
                    let file = mount.write_new(dir, name.as_bytes(), 0o600, &data).expect("new");
                    assert_eq!(mount.read_all(file.node), Ok(data));
                    mount.fsync(file.node).expect("fsync");
                    mount.forget(file.node, 1);
                }
                assert_eq!(mount.names(dir).expect("ls").len(), 60);
            });
        }
    });
    assert_eq!(mount.names(ROOT).expect("ls"), ["bin", "dir1", "dir2", "dir3", "etc", "var"]);
}

/// Each connection is told for itself: in the event at its end, and with `--stats` in a table.
#[test]
fn requests_of_each_connection_are_counted() {
    let ground = ground();
    let events = ground.path("events");
    let daemon = ground.serve_with(&["--stats", "--events", events.to_str().expect("UTF-8")]);
    for lookups in [3, 5] {
        let mount = daemon.mount();
        for _ in 0..lookups {
            mount.lookup(ROOT, b"etc").expect("etc");
        }
        let file = mount.create(ROOT, b"new", 0o644).expect("new").node;
        mount.write(file, 0, &[7; 5000]).expect("write");
        mount.read(file, 0, 5000).expect("read");
        mount.unlink(ROOT, b"new").expect("unlink");
        mount.forget(file, 1);
        mount.unmount();
    }
    assert!(daemon.terminate().success());
    let text = fs::read_to_string(&events).expect("events");
    let ends: Vec<_> = text
        .lines()
        .filter_map(|line| match Record::parse(line)?.event {
            Event::Disconnected { requests, .. } => Some(requests),
            _ => None,
        })
        .collect();
    assert_eq!(ends.len(), 2, "{text}");
    let log = fs::read_to_string(ground.path("log")).expect("log");
    for (traffic, lookups) in ends.iter().zip([3, 5]) {
        // fuse.h: in_header 40, out_header 16, entry_out 128, write_in 40, write_out 8,
        // read_in 40, forget_in 8.
        let rows = [
            ("LOOKUP", lookups, lookups * (40 + 4), lookups * (16 + 128)),
            ("WRITE", 1, 40 + 40 + 5000, 16 + 8),
            ("READ", 1, 40 + 40, 16 + 5000),
            ("UNLINK", 1, 40 + 4, 16),
            ("FORGET", 1, 40 + 8, 0),
            ("DESTROY", 1, 40, 16),
        ];
        for (name, count, request_bytes, reply_bytes) in rows {
            let row = Requests { count, request_bytes, reply_bytes };
            assert_eq!(traffic.0.get(name), Some(&row), "{name}");
        }
        assert!(log.contains(&traffic.to_string()), "{log}");
    }
}

#[test]
fn hundred_thousand_requests_go_round() {
    let ground = ground();
    let daemon = ground.serve();
    let mount = daemon.mount();
    let sh = mount.resolve("bin/sh").expect("sh");
    let start = Instant::now();
    for _ in 0..100_000 {
        assert_eq!(mount.getattr(sh).map(|attr| attr.size), Ok(9000));
    }
    let each = start.elapsed() / 100_000;
    println!("GETATTR, queue depth 1: {each:?}, daemon CPU {:?}", daemon.cpu() / 100_000);
}

#[test]
fn guest_that_comes_again_starts_afresh() {
    let ground = ground();
    let daemon = ground.serve();
    for turn in 0..20_u32 {
        let mount = daemon.mount();
        assert_eq!(mount.resolve("bin/sh").and_then(|sh| mount.read(sh, 0, 10)), Ok(vec![7; 10]));
        mount.write_new(ROOT, format!("f{turn}").as_bytes(), 0o600, b"x").expect("new");
        if turn % 2 == 0 { mount.crash() } else { mount.unmount() }
    }
    let names = daemon.mount().names(ROOT).expect("ls");
    assert_eq!(names.len(), 23);
}

#[test]
fn hostile_chains_leave_the_daemon_serving() {
    use tests::raw_ring::{Descriptor, NEXT, WRITE};
    let ground = ground();
    let daemon = ground.serve();
    let guest = daemon.guest(GuestOptions { has_raw_ring: true, ..GuestOptions::default() });
    let mut mount = Mount::new(guest);
    let page = tests::memory::memory().allocate(1);
    for address in [0, page, u64::MAX - 100] {
        for bytes in [0, 1, 16, 40, 41, 4096, u32::MAX] {
            for flags in 0..8 {
                for next in [0, 1, 511, 512, u16::MAX] {
                    let guest = std::sync::Arc::get_mut(&mut mount.guest).expect("alone");
                    let ring = guest.raw();
                    ring.describe(0, Descriptor { address, bytes, flags, next });
                    let last = Descriptor { address: page, bytes: 64, flags: WRITE & !NEXT, next };
                    ring.describe(1, last);
                    ring.make_available(0);
                    ring.kick();
                    let used = ring.wait_used(Duration::from_secs(5));
                    assert!(used.is_some(), "{address:#x} {bytes} {flags} {next}");
                }
            }
        }
        assert_eq!(mount.getattr(ROOT).map(|attr| attr.ino), Ok(1));
    }
    let noise = daemon.log().lines().count();
    assert!(noise < 50, "{noise} lines of log\n{}", daemon.log());
    let forget = mount.message(opcode::FORGET, 5, &1_u64.to_ne_bytes());
    assert_eq!(mount.guest.request(HIPRIO, &[&forget], &[]).bytes, 0);
}

/// sys: values above 256 bytes and lists above 1,024 came back empty.
#[test]
fn long_xattrs_come_back_whole() {
    let ground = ground();
    let daemon = ground.serve();
    let mount = daemon.mount();
    let file = mount.resolve("etc/hostname").expect("a file");
    for bytes in [0, 1, 255, 256, 257, 1000, 2000] {
        let value = vec![b'v'; bytes];
        mount.setxattr(file, b"user.v", &value, 0).expect("setxattr");
        assert_eq!(mount.getxattr(file, b"user.v"), Ok(value), "{bytes}");
    }
    mount.removexattr(file, b"user.v").expect("removexattr");
    let mut names: Vec<Vec<u8>> =
        (0..12).map(|n| format!("user.{}{n:02}", "long".repeat(25)).into_bytes()).collect();
    for name in &names {
        mount.setxattr(file, name, b"", 0).expect("setxattr");
    }
    let mut listed = mount.listxattr(file).expect("listxattr");
    listed.sort_unstable();
    names.sort_unstable();
    assert_eq!(listed, names);
}
