//! The laws of docs/UNION.md that the daemon keeps and no guest's kernel, asked through the virtual
//! guest: a table of changes and of what shows after them, now, after the daemon has ended and
//! after it was killed. Numbers and generations stay all the while.
#![allow(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::collections::BTreeMap;
use std::path::Path;

use rustix::io::Errno;
use tests::daemon::Ground;
use tests::laws::ground;
use tests::laws::plot::Plot;
use tests::requests::{Change, Mount, ROOT};
use tests::skip::skip;
use tests::wire::Entry;

#[path = "guest_laws/names.rs"]
mod names;
#[path = "guest_laws/objects.rs"]
mod objects;

/// What came of a request that may be refused.
type Done<T = ()> = Result<T, Errno>;

/// A law in the daemon's keeping.
struct Row {
    /// Its number in docs/UNION.md.
    law: u32,
    name: &'static str,
    change: fn(&Root<'_>) -> Done,
    /// Paths, and how each is told.
    shows: &'static [(&'static str, &'static str)],
}

fn rows() -> impl Iterator<Item = &'static Row> {
    names::ROWS.iter().chain(objects::ROWS)
}

/// A row's plot, as the guest's root sees it.
struct Root<'a> {
    mount: &'a Mount,
    plot: String,
}

/// `path` cut into its directory and its name.
fn cut(path: &str) -> (&str, &[u8]) {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    (directory, name.as_bytes())
}

impl Root<'_> {
    fn entry(&self, path: &str) -> Done<Entry> {
        let (directory, name) = cut(path);
        self.mount.lookup(self.node(directory)?, name)
    }

    fn node(&self, path: &str) -> Done<u64> {
        self.mount.resolve(&format!("{}/{path}", self.plot))
    }

    /// A name in its directory, both told to the daemon as it likes them.
    fn at<'p>(&self, path: &'p str) -> Done<(u64, &'p [u8])> {
        let (directory, name) = cut(path);
        Ok((self.node(directory)?, name))
    }

    fn write(&self, path: &str, offset: u64, bytes: &[u8]) -> Done {
        self.mount.write_all(self.node(path)?, offset, bytes)
    }

    fn create(&self, path: &str, bytes: &[u8]) -> Done<u64> {
        let (directory, name) = self.at(path)?;
        Ok(self.mount.write_new(directory, name, 0o644, bytes)?.node)
    }

    fn set(&self, path: &str, change: Change) -> Done {
        self.mount.setattr(self.node(path)?, change).map(drop)
    }

    fn chmod(&self, path: &str, mode: u32) -> Done {
        self.set(path, Change { mode: Some(mode), ..Change::default() })
    }

    fn chown(&self, path: &str, uid: u32, gid: u32) -> Done {
        self.set(path, Change { uid: Some(uid), gid: Some(gid), ..Change::default() })
    }

    fn cut_to(&self, path: &str, size: u64) -> Done {
        self.set(path, Change { size: Some(size), ..Change::default() })
    }

    fn unlink(&self, path: &str) -> Done {
        let (directory, name) = self.at(path)?;
        self.mount.unlink(directory, name)
    }

    fn rmdir(&self, path: &str) -> Done {
        let (directory, name) = self.at(path)?;
        self.mount.rmdir(directory, name)
    }

    fn mkdir(&self, path: &str) -> Done {
        let (directory, name) = self.at(path)?;
        self.mount.mkdir(directory, name, 0o755).map(drop)
    }

    fn mknod(&self, path: &str, mode: u32, rdev: u32) -> Done {
        let (directory, name) = self.at(path)?;
        self.mount.mknod(directory, name, mode, rdev).map(drop)
    }

    fn symlink(&self, target: &[u8], path: &str) -> Done {
        let (directory, name) = self.at(path)?;
        self.mount.symlink(directory, name, target).map(drop)
    }

    fn link(&self, from: &str, to: &str) -> Done {
        let (directory, name) = self.at(to)?;
        self.mount.link(self.node(from)?, directory, name).map(drop)
    }

    fn rename(&self, from: &str, to: &str, flags: u32) -> Done {
        self.mount.rename2(self.at(from)?, self.at(to)?, flags)
    }

    fn set_xattr(&self, path: &str, name: &str, value: &[u8]) -> Done {
        self.mount.setxattr(self.node(path)?, name.as_bytes(), value, 0)
    }

    fn names(&self, path: &str) -> Done<Vec<String>> {
        self.mount.names(self.node(path)?)
    }

    /// Everything in it and itself.
    fn remove_tree(&self, path: &str) -> Done {
        for name in self.names(path)? {
            let child = format!("{path}/{name}");
            match self.entry(&child)?.attr.kind() {
                0o040_000 => self.remove_tree(&child)?,
                _ => self.unlink(&child)?,
            }
        }
        self.rmdir(path)
    }

    /// An object in a line: kind, mode, owner, links, and what it holds; `-` for none.
    fn tell(&self, path: &str) -> String {
        let entry = match if path.is_empty() { Err(Errno::ISDIR) } else { self.entry(path) } {
            Err(Errno::NOENT) => return "-".to_owned(),
            entry => entry.unwrap_or_else(|errno| panic!("{}/{path}: {errno}", self.plot)),
        };
        let attr = entry.attr;
        let (kind, holds) = match attr.kind() {
            0o040_000 => ('d', self.names(path).unwrap().join(" ")),
            0o100_000 => ('f', content(&self.mount.read_all(entry.node).unwrap())),
            0o120_000 => ('l', content(&self.mount.readlink(entry.node).unwrap())),
            0o010_000 => ('p', String::new()),
            0o140_000 => ('s', String::new()),
            0o020_000 => ('c', attr.rdev.to_string()),
            _ => ('b', attr.rdev.to_string()),
        };
        let (mode, owner) = (attr.mode & 0o7777, format!("{}:{}", attr.uid, attr.gid));
        let mut line = format!("{kind}{mode:o} {owner} x{} {holds}", attr.nlink);
        let mut names = self.mount.listxattr(entry.node).unwrap();
        names.sort_unstable();
        for name in names.iter().filter(|name| *name != b"security.selinux") {
            let value = self.mount.getxattr(entry.node, name).unwrap();
            line += &format!(" {}={}", String::from_utf8_lossy(name), content(&value));
        }
        line
    }
}

