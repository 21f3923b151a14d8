//! Files of which the upper has the attributes alone (law U48).

use super::*;
use crate::sys::fault;

fn base(base: &Path) {
    fs::create_dir_all(base.join("dir")).unwrap();
    fs::write(base.join("dir/small"), pattern(SMALL)).unwrap();
    fs::write(base.join("dir/large"), pattern(LARGE)).unwrap();
}

const SMALL: usize = 3 * 4096 + 77;
const LARGE: usize = 60 * 4096 + 77;

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| u8::try_from(at / 7 % 251).unwrap()).collect()
}

fn chmod(union: &Union, id: NodeId) {
    let change = SetAttributes { mode: Some(0o640), ..SetAttributes::default() };
    union.set_attributes(&ROOT, id, &change).unwrap();
}

/// Marks may take a block, and no more.
fn has_data(path: &Path) -> bool {
    fs::metadata(path).unwrap().blocks() > 8
}

fn has_mark(path: &Path, mark: &str) -> bool {
    rustix::fs::getxattr(path, format!("trusted.overlay.{mark}"), &mut [0; 300][..]).is_ok()
}

/// What makes a file one without data of its own; the path it is at then.
type Change = fn(&World, &str) -> String;

const CHANGES: [(&str, Change); 4] = [
    ("chmod", |world, path| {
        chmod(&world.union, world.id(path));
        path.to_owned()
    }),
    ("rename", |world, path| {
        world.rename(path, "moved", PLAIN).unwrap();
        "moved".to_owned()
    }),
    ("chmod and rename", |world, path| {
        chmod(&world.union, world.id(path));
        world.rename(path, "moved", PLAIN).unwrap();
        "moved".to_owned()
    }),
    ("link", |world, path| {
        world.union.link(world.id(path), NodeId::ROOT, name("linked")).unwrap();
        "linked".to_owned()
    }),
];

#[test]
fn change_of_attributes_or_name_moves_no_data() {
    for (path, bytes) in [("dir/small", SMALL), ("dir/large", LARGE)] {
        for (row, change) in CHANGES {
            let Some(world) = world(base) else { return };
            let (id, before) = (world.id(path), world.walk(path).unwrap().attributes);
            let at = change(&world, path);
            let row = format!("{row} of {path}");
            let check = |world: &World, when: &str| {
                let after = world.walk(&at).unwrap().attributes;
                assert_eq!((after.node, after.size), (id, before.size), "{row} {when}");
                assert_eq!(after.mtime, before.mtime, "{row}");
                assert!(after.blocks == before.blocks || is_on_huge_pages(), "{row}: room");
                assert!(whole(&world.union, id) == pattern(bytes), "{row} {when}: bytes");
                let is_shared = bytes == LARGE && world.union.upper.shares_blocks();
                let is_moved = has_data(&world.at("upper").join(&at)) && !is_shared;
                assert!(!is_moved, "{row} {when}: data moved");
            };
            check(&world, "at once");
            let world = world.remount();
            world.id(&at);
            check(&world, "after a remount");
            world.union.sync(id, false).unwrap();
            check(&world, "after a sync");
        }
    }
}

#[test]
fn first_change_of_data_takes_a_small_file_along_and_a_large_one_by_block() {
    type Write = fn(&World, NodeId, &mut Vec<u8>);
    let writes: [(&str, Write); 5] = [
        ("write", |world, id, expected| {
            put(&world.union, id, 5000, b"written");
            expected[5000..5007].copy_from_slice(b"written");
        }),
        ("cut", |world, id, expected| {
            cut(&world.union, id, 5000);
            expected.truncate(5000);
        }),
        ("cut to nothing and write", |world, id, expected| {
            cut(&world.union, id, 0);
            put(&world.union, id, 3, b"z");
            *expected = b"\0\0\0z".to_vec();
        }),
        ("growth", |world, id, expected| {
            cut(&world.union, id, 500_000);
            expected.resize(500_000, 0);
        }),
        ("punch", |world, id, expected| {
            // falloc.h: FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE.
            let punch =
                Allocate { mode: 3, offset: 4096, size: 4096, privileges: Privileges::Keep };
            world.union.allocate(id, &punch).unwrap();
            expected[4096..8192].fill(0);
        }),
    ];
    for (path, bytes) in [("dir/small", SMALL), ("dir/large", LARGE)] {
        for (write_name, write) in writes {
            for (change_name, change) in CHANGES {
                let row = format!("{change_name} of {path}, then {write_name}");
                let Some(world) = world(base) else { return };
                let at = change(&world, path);
                let world = world.remount();
                let mut expected = pattern(bytes);
                // A reader from before must not keep to the lower.
                assert!(whole(&world.union, world.id(&at)) == expected, "{row}: before");
                write(&world, world.id(&at), &mut expected);
                assert!(whole(&world.union, world.id(&at)) == expected, "{row}: at once");
                world.union.sync(world.id(&at), false).unwrap();
                let world = world.remount();
                assert!(whole(&world.union, world.id(&at)) == expected, "{row}: later");
                world.union.settle_all().unwrap();
                assert!(fs::read(world.at("upper").join(&at)).unwrap() == expected, "{row}");
            }
        }
    }
}

