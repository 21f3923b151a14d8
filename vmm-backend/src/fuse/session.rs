//! One guest's session: negotiation, where a request may run, and exactly one reply for each.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use zerocopy::{FromBytes as _, IntoBytes as _};

use super::abi::{self, Opcode};
use super::answer::{Exchange, Outcome};
pub use super::counts::Count;
use super::counts::Counts;
pub use super::init::SessionConfig;
use super::init::{Agreed, negotiate};
pub use super::reply::ReplyBuffer;
use super::reply::{append, error, header};
use super::request::Request;
use crate::filesystem::{DataSource, Errno, FileSystem, NodeId};

/// The longest message a door copies before it is checked, in bytes: a SETXATTR with the longest
/// name and value (64 KiB) fits with room to spare.
pub const MESSAGE_BYTES_MAX: usize = 72 << 10;

/// A WRITE of at most so many bytes is tried on the queue's own thread: copying them takes about
/// as long as waking another.
const SMALL_WRITE_BYTES: usize = 128 << 10;

/// Where a request may run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    /// On the queue's own thread: memory answers it, or a call that does not wait for long.
    Inline,
    /// On the queue's own thread with a buffer that does not wait, and if the answer is
    /// [`Answer::Later`] again on the pool.
    TryInline,
    /// On the pool: it may copy up, write or wait.
    Pool,
    /// On a pool of its own kind: a stream whose other end may never move
    /// ([`crate::filesystem::Entry::is_stream`]). Nothing else may wait for it.
    Stream,
}

/// What became of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The reply is in the buffer.
    Reply {
        /// Header and body: what the header says, and the used length.
        bytes: usize,
    },
    /// The request gets no reply; the buffer is untouched.
    None,
    /// It would wait and may not here. Nothing happened; ask again where it may.
    Later,
}

/// The protocol's side of one guest, over the file system it is served from.
///
/// Methods may be called from several threads at once. All state but the file system's is one
/// word: what INIT agreed on.
pub struct Session<F: FileSystem> {
    pub(super) file_system: Arc<F>,
    pub(super) config: SessionConfig,
    /// [`Agreed`] as a word, 0 before INIT.
    agreed: AtomicU64,
    counts: Counts,
}

impl<F: FileSystem> fmt::Debug for Session<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("config", &self.config)
            .field("agreed", &self.agreed())
            .finish_non_exhaustive()
    }
}

impl<F: FileSystem> Session<F> {
    /// A session that waits for its INIT.
    pub const fn new(file_system: Arc<F>, config: SessionConfig) -> Self {
        Self { file_system, config, agreed: AtomicU64::new(0), counts: Counts::new() }
    }

    /// Where the request with this header may run; a header too short runs inline, where it is
    /// dropped.
    ///
    /// Births, deletions and everything that only reads names or attributes are one or two quick
    /// calls. What may copy file data up, reach a disk or wait for another program goes to the
    /// pool; a small write and a change of attributes only if the file has to be copied up first,
    /// a file handle's LOOKUP only if its object has to be searched for.
    pub fn placement(&self, header: &[u8]) -> Placement {
        let Ok((header, _)) = abi::InHeader::read_from_prefix(header) else {
            return Placement::Inline;
        };
        match Opcode::from_wire(header.opcode) {
            Some(Opcode::Read | Opcode::Write)
                if self.file_system.is_stream(NodeId(header.nodeid)) =>
            {
                Placement::Stream
            }
            Some(Opcode::Write) if !is_small_write(header) => Placement::Pool,
            Some(opcode) if may_be_put_off(opcode) => Placement::TryInline,
            Some(
                Opcode::Link
                | Opcode::FSync
                | Opcode::FSyncDir
                | Opcode::SyncFs
                | Opcode::SetXattr
                | Opcode::RemoveXattr
                | Opcode::FAllocate
                | Opcode::LSeek
                | Opcode::CopyFileRange
                | Opcode::CopyFileRange64,
            ) => Placement::Pool,
            _ => Placement::Inline,
        }
    }

    /// How many bytes of a message of `total` bytes the door copies out of guest memory before
    /// [`Session::handle`]; the rest is the data source. Only a WRITE leaves a rest.
    pub fn message_bytes(&self, header: &[u8; abi::IN_HEADER_BYTES], total: usize) -> usize {
        let is_write = abi::InHeader::read_from_bytes(header)
            .is_ok_and(|header| header.opcode == Opcode::Write as u32);
        total.min(if is_write { abi::WRITE_MESSAGE_BYTES } else { MESSAGE_BYTES_MAX })
    }

    /// Answers one message. Whatever its bytes are, this returns, and what it says was written
    /// is what was written.
    ///
    /// A message too short for a header gets no reply, as there is nothing to answer to.
    pub fn handle(
        &self,
        message: &[u8],
        source: &mut dyn DataSource,
        reply: &mut dyn ReplyBuffer,
    ) -> Answer {
        let Ok((header, _)) = abi::InHeader::read_from_prefix(message) else {
            return Answer::None;
        };
        let request_bytes = message.len() + source.remaining();
        let answer = self
            .without_reply(header, message)
            .unwrap_or_else(|| self.with_reply(header, message, source, reply));
        match answer {
            Answer::Reply { bytes } => self.counts.count(header.opcode, request_bytes, bytes),
            Answer::None => self.counts.count(header.opcode, request_bytes, 0),
            Answer::Later => {}
        }
        answer
    }

