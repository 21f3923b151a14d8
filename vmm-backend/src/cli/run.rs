//! The options of `thinroot run`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, ValueEnum};
use thinroot::vm::config::{
    AccelChoice, LowerArgument, Network, OnCrash, RunConfig, UpperArgument, VmmChoice,
};

use super::values::{assignment, seconds, size_bytes};
use super::{BootArgs, LowerArgs, Stop, program};

#[derive(Clone, Copy, ValueEnum, Debug)]
enum AccelArg {
    Auto,
    Kvm,
    Tcg,
}

#[derive(Clone, Copy, ValueEnum, Debug)]
enum NetArg {
    None,
    User,
}

#[derive(Clone, Copy, ValueEnum, Debug)]
enum OnCrashArg {
    Keep,
    Discard,
}

/// The options of `thinroot run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    lowers: LowerArgs,
    /// Keep the guest's changes in this directory [default: they are discarded]
    #[arg(long, value_name = "DIR", conflicts_with_all = ["discard", "discard_dir"])]
    upper: Option<PathBuf>,
    /// The upper's work directory, on the same mount [default: .NAME.work beside an upper NAME]
    #[arg(long, value_name = "DIR", requires = "upper")]
    work: Option<PathBuf>,
    /// Discard the guest's changes at the end (the default without --upper)
    #[arg(long)]
    discard: bool,
    /// Where the upper to be discarded is made [default: the first of $TMPDIR, /var/tmp and /tmp
    /// that can hold one]
    #[arg(long, value_name = "DIR")]
    discard_dir: Option<PathBuf>,
    /// What becomes of a discarded upper when the guest crashed
    #[arg(long, value_name = "WHAT", default_value = "discard")]
    on_crash: OnCrashArg,
    #[command(flatten)]
    boot: BootArgs,
    /// What the guest runs on; auto takes KVM if it is as fast as it should be
    #[arg(long, value_name = "WHAT", default_value = "auto")]
    accel: AccelArg,
    /// The VMM: qemu, cloud-hypervisor, or the path of one
    #[arg(long, value_name = "VMM", default_value = "qemu")]
    vmm: OsString,
    /// A further argument for the VMM, at its end; may be repeated
    #[arg(long, value_name = "ARG", action = ArgAction::Append, allow_hyphen_values = true)]
    vmm_arg: Vec<OsString>,
    /// The guest's memory; K, M and G count in powers of 1024
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = size_bytes)]
    memory: u64,
    /// The guest's processors
    #[arg(long, value_name = "N", default_value_t = 2,
        value_parser = clap::value_parser!(u32).range(1..=512))]
    cpus: u32,
    /// Request queues of the guest's file system
    #[arg(long, value_name = "N", default_value_t = 2,
        value_parser = clap::value_parser!(u16).range(1..=63))]
    queues: u16,
    /// Tag of the guest's file system
    #[arg(long, value_name = "TAG", default_value = "thinroot")]
    tag: String,
    /// The guest's network
    #[arg(long, value_name = "WHAT", default_value = "none")]
    net: NetArg,
    /// Set a variable for the command; may be repeated
    #[arg(long, value_name = "K=V", action = ArgAction::Append, value_parser = assignment)]
    env: Vec<OsString>,
    /// The command's working directory in the guest [default: /]
    #[arg(long, value_name = "DIR")]
    cwd: Option<OsString>,
    /// The guest's host name [default: the base's]
    #[arg(long, value_name = "NAME")]
    hostname: Option<OsString>,
    /// Give the command a terminal
    #[arg(long)]
    tty: bool,
    /// End everything after so many seconds, with status 124 [default: never]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    /// Give up on a guest that is not ready after so many seconds, 0 for never [default: 60 with
    /// KVM, 300 without]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    boot_timeout: Option<Duration>,
    /// Put the guest's console into this file and keep it [default: a temporary file]
    #[arg(long, value_name = "FILE")]
    console: Option<PathBuf>,
    /// A further kernel argument; may be repeated
    #[arg(long, value_name = "ARG", action = ArgAction::Append, allow_hyphen_values = true)]
    append: Vec<String>,
    /// A further option for serve, such as --lax; may be repeated
    #[arg(long, value_name = "ARG", action = ArgAction::Append, allow_hyphen_values = true)]
    serve_arg: Vec<OsString>,
    /// Print the command lines of daemon and VMM, and start nothing
    #[arg(long)]
    print: bool,
    /// Write what happened as JSON to this file, - for standard error [default: none]
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
    /// Show the guest's boot messages
    #[arg(long, short)]
    verbose: bool,
    /// The command and its arguments [default: boot the base's own init, with a console]
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

impl RunArgs {
    /// What `thinroot run` was asked for.
    pub fn config(self, lowers: Vec<LowerArgument>) -> Result<RunConfig, Stop> {
        let upper = match self.upper {
            Some(upper) => UpperArgument::Keep { upper, work: self.work },
            None => UpperArgument::Discard { parent: self.discard_dir },
        };
        let mut daemon_arguments = self.serve_arg;
        if let Some(index) = self.lowers.index {
            daemon_arguments.extend(["--index".into(), index.into_os_string()]);
        }
        Ok(RunConfig {
            program: program()?,
            lowers,
            upper,
            boot: self.boot.source(),
            accel: match self.accel {
                AccelArg::Auto => AccelChoice::Auto,
                AccelArg::Kvm => AccelChoice::Kvm,
                AccelArg::Tcg => AccelChoice::Tcg,
            },
            vmm: vmm(self.vmm),
            memory_bytes: self.memory,
            cpus: self.cpus,
            queues: self.queues,
            tag: self.tag,
            network: match self.net {
                NetArg::None => Network::None,
                NetArg::User => Network::User,
            },
            command: self.command,
            environment: self.env,
            directory: self.cwd,
            hostname: self.hostname,
            tty: self.tty,
            timeout: self.timeout,
            boot_timeout: self.boot_timeout,
            on_crash: match self.on_crash {
                OnCrashArg::Keep => OnCrash::Keep,
                OnCrashArg::Discard => OnCrash::Discard,
            },
            print: self.print,
            json: self.json,
            verbose: self.verbose,
            console: self.console,
            kernel_arguments: self.append,
            vmm_arguments: self.vmm_arg,
            daemon_arguments,
        })
    }
}

fn vmm(name: OsString) -> VmmChoice {
    match name.to_str() {
        Some("qemu") => VmmChoice::Qemu,
        Some("cloud-hypervisor") => VmmChoice::CloudHypervisor,
        _ => VmmChoice::Path(name.into()),
    }
}
