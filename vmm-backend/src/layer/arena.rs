//! Cells of fixed size in a memory that outlives the process, changed in transactions.
//!
//! A cell is 64 bytes; its first byte is a tag, 0 for a free cell. Cells name each other by index,
//! never by address. A change of several cells is written to a journal in the same memory first,
//! so a process that dies at any instruction leaves all of the change or nothing of it. Which
//! cells are free is not stored: it is what no tag claims.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::filesystem::Errno;
use crate::sys::shared::{SharedMemory, WORD_BYTES};

/// Bytes of a cell.
pub const CELL_BYTES: usize = 64;
/// What a cell holds; byte 0 is the tag.
pub type Cell = [u8; CELL_BYTES];
/// A cell's position. Cells before [`FIRST_CELL`] are the arena's own.
pub type CellIndex = u32;
/// The most cells one transaction changes: two names of 255 bytes, and their owners.
pub const CHANGES_MAX: usize = 24;

const CELL_WORDS: usize = CELL_BYTES / WORD_BYTES;
/// Words of the head: magic, and how many journal entries are to be applied.
const MAGIC_WORD: usize = 0;
const PENDING_WORD: usize = 1;
/// The journal: the numbers of the cells, then their contents.
const JOURNAL_INDEXES: usize = CELL_WORDS;
const JOURNAL_CELLS: usize = JOURNAL_INDEXES + CHANGES_MAX;
/// The first cell that is not the arena's own.
const FIRST_CELL: CellIndex = 1 + 3 + 24;
const _: () = assert!(FIRST_CELL as usize * CELL_WORDS == JOURNAL_CELLS + CHANGES_MAX * CELL_WORDS);
/// The last byte is the version of the layout.
const MAGIC: u64 = u64::from_le_bytes(*b"thinrts\x01");

/// The memory grows by this much: 256 KiB, 4096 cells.
const GROWTH_BYTES: usize = 256 << 10;
/// Address space set aside, not memory: 64 GiB, a thousand million cells.
const RESERVED_BYTES: usize = 64 << 30;

/// The cells, and which of them are free.
#[derive(Debug)]
pub struct Arena {
    memory: SharedMemory,
    /// Guards the free cells, growth and the journal; nothing else is locked inside.
    writer: Mutex<Writer>,
}

#[derive(Debug, Default)]
struct Writer {
    /// Given back, with a tag of 0.
    free: Vec<CellIndex>,
    /// No cell from here on was ever used.
    unused: CellIndex,
}

/// Cells to be changed at once. Dropped without [`Transaction::commit`] it changes nothing.
#[derive(Debug)]
pub struct Transaction<'a> {
    arena: &'a Arena,
    writer: MutexGuard<'a, Writer>,
    /// Entries written to the journal so far.
    length: usize,
    /// Cells taken from the free ones.
    taken: [CellIndex; CHANGES_MAX],
    taken_length: usize,
}

impl Arena {
    /// An empty arena in a memory of its own.
    pub fn new() -> Result<Self, Errno> {
        let memory = SharedMemory::new("thinroot-nodes", RESERVED_BYTES)?;
        memory.grow(GROWTH_BYTES)?;
        word(&memory, MAGIC_WORD)?.store(MAGIC, Ordering::Release);
        Ok(Self::with(memory, Vec::new(), FIRST_CELL))
    }

    /// Takes over the arena of a process that is gone and ends the transaction it was in.
    ///
    /// Errors: `EINVAL` if the file is no arena of this version.
    pub fn attach(file: OwnedFd) -> Result<Self, Errno> {
        let memory = SharedMemory::attach(file, RESERVED_BYTES)?;
        if word(&memory, MAGIC_WORD).map_err(|_| Errno::INVAL)?.load(Ordering::Acquire) != MAGIC {
            return Err(Errno::INVAL);
        }
        let arena = Self::with(memory, Vec::new(), FIRST_CELL);
        arena.apply_journal()?;
        let mut writer = arena.writer();
        let used = arena.used().map(|(index, _)| index).last();
        writer.unused = used.map_or(FIRST_CELL, |last| last.saturating_add(1));
        writer.free = (FIRST_CELL..writer.unused)
            .filter(|index| arena.cell(*index).is_ok_and(|cell| cell[0] == 0))
            .collect();
        drop(writer);
        Ok(arena)
    }

