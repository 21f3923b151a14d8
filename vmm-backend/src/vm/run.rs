//! `thinroot run`: what is asked for, and the road from there to an exit status.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::boot::{BootFiles, BootSource};
use super::discard::{ScratchDirectory, scratch_parent, upper_parent};
use super::kvm::{self, KvmProbe};
use super::outcome::{End, Outcome};
use super::plan::CommandLine;
use super::supervise::{Attempt, attempt};
use super::{cloud_hypervisor, daemon, qemu};

/// Our own failures.
pub const STATUS_OURS: u8 = 125;
/// `--timeout` ran out.
pub const STATUS_TIMEOUT: u8 = 124;
/// The guest panicked, hung in its boot, or vanished without a report.
pub const STATUS_VANISHED: u8 = 123;

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

/// Why a run did not come about.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Something asked for is not there or does not fit; the text names it and the next step.
    #[error("{0}")]
    Refused(String),
    /// A system call failed on something.
    #[error("{what}: {cause}")]
    System {
        /// What was tried, and on what.
        what: String,
        /// What the system said.
        cause: io::Error,
    },
}

impl RunError {
    /// Wraps what the system said about `what`.
    pub fn system<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |cause| Self::System { what, cause: cause.into() }
    }
}

/// The VMM that was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Vmm {
    /// QEMU.
    Qemu(PathBuf),
    /// cloud-hypervisor.
    CloudHypervisor(PathBuf),
}

/// What a run stands on, once everything asked for is found.
#[derive(Debug)]
pub struct Ground {
    /// The VMM.
    pub vmm: Vmm,
    /// Kernel and initramfs.
    pub boot: BootFiles,
    /// The tree with the kernel's modules.
    pub modules: Option<PathBuf>,
    /// What the guest runs on.
    pub accelerator: Accelerator,
    /// Why.
    pub accelerator_reason: String,
}

/// Runs a guest and gives the exit status of `thinroot run`: the command's (128+n for signals), or
/// one of [`STATUS_OURS`], [`STATUS_TIMEOUT`], [`STATUS_VANISHED`].
///
/// Standard output carries only the command's bytes (or the console, without a command); one line
/// on standard error says accelerator, kernel and boot time.
///
/// Call it from the main thread: children die with the thread that started them.
pub fn run(config: &RunConfig) -> u8 {
    match run_on_ground(config) {
        Ok(status) => status,
        Err(cause) => {
            say(&cause.to_string());
            STATUS_OURS
        }
    }
}

fn run_on_ground(config: &RunConfig) -> Result<u8, RunError> {
    let mut ground = find_ground(config)?;
    if config.print {
        return print(config, &ground);
    }
    let mut outcome = once(config, &ground)?;
    if outcome.end == End::Silent && can_fall_back(config, &ground) {
        ground.accelerator = Accelerator::Tcg;
        ground.accelerator_reason = "KVM gave no sign of life".to_owned();
        say("no sign of life from the guest on KVM: trying again with TCG");
        outcome = once(config, &ground)?;
    }
    outcome.report(config, &ground);
    Ok(outcome.end.status())
}

fn can_fall_back(config: &RunConfig, ground: &Ground) -> bool {
    config.accel == AccelChoice::Auto
        && ground.accelerator == Accelerator::Kvm
        && matches!(ground.vmm, Vmm::Qemu(_))
}

/// Finds everything before anything is started, so that what is missing costs nothing.
fn find_ground(config: &RunConfig) -> Result<Ground, RunError> {
    check_tag(&config.tag)?;
    let vmm = find_vmm(&config.vmm)?;
    let boot = config.boot.open()?;
    let (accelerator, accelerator_reason) = choose_accelerator(config, &vmm)?;
    let modules = boot.modules_below(&config.lowers)?;
    Ok(Ground { vmm, boot, modules, accelerator, accelerator_reason })
}

/// The device has 36 bytes for it (virtio 1.2, 5.11.4), the kernel's command line no escapes.
fn check_tag(tag: &str) -> Result<(), RunError> {
    let is_plain = |c: char| c.is_ascii_graphic() && !"\"',".contains(c);
    if (1..=36).contains(&tag.len()) && tag.chars().all(is_plain) {
        return Ok(());
    }
    Err(RunError::Refused(format!(
        "--tag {tag:?}: expected 1 to 36 printable ASCII characters without blanks, quotes and commas"
    )))
}

