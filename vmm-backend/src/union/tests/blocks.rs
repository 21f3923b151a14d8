//! Large lower files, which are copied up block by block.

use super::*;

#[test]
fn first_write_to_a_large_file_moves_its_block_alone() {
    let Some(world) = world_by_block(big_base) else { return };
    let mut expected = big_contents();
    let id = world.id("alone");
    let blocks = world.union.attributes(id).unwrap().blocks;
    put(&world.union, id, 100 * 4096 + 5, b"hello");
    expected[100 * 4096 + 5..][..5].copy_from_slice(b"hello");
    assert!(whole(&world.union, id) == expected);
    let is_same = world.union.attributes(id).unwrap().blocks == blocks;
    assert!(is_same || is_on_huge_pages(), "the room it takes");
    world.union.sync(id, false).unwrap();
    // One block each, and the map.
    let used: u64 =
        ["upper", "work/blocks", "work/live"].map(|it| walk_blocks(&world.at(it))).iter().sum();
    let most = if is_on_huge_pages() { 3 * (2 << 20) } else { 64 << 10 };
    assert!(used * 512 <= most, "{used} units of 512 bytes were written");
    let world = world.remount();
    assert!(whole(&world.union, world.id("alone")) == expected);
    let before = world.walk("alone").unwrap().attributes;
    let world = world.remount();
    assert_eq!(world.union.settle_all(), Ok(1));
    assert_eq!(world.union.settle_all(), Ok(0));
    let world = world.remount();
    let after = world.walk("alone").unwrap().attributes;
    assert_eq!((after.node, after.mtime), (before.node, before.mtime));
    assert!(fs::read(world.at("upper/alone")).unwrap() == expected);
    assert!(whole(&world.union, world.id("big-too")) == big_contents());
}

/// Units of 512 bytes that the files below a directory take.
fn walk_blocks(dir: &Path) -> u64 {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let meta = entry.metadata().unwrap();
            if meta.is_dir() { walk_blocks(&entry.path()) } else { meta.blocks() }
        })
        .sum()
}

#[test]
fn change_of_attributes_moves_no_data_of_a_large_file() {
    let Some(world) = world_by_block(big_base) else { return };
    let id = world.id("alone");
    let change = SetAttributes { mode: Some(0o600), ..SetAttributes::default() };
    assert_eq!(world.union.set_attributes(&ROOT, id, &change).unwrap().mode & 0o7777, 0o600);
    // The marks may take a block.
    assert!(fs::metadata(world.at("upper/alone")).unwrap().blocks() <= 8);
    assert!(whole(&world.union, id) == big_contents());
    let world = world.remount();
    let entry = world.walk("alone").unwrap();
    assert_eq!((entry.attributes.node, entry.attributes.mode & 0o7777), (id, 0o600));
    assert!(whole(&world.union, id) == big_contents());
}

#[test]
fn what_was_cut_off_never_falls_through_again() {
    let Some(world) = world(big_base) else { return };
    let id = world.id("alone");
    put(&world.union, id, 10, b"x");
    cut(&world.union, id, 200_001);
    let world = world.remount();
    let id = world.id("alone");
    cut(&world.union, id, 900_000);
    let mut expected = big_contents();
    expected[10] = b'x';
    expected.truncate(200_001);
    expected.resize(900_000, 0);
    assert!(whole(&world.union, id) == expected);
    put(&world.union, id, 200_003, b"y");
    expected[200_003] = b'y';
    assert!(whole(&world.union, id) == expected);
    cut(&world.union, id, 0);
    put(&world.union, id, 3, b"z");
    assert_eq!(whole(&world.union, id), b"\0\0\0z");
    assert_eq!(fs::read_dir(world.at("work/blocks")).unwrap().count(), 0, "no map is left");
    let world = world.remount();
    assert_eq!(whole(&world.union, world.id("alone")), b"\0\0\0z");
}

