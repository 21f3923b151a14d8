//! One virtqueue: its thread, its requests in flight, and how it starts and stops.
//!
//! The queue's thread takes chains off the ring and answers what memory can answer; the rest goes
//! to a pool and comes back through `Ring::complete`. The connection changes a queue only
//! between two requests of that thread ([`Ring::change`]).

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use thiserror::Error;
use vhost_user_backend::{VringRwLock, VringState, VringT};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic};

use super::Serve;
use super::bell::Bell;
use super::buffers::{GuestReply, GuestSource};
use super::burst::{Burst, REST};
use super::pool::Pool;
use super::request::{Request, copy_message, used_bytes};
use super::vigil::Vigil;
use super::virtqueue::{Chain, Malformed, Table};
use crate::fuse::abi::IN_HEADER_BYTES;
use crate::fuse::session::{Answer, Placement};
use crate::sys::guest_memory::{GuestMemory, Wait};

/// Requests answered before the guest hears of the first: one interrupt for all of them.
const BATCH: usize = 16;

/// Or so many bytes of replies, which take about as long as an interrupt.
const BATCH_BYTES: u32 = 128 * 1024;

/// virtio_ring.h: `VRING_AVAIL_F_NO_INTERRUPT`.
const AVAIL_NO_INTERRUPT: u16 = 1;

/// Rounds in which the guest's index says "more" and the ring has nothing, before we stop looking.
const EMPTY_ROUNDS_MAX: u32 = 8;

type Vring = VringRwLock<GuestMemoryAtomic<GuestMemory>>;

/// Why a queue is no longer looked at, until the VMM sets it up again.
#[derive(Debug, Error)]
pub enum Broken {
    /// The avail index is further ahead than the queue is long, or the ring cannot be read.
    #[error("its rings are unusable: {0}")]
    Ring(#[from] virtio_queue::Error),
    /// A head beyond the table cannot even be given back.
    #[error("an available entry names {0}")]
    Head(Malformed),
    /// The avail index promises entries that are not there.
    #[error("its available index moves without entries")]
    Empty,
    /// More requests unanswered than the queue can hold.
    #[error("the guest made requests available that are not answered yet")]
    TooMany,
    /// The kick descriptor cannot be waited for.
    #[error("its kick descriptor: {0}")]
    Kick(Errno),
    /// The addresses are not in the guest's memory.
    #[error("its rings are not in the guest's memory")]
    Addresses,
}

/// The pools of one door: `waits` for what ends by itself, `streams` for what may never.
#[derive(Debug)]
pub struct Pools {
    /// Disk reads, copy-ups, syncs.
    pub waits: Pool,
    /// Streams whose other end may never move. Apart, so that they starve only each other.
    pub streams: Pool,
}

/// What a queue's thread and its pooled requests need besides the queue.
pub struct Service {
    /// The FUSE layer.
    pub session: Arc<dyn Serve>,
    /// Threads for what may wait.
    pub pools: Pools,
    /// How long a request queue may watch for its next request before its thread sleeps.
    pub poll: Duration,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("pools", &self.pools).finish_non_exhaustive()
    }
}

/// The queue of FORGETs.
const HIPRIO: usize = 0;

/// One virtqueue of one connection.
pub struct Ring {
    index: usize,
    service: Arc<Service>,
    memory: GuestMemoryAtomic<GuestMemory>,
    /// Ring addresses, indices and notification state; the call descriptor. Innermost lock.
    vring: Vring,
    /// Held by the queue's thread while it drains, by the connection while it changes the queue.
    control: Mutex<Control>,
    /// Changes the connection waits to make: the queue's thread lets it go first.
    changes: AtomicU32,
    /// What the queue's thread sleeps on.
    bell: Bell,
    /// Requests on a pool. Nothing is locked inside.
    in_flight: Mutex<Vec<Arc<Request>>>,
    /// Signalled when a request leaves `in_flight`.
    landed: Condvar,
    /// A malformed chain was logged since the queue started.
    has_complained: AtomicBool,
}

