//! The control files of one guest: its command and its streams, as synthetic nodes beside the
//! union, and its reports, as xattrs set on the union's root.
//!
//! Only the guest's pid 1 finds them, and no listing shows them. The other end is guest-init.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fd::OwnedFd;

use crate::filesystem::{
    Allocate, Attributes, Caller, CopyRange, DataSink, DataSource, DirectoryEntry, DirectorySink,
    Entry, Errno, FileSystem, FileSystemStatistics, Kind, Name, NewObject, NodeId, Rename, Seek,
    SetAttributes, SetXattr, Timestamp, Write,
};

mod report;
mod stream;

pub use report::{OnReport, REPORT_PREFIX, Report};
pub use stream::Cancellation;

use report::Reports;
use stream::Stream;

/// The directory of the control files, in the union's root.
pub const DIRECTORY_NAME: &[u8] = b".thinroot";

/// The guest's first process, the only one that is told and believed.
const INIT_PID: u32 = 1;

/// Node numbers of the synthetic objects. The union counts up from 1 and never comes here.
const DIRECTORY: NodeId = NodeId(u64::MAX - 16);
const COMMAND: NodeId = NodeId(u64::MAX - 15);
const STDIN: NodeId = NodeId(u64::MAX - 14);
const STDOUT: NodeId = NodeId(u64::MAX - 13);
const STDERR: NodeId = NodeId(u64::MAX - 12);
const SYNTHETIC: std::ops::RangeInclusive<u64> = DIRECTORY.0..=STDERR.0;

/// What `thinroot run` gives to the guest. A stream that is `None` does not exist.
#[derive(Debug, Default)]
pub struct ControlFiles {
    /// Fields `key=value`, each with a NUL behind it.
    pub command: Vec<u8>,
    /// Read by the guest.
    pub stdin: Option<OwnedFd>,
    /// Written by the guest.
    pub stdout: Option<OwnedFd>,
    /// Written by the guest.
    pub stderr: Option<OwnedFd>,
}

/// A file system with the control files of one guest beside it.
#[derive(Debug)]
pub struct Control<F> {
    inner: F,
    files: Option<Files>,
    reports: Reports,
    cancellation: Arc<Cancellation>,
}

#[derive(Debug)]
struct Files {
    command: Vec<u8>,
    /// Whether the command was read to its end. Nothing is locked inside it.
    command_is_gone: Mutex<bool>,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
}

impl<F: FileSystem> Control<F> {
    /// Puts the control files beside `inner`; without `files` the guest finds none (and boots
    /// its own init), but may report.
    ///
    /// Errors: those of `eventfd2`.
    pub fn new(inner: F, files: Option<ControlFiles>, on_report: OnReport) -> Result<Self, Errno> {
        let files = files.map(|files| Files {
            command: files.command,
            command_is_gone: Mutex::new(false),
            stdin: files.stdin.map(Stream::new),
            stdout: files.stdout.map(Stream::new),
            stderr: files.stderr.map(Stream::new),
        });
        let cancellation = Arc::new(Cancellation::new()?);
        Ok(Self { inner, files, reports: Reports::new(on_report), cancellation })
    }

    /// What calls off waiting reads and writes of the streams: to be renewed when the guest
    /// disconnects, and stopped when the daemon ends.
    pub fn cancellation(&self) -> Arc<Cancellation> {
        Arc::clone(&self.cancellation)
    }

    /// A guest that has ended waits for no more input: a read of it would hold up the unmount.
    fn take_report(&self, name: &[u8], value: &[u8]) -> Result<(), Errno> {
        self.reports.take(name, value)?;
        if self.reports.have_ended() {
            self.cancellation.renew();
        }
        Ok(())
    }

    /// The control files, if `caller` may see them.
    fn files_for(&self, caller: &Caller) -> Option<&Files> {
        self.files.as_ref().filter(|_| caller.pid == INIT_PID)
    }

    /// Errors: `ESTALE` where there are no control files.
    fn files(&self) -> Result<&Files, Errno> {
        self.files.as_ref().ok_or(Errno::STALE)
    }
}

