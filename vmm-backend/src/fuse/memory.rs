//! A file system in memory for tests of the wire: it has no policy, and keeps count of lookups so
//! that a test can see what was given back.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::{Mutex, MutexGuard};

use rustix::fs::{MemfdFlags, memfd_create};

use crate::filesystem::{
    Allocate, Attributes, Caller, CopyRange, DataSink, DataSource, DirectoryEntry, DirectorySink,
    Entry, Errno, FOREVER, FileSystem, FileSystemStatistics, Kind, Name, NewKind, NewObject,
    NodeId, Rename, Seek, SetAttributes, SetTime, SetXattr, Timestamp, Write,
};

/// A node whose number is this is a stream, whether it exists or not.
pub(crate) const STREAM: NodeId = NodeId(9999);

#[derive(Debug)]
struct Node {
    attributes: Attributes,
    parent: NodeId,
    /// A directory's names.
    names: BTreeMap<Vec<u8>, NodeId>,
    /// A regular file's bytes.
    file: Option<File>,
    target: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    lookups: i64,
}

#[derive(Debug)]
pub(crate) struct MemoryFileSystem {
    nodes: Mutex<BTreeMap<NodeId, Node>>,
}

impl MemoryFileSystem {
    pub(crate) fn new() -> Self {
        let mut nodes = BTreeMap::new();
        nodes.insert(NodeId::ROOT, new_node(NodeId::ROOT, 0o040_777));
        Self { nodes: Mutex::new(nodes) }
    }

    /// The sum of all lookups given out and not given back.
    pub(crate) fn lookups(&self) -> i64 {
        self.nodes().values().map(|node| node.lookups).sum()
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeMap<NodeId, Node>> {
        self.nodes.lock().unwrap()
    }

    /// Runs `use_node` on a node that must exist.
    fn with<T>(
        &self,
        node: NodeId,
        use_node: impl FnOnce(&mut Node) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        use_node(self.nodes().get_mut(&node).ok_or(Errno::STALE)?)
    }

    fn file(&self, node: NodeId) -> Result<File, Errno> {
        self.with(node, |node| {
            node.file.as_ref().ok_or(Errno::INVAL)?.try_clone().map_err(|_| Errno::IO)
        })
    }

    fn entry(&self, node: NodeId) -> Result<Entry, Errno> {
        self.with(node, |node| {
            node.lookups += 1;
            Ok(entry(node.attributes))
        })
    }

    /// Takes the file's size as the file has it.
    fn resized(&self, node: NodeId) -> Result<Attributes, Errno> {
        self.with(node, |node| {
            if let Some(file) = &node.file {
                node.attributes.size = file.metadata().map_err(|_| Errno::IO)?.len();
            }
            Ok(node.attributes)
        })
    }
}

fn entry(attributes: Attributes) -> Entry {
    Entry { attributes, generation: 0, valid_for: FOREVER, is_stream: false }
}

fn new_node(node: NodeId, mode: u32) -> Node {
    let attributes = Attributes {
        node,
        mode,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        block_size: 4096,
        atime: Timestamp::default(),
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
        btime: Some(Timestamp { seconds: -1, nanoseconds: 5 }),
    };
    let is_file = Kind::from_mode(mode) == Some(Kind::File);
    // Random births may use up the descriptors; such a file has no bytes then.
    let file = is_file.then(|| memfd_create("test", MemfdFlags::CLOEXEC).map(File::from));
    let file = file.and_then(Result::ok);
    Node {
        attributes,
        parent: NodeId::ROOT,
        names: BTreeMap::new(),
        file,
        target: Vec::new(),
        xattrs: BTreeMap::new(),
        lookups: 0,
    }
}

impl FileSystem for MemoryFileSystem {
    fn lookup(&self, _: &Caller, parent: NodeId, name: Name<'_>) -> Result<Entry, Errno> {
        let found = self.with(parent, |node| Ok(node.names.get(name.as_bytes()).copied()))?;
        self.entry(found.ok_or(Errno::NOENT)?)
    }

