//! What is born (laws U36 and U42).

use super::*;
use crate::layer::acl::{Acl, DEFAULT_ACL, GROUP_OBJ, OTHER, USER_OBJ};

/// What a directory hands down is looked up once, and anew when it changes.
#[test]
fn directory_hands_down_what_it_got_after_a_first_birth() {
    let Some(world) = world(|base| fs::create_dir(base.join("lower")).unwrap()) else { return };
    world.make("new", NewKind::Directory).unwrap();
    let acl = Acl(vec![(USER_OBJ, 7, 0), (GROUP_OBJ, 7, 0), (OTHER, 0, 0)]).to_bytes();
    for dir in ["lower", "new"] {
        let id = world.id(dir);
        let set = |mode| {
            let change = SetAttributes { mode: Some(mode), gid: Some(50), ..Default::default() };
            world.union.set_attributes(&ROOT, id, &change).unwrap();
        };
        let born = |name: &str| {
            let born = world.make(&format!("{dir}/{name}"), NewKind::File).unwrap().attributes;
            (born.gid, born.mode & 0o777)
        };
        assert_eq!(born("first"), (0, 0o755), "{dir}");
        set(0o2755);
        assert_eq!(born("in setgid"), (50, 0o755), "{dir}");
        set(0o755);
        assert_eq!(born("without again"), (0, 0o755), "{dir}");
        let acl = SetXattr { name: DEFAULT_ACL, value: &acl, flags: 0, kill_setgid: false };
        world.union.set_xattr(&ROOT, id, &acl).unwrap();
        assert_eq!(born("under an ACL"), (0, 0o750), "{dir}");
        world.union.remove_xattr(id, DEFAULT_ACL).unwrap();
        assert_eq!(born("without any"), (0, 0o755), "{dir}");
    }
}

/// A newborn directory's rows are known without reading it, and are those that are there.
#[test]
fn newborn_directory_shows_what_it_got_and_removals_and_moves_find_it() {
    let Some(world) = world(|_| ()) else { return };
    world.make("new", NewKind::Directory).unwrap();
    for name in ["new/a", "new/b", "new/c"] {
        world.make(name, NewKind::File).unwrap();
    }
    world.make("new/below", NewKind::Directory).unwrap();
    world.unlink("new/a").unwrap();
    world.rename("new/b", "new/moved", RenameFlags::default()).unwrap();
    world.union.link(world.id("new/c"), world.id("new"), name("linked")).unwrap();
    world.unlink("new/c").unwrap();
    let expected = ["below", "linked", "moved"];
    let mut seen = world.names("new", 100, true);
    seen.retain(|name| !matches!(name.as_str(), "." | ".."));
    seen.sort();
    assert_eq!(seen, expected);
    let links = |path| world.union.attributes(world.id(path)).unwrap().nlink;
    assert_eq!((links("new"), links("new/linked")), (3, 1));
    assert_eq!(world.make("new/moved", NewKind::File).err(), Some(Errno::EXIST));
    // Also to who knows none of it.
    let world = World { union: join(world.temp.path()), temp: world.temp };
    let mut again = world.names("new", 100, true);
    again.retain(|name| !matches!(name.as_str(), "." | ".."));
    again.sort();
    assert_eq!(again, expected);
}