impl Files {
    fn command_is_gone(&self) -> MutexGuard<'_, bool> {
        self.command_is_gone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A guest that boots its own init may do so again; a command runs once.
    fn renew(&self) {
        if self.command.split(|&byte| byte == 0).any(|field| field.starts_with(b"boot=")) {
            *self.command_is_gone() = false;
        }
    }

    fn lookup(&self, name: &[u8]) -> Result<Entry, Errno> {
        let node = match name {
            b"command" if !*self.command_is_gone() => COMMAND,
            b"stdin" if self.stdin.is_some() => STDIN,
            b"stdout" if self.stdout.is_some() => STDOUT,
            b"stderr" if self.stderr.is_some() => STDERR,
            _ => return Err(Errno::NOENT),
        };
        self.entry(node)
    }

    fn entry(&self, node: NodeId) -> Result<Entry, Errno> {
        Ok(Entry {
            attributes: self.attributes(node)?,
            generation: 0,
            valid_for: std::time::Duration::ZERO,
            is_stream: is_stream(node),
        })
    }

    /// Errors: `ESTALE` for a number that no control file has.
    fn attributes(&self, node: NodeId) -> Result<Attributes, Errno> {
        // A FIFO would say more truly what a stream is, but the guest's kernel would then open
        // a FIFO of its own and never ask.
        let (mode, nlink, size) = match node {
            DIRECTORY => (Kind::Directory.mode_bits() | 0o500, 2, 0),
            COMMAND => (Kind::File.mode_bits() | 0o400, 1, self.command.len()),
            STDIN => (Kind::File.mode_bits() | 0o400, 1, 0),
            STDOUT | STDERR => (Kind::File.mode_bits() | 0o200, 1, 0),
            _ => return Err(Errno::STALE),
        };
        Ok(Attributes {
            node,
            mode,
            nlink,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: u64::try_from(size).unwrap_or(u64::MAX),
            blocks: 0,
            block_size: 4096,
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            btime: None,
        })
    }

    /// Gives the command from `offset`; it is gone once a read has met its end.
    fn read_command(&self, offset: u64, size: usize, sink: &mut dyn DataSink) -> Result<(), Errno> {
        let mut is_gone = self.command_is_gone();
        let rest = usize::try_from(offset).ok().and_then(|start| self.command.get(start..));
        let rest = rest.filter(|_| !*is_gone).unwrap_or_default();
        let size = size.min(sink.capacity()).min(rest.len());
        sink.append(&rest[..size])?;
        *is_gone |= size == rest.len();
        Ok(())
    }
}

const fn is_synthetic(node: NodeId) -> bool {
    *SYNTHETIC.start() <= node.0 && node.0 <= *SYNTHETIC.end()
}

const fn is_stream(node: NodeId) -> bool {
    is_synthetic(node) && node.0 != DIRECTORY.0
}

/// Answers `error` for a synthetic node and lets every other one through.
const fn refuse(node: NodeId, error: Errno) -> Result<(), Errno> {
    if is_synthetic(node) { Err(error) } else { Ok(()) }
}

/// The report a SETXATTR, GETXATTR or REMOVEXATTR of `name` on `node` is about.
fn report_name(node: NodeId, name: &[u8]) -> Option<&[u8]> {
    name.strip_prefix(REPORT_PREFIX).filter(|_| node == NodeId::ROOT)
}

impl<F: FileSystem> FileSystem for Control<F> {
    fn init(&self) {
        self.cancellation.renew();
        self.reports.renew();
        if let Some(files) = &self.files {
            files.renew();
        }
        self.inner.init();
    }

    fn destroy(&self) {
        self.cancellation.renew();
        self.inner.destroy();
    }

    fn lookup(&self, caller: &Caller, parent: NodeId, name: Name<'_>) -> Result<Entry, Errno> {
        match (parent, self.files_for(caller)) {
            (DIRECTORY, Some(files)) => files.lookup(name.as_bytes()),
            (NodeId::ROOT, Some(files)) if name.as_bytes() == DIRECTORY_NAME => {
                files.entry(DIRECTORY)
            }
            _ => {
                refuse(parent, Errno::NOENT)?;
                self.inner.lookup(caller, parent, name)
            }
        }
    }

