//! The laws of merging and numbering.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use super::*;
use crate::filesystem::Kind;
use crate::layer::index::{ObjectId, Slot};
use crate::layer::lower::Strictness;
use crate::layer::testbed::{Bed, at, chmod, is_root, layer, names, numbers, plain, skip};

#[test]
fn merged_view_shows_the_topmost_of_each_name() {
    let bed = Bed::new();
    let a = bed.tree("a", &["both", "d/top", "file_over_dir", "dir_over_file/in", "closed/a"]);
    let b = bed.tree("b", &["both", "d/low", "file_over_dir/x", "dir_over_file", "closed", "o/b"]);
    let c = bed.tree("c", &["closed/c", "d/low", "d/lowest", "dir_over_file/hidden"]);
    let specs = [plain(&a), plain(&b), plain(&c)];
    let (lower, _) = bed.lower(&specs, Strictness::Strict);
    let expected = [
        "both",
        "closed/",
        "closed/a",
        "d/",
        "d/low",
        "d/lowest",
        "d/top",
        "dir_over_file/",
        "dir_over_file/in",
        "file_over_dir",
        "o/",
        "o/b",
    ];
    assert_eq!(names(lower.index()), expected);
    let real = |path: &str| {
        let id = lower.resolve(path.as_bytes()).unwrap().unwrap();
        inode_of(&lower.open_file(id).unwrap())
    };
    assert_eq!(real("both"), a.join("both").metadata().unwrap().ino());
    assert_eq!(real("d/low"), b.join("d/low").metadata().unwrap().ino());
    assert_eq!(real("d/lowest"), c.join("d/lowest").metadata().unwrap().ino());
    assert_eq!(lower.path(lower.resolve(b"d/lowest").unwrap().unwrap()).unwrap(), b"d/lowest");
}

fn inode_of(fd: &OwnedFd) -> u64 {
    rustix::fs::fstat(fd).unwrap().st_ino
}

#[test]
fn merged_directory_has_the_attributes_of_its_topmost_part() {
    let bed = Bed::new();
    let a = bed.tree("a", &["d/x/", "d/f"]);
    let b = bed.tree("b", &["d/y/", "d/g"]);
    chmod(&a.join("d"), 0o751);
    chmod(&b.join("d"), 0o700);
    let (lower, _) = bed.lower(&[plain(&a), plain(&b)], Strictness::Strict);
    let id = lower.resolve(b"d").unwrap().unwrap();
    let attributes = lower.attributes(id).unwrap();
    assert_eq!((attributes.mode, attributes.nlink), (0o040_751, 4));
    assert_eq!((lower.entries(id).unwrap(), lower.subdirectories(id).unwrap()), (4, 2));
    assert_eq!(lower.attributes(ObjectId::ROOT).unwrap().nlink, 3);
}

/// Makes whiteouts, which only root can.
fn whiteout(bed: &Bed, path: &str) {
    bed.shell(&format!("mknod {path} c 0 0"));
}

#[test]
fn marks_count_in_a_layer_and_mean_nothing_in_a_plain_tree() {
    if !is_root() {
        return;
    }
    let bed = Bed::new();
    let a = bed.tree("a", &["opaque/new", "xwhite", "redirected/new"]);
    let b = bed.tree(
        "b",
        &["gone", "opaque/old", "xwhite", "old/kept", "old/sub/deep", "redirected/hidden"],
    );
    whiteout(&bed, "a/gone");
    whiteout(&bed, "a/old");
    fs::write(a.join("xwhite"), "").unwrap();
    bed.shell(
        "setfattr -n trusted.overlay.opaque -v y a/opaque
         setfattr -n trusted.overlay.whiteout -v y a/xwhite
         setfattr -n trusted.overlay.redirect -v old a/redirected
         setfattr -n trusted.overlay.origin -v 0x00fb a/opaque/new
         setfattr -n trusted.overlay.overlay.opaque -v nested a/opaque/new
         setfattr -n user.kept -v 1 a/opaque/new",
    );
    let index = bed.seal(&[layer(&a), plain(&b)]);
    let expected = [
        "opaque/",
        "opaque/new",
        "redirected/",
        "redirected/kept",
        "redirected/new",
        "redirected/sub/",
        "redirected/sub/deep",
    ];
    assert_eq!(names(&index), expected);
    assert_eq!(
        xattr_names(&index, at(&index, "opaque/new")),
        ["trusted.overlay.opaque", "user.kept"]
    );

    let index = bed.seal(&[plain(&a), plain(&b)]);
    let expected = [
        "gone",
        "old",
        "opaque/",
        "opaque/new",
        "opaque/old",
        "redirected/",
        "redirected/hidden",
        "redirected/new",
        "xwhite",
    ];
    assert_eq!(names(&index), expected);
    assert_eq!(index.kind(at(&index, "gone")).unwrap(), Kind::CharDevice);
    assert_eq!(
        xattr_names(&index, at(&index, "opaque/new")),
        ["trusted.overlay.origin", "trusted.overlay.overlay.opaque", "user.kept"]
    );
}