/// falloc.h: FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, and FALLOC_FL_ZERO_RANGE.
const PUNCH: u32 = 3;
const ZERO: u32 = 0x10;

#[test]
fn hole_in_a_large_file_moves_its_edges_alone() {
    let end = big_contents().len();
    let rows = [
        ("punch within a block", PUNCH, (9000, 100)),
        ("punch within blocks", PUNCH, (5000, 20_000)),
        ("punch of blocks", PUNCH, (4096, 81_920)),
        ("punch around what is written", PUNCH, (3 * 4096, 40_000)),
        ("punch to the end", PUNCH, (290 * 4096 + 1, 80_000)),
        ("punch beyond the end", PUNCH, (end + 5000, 5000)),
        ("zeroes within blocks", ZERO, (5000, 20_000)),
        ("zeroes beyond the end", ZERO, (290 * 4096 + 1, 80_000)),
    ];
    for (row, mode, (offset, size)) in rows {
        let Some(world) = world_by_block(big_base) else { return };
        let id = world.id("alone");
        put(&world.union, id, 7 * 4096 + 5, b"written");
        let mut expected = big_contents();
        expected[7 * 4096 + 5..][..7].copy_from_slice(b"written");
        let (from, privileges) = (offset as u64, Privileges::Keep);
        let range = Allocate { mode, offset: from, size: size as u64, privileges };
        world.union.allocate(id, &range).unwrap();
        if mode == ZERO {
            expected.resize(end.max(offset + size), 0);
        }
        let until = expected.len().min(offset + size);
        expected[offset.min(until)..until].fill(0);
        assert!(whole(&world.union, id) == expected, "{row}");
        world.union.sync(id, false).unwrap();
        let room = walk_blocks(&world.at("upper")) * 512;
        // What is zeroed has room; blocks that were written, at the edges, and of marks.
        let most = 5 * 4096 + if mode == ZERO { size as u64 + 4096 } else { 0 };
        assert!(room <= most || is_on_huge_pages(), "{row}: {room} bytes");
        let world = world.remount();
        assert!(whole(&world.union, world.id("alone")) == expected, "{row}, remounted");
        assert_eq!(world.union.settle_all(), Ok(1), "{row}");
        assert!(fs::read(world.at("upper/alone")).unwrap() == expected, "{row}, settled");
    }
}

type Growth = fn(&Union, NodeId);

/// A death after the file was cut, and before its mark was.
#[test]
fn cut_that_a_death_halved_is_kept_when_the_file_grows() {
    let grown: usize = 900_000;
    let ways: [(&str, Growth); 3] = [
        ("truncate", |union, id| cut(union, id, 900_000)),
        ("write", |union, id| put(union, id, 899_999, b"\0")),
        ("fallocate", |union, id| {
            let privileges = Privileges::Keep;
            let range = Allocate { mode: 0, offset: 6000, size: 894_000, privileges };
            union.allocate(id, &range).unwrap();
        }),
    ];
    for (way, grow) in ways {
        let Some(world) = world_by_block(big_base) else { return };
        let id = world.id("alone");
        put(&world.union, id, 10, b"x");
        world.union.sync(id, false).unwrap();
        let World { temp, union } = world;
        drop(union);
        let upper = temp.path().join("upper/alone");
        fs::File::options().write(true).open(upper).unwrap().set_len(5000).unwrap();
        let world = World { union: join(temp.path()), temp };
        let id = world.id("alone");
        grow(&world.union, id);
        let mut expected = big_contents();
        expected[10] = b'x';
        expected.truncate(5000);
        expected.resize(grown, 0);
        assert!(whole(&world.union, id) == expected, "{way}");
        world.union.sync(id, false).unwrap();
        let world = world.remount();
        assert!(whole(&world.union, world.id("alone")) == expected, "{way}, remounted");
    }
}

