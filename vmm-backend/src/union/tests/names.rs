//! Removal and renaming, judged on the union.

use super::*;

#[test]
fn removed_lower_file_stays_hidden_after_remount() {
    let Some(world) = world(small_base) else { return };
    assert_eq!(world.unlink("a/sub"), Err(Errno::ISDIR));
    world.unlink("a/one").unwrap();
    assert_eq!(world.walk("a/one").err(), Some(Errno::NOENT));
    for plus in [true, false] {
        assert_eq!(world.names("a", 100, plus), ["hard3", "sub", "two"]);
    }
    assert_eq!(fs::metadata(world.at("upper/a/one")).unwrap().rdev(), 0, "a whiteout");
    let world = world.remount();
    assert_eq!(world.walk("a/one").err(), Some(Errno::NOENT));
    for plus in [false, true] {
        assert_eq!(world.names("a", 100, plus), ["hard3", "sub", "two"]);
    }
    world.make("a/one", NewKind::File).unwrap();
    assert_eq!(world.read("a/one"), "");
}

#[test]
fn directory_made_over_a_removed_one_is_empty() {
    let Some(world) = world(small_base) else { return };
    assert_eq!(world.rmdir("a"), Err(Errno::NOTEMPTY));
    for file in ["a/sub/deep", "a/one", "a/two", "a/hard3"] {
        world.unlink(file).unwrap();
    }
    world.rmdir("a/sub").unwrap();
    assert_eq!(world.rmdir("a/two"), Err(Errno::NOENT));
    world.rmdir("a").unwrap();
    assert_eq!(world.walk("a").err(), Some(Errno::NOENT));
    assert_eq!(world.walk("").unwrap().attributes.nlink, 3);
    world.make("a", NewKind::Directory).unwrap();
    assert_eq!(world.names("a", 100, true), [""; 0]);
    assert_eq!(world.walk("").unwrap().attributes.nlink, 4);
    let world = world.remount();
    assert_eq!(world.names("a", 100, true), [""; 0]);
    let left = fs::read_dir(world.at("work/work")).unwrap().map(|row| row.unwrap().file_name());
    assert_eq!(left.filter(|name| name != "spare").count(), 0);
}

#[test]
fn lower_directory_moves_with_all_that_is_in_it() {
    let Some(world) = world(small_base) else { return };
    let id = world.id("a/sub");
    world.write("a/one", 0, "ONE");
    world.rename("a", "b/c", PLAIN).unwrap();
    assert_eq!(world.walk("a").err(), Some(Errno::NOENT));
    assert_eq!(world.read("b/c/one"), "ONE");
    assert_eq!(world.read("b/c/sub/deep"), "deep");
    assert_eq!(world.id("b/c/sub"), id);
    assert_eq!(world.names("b/c", 1, true), ["hard3", "one", "sub", "two"]);
    assert_eq!(world.rename("b", "b/c/sub/x", PLAIN), Err(Errno::INVAL));
    let world = world.remount();
    assert_eq!(world.read("b/c/sub/deep"), "deep");
    assert_eq!(world.id("b/c/sub"), id);
    world.rename("b/c", "a", PLAIN).unwrap();
    assert_eq!(world.names("", 100, true), ["a", "b", "hard1", "hard2", "link"]);
    assert_eq!(world.read("a/two"), "two");
    let world = world.remount();
    assert_eq!(world.names("a", 100, false), ["hard3", "one", "sub", "two"]);
}

#[test]
fn rename_is_judged_on_the_union() {
    let Some(world) = world(small_base) else { return };
    assert_eq!(world.rename("a/one", "a/two", NO_REPLACE), Err(Errno::EXIST));
    assert_eq!(world.rename("a/one", "a/sub", PLAIN), Err(Errno::ISDIR));
    assert_eq!(world.rename("a/sub", "a/one", PLAIN), Err(Errno::NOTDIR));
    assert_eq!(world.rename("b", "a", PLAIN), Err(Errno::NOTEMPTY));
    assert_eq!(world.rename("a/none", "x", PLAIN), Err(Errno::NOENT));
    assert_eq!(world.rename("a/one", "none", EXCHANGE), Err(Errno::NOENT));
    world.unlink("a/two").unwrap();
    world.rename("a/one", "a/two", NO_REPLACE).unwrap();
    assert_eq!(world.read("a/two"), "one");
    world.rename("a", "link", EXCHANGE).unwrap();
    assert_eq!(world.union.read_link(world.id("a")).unwrap(), b"a/one");
    assert_eq!(world.names("link", 100, true), ["hard3", "sub", "two"]);
    let world = world.remount();
    assert_eq!(world.names("link", 100, true), ["hard3", "sub", "two"]);
    assert_eq!(world.read("link/sub/deep"), "deep");
    // A lower directory onto an empty lower directory.
    world.rename("link/sub", "b", PLAIN).unwrap();
    assert_eq!(world.names("b", 100, true), ["deep"]);
    assert_eq!(world.remount().names("b", 100, true), ["deep"]);
}
