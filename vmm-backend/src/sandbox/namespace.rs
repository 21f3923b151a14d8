//! An own mount namespace with nothing in it but the lowers, read-only, and the home of upper and
//! work.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, mkdirat, open};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree,
    unmount,
};
use rustix::process::{chdir, chroot, fchdir, getegid, geteuid, pivot_root};
use rustix::thread::{CapabilitySet, LinkNameSpaceType, capabilities, move_into_link_name_space};

use super::{Directories, Held, Places, SandboxError, open_below, step};
use crate::sys::mount::{MountAttrFlags, UnshareFlags, set_attributes, unshare_namespaces};

/// Nothing on these mounts is a program or a device to this process.
const INERT: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV
    .union(MountAttrFlags::MOUNT_ATTR_NOSUID)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// What failed, and why.
pub type Refusal = (&'static str, Errno);

/// Which namespaces this process got.
pub enum Unshared {
    /// A copy of the host's mounts, so far.
    Mount,
    /// The same in a user namespace, in which the user is still himself.
    UserAndMount,
    /// None.
    Refused(Refusal),
}

/// Moves this process into namespaces of its own, a user who has no right to mount into a user
/// namespace too.
///
/// Errors: of the user namespace's maps, without which every file would change its owner.
pub fn unshare() -> Result<Unshared, SandboxError> {
    let had = step("reading capabilities", capabilities(None))?.effective;
    if had.contains(CapabilitySet::SYS_ADMIN) {
        return Ok(match unshare_namespaces(UnshareFlags::NEWNS) {
            Ok(()) => Unshared::Mount,
            Err(cause) => Unshared::Refused(("unshare", cause)),
        });
    }
    let (uid, gid) = (geteuid(), getegid());
    if uid.is_root() {
        // A container's root: in a user namespace it would lose the rights it has over files.
        return Ok(Unshared::Refused(("root without CAP_SYS_ADMIN", Errno::PERM)));
    }
    if let Err(cause) = unshare_namespaces(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) {
        return Ok(Unshared::Refused(("user namespace", cause)));
    }
    // user_namespaces(7): without privilege outside, gid_map wants setgroups denied first.
    step("denying setgroups", write("/proc/self/setgroups", "deny"))?;
    step("mapping the user id", write("/proc/self/uid_map", &identity(uid.as_raw())))?;
    step("mapping the group id", write("/proc/self/gid_map", &identity(gid.as_raw())))?;
    Ok(Unshared::UserAndMount)
}

fn identity(id: u32) -> String {
    format!("{id} {id} 1")
}

fn write(path: &str, text: &str) -> Result<(), Errno> {
    fs::write(path, text).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Binds what is needed below a new root, makes that the root and lets go of the old one; `None`
/// where the host does not allow it and everything is where it was.
///
/// Errors: of the last steps, after which there is no way back.
pub fn enter(
    places: &Places,
    unshared: &Unshared,
) -> Result<(Option<Directories>, Held), SandboxError> {
    let built = match *unshared {
        Unshared::Refused(refusal) => Err(refusal),
        Unshared::Mount | Unshared::UserAndMount => build(places),
    };
    let (root, directories) = match built {
        Ok(built) => built,
        Err((what, cause)) => {
            return Ok((None, Held::No(format!("no mount namespace ({what}: {cause})"))));
        }
    };
    let held = step("hiding the host's root", hide_host(root.as_fd()))?;
    let attributes = INERT | MountAttrFlags::MOUNT_ATTR_RDONLY;
    step("making the new root read-only", set_attributes(root.as_fd(), attributes, false))?;
    Ok((Some(directories), held))
}

/// The new root, mounted over the old one, with the directories bound below it.
fn build(places: &Places) -> Result<(OwnedFd, Directories), Refusal> {
    let because = |what| move |cause| (what, cause);
    make_private().map_err(because("private mounts"))?;
    let root = empty_root().map_err(because("tmpfs"))?;
    let mut lowers = Vec::new();
    for (number, lower) in places.lowers.iter().enumerate() {
        let attributes = INERT | MountAttrFlags::MOUNT_ATTR_RDONLY;
        let tree = bind(lower, attributes).map_err(because("binding a lower"))?;
        attach(&tree, &root, &format!("lower.{number}")).map_err(because("attaching a lower"))?;
        lowers.push(open_below(&tree, Path::new("")).map_err(because("opening a lower"))?);
    }
    // One mount for both: the kernel renames within a mount only, even on one file system.
    let home = bind(&places.home, INERT).map_err(because("binding upper and work"))?;
    attach(&home, &root, "home").map_err(because("attaching upper and work"))?;
    let upper = open_below(&home, &places.upper).map_err(because("opening the upper"))?;
    let work = open_below(&home, &places.work).map_err(because("opening work"))?;
    Ok((root, Directories { lowers, upper, work }))
}

/// No mount made here may spread to the host.
fn make_private() -> Result<(), Errno> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    match mount_change("/", private) {
        // In a chroot "/" is no mount. Joining the namespace one is in gives its true root.
        Err(Errno::INVAL) => {
            let own = open("/proc/self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::Mount))?;
            mount_change("/", private)
        }
        done => done,
    }
}

/// An empty tmpfs mounted over the root, which path walks do not see yet.
fn empty_root() -> Result<OwnedFd, Errno> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "mode", "0555")?;
    fsconfig_create(context.as_fd())?;
    let root = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, INERT)?;
    move_mount(root.as_fd(), "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(root)
}

/// A new mount of the directory, alone where that is allowed and with all mounts below it where
/// the kernel shows a user no directory from under a mount.
fn bind(directory: &OwnedFd, attributes: MountAttrFlags) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = match open_tree(directory, "", flags) {
        Err(Errno::INVAL) => open_tree(directory, "", flags | OpenTreeFlags::AT_RECURSIVE)?,
        done => done?,
    };
    set_attributes(tree.as_fd(), attributes, true)?;
    Ok(tree)
}

fn attach(tree: &OwnedFd, root: &OwnedFd, name: &str) -> Result<(), Errno> {
    mkdirat(root, name, Mode::from_raw_mode(0o500))?;
    move_mount(tree.as_fd(), "", root.as_fd(), name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Makes the mount `root` stands for the root and lets go of the old one.
fn hide_host(root: BorrowedFd<'_>) -> Result<Held, Errno> {
    fchdir(root)?;
    let held = match pivot_root(".", ".") {
        Ok(()) => {
            // pivot_root(2), "pivot_root(".", ".")": the old root is on top of the new one now.
            unmount(".", UnmountFlags::DETACH)?;
            Held::Yes("own mount namespace, lowers read-only".to_owned())
        }
        // The kernel's first root file system cannot be moved away.
        Err(Errno::INVAL) => {
            chroot(".")?;
            Held::No("chroot in place of pivot_root (the root is the initramfs)".to_owned())
        }
        Err(cause) => return Err(cause),
    };
    chdir("/")?;
    Ok(held)
}
