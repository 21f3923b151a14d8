//! The command line: every option once, with its help, its check and its default.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{ArgAction, ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser};
use clap::{Subcommand, ValueEnum};
use images::KernelSource;
use thinroot::vm::config::{BootSource, LowerArgument};
use thinroot::vm::doctor::DoctorConfig;
use thinroot::vm::kvm::PROBE_COMMAND;

use crate::config::{
    BaseConfig, CheckConfig, Command, Config, DiffConfig, EndpointConfig, EventsConfig,
    ExportConfig, ExportTarget, ImageConfig, ImageKernel, ImportConfig, ImportSource, MountConfig,
    ResetConfig, SealConfig, ServeConfig, UnionConfig, default_work,
};

mod helper;
mod run;
mod values;

use run::RunArgs;
use values::{descriptor, three_descriptors};

/// Why there is nothing to be done.
#[derive(Debug)]
pub enum Stop {
    /// `--help` or `--version`: text for standard output, and success.
    Said(String),
    /// A wrong command line: one line.
    Usage(String),
}

/// Reads a command line, the program's name first.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Config, Stop> {
    let arguments: Vec<_> = arguments.into_iter().collect();
    if let Some(command) = helper::parse(&arguments) {
        return Ok(Config { log_level: log::LevelFilter::Warn, command: command? });
    }
    let matches = Cli::command().try_get_matches_from(arguments).map_err(stop)?;
    let cli = Cli::from_arg_matches(&matches).map_err(stop)?;
    let order = matches.subcommand().map(|(_, matches)| lowers(matches)).unwrap_or_default();
    Ok(Config { log_level: cli.log_level.into(), command: cli.command.into_config(order)? })
}

fn stop(error: clap::Error) -> Stop {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            Stop::Said(format!("{}\n", error.to_string().trim_end()))
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => Stop::Usage(
            "expected a command: serve, mount, run, reset, diff, check, settle, seal, import, export, image or doctor; \
             thinroot --help says more"
                .to_owned(),
        ),
        _ => Stop::Usage(one_line(&error.to_string())),
    }
}

/// The parser's paragraphs up to the usage, in one line.
fn one_line(text: &str) -> String {
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let lines = text.lines().map(str::trim);
    let told = lines.take_while(|line| {
        !line.starts_with("Usage:") && !line.starts_with("For more information")
    });
    let told: Vec<_> = told.filter(|line| !line.is_empty()).collect();
    format!("{}; thinroot COMMAND --help says what is expected", told.join(" "))
}

/// `--lower` and `--layer` in the order they have on the command line.
fn lowers(matches: &ArgMatches) -> Vec<LowerArgument> {
    type Make = fn(PathBuf) -> LowerArgument;
    let mut found: Vec<(usize, LowerArgument)> = Vec::new();
    for (id, make) in [("lower", LowerArgument::Tree as Make), ("layer", LowerArgument::Layer)] {
        let Ok(Some(paths)) = matches.try_get_many::<PathBuf>(id) else { continue };
        let indices = matches.indices_of(id).into_iter().flatten();
        found.extend(indices.zip(paths.cloned().map(make)));
    }
    found.sort_by_key(|(index, _)| *index);
    found.into_iter().map(|(_, lower)| lower).collect()
}

/// Boots virtual machines from a shared root, without a block device.
#[derive(Parser, Debug)]
#[command(name = "thinroot", version, max_term_width = 100, subcommand_required = true)]
struct Cli {
    /// How much to log on standard error
    #[arg(long, global = true, value_name = "LEVEL", default_value = "info")]
    log_level: LogLevel,
    #[command(subcommand)]
    command: CliCommand,
}

#[derive(Clone, Copy, ValueEnum, Debug)]
enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl From<LogLevel> for log::LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Off => Self::Off,
            LogLevel::Error => Self::Error,
            LogLevel::Warn => Self::Warn,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
            LogLevel::Trace => Self::Trace,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
enum Switch {
    On,
    Off,
}

