//! A great base sealed: time, size, memory; beside what reads the same tree anyway.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use thinroot::sys::process::die_with_parent;

use super::{DensityOptions, Findings};
use crate::bench::BenchError;
use crate::bench::Scratch;
use crate::bench::report::Spread;

/// Entries of one directory of the tree.
const DIRECTORY_ENTRIES: usize = 1000;

/// How often a process's peak memory is looked at; it only grows.
const LOOK: Duration = Duration::from_millis(5);

/// Seals a tree of `options.entries` and lists it with `find -ls`, in turn.
pub(super) fn seal(options: &DensityOptions) -> Result<Findings, BenchError> {
    let tree = tree(&options.directory, options.entries.get())?;
    let scratch = Scratch::make(&options.directory)?;
    let index = scratch.0.join("index");
    let (mut seals, mut finds, mut peaks) = (Vec::new(), Vec::new(), Vec::new());
    let mut bytes = 0;
    for _ in 0..options.rounds.get() {
        // `find` goes first, so that whatever only the first reader pays is not ours.
        let mut find = Command::new("find");
        finds.push(timed(find.arg(&tree).arg("-ls"))?.0);
        if index.exists() {
            fs::remove_file(&index).map_err(BenchError::file(&index))?;
        }
        let mut seal = Command::new(&options.programs.thinroot);
        let (wall, peak_kib) =
            timed(seal.arg("seal").arg("--lower").arg(&tree).arg("--index").arg(&index))?;
        seals.push(wall);
        peaks.push(peak_kib);
        bytes = fs::metadata(&index).map_err(BenchError::file(&index))?.len();
    }
    let entries = rounded(options.entries.get());
    let mut found = Findings::default();
    let seconds = |walls: &[Duration]| Spread::of(walls.iter().map(Duration::as_secs_f64));
    let ratios =
        finds.iter().zip(&seals).map(|(find, seal)| find.as_secs_f64() / seal.as_secs_f64());
    if let (Some(seal), Some(find), Some(ratio)) =
        (seconds(&seals), seconds(&finds), Spread::of(ratios))
    {
        found.say(format!("{} entries sealed in {seal} s", options.entries.get()));
        found.say(format!("find -ls of the same tree: {find} s"));
        found.say(format!("speed beside find -ls: {ratio}x (bar 0.5x)"));
        found.figure("seal_s", seal.median);
        found.figure("find_ls_s", find.median);
        found.figure("speed_beside_find_ls", ratio.median);
    }
    let each = f64::from(u32::try_from(bytes).unwrap_or(u32::MAX)) / entries;
    found.say(format!("the index has {bytes} bytes, {each:.1} per entry (bar 160)"));
    found.figure("index_bytes", bytes);
    found.figure("bytes_per_entry", each);
    if let Some(peak) = Spread::of(peaks.into_iter()) {
        found.say(format!(
            "peak memory of seal: {peak} KiB, {:.0} bytes per entry",
            peak.median * 1024.0 / entries
        ));
        found.figure("peak_kib", peak.median);
    }
    Ok(found)
}

fn rounded(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Runs it to a good end; gives its time, and the most memory it had, in KiB.
fn timed(command: &mut Command) -> Result<(Duration, f64), BenchError> {
    let program = PathBuf::from(command.get_program());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let start = Instant::now();
    let mut child = die_with_parent(command).spawn().map_err(BenchError::file(&program))?;
    let mut peak = 0.0_f64;
    loop {
        if let Some(status) = child.try_wait().map_err(BenchError::file(&program))? {
            let wall = start.elapsed();
            if status.success() {
                return Ok((wall, peak));
            }
            let what = format!("{}: {status}", program.display());
            return Err(BenchError::Subject { kind: "seal", what, log: String::new() });
        }
        peak = peak.max(high_water_kib(child.id()));
        std::thread::sleep(LOOK);
    }
}

/// proc(5), status: `VmHWM`, the peak of the resident memory.
fn high_water_kib(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let row = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = row.and_then(|row| row.split_whitespace().next()?.parse::<u32>().ok());
    f64::from(kib.unwrap_or(0))
}

/// A tree of exactly `entries`, its top included; made once and kept for the next call.
pub(super) fn tree(directory: &Path, entries: usize) -> Result<PathBuf, BenchError> {
    let tree = directory.join(format!("tree-{entries}"));
    let stamp = directory.join(format!("tree-{entries}.stamp"));
    if !stamp.exists() {
        println!("  {entries} entries are made in {} (once)", tree.display());
        if tree.exists() {
            fs::remove_dir_all(&tree).map_err(BenchError::file(&tree))?;
        }
        fill(&tree, entries).map_err(BenchError::file(&tree))?;
        fs::write(&stamp, "").map_err(BenchError::file(&stamp))?;
    }
    Ok(tree)
}

fn fill(tree: &Path, entries: usize) -> std::io::Result<()> {
    fs::create_dir_all(tree)?;
    let mut left = entries.saturating_sub(1);
    let mut number = 0;
    while left > 0 {
        let directory = tree.join(format!("package-{number:04}"));
        fs::create_dir(&directory)?;
        left -= 1;
        for file in 0..left.min(DIRECTORY_ENTRIES - 1) {
            // As long as names of a distribution are.
            File::create(directory.join(format!("module-{file:03}.so")))?;
            left -= 1;
        }
        number += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tree_has_just_so_many_entries() {
        for entries in [1, 2, 1000, 1001, 1002, 2500] {
            let directory = tempfile::tempdir().unwrap();
            let tree = directory.path().join("tree");
            fill(&tree, entries).unwrap();
            assert_eq!(crate::bench::life::count(&tree).unwrap(), u64::try_from(entries).unwrap());
        }
    }

    #[test]
    fn memory_of_a_process_that_lives_is_seen() {
        assert!(high_water_kib(std::process::id()) > 100.0);
        assert!(timed(Command::new("false").arg("x")).is_err());
    }
}
