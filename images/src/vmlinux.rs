//! Takes the kernel proper out of an x86 boot file, for machines that start it directly (PVH):
//! under emulation the guest unpacking itself takes longer than the rest of its boot.

use std::path::Path;

use crate::decompress::decompress;
use crate::elf::{self, number};
use crate::error::ImageError;

/// Offsets in the boot file. Source: Documentation/arch/x86/boot.rst.
const SETUP_SECTORS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// The protocol that has the payload's place.
const VERSION_MIN: u16 = 0x208;
const SECTOR_BYTES: usize = 512;

/// The ELF file inside the boot file `vmlinuz`, or `None` if it cannot be started by PVH.
///
/// Errors: it is no x86 boot file, or its payload cannot be unpacked.
pub fn extract(path: &Path, vmlinuz: &[u8]) -> Result<Option<Vec<u8>>, ImageError> {
    let payload = payload(vmlinuz).ok_or_else(|| ImageError::Kernel {
        path: path.to_owned(),
        problem: "is no x86 kernel boot file (bzImage, boot protocol 2.08 or later)".to_owned(),
    })?;
    let kernel = decompress(&path.display().to_string(), payload.to_vec())?;
    Ok((kernel.starts_with(b"\x7fELF") && has_pvh_entry(&kernel)).then_some(kernel))
}

fn payload(vmlinuz: &[u8]) -> Option<&[u8]> {
    if number::<4>(vmlinuz, HEADER_MAGIC)?.to_le_bytes()[..4] != *b"HdrS" {
        return None;
    }
    if number::<2>(vmlinuz, VERSION)? < usize::from(VERSION_MIN) {
        return None;
    }
    // boot.rst: 0 means 4.
    let sectors = match vmlinuz.get(SETUP_SECTORS)? {
        0 => 4,
        sectors => usize::from(*sectors),
    };
    let kernel_start = (sectors + 1) * SECTOR_BYTES;
    let start = kernel_start.checked_add(number::<4>(vmlinuz, PAYLOAD_OFFSET)?)?;
    let payload = vmlinuz.get(start..start.checked_add(number::<4>(vmlinuz, PAYLOAD_LENGTH)?)?)?;
    // Its length is put behind all packings but gzip, which ends with its own.
    let has_length = !payload.starts_with(&[0x1f, 0x8b]);
    payload.get(..payload.len().checked_sub(if has_length { 4 } else { 0 })?)
}

/// Whether an ELF note names the entry that QEMU and cloud-hypervisor look for
/// (xen/interface/elfnote.h: `XEN_ELFNOTE_PHYS32_ENTRY`, 18, of the owner "Xen").
fn has_pvh_entry(elf: &[u8]) -> bool {
    const NOTE: [u8; 16] = *b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0";
    elf::segments(elf, elf::PT_NOTE).is_some_and(|segments| {
        segments.iter().any(|segment| {
            segment.windows(NOTE.len()).step_by(4).any(|window| is_note(window, &NOTE))
        })
    })
}

/// The value's size is 4 or 8 bytes.
fn is_note(window: &[u8], note: &[u8; 16]) -> bool {
    window[..4] == note[..4] && matches!(window[4], 4 | 8) && window[5..] == note[5..]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A 64-bit ELF header with one note segment.
    fn elf(note: &[u8]) -> Vec<u8> {
        let mut elf = vec![0; 0x40 + 0x38];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[0x20] = 0x40;
        elf[0x36] = 0x38;
        elf[0x38] = 1;
        elf[0x40] = 4;
        elf[0x48] = 0x78;
        elf[0x60] = u8::try_from(note.len()).unwrap();
        elf.extend_from_slice(note);
        elf
    }

    fn boot_file(payload: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 2 * SECTOR_BYTES + 16];
        file[SETUP_SECTORS] = 1;
        file[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        file[VERSION..VERSION + 2].copy_from_slice(&0x20f_u16.to_le_bytes());
        file[PAYLOAD_OFFSET] = 16;
        let length = u32::try_from(payload.len() + 4).unwrap();
        file[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        file.extend_from_slice(payload);
        file.extend_from_slice(&[0; 4]);
        file
    }

    const PVH: &[u8] = b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0\0\0\0\x01";
    const OTHER: &[u8] = b"\x04\0\0\0\x04\0\0\0\x05\0\0\0Xen\0\0\0\0\x01";

    #[test]
    fn kernel_with_the_pvh_entry_is_taken_out() {
        let (path, kernel) = (Path::new("k"), elf(&[OTHER, PVH].concat()));
        assert_eq!(extract(path, &boot_file(&kernel)).unwrap(), Some(kernel));
        assert_eq!(extract(path, &boot_file(&elf(OTHER))).unwrap(), None);
        assert_eq!(extract(path, &boot_file(b"no elf")).unwrap(), None);
    }

    #[test]
    fn file_that_is_no_kernel_is_refused_whatever_its_length() {
        let whole = boot_file(&elf(PVH));
        for length in [0, 1, 0x202, 0x248, 0x250, whole.len() - 1] {
            let error = extract(Path::new("k"), &whole[..length]).unwrap_err().to_string();
            assert!(error.contains("no x86 kernel"), "{length}: {error}");
        }
    }
}
