//! Rights: who may do what, what a birth inherits, and privileges that a change clears.

use std::os::fd::OwnedFd;

use rustix::fs::{FallocateFlags, OFlags, Timespec};
use rustix::io::Errno;

use super::ground::{GROUP, USER, default_acl};
use super::plot::{
    Done, Holds, Plot, as_member, as_user, call, from_now_on, holds, nothing_more, refused, same,
    with_umask, write_at,
};

super::laws! {
    35 => write_by_a_user_clears_setuid_and_setgid;
    35 => cleared_privileges_are_gone_at_once;
    35 => truncate_and_fallocate_by_a_user_clear_setuid;
    35 => range_copied_by_a_user_clears_setuid;
    35 => chown_clears_setuid_and_setgid;
    35 => write_by_root_keeps_setuid;
    35 => change_clears_file_capabilities;
    35 => chmod_by_a_user_outside_the_group_clears_setgid;
    36 => birth_obeys_the_umask;
    36 => birth_in_a_setgid_directory_inherits_its_group;
    36 => birth_under_a_default_acl_inherits_it;
    36 => birth_by_a_user_belongs_to_him;
    36 => birth_by_a_member_of_its_directorys_group_keeps_setgid;
    37 => supplementary_groups_give_their_rights;
    37 => access_is_refused_where_a_copy_refuses_it;
    37 => sticky_directory_guards_others_files;
    37 => owner_may_what_others_may_not;
}

/// Neither the owner nor in the group of anything.
const STRANGER: (u32, u32) = (2000, 2000);

fn as_stranger(run: impl FnOnce() -> Done + Send) -> Done {
    as_user(STRANGER.0, STRANGER.1, run)
}

fn write_by_a_user_clears_setuid_and_setgid(plot: &Plot) -> Done<Holds> {
    same("at first", plot.mode("suid")?, 0o6777_u32)?;
    as_stranger(|| plot.patch("suid", 0, b"S"))?;
    plot.create("new", b"new")?;
    plot.chmod("new", 0o6777)?;
    as_stranger(|| plot.patch("new", 0, b"N"))?;
    let plot = plot.clone();
    from_now_on(move || {
        same("suid", plot.mode("suid")?, 0o777_u32)?;
        same("new", plot.mode("new")?, 0o777_u32)?;
        same("content", plot.read("suid")?, b"Suid\n")
    })
}

/// Where nobody asked for the mode meanwhile: links to setuid files of others are refused
/// (protected_hardlinks), links to what one may write are not.
fn cleared_privileges_are_gone_at_once(plot: &Plot) -> Done<Holds> {
    type Change = (&'static str, fn(&OwnedFd) -> Done);
    const CHANGES: [Change; 3] = [
        ("write", |file| write_at(file, 0, b"S")),
        ("fallocate", |file| {
            call("fallocate", rustix::fs::fallocate(file, FallocateFlags::empty(), 0, 5000))
        }),
        ("ftruncate", |file| call("ftruncate", rustix::fs::ftruncate(file, 3))),
    ];
    plot.mkdir("all")?;
    plot.chmod("all", 0o777)?;
    for (what, change) in CHANGES {
        let name = format!("all/{what}");
        plot.create(&name, b"suid")?;
        plot.chmod(&name, 0o6777)?;
        let open = || plot.open(&name, OFlags::WRONLY);
        as_stranger(|| change(&open()?))
            .and_then(|()| as_stranger(|| plot.link(&name, format!("{name}-linked"))))?;
    }
    nothing_more()
}

fn truncate_and_fallocate_by_a_user_clear_setuid(plot: &Plot) -> Done<Holds> {
    as_stranger(|| plot.truncate("suid", 2))?;
    same("after truncate", plot.mode("suid")?, 0o777_u32)?;
    plot.chmod("suid", 0o6777)?;
    as_stranger(|| {
        let file = plot.open("suid", OFlags::WRONLY)?;
        call("fallocate", rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 5000))
    })?;
    same("after fallocate", plot.mode("suid")?, 0o777_u32)?;
    plot.chmod("suid", 0o6777)?;
    as_stranger(|| plot.write("suid", b""))?;
    let plot = plot.clone();
    from_now_on(move || {
        same("after O_TRUNC", plot.mode("suid")?, 0o777_u32)?;
        same("size", plot.stat("suid")?.st_size, 0)
    })
}