fn xattr_names(index: &Index, id: ObjectId) -> Vec<String> {
    let pairs = index.xattrs(index.object(id).unwrap()).unwrap();
    let name = |at: u32| String::from_utf8(index.name(at).unwrap().to_vec()).unwrap();
    pairs.iter().map(|pair| name(pair.name.get())).collect()
}

#[test]
fn absolute_redirects_lead_through_all_layers_below() {
    if !is_root() {
        return;
    }
    let bed = Bed::new();
    let a = bed.tree("a", &["new/a"]);
    let b = bed.tree("b", &["x/mid/b"]);
    let c = bed.tree("c", &["x/mid/wrong", "y/old/c", "y/old/sub/c"]);
    whiteout(&bed, "a/x");
    // In b the path leads through a directory that is itself redirected for what is below.
    bed.shell(
        "setfattr -n trusted.overlay.redirect -v /x/mid a/new
         setfattr -n trusted.overlay.redirect -v /y/old b/x/mid",
    );
    let (lower, _) = bed.lower(&[layer(&a), layer(&b), plain(&c)], Strictness::Strict);
    let found = names(lower.index());
    assert_eq!(found[..5], ["new/", "new/a", "new/b", "new/c", "new/sub/"]);
    for path in ["new/a", "new/b", "new/c", "new/sub/c"] {
        let id = lower.resolve(path.as_bytes()).unwrap().unwrap();
        lower.open_file(id).unwrap();
    }
    bed.shell("setfattr -n trusted.overlay.redirect -v /../etc a/new");
    let error = bed.try_seal(&[layer(&a), plain(&c)]).unwrap_err();
    assert!(matches!(error, SealError::Mark { .. }), "{error}");
}

#[test]
fn metacopy_file_has_the_attributes_of_its_layer_and_the_data_below() {
    if !is_root() {
        return;
    }
    let bed = Bed::new();
    let a = bed.tree("a", &["moved"]);
    let b = bed.tree("b", &["d/data"]);
    fs::write(a.join("moved"), "").unwrap();
    bed.shell(
        "truncate -s 6 a/moved; chmod 700 a/moved
         setfattr -n trusted.overlay.metacopy a/moved
         setfattr -n trusted.overlay.redirect -v /d/data a/moved",
    );
    let (lower, _) = bed.lower(&[layer(&a), plain(&b)], Strictness::Strict);
    let id = lower.resolve(b"moved").unwrap().unwrap();
    assert_eq!(lower.attributes(id).unwrap().mode, 0o100_700);
    let file = lower.open_file(id).unwrap();
    assert_eq!(inode_of(&file), b.join("d/data").metadata().unwrap().ino());
    lower.verify_file(id, file.as_fd()).unwrap();
    let error = bed.try_seal(&[layer(&a), plain(&a)]).unwrap_err();
    assert!(error.to_string().contains("metacopy"), "{error}");
}

#[test]
fn hard_links_are_one_object_whose_links_are_its_names() {
    let bed = Bed::new();
    let a = bed.tree("a", &["one", "hidden"]);
    fs::create_dir(a.join("d")).unwrap();
    fs::hard_link(a.join("one"), a.join("d/two")).unwrap();
    fs::hard_link(a.join("one"), bed.path("outside")).unwrap();
    fs::hard_link(a.join("hidden"), a.join("seen")).unwrap();
    let top = bed.tree("top", &["hidden"]);
    let (lower, _) = bed.lower(&[plain(&top), plain(&a)], Strictness::Strict);
    let id = |path: &[u8]| lower.resolve(path).unwrap().unwrap();
    assert_eq!(id(b"one"), id(b"d/two"));
    assert_eq!(lower.attributes(id(b"one")).unwrap().nlink, 2);
    assert!(lower.is_hard_linked(id(b"one")).unwrap());
    assert_eq!(lower.attributes(id(b"seen")).unwrap().nlink, 1);
    assert!(!lower.is_hard_linked(id(b"seen")).unwrap());
}

