//! Removal.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, OFlags};
use rustix::io::Errno;

use super::plot::{
    Done, Failure, Holds, Plot, call, from_now_on, nothing_more, open_again, read_all, refused,
    same, stat_of, write_at,
};

super::laws! {
    13 => removed_lower_object_stays_hidden;
    13 => removed_name_is_born_anew_empty;
    13 => removed_tree_made_again_is_empty;
    13 => object_removed_after_copy_up_stays_hidden;
    13 => name_changes_kind_and_back;
    14 => emptied_lower_directory_is_removed;
    14 => removal_is_refused_where_a_copy_refuses_it;
    15 => removed_file_lives_while_it_is_held;
    15 => removed_file_is_opened_again_through_its_descriptor;
    15 => removed_directory_takes_nothing_in;
    15 => removed_directory_keeps_its_attributes_while_it_is_held;
    16 => unnamed_file_gets_a_name_or_vanishes;
}

fn removed_lower_object_stays_hidden(plot: &Plot) -> Done<Holds> {
    const GONE: [&str; 9] =
        ["file", "big", "symlink", "dangling", "fifo", "socket", "device", "disk", "zero"];
    for name in GONE {
        plot.unlink(name)?;
        refused(name, plot.unlink(name), Errno::NOENT)?;
    }
    plot.rmdir("empty_dir")?;
    let plot = plot.clone();
    from_now_on(move || {
        GONE.iter().try_for_each(|name| plot.is_missing(name))?;
        plot.is_missing("empty_dir")
    })
}

fn removed_name_is_born_anew_empty(plot: &Plot) -> Done<Holds> {
    plot.unlink("owned")?;
    plot.create("owned", b"")?;
    plot.unlink("dir/a")?;
    plot.create("dir/a", b"new a")?;
    let plot = plot.clone();
    from_now_on(move || {
        let stat = plot.stat("owned")?;
        same("size, owner, links", (stat.st_size, stat.st_uid, stat.st_nlink), (0, 0, 1_u64))?;
        same("xattrs", plot.xattrs("owned")?, Vec::<String>::new())?;
        same("content", plot.read("dir/a")?, b"new a")
    })
}

fn removed_tree_made_again_is_empty(plot: &Plot) -> Done<Holds> {
    plot.remove_tree("dir")?;
    plot.mkdir("dir")?;
    plot.remove_tree("dir2")?;
    plot.mkdir("dir2")?;
    plot.mkdir("dir2/sub")?;
    plot.create("dir2/new", b"new")?;
    plot.remove_tree("hard")?;
    let plot = plot.clone();
    from_now_on(move || {
        plot.names_are("dir", &[])?;
        plot.is_missing("dir/a")?;
        same("links", plot.links("dir")?, 2_u64)?;
        plot.names_are("dir2", &["sub", "new"])?;
        plot.names_are("dir2/sub", &[])?;
        plot.is_missing("hard")
    })
}

fn object_removed_after_copy_up_stays_hidden(plot: &Plot) -> Done<Holds> {
    plot.append("file", b"!")?;
    plot.chmod("dir/sub", 0o700)?;
    plot.chmod("fifo", 0o600)?;
    plot.unlink("file")?;
    plot.unlink("fifo")?;
    plot.create("dir/sub/new", b"")?;
    plot.remove_tree("dir/sub")?;
    plot.create("new", b"")?;
    plot.unlink("new")?;
    let plot = plot.clone();
    from_now_on(move || {
        ["file", "fifo", "dir/sub", "new"].iter().try_for_each(|name| plot.is_missing(name))
    })
}

fn name_changes_kind_and_back(plot: &Plot) -> Done<Holds> {
    plot.unlink("file")?;
    plot.mkdir("file")?;
    plot.create("file/child", b"")?;
    plot.remove_tree("dir")?;
    plot.create("dir", b"a file")?;
    plot.remove_tree("dir2")?;
    plot.symlink("file", "dir2")?;
    plot.unlink("other")?;
    plot.mkdir("other")?;
    plot.rmdir("other")?;
    plot.create("other", b"a file again")?;
    let plot = plot.clone();
    from_now_on(move || {
        plot.names_are("file", &["child"])?;
        same("dir", plot.read("dir")?, b"a file")?;
        same("dir2", plot.target("dir2")?, "file")?;
        plot.names_are("dir2/.", &["child"])?;
        same("other", plot.read("other")?, b"a file again")
    })
}

