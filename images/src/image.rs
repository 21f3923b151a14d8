//! A boot image: the directory from which guests start.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{At, ImageError};
use crate::kernel::{Kernel, KernelSource};
use crate::{initramfs, tool, vmlinux};

/// What to build an image from, and where.
#[derive(Clone, Debug)]
pub struct BuildImage {
    /// The kernel.
    pub kernel: KernelSource,
    /// The static guest-init.
    pub guest_init: PathBuf,
    /// The directory to make. An image that is there is replaced, anything else refused.
    pub directory: PathBuf,
}

/// A boot image on disk: `vmlinuz`, `vmlinux` where the kernel has a PVH entry, `initramfs.cpio`,
/// the kernel's modules as layers, and `image.txt`, which says what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    directory: PathBuf,
    version: String,
}

/// The modules' two layers below `modules`: where `/lib` is a link to `usr/lib`, and where not.
const MERGED: &str = "modules/merged";
const PLAIN: &str = "modules/plain";
const DESCRIPTION: &str = "image.txt";
/// The first line of `image.txt`.
const HEADER: &str = "thinroot boot image 1";

/// Builds an image. The same kernel and guest-init give the same `initramfs.cpio`, bit for bit.
///
/// The image appears at once and whole, or not at all.
pub fn build(image: &BuildImage) -> Result<Image, ImageError> {
    let directory = &image.directory;
    if directory.exists() && Image::open(directory).is_err() {
        return Err(ImageError::Exists { path: directory.clone() });
    }
    let staging = Staging::beside(directory)?;
    let unpacked = staging.0.join("unpacked");
    fs::create_dir(&unpacked).at("make", &unpacked)?;
    let found = image.kernel.locate(&unpacked)?;
    let kernel = copy_kernel(&found, &staging.0)?;
    fs::remove_dir_all(&unpacked).at("remove", &unpacked)?;

    let initramfs = initramfs::build(&image.guest_init, &kernel)?;
    write(&staging.0.join("initramfs.cpio"), &initramfs.bytes)?;
    let boot_file = fs::read(&kernel.boot_file).at("read", &kernel.boot_file)?;
    if let Some(vmlinux) = vmlinux::extract(&found.boot_file, &boot_file)? {
        write(&staging.0.join("vmlinux"), &vmlinux)?;
    }
    let modules = initramfs.modules.join(" ");
    let text = format!("{HEADER}\nkernel {}\nmodules {modules}\n", kernel.version);
    write(&staging.0.join(DESCRIPTION), text.as_bytes())?;
    staging.publish(directory)?;
    Image::open(directory)
}

/// Copies the boot file and the modules; these get their dependency list if nobody made it yet.
fn copy_kernel(found: &Kernel, staging: &Path) -> Result<Kernel, ImageError> {
    let version = found.version.clone();
    let boot_file = staging.join("vmlinuz");
    fs::copy(&found.boot_file, &boot_file).at("copy", &found.boot_file)?;
    let usr = staging.join(MERGED).join("usr");
    let modules = usr.join("lib/modules").join(&version);
    fs::create_dir_all(&modules).at("make", &modules)?;
    let mut copy = Command::new("cp");
    copy.args(["--archive", "--reflink=auto", "--"]).arg(found.modules.join(".")).arg(&modules);
    tool::run(&mut copy, "coreutils")?;
    for link in ["build", "source"] {
        // They point to headers that are not there.
        remove_link(&modules.join(link))?;
    }
    if !modules.join("modules.dep").exists() {
        tool::run(Command::new("depmod").arg("--basedir").arg(&usr).arg(&version), "kmod")?;
    }
    let plain = staging.join(PLAIN);
    fs::create_dir_all(&plain).at("make", &plain)?;
    let mut link = Command::new("cp");
    link.args(["--archive", "--link", "--"]).arg(usr.join("lib")).arg(&plain);
    tool::run(&mut link, "coreutils")?;
    Ok(Kernel { version, boot_file, modules })
}

fn remove_link(path: &Path) -> Result<(), ImageError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() => fs::remove_file(path).at("remove", path),
        _ => Ok(()),
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    fs::write(path, bytes).at("write", path)
}

