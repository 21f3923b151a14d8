//! The modification times a guest gave to files it writes through its own cache.
//!
//! Under the writeback cache a guest's kernel owns a file's mtime. It sends the data and the time
//! by two requests that it does not order (before Linux 6.16 it does not even wait for the first),
//! so the data may come last, and the host would then show when that was. Of a file that was just
//! born it may send no time at all: where its clock has not ticked since, the birth's is the file's.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::filesystem::{NodeId, SetTime, Timestamp};

/// Of so many files, at least, the time is known: more than a guest has writes under way.
const FILES: usize = 4096;

/// The times of the files whose guest set them last.
#[derive(Debug, Default)]
pub struct GuestTimes(Mutex<Generations>);

/// When the young ones are too many they become the old ones, and those are forgotten.
#[derive(Debug, Default)]
struct Generations {
    young: HashMap<NodeId, Timestamp>,
    old: HashMap<NodeId, Timestamp>,
}

impl GuestTimes {
    /// The guest set a file's mtime, to a time of its own or to the host's.
    pub fn set(&self, file: NodeId, mtime: SetTime) {
        let SetTime::To(mtime) = mtime else { return self.forget(file) };
        let mut known = self.lock();
        known.old.remove(&file);
        known.young.insert(file, mtime);
        if known.young.len() >= FILES {
            known.old = std::mem::take(&mut known.young);
        }
    }

    /// The mtime of this file is the host's affair from now on.
    pub fn forget(&self, file: NodeId) {
        let mut known = self.lock();
        known.young.remove(&file);
        known.old.remove(&file);
    }

    /// What the guest said last.
    pub fn of(&self, file: NodeId) -> Option<Timestamp> {
        let known = self.lock();
        known.young.get(&file).or_else(|| known.old.get(&file)).copied()
    }

    fn lock(&self) -> MutexGuard<'_, Generations> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_word_counts_and_memory_is_bounded() {
        let times = GuestTimes::default();
        let time = |seconds| Timestamp { seconds, nanoseconds: 0 };
        times.set(NodeId(5), SetTime::To(time(1)));
        times.set(NodeId(5), SetTime::To(time(2)));
        assert_eq!(times.of(NodeId(5)), Some(time(2)));
        times.set(NodeId(5), SetTime::Now);
        assert_eq!(times.of(NodeId(5)), None);
        for number in 0..100_000_u32 {
            times.set(NodeId(number.into()), SetTime::To(time(number.into())));
        }
        assert_eq!(times.of(NodeId(99_000)), Some(time(99_000)));
        assert_eq!(times.of(NodeId(1)), None);
        let known = times.lock();
        assert!(known.young.len() + known.old.len() <= 2 * FILES);
    }
}
