//! What shows through, what hides, and which layers fit together.

use super::*;

#[test]
fn lower_shows_through_and_reading_changes_nothing() {
    let Some(world) = world(small_base) else { return };
    assert_eq!(world.read("a/one"), "one");
    assert_eq!(world.union.read_link(world.id("link")).unwrap(), b"a/one");
    assert_eq!(world.names("", 100, true), ["a", "b", "hard1", "hard2", "link"]);
    assert_eq!(world.names("a", 1, false), ["hard3", "one", "sub", "two"]);
    assert_eq!(world.walk("a/none").err(), Some(Errno::NOENT));
    assert_eq!(world.walk("a").unwrap().attributes.nlink, 3);
    assert_eq!(world.walk("").unwrap().attributes.nlink, 4);
    assert!(fs::read_dir(world.at("upper")).unwrap().next().is_none());
}

#[test]
fn root_is_the_bases_root() {
    let Some(world) = world(|base| {
        small_base(base);
        fs::set_permissions(base, fs::Permissions::from_mode(0o1751)).unwrap();
        std::os::unix::fs::chown(base, Some(3), Some(4)).unwrap();
    }) else {
        return;
    };
    let base = fs::metadata(world.at("base")).unwrap();
    let shown = world.walk("").unwrap().attributes;
    assert_eq!((shown.mode, shown.uid, shown.gid), (base.mode(), 3, 4));
    assert_eq!(
        (shown.mtime.seconds, i64::from(shown.mtime.nanoseconds)),
        (base.mtime(), base.mtime_nsec())
    );
}

#[test]
fn upper_directory_over_a_lower_one_shows_only_its_own() {
    let Some(world) = world(small_base) else { return };
    world.make("new", NewKind::Directory).unwrap();
    world.make("new/mine", NewKind::File).unwrap();
    world.unlink("a/sub/deep").unwrap();
    world.rename("new", "a/sub", PLAIN).unwrap();
    assert_eq!(world.names("a/sub", 100, true), ["mine"]);
    let world = world.remount();
    assert_eq!(world.names("a/sub", 100, true), ["mine"]);
}

/// Found by the private-copy oracle. Through the mount door newer kernels do not say who asks.
#[test]
fn trusted_names_are_listed_to_root_alone() {
    let Some(world) = world(small_base) else { return };
    let id = world.id("a/one");
    for name in [&b"user.x"[..], b"trusted.x"] {
        let set = SetXattr { name, value: b"1", flags: 0, kill_setgid: false };
        world.union.set_xattr(&ROOT, id, &set).unwrap();
    }
    let named = |uid| {
        let names = world.union.list_xattrs(&Caller { uid, ..ROOT }, id).unwrap();
        names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).count()
    };
    assert_eq!((named(0), named(1000), named(u32::MAX)), (2, 1, 2));
}

#[test]
fn guest_char_device_0_0_is_a_device_like_any_other() {
    let Some(world) = world(small_base) else { return };
    let special = NewKind::Special { kind: Kind::CharDevice, rdev: 0 };
    world.make("b/null", special).unwrap();
    world.make("b/one", NewKind::Special { kind: Kind::CharDevice, rdev: 1 }).unwrap();
    world.rename("a/one", "a/two", RenameFlags { whiteout: true, ..PLAIN }).unwrap();
    let world = world.remount();
    for (path, rdev) in [("b/null", 0), ("b/one", 1), ("a/one", 0)] {
        let shown = world.walk(path).unwrap().attributes;
        assert_eq!((shown.kind(), shown.rdev), (Kind::CharDevice, rdev), "{path}");
    }
    assert_eq!(world.names("b", 100, true), ["null", "one"]);
}

#[test]
fn upper_of_another_base_is_refused() {
    let Some(world) = world(small_base) else { return };
    world.write("a/one", 0, "x");
    fs::remove_file(world.at("index")).unwrap();
    fs::write(world.at("base/other"), "other").unwrap();
    let World { temp, union } = world;
    drop(union);
    let refused = std::panic::catch_unwind(|| join(temp.path())).err();
    assert!(
        refused.is_some_and(|e| format!("{:?}", e.downcast_ref::<String>()).contains("OtherBase"))
    );
}
