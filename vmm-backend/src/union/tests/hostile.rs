//! The union under attack: planted uppers, unlikely numbers, races and crowds.

use super::*;

fn set_host_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

fn chmod(union: &Union, id: NodeId) {
    let change = SetAttributes { mode: Some(0o640), ..SetAttributes::default() };
    union.set_attributes(&ROOT, id, &change).unwrap();
}

fn large_files(base: &Path, count: usize) {
    for file in 0..count {
        fs::write(base.join(format!("f{file}")), vec![b'a'; 132 << 10]).unwrap();
    }
}

/// A copy-up by block between the look at a file's map and the opening of its data.
#[test]
fn reader_never_sees_the_holes_of_a_file_that_is_just_copied_up() {
    let Some(world) = world(|base| large_files(base, 200)) else { return };
    for file in 0..200 {
        let id = world.id(&format!("f{file}"));
        std::thread::scope(|scope| {
            let union = &world.union;
            let reader = scope.spawn(move || {
                for _ in 0..40 {
                    let mut sink = Bytes(Vec::new());
                    union.read(id, 4096, 4096, &mut sink).unwrap();
                    assert!(sink.0.iter().all(|byte| *byte == b'a'), "zeros of f{file}");
                }
            });
            scope.spawn(move || chmod(union, id));
            reader.join().unwrap();
        });
    }
}

#[test]
fn planted_marks_never_make_the_root_of_anything_else() {
    let Some(world) = world(small_base) else { return };
    let World { temp, union } = world;
    let own = Origin { identity: union.lower.identity().0, object: 1 }.to_bytes();
    let other_kind = {
        let file = union.lower.resolve(b"a/one").unwrap().unwrap();
        Origin { identity: union.lower.identity().0, object: file.0 }.to_bytes()
    };
    drop(union);
    let upper = temp.path().join("upper");
    let origin = "trusted.overlay.thinroot.origin";
    fs::write(upper.join("file"), "planted").unwrap();
    set_host_xattr(&upper.join("file"), origin, &own);
    for dir in ["root", "redirected", "one"] {
        fs::create_dir(upper.join(dir)).unwrap();
    }
    set_host_xattr(&upper.join("root"), origin, &own);
    set_host_xattr(&upper.join("redirected"), "trusted.overlay.redirect", b"/");
    set_host_xattr(&upper.join("one"), origin, &other_kind);
    let world = World { union: join(temp.path()), temp };
    for path in ["file", "root", "redirected", "one"] {
        match world.walk(path) {
            Err(e) => assert_eq!(e, Errno::IO, "{path}"),
            Ok(entry) => assert_ne!(entry.attributes.node, NodeId::ROOT, "{path}"),
        }
    }
    assert_eq!(world.read("file"), "planted");
    assert_eq!(world.read("a/one"), "one");
    assert!(world.names("", 100, true).contains(&"hard1".to_owned()));
}

#[test]
fn one_entry_with_an_unknown_mark_spoils_no_other() {
    let Some(world) = world(small_base) else { return };
    let World { temp, union } = world;
    drop(union);
    let bad = temp.path().join("upper/bad");
    let char_device = rustix::fs::FileType::CharacterDevice;
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &bad, char_device, mode, rustix::fs::makedev(1, 3))
        .unwrap();
    set_host_xattr(&bad, "trusted.overlay.of.the.future", b"y");
    let world = World { union: join(temp.path()), temp };
    assert_eq!(world.read("a/one"), "one");
    assert_eq!(world.walk("bad").err(), Some(Errno::IO));
    assert!(world.names("", 100, false).contains(&"hard1".to_owned()));
}

#[test]
fn cookies_beyond_all_rows_list_nothing() {
    let Some(world) = world(small_base) else { return };
    world.make("born", NewKind::File).unwrap();
    for cookie in [u64::MAX, u64::MAX - 1, 1 << 32, u64::from(u32::MAX), (1 << 63) - 1] {
        let mut sink = Rows { rows: Vec::new(), room: 100 };
        world.union.read_directory(NodeId::ROOT, cookie, true, &mut sink).unwrap();
        assert!(sink.rows.is_empty(), "cookie {cookie}");
    }
}
