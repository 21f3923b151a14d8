//! How often each operation was asked for, and how many bytes went either way.

use std::array::from_fn;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::abi::Opcode;

/// One slot per opcode below this; the greatest known is 53.
const SLOTS: usize = 64;

/// Threads that count at once without passing a cache line around: a VM has seldom more queues.
const STRIPES: usize = 8;

/// Requests of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Count {
    /// The operation (`LOOKUP`).
    pub name: &'static str,
    /// How many came.
    pub requests: u64,
    /// What they took, headers included.
    pub request_bytes: u64,
    /// What they were answered with, headers included; 0 where there is no answer.
    pub reply_bytes: u64,
}

/// Requests by opcode; slot 0, which no opcode has, counts the unknown ones.
///
/// Each thread counts in one of the stripes, so that queues share no cache line. Counting is
/// three uncontended additions: no lock, no allocation.
#[derive(Debug)]
pub(super) struct Counts([Stripe; STRIPES]);

#[derive(Debug)]
#[repr(align(128))]
struct Stripe([Slot; SLOTS]);

/// Together, so that one request touches one cache line, or two.
#[derive(Debug)]
struct Slot {
    requests: AtomicU64,
    request_bytes: AtomicU64,
    reply_bytes: AtomicU64,
}

impl Slot {
    const fn new() -> Self {
        Self {
            requests: AtomicU64::new(0),
            request_bytes: AtomicU64::new(0),
            reply_bytes: AtomicU64::new(0),
        }
    }

    fn take(&self) -> [u64; 3] {
        [&self.requests, &self.request_bytes, &self.reply_bytes]
            .map(|sum| sum.swap(0, Ordering::Relaxed))
    }
}

/// The stripe of this thread, the same for every session.
fn stripe() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static STRIPE: usize = NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES;
    }
    STRIPE.with(|stripe| *stripe)
}

impl Counts {
    pub(super) const fn new() -> Self {
        Self([const { Stripe([const { Slot::new() }; SLOTS]) }; STRIPES])
    }

    /// One more request with this number, and the bytes of it and of its reply.
    pub(super) fn count(&self, opcode: u32, request_bytes: usize, reply_bytes: usize) {
        let slot = Opcode::from_wire(opcode).map_or(0, |known| known as usize);
        let Some(slot) = self.0.get(stripe()).and_then(|stripe| stripe.0.get(slot)) else {
            return;
        };
        slot.requests.fetch_add(1, Ordering::Relaxed);
        slot.request_bytes.fetch_add(request_bytes as u64, Ordering::Relaxed);
        slot.reply_bytes.fetch_add(reply_bytes as u64, Ordering::Relaxed);
    }

    /// What was asked for at least once since the last time, by opcode number; starts at zero
    /// again.
    pub(super) fn take(&self) -> Vec<Count> {
        let all = (0..SLOTS).map(|slot| {
            let mut sums = [0; 3];
            for part in self.0.iter().filter_map(|stripe| stripe.0.get(slot)).map(Slot::take) {
                sums = from_fn(|field| sums[field] + part[field]);
            }
            let [requests, request_bytes, reply_bytes] = sums;
            Count { name: name(slot), requests, request_bytes, reply_bytes }
        });
        all.filter(|count| count.requests > 0).collect()
    }
}

fn name(slot: usize) -> &'static str {
    u32::try_from(slot).ok().and_then(Opcode::from_wire).map_or("unknown", Opcode::name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_has_a_slot_of_its_own() {
        let counts = Counts::new();
        for opcode in Opcode::ALL {
            counts.count(*opcode as u32, 40, 16);
        }
        for unknown in [0, 7, 63, 64, 4096, u32::MAX] {
            counts.count(unknown, 40, 16);
        }
        let all = counts.take();
        let unknown =
            Count { name: "unknown", requests: 6, request_bytes: 6 * 40, reply_bytes: 6 * 16 };
        assert_eq!(all.first(), Some(&unknown));
        assert_eq!(all.len(), Opcode::ALL.len() + 1);
        assert!(all.iter().skip(1).all(|count| count.requests == 1));
        assert_eq!(counts.take(), []);
    }

    #[test]
    fn threads_lose_nothing_to_each_other() {
        let counts = Counts::new();
        std::thread::scope(|scope| {
            for _ in 0..2 * STRIPES {
                scope.spawn(|| (0..1000).for_each(|_| counts.count(Opcode::Read as u32, 80, 4112)));
            }
        });
        let requests = 2 * STRIPES as u64 * 1000;
        let all = Count {
            name: "READ",
            requests,
            request_bytes: requests * 80,
            reply_bytes: requests * 4112,
        };
        assert_eq!(counts.take(), [all]);
    }
}
