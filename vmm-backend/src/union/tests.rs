//! The union on a temp dir, called as the FUSE layer calls it: the laws that need no guest kernel.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::*;
use crate::filesystem::memory::read;
use crate::filesystem::{
    DirectoryEntry, FOREVER, NewKind, Privileges, RenameFlags, SetTime, SetXattr, Timestamp,
};
use crate::layer::index::LayerKind;
use crate::layer::lower::{LowerPolicy, Strictness};
use crate::layer::mark::MarkSpace;
use crate::layer::owner::Ownership;
use crate::layer::seal::{LowerSpec, open_or_seal, open_roots};
use crate::layer::upper::UpperConfig;

mod births;
mod blocks;
mod capabilities;
mod copy_up;
mod elsewhere;
mod ground;
mod hostile;
mod layers;
mod links;
mod names;

const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 7 };

/// A base, an upper and the union of both; mounted again at will.
struct World {
    temp: tempfile::TempDir,
    union: Union,
}

/// Needs root: `trusted.*` marks.
fn world(make_base: impl FnOnce(&Path)) -> Option<World> {
    if !rustix::process::geteuid().is_root() {
        crate::skipped::skip("needs root for trusted.* marks");
        return None;
    }
    let temp = tempfile::tempdir().unwrap();
    for dir in ["base", "upper", "work"] {
        fs::create_dir(temp.path().join(dir)).unwrap();
    }
    make_base(&temp.path().join("base"));
    let union = join(temp.path());
    Some(World { temp, union })
}

/// One whose large files come up by block: where the file system shares blocks, they come up whole.
fn world_by_block(make_base: impl FnOnce(&Path)) -> Option<World> {
    let world = world(make_base)?;
    if world.union.upper.shares_blocks() {
        crate::skipped::skip("large files come up whole here, sharing blocks");
        return None;
    }
    Some(world)
}

/// tmpfs with huge pages, as `cargo xtask filesystems` says: it gives room by 2 MiB, and takes it back from any file
/// when memory runs short.
fn is_on_huge_pages() -> bool {
    std::env::var("THINROOT_TEST_DISK").is_ok_and(|kind| kind == "tmpfs-huge")
}

fn join(temp: &Path) -> Union {
    join_with(temp, Strictness::Strict, Box::new(|_| {}))
}

/// As [`join`], of an upper that was made over another base.
fn rebase(temp: &Path) -> Union {
    let strictness = Strictness::Strict;
    Union::new(lower_of(temp, strictness, Box::new(|_| {})), upper_of(temp), true).unwrap()
}

type OnChange = Box<dyn Fn(&crate::layer::lower::Change) + Send + Sync>;

fn join_with(temp: &Path, strictness: Strictness, on_change: OnChange) -> Union {
    Union::new(lower_of(temp, strictness, on_change), upper_of(temp), false).unwrap()
}

fn lower_of(temp: &Path, strictness: Strictness, on_change: OnChange) -> Lower {
    let specs = [LowerSpec { path: temp.join("base"), kind: LayerKind::Plain }];
    let (index, _) = open_or_seal(&specs, &temp.join("index"), &mut |_| {}).unwrap();
    let policy = LowerPolicy { strictness, on_change };
    Lower::new(index, open_roots(&specs).unwrap(), policy).unwrap()
}

fn upper_of(temp: &Path) -> Upper {
    let open = |name: &str| OwnedFd::from(fs::File::open(temp.join(name)).unwrap());
    let config = UpperConfig {
        space: MarkSpace::Trusted,
        ownership: Ownership::Native,
        is_volatile: false,
        attachment: None,
    };
    Upper::open(open("upper"), open("work").as_fd(), config).unwrap()
}

/// A listing cut after `rows` rows, as a small guest buffer cuts it.
struct Rows {
    rows: Vec<(String, u64, u64)>,
    room: usize,
}

impl DirectorySink for Rows {
    fn fits(&self, _: usize) -> bool {
        self.rows.len() < self.room
    }
    fn push(&mut self, row: &DirectoryEntry<'_>, entry: Option<&Entry>) {
        if let Some(entry) = entry {
            assert_eq!(
                entry.attributes.node,
                row.node,
                "{:?}",
                row.name.escape_ascii().to_string()
            );
            assert_eq!(entry.valid_for, FOREVER);
        }
        let name = String::from_utf8_lossy(row.name).into_owned();
        self.rows.push((name, row.cookie, row.node.0));
    }
}

fn name(text: &str) -> Name<'_> {
    Name::new(text.as_bytes()).unwrap()
}

impl World {
    fn at(&self, path: &str) -> PathBuf {
        self.temp.path().join(path)
    }

    fn remount(self) -> Self {
        let Self { temp, union } = self;
        drop(union);
        let union = join(temp.path());
        Self { temp, union }
    }

