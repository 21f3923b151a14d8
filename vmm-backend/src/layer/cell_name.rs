//! Names in arena cells: the first bytes in the owner's cell, the rest in a chain of cells.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, transmute};

use super::arena::{Arena, Cell, CellIndex, Transaction};
use crate::filesystem::{Errno, NAME_BYTES_MAX};

/// The tag of a cell that continues a name.
pub const NAME_TAG: u8 = 4;

const CHAINED_BYTES: usize = 56;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct NameCell {
    tag: u8,
    zero: [u8; 3],
    /// The next cell of the chain, 0 at its end.
    next: CellIndex,
    bytes: [u8; CHAINED_BYTES],
}

/// Where a name stands: what its owner's cell says of it.
#[derive(Clone, Copy, Debug)]
pub struct NamePlace<'a> {
    /// Bytes of the whole name.
    pub length: u8,
    /// Its first bytes, and zeros where it is shorter.
    pub head: &'a [u8],
    /// The cell with the next bytes, 0 if `head` has all.
    pub next: CellIndex,
}

/// A name copied out of the arena, without an allocation.
#[derive(Clone, Copy, Debug)]
pub struct NameBytes {
    bytes: [u8; NAME_BYTES_MAX],
    length: usize,
}

impl NameBytes {
    /// The name.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// Writes `name`: its start into `head`, the rest into new cells. Gives its length and the first
/// of those cells.
///
/// Errors: `ENAMETOOLONG` above 255 bytes, else those of [`Transaction::allocate`].
pub fn write_name(
    change: &mut Transaction<'_>,
    name: &[u8],
    head: &mut [u8],
) -> Result<(u8, CellIndex), Errno> {
    let length = u8::try_from(name.len()).map_err(|_| Errno::NAMETOOLONG)?;
    let (start, rest) = name.split_at(name.len().min(head.len()));
    head.fill(0);
    head[..start.len()].copy_from_slice(start);
    let mut next = 0;
    for part in rest.chunks(CHAINED_BYTES).rev() {
        let mut cell = NameCell { tag: NAME_TAG, zero: [0; 3], next, bytes: [0; CHAINED_BYTES] };
        cell.bytes[..part.len()].copy_from_slice(part);
        next = change.allocate()?;
        let cell: Cell = transmute!(cell);
        change.set(next, &cell)?;
    }
    Ok((length, next))
}

/// Copies a name out.
///
/// Errors: `EIO` if its chain is broken.
pub fn read_name(arena: &Arena, place: NamePlace<'_>) -> Result<NameBytes, Errno> {
    let mut name = NameBytes { bytes: [0; NAME_BYTES_MAX], length: usize::from(place.length) };
    let head = name.length.min(place.head.len());
    name.bytes[..head].copy_from_slice(&place.head[..head]);
    let mut next = place.next;
    for part in name.bytes[head..name.length].chunks_mut(CHAINED_BYTES) {
        let cell = chained(arena, next)?;
        part.copy_from_slice(&cell.bytes[..part.len()]);
        next = cell.next;
    }
    Ok(name)
}

/// Whether the name that stands there is `name`.
///
/// Errors: `EIO` if its chain is broken.
pub fn is_name(arena: &Arena, place: NamePlace<'_>, name: &[u8]) -> Result<bool, Errno> {
    let (start, rest) = name.split_at(name.len().min(place.head.len()));
    if usize::from(place.length) != name.len() || !place.head.starts_with(start) {
        return Ok(false);
    }
    let mut next = place.next;
    for part in rest.chunks(CHAINED_BYTES) {
        let cell = chained(arena, next)?;
        if !cell.bytes.starts_with(part) {
            return Ok(false);
        }
        next = cell.next;
    }
    Ok(true)
}

/// Frees the cells of a name's chain.
pub fn free_name(
    arena: &Arena,
    change: &mut Transaction<'_>,
    place: NamePlace<'_>,
) -> Result<(), Errno> {
    let chained_bytes = usize::from(place.length).saturating_sub(place.head.len());
    let mut next = place.next;
    for _ in 0..chained_bytes.div_ceil(CHAINED_BYTES) {
        let cell = chained(arena, next)?;
        change.free(next)?;
        next = cell.next;
    }
    Ok(())
}

fn chained(arena: &Arena, index: CellIndex) -> Result<NameCell, Errno> {
    let cell: NameCell = transmute!(arena.cell(index)?);
    if cell.tag != NAME_TAG {
        log::error!("arena cell {index} is not the name cell its chain says");
        return Err(Errno::IO);
    }
    Ok(cell)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_length_come_back_and_leave_nothing_behind() {
        let arena = Arena::new().unwrap();
        let name: Vec<u8> = (1..=255).collect();
        for length in 0..=NAME_BYTES_MAX {
            let name = &name[..length];
            let mut head = [0xff; 16];
            let mut change = arena.change();
            let (length, next) = write_name(&mut change, name, &mut head).unwrap();
            change.commit().unwrap();
            let place = NamePlace { length, head: &head, next };
            assert_eq!(read_name(&arena, place).unwrap().as_bytes(), name);
            assert!(is_name(&arena, place, name).unwrap());
            for other in others(name) {
                assert!(!is_name(&arena, place, &other).unwrap(), "{other:?} for {name:?}");
            }
            let mut change = arena.change();
            free_name(&arena, &mut change, place).unwrap();
            change.commit().unwrap();
            assert_eq!(arena.used().count(), 0, "{length}");
        }
    }

    /// Names that differ in one byte each, a longer one and a shorter one.
    fn others(name: &[u8]) -> Vec<Vec<u8>> {
        let changed = (0..name.len()).map(|at| {
            let mut other = name.to_vec();
            other[at] ^= 0x80;
            other
        });
        let shorter = name.split_last().map(|(_, shorter)| shorter.to_vec());
        changed.chain(shorter).chain([[name, b"x"].concat()]).collect()
    }

    #[test]
    fn too_long_a_name_and_a_broken_chain_are_errors() {
        let arena = Arena::new().unwrap();
        let mut change = arena.change();
        let refused = write_name(&mut change, &[b'a'; 256], &mut [0; 16]).err();
        assert_eq!(refused, Some(Errno::NAMETOOLONG));
        drop(change);
        let place = NamePlace { length: 17, head: &[0; 16], next: 100 };
        assert_eq!(read_name(&arena, place).err(), Some(Errno::IO));
        assert_eq!(is_name(&arena, place, &[0; 17]).err(), Some(Errno::IO));
    }
}