#[test]
fn special_files_and_awkward_names_are_indexed_as_they_are() {
    let bed = Bed::new();
    let a = bed.tree("a", &[]);
    let long = "x".repeat(255);
    fs::write(a.join(OsStr::from_bytes(b"\xff\xfe\n")), "").unwrap();
    fs::write(a.join(&long), "").unwrap();
    fs::write(a.join(".wh.foo"), "").unwrap();
    symlink("/no/where", a.join("link")).unwrap();
    bed.shell("mkfifo a/fifo; chmod 6755 a/.wh.foo");
    let _socket = std::os::unix::net::UnixListener::bind(a.join("socket")).unwrap();
    let (lower, _) = bed.lower(&[plain(&a)], Strictness::Strict);
    let id = |path: &[u8]| lower.resolve(path).unwrap().unwrap();
    assert_eq!(lower.kind(id(b"\xff\xfe\n")).unwrap(), Kind::File);
    assert_eq!(lower.kind(id(long.as_bytes())).unwrap(), Kind::File);
    assert_eq!(lower.attributes(id(b".wh.foo")).unwrap().mode, 0o106_755);
    assert_eq!(lower.kind(id(b"fifo")).unwrap(), Kind::Fifo);
    assert_eq!(lower.kind(id(b"socket")).unwrap(), Kind::Socket);
    assert_eq!(lower.target(id(b"link")).unwrap(), b"/no/where");
    assert_eq!(lower.target(id(b"fifo")).unwrap_err(), Errno::INVAL);
    assert_eq!(lower.open_file(id(b"fifo")).unwrap_err(), Errno::INVAL);
    assert_eq!(lower.attributes(id(b"link")).unwrap().size, 9);
}

#[test]
fn device_numbers_are_as_the_kernel_encodes_them() {
    if !is_root() {
        return;
    }
    let bed = Bed::new();
    let a = bed.tree("a", &[]);
    bed.shell("mknod a/null c 1 3; mknod a/big b 259 70000");
    let (lower, _) = bed.lower(&[plain(&a)], Strictness::Strict);
    let rdev = |path: &[u8]| lower.attributes(lower.resolve(path).unwrap().unwrap()).unwrap().rdev;
    assert_eq!(rdev(b"null"), 0x103);
    assert_eq!(rdev(b"big"), (259 << 8) | 0x70 | ((70000 & !0xff) << 12));
}

#[test]
fn large_directory_is_found_by_halving_and_listed_by_slot() {
    let bed = Bed::new();
    let a = bed.tree("a", &[]);
    for number in 0..10_000 {
        fs::write(a.join(format!("f{number}")), "").unwrap();
    }
    let (lower, _) = bed.lower(&[plain(&a)], Strictness::Strict);
    for number in 0..10_000 {
        let name = format!("f{number}");
        let entry = lower.child(ObjectId::ROOT, name.as_bytes()).unwrap().unwrap();
        assert_eq!(entry.name, name.as_bytes());
        assert_eq!(lower.entry(ObjectId::ROOT, entry.slot).unwrap(), Some(entry));
    }
    assert_eq!(lower.child(ObjectId::ROOT, b"f10000").unwrap(), None);
    assert_eq!(lower.child(ObjectId::ROOT, b"").unwrap(), None);
    assert_eq!(lower.entry(ObjectId::ROOT, Slot(10_000)).unwrap(), None);
}

#[test]
fn xattrs_are_kept_and_shared() {
    let bed = Bed::new();
    let a = bed.tree("a", &["f", "g", "h"]);
    bed.shell(
        "setfattr -n user.b -v 2 a/f; setfattr -n user.a -v 1 a/f
         setfattr -n user.a -v 1 a/g; setfattr -n user.b -v 2 a/g
         setfattr -n user.empty a/h",
    );
    let (lower, _) = bed.lower(&[plain(&a)], Strictness::Strict);
    let id = |path: &[u8]| lower.resolve(path).unwrap().unwrap();
    let set = |path: &[u8]| lower.index().object(id(path)).unwrap().xattrs.get();
    let all: Vec<_> = lower.xattrs(id(b"f")).unwrap().collect();
    assert_eq!(all, [(&b"user.a"[..], &b"1"[..]), (b"user.b", b"2")]);
    assert_eq!(set(b"f"), set(b"g"));
    assert_ne!(set(b"f"), set(b"h"));
    assert_eq!(lower.xattr(id(b"h"), b"user.empty").unwrap(), Some(&b""[..]));
    assert_eq!(lower.xattr(id(b"h"), b"user.a").unwrap(), None);
}

