//! The way from the initramfs into the union.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{FileType, lstat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_move, unmount};
use rustix::process::{chdir, chroot, pivot_root};

use crate::failure::{Failure, OrFail};

/// The tmpfs that may stand below the union for a moment, and the union in it.
const STAGE: &str = "/thinroot";
/// Where the union is mounted before it becomes the root.
pub const UNION: &str = "/thinroot/union";

/// Mounts devtmpfs, proc and sysfs in the initramfs.
pub fn mount_kernel_file_systems() -> Result<(), Failure> {
    let plain = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    mount_new("/dev", "devtmpfs", MountFlags::NOSUID, "mode=755")?;
    mount_new("/proc", "proc", plain, "")?;
    mount_new("/sys", "sysfs", plain, "")
}

/// Makes the place the union is mounted at.
pub fn prepare() -> Result<(), Failure> {
    mount_new(STAGE, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, "mode=755")?;
    make_directory(Path::new(UNION), 0o755)
}

/// Makes the union at [`UNION`] the root; nothing of the initramfs stays mounted or in memory.
pub fn enter_union() -> Result<(), Failure> {
    for name in ["dev", "proc", "sys"] {
        let target = Path::new(UNION).join(name);
        make_directory(&target, 0o755)?;
        let source = format!("/{name}");
        mount_move(&source, &target).or_fail(|| format!("move {source} into the union"))?;
    }
    // The kernel never unmounts its first root, so its files would stay in memory for ever.
    empty_initramfs().or_fail(|| "empty the initramfs".to_owned())?;
    chdir(UNION).or_fail(|| "enter the union".to_owned())?;
    match pivot_root(".", ".") {
        Ok(()) => {}
        // Up to Linux 6.x the initramfs is the rootfs, which cannot be pivoted away: put the
        // stage over it, and pivot from there.
        Err(Errno::INVAL) => {
            stage_over_rootfs().or_fail(|| "put a file system over the initramfs".to_owned())?;
            chdir("/union").or_fail(|| "enter the union".to_owned())?;
            pivot_root(".", ".").or_fail(|| "pivot_root into the union".to_owned())?;
        }
        failed => failed.or_fail(|| "pivot_root into the union".to_owned())?,
    }
    // pivot_root(2): with two dots the old root lies over the new one, and "." is the old one.
    unmount(".", UnmountFlags::DETACH).or_fail(|| "unmount the initramfs".to_owned())?;
    chdir("/").or_fail(|| "enter the union".to_owned())
}

fn stage_over_rootfs() -> Result<(), Errno> {
    chdir(STAGE)?;
    mount_move(".", "/")?;
    chroot(".")
}

/// Mounts what one command may expect; a real init brings its own.
pub fn mount_for_command() -> Result<(), Failure> {
    let plain = MountFlags::NOSUID | MountFlags::NODEV;
    // 5 is the group tty in every distribution; grantpt(3) wants it.
    mount_new("/dev/pts", "devpts", MountFlags::NOSUID | MountFlags::NOEXEC, "mode=620,gid=5")?;
    mount_new("/dev/shm", "tmpfs", plain, "mode=1777")?;
    mount_run()?;
    for (name, target) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
        let linked = symlink(format!("/proc/self/fd{target}"), format!("/dev/{name}"));
        match linked {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            linked => linked.or_fail(|| format!("make /dev/{name}"))?,
        }
    }
    Ok(())
}

/// Puts `program` where systemd looks for what shall end the machine once all its services are
/// gone, so that a booted guest, too, leaves its union in order.
///
/// An init that knows nothing of it is not disturbed: initramfs everywhere hand on their /run.
/// Source: systemd.io/INITRD_INTERFACE, "/run/initramfs/shutdown".
pub fn keep_for_shutdown(program: &[u8]) -> Result<(), Failure> {
    mount_run()?;
    make_directory(Path::new("/run/initramfs"), 0o700)?;
    let path = "/run/initramfs/shutdown";
    fs::write(path, program).or_fail(|| format!("write {path}"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).or_fail(|| format!("set {path}"))
}

fn mount_run() -> Result<(), Failure> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    // As large as systemd makes it, which keeps the one it finds.
    mount_new("/run", "tmpfs", flags, "mode=755,size=20%,nr_inodes=800k")
}

fn mount_new(target: &str, kind: &str, flags: MountFlags, data: &str) -> Result<(), Failure> {
    make_directory(Path::new(target), 0o755)?;
    let data = std::ffi::CString::new(data).or_fail(|| format!("mount {kind} at {target}"))?;
    mount(kind, target, kind, flags, Some(data.as_c_str()))
        .or_fail(|| format!("mount {kind} at {target}"))
}

/// A mount point is made only where it is missing: each one made is a change in the upper.
fn make_directory(path: &Path, mode: u32) -> Result<(), Failure> {
    // Not `symlink_metadata`, which asks for the time of birth: that has the kernel ask the daemon
    // (STATX) for what it knows.
    match lstat(path) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => Ok(()),
        Ok(_) => Err(Failure::new(format!("{} in the guest is no directory", path.display()))),
        Err(Errno::NOENT) => fs::DirBuilder::new()
            .mode(mode)
            .create(path)
            .or_fail(|| format!("make {}", path.display())),
        failed => failed.map(drop).or_fail(|| format!("look at {}", path.display())),
    }
}

/// Removes every file below `/` that is on the same file system as `/` itself.
///
/// It refuses anything but the memory file systems an initramfs can be.
fn empty_initramfs() -> io::Result<()> {
    // magic.h: RAMFS_MAGIC, TMPFS_MAGIC.
    let kind = rustix::fs::statfs("/")?.f_type;
    if kind != 0x8584_58f6 && kind != 0x0102_1994 {
        return Err(io::Error::other("the first root is neither ramfs nor tmpfs"));
    }
    let device = fs::symlink_metadata("/")?.dev();
    remove_below(Path::new("/"), device)
}

fn remove_below(directory: &Path, device: u64) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.dev() != device {
            // The stage, mounted over an empty directory.
            continue;
        }
        if metadata.is_dir() {
            remove_below(&path, device)?;
            fs::remove_dir(&path)?;
        } else {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_point_that_is_there_is_left_alone_and_a_file_is_refused() {
        let parent = std::env::temp_dir().join(format!("thinroot-root-{}", std::process::id()));
        fs::create_dir_all(&parent).unwrap();
        let there = parent.join("there");
        make_directory(&there, 0o755).unwrap();
        make_directory(&there, 0o700).unwrap();
        assert_eq!(fs::metadata(&there).unwrap().mode() & 0o777, 0o755);
        fs::write(parent.join("file"), "").unwrap();
        let refused = make_directory(&parent.join("file"), 0o755).unwrap_err().to_string();
        assert!(refused.contains("no directory"), "{refused}");
        fs::remove_dir_all(&parent).unwrap();
    }
}
