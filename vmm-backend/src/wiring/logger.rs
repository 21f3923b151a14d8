//! The log on standard error: one line per record, no colours, no filters but a level.
//!
//! Thirty lines in place of a crate: a daemon's log is read by journals, which add the time.

use std::io::Write as _;

use log::{LevelFilter, Log, Metadata, Record};

struct StandardError;

static LOGGER: StandardError = StandardError;

/// Lets records up to `level` through.
pub fn start(level: LevelFilter) {
    // It fails only where a logger is set already, which then serves as well.
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(level);
    }
}

impl Log for StandardError {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = match record.level() {
            log::Level::Info => format!("thinroot: {}\n", record.args()),
            level => format!("thinroot: {}: {}\n", level.as_str().to_lowercase(), record.args()),
        };
        // One write, so that lines of several threads and processes stay whole. A reader that is
        // gone must not take the daemon with it.
        std::io::stderr().lock().write_all(line.as_bytes()).ok();
    }

    fn flush(&self) {}
}
