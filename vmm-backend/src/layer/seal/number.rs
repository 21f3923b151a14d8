//! Gives the objects of a draft their numbers: in the order of the walk, or those they had before.

use std::collections::HashMap;

use super::SealError;
use super::draft::Draft;
use crate::layer::index::format::{ObjectRecord, flags};
use crate::layer::index::{Index, ObjectId};

/// Numbers below this are left to lowers, unless they need more (they are 2^24).
const UPPER_START_MIN: u64 = 1 << 24;

/// The numbers of a draft's objects.
#[derive(Debug)]
pub struct Numbering {
    /// The number of each object, by position.
    pub numbers: Vec<u32>,
    /// The highest number ever given.
    pub last: u32,
    /// The first number of what is born in the upper.
    pub upper_start: u64,
    /// How many objects have the number they had before.
    pub kept: u64,
}

/// Numbers the objects of `draft`.
///
/// Without an earlier index the numbers are dense from 1 in the order of the walk, so that
/// identical copies agree. With one, an object keeps its number if it is of the same kind and at
/// the same path, or else if it is the same inode at another; new ones count on from the highest
/// number ever given.
pub fn number(draft: &Draft, before: Option<&Index>) -> Result<Numbering, SealError> {
    let mut numbers = vec![0; draft.objects.len()];
    let mut kept = 0;
    let mut last = 0;
    if let Some(index) = before {
        let mut taken = Taken::new(index);
        for (number, (object, source)) in
            numbers.iter_mut().zip(draft.objects.iter().zip(&draft.sources))
        {
            *number = taken.by_path(object, source.number_before);
        }
        if numbers.contains(&0) {
            taken.keep_inodes(draft, &mut numbers);
        }
        kept = u64::try_from(numbers.iter().filter(|n| **n != 0).count()).unwrap_or(u64::MAX);
        last = index.last_number();
    }
    for number in numbers.iter_mut().filter(|number| **number == 0) {
        last = last.checked_add(1).ok_or(SealError::TooLarge)?;
        *number = last;
    }
    let needed = u64::from(last).saturating_mul(2).next_power_of_two();
    let upper_start = before.map_or(needed.max(UPPER_START_MIN), Index::upper_numbers_start);
    if u64::from(last) >= upper_start {
        return Err(SealError::NumbersExhausted { objects: draft.objects.len() });
    }
    Ok(Numbering { numbers, last, upper_start, kept })
}

/// The numbers of an earlier index that are in use again.
struct Taken<'a> {
    index: &'a Index,
    numbers: Vec<bool>,
}

impl<'a> Taken<'a> {
    fn new(index: &'a Index) -> Self {
        let count = usize::try_from(index.last_number()).map_or(0, |last| last + 1);
        Self { index, numbers: vec![false; count] }
    }

    /// Takes `number` for an object of the same kind; 0 if that cannot be.
    fn by_path(&mut self, object: &ObjectRecord, number: u32) -> u32 {
        let is_same_kind = self
            .index
            .object(ObjectId(number))
            .is_ok_and(|before| kind_bits(before) == kind_bits(object));
        if is_same_kind && self.take(number) { number } else { 0 }
    }

    fn take(&mut self, number: u32) -> bool {
        let slot = usize::try_from(number).ok().and_then(|number| self.numbers.get_mut(number));
        slot.is_some_and(|taken| !std::mem::replace(taken, true))
    }

    /// Gives objects that moved the number they had elsewhere. An inode number may have been used
    /// again for something new: only the same birth, or the same mtime, tells.
    fn keep_inodes(&mut self, draft: &Draft, numbers: &mut [u32]) {
        let mut left = HashMap::new();
        for number in 1..=self.index.last_number() {
            let is_taken = usize::try_from(number)
                .ok()
                .and_then(|number| self.numbers.get(number))
                .is_none_or(|taken| *taken);
            if is_taken {
                continue;
            }
            if let Ok(object) = self.index.object(ObjectId(number))
                && let Ok(part) = self.index.part(object.part.get())
            {
                left.insert((part.layer.get(), object.ino.get()), (number, object));
            }
        }
        for (number, (object, source)) in
            numbers.iter_mut().zip(draft.objects.iter().zip(&draft.sources))
        {
            if *number == 0
                && let Some((before, record)) = left.get(&(source.layer, object.ino.get()))
                && kind_bits(record) == kind_bits(object)
                && is_same_birth(record, object)
                && self.take(*before)
            {
                *number = *before;
            }
        }
    }
}

fn kind_bits(object: &ObjectRecord) -> u32 {
    object.mode.get() & 0o170_000
}

fn is_same_birth(a: &ObjectRecord, b: &ObjectRecord) -> bool {
    if a.flags & b.flags & flags::BIRTH_KNOWN != 0 {
        a.btime == b.btime
    } else {
        a.mtime == b.mtime
    }
}
