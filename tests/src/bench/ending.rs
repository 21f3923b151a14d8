//! How the bench ends before its time: as on any other way out, everything it made is taken down.

use std::os::unix::process::parent_id;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::process::{Signal, set_parent_process_death_signal};
use thinroot::sys::signal::{ENDING, Signals};

use super::BenchError;

/// The first signal that came; 0 before it.
static CAME: AtomicI32 = AtomicI32::new(0);

/// Whether somebody asked this process to end.
#[derive(Clone, Copy, Debug)]
pub struct Ending(Signals);

impl Ending {
    /// Catches the signals by which others ask, and asks for one when who started us dies.
    pub fn watch() -> Result<Self, BenchError> {
        let starter = parent_id();
        let signals = Signals::catch(&ENDING).map_err(BenchError::file("/proc/self".as_ref()))?;
        let asked = set_parent_process_death_signal(Some(Signal::TERM));
        // A starter that is dead already sends none.
        if asked.is_err() || parent_id() != starter {
            return Err(BenchError::Ended(Signal::TERM.as_raw()));
        }
        Ok(Self(signals))
    }

    /// Errors: somebody asked.
    pub fn check(self) -> Result<(), BenchError> {
        if let Some(signal) = self.0.take() {
            CAME.store(signal, Ordering::Relaxed);
        }
        match CAME.load(Ordering::Relaxed) {
            0 => Ok(()),
            signal => Err(BenchError::Ended(signal)),
        }
    }
}
