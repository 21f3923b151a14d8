//! The wire as a guest uses and abuses it, over a file system in memory.

mod hostile;
mod replies;
mod table;

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::abi::{self, Opcode};
use super::memory::MemoryFileSystem;
use super::session::{Answer, ReplyBuffer, Session, SessionConfig};
use crate::filesystem::{DataSink, Errno};

/// A reply of bounded size in memory.
pub(super) struct Reply {
    capacity: usize,
    /// So much of a body can be written, whatever the capacity says: a guest may go away.
    lasts: usize,
    waits: bool,
    header: Option<[u8; 16]>,
    body: Vec<u8>,
}

impl Reply {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, lasts: usize::MAX, waits: true, header: None, body: Vec::new() }
    }

    fn header(&self) -> abi::OutHeader {
        abi::OutHeader::read_from_bytes(&self.header.expect("header")).unwrap()
    }
}

impl DataSink for Reply {
    fn capacity(&self) -> usize {
        self.capacity - self.body.len()
    }

    fn append_file(&mut self, file: BorrowedFd<'_>, at: u64, size: usize) -> Result<usize, Errno> {
        if !self.waits {
            // What came before must not stay in the reply.
            self.append(b"x")?;
            return Err(Errno::AGAIN);
        }
        let mut bytes = vec![0; size.min(self.capacity())];
        let read = rustix::io::pread(file, &mut bytes, at)?;
        self.append(&bytes[..read])?;
        Ok(read)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        if bytes.len() > self.capacity() || self.body.len() + bytes.len() > self.lasts {
            return Err(Errno::IO);
        }
        self.body.extend_from_slice(bytes);
        Ok(())
    }
}

impl ReplyBuffer for Reply {
    fn set_header(&mut self, header: [u8; 16]) {
        self.header = Some(header);
    }

    fn clear(&mut self) {
        self.body.clear();
    }

    fn may_wait(&self) -> bool {
        self.waits
    }
}

/// One request as a guest's kernel puts it together.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) header: abi::InHeader,
    pub(super) body: Vec<u8>,
    pub(super) data: Vec<u8>,
}

impl Message {
    pub(super) fn new(opcode: Opcode, node: u64) -> Self {
        let header = abi::InHeader {
            opcode: opcode as u32,
            unique: 77,
            nodeid: node,
            uid: 1000,
            gid: 1000,
            pid: 42,
            ..Default::default()
        };
        Self { header, body: Vec::new(), data: Vec::new() }
    }

    pub(super) fn with(mut self, value: &(impl IntoBytes + Immutable)) -> Self {
        self.body.extend_from_slice(value.as_bytes());
        self
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.body.extend_from_slice(bytes);
        self
    }

    pub(super) fn data(mut self, data: &[u8]) -> Self {
        self.data.extend_from_slice(data);
        self
    }

    /// The message before its data, with the true length in its header.
    pub(super) fn assembled(&self) -> Vec<u8> {
        let len = abi::IN_HEADER_BYTES + self.body.len() + self.data.len();
        let header = abi::InHeader { len: u32::try_from(len).unwrap(), ..self.header };
        [header.as_bytes(), &self.body].concat()
    }
}

/// A session over memory.
pub(super) struct Guest {
    pub(super) files: Arc<MemoryFileSystem>,
    pub(super) session: Session<MemoryFileSystem>,
}

impl Guest {
    /// Before INIT.
    pub(super) fn new() -> Self {
        let files = Arc::new(MemoryFileSystem::new());
        let config = SessionConfig { unremembered: Some(b".thinroot"), ..Default::default() };
        Self { session: Session::new(Arc::clone(&files), config), files }
    }

    /// After an INIT that offers everything.
    pub(super) fn started() -> Self {
        let guest = Self::new();
        guest.init(45, u32::MAX, u32::MAX);
        guest
    }

    pub(super) fn init(&self, minor: u32, flags: u32, flags2: u32) {
        let offer = abi::InitIn { major: 7, minor, flags, flags2, ..Default::default() };
        let body = self.body(&Message::new(Opcode::Init, 0).with(&offer)).unwrap();
        assert_eq!(body.len(), size_of::<abi::InitOut>());
    }

    /// Sends one message with room for a reply of `capacity`, and checks that what the session
    /// says is what it wrote. `None` where it gave no reply.
    pub(super) fn send(
        &self,
        message: &[u8],
        data: &[u8],
        capacity: usize,
    ) -> Option<Result<Vec<u8>, Errno>> {
        let mut reply = Reply::new(capacity);
        match self.session.handle(message, &mut &*data, &mut reply) {
            Answer::Reply { bytes } => {
                let header = reply.header();
                let unique = message.get(8..16).map(|unique| u64::read_from_bytes(unique).unwrap());
                assert_eq!(Some(header.unique), unique);
                assert_eq!(usize::try_from(header.len).unwrap(), bytes);
                assert_eq!(bytes, abi::OUT_HEADER_BYTES + reply.body.len());
                assert!((-511..=0).contains(&header.error), "error {}", header.error);
                assert!(header.error == 0 || reply.body.is_empty());
                Some(match header.error {
                    0 => Ok(reply.body),
                    error => Err(Errno::from_raw_os_error(-error)),
                })
            }
            answer => {
                assert_eq!(answer, Answer::None);
                assert!(reply.header.is_none() && reply.body.is_empty());
                None
            }
        }
    }

    /// The body of the answer, which must come.
    pub(super) fn body(&self, message: &Message) -> Result<Vec<u8>, Errno> {
        self.send(&message.assembled(), &message.data, 1 << 20).expect("reply")
    }

    /// The answer as one structure.
    pub(super) fn ask<T: FromBytes + Immutable>(&self, message: &Message) -> Result<T, Errno> {
        self.body(message).map(|body| T::read_from_bytes(&body).unwrap())
    }

    /// A new file's node.
    pub(super) fn file(&self, name: &[u8]) -> u64 {
        let create = abi::CreateIn { mode: 0o100_644, ..Default::default() };
        let message = Message::new(Opcode::Create, 1).with(&create).bytes(name).bytes(b"\0");
        let (entry, _) = abi::EntryOut::read_from_prefix(&self.body(&message).unwrap()).unwrap();
        entry.nodeid
    }
}
