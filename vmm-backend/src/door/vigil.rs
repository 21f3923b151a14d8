//! A queue's thread watches its ring for a moment before it sleeps, as long as that pays.
//!
//! Sleeping costs a wake-up of ours, a kick of the guest's and the time until we run again. Watching
//! for less than that is never much dearer, and what came to nothing is soon tried less often.
//! Why so and not otherwise: docs/decisions/0010.

use std::time::{Duration, Instant};

/// Looks between two glances at the clock: about a microsecond.
const LOOKS: u32 = 32;

/// Vigils for nothing count up to this; twice as many sleeps pass without one after each.
const MISSES_MAX: u32 = 6;

/// No thread that keeps its CPU is so long between two glances: others have a use for it, and a
/// thread that slept would have been let in before them.
const CROWDED: Duration = Duration::from_micros(500);

/// A sleep without a vigil for so much time lost to others: requests that take 40 us lose a tenth, and
/// are quicker meanwhile by more than that.
const LOST_PER_SLEEP: Duration = Duration::from_micros(4);

/// The most sleeps without a vigil.
const REST_MAX: u32 = 4095;

/// So many vigils that come to something pay for one that does not: each saves a sleep and a wake-up, which
/// take a third of the time of the longest.
const CREDIT: u32 = 3;

/// A vigil reaches so many times as far as what came lately took.
const REACH: u32 = 3;

/// And at least this far.
const REACH_MIN: Duration = Duration::from_micros(5);

/// How a vigil ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    /// After so long.
    Came(Duration),
    Nothing,
    /// Others had the CPU for so long.
    Crowded(Duration),
}

/// When to watch, learnt from what earlier vigils came to.
#[derive(Debug)]
pub(super) struct Vigil {
    limit: Duration,
    /// How long the next one is; at most `limit`.
    reach: Duration,
    /// Vigils that came to something, which nothing was spent of yet; at most [`CREDIT`].
    credit: u32,
    /// Sleeps to come without a vigil.
    rest: u32,
    /// Vigils for nothing, less those that were not.
    misses: u32,
}

impl Vigil {
    /// Vigils of at most `limit`; none if that is zero.
    pub(super) const fn new(limit: Duration) -> Self {
        Self { limit, reach: limit, credit: 0, rest: 0, misses: 0 }
    }

    /// Whether a vigil is worth it before this sleep; to be asked once for each.
    pub(super) fn is_due(&mut self) -> bool {
        let is_rested = self.rest == 0;
        self.rest = self.rest.saturating_sub(1);
        is_rested && !self.limit.is_zero()
    }

    /// Looks until something `came`, or time is up; says which.
    ///
    /// Errors: those of `came`.
    pub(super) fn keep<E>(&mut self, came: impl FnMut() -> Result<bool, E>) -> Result<bool, E> {
        let (has_come, outcome) = watch(self.reach, came)?;
        self.learn(outcome);
        Ok(has_come)
    }

    fn learn(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Came(after) => {
                self.misses = self.misses.saturating_sub(1);
                self.credit = CREDIT.min(self.credit + 1);
                let least = (self.reach * 3 / 4).max(REACH_MIN);
                self.reach = self.limit.min(least.max(after.saturating_mul(REACH)));
            }
            Outcome::Nothing => {
                // What comes now may be slower than what came lately.
                self.reach = self.limit.min(self.reach * 2);
                if std::mem::take(&mut self.credit) == CREDIT {
                    return;
                }
                self.misses = MISSES_MAX.min(self.misses + 1);
                self.rest = (1 << self.misses) - 1;
            }
            Outcome::Crowded(lost) => {
                let sleeps = lost.as_micros() / LOST_PER_SLEEP.as_micros();
                self.rest = u32::try_from(sleeps).unwrap_or(u32::MAX).min(REST_MAX);
            }
        }
    }
}