impl Image {
    /// Opens an image that was built before.
    pub fn open(directory: &Path) -> Result<Image, ImageError> {
        let refuse = |problem: String| ImageError::NoImage { path: directory.to_owned(), problem };
        let text = fs::read_to_string(directory.join(DESCRIPTION))
            .map_err(|error| refuse(format!("{DESCRIPTION}: {error}")))?;
        let mut lines = text.lines();
        if lines.next() != Some(HEADER) {
            return Err(refuse(format!("{DESCRIPTION} does not begin with '{HEADER}'")));
        }
        let version = lines
            .find_map(|line| line.strip_prefix("kernel "))
            .ok_or_else(|| refuse(format!("{DESCRIPTION} has no line 'kernel VERSION'")))?;
        let image = Image { directory: directory.to_owned(), version: version.to_owned() };
        for path in [image.kernel(), image.initramfs()] {
            if !path.is_file() {
                return Err(refuse(format!("{} is missing", path.display())));
            }
        }
        Ok(image)
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The kernel's version, as `uname -r` says it in the guest.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The kernel as any VMM starts it.
    pub fn kernel(&self) -> PathBuf {
        self.directory.join("vmlinuz")
    }

    /// The kernel unpacked, for a VMM that starts it by its PVH entry.
    pub fn vmlinux(&self) -> Option<PathBuf> {
        let path = self.directory.join("vmlinux");
        path.is_file().then_some(path)
    }

    /// The initramfs, not compressed.
    pub fn initramfs(&self) -> PathBuf {
        self.directory.join("initramfs.cpio")
    }

    /// An initramfs for this kernel with another init than ours: these programs by their paths,
    /// and in `modules` the modules that they want, in the order of `modules/order`.
    ///
    /// Errors: the kernel has no such module.
    pub fn other_initramfs(
        &self,
        wanted: &[&str],
        programs: Vec<(&str, Vec<u8>)>,
    ) -> Result<Vec<u8>, ImageError> {
        let modules = self.directory.join(MERGED).join("usr/lib/modules").join(&self.version);
        let kernel = Kernel { version: self.version.clone(), boot_file: self.kernel(), modules };
        Ok(initramfs::pack(&kernel, wanted, programs)?.bytes)
    }

    /// The kernel's modules as a lower for `base`: below all other lowers, so that it adds
    /// modules and changes nothing else.
    ///
    /// They are where the base's own `/lib/modules` is: a layer with a directory `/lib` over a
    /// base whose `/lib` is a link to `usr/lib` would hide the base's libraries.
    /// Errors: the base's `/lib` is a link to somewhere else.
    pub fn modules_layer(&self, base: &Path) -> Result<PathBuf, ImageError> {
        let library = base.join("lib");
        match fs::read_link(&library) {
            Ok(target) if is_usr_lib(&target) => Ok(self.directory.join(MERGED)),
            Ok(target) => Err(ImageError::Kernel {
                path: library,
                problem: format!("links to {}; usr/lib was expected", target.display()),
            }),
            // EINVAL: it is a directory.
            Err(error)
                if [io::ErrorKind::InvalidInput, io::ErrorKind::NotFound]
                    .contains(&error.kind()) =>
            {
                Ok(self.directory.join(PLAIN))
            }
            Err(source) => Err(ImageError::Io { action: "read", path: library, source }),
        }
    }
}

fn is_usr_lib(target: &Path) -> bool {
    target.strip_prefix("/").unwrap_or(target) == Path::new("usr/lib")
}

/// A directory under construction, gone again unless it is published.
struct Staging(PathBuf);

impl Staging {
    fn beside(directory: &Path) -> Result<Staging, ImageError> {
        let mut name = OsString::from(".");
        name.push(directory.file_name().unwrap_or_default());
        name.push(format!(".new-{}", std::process::id()));
        let path = directory.with_file_name(name);
        fs::create_dir_all(&path).at("make", &path)?;
        Ok(Staging(path))
    }

