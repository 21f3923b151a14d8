//! Opens what kernels and modules are packed in, with the tools Debian itself packs them with.

use std::process::Command;

use crate::error::ImageError;
use crate::{lz4, tool};

/// The packings by their first bytes, each with the tool that opens it and its package.
/// LZ4's legacy frame is read here: Debian 12's own kernel is packed so, and its tool is not
/// on a usual machine.
const PACKINGS: [(&[u8], &str, &str); 3] = [
    (&[0x1f, 0x8b], "gzip", "gzip"),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], "xz", "xz-utils"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstd", "zstd"),
];

/// The content of `bytes`, packed by gzip, xz, zstd or LZ4's legacy frame; anything else as it
/// is. `what` names it in errors.
pub fn decompress(what: &str, bytes: Vec<u8>) -> Result<Vec<u8>, ImageError> {
    if bytes.starts_with(&lz4::MAGIC) {
        return lz4::decompress(&bytes).ok_or_else(|| ImageError::Compressed {
            what: what.to_owned(),
            problem: "the LZ4 frame is damaged".to_owned(),
        });
    }
    match PACKINGS.iter().find(|(magic, _, _)| bytes.starts_with(magic)) {
        None => Ok(bytes),
        Some((_, program, package)) => {
            let mut command = Command::new(program);
            tool::run_with_input(command.args(["-d", "-c"]), package, &bytes)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_packing_is_opened_and_plain_bytes_stay() {
        let content = b"some module".repeat(1000);
        for (_, program, package) in PACKINGS {
            let mut pack = Command::new(program);
            let packed = tool::run_with_input(pack.arg("-c"), package, &content).unwrap();
            assert!(packed.len() < content.len(), "{program}");
            assert_eq!(decompress("x", packed).unwrap(), content, "{program}");
        }
        assert_eq!(decompress("x", content.clone()).unwrap(), content);
        assert!(decompress("x", lz4::MAGIC.repeat(2)).is_err());
    }
}