/// What the connection decides about a queue.
#[derive(Debug, Default)]
struct Control {
    kick: Option<OwnedFd>,
    /// Look at the ring without a kick: the guest may have kicked before we could hear it.
    is_fresh: bool,
    is_broken: bool,
    is_leaving: bool,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("index", &self.index).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the queue's thread does next.
enum Next {
    Leave,
    LookAgain,
    Drain,
}

/// What the queue's thread uses again for each request.
struct Scratch {
    heads: Vec<u16>,
    used: Vec<(u16, u32)>,
    chain: Chain,
    message: Vec<u8>,
    vigil: Vigil,
    burst: Burst,
    /// Something was answered here since the last vigil, so that the guest may have more to ask.
    has_answered: bool,
}

impl Scratch {
    fn new(poll: Duration) -> Self {
        Self {
            heads: Vec::new(),
            used: Vec::new(),
            chain: Chain::default(),
            message: Vec::new(),
            vigil: Vigil::new(poll),
            burst: Burst::default(),
            has_answered: false,
        }
    }
}

/// The queue between two requests of its thread, until dropped.
#[derive(Debug)]
pub struct Paused<'a> {
    ring: &'a Ring,
    /// `Some` until the drop lets go of it.
    control: Option<MutexGuard<'a, Control>>,
}

impl Ring {
    /// A queue that is not set up yet.
    ///
    /// Errors: eventfd(2)'s; `EINVAL` for a size that is no power of two.
    pub fn new(
        index: usize,
        service: Arc<Service>,
        memory: GuestMemoryAtomic<GuestMemory>,
        size: u16,
    ) -> Result<Self, Errno> {
        Ok(Self {
            index,
            service,
            vring: Vring::new(memory.clone(), size).map_err(|_| Errno::INVAL)?,
            memory,
            control: Mutex::default(),
            changes: AtomicU32::new(0),
            bell: Bell::new()?,
            in_flight: Mutex::default(),
            landed: Condvar::new(),
            has_complained: AtomicBool::new(false),
        })
    }

    /// The vring, for what the VMM sets while the queue is [`Ring::pause`]d.
    pub const fn vring(&self) -> &Vring {
        &self.vring
    }

    /// The FUSE layer.
    pub(super) fn session(&self) -> &dyn Serve {
        &*self.service.session
    }

    /// Whether the VMM started the queue and did not stop it since.
    pub fn is_started(&self) -> bool {
        self.vring.get_ref().get_queue().ready()
    }

