//! Gets suites from where their authors publish them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::build::cargo;
use crate::setup::is_there;
use crate::steps::{Step, capture, file_error, note, run};

/// A crate's program at one version, in `directory`; gives its path.
pub fn from_crate(directory: &Path, name: &str, version: &str) -> Step<PathBuf> {
    let root = directory.join(format!("{name}-{version}"));
    let program = root.join("bin").join(name);
    if !is_there(&program.to_string_lossy()) {
        note(&format!("{name} {version} is built (a minute, once)"));
        let mut install = cargo(&["install", "--quiet", "--locked", name, "--version", version]);
        run(install.arg("--root").arg(&root))?;
    }
    Ok(program)
}

/// A repository at one commit.
pub struct Source {
    /// Where its authors publish it (`git config url.….insteadOf` names a nearer copy).
    pub url: &'static str,
    /// The commit that is tested with.
    pub commit: &'static str,
}

impl Source {
    /// Checks it out into `directory`, anew where another commit is there.
    pub fn fetch(&self, directory: &Path) -> Step {
        let git = |words: &[&str]| {
            let mut command = Command::new("git");
            command.arg("-C").arg(directory).args(words);
            command
        };
        let is_there = directory.exists()
            && capture(&mut git(&["rev-parse", "HEAD"]))
                .is_ok_and(|head| head.trim() == self.commit);
        if is_there {
            return Ok(());
        }
        if directory.exists() {
            fs::remove_dir_all(directory).map_err(file_error(directory))?;
        }
        note(&format!("fetching {}", self.url));
        run(Command::new("git").args(["clone", "--quiet", self.url]).arg(directory))?;
        run(&mut git(&["checkout", "--quiet", "--detach", self.commit]))
    }
}
