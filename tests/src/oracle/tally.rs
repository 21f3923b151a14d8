//! What was done, and how much of it came to something.

use std::collections::BTreeMap;
use std::fmt;

use super::script::Operation;

/// Operations done, by their verbs.
#[derive(Clone, Default, Debug)]
pub struct Tally(BTreeMap<String, Count>);

#[derive(Clone, Copy, Default, Debug)]
struct Count {
    all: u64,
    /// Refused by an error.
    refused: u64,
    /// What it was about was not there, or was not of its kind.
    idle: u64,
}

impl Tally {
    /// One more, and what it came to.
    pub fn add(&mut self, operation: &Operation, told: &str) {
        const IDLE: [&str; 5] = ["not ", "nothing is ", "no file", "a device ", "mapped: false"];
        let count = self.0.entry(operation.verb().to_owned()).or_default();
        count.all += 1;
        count.refused += u64::from(told.contains("os error"));
        count.idle += u64::from(IDLE.iter().any(|begin| told.starts_with(begin)));
    }

    fn sum(&self) -> Count {
        self.0.values().fold(Count::default(), |sum, count| Count {
            all: sum.all + count.all,
            refused: sum.refused + count.refused,
            idle: sum.idle + count.idle,
        })
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Count { all, refused, idle } = self.sum();
        write!(f, "{all} operations, {refused} of them refused, {idle} with nothing to do it to:")?;
        for (verb, count) in &self.0 {
            write!(f, " {verb} {}/{}", count.all - count.refused - count.idle, count.all)?;
        }
        Ok(())
    }
}
