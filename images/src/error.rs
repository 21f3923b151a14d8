//! What can go wrong while an image, a kernel or a base is made.

use std::io;
use std::path::PathBuf;

/// Each says what it failed on, what was expected and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A system call on a path failed.
    #[error("{action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A program this needs is not installed.
    #[error("{tool} is not installed: 'apt-get install {package}' brings it")]
    NoTool {
        /// The program.
        tool: String,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// A program ran and failed.
    #[error("{tool} failed ({status}): {message}")]
    Tool {
        /// The program.
        tool: String,
        /// How it ended.
        status: String,
        /// The end of what it said.
        message: String,
    },
    /// The kernel lacks what a guest needs.
    #[error(
        "kernel {version} has no module {module}, neither built in nor in {path}: take one with \
         virtio-pci and virtiofs, such as Debian's cloud kernel",
        path = path.display()
    )]
    NoModule {
        /// The kernel's version.
        version: String,
        /// The module.
        module: String,
        /// Its modules' directory.
        path: PathBuf,
    },
    /// There is no kernel, or more than one, where one was expected.
    #[error("{path}: {problem}", path = path.display())]
    Kernel {
        /// Where.
        path: PathBuf,
        /// What was expected and what was found.
        problem: String,
    },
    /// guest-init is not what can run in an initramfs.
    #[error(
        "{path}: {problem}: build it with 'cargo rustc -p guest-init --release -- -C \
         target-feature=+crt-static'",
        path = path.display()
    )]
    GuestInit {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Compressed bytes that cannot be read.
    #[error("{what}: {problem}")]
    Compressed {
        /// The file.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A directory that is no image.
    #[error("{path} is no boot image: {problem}; make one with 'thinroot image'", path = path.display())]
    NoImage {
        /// The directory.
        path: PathBuf,
        /// What is missing.
        problem: String,
    },
    /// The machine's package sources do not say where Debian is.
    #[error(
        "{path} names no Debian archive to take suite '{suite}' from: a 'deb' entry with \
         component main is expected",
        path = path.display()
    )]
    NoSources {
        /// The apt configuration.
        path: PathBuf,
        /// The suite that was wanted.
        suite: String,
    },
    /// An output that is there already.
    #[error("{path} exists already: remove it or choose another place", path = path.display())]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// Only root can do this.
    #[error("making a base needs root (mmdebstrap sets owners and device nodes): run it with sudo")]
    NotRoot,
}

/// Adds path and action to an I/O error.
pub(crate) trait At<T> {
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, ImageError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, ImageError> {
        self.map_err(|source| ImageError::Io { action, path: path.into(), source: source.into() })
    }
}
