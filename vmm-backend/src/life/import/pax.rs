//! The records of a pax extended header. Pure.
//!
//! The `tar` crate cuts them at newlines, which a binary value (an ACL, capabilities) may have; here
//! they are cut by their lengths, as POSIX says.

use std::collections::BTreeMap;

/// The records of one header, or of several joined: values are bytes.
#[derive(Clone, Debug, Default)]
pub struct Pax {
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The map of a sparse file in its oldest form (0.0), whose keys come again and again.
    segments: Vec<Vec<u8>>,
}

impl Pax {
    /// Takes in the records of a header: `LENGTH KEY=VALUE\n`, later ones win. `None` if they are
    /// malformed.
    ///
    /// Source: POSIX.1-2017, pax, "pax Extended Header".
    pub fn take(&mut self, mut bytes: &[u8]) -> Option<()> {
        // Some writers pad the header with NULs.
        while bytes.first().is_some_and(|byte| *byte != 0) {
            let space = bytes.iter().position(|byte| *byte == b' ')?;
            let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
            let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|byte| *byte == b'=')?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            if matches!(key, b"GNU.sparse.offset" | b"GNU.sparse.numbytes") {
                self.segments.push(value.to_vec());
            }
            self.records.insert(key.to_vec(), value.to_vec());
            bytes = &bytes[length..];
        }
        Some(())
    }

    /// The value of a key; an empty one takes back what a header for all entries said.
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.records.get(key.as_bytes()).map(Vec::as_slice).filter(|value| !value.is_empty())
    }

    /// A decimal number.
    pub fn number(&self, key: &str) -> Option<u64> {
        std::str::from_utf8(self.get(key)?).ok()?.parse().ok()
    }

    /// Seconds, perhaps with a fraction, perhaps before 1970: seconds and nanoseconds.
    pub fn time(&self, key: &str) -> Option<(i64, u32)> {
        let text = std::str::from_utf8(self.get(key)?).ok()?;
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let seconds: i64 = whole.parse().ok()?;
        if !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
            return None;
        }
        let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
        let nanoseconds: u32 = digits.parse().ok()?;
        // A fraction counts away from zero.
        match nanoseconds {
            0 => Some((seconds, 0)),
            some if text.starts_with('-') => Some((seconds.checked_sub(1)?, 1_000_000_000 - some)),
            some => Some((seconds, some)),
        }
    }

    /// Extended attributes, as star and GNU tar write them, by name.
    pub fn xattrs(&self) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
        const PREFIX: &[u8] = b"SCHILY.xattr.";
        self.records
            .iter()
            .filter_map(|(key, value)| Some((unescaped(key.strip_prefix(PREFIX)?), value.clone())))
    }

    /// What the records say of a sparse file's map; `Some(None)`: it is at the start of the data.
    pub fn sparse(&self) -> Option<Option<Vec<u64>>> {
        let numbers = |values: &mut dyn Iterator<Item = &[u8]>| {
            let number = |value| std::str::from_utf8(value).ok()?.parse().ok();
            values.map(number).collect::<Option<Vec<u64>>>()
        };
        if self.get("GNU.sparse.major") == Some(b"1") {
            return Some(None);
        }
        if let Some(map) = self.get("GNU.sparse.map") {
            return numbers(&mut map.split(|byte| *byte == b',')).map(Some);
        }
        if self.segments.is_empty() {
            return None;
        }
        numbers(&mut self.segments.iter().map(Vec::as_slice)).map(Some)
    }
}

/// GNU tar, src/xheader.c, `xattr_encode_keyword`: `%` and `=` are escaped in names.
fn unescaped(name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((byte, behind)) = rest.split_first() {
        let (byte, behind) = match (byte, behind) {
            (b'%', [b'3', b'D', behind @ ..]) => (b'=', behind),
            (b'%', [b'2', b'5', behind @ ..]) => (b'%', behind),
            (byte, behind) => (*byte, behind),
        };
        plain.push(byte);
        rest = behind;
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let mut length = body.len() + 1;
        while length.to_string().len() + body.len() != length {
            length += 1;
        }
        [length.to_string().as_bytes(), &body].concat()
    }

    #[test]
    fn records_are_cut_by_length_whatever_bytes_they_hold() {
        let mut pax = Pax::default();
        let binary = b"\x01\n\x0a=\x00 9 x=y\n\xff";
        let bytes = [
            record("path", b"a\nb"),
            record("SCHILY.xattr.security.capability", binary),
            record("SCHILY.xattr.user.a%3Db%25", b""),
            record("mtime", b"1.5"),
            vec![0; 7],
        ]
        .concat();
        pax.take(&bytes).unwrap();
        assert_eq!(pax.get("path"), Some(&b"a\nb"[..]));
        assert_eq!(pax.time("mtime"), Some((1, 500_000_000)));
        let xattrs: Vec<_> = pax.xattrs().collect();
        assert_eq!(xattrs[0], (b"security.capability".to_vec(), binary.to_vec()));
        assert_eq!(xattrs[1], (b"user.a=b%".to_vec(), Vec::new()));
        for bad in [&b"9 x=y\n"[..], b"x", b"6 xyz\n", b"99999999999999999999 a=b\n", b"0 a=b\n"] {
            assert!(Pax::default().take(bad).is_none(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn times_before_the_epoch_keep_their_fraction() {
        for (text, time) in [
            ("0", Some((0, 0))),
            ("-1", Some((-1, 0))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-0.25", Some((-1, 750_000_000))),
            ("12.123456789123", Some((12, 123_456_789))),
            ("x", None),
            ("1.x", None),
        ] {
            let mut pax = Pax::default();
            pax.take(&record("mtime", text.as_bytes())).unwrap();
            assert_eq!(pax.time("mtime"), time, "{text}");
        }
    }
}
