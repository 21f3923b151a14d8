//! A failure is one line for the console and the host.

use std::fmt;

/// Why the guest cannot go on: one line that names the thing that failed.
#[derive(Debug)]
pub struct Failure(String);

impl Failure {
    /// Takes the first line's worth of `text`: a line break would tear the report.
    pub fn new(text: impl Into<String>) -> Failure {
        Failure(text.into().replace(['\n', '\r', '\0'], " "))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Turns any error into a [`Failure`] by saying what was tried.
pub trait OrFail<T> {
    /// The line becomes `what: error`.
    fn or_fail(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: fmt::Display> OrFail<T> for Result<T, E> {
    fn or_fail(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(format!("{}: {error}", what())))
    }
}

/// Bytes of a path or a tag as they can be shown on one line.
pub fn shown(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => bytes.escape_ascii().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_stays_one_line_whatever_it_carries() {
        let failure = Err::<(), _>("bad\nthing").or_fail(|| "mount\0x".to_owned());
        assert_eq!(failure.unwrap_err().to_string(), "mount x: bad thing");
    }

    #[test]
    fn bytes_that_are_no_text_are_shown_escaped() {
        assert_eq!(shown(b"plain name"), "plain name");
        assert_eq!(shown("é".as_bytes()), "é");
        assert_eq!(shown(b"\xff\n"), "\\xff\\n");
    }
}