#[derive(Subcommand, Debug)]
enum CliCommand {
    /// Serve one guest its root over vhost-user
    Serve(Box<ServeArgs>),
    /// Show a guest's root on this host, until it is unmounted or this program is told to end
    Mount(MountArgs),
    /// Boot a guest, or run one command in it
    Run(Box<RunArgs>),
    /// Empty an upper at once
    Reset(ResetArgs),
    /// Say what an upper changes, path by path
    Diff(DiffArgs),
    /// Look for damage in an upper: by object, what is wrong and what a repair would do
    Check(CheckArgs),
    /// Complete the files an upper has only the changed blocks of
    Settle(SettleArgs),
    /// Build or refresh the index of a base ahead of its first use
    Seal(SealArgs),
    /// Make a base that an ordinary user can read whole, of a tar archive; or an upper of a foreign one
    Import(ImportArgs),
    /// Give a guest's changes as a layer, or its whole root, to other programs
    Export(ExportArgs),
    /// Build a boot image: a kernel, an initramfs and the kernel's modules
    Image(ImageArgs),
    /// Say what is missing on this host
    Doctor(DoctorArgs),
    /// Time a loop on KVM (started by run and doctor)
    #[command(name = PROBE_COMMAND, hide = true)]
    KvmProbe,
}

impl CliCommand {
    fn into_config(self, lowers: Vec<LowerArgument>) -> Result<Command, Stop> {
        Ok(match self {
            Self::Serve(arguments) => Command::Serve(Box::new(arguments.config(lowers)?)),
            Self::Mount(arguments) => Command::Mount(arguments.config(lowers)?),
            Self::Run(arguments) => Command::Run(Box::new(arguments.config(lowers)?)),
            Self::Reset(arguments) => Command::Reset(arguments.config()?),
            Self::Diff(arguments) => Command::Diff(arguments.config(lowers)?),
            Self::Check(arguments) => Command::Check(arguments.config(lowers)?),
            Self::Settle(arguments) => Command::Settle(arguments.config(lowers)?),
            Self::Seal(arguments) => {
                Command::Seal(SealConfig { base: arguments.base.config(lowers) })
            }
            Self::Import(arguments) => {
                let source = match (arguments.fuse_overlayfs, arguments.archive) {
                    (Some(upper), _) => ImportSource::FuseOverlayfs(upper),
                    (None, archive) => ImportSource::Archive(archive.unwrap_or_else(|| "-".into())),
                };
                Command::Import(ImportConfig { source, directory: arguments.out })
            }
            Self::Export(arguments) => Command::Export(arguments.config(lowers)?),
            Self::Image(arguments) => Command::Image(arguments.config()),
            Self::Doctor(arguments) => Command::Doctor(arguments.config()?),
            Self::KvmProbe => Command::KvmProbe,
        })
    }
}

