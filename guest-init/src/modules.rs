//! The kernel modules the initramfs brings.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::io::Errno;

use crate::failure::{Failure, OrFail};

/// Where the image builder puts the modules; `order` lists them, dependencies first.
const DIRECTORY: &str = "/modules";

// module.h: MODULE_INIT_COMPRESSED_FILE, known since Linux 5.17.
const COMPRESSED_FILE: i32 = 4;

/// Loads the modules of `/modules/order` in that order. No list means none are needed.
pub fn load() -> Result<(), Failure> {
    let list = match fs::read_to_string(Path::new(DIRECTORY).join("order")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read.or_fail(|| format!("read {DIRECTORY}/order"))?,
    };
    order(&list).try_for_each(load_one)
}

fn load_one(name: &str) -> Result<(), Failure> {
    let path = Path::new(DIRECTORY).join(name);
    let file = File::open(&path).or_fail(|| format!("open module {}", path.display()))?;
    let flags = if is_compressed(name) { COMPRESSED_FILE } else { 0 };
    match rustix::system::finit_module(&file, c"", flags) {
        // It is there already, loaded or built in.
        Err(Errno::EXIST) => Ok(()),
        loaded => loaded.or_fail(|| format!("load module {}", path.display())),
    }
}

/// The file names of a list: one a line, `#` starts a comment.
fn order(list: &str) -> impl Iterator<Item = &str> {
    list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn is_compressed(name: &str) -> bool {
    Path::new(name).extension().is_none_or(|extension| extension != "ko")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_gives_files_in_its_order() {
        let list = "# made by thinroot\nvirtio.ko\n\n  virtio_ring.ko.xz \n";
        assert_eq!(order(list).collect::<Vec<_>>(), ["virtio.ko", "virtio_ring.ko.xz"]);
        assert_eq!(order("").count(), 0);
    }

    #[test]
    fn only_plain_modules_are_not_decompressed() {
        for (name, compressed) in [("a.ko", false), ("a.ko.xz", true), ("a.ko.zst", true)] {
            assert_eq!(is_compressed(name), compressed, "{name}");
        }
    }
}
