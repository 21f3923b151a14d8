//! What every law starts from: the content of a plot, laid out in a lower.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;

use rustix::fs::{FileType, OFlags, makedev};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType};

use super::plot::{Done, Failure, LONG_AGO, Plot, call, pattern, write_at};

/// Content of `big`: more than what is copied up whole, and not a whole number of blocks.
pub const BIG_BYTES: usize = 300_001;
/// Size of `sparse`, whose only data is a block in the middle.
pub const SPARSE_BYTES: u64 = 1 << 20;
/// Where the data of `sparse` starts, and how long it is.
pub const SPARSE_DATA: (u64, usize) = (512 << 10, 4096);
/// Owner of `owned` and `suid`.
pub const USER: u32 = 1000;
/// Group of `owned`, `suid` and `setgid`.
pub const GROUP: u32 = 1001;
/// The device number of `device`, of a driver nobody has.
pub const DEVICE: (u32, u32) = (240, 7);

/// An ACL as `system.posix_acl_*` has it (posix_acl_xattr.h): version 2, then tag, permissions, id.
pub fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// rwxr-x--- and rw- for user 1234.
pub fn default_acl() -> Vec<u8> {
    const NO_ID: u32 = u32::MAX;
    // ACL_USER_OBJ, ACL_USER, ACL_GROUP_OBJ, ACL_MASK, ACL_OTHER.
    acl(&[(1, 7, NO_ID), (2, 6, 1234), (4, 5, NO_ID), (16, 7, NO_ID), (32, 0, NO_ID)])
}

/// rw-r----- and r-- for user 1234.
pub fn access_acl() -> Vec<u8> {
    const NO_ID: u32 = u32::MAX;
    acl(&[(1, 6, NO_ID), (2, 4, 1234), (4, 4, NO_ID), (16, 4, NO_ID), (32, 0, NO_ID)])
}

