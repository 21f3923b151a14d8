//! Names.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::ground::odd_names;
use super::plot::{
    Done, Holds, Plot, call, from_now_on, nothing_more, read_all, refused, same, write_at,
};

super::laws! {
    1 => name_is_any_bytes;
    1 => name_of_any_bytes_is_copied_up_renamed_and_removed;
    1 => new_name_of_any_bytes_lasts;
    2 => names_that_look_like_whiteouts_are_ordinary;
    2 => overlay_marks_of_a_lower_mean_nothing;
    3 => name_above_255_bytes_is_refused;
    3 => object_below_a_path_above_path_max_is_served with deep;
}

fn odd(name: &[u8]) -> PathBuf {
    Path::new("odd").join(OsStr::from_bytes(name))
}

fn name_is_any_bytes(plot: &Plot) -> Done<Holds> {
    let plot = plot.clone();
    from_now_on(move || {
        let mut expected: Vec<_> =
            odd_names().iter().map(|name| OsStr::from_bytes(name).to_owned()).collect();
        expected.sort_unstable();
        same("names", plot.names("odd")?, expected)?;
        for name in odd_names() {
            same("content", plot.read(odd(&name))?, name)?;
        }
        Ok(())
    })
}

fn name_of_any_bytes_is_copied_up_renamed_and_removed(plot: &Plot) -> Done<Holds> {
    let names = odd_names();
    for name in &names {
        plot.append(odd(name), b"!")?;
        plot.rename(odd(name), Path::new("empty_dir").join(OsStr::from_bytes(name)))?;
    }
    plot.unlink(Path::new("empty_dir").join(OsStr::from_bytes(&names[0])))?;
    let plot = plot.clone();
    from_now_on(move || {
        plot.names_are("odd", &[])?;
        same("left", plot.names("empty_dir")?.len(), names.len() - 1)?;
        for name in &names[1..] {
            let moved = Path::new("empty_dir").join(OsStr::from_bytes(name));
            same("content", plot.read(moved)?, [&name[..], b"!"].concat())?;
        }
        Ok(())
    })
}

fn new_name_of_any_bytes_lasts(plot: &Plot) -> Done<Holds> {
    for name in odd_names() {
        let new = Path::new("dir").join(OsStr::from_bytes(&name));
        plot.create(&new, &name)?;
        plot.symlink("x", new.with_file_name(OsStr::from_bytes(&[&name[1..], b"~"].concat())))?;
    }
    let plot = plot.clone();
    from_now_on(move || {
        for name in odd_names() {
            let new = Path::new("dir").join(OsStr::from_bytes(&name));
            same("content", plot.read(&new)?, name.clone())?;
            let link = new.with_file_name(OsStr::from_bytes(&[&name[1..], b"~"].concat()));
            same("target", plot.target(link)?, "x")?;
        }
        Ok(())
    })
}

fn names_that_look_like_whiteouts_are_ordinary(plot: &Plot) -> Done<Holds> {
    plot.create("marks/file", b"not hidden\n")?;
    plot.unlink("marks/.wh.")?;
    plot.append("marks/.wh.file", b"!")?;
    plot.create("dir/.wh.a", b"new\n")?;
    plot.create("dir/.wh..wh..opq", b"new\n")?;
    let plot = plot.clone();
    from_now_on(move || {
        let names = [".wh..wh..opq", ".wh.file", "#1", "work", "index", "opaque", "file"];
        plot.names_are("marks", &names)?;
        same("content", plot.read("marks/.wh.file")?, b".wh.file!")?;
        plot.names_are("dir", &["a", "b", "sub", "link", ".wh.a", ".wh..wh..opq"])?;
        same("content", plot.read("dir/a")?, b"dir/a")
    })
}

