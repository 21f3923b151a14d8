//! File data: reads from whichever layer has it, writes after copy-up, and what else moves bytes.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::copy_up::Purpose;
use super::descriptors::Use;
use super::node::Node;
use super::{ELSEWHERE, NO_CAPABILITY, Union};
use crate::filesystem::{Allocate, CopyRange, DataSink, DataSource, Errno, Kind, NodeId, Write};
use crate::layer::data;

impl Union {
    /// An opened descriptor of a node's data. For `Use::Write` the node is in the upper.
    pub(super) fn opened(&self, id: NodeId, for_use: Use) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(file) = self.descriptors.get(id, Use::Write) {
            return Ok(file);
        }
        if for_use == Use::Read
            && let Some(file) = self.descriptors.get(id, Use::Read)
        {
            return Ok(file);
        }
        let _names = self.names_shared();
        let node = self.nodes.get(id)?;
        match node.kind {
            Kind::File => {}
            Kind::Directory => return Err(Errno::ISDIR),
            _ => return Err(Errno::INVAL),
        }
        let has_no_data = |node: &Node| !node.is_upper || node.flags & ELSEWHERE != 0;
        if has_no_data(&node) {
            if for_use == Use::Write {
                log::error!("union: node {id} was to be written before its data came");
                return Err(Errno::IO);
            }
            let file = match node.is_upper {
                true => self.open_elsewhere(&node)?,
                false => self.lower.open_file(node.lower.ok_or(Errno::STALE)?)?,
            };
            let file = self.descriptors.keep(id, Use::Read, file);
            if !has_no_data(&self.nodes.get(id)?) {
                // Copied up meanwhile: whoever reads next must see what is written from now on.
                self.descriptors.close_one(id, Use::Read);
            }
            return Ok(file);
        }
        let file = self.upper.open_file(self.handle(&node)?.as_fd(), for_use == Use::Write)?;
        Ok(self.descriptors.keep(id, for_use, file))
    }

    pub(super) fn read_file(
        &self,
        id: NodeId,
        offset: u64,
        size: usize,
        sink: &mut dyn DataSink,
    ) -> Result<(), Errno> {
        let size = size.min(sink.capacity());
        while !self.read_unsettled(id, (offset, size), sink)? {
            let file = self.opened(id, Use::Read)?;
            // A copy-up by block may have come between: the upper file alone has holes then.
            if !self.is_unsettled(id)? {
                sink.append_file(file.as_fd(), offset, size)?;
                break;
            }
        }
        self.see_read(&self.nodes.get(id)?);
        Ok(())
    }

    pub(super) fn write_file(
        &self,
        id: NodeId,
        write: &Write,
        source: &mut dyn DataSource,
    ) -> Result<usize, Errno> {
        self.copy_up(id, Purpose::Data)?;
        let mut change = || match self.write_unsettled(id, (write.offset, write.size), source)? {
            Some(written) => Ok(written),
            None => {
                let file = self.opened(id, Use::Write)?;
                source.write_file(file.as_fd(), write.offset, write.size)
            }
        };
        let written = if write.kill_privileges {
            // Before the bytes change: nobody may run new contents with old privileges.
            self.kill_privileges(id)?;
            let _shared = self.capabilities.share(id);
            change()?
        } else {
            self.keeping_capability(id, change)?
        };
        if write.keeps_mtime {
            self.restore_mtime(id)?;
        } else {
            self.times.forget(id);
        }
        Ok(written)
    }

    /// A change of data whose caller keeps the file's capabilities: the host strips them from
    /// whatever it writes. Meanwhile nobody sees, sets or removes them, nor writes what does away with
    /// them.
    fn keeping_capability<T>(
        &self,
        id: NodeId,
        change: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        {
            let _shared = self.capabilities.share(id);
            if self.nodes.get(id)?.flags & NO_CAPABILITY != 0 {
                return change();
            }
        }
        let _owned = self.capabilities.own(id);
        let capability = self.capability_of(&self.nodes.get(id)?)?;
        let done = change();
        if let Some(value) = capability {
            self.restore_capability(id, &value)?;
        }
        done
    }

    pub(super) fn allocate_file(&self, id: NodeId, allocate: &Allocate) -> Result<(), Errno> {
        self.copy_up(id, Purpose::Data)?;
        self.clear_privileges(id, allocate.privileges)?;
        if allocate.moves() {
            // Moved ranges would let the lower show through again.
            self.settle(id)?;
        }
        self.times.forget(id);
        let _shared = self.capabilities.share(id);
        if !allocate.moves() && self.allocate_unsettled(id, allocate)? {
            return Ok(());
        }
        let file = self.opened(id, Use::Write)?;
        self.upper.allocate(file.as_fd(), allocate.mode, (allocate.offset, allocate.size))
    }

    pub(super) fn copy_file_range(&self, copy: &CopyRange) -> Result<u64, Errno> {
        self.copy_up(copy.to, Purpose::Data)?;
        let from = self.opened(copy.from, Use::Read)?;
        let to = self.opened(copy.to, Use::Write)?;
        // Asked when both are open: a copy-up by block may have come between.
        if self.is_unsettled(copy.from)? || self.is_unsettled(copy.to)? {
            // The guest then reads and writes, which find each byte's layer.
            return Err(Errno::XDEV);
        }
        self.clear_privileges(copy.to, copy.privileges)?;
        self.times.forget(copy.to);
        let from = (from.as_fd(), copy.from_offset);
        let _shared = self.capabilities.share(copy.to);
        data::copy_range(from, (to.as_fd(), copy.to_offset), copy.size)
    }

    pub(super) fn sync_object(&self, id: NodeId, data_only: bool) -> Result<(), Errno> {
        let node = self.nodes.get(id)?;
        if !node.is_upper || self.upper.is_volatile() {
            return Ok(());
        }
        match node.kind {
            Kind::File if self.save_unsettled(id)? => Ok(()),
            Kind::File if node.flags & ELSEWHERE == 0 => {
                self.upper.sync(self.opened(id, Use::Write)?.as_fd(), data_only)
            }
            Kind::File | Kind::Directory => {
                let (_, handle) = self.reach(id)?;
                let opened = self.upper.open_file(handle.as_fd(), false)?;
                self.upper.sync(opened.as_fd(), data_only)
            }
            _ => Ok(()),
        }
    }

    /// `FS_IOC_GETFLAGS`; a lower object has none that matter to the guest.
    pub(super) fn flags_of(&self, id: NodeId) -> Result<u32, Errno> {
        let node = self.nodes.get(id)?;
        match node.kind {
            Kind::File if node.is_upper && node.flags & ELSEWHERE == 0 => {
                data::inode_flags(self.opened(id, Use::Read)?.as_fd())
            }
            Kind::File | Kind::Directory => Ok(0),
            _ => Err(Errno::NOTTY),
        }
    }
}