    fn lookup_self(&self, node: NodeId) -> Result<Entry, Errno> {
        self.entry(node)
    }

    fn lookup_parent(&self, node: NodeId) -> Result<Entry, Errno> {
        self.entry(self.with(node, |node| Ok(node.parent))?)
    }

    fn forget(&self, node: NodeId, count: u64) {
        if let Some(node) = self.nodes().get_mut(&node) {
            node.lookups -= i64::try_from(count).unwrap_or(i64::MAX).min(node.lookups);
        }
    }

    fn attributes(&self, node: NodeId) -> Result<Attributes, Errno> {
        self.resized(node)
    }

    fn set_attributes(
        &self,
        _: &Caller,
        node: NodeId,
        change: &SetAttributes,
    ) -> Result<Attributes, Errno> {
        if let Some(size) = change.size {
            self.file(node)?.set_len(size).map_err(|_| Errno::FBIG)?;
        }
        self.with(node, |node| {
            let attributes = &mut node.attributes;
            attributes.mode =
                change.mode.map_or(attributes.mode, |mode| attributes.mode & !0o7777 | mode);
            attributes.uid = change.uid.unwrap_or(attributes.uid);
            if let Some(SetTime::To(mtime)) = change.mtime {
                attributes.mtime = mtime;
            }
            Ok(())
        })?;
        self.resized(node)
    }

    fn read_link(&self, node: NodeId) -> Result<Vec<u8>, Errno> {
        self.with(node, |node| Ok(node.target.clone()))
    }

    fn create(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: Name<'_>,
        new: &NewObject<'_>,
    ) -> Result<Entry, Errno> {
        if self.with(parent, |node| Ok(node.names.contains_key(name.as_bytes())))? {
            return Err(Errno::EXIST);
        }
        let born = self.create_unnamed(caller, parent, new)?;
        let number = born.attributes.node;
        self.with(parent, |node| Ok(node.names.insert(name.as_bytes().to_vec(), number)))?;
        Ok(born)
    }

    fn create_unnamed(
        &self,
        caller: &Caller,
        parent: NodeId,
        new: &NewObject<'_>,
    ) -> Result<Entry, Errno> {
        let (kind, target): (_, &[u8]) = match new.kind {
            NewKind::File => (Kind::File, &[]),
            NewKind::Directory => (Kind::Directory, &[]),
            NewKind::Symlink { target } => (Kind::Symlink, target),
            NewKind::Special { kind, .. } => (kind, &[]),
        };
        let mut nodes = self.nodes();
        let number = NodeId(nodes.keys().last().map_or(2, |last| last.0 + 1));
        let mut node = new_node(number, kind.mode_bits() | (new.mode & !new.umask));
        node.attributes.uid = caller.uid;
        node.attributes.size = u64::try_from(target.len()).unwrap();
        node.target = target.to_vec();
        node.parent = parent;
        node.lookups = 1;
        let born = entry(node.attributes);
        nodes.insert(number, node);
        Ok(born)
    }

    fn link(&self, node: NodeId, parent: NodeId, name: Name<'_>) -> Result<Entry, Errno> {
        self.with(parent, |parent| Ok(parent.names.insert(name.as_bytes().to_vec(), node)))?;
        self.entry(node)
    }

    fn unlink(&self, parent: NodeId, name: Name<'_>) -> Result<(), Errno> {
        self.with(parent, |node| node.names.remove(name.as_bytes()).map(drop).ok_or(Errno::NOENT))
    }

    fn remove_directory(&self, parent: NodeId, name: Name<'_>) -> Result<(), Errno> {
        self.unlink(parent, name)
    }

