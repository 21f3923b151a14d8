//! Every changing operation of the union, with each of its system calls failing once, and with the
//! process ending before each: the tree is then the old one or the new one, and nothing is left
//! over.
//!
//! `RENAME_WHITEOUT` is left out: the guest's own whiteout comes in a second step.
//!
//! Some of the changes as a rule; all of them with `THINROOT_FAULTS=all`.
//!
//! Alone in its process: the fault hook counts the calls of all threads. Needs root for
//! `trusted.*` marks.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::io::Errno;
use thinroot::filesystem::{
    Allocate, Caller, DataSink, DataSource, DirectoryEntry, DirectorySink, Entry, FileSystem, Kind,
    Name, NewKind, NewObject, NodeId, Rename, RenameFlags, SetAttributes, SetXattr, Write,
};
use thinroot::layer::index::LayerKind;
use thinroot::layer::lower::{Lower, LowerPolicy, Strictness};
use thinroot::layer::mark::MarkSpace;
use thinroot::layer::owner::Ownership;
use thinroot::layer::seal::{LowerSpec, open_or_seal, open_roots};
use thinroot::layer::upper::{Upper, UpperConfig};
use thinroot::sys::{fault, fs as sys_fs};
use thinroot::union::Union;

const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 7 };
const PLAIN: RenameFlags = RenameFlags { no_replace: false, exchange: false, whiteout: false };
const EXCHANGE: RenameFlags = RenameFlags { exchange: true, ..PLAIN };

/// Above the size from which files are copied up by block.
const LARGE_BYTES: usize = 40 * 4096 + 77;

type Step = fn(&Guest<'_>) -> Result<(), Errno>;

/// What came before, and what is interrupted.
struct Row {
    name: &'static str,
    before: Step,
    change: Step,
}

#[allow(clippy::too_many_lines, reason = "a table: one row for each change")]
fn rows() -> Vec<Row> {
    let row = |name, before, change| Row { name, before, change };
    vec![
        row("create", |_| Ok(()), |g| g.make("a/sub/new", NewKind::File)),
        row("create over a whiteout", |g| g.unlink("a/one"), |g| g.make("a/one", NewKind::File)),
        row("mkdir", |_| Ok(()), |g| g.make("a/new", NewKind::Directory)),
        row(
            "mkdir over a whiteout",
            |g| g.unlink("a/sub/deep").and_then(|()| g.rmdir("a/sub")),
            |g| g.make("a/sub", NewKind::Directory),
        ),
        row("symlink", |_| Ok(()), |g| g.make("a/new", NewKind::Symlink { target: b"x" })),
        row(
            "mknod 0:0",
            |_| Ok(()),
            |g| g.make("a/new", NewKind::Special { kind: Kind::CharDevice, rdev: 0 }),
        ),
        row("link", |_| Ok(()), |g| g.link("a/one", "b/new")),
        row("link of a hard link", |_| Ok(()), |g| g.link("hard1", "b/new")),
        row("link over a whiteout", |g| g.unlink("a/two"), |g| g.link("large", "a/two")),
        row("unlink of a lower file", |_| Ok(()), |g| g.unlink("a/one")),
        row("unlink of a copied-up file", |g| g.chmod("a/one"), |g| g.unlink("a/one")),
        row("unlink of an unsettled file", |g| g.write("large", 9, b"x"), |g| g.unlink("large")),
        row("unlink of a born file", |g| g.make("a/new", NewKind::File), |g| g.unlink("a/new")),
        row("unlink of a hard link", |_| Ok(()), |g| g.unlink("hard1")),
        row("unlink of an indexed link", |g| g.write("hard1", 0, b"H"), |g| g.unlink("a/hard3")),
        row(
            "unlink of the last hard link",
            |g| g.unlink("hard1").and_then(|()| g.unlink("hard2")),
            |g| g.unlink("a/hard3"),
        ),
        row("rmdir of a lower directory", |_| Ok(()), |g| g.rmdir("b")),
        row("rmdir of whiteouts", |g| g.unlink("a/sub/deep"), |g| g.rmdir("a/sub")),
        row("rmdir of a born one", |g| g.make("new", NewKind::Directory), |g| g.rmdir("new")),
        row("rename of a lower file", |_| Ok(()), |g| g.rename("a/one", "b/new", PLAIN)),
        row("rename onto a lower file", |_| Ok(()), |g| g.rename("a/one", "a/two", PLAIN)),
        row(
            "rename onto a large file",
            |g| g.chmod("large"),
            |g| g.rename("a/one", "large", PLAIN),
        ),
        row("rename of a hard link", |_| Ok(()), |g| g.rename("hard1", "b/new", PLAIN)),
        row("rename onto a hard link", |_| Ok(()), |g| g.rename("a/one", "hard1", PLAIN)),
        row("rename of a lower directory", |_| Ok(()), |g| g.rename("a/sub", "b/new", PLAIN)),
        row(
            "rename of a born directory onto a whiteout",
            |g| g.rmdir("b").and_then(|()| g.make("new", NewKind::Directory)),
            |g| g.rename("new", "b", PLAIN),
        ),
        row("rename onto an empty directory", |_| Ok(()), |g| g.rename("a", "b", PLAIN)),
        row(
            "rename onto a directory of whiteouts",
            |g| g.unlink("a/sub/deep"),
            |g| g.rename("b", "a/sub", PLAIN),
        ),
        row("exchange of files", |_| Ok(()), |g| g.rename("a/one", "hard2", EXCHANGE)),
        row("exchange of directories", |_| Ok(()), |g| g.rename("a/sub", "b", EXCHANGE)),
        row("exchange of both", |_| Ok(()), |g| g.rename("a/sub", "large", EXCHANGE)),
        row("write", |_| Ok(()), |g| g.write("a/one", 1, b"written")),
        row("write to a hard link", |_| Ok(()), |g| g.write("hard2", 1, b"written")),
        row("write by block", |_| Ok(()), |g| g.write("large", 5000, b"written")),
        row(
            "write by block and sync",
            |_| Ok(()),
            |g| g.write("large", 5000, b"written").and_then(|()| g.sync("large")),
        ),
        row(
            "write of all blocks and sync",
            |_| Ok(()),
            |g| g.write("large", 0, &vec![b'w'; LARGE_BYTES]).and_then(|()| g.sync("large")),
        ),
        row("truncate", |_| Ok(()), |g| g.truncate("a/one", 1)),
        row("truncate of a large file", |_| Ok(()), |g| g.truncate("large", 9000)),
        row(
            "truncate of an unsettled file",
            |g| g.write("large", 9, b"x"),
            |g| g.truncate("large", 9000),
        ),
        row("truncate to nothing", |g| g.write("large", 9, b"x"), |g| g.truncate("large", 0)),
        row("chmod", |_| Ok(()), |g| g.chmod("a/one")),
        row("chmod of a large file", |_| Ok(()), |g| g.chmod("large")),
        row("chmod of a directory", |_| Ok(()), |g| g.chmod("a/sub")),
        row("setxattr", |_| Ok(()), |g| g.set_xattr("a/sub/deep")),
        row("removexattr", |_| Ok(()), |g| g.remove_xattr("a/two")),
        row("punch", |g| g.write("large", 9, b"x"), |g| g.punch("large")),
    ]
}

/// A union as a guest uses it, by paths.
struct Guest<'a>(&'a Union);