fn watch<E>(
    limit: Duration,
    mut came: impl FnMut() -> Result<bool, E>,
) -> Result<(bool, Outcome), E> {
    let start = Instant::now();
    let mut last = Duration::ZERO;
    loop {
        let has_come = look(&mut came)?;
        let now = start.elapsed();
        if now - last > CROWDED {
            return Ok((has_come, Outcome::Crowded(now - last)));
        }
        if has_come {
            return Ok((true, Outcome::Came(now)));
        }
        if now >= limit {
            return Ok((false, Outcome::Nothing));
        }
        last = now;
    }
}

fn look<E>(came: &mut impl FnMut() -> Result<bool, E>) -> Result<bool, E> {
    for _ in 0..LOOKS {
        if came()? {
            return Ok(true);
        }
        std::hint::spin_loop();
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLEEPS: u32 = 10_000;

    /// How many of [`SLEEPS`] have a vigil before them, if each ends so.
    fn kept(outcome: Outcome) -> u32 {
        let mut vigil = Vigil::new(Duration::from_micros(20));
        (0..SLEEPS)
            .map(|_| {
                u32::from(
                    vigil.is_due() && {
                        vigil.learn(outcome);
                        true
                    },
                )
            })
            .sum()
    }

    #[test]
    fn vigils_for_nothing_become_rare() {
        let rows = [
            (Outcome::Came(Duration::ZERO), SLEEPS..=SLEEPS),
            (Outcome::Nothing, 156..=165),
            (Outcome::Crowded(Duration::from_millis(4)), 10..=10),
            (Outcome::Crowded(Duration::from_secs(1)), 3..=3),
        ];
        for (outcome, expected) in rows {
            assert!(expected.contains(&kept(outcome)), "{outcome:?}: {}", kept(outcome));
        }
    }

    #[test]
    fn vigil_that_pays_again_is_kept_each_time() {
        let mut vigil = Vigil::new(Duration::from_micros(20));
        (0..100).for_each(|_| vigil.learn(Outcome::Nothing));
        assert_eq!((1..).find(|_| vigil.is_due()), Some(64));
        (0..100).for_each(|_| vigil.learn(Outcome::Came(Duration::ZERO)));
        assert!((0..100).all(|_| vigil.is_due()));
        // What it saved pays for one that comes to nothing, and not for the next.
        vigil.learn(Outcome::Nothing);
        assert!(vigil.is_due());
        vigil.learn(Outcome::Nothing);
        assert_eq!((1..).find(|_| vigil.is_due()), Some(2));
    }

    #[test]
    fn vigil_reaches_as_far_as_what_comes() {
        let us = Duration::from_micros;
        let mut vigil = Vigil::new(us(20));
        let reach_after = |vigil: &mut Vigil, outcome| {
            vigil.learn(outcome);
            vigil.reach
        };
        assert_eq!(vigil.reach, us(20));
        assert_eq!(reach_after(&mut vigil, Outcome::Came(us(1))), us(15));
        (0..10).for_each(|_| vigil.learn(Outcome::Came(us(1))));
        assert_eq!(vigil.reach, us(5));
        assert_eq!(reach_after(&mut vigil, Outcome::Came(us(3))), us(9));
        assert_eq!(reach_after(&mut vigil, Outcome::Nothing), us(18));
        assert_eq!(reach_after(&mut vigil, Outcome::Nothing), us(20));
        assert_eq!(reach_after(&mut vigil, Outcome::Came(us(12))), us(20));
        let mut short = Vigil::new(us(2));
        assert_eq!(reach_after(&mut short, Outcome::Came(us(1))), us(2));
    }

    #[test]
    fn no_limit_means_no_vigil() {
        let mut vigil = Vigil::new(Duration::ZERO);
        assert!((0..100).all(|_| !vigil.is_due()));
    }

    #[test]
    fn vigil_ends_when_something_comes_or_fails_and_when_time_is_up() {
        let long = Duration::from_secs(3600);
        let mut looks = 0..;
        let late = watch(long, || Ok::<_, ()>(looks.next() == Some(1000)));
        assert!(late.is_ok_and(|(has_come, _)| has_come));
        assert_eq!(watch(long, || Err(())), Err(()));
        let nothing = watch(Duration::from_micros(5), || Ok::<_, ()>(false));
        assert!(nothing.is_ok_and(|(has_come, _)| !has_come));
    }
}