    /// Waits until the queue's thread is between two requests, and keeps it there.
    pub fn pause(&self) -> Paused<'_> {
        self.changes.fetch_add(1, Ordering::AcqRel);
        Paused { ring: self, control: Some(lock(&self.control)) }
    }

    /// Stops the queue and gives the next available index. Requests on the pool get `patience`
    /// to end; those that may wait for ever, and those overdue, lose their guest: with
    /// `is_answered` it hears `EINTR` and may ask again, without (it is gone) nothing.
    pub fn stop(&self, patience: Duration, is_answered: bool) -> u16 {
        let mut paused = self.pause();
        if let Err(broken) = paused.set_kick(None) {
            log::debug!("queue {}: {broken}", self.index);
        }
        self.vring.set_queue_ready(false);
        drop(paused);
        let waiting = lock(&self.in_flight);
        let any = |requests: &mut Vec<Arc<Request>>| requests.iter().any(|r| !r.is_stream);
        let waited = self.landed.wait_timeout_while(waiting, patience, any);
        let (mut left, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        let left = std::mem::take(&mut *left);
        if timeout.timed_out() {
            log::warn!("queue {}: requests are late by {patience:?}, it stops anyway", self.index);
        }
        for request in left {
            request.give_up(is_answered);
        }
        self.vring.queue_next_avail()
    }

    /// The body of the queue's thread; ends after [`Paused::leave`].
    pub fn run(self: &Arc<Self>) {
        // Nobody waits for what comes on the hiprio queue.
        let poll = if self.index == HIPRIO { Duration::ZERO } else { self.service.poll };
        let mut scratch = Scratch::new(poll);
        loop {
            match self.wait() {
                Next::Leave => return,
                Next::LookAgain => {}
                Next::Drain => self.take_turn(&mut scratch),
            }
        }
    }

    fn wait(&self) -> Next {
        if self.changes.load(Ordering::Acquire) == 0 {
            let mut control = lock(&self.control);
            if control.is_leaving {
                return Next::Leave;
            }
            if self.is_running(&control) && std::mem::take(&mut control.is_fresh) {
                return Next::Drain;
            }
        }
        match self.bell.wait() {
            Ok(true) => Next::Drain,
            Ok(false) => Next::LookAgain,
            Err(errno) => {
                log::error!("queue {}: waiting for kicks: {errno}; it is over", self.index);
                Next::Leave
            }
        }
    }

    fn is_running(&self, control: &Control) -> bool {
        let vring = self.vring.get_ref();
        vring.get_queue().ready()
            && vring.is_enabled()
            && control.kick.is_some()
            && !control.is_broken
    }

    fn take_turn(self: &Arc<Self>, scratch: &mut Scratch) {
        let mut control = lock(&self.control);
        if !self.is_running(&control) {
            // The kick is spent: whoever lets the queue run has it looked at.
            control.is_fresh = true;
            return;
        }
        match self.drain(scratch) {
            Ok(is_done) => control.is_fresh |= !is_done,
            Err(broken) => self.break_down(&mut control, &broken),
        }
        scratch.used.clear();
        scratch.chain.clear();
    }

    fn break_down(&self, control: &mut Control, broken: &Broken) {
        if !std::mem::replace(&mut control.is_broken, true) {
            log::error!("queue {}: {broken}; it rests until the VMM sets it up again", self.index);
        }
    }

    /// Serves what is available; says whether that was all of it, or the connection waits for
    /// its turn.
    fn drain(self: &Arc<Self>, scratch: &mut Scratch) -> Result<bool, Broken> {
        for _ in 0..EMPTY_ROUNDS_MAX {
            self.vring.disable_notification()?;
            let mut is_empty = true;
            while self.serve_batch(scratch)? || self.watch(scratch)? {
                is_empty = false;
                if self.changes.load(Ordering::Acquire) > 0 {
                    return Ok(false);
                }
            }
            if !self.vring.enable_notification()? {
                return Ok(true);
            }
            if !is_empty {
                return Ok(false);
            }
        }
        Err(Broken::Empty)
    }

    /// Watches for a moment, while the guest need not kick; says whether there is something to do, or may be.
    fn watch(&self, scratch: &mut Scratch) -> Result<bool, Broken> {
        if !std::mem::take(&mut scratch.has_answered) {
            return Ok(false);
        }
        if self.index == HIPRIO {
            let is_burst = scratch.burst.goes_on(Instant::now());
            if is_burst {
                std::thread::sleep(REST);
            }
            return Ok(is_burst);
        }
        if !scratch.vigil.is_due() {
            return Ok(false);
        }
        let memory = self.memory.memory();
        let vring = self.vring.get_ref();
        let next = vring.get_queue().next_avail();
        // virtio 1.2, 2.7.6: `virtq_avail.idx` is behind the flags.
        let index = GuestAddress(vring.get_queue().avail_ring().saturating_add(2));
        drop(vring);
        scratch.vigil.keep(|| {
            let available = memory.load::<u16>(index, Ordering::Acquire);
            let available = available.map_err(virtio_queue::Error::GuestMemory)?;
            Ok(u16::from_le(available) != next || self.changes.load(Ordering::Acquire) > 0)
        })
    }

    /// Takes up to [`BATCH`] chains off the ring and serves them; says whether there were any.
    fn serve_batch(self: &Arc<Self>, scratch: &mut Scratch) -> Result<bool, Broken> {
        let memory = self.memory.memory().into_inner();
        let table = self.take_heads(&memory, &mut scratch.heads)?;
        let heads = std::mem::take(&mut scratch.heads);
        let mut reply_bytes: u32 = 0;
        let mut outcome = Ok(!heads.is_empty());
        for &head in &heads {
            match self.serve(&memory, table, head, scratch) {
                Ok(None) => {}
                Ok(Some(bytes)) => {
                    scratch.has_answered = true;
                    scratch.used.push((head, bytes));
                    reply_bytes = reply_bytes.saturating_add(bytes);
                }
                Err(broken) => {
                    outcome = Err(broken);
                    break;
                }
            }
            if reply_bytes >= BATCH_BYTES {
                reply_bytes = 0;
                self.complete(&scratch.used)?;
                scratch.used.clear();
            }
        }
        if !scratch.used.is_empty() {
            self.complete(&scratch.used)?;
            scratch.used.clear();
        }
        scratch.heads = heads;
        outcome
    }

    fn take_heads(&self, memory: &GuestMemory, heads: &mut Vec<u16>) -> Result<Table, Broken> {
        heads.clear();
        let mut vring = self.vring.get_mut();
        let queue = vring.get_queue_mut();
        heads.extend(queue.iter(memory)?.take(BATCH).map(|chain| chain.head_index()));
        Ok(Table { address: queue.desc_table(), size: queue.size() })
    }

    /// Serves one chain; gives the used length if that is already known.
    fn serve(
        self: &Arc<Self>,
        memory: &Arc<GuestMemory>,
        table: Table,
        head: u16,
        scratch: &mut Scratch,
    ) -> Result<Option<u32>, Broken> {
        if let Err(malformed) = scratch.chain.walk(memory, table, head) {
            if head >= table.size {
                return Err(Broken::Head(malformed));
            }
            self.complain(head, &malformed.to_string());
            return Ok(Some(0));
        }
        let mut header = [0; IN_HEADER_BYTES];
        if scratch.chain.readable.copy_out(0, &mut header) < IN_HEADER_BYTES {
            self.complain(head, "shorter than a request header");
            return Ok(Some(0));
        }
        let is_stream = match self.session().placement(&header) {
            Placement::Inline => {
                if let Some(bytes) = self.handle_here(&header, scratch, Wait::Allowed) {
                    return Ok(Some(bytes));
                }
                false
            }
            Placement::TryInline => {
                if let Some(bytes) = self.handle_here(&header, scratch, Wait::Never) {
                    return Ok(Some(bytes));
                }
                false
            }
            Placement::Pool => false,
            Placement::Stream => true,
        };
        self.send_away(header, std::mem::take(&mut scratch.chain), is_stream, table.size)?;
        Ok(None)
    }

    /// Handles a request in this thread; `None` if it has to wait elsewhere.
    fn handle_here(
        &self,
        header: &[u8; IN_HEADER_BYTES],
        scratch: &mut Scratch,
        wait: Wait,
    ) -> Option<u32> {
        let Scratch { chain, message, .. } = scratch;
        copy_message(self.session(), header, chain, message);
        let mut source = GuestSource::new(&chain.readable, message.len(), None);
        let mut reply = GuestReply::new(&chain.writable, wait, None);
        match self.session().handle(message, &mut source, &mut reply) {
            Answer::Reply { .. } => Some(used_bytes(&reply)),
            Answer::None => Some(0),
            Answer::Later => None,
        }
    }

    fn send_away(
        self: &Arc<Self>,
        header: [u8; IN_HEADER_BYTES],
        chain: Chain,
        is_stream: bool,
        size: u16,
    ) -> Result<(), Broken> {
        let request = Arc::new(Request::new(Arc::clone(self), chain, header, is_stream));
        let mut in_flight = lock(&self.in_flight);
        // A driver has at most as many chains outstanding as the queue has descriptors.
        if in_flight.len() >= usize::from(size) {
            return Err(Broken::TooMany);
        }
        in_flight.push(Arc::clone(&request));
        drop(in_flight);
        let pools = &self.service.pools;
        let pool = if is_stream { &pools.streams } else { &pools.waits };
        pool.submit(Box::new(move || request.run()));
        Ok(())
    }

    /// Gives chains back to the guest and interrupts it if it wants that.
    pub(super) fn complete(&self, used: &[(u16, u32)]) -> Result<(), Broken> {
        let mut vring = self.vring.get_mut();
        let memory = self.memory.memory();
        for &(head, bytes) in used {
            vring.get_queue_mut().add_used(&*memory, head, bytes)?;
        }
        if must_interrupt(&mut vring, &memory)?
            && let Err(error) = vring.signal_used_queue()
        {
            log::debug!("queue {}: no interrupt: {error}", self.index);
        }
        Ok(())
    }

    /// Logs what is wrong with a chain, once per start of the queue.
    pub(super) fn complain(&self, head: u16, what: &str) {
        if !self.has_complained.swap(true, Ordering::Relaxed) {
            log::warn!(
                "queue {}: chain {head}: {what}; given back empty (said once per start)",
                self.index
            );
        }
    }

    /// Forgets a request that is done.
    pub(super) fn land(&self, request: &Request) {
        let mut in_flight = lock(&self.in_flight);
        if let Some(at) = in_flight.iter().position(|r| std::ptr::eq(&**r, request)) {
            in_flight.swap_remove(at);
        }
        drop(in_flight);
        self.landed.notify_all();
    }
}

