//! fio: blocks with checksums, written in every way and read back, before and after a remount.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use super::verdict::{End, Results};
use super::{Bench, bounded, place::Place};
use crate::setup;
use crate::steps::{Step, file_error, note, output};

const FILE_BYTES: u64 = 32 << 20;
/// A quarter of the file: the rest of a lower one falls through.
const WRITTEN_BYTES: u64 = FILE_BYTES / 4;

/// Ways to write: name, and fio's words for it.
const WAYS: &[(&str, &[&str])] = &[
    ("buffered", &["--ioengine=psync"]),
    ("mapped", &["--ioengine=mmap"]),
    ("direct", &["--ioengine=psync", "--direct=1"]),
    ("queued", &["--ioengine=libaio", "--direct=1", "--iodepth=16"]),
    ("synced", &["--ioengine=psync", "--fsync=64"]),
];

pub fn install(_: &Bench) -> Step {
    setup::install_packages(&[("fio", "fio")])
}

pub fn run(bench: &Bench) -> Step<Results> {
    let mut place = bench.place("fio")?;
    for (name, is_lower, _) in rows() {
        for directory in [place.lower(), place.plain()] {
            if is_lower {
                random_file(&directory.join(&name))?;
            }
        }
    }
    place.mount()?;
    let mut results = Results::default();
    for (name, _, way) in rows() {
        for (directory, ends) in
            [(place.plain(), &mut results.ext4), (place.root(), &mut results.union)]
        {
            ends.insert(name.clone(), fio(&place, &directory, &name, way, "--do_verify=1")?);
        }
    }
    place.unmount()?;
    place.mount()?;
    for (name, _, way) in rows() {
        let again = fio(&place, &place.root(), &name, way, "--verify_only=1")?;
        results.union.insert(format!("{name}-after-remount"), again);
    }
    place.unmount()?;
    Ok(results)
}

/// Each way on a file of the lower and on a new one.
fn rows() -> impl Iterator<Item = (String, bool, &'static [&'static str])> {
    WAYS.iter().flat_map(|(name, way)| {
        [("new", false), ("lower", true)]
            .map(|(kind, is_lower)| (format!("{kind}-{name}"), is_lower, *way))
    })
}

fn random_file(path: &Path) -> Step {
    let mut source = File::open("/dev/urandom").map_err(file_error(path))?.take(FILE_BYTES);
    let copied = File::create(path).and_then(|mut file| io::copy(&mut source, &mut file));
    copied.map(drop).map_err(file_error(path))
}

fn fio(place: &Place, directory: &Path, name: &str, way: &[&str], verify: &str) -> Step<End> {
    let mut command = bounded(300, "fio");
    command.args(["--name=verify", "--rw=randwrite", "--bsrange=4k-64k", "--verify=crc32c"]);
    command.args(["--verify_fatal=1", "--randseed=7", "--minimal", verify]).args(way);
    command.arg(format!("--size={FILE_BYTES}")).arg(format!("--io_size={WRITTEN_BYTES}"));
    command.arg(format!("--filename={}", directory.join(name).display()));
    let said = output(command.current_dir(place.notes()))?;
    if said.status.success() {
        return Ok(End::Passed);
    }
    note(&format!("{name}: {}", String::from_utf8_lossy(&said.stderr)));
    Ok(End::Failed)
}
