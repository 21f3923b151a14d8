//! Descriptors and mappings from before: what they see and what may be done through them.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, Timespec, Timestamps, XattrFlags};

use super::ground::BIG_BYTES;
use super::plot::{
    Done, Holds, LONG_AGO, Plot, call, from_now_on, nothing_more, open_again, pattern, read_all,
    same, stat_of, write_at,
};
use super::raw::Mapping;

super::laws! {
    25 => mapping_from_before_sees_every_later_change;
    25 => mapping_sees_writes_after_its_name_is_gone;
    25 => writes_through_a_mapping_are_read_and_last;
    26 => descriptor_of_a_file_without_a_name_changes_it;
    15 => replaced_file_is_opened_again_through_its_descriptor;
}

fn mapping_from_before_sees_every_later_change(plot: &Plot) -> Done<Holds> {
    let big = Mapping::new(&plot.open("big", OFlags::RDONLY)?, BIG_BYTES, false)?;
    let small = Mapping::new(&plot.open("file", OFlags::RDONLY)?, 6, false)?;
    let linked = Mapping::new(&plot.open("hard/b", OFlags::RDONLY)?, 7, false)?;
    let mut content = pattern(BIG_BYTES);
    same("big at first", &big.read(0, BIG_BYTES)?, &content)?;
    same("small at first", small.read(0, 6)?, b"lower\n")?;
    plot.patch("big", 100_000, b"changed")?;
    content[100_000..100_007].copy_from_slice(b"changed");
    plot.patch("file", 1, b"OWE")?;
    plot.patch("hard/far/c", 0, b"L")?;
    same("big after a write", &big.read(0, BIG_BYTES)?, &content)?;
    same("small after a write", small.read(0, 6)?, b"lOWEr\n")?;
    same("a hard link after a write", linked.read(0, 7)?, b"Linked\n")?;
    plot.truncate("big", 200_000)?;
    plot.truncate("big", u64::try_from(BIG_BYTES).unwrap_or(0))?;
    content[200_000..].fill(0);
    same("big after two truncates", &big.read(0, BIG_BYTES)?, &content)?;
    plot.patch("big", 250_000, b"again")?;
    content[250_000..250_005].copy_from_slice(b"again");
    same("big after another write", &big.read(0, BIG_BYTES)?, &content)?;
    let plot = plot.clone();
    from_now_on(move || same("big", &plot.read("big")?, &content))
}

fn mapping_sees_writes_after_its_name_is_gone(plot: &Plot) -> Done<Holds> {
    let removed = plot.open("big", OFlags::RDWR)?;
    let replaced = plot.open("file", OFlags::RDWR)?;
    let mappings = (Mapping::new(&removed, 8192, false)?, Mapping::new(&replaced, 6, false)?);
    same("big at first", mappings.0.read(0, 8192)?, pattern(8192))?;
    plot.unlink("big")?;
    plot.rename("other", "file")?;
    write_at(&removed, 5000, b"changed")?;
    write_at(&replaced, 0, b"L")?;
    same("what was removed", mappings.0.read(5000, 7)?, b"changed")?;
    same("what was replaced", mappings.1.read(0, 6)?, b"Lower\n")?;
    nothing_more()
}

fn writes_through_a_mapping_are_read_and_last(plot: &Plot) -> Done<Holds> {
    let mut content = pattern(BIG_BYTES);
    let reader = plot.open("big", OFlags::RDONLY)?;
    let writer = plot.open("big", OFlags::RDWR)?;
    let mapping = Mapping::new(&writer, BIG_BYTES, true)?;
    mapping.write(150_000, b"mapped")?;
    content[150_000..150_006].copy_from_slice(b"mapped");
    same("through a descriptor from before", &read_all(&reader)?, &content)?;
    mapping.sync()?;
    plot.append("big", b"end")?;
    content.extend_from_slice(b"end");
    mapping.write(0, b"M")?;
    content[0] = b'M';
    drop(mapping);
    let plot = plot.clone();
    from_now_on(move || same("big", &plot.read("big")?, &content))
}

