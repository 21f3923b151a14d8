//! The oracles at length: `cargo xtask oracle [--seeds N] [--operations N] [--first SEED]`.

use crate::build::cargo;
use crate::steps::{Step, StepError, note, run, step};

/// A million operations on a private copy, a hundred thousand on the kernel's overlayfs.
const DEFAULT: Size = Size { seeds: 1000, operations: 1000, first: 1 };
/// For each seed of the kernel's overlayfs, so many of the private copy.
const SEEDS_PER_KERNEL_SEED: u64 = 10;

struct Size {
    seeds: u64,
    operations: u64,
    first: u64,
}

/// Plays random scripts on a union and a private copy, then on the kernel's overlayfs.
pub fn oracle(arguments: &[&str]) -> Step {
    let size = read(arguments)?;
    note(&format!("{} seeds from {}, {} operations each", size.seeds, size.first, size.operations));
    step("the union and a private copy cannot be told apart", || {
        play("oracle_private_copy", &size)
    })?;
    let seeds = size.seeds.div_ceil(SEEDS_PER_KERNEL_SEED);
    step("the kernel's overlayfs reads what we write, and we what it writes", || {
        play("oracle_overlayfs", &Size { seeds, ..size })
    })
}

fn read(arguments: &[&str]) -> Step<Size> {
    let mut size = DEFAULT;
    for pair in arguments.chunks(2) {
        let [option, value] = pair else {
            return Err(StepError::Wrong(format!("{}: expected a number behind it", pair[0])));
        };
        let place = match *option {
            "--seeds" => &mut size.seeds,
            "--operations" => &mut size.operations,
            "--first" => &mut size.first,
            other => {
                let known = "expected --seeds, --operations or --first";
                return Err(StepError::Wrong(format!("{other}: {known}")));
            }
        };
        let expected = |_| StepError::Wrong(format!("{option} {value}: expected a number"));
        *place = value.parse().map_err(expected)?;
    }
    Ok(size)
}

fn play(test: &str, size: &Size) -> Step {
    let mut command = cargo(&["test", "--release", "--package", "tests", "--test", test]);
    command.args(["--", "--nocapture"]);
    command.env("THINROOT_ORACLE_SEEDS", size.seeds.to_string());
    command.env("THINROOT_ORACLE_FIRST", size.first.to_string());
    command.env("THINROOT_ORACLE_OPERATIONS", size.operations.to_string());
    run(&mut command)
}
