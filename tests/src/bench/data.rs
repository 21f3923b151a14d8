//! Workloads that read and write file data.

use rustix::io::Errno;

use super::client::Client;
use super::ground::{
    Ground, LARGE_BYTES, SMALL_BYTES, TREE_DIRECTORIES, TREE_FILES, large, pattern, tree_file,
};
use super::run::{Bar, Body, Failed, Run, Sample, Workload, verify};
use crate::requests::ROOT;

/// Small files read in a round.
const FILES: usize = 5000;

/// fcntl.h: `O_RDWR`.
const READ_WRITE: u32 = 2;

/// What this file holds.
pub const WORKLOADS: &[Workload] = &[
    reading(
        "read-small-cold",
        "LOOKUP, open, read, close of a file of 2.5 KB, nothing known",
        small_cold,
        &[Bar::Faster(3.0)],
    ),
    reading(
        "read-small-warm",
        "open, read, close of a known file of 2.5 KB",
        small_warm,
        &[Bar::Faster(4.0)],
    ),
    reading("read-128k", "READ of 128 KiB, one at a time", read_128k, &[Bar::Faster(1.2)]),
    reading("read-1m-qd16", "READ of 1 MiB, 16 at once", read_1m, &[Bar::Faster(1.0)]),
    reading("read-4k-random", "random READ of 4 KiB, 16 at once", read_random, &[Bar::Faster(1.4)]),
    writing("create-write", "create, write 4 KiB, close", create_write, &[Bar::Faster(2.0)]),
    writing("write-128k", "WRITE of 128 KiB at the end of a new file", write_new, &[]),
    writing("fsync", "WRITE of 4 KiB and FSYNC", fsync, &[]),
];

const fn reading(
    name: &'static str,
    about: &'static str,
    body: Body,
    bars: &'static [Bar],
) -> Workload {
    Workload { name, about, is_reading: true, body, bars }
}

const fn writing(
    name: &'static str,
    about: &'static str,
    body: Body,
    bars: &'static [Bar],
) -> Workload {
    Workload { name, about, is_reading: false, body, bars }
}

/// A file of the tree by its number among all: neighbours are in other directories.
fn place(number: usize) -> (usize, usize) {
    (number % TREE_DIRECTORIES, number / TREE_DIRECTORIES % TREE_FILES)
}

fn read_small(client: &mut Client, node: u64, expected: &[u8]) -> Result<(), Failed> {
    let handle = client.open(node, 0)?;
    // The page cache asks for whole pages.
    let is_right = client.read((node, handle), 0, 4096)? == expected;
    client.close(node, handle)?;
    verify(is_right, || "a small file's bytes".to_owned())
}

fn directories(client: &mut Client) -> Result<Vec<u64>, Errno> {
    (0..TREE_DIRECTORIES).map(|number| client.resolve(&format!("tree/d{number:03}"))).collect()
}

fn small_cold(run: &mut Run<'_>) -> Result<Sample, Failed> {
    let directories = directories(&mut run.client)?;
    let expected = pattern(0, SMALL_BYTES);
    run.timed(FILES, |client, ground| {
        (0..FILES).try_for_each(|number| {
            let (directory, file) = place(number);
            let name = format!("file-number-{file:03}");
            let entry = client.lookup(directories[directory], name.as_bytes())?;
            let entry = entry.ok_or(Errno::NOENT)?;
            let path = tree_file(directory, file);
            verify(ground.is_as_in_lower(&path, &entry.attr), || format!("attributes of {path}"))?;
            read_small(client, entry.node, &expected)
        })
    })
}

fn small_warm(run: &mut Run<'_>) -> Result<Sample, Failed> {
    let directories = directories(&mut run.client)?;
    let expected = pattern(0, SMALL_BYTES);
    let mut nodes = Vec::new();
    // As many as a daemon may keep open: what a guest uses again and again.
    for number in 0..250 {
        let (directory, file) = place(number);
        let name = format!("file-number-{file:03}");
        let entry = run.client.lookup(directories[directory], name.as_bytes())?;
        nodes.push(entry.ok_or(Errno::NOENT)?.node);
    }
    nodes.iter().try_for_each(|node| read_small(&mut run.client, *node, &expected))?;
    run.timed(FILES, |client, _| {
        nodes.iter().cycle().take(FILES).try_for_each(|node| read_small(client, *node, &expected))
    })
}

