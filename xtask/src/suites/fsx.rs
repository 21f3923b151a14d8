//! fsx, the crate: random changes of one file, read back against a copy in memory.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use super::verdict::{End, Ends, Results};
use super::{Bench, bounded, install, place::Place};
use crate::steps::{Step, check, file_error, note, output};

const SEEDS: std::ops::RangeInclusive<u32> = 1..=3;

/// Every kind of operation fsx has.
const EVERYTHING: &str = "\
flen = FLEN
nomsyncafterwrite = true
[weights]
close_open = 0.2
invalidate = 1
mapread = 10
mapwrite = 10
read = 10
write = 10
truncate = 4
fsync = 0.2
fdatasync = 0.2
posix_fallocate = 2
punch_hole = 4
sendfile = 2
posix_fadvise = 2
copy_file_range = 4
";

/// Those that leave the size alone, in the first part of a file whose rest stays the lower's.
const BEGINNING: &str = "\
flen = FLEN
nomsyncafterwrite = true
blockmode = true
[weights]
truncate = 0
invalidate = 1
mapread = 10
mapwrite = 10
read = 10
write = 10
fsync = 0.2
fdatasync = 0.2
punch_hole = 4
sendfile = 2
posix_fadvise = 2
copy_file_range = 4
";

/// One kind of file that fsx works on.
struct Row {
    name: &'static str,
    config: &'static str,
    /// How far fsx goes.
    flen_bytes: u64,
    /// The size of the file in the lower; `None` where it is born by fsx.
    lower_bytes: Option<u64>,
    operations: u32,
}

const ROWS: &[Row] = &[
    Row {
        name: "new",
        config: EVERYTHING,
        flen_bytes: 256 << 10,
        lower_bytes: None,
        operations: 10_000,
    },
    Row {
        name: "small-lower",
        config: EVERYTHING,
        flen_bytes: 256 << 10,
        lower_bytes: Some(100_000),
        operations: 10_000,
    },
    Row {
        name: "large-lower",
        config: EVERYTHING,
        flen_bytes: 8 << 20,
        lower_bytes: Some(8 << 20),
        operations: 10_000,
    },
    Row {
        name: "large-lower-beginning",
        config: BEGINNING,
        flen_bytes: 1 << 20,
        lower_bytes: Some(16 << 20),
        operations: 10_000,
    },
];

pub fn install(bench: &Bench) -> Step {
    program(bench).map(drop)
}

fn program(bench: &Bench) -> Step<PathBuf> {
    install::from_crate(&bench.directory, "fsx", "0.3.2")
}

pub fn run(bench: &Bench) -> Step<Results> {
    let mut place = bench.place("fsx")?;
    let (plain, lower) = (place.plain(), place.lower());
    for (row, seed) in rows() {
        for directory in [&plain, &lower] {
            prepare(row, &directory.join(file_name(row, seed)))?;
        }
    }
    place.mount()?;
    let mut results = Results::default();
    for (row, seed) in rows() {
        let name = file_name(row, seed);
        let union = place.root().join(&name);
        results.ext4.insert(name.clone(), on(bench, &place, row, seed, &plain.join(&name))?);
        results.union.insert(name, on(bench, &place, row, seed, &union)?);
    }
    place.unmount()?;
    place.mount()?;
    compare(&place, &mut results.union)?;
    place.unmount()?;
    let operations: u32 = rows().map(|(row, _)| row.operations).sum();
    note(&format!("{operations} operations"));
    Ok(results)
}

fn rows() -> impl Iterator<Item = (&'static Row, u32)> {
    ROWS.iter().flat_map(|row| SEEDS.map(move |seed| (row, seed)))
}

fn file_name(row: &Row, seed: u32) -> String {
    format!("{}-{seed}", row.name)
}

/// No byte of a lower file is zero, so that none is taken for a hole.
fn prepare(row: &Row, path: &Path) -> Step {
    let Some(bytes) = row.lower_bytes else { return Ok(()) };
    let pattern: Vec<u8> = (0..=u8::MAX).filter(|byte| *byte != 0).cycle().take(65_536).collect();
    let mut file = File::create(path).map_err(file_error(path))?;
    let mut left = bytes;
    while left > 0 {
        let count = left.min(pattern.len() as u64);
        let part = pattern.get(..usize::try_from(count).unwrap_or(0)).unwrap_or_default();
        file.write_all(part).map_err(file_error(path))?;
        left -= count;
    }
    Ok(())
}

fn on(bench: &Bench, place: &Place, row: &Row, seed: u32, path: &Path) -> Step<End> {
    let notes = place.notes();
    let config = notes.join("fsx.toml");
    let text = row.config.replace("FLEN", &row.flen_bytes.to_string());
    fs::write(&config, text).map_err(file_error(&config))?;
    let mut command = bounded(600, program(bench)?);
    command.arg("-q").arg("-f").arg(&config).args(["-N", &row.operations.to_string()]);
    command.args(["-S", &seed.to_string()]).arg("-P").arg(notes).arg(path).current_dir(notes);
    let said = output(&mut command)?;
    if said.status.success() {
        return Ok(End::Passed);
    }
    note(&format!("{}: {}", path.display(), String::from_utf8_lossy(&said.stderr)));
    Ok(End::Failed)
}

/// What fsx left is the same on both, after a remount: what it wrote, and what it did not.
fn compare(place: &Place, union: &mut Ends) -> Step {
    for (row, seed) in rows() {
        let name = file_name(row, seed);
        let (ours, theirs) = (read(&place.root().join(&name))?, read(&place.plain().join(&name))?);
        let least = row.lower_bytes.unwrap_or(0).min(1);
        check(theirs.len() as u64 >= least, format!("{name}: is empty"))?;
        let end = if ours == theirs { End::Passed } else { End::Failed };
        union.insert(format!("{name}-after-remount"), end);
    }
    Ok(())
}

fn read(path: &Path) -> Step<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)).map_err(file_error(path))?;
    Ok(bytes)
}