/// A version 2 `security.capability` with `CAP_NET_RAW`, permitted and effective.
pub fn file_capability() -> Vec<u8> {
    [0x0200_0001_u32, 1 << 13, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Names that are bytes, no more.
pub fn odd_names() -> Vec<Vec<u8>> {
    vec![
        b"with space".to_vec(),
        b"new\nline".to_vec(),
        b"not \xff\xfe utf-8".to_vec(),
        b"\x01\x7f".to_vec(),
        b"-rf".to_vec(),
        b"...".to_vec(),
        b"back\\slash".to_vec(),
        vec![b'L'; 255],
        vec![0xc3; 255],
    ]
}

/// Lays everything out in a fresh plot.
pub fn lay_out(plot: &Plot) -> Done {
    files(plot)?;
    hard_links(plot)?;
    directories(plot)?;
    specials(plot)?;
    for name in odd_names() {
        plot.create(std::path::Path::new("odd").join(OsStr::from_bytes(&name)), &name)?;
    }
    for name in [".wh.file", ".wh..wh..opq", ".wh.", "#1", "work", "index"] {
        plot.create(format!("marks/{name}"), name.as_bytes())?;
    }
    plot.mkdir("marks/opaque")?;
    plot.create("marks/opaque/inside", b"seen\n")?;
    plot.set_xattr("marks/opaque", "trusted.overlay.opaque", b"y")?;
    plot.set_xattr("marks/opaque", "trusted.overlay.redirect", b"elsewhere")?;
    plot.set_xattr("marks/opaque", "user.overlay.opaque", b"y")
}

/// Gives everything below the plot the same old times, as far down as a path reaches.
pub fn age(plot: &Plot, name: &std::path::Path) -> Done {
    let entries = match plot.entries(name) {
        Err(failure) if failure.errno == Some(Errno::NAMETOOLONG) => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let child = name.join(&entry.name);
        if entry.kind == FileType::Directory {
            age(plot, &child)?;
        } else {
            plot.set_times(&child, LONG_AGO)?;
        }
    }
    plot.set_times(name, LONG_AGO)
}

fn files(plot: &Plot) -> Done {
    plot.create("file", b"lower\n")?;
    plot.create("other", b"other\n")?;
    plot.create("empty", b"")?;
    plot.create("big", &pattern(BIG_BYTES))?;
    plot.create("executable", b"#!/bin/true\n")?;
    plot.chmod("executable", 0o755)?;
    plot.create("private", b"root's\n")?;
    plot.chmod("private", 0o600)?;

    plot.create("owned", b"owned\n")?;
    plot.chown("owned", USER, GROUP)?;
    plot.chmod("owned", 0o640)?;
    plot.set_xattr("owned", "user.color", b"blue")?;
    plot.set_xattr("owned", "user.empty", b"")?;
    plot.set_xattr("owned", "trusted.shape", b"round\0")?;
    plot.set_xattr("owned", "security.note", b"\xff")?;
    plot.set_xattr("owned", "system.posix_acl_access", &access_acl())?;

    plot.create("suid", b"suid\n")?;
    plot.chown("suid", USER, GROUP)?;
    plot.chmod("suid", 0o6777)?;
    plot.create("capable", b"capable\n")?;
    plot.chmod("capable", 0o777)?;
    plot.set_xattr("capable", "security.capability", &file_capability())?;

    let sparse = plot.open("sparse", OFlags::WRONLY | OFlags::CREATE)?;
    call("ftruncate", rustix::fs::ftruncate(&sparse, SPARSE_BYTES))?;
    write_at(&sparse, SPARSE_DATA.0, &pattern(SPARSE_DATA.1))
}

fn hard_links(plot: &Plot) -> Done {
    plot.mkdir("hard")?;
    plot.mkdir("hard/far")?;
    plot.create("hard/a", b"linked\n")?;
    plot.link("hard/a", "hard/b")?;
    plot.link("hard/a", "hard/far/c")?;
    plot.symlink("a", "hard/symlink")?;
    plot.link("hard/symlink", "hard/symlink2")
}

fn directories(plot: &Plot) -> Done {
    for name in
        ["dir", "dir/sub", "dir/sub/deeper", "dir2", "dir2/sub", "empty_dir", "odd", "marks"]
    {
        plot.mkdir(name)?;
    }
    for name in ["dir/a", "dir/b", "dir/sub/c", "dir/sub/deeper/d", "dir2/a", "dir2/sub/e"] {
        plot.create(name, name.as_bytes())?;
    }
    plot.symlink("a", "dir/link")?;
    plot.mkdir("setgid")?;
    plot.chown("setgid", 0, GROUP)?;
    plot.chmod("setgid", 0o2775)?;
    plot.mkdir("sticky")?;
    plot.chmod("sticky", 0o1777)?;
    plot.create("sticky/root's", b"")?;
    plot.mkdir("acl")?;
    plot.set_xattr("acl", "system.posix_acl_default", &default_acl())?;
    plot.mkdir("open")?;
    plot.chmod("open", 0o777)?;
    plot.mkdir("marked_dir")?;
    plot.chown("marked_dir", USER, GROUP)?;
    plot.chmod("marked_dir", 0o750)?;
    plot.set_xattr("marked_dir", "user.color", b"red")?;
    plot.create("marked_dir/child", b"child\n")
}

fn specials(plot: &Plot) -> Done {
    plot.symlink("file", "symlink")?;
    plot.symlink("nowhere", "dangling")?;
    plot.chown("dangling", USER, GROUP)?;
    plot.mknod("fifo", FileType::Fifo, 0)?;
    plot.mknod("device", FileType::CharacterDevice, makedev(DEVICE.0, DEVICE.1))?;
    plot.mknod("disk", FileType::BlockDevice, makedev(DEVICE.0, DEVICE.1))?;
    plot.mknod("zero", FileType::CharacterDevice, makedev(0, 0))?;
    plot.mknod("socket", FileType::Socket, 0)
}

/// Binds a listening socket at `name`, however long the path to it is.
pub fn listen(plot: &Plot, name: &str) -> Done<UnixListener> {
    let directory = plot.open("", OFlags::PATH)?;
    let path = near(&directory, name);
    UnixListener::bind(path).map_err(|error| Failure::new(format!("bind {name}: {error}")))
}

/// Connects to the socket at `name`.
pub fn connect(plot: &Plot, name: &str) -> Done {
    let directory = plot.open("", OFlags::PATH)?;
    let address = rustix::net::SocketAddrUnix::new(near(&directory, name));
    let address = call("socket address", address)?;
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None);
    let socket = call("socket", socket)?;
    call(format!("connect {name}"), rustix::net::connect(&socket, &address))
}

fn near(directory: &std::os::fd::OwnedFd, name: &str) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}/{name}", directory.as_raw_fd())
}