/// READs at `offsets` of a large file, each checked byte for byte.
fn read_large(
    run: &mut Run<'_>,
    offsets: &[u64],
    (size, depth): (usize, usize),
) -> Result<Sample, Failed> {
    let node = run.client.lookup(ROOT, large(0).as_bytes())?.ok_or(Errno::NOENT)?.node;
    let handle = run.client.open(node, 0)?;
    // Everything is in the host's page cache: what is measured is the way to it.
    read_and_check(&mut run.client, run.ground, (node, handle), &all(1 << 20), (1 << 20, 1))?;
    let sample = run.timed(offsets.len(), |client, ground| {
        read_and_check(client, ground, (node, handle), offsets, (size, depth))
    })?;
    run.client.close(node, handle)?;
    Ok(sample)
}

fn read_and_check(
    client: &mut Client,
    ground: &Ground,
    at: (u64, u64),
    offsets: &[u64],
    shape: (usize, usize),
) -> Result<(), Failed> {
    let mut wrong = None;
    client.read_many(at, offsets, shape, &mut |offset, bytes| {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        if ground.large.get(from..from + shape.0) != Some(bytes) {
            wrong = Some(offset);
        }
    })?;
    verify(wrong.is_none(), || format!("bytes of large at {wrong:?}"))
}

/// The offsets of all blocks of a large file.
fn all(block: usize) -> Vec<u64> {
    (0..LARGE_BYTES).step_by(block).collect()
}

fn read_128k(run: &mut Run<'_>) -> Result<Sample, Failed> {
    read_large(run, &all(128 << 10).repeat(4), (128 << 10, 1))
}

fn read_1m(run: &mut Run<'_>) -> Result<Sample, Failed> {
    read_large(run, &all(1 << 20).repeat(8), (1 << 20, 16))
}

fn read_random(run: &mut Run<'_>) -> Result<Sample, Failed> {
    let blocks = LARGE_BYTES / 4096;
    // Knuth's multiplicative hash: every round reads the same blocks in the same disorder.
    let block = |turn: u64| turn.wrapping_mul(2_654_435_761) % blocks;
    let offsets: Vec<u64> = (0..20_000).map(|turn| block(turn) * 4096).collect();
    read_large(run, &offsets, (4096, 16))
}

fn create_write(run: &mut Run<'_>) -> Result<Sample, Failed> {
    const COUNT: usize = 2000;
    let directory = run.client.mkdir(ROOT, b"new")?.node;
    let data = pattern(0, 4096);
    let sample = run.timed(COUNT, |client, _| {
        (0..COUNT).try_for_each(|number| {
            let name = format!("created-{number:05}");
            let (entry, handle) = client.create(directory, name.as_bytes())?;
            client.write((entry.node, handle), 0, &data)?;
            client.tell_mtime(entry.node)?;
            Ok(client.close(entry.node, handle)?)
        })
    })?;
    let (rows, _) = run.client.list(directory)?;
    let is_whole = rows.iter().filter_map(|row| row.entry).all(|entry| entry.attr.size == 4096);
    verify(rows.len() == COUNT + 2 && is_whole, || "the files created".to_owned())?;
    let upper = run.subject.upper().join("new/created-00999");
    verify(std::fs::read(upper).is_ok_and(|bytes| bytes == data), || "bytes written".to_owned())?;
    Ok(sample)
}

fn write_new(run: &mut Run<'_>) -> Result<Sample, Failed> {
    const BLOCK: usize = 128 << 10;
    let (entry, handle) = run.client.create(ROOT, b"written")?;
    let at = (entry.node, handle);
    let offsets = all(BLOCK);
    let sample = run.timed(offsets.len(), |client, ground| {
        offsets.iter().try_for_each(|offset| {
            let from = usize::try_from(*offset).unwrap_or(0);
            Ok(client.write(at, *offset, &ground.large[from..from + BLOCK])?)
        })
    })?;
    run.client.close(entry.node, handle)?;
    let written = std::fs::read(run.subject.upper().join("written"));
    let is_right = written.is_ok_and(|bytes| bytes == run.ground.large);
    verify(is_right, || "bytes written".to_owned())?;
    Ok(sample)
}

fn fsync(run: &mut Run<'_>) -> Result<Sample, Failed> {
    const COUNT: u64 = 50;
    let node = run.client.create(ROOT, b"synced")?;
    let at = (node.0.node, node.1);
    let handle = run.client.open(at.0, READ_WRITE)?;
    let data = pattern(0, 4096);
    let sample = run.timed(50, |client, _| {
        (0..COUNT).try_for_each(|turn| {
            client.write(at, turn * 4096, &data)?;
            Ok(client.fsync(at)?)
        })
    })?;
    run.client.close(at.0, handle)?;
    Ok(sample)
}
