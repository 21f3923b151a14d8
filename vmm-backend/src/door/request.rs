//! A request on its way through a pool.

use std::sync::Arc;

use rustix::io::Errno;

use super::Serve;
use super::buffers::{GuestReply, GuestSource, Pass};
use super::ring::Ring;
use super::virtqueue::Chain;
use crate::fuse::abi::{IN_HEADER_BYTES, OUT_HEADER_BYTES};
use crate::fuse::session::Answer;
use crate::sys::guest_memory::Wait;

/// A request that may wait, and the right to touch the guest's memory until it is done.
pub(super) struct Request {
    ring: Arc<Ring>,
    chain: Chain,
    header: [u8; IN_HEADER_BYTES],
    /// It may wait for ever: nothing waits for it.
    pub(super) is_stream: bool,
    pass: Pass,
}

impl Request {
    /// A request of `ring` with the header already looked at.
    pub(super) fn new(
        ring: Arc<Ring>,
        chain: Chain,
        header: [u8; IN_HEADER_BYTES],
        is_stream: bool,
    ) -> Self {
        Self { ring, chain, header, is_stream, pass: Pass::default() }
    }

    /// Handles the request in a thread of the pool.
    pub(super) fn run(&self) {
        let session = self.ring.session();
        let mut message = Vec::new();
        let copy = || copy_message(session, &self.header, &self.chain, &mut message);
        if self.pass.while_valid(copy).is_some() {
            let pass = Some(&self.pass);
            let mut source = GuestSource::new(&self.chain.readable, message.len(), pass);
            let mut reply = GuestReply::new(&self.chain.writable, Wait::Allowed, pass);
            let bytes = match session.handle(&message, &mut source, &mut reply) {
                Answer::None => 0,
                Answer::Reply { .. } | Answer::Later => used_bytes(&reply),
            };
            self.pass.end(|| self.complete(bytes));
        }
        self.ring.land(self);
    }

    fn complete(&self, bytes: u32) {
        if let Err(broken) = self.ring.complete(&[(self.chain.head, bytes)]) {
            self.ring.complain(self.chain.head, &broken.to_string());
        }
    }

    /// The guest gets its memory back before the request is done.
    pub(super) fn give_up(&self, is_answered: bool) {
        self.pass.end(|| {
            if is_answered {
                let reply = interrupted(&self.header);
                let fits = self.chain.writable.copy_in(0, &reply) == reply.len();
                self.complete(if fits { as_u32(reply.len()) } else { 0 });
            }
        });
    }
}

/// Copies what of a request is no data: its header is the one already looked at, the guest may
/// have changed its own since.
pub(super) fn copy_message(
    session: &dyn Serve,
    header: &[u8; IN_HEADER_BYTES],
    chain: &Chain,
    message: &mut Vec<u8>,
) {
    let total = chain.readable.bytes();
    let bytes = session.message_bytes(header, total).clamp(IN_HEADER_BYTES, total);
    message.clear();
    message.extend_from_slice(header);
    message.resize(bytes, 0);
    chain.readable.copy_out(IN_HEADER_BYTES, &mut message[IN_HEADER_BYTES..]);
}

/// The reply to a request that was cut off: `EINTR`, which a reader takes as "ask again".
fn interrupted(header: &[u8; IN_HEADER_BYTES]) -> [u8; OUT_HEADER_BYTES] {
    let mut reply = [0; OUT_HEADER_BYTES];
    let errno = -Errno::INTR.raw_os_error();
    reply[..4].copy_from_slice(&as_u32(OUT_HEADER_BYTES).to_le_bytes());
    reply[4..8].copy_from_slice(&errno.to_le_bytes());
    // fuse.h: `fuse_in_header.unique` and `fuse_out_header.unique`, both at 8.
    reply[8..].copy_from_slice(&header[8..16]);
    reply
}

/// What the used entry says of a reply.
pub(super) fn used_bytes(reply: &GuestReply<'_>) -> u32 {
    as_u32(reply.written())
}

/// A reply is far below 4 GiB: what it holds was bounded by the session.
fn as_u32(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
