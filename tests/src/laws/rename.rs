//! Rename.

use std::os::fd::AsRawFd;

use rustix::fs::{FileType, OFlags, RenameFlags};
use rustix::io::Errno;

use super::ground::{GROUP, USER, acl};
use super::plot::{
    Done, Holds, Plot, as_user, call, from_now_on, nothing_more, read_all, refused, same, stat_of,
    write_at,
};

super::laws! {
    17 => object_of_any_kind_moves;
    17 => moved_object_does_not_come_back;
    17 => moved_object_replaces_a_lower_one;
    18 => lower_directory_moves_with_all_in_it;
    18 => name_a_directory_left_is_free_and_empty;
    18 => merged_directory_moves_with_its_changes;
    18 => directory_moves_twice_and_back;
    18 => directory_moves_below_another_moved_one;
    18 => directory_moves_onto_an_empty_one;
    18 => open_directory_goes_on_after_it_moved;
    19 => rename_is_refused_where_a_copy_refuses_it;
    20 => noreplace_is_judged_on_the_union;
    20 => any_two_objects_are_exchanged;
    20 => exchanged_directories_keep_their_changes;
    20 => exchange_is_refused_where_a_copy_refuses_it;
    20 => rename_leaves_a_whiteout_device;
    20 => what_a_rename_leaves_is_its_callers;
    21 => replaced_object_lives_while_it_is_held;
}

fn object_of_any_kind_moves(plot: &Plot) -> Done<Holds> {
    const KINDS: [(&str, FileType); 9] = [
        ("file", FileType::RegularFile),
        ("big", FileType::RegularFile),
        ("dir", FileType::Directory),
        ("symlink", FileType::Symlink),
        ("fifo", FileType::Fifo),
        ("socket", FileType::Socket),
        ("device", FileType::CharacterDevice),
        ("disk", FileType::BlockDevice),
        ("zero", FileType::CharacterDevice),
    ];
    for (name, _) in KINDS {
        plot.rename(name, format!("dir2/sub/moved {name}"))?;
    }
    let plot = plot.clone();
    from_now_on(move || {
        for (name, kind) in KINDS {
            plot.is_missing(name)?;
            same(name, plot.kind(format!("dir2/sub/moved {name}"))?, kind)?;
        }
        same("file", plot.read("dir2/sub/moved file")?, b"lower\n")?;
        same("symlink", plot.target("dir2/sub/moved symlink")?, "file")?;
        same("names", plot.names("dir2/sub")?.len(), KINDS.len() + 1)
    })
}

fn moved_object_does_not_come_back(plot: &Plot) -> Done<Holds> {
    plot.rename("file", "moved")?;
    plot.unlink("moved")?;
    plot.rename("dir", "moved")?;
    plot.remove_tree("moved")?;
    plot.rename("symlink", "dangling")?;
    plot.unlink("dangling")?;
    plot.rename("other", "new")?;
    plot.rename("new", "other")?;
    plot.unlink("other")?;
    let plot = plot.clone();
    from_now_on(move || {
        ["file", "moved", "dir", "symlink", "dangling", "other", "new"]
            .iter()
            .try_for_each(|name| plot.is_missing(name))
    })
}

fn moved_object_replaces_a_lower_one(plot: &Plot) -> Done<Holds> {
    plot.rename("file", "dir/a")?;
    plot.create("new", b"new\n")?;
    plot.rename("new", "dir/b")?;
    plot.rename("symlink", "fifo")?;
    plot.rename("dir2/a", "dir/sub/c")?;
    let plot = plot.clone();
    from_now_on(move || {
        ["file", "new", "symlink", "dir2/a"].iter().try_for_each(|name| plot.is_missing(name))?;
        plot.names_are("dir", &["a", "b", "sub", "link"])?;
        same("dir/a", plot.read("dir/a")?, b"lower\n")?;
        same("dir/b", plot.read("dir/b")?, b"new\n")?;
        same("dir/sub/c", plot.read("dir/sub/c")?, b"dir2/a")?;
        same("fifo", plot.target("fifo")?, "file")
    })
}

