//! The first change of a lower object, and the times of changes.

use super::*;

#[test]
fn write_copies_up_and_identity_stays() {
    let Some(world) = world(small_base) else { return };
    let before = world.walk("a/one").unwrap().attributes;
    let dir_before = world.walk("a").unwrap().attributes;
    world.write("a/one", 3, " more");
    assert_eq!(world.read("a/one"), "one more");
    let after = world.walk("a/one").unwrap().attributes;
    assert_eq!(after.node, before.node);
    let dir_after = world.walk("a").unwrap().attributes;
    assert_eq!((dir_after.node, dir_after.mtime), (dir_before.node, dir_before.mtime));
    assert_eq!(dir_after.nlink, dir_before.nlink);
    assert_eq!(fs::read(world.at("base/a/one")).unwrap(), b"one");
    let world = world.remount();
    assert_eq!(world.read("a/one"), "one more");
    assert_eq!(world.id("a/one"), before.node);
    assert_eq!(world.names("a", 2, true), ["hard3", "one", "sub", "two"]);
}

#[test]
fn copy_up_keeps_every_attribute() {
    let Some(world) = world(|base| {
        small_base(base);
        let file = base.join("a/one");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o4711)).unwrap();
        rustix::fs::setxattr(&file, "user.x", b"value", rustix::fs::XattrFlags::empty()).unwrap();
        rustix::fs::setxattr(
            &file,
            "trusted.overlay.opaque",
            b"y",
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();
    }) else {
        return;
    };
    let id = world.id("a/one");
    let before = world.union.attributes(id).unwrap();
    let time = Timestamp { seconds: 1_000_000_000, nanoseconds: 5 };
    let change = SetAttributes { atime: Some(SetTime::To(time)), ..SetAttributes::default() };
    let after = world.union.set_attributes(&ROOT, id, &change).unwrap();
    assert_eq!((after.mode, after.mtime, after.size), (before.mode, before.mtime, before.size));
    assert_eq!(after.atime, time);
    let world = world.remount();
    let id = world.id("a/one");
    assert_eq!(world.union.xattr(&ROOT, id, b"user.x").unwrap(), b"value");
    assert_eq!(world.union.xattr(&ROOT, id, b"trusted.overlay.opaque").unwrap(), b"y");
    let mut names: Vec<_> = world
        .union
        .list_xattrs(&ROOT, id)
        .unwrap()
        .split(|b| *b == 0)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["trusted.overlay.opaque", "user.x"]);
}

/// After each removal a guest's kernel sends the times of what it removed, for the sake of their
/// ctime.
#[test]
fn removed_lower_file_is_not_copied_up_for_the_time_of_its_removal() {
    let Some(world) = world(small_base) else { return };
    let one = world.walk("a/one").unwrap().attributes;
    world.unlink("a/one").unwrap();
    let now = Timestamp { seconds: 2_000_000_000, nanoseconds: 0 };
    let times = |mtime| SetAttributes {
        mtime: Some(SetTime::To(mtime)),
        ctime: Some(now),
        ..SetAttributes::default()
    };
    let is_upper = || world.union.nodes.get(one.node).unwrap().is_upper;
    let after = world.union.set_attributes(&ROOT, one.node, &times(one.mtime)).unwrap();
    assert_eq!((after.mtime, after.size, after.nlink), (one.mtime, one.size, 0));
    assert!(!is_upper());
    let after = world.union.set_attributes(&ROOT, one.node, &times(now)).unwrap();
    assert_eq!((after.mtime, after.nlink), (now, 0));
    assert!(is_upper());
    assert_eq!(whole(&world.union, one.node), b"one");
}

#[test]
fn concurrent_writers_of_one_lower_file_lose_nothing() {
    let Some(world) = world(|base| fs::write(base.join("big"), vec![b'.'; 1 << 20]).unwrap())
    else {
        return;
    };
    let id = world.id("big");
    std::thread::scope(|scope| {
        for writer in 0..8_u64 {
            let union = &world.union;
            scope.spawn(move || {
                for round in 0..16 {
                    let source = [b'0' + u8::try_from(writer).unwrap(); 512];
                    let offset = (writer + round * 8) * 512;
                    let write =
                        Write { offset, size: 512, kill_privileges: false, keeps_mtime: false };
                    assert_eq!(union.write(id, &write, &mut &source[..]), Ok(512));
                }
            });
        }
    });
    let text = world.read("big");
    assert_eq!(text.len(), 1 << 20);
    for (index, chunk) in text.as_bytes().chunks(512).enumerate() {
        let expected = if index < 128 { b'0' + u8::try_from(index % 8).unwrap() } else { b'.' };
        assert!(chunk.iter().all(|byte| *byte == expected), "chunk {index}");
    }
}

/// Linux before 6.16 sends a cached write and the mtime that belongs to it in no order.
#[test]
fn cached_write_and_its_mtime_may_come_in_any_order() {
    let Some(world) = world(small_base) else { return };
    let id = world.id("a/one");
    let set = |change: SetAttributes| world.union.set_attributes(&ROOT, id, &change).unwrap();
    let at = |seconds| Timestamp { seconds, nanoseconds: 5 };
    let guest_says = |seconds| {
        set(SetAttributes { mtime: Some(SetTime::To(at(seconds))), ..SetAttributes::default() })
    };
    let write = |keeps_mtime| {
        let write = Write { offset: 0, size: 1, kill_privileges: false, keeps_mtime };
        assert_eq!(world.union.write(id, &write, &mut &b"x"[..]), Ok(1));
        world.union.attributes(id).unwrap().mtime
    };
    write(true);
    assert_eq!(guest_says(77).mtime, at(77), "the write came first");
    assert_eq!(write(true), at(77), "the mtime came first");
    assert!(write(false).seconds > 1_000_000, "a write past the guest's cache is of now");
    assert!(write(true).seconds > 1_000_000, "and the guest asks for its time");
    guest_says(88);
    set(SetAttributes { size: Some(0), ..SetAttributes::default() });
    assert!(write(true).seconds > 1_000_000, "a truncation is of now");
}

#[test]
fn cached_write_to_a_new_file_leaves_the_mtime_of_its_birth() {
    let Some(world) = world(small_base) else { return };
    let born = world.make("new", NewKind::File).unwrap().attributes;
    // The host's clock ticks before the write arrives; the guest's need not.
    std::thread::sleep(std::time::Duration::from_millis(20));
    let write = Write { offset: 0, size: 1, kill_privileges: false, keeps_mtime: true };
    assert_eq!(world.union.write(born.node, &write, &mut &b"x"[..]), Ok(1));
    assert_eq!(world.union.attributes(born.node).unwrap().mtime, born.mtime);
}
