//! What the kernel unpacks before it starts guest-init.

use std::fs;
use std::path::Path;

use crate::cpio::Archive;
use crate::decompress::decompress;
use crate::elf;
use crate::error::{At, ImageError};
use crate::kernel::Kernel;
use crate::modules;

/// An initramfs and what it loads.
#[derive(Debug)]
pub struct Initramfs {
    /// The archive, not compressed: unpacking costs an emulated guest more than reading.
    pub bytes: Vec<u8>,
    /// The names of the modules in it, in load order.
    pub modules: Vec<String>,
}

/// Puts guest-init and the modules of `kernel` it needs into an archive.
pub fn build(guest_init: &Path, kernel: &Kernel) -> Result<Initramfs, ImageError> {
    pack(kernel, &modules::WANTED, vec![("init", read_guest_init(guest_init)?)])
}

/// Puts some programs and the modules of `kernel` that they want into an archive.
pub fn pack(
    kernel: &Kernel,
    wanted: &[&str],
    programs: Vec<(&str, Vec<u8>)>,
) -> Result<Initramfs, ImageError> {
    let mut archive = Archive::default();
    for directory in ["dev", "modules", "proc", "sys"] {
        archive.directory(directory);
    }
    // Before devtmpfs is mounted, the kernel wants a console for PID 1, and Rust's std something
    // to put in its place.
    archive.device("dev/console", 5, 1);
    archive.device("dev/null", 1, 3);
    for (path, content) in programs {
        if let Some((parent, _)) = path.rsplit_once('/') {
            archive.directory(parent);
        }
        archive.file(path, 0o755, content);
    }
    let mut order = String::new();
    let mut names = Vec::new();
    for path in needed(kernel, wanted)? {
        let file = kernel.modules.join(&path);
        // Kernels before 6.4 or so cannot unpack modules, and no kernel has to.
        let content = decompress(&path, fs::read(&file).at("read", &file)?)?;
        let name = modules::module_name(&path);
        order.push_str(&format!("{name}.ko\n"));
        archive.file(&format!("modules/{name}.ko"), 0o644, content);
        names.push(name);
    }
    archive.file("modules/order", 0o644, order.into_bytes());
    Ok(Initramfs { bytes: archive.bytes(), modules: names })
}

fn needed(kernel: &Kernel, wanted: &[&str]) -> Result<Vec<String>, ImageError> {
    let read = |name: &str| {
        let path = kernel.modules.join(name);
        fs::read_to_string(&path).at("read", path)
    };
    modules::needed(&read("modules.dep")?, &read("modules.builtin")?, wanted).map_err(|module| {
        ImageError::NoModule {
            version: kernel.version.clone(),
            module,
            path: kernel.modules.clone(),
        }
    })
}

/// An initramfs has no loader and no libraries, so guest-init must bring all it needs.
fn read_guest_init(path: &Path) -> Result<Vec<u8>, ImageError> {
    let bytes = fs::read(path).at("read", path)?;
    let problem = match elf::segments(&bytes, elf::PT_INTERP) {
        None => "is no 64-bit program",
        Some(loaders) if !loaders.is_empty() => "is linked dynamically",
        Some(_) => return Ok(bytes),
    };
    Err(ImageError::GuestInit { path: path.to_owned(), problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_init_that_could_not_start_is_refused() {
        let sh = read_guest_init(Path::new("/bin/sh")).unwrap_err().to_string();
        assert!(sh.contains("is linked dynamically") && sh.contains("crt-static"), "{sh}");
        let text = read_guest_init(Path::new("/etc/passwd")).unwrap_err().to_string();
        assert!(text.contains("is no 64-bit program"), "{text}");
    }
}
