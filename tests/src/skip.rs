//! A test that cannot run here says so, past the harness, which shows what a test prints only if it
//! fails. `cargo xtask test` repeats these lines at its end.

use std::io::Write as _;

/// Says aloud that `test` is skipped: "SKIPPED test: problem", a line of standard error.
pub fn skip(test: &str, problem: &str) {
    if let Err(cause) = writeln!(std::io::stderr(), "SKIPPED {test}: {problem}") {
        log::warn!("{test} was skipped, and that could not be said: {cause}");
    }
}
