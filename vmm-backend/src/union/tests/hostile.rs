//! The union under attack: planted uppers, unlikely numbers, races and crowds.

use std::sync::mpsc;
use std::time::Duration;

use super::*;

/// Runs what must end soon: a deadlock is a failure, not a hang.
fn in_time(task: impl FnOnce() + Send + 'static) {
    let (done, finished) = mpsc::channel();
    std::thread::spawn(move || {
        task();
        done.send(()).unwrap();
    });
    finished.recv_timeout(Duration::from_secs(60)).expect("ended in time, and well");
}

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

#[test]
fn unsettled_file_that_nobody_has_open_is_replaced_and_removed() {
    let Some(world) = world(big_base) else { return };
    in_time(move || {
        chmod(&world.union, world.id("alone"));
        world.rename("big", "alone", PLAIN).unwrap();
        assert_eq!(world.names("", 100, true), ["alone", "big-too", "other"]);
        chmod(&world.union, world.id("other"));
        let id = world.id("other");
        world.unlink("other").unwrap();
        assert!(whole(&world.union, id) == big_contents());
    });
}

#[test]
fn map_of_a_removed_file_outlives_a_crowd_of_others() {
    let Some(world) = world(|base| large_files(base, 80)) else { return };
    let (saved, fresh) = (world.id("f0"), world.id("f1"));
    for id in [saved, fresh] {
        put(&world.union, id, 5000, b"held");
    }
    world.union.sync(saved, false).unwrap();
    world.unlink("f0").unwrap();
    world.unlink("f1").unwrap();
    for file in 2..80 {
        put(&world.union, world.id(&format!("f{file}")), 0, b"crowd");
    }
    for id in [saved, fresh] {
        assert_eq!(&whole(&world.union, id)[4999..5005], b"ahelda");
    }
}

#[test]
fn large_file_removed_before_its_copy_up_leaves_no_map() {
    let Some(world) = world(big_base) else { return };
    let id = world.id("alone");
    world.unlink("alone").unwrap();
    put(&world.union, id, 5000, b"held");
    world.union.sync(id, false).unwrap();
    world.union.sync_all().unwrap();
    assert_eq!(&whole(&world.union, id)[5000..5004], b"held");
    assert_eq!(fs::read_dir(world.at("work/blocks")).unwrap().count(), 0);
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
                    let bytes = read(union, id, 4096, 4096).unwrap();
                    assert!(bytes.iter().all(|byte| *byte == b'a'), "zeros of f{file}");
                }
            });
            scope.spawn(move || chmod(union, id));
            reader.join().unwrap();
        });
    }
}

/// Writes at most so many bytes at once.
struct Short<'a>(&'a [u8], usize);

impl DataSource for Short<'_> {
    fn remaining(&self) -> usize {
        self.0.remaining()
    }
    fn write_file(
        &mut self,
        file: std::os::fd::BorrowedFd<'_>,
        offset: u64,
        size: usize,
    ) -> Result<usize, Errno> {
        self.0.write_file(file, offset, size.min(self.1))
    }
    fn take(&mut self, into: &mut [u8]) -> Result<(), Errno> {
        self.0.take(into)
    }
}

#[test]
fn what_a_short_write_says_was_written_is_there() {
    let Some(world) = world(big_base) else { return };
    let id = world.id("alone");
    for (block, at_once) in [(1_u64, 4096 + 100), (10, 100)] {
        let write =
            Write { offset: block * 4096, size: 8192, kill_privileges: false, keeps_mtime: false };
        let mut source = Short(&[b'w'; 8192], at_once);
        let Ok(written) = world.union.write(id, &write, &mut source) else { continue };
        let shown = whole(&world.union, id);
        let start = usize::try_from(write.offset).unwrap();
        assert!(shown[start..start + written].iter().all(|byte| *byte == b'w'), "block {block}");
        assert!(shown[start + written..] == big_contents()[start + written..], "block {block}");
    }
}