    fn rename(&self, _: &Caller, rename: &Rename<'_>) -> Result<(), Errno> {
        let moved = self.with(rename.from, |node| {
            node.names.remove(rename.name.as_bytes()).ok_or(Errno::NOENT)
        })?;
        self.with(rename.to, |node| {
            node.names.insert(rename.new_name.as_bytes().to_vec(), moved);
            Ok(())
        })
    }

    fn read(
        &self,
        node: NodeId,
        offset: u64,
        size: usize,
        sink: &mut dyn DataSink,
    ) -> Result<(), Errno> {
        sink.append_file(self.file(node)?.as_fd(), offset, size).map(drop)
    }

    fn write(
        &self,
        node: NodeId,
        write: &Write,
        source: &mut dyn DataSource,
    ) -> Result<usize, Errno> {
        source.write_file(self.file(node)?.as_fd(), write.offset, write.size)
    }

    fn read_directory(
        &self,
        node: NodeId,
        cookie: u64,
        plus: bool,
        sink: &mut dyn DirectorySink,
    ) -> Result<(), Errno> {
        let names = self.with(node, |node| Ok(node.names.clone()))?;
        for (cookie, (name, &node)) in (1..).zip(&names).filter(|&(at, _)| at > cookie) {
            if !sink.fits(name.len()) {
                break;
            }
            let kind = self.attributes(node)?.kind();
            let entry = plus.then(|| self.entry(node)).transpose()?;
            sink.push(&DirectoryEntry { node, cookie, kind, name }, entry.as_ref());
        }
        Ok(())
    }

    fn allocate(&self, node: NodeId, _: &Allocate) -> Result<(), Errno> {
        // A host call that is missing must not reach the guest as ENOSYS.
        self.attributes(node).and(Err(Errno::NOSYS))
    }

    fn seek(&self, node: NodeId, seek: Seek) -> Result<u64, Errno> {
        let size = self.attributes(node)?.size;
        match seek {
            Seek::Data(offset) | Seek::Hole(offset) if offset >= size => Err(Errno::NXIO),
            Seek::Data(offset) => Ok(offset),
            Seek::Hole(_) => Ok(size),
        }
    }

    fn copy_range(&self, copy: &CopyRange) -> Result<u64, Errno> {
        self.attributes(copy.from).and(self.attributes(copy.to)).and(Ok(copy.size))
    }

    fn sync(&self, node: NodeId, _: bool) -> Result<(), Errno> {
        self.attributes(node).map(drop)
    }

    fn sync_all(&self) -> Result<(), Errno> {
        Ok(())
    }

    fn statistics(&self) -> Result<FileSystemStatistics, Errno> {
        Ok(FileSystemStatistics { name_bytes_max: 255, block_size: 4096, ..Default::default() })
    }

    fn xattr(&self, _: &Caller, node: NodeId, name: &[u8]) -> Result<Vec<u8>, Errno> {
        self.with(node, |node| node.xattrs.get(name).cloned().ok_or(Errno::NODATA))
    }

    fn list_xattrs(&self, _: &Caller, node: NodeId) -> Result<Vec<u8>, Errno> {
        self.with(node, |node| {
            Ok(node.xattrs.keys().flat_map(|name| name.iter().copied().chain([0])).collect())
        })
    }

    fn set_xattr(&self, _: &Caller, node: NodeId, set: &SetXattr<'_>) -> Result<(), Errno> {
        self.with(node, |node| {
            node.xattrs.insert(set.name.to_vec(), set.value.to_vec());
            Ok(())
        })
    }

    fn remove_xattr(&self, node: NodeId, name: &[u8]) -> Result<(), Errno> {
        self.with(node, |node| node.xattrs.remove(name).map(drop).ok_or(Errno::NODATA))
    }

    fn inode_flags(&self, node: NodeId) -> Result<u32, Errno> {
        self.attributes(node).map(|_| 0x80)
    }

    fn is_stream(&self, node: NodeId) -> bool {
        node == STREAM
    }
}
