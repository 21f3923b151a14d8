//! Hard links.

use rustix::fs::{AtFlags, CWD, OFlags};
use rustix::io::Errno;

use super::plot::{
    Done, Holds, Plot, call, from_now_on, nothing_more, read_all, refused, same, stat_of, write_at,
};

super::laws! {
    7 => write_through_one_name_is_read_through_all;
    7 => attributes_are_shared_by_all_names;
    7 => linked_symlink_stays_one_object;
    7 => renamed_name_stays_a_name_of_the_object;
    8 => link_count_is_that_of_the_union;
    8 => link_count_falls_to_zero_while_held;
    8 => link_count_of_a_directory_counts_its_subdirectories;
    9 => rename_onto_a_name_of_the_same_object_does_nothing;
    9 => link_is_refused_where_a_copy_refuses_it;
    9 => link_to_a_lower_object_is_the_object;
    9 => object_without_a_name_gets_none_again;
}

const NAMES: [&str; 3] = ["hard/a", "hard/b", "hard/far/c"];

fn one_object(plot: &Plot, names: &[&str], content: &[u8]) -> Done {
    let number = plot.number(names[0])?;
    for name in names {
        same(&format!("content of {name}"), plot.read(name)?, content)?;
        same(&format!("number of {name}"), plot.number(name)?, number)?;
        let expected = u64::try_from(names.len()).unwrap_or(0);
        same(&format!("links of {name}"), plot.links(name)?, expected)?;
    }
    Ok(())
}

fn write_through_one_name_is_read_through_all(plot: &Plot) -> Done<Holds> {
    let reader = plot.open("hard/b", OFlags::RDONLY)?;
    plot.append("hard/a", b"by a\n")?;
    same("a reader's view", read_all(&reader)?, b"linked\nby a\n")?;
    plot.append("hard/far/c", b"by c\n")?;
    plot.patch("hard/b", 0, b"L")?;
    let plot = plot.clone();
    from_now_on(move || one_object(&plot, &NAMES, b"Linked\nby a\nby c\n"))
}

fn attributes_are_shared_by_all_names(plot: &Plot) -> Done<Holds> {
    plot.chmod("hard/far/c", 0o600)?;
    plot.chown("hard/b", 5, 6)?;
    plot.set_xattr("hard/a", "user.x", b"1")?;
    let plot = plot.clone();
    from_now_on(move || {
        for name in NAMES {
            let stat = plot.stat(name)?;
            same(name, (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid), (0o600, 5, 6))?;
            same(name, plot.xattr(name, "user.x")?, b"1")?;
        }
        one_object(&plot, &NAMES, b"linked\n")
    })
}

fn linked_symlink_stays_one_object(plot: &Plot) -> Done<Holds> {
    plot.chown("hard/symlink", 5, 6)?;
    let plot = plot.clone();
    from_now_on(move || {
        for name in ["hard/symlink", "hard/symlink2"] {
            let stat = plot.stat(name)?;
            same(name, (stat.st_uid, stat.st_nlink), (5, 2))?;
            same(name, plot.target(name)?, "a")?;
        }
        same("number", plot.number("hard/symlink")?, plot.number("hard/symlink2")?)
    })
}

fn renamed_name_stays_a_name_of_the_object(plot: &Plot) -> Done<Holds> {
    plot.rename("hard/b", "empty_dir/moved")?;
    plot.append("hard/a", b"!\n")?;
    plot.rename("hard/far", "hard/near")?;
    plot.append("hard/near/c", b"?\n")?;
    let plot = plot.clone();
    from_now_on(move || {
        plot.is_missing("hard/b")?;
        one_object(&plot, &["hard/a", "empty_dir/moved", "hard/near/c"], b"linked\n!\n?\n")
    })
}

fn link_count_is_that_of_the_union(plot: &Plot) -> Done<Holds> {
    same("links at first", plot.links("hard/a")?, 3_u64)?;
    plot.unlink("hard/b")?;
    same("links after unlink", plot.links("hard/far/c")?, 2_u64)?;
    plot.link("hard/a", "hard/far/d")?;
    plot.link("hard/far/c", "hard/b")?;
    same("links after link", plot.links("hard/a")?, 4_u64)?;
    plot.rename("file", "hard/a")?;
    same("links after being replaced", plot.links("hard/far/c")?, 3_u64)?;
    same("links of what replaced it", plot.links("hard/a")?, 1_u64)?;
    let plot = plot.clone();
    from_now_on(move || one_object(&plot, &["hard/b", "hard/far/c", "hard/far/d"], b"linked\n"))
}