fn lower_directory_moves_with_all_in_it(plot: &Plot) -> Done<Holds> {
    plot.rename("dir", "dir2/moved")?;
    plot.append("dir2/moved/sub/c", b"!")?;
    plot.create("dir2/moved/sub/new", b"new")?;
    plot.unlink("dir2/moved/b")?;
    let plot = plot.clone();
    from_now_on(move || {
        plot.is_missing("dir")?;
        plot.names_are("dir2", &["a", "sub", "moved"])?;
        plot.names_are("dir2/moved", &["a", "sub", "link"])?;
        plot.names_are("dir2/moved/sub", &["c", "deeper", "new"])?;
        same("c", plot.read("dir2/moved/sub/c")?, b"dir/sub/c!")?;
        same("d", plot.read("dir2/moved/sub/deeper/d")?, b"dir/sub/deeper/d")?;
        same("link", plot.read("dir2/moved/link")?, b"dir/a")
    })
}

fn name_a_directory_left_is_free_and_empty(plot: &Plot) -> Done<Holds> {
    plot.rename("dir", "moved")?;
    plot.mkdir("dir")?;
    plot.create("dir/a", b"another a")?;
    plot.rename("dir2", "moved2")?;
    plot.create("dir2", b"a file now")?;
    plot.rename("hard", "moved3")?;
    plot.rename("moved2", "hard")?;
    let plot = plot.clone();
    from_now_on(move || {
        plot.names_are("dir", &["a"])?;
        same("dir/a", plot.read("dir/a")?, b"another a")?;
        same("moved/a", plot.read("moved/a")?, b"dir/a")?;
        same("dir2", plot.read("dir2")?, b"a file now")?;
        plot.names_are("hard", &["a", "sub"])?;
        plot.names_are("moved3", &["a", "b", "far", "symlink", "symlink2"])
    })
}

fn merged_directory_moves_with_its_changes(plot: &Plot) -> Done<Holds> {
    plot.append("dir/a", b"!")?;
    plot.unlink("dir/b")?;
    plot.create("dir/new", b"new")?;
    plot.chmod("dir/sub", 0o700)?;
    plot.rename("dir", "empty_dir/moved")?;
    plot.create("empty_dir/moved/b", b"b again")?;
    plot.unlink("empty_dir/moved/new")?;
    let plot = plot.clone();
    from_now_on(move || {
        plot.names_are("empty_dir/moved", &["a", "b", "sub", "link"])?;
        same("a", plot.read("empty_dir/moved/a")?, b"dir/a!")?;
        same("b", plot.read("empty_dir/moved/b")?, b"b again")?;
        same("mode of sub", plot.mode("empty_dir/moved/sub")?, 0o700_u32)?;
        same("c", plot.read("empty_dir/moved/sub/c")?, b"dir/sub/c")
    })
}

fn directory_moves_twice_and_back(plot: &Plot) -> Done<Holds> {
    plot.rename("dir", "x")?;
    plot.rename("x", "empty_dir/y")?;
    plot.create("empty_dir/y/1", b"")?;
    plot.rename("empty_dir/y", "dir")?;
    plot.create("dir/2", b"")?;
    plot.rename("dir2/sub", "sub")?;
    plot.rename("sub", "dir2/sub")?;
    let plot = plot.clone();
    from_now_on(move || {
        plot.names_are("dir", &["a", "b", "sub", "link", "1", "2"])?;
        plot.names_are("empty_dir", &[])?;
        plot.is_missing("x")?;
        plot.names_are("dir2", &["a", "sub"])?;
        plot.names_are("dir2/sub", &["e"])
    })
}

fn directory_moves_below_another_moved_one(plot: &Plot) -> Done<Holds> {
    plot.rename("dir2", "moved")?;
    plot.rename("dir/sub", "moved/inner")?;
    plot.rename("moved", "dir/outer")?;
    plot.rename("dir", "last")?;
    plot.append("last/outer/inner/deeper/d", b"!")?;
    plot.rename("last/outer/inner/deeper", "deeper")?;
    let plot = plot.clone();
    from_now_on(move || {
        plot.names_are("last", &["a", "b", "link", "outer"])?;
        plot.names_are("last/outer", &["a", "sub", "inner"])?;
        plot.names_are("last/outer/inner", &["c"])?;
        same("d", plot.read("deeper/d")?, b"dir/sub/deeper/d!")?;
        same("e", plot.read("last/outer/sub/e")?, b"dir2/sub/e")
    })
}

