//! Programs of the machine's, before the others in `$PATH` while a suite runs, that do for a union what
//! the suite takes for granted.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::steps::{Step, file_error};

/// A directory of them.
pub struct Shims(PathBuf);

impl Shims {
    /// An empty one.
    pub fn make(directory: &Path) -> Step<Self> {
        fs::create_dir_all(directory).map_err(file_error(directory))?;
        Ok(Self(directory.to_owned()))
    }

    /// `df` that calls our type by another name: suites know by that what to ask.
    pub fn df(&self, kind: &str) -> Step {
        let rename = format!("PATH=${{PATH#*:}}\ndf \"$@\" | sed 's/ fuse[.]thinroot / {kind} /'");
        self.program("df", &rename)
    }

    /// `bash` that ends one of xfstests that hangs: its `check` waits for ever. It starts each by
    /// `bash -c`, with words that end in `exec ./tests/…`.
    pub fn bash(&self, seconds_max: u32) -> Step {
        let bounded = format!("exec timeout --kill-after=10 {seconds_max} /bin/bash \"$@\"");
        let rest = "exec /bin/bash \"$@\"";
        self.program("bash", &format!("case $2 in\n*'exec ./'*) {bounded} ;;\nesac\n{rest}"))
    }

    /// A program in its own words.
    pub fn program(&self, name: &str, text: &str) -> Step {
        let path = self.0.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n"))
            .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o755)))
            .map_err(file_error(&path))
    }

    /// `$PATH` with them in front.
    pub fn path(&self) -> String {
        let others = std::env::var("PATH").unwrap_or_default();
        format!("{}:{others}", self.0.display())
    }
}
