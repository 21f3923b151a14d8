//! FIFOs, sockets, devices and symlinks.

use rustix::fs::{FileType, OFlags, makedev};
use rustix::io::Errno;

use super::ground::{DEVICE, connect, listen};
use super::plot::{
    Done, Failure, Holds, Plot, call, from_now_on, nothing_more, read_at, refused, same,
};

super::laws! {
    31 => fifo_carries_bytes_before_and_after_copy_up;
    31 => socket_is_bound_connected_and_removed;
    31 => new_special_files_last;
    32 => device_0_0_is_a_device;
    33 => symlink_is_followed_and_lasts;
    33 => symlink_of_any_length_lasts;
}

fn fifo_carries_bytes_before_and_after_copy_up(plot: &Plot) -> Done<Holds> {
    let carry = |name: &str| -> Done {
        // Opened for both, a FIFO blocks nobody.
        let end = plot.open(name, OFlags::RDWR | OFlags::NONBLOCK)?;
        let other = plot.open(name, OFlags::RDWR | OFlags::NONBLOCK)?;
        call("write", rustix::io::write(&end, b"through"))?;
        let mut buffer = [0; 16];
        let count = call("read", rustix::io::read(&other, &mut buffer))?;
        same("bytes", &buffer[..count], b"through")
    };
    carry("fifo")?;
    plot.chmod("fifo", 0o600)?;
    carry("fifo")?;
    plot.rename("fifo", "dir/fifo")?;
    carry("dir/fifo")?;
    nothing_more()
}

fn socket_is_bound_connected_and_removed(plot: &Plot) -> Done<Holds> {
    let _listener = listen(plot, "dir/bound")?;
    same("kind", plot.kind("dir/bound")?, FileType::Socket)?;
    connect(plot, "dir/bound")?;
    plot.chmod("dir/bound", 0o600)?;
    connect(plot, "dir/bound")?;
    plot.rename("dir/bound", "moved")?;
    connect(plot, "moved")?;
    refused("a lower's socket", connect(plot, "socket"), Errno::CONNREFUSED)?;
    holds_that_bind_fails(plot, "socket")?;
    plot.unlink("moved")?;
    refused("what was removed", connect(plot, "moved"), Errno::NOENT)?;
    nothing_more()
}

fn holds_that_bind_fails(plot: &Plot, name: &str) -> Done {
    match listen(plot, name) {
        Ok(_) => Err(Failure::new("a socket was bound over another")),
        Err(_) => Ok(()),
    }
}

fn new_special_files_last(plot: &Plot) -> Done<Holds> {
    let rows = [
        ("dir/fifo", FileType::Fifo, 0),
        ("dir/socket", FileType::Socket, 0),
        ("dir/device", FileType::CharacterDevice, makedev(1, 3)),
        ("dir/large", FileType::CharacterDevice, makedev(4000, 300_000)),
        ("dir/disk", FileType::BlockDevice, makedev(DEVICE.0, 99)),
    ];
    for (name, kind, rdev) in rows {
        plot.mknod(name, kind, rdev)?;
    }
    plot.mknod("dir/file", FileType::RegularFile, 0)?;
    let plot = plot.clone();
    from_now_on(move || {
        for (name, kind, rdev) in rows {
            let stat = plot.stat(name)?;
            let found = (FileType::from_raw_mode(stat.st_mode), stat.st_rdev);
            same(name, found, (kind, rdev))?;
            same(name, (stat.st_mode & 0o7777, stat.st_size), (0o644, 0))?;
        }
        same("file", plot.read("dir/file")?, b"")
    })
}

fn device_0_0_is_a_device(plot: &Plot) -> Done<Holds> {
    plot.mknod("dir/zero", FileType::CharacterDevice, 0)?;
    plot.unlink("dir/a")?;
    plot.mknod("dir/a", FileType::CharacterDevice, 0)?;
    plot.chmod("zero", 0o600)?;
    plot.rename("zero", "moved")?;
    plot.mknod("gone", FileType::CharacterDevice, 0)?;
    plot.unlink("gone")?;
    plot.link("dir/zero", "linked")?;
    refused("create over it", plot.create("dir/zero", b""), Errno::EXIST)?;
    let plot = plot.clone();
    from_now_on(move || {
        for name in ["dir/zero", "dir/a", "moved", "linked"] {
            let stat = plot.stat(name)?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            same(name, (kind, stat.st_rdev), (FileType::CharacterDevice, 0))?;
        }
        same("mode", plot.mode("moved")?, 0o600_u32)?;
        same("links", plot.links("linked")?, 2_u64)?;
        plot.names_are("dir", &["a", "b", "sub", "link", "zero"])?;
        plot.is_missing("zero")?;
        plot.is_missing("gone")
    })
}

fn symlink_is_followed_and_lasts(plot: &Plot) -> Done<Holds> {
    plot.symlink("../file", "dir/up")?;
    plot.symlink("dir/sub", "into")?;
    plot.append("dir/up", b"through a link\n")?;
    plot.create("into/new", b"new")?;
    plot.create("nowhere", b"now it is there")?;
    plot.symlink("loop", "loop")?;
    refused("a loop", plot.read("loop").map(|_| ()), Errno::LOOP)?;
    refused("readlink of a file", plot.target("file").map(|_| ()), Errno::INVAL)?;
    let plot = plot.clone();
    from_now_on(move || {
        same("symlink", plot.read("symlink")?, b"lower\nthrough a link\n")?;
        same("new", plot.read("dir/sub/new")?, b"new")?;
        same("dangling", plot.read("dangling")?, b"now it is there")?;
        same("dir/up", plot.target("dir/up")?, "../file")
    })
}

fn symlink_of_any_length_lasts(plot: &Plot) -> Done<Holds> {
    let lengths = [1, 59, 60, 61, 255, 256, 4095];
    for length in lengths {
        plot.symlink(&"t".repeat(length), format!("dir/{length}"))?;
    }
    let too_long = plot.symlink(&"t".repeat(4096), "dir/4096");
    refused("too long a target", too_long, Errno::NAMETOOLONG)?;
    // Whatever the length, the file beside it is untouched.
    same("a", read_at(plot.open("dir/a", OFlags::RDONLY)?, 0, 100)?, b"dir/a")?;
    let plot = plot.clone();
    from_now_on(move || {
        for length in lengths {
            let name = format!("dir/{length}");
            same(&name, plot.target(&name)?, "t".repeat(length))?;
            same(&name, plot.stat(&name)?.st_size, i64::try_from(length).unwrap_or(0))?;
        }
        Ok(())
    })
}
