//! What a VMM is asked for, whichever it is.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::config::{Accelerator, Network};

/// Where the guest's console goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Console {
    /// Into this file.
    File(PathBuf),
    /// To our standard streams, and into this file.
    Stdio {
        /// The file.
        log: PathBuf,
    },
}

impl Console {
    /// The file that gets every byte of it.
    pub fn file(&self) -> &Path {
        match self {
            Self::File(path) | Self::Stdio { log: path } => path,
        }
    }
}

/// What a VMM is asked for, whichever it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Machine {
    /// What it runs on.
    pub accelerator: Accelerator,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Processors.
    pub cpus: u32,
    /// Request queues of the file system device.
    pub queues: u16,
    /// Tag of the file system device.
    pub tag: String,
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// The whole kernel command line.
    pub kernel_arguments: String,
    /// Where the console goes.
    pub console: Console,
    /// The network.
    pub network: Network,
    /// Further arguments of the VMM.
    pub vmm_arguments: Vec<OsString>,
}

impl Machine {
    /// Memory in MiB, rounded up.
    pub const fn memory_mib(&self) -> u64 {
        self.memory_bytes.div_ceil(1 << 20)
    }
}
