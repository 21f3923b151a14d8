//! Debian's packages of any suite, in directories of ours.
//!
//! apt fetches and verifies them, in a private state: nothing of this machine's changes, and no
//! root is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt;
use crate::error::{At, ImageError};
use crate::tool;

/// These packages of `suite` (`bookworm`, `trixie`, `sid`), without what they depend on.
///
/// What is in `directory` already is taken as it is; remove it to look anew.
/// Errors: this machine's apt has no Debian sources, or apt's own.
pub fn fetch(suite: &str, names: &[&str], directory: &Path) -> Result<Vec<PathBuf>, ImageError> {
    fetch_chosen(suite, directory, |_| Ok(names.iter().copied().map(str::to_owned).collect()))
}

/// As [`fetch`], with names that apt's own lists decide.
pub(crate) fn fetch_chosen(
    suite: &str,
    directory: &Path,
    choose: impl FnOnce(&Apt) -> Result<Vec<String>, ImageError>,
) -> Result<Vec<PathBuf>, ImageError> {
    if directory.is_dir() {
        return packages_in(directory);
    }
    let sources = apt::sources_for(suite, Path::new("/etc/apt"))?;
    let cache = directory.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(cache).at("make", cache)?;
    let cache = fs::canonicalize(cache).at("open", cache)?;
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    let staging = cache.join(format!(".{name}.new-{}", std::process::id()));
    fs::create_dir_all(&staging).at("make", &staging)?;
    let fetched =
        Apt::new(&staging, &sources).and_then(|apt| choose(&apt).and_then(|n| apt.download(&n)));
    if let Err(error) = fetched {
        fs::remove_dir_all(&staging).at("remove", &staging)?;
        return Err(error);
    }
    match fs::rename(staging.join("packages"), directory) {
        // Somebody else was as fast; theirs are the same.
        Err(_) if directory.is_dir() => {}
        moved => moved.at("make", directory)?,
    }
    fs::remove_dir_all(&staging).at("remove", &staging)?;
    packages_in(directory)
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
            problem: "has no .deb file; remove it to fetch them again".to_owned(),
        });
    }
    Ok(packages)
}

/// apt with a configuration, lists and a cache of its own below one directory.
pub(crate) struct Apt {
    pub(crate) configuration: PathBuf,
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

    fn download(&self, names: &[String]) -> Result<(), ImageError> {
        let mut arguments = vec!["download", "--quiet=2"];
        arguments.extend(names.iter().map(String::as_str));
        self.run("apt-get", &arguments).map(drop)
    }

    /// Runs one of apt's programs and gives what it printed.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Result<Vec<u8>, ImageError> {
        let mut command = Command::new(program);
        command.arg("--config-file").arg(&self.configuration).args(arguments);
        tool::run(command.current_dir(&self.packages), "apt")
    }
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
    fn fetched_packages_are_not_fetched_again() {
        let cache = tempfile::tempdir().unwrap();
        let directory = cache.path().join("no-such-suite");
        fs::create_dir(&directory).unwrap();
        let fetch = || fetch("no-such-suite", &["any"], &directory);
        assert!(fetch().unwrap_err().to_string().contains("no .deb"));
        for name in ["b.deb", "a.deb", "note.txt"] {
            fs::write(directory.join(name), "").unwrap();
        }
        assert_eq!(fetch().unwrap(), [directory.join("a.deb"), directory.join("b.deb")]);
    }
}
