//! The kernel's table of mounts, which can be asked of a dead mount too.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// A row of proc_pid_mountinfo(5).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountRow {
    /// The mount's number; the next mount may get it when this one is gone.
    pub number: u64,
    /// The file system's device, `MAJOR:MINOR`.
    pub device: String,
}

impl MountRow {
    /// The mount on top at `path`, an absolute one without links.
    pub fn on_top_at(path: &Path) -> io::Result<Option<Self>> {
        Ok(Self::find(&table()?, path))
    }

    /// Whether anything of the file system with this device is mounted here.
    pub fn is_mounted(device: &str) -> io::Result<bool> {
        Ok(table()?.lines().any(|row| row.split(' ').nth(2) == Some(device)))
    }

    /// The number comes first, the device third, the mountpoint fifth; later rows are on top.
    fn find(table: &str, path: &Path) -> Option<Self> {
        let rows = table.lines().rev().map(|row| row.split(' ').collect::<Vec<_>>());
        let mut at_path =
            rows.filter(|row| row.get(4).is_some_and(|place| *place == escaped(path)));
        let row = at_path.next()?;
        Some(Self { number: row.first()?.parse().ok()?, device: (*row.get(2)?).to_owned() })
    }
}

fn table() -> io::Result<String> {
    fs::read_to_string("/proc/self/mountinfo")
}

/// A path as mountinfo writes it: space, tab, newline and backslash in octal.
fn escaped(path: &Path) -> String {
    let mut text = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => text.extend(format!("\\{byte:03o}").bytes()),
            _ => text.push(byte),
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_on_top_is_found_by_its_escaped_path() {
        let table = "22 27 0:21 / /mnt rw - ext4 /dev/a rw\n\
                     30 22 0:40 / /mnt/a\\040b rw - fuse.thinroot thinroot rw\n\
                     31 22 0:41 / /mnt rw - tmpfs none rw\n";
        let find =
            |path| MountRow::find(table, Path::new(path)).map(|row| (row.number, row.device));
        assert_eq!(find("/mnt"), Some((31, "0:41".to_owned())));
        assert_eq!(find("/mnt/a b"), Some((30, "0:40".to_owned())));
        assert_eq!(find("/mnt/a"), None);
    }
}