fn emptied_lower_directory_is_removed(plot: &Plot) -> Done<Holds> {
    plot.unlink("dir/sub/deeper/d")?;
    plot.rmdir("dir/sub/deeper")?;
    plot.create("dir/sub/deeper", b"")?;
    plot.unlink("dir/sub/deeper")?;
    plot.rename("dir/sub/c", "c")?;
    plot.rmdir("dir/sub")?;
    plot.create("empty_dir/new", b"")?;
    plot.unlink("empty_dir/new")?;
    plot.rmdir("empty_dir")?;
    plot.mkdir("new")?;
    plot.rmdir("new")?;
    let plot = plot.clone();
    from_now_on(move || {
        ["dir/sub", "empty_dir", "new"].iter().try_for_each(|name| plot.is_missing(name))?;
        plot.names_are("dir", &["a", "b", "link"])?;
        same("c", plot.read("c")?, b"dir/sub/c")
    })
}

fn removal_is_refused_where_a_copy_refuses_it(plot: &Plot) -> Done<Holds> {
    refused("unlink of a directory", plot.unlink("dir"), Errno::ISDIR)?;
    refused("rmdir of a file", plot.rmdir("file"), Errno::NOTDIR)?;
    refused("rmdir of a symlink", plot.rmdir("symlink"), Errno::NOTDIR)?;
    refused("rmdir of a lower directory", plot.rmdir("dir"), Errno::NOTEMPTY)?;
    plot.unlink("dir2/a")?;
    refused("rmdir with one left", plot.rmdir("dir2"), Errno::NOTEMPTY)?;
    plot.create("empty_dir/new", b"")?;
    refused("rmdir with a new one", plot.rmdir("empty_dir"), Errno::NOTEMPTY)?;
    refused("unlink of nothing", plot.unlink("missing"), Errno::NOENT)?;
    refused("rmdir of nothing", plot.rmdir("missing"), Errno::NOENT)?;
    refused("unlink below a file", plot.unlink("file/x"), Errno::NOTDIR)?;
    refused("mkdir over a file", plot.mkdir("file"), Errno::EXIST)?;
    refused("mkdir over a directory", plot.mkdir("dir"), Errno::EXIST)?;
    refused("mkdir over a dangling symlink", plot.mkdir("dangling"), Errno::EXIST)?;
    refused("create over a file", plot.create("file", b""), Errno::EXIST)?;
    refused("create over a dangling symlink", plot.create("dangling", b""), Errno::EXIST)?;
    refused("symlink over a file", plot.symlink("x", "file"), Errno::EXIST)?;
    let plot = plot.clone();
    from_now_on(move || {
        plot.names_are("dir", &["a", "b", "sub", "link"])?;
        plot.names_are("dir2", &["sub"])?;
        same("file", plot.read("file")?, b"lower\n")
    })
}

/// As the file system says it, not what a guest's kernel remembers.
fn links_on_disk(file: &std::os::fd::OwnedFd) -> Done<u32> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    let stat = rustix::fs::statx(file, "", flags, rustix::fs::StatxFlags::NLINK);
    Ok(call("statx", stat)?.stx_nlink)
}

/// Everything one may do with a file that has no name.
fn use_nameless(file: &std::os::fd::OwnedFd, content: &[u8]) -> Done {
    same("links", stat_of(file)?.st_nlink, 0_u64)?;
    same("links", links_on_disk(file)?, 0)?;
    same("content", read_all(file)?, content)?;
    write_at(file, 0, b"#")?;
    call("ftruncate", rustix::fs::ftruncate(file, 3))?;
    call("fchmod", rustix::fs::fchmod(file, rustix::fs::Mode::from_raw_mode(0o600)))?;
    call("fsync", rustix::fs::fsync(file))?;
    let stat = stat_of(file)?;
    same(
        "size, mode, links",
        (stat.st_size, stat.st_mode & 0o777, stat.st_nlink),
        (3, 0o600, 0_u64),
    )?;
    same("content", read_all(file)?, [b"#", &content[1..3]].concat())?;
    same("links", links_on_disk(file)?, 0)
}

fn removed_file_lives_while_it_is_held(plot: &Plot) -> Done<Holds> {
    let untouched = plot.open("file", OFlags::RDWR)?;
    plot.unlink("file")?;
    use_nameless(&untouched, b"lower\n")?;

    let copied_up = plot.open("other", OFlags::RDWR)?;
    plot.append("other", b"!")?;
    plot.unlink("other")?;
    use_nameless(&copied_up, b"other\n!")?;

    let replaced = plot.open("dir/a", OFlags::RDWR)?;
    plot.rename("dir/b", "dir/a")?;
    use_nameless(&replaced, b"dir/a")?;

    plot.create("new", b"new\n")?;
    let new = plot.open("new", OFlags::RDWR)?;
    plot.unlink("new")?;
    plot.create("new", b"another\n")?;
    use_nameless(&new, b"new\n")?;
    let plot = plot.clone();
    from_now_on(move || {
        plot.is_missing("file")?;
        plot.is_missing("other")?;
        same("dir/a", plot.read("dir/a")?, b"dir/b")?;
        same("new", plot.read("new")?, b"another\n")
    })
}