fn overlay_marks_of_a_lower_mean_nothing(plot: &Plot) -> Done<Holds> {
    plot.chmod("marks/opaque", 0o700)?;
    plot.create("marks/opaque/new", b"")?;
    let plot = plot.clone();
    from_now_on(move || {
        plot.names_are("marks/opaque", &["inside", "new"])?;
        same("xattr", plot.xattr("marks/opaque", "trusted.overlay.opaque")?, b"y")?;
        same("xattr", plot.xattr("marks/opaque", "trusted.overlay.redirect")?, b"elsewhere")?;
        let all = ["trusted.overlay.opaque", "trusted.overlay.redirect", "user.overlay.opaque"];
        same("xattrs", plot.xattrs("marks/opaque")?, all)
    })
}

fn name_above_255_bytes_is_refused(plot: &Plot) -> Done<Holds> {
    let long = "x".repeat(256);
    refused("lookup", plot.stat(&long), Errno::NAMETOOLONG)?;
    refused("create", plot.create(&long, b""), Errno::NAMETOOLONG)?;
    refused("mkdir", plot.mkdir(&long), Errno::NAMETOOLONG)?;
    refused("symlink", plot.symlink("x", &long), Errno::NAMETOOLONG)?;
    refused("link", plot.link("file", &long), Errno::NAMETOOLONG)?;
    refused("rename", plot.rename("file", &long), Errno::NAMETOOLONG)?;
    refused("unlink", plot.unlink(&long), Errno::NAMETOOLONG)?;
    nothing_more()
}

/// Depth and name length of a path that is longer than PATH_MAX, 4096.
const DEPTH: usize = 25;
const STEP_BYTES: usize = 200;

/// The directory at the bottom; each step is made if `make`.
fn bottom(plot: &Plot, make: bool) -> Done<OwnedFd> {
    let name = "d".repeat(STEP_BYTES);
    let mut directory = plot.open("", OFlags::PATH | OFlags::DIRECTORY)?;
    for _ in 0..DEPTH {
        if make {
            call("mkdirat", rustix::fs::mkdirat(&directory, &*name, Mode::from_raw_mode(0o755)))?;
        }
        directory = open_at(&directory, &name, OFlags::PATH | OFlags::DIRECTORY)?;
    }
    Ok(directory)
}

fn open_at(directory: &OwnedFd, name: &str, flags: OFlags) -> Done<OwnedFd> {
    let mode = Mode::from_raw_mode(0o644);
    call("openat", rustix::fs::openat(directory, name, flags | OFlags::CLOEXEC, mode))
}

fn deep(plot: &Plot) -> Done {
    let directory = bottom(plot, true)?;
    for name in ["file", "removed", "renamed"] {
        write_at(open_at(&directory, name, OFlags::WRONLY | OFlags::CREATE)?, 0, b"deep\n")?;
    }
    Ok(())
}

fn object_below_a_path_above_path_max_is_served(plot: &Plot) -> Done<Holds> {
    let directory = bottom(plot, false)?;
    write_at(open_at(&directory, "file", OFlags::WRONLY)?, 0, b"D")?;
    write_at(open_at(&directory, "new", OFlags::WRONLY | OFlags::CREATE)?, 0, b"new\n")?;
    call("unlinkat", rustix::fs::unlinkat(&directory, "removed", AtFlags::empty()))?;
    call("renameat", rustix::fs::renameat(&directory, "renamed", &directory, "moved"))?;
    let plot = plot.clone();
    from_now_on(move || {
        let directory = bottom(&plot, false)?;
        for (name, content) in [("file", "Deep\n"), ("new", "new\n"), ("moved", "deep\n")] {
            let file = open_at(&directory, name, OFlags::RDONLY)?;
            same(name, read_all(&file)?, content.as_bytes())?;
        }
        for name in ["removed", "renamed"] {
            let gone =
                call("openat", rustix::fs::openat(&directory, name, OFlags::PATH, Mode::empty()));
            refused(name, gone, Errno::NOENT)?;
        }
        Ok(())
    })
}