    fn with_reply(
        &self,
        header: abi::InHeader,
        message: &[u8],
        source: &mut dyn DataSource,
        reply: &mut dyn ReplyBuffer,
    ) -> Answer {
        reply.clear();
        let capacity = reply.capacity();
        let outcome = self.outcome(header, message, source, reply);
        let is_tried = Opcode::from_wire(header.opcode).is_some_and(may_be_put_off);
        if outcome == Err(Errno::AGAIN) && is_tried && !reply.may_wait() {
            reply.clear();
            return Answer::Later;
        }
        finish(header.unique, capacity, outcome, reply)
    }

    /// Requests by kind, those that came at least once since the last time this was asked.
    pub fn take_counts(&self) -> Vec<Count> {
        self.counts.take()
    }

    /// What INIT agreed on; `None` before it and after DESTROY.
    pub fn agreed(&self) -> Option<Agreed> {
        Agreed::from_word(self.agreed.load(Ordering::Acquire))
    }

    /// Ends the session as DESTROY does, for a door whose kernel sends none; once.
    pub fn close(&self) {
        if self.agreed().is_some() {
            self.end();
        }
    }

    /// Does what gets no reply; `None` for everything else.
    fn without_reply(&self, header: abi::InHeader, message: &[u8]) -> Option<Answer> {
        match Opcode::from_wire(header.opcode)? {
            Opcode::Forget | Opcode::BatchForget => {
                self.forget(header, message);
                Some(Answer::None)
            }
            Opcode::Interrupt | Opcode::NotifyReply => Some(Answer::None),
            _ => None,
        }
    }

    fn forget(&self, header: abi::InHeader, message: &[u8]) {
        let Ok(request) = Request::cut(header, message) else { return };
        if self.agreed().is_some() {
            request
                .forgotten()
                .filter(|&(node, _)| node != NodeId::ROOT)
                .for_each(|(node, count)| self.file_system.forget(node, count));
        }
    }

    fn outcome(
        &self,
        header: abi::InHeader,
        message: &[u8],
        source: &mut dyn DataSource,
        reply: &mut dyn ReplyBuffer,
    ) -> Result<Outcome, Errno> {
        let request = Request::cut(header, message)?;
        let operation = request.parse(self.agreed())?;
        Exchange { session: self, request, source, reply }.answer(&operation)
    }

    /// INIT: the first, or that of a guest that started again.
    pub(super) fn start(
        &self,
        offer: &abi::InitIn,
        reply: &mut dyn ReplyBuffer,
    ) -> Result<Outcome, Errno> {
        let (out, agreed) = negotiate(offer, &self.config)?;
        append(reply, &out)?;
        if let Some(agreed) = agreed {
            self.file_system.init();
            self.agreed.store(agreed.to_word(), Ordering::Release);
            log::debug!(
                "FUSE 7.{} agreed, flags {:#x}",
                out.minor.min(offer.minor),
                agreed.flags()
            );
        }
        Ok(Outcome::Done)
    }

    /// DESTROY: whatever comes next must be an INIT.
    pub(super) fn end(&self) -> Outcome {
        self.agreed.store(0, Ordering::Release);
        self.file_system.destroy();
        Outcome::Done
    }
}

fn is_small_write(header: abi::InHeader) -> bool {
    let bytes_max = abi::WRITE_MESSAGE_BYTES + SMALL_WRITE_BYTES;
    usize::try_from(header.len).is_ok_and(|bytes| bytes <= bytes_max)
}

/// What is tried inline first, and answers `EAGAIN` where it would have to wait.
const fn may_be_put_off(opcode: Opcode) -> bool {
    use Opcode::{Lookup, Read, Rename, Rename2, SetAttr, Write};
    matches!(opcode, Lookup | Read | Write | SetAttr | Rename | Rename2)
}

/// Puts the header before what was appended, or an error in its place.
fn finish(
    unique: u64,
    capacity: usize,
    outcome: Result<Outcome, Errno>,
    reply: &mut dyn ReplyBuffer,
) -> Answer {
    let body_bytes = capacity.saturating_sub(reply.capacity());
    let header = match outcome {
        Ok(Outcome::Done) => header(unique, body_bytes),
        Ok(Outcome::Never) => Err(Errno::NOSYS),
        // One file that cannot must not stop the guest from asking about the others.
        Err(Errno::NOSYS) => Err(Errno::OPNOTSUPP),
        Err(errno) => Err(errno),
    };
    let (header, bytes) = match header {
        Ok(header) => (header, abi::OUT_HEADER_BYTES + body_bytes),
        Err(errno) => {
            reply.clear();
            (error(unique, errno), abi::OUT_HEADER_BYTES)
        }
    };
    let mut bytes_of_header = [0; abi::OUT_HEADER_BYTES];
    bytes_of_header.copy_from_slice(header.as_bytes());
    reply.set_header(bytes_of_header);
    Answer::Reply { bytes }
}
