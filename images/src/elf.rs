//! The little of ELF that tells what a file can do. Source: elf(5).

/// Where the file's dynamic loader is named.
pub const PT_INTERP: usize = 3;
/// Notes, in one of which a kernel names its PVH entry.
pub const PT_NOTE: usize = 4;

/// The segments of this kind in a 64-bit little-endian file; `None` if it is none, or torn.
pub fn segments(elf: &[u8], kind: usize) -> Option<Vec<&[u8]>> {
    // e_ident: magic, ELFCLASS64, ELFDATA2LSB.
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = number::<8>(elf, 0x20)?;
    let (size, count) = (number::<2>(elf, 0x36)?, number::<2>(elf, 0x38)?);
    let mut segments = Vec::new();
    for index in 0..count {
        let header = table.checked_add(index.checked_mul(size)?)?;
        if number::<4>(elf, header)? == kind {
            let start = number::<8>(elf, header.checked_add(8)?)?;
            let length = number::<8>(elf, header.checked_add(32)?)?;
            segments.push(elf.get(start..start.checked_add(length)?)?);
        }
    }
    Some(segments)
}

/// A little-endian number of `N` bytes, 8 at most.
pub fn number<const N: usize>(bytes: &[u8], offset: usize) -> Option<usize> {
    let field = bytes.get(offset..offset.checked_add(N)?)?;
    field.iter().rev().try_fold(0_usize, |value, byte| {
        value.checked_mul(256).map(|value| value | usize::from(*byte))
    })
}
