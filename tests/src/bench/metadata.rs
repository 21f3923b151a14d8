//! Workloads that read names and attributes.

use rustix::io::Errno;

use super::client::Client;
use super::ground::{CROWD_FILES, Ground, TREE_DIRECTORIES, TREE_FILES, tree_file};
use super::run::{Bar, Failed, Run, Sample, Workload, verify};
use crate::requests::ROOT;
use crate::wire::Entry;

/// So many requests, one after the other.
const COUNT: usize = 20_000;

/// What this file holds.
pub const WORKLOADS: &[Workload] = &[
    reading("empty", "a request that asks for nothing", empty, &[]),
    reading("getattr", "GETATTR of a known file", getattr, &[Bar::Cpu(0.70), Bar::AboveEmpty(0.5)]),
    reading(
        "lookup-known",
        "LOOKUP of a name whose node is known",
        lookup_known,
        &[Bar::Cpu(0.50), Bar::AboveEmpty(0.5)],
    ),
    reading(
        "lookup-absent",
        "LOOKUP of a name that is not there",
        lookup_absent,
        &[Bar::Cpu(0.48), Bar::AboveEmpty(0.5)],
    ),
    reading(
        "lookup-unknown",
        "LOOKUP of a name not asked for before, in a directory used before",
        lookup_unknown,
        &[Bar::Cpu(0.32)],
    ),
    reading(
        "stat-cold",
        "LOOKUP in a walk over 15,000 files, nothing known",
        stat_cold,
        &[Bar::Faster(2.5)],
    ),
    reading("stat-warm", "GETATTR of 15,000 known files", stat_warm, &[Bar::Faster(1.8)]),
    reading(
        "readdirplus-unknown",
        "READDIRPLUS of 4 KiB, its rows not known before",
        readdirplus_unknown,
        &[Bar::Cpu(0.08)],
    ),
    reading(
        "readdirplus-known",
        "READDIRPLUS of 4 KiB, its rows known",
        readdirplus_known,
        &[Bar::Cpu(0.12)],
    ),
    reading(
        "readdirplus-10k",
        "a row of a directory of 10,000 entries, listed whole",
        readdirplus_crowd,
        &[],
    ),
];

const fn reading(
    name: &'static str,
    about: &'static str,
    body: super::run::Body,
    bars: &'static [Bar],
) -> Workload {
    Workload { name, about, is_reading: true, body, bars }
}

fn empty(run: &mut Run<'_>) -> Result<Sample, Failed> {
    run.timed_beside_empty(COUNT, |client, _, _| Ok(client.empty()?))
}

/// Checks an entry against the lower.
fn check_entry(ground: &Ground, path: &str, entry: Option<Entry>) -> Result<u64, Failed> {
    let entry = entry.ok_or(Errno::NOENT)?;
    verify(ground.is_as_in_lower(path, &entry.attr), || format!("attributes of {path}"))?;
    Ok(entry.node)
}

fn directory_of(client: &mut Client, number: usize) -> Result<u64, Errno> {
    client.resolve(&format!("tree/d{number:03}"))
}

fn name_of(file: usize) -> String {
    format!("file-number-{file:03}")
}

/// Looks up every file of the tree; gives (path, node).
fn know_tree(client: &mut Client, ground: &Ground) -> Result<Vec<(String, u64)>, Failed> {
    let mut known = Vec::new();
    for number in 0..TREE_DIRECTORIES {
        let directory = directory_of(client, number)?;
        for file in 0..TREE_FILES {
            let entry = client.lookup(directory, name_of(file).as_bytes())?;
            let path = tree_file(number, file);
            known.push((path.clone(), check_entry(ground, &path, entry)?));
        }
    }
    Ok(known)
}

fn getattr(run: &mut Run<'_>) -> Result<Sample, Failed> {
    let path = tree_file(0, 7);
    let node = run.client.resolve(&path)?;
    let first = run.client.getattr(node)?;
    verify(run.ground.is_as_in_lower(&path, &first), || format!("attributes of {path}"))?;
    run.timed_beside_empty(COUNT, |client, _, _| {
        let same = client.getattr(node)? == first;
        verify(same, || format!("attributes of {path} change"))
    })
}

fn lookup_known(run: &mut Run<'_>) -> Result<Sample, Failed> {
    let directory = directory_of(&mut run.client, 0)?;
    let name = name_of(7);
    let first = run.client.lookup(directory, name.as_bytes())?;
    check_entry(run.ground, &tree_file(0, 7), first)?;
    run.timed_beside_empty(COUNT, |client, _, _| {
        let same = client.lookup(directory, name.as_bytes())? == first;
        verify(same, || format!("{name} changes"))
    })
}

