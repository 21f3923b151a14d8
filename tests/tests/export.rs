//! `thinroot export`: a layer over the base is the guest's root again, for who knows nothing of us;
//! and a whole root is a base. Law U57.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, chown, lchown, symlink};
use std::path::Path;
use std::process::Command;

use rustix::fs::{RenameFlags, XattrFlags, lsetxattr, renameat_with};
use tests::mount::{Mount, Site, may_mount};
use tests::overlayfs::{Layers, Overlay};
use tests::tree::{Tree, compare, read_short};

/// Nobody on this host.
const USER: u32 = 4242;

/// A base with something of each kind.
fn lay_base(base: &Path) {
    for path in ["etc/deep", "moved/inner", "swap/a", "swap/b", "gone/below", "anew", "log"] {
        fs::create_dir_all(base.join(path)).unwrap();
    }
    let files = [
        "etc/passwd",
        "etc/hosts",
        "etc/deep/f",
        "moved/inner/f",
        "moved/g",
        "moved/h",
        "swap/a/1",
        "swap/b/2",
        "gone/below/f",
        "anew/old",
        "anew/kept",
        "log/f",
        "tool",
        "plain",
    ];
    for path in files {
        fs::write(base.join(path), path).unwrap();
    }
    fs::write(base.join("big"), vec![b'b'; 400 << 10]).unwrap();
    fs::hard_link(base.join("plain"), base.join("etc/linked")).unwrap();
    symlink("etc/passwd", base.join("link")).unwrap();
}

/// What a guest did to it.
fn change(root: &Path) {
    let at = |path: &str| root.join(path);
    fs::write(at("etc/passwd"), "changed").unwrap();
    fs::remove_file(at("etc/hosts")).unwrap();
    fs::rename(at("moved"), at("elsewhere")).unwrap();
    fs::remove_file(at("elsewhere/g")).unwrap();
    fs::write(at("elsewhere/inner/new"), "new").unwrap();
    fs::rename(at("elsewhere/h"), at("h")).unwrap();
    let file = File::open(root).unwrap();
    renameat_with(&file, "swap/a", &file, "swap/b", RenameFlags::EXCHANGE).unwrap();
    fs::remove_dir_all(at("gone")).unwrap();
    fs::remove_dir_all(at("anew")).unwrap();
    fs::create_dir(at("anew")).unwrap();
    fs::write(at("anew/kept"), "another").unwrap();
    File::options().write(true).open(at("big")).unwrap().write_at(b"x", 5000).unwrap();
    fs::write(at("plain"), "through one name").unwrap();
    fs::remove_file(at("log/f")).unwrap();
    fs::remove_dir(at("log")).unwrap();
    fs::write(at("log"), "a file now").unwrap();
    fs::set_permissions(at("tool"), Permissions::from_mode(0o4750)).unwrap();
    chown(at("tool"), Some(7), Some(8)).unwrap();
    fs::set_permissions(at("tool"), Permissions::from_mode(0o4755)).unwrap();
    lsetxattr(at("tool"), "trusted.t", b"\n=x", XattrFlags::empty()).unwrap();
    lchown(at("link"), Some(9), Some(9)).unwrap();
    let sparse = File::create(at("sparse")).unwrap();
    sparse.write_at(b"data", 8 << 20).unwrap();
    sparse.set_len(20 << 20).unwrap();
    fs::hard_link(at("sparse"), at("sparse2")).unwrap();
    fs::write(at(&"n".repeat(200)), "a long name").unwrap();
    symlink("t".repeat(400), at("far")).unwrap();
    let mut device = Command::new("mknod");
    assert!(device.arg(at("null")).args(["c", "1", "3"]).status().unwrap().success());
}

/// A directory's size is its file system's.
fn shown(root: &Path) -> Tree {
    let mut tree = read_short(root);
    let directories = tree.values_mut().filter(|object| object.mode & 0o170_000 == 0o040_000);
    directories.for_each(|object| object.size = 0);
    tree
}

/// What a guest sees when nothing of it is in a cache any more.
fn at_rest(mount: Mount) -> Tree {
    let tree = shown(mount.root());
    mount.unmount();
    tree
}