#[test]
fn identical_copies_have_the_same_numbers_and_identity() {
    let bed = Bed::new();
    bed.tree("a", &["z/y/x", "z/a", "m/", "b", "c/d/e/f"]);
    bed.shell(
        "ln a/b a/z/link; ln -s target a/sym; setfattr -n user.x -v 1 a/b; chmod 4755 a/z/a
         touch -d @1000000000.5 a/b; cp -a a copy",
    );
    let a = bed.seal(&[plain(&bed.path("a"))]);
    fs::remove_file(bed.index_file()).unwrap();
    let copy = bed.seal(&[plain(&bed.path("copy"))]);
    assert_eq!(a.identity(), copy.identity());
    assert_eq!(numbers(&a), numbers(&copy));
    let mut dense: Vec<u32> = numbers(&a).into_iter().map(|(_, number)| number).collect();
    dense.sort_unstable();
    dense.dedup();
    assert!(dense.iter().copied().eq(2..=a.last_number()));
    assert_eq!(a.upper_numbers_start(), 1 << 24);

    bed.shell("chmod 700 copy/m");
    fs::remove_file(bed.index_file()).unwrap();
    assert_ne!(bed.seal(&[plain(&bed.path("copy"))]).identity(), a.identity());
}

#[test]
fn refresh_keeps_the_numbers_of_what_is_still_there() {
    let bed = Bed::new();
    let a = bed.tree("a", &["d/moved", "d/stays", "goes", "last", "replaced", "z/one"]);
    let first = bed.seal(&[plain(&a)]);
    bed.shell(
        "mv a/d/moved a/became; mv a/z a/y; rm a/goes; echo new > a/d/first
         echo other > a/tmp; mv a/tmp a/replaced",
    );
    let report = bed.try_seal(&[plain(&a)]).unwrap();
    let second = Index::open(&bed.index_file()).unwrap();
    for (old, new) in [
        ("d", "d"),
        ("d/stays", "d/stays"),
        ("d/moved", "became"),
        ("last", "last"),
        ("replaced", "replaced"),
        ("z", "y"),
        ("z/one", "y/one"),
    ] {
        assert_eq!(at(&first, old), at(&second, new), "{old} -> {new}");
    }
    assert_eq!(at(&second, "d/first").0, first.last_number() + 1);
    assert_eq!(report.kept, Some(report.objects - 1));
    let gone = at(&first, "goes");
    assert_eq!(second.object(gone).unwrap_err(), Errno::STALE);
    assert_ne!(first.identity(), second.identity());
    assert!(second.continues(first.identity()));
    assert!(!first.continues(second.identity()));
    assert_eq!(first.upper_numbers_start(), second.upper_numbers_start());
    assert_eq!(second.path(at(&second, "y/one")).unwrap(), b"y/one");

    let third = bed.seal(&[plain(&a)]);
    assert_eq!(third.identity(), second.identity());
    assert_eq!(numbers(&third), numbers(&second));
}

#[test]
fn refresh_reads_changed_xattrs_and_targets_again() {
    let bed = Bed::new();
    let a = bed.tree("a", &["f", "g"]);
    bed.shell("setfattr -n user.x -v 1 a/f; setfattr -n user.x -v 1 a/g; ln -s one a/s");
    bed.seal(&[plain(&a)]);
    bed.shell("setfattr -n user.x -v 2 a/f; ln -sfn two a/s");
    let (lower, _) = bed.lower(&[plain(&a)], Strictness::Strict);
    let id = |path: &[u8]| lower.resolve(path).unwrap().unwrap();
    assert_eq!(lower.xattr(id(b"f"), b"user.x").unwrap(), Some(&b"2"[..]));
    assert_eq!(lower.xattr(id(b"g"), b"user.x").unwrap(), Some(&b"1"[..]));
    assert_eq!(lower.target(id(b"s")).unwrap(), b"two");
}

