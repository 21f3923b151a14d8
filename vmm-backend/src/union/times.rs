//! Times that no file system keeps for us: modification times that a guest gave to files it writes
//! through its own cache, and when it last read what is still the lower's.
//!
//! Under the writeback cache a guest's kernel owns a file's mtime. It sends the data and the time
//! by two requests that it does not order (before Linux 6.16 it does not even wait for the first),
//! so the data may come last, and the host would then show when that was. Of a file that was just
//! born it may send no time at all: where its clock has not ticked since, the birth's is the file's.
//!
//! Reading never copies up, and the lower's own access time is not ours to move. As with `relatime`
//! the first read after a change, or after a day, counts; it is remembered here, and written when
//! the object is copied up anyway.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Union;
use super::node::Node;
use super::node_table::NodeHash;
use crate::filesystem::{Attributes, Errno, NodeId, SetTime, Timestamp};
use crate::layer::index::ObjectId;

/// Of so many files, at least, the time is known: more than a guest has writes under way.
const FILES: usize = 4096;

/// mount(8), `relatime`: what was read so long ago is read anew.
const READ_AGAIN_SECONDS: i64 = 24 * 60 * 60;

/// The times of the files whose guest set them last.
#[derive(Debug, Default)]
pub struct GuestTimes(Mutex<Generations>);

/// When objects of the lower were read.
#[derive(Debug, Default)]
pub struct ReadTimes(Mutex<Generations>);

/// When the young ones are too many they become the old ones, and those are forgotten.
#[derive(Debug, Default)]
struct Generations {
    young: HashMap<NodeId, Timestamp, NodeHash>,
    old: HashMap<NodeId, Timestamp, NodeHash>,
}

impl Generations {
    fn insert(&mut self, id: NodeId, time: Timestamp) {
        self.old.remove(&id);
        self.young.insert(id, time);
        if self.young.len() >= FILES {
            self.old = std::mem::take(&mut self.young);
        }
    }

    fn remove(&mut self, id: NodeId) {
        self.young.remove(&id);
        self.old.remove(&id);
    }

    fn get(&self, id: NodeId) -> Option<Timestamp> {
        self.young.get(&id).or_else(|| self.old.get(&id)).copied()
    }
}

fn lock(times: &Mutex<Generations>) -> MutexGuard<'_, Generations> {
    times.lock().unwrap_or_else(PoisonError::into_inner)
}

impl GuestTimes {
    /// The guest set a file's mtime, to a time of its own or to the host's.
    pub fn set(&self, file: NodeId, mtime: SetTime) {
        let SetTime::To(mtime) = mtime else { return self.forget(file) };
        lock(&self.0).insert(file, mtime);
    }

    /// The mtime of this file is the host's affair from now on.
    pub fn forget(&self, file: NodeId) {
        lock(&self.0).remove(file);
    }

    /// What the guest said last.
    pub fn of(&self, file: NodeId) -> Option<Timestamp> {
        lock(&self.0).get(file)
    }
}

impl ReadTimes {
    /// Another guest, to whom a number of the upper may be another object's.
    pub fn clear(&self) {
        *lock(&self.0) = Generations::default();
    }

    /// A directory changed: the next reader is the first.
    pub fn forget(&self, dir: NodeId) {
        lock(&self.0).remove(dir);
    }

    /// Sees a read at `now` of what shows `attributes` without us.
    fn read(
        &self,
        id: NodeId,
        attributes: impl FnOnce() -> Result<Attributes, Errno>,
        now: Timestamp,
    ) {
        let is_recent = |atime: Timestamp| now.seconds - atime.seconds < READ_AGAIN_SECONDS;
        if lock(&self.0).get(id).is_some_and(is_recent) {
            return;
        }
        let Ok(shown) = attributes() else { return };
        let is_read_since = shown.atime > shown.mtime && shown.atime > shown.ctime;
        let atime = if is_read_since && is_recent(shown.atime) { shown.atime } else { now };
        lock(&self.0).insert(id, atime);
    }
}

fn now() -> Option<Timestamp> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let seconds = i64::try_from(since.as_secs()).ok()?;
    Some(Timestamp { seconds, nanoseconds: since.subsec_nanos() })
}

impl Union {
    /// What an object shows while it is the lower's.
    pub(super) fn lower_attributes(&self, object: ObjectId) -> Result<Attributes, Errno> {
        let mut shown = self.lower.attributes(object)?;
        if let Some(atime) = lock(&self.read_times.0).get(shown.node) {
            shown.atime = atime;
        }
        Ok(shown)
    }

    /// The guest listed a directory, whose rows in the upper are known: once after each change it is
    /// read there too. The caller holds `names`.
    pub(super) fn see_listed(&self, dir: &Node) {
        if !dir.is_upper {
            return self.see_read(dir);
        }
        let (None, Some(now)) = (lock(&self.read_times.0).get(dir.id), now()) else { return };
        lock(&self.read_times.0).insert(dir.id, now);
        let seen = self.handle(dir).and_then(|handle| self.upper.see_listed(handle.as_fd()));
        if let Err(e) = seen {
            log::debug!("union: node {} is listed, and not seen to be: {e}", dir.id);
        }
    }

    /// The guest read this, which counts here while it is the lower's.
    pub(super) fn see_read(&self, node: &Node) {
        let (false, Some(object), Some(now)) = (node.is_upper, node.lower, now()) else { return };
        let id = NodeId(object.0.into());
        self.read_times.read(id, || self.lower.attributes(object), now);
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
        let known = lock(&times.0);
        assert!(known.young.len() + known.old.len() <= 2 * FILES);
    }

    #[test]
    fn read_counts_once_after_a_change_and_once_a_day() {
        let time = |seconds| Timestamp { seconds, nanoseconds: 0 };
        let at = |atime, mtime, ctime| Attributes {
            node: NodeId(5),
            mode: 0o100_644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            blocks: 0,
            block_size: 4096,
            atime: time(atime),
            mtime: time(mtime),
            ctime: time(ctime),
            btime: None,
        };
        let day = READ_AGAIN_SECONDS;
        let rows = [
            ("never read since it was written", at(100, 100, 100), 1000, 1000),
            ("never read since it was linked", at(100, 90, 100), 1000, 1000),
            ("read since", at(100, 90, 90), 1000, 100),
            ("read since, a day ago", at(100, 90, 90), 100 + day, 100 + day),
        ];
        for (row, shown, now, expected) in rows {
            let times = ReadTimes::default();
            times.read(NodeId(5), || Ok(shown), time(now));
            assert_eq!(lock(&times.0).get(NodeId(5)), Some(time(expected)), "{row}");
            times.read(NodeId(5), || Err(Errno::IO), time(now + 1));
            assert_eq!(lock(&times.0).get(NodeId(5)), Some(time(expected)), "{row}: again");
            times.read(NodeId(5), || Ok(shown), time(now + day));
            assert_eq!(lock(&times.0).get(NodeId(5)), Some(time(now + day)), "{row}: a day later");
        }
    }
}
