//! Workloads that change what the lower holds, and what the upper does.

use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use rustix::io::Errno;

use super::client::Client;
use super::ground::{
    CHANGE_OBJECTS, CROWD_FILES, LARGE_BYTES, ONCE_OBJECTS, SPARSE_BYTES, large, pattern, sparse,
};
use super::run::{Bar, Body, Failed, Run, Sample, Workload, verify};
use crate::requests::ROOT;

/// fcntl.h: `O_RDWR`.
const READ_WRITE: u32 = 2;

/// What this file holds.
pub const WORKLOADS: &[Workload] = &[
    writing("copy-up-4k", "the first write to a lower file of 4 KiB", copy_up_small, &[]),
    writing(
        "copy-up-64m",
        "the first 4 KiB write to a lower file of 64 MiB",
        copy_up_large,
        &[Bar::Wall(0.003)],
    ),
    writing(
        "copy-up-1g",
        "the first 4 KiB write to a sparse lower file of 1 GiB",
        copy_up_sparse,
        &[Bar::Wall(0.01)],
    ),
    writing("chmod-64m", "chmod of a lower file of 64 MiB", chmod, &[Bar::Milliseconds(0.3)]),
    writing(
        "truncate-64m",
        "truncate of a lower file of 64 MiB to 4 KiB",
        truncate,
        &[Bar::Wall(0.003)],
    ),
    writing("unlink-lower", "unlink of a lower file", unlink_lower, &[Bar::Faster(1.5)]),
    writing("rename-lower", "rename of a lower file", rename_lower, &[Bar::Faster(10.0)]),
    writing("mkdir-lower", "mkdir in a lower directory", mkdir_lower, &[Bar::Faster(1.2)]),
    writing("rmdir-lower", "rmdir of an empty lower directory", rmdir_lower, &[]),
    writing("unlink-upper", "unlink of a new file", unlink_upper, &[]),
    writing("rename-upper", "rename of a new file", rename_upper, &[]),
    writing("rmdir-upper", "rmdir of a new directory", rmdir_upper, &[]),
    writing(
        "rename-directory",
        "rename of a lower directory with 10,000 files",
        rename_directory,
        &[Bar::Milliseconds(1.0)],
    ),
];

const fn writing(
    name: &'static str,
    about: &'static str,
    body: Body,
    bars: &'static [Bar],
) -> Workload {
    Workload { name, about, is_reading: false, body, bars }
}

fn object(number: usize) -> String {
    format!("{number:04}")
}

/// The directory, with every object in it known, as a guest knows them that lists before it
/// changes.
fn known(client: &mut Client, path: &str) -> Result<(u64, Vec<u64>), Failed> {
    let directory = client.resolve(path)?;
    let mut nodes = Vec::new();
    for number in 0..CHANGE_OBJECTS {
        let entry = client.lookup(directory, object(number).as_bytes())?;
        nodes.push(entry.ok_or(Errno::NOENT)?.node);
    }
    Ok((directory, nodes))
}

fn copy_up_small(run: &mut Run<'_>) -> Result<Sample, Failed> {
    const COUNT: usize = 200;
    let (_, nodes) = known(&mut run.client, "change/write")?;
    let data = pattern(1, 100);
    let sample = run.timed(COUNT, |client, _| {
        nodes.iter().take(COUNT).try_for_each(|node| {
            let handle = client.open(*node, READ_WRITE)?;
            client.write((*node, handle), 50, &data)?;
            client.tell_mtime(*node)?;
            Ok(client.close(*node, handle)?)
        })
    })?;
    let mut expected = pattern(0, 4096);
    expected[50..150].copy_from_slice(&data);
    let copied = std::fs::read(run.subject.upper().join("change/write/0100"));
    verify(copied.is_ok_and(|bytes| bytes == expected), || "bytes copied up".to_owned())?;
    Ok(sample)
}

/// The nodes of files that are changed once each.
fn once(client: &mut Client, name: fn(usize) -> String) -> Result<Vec<u64>, Errno> {
    (0..ONCE_OBJECTS)
        .map(|number| Ok(client.lookup(ROOT, name(number).as_bytes())?.ok_or(Errno::NOENT)?.node))
        .collect()
}

