//! The laws of docs/UNION.md as tests that run on any directory: a union or a private copy, on the
//! host or in a guest.
//!
//! Each law has a plot of its own with the same content, which stands in the *lower* when it is a
//! union that is tried. A law makes its changes and gives back what must hold from then on; that
//! is looked at right away, and once more when nothing is cached any more.

use std::fmt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

pub mod ground;
pub mod listed;
pub mod plot;

mod attributes;
mod clearing;
mod copy_up;
mod crowds;
mod data;
mod exchange;
mod handles;
mod hard_links;
mod held;
mod identity;
mod listing;
mod locks;
mod names;
mod nested;
mod ranges;
mod raw;
mod removal;
mod rename;
mod rights;
mod specials;
mod times;
mod xattrs;

use plot::{Done, Failure, Holds, Plot};

/// One law's test.
#[derive(Clone, Copy)]
pub struct Law {
    /// The number of the law in docs/UNION.md.
    pub number: u32,
    /// What must be true.
    pub name: &'static str,
    /// Content beyond what every plot has.
    extra: Option<fn(&Plot) -> Done>,
    run: fn(&Plot) -> Done<Holds>,
}

impl fmt::Debug for Law {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "U{} {}", self.number, self.name)
    }
}

/// A file's table of laws: number => test, or number => test with further content.
macro_rules! laws {
    ($($number:literal => $run:ident $(with $extra:expr)?;)*) => {
        pub(super) const LAWS: &[$crate::laws::Law] = &[
            $($crate::laws::Law {
                number: $number,
                name: stringify!($run),
                extra: $crate::laws::extra!($($extra)?),
                run: $run,
            },)*
        ];
    };
}
macro_rules! extra {
    () => {
        None
    };
    ($extra:expr) => {
        Some($extra)
    };
}
pub(crate) use {extra, laws};

/// Every law there is, in the order of its number.
pub fn all() -> Vec<Law> {
    let mut laws = [
        names::LAWS,
        identity::LAWS,
        hard_links::LAWS,
        listing::LAWS,
        removal::LAWS,
        rename::LAWS,
        copy_up::LAWS,
        xattrs::LAWS,
        specials::LAWS,
        attributes::LAWS,
        rights::LAWS,
        data::LAWS,
        times::LAWS,
        held::LAWS,
        handles::LAWS,
        crowds::LAWS,
        exchange::LAWS,
        clearing::LAWS,
        locks::LAWS,
        ranges::LAWS,
        nested::LAWS,
    ]
    .concat();
    laws.sort_by_key(|law| law.number);
    laws
}

/// Lays out a plot for each of `laws` below `directory`, which must be empty.
pub fn lay_out(directory: &Path, laws: &[Law]) -> Done {
    for law in laws {
        let plot = Plot::new(directory.join(law.name));
        plot.mkdir("")?;
        ground::lay_out(&plot)?;
        if let Some(extra) = law.extra {
            extra(&plot)?;
        }
        ground::age(&plot, Path::new(""))?;
    }
    Ok(())
}

/// What came of a law.
#[derive(Debug)]
pub struct Verdict {
    /// The law.
    pub law: Law,
    /// Why it does not hold, or was not tried.
    pub failure: Option<Failure>,
}

/// Tries `laws` on the plots below `directory`; `refresh` makes sure that nothing is cached.
pub fn try_all(directory: &Path, laws: &[Law], refresh: &mut dyn FnMut()) -> Vec<Verdict> {
    // The umask and the owner of a process are the whole process's.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let started: Vec<_> = laws
        .iter()
        .map(|law| {
            let plot = Plot::new(directory.join(law.name));
            let holds = (law.run)(&plot).and_then(|holds| holds().map(|()| holds));
            (*law, holds)
        })
        .collect();
    refresh();
    let look_again = |(law, holds): (Law, Done<Holds>)| {
        let result = holds.and_then(|holds| {
            holds().map_err(|failure| Failure {
                text: format!("after a refresh: {}", failure.text),
                ..failure
            })
        });
        Verdict { law, failure: result.err() }
    };
    started.into_iter().map(look_again).collect()
}

/// One line per law, and one with the counts; whether all held.
pub fn report(verdicts: &[Verdict], out: &mut dyn fmt::Write) -> Result<bool, fmt::Error> {
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for Verdict { law, failure } in verdicts {
        match failure {
            None => {
                passed += 1;
                writeln!(out, "pass {law:?}")?;
            }
            Some(failure) if failure.is_skip => {
                skipped += 1;
                writeln!(out, "skip {law:?}: {failure}")?;
            }
            Some(failure) => {
                failed += 1;
                writeln!(out, "FAIL {law:?}: {failure}")?;
            }
        }
    }
    writeln!(out, "{passed} passed, {failed} failed, {skipped} skipped")?;
    Ok(failed == 0)
}