fn find_vmm(choice: &VmmChoice) -> Result<Vmm, RunError> {
    match choice {
        VmmChoice::Qemu => {
            super::boot::find_program(&qemu::PROGRAMS).map(Vmm::Qemu).ok_or_else(|| {
                RunError::Refused(
                "--vmm qemu: no qemu-system-x86_64 in $PATH; install it (Debian: qemu-system-x86)"
                    .to_owned(),
            )
            })
        }
        VmmChoice::CloudHypervisor => super::boot::find_program(&[cloud_hypervisor::PROGRAM])
            .map(Vmm::CloudHypervisor)
            .ok_or_else(|| {
                RunError::Refused(
                    "--vmm cloud-hypervisor: not in $PATH; give its path with --vmm PATH"
                        .to_owned(),
                )
            }),
        VmmChoice::Path(path) if !path.is_file() => Err(RunError::Refused(format!(
            "--vmm {}: no such program; expected qemu, cloud-hypervisor or the path of one",
            path.display()
        ))),
        VmmChoice::Path(path) => {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Ok(if name.contains(cloud_hypervisor::PROGRAM) {
                Vmm::CloudHypervisor(path.clone())
            } else {
                Vmm::Qemu(path.clone())
            })
        }
    }
}

fn choose_accelerator(config: &RunConfig, vmm: &Vmm) -> Result<(Accelerator, String), RunError> {
    let asked = |choice: &str| format!("asked for with --accel {choice}");
    match (config.accel, vmm) {
        (AccelChoice::Kvm, _) => Ok((Accelerator::Kvm, asked("kvm"))),
        (AccelChoice::Tcg, Vmm::Qemu(_)) => Ok((Accelerator::Tcg, asked("tcg"))),
        (AccelChoice::Tcg, Vmm::CloudHypervisor(_)) => Err(RunError::Refused(
            "--accel tcg: cloud-hypervisor runs on KVM only; use --vmm qemu".to_owned(),
        )),
        (AccelChoice::Auto, vmm) => accept(kvm::probe(&config.program), vmm),
    }
}

fn accept(found: KvmProbe, vmm: &Vmm) -> Result<(Accelerator, String), RunError> {
    let reason = format!("KVM {}", found.reason);
    match vmm {
        _ if found.usable => Ok((Accelerator::Kvm, reason)),
        Vmm::Qemu(_) => Ok((Accelerator::Tcg, reason)),
        Vmm::CloudHypervisor(_) => Err(RunError::Refused(format!(
            "cloud-hypervisor runs on KVM only, and {reason}; use --vmm qemu, or --accel kvm to insist"
        ))),
    }
}

/// One attempt in directories of its own, which vanish with it.
fn once(config: &RunConfig, ground: &Ground) -> Result<Outcome, RunError> {
    let scratch = ScratchDirectory::make(&scratch_parent(), "thinroot-run-")?;
    let discarded = match &config.upper {
        UpperArgument::Keep { .. } => None,
        UpperArgument::Discard { parent } => {
            let parent = upper_parent(parent.as_deref(), &config.lowers)?;
            Some(ScratchDirectory::make(&parent, "thinroot-discard-")?)
        }
    };
    let places =
        Places::new(config, scratch.path(), discarded.as_ref().map(ScratchDirectory::path))?;
    let outcome = attempt(&Attempt { config, ground, places: &places })?;
    if let Some(discarded) = discarded
        && outcome.end.is_crash()
        && config.on_crash == OnCrash::Keep
    {
        say(&format!("the crashed guest's upper is kept: {}", discarded.keep().display()));
    }
    Ok(outcome)
}

/// The paths of one attempt.
#[derive(Clone, Debug)]
pub struct Places {
    /// The upper.
    pub upper: PathBuf,
    /// The work directory, where it is not `serve`'s default.
    pub work: Option<PathBuf>,
    /// The console's file.
    pub console: PathBuf,
    /// What the VMM says on its own standard error.
    pub vmm_log: PathBuf,
    /// The socket for a VMM that takes no descriptor.
    pub socket: PathBuf,
}