fn directory_moves_onto_an_empty_one(plot: &Plot) -> Done<Holds> {
    plot.rename("dir", "empty_dir")?;
    plot.remove_tree("hard/far")?;
    plot.mkdir("hard/far")?;
    plot.rename("dir2", "hard/far")?;
    // Emptied, and still with something in the lower.
    plot.unlink("marked_dir/child")?;
    plot.mkdir("new")?;
    plot.create("new/child2", b"")?;
    plot.rename("new", "marked_dir")?;
    let plot = plot.clone();
    from_now_on(move || {
        ["dir", "dir2", "new"].iter().try_for_each(|name| plot.is_missing(name))?;
        plot.names_are("empty_dir", &["a", "b", "sub", "link"])?;
        plot.names_are("hard/far", &["a", "sub"])?;
        plot.names_are("marked_dir", &["child2"])?;
        same("xattrs", plot.xattrs("marked_dir")?, Vec::<String>::new())
    })
}

fn open_directory_goes_on_after_it_moved(plot: &Plot) -> Done<Holds> {
    let directory = plot.open("dir/sub", OFlags::RDONLY | OFlags::DIRECTORY)?;
    let file = plot.open("dir/sub/c", OFlags::RDWR)?;
    plot.rename("dir", "moved")?;
    let inside = |name: &str| format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
    let content = call("read", rustix::fs::open(inside("c"), OFlags::RDONLY, 0.into()))?;
    same("c", read_all(&content)?, b"dir/sub/c")?;
    let mode = rustix::fs::Mode::from_raw_mode(0o755);
    call("mkdir", rustix::fs::mkdir(inside("new"), mode))?;
    plot.rename("moved/sub", "sub")?;
    call("mkdir", rustix::fs::mkdir(inside("new/er"), mode))?;
    call("unlink", rustix::fs::unlink(inside("deeper/d")))?;
    write_at(&file, 0, b"D")?;
    let plot = plot.clone();
    from_now_on(move || {
        plot.names_are("sub", &["c", "deeper", "new"])?;
        plot.names_are("sub/new", &["er"])?;
        plot.names_are("sub/deeper", &[])?;
        plot.names_are("moved", &["a", "b", "link"])?;
        same("c", plot.read("sub/c")?, b"Dir/sub/c")
    })
}

fn rename_is_refused_where_a_copy_refuses_it(plot: &Plot) -> Done<Holds> {
    refused("into itself", plot.rename("dir", "dir/x"), Errno::INVAL)?;
    refused("into its subtree", plot.rename("dir", "dir/sub/deeper/x"), Errno::INVAL)?;
    refused("onto a directory above", plot.rename("dir/sub/deeper", "dir"), Errno::NOTEMPTY)?;
    refused("onto a full directory", plot.rename("empty_dir", "dir"), Errno::NOTEMPTY)?;
    refused("a file onto a directory", plot.rename("file", "empty_dir"), Errno::ISDIR)?;
    refused("a directory onto a file", plot.rename("empty_dir", "file"), Errno::NOTDIR)?;
    refused("nothing", plot.rename("missing", "new"), Errno::NOENT)?;
    refused("nothing onto a file", plot.rename("missing", "file"), Errno::NOENT)?;
    refused("into nothing", plot.rename("file", "missing/new"), Errno::NOENT)?;
    refused("into a file", plot.rename("file", "other/new"), Errno::NOTDIR)?;
    plot.rename("dir", "dir2/moved")?;
    refused("into a moved self", plot.rename("dir2", "dir2/moved/sub/x"), Errno::INVAL)?;
    plot.unlink("dir2/a")?;
    refused("onto one with a subdirectory", plot.rename("empty_dir", "dir2"), Errno::NOTEMPTY)?;
    let plot = plot.clone();
    from_now_on(move || {
        plot.names_are("dir2", &["sub", "moved"])?;
        plot.names_are("dir2/moved", &["a", "b", "sub", "link"])?;
        same("file", plot.read("file")?, b"lower\n")
    })
}

