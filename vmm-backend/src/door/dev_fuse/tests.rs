//! The door with a real kernel before it and a file system in memory behind it. Needs root (or
//! fusermount3, where it is what is tested) and /dev/fuse; skipped aloud otherwise.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;

use rustix::event::{EventfdFlags, eventfd};

use super::*;
use crate::fuse::memory::MemoryFileSystem;
use crate::fuse::session::SessionConfig;
use crate::skipped::skip;

/// Mounts on a fresh directory, uses it while it is served, ends it, and says how it ended.
fn with_mount(
    mounted: impl FnOnce(&Path) -> Result<Mount, MountError>,
    use_it: impl FnOnce(&Path),
    end: impl FnOnce(&Mount, &OwnedFd),
) -> Ended {
    let directory = tempfile::tempdir().unwrap();
    let mount = mounted(directory.path()).unwrap();
    let session = Session::new(Arc::new(MemoryFileSystem::new()), SessionConfig::default());
    let stop = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let ended = thread::scope(|scope| {
        let serving = scope.spawn(|| mount.serve(&session, stop.as_fd()));
        let _stops = StopsOnPanic(&stop);
        use_it(directory.path());
        end(&mount, &stop);
        serving.join().unwrap().unwrap()
    });
    assert!(!mounts().iter().any(|line| line.contains(&*directory.path().to_string_lossy())));
    ended
}

fn may_mount() -> bool {
    let may = rustix::process::geteuid().is_root() && fs::File::open("/dev/fuse").is_ok();
    if !may {
        skip("mounting needs root and /dev/fuse");
    }
    may
}

/// A failed assertion must not wait for a mount that nobody ends.
struct StopsOnPanic<'a>(&'a OwnedFd);

impl Drop for StopsOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            raise(self.0.as_fd());
        }
    }
}

fn mounts() -> Vec<String> {
    fs::read_to_string("/proc/self/mounts").unwrap().lines().map(str::to_owned).collect()
}

fn files_live(root: &Path) {
    let line = mounts().into_iter().find(|line| line.contains(&*root.to_string_lossy())).unwrap();
    assert!(line.starts_with("thinroot ") && line.contains(" fuse.thinroot "), "{line}");
    assert!(line.contains("default_permissions"), "{line}");

    let big: Vec<u8> = (0..3 << 20).map(|at: u32| at.to_le_bytes()[1]).collect();
    fs::write(root.join("big"), &big).unwrap();
    fs::write(root.join("small"), b"hello").unwrap();
    fs::create_dir(root.join("directory")).unwrap();
    symlink("small", root.join("link")).unwrap();
    assert_eq!(fs::read(root.join("link")).unwrap(), b"hello");
    assert!(fs::read(root.join("big")).unwrap() == big);
    assert!(fs::metadata(root.join("absent")).is_err());
    let mut names: Vec<PathBuf> =
        fs::read_dir(root).unwrap().map(|row| row.unwrap().file_name().into()).collect();
    names.sort();
    assert_eq!(names, ["big", "directory", "link", "small"].map(PathBuf::from));

    let small = fs::OpenOptions::new().read(true).write(true).open(root.join("small")).unwrap();
    small.write_all_at(b"HE", 0).unwrap();
    small.set_len(4).unwrap();
    fs::set_permissions(root.join("small"), fs::Permissions::from_mode(0o4750)).unwrap();
    assert_eq!(fs::read(root.join("small")).unwrap(), b"HEll");
    assert_eq!(fs::metadata(root.join("small")).unwrap().mode(), 0o104_750);
    fs::rename(root.join("small"), root.join("directory/moved")).unwrap();
    assert!(fs::metadata(root.join("small")).is_err());
    assert_eq!(fs::read(root.join("directory/moved")).unwrap(), b"HEll");
    fs::remove_file(root.join("big")).unwrap();
}

#[test]
fn files_live_behind_the_device_until_it_is_stopped() {
    if !may_mount() {
        return;
    }
    let ended = with_mount(
        |path| mount(path, &MountOptions::default()),
        files_live,
        |_, stop| raise(stop.as_fd()),
    );
    assert_eq!(ended, Ended::Stopped);
}

#[test]
fn unmounting_from_outside_ends_it() {
    if !may_mount() {
        return;
    }
    let ended = with_mount(
        |path| mount(path, &MountOptions { workers: 1, ..Default::default() }),
        |root| fs::write(root.join("file"), b"x").unwrap(),
        |mount, _| {
            assert!(Command::new("umount").arg(mount.path()).status().unwrap().success());
        },
    );
    assert_eq!(ended, Ended::Unmounted);
}

#[test]
fn owner_ends_it_from_another_thread() {
    if !may_mount() {
        return;
    }
    let ended = with_mount(
        |path| mount(path, &MountOptions::default()),
        |root| fs::write(root.join("file"), b"x").unwrap(),
        |mount, _| mount.unmount(),
    );
    assert_eq!(ended, Ended::Unmounted);
}

#[test]
fn helper_mounts_as_we_do() {
    let helper = Command::new("fusermount3").arg("--version").output();
    if helper.is_err() || fs::File::open("/dev/fuse").is_err() {
        skip("mounting as a user needs fusermount3 and /dev/fuse");
        return;
    }
    let by_helper = |path: &Path| {
        let options = MountOptions::default();
        let path = path.canonicalize().unwrap();
        let mounted = mounting::by_helper(&path, &options)?;
        Mount::new(path, mounted, 2)
    };
    let end = |mount: &Mount, _: &OwnedFd| {
        assert!(
            Command::new("fusermount3").arg("-u").arg(mount.path()).status().unwrap().success()
        );
    };
    let ended = with_mount(by_helper, files_live, end);
    assert_eq!(ended, Ended::Unmounted);
}

#[test]
fn user_who_stays_is_cut_off() {
    if !may_mount() {
        return;
    }
    let mut stays = None;
    let ended = with_mount(
        |path| mount(path, &MountOptions::default()),
        |root| {
            fs::write(root.join("file"), b"x").unwrap();
            stays = Some(fs::File::open(root.join("file")).unwrap());
        },
        |_, stop| raise(stop.as_fd()),
    );
    assert_eq!(ended, Ended::Stopped);
}

#[test]
fn mount_that_nobody_serves_goes_with_its_owner() {
    if !may_mount() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let is_mounted =
        || mounts().iter().any(|line| line.contains(&*directory.path().to_string_lossy()));
    let mount = mount(directory.path(), &MountOptions::default()).unwrap();
    assert!(is_mounted());
    drop(mount);
    assert!(!is_mounted());
}

#[test]
fn mountpoint_that_is_none_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for (path, cause) in [(file.path(), Errno::NOTDIR), (Path::new("/absent"), Errno::NOENT)] {
        let refused = mount(path, &MountOptions::default()).unwrap_err();
        assert!(matches!(&refused, MountError::Mountpoint { cause: is, .. } if *is == cause));
        assert!(refused.to_string().contains(&*path.to_string_lossy()));
    }
}
