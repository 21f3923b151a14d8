//! A bounded pool for requests that may wait.
//!
//! Threads are made when work waits and nobody is idle, up to a bound, and leave after a quiet
//! while. The queue needs no bound of its own: each job holds a place in a virtqueue.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(10);

/// Something to do that may take its time.
pub type Job = Box<dyn FnOnce() + Send>;

/// Threads for work that may wait. Dropping it lets queued work end, and waits for none of it: a
/// job may be blocked for ever on a stream.
#[derive(Debug)]
pub struct Pool {
    name: &'static str,
    threads_max: usize,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Guards the queue and the counts; nothing else is locked inside.
    state: Mutex<State>,
    /// Signalled for each new job, and for all when the pool closes.
    work: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    is_closed: bool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.lock();
        f.debug_struct("Shared")
            .field("jobs", &state.jobs.len())
            .field("threads", &state.threads)
            .field("idle", &state.idle)
            .finish()
    }
}

impl Pool {
    /// A pool without threads yet; `name` names them, `threads_max` (at least 1) bounds them.
    pub fn new(name: &'static str, threads_max: usize) -> Self {
        Self { name, threads_max: threads_max.max(1), shared: Arc::default() }
    }

    /// Queues `job`; never waits, and never runs it in the calling thread.
    pub fn submit(&self, job: Job) {
        let mut state = self.shared.lock();
        state.jobs.push_back(job);
        let is_short = state.jobs.len() > state.idle && state.threads < self.threads_max;
        if is_short {
            state.threads += 1;
        }
        drop(state);
        self.shared.work.notify_one();
        if is_short {
            self.grow();
        }
    }

    fn grow(&self) {
        let shared = Arc::clone(&self.shared);
        let made = thread::Builder::new().name(self.name.to_owned()).spawn(move || shared.run());
        if let Err(error) = made {
            let mut state = self.shared.lock();
            state.threads -= 1;
            log::warn!("no further {} thread, {} remain: {error}", self.name, state.threads);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.work.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        while let Some(job) = self.next() {
            job();
        }
    }

    /// The next job; `None` when this thread is no longer needed, which is then counted.
    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            if state.is_closed {
                state.threads -= 1;
                return None;
            }
            state.idle += 1;
            let waited = self.work.wait_timeout(state, IDLE);
            let (woken, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if timeout.timed_out() && state.jobs.is_empty() {
                state.threads -= 1;
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn blocked_jobs_do_not_hold_up_others_below_the_bound() {
        let pool = Pool::new("test", 4);
        let (release, blocked) = mpsc::channel::<()>();
        let blocked = Arc::new(Mutex::new(blocked));
        for _ in 0..3 {
            let blocked = Arc::clone(&blocked);
            pool.submit(Box::new(move || drop(blocked.lock().map(|b| b.recv()))));
        }
        let (done, finished) = mpsc::channel();
        for turn in 0..100 {
            let done = done.clone();
            pool.submit(Box::new(move || done.send(turn).expect("the test waits")));
        }
        let turns: Vec<i32> = finished.iter().take(100).collect();
        assert_eq!(turns, (0..100).collect::<Vec<_>>());
        drop(release);
    }

    #[test]
    fn threads_stay_below_the_bound() {
        let pool = Pool::new("test", 3);
        let gate = Arc::new(Mutex::new(()));
        let closed = gate.lock().expect("nobody panics");
        let (done, finished) = mpsc::channel();
        for _ in 0..50 {
            let (gate, done) = (Arc::clone(&gate), done.clone());
            pool.submit(Box::new(move || {
                drop(gate.lock());
                done.send(()).expect("the test waits");
            }));
        }
        assert!(pool.shared.lock().threads <= 3);
        drop(closed);
        assert_eq!(finished.iter().take(50).count(), 50);
    }
}