    fn lookup_self(&self, node: NodeId) -> Result<Entry, Errno> {
        if is_synthetic(node) { self.files()?.entry(node) } else { self.inner.lookup_self(node) }
    }

    fn find_again(&self, node: NodeId) -> Result<Entry, Errno> {
        if is_synthetic(node) { Err(Errno::STALE) } else { self.inner.find_again(node) }
    }

    fn lookup_parent(&self, node: NodeId) -> Result<Entry, Errno> {
        match node {
            DIRECTORY => self.inner.lookup_self(NodeId::ROOT),
            _ => {
                refuse(node, Errno::NOTDIR)?;
                self.inner.lookup_parent(node)
            }
        }
    }

    fn forget(&self, node: NodeId, count: u64) {
        if !is_synthetic(node) {
            self.inner.forget(node, count);
        }
    }

    fn attributes(&self, node: NodeId) -> Result<Attributes, Errno> {
        if is_synthetic(node) {
            self.files()?.attributes(node)
        } else {
            self.inner.attributes(node)
        }
    }

    fn set_attributes(
        &self,
        caller: &Caller,
        node: NodeId,
        change: &SetAttributes,
    ) -> Result<Attributes, Errno> {
        if !is_synthetic(node) {
            return self.inner.set_attributes(caller, node, change);
        }
        // O_TRUNC arrives as a size; a stream has none to change, as with a FIFO.
        let truncates = change.size == Some(0) && change.mode.is_none();
        if is_stream(node) && truncates && change.uid.is_none() && change.gid.is_none() {
            return self.files()?.attributes(node);
        }
        Err(Errno::PERM)
    }

    fn read_link(&self, node: NodeId) -> Result<Vec<u8>, Errno> {
        refuse(node, Errno::INVAL)?;
        self.inner.read_link(node)
    }

    fn create(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: Name<'_>,
        new: &NewObject<'_>,
    ) -> Result<Entry, Errno> {
        refuse(parent, Errno::PERM)?;
        self.inner.create(caller, parent, name, new)
    }

    fn create_unnamed(
        &self,
        caller: &Caller,
        parent: NodeId,
        new: &NewObject<'_>,
    ) -> Result<Entry, Errno> {
        refuse(parent, Errno::PERM)?;
        self.inner.create_unnamed(caller, parent, new)
    }

    fn link(&self, node: NodeId, parent: NodeId, name: Name<'_>) -> Result<Entry, Errno> {
        refuse(node, Errno::PERM)?;
        refuse(parent, Errno::PERM)?;
        self.inner.link(node, parent, name)
    }

    fn unlink(&self, parent: NodeId, name: Name<'_>) -> Result<(), Errno> {
        refuse(parent, Errno::PERM)?;
        self.inner.unlink(parent, name)
    }

    fn remove_directory(&self, parent: NodeId, name: Name<'_>) -> Result<(), Errno> {
        refuse(parent, Errno::PERM)?;
        self.inner.remove_directory(parent, name)
    }

    fn rename(&self, caller: &Caller, rename: &Rename<'_>) -> Result<(), Errno> {
        refuse(rename.from, Errno::PERM)?;
        refuse(rename.to, Errno::PERM)?;
        self.inner.rename(caller, rename)
    }

    fn read(
        &self,
        node: NodeId,
        offset: u64,
        size: usize,
        sink: &mut dyn DataSink,
    ) -> Result<(), Errno> {
        match node {
            COMMAND => self.files()?.read_command(offset, size, sink),
            STDIN => {
                let stream = self.files()?.stdin.as_ref().ok_or(Errno::STALE)?;
                stream.read(size, sink, &self.cancellation)
            }
            _ => {
                refuse(node, Errno::BADF)?;
                self.inner.read(node, offset, size, sink)
            }
        }
    }

    fn write(
        &self,
        node: NodeId,
        write: &Write,
        source: &mut dyn DataSource,
    ) -> Result<usize, Errno> {
        let stream = match node {
            STDOUT => &self.files()?.stdout,
            STDERR => &self.files()?.stderr,
            _ => {
                refuse(node, Errno::BADF)?;
                return self.inner.write(node, write, source);
            }
        };
        let stream = stream.as_ref().ok_or(Errno::STALE)?;
        stream.write(write.size, source, &self.cancellation)
    }

