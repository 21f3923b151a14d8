//! A Linux guest's kernel at one queue: it sends what Linux would send to this very daemon.
//!
//! A daemon that answers `ENOSYS` to OPEN, OPENDIR or FLUSH is not asked again; one that wants
//! them gets them, and the RELEASE that nobody waits for. The clock runs only while a request is
//! under way, so checking what came back costs no one anything.
#![allow(clippy::expect_used, reason = "a bench that cannot read its replies cannot go on")]

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::lane::{FORGETS, Lane, SLOTS};
use crate::guest::{HIPRIO, VirtualGuest};
use crate::requests::{OFFERED, ROOT};
use crate::wire::{
    ATTR_OUT_BYTES, Attr, Bytes, ENTRY_BYTES, Entry, OUT_HEADER_BYTES, Row, error_of, last_cookie,
    opcode, rows, u32_at, u64_at,
};

/// FUSE_RELEASEDIR, FUSE_WRITEBACK_CACHE, FUSE_HANDLE_KILLPRIV_V2.
const RELEASEDIR: u32 = 29;
const WRITEBACK_CACHE: u32 = 1 << 16;

/// An opcode that no daemon knows: what a request costs that asks for nothing.
const EMPTY: u32 = 999;

/// The slot of what nobody waits for.
const BEHIND: usize = SLOTS - 1;

/// The most requests in flight at once.
pub const DEPTH_MAX: usize = SLOTS - 1;

/// The request queue.
const REQUESTS: usize = 1;

/// What the daemon said it never does.
#[derive(Clone, Copy, Debug, Default)]
struct Never {
    open: bool,
    opendir: bool,
    flush: bool,
}

/// A mounted guest.
pub struct Client {
    guest: VirtualGuest,
    hiprio: Lane,
    lane: Lane,
    reply: Vec<u8>,
    never: Never,
    has_writeback: bool,
    is_behind: bool,
    /// FORGETs under way, in the first slots of their queue.
    forgets: usize,
    clock: Duration,
    requests: u64,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("never", &self.never).finish_non_exhaustive()
    }
}

impl Client {
    /// Takes a connected socket and mounts; watches for each reply so long before it sleeps.
    ///
    /// Errors: what INIT was answered.
    pub fn mount(stream: UnixStream, watch_for: Duration) -> Result<Self, Errno> {
        let mut guest = VirtualGuest::without_queues(stream, 2);
        let (hiprio, lane) = (Lane::for_forgets(watch_for), Lane::for_requests(watch_for));
        guest.start(HIPRIO, 0, &hiprio.place());
        guest.start(REQUESTS, 0, &lane.place());
        let mut client = Self {
            guest,
            hiprio,
            lane,
            reply: Vec::new(),
            never: Never::default(),
            has_writeback: false,
            is_behind: false,
            forgets: 0,
            clock: Duration::ZERO,
            requests: 0,
        };
        client.init()?;
        Ok(client)
    }

    fn init(&mut self) -> Result<(), Errno> {
        let [low, high] = [OFFERED & u64::from(u32::MAX), OFFERED >> 32];
        let word = |part| u32::try_from(part).expect("a half");
        let body = Bytes::new().u32(7).u32(41).u32(128 * 1024).u32(word(low)).u32(word(high));
        let mut body = body.0;
        body.resize(64, 0);
        self.ask(opcode::INIT, 0, &body, 64)?;
        self.has_writeback = u32_at(&self.reply, 12) & WRITEBACK_CACHE != 0;
        Ok(())
    }

    /// Stops the queues and hangs up, without the DESTROY that virtiofsd answers with nothing.
    pub fn unmount(mut self) {
        self.settle();
        for index in [HIPRIO, REQUESTS] {
            self.guest.stop(index);
        }
        self.guest.shut_down();
        self.hiprio.release();
        self.lane.release();
    }

    /// The time requests were under way since this was last asked, and how many there were.
    pub fn take_clock(&mut self) -> (Duration, u64) {
        (std::mem::take(&mut self.clock), std::mem::take(&mut self.requests))
    }

    /// Interrupts on the request queue since this was last asked.
    pub fn take_interrupts(&self) -> u64 {
        self.lane.take_interrupts()
    }

    fn message(&mut self, code: u32, node: u64, body: &[u8], data: usize) -> Vec<u8> {
        let bytes = u32::try_from(40 + body.len() + data).expect("a message below 4 GiB");
        let header = Bytes::new().u32(bytes).u32(code).u64(self.guest.unique()).u64(node);
        self.requests += 1;
        // Root, of process 100.
        header.u32(0).u32(0).u32(100).u32(0).raw(body).0
    }

