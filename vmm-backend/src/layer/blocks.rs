//! Which blocks of a large file copied up by block are in the upper. Pure.
//!
//! Holes are no map (a file system reports data where none was written, and holes where some was):
//! a set bit means the upper has the block, also where the upper has a hole there. Bits speak of
//! what is below the limit alone; from the limit on everything is the upper's.

use std::ops::Range;

use crate::filesystem::{Attributes, Timestamp};

/// One bit stands for this many bytes.
pub const BLOCK_BYTES: u64 = 4096;

/// Files below this size are copied up whole: that is as fast as keeping a map of them.
pub const WHOLE_BYTES_MAX: u64 = 128 << 10;

/// A stretch of a file that one layer has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// First byte.
    pub offset: u64,
    /// Bytes, at least 1.
    pub size: u64,
    /// The upper has it; else it falls through to the lower.
    pub is_upper: bool,
}

/// The map of one file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlockMap {
    bits: Vec<u64>,
    limit: u64,
}

impl BlockMap {
    /// A map of `limit` bytes that all fall through.
    pub fn new(limit: u64) -> Self {
        Self { bits: vec![0; words(limit)], limit }
    }

    /// A map as its sidecar has it; what the sidecar lacks falls through.
    pub fn from_bytes(limit: u64, bytes: &[u8]) -> Self {
        let mut map = Self::new(limit);
        for (word, chunk) in map.bits.iter_mut().zip(bytes.chunks(8)) {
            let mut whole = [0; 8];
            whole[..chunk.len()].copy_from_slice(chunk);
            *word = u64::from_le_bytes(whole);
        }
        map
    }

    /// The sidecar's bytes: bit `n % 8` of byte `n / 8` is block `n`.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.bits.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// How many bytes [`BlockMap::to_bytes`] gives.
    pub fn byte_count(&self) -> usize {
        8 * self.bits.len()
    }

    /// The sidecar's bytes of these words of eight bytes each.
    pub fn words(&self, words: Range<usize>) -> Vec<u8> {
        let words = self.bits.get(words).unwrap_or_default();
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Adds the blocks that a sidecar's bytes say the upper has.
    pub fn add(&mut self, bytes: &[u8]) {
        let more = Self::from_bytes(self.limit, bytes);
        self.bits.iter_mut().zip(more.bits).for_each(|(word, more)| *word |= more);
    }

    /// Everything from here on is the upper's.
    pub const fn limit(&self) -> u64 {
        self.limit
    }

    /// The file was cut to `size`: what is beyond falls through never again.
    pub fn cut(&mut self, size: u64) {
        self.limit = self.limit.min(size);
    }

    fn has(&self, block: u64) -> bool {
        let word = usize::try_from(block / 64).ok().and_then(|word| self.bits.get(word));
        word.is_none_or(|word| word & (1 << (block % 64)) != 0)
    }

    /// Whether the upper has the byte at `offset`.
    pub fn is_upper(&self, offset: u64) -> bool {
        offset >= self.limit || self.has(offset / BLOCK_BYTES)
    }

    /// The layers of a range, in order, each stretch as long as it can be.
    pub fn segments(&self, offset: u64, size: u64) -> Vec<Segment> {
        let end = offset.saturating_add(size);
        let mut found: Vec<Segment> = Vec::new();
        let mut at = offset;
        while at < end {
            let is_upper = self.is_upper(at);
            let next = if at >= self.limit { end } else { self.next_boundary(at).min(end) };
            match found.last_mut() {
                Some(last) if last.is_upper == is_upper => last.size += next - at,
                _ => found.push(Segment { offset: at, size: next - at, is_upper }),
            }
            at = next;
        }
        found
    }

    /// Where the answer may change after `at`, which is below the limit.
    fn next_boundary(&self, at: u64) -> u64 {
        ((at / BLOCK_BYTES + 1) * BLOCK_BYTES).min(self.limit)
    }

    /// The range a write must cover so that its blocks can be marked: at both ends it takes in what
    /// still falls through of a block it touches.
    pub fn widened(&self, offset: u64, size: u64) -> (u64, u64) {
        let end = offset.saturating_add(size);
        let first = offset / BLOCK_BYTES * BLOCK_BYTES;
        let start = if self.is_upper(first) { offset } else { first };
        let last = (end - u64::from(end > offset)) / BLOCK_BYTES * BLOCK_BYTES;
        let end =
            if self.is_upper(last) { end } else { end.max((last + BLOCK_BYTES).min(self.limit)) };
        (start, end)
    }

    /// Where a write that began at `start` and came to an early end at `end` stops to show.
    pub fn shown_until(&self, start: u64, end: u64) -> u64 {
        if end <= start {
            return start;
        }
        let last = (end - 1) / BLOCK_BYTES * BLOCK_BYTES;
        let is_whole = self.is_upper(last) || end >= (last + BLOCK_BYTES).min(self.limit);
        if is_whole { end } else { last.max(start) }
    }

    /// The upper has this widened range now. Gives the words of the map that speak of it.
    pub fn mark(&mut self, (start, end): (u64, u64)) -> Range<usize> {
        let end = end.min(self.limit);
        for block in start / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES) {
            // A block that the range covers in part is either at the limit or marked already.
            let first = block * BLOCK_BYTES;
            let is_covered = start <= first && end >= (first + BLOCK_BYTES).min(self.limit);
            if is_covered && let Ok(word) = usize::try_from(block / 64) {
                self.bits[word] |= 1 << (block % 64);
            }
        }
        let word = |block: u64| usize::try_from(block / 64).unwrap_or(0).min(self.bits.len());
        let last = end.div_ceil(BLOCK_BYTES).saturating_sub(1);
        if end <= start { 0..0 } else { word(start / BLOCK_BYTES)..word(last) + 1 }
    }

