//! Ranges of files: moved, punched, sought and copied, whichever layer has them.

use std::os::fd::OwnedFd;

use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;

use super::ground::{BIG_BYTES, SPARSE_BYTES, SPARSE_DATA};
use super::plot::{
    Done, Failure, Holds, Plot, call, from_now_on, holds, pattern, read_all, refused, same,
    stat_of, write_at,
};

super::laws! {
    39 => collapsed_and_inserted_ranges_move_what_follows;
    39 => extents_of_a_copied_up_file_are_those_of_a_copy with mixed;
    39 => punched_ranges_are_sought_as_holes with mixed;
    40 => ranges_are_copied_within_a_file;
}

fn allocate(file: &OwnedFd, flags: FallocateFlags, offset: u64, size: u64) -> Done {
    let what = format!("fallocate {flags:?} {offset} {size}");
    call(what, rustix::fs::fallocate(file, flags, offset, size))
}

/// What an ext4 or xfs with blocks of 4 KiB can move; others say that they cannot.
fn can_move(done: Done) -> Done {
    match done {
        Err(failure) if failure.errno == Some(Errno::OPNOTSUPP) => {
            Err(Failure::skip("ranges cannot be moved here"))
        }
        done => done,
    }
}

fn collapsed_and_inserted_ranges_move_what_follows(plot: &Plot) -> Done<Holds> {
    let mut content = pattern(BIG_BYTES);
    let file = plot.open("big", OFlags::RDWR)?;
    can_move(allocate(&file, FallocateFlags::COLLAPSE_RANGE, 8192, 4096))?;
    content.drain(8192..12_288);
    same("size", stat_of(&file)?.st_size, i64::try_from(content.len()).unwrap_or(0))?;
    can_move(allocate(&file, FallocateFlags::INSERT_RANGE, 65_536, 8192))?;
    content.splice(65_536..65_536, vec![0; 8192]);
    same("right away", &read_all(&file)?, &content)?;
    let inside = allocate(&file, FallocateFlags::COLLAPSE_RANGE, 100, 4096);
    refused("collapse of what is no block", inside, Errno::INVAL)?;
    let past = allocate(&file, FallocateFlags::COLLAPSE_RANGE, 4096, 1 << 20);
    refused("collapse past the end", past, Errno::INVAL)?;
    let plot = plot.clone();
    from_now_on(move || same("big", &plot.read("big")?, &content))
}

/// Size of `mixed`: a large lower file of data and holes in turn.
const MIXED: u64 = 1 << 20;
/// Each stretch of it.
const STRETCH: u64 = 128 << 10;

fn mixed(plot: &Plot) -> Done {
    let file = plot.open("mixed", OFlags::WRONLY | OFlags::CREATE)?;
    call("ftruncate", rustix::fs::ftruncate(&file, MIXED))?;
    let stretch = pattern(usize::try_from(STRETCH).unwrap_or(0));
    (0..MIXED / STRETCH).step_by(2).try_for_each(|n| write_at(&file, n * STRETCH, &stretch))?;
    call("fsync", rustix::fs::fsync(&file))
}

/// Where data starts and ends, by SEEK_DATA and SEEK_HOLE.
fn extents(file: &OwnedFd) -> Done<Vec<(u64, u64)>> {
    let seek = |from: SeekFrom| call(format!("lseek {from:?}"), rustix::fs::seek(file, from));
    let mut found = Vec::new();
    let mut at = 0;
    loop {
        let start = match seek(SeekFrom::Data(at)) {
            Err(failure) if failure.errno == Some(Errno::NXIO) => return Ok(found),
            start => start?,
        };
        at = seek(SeekFrom::Hole(start))?;
        found.push((start, at));
    }
}

fn extents_of_a_copied_up_file_are_those_of_a_copy(plot: &Plot) -> Done<Holds> {
    let file = plot.open("mixed", OFlags::RDWR)?;
    let lower = (0..4).map(|n| (2 * n * STRETCH, (2 * n + 1) * STRETCH)).collect::<Vec<_>>();
    if extents(&file)? != lower {
        return Err(Failure::skip("holes are not told exactly here"));
    }
    // Into data, into a hole, and beyond the end.
    write_at(&file, 10_000, b"data")?;
    write_at(&file, 3 * STRETCH + 4096, b"hole")?;
    write_at(&file, MIXED + 8192, b"end")?;
    call("fsync", rustix::fs::fsync(&file))?;
    let mut expected = lower;
    expected.insert(2, (3 * STRETCH + 4096, 3 * STRETCH + 8192));
    expected.push((MIXED + 8192, MIXED + 8192 + 3));
    let plot = plot.clone();
    from_now_on(move || {
        same("extents", extents(&plot.open("mixed", OFlags::RDONLY)?)?, expected.clone())?;
        // A file without a write is as sparse as it was.
        let sparse = extents(&plot.open("sparse", OFlags::RDONLY)?)?;
        let length = u64::try_from(SPARSE_DATA.1).unwrap_or(0);
        same("sparse", sparse, [(SPARSE_DATA.0, SPARSE_DATA.0 + length)])
    })
}

fn punched_ranges_are_sought_as_holes(plot: &Plot) -> Done<Holds> {
    let file = plot.open("mixed", OFlags::RDWR)?;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let before = stat_of(&file)?.st_blocks;
    allocate(&file, punch, 4096, 65_536)?;
    allocate(&file, punch, 0, SPARSE_BYTES * 2)?;
    write_at(&file, 40_960, b"kept")?;
    call("fsync", rustix::fs::fsync(&file))?;
    let plot = plot.clone();
    from_now_on(move || {
        let file = plot.open("mixed", OFlags::RDONLY)?;
        let stat = stat_of(&file)?;
        same("size", u64::try_from(stat.st_size).unwrap_or(0), MIXED)?;
        holds("room is given back", stat.st_blocks < before / 4)?;
        let content = read_all(&file)?;
        same("kept", &content[40_960..40_964], b"kept")?;
        same("data left", content.iter().filter(|byte| **byte != 0).count(), 4_usize)?;
        let found = extents(&file)?;
        holds("data is told", found.iter().any(|(from, to)| *from <= 40_960 && *to > 40_960))
    })
}

fn ranges_are_copied_within_a_file(plot: &Plot) -> Done<Holds> {
    let mut content = pattern(BIG_BYTES);
    let file = plot.open("big", OFlags::RDWR)?;
    let copy = |from: u64, to: u64, length: usize| -> Done {
        let (mut from, mut to, mut left) = (from, to, length);
        while left > 0 {
            let (at, into) = (Some(&mut from), Some(&mut to));
            let done = rustix::fs::copy_file_range(&file, at, &file, into, left);
            let done = call("copy_file_range", done)?;
            holds("something is copied", done > 0)?;
            left -= done;
        }
        Ok(())
    };
    copy(10, 200_000, 50_000)?;
    content.copy_within(10..50_010, 200_000);
    copy(250_000, 290_000, 20_000)?;
    content.resize(310_000, 0);
    content.copy_within(250_000..270_000, 290_000);
    let overlap =
        rustix::fs::copy_file_range(&file, Some(&mut 0), &file, Some(&mut 100), 4096).map(drop);
    refused("an overlap", call("copy_file_range", overlap), Errno::INVAL)?;
    same("right away", &read_all(&file)?, &content)?;
    let plot = plot.clone();
    from_now_on(move || same("big", &plot.read("big")?, &content))
}