#[test]
fn index_is_built_at_first_use_and_refreshed_when_a_root_changed() {
    let bed = Bed::new();
    let specs = [plain(&bed.tree("a", &["f", "d/g"])), plain(&bed.tree("b", &[]))];
    let path = index_path(&specs, &bed.path("cache")).unwrap();
    let open = || open_or_seal(&specs, &path, &mut |_| {}).unwrap();
    let (first, report) = open();
    assert_eq!(report.unwrap().kept, None);
    assert!(open().1.is_none());
    // Deeper down nothing is looked at: the daemon finds it at first use.
    bed.shell("echo > a/d/h");
    assert!(open().1.is_none());
    bed.shell("echo > b/new");
    let (second, report) = open();
    assert_eq!(report.unwrap().kept, Some(4));
    assert!(second.continues(first.identity()));
    assert_eq!(names(&second), ["d/", "d/g", "d/h", "f", "new"]);
    // A damaged index is a cache that is built again.
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert_eq!(open().1.unwrap().kept, None);
}

#[test]
fn what_is_no_index_is_not_overwritten() {
    let bed = Bed::new();
    let a = bed.tree("a", &["f"]);
    let precious = bed.path("precious");
    fs::write(&precious, "my letters").unwrap();
    let error = seal(&[plain(&a)], &precious, &mut |_| {}).unwrap_err();
    assert!(matches!(error, SealError::Index(IndexError::NotAnIndex { .. })), "{error}");
    assert_eq!(fs::read(&precious).unwrap(), b"my letters");
}

#[test]
fn index_inside_a_lower_is_refused() {
    let bed = Bed::new();
    let a = bed.tree("a", &["f"]);
    let error = seal(&[plain(&a)], &a.join("new/cache/x.index"), &mut |_| {}).unwrap_err();
    assert!(matches!(error, SealError::InsideLower { .. }), "{error}");
    assert!(!a.join("new").exists());
}

#[test]
fn missing_lower_is_named() {
    let bed = Bed::new();
    let file = bed.tree("a", &["f"]).join("f");
    for (path, errno) in [(bed.path("none"), Errno::NOENT), (file, Errno::NOTDIR)] {
        let error = bed.try_seal(&[plain(&path)]).unwrap_err();
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        assert!(matches!(error, SealError::Lower { source, .. } if source == errno), "{error}");
    }
    assert!(matches!(bed.try_seal(&[]).unwrap_err(), SealError::NoLower));
}

#[test]
fn index_file_is_named_by_canonical_paths_kinds_and_order() {
    let bed = Bed::new();
    let (a, b) = (bed.tree("a", &[]), bed.tree("b", &[]));
    let path = |specs: &[LowerSpec]| index_path(specs, Path::new("/cache")).unwrap();
    let both = path(&[plain(&a), plain(&b)]);
    assert_eq!(both, path(&[plain(&a.join("../a/.")), plain(&b)]));
    assert_ne!(both, path(&[plain(&b), plain(&a)]));
    assert_ne!(both, path(&[plain(&a), layer(&b)]));
    assert!(both.starts_with("/cache"));
}

#[test]
fn mount_point_in_a_lower_is_served_empty_and_a_mounted_file_refused() {
    if !is_root() {
        return;
    }
    let bed = Bed::new();
    bed.tree("a", &["m/under", "f", "g"]);
    bed.tree("b", &["m/below"]);
    run_child(
        &bed,
        "child_seals_over_mount_points",
        "mount -t tmpfs none a/m; echo > a/m/hidden",
        None,
    );
    run_child(&bed, "child_is_refused_a_mounted_file", "mount --bind a/f a/g", None);
}

#[test]
#[ignore = "run by mount_point_in_a_lower_is_served_empty_and_a_mounted_file_refused"]
fn child_seals_over_mount_points() {
    let dir = PathBuf::from(std::env::var_os("THINROOT_TEST_BED").unwrap());
    let specs = [plain(&dir.join("a")), plain(&dir.join("b"))];
    let path = dir.join("cache/x.index");
    let report = seal(&specs, &path, &mut |_| {}).unwrap();
    assert_eq!(report.mount_points, ["m"]);
    let index = Index::open(&path).unwrap();
    assert_eq!(names(&index), ["f", "g", "m/"]);
    let nlink = |id| index.object(id).unwrap().nlink.get();
    assert_eq!((nlink(at(&index, "m")), nlink(ObjectId::ROOT)), (2, 3));
}

