//! Law U52: the kernel's overlayfs reads what we wrote, and we read what it wrote; and what
//! fuse-overlayfs wrote, once it is imported.
//!
//! `THINROOT_ORACLE_SEEDS`, `THINROOT_ORACLE_FIRST` and `THINROOT_ORACLE_OPERATIONS` as in
//! oracle_private_copy.rs.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use tests::disk::Disk;
use tests::laws::plot::{Plot, pattern};
use tests::mount::{Site, may_mount, thinroot};
use tests::oracle::cast::Cast;
use tests::oracle::dice::Dice;
use tests::oracle::script::{Operation, Who};
use tests::oracle::tally::Tally;
use tests::oracle::{comparable, improvise, make_tree, remove, setting};
use tests::overlayfs::{Overlay, without_acls_of_xfs, without_what_overlayfs_lacks};
use tests::skip::skip;
use tests::tree::{self, Tree};

/// Operations whose outcome overlayfs can hold: no character device 0:0 is made, and no overlay
/// attribute set.
fn plain(operation: &Operation) -> bool {
    let is_word = |word: &str| operation.words().iter().any(|other| other == word);
    match operation.verb() {
        "mknod" => !(is_word("char") && is_word("0")),
        "rename" => !is_word("whiteout"),
        "set-xattr" | "held-set-xattr" => {
            !operation.words().iter().any(|word| word.contains(".overlay."))
        }
        _ => operation.who() != Who::Stage,
    }
}

fn seeds() -> std::ops::Range<u64> {
    let first = setting("THINROOT_ORACLE_FIRST", 1);
    first..first + setting("THINROOT_ORACLE_SEEDS", 6)
}

fn prepared(disk: &Disk, seed: u64) -> Site {
    let site = Site::inside(&disk.path());
    let mut cast = cast_on(&site.lower());
    make_tree(seed, &site.lower(), &mut |operation| {
        if plain(operation) {
            cast.perform(operation);
        }
    });
    drop(cast);
    tests::laws::ground::age(&Plot::new(site.lower()), Path::new("")).unwrap();
    forget_overlay_marks(&site.lower());
    site
}

/// In a lower they would mean something to the kernel, and mean nothing to us.
fn forget_overlay_marks(lower: &Path) {
    let plot = Plot::new(lower);
    for (path, object) in &tree::read(lower) {
        for key in object.xattrs.keys().filter(|key| key.contains(".overlay.")) {
            // Another of its names may have been here before.
            let removed = plot.remove_xattr(path, key);
            let is_gone = matches!(&removed, Err(failure) if failure.errno == Some(Errno::NODATA));
            assert!(removed.is_ok() || is_gone, "{removed:?}");
        }
        if FileType::from_raw_mode(object.mode) == FileType::CharacterDevice && object.rdev == 0 {
            plot.unlink(path).unwrap();
        }
    }
}

fn cast_on(root: &Path) -> Cast {
    Cast::on(root, Path::new(env!("CARGO_BIN_EXE_actor")))
}

/// Chooses what is [`plain`].
fn choose_plain(dice: &mut Dice) -> Operation {
    loop {
        let next = dice.operation();
        if plain(&next) {
            return next;
        }
    }
}

/// Chooses what names no file as fuse-overlayfs names its whiteouts.
fn choose_no_whiteout(dice: &mut Dice) -> Operation {
    loop {
        let next = choose_plain(dice);
        if !next.words().iter().any(|word| word.contains(".wh.")) {
            return next;
        }
    }
}

/// Plays a seed on a union, and counts what was done.
fn run(root: &Path, seed: u64, choose: fn(&mut Dice) -> Operation, tally: &mut Tally) {
    let mut cast = cast_on(root);
    let count = usize::try_from(setting("THINROOT_ORACLE_OPERATIONS", 250)).unwrap();
    let mut dice = Dice::new(seed);
    let perform = &mut |operation: &Operation| {
        tally.add(operation, &cast.perform(operation));
        Ok(())
    };
    improvise((&mut dice, choose), (root, count), perform).1.unwrap();
}