#[derive(Args, Debug)]
struct LowerArgs {
    /// A read-only tree of the base; given several times, with --layer too, the first is on top
    #[arg(long, value_name = "DIR", action = ArgAction::Append, required_unless_present = "layer")]
    lower: Vec<PathBuf>,
    /// A read-only overlay layer: its whiteouts, opaque directories and redirects count
    #[arg(long, value_name = "DIR", action = ArgAction::Append)]
    layer: Vec<PathBuf>,
    /// The index file of the base [default: one named after the lowers, in /var/cache/thinroot
    /// for root, else in $XDG_CACHE_HOME/thinroot or ~/.cache/thinroot]
    #[arg(long, value_name = "FILE")]
    index: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct BaseArgs {
    #[command(flatten)]
    lowers: LowerArgs,
    /// Add the kernel modules of this boot image below the lowers, as run does [default: none]
    #[arg(long, value_name = "DIR")]
    image: Option<PathBuf>,
}

impl BaseArgs {
    fn config(self, lowers: Vec<LowerArgument>) -> BaseConfig {
        BaseConfig { lowers, image: self.image, index: self.lowers.index }
    }
}

#[derive(Args, Debug)]
struct WorkArg {
    /// The upper's work directory, on the same mount [default: .NAME.work beside an upper NAME]
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
}

impl WorkArg {
    fn or_default(self, upper: &Path) -> Result<PathBuf, Stop> {
        self.work.or_else(|| default_work(upper)).ok_or_else(|| {
            Stop::Usage(format!(
                "upper {}: expected a directory with a name, or --work DIR",
                upper.display()
            ))
        })
    }
}

#[derive(Args, Debug)]
struct UnionArgs {
    #[command(flatten)]
    base: BaseArgs,
    /// The guest's own writable directory; made where it is missing
    #[arg(long, value_name = "DIR")]
    upper: PathBuf,
    #[command(flatten)]
    work: WorkArg,
    /// Serve lower files that were changed under the index, instead of answering EIO
    #[arg(long)]
    lax: bool,
    /// Never sync: for an upper that will be thrown away
    #[arg(long)]
    volatile: bool,
    /// Accept an upper that was made over another base
    #[arg(long)]
    rebase: bool,
    /// Let the guest collect small writes in its cache
    #[arg(long, value_name = "WHEN", default_value = "on")]
    writeback: Switch,
    /// Give up all power that serving does not take
    #[arg(long, value_name = "WHEN", default_value = "on")]
    sandbox: Switch,
}

impl UnionArgs {
    fn config(self, lowers: Vec<LowerArgument>) -> Result<UnionConfig, Stop> {
        Ok(UnionConfig {
            work: self.work.or_default(&self.upper)?,
            base: self.base.config(lowers),
            upper: self.upper,
            lax: self.lax,
            volatile: self.volatile,
            rebase: self.rebase,
            writeback: self.writeback == Switch::On,
            sandbox: self.sandbox == Switch::On,
        })
    }
}

#[derive(Args, Debug)]
struct SettleArgs {
    #[command(flatten)]
    base: BaseArgs,
    /// The upper, which nobody may be using
    #[arg(long, value_name = "DIR")]
    upper: PathBuf,
    #[command(flatten)]
    work: WorkArg,
}

impl SettleArgs {
    fn config(self, lowers: Vec<LowerArgument>) -> Result<UnionConfig, Stop> {
        Ok(UnionConfig {
            work: self.work.or_default(&self.upper)?,
            base: self.base.config(lowers),
            upper: self.upper,
            lax: false,
            volatile: false,
            rebase: false,
            writeback: true,
            sandbox: true,
        })
    }
}

#[derive(Args, Debug)]
struct ServeArgs {
    #[command(flatten)]
    union: UnionArgs,
    /// Listen for the VMM on this unix socket
    #[arg(long, value_name = "PATH", required_unless_present = "fd", conflicts_with = "fd")]
    socket: Option<PathBuf>,
    /// Take this descriptor, a unix stream socket that listens or is connected
    #[arg(long, value_name = "N", value_parser = descriptor)]
    fd: Option<RawFd>,
    /// Offer this tag to a VMM that has none of its own (not to QEMU 7.1 to 8.0) [default: none]
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,
    /// Request queues to offer; the VMM decides how many it uses
    #[arg(long, value_name = "N", default_value_t = 4)]
    queues: u16,
    /// End when the first VMM disconnects, instead of waiting for the next
    #[arg(long)]
    once: bool,
    /// Microseconds a queue may watch for the guest's next request before its thread sleeps, at most
    /// 1000. It does so while that pays; 0 keeps it from trying
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(0..=1000))]
    poll_us: u16,
    /// Append events to this file as JSON lines, - for standard output [default: none]
    #[arg(long, value_name = "PATH", conflicts_with = "events_fd")]
    events: Option<PathBuf>,
    /// Write events to this descriptor
    #[arg(long, value_name = "N", value_parser = descriptor)]
    events_fd: Option<RawFd>,
    /// Give the guest's first process the command in this descriptor
    #[arg(long, value_name = "N", value_parser = descriptor)]
    command_fd: Option<RawFd>,
    /// Give it these descriptors as standard input, output and error
    #[arg(long, value_name = "IN,OUT,ERR", value_parser = three_descriptors)]
    stdio_fds: Option<[RawFd; 3]>,
    /// Print requests and their bytes by kind on standard error, whenever a guest leaves
    #[arg(long)]
    stats: bool,
}