    fn publish(self, directory: &Path) -> Result<(), ImageError> {
        let old = self.0.join("old");
        match fs::rename(directory, &old) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            moved => moved.at("replace", directory)?,
        }
        fs::rename(&self.0, directory).at("make", directory)?;
        let old = directory.join("old");
        if old.exists() {
            fs::remove_dir_all(&old).at("remove", &old)?;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!("{} was left behind: {error}", self.0.display());
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A machine with a kernel whose drivers are modules; the boot file is the least that is one.
    fn machine() -> tempfile::TempDir {
        let machine = tempfile::tempdir().unwrap();
        let modules = machine.path().join("lib/modules/6.1-test");
        fs::create_dir_all(modules.join("kernel")).unwrap();
        fs::create_dir(machine.path().join("boot")).unwrap();
        let mut boot_file = vec![0_u8; 1024];
        boot_file[0x1f1] = 1;
        boot_file[0x202..0x206].copy_from_slice(b"HdrS");
        boot_file[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        boot_file[0x24c] = 8;
        boot_file.extend_from_slice(b"not-ELF-");
        let dep = "kernel/virtio_pci.ko: kernel/virtio.ko\nkernel/virtio.ko:\n\
                   kernel/virtiofs.ko: kernel/fuse.ko kernel/virtio.ko\nkernel/fuse.ko:\n";
        for (name, content) in [("modules.dep", dep), ("modules.builtin", "")] {
            fs::write(modules.join(name), content).unwrap();
        }
        for name in ["virtio", "virtio_pci", "fuse", "virtiofs"] {
            fs::write(modules.join(format!("kernel/{name}.ko")), name).unwrap();
        }
        symlink("/usr/src/headers", modules.join("build")).unwrap();
        fs::write(machine.path().join("boot/vmlinuz-6.1-test"), boot_file).unwrap();
        let init = b"\x7fELF\x02\x01".iter().copied().chain([0; 64]).collect::<Vec<u8>>();
        fs::write(machine.path().join("guest-init"), init).unwrap();
        machine
    }

    fn order(machine: &Path, name: &str) -> BuildImage {
        BuildImage {
            kernel: KernelSource::Tree { root: machine.to_owned(), version: None },
            guest_init: machine.join("guest-init"),
            directory: machine.join(name),
        }
    }

    #[test]
    fn image_is_the_same_bit_for_bit_when_built_again() {
        let machine = machine();
        let one = build(&order(machine.path(), "one")).unwrap();
        let two = build(&order(machine.path(), "two")).unwrap();
        for file in ["initramfs.cpio", "vmlinuz", "image.txt"] {
            let read = |image: &Image| fs::read(image.directory().join(file)).unwrap();
            assert!(read(&one) == read(&two), "{file}");
        }
        let text = fs::read_to_string(one.directory().join("image.txt")).unwrap();
        assert!(text.ends_with("modules virtio virtio_pci fuse virtiofs\n"), "{text}");
        // Replacing an image works; what is none stays.
        build(&order(machine.path(), "one")).unwrap();
        let error = build(&order(machine.path(), "boot")).unwrap_err().to_string();
        assert!(error.contains("exists already"), "{error}");
        let left: Vec<_> = fs::read_dir(machine.path()).unwrap().flatten().collect();
        assert!(left.iter().all(|entry| !entry.file_name().as_encoded_bytes().starts_with(b".")));
    }

    #[test]
    fn modules_layer_follows_the_shape_of_the_base() {
        let machine = machine();
        let image = build(&order(machine.path(), "image")).unwrap();
        let base = tempfile::tempdir().unwrap();
        let layer = |base: &Path| image.modules_layer(base);
        let plain = layer(base.path()).unwrap();
        assert!(plain.join("lib/modules/6.1-test/modules.dep").is_file());
        assert!(fs::symlink_metadata(plain.join("lib/modules/6.1-test/build")).is_err());
        fs::create_dir(base.path().join("lib")).unwrap();
        assert_eq!(layer(base.path()).unwrap(), plain);
        for (target, is_known) in [("usr/lib", true), ("/usr/lib", true), ("elsewhere", false)] {
            let base = tempfile::tempdir().unwrap();
            symlink(target, base.path().join("lib")).unwrap();
            match layer(base.path()) {
                Ok(layer) => {
                    assert!(is_known, "{target}");
                    assert!(layer.join("usr/lib/modules/6.1-test/modules.dep").is_file());
                    assert!(!layer.join("lib").exists());
                }
                Err(error) => assert!(!is_known && error.to_string().contains(target)),
            }
        }
    }

    #[test]
    fn failed_build_leaves_nothing_and_keeps_the_old_image() {
        let machine = machine();
        let old = build(&order(machine.path(), "image")).unwrap();
        fs::remove_file(machine.path().join("lib/modules/6.1-test/kernel/fuse.ko")).unwrap();
        let error = build(&order(machine.path(), "image")).unwrap_err().to_string();
        assert!(error.contains("fuse.ko"), "{error}");
        assert_eq!(Image::open(old.directory()).unwrap(), old);
        let names = fs::read_dir(machine.path()).unwrap().flatten().map(|entry| entry.file_name());
        assert!(names.into_iter().all(|name| !name.as_encoded_bytes().starts_with(b".")));
    }
}
