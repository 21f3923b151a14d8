//! File data.

use std::os::fd::OwnedFd;

use rustix::fs::{FallocateFlags, FlockOperation, OFlags, SeekFrom};
use rustix::io::Errno;

use super::ground::{BIG_BYTES, SPARSE_BYTES, SPARSE_DATA};
use super::plot::{
    Done, Failure, Holds, Plot, call, from_now_on, holds, nothing_more, pattern, read_all, read_at,
    refused, same, stat_of, write_at,
};

super::laws! {
    38 => write_anywhere_reads_back;
    38 => truncate_cuts_and_grows_with_zeros;
    38 => two_appenders_never_overwrite;
    38 => read_ends_at_the_end;
    38 => file_of_a_tebibyte_is_sparse;
    39 => allocation_changes_size_as_asked;
    39 => punched_and_zeroed_ranges_read_zeros;
    39 => seek_finds_data_and_holes;
    39 => data_not_yet_written_back_is_no_hole;
    40 => ranges_are_copied_between_any_two_files;
    41 => sync_of_everything_succeeds;
    41 => statistics_are_those_of_a_disk;
    41 => locks_exclude_each_other;
    41 => running_program_cannot_be_written with program;
    38 => direct_reads_and_writes_agree_with_cached_ones;
}

fn write_anywhere_reads_back(plot: &Plot) -> Done<Holds> {
    let mut content = pattern(BIG_BYTES);
    let spots = [(0, 1), (4095, 2), (8192, 4096), (131_071, 3), (299_999, 2), (200_000, 70_000)];
    for (n, (offset, length)) in spots.into_iter().enumerate() {
        let bytes = vec![b'a' + u8::try_from(n).unwrap_or(0); length];
        plot.patch("big", u64::try_from(offset).unwrap_or(0), &bytes)?;
        content[offset..offset + length].copy_from_slice(&bytes);
    }
    let far = BIG_BYTES + 100_000;
    plot.patch("big", u64::try_from(far).unwrap_or(0), b"far")?;
    content.resize(far, 0);
    content.extend_from_slice(b"far");
    same("right away", &plot.read("big")?, &content)?;
    let large = pattern(3 << 20);
    plot.create("new", &large)?;
    let plot = plot.clone();
    from_now_on(move || {
        same("big", &plot.read("big")?, &content)?;
        same("new", &plot.read("new")?, &large)
    })
}

fn truncate_cuts_and_grows_with_zeros(plot: &Plot) -> Done<Holds> {
    // A file that is in the upper already, in part.
    plot.patch("big", 250_000, b"x")?;
    plot.truncate("big", 200_000)?;
    plot.truncate("big", BIG_BYTES as u64)?;
    let mut content = pattern(200_000);
    content.resize(BIG_BYTES, 0);
    same("big, cut and grown", &plot.read("big")?, &content)?;
    plot.truncate("big", 1000)?;
    plot.truncate("big", 9000)?;
    let mut content = pattern(1000);
    content.resize(9000, 0);
    same("big", &plot.read("big")?, &content)?;
    plot.truncate("file", 0)?;
    plot.truncate("other", 10_000)?;
    plot.truncate("sparse", SPARSE_DATA.0 + 10)?;
    plot.write("empty", b"no more")?;
    plot.write("dir/a", b"")?;
    let plot = plot.clone();
    from_now_on(move || {
        same("big", &plot.read("big")?, &content)?;
        same("file", plot.read("file")?, b"")?;
        let other = plot.read("other")?;
        same("other", &other[..7], b"other\n\0")?;
        holds("zeros", other.len() == 10_000 && other[6..].iter().all(|byte| *byte == 0))?;
        let start = usize::try_from(SPARSE_DATA.0).unwrap_or(0);
        same("sparse", &plot.read("sparse")?[start..], &pattern(10)[..])?;
        same("empty", plot.read("empty")?, b"no more")?;
        same("dir/a", plot.read("dir/a")?, b"")
    })
}

fn two_appenders_never_overwrite(plot: &Plot) -> Done<Holds> {
    let open = || plot.open("file", OFlags::WRONLY | OFlags::APPEND);
    let (first, second) = (open()?, open()?);
    for n in 0..10 {
        for (file, byte) in [(&first, b'1'), (&second, b'2')] {
            same("bytes", call("write", rustix::io::write(file, &[byte, b'0' + n]))?, 2_usize)?;
        }
    }
    let expected: Vec<u8> = (0..10).flat_map(|n| [b'1', b'0' + n, b'2', b'0' + n]).collect();
    let plot = plot.clone();
    from_now_on(move || same("content", plot.read("file")?, [b"lower\n", &expected[..]].concat()))
}

