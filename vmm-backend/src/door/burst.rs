//! FORGETs come one by one from a guest that removes or forgets much: they are waited for together.
//!
//! Nobody waits for one, so that a wake-up of ours for each is lost, and so is the guest's kick. Where
//! one follows the other, the queue's thread sleeps a moment with notifications off and takes
//! what came meanwhile.

use std::time::{Duration, Instant};

/// Two within this time are a burst.
const NEAR: Duration = Duration::from_millis(2);

/// How long to wait for more. A queue of 1024 descriptors is not full before a guest sends one each microsecond;
/// Linux tries again a millisecond later then (fs/fuse/virtio_fs.c: `virtio_fs_enqueue_req`).
pub(super) const REST: Duration = Duration::from_millis(1);

/// When something last came.
#[derive(Debug, Default)]
pub(super) struct Burst(Option<Instant>);

impl Burst {
    /// Whether what came now is worth waiting for more.
    pub(super) fn goes_on(&mut self, now: Instant) -> bool {
        let last = self.0.replace(now);
        last.is_some_and(|last| now.saturating_duration_since(last) < NEAR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_at_once_is_a_burst_and_what_comes_alone_is_none() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut burst = Burst::default();
        let rows = [(0, false), (1, true), (2, true), (10, false), (11, true), (2000, false)];
        for (ms, expected) in rows {
            assert_eq!(burst.goes_on(at(ms)), expected, "after {ms} ms");
        }
    }
}
