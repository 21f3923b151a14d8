//! Hard links, and what lives on without a name.

use super::*;

#[test]
fn hard_links_of_the_lower_stay_one_inode() {
    let Some(world) = world(small_base) else { return };
    let links = |world: &World, path: &str| world.walk(path).unwrap().attributes.nlink;
    let id = world.id("hard1");
    assert_eq!((world.id("a/hard3"), links(&world, "hard2")), (id, 3));
    world.write("hard1", 0, "HARD");
    assert_eq!(world.read("a/hard3"), "HARD");
    assert_eq!((world.id("hard2"), links(&world, "hard2")), (id, 3));
    world.unlink("hard1").unwrap();
    assert_eq!(links(&world, "a/hard3"), 2);
    let (parent, last) = world.parent("b/fourth");
    let entry = world.union.link(id, parent, last).unwrap();
    assert_eq!((entry.attributes.node, entry.attributes.nlink), (id, 3));
    world.rename("a/hard3", "moved", PLAIN).unwrap();
    assert_eq!(links(&world, "moved"), 3);
    // Onto a name of the same inode: nothing happens.
    world.rename("moved", "hard2", PLAIN).unwrap();
    assert_eq!(links(&world, "moved"), 3);
    let world = world.remount();
    for path in ["moved", "hard2", "b/fourth"] {
        assert_eq!((world.id(path), links(&world, path)), (id, 3), "{path}");
        assert_eq!(world.read(path), "HARD");
    }
    for path in ["moved", "hard2", "b/fourth"] {
        world.unlink(path).unwrap();
    }
    assert_eq!(world.union.attributes(id).unwrap().nlink, 0);
    assert_eq!(read(&world.union, id, 0, 100).unwrap(), b"HARD");
    assert_eq!(fs::read_dir(world.at("work/index")).unwrap().count(), 0);
}

/// What the index says of the other base is no name of the union: it counts as none, and goes where
/// the upper has names for it.
#[test]
fn hard_links_copied_up_over_another_base_count_by_their_names() {
    let Some(world) = world(small_base) else { return };
    world.write("hard1", 0, "HARD");
    let (parent, last) = world.parent("b/fourth");
    world.union.link(world.id("hard1"), parent, last).unwrap();
    world.rename("a/hard3", "moved", PLAIN).unwrap();
    let World { temp, union } = world;
    drop(union);
    // A base of other inodes.
    fs::rename(temp.path().join("base"), temp.path().join("other")).unwrap();
    fs::remove_file(temp.path().join("index")).unwrap();
    fs::create_dir(temp.path().join("base")).unwrap();
    small_base(&temp.path().join("base"));
    fs::write(temp.path().join("base/new"), "another base").unwrap();
    let mut world = World { union: rebase(temp.path()), temp };
    for _ in 0..2 {
        let shown = world.walk("moved").unwrap().attributes;
        assert_eq!((shown.nlink, world.id("b/fourth")), (2, shown.node));
        assert_eq!((world.read("moved"), world.read("hard1")), ("HARD".into(), "hard".into()));
        assert_eq!(world.walk("hard1").unwrap().attributes.nlink, 3);
        assert_eq!(world.read("new"), "another base");
        assert_eq!(fs::read_dir(world.at("work/index")).unwrap().count(), 0);
        world = world.remount();
    }
}

#[test]
fn hard_link_removed_before_any_change_counts_down() {
    let Some(world) = world(small_base) else { return };
    let id = world.id("hard1");
    world.unlink("hard1").unwrap();
    assert_eq!(world.union.attributes(id).unwrap().nlink, 2);
    let world = world.remount();
    assert_eq!(world.walk("hard2").unwrap().attributes.nlink, 2);
    assert_eq!(world.read("a/hard3"), "hard");
}

#[test]
fn what_the_guest_holds_outlives_its_name() {
    let Some(world) = world(small_base) else { return };
    world.make("b/new", NewKind::File).unwrap();
    world.write("b/new", 0, "new");
    for (path, text) in [("a/one", "one"), ("b/new", "new")] {
        let id = world.id(path);
        world.unlink(path).unwrap();
        assert_eq!(world.union.attributes(id).unwrap().nlink, 0, "{path}");
        let write = Write { offset: 3, size: 1, kill_privileges: false, keeps_mtime: false };
        assert_eq!(world.union.write(id, &write, &mut &b"!"[..]), Ok(1), "{path}");
        let bytes = read(&world.union, id, 0, 100).unwrap();
        assert_eq!(bytes, format!("{text}!").as_bytes(), "{path}");
        world.union.forget(id, 1000);
        assert_eq!(world.union.attributes(id).err(), Some(Errno::STALE), "{path}");
    }
}

#[test]
fn many_removed_files_outlive_their_names_within_the_descriptor_bound() {
    let Some(world) = world(small_base) else { return };
    let ids: Vec<_> = (0..400)
        .map(|number| {
            let path = format!("b/{number}");
            let id = world.make(&path, NewKind::File).unwrap().attributes.node;
            world.write(&path, 0, &path);
            world.unlink(&path).unwrap();
            id
        })
        .collect();
    assert!(world.union.open_descriptors() <= DESCRIPTORS_MAX);
    for (number, id) in ids.iter().enumerate() {
        let bytes = read(&world.union, *id, 0, 100).unwrap();
        assert_eq!(bytes, format!("b/{number}").as_bytes());
        world.union.forget(*id, 1000);
    }
    assert_eq!(fs::read_dir(world.at("work/orphans")).unwrap().count(), 0);
}