#[test]
fn kernel_reads_what_we_wrote() {
    if !may_mount("kernel_reads_what_we_wrote") {
        return;
    }
    let disk = Disk::under_test();
    let (mut failures, mut tally) = (Vec::new(), Tally::default());
    for seed in seeds() {
        let site = prepared(&disk, seed);
        let mount = site.mount(&[]);
        run(&site.point(), seed, choose_plain, &mut tally);
        let mut ours = comparable(&site.point());
        mount.unmount();
        // Until then the kernel answers an error for a file copied up by block.
        assert!(site.command("settle").args(["--log-level", "warn"]).status().unwrap().success());
        let Some(overlay) = Overlay::of(&site, "on") else { return };
        let mut theirs = comparable(overlay.root());
        without_what_overlayfs_lacks(&mut ours, &mut theirs);
        let found = tree::compare(&ours, &theirs);
        if !found.is_empty() {
            failures.push(format!("seed {seed}: {}", found.join("; ")));
        }
    }
    println!("{:?}: {tally}", seeds());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn we_read_what_the_kernel_wrote() {
    if !may_mount("we_read_what_the_kernel_wrote") {
        return;
    }
    let disk = Disk::under_test();
    let (mut failures, mut tally) = (Vec::new(), Tally::default());
    for seed in seeds() {
        let site = prepared(&disk, seed);
        // We refuse metadata-only copies: there the data is elsewhere.
        let Some(overlay) = Overlay::of(&site, "off") else { return };
        run(overlay.root(), seed, choose_plain, &mut tally);
        let mut theirs = comparable(overlay.root());
        drop(overlay);
        let mount = site.mount(&[]);
        let mut ours = comparable(&site.point());
        mount.unmount();
        without_what_overlayfs_lacks(&mut ours, &mut theirs);
        let found = tree::compare(&theirs, &ours);
        if !found.is_empty() {
            failures.push(format!("seed {seed}: {}", found.join("; ")));
        }
    }
    println!("{:?}: {tally}", seeds());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A mount of fuse-overlayfs, gone when dropped.
struct FuseOverlayfs(PathBuf);

impl FuseOverlayfs {
    /// Over a site's lower and `foreign`; `None`, aloud, without the program.
    fn mount(site: &Site) -> Option<Self> {
        let [upper, work, point] =
            ["foreign", "foreign-work", "fuse-overlayfs"].map(|name| site.path().join(name));
        for path in [&upper, &work, &point] {
            fs::create_dir_all(path).unwrap();
        }
        let layers = format!(
            "lowerdir={},upperdir={},workdir={}",
            site.lower().display(),
            upper.display(),
            work.display()
        );
        let mut program = Command::new("fuse-overlayfs");
        // It says of each option of the mount that it knows none of it.
        match program.arg("-o").arg(layers).arg(&point).stderr(Stdio::null()).status() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                skip("the import of what fuse-overlayfs wrote", "there is no fuse-overlayfs");
                None
            }
            status => {
                assert!(status.unwrap().success(), "fuse-overlayfs does not mount");
                Some(Self(point))
            }
        }
    }

    /// What a new mount shows: an old one may list what is gone.
    fn shown(site: &Site) -> Option<Tree> {
        let mount = Self::mount(site)?;
        let mut shown = without_links(comparable(&mount.0));
        without_acls_of_xfs(&mut shown);
        Some(shown)
    }
}

impl Drop for FuseOverlayfs {
    fn drop(&mut self) {
        let start = Instant::now();
        while let Err(error) = unmount(&self.0, UnmountFlags::empty()) {
            if error != Errno::BUSY || start.elapsed() > Duration::from_secs(10) {
                eprintln!("unmounting {}: {error}", self.0.display());
                break;
            }
            sleep(Duration::from_millis(20));
        }
    }
}

/// fuse-overlayfs copies one name of several up, and counts no links as a disk does.
fn without_links(mut tree: Tree) -> Tree {
    for (path, object) in &mut tree {
        (object.links, object.first) = (0, path.clone());
    }
    tree
}

