//! File data in memory: the plainest sink and the plainest source.

use std::os::fd::BorrowedFd;

use rustix::io::{pread, pwrite, retry_on_intr};

use super::{DataSink, DataSource, Errno, FileSystem, NodeId};

/// Memory that a READ fills from its start.
#[derive(Debug)]
pub struct MemorySink<'a> {
    into: &'a mut [u8],
    filled: usize,
}

impl<'a> MemorySink<'a> {
    /// Nothing of `into` is filled yet.
    pub const fn new(into: &'a mut [u8]) -> Self {
        Self { into, filled: 0 }
    }

    /// How many bytes are filled.
    pub const fn filled(&self) -> usize {
        self.filled
    }

    fn free(&mut self) -> &mut [u8] {
        self.into.get_mut(self.filled..).unwrap_or_default()
    }
}

impl DataSink for MemorySink<'_> {
    fn capacity(&self) -> usize {
        self.into.len().saturating_sub(self.filled)
    }

    fn append_file(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        size: usize,
    ) -> Result<usize, Errno> {
        let size = size.min(self.capacity());
        let into = self.free().get_mut(..size).ok_or(Errno::IO)?;
        let bytes = retry_on_intr(|| pread(file, &mut *into, offset))?;
        self.filled += bytes;
        Ok(bytes)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        let into = self.free().get_mut(..bytes.len()).ok_or(Errno::IO)?;
        into.copy_from_slice(bytes);
        self.filled += bytes.len();
        Ok(())
    }
}

impl DataSource for &[u8] {
    fn remaining(&self) -> usize {
        self.len()
    }

    fn write_file(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        size: usize,
    ) -> Result<usize, Errno> {
        let (now, later) = self.split_at(size.min(self.len()));
        *self = later;
        retry_on_intr(|| pwrite(file, now, offset))
    }

    fn take(&mut self, into: &mut [u8]) -> Result<(), Errno> {
        let (now, later) = self.split_at_checked(into.len()).ok_or(Errno::IO)?;
        into.copy_from_slice(now);
        *self = later;
        Ok(())
    }
}

/// What a READ of `size` bytes from `offset` gives, fewer at the end of the file.
///
/// Errors: the read's own.
pub fn read(
    file_system: &impl FileSystem,
    node: NodeId,
    offset: u64,
    size: usize,
) -> Result<Vec<u8>, Errno> {
    let mut room = vec![0; size];
    let mut sink = MemorySink::new(&mut room);
    file_system.read(node, offset, size, &mut sink)?;
    let filled = sink.filled();
    room.truncate(filled);
    Ok(room)
}
