//! What a guest boots from: a boot image directory, or a kernel and an initramfs.

use std::path::{Path, PathBuf};

use images::Image;

use super::config::{BootSource, LowerArgument};
use super::error::RunError;

/// The files a guest boots from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BootFiles {
    /// The kernel a VMM is given.
    pub kernel: PathBuf,
    /// The kernel is an ELF file with a PVH entry, which qboot starts.
    pub is_pvh: bool,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// The image all this comes from: it has the kernel's modules.
    pub image: Option<Image>,
}

impl BootFiles {
    /// What to call the kernel.
    pub fn kernel_name(&self) -> String {
        match &self.image {
            Some(image) => image.version().to_owned(),
            None => self.kernel.display().to_string(),
        }
    }

    /// The tree with the kernel's modules, to be laid below these lowers (the topmost first), if
    /// the kernel came with one.
    ///
    /// Errors: [`RunError::Refused`] where the base keeps modules in no known place.
    pub fn modules_below(&self, lowers: &[LowerArgument]) -> Result<Option<PathBuf>, RunError> {
        let Some(image) = &self.image else { return Ok(None) };
        // The topmost lower that has a /lib decides where /lib/modules is.
        let has_library =
            |lower: &&LowerArgument| lower.path().join("lib").symlink_metadata().is_ok();
        let Some(base) = lowers.iter().find(has_library).or(lowers.first()) else {
            return Ok(None);
        };
        image
            .modules_layer(base.path())
            .map(Some)
            .map_err(|cause| RunError::Refused(cause.to_string()))
    }
}

impl BootSource {
    /// Finds the files.
    ///
    /// Errors: [`RunError::Refused`] with the option, the path and the next step.
    pub fn open(&self) -> Result<BootFiles, RunError> {
        match self {
            Self::Files { kernel, initramfs } => {
                let kernel = readable("--kernel", kernel)?;
                let initramfs = readable("--initramfs", initramfs)?;
                let is_pvh = is_elf(&kernel);
                Ok(BootFiles { kernel, is_pvh, initramfs, image: None })
            }
            Self::Image(directory) => open_image(directory),
            Self::Default => {
                let places = default_places();
                match places.iter().find(|place| place.is_dir()) {
                    Some(directory) => open_image(directory),
                    None => Err(no_image(&places)),
                }
            }
        }
    }
}

/// Where an image is looked for when none is named.
pub fn default_places() -> Vec<PathBuf> {
    let mut places = vec![PathBuf::from(".thinroot/image")];
    let home = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/share")));
    places.extend(home.map(|home| home.join("thinroot/image")));
    places.push(PathBuf::from("/usr/share/thinroot/image"));
    places
}

fn no_image(places: &[PathBuf]) -> RunError {
    let places: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
    RunError::Refused(format!(
        "no boot image in {}; make one with `thinroot image`, or name one with --image, or --kernel and --initramfs",
        places.join(", ")
    ))
}

fn open_image(directory: &Path) -> Result<BootFiles, RunError> {
    let image = Image::open(directory)
        .map_err(|cause| RunError::Refused(format!("--image {}: {cause}", directory.display())))?;
    let vmlinux = image.vmlinux();
    Ok(BootFiles {
        is_pvh: vmlinux.is_some(),
        kernel: vmlinux.unwrap_or_else(|| image.kernel()),
        initramfs: image.initramfs(),
        image: Some(image),
    })
}

fn readable(option: &str, path: &Path) -> Result<PathBuf, RunError> {
    match std::fs::File::open(path) {
        Ok(_) => Ok(path.to_owned()),
        Err(cause) => Err(RunError::Refused(format!("{option} {}: {cause}", path.display()))),
    }
}

fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    std::fs::File::open(path)
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut magic))
        .is_ok_and(|()| magic == *b"\x7fELF")
}

/// The first of `names` that is an executable in `$PATH` (or at its absolute path).
pub fn find_program(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    names
        .iter()
        .flat_map(|name| std::env::split_paths(&path).map(move |directory| directory.join(name)))
        .find(|program| is_executable(program))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir_all, write};
    use std::os::unix::fs::symlink;

    fn image(directory: &Path) -> BootFiles {
        write(directory.join("image.txt"), "thinroot boot image 1\nkernel 6.1.0\n").unwrap();
        for name in ["initramfs.cpio", "vmlinuz"] {
            write(directory.join(name), name).unwrap();
        }
        BootSource::Image(directory.to_owned()).open().unwrap()
    }

    #[test]
    fn image_prefers_its_pvh_kernel() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let files = image(directory.path());
        assert_eq!((files.kernel.clone(), files.is_pvh), (at("vmlinuz"), false));
        assert_eq!(files.kernel_name(), "6.1.0");
        write(at("vmlinux"), "\x7fELF").unwrap();
        let files = image(directory.path());
        assert_eq!((files.kernel, files.is_pvh), (at("vmlinux"), true));
    }

    #[test]
    fn modules_go_where_the_base_has_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let files = image(directory.path());
        let (merged, plain) = (directory.path().join("m"), directory.path().join("p"));
        for (base, library) in [(&merged, "usr/lib"), (&plain, "lib")] {
            create_dir_all(base.join(library)).unwrap();
        }
        symlink("usr/lib", merged.join("lib")).unwrap();
        let empty = LowerArgument::Tree("/no/such".into());
        let below = |base: &Path| {
            let lowers = [empty.clone(), LowerArgument::Layer(base.to_owned())];
            files.modules_below(&lowers).unwrap().unwrap()
        };
        assert!(below(&merged).ends_with("modules/merged"));
        assert!(below(&plain).ends_with("modules/plain"));
    }

    #[test]
    fn missing_file_is_named_with_its_option() {
        let missing = BootSource::Files { kernel: "/no/k".into(), initramfs: "/no/i".into() };
        let refused = missing.open().unwrap_err().to_string();
        assert!(refused.starts_with("--kernel /no/k: "), "{refused}");
        assert!(no_image(&default_places()).to_string().contains("--image"));
    }

    #[test]
    fn programs_are_found_in_path() {
        assert!(find_program(&["no-such-program", "sh"]).unwrap().ends_with("sh"));
        assert_eq!(find_program(&["no-such-program"]), None);
    }
}
