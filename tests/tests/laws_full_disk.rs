//! Laws on a disk that is full: what still works, and when the others say that they do not.
#![allow(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::path::Path;

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;
use tests::disk::Disk;
use tests::laws::ground;
use tests::laws::plot::{Done, Plot, call, pattern, write_at};
use tests::mount::{Site, may_mount};
use tests::skip::skip;

/// A site on a small disk of its own, its lower laid out.
fn small(test: &str, lay_out: fn(&Plot) -> Done) -> Option<(Disk, Site)> {
    if !may_mount(test) {
        return None;
    }
    let disk = match Disk::small("ext4") {
        Ok(disk) => disk,
        Err(problem) => {
            skip(test, &problem);
            return None;
        }
    };
    let site = Site::inside(&disk.path());
    let lower = Plot::new(site.lower());
    lay_out(&lower).unwrap();
    ground::age(&lower, Path::new("")).unwrap();
    Some((disk, site))
}

const BRANCHES: usize = 60;

/// Directories that have to be copied up to hold a whiteout.
fn tree(lower: &Plot) -> Done {
    lower.create("file", b"file")?;
    lower.mkdir("tree")?;
    lower.mkdir("dir")?;
    for n in 0..BRANCHES {
        lower.mkdir(format!("tree/{n}"))?;
        lower.mkdir(format!("tree/{n}/deeper"))?;
        lower.create(format!("tree/{n}/deeper/file"), b"file")?;
        lower.create(format!("tree/{n}/stays"), b"stays")?;
    }
    lower.create("linked", b"linked")?;
    lower.link("linked", "dir/linked")
}

#[test]
fn names_are_removed_on_a_full_disk() {
    let Some((disk, site)) = small("names_are_removed_on_a_full_disk", tree) else { return };
    let plot = Plot::new(site.point());
    let mount = site.mount(&[]);
    plot.create("new", b"new").unwrap();
    disk.fill(0).unwrap();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::DIRECT;
    let full = plot.open("dir/too much", flags).and_then(|it| write_at(&it, 0, &pattern(100_000)));
    let full = full.err().and_then(|it| it.errno);
    assert_eq!(full, Some(Errno::NOSPC), "the disk is full");
    for name in ["file", "linked"] {
        plot.unlink(name).unwrap();
    }
    plot.remove_tree("tree/0").unwrap();
    for n in 1..BRANCHES {
        plot.unlink(format!("tree/{n}/deeper/file")).unwrap();
        plot.rmdir(format!("tree/{n}/deeper")).unwrap();
    }
    plot.unlink("new").unwrap();
    let look = || {
        for name in ["file", "linked", "tree/0", "new"] {
            plot.is_missing(name).unwrap();
        }
        for n in 1..BRANCHES {
            plot.names_are(format!("tree/{n}"), &["stays"]).unwrap();
        }
        assert_eq!(plot.read("dir/linked").unwrap(), b"linked");
    };
    look();
    mount.unmount();
    let mount = site.mount(&[]);
    look();
    plot.remove_tree("tree").unwrap();
    mount.unmount();
}

#[test]
fn guest_with_a_full_disk_starts_again_and_removes() {
    let test = "guest_with_a_full_disk_starts_again_and_removes";
    let Some((disk, site)) = small(test, tree) else { return };
    let plot = Plot::new(site.point());
    let mount = site.mount(&[]);
    plot.create("new", b"new").unwrap();
    mount.unmount();
    disk.fill(0).unwrap();
    // A block may be left that a file could not have.
    let takes = |n: u32| std::fs::create_dir(disk.path().join(format!("filler-{n}"))).is_ok();
    assert!((0..64).any(|n| !takes(n)), "the disk is full");
    for name in ["file", "linked"] {
        let mount = site.mount(&[]);
        plot.unlink(name).unwrap();
        plot.is_missing(name).unwrap();
        mount.unmount();
    }
}

const FILES: u64 = 24;

/// Larger than what is copied whole.
fn large(lower: &Plot) -> Done {
    (0..FILES).try_for_each(|n| lower.create(format!("{n}"), &pattern(ground::BIG_BYTES)))
}