impl Places {
    fn new(config: &RunConfig, scratch: &Path, discarded: Option<&Path>) -> Result<Self, RunError> {
        let (upper, work) = match (&config.upper, discarded) {
            (UpperArgument::Keep { upper, work }, _) => (upper.clone(), work.clone()),
            (UpperArgument::Discard { .. }, made) => {
                let made = made.unwrap_or(scratch);
                (made.join("upper"), Some(made.join("work")))
            }
        };
        let socket = scratch.join("fs");
        // unix(7): sun_path has 108 bytes, one of them NUL.
        if socket.as_os_str().len() > 107 {
            return Err(RunError::Refused(format!(
                "socket path {} is longer than 107 bytes; point XDG_RUNTIME_DIR or TMPDIR at a shorter directory",
                socket.display()
            )));
        }
        let console = config.console.clone().unwrap_or_else(|| scratch.join("console"));
        Ok(Self { upper, work, console, vmm_log: scratch.join("vmm.log"), socket })
    }

    /// What `--print` shows where a directory would be made.
    fn example(config: &RunConfig) -> Result<Self, RunError> {
        let scratch = scratch_parent().join("thinroot-run-XXXXXX");
        let discarded = match &config.upper {
            UpperArgument::Keep { .. } => None,
            UpperArgument::Discard { parent } => Some(
                upper_parent(parent.as_deref(), &config.lowers)?.join("thinroot-discard-XXXXXX"),
            ),
        };
        Self::new(config, &scratch, discarded.as_deref())
    }
}

fn print(config: &RunConfig, ground: &Ground) -> Result<u8, RunError> {
    let places = Places::example(config)?;
    let [daemon, vmm] = command_lines(config, ground, &places)?;
    let text = format!(
        "# {}: {}; descriptors from {} on are made by thinroot run\n{daemon}\n{vmm}\n",
        ground.accelerator.name(),
        ground.accelerator_reason,
        daemon::DESCRIPTORS_FROM
    );
    io::stdout().lock().write_all(text.as_bytes()).map_err(RunError::system("standard output"))?;
    Ok(0)
}

/// The daemon's and the VMM's command lines.
pub fn command_lines(
    config: &RunConfig,
    ground: &Ground,
    places: &Places,
) -> Result<[CommandLine; 2], RunError> {
    let machine = machine(config, ground, places);
    let vmm = match &ground.vmm {
        Vmm::Qemu(program) => {
            let firmware = if ground.boot.is_pvh { qemu::qboot() } else { None };
            qemu::command_line(program, &machine, firmware.as_deref(), daemon::VMM_SOCKET)
        }
        Vmm::CloudHypervisor(program) => {
            if let Some(refusal) = cloud_hypervisor::refusal(&machine) {
                return Err(RunError::Refused(refusal.to_owned()));
            }
            cloud_hypervisor::command_line(program, &machine, &places.socket)
        }
    };
    Ok([daemon::command_line(config, ground, places), vmm])
}

fn machine(config: &RunConfig, ground: &Ground, places: &Places) -> Machine {
    let log = places.console.clone();
    let console =
        if config.command.is_empty() { Console::Stdio { log } } else { Console::File(log) };
    Machine {
        accelerator: ground.accelerator,
        memory_bytes: config.memory_bytes,
        cpus: config.cpus,
        queues: config.queues,
        tag: config.tag.clone(),
        kernel: ground.boot.kernel.clone(),
        initramfs: ground.boot.initramfs.clone(),
        kernel_arguments: kernel_arguments(config, ground.accelerator),
        console,
        network: config.network,
        vmm_arguments: config.vmm_arguments.clone(),
    }
}

fn kernel_arguments(config: &RunConfig, accelerator: Accelerator) -> String {
    // panic=-1: a panic ends the VM at once (with the VMM's -no-reboot) instead of hanging it.
    let mut words = vec!["console=ttyS0".to_owned(), "panic=-1".to_owned()];
    words.push(format!("thinroot.tag={}", config.tag));
    // Linux tests whether timer interrupts come; on a busy host TCG gets none through in that time
    // and the guest panics. On KVM it knows better by itself (kernel/kvm.c, kvm_guest_init).
    if accelerator == Accelerator::Tcg {
        words.push("no_timer_check".to_owned());
    }
    // A serial console is slow: boot messages cost time that only -v or a failure asks for. The
    // few notices that stay begin with the kernel's first line, its sign of life.
    if !config.verbose && !config.command.is_empty() {
        words.push("loglevel=6".to_owned());
    }
    words.extend(config.kernel_arguments.iter().cloned());
    words.join(" ")
}

