//! Random operations, done alike on two trees that should not be told apart.
//!
//! A [`script`] makes a tree and says what actors, each a process of its own ([`actor`], [`cast`]), do
//! to it; [`dice`] makes scripts at random; [`duel`] plays one on a union and on a private copy.

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::io::Errno;

pub mod actor;
pub mod cast;
pub mod dice;
pub mod duel;
mod held;
pub mod script;
mod words;

/// Times are alike if they were set, or both are of the time of the test.
fn class_of(seconds: i64) -> i64 {
    const YEAR_2020: i64 = 1_577_836_800;
    seconds.min(YEAR_2020)
}

/// Copies a tree with everything that belongs to it.
///
/// # Panics
/// If `cp` fails.
pub fn copy_tree(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status();
    let is_copied = status.is_ok_and(|status| status.success());
    assert!(is_copied, "cp -a {} {}", from.display(), to.display());
}

/// A tree as [`crate::tree::read`] sees it, with all times of the test alike.
pub fn comparable(root: &Path) -> crate::tree::Tree {
    let mut tree = crate::tree::read(root);
    for object in tree.values_mut() {
        let seconds = class_of(object.mtime.0);
        if seconds != object.mtime.0 {
            object.mtime = (seconds, 0);
        }
    }
    tree
}

/// A number from the environment, or else `default`.
///
/// # Panics
/// If it is there and no number.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| {
        value.parse().unwrap_or_else(|_| panic!("{name}={value}: expected a number"))
    })
}

/// Removes a directory and all below it, if it is there.
///
/// # Panics
/// If it cannot be removed.
pub fn remove(path: &Path) {
    match fs::remove_dir_all(path) {
        Err(error) if Errno::from_io_error(&error) != Some(Errno::NOENT) => {
            panic!("removing {}: {error}", path.display())
        }
        _ => {}
    }
}
