//! Workloads about a daemon's life: how it starts, and what it holds.

use std::ops::Range;
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::io::Errno;

use super::BenchError;
use super::client::Client;
use super::ground::{TREE_DIRECTORIES, TREE_FILES};
use super::run::{Bar, Body, Failed, Run, Sample, Workload, verify};
use super::subject::Kind;

/// What this file holds.
pub const WORKLOADS: &[Workload] = &[
    reading(
        "start",
        "from the daemon's start to its answer to INIT",
        start,
        &[Bar::Wall(1.0), Bar::Share("private KiB", 2.0)],
    ),
    reading(
        "nodes",
        "a further known node, of 15,000",
        nodes,
        &[Bar::Most("bytes per node", 256.0), Bar::Most("descriptors", 600.0)],
    ),
    reading(
        "seal",
        "an entry of the tree sealed, beside find -ls",
        seal,
        &[Bar::Wall(2.0), Bar::Most("index bytes per entry", 160.0)],
    ),
];

const fn reading(
    name: &'static str,
    about: &'static str,
    body: Body,
    bars: &'static [Bar],
) -> Workload {
    Workload { name, about, is_reading: true, body, bars }
}

fn start(run: &mut Run<'_>) -> Result<Sample, Failed> {
    let cpu = run.subject.family().cpu();
    let mut sample =
        Sample { operations: 1, requests: 1, wall: run.start, cpu, ..Sample::default() };
    let (private, descriptors) = run.subject.family().memory_and_descriptors();
    sample.figures.insert("private KiB", private);
    sample.figures.insert("descriptors", descriptors);
    Ok(sample)
}

fn nodes(run: &mut Run<'_>) -> Result<Sample, Failed> {
    // What a daemon allocates once, whatever it knows, is there after a part of the tree.
    let few = TREE_DIRECTORIES / 3;
    know(&mut run.client, 0..few)?;
    let (before, _) = run.subject.family().memory_and_descriptors();
    let more = few..TREE_DIRECTORIES;
    let mut sample = run.timed(more.len() * TREE_FILES, |client, _| know(client, more.clone()))?;
    let (after, descriptors) = run.subject.family().memory_and_descriptors();
    let count = u32::try_from(sample.operations).unwrap_or(u32::MAX);
    sample.figures.insert("bytes per node", (after - before) * 1024.0 / f64::from(count));
    sample.figures.insert("descriptors", descriptors);
    Ok(sample)
}

fn know(client: &mut Client, directories: Range<usize>) -> Result<(), Failed> {
    for directory in directories {
        let node = client.resolve(&format!("tree/d{directory:03}"))?;
        let rows = client.list(node)?.0;
        let known = rows.iter().filter(|row| row.entry.is_some()).count();
        verify(known == TREE_FILES, || format!("{known} files"))?;
    }
    Ok(())
}

/// Our column: `thinroot seal` of the whole lower; the others': `find -ls` of it.
fn seal(run: &mut Run<'_>) -> Result<Sample, Failed> {
    let index = run.site.scratch.join("sealed");
    let mut command = match run.subject.kind {
        Kind::Thinroot => {
            let mut command = Command::new(&run.site.programs.thinroot);
            command.arg("seal").arg("--lower").arg(run.site.lower).arg("--index").arg(&index);
            command
        }
        Kind::Overlayfs | Kind::Plain => {
            let mut command = Command::new("find");
            command.arg(run.site.lower).arg("-ls");
            command
        }
    };
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let start = Instant::now();
    let status = command.status().map_err(BenchError::file(run.site.lower))?;
    let wall = start.elapsed();
    verify(status.success(), || format!("{command:?}: {status}"))?;
    let entries = count(run.site.lower).map_err(|_| Errno::IO)?;
    let mut sample = Sample { operations: entries, wall, ..Sample::default() };
    if run.subject.kind == Kind::Thinroot {
        let bytes = std::fs::metadata(&index).map_err(BenchError::file(&index))?.len();
        let per_entry = u32::try_from(bytes / entries).unwrap_or(u32::MAX);
        sample.figures.insert("index bytes per entry", f64::from(per_entry));
        std::fs::remove_file(&index).map_err(BenchError::file(&index))?;
    }
    Ok(sample)
}

/// Everything below a directory, and itself.
pub(super) fn count(directory: &std::path::Path) -> std::io::Result<u64> {
    let mut entries = 1;
    for row in std::fs::read_dir(directory)? {
        let row = row?;
        entries += if row.file_type()?.is_dir() { count(&row.path())? } else { 1 };
    }
    Ok(entries)
}
