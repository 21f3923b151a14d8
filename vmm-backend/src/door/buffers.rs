//! A request's bytes and its reply's room in guest memory, as the FUSE layer sees them.

use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;

use crate::filesystem::{DataSink, DataSource};
use crate::fuse::abi::OUT_HEADER_BYTES;
use crate::fuse::session::ReplyBuffer;
use crate::sys::guest_memory::{GuestBuffers, Wait};

/// A waiting request's right to touch the guest, which ends when its queue stops: the guest may
/// use the memory for something else then.
#[derive(Debug)]
pub struct Pass(
    /// Whether the pass holds. Locked while guest memory is used, so that ending it waits for a
    /// copy under way. A queue's vring is locked inside.
    Mutex<bool>,
);

impl Default for Pass {
    /// A pass that holds.
    fn default() -> Self {
        Self(Mutex::new(true))
    }
}

impl Pass {
    /// Does `work` if the pass holds, and until `work` is done it does.
    pub fn while_valid<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        let valid = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        valid.then(work)
    }

    /// Ends the pass with a last piece of work, done only if it held.
    pub fn end<T>(&self, last: impl FnOnce() -> T) -> Option<T> {
        let mut valid = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *valid, false).then(last)
    }
}

/// Does `work` on guest memory under `pass`, if there is one.
fn guarded<T>(pass: Option<&Pass>, work: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    match pass {
        None => work(),
        Some(pass) => pass.while_valid(work).unwrap_or(Err(Errno::IO)),
    }
}

/// Room for one reply in guest memory: header first, then what is appended.
#[derive(Debug)]
pub struct GuestReply<'a> {
    buffers: &'a GuestBuffers,
    wait: Wait,
    pass: Option<&'a Pass>,
    body: usize,
    has_header: bool,
}

impl<'a> GuestReply<'a> {
    /// An empty reply; file data is read with `wait`.
    pub const fn new(buffers: &'a GuestBuffers, wait: Wait, pass: Option<&'a Pass>) -> Self {
        Self { buffers, wait, pass, body: 0, has_header: false }
    }

    /// Bytes written so far, header included; 0 without a header.
    pub const fn written(&self) -> usize {
        if self.has_header { OUT_HEADER_BYTES + self.body } else { 0 }
    }

    const fn position(&self) -> usize {
        OUT_HEADER_BYTES + self.body
    }
}

impl DataSink for GuestReply<'_> {
    fn capacity(&self) -> usize {
        self.buffers.bytes().saturating_sub(self.position())
    }

    fn append_file(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        size: usize,
    ) -> Result<usize, Errno> {
        let start = self.position();
        let window = start..start + size.min(self.capacity());
        let read = guarded(self.pass, || self.buffers.read_file(window, file, offset, self.wait))?;
        self.body += read;
        Ok(read)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        if bytes.len() > self.capacity() {
            return Err(Errno::IO);
        }
        guarded(self.pass, || Ok(self.buffers.copy_in(self.position(), bytes)))?;
        self.body += bytes.len();
        Ok(())
    }
}

impl ReplyBuffer for GuestReply<'_> {
    fn set_header(&mut self, header: [u8; OUT_HEADER_BYTES]) {
        if self.buffers.bytes() < OUT_HEADER_BYTES {
            return;
        }
        let copied = guarded(self.pass, || Ok(self.buffers.copy_in(0, &header)));
        self.has_header = copied.is_ok();
    }

    fn clear(&mut self) {
        self.body = 0;
        self.has_header = false;
    }

    fn may_wait(&self) -> bool {
        self.wait == Wait::Allowed
    }
}

/// The bytes of a request that were left in guest memory: a WRITE's data.
#[derive(Debug)]
pub struct GuestSource<'a> {
    buffers: &'a GuestBuffers,
    pass: Option<&'a Pass>,
    taken: usize,
}

impl<'a> GuestSource<'a> {
    /// Everything of `buffers` behind the first `message` bytes.
    pub const fn new(buffers: &'a GuestBuffers, message: usize, pass: Option<&'a Pass>) -> Self {
        Self { buffers, pass, taken: message }
    }
}

impl DataSource for GuestSource<'_> {
    fn remaining(&self) -> usize {
        self.buffers.bytes().saturating_sub(self.taken)
    }

    fn write_file(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        size: usize,
    ) -> Result<usize, Errno> {
        let window = self.taken..self.taken + size.min(self.remaining());
        let written = guarded(self.pass, || self.buffers.write_file(window, file, offset))?;
        self.taken += written;
        Ok(written)
    }

    fn take(&mut self, into: &mut [u8]) -> Result<(), Errno> {
        if into.len() > self.remaining() {
            return Err(Errno::IO);
        }
        let taken = self.taken;
        self.taken += guarded(self.pass, || Ok(self.buffers.copy_out(taken, into)))?;
        Ok(())
    }
}