impl ServeArgs {
    fn config(self, lowers: Vec<LowerArgument>) -> Result<ServeConfig, Stop> {
        let endpoint = match (self.socket, self.fd) {
            (Some(path), None) => EndpointConfig::Socket(path),
            (None, Some(number)) => EndpointConfig::Descriptor(number),
            _ => return Err(Stop::Usage("expected one of --socket PATH and --fd N".into())),
        };
        let events = match (self.events, self.events_fd) {
            (Some(path), _) if path == Path::new("-") => Some(EventsConfig::StandardOutput),
            (Some(path), _) => Some(EventsConfig::Path(path)),
            (None, number) => number.map(EventsConfig::Descriptor),
        };
        Ok(ServeConfig {
            union: self.union.config(lowers)?,
            endpoint,
            tag: self.tag,
            queues: self.queues,
            once: self.once,
            poll: Duration::from_micros(self.poll_us.into()),
            events,
            command_fd: self.command_fd,
            stdio_fds: self.stdio_fds,
            stats: self.stats,
        })
    }
}

#[derive(Args, Debug)]
struct MountArgs {
    #[command(flatten)]
    union: UnionArgs,
    /// Print requests and their bytes by kind on standard error, at the end
    #[arg(long)]
    stats: bool,
    /// What stands for the device in /proc/mounts
    #[arg(long, value_name = "NAME", default_value = "thinroot")]
    fsname: OsString,
    /// The directory to show it on; /dev/fd/N takes a /dev/fuse that is mounted already
    mountpoint: PathBuf,
}

impl MountArgs {
    fn config(self, lowers: Vec<LowerArgument>) -> Result<MountConfig, Stop> {
        let union = self.union.config(lowers)?;
        Ok(MountConfig { union, mountpoint: self.mountpoint, name: self.fsname, stats: self.stats })
    }
}

#[derive(Args, Debug)]
struct ResetArgs {
    /// The upper to empty
    upper: PathBuf,
    #[command(flatten)]
    work: WorkArg,
    /// Return when everything is deleted, not when the upper is empty
    #[arg(long)]
    wait: bool,
}

impl ResetArgs {
    fn config(self) -> Result<ResetConfig, Stop> {
        let work = self.work.or_default(&self.upper)?;
        Ok(ResetConfig { upper: self.upper, work, wait: self.wait })
    }
}

#[derive(Args, Debug)]
struct DiffArgs {
    #[command(flatten)]
    base: BaseArgs,
    /// The upper
    #[arg(long, value_name = "DIR")]
    upper: PathBuf,
    #[command(flatten)]
    work: WorkArg,
    /// Print JSON lines
    #[arg(long)]
    json: bool,
}

impl DiffArgs {
    fn config(self, lowers: Vec<LowerArgument>) -> Result<DiffConfig, Stop> {
        let work = self.work.or_default(&self.upper)?;
        let base = self.base.config(lowers);
        Ok(DiffConfig { base, upper: self.upper, work, json: self.json })
    }
}

#[derive(Args, Debug)]
struct CheckArgs {
    #[command(flatten)]
    diff: DiffArgs,
    /// Mend what can be mended without inventing anything
    #[arg(long)]
    repair: bool,
}

impl CheckArgs {
    fn config(self, lowers: Vec<LowerArgument>) -> Result<CheckConfig, Stop> {
        Ok(CheckConfig { diff: self.diff.config(lowers)?, repair: self.repair })
    }
}

#[derive(Args, Debug)]
struct SealArgs {
    #[command(flatten)]
    base: BaseArgs,
}

#[derive(Args, Debug)]
struct ExportArgs {
    #[command(flatten)]
    settle: SettleArgs,
    /// Everything, not only what changed: an archive that import makes a base of
    #[arg(long)]
    whole: bool,
    /// Where to: NAME.tar or - is an archive, in which .wh.NAME stands for what was removed; any
    /// other name is a directory that the kernel's overlayfs can mount as an upper
    #[arg(long, value_name = "PATH")]
    to: PathBuf,
}