#[test]
fn small_file_is_whole_after_its_first_write_and_keeps_capabilities() {
    let Some(world) = world(base) else { return };
    let id = world.id("dir/small");
    // linux/capability.h: VFS_CAP_REVISION_2, CAP_NET_RAW permitted.
    let capability =
        [&0x0200_0000_u32.to_le_bytes()[..], &0x2000_u32.to_le_bytes(), &[0; 12]].concat();
    let name = b"security.capability";
    let set = SetXattr { name, value: &capability, flags: 0, kill_setgid: false };
    world.union.set_xattr(&ROOT, id, &set).unwrap();
    let upper = world.at("upper/dir/small");
    assert!(!has_data(&upper) && has_mark(&upper, "metacopy"));
    put(&world.union, id, 1, b"x");
    assert_eq!(world.union.xattr(&ROOT, id, name).as_deref(), Ok(&capability[..]));
    for mark in ["metacopy", "redirect", "thinroot.blocks"] {
        assert!(!has_mark(&upper, mark), "{mark} stays");
    }
    let mut expected = pattern(SMALL);
    expected[1] = b'x';
    assert!(fs::read(&upper).unwrap() == expected);
}

#[test]
fn truncation_of_a_large_file_moves_nothing() {
    let Some(world) = world_by_block(base) else { return };
    let id = world.id("dir/large");
    cut(&world.union, id, 9000);
    assert!(!has_data(&world.at("upper/dir/large")));
    assert!(whole(&world.union, id) == pattern(LARGE)[..9000]);
    let shown = world.union.attributes(id).unwrap();
    let lower = fs::metadata(world.at("base/dir/large")).unwrap();
    assert!(
        (shown.mtime.seconds, shown.mtime.nanoseconds.into()) > (lower.mtime(), lower.mtime_nsec())
    );
    let world = world.remount();
    let id = world.id("dir/large");
    cut(&world.union, id, 20_000);
    let mut expected = pattern(LARGE)[..9000].to_vec();
    expected.resize(20_000, 0);
    assert!(whole(&world.union, id) == expected);
}

/// What a file system may leave of a file that was not synced itself.
#[test]
fn length_that_a_power_loss_took_is_the_lowers() {
    let Some(world) = world(base) else { return };
    let before = world.walk("dir/small").unwrap().attributes;
    chmod(&world.union, world.id("dir/small"));
    let World { temp, union } = world;
    drop(union);
    let upper = temp.path().join("upper/dir/small");
    fs::File::options().write(true).open(&upper).unwrap().set_len(0).unwrap();
    let times = fs::FileTimes::new().set_modified(
        fs::metadata(temp.path().join("base/dir/small")).unwrap().modified().unwrap(),
    );
    fs::File::options().write(true).open(&upper).unwrap().set_times(times).unwrap();
    let world = World { union: join(temp.path()), temp };
    let after = world.walk("dir/small").unwrap().attributes;
    assert_eq!((after.size, after.mtime, after.mode & 0o7777), (before.size, before.mtime, 0o640));
    assert!(whole(&world.union, world.id("dir/small")) == pattern(SMALL));
}

/// A name that is given or changed while the first change of the file's data is halfway (law U48):
/// whichever comes first, its marks say that its data is in both layers.
#[test]
fn new_name_within_a_first_write_leaves_the_file_one_by_block() {
    type Way = fn(&World);
    let ways: [(&str, Way); 2] = [
        ("link", |world| {
            world.union.link(world.id("moved"), NodeId::ROOT, name("new")).map(drop).unwrap();
        }),
        ("rename", |world| world.rename("moved", "new", PLAIN).unwrap()),
    ];
    // For one who waits for the other's lock.
    let meeting = std::time::Duration::from_millis(200);
    for (way, give) in ways {
        let large_base = |base: &Path| fs::write(base.join("large"), pattern(LARGE)).unwrap();
        let Some(world) = world_by_block(large_base) else { return };
        chmod(&world.union, world.id("large"));
        let world = world.remount();
        world.rename("large", "moved", PLAIN).unwrap();
        let id = world.id("moved");
        let (is_half, half) = std::sync::mpsc::channel();
        let (is_named, named) = std::sync::mpsc::channel();
        let (is_written, written) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                fault::before_next_call(move || {
                    is_half.send(()).unwrap();
                    named.recv_timeout(meeting).unwrap_or_default();
                });
                put(&world.union, id, 0, &[7; 4096]);
                is_written.send(()).unwrap_or_default();
            });
            half.recv().unwrap();
            fault::before_next_call(move || {
                is_named.send(()).unwrap_or_default();
                written.recv_timeout(meeting).unwrap_or_default();
            });
            give(&world);
        });
        let mut expected = pattern(LARGE);
        expected[..4096].fill(7);
        let world = world.remount();
        assert!(whole(&world.union, world.id("new")) == expected, "{way}");
    }
}