    /// Nothing falls through any more.
    pub fn is_complete(&self) -> bool {
        (0..self.limit.div_ceil(BLOCK_BYTES)).all(|block| self.has(block))
    }
}

fn words(limit: u64) -> usize {
    usize::try_from(limit.div_ceil(BLOCK_BYTES).div_ceil(64)).unwrap_or(0)
}

/// What the mark of an unsettled file says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlocksMark {
    /// Bytes below this may fall through; it never rises.
    pub limit: u64,
    /// The name of the sidecar in `work/blocks`, below 2^63; 0 while no block is in the upper.
    pub sidecar: u64,
    /// The sidecar is being made: it may be missing or cut off, and nothing in it counts.
    pub is_begun: bool,
    /// The lower file's size in bytes when it was copied up.
    pub lower_size: u64,
    /// The lower file's modification time then.
    pub lower_mtime: Timestamp,
}

const VERSION: u8 = 1;

/// Beside the name of a sidecar that is being made.
const BEGUN: u64 = 1 << 63;

impl BlocksMark {
    /// The mark's value: a version byte, then the fields as little-endian integers.
    pub fn to_bytes(self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend(self.limit.to_le_bytes());
        let begun = if self.is_begun { BEGUN } else { 0 };
        bytes.extend((self.sidecar | begun).to_le_bytes());
        bytes.extend(self.lower_size.to_le_bytes());
        bytes.extend(self.lower_mtime.seconds.to_le_bytes());
        bytes.extend(self.lower_mtime.nanoseconds.to_le_bytes());
        bytes
    }

    /// The name of the sidecar, if what it says counts.
    pub fn saved_map(&self) -> Option<u64> {
        Some(self.sidecar).filter(|sidecar| *sidecar != 0 && !self.is_begun)
    }

    /// Whether the lower file is what it was when it was copied up.
    pub fn is_over(&self, lower: &Attributes) -> bool {
        (self.lower_size, self.lower_mtime) == (lower.size, lower.mtime)
    }

    /// How long the map of a file of this size has to be.
    pub fn map_bytes(&self, size: u64) -> u64 {
        self.limit.min(size).min(self.lower_size).div_ceil(8 * BLOCK_BYTES)
    }