fn read_ends_at_the_end(plot: &Plot) -> Done<Holds> {
    let end = u64::try_from(BIG_BYTES).unwrap_or(0);
    let plot = plot.clone();
    plot.chmod("big", 0o600)?;
    from_now_on(move || {
        for name in ["big", "empty", "file"] {
            let file = plot.open(name, OFlags::RDONLY)?;
            same(name, read_at(&file, end, 10)?, b"")?;
            same(name, read_at(&file, end + 100_000, 10)?, b"")?;
        }
        let big = plot.open("big", OFlags::RDONLY)?;
        same("last", read_at(&big, end - 3, 10)?.len(), 3_usize)?;
        let directory = plot.open("dir", OFlags::RDONLY)?;
        refused("read of a directory", read_at(&directory, 0, 1).map(|_| ()), Errno::ISDIR)?;
        let result = plot.open("dir", OFlags::WRONLY).map(|_| ());
        refused("write to a directory", result, Errno::ISDIR)
    })
}

const TEBIBYTE: u64 = 1 << 40;

fn file_of_a_tebibyte_is_sparse(plot: &Plot) -> Done<Holds> {
    plot.truncate("file", TEBIBYTE)?;
    plot.patch("file", TEBIBYTE - 2, b"end")?;
    let plot = plot.clone();
    from_now_on(move || {
        let file = plot.open("file", OFlags::RDONLY)?;
        let stat = stat_of(&file)?;
        same("size", stat.st_size, i64::try_from(TEBIBYTE + 1).unwrap_or(0))?;
        holds("hardly any blocks", stat.st_blocks < 4096)?;
        same("start", read_at(&file, 0, 7)?, b"lower\n\0")?;
        same("end", read_at(&file, TEBIBYTE - 3, 10)?, b"\0end")
    })
}

fn allocate(file: &OwnedFd, flags: FallocateFlags, offset: u64, size: u64) -> Done {
    call(format!("fallocate {flags:?}"), rustix::fs::fallocate(file, flags, offset, size))
}

fn allocation_changes_size_as_asked(plot: &Plot) -> Done<Holds> {
    let file = plot.open("file", OFlags::RDWR)?;
    allocate(&file, FallocateFlags::KEEP_SIZE, 0, 100_000)?;
    same("kept", stat_of(&file)?.st_size, 6)?;
    allocate(&file, FallocateFlags::empty(), 10_000, 10_000)?;
    same("grown", stat_of(&file)?.st_size, 20_000)?;
    allocate(&file, FallocateFlags::empty(), 0, 10)?;
    let other = plot.open("big", OFlags::WRONLY)?;
    allocate(&other, FallocateFlags::empty(), 0, 4096)?;
    refused("nothing", allocate(&file, FallocateFlags::empty(), 0, 0), Errno::INVAL)?;
    let plot = plot.clone();
    from_now_on(move || {
        let content = plot.read("file")?;
        same("size", content.len(), 20_000_usize)?;
        same("start", &content[..7], b"lower\n\0")?;
        same("big", plot.read("big")?, pattern(BIG_BYTES))
    })
}

fn punched_and_zeroed_ranges_read_zeros(plot: &Plot) -> Done<Holds> {
    let mut content = pattern(BIG_BYTES);
    let file = plot.open("big", OFlags::RDWR)?;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    allocate(&file, punch, 5000, 20_000)?;
    content[5000..25_000].fill(0);
    allocate(&file, FallocateFlags::ZERO_RANGE, 100_001, 10_000)?;
    content[100_001..110_001].fill(0);
    allocate(&file, FallocateFlags::ZERO_RANGE, 299_000, 10_000)?;
    content.resize(309_000, 0);
    content[299_000..].fill(0);
    allocate(&file, punch, 308_000, 50_000)?;
    write_at(&file, 10_000, b"in the hole")?;
    content[10_000..10_011].copy_from_slice(b"in the hole");
    same("right away", &read_all(&file)?, &content)?;
    let plot = plot.clone();
    from_now_on(move || same("big", &plot.read("big")?, &content))
}

fn data_not_yet_written_back_is_no_hole(plot: &Plot) -> Done<Holds> {
    let born = plot.open("new", OFlags::WRONLY | OFlags::CREATE)?;
    write_at(&born, 0, b"data")?;
    let sparse = plot.open("sparse", OFlags::WRONLY)?;
    write_at(&sparse, 0, b"data")?;
    // Both writers still hold their files open: a close would write back.
    for name in ["new", "sparse"] {
        let file = plot.open(name, OFlags::RDONLY)?;
        let found = call(name, rustix::fs::seek(&file, SeekFrom::Data(0)))?;
        same(&format!("first data of {name}"), found, 0_u64)?;
        let hole = call(name, rustix::fs::seek(&file, SeekFrom::Hole(0)))?;
        holds(&format!("{name}: no hole within the data"), hole >= 4)?;
    }
    nothing_more()
}