impl Guest<'_> {
    fn id(&self, path: &str) -> Result<NodeId, Errno> {
        let mut at = NodeId::ROOT;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            at = self.0.lookup(&ROOT, at, name(part))?.attributes.node;
        }
        Ok(at)
    }

    fn parent<'p>(&self, path: &'p str) -> Result<(NodeId, Name<'p>), Errno> {
        let (parent, last) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.id(parent)?, name(last)))
    }

    fn make(&self, path: &str, kind: NewKind<'_>) -> Result<(), Errno> {
        let (parent, last) = self.parent(path)?;
        let new = NewObject { kind, mode: 0o755, umask: 0o022, supplementary_group: None };
        self.0.create(&ROOT, parent, last, &new).map(drop)
    }

    fn link(&self, path: &str, new: &str) -> Result<(), Errno> {
        let (parent, last) = self.parent(new)?;
        self.0.link(self.id(path)?, parent, last).map(drop)
    }

    fn unlink(&self, path: &str) -> Result<(), Errno> {
        // As a guest does: it knows what it removes.
        self.id(path)?;
        let (parent, last) = self.parent(path)?;
        self.0.unlink(parent, last)
    }

    fn rmdir(&self, path: &str) -> Result<(), Errno> {
        self.id(path)?;
        let (parent, last) = self.parent(path)?;
        self.0.remove_directory(parent, last)
    }

    fn rename(&self, old: &str, new: &str, flags: RenameFlags) -> Result<(), Errno> {
        self.id(old)?;
        let (from, name) = self.parent(old)?;
        let (to, new_name) = self.parent(new)?;
        self.0.rename(&Rename { from, name, to, new_name, flags })
    }

    fn write(&self, path: &str, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let write = Write { offset, size: bytes.len(), kill_privileges: true, keeps_mtime: false };
        let written = self.0.write(self.id(path)?, &write, &mut Bytes(bytes.to_vec()))?;
        assert_eq!(written, bytes.len(), "{path}: short write");
        Ok(())
    }

    fn sync(&self, path: &str) -> Result<(), Errno> {
        self.0.sync(self.id(path)?, false)
    }

    fn change(&self, path: &str, change: &SetAttributes) -> Result<(), Errno> {
        self.0.set_attributes(&ROOT, self.id(path)?, change).map(drop)
    }

    fn truncate(&self, path: &str, size: u64) -> Result<(), Errno> {
        self.change(path, &SetAttributes { size: Some(size), ..SetAttributes::default() })
    }

    fn chmod(&self, path: &str) -> Result<(), Errno> {
        self.change(path, &SetAttributes { mode: Some(0o710), ..SetAttributes::default() })
    }

    fn set_xattr(&self, path: &str) -> Result<(), Errno> {
        let set = SetXattr { name: b"user.new", value: b"v", flags: 0, kill_setgid: false };
        self.0.set_xattr(&ROOT, self.id(path)?, &set)
    }

    fn remove_xattr(&self, path: &str) -> Result<(), Errno> {
        self.0.remove_xattr(self.id(path)?, b"user.old")
    }

    fn punch(&self, path: &str) -> Result<(), Errno> {
        // falloc.h: FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE.
        let punch = Allocate { mode: 3, offset: 4096, size: 8192, kill_privileges: false };
        self.0.allocate(self.id(path)?, &punch)
    }

    /// The whole tree: one line for each path.
    fn tree(&self) -> BTreeMap<String, String> {
        let mut tree = BTreeMap::new();
        let mut directories = vec![(String::new(), NodeId::ROOT)];
        while let Some((path, id)) = directories.pop() {
            for row in self.names(id) {
                let entry = match self.0.lookup(&ROOT, id, name(&row)) {
                    Ok(entry) => entry,
                    Err(e) => {
                        tree.insert(format!("{path}/{row}"), format!("listed, but {e}"));
                        continue;
                    }
                };
                let below = format!("{path}/{row}");
                if entry.attributes.kind() == Kind::Directory {
                    directories.push((below.clone(), entry.attributes.node));
                }
                tree.insert(below, self.describe(&entry));
            }
        }
        tree
    }

    fn describe(&self, entry: &Entry) -> String {
        let shown = &entry.attributes;
        let contents = match shown.kind() {
            Kind::File => digest(&self.contents(shown.node)),
            Kind::Symlink => self.0.read_link(shown.node).unwrap().escape_ascii().to_string(),
            _ => shown.rdev.to_string(),
        };
        let names = self.0.list_xattrs(&ROOT, shown.node).unwrap();
        let live = self.0.attributes(shown.node).unwrap();
        assert_eq!((live.nlink, live.size), (shown.nlink, shown.size), "LOOKUP and GETATTR agree");
        format!(
            "{:o} {} {} {contents} {}",
            shown.mode,
            shown.nlink,
            if shown.kind() == Kind::File { shown.size } else { 0 },
            names.escape_ascii()
        )
    }

    fn contents(&self, id: NodeId) -> Vec<u8> {
        let mut sink = Bytes(Vec::new());
        loop {
            let before = sink.0.len();
            self.0.read(id, u64::try_from(before).unwrap(), 1 << 20, &mut sink).unwrap();
            if sink.0.len() == before {
                return sink.0;
            }
        }
    }

    fn names(&self, id: NodeId) -> Vec<String> {
        let mut sink = Names(Vec::new());
        self.0.read_directory(id, 0, false, &mut sink).unwrap();
        sink.0.into_iter().filter(|name| name != "." && name != "..").collect()
    }
}