/// Takes a name away.
type Loss = fn(&Plot) -> Done;

fn descriptor_of_a_file_without_a_name_changes_it(plot: &Plot) -> Done<Holds> {
    plot.create("new", b"new\n")?;
    let rows: [(&str, Loss); 7] = [
        ("file", |plot| plot.unlink("file")),
        ("other", |plot| plot.rename("empty", "other")),
        ("big", |plot| plot.unlink("big")),
        ("new", |plot| plot.unlink("new")),
        ("private", |plot| plot.append("private", b"").and_then(|()| plot.unlink("private"))),
        ("dir/a", |plot| plot.rename("dir/b", "dir/a")),
        ("hard/a", |plot| {
            ["hard/b", "hard/far/c", "hard/a"].iter().try_for_each(|name| plot.unlink(name))
        }),
    ];
    for (name, lose) in rows {
        let content = plot.read(name)?;
        let file = plot.open(name, OFlags::RDONLY)?;
        lose(plot)?;
        change_all_of(&file, &content).map_err(|failure| super::plot::Failure {
            text: format!("{name}: {}", failure.text),
            ..failure
        })?;
    }
    nothing_more()
}

/// Through a descriptor opened for reading, whose file has no name any more.
fn change_all_of(file: &OwnedFd, content: &[u8]) -> Done {
    call("fchmod", rustix::fs::fchmod(file, Mode::from_raw_mode(0o604)))?;
    let (uid, gid) = (rustix::fs::Uid::from_raw(3), rustix::fs::Gid::from_raw(4));
    call("fchown", rustix::fs::fchown(file, Some(uid), Some(gid)))?;
    call("fsetxattr", rustix::fs::fsetxattr(file, "user.x", b"1", XattrFlags::empty()))?;
    let times =
        Timestamps { last_access: LONG_AGO, last_modification: Timespec { tv_sec: 5, tv_nsec: 6 } };
    call("futimens", rustix::fs::futimens(file, &times))?;
    call("fsync", rustix::fs::fsync(file))?;
    let stat = stat_of(file)?;
    let seen = (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid, stat.st_nlink);
    same("attributes", seen, (0o604, 3, 4, 0_u64))?;
    same("mtime", (stat.st_mtime, stat.st_mtime_nsec), (5, 6))?;
    let mut value = [0; 8];
    let length = call("fgetxattr", rustix::fs::fgetxattr(file, "user.x", &mut value[..]))?;
    same("xattr", &value[..length], b"1")?;
    same("content", &read_all(file)?, content)?;
    let writer = open_again(file, OFlags::RDWR)?;
    write_at(&writer, 1, b"#")?;
    call("fdatasync", rustix::fs::fdatasync(file))?;
    let mut content = content.to_vec();
    content[1] = b'#';
    same("content", &read_all(file)?, &content)
}

fn replaced_file_is_opened_again_through_its_descriptor(plot: &Plot) -> Done<Holds> {
    for (name, over) in [("file", "other"), ("dir/a", "big"), ("dir/b", "hard/b")] {
        let held = plot.open(over, OFlags::RDONLY)?;
        let content = read_all(&held)?;
        plot.rename(name, over)?;
        let again = open_again(&held, OFlags::RDONLY)?;
        same(over, &read_all(&again)?, &content)?;
        let writer = open_again(&held, OFlags::RDWR)?;
        write_at(&writer, 0, b"#")?;
        same(over, &read_all(&again)?[1..], &content[1..])?;
        same(over, stat_of(&again)?.st_ino, stat_of(&held)?.st_ino)?;
    }
    let plot = plot.clone();
    from_now_on(move || {
        same("other", plot.read("other")?, b"lower\n")?;
        same("big", plot.read("big")?, b"dir/a")?;
        same("hard/a", plot.read("hard/a")?, b"#inked\n")
    })
}