fn seek_finds_data_and_holes(plot: &Plot) -> Done<Holds> {
    plot.append("sparse", b"end")?;
    let plot = plot.clone();
    from_now_on(move || {
        let end = SPARSE_BYTES + 3;
        let file = plot.open("sparse", OFlags::RDONLY)?;
        let seek = |from: SeekFrom| call(format!("lseek {from:?}"), rustix::fs::seek(&file, from));
        // A hole may be reported as data, never data as a hole.
        holds("data by the data", seek(SeekFrom::Data(SPARSE_DATA.0))? == SPARSE_DATA.0)?;
        holds("data from the start", seek(SeekFrom::Data(0))? <= SPARSE_DATA.0)?;
        let data_end = SPARSE_DATA.0 + u64::try_from(SPARSE_DATA.1).unwrap_or(0);
        holds("hole after the data", seek(SeekFrom::Hole(SPARSE_DATA.0))? >= data_end)?;
        same("hole at the end", seek(SeekFrom::Hole(end - 1))?, end)?;
        refused("past the end", seek(SeekFrom::Data(end)).map(|_| ()), Errno::NXIO)?;
        refused("past the end", seek(SeekFrom::Hole(end + 9)).map(|_| ()), Errno::NXIO)?;
        same("the end", seek(SeekFrom::End(0))?, end)
    })
}

fn copy(from: &OwnedFd, to: &OwnedFd, offset: u64, mut length: usize) -> Done {
    let (mut from_offset, mut to_offset) = (offset, offset);
    while length > 0 {
        let (from_at, to_at) = (Some(&mut from_offset), Some(&mut to_offset));
        let copied = rustix::fs::copy_file_range(from, from_at, to, to_at, length);
        let copied = call("copy_file_range", copied)?;
        holds("something is copied", copied > 0)?;
        length -= copied;
    }
    Ok(())
}

fn ranges_are_copied_between_any_two_files(plot: &Plot) -> Done<Holds> {
    let big = plot.open("big", OFlags::RDONLY)?;
    let other = plot.open("other", OFlags::RDWR)?;
    copy(&big, &other, 3, 250_000)?; // lower to lower
    let new = plot.open("new", OFlags::RDWR | OFlags::CREATE)?;
    copy(&big, &new, 0, BIG_BYTES)?; // lower to new
    let again = plot.open("big", OFlags::RDWR)?;
    copy(&other, &again, 0, 10)?; // upper to lower
    let end = rustix::fs::copy_file_range(&new, Some(&mut (1 << 30)), &other, None, 10);
    same("from past the end", call("copy_file_range", end)?, 0_usize)?;
    let plot = plot.clone();
    from_now_on(move || {
        let pattern = pattern(BIG_BYTES);
        same("new", &plot.read("new")?, &pattern)?;
        let other = plot.read("other")?;
        same("other", &other[..3], b"oth")?;
        same("other", &other[3..], &pattern[3..250_003])?;
        same("big", &plot.read("big")?, &[b"oth", &pattern[3..]].concat())
    })
}

fn sync_of_everything_succeeds(plot: &Plot) -> Done<Holds> {
    plot.append("file", b"!")?;
    for name in ["file", "other", "dir", "empty_dir"] {
        let open = plot.open(name, OFlags::RDONLY)?;
        call("fsync", rustix::fs::fsync(&open))?;
        call("fdatasync", rustix::fs::fdatasync(&open))?;
    }
    call("syncfs", rustix::fs::syncfs(plot.open("dir", OFlags::RDONLY)?))?;
    let synced = plot.open("new", OFlags::WRONLY | OFlags::CREATE | OFlags::DSYNC)?;
    write_at(&synced, 0, b"synced")?;
    let plot = plot.clone();
    from_now_on(move || {
        same("file", plot.read("file")?, b"lower\n!")?;
        same("new", plot.read("new")?, b"synced")
    })
}

fn statistics_are_those_of_a_disk(plot: &Plot) -> Done<Holds> {
    let statistics = call("statvfs", rustix::fs::statvfs(plot.at("dir")))?;
    same("longest name", statistics.f_namemax, 255_u64)?;
    holds("blocks", statistics.f_blocks > 0 && statistics.f_blocks >= statistics.f_bfree)?;
    holds("free is not less than available", statistics.f_bfree >= statistics.f_bavail)?;
    holds("block size", statistics.f_frsize >= 512 && statistics.f_bsize >= 512)?;
    nothing_more()
}