/// What a union over the upper shows once it is imported.
fn imported(site: &Site) -> Tree {
    let mut import = Command::new(thinroot());
    import.args(["import", "--log-level", "warn", "--fuse-overlayfs"]);
    import.arg(site.path().join("foreign"));
    remove(&site.upper());
    assert!(import.arg("--out").arg(site.upper()).status().unwrap().success());
    let mount = site.mount(&[]);
    let tree = without_links(comparable(&site.point()));
    mount.unmount();
    let check = site.command("check").output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    tree
}

#[test]
fn imported_upper_shows_what_fuse_overlayfs_showed() {
    if !may_mount("imported_upper_shows_what_fuse_overlayfs_showed") {
        return;
    }
    let disk = Disk::under_test();
    let (mut failures, mut tally) = (Vec::new(), Tally::default());
    for seed in seeds().take(3) {
        let site = prepared(&disk, seed);
        // In its lower they are no names either.
        remove_whiteouts(&site.lower());
        remove_links(&site.lower());
        let Some(mount) = FuseOverlayfs::mount(&site) else { return };
        run(&mount.0, seed, choose_no_whiteout, &mut tally);
        drop(mount);
        let Some(theirs) = FuseOverlayfs::shown(&site) else { return };
        assert!(theirs.len() > 5, "there is nothing to compare");
        let found = tree::compare(&theirs, &imported(&site));
        if !found.is_empty() {
            failures.push(format!("seed {seed}: {}", found.join("; ")));
        }
    }
    println!("{:?}: {tally}", seeds());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn remove_whiteouts(root: &Path) {
    let plot = Plot::new(root);
    let names: Vec<_> = tree::read(root).into_keys().collect();
    for path in names.iter().rev().filter(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".wh."))
    }) {
        if plot.kind(path).unwrap() == FileType::Directory {
            remove(&root.join(path));
        } else {
            plot.unlink(path).unwrap();
        }
    }
}

/// Of a file with several names in its lower fuse-overlayfs copies one name up, but takes all that are
/// in one directory for one file, so that what one of them shows depends on which it saw first.
fn remove_links(root: &Path) {
    let plot = Plot::new(root);
    for (path, object) in &tree::read(root) {
        let is_another_name = object.first != *path;
        if is_another_name {
            plot.unlink(path).unwrap();
        }
    }
}

/// As it writes where it may make no devices, nor give files away.
#[test]
fn marks_of_fuse_overlayfs_are_read_as_it_reads_them() {
    if !may_mount("marks_of_fuse_overlayfs_are_read_as_it_reads_them") {
        return;
    }
    let site = Site::new();
    let lower = Plot::new(site.lower());
    for directory in ["gone-dir", "new", "kept", "opaque"] {
        lower.mkdir(directory).unwrap();
        lower.create(format!("{directory}/below"), b"lower").unwrap();
    }
    lower.create("gone", b"lower").unwrap();
    let upper = Plot::new(site.path().join("foreign"));
    upper.mkdir("").unwrap();
    for path in ["new", "kept", "opaque"] {
        upper.mkdir(path).unwrap();
    }
    for whiteout in [".wh.gone", ".wh.gone-dir", "new/.wh..wh..opq", "kept/.wh.below"] {
        upper.create(whiteout, b"").unwrap();
    }
    upper.set_xattr("opaque", "user.fuseoverlayfs.opaque", b"y").unwrap();
    upper.create("new/file", b"new").unwrap();
    upper.link("new/file", "kept/link").unwrap();
    upper.set_xattr("new/file", "user.fuseoverlayfs.origin", b"elsewhere").unwrap();
    upper.set_xattr("new/file", "user.mine", b"mine").unwrap();
    let Some(theirs) = FuseOverlayfs::shown(&site) else { return };
    let ours = imported(&site);
    assert_eq!(tree::compare(&theirs, &ours), Vec::<String>::new());
    let names: Vec<_> = ours.keys().map(|path| path.to_str().unwrap()).collect();
    assert_eq!(names, ["", "kept", "kept/link", "new", "new/file", "opaque"]);
    let again = Plot::new(site.upper());
    assert_eq!(again.stat("new/file").unwrap().st_nlink, 2, "links stay links");
    // Owners in marks, as any version of it writes them.
    upper.set_xattr("new/file", "user.containers.override_stat", b"7:8:4711:pipe").unwrap();
    upper.set_xattr("kept", "user.fuseoverlayfs.override_stat", b"9:10:1777").unwrap();
    let ours = imported(&site);
    let of = |path: &str| (ours[Path::new(path)].owner, ours[Path::new(path)].mode);
    assert_eq!(of("new/file"), ((7, 8), 0o014_711));
    assert_eq!(of("kept"), ((9, 10), 0o041_777));
    // What the kernel's overlayfs wrote is not to be taken for this.
    upper.set_xattr("kept", "trusted.overlay.redirect", b"/new").unwrap();
    let mut import = Command::new(thinroot());
    import.arg("import").arg("--fuse-overlayfs").arg(site.path().join("foreign"));
    let output = import.arg("--out").arg(site.path().join("other")).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && told.contains("trusted.overlay.redirect"), "{told}");
    assert!(!site.path().join("other").exists(), "nothing is left behind");
}