#[test]
fn map_goes_with_the_last_name_and_the_file_lives_on_while_it_is_held() {
    let Some(world) = world_by_block(big_base) else { return };
    let id = world.id("alone");
    put(&world.union, id, 5000, b"held");
    world.union.sync(id, false).unwrap();
    assert_eq!(fs::read_dir(world.at("work/blocks")).unwrap().count(), 1);
    world.unlink("alone").unwrap();
    assert_eq!(fs::read_dir(world.at("work/blocks")).unwrap().count(), 0);
    put(&world.union, id, 9000, b"more");
    let mut expected = big_contents();
    expected[5000..5004].copy_from_slice(b"held");
    expected[9000..9004].copy_from_slice(b"more");
    assert!(whole(&world.union, id) == expected);
    world.union.forget(id, 1000);
    // Removed when the guest does not hold it.
    let id = world.id("other");
    put(&world.union, id, 5000, b"held");
    world.union.sync(id, false).unwrap();
    world.union.forget(id, 1000);
    world.unlink("other").unwrap();
    assert_eq!(fs::read_dir(world.at("work/blocks")).unwrap().count(), 0);
}

#[test]
fn file_written_all_over_is_settled_by_itself() {
    let Some(world) = world(big_base) else { return };
    let id = world.id("alone");
    put(&world.union, id, 1, b"z");
    world.union.sync(id, false).unwrap();
    let fresh = vec![7; big_contents().len()];
    for (index, chunk) in fresh.chunks(65_536).enumerate() {
        put(&world.union, id, index as u64 * 65_536, chunk);
    }
    world.union.sync(id, false).unwrap();
    assert_eq!(fs::read(world.at("upper/alone")).unwrap(), fresh);
    let names = rustix::fs::listxattr(world.at("upper/alone"), &mut [0_u8; 1000][..]).unwrap();
    let mut list = vec![0; names];
    rustix::fs::listxattr(world.at("upper/alone"), &mut list[..]).unwrap();
    assert!(!String::from_utf8(list).unwrap().contains("metacopy"));
    assert_eq!(fs::read_dir(world.at("work/blocks")).unwrap().count(), 0);
}

/// A byte array is the oracle; remounts, syncs and settling come in between.
#[test]
fn random_changes_of_a_large_file_agree_with_a_plain_one() {
    let Some(mut world) = world(big_base) else { return };
    let mut plain = big_contents();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below.max(1)
    };
    for round in 0..400_u64 {
        let id = world.id("alone");
        match random(40) {
            0 => world = world.remount(),
            1 => world.union.sync(id, false).unwrap(),
            2..=4 => {
                let size = random(400 * 4096);
                plain.resize(usize::try_from(size).unwrap(), 0);
                cut(&world.union, id, size);
            }
            5 if round > 300 => world.union.settle(id).unwrap(),
            6 => {
                world.union.init();
            }
            7 => {
                let (offset, size) = (random(300 * 4096), random(40_000) + 1);
                let mode = if random(2) == 0 { PUNCH } else { ZERO };
                let range = Allocate { mode, offset, size, privileges: Privileges::Keep };
                world.union.allocate(id, &range).unwrap();
                let [from, end] = [offset, offset + size].map(|at| usize::try_from(at).unwrap());
                if mode == ZERO {
                    plain.resize(plain.len().max(end), 0);
                }
                let end = end.min(plain.len());
                plain[from.min(end)..end].fill(0);
            }
            _ => {
                let offset = usize::try_from(random(300 * 4096)).unwrap();
                let bytes = vec![
                    u8::try_from(random(256)).unwrap();
                    usize::try_from(random(30_000) + 1).unwrap()
                ];
                if plain.len() < offset + bytes.len() {
                    plain.resize(offset + bytes.len(), 0);
                }
                plain[offset..offset + bytes.len()].copy_from_slice(&bytes);
                put(&world.union, id, offset as u64, &bytes);
            }
        }
        if round % 8 == 0 {
            let id = world.id("alone");
            assert!(whole(&world.union, id) == plain, "round {round}");
        }
    }
}

