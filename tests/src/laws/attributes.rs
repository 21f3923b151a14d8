//! Attributes.

use rustix::fs::{AtFlags, CWD, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

use super::plot::{Done, Holds, LONG_AGO, Plot, call, from_now_on, holds, refused, same};

super::laws! {
    34 => changed_attributes_last;
    34 => owner_above_65535_lasts;
    34 => times_last_to_the_nanosecond;
    34 => omitted_time_stays;
    34 => root_of_a_directory_is_a_directory_like_any_other;
}

fn changed_attributes_last(plot: &Plot) -> Done<Holds> {
    let names = ["file", "dir", "empty_dir", "fifo", "executable"];
    for (n, name) in (1_u32..).zip(names) {
        plot.chmod(name, 0o7000 + n)?;
        plot.chown(name, n, 100 + n)?;
        plot.chmod(name, 0o7000 + n)?;
    }
    let plot = plot.clone();
    from_now_on(move || {
        for (n, name) in (1_u32..).zip(names) {
            let stat = plot.stat(name)?;
            let found = (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid);
            same(name, found, (0o7000 + n, n, 100 + n))?;
        }
        Ok(())
    })
}

fn owner_above_65535_lasts(plot: &Plot) -> Done<Holds> {
    plot.chown("file", 0x1234_5678, 0xffff_fffe)?;
    plot.create("new", b"")?;
    plot.chown("new", 100_000, 65_536)?;
    let plot = plot.clone();
    from_now_on(move || {
        let owner = |name| plot.stat(name).map(|stat| (stat.st_uid, stat.st_gid));
        same("file", owner("file")?, (0x1234_5678, 0xffff_fffe))?;
        same("new", owner("new")?, (100_000, 65_536))
    })
}

fn times_last_to_the_nanosecond(plot: &Plot) -> Done<Holds> {
    let rows = [
        ("file", 1_600_000_000, 987_654_321),
        ("dir", 1, 1),
        ("empty", 0, 0),
        ("other", -1_000_000, 5),
        ("symlink", 1_700_000_000, 999_999_999),
        // After 2038.
        ("fifo", 5_000_000_000, 7),
    ];
    for (name, tv_sec, tv_nsec) in rows {
        plot.set_times(name, Timespec { tv_sec, tv_nsec })?;
    }
    let plot = plot.clone();
    from_now_on(move || {
        rows.iter().try_for_each(|(name, seconds, nanoseconds)| {
            same(name, plot.mtime(name)?, (*seconds, *nanoseconds))
        })
    })
}

fn omitted_time_stays(plot: &Plot) -> Done<Holds> {
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let five = Timespec { tv_sec: 5, tv_nsec: 5 };
    let set = |name: &str, last_access, last_modification| {
        let times = Timestamps { last_access, last_modification };
        call("utimensat", rustix::fs::utimensat(CWD, plot.at(name), &times, AtFlags::empty()))
    };
    set("file", five, omit)?;
    same("mtime omitted", plot.mtime("file")?.0, LONG_AGO.tv_sec)?;
    same("atime", plot.stat("file")?.st_atime, 5)?;
    set("other", omit, five)?;
    same("mtime", plot.mtime("other")?, (5, 5))?;
    set("dir", five, now)?;
    holds("now is later", plot.mtime("dir")?.0 > LONG_AGO.tv_sec)?;
    let plot = plot.clone();
    from_now_on(move || {
        same("file", plot.mtime("file")?.0, LONG_AGO.tv_sec)?;
        same("other", plot.mtime("other")?, (5, 5))
    })
}

fn root_of_a_directory_is_a_directory_like_any_other(plot: &Plot) -> Done<Holds> {
    plot.chmod("", 0o751)?;
    plot.chown("", 3, 4)?;
    plot.set_xattr("", "user.x", b"1")?;
    let open = plot.open("", OFlags::RDONLY | OFlags::DIRECTORY)?;
    call("fsync", rustix::fs::fsync(&open))?;
    refused("rmdir", plot.rmdir(""), rustix::io::Errno::NOTEMPTY)?;
    let plot = plot.clone();
    from_now_on(move || {
        let stat = plot.stat("")?;
        same("root", (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid), (0o751, 3, 4))?;
        same("xattr", plot.xattr("", "user.x")?, b"1")
    })
}
