//! Law U51: a union and a private copy cannot be told apart by any sequence of operations.
//!
//! `THINROOT_ORACLE_SEEDS` says how many seeds are tried (default 8), `THINROOT_ORACLE_FIRST` with
//! which to begin, `THINROOT_ORACLE_OPERATIONS` how many operations each has (default 300). What
//! fails is made short and kept in `tests/regressions/`, which are played first.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::cell::RefCell;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tests::disk::{Disk, has_lawful_copies};
use tests::mount::{Site, may_mount};
use tests::oracle::duel::Duel;
use tests::oracle::script::{self, Operation};
use tests::oracle::setting;

/// How long a script is made shorter.
const SHRINKING: Duration = Duration::from_secs(120);

fn actor() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_actor"))
}

/// Where a private copy stands that is not beside its union.
fn home_of_copies() -> Option<Disk> {
    (!has_lawful_copies()).then(|| Disk::new("ext4"))
}

fn duel<'a>(site: &'a Site, home: Option<&Disk>) -> Duel<'a> {
    let home = home.map_or_else(|| site.path().to_owned(), Disk::path);
    Duel { site, copy: home.join("copy"), actor: actor(), tally: RefCell::default() }
}

fn regressions() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions")
}

#[test]
fn random_operations_agree_with_a_private_copy() {
    if !may_mount("random_operations_agree_with_a_private_copy") {
        return;
    }
    let disk = Disk::under_test();
    let site = Site::inside(&disk.path());
    let home = home_of_copies();
    let duel = duel(&site, home.as_ref());
    let count = usize::try_from(setting("THINROOT_ORACLE_OPERATIONS", 300)).unwrap();
    let first = setting("THINROOT_ORACLE_FIRST", 1);
    let seeds = setting("THINROOT_ORACLE_SEEDS", 8);
    let start = Instant::now();
    let mut failures = String::new();
    for seed in first..first + seeds {
        let (script, told) = duel.improvise(seed, count);
        if let Err(difference) = told {
            writeln!(failures, "seed {seed}: {}", kept(&duel, seed, script, difference)).unwrap();
            eprintln!("{failures}");
        }
    }
    let seconds = start.elapsed().as_secs();
    println!("{seeds} seeds from {first} in {seconds} s: {}", duel.tally.borrow());
    assert!(failures.is_empty(), "{failures}");
}

/// Makes a script short, keeps it, and says what it is about.
fn kept(duel: &Duel<'_>, seed: u64, script: Vec<Operation>, difference: String) -> String {
    let start = Instant::now();
    let shortest = script::shrink(script, &mut |fewer| {
        start.elapsed() < SHRINKING && duel.play(fewer).is_err()
    });
    let difference = duel.play(&shortest).err().unwrap_or(difference);
    let path = regressions().join(format!("seed-{seed}.txt"));
    let difference = difference.replace('\n', " ");
    let text = format!("# {difference}\n{}", script::text(&shortest));
    fs::create_dir_all(regressions()).unwrap();
    fs::write(&path, &text).unwrap();
    format!("kept in {}:\n{text}", path.display())
}

/// Scripts that once told a union from a copy.
#[test]
fn kept_scripts_agree_with_a_private_copy() {
    if !may_mount("kept_scripts_agree_with_a_private_copy") {
        return;
    }
    let disk = Disk::under_test();
    let site = Site::inside(&disk.path());
    let home = home_of_copies();
    let duel = duel(&site, home.as_ref());
    let mut failures = String::new();
    let mut paths: Vec<_> =
        fs::read_dir(regressions()).unwrap().map(|row| row.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        let script = script::parse(&fs::read_to_string(&path).unwrap());
        assert!(!script.is_empty(), "{}: no script", path.display());
        if let Err(difference) = duel.play(&script) {
            writeln!(failures, "{}: {difference}", path.display()).unwrap();
        }
    }
    assert!(failures.is_empty(), "{failures}");
}