fn lookup_absent(run: &mut Run<'_>) -> Result<Sample, Failed> {
    let directory = directory_of(&mut run.client, 0)?;
    let absent = |turn: usize| format!("file-number-{}", 1000 + turn % 1000);
    run.client.lookup(directory, absent(0).as_bytes())?;
    run.timed_beside_empty(COUNT, |client, _, turn| {
        let found = client.lookup(directory, absent(turn).as_bytes())?;
        verify(found.is_none(), || format!("{} is there", absent(turn)))
    })
}

fn lookup_unknown(run: &mut Run<'_>) -> Result<Sample, Failed> {
    let client = &mut run.client;
    let mut directories = Vec::new();
    for number in 0..TREE_DIRECTORIES {
        let directory = directory_of(client, number)?;
        client.lookup(directory, b"absent")?;
        directories.push(directory);
    }
    run.timed_beside_empty(TREE_DIRECTORIES * TREE_FILES, |client, ground, number| {
        let (directory, file) = (number / TREE_FILES, number % TREE_FILES);
        let entry = client.lookup(directories[directory], name_of(file).as_bytes())?;
        check_entry(ground, &tree_file(directory, file), entry).map(drop)
    })
}

fn stat_cold(run: &mut Run<'_>) -> Result<Sample, Failed> {
    let tree = run.client.resolve("tree")?;
    let mut directory = tree;
    run.timed_beside_empty(TREE_DIRECTORIES * TREE_FILES, |client, ground, number| {
        let (at, file) = (number / TREE_FILES, number % TREE_FILES);
        if file == 0 {
            let name = format!("d{at:03}");
            directory = client.lookup(tree, name.as_bytes())?.ok_or(Errno::NOENT)?.node;
        }
        let entry = client.lookup(directory, name_of(file).as_bytes())?;
        check_entry(ground, &tree_file(at, file), entry).map(drop)
    })
}

fn stat_warm(run: &mut Run<'_>) -> Result<Sample, Failed> {
    let known = know_tree(&mut run.client, run.ground)?;
    run.timed_beside_empty(known.len(), |client, ground, number| {
        let (path, node) = &known[number];
        let attr = client.getattr(*node)?;
        verify(ground.is_as_in_lower(path, &attr), || format!("attributes of {path}"))
    })
}

/// Directories of the tree that are listed on one clock: some 60 requests.
const PART: usize = 10;

/// Lists some directories of the tree, by number and node, and checks each row; gives the number of
/// READDIRPLUS.
fn list_tree(
    client: &mut Client,
    ground: &Ground,
    directories: &[(usize, u64)],
) -> Result<u64, Failed> {
    let mut requests = 0;
    for (number, directory) in directories {
        let (rows, asked) = client.list(*directory)?;
        requests += asked;
        verify(rows.len() == TREE_FILES + 2, || format!("{} rows", rows.len()))?;
        for row in rows.iter().filter(|row| row.name[0] != b'.') {
            let path = format!("tree/d{number:03}/{}", String::from_utf8_lossy(&row.name));
            check_entry(ground, &path, row.entry)?;
        }
    }
    Ok(requests)
}

fn listed(run: &mut Run<'_>, is_known: bool) -> Result<Sample, Failed> {
    let mut directories = Vec::new();
    for number in 0..TREE_DIRECTORIES {
        let directory = directory_of(&mut run.client, number)?;
        run.client.lookup(directory, b"absent")?;
        directories.push(directory);
    }
    let directories: Vec<_> = (0..).zip(directories).collect();
    if is_known {
        list_tree(&mut run.client, run.ground, &directories)?;
    }
    let parts: Vec<_> = directories.chunks(PART).collect();
    run.timed_in_parts(&parts, list_tree)
}

fn readdirplus_unknown(run: &mut Run<'_>) -> Result<Sample, Failed> {
    listed(run, false)
}

fn readdirplus_known(run: &mut Run<'_>) -> Result<Sample, Failed> {
    listed(run, true)
}

fn readdirplus_crowd(run: &mut Run<'_>) -> Result<Sample, Failed> {
    let crowd = run.client.lookup(ROOT, b"crowd")?.ok_or(Errno::NOENT)?.node;
    run.timed(CROWD_FILES, |client, ground| {
        let (rows, _) = client.list(crowd)?;
        verify(rows.len() == CROWD_FILES + 2, || format!("{} rows", rows.len()))?;
        rows.iter().filter(|row| row.name[0] != b'.').try_for_each(|row| {
            let path = format!("crowd/{}", String::from_utf8_lossy(&row.name));
            check_entry(ground, &path, row.entry).map(drop)
        })
    })
}
