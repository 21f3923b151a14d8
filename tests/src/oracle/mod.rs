//! Random operations, done alike on two trees that should not be told apart.
//!
//! A [`script`] makes a tree and says what actors, each a process of its own ([`actor`], [`cast`]), do
//! to it; [`dice`] makes scripts at random; [`duel`] plays one on a union and on a private copy.

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::io::Errno;

use dice::Dice;
use script::Operation;

pub mod actor;
pub mod cast;
pub mod dice;
pub mod duel;
mod guess;
mod held;
pub mod script;
pub mod tally;
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

/// Operations in the tree of a seed.
const TREE_OPERATIONS: usize = 200;
/// How many are chosen between two looks at what is there.
const OPERATIONS_PER_SIGHT: usize = 8;

/// Has the tree of a seed made below a root, and gives what was done.
pub fn make_tree(seed: u64, root: &Path, perform: &mut dyn FnMut(&Operation)) -> Vec<Operation> {
    let mut dice = Dice::of_tree(seed);
    improvise((&mut dice, Dice::birth), (root, TREE_OPERATIONS), &mut |operation| {
        perform(operation);
        Ok(())
    })
    .0
}

/// Has so many operations done, each chosen by what is below the root by then. Gives what was done,
/// and what ended it early.
pub fn improvise(
    (dice, choose): (&mut Dice, fn(&mut Dice) -> Operation),
    (root, count): (&Path, usize),
    perform: &mut dyn FnMut(&Operation) -> Result<(), String>,
) -> (Vec<Operation>, Result<(), String>) {
    let mut script = Vec::new();
    for number in 0..count {
        if number % OPERATIONS_PER_SIGHT == 0 {
            dice.see(root);
        }
        let operation = choose(dice);
        let done = perform(&operation);
        script.push(operation);
        if done.is_err() {
            return (script, done);
        }
    }
    (script, Ok(()))
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
