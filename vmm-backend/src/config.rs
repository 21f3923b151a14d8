//! What the program was asked for, as plain data without a parser's types.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use images::KernelSource;
use rustix::mount::MountFlags;
use thinroot::vm::config::{LowerArgument, RunConfig};
use thinroot::vm::doctor::DoctorConfig;

/// One command line.
#[derive(Debug)]
pub struct Config {
    /// How much is logged on standard error.
    pub log_level: log::LevelFilter,
    /// What is to be done.
    pub command: Command,
}

/// The subcommands.
#[derive(Debug)]
pub enum Command {
    /// Serve one guest.
    Serve(Box<ServeConfig>),
    /// Show a guest's root on this host.
    Mount(MountConfig),
    /// The same for mount(8).
    MountHelper(MountHelperConfig),
    /// Unmount for umount(8).
    UnmountHelper(UnmountHelperConfig),
    /// Boot a guest.
    Run(Box<RunConfig>),
    /// Empty an upper.
    Reset(ResetConfig),
    /// Say what an upper changes.
    Diff(DiffConfig),
    /// `check`.
    Check(CheckConfig),
    /// `export`.
    Export(ExportConfig),
    /// `import`.
    Import(ImportConfig),
    /// Complete the unsettled files of an upper.
    Settle(UnionConfig),
    /// Build an index ahead.
    Seal(SealConfig),
    /// Build a boot image.
    Image(ImageConfig),
    /// Look at this host.
    Doctor(DoctorConfig),
    /// Time KVM, in a child of `run` and `doctor`.
    KvmProbe,
}

/// The lowers and their index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BaseConfig {
    /// `--lower` and `--layer` in their order, the topmost first.
    pub lowers: Vec<LowerArgument>,
    /// `--image`: the boot image whose modules lie below the lowers.
    pub image: Option<PathBuf>,
    /// `--index`: the index file; by default one named after the lowers in the cache directory.
    pub index: Option<PathBuf>,
}

/// A union: lowers, an upper, and how they are treated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnionConfig {
    /// The lowers.
    pub base: BaseConfig,
    /// `--upper`; made where it is missing.
    pub upper: PathBuf,
    /// `--work`; by default [`default_work`].
    pub work: PathBuf,
    /// `--lax`: changed lower objects are served, not refused.
    pub lax: bool,
    /// `--volatile`: nothing is synced; for an upper that will be thrown away.
    pub volatile: bool,
    /// `--rebase`: take an upper that was made over another base.
    pub rebase: bool,
    /// `--writeback on`: the guest collects small writes.
    pub writeback: bool,
    /// `--sandbox on`.
    pub sandbox: bool,
}

/// `thinroot serve`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServeConfig {
    /// What is served.
    pub union: UnionConfig,
    /// Where the VMM comes from.
    pub endpoint: EndpointConfig,
    /// `--tag`: offered in the device's configuration space.
    pub tag: Option<String>,
    /// `--queues`: request queues.
    pub queues: u16,
    /// `--once`: end after the first connection.
    pub once: bool,
    /// `--poll-us`: how long a queue may watch for the next request before its thread sleeps.
    pub poll: Duration,
    /// `--events` or `--events-fd`.
    pub events: Option<EventsConfig>,
    /// `--command-fd`: holds the command for the guest.
    pub command_fd: Option<RawFd>,
    /// `--stdio-fds`: the guest's standard input, output and error.
    pub stdio_fds: Option<[RawFd; 3]>,
    /// `--stats`: print the requests served whenever a guest leaves.
    pub stats: bool,
}

/// Where the VMM comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EndpointConfig {
    /// `--socket`: listen there.
    Socket(PathBuf),
    /// `--fd`: a unix stream socket, listening or connected.
    Descriptor(RawFd),
}

/// Where events go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EventsConfig {
    /// `--events PATH`: appended.
    Path(PathBuf),
    /// `--events -`.
    StandardOutput,
    /// `--events-fd N`.
    Descriptor(RawFd),
}

/// `thinroot mount`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountConfig {
    /// What is shown.
    pub union: UnionConfig,
    /// Where.
    pub mountpoint: PathBuf,
    /// `--fsname`: what stands for the device in /proc/mounts.
    pub name: OsString,
    /// `--stats`: print the requests served at the end.
    pub stats: bool,
}

