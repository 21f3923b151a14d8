//! Mounting and unmounting: by ourselves, or by the set-user-id helper of fuse3.

use std::ffi::{CString, OsString};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, open};
use rustix::io::retry_on_intr;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{getegid, geteuid};

use super::{MountError, MountOptions};
use crate::filesystem::Errno;
use crate::sys::fuse_device::clone_device;

/// The set-user-id helper.
const HELPER: &str = "fusermount3";

/// A mount that nobody serves yet.
pub(super) struct Mounted {
    pub(super) device: OwnedFd,
    pub(super) by_helper: bool,
}

/// Mounts on `path`, an absolute one.
pub(super) fn mount(path: &Path, options: &MountOptions) -> Result<Mounted, MountError> {
    match by_ourselves(path, options) {
        Err(MountError::Mount { cause: Errno::PERM, .. } | MountError::Device(Errno::ACCESS)) => {
            by_helper(path, options)
        }
        mounted => mounted,
    }
}

fn by_ourselves(path: &Path, options: &MountOptions) -> Result<Mounted, MountError> {
    let device = open_device().map_err(MountError::Device)?;
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::RDONLY, options.read_only);
    flags.set(MountFlags::NOSUID | MountFlags::NODEV, !options.trusted);
    let allow_other = if options.allow_other { ",allow_other" } else { "" };
    let data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions{allow_other}",
        device.as_raw_fd(),
        geteuid().as_raw(),
        getegid().as_raw(),
    );
    let failed = |cause| MountError::Mount { path: path.to_owned(), cause };
    let data = CString::new(data).map_err(|_| failed(Errno::INVAL))?;
    let mut kind = OsString::from("fuse.");
    kind.push(&options.subtype);
    rustix::mount::mount(&options.name, path, kind, flags, data.as_c_str()).map_err(failed)?;
    Ok(Mounted { device, by_helper: false })
}

/// A device that was mounted for us: several workers wait for it without blocking in it.
pub(super) fn adopt(device: OwnedFd) -> Result<Mounted, MountError> {
    set_nonblocking(&device).map_err(MountError::Device)?;
    Ok(Mounted { device, by_helper: false })
}

/// Opened so that several workers can wait for it without blocking in it.
fn open_device() -> Result<OwnedFd, Errno> {
    open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
}

/// One more device on the connection of `first`, with a queue of its own where that can be had.
pub(super) fn another_device(first: &OwnedFd) -> Result<OwnedFd, Errno> {
    let own = open_device().and_then(|device| clone_device(&device, first).map(|()| device));
    own.or_else(|errno| {
        log::debug!("/dev/fuse: {errno}, workers share one queue");
        rustix::io::fcntl_dupfd_cloexec(first, 0)
    })
}

/// Lets the helper mount: it hands the device back over its standard input, a socket.
pub(super) fn by_helper(path: &Path, options: &MountOptions) -> Result<Mounted, MountError> {
    let (ours, theirs) = UnixStream::pair().map_err(MountError::NoHelper)?;
    let mut command = Command::new(HELPER);
    command.arg("-o").arg(helper_options(options)).arg("--").arg(path);
    command.env("_FUSE_COMMFD", "0").stdin(OwnedFd::from(theirs)).stderr(Stdio::piped());
    let child = command.stdout(Stdio::null()).spawn().map_err(MountError::NoHelper)?;
    // The command holds the helper's end as well; while it is open, a helper that fails would
    // leave us waiting.
    drop(command);
    let received = receive_descriptor(&ours);
    let output = child.wait_with_output().map_err(MountError::NoHelper)?;
    let failed = |message| MountError::Helper { path: path.to_owned(), message };
    match received {
        Ok(Some(device)) if output.status.success() => {
            set_nonblocking(&device).map_err(MountError::Device)?;
            Ok(Mounted { device, by_helper: true })
        }
        Err(errno) if output.stderr.is_empty() => Err(failed(errno.to_string())),
        _ => Err(failed(printed(&output.stderr))),
    }
}

fn helper_options(options: &MountOptions) -> OsString {
    let mut text = b"default_permissions".to_vec();
    for (set, option) in [
        (options.allow_other, &b",allow_other"[..]),
        (options.read_only, b",ro"),
        (options.trusted, b",suid,dev"),
    ] {
        text.extend_from_slice(if set { option } else { b"" });
    }
    for (key, value) in [(&b",fsname="[..], &options.name), (b",subtype=", &options.subtype)] {
        text.extend_from_slice(key);
        // A comma would end the option: the helper takes a backslash before it.
        for &byte in value.as_bytes() {
            if matches!(byte, b',' | b'\\') {
                text.push(b'\\');
            }
            text.push(byte);
        }
    }
    OsString::from_vec(text)
}

/// The one descriptor that comes with one byte; `None` if the other side hangs up without.
fn receive_descriptor(socket: &UnixStream) -> Result<Option<OwnedFd>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    retry_on_intr(|| {
        let mut bytes = [IoSliceMut::new(&mut byte)];
        recvmsg(socket, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}

fn set_nonblocking(device: &OwnedFd) -> Result<(), Errno> {
    fcntl_setfl(device, fcntl_getfl(device)? | OFlags::NONBLOCK)
}

/// What a helper printed, on one line.
fn printed(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Unmounts `path`; a lazy one succeeds with users in it, too.
pub(super) fn unmount(path: &Path, lazy: bool, by_helper: bool) -> Result<(), MountError> {
    let mut flags = UnmountFlags::NOFOLLOW;
    flags.set(UnmountFlags::DETACH, lazy);
    match rustix::mount::unmount(path, flags) {
        Err(Errno::PERM) if by_helper => unmount_by_helper(path, lazy),
        result => result.map_err(|cause| MountError::Mount { path: path.to_owned(), cause }),
    }
}

fn unmount_by_helper(path: &Path, lazy: bool) -> Result<(), MountError> {
    let mut command = Command::new(HELPER);
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(path);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let output = command.output().map_err(MountError::NoHelper)?;
    if output.status.success() {
        return Ok(());
    }
    Err(MountError::Helper { path: path.to_owned(), message: printed(&output.stderr) })
}

/// Has the kernel write back what it caches of the mount at `path`.
pub(super) fn sync(path: &Path) {
    let synced = open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|root| rustix::fs::syncfs(root.as_fd()));
    if let Err(cause) = synced {
        log::error!("{}: not everything could be written back: {cause}", path.display());
    }
}