/// From not enough for anything to enough, block by block: there is no room at which a write is
/// taken and its sync is not.
#[test]
fn full_disk_is_told_by_the_write_not_by_the_sync() {
    let test = "full_disk_is_told_by_the_write_not_by_the_sync";
    let Some((disk, site)) = small(test, large) else { return };
    let plot = Plot::new(site.point());
    let mount = site.mount(&[]);
    let mut taken = 0;
    for n in 0..FILES {
        let block = rustix::fs::statvfs(disk.path().as_path()).unwrap().f_frsize;
        disk.fill(n * block).unwrap();
        let Ok(file) = plot.open(n.to_string(), OFlags::WRONLY | OFlags::DIRECT) else { continue };
        match write_at(&file, 200_000, b"written") {
            Ok(()) => {
                let synced = call("fsync", rustix::fs::fsync(&file));
                assert!(synced.is_ok(), "with {n} blocks: {synced:?}");
                taken += 1;
            }
            Err(failure) => assert_eq!(failure.errno, Some(Errno::NOSPC), "with {n} blocks"),
        }
    }
    assert!(0 < taken && taken < FILES, "{taken} of {FILES} writes were taken");
    mount.unmount();
    let mount = site.mount(&[]);
    for n in 0..FILES {
        let mut content = pattern(ground::BIG_BYTES);
        let found = plot.read(n.to_string()).unwrap();
        if found != content {
            content[200_000..200_007].copy_from_slice(b"written");
            assert!(found == content, "{n} is neither the old file nor the new one");
        }
    }
    mount.unmount();
}

/// A write at the end of what falls through, of which the disk has room for a part: it says how much
/// it took, and what it refused makes no file longer.
#[test]
fn append_tells_how_much_a_full_disk_took() {
    let test = "append_tells_how_much_a_full_disk_took";
    let Some((disk, site)) = small(test, large) else { return };
    let plot = Plot::new(site.point());
    let mount = site.mount(&[]);
    let added = vec![b'+'; 128 << 10];
    let mut expected = Vec::new();
    for n in 0..FILES {
        let block = rustix::fs::statvfs(disk.path().as_path()).unwrap().f_frsize;
        disk.fill(n * 8 * block).unwrap();
        let mut content = pattern(ground::BIG_BYTES);
        if let Ok(file) = plot.open(n.to_string(), OFlags::WRONLY | OFlags::DIRECT)
            && let Ok(taken) = rustix::io::pwrite(&file, &added, ground::BIG_BYTES as u64)
        {
            content.extend(&added[..taken]);
        }
        expected.push(content);
    }
    let taken = |content: &Vec<u8>| content.len() - ground::BIG_BYTES;
    let part = expected.iter().filter(|it| (1..added.len()).contains(&taken(it))).count();
    mount.unmount();
    let mount = site.mount(&[]);
    for (n, content) in expected.iter().enumerate() {
        let found = plot.read(n.to_string()).unwrap();
        assert_eq!(found.len() - ground::BIG_BYTES, taken(content), "{n} grew by what was taken");
        assert!(found == *content, "{n} holds what was taken");
    }
    assert!(part > 0, "no write was taken in part");
    mount.unmount();
}

/// Far more than there is room for a second time.
const GREAT_BYTES: usize = 14 << 20;

fn great(lower: &Plot) -> Done {
    lower.create("great", &pattern(GREAT_BYTES))
}

#[test]
fn hole_in_a_great_file_needs_no_room_for_it() {
    let test = "hole_in_a_great_file_needs_no_room_for_it";
    let Some((disk, site)) = small(test, great) else { return };
    let plot = Plot::new(site.point());
    let mount = site.mount(&[]);
    disk.fill(1 << 20).unwrap();
    let file = plot.open("great", OFlags::RDWR).unwrap();
    write_at(&file, 3 << 20, b"written").unwrap();
    let mut content = pattern(GREAT_BYTES);
    content[3 << 20..][..7].copy_from_slice(b"written");
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let rows = [("punch", punch, 4096, 4096), ("zero", FallocateFlags::ZERO_RANGE, 9_000_000, 77)];
    for (what, flags, offset, size) in rows {
        call(what, rustix::fs::fallocate(&file, flags, offset, size)).unwrap();
        content[usize::try_from(offset).unwrap()..][..usize::try_from(size).unwrap()].fill(0);
    }
    call("fsync", rustix::fs::fsync(&file)).unwrap();
    drop(file);
    assert!(plot.read("great").unwrap() == content);
    mount.unmount();
    let mount = site.mount(&[]);
    assert!(plot.read("great").unwrap() == content, "remounted");
    mount.unmount();
}