/// Opens, writes 4 KiB in the middle and closes, all on the clock: overlayfs copies up at open.
fn first_write(run: &mut Run<'_>, name: fn(usize) -> String, bytes: u64) -> Result<Sample, Failed> {
    let nodes = once(&mut run.client, name)?;
    let data = pattern(7, 4096);
    let mut sample = run.timed_each(&nodes, |client, node| {
        let handle = client.open(node, READ_WRITE)?;
        client.write((node, handle), bytes / 2, &data)?;
        Ok(client.close(node, handle)?)
    })?;
    for (number, node) in nodes.into_iter().enumerate() {
        check_first_write(run, (&name(number), node), bytes, &data)?;
    }
    let upper = std::fs::metadata(run.subject.upper().join(name(0))).map_err(|_| Errno::IO)?;
    let blocks = u32::try_from(upper.blocks()).unwrap_or(u32::MAX);
    sample.figures.insert("KiB in the upper", f64::from(blocks) / 2.0);
    Ok(sample)
}

fn check_first_write(
    run: &mut Run<'_>,
    (name, node): (&str, u64),
    bytes: u64,
    data: &[u8],
) -> Result<(), Failed> {
    let offset = bytes / 2;
    let handle = run.client.open(node, 0)?;
    let lower = std::fs::File::open(run.ground.lower.join(name)).map_err(|_| Errno::IO)?;
    for at in [0, offset - 4096, offset, offset + 4096, bytes - 4096] {
        let mut expected = vec![0; 4096];
        lower.read_exact_at(&mut expected, at).map_err(|_| Errno::IO)?;
        if at == offset {
            expected.copy_from_slice(data);
        }
        let is_right = run.client.read((node, handle), at, 4096)? == expected;
        verify(is_right, || format!("bytes of {name} at {at}"))?;
    }
    Ok(run.client.close(node, handle)?)
}

fn copy_up_large(run: &mut Run<'_>) -> Result<Sample, Failed> {
    first_write(run, large, LARGE_BYTES)
}

fn copy_up_sparse(run: &mut Run<'_>) -> Result<Sample, Failed> {
    first_write(run, sparse, SPARSE_BYTES)
}

/// One SETATTR of each large file.
fn set(run: &mut Run<'_>, change: (u32, u64)) -> Result<Sample, Failed> {
    let nodes = once(&mut run.client, large)?;
    let sample = run.timed_each(&nodes, |client, node| {
        client.setattr(node, &[change])?;
        Ok(())
    })?;
    for node in nodes {
        let attr = run.client.getattr(node)?;
        let size = if change.0 == 3 { change.1 } else { LARGE_BYTES };
        let is_right = attr.size == size && (change.0 != 0 || attr.mode & 0o777 == 0o600);
        verify(is_right, || format!("attributes after SETATTR: {attr:?}"))?;
        let handle = run.client.open(node, 0)?;
        let is_right = run.client.read((node, handle), 0, 4096)? == &run.ground.large[..4096];
        run.client.close(node, handle)?;
        verify(is_right, || "bytes after SETATTR".to_owned())?;
    }
    Ok(sample)
}

fn chmod(run: &mut Run<'_>) -> Result<Sample, Failed> {
    set(run, (0, 0o100_600))
}

fn truncate(run: &mut Run<'_>) -> Result<Sample, Failed> {
    set(run, (3, 4096))
}

/// What is left in a directory.
fn left(client: &mut Client, directory: u64) -> Result<usize, Errno> {
    Ok(client.list(directory)?.0.len() - 2)
}

/// A call that removes a name.
type Remove = fn(&mut Client, u64, &[u8]) -> Result<(), Errno>;

/// Removes each node's name in a directory, and lets go of the node, as Linux does at once of what
/// has no name and is not open.
fn remove_all(
    run: &mut Run<'_>,
    directory: u64,
    remove: Remove,
    objects: &[(String, u64)],
) -> Result<Sample, Failed> {
    run.timed(objects.len(), |client, _| {
        objects.iter().try_for_each(|(name, node)| {
            remove(client, directory, name.as_bytes())?;
            client.forget_behind(*node);
            Ok(())
        })
    })
}

/// With the names they have.
fn named(nodes: Vec<u64>) -> Vec<(String, u64)> {
    nodes.into_iter().enumerate().map(|(number, node)| (object(number), node)).collect()
}

fn unlink_lower(run: &mut Run<'_>) -> Result<Sample, Failed> {
    let (directory, nodes) = known(&mut run.client, "change/unlink")?;
    let sample = remove_all(run, directory, Client::unlink, &named(nodes))?;
    verify(left(&mut run.client, directory)? == 0, || "unlinked files are there".to_owned())?;
    Ok(sample)
}

/// Fewer than there are: a rival copies each.
const RENAMES: usize = 300;