fn noreplace_is_judged_on_the_union(plot: &Plot) -> Done<Holds> {
    let no_replace = RenameFlags::NOREPLACE;
    for target in ["other", "dir", "dangling", "zero"] {
        let result = plot.rename_with("file", target, no_replace);
        refused(&format!("onto {target}"), result, Errno::EXIST)?;
    }
    plot.unlink("other")?;
    plot.rename_with("file", "other", no_replace)?;
    plot.rmdir("empty_dir")?;
    plot.rename_with("dir", "empty_dir", no_replace)?;
    plot.rename_with("dir2", "new", no_replace)?;
    refused("nothing", plot.rename_with("missing", "x", no_replace), Errno::NOENT)?;
    let plot = plot.clone();
    from_now_on(move || {
        ["file", "dir", "dir2"].iter().try_for_each(|name| plot.is_missing(name))?;
        same("other", plot.read("other")?, b"lower\n")?;
        plot.names_are("empty_dir", &["a", "b", "sub", "link"])?;
        plot.names_are("new", &["a", "sub"])
    })
}

fn any_two_objects_are_exchanged(plot: &Plot) -> Done<Holds> {
    let exchange = |a: &str, b: &str| plot.rename_with(a, b, RenameFlags::EXCHANGE);
    plot.create("new", b"new\n")?;
    plot.mkdir("new_dir")?;
    plot.create("new_dir/inside", b"")?;
    exchange("file", "other")?; // lower and lower
    exchange("new", "dir/a")?; // upper and lower
    exchange("dir2", "big")?; // directory and file
    exchange("new_dir", "hard")?; // upper and lower directory
    exchange("symlink", "fifo")?;
    exchange("dir/sub", "empty_dir")?;
    exchange("empty", "empty")?;
    let plot = plot.clone();
    from_now_on(move || {
        same("file", plot.read("file")?, b"other\n")?;
        same("other", plot.read("other")?, b"lower\n")?;
        same("new", plot.read("new")?, b"dir/a")?;
        same("dir/a", plot.read("dir/a")?, b"new\n")?;
        plot.names_are("big", &["a", "sub"])?;
        same("dir2", plot.read("dir2")?.len(), super::ground::BIG_BYTES)?;
        plot.names_are("hard", &["inside"])?;
        plot.names_are("new_dir", &["a", "b", "far", "symlink", "symlink2"])?;
        same("fifo", plot.target("fifo")?, "file")?;
        same("symlink", plot.kind("symlink")?, FileType::Fifo)?;
        plot.names_are("empty_dir", &["c", "deeper"])?;
        plot.names_are("dir/sub", &[])
    })
}

fn exchanged_directories_keep_their_changes(plot: &Plot) -> Done<Holds> {
    plot.append("dir/a", b"!")?;
    plot.unlink("dir2/a")?;
    plot.rename_with("dir", "dir2", RenameFlags::EXCHANGE)?;
    plot.create("dir/1", b"")?;
    plot.unlink("dir2/b")?;
    plot.rename_with("dir", "dir2", RenameFlags::EXCHANGE)?;
    plot.rename_with("dir", "marked_dir", RenameFlags::EXCHANGE)?;
    let plot = plot.clone();
    from_now_on(move || {
        plot.names_are("marked_dir", &["a", "sub", "link"])?;
        same("a", plot.read("marked_dir/a")?, b"dir/a!")?;
        plot.names_are("dir2", &["sub", "1"])?;
        plot.names_are("dir", &["child"])?;
        same("owner", plot.stat("dir")?.st_uid, super::ground::USER)?;
        same("xattr", plot.xattr("dir", "user.color")?, b"red")
    })
}

fn exchange_is_refused_where_a_copy_refuses_it(plot: &Plot) -> Done<Holds> {
    let exchange = |a: &str, b: &str| plot.rename_with(a, b, RenameFlags::EXCHANGE);
    refused("with nothing", exchange("file", "missing"), Errno::NOENT)?;
    refused("nothing with", exchange("missing", "file"), Errno::NOENT)?;
    plot.unlink("other")?;
    refused("with what was removed", exchange("file", "other"), Errno::NOENT)?;
    refused("with a child", exchange("dir", "dir/sub"), Errno::INVAL)?;
    refused("with a parent", exchange("dir/sub", "dir"), Errno::INVAL)?;
    refused("with a file below", exchange("dir", "dir/a"), Errno::INVAL)?;
    let both = RenameFlags::EXCHANGE | RenameFlags::NOREPLACE;
    refused("with NOREPLACE", plot.rename_with("file", "dir", both), Errno::INVAL)?;
    nothing_more()
}