    fn with(memory: SharedMemory, free: Vec<CellIndex>, unused: CellIndex) -> Self {
        Self { memory, writer: Mutex::new(Writer { free, unused }) }
    }

    /// A cell's contents. Whether they are all of one moment is for the owner's lock to see to.
    ///
    /// Errors: `EIO` if there is no such cell.
    pub fn cell(&self, index: CellIndex) -> Result<Cell, Errno> {
        let words = self.cell_words(index)?;
        let mut cell = [0; CELL_BYTES];
        for (bytes, word) in cell.chunks_exact_mut(WORD_BYTES).zip(words) {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        Ok(cell)
    }

    /// One word of a cell, to be changed alone and outside of transactions. No transaction may
    /// change that cell at the same time.
    pub fn cell_word(&self, index: CellIndex, word: usize) -> Result<&AtomicU64, Errno> {
        self.cell_words(index)?.get(word).ok_or(Errno::IO)
    }

    /// Every cell with a tag, in order.
    pub fn used(&self) -> impl Iterator<Item = (CellIndex, Cell)> {
        let cells = self.memory.words().len() / CELL_WORDS;
        let end = CellIndex::try_from(cells).unwrap_or(CellIndex::MAX);
        (FIRST_CELL..end)
            .filter_map(|index| Some((index, self.cell(index).ok()?)))
            .filter(|(_, cell)| cell[0] != 0)
    }

    /// Starts a change. One at a time: keep it short.
    pub fn change(&self) -> Transaction<'_> {
        let (length, taken_length) = (0, 0);
        let taken = [0; CHANGES_MAX];
        Transaction { arena: self, writer: self.writer(), length, taken, taken_length }
    }

    /// Gives the memory behind the last used cell back.
    pub fn trim(&self) -> Result<(), Errno> {
        let mut writer = self.writer();
        writer.free.sort_unstable();
        while writer.free.last().is_some_and(|last| last + 1 == writer.unused) {
            writer.free.pop();
            writer.unused -= 1;
        }
        writer.free.shrink_to_fit();
        // Nothing but zeros is lost: whoever takes one of these cells fills it anew.
        self.memory.discard(writer.unused as usize * CELL_BYTES)
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        // The journal is consistent at every instruction, so a panicked holder leaves no damage.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cell_words(&self, index: CellIndex) -> Result<&[AtomicU64], Errno> {
        let start = index as usize * CELL_WORDS;
        if index < FIRST_CELL {
            return Err(Errno::IO);
        }
        self.memory.words().get(start..start + CELL_WORDS).ok_or(Errno::IO)
    }

    /// The number and the contents of a journal entry.
    fn journal(&self, entry: usize) -> Result<(&AtomicU64, &[AtomicU64]), Errno> {
        let start = JOURNAL_CELLS + entry * CELL_WORDS;
        let words = self.memory.words();
        let index = words.get(JOURNAL_INDEXES + entry).ok_or(Errno::IO)?;
        Ok((index, words.get(start..start + CELL_WORDS).ok_or(Errno::IO)?))
    }

    /// Does what the journal says, as often as needed: doing it twice changes nothing.
    fn apply_journal(&self) -> Result<(), Errno> {
        let pending = word(&self.memory, PENDING_WORD)?;
        let count = usize::try_from(pending.load(Ordering::Acquire)).map_err(|_| Errno::IO)?;
        for entry in 0..count.min(CHANGES_MAX) {
            let (index, from) = self.journal(entry)?;
            let index =
                CellIndex::try_from(index.load(Ordering::Relaxed)).map_err(|_| Errno::IO)?;
            for (to, from) in self.cell_words(index)?.iter().zip(from) {
                to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
            }
        }
        pending.store(0, Ordering::Release);
        Ok(())
    }

