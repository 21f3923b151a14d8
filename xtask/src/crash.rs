//! `cargo xtask crash`: every changing operation, interrupted at every system call, and the power
//! lost while many go on.

use crate::build::cargo;
use crate::steps::{Step, run, step};

/// How long work goes on while the power is lost again and again.
const POWER_SECONDS: u32 = 60;

/// Runs what `cargo xtask test` runs some of, whole.
pub fn crash() -> Step {
    step("each call of each change fails, and is the last; then each of the start", || {
        play(&["--package", "thinroot", "--test", "faults"], "each_change")
    })?;
    step("the same with the daemon of a mount", || {
        play(&["--package", "tests", "--test", "laws_daemon"], "of_any_call")?;
        play(&["--package", "tests", "--test", "laws_daemon"], "death_at_any_call")
    })?;
    step("power losses", || play(&["--package", "tests", "--test", "power_loss"], ""))
}

fn play(which: &[&str], name: &str) -> Step {
    let mut command = cargo(&["test", "--release"]);
    command.args(which).args(["--", "--nocapture", name]);
    command.env("THINROOT_FAULTS", "all");
    command.env("THINROOT_POWER_SECONDS", POWER_SECONDS.to_string());
    run(&mut command)
}
