//! Gets suites from where their authors publish them.

use std::path::{Path, PathBuf};

use crate::build::cargo;
use crate::setup::is_there;
use crate::steps::{Step, note, run};

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