fn removed_file_is_opened_again_through_its_descriptor(plot: &Plot) -> Done<Holds> {
    let held = plot.open("file", OFlags::RDONLY)?;
    plot.unlink("file")?;
    let writer = open_again(&held, OFlags::RDWR)?;
    write_at(&writer, 0, b"L")?;
    same("content", read_all(&held)?, b"Lower\n")?;
    let truncated = open_again(&held, OFlags::WRONLY | OFlags::TRUNC)?;
    same("size", stat_of(&truncated)?.st_size, 0)?;
    same("content", read_all(&held)?, b"")?;
    nothing_more()
}

fn removed_directory_takes_nothing_in(plot: &Plot) -> Done<Holds> {
    let held = plot.open("empty_dir", OFlags::RDONLY | OFlags::DIRECTORY)?;
    plot.rmdir("empty_dir")?;
    let inside = |name: &str| format!("/proc/self/fd/{}/{name}", held.as_raw_fd());
    let mode = rustix::fs::Mode::from_raw_mode(0o755);
    refused("mkdir", call("mkdir", rustix::fs::mkdir(inside("x"), mode)), Errno::NOENT)?;
    refused("symlink", call("symlink", rustix::fs::symlink("x", inside("x"))), Errno::NOENT)?;
    let stolen = rustix::fs::renameat(CWD, plot.at("file"), CWD, inside("x"));
    refused("rename into it", call("rename", stolen), Errno::NOENT)?;
    same("links", stat_of(&held)?.st_nlink, 0_u64)?;
    plot.mkdir("empty_dir")?;
    plot.create("empty_dir/new", b"")?;
    let found = rustix::fs::stat(inside("new")).map(|_| ());
    refused("lookup in the old one", call("stat", found), Errno::NOENT)?;
    nothing_more()
}

fn removed_directory_keeps_its_attributes_while_it_is_held(plot: &Plot) -> Done<Holds> {
    let read = OFlags::RDONLY | OFlags::DIRECTORY;
    let held = [plot.open("dir", read)?, plot.open("marked_dir", read)?];
    let shown = |held: &OwnedFd| {
        let stat = stat_of(held)?;
        Ok::<_, Failure>((stat.st_mode, stat.st_uid, stat.st_gid))
    };
    let before = [shown(&held[0])?, shown(&held[1])?];
    plot.chmod("marked_dir/child", 0o600)?;
    plot.remove_tree("dir")?;
    plot.remove_tree("marked_dir")?;
    same("mode and owner", [shown(&held[0])?, shown(&held[1])?], before)?;
    nothing_more()
}

fn unnamed_file_gets_a_name_or_vanishes(plot: &Plot) -> Done<Holds> {
    let before = plot.names("dir")?;
    let unnamed = match plot.open("dir", OFlags::TMPFILE | OFlags::RDWR) {
        Err(failure) if failure.errno == Some(Errno::OPNOTSUPP) => {
            return Err(Failure::skip("O_TMPFILE over FUSE needs a kernel from 6.2 on"));
        }
        result => result?,
    };
    write_at(&unnamed, 0, b"born late\n")?;
    same("links", stat_of(&unnamed)?.st_nlink, 0_u64)?;
    same("names", plot.names("dir")?, before.clone())?;
    let vanishing = plot.open("dir", OFlags::TMPFILE | OFlags::RDWR | OFlags::EXCL)?;
    write_at(&vanishing, 0, b"x")?;
    drop(vanishing);
    let path = format!("/proc/self/fd/{}", unnamed.as_raw_fd());
    let named = rustix::fs::linkat(CWD, &path, CWD, plot.at("dir/late"), AtFlags::SYMLINK_FOLLOW);
    call("linkat", named)?;
    write_at(&unnamed, 0, b"B")?;
    drop(unnamed);
    let plot = plot.clone();
    from_now_on(move || {
        same("content", plot.read("dir/late")?, b"Born late\n")?;
        same("links", plot.links("dir/late")?, 1_u64)?;
        plot.names_are("dir", &["a", "b", "sub", "link", "late"])
    })
}