fn locks_exclude_each_other(plot: &Plot) -> Done<Holds> {
    let (first, second) = (plot.open("file", OFlags::RDWR)?, plot.open("file", OFlags::RDWR)?);
    let lock = |file: &OwnedFd, operation| call("flock", rustix::fs::flock(file, operation));
    lock(&first, FlockOperation::NonBlockingLockExclusive)?;
    let busy = lock(&second, FlockOperation::NonBlockingLockShared);
    refused("a second lock", busy, Errno::WOULDBLOCK)?;
    // The lock is the object's, whatever becomes of its layer.
    plot.append("file", b"!")?;
    let third = plot.open("file", OFlags::RDWR)?;
    let busy = lock(&third, FlockOperation::NonBlockingLockShared);
    refused("a lock after copy-up", busy, Errno::WOULDBLOCK)?;
    lock(&first, FlockOperation::Unlock)?;
    lock(&third, FlockOperation::NonBlockingLockShared)?;
    lock(&second, FlockOperation::NonBlockingLockShared)?;
    nothing_more()
}

fn program(plot: &Plot) -> Done {
    let bytes = std::fs::read("/bin/sleep").unwrap_or_default();
    for name in PROGRAMS {
        plot.create(name, &bytes)?;
        plot.chmod(name, 0o755)?;
    }
    // More than what is copied up whole; what follows a program's end is nobody's.
    if bytes.is_empty() { Ok(()) } else { plot.append(PROGRAMS[1], &pattern(BIG_BYTES)) }
}

const PROGRAMS: [&str; 2] = ["program", "large_program"];

fn running_program_cannot_be_written(plot: &Plot) -> Done<Holds> {
    let mut sizes = Vec::new();
    for name in PROGRAMS {
        sizes.push(plot.stat(name)?.st_size);
        run_and_change(plot, name)?;
    }
    let plot = plot.clone();
    from_now_on(move || {
        let now = PROGRAMS.iter().map(|name| plot.stat(name).map(|stat| stat.st_size - 3));
        same("sizes", now.collect::<Done<Vec<_>>>()?, sizes.clone())
    })
}

fn run_and_change(plot: &Plot, name: &str) -> Done {
    if plot.stat(name)?.st_size == 0 {
        return Err(Failure::skip("there is no /bin/sleep to run"));
    }
    let start = || {
        let child = std::process::Command::new(plot.at(name)).arg("60").spawn();
        child.map_err(|error| Failure::new(format!("starting the program: {error}")))
    };
    let mut child = start()?;
    let outcome = (|| {
        refused("write while it runs", plot.patch(name, 0, b"x"), Errno::TXTBSY)?;
        plot.chmod(name, 0o711)?;
        plot.chown(name, 1, 1)?;
        refused("write after copy-up", plot.patch(name, 0, b"x"), Errno::TXTBSY)?;
        same("still runs", child.try_wait().is_ok_and(|status| status.is_none()), true)
    })();
    let killed = child.kill().and_then(|()| child.wait());
    outcome?;
    killed.map_err(|error| Failure::new(format!("ending the program: {error}")))?;
    plot.append(name, b"end")
}

fn direct_reads_and_writes_agree_with_cached_ones(plot: &Plot) -> Done<Holds> {
    let direct = match plot.open("big", OFlags::RDWR | OFlags::DIRECT) {
        Err(failure) if failure.errno == Some(Errno::INVAL) => {
            return Err(Failure::skip("no O_DIRECT here"));
        }
        result => result?,
    };
    // What every disk's logical block divides.
    let page = 4096;
    let mut space = vec![b'D'; 2 * page];
    let start = space.as_ptr().align_offset(page);
    let block = &mut space[start..start + page];
    let offset = u64::try_from(4 * page).unwrap_or(0);
    same("written", call("pwrite", rustix::io::pwrite(&direct, &*block, offset))?, page)?;
    let cached = plot.open("big", OFlags::RDWR)?;
    same("read through the cache", &read_at(&cached, offset, page)?[..], &*block)?;
    write_at(&cached, offset + 1, b"cached")?;
    let count = call("pread", rustix::io::pread(&direct, &mut *block, offset))?;
    same("read past the cache", (count, &block[..8]), (page, &b"DcachedD"[..]))?;
    let mut content = pattern(BIG_BYTES);
    content[4 * page..5 * page].copy_from_slice(block);
    let plot = plot.clone();
    from_now_on(move || same("content", &plot.read("big")?, &content))
}
