//! One request against the file system, and its answer into the reply.

use super::abi;
use super::init::Agreed;
use super::ioctl::InodeQuestion;
use super::reply::{
    DirectoryReply, ReplyBuffer, append, attr_out, entry_out, negative_entry_out, statfs_out,
    statx_out,
};
use super::request::{Operation, Request};
use super::session::Session;
use crate::filesystem::{
    Attributes, CopyRange, DataSource, Entry, Errno, FileSystem, Name, NewObject, NodeId, Seek,
    Write,
};

/// How a request ended that did not fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// The body is in the reply.
    Done,
    /// `ENOSYS`: the guest need not ask again, for this whole mount.
    Never,
}

/// One request on its way through the session.
pub(super) struct Exchange<'a, F: FileSystem> {
    pub(super) session: &'a Session<F>,
    pub(super) request: Request<'a>,
    pub(super) source: &'a mut dyn DataSource,
    pub(super) reply: &'a mut dyn ReplyBuffer,
}

impl<F: FileSystem> Exchange<'_, F> {
    /// One row per operation.
    pub(super) fn answer(&mut self, operation: &Operation<'_>) -> Result<Outcome, Errno> {
        let files = &*self.session.file_system;
        let (node, caller) = (self.request.node(), self.request.caller());
        match *operation {
            Operation::Init(ref offer) => return self.session.start(offer, self.reply),
            Operation::Destroy => return Ok(self.session.end()),
            Operation::Open => return self.open(false),
            Operation::OpenDirectory => return self.open(true),
            Operation::Flush => return Ok(self.flush()),
            Operation::Unsupported => return Ok(Outcome::Never),

            Operation::Lookup(name) => self.lookup(name)?,
            Operation::LookupSelf => self.lookup_self()?,
            Operation::LookupParent => self.entry(|| files.lookup_parent(node))?,
            Operation::Create { name, ref new, opens: false } => {
                self.entry(|| files.create(&caller, node, name, new))?;
            }
            Operation::Create { name, ref new, opens: true } => {
                self.opened_entry(|| files.create(&caller, node, name, new))?;
            }
            Operation::CreateUnnamed(ref new) => self.create_unnamed(new)?,
            Operation::Link(linked, name) => self.entry(|| files.link(linked, node, name))?,
            Operation::Unlink(name) => files.unlink(node, name)?,
            Operation::RemoveDirectory(name) => files.remove_directory(node, name)?,
            Operation::Rename(ref rename) => {
                self.may_change(|| files.renames_at_once(rename))?;
                files.rename(&caller, rename)?;
            }

            Operation::GetAttributes => self.attributes(|| files.attributes(node))?,
            Operation::SetAttributes(ref change) => {
                self.may_change(|| files.changes_at_once(node, change))?;
                self.attributes(|| files.set_attributes(&caller, node, change))?;
            }
            Operation::Statx => self.statx()?,
            Operation::ReadLink => self.reply.append(&files.read_link(node)?)?,
            Operation::IoCtl { command, size } => self.ioctl(command, size)?,

            Operation::Release => {}
            Operation::Read { offset, size } => self.read(offset, size)?,
            Operation::Write(ref write) => self.write(write)?,
            Operation::ReadDirectory { cookie, size, plus } => {
                self.read_directory(cookie, size, plus)?;
            }
            Operation::Allocate(ref allocate) => files.allocate(node, allocate)?,
            Operation::Seek(seek) => return self.seek(seek),
            Operation::CopyRange { ref copy, wide } => self.copy_range(copy, wide)?,
            Operation::Sync { data_only } => files.sync(node, data_only)?,
            Operation::SyncAll => files.sync_all()?,
            Operation::Statistics => append(self.reply, &statfs_out(&files.statistics()?))?,

            Operation::GetXattr { name, size } => {
                let value = files.xattr(&caller, node, name)?;
                self.sized(&value, size)?;
            }
            Operation::ListXattrs { size } => {
                self.sized(&files.list_xattrs(&caller, node)?, size)?;
            }
            Operation::SetXattr(ref set) => files.set_xattr(&caller, node, set)?,
            Operation::RemoveXattr(name) => files.remove_xattr(node, name)?,
        }
        Ok(Outcome::Done)
    }

    /// Errors: `EIO` unless the reply takes `bytes`: asked before anything changes, so that no
    /// change goes unreported.
    fn room(&self, bytes: usize) -> Result<(), Errno> {
        if self.reply.capacity() < bytes { Err(Errno::IO) } else { Ok(()) }
    }

    /// Errors: `EAGAIN` where the request may not wait, and the change might.
    fn may_change(&self, is_at_once: impl FnOnce() -> bool) -> Result<(), Errno> {
        if self.reply.may_wait() || is_at_once() { Ok(()) } else { Err(Errno::AGAIN) }
    }

    /// What a file handle names, though the guest may have forgotten it.
    fn lookup_self(&mut self) -> Result<(), Errno> {
        let (files, node) = (&self.session.file_system, self.request.node());
        let may_find_again = self.session.agreed().is_some_and(Agreed::may_find_again);
        match files.lookup_self(node) {
            Err(Errno::STALE) if may_find_again => {
                self.may_change(|| false)?;
                self.entry(|| files.find_again(node))
            }
            found => self.entry(|| found),
        }
    }

    /// A name that is absent is absent for ever, unless who asks decides about it.
    fn lookup(&mut self, name: Name<'_>) -> Result<(), Errno> {
        let (files, node) = (&self.session.file_system, self.request.node());
        self.room(size_of::<abi::EntryOut>())?;
        match files.lookup(&self.request.caller(), node, name) {
            Ok(entry) => self.give(&entry, &[]),
            Err(Errno::NOENT) if !self.is_unremembered(name) => {
                append(self.reply, &negative_entry_out())
            }
            Err(errno) => Err(errno),
        }
    }

    fn is_unremembered(&self, name: Name<'_>) -> bool {
        self.request.node() == NodeId::ROOT
            && self.session.config.unremembered == Some(name.as_bytes())
    }

    /// An entry that was found or born.
    fn entry(&mut self, get: impl FnOnce() -> Result<Entry, Errno>) -> Result<(), Errno> {
        self.room(size_of::<abi::EntryOut>())?;
        self.give(&get()?, &[])
    }

    /// An entry that was born and opened.
    fn opened_entry(&mut self, get: impl FnOnce() -> Result<Entry, Errno>) -> Result<(), Errno> {
        self.room(size_of::<abi::EntryOut>() + size_of::<abi::OpenOut>())?;
        let open = abi::OpenOut { open_flags: abi::FOPEN_KEEP_CACHE, ..Default::default() };
        self.give(&get()?, zerocopy::IntoBytes::as_bytes(&open))
    }

    fn create_unnamed(&mut self, new: &NewObject<'_>) -> Result<(), Errno> {
        let (files, node) = (&self.session.file_system, self.request.node());
        let caller = self.request.caller();
        self.opened_entry(|| files.create_unnamed(&caller, node, new))
    }

    /// Hands an entry over, and gives it back to the file system if that fails.
    fn give(&mut self, entry: &Entry, open: &[u8]) -> Result<(), Errno> {
        append(self.reply, &entry_out(entry)).and_then(|()| self.reply.append(open)).inspect_err(
            |errno| {
                log::error!("entry {} not delivered: {errno}", entry.attributes.node);
                self.session.file_system.forget(entry.attributes.node, 1);
            },
        )
    }

    fn attributes(&mut self, get: impl FnOnce() -> Result<Attributes, Errno>) -> Result<(), Errno> {
        self.room(size_of::<abi::AttrOut>())?;
        let out = attr_out(&get()?);
        append(self.reply, &out)
    }

    fn statx(&mut self) -> Result<(), Errno> {
        let attributes = self.session.file_system.attributes(self.request.node())?;
        let out = statx_out(&attributes);
        append(self.reply, &out)
    }

    /// OPEN and OPENDIR: never again, where the guest knows what that means.
    fn open(&mut self, directory: bool) -> Result<Outcome, Errno> {
        let (unneeded, flags) = if directory {
            (abi::INIT_NO_OPENDIR_SUPPORT, abi::FOPEN_KEEP_CACHE | abi::FOPEN_CACHE_DIR)
        } else {
            (abi::INIT_NO_OPEN_SUPPORT, abi::FOPEN_KEEP_CACHE)
        };
        let open_flags = if self.session.file_system.is_stream(self.request.node()) {
            abi::FOPEN_DIRECT_IO | abi::FOPEN_NONSEEKABLE
        } else if self.session.agreed().is_some_and(|agreed| agreed.has(unneeded)) {
            return Ok(Outcome::Never);
        } else {
            flags
        };
        append(self.reply, &abi::OpenOut { open_flags, ..Default::default() })?;
        Ok(Outcome::Done)
    }

    /// FLUSH: there is nothing to do at close(), but an older guest that learns so no longer
    /// writes back there and loses the errors.
    fn flush(&self) -> Outcome {
        match self.session.agreed() {
            Some(agreed) if agreed.needs_no_flush() => Outcome::Never,
            _ => Outcome::Done,
        }
    }

    fn ioctl(&mut self, command: u32, size: usize) -> Result<(), Errno> {
        let question = InodeQuestion::new(command)?;
        let flags = self.session.file_system.inode_flags(self.request.node())?;
        self.reply.append(&question.answer(flags, size)?)
    }

    fn read(&mut self, offset: u64, size: usize) -> Result<(), Errno> {
        let (files, node) = (&self.session.file_system, self.request.node());
        let before = self.reply.capacity();
        let size = size.min(before);
        files.read(node, offset, size, self.reply)?;
        if before.saturating_sub(self.reply.capacity()) > size {
            debug_assert!(false, "a read gave more than it was asked for");
            log::error!("read of node {node} gave more than the {size} bytes asked for");
            return Err(Errno::IO);
        }
        Ok(())
    }

    fn write(&mut self, write: &Write) -> Result<(), Errno> {
        self.room(size_of::<abi::WriteOut>())?;
        // What the header promises beyond what came was never sent.
        let promised = usize::try_from(self.request.header.len).map_err(|_| Errno::INVAL)?;
        let data_bytes = promised.saturating_sub(abi::WRITE_MESSAGE_BYTES);
        if write.size > data_bytes || write.size > self.source.remaining() {
            return Err(Errno::INVAL);
        }
        let (files, node) = (&self.session.file_system, self.request.node());
        self.may_change(|| files.writes_at_once(node, (write.offset, write.size)))?;
        let written = files.write(node, write, self.source)?;
        let size = u32::try_from(written.min(write.size)).map_err(|_| Errno::IO)?;
        append(self.reply, &abi::WriteOut { size, padding: 0 })
    }

    /// A listing that fails after some rows ends there: the error comes again with the next
    /// request, and the rows' lookups are delivered.
    fn read_directory(&mut self, cookie: u64, size: usize, plus: bool) -> Result<(), Errno> {
        let (files, node) = (&self.session.file_system, self.request.node());
        let mut rows = DirectoryReply::new(self.reply, size, plus);
        let listed = files.read_directory(node, cookie, plus, &mut rows);
        rows.flush();
        rows.lost().iter().for_each(|&lost| files.forget(lost, 1));
        match listed {
            Err(_) if !rows.is_empty() => Ok(()),
            Ok(()) if rows.is_too_small() => Err(Errno::INVAL),
            listed => listed,
        }
    }

    /// LSEEK: never again under the writeback cache. The guest's kernel asks without writing back
    /// first (fs/fuse/file.c: `fuse_lseek`), so that a hole here may be data there, and who copies
    /// a file that somebody writes would lose it. Unasked, it says that all is data.
    fn seek(&mut self, seek: Seek) -> Result<Outcome, Errno> {
        let cached = |agreed: Agreed| agreed.has(abi::INIT_WRITEBACK_CACHE);
        if self.session.agreed().is_some_and(cached) {
            return Ok(Outcome::Never);
        }
        let offset = self.session.file_system.seek(self.request.node(), seek)?;
        append(self.reply, &abi::LSeekOut { offset })?;
        Ok(Outcome::Done)
    }

    fn copy_range(&mut self, copy: &CopyRange, wide: bool) -> Result<(), Errno> {
        self.room(size_of::<abi::CopyFileRangeOut>())?;
        let bytes_copied = self.session.file_system.copy_range(copy)?.min(copy.size);
        if wide {
            return append(self.reply, &abi::CopyFileRangeOut { bytes_copied });
        }
        let size = u32::try_from(bytes_copied).map_err(|_| Errno::IO)?;
        append(self.reply, &abi::WriteOut { size, padding: 0 })
    }

    /// A value into a guest's buffer of `size` bytes, or its size where that is 0.
    ///
    /// Errors: `ERANGE` if the value is longer than the buffer, or than the reply.
    fn sized(&mut self, value: &[u8], size: usize) -> Result<(), Errno> {
        if size == 0 {
            let size = u32::try_from(value.len()).map_err(|_| Errno::TOOBIG)?;
            return append(self.reply, &abi::GetXattrOut { size, padding: 0 });
        }
        if value.len() > size.min(self.reply.capacity()) {
            return Err(Errno::RANGE);
        }
        self.reply.append(value)
    }
}
