//! Enters the sandbox and says, one line each, what it finds there: `sandbox_probe LOWER UPPER
//! WORK`; then waits for the end of its input, to be looked at from outside. The sandbox is for a
//! process with one thread, which a test is not.

use std::error::Error;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, linkat, mkdirat, mknodat, openat, renameat_with,
    symlinkat, unlinkat,
};
use rustix::io::{Errno, write};
use thinroot::sandbox::{Confine, Confined, enter};
use thinroot::sys::fs;

fn main() -> Result<(), Box<dyn Error>> {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [lower, upper, work] = paths.as_slice() else {
        return Err("usage: sandbox_probe LOWER UPPER WORK".into());
    };
    let lowers = [lower.clone()];
    let confined = enter(&Confine { lowers: &lowers, upper, work })?;
    println!("{}", confined.report);
    let [lower] = confined.lowers.as_slice() else { return Err("one lower in, one out".into()) };

    say("lower read", fs::open_name(lower.as_fd(), b"file", OFlags::RDONLY).map(drop));
    lower_is_immutable(lower.as_fd());
    upper_works(&confined);
    host_is_out_of_sight(&paths);
    println!("done");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

fn say(what: &str, result: Result<(), Errno>) {
    match result {
        Ok(()) => println!("{what}: ok"),
        Err(errno) => println!("{what}: {}", name_of(errno)),
    }
}

fn name_of(errno: Errno) -> String {
    match errno {
        Errno::ROFS => "EROFS".into(),
        Errno::ACCESS => "EACCES".into(),
        Errno::PERM => "EPERM".into(),
        Errno::NOENT => "ENOENT".into(),
        other => format!("{other:?}"),
    }
}

fn lower_is_immutable(lower: BorrowedFd<'_>) {
    let file = match fs::open_name(lower, b"file", OFlags::PATH) {
        Ok(file) => file,
        Err(errno) => return say("lower handle", Err(errno)),
    };
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    say("lower write", openat(lower, "file", flags, Mode::empty()).map(drop));
    say("lower write by descriptor", fs::reopen(file.as_fd(), OFlags::WRONLY).map(drop));
    say("lower create", fs::create_file(lower, b"new", 0o600).map(drop));
    say("lower unlink", fs::unlink(lower, b"file"));
    say("lower chmod", fs::change_mode(file.as_fd(), 0o600));
    say("lower chown", fs::change_owner(file.as_fd(), Some(0), Some(0)));
    say("lower setxattr", fs::set_xattr(file.as_fd(), b"user.a", b"b", 0));
    let now = fs::Timestamps {
        last_access: fs::Timespec { tv_sec: 1, tv_nsec: 0 },
        last_modification: fs::Timespec { tv_sec: 1, tv_nsec: 0 },
    };
    say("lower utimens", fs::change_times(file.as_fd(), &now));
}

/// What copy-up and the guest's own operations do, each once.
fn upper_works(confined: &Confined) {
    let (upper, work) = (confined.upper.as_fd(), confined.work.as_fd());
    say("work create", fs::create_file(work, b"staged", 0o600).map(drop));
    say("work mark", mark(work));
    say("publish by rename", fs::rename((work, b"staged"), (upper, b"a"), RenameFlags::NOREPLACE));
    say("unnamed", unnamed(work, upper));
    say("mkdir", mkdirat(work, "dir", Mode::RWXU));
    say("publish directory", fs::rename((work, b"dir"), (upper, b"d"), RenameFlags::empty()));
    let link = linkat(upper, "a", work, "l", AtFlags::empty());
    say("link across", link.and_then(|()| unlinkat(work, "l", AtFlags::empty())));
    say("symlink", symlinkat("target", upper, "s"));
    say("whiteout", mknodat(work, "w", FileType::CharacterDevice, Mode::empty(), 0));
    say("exchange", renameat_with(work, "w", upper, "a", RenameFlags::EXCHANGE));
    say("rename whiteout", renameat_with(upper, "s", work, "s", RenameFlags::WHITEOUT));
    say("fifo", mknodat(upper, "p", FileType::Fifo, Mode::RWXU, 0));
}

fn mark(work: BorrowedFd<'_>) -> Result<(), Errno> {
    let file = fs::open_name(work, b"staged", OFlags::PATH)?;
    let name: &[u8] = match rustix::process::geteuid().is_root() {
        true => b"trusted.overlay.opaque",
        false => b"user.overlay.opaque",
    };
    fs::set_xattr(file.as_fd(), name, b"y", 0)?;
    fs::change_mode(file.as_fd(), 0o4755)?;
    fs::truncate(fs::reopen(file.as_fd(), OFlags::RDWR)?.as_fd(), 100)
}

fn unnamed(work: BorrowedFd<'_>, upper: BorrowedFd<'_>) -> Result<(), Errno> {
    let file = fs::create_unnamed(work, 0o600)?;
    write(&file, b"data")?;
    fs::link_descriptor(file.as_fd(), upper, b"u")
}

fn host_is_out_of_sight(paths: &[PathBuf]) {
    let mut root: Vec<_> = std::fs::read_dir("/")
        .map(|rows| rows.flatten().map(|row| row.file_name()).collect())
        .unwrap_or_default();
    root.sort();
    println!("root: {root:?}");
    for path in [Path::new("/etc/passwd"), Path::new("/proc"), paths[0].as_path()] {
        let seen = if path.exists() { "seen" } else { "unseen" };
        println!("{seen}: {}", path.display());
    }
    say("unmount", rustix::mount::unmount("/lower.0", rustix::mount::UnmountFlags::DETACH));
}
