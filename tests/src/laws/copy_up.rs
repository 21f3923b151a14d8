//! Copy up.

use std::collections::BTreeMap;

use rustix::fs::{FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags};

use super::ground::{BIG_BYTES, DEVICE, SPARSE_BYTES, SPARSE_DATA};
use super::plot::{
    Done, Failure, Holds, LONG_AGO, Plot, call, from_now_on, holds, pattern, read_all, same,
    stat_of, write_at,
};
use crate::disk::give_back_room;

super::laws! {
    22 => copy_up_keeps_every_attribute;
    22 => copy_up_of_a_directory_keeps_every_attribute;
    22 => copy_up_keeps_content_of_every_size with sizes;
    22 => copy_up_keeps_holes with small_and_sparse;
    23 => object_of_every_kind_is_copied_up_as_what_it_is;
    24 => writers_at_once_lose_nothing;
    24 => writers_of_different_files_lose_nothing with sizes;
    25 => reader_from_before_sees_every_later_change;
    26 => descriptor_opened_for_reading_changes_attributes;
}

/// Everything that can be seen of an object, by what it is called.
type Seen = BTreeMap<String, String>;

fn seen(plot: &Plot, name: &str) -> Done<Seen> {
    let stat = plot.stat(name)?;
    let mut seen = Seen::from([
        ("number".to_owned(), stat.st_ino.to_string()),
        ("mode".to_owned(), format!("{:o}", stat.st_mode)),
        ("owner".to_owned(), stat.st_uid.to_string()),
        ("group".to_owned(), stat.st_gid.to_string()),
        ("links".to_owned(), stat.st_nlink.to_string()),
        ("rdev".to_owned(), stat.st_rdev.to_string()),
        ("mtime".to_owned(), format!("{:?}", plot.mtime(name)?)),
    ]);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            seen.insert("size".to_owned(), stat.st_size.to_string());
            seen.insert("content".to_owned(), format!("{:?}", plot.read(name)?));
        }
        FileType::Symlink => {
            seen.insert("target".to_owned(), plot.target(name)?);
        }
        _ => {}
    }
    for key in plot.xattrs(name)? {
        seen.insert(key.clone(), format!("{:?}", plot.xattr(name, &key)?));
    }
    Ok(seen)
}

/// Makes `change`, which must change what `changed` names and nothing else.
fn changes_only(plot: &Plot, name: &str, changed: &[&str], change: impl FnOnce() -> Done) -> Done {
    let mut before = seen(plot, name)?;
    change()?;
    let mut after = seen(plot, name)?;
    for key in changed {
        let pair = (before.remove(*key), after.remove(*key));
        holds(&format!("{key} changes"), pair.0 != pair.1)?;
    }
    same(&format!("what stays after changing {changed:?}"), after, before)
}

fn copy_up_keeps_every_attribute(plot: &Plot) -> Done<Holds> {
    // The first change is the one that copies up: each on an object of its own.
    changes_only(plot, "owned", &["mode", "system.posix_acl_access"], || {
        plot.chmod("owned", 0o604)
    })?;
    changes_only(plot, "other", &["user.x"], || plot.set_xattr("other", "user.x", b"1"))?;
    changes_only(plot, "file", &["owner"], || plot.chown("file", 9, 0))?;
    changes_only(plot, "empty", &["links"], || plot.link("empty", "linked"))?;
    changes_only(plot, "dir/a", &["content", "size", "mtime"], || plot.append("dir/a", b"!"))?;
    changes_only(plot, "private", &["mtime"], || {
        plot.set_times("private", Timespec { tv_sec: 7, tv_nsec: 8 })
    })?;
    changes_only(plot, "suid", &["group", "mode"], || plot.chown("suid", 1000, 5))?;
    changes_only(plot, "capable", &["mode"], || plot.chmod("capable", 0o700))?;
    changes_only(plot, "hard/a", &["user.x"], || plot.set_xattr("hard/a", "user.x", b"1"))?;
    changes_only(plot, "dangling", &["mtime"], || {
        plot.set_times("dangling", Timespec { tv_sec: 7, tv_nsec: 8 })
    })?;
    let names =
        ["owned", "other", "file", "empty", "dir/a", "private", "suid", "capable", "dangling"];
    let now = names.iter().map(|name| seen(plot, name)).collect::<Done<Vec<_>>>()?;
    let plot = plot.clone();
    from_now_on(move || {
        for (name, now) in names.iter().zip(&now) {
            same(name, &seen(&plot, name)?, now)?;
        }
        Ok(())
    })
}

