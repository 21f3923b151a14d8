//! Builds our programs.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::steps::{Step, StepError, run};

/// Our programs, built.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `target/release/thinroot`.
    pub thinroot: PathBuf,
    /// The static guest-init beside it.
    pub guest_init: PathBuf,
}

/// The workspace's directory.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Where cargo puts what it builds.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => workspace().join(directory),
        None => workspace().join("target"),
    }
}

/// A cargo command in the workspace.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace()).args(arguments);
    command
}

/// Builds the release programs.
pub fn release() -> Step<Programs> {
    run(&mut cargo(&["build", "--release", "--package", "thinroot"]))?;
    // Static, so that it runs in an initramfs that holds nothing else; said here and not in
    // RUSTFLAGS, which would rebuild everything for it.
    let rustc = ["rustc", "--release", "--package", "guest-init", "--"];
    run(cargo(&rustc).args(["-C", "target-feature=+crt-static"]))?;
    let directory = target().join("release");
    Ok(Programs {
        thinroot: built(directory.join("thinroot"))?,
        guest_init: built(directory.join("guest-init"))?,
    })
}

fn built(path: PathBuf) -> Step<PathBuf> {
    if path.is_file() {
        return Ok(path);
    }
    Err(StepError::Wrong(format!("{} was not built", path.display())))
}