/// Short contents as they are, others by length and sum.
fn content(bytes: &[u8]) -> String {
    if bytes.len() <= 24 {
        return bytes.escape_ascii().to_string();
    }
    let sum = bytes.iter().fold(0_u32, |sum, byte| sum.wrapping_mul(31) + u32::from(*byte));
    format!("{} bytes, {sum:x}", bytes.len())
}

/// What `what` was refused with.
#[track_caller]
fn refused<T>(what: &str, result: Done<T>, expected: Errno) {
    assert_eq!(result.map(|_| ()), Err(expected), "{what}");
}

/// A number and a generation for each path of each row.
type Numbers = BTreeMap<(&'static str, &'static str), (u64, u64)>;

fn look(mount: &Mount, when: &str) -> Numbers {
    let mut numbers = Numbers::new();
    let mut wrong = Vec::new();
    for row in rows() {
        let root = Root { mount, plot: row.name.replace(' ', "_") };
        for (path, expected) in row.shows {
            let told = root.tell(path);
            if told != *expected {
                let law = format!("U{} {}, {when}", row.law, row.name);
                wrong.push(format!("{law}: {path}: {told:?} instead of {expected:?}"));
            }
            if let Ok(entry) = root.entry(path) {
                numbers.insert((row.name, *path), (entry.attr.ino, entry.generation));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    numbers
}

/// A guest that holds nothing yet asks by number and generation, as a file handle has them.
fn find_by_handle(mount: &Mount, numbers: &Numbers) {
    let mut wrong = Vec::new();
    for ((row, path), (number, generation)) in numbers {
        for name in [b".", b"/"] {
            match mount.lookup(*number, name) {
                Ok(found) if (found.attr.ino, found.generation) == (*number, *generation) => {}
                found => wrong.push(format!("{row}: {path}, {number}.{generation}: {found:?}")),
            }
        }
        mount.forget(*number, 2);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn daemon_keeps_its_laws_for_any_guest_and_after_a_restart() {
    if !rustix::process::geteuid().is_root() {
        skip("daemon_keeps_its_laws_for_any_guest_and_after_a_restart", "it needs root");
        return;
    }
    let ground = Ground::new();
    for row in rows() {
        let plot = Plot::new(ground.lower().join(row.name.replace(' ', "_")));
        plot.mkdir("").unwrap();
        ground::lay_out(&plot).unwrap();
        ground::age(&plot, Path::new("")).unwrap();
    }
    let daemon = ground.serve();
    let mount = daemon.mount();
    for row in rows() {
        let root = Root { mount: &mount, plot: row.name.replace(' ', "_") };
        let done = (row.change)(&root);
        done.unwrap_or_else(|errno| panic!("U{} {}: {errno}", row.law, row.name));
    }
    let first = look(&mount, "at once");
    mount.unmount();
    assert!(daemon.terminate().success());

    let daemon = ground.serve();
    let mount = daemon.mount();
    find_by_handle(&mount, &first);
    assert_eq!(look(&mount, "after the daemon ended"), first);
    // Forgotten or not.
    find_by_handle(&mount, &first);
    assert_eq!(mount.getattr(ROOT).map(|attr| attr.ino), Ok(1));
    mount.crash();
    daemon.kill();

    let daemon = ground.serve();
    assert_eq!(look(&daemon.mount(), "after the daemon was killed"), first);
}