fn copy_up_of_a_directory_keeps_every_attribute(plot: &Plot) -> Done<Holds> {
    changes_only(plot, "marked_dir", &["mtime"], || plot.create("marked_dir/new", b""))?;
    changes_only(plot, "acl", &["owner"], || plot.chown("acl", 9, 0))?;
    changes_only(plot, "setgid", &["user.x"], || plot.set_xattr("setgid", "user.x", b"1"))?;
    changes_only(plot, "sticky", &["mode"], || plot.chmod("sticky", 0o1770))?;
    // A directory copied up for the sake of what is below it does not change at all.
    changes_only(plot, "dir", &[], || plot.chmod("dir/sub/deeper/d", 0o600))?;
    changes_only(plot, "dir2", &[], || plot.create("dir2/sub/new", b""))?;
    let names = ["marked_dir", "acl", "setgid", "sticky", "dir", "dir/sub", "dir2"];
    let now = names.iter().map(|name| seen(plot, name)).collect::<Done<Vec<_>>>()?;
    let plot = plot.clone();
    from_now_on(move || {
        for (name, now) in names.iter().zip(&now) {
            same(name, &seen(&plot, name)?, now)?;
        }
        Ok(())
    })
}

/// Around what one block, one copy or one map can hold.
const SIZES: [usize; 9] = [1, 4095, 4096, 4097, 131_071, 131_072, 131_073, 1 << 20, (1 << 20) + 1];

fn sizes(plot: &Plot) -> Done {
    plot.mkdir("sizes")?;
    SIZES.iter().try_for_each(|size| plot.create(format!("sizes/{size}"), &pattern(*size)))
}

fn copy_up_keeps_content_of_every_size(plot: &Plot) -> Done<Holds> {
    let mut expected = Vec::new();
    for size in SIZES {
        let name = format!("sizes/{size}");
        let mut content = pattern(size);
        let at = size / 2;
        plot.patch(&name, u64::try_from(at).unwrap_or(0), b"Z")?;
        content[at] = b'Z';
        plot.append(&name, b"end")?;
        content.extend_from_slice(b"end");
        expected.push((name, content));
    }
    let plot = plot.clone();
    from_now_on(move || {
        expected.iter().try_for_each(|(name, content)| same(name, &plot.read(name)?, content))
    })
}

/// Small enough to be copied whole.
const SMALL_SPARSE_BYTES: u64 = 120_000;

fn small_and_sparse(plot: &Plot) -> Done {
    plot.create("small_sparse", b"begin")?;
    plot.truncate("small_sparse", SMALL_SPARSE_BYTES)
}

fn copy_up_keeps_holes(plot: &Plot) -> Done<Holds> {
    plot.chmod("small_sparse", 0o600)?;
    let small = plot.open("small_sparse", OFlags::RDWR)?;
    write_at(&small, 2, b"G")?;
    call("fsync", rustix::fs::fsync(&small))?;
    let blocks = plot.stat("sparse")?.st_blocks;
    let mut content = vec![0; usize::try_from(SPARSE_BYTES).unwrap_or(0)];
    let start = usize::try_from(SPARSE_DATA.0).unwrap_or(0);
    content[start..start + SPARSE_DATA.1].copy_from_slice(&pattern(SPARSE_DATA.1));
    plot.patch("sparse", 0, b"X")?;
    content[0] = b'X';
    let file = plot.open("sparse", OFlags::RDONLY)?;
    call("fsync", rustix::fs::fsync(&file))?;
    let plot = plot.clone();
    from_now_on(move || {
        give_back_room().map_err(Failure::new)?;
        same("content", &plot.read("sparse")?, &content)?;
        let blocks_of_small = plot.stat("small_sparse")?.st_blocks;
        holds(&format!("a small one's stay: {blocks_of_small}"), blocks_of_small <= 64)?;
        // One block more was written; file systems may round up a little.
        let now = plot.stat("sparse")?.st_blocks;
        holds(&format!("holes stay: {blocks} blocks, then {now}"), now <= blocks + 64)
    })
}

fn object_of_every_kind_is_copied_up_as_what_it_is(plot: &Plot) -> Done<Holds> {
    let device = rustix::fs::makedev(DEVICE.0, DEVICE.1);
    let rows = [
        ("fifo", FileType::Fifo, 0),
        ("socket", FileType::Socket, 0),
        ("device", FileType::CharacterDevice, device),
        ("disk", FileType::BlockDevice, device),
        ("zero", FileType::CharacterDevice, 0),
    ];
    for (name, _, _) in rows {
        changes_only(plot, name, &["mode"], || plot.chmod(name, 0o751))?;
        changes_only(plot, name, &["owner", "group"], || plot.chown(name, 8, 9))?;
    }
    changes_only(plot, "symlink", &["owner"], || plot.chown("symlink", 8, 0))?;
    changes_only(plot, "dangling", &["trusted.x"], || {
        plot.set_xattr("dangling", "trusted.x", b"1")
    })?;
    let plot = plot.clone();
    from_now_on(move || {
        for (name, kind, rdev) in rows {
            let stat = plot.stat(name)?;
            let found = (FileType::from_raw_mode(stat.st_mode), stat.st_rdev, stat.st_uid);
            same(name, found, (kind, rdev, 8))?;
            same(name, (stat.st_mode & 0o7777, plot.mtime(name)?.0), (0o751, LONG_AGO.tv_sec))?;
        }
        same("symlink", plot.target("symlink")?, "file")?;
        same("symlink", plot.stat("symlink")?.st_uid, 8_u32)?;
        same("dangling", plot.target("dangling")?, "nowhere")
    })
}

