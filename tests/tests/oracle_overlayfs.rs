//! Law U52: the kernel's overlayfs reads what we wrote, and we read what it wrote.
//!
//! `THINROOT_ORACLE_SEEDS`, `THINROOT_ORACLE_FIRST` and `THINROOT_ORACLE_OPERATIONS` as in
//! oracle_private_copy.rs.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tests::laws::plot::Plot;
use tests::mount::{Site, may_mount};
use tests::oracle::{Operation, World, comparable, make_tree, operations, remove, setting};
use tests::tree::{self, Tree};

/// The kernel's own mount over a site's layers, gone when dropped.
struct Overlay(PathBuf);

impl Overlay {
    /// `None`, aloud, where the kernel has no overlayfs.
    fn mount(site: &Site, metacopy: &str) -> Option<Self> {
        let point = site.path().join("overlay");
        fs::create_dir_all(&point).unwrap();
        fs::create_dir_all(site.work()).unwrap();
        let options = format!(
            "lowerdir={},upperdir={},workdir={},redirect_dir=on,index=on,\
             metacopy={metacopy}",
            site.lower().display(),
            site.upper().display(),
            site.work().display()
        );
        let options = CString::new(options).unwrap();
        match mount("overlay", &point, "overlay", MountFlags::empty(), &*options) {
            Ok(()) => Some(Self(point)),
            Err(Errno::NODEV) => {
                eprintln!("SKIPPED: this kernel has no overlayfs");
                None
            }
            Err(error) => panic!("mounting overlayfs over {}: {error}", site.path().display()),
        }
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.0, UnmountFlags::DETACH) {
            eprintln!("unmounting {}: {error}", self.0.display());
        }
    }
}

/// What an overlayfs cannot show: character devices 0:0, which are its whiteouts, and overlay
/// attributes of the guest's, which it does not let through. Paths of such devices of either tree
/// are left out of both.
fn without_what_overlayfs_lacks(ours: &mut Tree, theirs: &mut Tree) {
    let is_whiteout_like = |object: &tree::Object| {
        FileType::from_raw_mode(object.mode) == FileType::CharacterDevice && object.rdev == 0
    };
    let hidden: Vec<_> = ours
        .iter()
        .filter(|(_, object)| is_whiteout_like(object))
        .map(|(path, _)| path.clone())
        .collect();
    for tree in [ours, theirs] {
        for path in &hidden {
            tree.remove(path);
        }
        for object in tree.values_mut() {
            object.xattrs.retain(|key, _| !key.contains(".overlay."));
        }
        for object in tree.values_mut() {
            // Directories: overlayfs says 1 of merged ones.
            if FileType::from_raw_mode(object.mode) == FileType::Directory {
                object.links = 0;
            }
        }
    }
}

/// Operations whose outcome overlayfs can hold: no character device 0:0 is made, and no overlay
/// attribute set.
fn plain(operation: &Operation) -> bool {
    match operation {
        Operation::Mknod(_, FileType::CharacterDevice, 0) => false,
        Operation::Rename(_, _, flags) => !flags.contains(rustix::fs::RenameFlags::WHITEOUT),
        Operation::SetXattr(_, key, _) => !key.contains("overlay"),
        _ => true,
    }
}

fn seeds() -> std::ops::Range<u64> {
    let first = setting("THINROOT_ORACLE_FIRST", 1);
    first..first + setting("THINROOT_ORACLE_SEEDS", 6)
}

fn prepared(seed: u64) -> (Site, Vec<Operation>) {
    let site = Site::new();
    make_tree(seed, &site.lower()).unwrap();
    forget_overlay_marks(&site.lower());
    let count = usize::try_from(setting("THINROOT_ORACLE_OPERATIONS", 250)).unwrap();
    (site, operations(seed, count))
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

fn run(root: &Path, operations: &[Operation]) {
    let mut world = World::new(root);
    for operation in operations.iter().filter(|operation| plain(operation)) {
        world.perform(operation);
    }
}

#[test]
fn kernel_reads_what_we_wrote() {
    if !may_mount("kernel_reads_what_we_wrote") {
        return;
    }
    let mut failures = Vec::new();
    for seed in seeds() {
        let (site, operations) = prepared(seed);
        let mount = site.mount(&[]);
        run(&site.point(), &operations);
        let mut ours = comparable(&site.point());
        mount.unmount();
        // Until then the kernel answers an error for a file copied up by block.
        assert!(site.command("settle").args(["--log-level", "warn"]).status().unwrap().success());
        let Some(overlay) = Overlay::mount(&site, "on") else { return };
        let mut theirs = comparable(&overlay.0);
        without_what_overlayfs_lacks(&mut ours, &mut theirs);
        let found = tree::compare(&ours, &theirs);
        if !found.is_empty() {
            failures.push(format!("seed {seed}: {}", found.join("; ")));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn we_read_what_the_kernel_wrote() {
    if !may_mount("we_read_what_the_kernel_wrote") {
        return;
    }
    let mut failures = Vec::new();
    for seed in seeds() {
        let (site, operations) = prepared(seed);
        // We refuse metadata-only copies: there the data is elsewhere.
        let Some(overlay) = Overlay::mount(&site, "off") else { return };
        run(&overlay.0, &operations);
        let mut theirs = comparable(&overlay.0);
        drop(overlay);
        let mount = site.mount(&[]);
        let mut ours = comparable(&site.point());
        mount.unmount();
        without_what_overlayfs_lacks(&mut ours, &mut theirs);
        let found = tree::compare(&theirs, &ours);
        if !found.is_empty() {
            failures.push(format!("seed {seed}: {}", found.join("; ")));
        }
        remove(&site.upper());
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