fn link_count_falls_to_zero_while_held(plot: &Plot) -> Done<Holds> {
    let held = plot.open("hard/a", OFlags::RDWR)?;
    for (left, name) in [(2_u64, "hard/far/c"), (1, "hard/a"), (0, "hard/b")] {
        plot.unlink(name)?;
        same("links", stat_of(&held)?.st_nlink, left)?;
    }
    write_at(&held, 0, b"L")?;
    same("content", read_all(&held)?, b"Linked\n")?;
    let plot = plot.clone();
    from_now_on(move || {
        NAMES.iter().try_for_each(|name| plot.is_missing(name))?;
        plot.names_are("hard", &["far", "symlink", "symlink2"])
    })
}

fn link_count_of_a_directory_counts_its_subdirectories(plot: &Plot) -> Done<Holds> {
    same("at first", (plot.links("dir")?, plot.links("dir/sub")?), (3_u64, 3_u64))?;
    same("an empty one", plot.links("empty_dir")?, 2_u64)?;
    plot.mkdir("dir/new")?;
    same("after mkdir", plot.links("dir")?, 4_u64)?;
    plot.rename("dir2", "dir/dir2")?;
    same("after moving one in", plot.links("dir")?, 5_u64)?;
    plot.rename("dir/sub/deeper", "empty_dir/deeper")?;
    plot.rmdir("dir/new")?;
    let plot = plot.clone();
    from_now_on(move || {
        for (name, links) in [
            ("dir", 4_u64),
            ("dir/sub", 2),
            ("empty_dir", 3),
            ("empty_dir/deeper", 2),
            ("dir/dir2", 3),
        ] {
            same(name, plot.links(name)?, links)?;
        }
        Ok(())
    })
}

fn rename_onto_a_name_of_the_same_object_does_nothing(plot: &Plot) -> Done<Holds> {
    plot.rename("hard/a", "hard/far/c")?;
    plot.rename("hard/b", "hard/a")?;
    plot.rename("file", "file")?;
    let plot = plot.clone();
    from_now_on(move || {
        same("content", plot.read("file")?, b"lower\n")?;
        one_object(&plot, &NAMES, b"linked\n")
    })
}

fn link_is_refused_where_a_copy_refuses_it(plot: &Plot) -> Done<Holds> {
    refused("link onto a name", plot.link("file", "other"), Errno::EXIST)?;
    refused("link onto a directory", plot.link("file", "dir"), Errno::EXIST)?;
    refused("link onto itself", plot.link("file", "file"), Errno::EXIST)?;
    refused("link of a directory", plot.link("dir", "new"), Errno::PERM)?;
    refused("link of nothing", plot.link("missing", "new"), Errno::NOENT)?;
    refused("link into a file", plot.link("file", "other/new"), Errno::NOTDIR)?;
    plot.unlink("other")?;
    plot.link("file", "other")?;
    let plot = plot.clone();
    from_now_on(move || one_object(&plot, &["file", "other"], b"lower\n"))
}

fn link_to_a_lower_object_is_the_object(plot: &Plot) -> Done<Holds> {
    let reader = plot.open("file", OFlags::RDONLY)?;
    plot.link("file", "dir/linked")?;
    plot.append("dir/linked", b"more\n")?;
    same("a reader's view", read_all(&reader)?, b"lower\nmore\n")?;
    for name in ["symlink", "fifo", "device", "socket"] {
        plot.link(name, format!("dir/{name}"))?;
    }
    let plot = plot.clone();
    from_now_on(move || {
        for name in ["symlink", "fifo", "device", "socket"] {
            let linked = plot.stat(format!("dir/{name}"))?;
            let stat = plot.stat(name)?;
            same(name, (linked.st_ino, linked.st_mode), (stat.st_ino, stat.st_mode))?;
            same(name, (linked.st_nlink, linked.st_rdev), (2_u64, stat.st_rdev))?;
        }
        one_object(&plot, &["file", "dir/linked"], b"lower\nmore\n")
    })
}

fn object_without_a_name_gets_none_again(plot: &Plot) -> Done<Holds> {
    use std::os::fd::AsRawFd;
    let held = plot.open("file", OFlags::RDWR)?;
    plot.unlink("file")?;
    let path = format!("/proc/self/fd/{}", held.as_raw_fd());
    let again = rustix::fs::linkat(CWD, &path, CWD, plot.at("again"), AtFlags::SYMLINK_FOLLOW);
    refused("link of what was removed", call("linkat", again), Errno::NOENT)?;
    plot.is_missing("again")?;
    nothing_more()
}