const WRITERS: usize = 8;

fn in_threads(run: impl Fn(usize) -> Done + Sync) -> Done {
    std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (0..WRITERS).map(|n| scope.spawn(move || run(n))).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(Failure::new("a writer panicked")))
        })
    })
}

fn writers_at_once_lose_nothing(plot: &Plot) -> Done<Holds> {
    let step = BIG_BYTES / WRITERS;
    in_threads(|n| {
        let mark = [b'A' + u8::try_from(n).unwrap_or(0); 100];
        plot.patch("big", u64::try_from(n * step).unwrap_or(0), &mark)?;
        plot.append("file", &[b'A' + u8::try_from(n).unwrap_or(0)])?;
        plot.set_xattr("big", &format!("user.{n}"), b"1")
    })?;
    let mut expected = pattern(BIG_BYTES);
    for n in 0..WRITERS {
        expected[n * step..n * step + 100].fill(b'A' + u8::try_from(n).unwrap_or(0));
    }
    let plot = plot.clone();
    from_now_on(move || {
        same("content", &plot.read("big")?, &expected)?;
        same("xattrs", plot.xattrs("big")?.len(), WRITERS)?;
        let mut appended = plot.read("file")?;
        appended.sort_unstable();
        same("appended", appended, b"\nABCDEFGHelorw")
    })
}

fn writers_of_different_files_lose_nothing(plot: &Plot) -> Done<Holds> {
    in_threads(|n| {
        plot.patch(format!("sizes/{}", SIZES[n + 1]), 7, b"seven")?;
        plot.create(format!("dir/sub/deeper/{n}"), b"new")?;
        plot.chmod("dir/sub/deeper", 0o700)
    })?;
    let plot = plot.clone();
    from_now_on(move || {
        for size in &SIZES[1..] {
            let mut content = pattern(*size);
            content[7..12].copy_from_slice(b"seven");
            same("content", &plot.read(format!("sizes/{size}"))?, &content)?;
        }
        same("names", plot.names("dir/sub/deeper")?.len(), WRITERS + 1)
    })
}

fn reader_from_before_sees_every_later_change(plot: &Plot) -> Done<Holds> {
    let reader = plot.open("big", OFlags::RDONLY)?;
    let small = plot.open("file", OFlags::RDONLY)?;
    let mut content = pattern(BIG_BYTES);
    same("content", &read_all(&reader)?, &content)?;
    plot.patch("big", 100_000, b"changed")?;
    content[100_000..100_007].copy_from_slice(b"changed");
    same("content after a write", &read_all(&reader)?, &content)?;
    plot.truncate("big", 200_000)?;
    content.truncate(200_000);
    same("content after truncate", &read_all(&reader)?, &content)?;
    plot.append("big", b"tail")?;
    content.extend_from_slice(b"tail");
    same("content after append", &read_all(&reader)?, &content)?;
    plot.chmod("big", 0o600)?;
    plot.chown("big", 1, 2)?;
    let stat = stat_of(&reader)?;
    same("attributes", (stat.st_mode & 0o777, stat.st_uid, stat.st_gid), (0o600, 1, 2))?;
    same("size", stat.st_size, 200_004)?;
    plot.write("file", b"replaced")?;
    same("content after O_TRUNC", read_all(&small)?, b"replaced")?;
    let plot = plot.clone();
    from_now_on(move || same("content", &plot.read("big")?, &content))
}

fn descriptor_opened_for_reading_changes_attributes(plot: &Plot) -> Done<Holds> {
    let file = plot.open("file", OFlags::RDONLY)?;
    call("fchmod", rustix::fs::fchmod(&file, Mode::from_raw_mode(0o600)))?;
    let (uid, gid) = (rustix::fs::Uid::from_raw(3), rustix::fs::Gid::from_raw(4));
    call("fchown", rustix::fs::fchown(&file, Some(uid), Some(gid)))?;
    let times =
        Timestamps { last_access: LONG_AGO, last_modification: Timespec { tv_sec: 5, tv_nsec: 6 } };
    call("futimens", rustix::fs::futimens(&file, &times))?;
    call("fsetxattr", rustix::fs::fsetxattr(&file, "user.x", b"1", XattrFlags::empty()))?;
    call("fsync", rustix::fs::fsync(&file))?;
    let writer = super::plot::open_again(&file, OFlags::RDWR)?;
    write_at(&writer, 0, b"L")?;
    same("content", read_all(&file)?, b"Lower\n")?;
    let directory = plot.open("dir", OFlags::RDONLY | OFlags::DIRECTORY)?;
    call("fchmod", rustix::fs::fchmod(&directory, Mode::from_raw_mode(0o700)))?;
    call("fsync", rustix::fs::fsync(&directory))?;
    let plot = plot.clone();
    from_now_on(move || {
        let stat = plot.stat("file")?;
        same("attributes", (stat.st_mode & 0o777, stat.st_uid, stat.st_gid), (0o600, 3, 4))?;
        same("xattr", plot.xattr("file", "user.x")?, b"1")?;
        same("mode", plot.mode("dir")?, 0o700_u32)
    })
}