/// One line of ours on standard error.
pub fn say(line: &str) {
    if let Err(cause) = writeln!(io::stderr().lock(), "thinroot: {line}") {
        log::debug!("standard error is gone: {cause}");
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn machine() -> Machine {
        Machine {
            accelerator: Accelerator::Tcg,
            memory_bytes: 1 << 30,
            cpus: 2,
            queues: 1,
            tag: "thinroot".to_owned(),
            kernel: "/image/vmlinux".into(),
            initramfs: "/image/initramfs".into(),
            kernel_arguments: "console=ttyS0 quiet".to_owned(),
            console: Console::File("/run/console".into()),
            network: Network::None,
            vmm_arguments: Vec::new(),
        }
    }

    pub(crate) fn config() -> RunConfig {
        RunConfig {
            program: "/bin/thinroot".into(),
            lowers: vec![LowerArgument::Tree("/base".into())],
            upper: UpperArgument::Keep { upper: "/up".into(), work: None },
            boot: BootSource::Default,
            accel: AccelChoice::Tcg,
            vmm: VmmChoice::Qemu,
            memory_bytes: 1 << 30,
            cpus: 2,
            queues: 1,
            tag: "thinroot".to_owned(),
            network: Network::None,
            command: vec!["/bin/true".into()],
            environment: Vec::new(),
            directory: None,
            hostname: None,
            tty: false,
            timeout: None,
            boot_timeout: None,
            on_crash: OnCrash::Discard,
            print: false,
            json: None,
            verbose: false,
            console: None,
            kernel_arguments: Vec::new(),
            vmm_arguments: Vec::new(),
            daemon_arguments: Vec::new(),
        }
    }

    pub(crate) fn ground() -> Ground {
        Ground {
            vmm: Vmm::Qemu("/bin/qemu".into()),
            boot: BootFiles {
                kernel: "/image/vmlinuz".into(),
                is_pvh: false,
                initramfs: "/image/initramfs".into(),
                image: None,
            },
            modules: None,
            accelerator: Accelerator::Tcg,
            accelerator_reason: "asked for".to_owned(),
        }
    }

    #[test]
    fn cloud_hypervisor_without_kvm_is_refused_with_a_way_out() {
        let slow = || KvmProbe { usable: false, reason: "is far too slow".to_owned() };
        let refused = accept(slow(), &Vmm::CloudHypervisor("/c".into())).unwrap_err().to_string();
        assert!(refused.contains("far too slow") && refused.contains("--vmm qemu"), "{refused}");
        let (accelerator, reason) = accept(slow(), &Vmm::Qemu("/q".into())).unwrap();
        assert_eq!((accelerator, reason.as_str()), (Accelerator::Tcg, "KVM is far too slow"));
    }

    #[test]
    fn program_of_another_name_is_a_qemu() {
        assert_eq!(
            find_vmm(&VmmChoice::Path("/bin/sh".into())).unwrap(),
            Vmm::Qemu("/bin/sh".into())
        );
        let missing = find_vmm(&VmmChoice::Path("/no/such".into())).unwrap_err().to_string();
        assert!(missing.contains("--vmm /no/such"), "{missing}");
    }

    #[test]
    fn boot_messages_are_for_consoles_and_verbose() {
        let has_all =
            |config: &RunConfig| !kernel_arguments(config, Accelerator::Kvm).contains("loglevel");
        assert!(!has_all(&config()));
        assert!(has_all(&RunConfig { verbose: true, ..config() }));
        assert!(has_all(&RunConfig { command: vec![], ..config() }));
    }

    #[test]
    fn busy_hosts_do_not_panic_guests_on_tcg() {
        let has_check =
            |accelerator| !kernel_arguments(&config(), accelerator).contains("no_timer_check");
        assert!(has_check(Accelerator::Kvm) && !has_check(Accelerator::Tcg));
    }

    #[test]
    fn tag_the_device_or_the_kernel_would_mangle_is_refused() {
        for tag in ["", "two words", "a\"b", "0123456789012345678901234567890123456"] {
            assert!(check_tag(tag).unwrap_err().to_string().starts_with("--tag"), "{tag}");
        }
        check_tag("thinroot-1").unwrap();
    }

    #[test]
    fn socket_path_over_107_bytes_is_refused() {
        let long = PathBuf::from("/tmp").join("x".repeat(120));
        let refused = Places::new(&config(), &long, None).unwrap_err().to_string();
        assert!(refused.contains("107 bytes"), "{refused}");
    }
}