fn digest(bytes: &[u8]) -> String {
    // FNV-1a.
    let mixed = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{mixed:016x}")
}

fn name(text: &str) -> Name<'_> {
    Name::new(text.as_bytes()).unwrap()
}

struct Names(Vec<String>);

impl DirectorySink for Names {
    fn fits(&self, _: usize) -> bool {
        true
    }
    fn push(&mut self, row: &DirectoryEntry<'_>, _: Option<&Entry>) {
        self.0.push(String::from_utf8(row.name.to_vec()).unwrap());
    }
}

struct Bytes(Vec<u8>);

impl DataSink for Bytes {
    fn capacity(&self) -> usize {
        1 << 20
    }
    fn append_file(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        size: usize,
    ) -> Result<usize, Errno> {
        let mut buffer = vec![0; size];
        let bytes = rustix::io::pread(file, &mut buffer, offset)?;
        self.0.extend_from_slice(&buffer[..bytes]);
        Ok(bytes)
    }
    fn append(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

impl DataSource for Bytes {
    fn remaining(&self) -> usize {
        self.0.len()
    }
    /// Through the hook, as the doors' writes to files are not.
    fn write_file(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        size: usize,
    ) -> Result<usize, Errno> {
        let written = sys_fs::write_at(file, &self.0[..size], offset)?;
        self.0.drain(..written);
        Ok(written)
    }
    fn take(&mut self, into: &mut [u8]) -> Result<(), Errno> {
        into.copy_from_slice(&self.0[..into.len()]);
        Ok(())
    }
}

fn make_base(base: &Path) {
    fs::create_dir_all(base.join("a/sub")).unwrap();
    fs::create_dir(base.join("b")).unwrap();
    for file in ["a/one", "a/two", "a/sub/deep"] {
        fs::write(base.join(file), file).unwrap();
    }
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(base.join("a/two"), "user.old", b"v", flags).unwrap();
    fs::write(base.join("hard1"), "hard").unwrap();
    fs::hard_link(base.join("hard1"), base.join("hard2")).unwrap();
    fs::hard_link(base.join("hard1"), base.join("a/hard3")).unwrap();
    fs::write(base.join("large"), vec![b'l'; LARGE_BYTES]).unwrap();
}

/// A base with its index, and a fresh upper for each point.
struct Ground {
    temp: tempfile::TempDir,
}

impl Ground {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("base")).unwrap();
        make_base(&temp.path().join("base"));
        Self { temp }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.temp.path().join(path)
    }