    /// One request and its reply, whose body is then in `self.reply`.
    fn ask(&mut self, code: u32, node: u64, body: &[u8], room: usize) -> Result<(), Errno> {
        let message = self.message(code, node, body, 0);
        self.exchange(&message, 0, room)
    }

    fn exchange(&mut self, message: &[u8], data: usize, room: usize) -> Result<(), Errno> {
        let start = Instant::now();
        self.lane.submit(0, message, data, Some(room));
        let bytes = self.wait_for(0);
        self.clock += start.elapsed();
        self.check(0, message, bytes)
    }

    fn wait_for(&mut self, wanted: usize) -> usize {
        loop {
            match self.lane.wait() {
                (BEHIND, bytes) => {
                    self.is_behind = false;
                    assert!(bytes == OUT_HEADER_BYTES, "RELEASE answered with {bytes} bytes");
                }
                (slot, bytes) => {
                    assert_eq!(slot, wanted, "a reply for nothing under way");
                    return bytes;
                }
            }
        }
    }

    /// Checks a reply as recent kernels do, and takes its body.
    fn check(&mut self, slot: usize, message: &[u8], bytes: usize) -> Result<(), Errno> {
        let header = self.lane.header(slot);
        let length = usize::try_from(u32_at(&header, 0)).expect("64 bits");
        assert_eq!(length, bytes, "the used length and the header's");
        assert_eq!(header[8..16], message[8..16], "unique");
        if let Some(errno) = error_of(&header) {
            return Err(errno);
        }
        self.reply.resize(bytes - OUT_HEADER_BYTES, 0);
        self.lane.body(slot, &mut self.reply);
        Ok(())
    }

    /// Sends what nobody waits for, RELEASE, as Linux does.
    fn ask_behind(&mut self, code: u32, node: u64, body: &[u8]) {
        self.settle();
        let message = self.message(code, node, body, 0);
        let start = Instant::now();
        self.lane.submit(BEHIND, &message, 0, Some(0));
        self.clock += start.elapsed();
        self.is_behind = true;
    }

    /// Waits for what was sent without waiting.
    pub fn settle(&mut self) {
        self.settle_forgets();
        if std::mem::take(&mut self.is_behind) {
            let start = Instant::now();
            let (slot, _) = self.lane.wait();
            self.clock += start.elapsed();
            assert_eq!(slot, BEHIND);
        }
    }

    /// A request no daemon knows.
    pub fn empty(&mut self) -> Result<(), Errno> {
        match self.ask(EMPTY, ROOT, &[0; 16], 0) {
            Err(Errno::NOSYS) => Ok(()),
            Err(errno) => Err(errno),
            Ok(()) => Err(Errno::PROTO),
        }
    }

    /// GETATTR.
    pub fn getattr(&mut self, node: u64) -> Result<Attr, Errno> {
        self.ask(opcode::GETATTR, node, &[0; 16], ATTR_OUT_BYTES)?;
        Ok(Attr::parse(&self.reply[16..]))
    }

    /// LOOKUP; `None` where there is no such name.
    pub fn lookup(&mut self, parent: u64, name: &[u8]) -> Result<Option<Entry>, Errno> {
        let body = Bytes::new().name(name);
        match self.ask(opcode::LOOKUP, parent, &body.0, ENTRY_BYTES) {
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
            Ok(()) => Ok(Some(Entry::parse(&self.reply)).filter(|entry| entry.node != 0)),
        }
    }