    fn walk(&self, path: &str) -> Result<Entry, Errno> {
        let mut at = self.union.lookup_self(NodeId::ROOT)?;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            at = self.union.lookup(&ROOT, at.attributes.node, name(part))?;
        }
        Ok(at)
    }

    fn id(&self, path: &str) -> NodeId {
        self.walk(path).unwrap_or_else(|e| panic!("{path}: {e}")).attributes.node
    }

    fn parent<'p>(&self, path: &'p str) -> (NodeId, Name<'p>) {
        let (parent, last) = path.rsplit_once('/').unwrap_or(("", path));
        (self.id(parent), name(last))
    }

    fn read(&self, path: &str) -> String {
        String::from_utf8(read(&self.union, self.id(path), 0, 1 << 20).unwrap()).unwrap()
    }

    fn write(&self, path: &str, offset: u64, text: &str) {
        let mut source = text.as_bytes();
        let write = Write { offset, size: text.len(), kill_privileges: false, keeps_mtime: false };
        assert_eq!(self.union.write(self.id(path), &write, &mut source), Ok(text.len()));
    }

    fn make(&self, path: &str, kind: NewKind<'_>) -> Result<Entry, Errno> {
        let (parent, last) = self.parent(path);
        let new = NewObject { kind, mode: 0o755, umask: 0o022, supplementary_group: None };
        self.union.create(&ROOT, parent, last, &new)
    }

    fn unlink(&self, path: &str) -> Result<(), Errno> {
        let (parent, last) = self.parent(path);
        self.union.unlink(parent, last)
    }

    fn rmdir(&self, path: &str) -> Result<(), Errno> {
        let (parent, last) = self.parent(path);
        self.union.remove_directory(parent, last)
    }

    fn rename(&self, old: &str, new: &str, flags: RenameFlags) -> Result<(), Errno> {
        let (from, old) = self.parent(old);
        let (to, new) = self.parent(new);
        self.union.rename(&ROOT, &Rename { from, name: old, to, new_name: new, flags })
    }

    /// Names of a directory, read with buffers of `room` rows, as READDIRPLUS and READDIR.
    fn names(&self, path: &str, room: usize, plus: bool) -> Vec<String> {
        let mut cookie = 0;
        let mut names = Vec::new();
        loop {
            let mut sink = Rows { rows: Vec::new(), room };
            self.union.read_directory(self.id(path), cookie, plus, &mut sink).unwrap();
            let Some(last) = sink.rows.last() else { break };
            assert!(last.1 > cookie, "cookies rise");
            cookie = last.1;
            names.extend(sink.rows.into_iter().map(|(name, ..)| name));
        }
        assert_eq!(&names[..2], [".", ".."]);
        let mut names = names.split_off(2);
        names.sort();
        names
    }
}

const PLAIN: RenameFlags = RenameFlags { no_replace: false, exchange: false, whiteout: false };
const EXCHANGE: RenameFlags = RenameFlags { exchange: true, ..PLAIN };
const NO_REPLACE: RenameFlags = RenameFlags { no_replace: true, ..PLAIN };

/// `a/` with `one`, `two`, `sub/deep`; `b/` empty; `link -> a/one`; `hard1`, `hard2`, `a/hard3`.
fn small_base(base: &Path) {
    fs::create_dir_all(base.join("a/sub")).unwrap();
    fs::create_dir(base.join("b")).unwrap();
    fs::write(base.join("a/one"), "one").unwrap();
    fs::write(base.join("a/two"), "two").unwrap();
    fs::write(base.join("a/sub/deep"), "deep").unwrap();
    symlink("a/one", base.join("link")).unwrap();
    fs::write(base.join("hard1"), "hard").unwrap();
    fs::hard_link(base.join("hard1"), base.join("hard2")).unwrap();
    fs::hard_link(base.join("hard1"), base.join("a/hard3")).unwrap();
}

/// 300 blocks and a bit, each with bytes of its own.
fn big_contents() -> Vec<u8> {
    (0..300 * 4096 + 77_u32).map(|at| u8::try_from((at / 4096 + at) % 251).unwrap()).collect()
}

fn big_base(base: &Path) {
    fs::write(base.join("big"), big_contents()).unwrap();
    fs::hard_link(base.join("big"), base.join("big-too")).unwrap();
    fs::write(base.join("alone"), big_contents()).unwrap();
    fs::write(base.join("other"), big_contents()).unwrap();
}

fn whole(union: &Union, id: NodeId) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let piece = read(union, id, bytes.len() as u64, 100_000).unwrap();
        if piece.is_empty() {
            return bytes;
        }
        bytes.extend(piece);
    }
}

fn put(union: &Union, id: NodeId, offset: u64, bytes: &[u8]) {
    let write = Write { offset, size: bytes.len(), kill_privileges: false, keeps_mtime: false };
    assert_eq!(union.write(id, &write, &mut &*bytes), Ok(bytes.len()));
}

fn cut(union: &Union, id: NodeId, size: u64) {
    let change = SetAttributes { size: Some(size), ..SetAttributes::default() };
    assert_eq!(union.set_attributes(&ROOT, id, &change).unwrap().size, size);
}