    /// A fresh union after what comes before the change.
    fn begin(&self, row: &Row) -> Union {
        for dir in ["upper", "work"] {
            let path = self.at(dir);
            if path.exists() {
                fs::remove_dir_all(&path).unwrap();
            }
            fs::create_dir(&path).unwrap();
        }
        let union = join(self.temp.path());
        (row.before)(&Guest(&union)).unwrap();
        union
    }

    /// The tree after a remount, which leaves nothing of an operation that is over.
    fn tree_after_remount(&self) -> BTreeMap<String, String> {
        let union = join(self.temp.path());
        for dir in ["work/work", "work/orphans"] {
            let left = fs::read_dir(self.at(dir)).unwrap().map(|row| row.unwrap().file_name());
            let left: Vec<_> = left.filter(|name| name != "spare").collect();
            assert!(left.is_empty(), "{dir} holds {left:?}");
        }
        Guest(&union).tree()
    }
}

/// As the daemon, whose umask takes nothing from what a guest makes.
fn join(temp: &Path) -> Union {
    rustix::process::umask(rustix::fs::Mode::empty());
    let specs = [LowerSpec { path: temp.join("base"), kind: LayerKind::Plain }];
    let (index, _) = open_or_seal(&specs, &temp.join("index"), &mut |_| {}).unwrap();
    let policy = LowerPolicy { strictness: Strictness::Strict, on_change: Box::new(|_| {}) };
    let lower = Lower::new(index, open_roots(&specs).unwrap(), policy).unwrap();
    let open = |name: &str| OwnedFd::from(fs::File::open(temp.join(name)).unwrap());
    let config = UpperConfig {
        space: MarkSpace::Trusted,
        ownership: Ownership::Native,
        is_volatile: false,
        attachment: None,
    };
    let upper = Upper::open(open("upper"), open("work").as_fd(), config).unwrap();
    Union::new(lower, upper, false).unwrap()
}

/// What was found wrong, told together at the end.
#[derive(Default)]
struct Verdict {
    points: u32,
    wrong: Vec<String>,
}

impl Verdict {
    fn check(
        &mut self,
        point: &str,
        tree: &BTreeMap<String, String>,
        allowed: &[&BTreeMap<String, String>],
    ) {
        if !allowed.contains(&tree) {
            let nearest = allowed[0];
            let differs: Vec<_> = tree
                .iter()
                .filter(|(path, line)| nearest.get(*path) != Some(*line))
                .map(|(path, line)| format!("{path}: {line}"))
                .chain(
                    nearest
                        .keys()
                        .filter(|path| !tree.contains_key(*path))
                        .map(|path| format!("{path}: missing")),
                )
                .collect();
            self.wrong.push(format!("{point}: neither old nor new: {differs:?}"));
        }
    }

