//! Times.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FallocateFlags, OFlags, RenameFlags, Timespec};

use super::plot::{
    Done, Failure, Holds, LONG_AGO, Plot, call, from_now_on, holds, nothing_more, same, write_at,
};

super::laws! {
    42 => directory_changes_when_an_entry_does;
    42 => directory_stays_when_only_a_child_changes;
    43 => file_changes_when_its_content_does;
    43 => file_stays_when_only_its_attributes_change;
    43 => every_change_of_an_object_moves_its_ctime;
    43 => new_object_is_of_now;
    43 => reading_changes_nothing;
    43 => first_read_moves_the_access_time_and_a_copy_up_keeps_it;
}

fn is_old(plot: &Plot, name: &str) -> Done<bool> {
    Ok(plot.mtime(name)? == (LONG_AGO.tv_sec, LONG_AGO.tv_nsec))
}

/// The name of a step and what it does.
type Step<'a> = (&'static str, &'a dyn Fn() -> Done);

fn directory_changes_when_an_entry_does(plot: &Plot) -> Done<Holds> {
    let steps: [Step<'_>; 11] = [
        ("create", &|| plot.create("dir/new", b"")),
        ("unlink", &|| plot.unlink("dir/new")),
        ("unlink of a lower one", &|| plot.unlink("dir/a")),
        ("mkdir", &|| plot.mkdir("dir/new")),
        ("rmdir", &|| plot.rmdir("dir/new")),
        ("symlink", &|| plot.symlink("x", "dir/new")),
        ("link", &|| plot.link("file", "dir/linked")),
        ("rename within", &|| plot.rename("dir/b", "dir/c")),
        ("rename out", &|| plot.rename("dir/c", "dir2/c")),
        ("rename in", &|| plot.rename("dir2/c", "dir/c")),
        ("exchange", &|| plot.rename_with("dir/c", "dir2/a", RenameFlags::EXCHANGE)),
    ];
    for (what, step) in steps {
        plot.set_times("dir", LONG_AGO)?;
        plot.set_times("dir2", LONG_AGO)?;
        let before = ctime(plot, "dir")?;
        tick();
        step()?;
        holds(&format!("{what} moves the directory's ctime"), ctime(plot, "dir")? > before)?;
        holds(&format!("{what} changes the directory's mtime"), !is_old(plot, "dir")?)?;
        let touches_both = matches!(what, "rename out" | "rename in" | "exchange");
        let what = format!("{what} changes the other directory's mtime");
        same(&what, !is_old(plot, "dir2")?, touches_both)?;
    }
    let plot = plot.clone();
    from_now_on(move || holds("dir is new", !is_old(&plot, "dir")?))
}

fn directory_stays_when_only_a_child_changes(plot: &Plot) -> Done<Holds> {
    plot.append("dir/a", b"!")?;
    plot.chmod("dir/b", 0o600)?;
    plot.chmod("dir/sub", 0o700)?;
    plot.create("dir/sub/new", b"")?;
    plot.truncate("dir2/a", 1)?;
    plot.set_xattr("dir2/sub", "user.x", b"1")?;
    plot.append("hard/far/c", b"!")?;
    plot.chown("hard/symlink", 1, 1)?;
    plot.chmod("marked_dir", 0o700)?;
    let plot = plot.clone();
    from_now_on(move || {
        for name in ["dir", "dir2", "dir2/sub", "hard", "hard/far", "marked_dir"] {
            holds(&format!("{name} is as old as it was"), is_old(&plot, name)?)?;
        }
        holds("dir/sub is new", !is_old(&plot, "dir/sub")?)
    })
}

fn file_changes_when_its_content_does(plot: &Plot) -> Done<Holds> {
    let steps: [Step<'_>; 5] = [
        ("write", &|| plot.patch("big", 0, b"x")),
        ("append", &|| plot.append("big", b"x")),
        ("truncate", &|| plot.truncate("big", 1000)),
        ("fallocate", &|| {
            let file = plot.open("big", OFlags::WRONLY)?;
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            call("fallocate", rustix::fs::fallocate(&file, flags, 0, 4096))
        }),
        ("O_TRUNC", &|| plot.write("big", b"")),
    ];
    for (what, step) in steps {
        step()?;
        holds(&format!("{what} changes mtime"), !is_old(plot, "big")?)?;
        plot.set_times("big", LONG_AGO)?;
    }
    plot.patch("file", 0, b"x")?;
    let changed = plot.mtime("file")?;
    let plot = plot.clone();
    from_now_on(move || {
        same("mtime after a write", plot.mtime("file")?, changed)?;
        holds("mtime set after a write", is_old(&plot, "big")?)
    })
}

fn file_stays_when_only_its_attributes_change(plot: &Plot) -> Done<Holds> {
    plot.chmod("file", 0o600)?;
    plot.chown("other", 1, 1)?;
    plot.set_xattr("dir/a", "user.x", b"1")?;
    plot.rename("dir/b", "dir/c")?;
    plot.link("empty", "linked")?;
    drop(plot.open("big", OFlags::RDWR)?);
    let written = plot.open("suid", OFlags::WRONLY)?;
    write_at(&written, 0, b"x")?;
    let set = Timespec { tv_sec: 77, tv_nsec: 88 };
    let times = rustix::fs::Timestamps { last_access: set, last_modification: set };
    call("futimens", rustix::fs::futimens(&written, &times))?;
    drop(written);
    let plot = plot.clone();
    from_now_on(move || {
        for name in ["file", "other", "dir/a", "dir/c", "linked", "big"] {
            holds(&format!("{name} is as old as it was"), is_old(&plot, name)?)?;
        }
        same("set before the close", plot.mtime("suid")?, (77, 88))
    })
}