    /// Walks a path from the root to its node.
    pub fn resolve(&mut self, path: &str) -> Result<u64, Errno> {
        let mut node = ROOT;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            node = self.lookup(node, name.as_bytes())?.ok_or(Errno::NOENT)?.node;
        }
        Ok(node)
    }

    /// BATCH_FORGET of one lookup each, on the hiprio queue; waits until it is done.
    pub fn forget(&mut self, nodes: &[u64]) {
        self.settle_forgets();
        // Not on the clock: nobody in a guest waits for it.
        for some in nodes.chunks(200) {
            let count = u32::try_from(some.len()).expect("few nodes");
            let body = Bytes::new().u32(count).u32(0);
            let body = some.iter().fold(body, |body, node| body.u64(*node).u64(1));
            let message = self.message(opcode::BATCH_FORGET, 0, &body.0, 0);
            self.hiprio.submit(0, &message, 0, None);
            assert_eq!(self.hiprio.wait(), (0, 0), "a FORGET gets no reply");
        }
    }

    /// FORGET of one lookup, of which Linux awaits nothing, so that more than one may be under way.
    pub fn forget_behind(&mut self, node: u64) {
        let body = Bytes::new().u64(1);
        let message = self.message(opcode::FORGET, node, &body.0, 0);
        let start = Instant::now();
        if self.forgets == FORGETS {
            self.settle_forgets();
        }
        self.hiprio.submit(self.forgets, &message, 0, None);
        self.forgets += 1;
        self.clock += start.elapsed();
    }

    fn settle_forgets(&mut self) {
        for _ in 0..std::mem::take(&mut self.forgets) {
            let (_, bytes) = self.hiprio.wait();
            assert_eq!(bytes, 0, "a FORGET gets no reply");
        }
    }

    /// Opens a file or directory where the daemon wants that.
    fn open_with(&mut self, code: u32, node: u64, flags: u32) -> Result<u64, Errno> {
        let is_directory = code == opcode::OPENDIR;
        if if is_directory { self.never.opendir } else { self.never.open } {
            return Ok(0);
        }
        match self.ask(code, node, &Bytes::new().u32(flags).u32(0).0, 16) {
            Err(Errno::NOSYS) if is_directory => self.never.opendir = true,
            Err(Errno::NOSYS) => self.never.open = true,
            Err(errno) => return Err(errno),
            Ok(()) => return Ok(u64_at(&self.reply, 0)),
        }
        Ok(0)
    }

    /// `open(2)` of a known file, with its `O_*` flags.
    pub fn open(&mut self, node: u64, flags: u32) -> Result<u64, Errno> {
        self.open_with(opcode::OPEN, node, flags)
    }

    /// `close(2)`.
    pub fn close(&mut self, node: u64, handle: u64) -> Result<(), Errno> {
        if !self.never.flush {
            let body = Bytes::new().u64(handle).u32(0).u32(0).u64(1);
            match self.ask(opcode::FLUSH, node, &body.0, 0) {
                Err(Errno::NOSYS) => self.never.flush = true,
                flushed => flushed?,
            }
        }
        if !self.never.open {
            self.ask_behind(opcode::RELEASE, node, &release(handle));
        }
        Ok(())
    }

    /// READ; what came is in [`Client::data`].
    pub fn read(&mut self, at: (u64, u64), offset: u64, size: usize) -> Result<&[u8], Errno> {
        let body = read_body(at.1, offset, size);
        self.ask(opcode::READ, at.0, &body, size)?;
        Ok(&self.reply)
    }

    /// READs of `size` bytes at each offset, `depth` under way at once; each reply is checked by
    /// `check` while the clock stands.
    pub fn read_many(
        &mut self,
        at: (u64, u64),
        offsets: &[u64],
        (size, depth): (usize, usize),
        check: &mut dyn FnMut(u64, &[u8]),
    ) -> Result<(), Errno> {
        for batch in offsets.chunks(depth.min(DEPTH_MAX)) {
            let messages: Vec<_> = batch
                .iter()
                .map(|offset| self.message(opcode::READ, at.0, &read_body(at.1, *offset, size), 0))
                .collect();
            let start = Instant::now();
            for (slot, message) in messages.iter().enumerate() {
                self.lane.submit(slot, message, 0, Some(size));
            }
            let done: Vec<_> = messages.iter().map(|_| self.lane.wait()).collect();
            self.clock += start.elapsed();
            for (slot, bytes) in done {
                self.check(slot, &messages[slot], bytes)?;
                check(batch[slot], &self.reply);
            }
        }
        Ok(())
    }

    /// A whole directory in pages of 4 KiB, as `ls` has the guest ask for it; gives the rows and
    /// the number of READDIRPLUS requests.
    pub fn list(&mut self, node: u64) -> Result<(Vec<Row>, u64), Errno> {
        let handle = self.open_with(opcode::OPENDIR, node, 0o200_000)?;
        // Taken apart when all is there: a daemon that watches for the next request is not to wait for that.
        let mut pages: Vec<Vec<u8>> = Vec::new();
        let mut cookie = 0;
        loop {
            self.ask(opcode::READDIRPLUS, node, &read_body(handle, cookie, 4096), 4096)?;
            let Some(last) = last_cookie(&self.reply) else { break };
            cookie = last;
            pages.push(self.reply.clone());
        }
        if !self.never.opendir {
            self.ask_behind(RELEASEDIR, node, &release(handle));
        }
        let asked = u64::try_from(pages.len() + 1).expect("64 bits");
        Ok((pages.iter().flat_map(|page| rows(page, true)).collect(), asked))
    }

    /// `open(O_CREAT)` of a new file: LOOKUP, then CREATE. Gives the entry and the handle.
    pub fn create(&mut self, parent: u64, name: &[u8]) -> Result<(Entry, u64), Errno> {
        if self.lookup(parent, name)?.is_some() {
            return Err(Errno::EXIST);
        }
        let body = Bytes::new().u32(0o102).u32(0o100_644).u32(0o022).u32(0).name(name);
        self.ask(opcode::CREATE, parent, &body.0, ENTRY_BYTES + 16)?;
        Ok((Entry::parse(&self.reply), u64_at(&self.reply, ENTRY_BYTES)))
    }

    /// WRITE of `data` at `offset`.
    pub fn write(&mut self, at: (u64, u64), offset: u64, data: &[u8]) -> Result<(), Errno> {
        let size = u32::try_from(data.len()).expect("a write below 4 GiB");
        let flags = u32::from(self.has_writeback);
        let body = Bytes::new().u64(at.1).u64(offset).u32(size).u32(flags).u64(0).u64(0);
        let message = self.message(opcode::WRITE, at.0, &body.0, data.len());
        self.lane.fill(0, data);
        self.exchange(&message, data.len(), 8)?;
        if u32_at(&self.reply, 0) == size { Ok(()) } else { Err(Errno::IO) }
    }

    /// What the guest says of a written file when it is closed: with the writeback cache it is the
    /// guest who knows the mtime.
    pub fn tell_mtime(&mut self, node: u64) -> Result<(), Errno> {
        if self.has_writeback { self.setattr(node, &[(5, 0)]).map(drop) } else { Ok(()) }
    }

    /// SETATTR of a mode (bit 0), a size (bit 3) or an mtime (bit 5).
    pub fn setattr(&mut self, node: u64, changes: &[(u32, u64)]) -> Result<Attr, Errno> {
        let valid = changes.iter().fold(0, |valid, (bit, _)| valid | 1 << bit);
        let value = |wanted| changes.iter().find(|(bit, _)| *bit == wanted).map_or(0, |c| c.1);
        let body = Bytes::new().u32(valid).u32(0).u64(0).u64(value(3)).u64(0);
        let body = body.u64(0).u64(1_700_000_000).u64(0).u32(0).u32(0).u32(0);
        let mode = u32::try_from(value(0)).expect("a mode");
        let body = body.u32(mode).u32(0).u32(0).u32(0).u32(0);
        self.ask(opcode::SETATTR, node, &body.0, ATTR_OUT_BYTES)?;
        Ok(Attr::parse(&self.reply[16..]))
    }

    /// FSYNC.
    pub fn fsync(&mut self, at: (u64, u64)) -> Result<(), Errno> {
        self.ask(opcode::FSYNC, at.0, &Bytes::new().u64(at.1).u64(0).0, 0)
    }

    /// MKDIR, after the LOOKUP that says it may be.
    pub fn mkdir(&mut self, parent: u64, name: &[u8]) -> Result<Entry, Errno> {
        if self.lookup(parent, name)?.is_some() {
            return Err(Errno::EXIST);
        }
        let body = Bytes::new().u32(0o755).u32(0o022).name(name);
        self.ask(opcode::MKDIR, parent, &body.0, ENTRY_BYTES)?;
        Ok(Entry::parse(&self.reply))
    }

    /// UNLINK.
    pub fn unlink(&mut self, parent: u64, name: &[u8]) -> Result<(), Errno> {
        self.ask(opcode::UNLINK, parent, &Bytes::new().name(name).0, 0)
    }

    /// RMDIR.
    pub fn rmdir(&mut self, parent: u64, name: &[u8]) -> Result<(), Errno> {
        self.ask(opcode::RMDIR, parent, &Bytes::new().name(name).0, 0)
    }

    /// RENAME2 without flags.
    pub fn rename(&mut self, parent: u64, name: &[u8], new_name: &[u8]) -> Result<(), Errno> {
        let body = Bytes::new().u64(parent).u32(0).u32(0).name(name).name(new_name);
        self.ask(opcode::RENAME2, parent, &body.0, 0)
    }
}

/// `struct fuse_read_in`.
fn read_body(handle: u64, offset: u64, size: usize) -> Vec<u8> {
    let size = u32::try_from(size).expect("a read below 4 GiB");
    Bytes::new().u64(handle).u64(offset).u32(size).u32(0).u64(0).u64(0).0
}

/// `struct fuse_release_in`.
fn release(handle: u64) -> Vec<u8> {
    Bytes::new().u64(handle).u32(0).u32(0).u64(0).0
}
