//! PID 1 of a thinroot guest: from the initramfs into the union, and there the real init or one
//! command. Whatever fails is said in one line, on the console and to the host, and the power
//! goes off.

mod child;
mod command;
mod consoles;
mod failure;
mod host;
mod modules;
mod parameters;
mod root;
mod streams;
mod sys;
mod union;

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::system::{RebootCommand, reboot};

use command::{Mode, Plan};
use consoles::{Consoles, say_on_stderr};
use failure::{Failure, OrFail};
use host::{Report, Streams};
use parameters::Parameters;

fn main() -> ExitCode {
    if !rustix::process::getpid().is_init() {
        say_on_stderr("guest-init: this is PID 1 of a thinroot guest; it runs nowhere else\n");
        return ExitCode::FAILURE;
    }
    panic::set_hook(Box::new(|panic| say_on_stderr(&format!("thinroot: guest-init: {panic}\n"))));
    let mut guest = Guest::default();
    let ended = panic::catch_unwind(AssertUnwindSafe(|| guest.run()))
        .unwrap_or_else(|_| Err(Failure::new("guest-init panicked; the console says where")));
    // PID 1 must not panic while it ends either: the kernel would.
    panic::catch_unwind(AssertUnwindSafe(|| guest.end(ended.err()))).ok();
    power_off()
}

/// How far the guest has come on its way into the union.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Initramfs,
    UnionMounted,
    UnionIsRoot,
}

#[derive(Debug, Default)]
struct Guest {
    consoles: Consoles,
    place: Place,
}

impl Guest {
    /// The whole way. `Ok` when a command has ended and its status is with the host; boot mode
    /// comes back only if it failed.
    fn run(&mut self) -> Result<(), Failure> {
        root::mount_kernel_file_systems()?;
        self.consoles = Consoles::open()?;
        let command_line = fs::read("/proc/cmdline").or_fail(|| "read /proc/cmdline".to_owned())?;
        let parameters = Parameters::parse(&command_line);
        modules::load()?;
        root::prepare()?;
        union::mount_union(&parameters.tag, Path::new(root::UNION))?;
        self.place = Place::UnionMounted;
        let (plan, streams) = host::plan(Path::new(root::UNION))?;
        root::enter_union()?;
        self.place = Place::UnionIsRoot;
        if let Some(hostname) = &plan.hostname {
            rustix::system::sethostname(hostname).or_fail(|| "set the hostname".to_owned())?;
        }
        match (&plan.mode, streams) {
            (Mode::Boot(init), _) => {
                let init = init.clone().or(parameters.init.map(path)).unwrap_or_else(default_init);
                self.boot(&init, &plan)
            }
            (Mode::Command(command), Some(streams)) => self.command(command, &plan, streams),
            (Mode::Command(_), None) => Err(Failure::new("the command has no streams")),
        }
    }

    /// Becomes the real init, with the arguments and variables the kernel left for it.
    fn boot(&mut self, init: &Path, plan: &Plan) -> Result<(), Failure> {
        self.ready(&format!("boot {}", init.display()));
        let arguments = std::env::args_os().skip(1).collect::<Vec<OsString>>();
        // `exec` gives the new program the default SIGPIPE and an empty signal mask.
        let error = std::process::Command::new(init)
            .args(arguments)
            .envs(plan.environment.iter().map(|(name, value)| (name, value)))
            .exec();
        Err(error).or_fail(|| format!("boot {}", init.display()))
    }

    fn command(
        &mut self,
        command: &command::Command,
        plan: &Plan,
        streams: Streams,
    ) -> Result<(), Failure> {
        root::mount_for_command()?;
        if let Err(error) = sys::loopback_up() {
            self.consoles.say(&format!("warning: no loopback interface: {error}"));
        }
        self.ready("command");
        let status = child::run(command, &plan.environment, streams)?;
        let reported = host::report(self.union(), Report::Exit(status));
        reported.or_fail(|| format!("report the exit status {status} to the host"))
    }

    /// Readiness is news, not a condition: a daemon that does not take it serves all the same.
    fn ready(&mut self, text: &str) {
        host::report(self.union(), Report::Ready(text)).ok();
    }

    fn union(&self) -> &'static Path {
        Path::new(if self.place == Place::UnionIsRoot { "/" } else { root::UNION })
    }

    /// Says and reports the failure if there was one, ends what still runs and unmounts.
    fn end(&mut self, failure: Option<Failure>) {
        if let Some(failure) = failure {
            let line = failure.to_string();
            self.consoles.say(&line);
            if self.place != Place::Initramfs {
                // The console has it; a daemon that is gone cannot be told.
                host::report(self.union(), Report::Failure(&line)).ok();
            }
        }
        child::kill_the_rest();
        if self.place != Place::Initramfs
            && let Err(error) = root::leave_union(self.place == Place::UnionIsRoot)
        {
            self.consoles.say(&format!("the union was still in use at the end: {error}"));
        }
        self.consoles.drain();
    }
}

fn path(bytes: Vec<u8>) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    OsString::from_vec(bytes).into()
}

fn default_init() -> PathBuf {
    "/sbin/init".into()
}

/// Turns the machine off, by whatever means it has; PID 1 must not return.
fn power_off() -> ! {
    for way in [RebootCommand::PowerOff, RebootCommand::Restart, RebootCommand::Halt] {
        if let Err(error) = reboot(way) {
            say_on_stderr(&format!("thinroot: {way:?}: {error}\n"));
        }
    }
    loop {
        std::thread::park();
    }
}