#[test]
#[ignore = "run by mount_point_in_a_lower_is_served_empty_and_a_mounted_file_refused"]
fn child_is_refused_a_mounted_file() {
    let dir = PathBuf::from(std::env::var_os("THINROOT_TEST_BED").unwrap());
    let error = seal(&[plain(&dir.join("a"))], &dir.join("cache/y.index"), &mut |_| {});
    assert!(matches!(error, Err(SealError::MountedFile { path }) if path == "g"));
}

#[test]
fn unreadable_objects_are_listed_and_refused() {
    if !is_root() {
        return;
    }
    let bed = Bed::new();
    bed.tree("a", &["secret", "closed/x", "open/no_pass/x", "fine"]);
    bed.shell(
        "chmod 755 . a a/open; chmod 600 a/secret; chmod 700 a/closed
         chmod 744 a/open/no_pass; mkdir cache; chown 65534 cache",
    );
    run_child(&bed, "child_is_refused_unreadable_objects", ":", Some(65534));
    assert_eq!(fs::read_dir(bed.path("cache")).unwrap().count(), 1, "only the lock is left");
}

#[test]
#[ignore = "run by unreadable_objects_are_listed_and_refused"]
fn child_is_refused_unreadable_objects() {
    let dir = PathBuf::from(std::env::var_os("THINROOT_TEST_BED").unwrap());
    let error = seal(&[plain(&dir.join("a"))], &dir.join("cache/x.index"), &mut |_| {});
    let error = error.unwrap_err();
    assert!(error.to_string().contains("thinroot import"), "{error}");
    let SealError::Unreadable { count, mut first } = error else { panic!("{error}") };
    first.sort();
    assert_eq!((count, first), (3, ["closed", "open/no_pass", "secret"].map(str::to_owned).into()));
}

/// Runs an ignored test of this binary in a mount namespace of its own, after a script.
fn run_child(bed: &Bed, test: &str, script: &str, user: Option<u32>) {
    // The copy can be executed by any user, the original perhaps not.
    let copy = bed.path("test-binary");
    // By a child: were it written here, a test beside us that forks meanwhile would keep it open for
    // writing, and nobody could start it.
    let copied = Command::new("cp").arg(std::env::current_exe().unwrap()).arg(&copy).status();
    assert!(copied.unwrap().success());
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let drop = user.map_or(String::new(), |user| {
        format!("setpriv --reuid {user} --regid {user} --clear-groups ")
    });
    let test = format!("layer::seal::tests::{test}");
    let script = format!("{script}; exec {drop}./test-binary --exact {test} --ignored --nocapture");
    // Mounts must not reach the host; without any it does not matter.
    let propagation = if script.starts_with(':') { "unchanged" } else { "private" };
    let unshare = ["--mount", "--propagation", propagation];
    if !Command::new("unshare").args(unshare).arg("true").status().is_ok_and(|s| s.success()) {
        skip("no private mount namespace can be made here (a bare chroot?)");
        return;
    }
    let output = Command::new("unshare")
        .args(unshare)
        .args(["sh", "-ec", &script])
        .current_dir(bed.path(""))
        .env("THINROOT_TEST_BED", bed.path(""))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    assert!(text.contains("1 passed"), "{text}");
}

/// A measure, not a law: `cargo test --release -- --ignored --nocapture seal_of_usr`.
#[test]
#[ignore = "a measure"]
fn seal_of_usr_is_measured_beside_find() {
    let bed = Bed::new();
    let specs = [plain(Path::new("/usr"))];
    for round in 0..6 {
        let start = Instant::now();
        let found = Command::new("find").args(["/usr", "-xdev", "-ls"]).output().unwrap();
        let lines = found.stdout.iter().filter(|byte| **byte == b'\n').count();
        let find = start.elapsed();
        if round == 3 {
            fs::remove_file(bed.index_file()).unwrap();
        }
        if round < 3 && round > 0 {
            fs::remove_file(bed.index_file()).unwrap();
        }
        let report = bed.try_seal(&specs).unwrap();
        println!(
            "find -ls: {lines} lines in {find:?}; {}: {} entries in {:?}, {} bytes, {} per entry",
            if report.kept.is_some() { "refresh" } else { "seal" },
            report.entries,
            report.elapsed,
            report.file_bytes,
            report.file_bytes / report.entries,
        );
    }
}
