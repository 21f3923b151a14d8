//! The values of options that are more than words.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::time::Duration;

/// The number of a descriptor.
pub fn descriptor(text: &str) -> Result<RawFd, String> {
    text.parse()
        .ok()
        .filter(|number| *number >= 0)
        .ok_or_else(|| "expected the number of an open descriptor".to_owned())
}

/// Three of them, with commas between.
pub fn three_descriptors(text: &str) -> Result<[RawFd; 3], String> {
    let numbers: Vec<_> = text.split(',').map(descriptor).collect::<Result<_, _>>()?;
    numbers.try_into().map_err(|_| "expected three descriptors, as in 3,4,5".to_owned())
}

/// A size in bytes; K, M and G count in powers of 1024.
pub fn size_bytes(text: &str) -> Result<u64, String> {
    let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let shift = match unit {
        "" => Some(0),
        "K" | "k" => Some(10),
        "M" | "m" => Some(20),
        "G" | "g" => Some(30),
        _ => None,
    };
    let bytes = shift.zip(digits.parse::<u64>().ok());
    let bytes = bytes.and_then(|(shift, number)| number.checked_mul(1 << shift));
    bytes.filter(|bytes| *bytes > 0).ok_or_else(|| "expected a size, as in 512M or 2G".to_owned())
}

/// A time in seconds.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| "expected a number of seconds".to_owned())
}

/// `NAME=VALUE`.
pub fn assignment(text: &str) -> Result<OsString, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(text.into()),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_read_as_written() {
        let rows = [
            ("1G", Some(1 << 30)),
            ("512M", Some(512 << 20)),
            ("4096", Some(4096)),
            ("64k", Some(65536)),
        ];
        for (text, bytes) in rows {
            assert_eq!(size_bytes(text).ok(), bytes, "{text}");
        }
        for text in ["", "G", "1T", "-1", "1.5G", "0", "99999999999999G"] {
            assert!(size_bytes(text).is_err(), "{text}");
        }
        assert_eq!(seconds("1.5"), Ok(Duration::from_millis(1500)));
        for text in ["", "-1", "inf", "1s"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