impl Paused<'_> {
    /// Starts (or starts again) a queue that has a kick descriptor.
    ///
    /// Errors: its rings are not in the guest's memory.
    pub fn start(&mut self) -> Result<(), Broken> {
        let Some(control) = self.control.as_deref_mut() else { return Ok(()) };
        if control.kick.is_none() {
            return Ok(());
        }
        control.is_fresh = true;
        control.is_broken = false;
        self.ring.has_complained.store(false, Ordering::Relaxed);
        let mut vring = self.ring.vring.get_mut();
        let memory = self.ring.memory.memory();
        let queue = vring.get_queue_mut();
        queue.set_ready(true);
        if !queue.is_valid(&*memory) {
            queue.set_ready(false);
            return Err(Broken::Addresses);
        }
        // Only the guest's memory knows the used index after a reboot of it, or of us.
        let used = queue.used_idx(&*memory, Ordering::Acquire)?;
        queue.set_next_used(used.0);
        Ok(())
    }

    /// Sets the descriptor the guest kicks.
    ///
    /// Errors: it cannot be waited for.
    pub fn set_kick(&mut self, kick: Option<OwnedFd>) -> Result<(), Broken> {
        let Some(control) = self.control.as_deref_mut() else { return Ok(()) };
        if let Some(old) = control.kick.take() {
            self.ring.bell.ignore(&old);
        }
        if let Some(new) = kick {
            self.ring.bell.listen(&new).map_err(Broken::Kick)?;
            control.kick = Some(new);
        }
        Ok(())
    }

    /// Has the queue looked at without a kick.
    pub fn refresh(&mut self) {
        if let Some(control) = self.control.as_deref_mut() {
            control.is_fresh = true;
        }
    }

    /// Ends the queue's thread.
    pub fn leave(&mut self) {
        if let Some(control) = self.control.as_deref_mut() {
            control.is_leaving = true;
        }
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.control = None;
        self.ring.changes.fetch_sub(1, Ordering::AcqRel);
        self.ring.bell.wake();
    }
}

/// Whether the guest wants an interrupt for what was added to the used ring.
fn must_interrupt(
    vring: &mut VringState<GuestMemoryAtomic<GuestMemory>>,
    memory: &GuestMemory,
) -> Result<bool, Broken> {
    let queue = vring.get_queue_mut();
    if queue.event_idx_enabled() {
        return Ok(queue.needs_notification(memory)?);
    }
    // The used index must be visible before the flag is read, or the guest sleeps on an entry.
    fence(Ordering::SeqCst);
    let flags = memory.load::<u16>(GuestAddress(queue.avail_ring()), Ordering::Relaxed);
    let flags = flags.map_err(virtio_queue::Error::GuestMemory)?;
    Ok(u16::from_le(flags) & AVAIL_NO_INTERRUPT == 0)
}