    fn end(self, what: &str) {
        println!("{} points, {} wrong: {what}", self.points, self.wrong.len());
        assert!(self.wrong.is_empty(), "{}", self.wrong.join("\n"));
    }
}

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        // Past the harness, which would keep it to itself.
        let line = "SKIPPED faults: needs root for trusted.* marks\n";
        std::io::stderr().write_all(line.as_bytes()).unwrap();
    }
    is_root
}

/// Where the fault hook's process is the child of a test: `ROW:NTH`.
const CHILD: &str = "THINROOT_FAULTS_CHILD";
const PLACE: &str = "THINROOT_FAULTS_PLACE";

/// Both loops in one test: the hook is one for the whole process.
#[test]
fn each_change_leaves_the_old_tree_or_the_new_one() {
    if let Ok(child) = std::env::var(CHILD) {
        return die(&child);
    }
    if !is_root() {
        return;
    }
    let ground = Ground::new();
    let mut failed = Verdict::default();
    let mut killed = Verdict::default();
    // All take minutes: as a rule some stand for them.
    let step =
        if std::env::var("THINROOT_FAULTS").is_ok_and(|which| which == "all") { 1 } else { 9 };
    for (index, row) in rows().iter().enumerate().step_by(step) {
        let union = ground.begin(row);
        let old = Guest(&union).tree();
        (row.change)(&Guest(&union)).unwrap_or_else(|e| panic!("{}: {e}", row.name));
        let new = Guest(&union).tree();
        drop(union);
        assert_eq!(ground.tree_after_remount(), new, "{}: after a remount", row.name);
        for errno in [Errno::NOSPC, Errno::IO] {
            fail_each(&ground, row, errno, (&old, &new), &mut failed);
        }
        kill_at_each(&ground, row, index, (&old, &new), &mut killed);
    }
    println!("{} points of death, {} wrong", killed.points, killed.wrong.len());
    failed.points += killed.points;
    failed.wrong.append(&mut killed.wrong);
    failed.end("each call of each change failed with ENOSPC and EIO, and was the last");
}

type Tree = BTreeMap<String, String>;

fn fail_each(
    ground: &Ground,
    row: &Row,
    errno: Errno,
    (old, new): (&Tree, &Tree),
    verdict: &mut Verdict,
) {
    for nth in 1.. {
        let union = ground.begin(row);
        let guest = Guest(&union);
        fault::fail_at(nth, errno);
        let done = (row.change)(&guest);
        if !fault::disarm() {
            assert_eq!(done, Ok(()), "{}: nothing failed", row.name);
            break;
        }
        verdict.points += 1;
        let point = format!("{}, call {nth}, {errno:?} gave {done:?}", row.name);
        let expected = if done.is_ok() {
            // What failed was a clean-up, which the next start ends.
            new.clone()
        } else {
            let live = guest.tree();
            verdict.check(&format!("{point}, live"), &live, &[old, new]);
            if live == *old {
                let again = (row.change)(&guest);
                verdict.check(&format!("{point}, again gave {again:?}"), &guest.tree(), &[new]);
            }
            guest.tree()
        };
        drop(union);
        verdict.check(&format!("{point}, remounted"), &ground.tree_after_remount(), &[&expected]);
    }
}

fn kill_at_each(
    ground: &Ground,
    row: &Row,
    index: usize,
    (old, new): (&Tree, &Tree),
    verdict: &mut Verdict,
) {
    for nth in 1.. {
        drop(ground.begin(row));
        let status = Command::new(std::env::current_exe().unwrap())
            .env(CHILD, format!("{index}:{nth}"))
            .env(PLACE, ground.temp.path())
            .output()
            .unwrap()
            .status;
        if status.success() {
            break;
        }
        verdict.points += 1;
        let point = format!("{}, ended before call {nth}", row.name);
        verdict.check(&point, &ground.tree_after_remount(), &[old, new]);
    }
}

/// The child: makes the change and ends before its N-th call.
fn die(child: &str) {
    let (index, nth) = child.split_once(':').unwrap();
    let temp = std::env::var(PLACE).unwrap();
    let union = join(Path::new(&temp));
    let rows = rows();
    let row = &rows[index.parse::<usize>().unwrap()];
    fault::kill_at(nth.parse().unwrap());
    (row.change)(&Guest(&union)).unwrap();
    fault::disarm();
}
