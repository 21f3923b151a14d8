//! Writes a cpio archive as the kernel unpacks it, the same bytes for the same entries.
//!
//! Source: Documentation/driver-api/early-userspace/buffer-format.rst ("newc").

use std::collections::BTreeMap;

/// Entries by path; the order in which they were added does not show.
#[derive(Debug, Default)]
pub struct Archive {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    mode: u32,
    device: (u32, u32),
    content: Vec<u8>,
}

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

impl Archive {
    /// Adds a directory that root owns. Parents sort before what is in them.
    pub fn directory(&mut self, path: &str) {
        self.add(path, Entry { mode: DIRECTORY | 0o755, device: (0, 0), content: Vec::new() });
    }

    /// Adds a file; `permissions` are mode bits below `S_IFMT`.
    pub fn file(&mut self, path: &str, permissions: u32, content: Vec<u8>) {
        self.add(path, Entry { mode: FILE | permissions, device: (0, 0), content });
    }

    /// Adds a character device that only root opens.
    pub fn device(&mut self, path: &str, major: u32, minor: u32) {
        let mode = CHARACTER_DEVICE | 0o600;
        self.add(path, Entry { mode, device: (major, minor), content: Vec::new() });
    }

    fn add(&mut self, path: &str, entry: Entry) {
        self.entries.insert(path.to_owned(), entry);
    }

    /// The archive's bytes: owner 0, time 0, inodes counted from 1.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (inode, (path, entry)) in (1..).zip(&self.entries) {
            append(&mut bytes, inode, path, entry);
        }
        let end = Entry { mode: 0, device: (0, 0), content: Vec::new() };
        append(&mut bytes, 0, "TRAILER!!!", &end);
        bytes
    }
}

fn append(bytes: &mut Vec<u8>, inode: u32, path: &str, entry: &Entry) {
    let links = if entry.mode & 0o170_000 == DIRECTORY { 2 } else { 1 };
    let (major, minor) = entry.device;
    let (size, name_size) = (entry.content.len(), path.len() + 1);
    // ino mode uid gid nlink mtime filesize, the device it is on, rdev, namesize, check.
    bytes.extend_from_slice(
        format!(
            "070701{inode:08X}{:08X}{:08X}{:08X}{links:08X}{:08X}{size:08X}{:08X}{:08X}\
             {major:08X}{minor:08X}{name_size:08X}{:08X}",
            entry.mode, 0, 0, 0, 0, 0, 0
        )
        .as_bytes(),
    );
    bytes.extend_from_slice(path.as_bytes());
    bytes.push(0);
    pad(bytes);
    bytes.extend_from_slice(&entry.content);
    pad(bytes);
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tool;
    use std::io::Write as _;
    use std::process::Command;

    fn sample(names: &[&str]) -> Vec<u8> {
        let mut archive = Archive::default();
        for name in names {
            match *name {
                "init" => archive.file("init", 0o755, b"#!x".to_vec()),
                "dev" => archive.directory("dev"),
                _ => archive.device("dev/console", 5, 1),
            }
        }
        archive.bytes()
    }

    #[test]
    fn archive_does_not_depend_on_the_order_of_adding() {
        let one = sample(&["init", "dev", "dev/console"]);
        assert_eq!(one, sample(&["dev/console", "dev", "init"]));
        assert_eq!(one.len() % 4, 0);
        assert!(one.starts_with(b"07070100000001000041ED"));
    }

    #[test]
    fn cpio_reads_what_was_written() {
        let bytes = sample(&["init", "dev", "dev/console"]);
        let mut list = Command::new("cpio");
        list.args(["--list", "--verbose", "--numeric-uid-gid", "--quiet"]);
        let listed = match tool::run_with_input(&mut list, "cpio", &bytes) {
            Err(crate::ImageError::NoTool { .. }) => {
                // Past the harness, which would keep it to itself.
                let line = "SKIPPED cpio_reads_what_was_written: cpio is not installed\n";
                std::io::stderr().write_all(line.as_bytes()).unwrap();
                return;
            }
            listed => String::from_utf8(listed.unwrap()).unwrap(),
        };
        let names: Vec<_> = listed.lines().filter_map(|line| line.split(' ').next_back()).collect();
        assert_eq!(names, ["dev", "dev/console", "init"], "{listed}");
        assert!(listed.contains("crw-------") && listed.contains("-rwxr-xr-x"), "{listed}");
    }
}
