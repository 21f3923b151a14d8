//! Debian's kernels of any suite, as packages in a cache of ours.

use std::path::{Path, PathBuf};

use crate::error::ImageError;
use crate::packages::{self, Apt};

/// Which of Debian's kernels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flavour {
    /// The one for virtual machines: small, and what guests need is built in.
    Cloud,
    /// The one for every machine.
    Generic,
}

impl Flavour {
    /// The package that depends on a suite's newest kernel.
    const fn newest(self) -> &'static str {
        match self {
            Self::Cloud => "linux-image-cloud-amd64",
            Self::Generic => "linux-image-amd64",
        }
    }

    /// Where a suite's kernel is kept.
    fn directory(self, suite: &str, cache: &Path) -> PathBuf {
        match self {
            Self::Cloud => cache.join(suite),
            Self::Generic => cache.join(format!("{suite}-generic")),
        }
    }
}

/// A kernel's own packages: one up to Debian 13, boot file, modules and their
/// lists apart after it.
const PARTS: [&str; 4] = ["linux-image-", "linux-binary-", "linux-modules-", "linux-base-"];

/// The packages of the newest kernel of `suite` (`bookworm`, `trixie`, `sid`), for
/// [`KernelSource::Packages`](crate::KernelSource::Packages).
///
/// What the cache has already is taken as it is; remove its directory to look anew.
/// Errors: this machine's apt has no Debian sources, or apt's own.
pub fn fetch(suite: &str, flavour: Flavour, cache: &Path) -> Result<Vec<PathBuf>, ImageError> {
    packages::fetch_chosen(suite, &flavour.directory(suite, cache), |apt| {
        let newest = flavour.newest();
        let parts = parts_of(apt, newest)?;
        if parts.is_empty() {
            let problem = format!("{newest} depends on no kernel");
            return Err(ImageError::Kernel { path: apt.configuration.clone(), problem });
        }
        Ok(parts)
    })
}

/// The kernel packages that `package` needs, over any number of steps.
fn parts_of(apt: &Apt, package: &str) -> Result<Vec<String>, ImageError> {
    let mut parts: Vec<String> = Vec::new();
    let mut open = vec![package.to_owned()];
    while let Some(package) = open.pop() {
        let listed = apt.run("apt-cache", &["depends", "--important", &package])?;
        for part in parts_in(&String::from_utf8_lossy(&listed)) {
            if !parts.contains(&part) {
                open.push(part.clone());
                parts.push(part);
            }
        }
    }
    Ok(parts)
}

/// The kernel packages among `apt-cache depends`' lines `  Depends: NAME`.
fn parts_in(listed: &str) -> Vec<String> {
    let names = listed.lines().filter_map(|line| line.split_once("Depends: "));
    let names = names.map(|(_, name)| name.trim().to_owned());
    names.filter(|name| PARTS.iter().any(|part| name.starts_with(part))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_packages_are_found_among_the_dependencies() {
        let listed = "linux-image-7-cloud-amd64\n  PreDepends: linux-base\n |Depends: dracut\n  \
                      Depends: <linux-initramfs-tool>\n  Depends: linux-binary-7-cloud-amd64\n  \
                      Depends: linux-modules-7-cloud-amd64\n    extra\n";
        let expected = ["linux-binary-7-cloud-amd64", "linux-modules-7-cloud-amd64"];
        assert_eq!(parts_in(listed), expected);
    }
}
