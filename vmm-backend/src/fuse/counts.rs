//! How often each operation was asked for.

use std::sync::atomic::{AtomicU64, Ordering};

use super::abi::Opcode;

/// One slot per opcode below this; the greatest known is 53.
const SLOTS: usize = 64;

/// Requests by opcode; slot 0, which no opcode has, counts the unknown ones.
#[derive(Debug)]
pub(super) struct Counts([AtomicU64; SLOTS]);

impl Counts {
    pub(super) const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; SLOTS])
    }

    /// One more request with this number.
    pub(super) fn count(&self, opcode: u32) {
        let slot = Opcode::from_wire(opcode).map_or(0, |known| known as usize);
        if let Some(slot) = self.0.get(slot) {
            slot.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Names and counts of what was asked for at least once, by opcode number.
    pub(super) fn listed(&self) -> Vec<(&'static str, u64)> {
        let name = |slot| {
            u32::try_from(slot).ok().and_then(Opcode::from_wire).map_or("unknown", Opcode::name)
        };
        let counts = self.0.iter().map(|slot| slot.load(Ordering::Relaxed));
        counts
            .enumerate()
            .filter(|&(_, count)| count > 0)
            .map(|(slot, count)| (name(slot), count))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_has_a_slot_of_its_own() {
        let counts = Counts::new();
        for opcode in Opcode::ALL {
            counts.count(*opcode as u32);
        }
        for unknown in [0, 7, 63, 64, 4096, u32::MAX] {
            counts.count(unknown);
        }
        let listed = counts.listed();
        assert_eq!(listed.first(), Some(&("unknown", 6)));
        assert_eq!(listed.len(), Opcode::ALL.len() + 1);
        assert!(listed.iter().skip(1).all(|&(_, count)| count == 1));
    }
}
