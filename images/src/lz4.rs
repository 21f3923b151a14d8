//! Reads LZ4's legacy frame, in which Debian packs the kernel (`lz4 -l`).
//!
//! Source: lz4_Block_format.md and lz4_Frame_format.md ("Legacy frame") of the LZ4 project.

/// The frame's magic number, little-endian.
pub const MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

/// A match is at least this long.
const MATCH_BYTES_MIN: usize = 4;

/// The frame's content, or `None` where it is damaged.
pub fn decompress(frame: &[u8]) -> Option<Vec<u8>> {
    let mut rest = frame.strip_prefix(&MAGIC)?;
    let mut output = Vec::new();
    while !rest.is_empty() {
        let (size, after) = rest.split_first_chunk::<4>()?;
        let size = usize::try_from(u32::from_le_bytes(*size)).ok()?;
        let (block, after) = after.split_at_checked(size)?;
        append_block(block, &mut output)?;
        rest = after;
    }
    Some(output)
}

/// A block is a row of sequences: literals, then a copy of earlier output; the last has
/// literals only.
fn append_block(mut block: &[u8], output: &mut Vec<u8>) -> Option<()> {
    loop {
        let (token, after) = block.split_first()?;
        block = after;
        let literals = length(token >> 4, &mut block)?;
        let (literals, after) = block.split_at_checked(literals)?;
        output.extend_from_slice(literals);
        if after.is_empty() {
            return Some(());
        }
        let (offset, after) = after.split_first_chunk::<2>()?;
        block = after;
        let size = length(token & 15, &mut block)?.checked_add(MATCH_BYTES_MIN)?;
        copy_match(usize::from(u16::from_le_bytes(*offset)), size, output)?;
    }
}

/// Four bits of the token; 15 says that bytes follow until one is not 255.
fn length(nibble: u8, block: &mut &[u8]) -> Option<usize> {
    let mut length = usize::from(nibble);
    if nibble == 15 {
        loop {
            let (more, after) = block.split_first()?;
            *block = after;
            length = length.checked_add(usize::from(*more))?;
            if *more != 255 {
                break;
            }
        }
    }
    Some(length)
}

/// Copies from `offset` bytes back; the copy may run into what it writes itself.
fn copy_match(offset: usize, size: usize, output: &mut Vec<u8>) -> Option<()> {
    let start = output.len().checked_sub(offset)?;
    if offset == 0 {
        return None;
    }
    let mut left = size;
    while left > 0 {
        let run = left.min(output.len() - start);
        output.extend_from_within(start..start + run);
        left -= run;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(blocks: &[&[u8]]) -> Vec<u8> {
        let mut frame = MAGIC.to_vec();
        for block in blocks {
            frame.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
            frame.extend_from_slice(block);
        }
        frame
    }

    #[test]
    fn literals_and_overlapping_copies_are_read() {
        // "abc", then 4 + 5 bytes from 3 back, then "d".
        let block = [0x35, b'a', b'b', b'c', 3, 0, 0x10, b'd'];
        let twice = frame(&[&block, &[0x20, b'x', b'y']]);
        assert_eq!(decompress(&twice).unwrap(), b"abcabcabcabcdxy");
        let long = [&[0xf0, 0x01][..], &[b'z'; 16]].concat();
        assert_eq!(decompress(&frame(&[&long])).unwrap(), [b'z'; 16]);
    }

    #[test]
    fn damage_is_noticed() {
        let rows: [&[u8]; 6] = [
            b"",
            &[0x30, b'a'],
            &[0x15, b'a', 2, 0, 0x10, b'b'],
            &[0x15, b'a', 0, 0, 0x10, b'b'],
            &[0xf0, 0xff],
            &[0x15, b'a', 1],
        ];
        for block in rows {
            assert!(decompress(&frame(&[block])).is_none(), "{block:?}");
        }
        assert!(decompress(b"not lz4").is_none());
        assert!(decompress(&[&MAGIC[..], &[9, 0, 0, 0, 1]].concat()).is_none());
    }
}
