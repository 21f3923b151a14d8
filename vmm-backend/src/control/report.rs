//! What guest-init tells the host: reserved xattrs set on the union's root.

use std::sync::{Mutex, PoisonError};

use crate::filesystem::Errno;

/// The namespace of the reports; on the root nothing in it is listed, read or removed.
pub const REPORT_PREFIX: &[u8] = b"trusted.thinroot.";

/// The longest text of a report that is kept, in bytes: it goes into one line of the events.
const TEXT_BYTES_MAX: usize = 1024;

/// Something guest-init said. The host tells it on and bases no policy on it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Report {
    /// The guest stands in its root; a short text says how.
    Ready(String),
    /// The command ended with this status (128 + n for signal n), or the guest's init powered off.
    Exited(u8),
    /// Nothing could be run; one line says why.
    Failed(String),
}

/// Takes the reports, in the order the guest made them, on the thread that served the request.
pub type OnReport = Box<dyn Fn(Report) + Send + Sync>;

/// What one guest life has reported: ready once, and one final status.
#[derive(Default)]
struct Said {
    ready: bool,
    end: bool,
}

/// Checks reports and hands each on once.
pub struct Reports {
    /// Held while a report is handed on, so that their order holds; the callback must not set
    /// xattrs itself.
    said: Mutex<Said>,
    on_report: OnReport,
}

impl std::fmt::Debug for Reports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reports").finish_non_exhaustive()
    }
}

impl Reports {
    /// Reports go to `on_report`.
    pub fn new(on_report: OnReport) -> Self {
        Self { said: Mutex::default(), on_report }
    }

    /// A new guest life begins: it may report again.
    pub fn renew(&self) {
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = Said::default();
    }

    /// Whether the final status has been told.
    pub fn have_ended(&self) -> bool {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).end
    }

    /// Takes the report `name` (behind [`REPORT_PREFIX`]) with `value`. A second "ready" says
    /// nothing new and is ignored.
    ///
    /// Errors: `EPERM` for an unknown name and after the final status; `EINVAL` for a status
    /// that is no decimal number from 0 to 255.
    pub fn take(&self, name: &[u8], value: &[u8]) -> Result<(), Errno> {
        let report = match name {
            b"ready" => Report::Ready(one_line(value)),
            b"exit" => Report::Exited(status(value)?),
            b"failure" => Report::Failed(one_line(value)),
            _ => return Err(Errno::PERM),
        };
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.end {
            return Err(Errno::PERM);
        }
        match report {
            Report::Ready(_) if said.ready => return Ok(()),
            Report::Ready(_) => said.ready = true,
            Report::Exited(_) | Report::Failed(_) => said.end = true,
        }
        (self.on_report)(report);
        Ok(())
    }
}

fn status(value: &[u8]) -> Result<u8, Errno> {
    let digits = value.len() <= 3 && value.iter().all(u8::is_ascii_digit);
    let text = str::from_utf8(value).ok().filter(|_| digits);
    text.and_then(|text| text.parse().ok()).ok_or(Errno::INVAL)
}

/// A guest's bytes as one line of printable text: control characters escaped, the rest cut.
fn one_line(value: &[u8]) -> String {
    let value = value.get(..TEXT_BYTES_MAX).unwrap_or(value);
    let text = String::from_utf8_lossy(value);
    let mut line = String::new();
    for character in text.trim_end().chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn collecting() -> (Reports, Arc<Mutex<Vec<Report>>>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        (Reports::new(Box::new(move |report| sink.lock().unwrap().push(report))), seen)
    }

    #[test]
    fn first_final_status_wins_until_the_guest_restarts() {
        let (reports, seen) = collecting();
        assert_eq!(reports.take(b"ready", b"command"), Ok(()));
        assert_eq!(reports.take(b"ready", b"again"), Ok(()));
        assert_eq!(reports.take(b"exit", b"7"), Ok(()));
        assert_eq!(reports.take(b"exit", b"0"), Err(Errno::PERM));
        assert_eq!(reports.take(b"failure", b"late"), Err(Errno::PERM));
        assert_eq!(reports.take(b"ready", b"late"), Err(Errno::PERM));
        assert_eq!(*seen.lock().unwrap(), [Report::Ready("command".into()), Report::Exited(7)]);
        reports.renew();
        assert_eq!(reports.take(b"failure", b"no init"), Ok(()));
        assert_eq!(seen.lock().unwrap().last(), Some(&Report::Failed("no init".into())));
    }

    #[test]
    fn what_is_no_report_is_refused() {
        let (reports, seen) = collecting();
        let rows: [(&[u8], &[u8], Errno); 6] = [
            (b"exit", b"256", Errno::INVAL),
            (b"exit", b"-1", Errno::INVAL),
            (b"exit", b"", Errno::INVAL),
            (b"exit", b"0007", Errno::INVAL),
            (b"else", b"1", Errno::PERM),
            (b"", b"1", Errno::PERM),
        ];
        for (name, value, error) in rows {
            let row = (name.escape_ascii().to_string(), value.escape_ascii().to_string());
            assert_eq!(reports.take(name, value), Err(error), "{row:?}");
        }
        assert!(seen.lock().unwrap().is_empty());
    }

    #[test]
    fn a_guest_cannot_break_the_line_it_is_printed_on() {
        assert_eq!(one_line(b"a\nb\x1b[2J\xff\n"), "a\\nb\\u{1b}[2J\u{fffd}");
        assert_eq!(one_line(&[b'x'; 5000]).len(), TEXT_BYTES_MAX);
    }
}