fn ctime(plot: &Plot, name: &str) -> Done<(i64, i64)> {
    let stat = plot.stat(name)?;
    Ok((stat.st_ctime, i64::try_from(stat.st_ctime_nsec).unwrap_or(-1)))
}

/// Longer than the coarse clock stands still (100 Hz), of which a host dates its changes.
fn tick() {
    std::thread::sleep(std::time::Duration::from_millis(15));
}

fn every_change_of_an_object_moves_its_ctime(plot: &Plot) -> Done<Holds> {
    let steps: [(&str, Step<'_>); 11] = [
        ("file", ("chmod", &|| plot.chmod("file", 0o600))),
        ("file", ("chown", &|| plot.chown("file", 1, 1))),
        ("file", ("setxattr", &|| plot.set_xattr("file", "user.x", b"1"))),
        ("file", ("removexattr", &|| plot.remove_xattr("file", "user.x"))),
        ("file", ("utimensat", &|| plot.set_times("file", LONG_AGO))),
        ("file", ("link", &|| plot.link("file", "linked"))),
        ("file", ("unlink of another name", &|| plot.unlink("linked"))),
        ("file", ("truncate", &|| plot.truncate("file", 2))),
        ("big", ("write", &|| plot.patch("big", 5, b"x"))),
        ("dir2", ("chmod of a directory", &|| plot.chmod("dir2", 0o700))),
        ("symlink", ("chown of a symlink", &|| plot.chown("symlink", 1, 1))),
    ];
    for (name, (what, step)) in steps {
        let before = ctime(plot, name)?;
        tick();
        step()?;
        holds(&format!("{what} moves ctime"), ctime(plot, name)? > before)?;
    }
    nothing_more()
}

fn now() -> Done<i64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let seconds = since.map_err(|_| Failure::new("the clock is before 1970"))?.as_secs();
    Ok(i64::try_from(seconds).unwrap_or(i64::MAX))
}

/// Births are dated by the host's clock, and an emulated guest's runs some seconds apart from it.
const CLOCKS_APART_SECONDS: i64 = 10;

fn new_object_is_of_now(plot: &Plot) -> Done<Holds> {
    let before = now()?;
    plot.create("new", b"x")?;
    plot.mkdir("new_dir")?;
    plot.symlink("x", "new_link")?;
    plot.append("file", b"x")?;
    let after = now()?;
    let plot = plot.clone();
    from_now_on(move || {
        for name in ["new", "new_dir", "new_link", "file"] {
            let mtime = plot.mtime(name)?.0;
            let what = format!("{name} is of {mtime}, between {before} and {after}");
            let now = before - CLOCKS_APART_SECONDS..=after + CLOCKS_APART_SECONDS;
            holds(&what, now.contains(&mtime))?;
        }
        Ok(())
    })
}

fn reading_changes_nothing(plot: &Plot) -> Done<Holds> {
    let before = plot.stat("big")?;
    plot.read("big")?;
    plot.names("dir")?;
    plot.target("symlink")?;
    plot.xattrs("owned")?;
    let after = plot.stat("big")?;
    let facts = |stat: &rustix::fs::Stat| {
        (stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime, stat.st_ctime_nsec, stat.st_size)
    };
    same("big", facts(&after), facts(&before))?;
    holds("dir is as old as it was", is_old(plot, "dir")?)?;
    nothing_more()
}

fn first_read_moves_the_access_time_and_a_copy_up_keeps_it(plot: &Plot) -> Done<Holds> {
    let flags = call("statvfs", rustix::fs::statvfs(plot.at("")))?.f_flag;
    if flags.contains(rustix::fs::StatVfsMountFlags::NOATIME) {
        return Err(Failure::skip("this mount keeps no access times"));
    }
    let atime = |plot: &Plot, name: &str| -> Done<(i64, i64)> {
        let stat = plot.stat(name)?;
        Ok((stat.st_atime, i64::try_from(stat.st_atime_nsec).unwrap_or(-1)))
    };
    let names = ["file", "big", "dir", "symlink"];
    // Who compared the lower with something may have read it since it was changed: that was the
    // first read then.
    let was_read = |name: &&str| -> Done<bool> {
        Ok(atime(plot, name)? > plot.mtime(name)? && atime(plot, name)? > ctime(plot, name)?)
    };
    let was_read = names.iter().map(was_read).collect::<Done<Vec<_>>>()?;
    let mut expected = vec![("other", atime(plot, "other")?)];
    let before = names.iter().map(|name| atime(plot, name)).collect::<Done<Vec<_>>>()?;
    let untouched = plot.open("other", OFlags::RDONLY)?;
    plot.read("file")?;
    super::plot::read_at(plot.open("big", OFlags::RDONLY)?, 200_000, 10)?;
    plot.names("dir")?;
    plot.target("symlink")?;
    for ((name, was_read), before) in names.iter().zip(was_read).zip(before) {
        let now_shown = atime(plot, name)?;
        // Not "just now": a guest's clock may run far apart from the host's, which dates the read.
        let is_right = if was_read { now_shown == before } else { now_shown > before };
        holds(&format!("{name}, read before: {was_read}, is of {now_shown:?}"), is_right)?;
        expected.push((name, now_shown));
    }
    // Nothing was read of it.
    drop(untouched);
    plot.chmod("other", 0o600)?;
    // Copied up for another reason, each takes its time along. Looking into a directory is no read.
    plot.chmod("file", 0o600)?;
    plot.chown("big", 1, 1)?;
    plot.set_xattr("dir", "user.x", b"1")?;
    plot.chown("symlink", 1, 1)?;
    let plot = plot.clone();
    from_now_on(move || {
        plot.stat("dir/a")?;
        expected.iter().try_for_each(|(name, time)| same(name, atime(&plot, name)?, *time))
    })
}