impl ExportArgs {
    fn config(self, lowers: Vec<LowerArgument>) -> Result<ExportConfig, Stop> {
        let to = match self.to.extension() {
            _ if self.to == Path::new("-") => ExportTarget::StandardOutput,
            Some(end) if end == "tar" => ExportTarget::Archive(self.to),
            _ if self.whole => {
                return Err(Stop::Usage(
                    "--whole: expected an archive, as in --to root.tar".into(),
                ));
            }
            _ => ExportTarget::Upper(self.to),
        };
        // It writes where it was told to, which no sandbox would let it.
        let union = UnionConfig { sandbox: false, ..self.settle.config(lowers)? };
        Ok(ExportConfig { union, whole: self.whole, to })
    }
}

#[derive(Args, Debug)]
struct ImportArgs {
    /// The archive, not compressed; - is standard input
    #[arg(value_name = "TAR", required_unless_present = "fuse_overlayfs")]
    archive: Option<PathBuf>,
    /// Make an upper instead, of one that fuse-overlayfs wrote and nobody has mounted
    #[arg(long, value_name = "UPPER", conflicts_with = "archive")]
    fuse_overlayfs: Option<PathBuf>,
    /// The directory to make, which must not be there yet
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(Args, Debug)]
struct ImageArgs {
    /// A kernel's boot file
    #[arg(long, value_name = "FILE", requires = "modules",
        required_unless_present_any = ["packages", "root", "suite"],
        conflicts_with_all = ["packages", "root", "suite"])]
    kernel: Option<PathBuf>,
    /// Its modules, lib/modules/VERSION
    #[arg(long, value_name = "DIR", requires = "kernel")]
    modules: Option<PathBuf>,
    /// A Debian kernel package; several where a kernel is split
    #[arg(long = "package", value_name = "DEB", action = ArgAction::Append,
        conflicts_with_all = ["root", "suite"])]
    packages: Vec<PathBuf>,
    /// A tree with boot and lib/modules; / is this machine
    #[arg(long, value_name = "DIR", conflicts_with = "suite")]
    root: Option<PathBuf>,
    /// Which of the kernels in --root, where there are several
    #[arg(long, value_name = "VERSION", requires = "root")]
    kernel_version: Option<String>,
    /// Fetch the newest cloud kernel of this Debian suite
    #[arg(long, value_name = "SUITE")]
    suite: Option<String>,
    /// Where --suite keeps packages
    #[arg(long, value_name = "DIR", default_value = ".thinroot/kernels")]
    cache: PathBuf,
    /// The static guest-init [default: guest-init beside this program]
    #[arg(long, value_name = "FILE")]
    guest_init: Option<PathBuf>,
    /// The directory to make
    #[arg(long, value_name = "DIR", default_value = ".thinroot/image")]
    out: PathBuf,
}

impl ImageArgs {
    fn config(self) -> ImageConfig {
        let kernel = match (self.kernel, self.modules, self.root, self.suite) {
            (Some(kernel), Some(modules), ..) => {
                ImageKernel::Here(KernelSource::Files { kernel, modules })
            }
            (_, _, Some(root), _) => {
                ImageKernel::Here(KernelSource::Tree { root, version: self.kernel_version })
            }
            (_, _, _, Some(suite)) => ImageKernel::Suite { suite, cache: self.cache },
            _ => ImageKernel::Here(KernelSource::Packages(self.packages)),
        };
        ImageConfig { kernel, guest_init: self.guest_init, directory: self.out }
    }
}

#[derive(Args, Debug)]
struct BootArgs {
    /// A boot image made by thinroot image [default: the first of .thinroot/image,
    /// $XDG_DATA_HOME/thinroot/image and /usr/share/thinroot/image that is one]
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kernel", "initramfs"])]
    image: Option<PathBuf>,
    /// A kernel to boot in place of an image's
    #[arg(long, value_name = "FILE", requires = "initramfs")]
    kernel: Option<PathBuf>,
    /// The initramfs with guest-init that goes with --kernel
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initramfs: Option<PathBuf>,
}

impl BootArgs {
    fn source(self) -> BootSource {
        match (self.image, self.kernel, self.initramfs) {
            (Some(image), ..) => BootSource::Image(image),
            (_, Some(kernel), Some(initramfs)) => BootSource::Files { kernel, initramfs },
            _ => BootSource::Default,
        }
    }
}