/// Somebody saw a file that falls through, by its node or by its marks, and a sync ended that before
/// the map was looked for (law U48): a further write brings nothing of the lower back.
#[test]
fn map_that_ended_since_its_file_was_looked_at_begins_no_more() {
    type Look = fn(&World, NodeId);
    let ways: [(&str, Look); 2] = [
        ("by its node", |world, id| {
            let (node, handle) = world.union.reach(id).unwrap();
            world.union.sync_all().unwrap();
            assert!(world.union.open_map(node.id, handle.as_fd()).unwrap().is_none());
        }),
        ("by its marks", |world, id| {
            world.union.forget(id, 1000);
            let seen = {
                let _names = world.union.names_shared();
                let root = world.union.nodes.get(NodeId::ROOT).unwrap();
                world.union.sight(&root, b"alone").unwrap()
            };
            world.union.sync_all().unwrap();
            let lookup::Sight::Object(seen) = seen else { panic!("nothing there") };
            world.union.enter(*seen, b"alone").unwrap();
        }),
    ];
    for (way, look) in ways {
        let Some(world) = world_by_block(big_base) else { return };
        let id = world.id("alone");
        let mut expected = vec![7; big_contents().len()];
        put(&world.union, id, 0, &expected);
        look(&world, id);
        put(&world.union, id, 5000, b"more");
        expected[5000..5004].copy_from_slice(b"more");
        assert!(whole(&world.union, id) == expected, "{way}");
        let world = world.remount();
        assert!(whole(&world.union, world.id("alone")) == expected, "{way}, remounted");
    }
}

/// Removed files are parked when too many are held, by a link that is no name: what lies in `work/` of
/// one that had a map or an index entry goes with its last name.
#[test]
fn removed_file_leaves_no_map_nor_index_entry_when_it_is_parked() {
    let Some(world) = world_by_block(big_base) else { return };
    for at in 0..150 {
        let path = format!("removed{at}");
        world.make(&path, NewKind::File).unwrap();
        world.unlink(&path).unwrap();
    }
    let entries = |world: &World, dir: &str| {
        let rows = fs::read_dir(world.at("work").join(dir)).unwrap();
        rows.map(|row| row.unwrap().file_name()).collect::<Vec<_>>()
    };
    let check = |world: &World, row: &str| {
        for dir in ["blocks", "live", "index"] {
            assert!(entries(world, dir).is_empty(), "{row}: {:?} in {dir}", entries(world, dir));
        }
    };
    type Remove = fn(&World);
    let ways: [(&str, Remove); 3] = [
        ("alone", |world| {
            let id = world.id("alone");
            put(&world.union, id, 5000, b"held");
            world.union.sync(id, false).unwrap();
            world.union.link(id, NodeId::ROOT, name("alone-too")).unwrap();
            world.unlink("alone-too").unwrap();
            world.unlink("alone").unwrap();
        }),
        ("other", |world| {
            let id = world.id("other");
            put(&world.union, id, 5000, b"held");
            world.union.sync(id, false).unwrap();
            world.union.link(id, NodeId::ROOT, name("other-too")).unwrap();
            world.unlink("other-too").unwrap();
            world.make("new", NewKind::File).unwrap();
            world.rename("new", "other", PLAIN).unwrap();
        }),
        ("big", |world| {
            put(&world.union, world.id("big"), 5000, b"held");
            world.unlink("big-too").unwrap();
            world.unlink("big").unwrap();
        }),
    ];
    for (path, remove) in ways {
        let id = world.id(path);
        remove(&world);
        check(&world, path);
        assert_eq!(world.union.attributes(id).unwrap().nlink, 0, "{path}");
        let mut expected = big_contents();
        expected[5000..5004].copy_from_slice(b"held");
        assert!(whole(&world.union, id) == expected, "{path}");
        world.union.forget(id, 1000);
        check(&world, path);
    }
    check(&world.remount(), "remounted");
}