fn rename_leaves_a_whiteout_device(plot: &Plot) -> Done<Holds> {
    plot.rename_with("file", "moved", RenameFlags::WHITEOUT)?;
    plot.create("new", b"new\n")?;
    plot.rename_with("new", "dir/a", RenameFlags::WHITEOUT)?;
    // Directories of each layer, a name that was removed, and one that a lower still has.
    plot.create("hard/merged", b"")?;
    plot.mkdir("new_dir")?;
    for (name, new_name) in [("dir2", "dir/dir2"), ("hard", "empty_dir"), ("new_dir", "dir2_again")]
    {
        plot.rename_with(name, new_name, RenameFlags::WHITEOUT)?;
    }
    let both = RenameFlags::WHITEOUT | RenameFlags::NOREPLACE;
    refused("onto a name", plot.rename_with("other", "big", both), Errno::EXIST)?;
    plot.unlink("empty")?;
    plot.rename_with("other", "empty", both)?;
    let both = RenameFlags::WHITEOUT | RenameFlags::EXCHANGE;
    refused("with EXCHANGE", plot.rename_with("big", "empty", both), Errno::INVAL)?;
    let plot = plot.clone();
    from_now_on(move || {
        plot.names_are("dir/dir2", &["a", "sub"])?;
        plot.names_are("empty_dir", &["a", "b", "far", "symlink", "symlink2", "merged"])?;
        same("empty", plot.read("empty")?, b"other\n")?;
        for name in ["file", "new", "dir2", "hard", "new_dir", "other"] {
            let stat = plot.stat(name)?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            same(name, (kind, stat.st_rdev), (FileType::CharacterDevice, 0))?;
            let listed = plot.entries("")?.into_iter().find(|row| row.name == name);
            same(name, listed.map(|row| row.kind), Some(FileType::CharacterDevice))?;
        }
        same("moved", plot.read("moved")?, b"lower\n")?;
        same("dir/a", plot.read("dir/a")?, b"new\n")
    })
}

/// Born like any other object: owner, group of a setgid directory, and the default ACL.
fn what_a_rename_leaves_is_its_callers(plot: &Plot) -> Done<Holds> {
    const NO_ID: u32 = u32::MAX;
    for (name, mode) in [("of_anyone", 0o777), ("of_group", 0o2777), ("of_acl", 0o777)] {
        plot.mkdir(name)?;
        plot.chown(name, 0, 50)?;
        plot.chmod(name, mode)?;
    }
    let default =
        acl(&[(1, 7, NO_ID), (2, 7, USER), (4, 7, NO_ID), (16, 7, NO_ID), (32, 7, NO_ID)]);
    plot.set_xattr("of_acl", "system.posix_acl_default", &default)?;
    as_user(USER, GROUP, || {
        for name in ["of_anyone/a", "of_group/a", "of_acl/a"] {
            plot.create(name, b"")?;
            plot.rename_with(name, "of_anyone/moved", RenameFlags::WHITEOUT)?;
        }
        Ok(())
    })?;
    let plot = plot.clone();
    from_now_on(move || {
        let owner = |name| plot.stat(name).map(|stat| (stat.st_uid, stat.st_gid, stat.st_mode));
        let device = FileType::CharacterDevice.as_raw_mode();
        same("plain", owner("of_anyone/a")?, (USER, GROUP, device))?;
        same("setgid", owner("of_group/a")?, (USER, 50, device))?;
        same("default ACL", owner("of_acl/a")?, (USER, GROUP, device))?;
        let acl = plot.xattr("of_acl/a", "system.posix_acl_access")?;
        same("ACL", acl.len(), default.len())
    })
}

fn replaced_object_lives_while_it_is_held(plot: &Plot) -> Done<Holds> {
    let held = plot.open("dir/a", OFlags::RDWR)?;
    let held_directory = plot.open("empty_dir", OFlags::RDONLY | OFlags::DIRECTORY)?;
    plot.rename("file", "dir/a")?;
    plot.rename("dir2", "empty_dir")?;
    same("links", stat_of(&held)?.st_nlink, 0_u64)?;
    same("content", read_all(&held)?, b"dir/a")?;
    write_at(&held, 0, b"still ")?;
    same("content", read_all(&held)?, b"still ")?;
    same("the new one", plot.read("dir/a")?, b"lower\n")?;
    same("a directory's links", stat_of(&held_directory)?.st_nlink, 0_u64)?;
    let plot = plot.clone();
    from_now_on(move || {
        same("dir/a", plot.read("dir/a")?, b"lower\n")?;
        plot.names_are("empty_dir", &["a", "sub"])
    })
}