/// What mount(8) asks of its helper.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountHelperConfig {
    /// Where.
    pub mountpoint: PathBuf,
    /// What is started; nothing for a remount.
    pub start: Option<StartConfig>,
    /// The mount's flags.
    pub flags: MountFlags,
    /// Only see whether the options are right.
    pub is_fake: bool,
}

/// A daemon to be started in the background.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StartConfig {
    /// Its command line, without the program.
    pub arguments: Vec<OsString>,
    /// The upper that it will use.
    pub upper: PathBuf,
    /// Where its log is appended; by default nobody reads it once it has mounted.
    pub log: Option<PathBuf>,
}

/// What umount(8) asks of its helper.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnmountHelperConfig {
    /// What to unmount.
    pub mountpoint: PathBuf,
    /// Detach it now, whoever is inside.
    pub lazily: bool,
    /// Even where the daemon does not answer.
    pub by_force: bool,
}

/// `thinroot reset`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResetConfig {
    /// The upper.
    pub upper: PathBuf,
    /// `--work`; by default [`default_work`].
    pub work: PathBuf,
    /// `--wait`: return when everything is deleted.
    pub wait: bool,
}

/// `thinroot diff`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiffConfig {
    /// The lowers.
    pub base: BaseConfig,
    /// The upper.
    pub upper: PathBuf,
    /// `--work`; by default [`default_work`].
    pub work: PathBuf,
    /// `--json`.
    pub json: bool,
}

/// `thinroot check`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckConfig {
    /// What is checked, and how it is told.
    pub diff: DiffConfig,
    /// `--repair`: what can be mended is mended.
    pub repair: bool,
}

/// `thinroot export`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExportConfig {
    /// What is exported.
    pub union: UnionConfig,
    /// `--whole`: everything, not what changed.
    pub whole: bool,
    /// `--to`.
    pub to: ExportTarget,
}

/// Where an export goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ExportTarget {
    /// `-`: an archive.
    StandardOutput,
    /// A name that ends in `.tar`.
    Archive(PathBuf),
    /// Any other: an upper for the kernel's overlayfs.
    Upper(PathBuf),
}

impl ExportTarget {
    /// As it was given.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::StandardOutput => "-".into(),
            Self::Archive(path) | Self::Upper(path) => path.clone(),
        }
    }
}

/// `thinroot import`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImportConfig {
    /// What it is made of.
    pub source: ImportSource,
    /// `--out`: the directory to make.
    pub directory: PathBuf,
}

/// What is imported.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ImportSource {
    /// A tar archive; `-` is standard input.
    Archive(PathBuf),
    /// `--fuse-overlayfs`: an upper of that program's.
    FuseOverlayfs(PathBuf),
}

/// `thinroot seal`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SealConfig {
    /// The lowers.
    pub base: BaseConfig,
}

/// `thinroot image`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImageConfig {
    /// Where the kernel comes from.
    pub kernel: ImageKernel,
    /// `--guest-init`: the static binary; by default the one beside this program.
    pub guest_init: Option<PathBuf>,
    /// The directory to make.
    pub directory: PathBuf,
}

/// Where an image's kernel comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ImageKernel {
    /// Something on this host.
    Here(KernelSource),
    /// `--suite`: the newest cloud kernel of a Debian suite, kept in `--cache`.
    Suite {
        /// The suite.
        suite: String,
        /// Where packages are kept.
        cache: PathBuf,
    },
}

/// The work directory of `upper` where none is given: its sibling `.NAME.work`.
///
/// A sibling, since renames between the two need one mount; hidden and named after the upper, so
/// that several uppers can lie side by side.
pub fn default_work(upper: &std::path::Path) -> Option<PathBuf> {
    // An upper that exists may be named `.` or by a link.
    let upper = upper.canonicalize().unwrap_or_else(|_| upper.to_owned());
    let mut name = std::ffi::OsString::from(".");
    name.push(upper.file_name()?);
    name.push(".work");
    Some(upper.with_file_name(name))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn work_is_a_hidden_sibling_of_its_upper() {
        let rows = [
            ("/no/such/upper", Some("/no/such/.upper.work")),
            ("no-such-upper", Some(".no-such-upper.work")),
            ("/no/such/upper/", Some("/no/such/.upper.work")),
            ("/", None),
        ];
        for (upper, work) in rows {
            assert_eq!(default_work(Path::new(upper)).as_deref(), work.map(Path::new), "{upper}");
        }
    }
}
