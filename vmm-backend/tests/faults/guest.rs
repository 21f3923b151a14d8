//! A guest of the union that knows paths, and writes down the whole tree.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use thinroot::filesystem::memory::read;
use thinroot::filesystem::{
    Allocate, Caller, CopyRange, DataSource, DirectoryEntry, DirectorySink, Entry, FileSystem,
    Kind, Name, NewKind, NewObject, NodeId, Privileges, Rename, RenameFlags, SetAttributes,
    SetTime, SetXattr, Timestamp, Write,
};
use thinroot::sys::fs as sys_fs;
use thinroot::union::Union;

pub const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 7 };
pub const PLAIN: RenameFlags = RenameFlags { no_replace: false, exchange: false, whiteout: false };
pub const NO_REPLACE: RenameFlags = RenameFlags { no_replace: true, ..PLAIN };
pub const WHITEOUT: RenameFlags = RenameFlags { whiteout: true, ..PLAIN };
pub const EXCHANGE: RenameFlags = RenameFlags { exchange: true, ..PLAIN };

/// A union as a guest uses it, by paths.
pub struct Guest<'a>(pub &'a Union);

impl Guest<'_> {
    pub fn id(&self, path: &str) -> Result<NodeId, Errno> {
        let mut at = NodeId::ROOT;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            at = self.0.lookup(&ROOT, at, name(part))?.attributes.node;
        }
        Ok(at)
    }

    pub fn parent<'p>(&self, path: &'p str) -> Result<(NodeId, Name<'p>), Errno> {
        let (parent, last) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.id(parent)?, name(last)))
    }

    pub fn make(&self, path: &str, kind: NewKind<'_>) -> Result<(), Errno> {
        let (parent, last) = self.parent(path)?;
        let new = NewObject { kind, mode: 0o755, umask: 0o022, supplementary_group: None };
        self.0.create(&ROOT, parent, last, &new).map(drop)
    }

    /// The places of names that the lower has and this union has not any more, by the directories
    /// that a guest holds.
    pub fn places_of_removed(
        &self,
        lower: &BTreeMap<String, String>,
        now: &BTreeMap<String, String>,
    ) -> Vec<(NodeId, String)> {
        let removed = lower.keys().filter(|path| !now.contains_key(*path));
        let places = removed.filter_map(|path| {
            let (parent, last) = self.parent(path).ok()?;
            Some((parent, String::from_utf8(last.as_bytes().to_vec()).ok()?))
        });
        places.collect()
    }

    /// Something new at a place, for a moment: a directory, then a file.
    pub fn try_place(&self, parent: NodeId, last: &str) -> Result<(), Errno> {
        let new = |kind| NewObject { kind, mode: 0o755, umask: 0, supplementary_group: None };
        self.0.create(&ROOT, parent, name(last), &new(NewKind::Directory))?;
        self.0.remove_directory(parent, name(last))?;
        self.0.create(&ROOT, parent, name(last), &new(NewKind::File))?;
        self.0.unlink(parent, name(last))
    }

    pub fn make_special(&self, path: &str, kind: Kind, rdev: u32) -> Result<(), Errno> {
        self.make(path, NewKind::Special { kind, rdev })
    }

    pub fn link(&self, path: &str, new: &str) -> Result<(), Errno> {
        let (parent, last) = self.parent(new)?;
        self.0.link(self.id(path)?, parent, last).map(drop)
    }

    pub fn unlink(&self, path: &str) -> Result<(), Errno> {
        // As a guest does: it knows what it removes.
        self.id(path)?;
        let (parent, last) = self.parent(path)?;
        self.0.unlink(parent, last)
    }

    pub fn rmdir(&self, path: &str) -> Result<(), Errno> {
        self.id(path)?;
        let (parent, last) = self.parent(path)?;
        self.0.remove_directory(parent, last)
    }

    pub fn rename(&self, old: &str, new: &str, flags: RenameFlags) -> Result<(), Errno> {
        self.id(old)?;
        let (from, name) = self.parent(old)?;
        let (to, new_name) = self.parent(new)?;
        self.0.rename(&ROOT, &Rename { from, name, to, new_name, flags })
    }

    pub fn write(&self, path: &str, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let write = Write { offset, size: bytes.len(), kill_privileges: true, keeps_mtime: false };
        let written = self.0.write(self.id(path)?, &write, &mut Bytes(bytes.to_vec()))?;
        assert_eq!(written, bytes.len(), "{path}: short write");
        Ok(())
    }

    pub fn sync(&self, path: &str) -> Result<(), Errno> {
        self.0.sync(self.id(path)?, false)
    }

    pub fn change(&self, path: &str, change: &SetAttributes) -> Result<(), Errno> {
        self.0.set_attributes(&ROOT, self.id(path)?, change).map(drop)
    }

    pub fn truncate(&self, path: &str, size: u64) -> Result<(), Errno> {
        self.change(path, &SetAttributes { size: Some(size), ..SetAttributes::default() })
    }

    pub fn chmod(&self, path: &str) -> Result<(), Errno> {
        self.change(path, &SetAttributes { mode: Some(0o710), ..SetAttributes::default() })
    }

    pub fn set_mode(&self, path: &str, mode: u32) -> Result<(), Errno> {
        self.change(path, &SetAttributes { mode: Some(mode), ..SetAttributes::default() })
    }

    pub fn set_xattr(&self, path: &str, name: &str) -> Result<(), Errno> {
        let name = name.as_bytes();
        let set = SetXattr { name, value: b"new", flags: 0, kill_setgid: false };
        self.0.set_xattr(&ROOT, self.id(path)?, &set)
    }

    pub fn remove_xattr(&self, path: &str, name: &str) -> Result<(), Errno> {
        self.0.remove_xattr(self.id(path)?, name.as_bytes())
    }

    pub fn chown(&self, path: &str) -> Result<(), Errno> {
        let owner = SetAttributes { uid: Some(7), gid: Some(8), ..SetAttributes::default() };
        self.change(path, &owner)
    }

    pub fn set_times(&self, path: &str) -> Result<(), Errno> {
        let time = Some(SetTime::To(Timestamp { seconds: 77, nanoseconds: 7 }));
        self.change(path, &SetAttributes { mtime: time, atime: time, ..SetAttributes::default() })
    }

    /// rw-r----- and r-- for user 1234.
    pub fn set_acl(&self, path: &str, which: &str) -> Result<(), Errno> {
        let name = format!("system.posix_acl_{which}");
        // posix_acl_xattr.h: version 2, then tag, permissions, id.
        let rows = [(1, 6, u32::MAX), (2, 4, 1234), (4, 4, u32::MAX), (16, 4, u32::MAX)];
        let mut value = 2_u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in rows.into_iter().chain([(32, 0, u32::MAX)]) {
            value.extend([u16::to_le_bytes(tag), u16::to_le_bytes(permissions)].concat());
            value.extend(id.to_le_bytes());
        }
        let set = SetXattr { name: name.as_bytes(), value: &value, flags: 0, kill_setgid: false };
        self.0.set_xattr(&ROOT, self.id(path)?, &set)
    }

    /// `O_TMPFILE`, and a name.
    pub fn unnamed(&self, path: &str) -> Result<(), Errno> {
        let (parent, last) = self.parent(path)?;
        let born = self.bear_unnamed(parent)?;
        self.0.link(born, parent, last).map(drop)
    }

    /// `O_TMPFILE`, and no name.
    pub fn unnamed_and_forget(&self, directory: &str) -> Result<(), Errno> {
        let born = self.bear_unnamed(self.id(directory)?)?;
        self.0.forget(born, u64::from(u32::MAX));
        Ok(())
    }

    fn bear_unnamed(&self, parent: NodeId) -> Result<NodeId, Errno> {
        let kind = NewKind::File;
        let new = NewObject { kind, mode: 0o755, umask: 0o022, supplementary_group: None };
        self.0.create_unnamed(&ROOT, parent, &new).map(|born| born.attributes.node)
    }

    /// The guest knows it no more.
    pub fn forget(&self, path: &str) -> Result<(), Errno> {
        self.0.forget(self.id(path)?, u64::from(u32::MAX));
        Ok(())
    }

    pub fn remove_and_forget(&self, path: &str) -> Result<(), Errno> {
        let id = self.id(path)?;
        self.unlink(path)?;
        self.0.forget(id, u64::from(u32::MAX));
        Ok(())
    }

    /// Five bytes of one file to another; where that is refused, as a guest's kernel does then.
    pub fn copy(&self, from: &str, to: &str) -> Result<(), Errno> {
        let (source, target) = (self.id(from)?, self.id(to)?);
        let range = CopyRange {
            from: source,
            from_offset: 1,
            to: target,
            to_offset: 5000,
            size: 5,
            privileges: Privileges::Keep,
        };
        match self.0.copy_range(&range) {
            Err(Errno::XDEV) => self.write(to, 5000, &read(self.0, source, 1, 5)?),
            done => done.map(drop),
        }
    }

    pub fn allocate(&self, path: &str, mode: u32) -> Result<(), Errno> {
        let range = Allocate { mode, offset: 4096, size: 8192, privileges: Privileges::Keep };
        self.0.allocate(self.id(path)?, &range)
    }

    /// As `posix_fallocate` from the start.
    pub fn allocate_to(&self, path: &str, size: u64) -> Result<(), Errno> {
        let range = Allocate { mode: 0, offset: 0, size, privileges: Privileges::Keep };
        self.0.allocate(self.id(path)?, &range)
    }

    /// As at the end of a connection.
    pub fn end(&self) -> Result<(), Errno> {
        self.0.destroy();
        Ok(())
    }

    /// As when another guest begins.
    pub fn begin_anew(&self) -> Result<(), Errno> {
        self.0.init();
        Ok(())
    }

    pub fn sync_all(&self) -> Result<(), Errno> {
        self.0.sync_all()
    }

    pub fn settle(&self) -> Result<(), Errno> {
        self.0.settle_all().map(drop)
    }

    pub fn punch(&self, path: &str) -> Result<(), Errno> {
        // falloc.h: FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE.
        let punch = Allocate { mode: 3, offset: 4096, size: 8192, privileges: Privileges::Keep };
        self.0.allocate(self.id(path)?, &punch)
    }

    /// As where two ends of the range are within blocks.
    pub fn clear(&self, path: &str, mode: u32) -> Result<(), Errno> {
        let range = Allocate { mode, offset: 5000, size: 9000, privileges: Privileges::Keep };
        self.0.allocate(self.id(path)?, &range)
    }

    /// What moves ranges, where the disk can: falloc.h: FALLOC_FL_COLLAPSE_RANGE.
    pub fn collapse(&self, path: &str) -> Result<(), Errno> {
        let range = Allocate { mode: 8, offset: 0, size: 4096, privileges: Privileges::Keep };
        self.0.allocate(self.id(path)?, &range)
    }

    /// The whole tree: one line for each path.
    pub fn tree(&self) -> BTreeMap<String, String> {
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

    pub fn describe(&self, entry: &Entry) -> String {
        let shown = &entry.attributes;
        let contents = match shown.kind() {
            Kind::File => digest(&self.contents(shown.node)),
            Kind::Symlink => self.0.read_link(shown.node).unwrap().escape_ascii().to_string(),
            _ => shown.rdev.to_string(),
        };
        let names = self.0.list_xattrs(&ROOT, shown.node).unwrap();
        let named = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        let xattrs = named.map(|name| {
            let value = self.0.xattr(&ROOT, shown.node, name).unwrap();
            format!("{}={}", name.escape_ascii(), digest(&value))
        });
        let xattrs: Vec<_> = xattrs.collect();
        let live = self.0.attributes(shown.node).unwrap();
        assert_eq!((live.nlink, live.size), (shown.nlink, shown.size), "LOOKUP and GETATTR agree");
        format!(
            "{:o} {}:{} {} {} {contents} {}",
            shown.mode,
            shown.uid,
            shown.gid,
            shown.nlink,
            if shown.kind() == Kind::File { shown.size } else { 0 },
            xattrs.join(" ")
        )
    }

    pub fn contents(&self, id: NodeId) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            let offset = u64::try_from(bytes.len()).unwrap();
            let piece = read(self.0, id, offset, 1 << 20).unwrap();
            if piece.is_empty() {
                return bytes;
            }
            bytes.extend(piece);
        }
    }

    pub fn names(&self, id: NodeId) -> Vec<String> {
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

/// Bytes of a WRITE.
struct Bytes(Vec<u8>);

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