    fn read_directory(
        &self,
        node: NodeId,
        cookie: u64,
        plus: bool,
        sink: &mut dyn DirectorySink,
    ) -> Result<(), Errno> {
        if node != DIRECTORY {
            refuse(node, Errno::NOTDIR)?;
            return self.inner.read_directory(node, cookie, plus, sink);
        }
        let rows: [(u64, NodeId, &[u8]); 2] = [(1, DIRECTORY, b"."), (2, NodeId::ROOT, b"..")];
        for (own, node, name) in rows {
            if own > cookie && sink.fits(name.len()) {
                let kind = Kind::Directory;
                sink.push(&DirectoryEntry { node, cookie: own, kind, name }, None);
            }
        }
        Ok(())
    }

    fn allocate(&self, node: NodeId, allocate: &Allocate) -> Result<(), Errno> {
        refuse(node, Errno::SPIPE)?;
        self.inner.allocate(node, allocate)
    }

    fn seek(&self, node: NodeId, seek: Seek) -> Result<u64, Errno> {
        refuse(node, Errno::SPIPE)?;
        self.inner.seek(node, seek)
    }

    fn copy_range(&self, copy: &CopyRange) -> Result<u64, Errno> {
        refuse(copy.from, Errno::INVAL)?;
        refuse(copy.to, Errno::INVAL)?;
        self.inner.copy_range(copy)
    }

    fn sync(&self, node: NodeId, data_only: bool) -> Result<(), Errno> {
        // As for a pipe.
        refuse(node, Errno::INVAL)?;
        self.inner.sync(node, data_only)
    }

    fn sync_all(&self) -> Result<(), Errno> {
        self.inner.sync_all()
    }

    fn statistics(&self) -> Result<FileSystemStatistics, Errno> {
        self.inner.statistics()
    }

    fn xattr(&self, caller: &Caller, node: NodeId, name: &[u8]) -> Result<Vec<u8>, Errno> {
        refuse(node, Errno::NODATA)?;
        if report_name(node, name).is_some() {
            return Err(Errno::NODATA);
        }
        self.inner.xattr(caller, node, name)
    }

    fn list_xattrs(&self, caller: &Caller, node: NodeId) -> Result<Vec<u8>, Errno> {
        if is_synthetic(node) {
            return Ok(Vec::new());
        }
        let names = self.inner.list_xattrs(caller, node)?;
        if node != NodeId::ROOT {
            return Ok(names);
        }
        let shown = names.split_inclusive(|&byte| byte == 0);
        Ok(shown.filter(|name| !name.starts_with(REPORT_PREFIX)).flatten().copied().collect())
    }

    fn set_xattr(&self, caller: &Caller, node: NodeId, set: &SetXattr<'_>) -> Result<(), Errno> {
        refuse(node, Errno::PERM)?;
        match report_name(node, set.name) {
            None => self.inner.set_xattr(caller, node, set),
            Some(report) if caller.pid == INIT_PID => self.take_report(report, set.value),
            Some(_) => Err(Errno::PERM),
        }
    }

    fn remove_xattr(&self, node: NodeId, name: &[u8]) -> Result<(), Errno> {
        refuse(node, Errno::PERM)?;
        if report_name(node, name).is_some() {
            return Err(Errno::PERM);
        }
        self.inner.remove_xattr(node, name)
    }

    fn inode_flags(&self, node: NodeId) -> Result<u32, Errno> {
        refuse(node, Errno::NOTTY)?;
        self.inner.inode_flags(node)
    }

    fn is_stream(&self, node: NodeId) -> bool {
        is_stream(node) || self.inner.is_stream(node)
    }

    fn changes_at_once(&self, node: NodeId, change: &SetAttributes) -> bool {
        !is_stream(node) && self.inner.changes_at_once(node, change)
    }

    fn writes_at_once(&self, node: NodeId, range: (u64, usize)) -> bool {
        !is_stream(node) && self.inner.writes_at_once(node, range)
    }

    fn renames_at_once(&self, rename: &Rename<'_>) -> bool {
        self.inner.renames_at_once(rename)
    }
}

#[cfg(test)]
mod tests;
