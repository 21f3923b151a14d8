//! Which of a kernel's modules a guest needs before it sees its root, and in which order.

/// The drivers between the machine's bus and the union; what they need follows.
pub const WANTED: [&str; 2] = ["virtio_pci", "virtiofs"];

/// The modules to load, as paths in `modules.dep`, dependencies first.
///
/// `dep` and `builtin` are the texts of the kernel's `modules.dep` and `modules.builtin`.
/// Errors: the name of a module that is in neither.
pub fn needed(dep: &str, builtin: &str, wanted: &[&str]) -> Result<Vec<String>, String> {
    let mut order: Vec<String> = Vec::new();
    for name in wanted {
        if builtin.lines().any(|path| module_name(path) == *name) {
            continue;
        }
        let (path, dependencies) = dep
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(path, _)| module_name(path) == *name)
            .ok_or_else(|| (*name).to_owned())?;
        // modules.dep(5) as modprobe reads it: the last listed has no need of the others.
        for path in dependencies.split_whitespace().rev().chain([path]) {
            if !order.iter().any(|known| known == path) {
                order.push(path.to_owned());
            }
        }
    }
    Ok(order)
}

/// `kernel/fs/fuse/virtio-fs.ko.xz` is the module `virtio_fs`.
pub fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/drivers/virtio/virtio.ko.xz:
kernel/drivers/virtio/virtio_ring.ko.xz: kernel/drivers/virtio/virtio.ko.xz
kernel/drivers/virtio/virtio-pci.ko.xz: kernel/drivers/virtio/virtio_ring.ko.xz kernel/drivers/virtio/virtio.ko.xz
kernel/fs/fuse/fuse.ko.xz:
kernel/fs/fuse/virtiofs.ko.xz: kernel/fs/fuse/fuse.ko.xz kernel/drivers/virtio/virtio_ring.ko.xz kernel/drivers/virtio/virtio.ko.xz
";

    #[test]
    fn modules_come_after_what_they_need_and_once() {
        let order = needed(DEP, "kernel/lib/crc.ko\n", &WANTED).unwrap();
        let names: Vec<_> = order.iter().map(|path| module_name(path)).collect();
        assert_eq!(names, ["virtio", "virtio_ring", "virtio_pci", "fuse", "virtiofs"]);
    }

    #[test]
    fn built_in_modules_are_not_loaded() {
        let builtin = "kernel/drivers/virtio/virtio_pci.ko\nkernel/fs/fuse/virtiofs.ko\n";
        assert!(needed("", builtin, &WANTED).unwrap().is_empty());
        assert_eq!(needed("", "", &WANTED).unwrap_err(), "virtio_pci");
    }
}