#[derive(Args, Debug)]
struct DoctorArgs {
    /// A directory on the file system that is to hold uppers
    #[arg(long, value_name = "DIR", default_value = ".")]
    directory: PathBuf,
    #[command(flatten)]
    boot: BootArgs,
}

impl DoctorArgs {
    fn config(self) -> Result<DoctorConfig, Stop> {
        let boot = self.boot.source();
        Ok(DoctorConfig { program: program()?, directory: self.directory, boot })
    }
}

fn program() -> Result<PathBuf, Stop> {
    std::env::current_exe()
        .map_err(|error| Stop::Usage(format!("cannot find the thinroot program itself: {error}")))
}

#[cfg(test)]
mod tests {
    use thinroot::vm::config::UpperArgument;

    use super::*;

    fn words(line: &str) -> Result<Config, Stop> {
        parse(std::iter::once("thinroot").chain(line.split_whitespace()).map(OsString::from))
    }

    fn usage(line: &str) -> String {
        match words(line) {
            Err(Stop::Usage(text)) => text,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn every_command_and_option_is_declared_soundly() {
        Cli::command().debug_assert();
    }

    #[test]
    fn lowers_and_layers_keep_their_common_order() {
        let line = "serve --lower /a --layer /b --upper /u --lower /c --socket /s --layer /d";
        let Command::Serve(serve) = words(line).unwrap().command else { panic!("{line}") };
        let expected = [
            LowerArgument::Tree("/a".into()),
            LowerArgument::Layer("/b".into()),
            LowerArgument::Tree("/c".into()),
            LowerArgument::Layer("/d".into()),
        ];
        assert_eq!(serve.union.base.lowers, expected);
        assert_eq!(serve.union.work, Path::new("/.u.work"));
    }

    #[test]
    fn wrong_command_line_is_told_in_one_line_that_names_the_option() {
        let rows = [
            ("serve --lower /a --upper /u", "--socket"),
            ("serve --lower /a --upper /u --socket /s --fd 3", "--fd"),
            ("serve --upper /u --socket /s", "--lower"),
            ("serve --lower /a --upper /u --socket /s --once=yes", "--once"),
            ("serve --lower /a --upper /u --socket /s --queues many", "--queues"),
            ("serve --lower /a --upper /u --socket /s --poll-us 1001", "--poll-us"),
            ("serve --lower /a --upper /u --socket /s --stdio-fds 1,2", "three descriptors"),
            ("serve --lower /a --upper /u --socket /s --sockt /s", "--sockt"),
            ("serve --lower /a --upper /u --socket /s --sandbox maybe", "--sandbox"),
            ("serve --lower /a --upper / --socket /s", "--work"),
            ("mount --lower /a --upper /u", "<MOUNTPOINT>"),
            ("image", "--kernel"),
            ("image --kernel /k", "--modules"),
            ("image --root / --suite sid", "--suite"),
            ("run --lower /a --memory 12x", "--memory"),
            ("run --lower /a --env X", "NAME=VALUE"),
            ("run --lower /a --upper /u --discard", "--discard"),
            ("run --lower /a --kernel /k", "--initramfs"),
            ("reset", "<UPPER>"),
            ("destroy", "destroy"),
        ];
        for (line, named) in rows {
            let text = usage(line);
            assert!(text.contains(named) && !text.contains('\n'), "{line}: {text}");
        }
    }

    #[test]
    fn help_and_version_are_no_errors() {
        for line in ["--help", "serve --help", "--version", "run -h"] {
            assert!(matches!(words(line), Err(Stop::Said(_))), "{line}");
        }
        assert!(usage("").contains("expected a command"));
    }

    #[test]
    fn what_follows_the_dashes_is_the_guests_command() {
        let Command::Run(run) = words("run --lower /a -v -- ls --help -v").unwrap().command else {
            panic!("run");
        };
        assert_eq!(run.command, ["ls", "--help", "-v"]);
        assert!(run.verbose);
        assert_eq!(run.upper, UpperArgument::Discard { parent: None });
    }
}