/// As the kernel's overlayfs leaves it: a sparse file, and a mark that the data is elsewhere.
#[test]
fn metacopy_of_the_kernel_is_served_used_and_moved() {
    let Some(world) = world(big_base) else { return };
    let World { temp, union } = world;
    drop(union);
    for name in ["alone", "other"] {
        let path = temp.path().join("upper").join(name);
        fs::File::create(&path).unwrap().set_len(big_contents().len() as u64).unwrap();
        set_host_xattr(&path, "trusted.overlay.metacopy", b"");
    }
    let world = World { union: join(temp.path()), temp };
    let mut expected = big_contents();
    assert!(whole(&world.union, world.id("other")) == expected);
    let world = world.remount();
    assert!(whole(&world.union, world.id("other")) == expected, "after it was read");
    world.rename("alone", "moved", PLAIN).unwrap();
    world.union.link(world.id("other"), NodeId::ROOT, name("linked")).unwrap();
    let world = world.remount();
    assert!(whole(&world.union, world.id("moved")) == expected, "after it was moved");
    put(&world.union, world.id("linked"), 4097, b"written");
    expected[4097..4104].copy_from_slice(b"written");
    let world = world.remount();
    for name in ["other", "linked"] {
        assert!(whole(&world.union, world.id(name)) == expected, "{name} after a write");
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

fn nlink(world: &World, id: NodeId) -> u32 {
    world.union.attributes(id).unwrap().nlink
}

/// Makes, removes and holds more files than may live by a descriptor.
fn crowd(world: &World) -> Vec<(NodeId, String)> {
    let one = |file: u32| {
        let path = format!("held{file}");
        let id = world.make(&path, NewKind::File).unwrap().attributes.node;
        world.write(&path, 0, &path);
        world.unlink(&path).unwrap();
        (id, path)
    };
    (0..200).map(one).collect()
}

#[test]
fn crowd_of_removed_files_lives_on_without_links() {
    let Some(world) = world(small_base) else { return };
    let held = crowd(&world);
    for (id, text) in &held {
        assert_eq!(nlink(&world, *id), 0, "{text}");
        assert_eq!(whole(&world.union, *id), text.as_bytes());
    }
    // A hard link of the lower that was written to, and goes.
    let hard = world.id("hard2");
    world.write("hard2", 0, "HARD");
    for path in ["hard2", "a/hard3", "hard1"] {
        world.unlink(path).unwrap();
    }
    assert_eq!((whole(&world.union, hard).as_slice(), nlink(&world, hard)), (&b"HARD"[..], 0));
    for (id, _) in held {
        world.union.forget(id, 1000);
    }
    world.union.forget(hard, 1000);
    assert_eq!(fs::read_dir(world.at("work/orphans")).unwrap().count(), 0);
}

/// The name it lived by in `work/orphans` must not stand in the way of its next removal.
#[test]
fn file_of_two_names_is_removed_twice_in_a_crowd() {
    let Some(world) = world(small_base) else { return };
    let held = crowd(&world);
    let id = world.make("first", NewKind::File).unwrap().attributes.node;
    world.union.link(id, NodeId::ROOT, name("second")).unwrap();
    world.unlink("second").unwrap();
    assert_eq!(nlink(&world, id), 1);
    assert_eq!(world.id("first"), id);
    assert_eq!(nlink(&world, id), 1);
    world.unlink("first").unwrap();
    assert_eq!(nlink(&world, id), 0);
    assert_eq!(held.len(), 200);
    let world = world.remount();
    assert_eq!(world.walk("first").err(), Some(Errno::NOENT));
}

/// ext4 gives a number out again at once.
#[test]
fn number_of_a_removed_directory_serves_the_next_object() {
    let Some(world) = world(small_base) else { return };
    let _held = crowd(&world);
    for round in 0..20 {
        world.make("dir", NewKind::Directory).unwrap();
        world.rmdir("dir").unwrap();
        let born = world.make("file", NewKind::File).unwrap_or_else(|e| panic!("{round}: {e}"));
        assert_eq!(born.attributes.kind(), Kind::File);
        world.write("file", 0, "text");
        assert_eq!(world.read("file"), "text");
        world.unlink("file").unwrap();
        world.make("dir", NewKind::Directory).unwrap();
        world.make("dir/below", NewKind::File).unwrap_or_else(|e| panic!("{round}: {e}"));
        world.unlink("dir/below").unwrap();
        world.rmdir("dir").unwrap();
    }
}

#[test]
fn more_unnamed_files_than_descriptors_are_born() {
    let Some(world) = world(small_base) else { return };
    let new = NewObject { kind: NewKind::File, mode: 0o600, umask: 0, supplementary_group: None };
    let born: Vec<_> = (0..200)
        .map(|_| world.union.create_unnamed(&ROOT, NodeId::ROOT, &new).unwrap().attributes.node)
        .collect();
    for id in &born {
        assert_eq!(nlink(&world, *id), 0);
        put(&world.union, *id, 0, b"text");
    }
    let last = *born.last().unwrap();
    world.union.link(last, NodeId::ROOT, name("named")).unwrap();
    assert_eq!((nlink(&world, last), world.read("named")), (1, "text".to_owned()));
    let world = world.remount();
    assert_eq!(
        (world.walk("named").unwrap().attributes.nlink, world.read("named")),
        (1, "text".into())
    );
}

#[test]
fn marks_with_values_that_mean_nothing_are_refused_alone() {
    let rows: [(&str, &[u8]); 4] = [
        ("opaque", b"x"),
        ("nlink", b"many"),
        ("thinroot.origin", b"cut off"),
        ("of.the.future", b"y"),
    ];
    for (mark, value) in rows {
        let Some(world) = world(small_base) else { return };
        let World { temp, union } = world;
        drop(union);
        let bad = temp.path().join("upper/bad");
        fs::create_dir(&bad).unwrap();
        set_host_xattr(&bad, &format!("trusted.overlay.{mark}"), value);
        let world = World { union: join(temp.path()), temp };
        assert_eq!(world.walk("bad").err(), Some(Errno::IO), "{mark}");
        assert_eq!(world.read("a/one"), "one", "{mark}");
    }
}

#[test]
fn map_that_is_cut_off_hides_the_file_instead_of_what_was_written() {
    let Some(world) = world_by_block(big_base) else { return };
    put(&world.union, world.id("alone"), 5000, b"written");
    let World { temp, union } = world;
    drop(union);
    let map = fs::read_dir(temp.path().join("work/blocks")).unwrap().next().unwrap().unwrap();
    fs::File::options().write(true).open(map.path()).unwrap().set_len(0).unwrap();
    let world = World { union: join(temp.path()), temp };
    assert_eq!(read(&world.union, world.id("alone"), 0, 100), Err(Errno::IO));
    assert!(whole(&world.union, world.id("other")) == big_contents());
}

/// The kernel's overlayfs marks an upper so that was mounted `volatile`, and may not be whole.
#[test]
fn unknown_feature_of_a_work_directory_is_refused_and_kept() {
    let Some(world) = world(small_base) else { return };
    let World { temp, union } = world;
    drop(union);
    let feature = temp.path().join("work/work/incompat/volatile");
    fs::create_dir_all(&feature).unwrap();
    let open = |name: &str| OwnedFd::from(fs::File::open(temp.path().join(name)).unwrap());
    let config = UpperConfig {
        space: MarkSpace::Trusted,
        ownership: Ownership::Native,
        is_volatile: false,
        attachment: None,
    };
    let opened = Upper::open(open("upper"), open("work").as_fd(), config);
    assert_eq!(opened.err(), Some(Errno::OPNOTSUPP));
    assert!(feature.exists());
}

#[test]
fn what_points_nowhere_or_out_is_refused_alone_and_never_followed() {
    type Plant = fn(&Path, &[u8; 16]);
    let rows: [(&str, Result<(), Errno>, Plant); 9] = [
        ("dangling redirect", Err(Errno::IO), |bad, _| {
            fs::create_dir(bad).unwrap();
            set_host_xattr(bad, "trusted.overlay.redirect", b"/no/such");
        }),
        ("redirect to a file", Err(Errno::IO), |bad, _| {
            fs::create_dir(bad).unwrap();
            set_host_xattr(bad, "trusted.overlay.redirect", b"/a/one");
        }),
        ("redirect that climbs", Err(Errno::IO), |bad, _| {
            fs::create_dir(bad).unwrap();
            set_host_xattr(bad, "trusted.overlay.redirect", b"/../../../etc");
        }),
        ("redirect that climbs back in", Err(Errno::IO), |bad, _| {
            fs::create_dir(bad).unwrap();
            set_host_xattr(bad, "trusted.overlay.redirect", b"/b/../a");
        }),
        ("sibling that climbs", Err(Errno::IO), |bad, _| {
            fs::create_dir(bad).unwrap();
            set_host_xattr(bad, "trusted.overlay.redirect", b"..");
        }),
        ("sibling with a slash", Err(Errno::IO), |bad, _| {
            fs::create_dir(bad).unwrap();
            set_host_xattr(bad, "trusted.overlay.redirect", b"a/sub");
        }),
        ("metacopy without data", Err(Errno::IO), |bad, _| {
            fs::write(bad, "").unwrap();
            set_host_xattr(bad, "trusted.overlay.metacopy", b"");
        }),
        ("metacopy of what is outside", Err(Errno::IO), |bad, _| {
            fs::write(bad, "").unwrap();
            set_host_xattr(bad, "trusted.overlay.metacopy", b"");
            set_host_xattr(bad, "trusted.overlay.redirect", b"/../../../../etc/hostname");
        }),
        ("origin that names nothing", Ok(()), |bad, identity| {
            fs::write(bad, "kept").unwrap();
            let origin = Origin { identity: *identity, object: 4_000_000 };
            set_host_xattr(bad, "trusted.overlay.thinroot.origin", &origin.to_bytes());
        }),
    ];
    for (row, expected, plant) in rows {
        let Some(world) = world(small_base) else { return };
        let World { temp, union } = world;
        let identity = union.lower.identity().0;
        drop(union);
        plant(&temp.path().join("upper/bad"), &identity);
        let world = World { union: join(temp.path()), temp };
        let found = world.walk("bad");
        assert_eq!(found.as_ref().map(|_| ()).map_err(|e| *e), expected, "{row}");
        if let Ok(entry) = found {
            assert!(world.union.is_upper_born(entry.attributes.node), "{row}");
            assert_eq!(world.read("bad"), "kept", "{row}");
        }
        // It stands in nobody's way: neither a listing nor its neighbours suffer.
        assert!(world.names("", 100, true).contains(&"hard1".to_owned()), "{row}");
        assert_eq!(world.read("a/one"), "one", "{row}");
        assert_eq!(world.make("born", NewKind::File).map(|_| ()), Ok(()), "{row}");
    }
}

/// What the lower lost beneath a file that has its own attributes alone.
#[test]
fn lower_that_lost_the_data_of_a_metacopy_is_an_error_and_an_event() {
    let Some(world) = world_by_block(|base| {
        fs::create_dir(base.join("dir")).unwrap();
        for name in ["dir/lost", "dir/kept", "dir/edited"] {
            fs::write(base.join(name), vec![b'a'; 256 << 10]).unwrap();
        }
    }) else {
        return;
    };
    for name in ["dir/lost", "dir/kept", "dir/edited"] {
        chmod(&world.union, world.id(name));
    }
    let World { temp, union } = world;
    drop(union);
    fs::remove_file(temp.path().join("base/dir/lost")).unwrap();
    fs::write(temp.path().join("base/dir/edited"), "short").unwrap();
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let told = Arc::clone(&seen);
    let union = join_with(
        temp.path(),
        Strictness::Lax,
        Box::new(move |change| {
            told.lock().unwrap().push(String::from_utf8(change.path.clone()).unwrap());
        }),
    );
    let world = World { union, temp };
    for name in ["dir/lost", "dir/edited"] {
        assert_eq!(read(&world.union, world.id(name), 0, 4096), Err(Errno::IO), "{name}");
        // Its own attributes are there, and it can be thrown away.
        assert_eq!(world.walk(name).unwrap().attributes.mode & 0o7777, 0o640, "{name}");
    }
    assert!(whole(&world.union, world.id("dir/kept")) == vec![b'a'; 256 << 10]);
    let seen = seen.lock().unwrap().clone();
    for name in ["dir/lost", "dir/edited"] {
        assert!(seen.iter().any(|path| path == name), "{name} in {seen:?}");
    }
    world.unlink("dir/lost").unwrap();
    assert_eq!(world.walk("dir/lost").err(), Some(Errno::NOENT));
}