/// Before `thinroot settle`: what was not written is read right, what was is an error, and without
/// `metacopy=on` nothing is read wrong. Where the file system shares blocks large files came up whole,
/// and are read right whatever was done to them.
#[test]
fn kernel_reads_what_has_its_data_in_the_base_and_refuses_the_rest() {
    const FILES: [(&str, usize); 6] = [
        ("dir/small", 5000),
        ("dir/small-moved", 5000),
        ("dir/large", 1 << 20),
        ("dir/large-moved", 1 << 20),
        ("dir/part", 1 << 20),
        ("dir/cut", 1 << 20),
    ];
    if !may_mount("kernel_reads_what_has_its_data_in_the_base_and_refuses_the_rest") {
        return;
    }
    let site = Site::new();
    fs::create_dir(site.lower().join("dir")).unwrap();
    for (path, bytes) in FILES {
        fs::write(site.lower().join(path), pattern(bytes)).unwrap();
    }
    let mount = site.mount(&[]);
    let at = |path: &str| mount.root().join(path);
    for path in ["dir/small", "dir/large"] {
        fs::set_permissions(at(path), fs::Permissions::from_mode(0o600)).unwrap();
    }
    fs::rename(at("dir/small-moved"), at("small")).unwrap();
    fs::rename(at("dir/large-moved"), at("large")).unwrap();
    let part = fs::File::options().write(true).open(at("dir/part")).unwrap();
    part.write_at(b"written", 500_000).unwrap();
    fs::File::options().write(true).open(at("dir/cut")).unwrap().set_len(5000).unwrap();
    drop(part);
    mount.unmount();
    let shares = shares_blocks(site.path());
    let whole = [("dir/small", 5000), ("small", 5000), ("dir/large", 1 << 20), ("large", 1 << 20)];
    let mut written = pattern(1 << 20);
    written[500_000..500_007].copy_from_slice(b"written");
    let changed = [("dir/part", written), ("dir/cut", pattern(5000))];
    for metacopy in ["on", "off"] {
        let Some(overlay) = Overlay::of(&site, metacopy) else { return };
        for (path, bytes) in whole {
            match fs::read(overlay.root().join(path)) {
                Ok(read) => assert!(read == pattern(bytes), "{path}, metacopy={metacopy}"),
                Err(error) => {
                    let is_whole = shares && path.ends_with("large");
                    assert!(metacopy == "off" && !is_whole, "{path}: {error}");
                }
            }
        }
        for (path, expected) in &changed {
            match fs::read(overlay.root().join(path)) {
                Ok(read) => {
                    let row = format!("{path}, metacopy={metacopy}: {} bytes", read.len());
                    assert!(shares && read == *expected, "{row}");
                }
                Err(error) => assert!(!shares, "{path}, metacopy={metacopy}: {error}"),
            }
        }
    }
}

/// Whether files there can have blocks in common.
fn shares_blocks(directory: &Path) -> bool {
    let [from, to] = ["from", "to"].map(|name| fs::File::create_new(directory.join(name)).unwrap());
    from.write_at(&[1; 4096], 0).unwrap();
    rustix::fs::ioctl_ficlone(&to, &from).is_ok()
}