fn rename_all(client: &mut Client, directory: u64, prefix: &str) -> Result<(), Failed> {
    (0..RENAMES).try_for_each(|number| {
        let (old, new) = (format!("{prefix}{}", object(number)), format!("new-{number}"));
        // As Linux does: the new name is looked up before.
        client.lookup(directory, new.as_bytes())?;
        Ok(client.rename(directory, old.as_bytes(), new.as_bytes())?)
    })
}

fn rename_lower(run: &mut Run<'_>) -> Result<Sample, Failed> {
    let (directory, nodes) = known(&mut run.client, "change/rename")?;
    let sample = run.timed(RENAMES, |client, _| rename_all(client, directory, ""))?;
    let moved = run.client.lookup(directory, b"new-7")?.ok_or(Errno::NOENT)?.node;
    verify(moved == nodes[7], || "a renamed file is another".to_owned())?;
    verify(left(&mut run.client, directory)? == CHANGE_OBJECTS, || "renamed files".to_owned())?;
    Ok(sample)
}

fn mkdir_lower(run: &mut Run<'_>) -> Result<Sample, Failed> {
    let (directory, _) = known(&mut run.client, "change/rmdir")?;
    let before = left(&mut run.client, directory)?;
    let sample =
        run.timed(CHANGE_OBJECTS, |client, _| make_directories(client, directory).map(drop))?;
    let after = left(&mut run.client, directory)?;
    verify(after == before + CHANGE_OBJECTS, || format!("{after} entries after mkdir"))?;
    Ok(sample)
}

fn make_directories(client: &mut Client, directory: u64) -> Result<Vec<(String, u64)>, Failed> {
    let make = |number| {
        let name = format!("made-{}", object(number));
        let node = client.mkdir(directory, name.as_bytes())?.node;
        Ok((name, node))
    };
    (0..CHANGE_OBJECTS).map(make).collect()
}

fn rmdir_lower(run: &mut Run<'_>) -> Result<Sample, Failed> {
    let (directory, nodes) = known(&mut run.client, "change/rmdir")?;
    let sample = remove_all(run, directory, Client::rmdir, &named(nodes))?;
    verify(left(&mut run.client, directory)? == 0, || "removed directories are there".to_owned())?;
    Ok(sample)
}

/// A new directory with new files in it.
fn fresh(run: &mut Run<'_>) -> Result<(u64, Vec<u64>), Failed> {
    let directory = run.client.mkdir(ROOT, b"new")?.node;
    let mut nodes = Vec::new();
    for number in 0..CHANGE_OBJECTS {
        let (entry, handle) = run.client.create(directory, object(number).as_bytes())?;
        run.client.close(entry.node, handle)?;
        nodes.push(entry.node);
    }
    Ok((directory, nodes))
}

fn unlink_upper(run: &mut Run<'_>) -> Result<Sample, Failed> {
    let (directory, nodes) = fresh(run)?;
    let sample = remove_all(run, directory, Client::unlink, &named(nodes))?;
    verify(left(&mut run.client, directory)? == 0, || "unlinked files are there".to_owned())?;
    Ok(sample)
}

fn rename_upper(run: &mut Run<'_>) -> Result<Sample, Failed> {
    let (directory, _) = fresh(run)?;
    let sample = run.timed(RENAMES, |client, _| rename_all(client, directory, ""))?;
    verify(left(&mut run.client, directory)? == CHANGE_OBJECTS, || "renamed files".to_owned())?;
    Ok(sample)
}

fn rmdir_upper(run: &mut Run<'_>) -> Result<Sample, Failed> {
    let directory = run.client.mkdir(ROOT, b"new")?.node;
    let made = make_directories(&mut run.client, directory)?;
    let sample = remove_all(run, directory, Client::rmdir, &made)?;
    verify(left(&mut run.client, directory)? == 0, || "removed directories are there".to_owned())?;
    Ok(sample)
}

fn rename_directory(run: &mut Run<'_>) -> Result<Sample, Failed> {
    let node = run.client.lookup(ROOT, b"crowd")?.ok_or(Errno::NOENT)?.node;
    let sample = run.timed(1, |client, _| Ok(client.rename(ROOT, b"crowd", b"moved")?))?;
    let moved = run.client.lookup(ROOT, b"moved")?.ok_or(Errno::NOENT)?.node;
    verify(moved == node, || "the renamed directory is another".to_owned())?;
    verify(left(&mut run.client, node)? == CROWD_FILES, || "rows after rename".to_owned())?;
    Ok(sample)
}
