//! What the host's directories above an upper hand down to what is made in them.

use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{XattrFlags, setxattr};

use super::*;
use crate::layer::acl::{ACCESS_ACL, DEFAULT_ACL};

/// posix_acl_xattr.h, version 2: uid 1234 may do everything.
fn acl_of_a_stranger() -> Vec<u8> {
    let none = u32::MAX;
    let rows = [(1_u16, 7_u16, none), (2, 7, 1234), (4, 5, none), (16, 7, none), (32, 5, none)];
    let entries = rows.iter().flat_map(|(tag, rights, id)| {
        [&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat()
    });
    2_u32.to_le_bytes().into_iter().chain(entries).collect()
}

#[test]
fn hosts_directories_hand_nothing_down_to_a_guest() {
    if !rustix::process::geteuid().is_root() {
        return crate::skipped::skip("needs root for trusted.* marks");
    }
    let temp = tempfile::tempdir().unwrap();
    fs::create_dir(temp.path().join("base")).unwrap();
    small_base(&temp.path().join("base"));
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o2775)).unwrap();
    let default = std::ffi::OsStr::from_bytes(DEFAULT_ACL);
    setxattr(temp.path(), default, &acl_of_a_stranger(), XattrFlags::empty()).unwrap();
    for dir in ["upper", "work"] {
        fs::create_dir(temp.path().join(dir)).unwrap();
    }
    let mut world = World { union: join(temp.path()), temp };
    let mode = |world: &World, path: &str| world.walk(path).unwrap().attributes.mode & 0o7777;
    let root = mode(&world, "");
    world.write("a/one", 0, "o");
    world.rmdir("b").unwrap();
    world.make("b", NewKind::Directory).unwrap();
    world.make("a/new", NewKind::File).unwrap();
    world.make("a/dir", NewKind::Directory).unwrap();
    world.make("born", NewKind::File).unwrap();
    for _ in 0..2 {
        for path in ["", "a", "a/one", "b", "a/new", "a/dir", "born"] {
            let id = world.id(path);
            for acl in [ACCESS_ACL, DEFAULT_ACL] {
                assert_eq!(world.union.xattr(&ROOT, id, acl), Err(Errno::NODATA), "{path}");
            }
            let expected = match path {
                "" => root,
                "a/one" => 0o644,
                _ => 0o755,
            };
            assert_eq!(mode(&world, path), expected, "{path}");
        }
        world = world.remount();
    }
    assert_eq!(root & 0o7000, 0);
}
