//! PID 1 of a thinroot guest: from the initramfs into the union, and there the real init or one
//! command. Whatever fails is said in one line, on the console and to the host, and the power
//! goes off. systemd calls it again at the very end, to unmount the union.

mod child;
mod command;
mod consoles;
mod failure;
mod host;
mod leave;
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

use rustix::mount::{MountFlags, mount_remount};
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
    let ended = panic::catch_unwind(AssertUnwindSafe(|| match Ending::asked_for() {
        None => guest.run().map(|()| Ending::PowerOff),
        Some(ending) => guest.shut_down(ending).map(|()| ending),
    }))
    .unwrap_or_else(|_| Err(Failure::new("guest-init panicked; the console says where")));
    // PID 1 must not panic while it ends either: the kernel would.
    panic::catch_unwind(AssertUnwindSafe(|| guest.end(ended.as_ref().err()))).ok();
    ended.unwrap_or(Ending::PowerOff).carry_out()
}

/// How far the guest has come on its way into the union, and out again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Initramfs,
    UnionMounted,
    UnionIsRoot,
    /// systemd is gone and has put the union at [`OLD_ROOT`].
    UnionIsOldRoot,
}

/// systemd-shutdown(8): where the root is once `/run/initramfs` is the root.
const OLD_ROOT: &str = "/oldroot";

/// What becomes of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    PowerOff,
    Restart,
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
        let program = fs::read("/init").or_fail(|| "read /init".to_owned())?;
        let (plan, streams) = host::plan(Path::new(root::UNION))?;
        root::enter_union()?;
        self.place = Place::UnionIsRoot;
        if let Some(hostname) = &plan.hostname {
            rustix::system::sethostname(hostname).or_fail(|| "set the hostname".to_owned())?;
        }
        match (&plan.mode, streams) {
            (Mode::Boot(init), _) => {
                let init = init.clone().or(parameters.init.map(path)).unwrap_or_else(default_init);
                root::keep_for_shutdown(&program)?;
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

    /// The init has ended all it started and wants the machine to end.
    fn shut_down(&mut self, ending: Ending) -> Result<(), Failure> {
        self.place = Place::UnionIsOldRoot;
        self.consoles = Consoles::open()?;
        if ending == Ending::Restart {
            return Ok(());
        }
        // systemd has made it read-only; a report is a write.
        let union = self.union();
        mount_remount(union, MountFlags::empty(), c"")
            .and_then(|()| host::report(union, Report::Exit(0)))
            .or_fail(|| "report the power-off to the host".to_owned())
    }

    /// Readiness is news, not a condition: a daemon that does not take it serves all the same.
    fn ready(&mut self, text: &str) {
        host::report(self.union(), Report::Ready(text)).ok();
    }

    fn union(&self) -> &'static Path {
        Path::new(match self.place {
            Place::UnionIsRoot => "/",
            Place::UnionIsOldRoot => OLD_ROOT,
            Place::Initramfs | Place::UnionMounted => root::UNION,
        })
    }

    /// Says and reports the failure if there was one, ends what still runs and unmounts.
    fn end(&mut self, failure: Option<&Failure>) {
        if let Some(failure) = failure {
            let line = failure.to_string();
            self.consoles.say(&line);
            if self.place != Place::Initramfs {
                // The console has it; a daemon that is gone cannot be told.
                host::report(self.union(), Report::Failure(&line)).ok();
            }
        }
        child::kill_the_rest();
        let left = match self.place {
            Place::Initramfs => Ok(()),
            Place::UnionIsRoot => leave::leave_root(),
            Place::UnionMounted => leave::leave(root::UNION),
            Place::UnionIsOldRoot => leave::leave(OLD_ROOT),
        };
        if let Err(error) = left {
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

impl Ending {
    /// How systemd-shutdown(8) calls its successor: `/shutdown VERB`. The kernel calls `/init`.
    fn asked_for() -> Option<Ending> {
        let mut arguments = std::env::args_os();
        if arguments.next()? != "/shutdown" {
            return None;
        }
        // A halted VM would be a VMM that never ends; nothing is loaded for kexec.
        let is_restart = arguments.next().is_some_and(|verb| verb == "reboot" || verb == "kexec");
        Some(if is_restart { Ending::Restart } else { Ending::PowerOff })
    }

    /// Ends the machine by whatever means it has; PID 1 must not return.
    fn carry_out(self) -> ! {
        let ways = match self {
            Ending::PowerOff => [RebootCommand::PowerOff, RebootCommand::Restart],
            Ending::Restart => [RebootCommand::Restart, RebootCommand::PowerOff],
        };
        for way in ways {
            if let Err(error) = reboot(way) {
                say_on_stderr(&format!("thinroot: {way:?}: {error}\n"));
            }
        }
        loop {
            std::thread::park();
        }
    }
}