    fn grow(&self, writer: &mut Writer) -> Result<CellIndex, Errno> {
        let index = writer.unused;
        let end = (index as usize + 1) * CELL_BYTES;
        if end > self.memory.words().len() * WORD_BYTES {
            self.memory.grow(end.next_multiple_of(GROWTH_BYTES))?;
        }
        writer.unused = index.checked_add(1).ok_or(Errno::NOSPC)?;
        Ok(index)
    }
}

impl AsFd for Arena {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

impl Transaction<'_> {
    /// Takes a free cell, to be filled with [`Transaction::set`].
    ///
    /// Errors: `ENOSPC` if there is none, `EIO` above [`CHANGES_MAX`].
    pub fn allocate(&mut self) -> Result<CellIndex, Errno> {
        let slot = self.taken.get_mut(self.taken_length).ok_or(Errno::IO)?;
        let index = match self.writer.free.pop() {
            Some(index) => index,
            None => self.arena.grow(&mut self.writer)?,
        };
        *slot = index;
        self.taken_length += 1;
        Ok(index)
    }

    /// Gives a cell new contents, once the transaction commits.
    ///
    /// Errors: `EIO` above [`CHANGES_MAX`] cells, or for a cell that does not exist.
    pub fn set(&mut self, index: CellIndex, cell: &Cell) -> Result<(), Errno> {
        self.arena.cell_words(index)?;
        let entry = self.entry(index)?.unwrap_or(self.length);
        if entry >= CHANGES_MAX {
            return Err(Errno::IO);
        }
        let (place, words) = self.arena.journal(entry)?;
        place.store(u64::from(index), Ordering::Relaxed);
        for (word, bytes) in words.iter().zip(cell.chunks_exact(WORD_BYTES)) {
            let mut value = [0; WORD_BYTES];
            value.copy_from_slice(bytes);
            word.store(u64::from_ne_bytes(value), Ordering::Relaxed);
        }
        self.length = self.length.max(entry + 1);
        Ok(())
    }

    /// Frees a cell.
    pub fn free(&mut self, index: CellIndex) -> Result<(), Errno> {
        self.set(index, &[0; CELL_BYTES])
    }

    /// Makes the changes: all of them or, if we die, perhaps none.
    pub fn commit(mut self) -> Result<(), Errno> {
        self.taken_length = 0;
        let count = u64::try_from(self.length).map_err(|_| Errno::IO)?;
        word(&self.arena.memory, PENDING_WORD)?.store(count, Ordering::Release);
        // The cells change only after the journal counts, whoever looks at the memory later.
        fence(Ordering::SeqCst);
        self.arena.apply_journal()?;
        for entry in 0..self.length {
            let (index, cell) = self.arena.journal(entry)?;
            let index = index.load(Ordering::Relaxed);
            if cell.first().is_some_and(|word| word.load(Ordering::Relaxed).to_ne_bytes()[0] == 0) {
                self.writer.free.push(CellIndex::try_from(index).map_err(|_| Errno::IO)?);
            }
        }
        Ok(())
    }