fn range_copied_by_a_user_clears_setuid(plot: &Plot) -> Done<Holds> {
    as_stranger(|| {
        let (from, to) = (plot.open("big", OFlags::RDONLY)?, plot.open("suid", OFlags::WRONLY)?);
        let copied = rustix::fs::copy_file_range(&from, None, &to, None, 3);
        same("bytes", call("copy_file_range", copied)?, 3_usize)
    })?;
    let plot = plot.clone();
    from_now_on(move || same("mode", plot.mode("suid")?, 0o777_u32))
}

fn chown_clears_setuid_and_setgid(plot: &Plot) -> Done<Holds> {
    plot.chown("suid", USER, GROUP)?;
    same("chown to the same", plot.mode("suid")?, 0o777_u32)?;
    plot.create("new", b"")?;
    plot.chmod("new", 0o6644)?;
    plot.chown("new", 5, 6)?;
    // Without group execution setgid once meant mandatory locking, and stays.
    same("not executable by the group", plot.mode("new")?, 0o2644_u32)?;
    plot.chown("setgid", 5, 6)?;
    let plot = plot.clone();
    from_now_on(move || {
        same("a directory", plot.mode("setgid")?, 0o2775_u32)?;
        same("suid", plot.mode("suid")?, 0o777_u32)
    })
}

fn write_by_root_keeps_setuid(plot: &Plot) -> Done<Holds> {
    plot.append("suid", b"!")?;
    // Capabilities go whoever writes; the rest of it stays all the same.
    plot.set_xattr("suid", "security.capability", &super::ground::file_capability())?;
    plot.append("suid", b"!")?;
    plot.truncate("suid", 3)?;
    let plot = plot.clone();
    from_now_on(move || {
        same("mode", plot.mode("suid")?, 0o6777_u32)?;
        same("content", plot.read("suid")?, b"sui")
    })
}

fn change_clears_file_capabilities(plot: &Plot) -> Done<Holds> {
    let capability = super::ground::file_capability();
    let is_cleared = |what: &str, name: &str| {
        refused(what, plot.xattr(name, "security.capability").map(|_| ()), Errno::NODATA)
    };
    plot.patch("capable", 0, b"C")?;
    is_cleared("after a write", "capable")?;
    for (what, name) in [("truncate", "file"), ("chown", "other"), ("chown of a user's", "dir/a")] {
        plot.set_xattr(name, "security.capability", &capability)?;
        match what {
            "truncate" => plot.truncate(name, 2)?,
            _ => plot.chown(name, 7, 7)?,
        }
        is_cleared(what, name)?;
    }
    plot.set_xattr("executable", "security.capability", &capability)?;
    plot.chmod("executable", 0o700)?;
    let plot = plot.clone();
    from_now_on(move || {
        let kept = plot.xattr("executable", "security.capability")?;
        same("chmod keeps them", &kept, &capability)?;
        let gone = plot.xattr("capable", "security.capability").map(|_| ());
        refused("after a write", gone, Errno::NODATA)
    })
}

fn chmod_by_a_user_outside_the_group_clears_setgid(plot: &Plot) -> Done<Holds> {
    plot.chown("file", STRANGER.0, GROUP)?;
    as_stranger(|| plot.chmod("file", 0o2755))?;
    let plot = plot.clone();
    from_now_on(move || same("mode", plot.mode("file")?, 0o755_u32))
}

fn birth_obeys_the_umask(plot: &Plot) -> Done<Holds> {
    with_umask(0o027, || -> Done {
        drop(plot.open_with("dir/file", OFlags::CREATE | OFlags::WRONLY, 0o666)?);
        plot.mkdir_with("dir/new", 0o777)?;
        plot.mknod("dir/fifo", rustix::fs::FileType::Fifo, 0)
    })?;
    with_umask(0, || plot.mkdir_with("dir/open", 0o1777))?;
    let plot = plot.clone();
    from_now_on(move || {
        same("file", plot.mode("dir/file")?, 0o640_u32)?;
        same("directory", plot.mode("dir/new")?, 0o750_u32)?;
        same("fifo", plot.mode("dir/fifo")?, 0o640_u32)?;
        same("no umask", plot.mode("dir/open")?, 0o1777_u32)
    })
}