    /// Reads a mark's value; `None` if it is none of ours.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (&VERSION, rest) = bytes.split_first()? else { return None };
        let (words, nanoseconds) = rest.split_at_checked(32)?;
        let word = |index: usize| words.as_chunks::<8>().0.get(index).copied();
        Some(Self {
            limit: u64::from_le_bytes(word(0)?),
            sidecar: u64::from_le_bytes(word(1)?) & !BEGUN,
            is_begun: u64::from_le_bytes(word(1)?) & BEGUN != 0,
            lower_size: u64::from_le_bytes(word(2)?),
            lower_mtime: Timestamp {
                seconds: i64::from_le_bytes(word(3)?),
                nanoseconds: u32::from_le_bytes(nanoseconds.try_into().ok()?),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: u64 = BLOCK_BYTES;

    fn layers(map: &BlockMap, offset: u64, size: u64) -> Vec<(u64, u64, bool)> {
        map.segments(offset, size).iter().map(|s| (s.offset, s.size, s.is_upper)).collect()
    }

    #[test]
    fn written_blocks_are_the_uppers_and_the_rest_falls_through() {
        let mut map = BlockMap::new(10 * B + 100);
        assert_eq!(
            layers(&map, 0, 20 * B),
            [(0, 10 * B + 100, false), (10 * B + 100, 10 * B - 100, true)]
        );
        map.mark((2 * B, 4 * B));
        assert_eq!(
            layers(&map, B, 4 * B),
            [(B, B, false), (2 * B, 2 * B, true), (4 * B, B, false)]
        );
        map.mark((10 * B, 10 * B + 100));
        assert!(map.is_upper(10 * B));
        assert!(!map.is_complete());
        map.mark((0, 10 * B));
        assert!(map.is_complete());
    }

    #[test]
    fn write_takes_in_what_falls_through_at_its_edges() {
        let mut map = BlockMap::new(10 * B + 100);
        let rows = [
            ("inside one block", (B + 10, 20), (B, 2 * B)),
            ("aligned", (B, B), (B, 2 * B)),
            ("the limit's block", (10 * B + 10, 20), (10 * B, 10 * B + 100)),
            ("across the limit", (10 * B + 10, 500), (10 * B, 10 * B + 510)),
            ("beyond the limit, same block", (10 * B + 200, 10), (10 * B, 10 * B + 210)),
            ("beyond the limit", (12 * B + 1, 10), (12 * B + 1, 12 * B + 11)),
            ("nothing", (B + 1, 0), (B, 2 * B)),
        ];
        for (row, (offset, size), widened) in rows {
            assert_eq!(map.widened(offset, size), widened, "{row}");
        }
        map.mark((B, 3 * B));
        assert_eq!(map.widened(B + 10, 20), (B + 10, B + 30), "marked already");
        assert_eq!(map.widened(2 * B + 10, B), (2 * B + 10, 4 * B), "marked at one end");
    }

    #[test]
    fn limit_never_rises_and_hides_what_was_cut() {
        let mut map = BlockMap::new(10 * B);
        map.cut(3 * B + 5);
        map.cut(9 * B);
        assert_eq!(map.limit(), 3 * B + 5);
        assert_eq!(layers(&map, 3 * B, B), [(3 * B, 5, false), (3 * B + 5, B - 5, true)]);
    }

    #[test]
    fn map_and_mark_survive_their_bytes() {
        let mut map = BlockMap::new(1000 * B + 1);
        map.mark((5 * B, 700 * B));
        assert_eq!(BlockMap::from_bytes(map.limit(), &map.to_bytes()), map);
        assert_eq!(BlockMap::from_bytes(B, &[]), BlockMap::new(B));
        let mark = BlocksMark {
            limit: 7,
            sidecar: 8,
            is_begun: false,
            lower_size: 9,
            lower_mtime: Timestamp { seconds: -1, nanoseconds: 5 },
        };
        assert_eq!(BlocksMark::from_bytes(&mark.to_bytes()), Some(mark));
        let begun = BlocksMark { is_begun: true, ..mark };
        assert_eq!(BlocksMark::from_bytes(&begun.to_bytes()), Some(begun));
        assert_eq!((mark.saved_map(), begun.saved_map()), (Some(8), None));
        for cut in 0..mark.to_bytes().len() {
            assert_eq!(BlocksMark::from_bytes(&mark.to_bytes()[..cut]), None, "{cut}");
        }
    }

    /// A file as a byte array is the oracle for random writes, cuts and growths.
    #[test]
    fn random_writes_and_cuts_agree_with_a_plain_file() {
        let mut seed = 0x1234_5678_9abc_def1_u64;
        let mut random = move |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % below.max(1)
        };
        for _ in 0..200 {
            let size = random(6 * B) + 1;
            let lower: Vec<u8> = (0..size).map(|at| u8::try_from(at % 199 + 1).unwrap()).collect();
            let (mut plain, mut upper) = (lower.clone(), vec![0; lower.len()]);
            let mut map = BlockMap::new(size);
            for _ in 0..40 {
                if random(4) == 0 {
                    let size = random(8 * B);
                    let length = usize::try_from(size).unwrap();
                    plain.resize(length, 0);
                    upper.resize(length, 0);
                    map.cut(size);
                } else {
                    write(&mut map, (&mut plain, &mut upper, &lower), random(7 * B), random(2 * B));
                }
                let length = u64::try_from(plain.len()).unwrap();
                let mut shown: Vec<u8> = Vec::new();
                for part in map.segments(0, length) {
                    let from = if part.is_upper { &upper } else { &lower };
                    let start = usize::try_from(part.offset).unwrap();
                    shown.extend(&from[start..start + usize::try_from(part.size).unwrap()]);
                }
                assert!(shown == plain, "the map lost a byte");
            }
        }
    }

    fn write(
        map: &mut BlockMap,
        (plain, upper, lower): (&mut Vec<u8>, &mut Vec<u8>, &Vec<u8>),
        offset: u64,
        size: u64,
    ) {
        if size == 0 {
            return;
        }
        let (start, end) = map.widened(offset, size);
        let at = |offset: u64| usize::try_from(offset).unwrap();
        for file in [&mut *plain, &mut *upper] {
            if file.len() < at(offset + size) {
                file.resize(at(offset + size), 0);
            }
        }
        for part in map.segments(start, end - start).iter().filter(|part| !part.is_upper) {
            let range = at(part.offset)..at(part.offset + part.size);
            upper[range.clone()].copy_from_slice(&lower[range]);
        }
        plain[at(offset)..at(offset + size)].fill(250);
        upper[at(offset)..at(offset + size)].fill(250);
        map.mark((start, end));
    }
}
