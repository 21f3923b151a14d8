//! What a guest boots from: a boot image directory, or a kernel and an initramfs.

use std::path::{Path, PathBuf};

use super::run::RunError;

/// Where kernel and initramfs come from.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum BootSource {
    /// `--image`: a directory made by `thinroot image`.
    Image(PathBuf),
    /// `--kernel` and `--initramfs`.
    Files {
        /// A bzImage, or an ELF `vmlinux` with a PVH entry.
        kernel: PathBuf,
        /// A cpio with guest-init.
        initramfs: PathBuf,
    },
    /// The first of the default places that holds an image.
    #[default]
    Default,
}

/// The files a guest boots from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BootFiles {
    /// The kernel a VMM is given.
    pub kernel: PathBuf,
    /// The kernel is an ELF file with a PVH entry, which qboot starts.
    pub is_pvh: bool,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// Trees with the kernel's modules, to be laid over the base.
    pub modules: Vec<PathBuf>,
    /// The kernel's release, where the image says it.
    pub release: Option<String>,
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
                Ok(BootFiles { kernel, is_pvh, initramfs, modules: Vec::new(), release: None })
            }
            Self::Image(directory) => open_image(directory),
            Self::Default => {
                let places = default_places();
                match places.iter().find(|place| is_image(place)) {
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

/// Whether `directory` looks like a boot image.
pub fn is_image(directory: &Path) -> bool {
    directory.join("initramfs").is_file() && directory.join("vmlinuz").is_file()
}

fn no_image(places: &[PathBuf]) -> RunError {
    let places: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
    RunError::Refused(format!(
        "no boot image in {}; make one with `thinroot image`, or name one with --image, or --kernel and --initramfs",
        places.join(", ")
    ))
}

fn open_image(directory: &Path) -> Result<BootFiles, RunError> {
    let initramfs = readable("--image", &directory.join("initramfs"))?;
    let pvh = directory.join("vmlinux");
    let is_pvh = pvh.is_file();
    let kernel = if is_pvh { pvh } else { readable("--image", &directory.join("vmlinuz"))? };
    let release = std::fs::read_to_string(directory.join("release")).ok();
    let modules = directory.join("modules");
    Ok(BootFiles {
        kernel,
        is_pvh,
        initramfs,
        modules: if modules.is_dir() { vec![modules] } else { Vec::new() },
        release: release.map(|text| text.trim().to_owned()),
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
    use std::fs::{create_dir, write};

    #[test]
    fn image_prefers_its_pvh_kernel() {
        let image = tempfile::tempdir().unwrap();
        let at = |name: &str| image.path().join(name);
        write(at("initramfs"), "i").unwrap();
        write(at("vmlinuz"), "k").unwrap();
        let files = BootSource::Image(image.path().into()).open().unwrap();
        assert_eq!((files.kernel, files.is_pvh, files.modules), (at("vmlinuz"), false, vec![]));
        write(at("vmlinux"), "\x7fELF").unwrap();
        write(at("release"), "6.1.0\n").unwrap();
        create_dir(at("modules")).unwrap();
        let files = BootSource::Image(image.path().into()).open().unwrap();
        assert_eq!((files.kernel, files.is_pvh), (at("vmlinux"), true));
        assert_eq!(files.release.as_deref(), Some("6.1.0"));
        assert_eq!(files.modules, vec![at("modules")]);
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
