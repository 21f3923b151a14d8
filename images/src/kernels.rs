//! Debian's cloud kernels of any suite, as packages in a cache of ours.
//!
//! apt fetches and verifies them, in a private state: nothing of this machine's changes, and no
//! root is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt;
use crate::error::{At, ImageError};
use crate::tool;

/// The package that depends on a suite's newest cloud kernel.
const NEWEST: &str = "linux-image-cloud-amd64";
/// A kernel's own packages: one up to Debian 13, boot file, modules and their
/// lists apart after it.
const PARTS: [&str; 4] = ["linux-image-", "linux-binary-", "linux-modules-", "linux-base-"];

/// The packages of the newest cloud kernel of `suite` (`bookworm`, `trixie`, `sid`), for
/// [`KernelSource::Packages`](crate::KernelSource::Packages).
///
/// What is in `cache/SUITE` already is taken as it is; remove that directory to look anew.
/// Errors: this machine's apt has no Debian sources, or apt's own.
pub fn fetch(suite: &str, cache: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let directory = cache.join(suite);
    if directory.is_dir() {
        return packages_in(&directory);
    }
    let sources = apt::sources_for(suite, Path::new("/etc/apt"))?;
    fs::create_dir_all(cache).at("make", cache)?;
    let cache = fs::canonicalize(cache).at("open", cache)?;
    let staging = cache.join(format!(".{suite}.new-{}", std::process::id()));
    fs::create_dir_all(&staging).at("make", &staging)?;
    let fetched = Apt::new(&staging, &sources).and_then(|apt| apt.download_newest());
    if let Err(error) = fetched {
        fs::remove_dir_all(&staging).at("remove", &staging)?;
        return Err(error);
    }
    match fs::rename(staging.join("packages"), &directory) {
        // Somebody else was as fast; theirs are the same.
        Err(_) if directory.is_dir() => {}
        moved => moved.at("make", &directory)?,
    }
    fs::remove_dir_all(&staging).at("remove", &staging)?;
    packages_in(&directory)
}

fn packages_in(directory: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let mut packages = Vec::new();
    for entry in fs::read_dir(directory).at("read", directory)? {
        let path = entry.at("read", directory)?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            packages.push(path);
        }
    }
    packages.sort();
    if packages.is_empty() {
        return Err(ImageError::Kernel {
            path: directory.to_owned(),
            problem: "has no .deb file; remove it to fetch the kernel again".to_owned(),
        });
    }
    Ok(packages)
}

/// apt with a configuration, lists and a cache of its own below one directory.
struct Apt {
    configuration: PathBuf,
    packages: PathBuf,
}

impl Apt {
    fn new(directory: &Path, sources: &str) -> Result<Apt, ImageError> {
        let packages = directory.join("packages");
        for needed in ["lists/partial", "archives/partial", "packages"] {
            let path = directory.join(needed);
            fs::create_dir_all(&path).at("make", path)?;
        }
        let list = directory.join("sources.list");
        fs::write(&list, sources).at("write", list)?;
        let configuration = directory.join("apt.conf");
        fs::write(&configuration, configuration_text(directory)).at("write", &configuration)?;
        let apt = Apt { configuration, packages };
        apt.run("apt-get", &["update", "--quiet=2"])?;
        Ok(apt)
    }

    fn download_newest(&self) -> Result<(), ImageError> {
        let parts = self.parts_of(NEWEST)?;
        if parts.is_empty() {
            let problem = format!("{NEWEST} depends on no kernel");
            return Err(ImageError::Kernel { path: self.configuration.clone(), problem });
        }
        let mut arguments = vec!["download", "--quiet=2"];
        arguments.extend(parts.iter().map(String::as_str));
        self.run("apt-get", &arguments).map(drop)
    }

    /// The kernel packages that `package` needs, over any number of steps.
    fn parts_of(&self, package: &str) -> Result<Vec<String>, ImageError> {
        let mut parts: Vec<String> = Vec::new();
        let mut open = vec![package.to_owned()];
        while let Some(package) = open.pop() {
            let listed = self.run("apt-cache", &["depends", "--important", &package])?;
            for part in parts_in(&String::from_utf8_lossy(&listed)) {
                if !parts.contains(&part) {
                    open.push(part.clone());
                    parts.push(part);
                }
            }
        }
        Ok(parts)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<Vec<u8>, ImageError> {
        let mut command = Command::new(program);
        command.arg("--config-file").arg(&self.configuration).args(arguments);
        tool::run(command.current_dir(&self.packages), "apt")
    }
}

/// The kernel packages among `apt-cache depends`' lines `  Depends: NAME`.
fn parts_in(listed: &str) -> Vec<String> {
    let names = listed.lines().filter_map(|line| line.split_once("Depends: "));
    let names = names.map(|(_, name)| name.trim().to_owned());
    names.filter(|name| PARTS.iter().any(|part| name.starts_with(part))).collect()
}

/// The machine's hooks do not run, and nothing is unpacked as another user in a directory that
/// is ours alone.
fn configuration_text(directory: &Path) -> String {
    let directory = directory.display();
    format!(
        "Dir::State \"{directory}\";\n\
         Dir::State::Lists \"{directory}/lists\";\n\
         Dir::State::status \"/dev/null\";\n\
         Dir::Cache \"{directory}\";\n\
         Dir::Cache::Archives \"{directory}/archives\";\n\
         Dir::Etc::SourceList \"{directory}/sources.list\";\n\
         Dir::Etc::SourceParts \"/dev/null\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
         Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled \"false\";\n\
         APT::Architecture \"amd64\";\n\
         APT::Sandbox::User \"\";\n\
         #clear APT::Update::Pre-Invoke;\n\
         #clear APT::Update::Post-Invoke;\n\
         #clear APT::Update::Post-Invoke-Success;\n\
         #clear DPkg::Post-Invoke;\n"
    )
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

    #[test]
    fn fetched_packages_are_not_fetched_again() {
        let cache = tempfile::tempdir().unwrap();
        let directory = cache.path().join("no-such-suite");
        fs::create_dir(&directory).unwrap();
        assert!(fetch("no-such-suite", cache.path()).unwrap_err().to_string().contains("no .deb"));
        for name in ["b.deb", "a.deb", "note.txt"] {
            fs::write(directory.join(name), "").unwrap();
        }
        let names = fetch("no-such-suite", cache.path()).unwrap();
        assert_eq!(names, [directory.join("a.deb"), directory.join("b.deb")]);
    }
}
