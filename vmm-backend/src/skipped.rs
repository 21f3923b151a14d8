//! A test that cannot run here says so, past the harness, which shows what a test prints only if it
//! fails. `cargo xtask test` repeats these lines at its end.

use std::io::Write as _;

/// Says aloud that the running test is skipped: "SKIPPED test: problem", a line of standard error.
pub fn skip(problem: &str) {
    // The harness runs each test in a thread of its name.
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    if let Err(cause) = writeln!(std::io::stderr(), "SKIPPED {test}: {problem}") {
        log::warn!("{test} was skipped, and that could not be said: {cause}");
    }
}
