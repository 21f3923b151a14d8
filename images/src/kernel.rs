//! Finds a kernel's boot file and modules, wherever they come from.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{At, ImageError};
use crate::tool;

/// Where a kernel comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelSource {
    /// A boot file and the directory of its modules.
    Files {
        /// `vmlinuz`.
        kernel: PathBuf,
        /// `/lib/modules/VERSION`.
        modules: PathBuf,
    },
    /// Debian packages that hold one kernel together.
    Packages(Vec<PathBuf>),
    /// A tree with `boot` and `lib/modules`: `/` is this machine.
    Tree {
        /// The tree.
        root: PathBuf,
        /// Which of its kernels; needed only if there are several.
        version: Option<String>,
    },
}

/// A kernel that was found.
#[derive(Debug, PartialEq, Eq)]
pub struct Kernel {
    /// As `uname -r` says it.
    pub version: String,
    /// `vmlinuz`.
    pub boot_file: PathBuf,
    /// `.../lib/modules/VERSION`.
    pub modules: PathBuf,
}

impl KernelSource {
    /// Finds the kernel; packages are unpacked in `scratch`.
    pub(crate) fn locate(&self, scratch: &Path) -> Result<Kernel, ImageError> {
        match self {
            KernelSource::Files { kernel, modules } => {
                let boot_file = fs::canonicalize(kernel).at("open", kernel)?;
                let modules = fs::canonicalize(modules).at("open", modules)?;
                let version = modules.file_name().unwrap_or_default().to_string_lossy();
                Ok(Kernel { version: version.into_owned(), boot_file, modules })
            }
            KernelSource::Packages(packages) => {
                for package in packages {
                    let mut unpack = Command::new("dpkg-deb");
                    tool::run(unpack.arg("-x").arg(package).arg(scratch), "dpkg")?;
                }
                in_tree(scratch, None).map_err(|error| match error {
                    ImageError::Kernel { problem, .. } => {
                        let path = packages.first().cloned().unwrap_or_default();
                        ImageError::Kernel {
                            path,
                            problem: format!("in these packages, {problem}"),
                        }
                    }
                    other => other,
                })
            }
            KernelSource::Tree { root, version } => in_tree(root, version.as_deref()),
        }
    }
}

fn in_tree(root: &Path, version: Option<&str>) -> Result<Kernel, ImageError> {
    let mut found = kernels(root)?;
    if let Some(version) = version {
        found.retain(|kernel| kernel.version == version);
    }
    let problem = match found.len() {
        0 => match version {
            None => "no kernel has both boot/vmlinuz-VERSION and lib/modules/VERSION".to_owned(),
            Some(version) => {
                format!("no boot/vmlinuz-{version} together with lib/modules/{version}")
            }
        },
        1 => return Ok(found.remove(0)),
        _ => {
            let versions: Vec<_> = found.into_iter().map(|kernel| kernel.version).collect();
            format!("several kernels are there, choose one: {}", versions.join(", "))
        }
    };
    Err(ImageError::Kernel { path: root.to_owned(), problem })
}

/// The kernels that have a boot file, in `boot` or, since Debian 14, with their modules.
fn kernels(root: &Path) -> Result<Vec<Kernel>, ImageError> {
    let mut found: Vec<Kernel> = Vec::new();
    for parent in ["usr/lib/modules", "lib/modules"].map(|path| root.join(path)) {
        if !parent.is_dir() {
            continue;
        }
        for entry in fs::read_dir(&parent).at("read", &parent)? {
            let modules = entry.at("read", &parent)?.path();
            let version = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let places = [root.join(format!("boot/vmlinuz-{version}")), modules.join("vmlinuz")];
            let boot_file = places.into_iter().find(|place| place.is_file());
            // With a merged /usr both parents are one.
            let is_known = found.iter().any(|kernel| kernel.version == version);
            if let (Some(boot_file), false) = (boot_file, is_known) {
                found.push(Kernel { version, boot_file, modules });
            }
        }
    }
    found.sort_by(|one, other| one.version.cmp(&other.version));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        for file in files {
            let path = tree.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        tree
    }

    fn version_in(root: &Path, version: Option<&str>) -> Result<String, String> {
        let source =
            KernelSource::Tree { root: root.to_owned(), version: version.map(str::to_owned) };
        let kernel = source.locate(Path::new("/nonexistent"));
        kernel.map(|kernel| kernel.version).map_err(|error| error.to_string())
    }

    #[test]
    fn kernel_is_found_where_debian_puts_it() {
        for files in [
            ["boot/vmlinuz-1", "lib/modules/1/modules.dep"],
            ["boot/vmlinuz-1", "usr/lib/modules/1/modules.dep"],
            ["usr/lib/modules/1/vmlinuz", "usr/lib/modules/1/modules.dep"],
        ] {
            assert_eq!(version_in(tree(&files).path(), None).unwrap(), "1", "{files:?}");
        }
    }

    #[test]
    fn none_and_several_are_told_apart() {
        let none = tree(&["boot/vmlinuz-1", "lib/modules/2/modules.dep"]);
        assert!(version_in(none.path(), None).unwrap_err().contains("no kernel has both"));
        let two = tree(&["boot/vmlinuz-1", "boot/vmlinuz-2", "lib/modules/1/a", "lib/modules/2/a"]);
        assert!(version_in(two.path(), None).unwrap_err().contains("choose one: 1, 2"));
        assert_eq!(version_in(two.path(), Some("2")).unwrap(), "2");
        assert!(version_in(two.path(), Some("3")).unwrap_err().contains("boot/vmlinuz-3"));
    }
}
