//! One worker: reads a request, has it answered, writes the reply, until the mount ends.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::io::{read, write};
use zerocopy::FromBytes as _;

use crate::filesystem::memory::MemorySink;
use crate::filesystem::{DataSink, Errno, FileSystem};
use crate::fuse::abi::{InHeader, OUT_HEADER_BYTES, Opcode, WRITE_MESSAGE_BYTES};
use crate::fuse::init::DATA_BYTES_MAX;
use crate::fuse::session::{Answer, ReplyBuffer, Session};

/// The longest request and the longest reply: the most data, and a page for what comes before
/// it (fuse.h: `FUSE_MIN_READ_BUFFER` is 8 KiB for a page of data).
const BUFFER_BYTES: usize = DATA_BYTES_MAX as usize + 4096;

/// Which event source woke us.
const HALT: u64 = 1;
const DEVICE: u64 = 2;

/// Answers what comes from `device` until `halt` is readable or the mount is gone.
pub(super) fn run<F: FileSystem>(
    device: BorrowedFd<'_>,
    session: &Session<F>,
    halt: BorrowedFd<'_>,
) -> Result<(), Errno> {
    let waiting = waiting_room(device, halt)?;
    let mut message = vec![0; BUFFER_BYTES];
    let mut reply = Reply { bytes: vec![0; BUFFER_BYTES], length: OUT_HEADER_BYTES };
    loop {
        match read(device, &mut message[..]) {
            Ok(length) => {
                answer(device, session, message.get(..length).unwrap_or_default(), &mut reply);
            }
            Err(Errno::AGAIN) => {
                if halts(&waiting)? {
                    return Ok(());
                }
            }
            // A request that was interrupted before it was read.
            Err(Errno::INTR | Errno::NOENT) => {}
            Err(Errno::NODEV | Errno::CONNABORTED) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
}

/// Waits for the device and the halt together; of several workers that wait for one connection
/// a request wakes one.
fn waiting_room(device: BorrowedFd<'_>, halt: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let room = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&room, halt, epoll::EventData::new_u64(HALT), epoll::EventFlags::IN)?;
    let exclusive = epoll::EventFlags::IN | epoll::EventFlags::EXCLUSIVE;
    epoll::add(&room, device, epoll::EventData::new_u64(DEVICE), exclusive)?;
    Ok(room)
}

/// Waits; says whether it is to end.
fn halts(waiting: &OwnedFd) -> Result<bool, Errno> {
    let mut events = Vec::with_capacity(2);
    match epoll::wait(waiting, spare_capacity(&mut events), None) {
        Ok(_) | Err(Errno::INTR) => Ok(events.iter().any(|event| event.data.u64() == HALT)),
        Err(errno) => Err(errno),
    }
}

fn answer<F: FileSystem>(
    device: BorrowedFd<'_>,
    session: &Session<F>,
    message: &[u8],
    reply: &mut Reply,
) {
    let (message, mut data) = split(message);
    match session.handle(message, &mut data, reply) {
        Answer::Reply { bytes } => deliver(device, reply.bytes.get(..bytes).unwrap_or_default()),
        Answer::None => {}
        Answer::Later => log::error!("a request that may wait was put off"),
    }
}

/// A WRITE's data apart from what is before it. Nothing else is cut: the kernel's messages are as
/// long as they say, and a BATCH_FORGET fills the buffer.
fn split(message: &[u8]) -> (&[u8], &[u8]) {
    let is_write = InHeader::read_from_prefix(message)
        .is_ok_and(|(header, _)| header.opcode == Opcode::Write as u32);
    let length = if is_write { WRITE_MESSAGE_BYTES } else { message.len() };
    message.split_at_checked(length).unwrap_or((message, &[]))
}

/// One write is one reply (fs/fuse/dev.c, `fuse_dev_do_write`).
fn deliver(device: BorrowedFd<'_>, reply: &[u8]) {
    match write(device, reply) {
        // The request, or the whole mount, is gone.
        Ok(_) | Err(Errno::NOENT | Errno::NODEV) => {}
        Err(errno) => log::error!("reply of {} bytes refused: {errno}", reply.len()),
    }
}

/// A reply in memory: header and body in one piece.
struct Reply {
    bytes: Vec<u8>,
    /// Header and body so far.
    length: usize,
}

impl Reply {
    fn free(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.length..).unwrap_or_default()
    }
}

impl DataSink for Reply {
    fn capacity(&self) -> usize {
        self.bytes.len().saturating_sub(self.length)
    }

    fn append_file(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        size: usize,
    ) -> Result<usize, Errno> {
        let read = MemorySink::new(self.free()).append_file(file, offset, size)?;
        self.length += read;
        Ok(read)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        MemorySink::new(self.free()).append(bytes)?;
        self.length += bytes.len();
        Ok(())
    }
}

impl ReplyBuffer for Reply {
    fn set_header(&mut self, header: [u8; OUT_HEADER_BYTES]) {
        if let Some(into) = self.bytes.first_chunk_mut() {
            *into = header;
        }
    }

    fn clear(&mut self) {
        self.length = OUT_HEADER_BYTES;
    }

    fn may_wait(&self) -> bool {
        true
    }
}