    /// Where in the journal the change of a cell stands already.
    fn entry(&self, index: CellIndex) -> Result<Option<usize>, Errno> {
        for entry in 0..self.length {
            if self.arena.journal(entry)?.0.load(Ordering::Relaxed) == u64::from(index) {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        self.writer.free.extend(self.taken.iter().take(self.taken_length));
    }
}

fn word(memory: &SharedMemory, index: usize) -> Result<&AtomicU64, Errno> {
    memory.words().get(index).ok_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(tag: u8) -> Cell {
        let mut cell = [0xa5; CELL_BYTES];
        cell[0] = tag;
        cell
    }

    fn add(arena: &Arena, tag: u8) -> CellIndex {
        let mut change = arena.change();
        let index = change.allocate().unwrap();
        change.set(index, &cell(tag)).unwrap();
        change.commit().unwrap();
        index
    }

    fn attach(arena: &Arena) -> Arena {
        Arena::attach(arena.as_fd().try_clone_to_owned().unwrap()).unwrap()
    }

    #[test]
    fn committed_cells_are_found_by_whoever_attaches() {
        let arena = Arena::new().unwrap();
        let cells: Vec<_> =
            (0..10_000).map(|n| add(&arena, u8::try_from(n % 7 + 1).unwrap())).collect();
        let mut change = arena.change();
        change.free(cells[5]).unwrap();
        change.free(cells[7]).unwrap();
        change.commit().unwrap();

        let again = attach(&arena);
        assert_eq!(again.used().count(), 9_998);
        assert_eq!(again.cell(cells[6]).unwrap(), cell(7));
        let mut reused = [add(&again, 1), add(&again, 1)];
        reused.sort_unstable();
        assert_eq!(reused, [cells[5], cells[7]]);
        assert_eq!(add(&again, 1), cells[9_999] + 1);
    }

    #[test]
    fn transaction_not_committed_changes_nothing_and_gives_its_cells_back() {
        let arena = Arena::new().unwrap();
        let kept = add(&arena, 1);
        let mut change = arena.change();
        let taken = change.allocate().unwrap();
        change.set(taken, &cell(2)).unwrap();
        change.free(kept).unwrap();
        drop(change);
        assert_eq!(arena.used().collect::<Vec<_>>(), [(kept, cell(1))]);
        assert_eq!(add(&arena, 3), taken);
    }

    #[test]
    fn pending_journal_is_applied_by_whoever_attaches() {
        let arena = Arena::new().unwrap();
        let (first, second) = (add(&arena, 1), add(&arena, 2));
        let mut change = arena.change();
        change.set(first, &cell(3)).unwrap();
        change.free(second).unwrap();
        // Death between the journal's last word and the first cell.
        word(&arena.memory, PENDING_WORD).unwrap().store(2, Ordering::Release);
        drop(change);
        let again = attach(&arena);
        assert_eq!(again.used().collect::<Vec<_>>(), [(first, cell(3))]);
        assert_eq!(word(&again.memory, PENDING_WORD).unwrap().load(Ordering::Relaxed), 0);
    }

    #[test]
    fn last_contents_set_in_a_transaction_win() {
        let arena = Arena::new().unwrap();
        let index = add(&arena, 1);
        let mut change = arena.change();
        change.free(index).unwrap();
        change.set(index, &cell(4)).unwrap();
        change.commit().unwrap();
        assert_eq!(arena.cell(index).unwrap(), cell(4));
        assert_ne!(add(&arena, 5), index);
    }

    #[test]
    fn trim_keeps_what_is_used() {
        let arena = Arena::new().unwrap();
        let cells: Vec<_> = (0..10_000).map(|_| add(&arena, 1)).collect();
        for index in &cells[1..] {
            let mut change = arena.change();
            change.free(*index).unwrap();
            change.commit().unwrap();
        }
        arena.trim().unwrap();
        assert_eq!(arena.used().collect::<Vec<_>>(), [(cells[0], cell(1))]);
        assert_eq!(add(&arena, 2), cells[1]);
    }

    #[test]
    fn cells_that_do_not_exist_are_errors() {
        let arena = Arena::new().unwrap();
        assert_eq!(arena.cell(0).err(), Some(Errno::IO));
        assert_eq!(arena.cell(FIRST_CELL - 1).err(), Some(Errno::IO));
        assert_eq!(arena.cell(CellIndex::MAX).err(), Some(Errno::IO));
        let mut change = arena.change();
        assert_eq!(change.free(CellIndex::MAX).err(), Some(Errno::IO));
        for _ in 0..CHANGES_MAX {
            change.allocate().unwrap();
        }
        assert_eq!(change.allocate().err(), Some(Errno::IO));
    }
}