fn birth_in_a_setgid_directory_inherits_its_group(plot: &Plot) -> Done<Holds> {
    plot.create("setgid/file", b"")?;
    plot.mkdir("setgid/dir")?;
    plot.mkdir("setgid/dir/deeper")?;
    plot.symlink("x", "setgid/link")?;
    plot.chmod("setgid", 0o2777)?;
    as_stranger(|| plot.create("setgid/stranger's", b""))?;
    let plot = plot.clone();
    from_now_on(move || {
        for name in ["file", "dir", "dir/deeper", "link", "stranger's"] {
            same(name, plot.stat(format!("setgid/{name}"))?.st_gid, GROUP)?;
        }
        same("directory", plot.mode("setgid/dir")?, 0o2755_u32)?;
        same("file", plot.mode("setgid/file")?, 0o644_u32)?;
        same("owner", plot.stat("setgid/stranger's")?.st_uid, STRANGER.0)
    })
}

fn birth_under_a_default_acl_inherits_it(plot: &Plot) -> Done<Holds> {
    with_umask(0o077, || -> Done {
        drop(plot.open_with("acl/file", OFlags::CREATE | OFlags::WRONLY, 0o666)?);
        plot.mkdir_with("acl/dir", 0o777)
    })?;
    drop(plot.open_with("acl/dir/file", OFlags::CREATE | OFlags::WRONLY, 0o600)?);
    let plot = plot.clone();
    from_now_on(move || {
        // The umask does not count; the default ACL does.
        same("file", plot.mode("acl/file")?, 0o660_u32)?;
        same("file's ACL", plot.xattrs("acl/file")?, ["system.posix_acl_access"])?;
        same("directory", plot.mode("acl/dir")?, 0o770_u32)?;
        let inherited = plot.xattr("acl/dir", "system.posix_acl_default")?;
        same("directory's default ACL", inherited, default_acl())?;
        same("mode asked for", plot.mode("acl/dir/file")?, 0o600_u32)
    })
}

fn birth_by_a_user_belongs_to_him(plot: &Plot) -> Done<Holds> {
    as_stranger(|| {
        plot.create("open/file", b"his\n")?;
        plot.mkdir("open/dir")?;
        plot.symlink("x", "open/link")?;
        plot.append("open/file", b"more\n")
    })?;
    let plot = plot.clone();
    from_now_on(move || {
        for name in ["open/file", "open/dir", "open/link"] {
            let stat = plot.stat(name)?;
            same(name, (stat.st_uid, stat.st_gid), STRANGER)?;
        }
        same("content", plot.read("open/file")?, b"his\nmore\n")
    })
}

fn birth_by_a_member_of_its_directorys_group_keeps_setgid(plot: &Plot) -> Done<Holds> {
    plot.chmod("setgid", 0o2777)?;
    let born = |name: &str| -> Done {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
        plot.open_with(format!("setgid/{name}"), flags, 0o2755)?;
        plot.mkdir(format!("setgid/{name}_dir"))
    };
    as_member(STRANGER, &[7, GROUP, 8], || born("member"))?;
    as_member(STRANGER, &[7, 8], || born("stranger"))?;
    let plot = plot.clone();
    from_now_on(move || {
        for (name, mode) in [("member", 0o2755_u32), ("stranger", 0o755)] {
            let stat = plot.stat(format!("setgid/{name}"))?;
            let found = (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid);
            same(name, found, (mode, STRANGER.0, GROUP))?;
            same(name, plot.mode(format!("setgid/{name}_dir"))?, 0o2755_u32)?;
        }
        Ok(())
    })
}

