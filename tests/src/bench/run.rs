//! One workload on one daemon: what runs, what the clock counts, and what came of it.

use std::collections::BTreeMap;
use std::time::Duration;

use rustix::io::Errno;

use super::BenchError;
use super::client::Client;
use super::ground::Ground;
use super::subject::{Site, Subject};

/// What a promise is about.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Bar {
    /// CPU time of the daemon per operation, as a share of the rival's: at most.
    Cpu(f64),
    /// CPU time per operation above that of an empty request, in microseconds: at most.
    AboveEmpty(f64),
    /// Operations per second, as a multiple of the rival's: at least.
    Faster(f64),
    /// Time per operation, as a share of the rival's: at most.
    Wall(f64),
    /// Time per operation in milliseconds: at most.
    Milliseconds(f64),
    /// A figure of its own ([`Sample::figures`]), as a share of the rival's: at most.
    Share(&'static str, f64),
    /// A figure of its own: at most.
    Most(&'static str, f64),
}

/// What one run of a workload on one daemon gave.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// How often the workload's operation was done.
    pub operations: u64,
    /// FUSE requests for them.
    pub requests: u64,
    /// The daemon's interrupts for them.
    pub interrupts: u64,
    /// The time they were under way.
    pub wall: Duration,
    /// What the daemon spent on them.
    pub cpu: Duration,
    /// What empty requests cost this very daemon meanwhile, where that was asked.
    pub empty: Option<Box<Sample>>,
    /// Other figures by name.
    pub figures: BTreeMap<&'static str, f64>,
}

/// A workload's body: prepares, runs something on the clock, checks everything.
pub type Body = fn(&mut Run<'_>) -> Result<Sample, Failed>;

/// A workload, by name.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// What it is called on the command line.
    pub name: &'static str,
    /// One operation of it.
    pub about: &'static str,
    /// Whether it leaves the tree as it is: then virtiofsd runs on the plain lower, too.
    pub is_reading: bool,
    /// What it does.
    pub body: Body,
    /// What it must reach.
    pub bars: &'static [Bar],
}

/// Why a run gave no figure.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// A request that should have worked did not.
    #[error("{0}")]
    Errno(#[from] Errno),
    /// Something that came back is not what it should be.
    #[error("{0}")]
    Wrong(String),
    /// The bench itself.
    #[error("{0}")]
    Bench(#[from] BenchError),
}

/// Says that what came back is wrong unless `holds`.
pub fn verify(holds: bool, what: impl FnOnce() -> String) -> Result<(), Failed> {
    if holds { Ok(()) } else { Err(Failed::Wrong(what())) }
}

/// A daemon that was just started with an empty upper, and its guest.
#[derive(Debug)]
pub struct Run<'a> {
    /// The daemon.
    pub subject: Subject,
    /// Its guest.
    pub client: Client,
    /// From the daemon's start to its answer to INIT.
    pub start: Duration,
    /// What it serves.
    pub ground: &'a Ground,
    /// What the daemon was made of.
    pub site: Site<'a>,
}

