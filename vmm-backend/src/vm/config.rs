//! What `thinroot run` was asked for, as plain data.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Everything `thinroot run` was asked for: plain data, made from the command line.
#[derive(Clone, Debug)]
pub struct RunConfig {
    /// The `thinroot` binary: started as `serve` and as the KVM probe (`std::env::current_exe`).
    pub program: PathBuf,
    /// `--lower` and `--layer` in their order, the topmost first.
    pub lowers: Vec<LowerArgument>,
    /// Where the guest's changes go.
    pub upper: UpperArgument,
    /// `--image`, or `--kernel` with `--initramfs`, or the default image.
    pub boot: BootSource,
    /// `--accel`.
    pub accel: AccelChoice,
    /// `--vmm`.
    pub vmm: VmmChoice,
    /// `--memory`, in bytes; rounded up to whole MiB.
    pub memory_bytes: u64,
    /// `--cpus`.
    pub cpus: u32,
    /// `--queues`: request queues of the file system device.
    pub queues: u16,
    /// `--tag` of the file system device.
    pub tag: String,
    /// `--net`.
    pub network: Network,
    /// The command behind `--`; empty boots the base's init with an interactive console.
    pub command: Vec<OsString>,
    /// `--env K=V`, each.
    pub environment: Vec<OsString>,
    /// `--cwd`.
    pub directory: Option<OsString>,
    /// `--hostname`.
    pub hostname: Option<OsString>,
    /// `--tty`: the command gets a terminal, ours goes raw. Without a command: nothing.
    pub tty: bool,
    /// `--timeout` for everything from start to end.
    pub timeout: Option<Duration>,
    /// `--boot-timeout`: from the VMM's connection to the guest's ready. `None`: 60 s with KVM,
    /// 300 s without; zero: for ever.
    pub boot_timeout: Option<Duration>,
    /// `--on-crash`: what becomes of a discarded upper when the guest crashed.
    pub on_crash: OnCrash,
    /// `--print`: show the command lines on standard output, start nothing.
    pub print: bool,
    /// `--json PATH` (`-`: standard error, since standard output is the command's).
    pub json: Option<PathBuf>,
    /// `--verbose`: boot messages on standard error.
    pub verbose: bool,
    /// `--console PATH`: where the guest's console goes and stays; by default a temporary file.
    pub console: Option<PathBuf>,
    /// `--append`: further kernel arguments.
    pub kernel_arguments: Vec<String>,
    /// `--vmm-arg`, each: further arguments of the VMM, at the end.
    pub vmm_arguments: Vec<OsString>,
    /// Options for `serve` that `run` only passes on.
    pub daemon_arguments: Vec<OsString>,
}

/// One tree of the base.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LowerArgument {
    /// `--lower`: a plain tree.
    Tree(PathBuf),
    /// `--layer`: an overlay layer, whose marks count.
    Layer(PathBuf),
}

impl LowerArgument {
    /// The tree's path.
    pub fn path(&self) -> &Path {
        match self {
            Self::Tree(path) | Self::Layer(path) => path,
        }
    }
}

/// Where the guest's changes go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum UpperArgument {
    /// `--upper`, kept.
    Keep {
        /// The upper.
        upper: PathBuf,
        /// `--work`; `serve` has a default.
        work: Option<PathBuf>,
    },
    /// `--discard`: a new directory, deleted at the end.
    Discard {
        /// `--discard-dir`: made in there; by default in `$TMPDIR`, `/var/tmp` or `/tmp`, the first
        /// with the extended attributes and renames an upper needs.
        parent: Option<PathBuf>,
    },
}

/// `--accel`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AccelChoice {
    /// KVM where the timed probe accepts it, else TCG.
    #[default]
    Auto,
    /// KVM, whatever the probe says.
    Kvm,
    /// QEMU's own translator.
    Tcg,
}

/// What the guest really runs on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accelerator {
    /// The processor.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

impl Accelerator {
    /// As options and messages name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// `--vmm`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum VmmChoice {
    /// QEMU from `$PATH`.
    #[default]
    Qemu,
    /// cloud-hypervisor from `$PATH`.
    CloudHypervisor,
    /// This program: cloud-hypervisor if its name says so, else QEMU.
    Path(PathBuf),
}

/// `--net`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Network {
    /// No network device.
    #[default]
    None,
    /// QEMU's user-mode network (10.0.2.0/24) on a virtio device.
    User,
}

/// `--on-crash`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnCrash {
    /// The discarded upper stays for a look; its path is printed.
    Keep,
    /// It goes as always.
    #[default]
    Discard,
}

/// Where kernel and initramfs come from.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum BootSource {
    /// `--image`: a directory made by `thinroot image`.
    Image(PathBuf),
    /// `--kernel` and `--initramfs`.
    Files {
        /// A bzImage, or an ELF `vmlinux` with a PVH entry.
        kernel: PathBuf,
        /// A cpio with guest-init.
        initramfs: PathBuf,
    },
    /// The first of the default places that holds an image.
    #[default]
    Default,
}