fn supplementary_groups_give_their_rights(plot: &Plot) -> Done<Holds> {
    plot.chown("file", STRANGER.0, 0)?;
    plot.chown("executable", STRANGER.0, GROUP)?;
    let as_member = |run: &(dyn Fn() -> Done + Sync)| as_member(STRANGER, &[7, GROUP, 8], run);
    as_member(&|| {
        same("read", plot.read("owned")?, b"owned\n")?;
        refused("write", plot.append("owned", b"!"), Errno::ACCESS)?;
        same("list", plot.names("marked_dir")?.len(), 1_usize)?;
        plot.create("setgid/new", b"")?;
        plot.rename("setgid/new", "setgid/moved")?;
        plot.chmod("executable", 0o2755)?;
        plot.chown("file", STRANGER.0, GROUP)?;
        refused("a group of others", plot.chown("file", STRANGER.0, 99), Errno::PERM)
    })?;
    as_stranger(|| refused("read", plot.read("owned").map(|_| ()), Errno::ACCESS))?;
    let plot = plot.clone();
    from_now_on(move || {
        same("setgid stays", plot.mode("executable")?, 0o2755_u32)?;
        same("group", plot.stat("file")?.st_gid, GROUP)?;
        plot.names_are("setgid", &["moved"])
    })
}

fn access_is_refused_where_a_copy_refuses_it(plot: &Plot) -> Done<Holds> {
    as_stranger(|| {
        refused("read", plot.read("private").map(|_| ()), Errno::ACCESS)?;
        refused("read by ACL", plot.read("owned").map(|_| ()), Errno::ACCESS)?;
        refused("write", plot.append("file", b"x"), Errno::ACCESS)?;
        refused("create", plot.create("dir/new", b""), Errno::ACCESS)?;
        refused("unlink", plot.unlink("dir/a"), Errno::ACCESS)?;
        refused("rename", plot.rename("dir/a", "dir/x"), Errno::ACCESS)?;
        refused("search", plot.stat("marked_dir/child").map(|_| ()), Errno::ACCESS)?;
        refused("chmod", plot.chmod("file", 0o777), Errno::PERM)?;
        refused("chown", plot.chown("file", STRANGER.0, STRANGER.1), Errno::PERM)?;
        refused("times", plot.set_times("file", Timespec { tv_sec: 1, tv_nsec: 0 }), Errno::PERM)?;
        refused("trusted", plot.set_xattr("open", "trusted.x", b"1"), Errno::PERM)?;
        let device = plot.mknod("open/device", rustix::fs::FileType::CharacterDevice, 1);
        refused("mknod", device, Errno::PERM)?;
        same("trusted is not shown", plot.xattrs("suid")?, Vec::<String>::new())
    })?;
    // User 1234 has an entry in the ACL.
    as_user(1234, 2000, || same("read by ACL", plot.read("owned")?, b"owned\n"))?;
    same("file", plot.read("file")?, b"lower\n")?;
    nothing_more()
}

fn sticky_directory_guards_others_files(plot: &Plot) -> Done<Holds> {
    as_stranger(|| plot.create("sticky/his", b""))?;
    as_user(USER, GROUP, || {
        refused("unlink", plot.unlink("sticky/his"), Errno::PERM)?;
        refused("unlink of root's", plot.unlink("sticky/root's"), Errno::PERM)?;
        refused("rename", plot.rename("sticky/root's", "sticky/mine"), Errno::PERM)
    })?;
    as_stranger(|| plot.rename("sticky/his", "sticky/renamed"))?;
    let plot = plot.clone();
    from_now_on(move || plot.names_are("sticky", &["root's", "renamed"]))
}

fn owner_may_what_others_may_not(plot: &Plot) -> Done<Holds> {
    as_user(USER, GROUP, || {
        plot.chmod("owned", 0o600)?;
        plot.set_times("owned", Timespec { tv_sec: 9, tv_nsec: 9 })?;
        plot.set_xattr("owned", "user.mine", b"1")?;
        let file = plot.open("owned", OFlags::RDWR)?;
        write_at(&file, 0, b"O")?;
        plot.create("marked_dir/mine", b"")?;
        plot.unlink("marked_dir/child")
    })?;
    as_stranger(|| {
        refused("read", plot.read("owned").map(|_| ()), Errno::ACCESS)?;
        refused("list", plot.names("marked_dir").map(|_| ()), Errno::ACCESS)
    })?;
    let plot = plot.clone();
    from_now_on(move || {
        same("content", plot.read("owned")?, b"Owned\n")?;
        same("mode", plot.mode("owned")?, 0o600_u32)?;
        holds("xattr", plot.xattr("owned", "user.mine")? == b"1")?;
        plot.names_are("marked_dir", &["mine"])
    })
}