impl Run<'_> {
    /// Runs `operations` on the clock; what `work` does besides requests is not counted, and the
    /// daemon's CPU time counts whole.
    pub fn timed(
        &mut self,
        operations: usize,
        work: impl FnOnce(&mut Client, &Ground) -> Result<(), Failed>,
    ) -> Result<Sample, Failed> {
        self.client.settle();
        self.client.take_clock();
        self.client.take_interrupts();
        let before = self.subject.family().cpu();
        work(&mut self.client, self.ground)?;
        self.client.settle();
        let cpu = self.subject.family().cpu() - before;
        let (wall, requests) = self.client.take_clock();
        let operations = u64::try_from(operations).unwrap_or(u64::MAX);
        let interrupts = self.client.take_interrupts();
        Ok(Sample { operations, requests, interrupts, wall, cpu, ..Sample::default() })
    }

    /// Does `work`, which gives how many operations it did, with each of `parts`, each on a clock of its own,
    /// and gives the quietest quarter: what else runs on the machine can only add.
    pub fn timed_in_parts<T: Copy>(
        &mut self,
        parts: &[T],
        mut work: impl FnMut(&mut Client, &Ground, T) -> Result<u64, Failed>,
    ) -> Result<Sample, Failed> {
        let mut samples = Vec::new();
        for part in parts {
            let mut operations = 0;
            let sample = self.timed(0, |client, ground| {
                operations = work(client, ground, *part)?;
                Ok(())
            })?;
            samples.push(Sample { operations, ..sample });
        }
        Ok(quietest(samples))
    }

    /// Runs one operation on each of `objects`, each on a clock of its own, and gives the middle one: the first of
    /// a daemon's life pays for pages and caches that no other has to.
    pub fn timed_each<T: Copy>(
        &mut self,
        objects: &[T],
        work: impl Fn(&mut Client, T) -> Result<(), Failed>,
    ) -> Result<Sample, Failed> {
        let samples: Result<Vec<_>, _> =
            objects.iter().map(|object| self.timed(1, |client, _| work(client, *object))).collect();
        Ok(middle(&samples?))
    }

    /// Runs `operations` as [`Run::timed`] does, in batches with batches of empty requests between
    /// them, and gives the quietest quarter of both: what else runs on the machine can only add.
    /// `work` does operation number so-and-so.
    pub fn timed_beside_empty(
        &mut self,
        operations: usize,
        mut work: impl FnMut(&mut Client, &Ground, usize) -> Result<(), Failed>,
    ) -> Result<Sample, Failed> {
        let (mut batches, mut empties) = (Vec::new(), Vec::new());
        for start in (0..operations).step_by(BATCH) {
            let end = operations.min(start + BATCH);
            batches.push(self.timed(end - start, |client, ground| {
                (start..end).try_for_each(|number| work(client, ground, number))
            })?);
            empties.push(self.timed(BATCH, |client, _| {
                (0..BATCH).try_for_each(|_| client.empty()).map_err(Failed::from)
            })?);
        }
        let mut sample = quietest(batches);
        sample.empty = Some(Box::new(quietest(empties)));
        Ok(sample)
    }
}

/// Requests of one batch: some milliseconds, so that a batch without disturbance is likely.
const BATCH: usize = 250;

/// The middle one by time, with the middle one's CPU time, of operations that ran one by one.
fn middle(samples: &[Sample]) -> Sample {
    let of = |figure: fn(&Sample) -> Duration| {
        let mut sorted: Vec<_> = samples.iter().map(figure).collect();
        sorted.sort();
        sorted.get(sorted.len() / 2).copied().unwrap_or_default()
    };
    let (wall, cpu) = (of(|sample| sample.wall), of(|sample| sample.cpu));
    let mut sample = Sample { wall, cpu, ..samples.first().cloned().unwrap_or_default() };
    if let Some(first) = samples.first() {
        sample.figures.insert("first, us", first.wall.as_secs_f64() * 1e6);
    }
    sample
}

/// The sum of the quarter of batches that took the least CPU time for an operation.
fn quietest(mut batches: Vec<Sample>) -> Sample {
    let each =
        |batch: &Sample| batch.cpu / u32::try_from(batch.operations.max(1)).unwrap_or(u32::MAX);
    batches.sort_by_key(each);
    let some = batches.len().div_ceil(4);
    batches.into_iter().take(some).fold(Sample::default(), |mut sum, batch| {
        sum.operations += batch.operations;
        sum.requests += batch.requests;
        sum.interrupts += batch.interrupts;
        sum.wall += batch.wall;
        sum.cpu += batch.cpu;
        sum
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disturbed_batches_do_not_count() {
        let batch = |us| Sample {
            operations: 100,
            requests: 100,
            cpu: Duration::from_micros(us),
            wall: Duration::from_micros(2 * us),
            ..Sample::default()
        };
        let sum = quietest([900, 100, 5000, 700, 110, 800, 9000, 600].map(batch).into());
        assert_eq!((sum.operations, sum.cpu), (200, Duration::from_micros(210)));
        assert_eq!(sum.wall, Duration::from_micros(420));
    }

    #[test]
    fn first_operation_of_a_daemon_does_not_stand_for_all() {
        let each = |(wall, cpu)| Sample {
            operations: 1,
            requests: 2,
            wall: Duration::from_micros(wall),
            cpu: Duration::from_micros(cpu),
            ..Sample::default()
        };
        let sample = middle(&[(900, 70), (30, 20), (20, 900), (40, 30), (35, 10)].map(each));
        assert_eq!((sample.operations, sample.requests), (1, 2));
        assert_eq!(
            (sample.wall, sample.cpu),
            (Duration::from_micros(35), Duration::from_micros(30))
        );
        assert_eq!(sample.figures.get("first, us"), Some(&900.0));
    }
}