fn assert_same(what: &str, expected: &Tree, found: &Tree) {
    let lines = compare(expected, found);
    assert!(lines.is_empty(), "{what}: {lines:#?}");
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Applies a layer as containers do, with GNU tar.
fn apply(layer: &Path, to: &Path, place: &Path) {
    fs::create_dir(place).unwrap();
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--numeric-owner", "--preserve-permissions", "--same-owner"]);
    tar.args(["--xattrs", "--xattrs-include=*"]);
    succeed(tar.arg("--file").arg(layer).arg("--directory").arg(place));
    remove_marked(place, to);
    let mut copy = Command::new("cp");
    copy.args(["--archive", "--remove-destination"]);
    succeed(copy.arg(place.join(".")).arg(to));
}

/// What marks in a layer say is gone goes, and the marks after it.
fn remove_marked(layer: &Path, to: &Path) {
    for row in fs::read_dir(layer).unwrap() {
        let row = row.unwrap();
        let name = row.file_name().into_string().unwrap();
        let is_directory = row.file_type().unwrap().is_dir();
        if name == ".wh..wh..opq" {
            if to.exists() {
                fs::remove_dir_all(to).unwrap();
            }
            fs::create_dir(to).unwrap();
            fs::remove_file(row.path()).unwrap();
        } else if let Some(gone) = name.strip_prefix(".wh.") {
            let gone = to.join(gone);
            if gone.is_dir() { fs::remove_dir_all(gone) } else { fs::remove_file(gone) }.unwrap();
            fs::remove_file(row.path()).unwrap();
        } else {
            let below = to.join(&name);
            let was_directory = below.symlink_metadata().is_ok_and(|found| found.is_dir());
            if was_directory && !is_directory {
                fs::remove_dir_all(&below).unwrap();
            }
            if is_directory {
                remove_marked(&row.path(), &below);
            }
        }
    }
}

/// The kernel's overlayfs counts no subdirectories.
fn without_links(mut tree: Tree) -> Tree {
    let directories = tree.values_mut().filter(|object| object.mode & 0o170_000 == 0o040_000);
    directories.for_each(|object| object.links = 0);
    tree
}

/// An applied layer's marks are gone from its directories, whose times say so.
fn without_directory_times(mut tree: Tree) -> Tree {
    let directories = tree.values_mut().filter(|object| object.mode & 0o170_000 == 0o040_000);
    directories.for_each(|object| object.mtime = (0, 0));
    tree
}

/// A base that a guest has changed, and what its root is then.
fn lived_in() -> (Site, Tree) {
    let site = Site::new();
    lay_base(&site.lower());
    let mount = site.mount(&[]);
    change(mount.root());
    mount.unmount();
    let expected = at_rest(site.mount(&[]));
    (site, expected)
}

#[test]
fn exported_layer_over_the_base_is_the_guests_root() {
    if !may_mount("exported_layer_over_the_base_is_the_guests_root") {
        return;
    }
    let (site, expected) = lived_in();
    let layer = site.path().join("layer.tar");
    succeed(site.command("export").arg("--to").arg(&layer));
    let copy = site.path().join("copy");
    fs::create_dir(&copy).unwrap();
    succeed(Command::new("cp").arg("--archive").arg(site.lower().join(".")).arg(&copy));
    apply(&layer, &copy, &site.path().join("unpacked"));
    let found = without_directory_times(shown(&copy));
    assert_same("layer", &without_directory_times(expected.clone()), &found);

    let upper = site.path().join("overlay-upper");
    succeed(site.command("export").arg("--to").arg(&upper));
    let (work, point) = (site.path().join("overlay-work"), site.path().join("overlay"));
    fs::create_dir(&work).unwrap();
    let layers = Layers { lowers: &[site.lower()], upper: &upper, work: &work, point };
    let point = site.path().join("overlay");
    let Some(overlay) = Overlay::mount(layers, "off") else { return };
    let found = shown(&point);
    drop(overlay);
    assert_same("upper of the kernel's overlayfs", &without_links(expected), &without_links(found));
}

#[test]
fn exported_root_is_a_base() {
    if !may_mount("exported_root_is_a_base") {
        return;
    }
    let (site, expected) = lived_in();
    let (archive, base) = (site.path().join("root.tar"), site.path().join("base"));
    succeed(site.command("export").arg("--whole").arg("--to").arg(&archive));
    let mut import = site.command_of(USER, "import");
    fs::set_permissions(&archive, Permissions::from_mode(0o644)).unwrap();
    succeed(import.arg(&archive).arg("--out").arg(&base));
    let again = Site::new();
    let base_too = again.path().join("base");
    fs::rename(&base, &base_too).unwrap();
    let mount = again.mount_of(USER, &base_too);
    assert_same("a user's root over it", &expected, &shown(mount.root()));
    mount.unmount();
}

/// Made by a user without privilege over an imported base, it is the kernel's afterwards.
#[test]
fn upper_without_privilege_is_exported_to_the_kernels_form() {
    if !may_mount("upper_without_privilege_is_exported_to_the_kernels_form") {
        return;
    }
    let site = Site::new();
    lay_base(&site.lower());
    let (archive, base) = (site.path().join("base.tar"), site.path().join("base"));
    let mut tar = Command::new("tar");
    tar.args(["--create", "--format=pax", "--numeric-owner", "--file"]).arg(&archive);
    succeed(tar.arg("--directory").arg(site.lower()).arg("."));
    succeed(site.command_of(USER, "import").arg(&archive).arg("--out").arg(&base));
    let mount = site.mount_of(USER, &base);
    change(mount.root());
    mount.unmount();
    let expected = at_rest(site.mount_of(USER, &base));
    let upper = site.path().join("overlay-upper");
    let union = |mut command: Command, index: &str| {
        command.arg("--lower").arg(&base).arg("--upper").arg(site.upper());
        command.arg("--work").arg(site.work()).arg("--index").arg(site.path().join(index));
        command
    };
    let refused = union(site.command_of(USER, "export"), "index").arg("--to").arg(&upper).output();
    let refused = refused.unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && said.contains("root alone"), "{said}");
    assert!(!upper.exists());
    let mut export = Command::new(site.path().join("thinroot"));
    export.arg("export");
    // Root trusts no index of a user's.
    succeed(union(export, "index-of-root").arg("--to").arg(&upper));
    let (work, point) = (site.path().join("overlay-work"), site.path().join("overlay"));
    fs::create_dir(&work).unwrap();
    let layers =
        Layers { lowers: &[site.lower()], upper: &upper, work: &work, point: point.clone() };
    let Some(overlay) = Overlay::mount(layers, "off") else { return };
    let found = shown(&point);
    drop(overlay);
    assert_same("upper of the kernel's overlayfs", &without_links(expected), &without_links(found));
}
