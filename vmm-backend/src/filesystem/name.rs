//! A name, checked once.

use std::fmt;

use super::Errno;

/// The longest name a directory entry may have, in bytes (limits.h: `NAME_MAX`).
pub const NAME_BYTES_MAX: usize = 255;

/// One path component, checked once: not empty, not `.` or `..`, no `/`, no NUL, at most
/// [`NAME_BYTES_MAX`] bytes. Any other byte is allowed, UTF-8 or not.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name<'a>(&'a [u8]);

impl<'a> Name<'a> {
    /// Checks `bytes` and gives them back as a name.
    ///
    /// Errors: `EINVAL` for an empty name, `.`, `..`, or one with `/` or NUL in it;
    /// `ENAMETOOLONG` above [`NAME_BYTES_MAX`] bytes.
    pub fn new(bytes: &'a [u8]) -> Result<Self, Errno> {
        if bytes.len() > NAME_BYTES_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        if matches!(bytes, b"" | b"." | b"..") || bytes.iter().any(|b| matches!(b, 0 | b'/')) {
            return Err(Errno::INVAL);
        }
        Ok(Self(bytes))
    }

    /// The bytes of the name, without a trailing NUL.
    pub const fn as_bytes(self) -> &'a [u8] {
        self.0
    }
}

impl fmt::Debug for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_that_could_leave_its_directory_is_refused() {
        let long = [b'a'; NAME_BYTES_MAX + 1];
        let rows: [(&[u8], Option<Errno>); 10] = [
            (b"", Some(Errno::INVAL)),
            (b".", Some(Errno::INVAL)),
            (b"..", Some(Errno::INVAL)),
            (b"a/b", Some(Errno::INVAL)),
            (b"a\0b", Some(Errno::INVAL)),
            (&long, Some(Errno::NAMETOOLONG)),
            (&long[1..], None),
            (b"...", None),
            (b".wh.foo", None),
            (b"\xff\n", None),
        ];
        for (bytes, refused) in rows {
            assert_eq!(Name::new(bytes).err(), refused, "{:?}", bytes.escape_ascii().to_string());
        }
    }
}
