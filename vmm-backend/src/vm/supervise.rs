//! One attempt: the daemon, the VMM, what they report, and their common end.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, waitid,
};

use super::command::GuestCommand;
use super::config::{Accelerator, RunConfig, UpperArgument};
use super::daemon::{COMMAND, EVENTS, SOCKET, STDIO, VMM_SOCKET};
use super::error::{RunError, say};
use super::events::{Event, Record};
use super::ground::{Ground, Vmm};
use super::lines::command_lines;
use super::outcome::{End, Outcome, Stages, ended_in_order, panic, ready_line, tail};
use super::places::Places;
use super::terminal::{self, SavedTerminal};
use super::traffic::Traffic;
use crate::sys::process::{die_with_parent, keep_descriptors, number};
use crate::sys::signal::{ENDING, Signals};

/// While nobody knows whether the guest lives, and with `-v`, the console is looked at so often.
const TICK: Duration = Duration::from_millis(50);
/// A VMM that hung up early gets so long to say why before the daemon's word counts.
const GRACE: Duration = Duration::from_millis(500);
/// After its report a guest with a kept upper syncs and powers off within this.
const POWER_OFF_TIMEOUT: Duration = Duration::from_secs(60);
/// After the VMM is gone the daemon brings what it holds to the disk and ends within this.
const DAEMON_TIMEOUT: Duration = Duration::from_secs(60);
/// cloud-hypervisor needs the daemon's socket to be there: with an index to build, this is long.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(3600);

/// What one attempt works with.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// What was asked for.
    pub config: &'a RunConfig,
    /// What was found.
    pub ground: &'a Ground,
    /// Where its files are.
    pub places: &'a Places,
}

/// Starts daemon and VMM and follows them to their end; when it returns, neither is left.
///
/// Errors: [`RunError`] when they could not be started at all.
pub fn attempt(attempt: &Attempt<'_>) -> Result<Outcome, RunError> {
    let signals = Signals::catch(&ENDING).map_err(RunError::system("catching signals"))?;
    let terminal = borrow_terminal(attempt.config);
    let mut run = Run::start(attempt, signals)?;
    let end = run.follow();
    drop(terminal);
    Ok(run.finish(end))
}

/// The terminal is the guest's with `--tty` (raw) and without a command (QEMU makes it raw).
fn borrow_terminal(config: &RunConfig) -> Option<SavedTerminal> {
    let is_console = config.command.is_empty();
    if !config.tty && !is_console {
        return None;
    }
    let saved = SavedTerminal::of_input()?;
    if !is_console {
        saved.make_raw();
    }
    Some(saved)
}

/// A child of ours, killed when dropped, with what it started.
#[derive(Debug)]
struct Process {
    child: Child,
    pid: Pid,
    pidfd: OwnedFd,
    has_group: bool,
    status: Option<ExitStatus>,
}

impl Process {
    /// `reads_input`: it reads our standard input.
    fn start(mut command: Command, what: &str, reads_input: bool) -> Result<Self, RunError> {
        let program = command.get_program().to_string_lossy().into_owned();
        die_with_parent(&mut command);
        // A child in a group of its own gets no ^C of ours, and is killed with all it started; but
        // only the foreground group reads from a terminal.
        let has_group = !(reads_input && terminal::input_is_terminal());
        if has_group {
            command.process_group(0);
        }
        let child = command.spawn().map_err(RunError::system(format!("{what} {program}")))?;
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(RunError::system("pidfd_open"))?;
        Ok(Self { child, pid, pidfd, has_group, status: None })
    }

    /// Its status, once it ended; what it started is gone then too.
    fn ended(&mut self) -> Option<ExitStatus> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        if self.status.is_none()
            && !matches!(waitid(WaitId::PidFd(self.pidfd.as_fd()), options), Ok(None))
        {
            self.kill();
        }
        self.status
    }

    fn kill(&mut self) {
        if self.status.is_some() {
            return;
        }
        // It is not waited for yet, so its number, and its group's, are nobody else's.
        if self.has_group
            && let Err(cause) = kill_process_group(self.pid, Signal::KILL)
        {
            log::warn!("killing process group {}: {cause}", self.child.id());
        }
        match self.child.kill().and_then(|()| self.child.wait()) {
            Ok(status) => self.status = Some(status),
            Err(cause) => log::warn!("killing pid {}: {cause}", self.child.id()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A running attempt.
struct Run<'a> {
    attempt: &'a Attempt<'a>,
    start: Instant,
    stages: Stages,
    vmm: Process,
    daemon: Process,
    signals: Signals,
    events: Option<File>,
    unread: Vec<u8>,
    console: ConsoleWatch,
    requests: Traffic,
    report: Option<End>,
}

impl<'a> Run<'a> {
    fn start(attempt: &'a Attempt<'a>, signals: Signals) -> Result<Self, RunError> {
        let start = Instant::now();
        let [daemon_line, vmm_line] =
            command_lines(attempt.config, attempt.ground, attempt.places)?;
        make_empty(&attempt.places.console)?;
        make_upper(attempt)?;
        let mut ends = Ends::make(attempt.config)?;
        let mut daemon = daemon_line.command();
        keep_descriptors(&mut daemon, std::mem::take(&mut ends.daemon));
        daemon.stdin(Stdio::null()).stdout(Stdio::null());
        let is_command = !attempt.config.command.is_empty();
        let daemon = Process::start(daemon, "daemon", is_command)?;
        let vmm = start_vmm(attempt, vmm_line.command(), ends.vmm, &daemon)?;
        Ok(Self {
            attempt,
            start,
            stages: Stages::default(),
            vmm,
            daemon,
            signals,
            events: Some(ends.events),
            unread: Vec::new(),
            console: ConsoleWatch::new(&attempt.places.console, attempt.config),
            requests: Traffic::default(),
            report: None,
        })
    }

    /// Waits until something ends the run.
    fn follow(&mut self) -> End {
        loop {
            self.wait(self.next_deadline());
            self.read_events();
            self.console.look();
            if let Some(end) = self.over() {
                return end;
            }
        }
    }

    /// What ends the run, if something has.
    fn over(&mut self) -> Option<End> {
        if let Some(number) = self.signals.take() {
            return Some(End::Signal(number));
        }
        let discards = matches!(self.attempt.config.upper, UpperArgument::Discard { .. });
        if let Some(report) = &self.report
            && discards
        {
            // Its output is drained and nobody wants its upper: no need to watch it power off.
            return Some(report.clone());
        }
        if let Some(status) = self.vmm.ended() {
            self.stages.vmm_gone = Some(self.start.elapsed());
            return Some(self.judge_vmm(status));
        }
        if let Some(status) = self.daemon.ended() {
            return Some(self.judge_daemon(status));
        }
        self.late()
    }

    /// The VMM ended: the guest's report counts, and the daemon has read it by now or never will.
    fn judge_vmm(&mut self, status: ExitStatus) -> End {
        self.drain();
        if let Some(report) = self.report.take() {
            return report;
        }
        if let Some(refusal) = self.daemon.status.and_then(|status| self.refusal(status)) {
            return refusal;
        }
        // It ended by itself and with an error before the guest gave a sign of life.
        let has_refused = status.code().is_some_and(|code| code != 0) && !self.is_alive();
        if has_refused || self.stages.connected.is_none() {
            return End::Vmm(format!("it ended with {status} before the guest started"));
        }
        if self.attempt.config.command.is_empty()
            && status.success()
            && ended_in_order(&self.attempt.places.console)
        {
            return End::Off;
        }
        End::Vanished(match (panic(&self.attempt.places.console), status.signal()) {
            (Some(said), _) => format!("its kernel panicked: {said}"),
            (None, Some(number)) => format!("the VMM was killed by signal {number}"),
            (None, None) => format!("the VMM ended with {status}"),
        })
    }

    /// A daemon that ended with an error before the VMM was there has said why.
    fn refusal(&self, status: ExitStatus) -> Option<End> {
        (self.stages.connected.is_none() && status.code().is_some_and(|code| code != 0))
            .then_some(End::Refused)
    }

    fn judge_daemon(&mut self, status: ExitStatus) -> End {
        // A VMM that hangs up ends the daemon (--once) a moment before it ends itself.
        let deadline = Instant::now() + GRACE;
        while status.success() && self.vmm.ended().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        match self.vmm.ended() {
            Some(gone) if status.success() => self.judge_vmm(gone),
            _ => {
                self.read_events();
                let end = self.report.take().or_else(|| self.refusal(status));
                end.unwrap_or_else(|| End::Daemon(format!("it ended with {status}")))
            }
        }
    }

    fn late(&self) -> Option<End> {
        let now = self.start.elapsed();
        if self.attempt.config.timeout.is_some_and(|timeout| now >= timeout) {
            return Some(End::Timeout);
        }
        if let Some(reported) = self.stages.reported {
            return (now >= reported + POWER_OFF_TIMEOUT).then(|| {
                say("the guest reported its end but did not power off; stopping it");
                self.report.clone().unwrap_or(End::NotReady)
            });
        }
        let since = now.checked_sub(self.stages.connected?)?;
        let limits = Limits::of(self.attempt);
        if !self.is_alive() && limits.life.is_some_and(|limit| since >= limit) {
            return Some(End::Silent);
        }
        let is_late = self.stages.ready.is_none() && limits.ready.is_some_and(|l| since >= l);
        is_late.then_some(End::NotReady)
    }

    fn is_alive(&self) -> bool {
        self.console.has_bytes || self.stages.ready.is_some()
    }

    /// How long the next wait may take.
    fn next_deadline(&self) -> Option<Duration> {
        let now = self.start.elapsed();
        let limits = Limits::of(self.attempt);
        let from = |start: Option<Duration>, limit: Option<Duration>| {
            Some((start? + limit?).saturating_sub(now))
        };
        let waits_for_ready = self.stages.ready.is_none() && self.report.is_none();
        let ticks = self.attempt.config.verbose || (waits_for_ready && !self.is_alive());
        [
            self.attempt.config.timeout.map(|timeout| timeout.saturating_sub(now)),
            from(self.stages.reported, Some(POWER_OFF_TIMEOUT)),
            from(self.stages.connected.filter(|_| waits_for_ready), limits.ready),
            ticks.then_some(TICK),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn wait(&self, timeout: Option<Duration>) {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut set = vec![
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.vmm.pidfd, PollFlags::IN),
            PollFd::new(&self.daemon.pidfd, PollFlags::IN),
        ];
        if let Some(events) = &self.events {
            set.push(PollFd::new(events, PollFlags::IN));
        }
        match poll(&mut set, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(cause) => {
                log::warn!("poll: {cause}");
                std::thread::sleep(TICK);
            }
        }
    }

    fn read_events(&mut self) {
        let mut buffer = [0; 4096];
        while let Some(events) = &mut self.events {
            match events.read(&mut buffer) {
                Ok(0) => self.events = None,
                Ok(count) => self.unread.extend_from_slice(buffer.get(..count).unwrap_or(&[])),
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break, // Nothing more for now.
            }
        }
        while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.unread.drain(..=end).collect();
            match Record::parse(&String::from_utf8_lossy(&line)) {
                Some(record) => self.take(record.event),
                None => log::warn!("event not understood: {}", line.escape_ascii()),
            }
        }
    }

    fn take(&mut self, event: Event) {
        let now = self.start.elapsed();
        match event {
            Event::Connected => {
                self.stages.connected.get_or_insert(now);
            }
            Event::Ready { .. } => {
                if self.stages.ready.replace(now).is_none() {
                    say(&ready_line(self.attempt.ground, now));
                }
            }
            Event::Exited { status } => self.reported(End::Exited(status), now),
            Event::Failure { message } => self.reported(End::Failed(message), now),
            Event::Disconnected { requests, .. } => self.requests = requests,
            Event::BaseChanged { path, change } => {
                say(&format!("the base changed underneath: {path}: {change}"));
            }
            Event::Listening { .. } | Event::Unknown => {}
        }
    }

    fn reported(&mut self, end: End, now: Duration) {
        self.stages.reported.get_or_insert(now);
        self.report.get_or_insert(end);
    }

    /// Reads what the daemon still has to say after the VMM is gone, and lets it end.
    fn drain(&mut self) {
        let deadline = Instant::now() + DAEMON_TIMEOUT;
        while self.daemon.ended().is_none() && Instant::now() < deadline {
            self.wait_for_daemon(deadline);
            self.read_events();
        }
        if self.daemon.ended().is_none() {
            say("the file system daemon did not end after the VMM; killing it");
        }
        self.daemon.kill();
        self.read_events();
    }

    fn wait_for_daemon(&self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        let mut set = vec![PollFd::new(&self.daemon.pidfd, PollFlags::IN)];
        if let Some(events) = &self.events {
            set.push(PollFd::new(events, PollFlags::IN));
        }
        if let Err(cause) = poll(&mut set, timeout.as_ref()) {
            log::debug!("poll: {cause}");
        }
    }

    /// Stops what still runs, the VMM first, so that the daemon can end in order.
    fn finish(mut self, end: End) -> Outcome {
        self.vmm.kill();
        self.stages.vmm_gone.get_or_insert(self.start.elapsed());
        self.drain();
        self.console.look();
        self.stages.total = self.start.elapsed();
        Outcome {
            end,
            stages: self.stages,
            requests: std::mem::take(&mut self.requests),
            console_tail: tail(&self.attempt.places.console),
            vmm_tail: tail(&self.attempt.places.vmm_log),
        }
    }
}

/// How long a guest may take.
struct Limits {
    /// To its first sign of life.
    life: Option<Duration>,
    /// To its command or init.
    ready: Option<Duration>,
}

impl Limits {
    fn of(attempt: &Attempt<'_>) -> Self {
        let (life, ready) = match attempt.ground.accelerator {
            Accelerator::Kvm => (5, 60),
            Accelerator::Tcg => (60, 300),
        };
        match attempt.config.boot_timeout {
            Some(Duration::ZERO) => Self { life: None, ready: None },
            Some(asked) => Self { life: Some(Duration::from_secs(life)), ready: Some(asked) },
            None => Self {
                life: Some(Duration::from_secs(life)),
                ready: Some(Duration::from_secs(ready)),
            },
        }
    }
}

/// Looks at the console's file: for a sign of life, and for `-v`.
struct ConsoleWatch {
    file: Option<File>,
    copies: bool,
    has_bytes: bool,
}

impl ConsoleWatch {
    fn new(path: &Path, config: &RunConfig) -> Self {
        let file = File::open(path).map_err(|cause| log::warn!("{}: {cause}", path.display()));
        let copies = config.verbose && !config.command.is_empty();
        Self { file: file.ok(), copies, has_bytes: false }
    }

    fn look(&mut self) {
        let Some(file) = &mut self.file else { return };
        if !self.copies {
            self.has_bytes |= file.metadata().is_ok_and(|found| found.len() > 0);
            return;
        }
        let mut bytes = Vec::new();
        if let Err(cause) = file.read_to_end(&mut bytes) {
            log::warn!("console: {cause}");
        }
        self.has_bytes |= !bytes.is_empty();
        if let Err(cause) = io::stderr().lock().write_all(&bytes) {
            log::debug!("standard error is gone: {cause}");
        }
    }
}

/// The descriptors of both children, each with the number its command line says.
struct Ends {
    daemon: Vec<OwnedFd>,
    vmm: Vec<OwnedFd>,
    events: File,
}

impl Ends {
    fn make(config: &RunConfig) -> Result<Self, RunError> {
        let failed = || RunError::system("descriptors for daemon and VMM");
        let (kind, flags) = (SocketType::STREAM, SocketFlags::CLOEXEC);
        let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, flags, None).map_err(failed())?;
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(failed())?;
        rustix::io::ioctl_fionbio(&reader, true).map_err(failed())?;
        let command = command_file(config)?;
        let daemon = vec![
            numbered(ours.as_fd(), SOCKET)?,
            numbered(writer.as_fd(), EVENTS)?,
            numbered(command.as_fd(), COMMAND)?,
            numbered(rustix::stdio::stdin(), STDIO[0])?,
            numbered(rustix::stdio::stdout(), STDIO[1])?,
            numbered(rustix::stdio::stderr(), STDIO[2])?,
        ];
        let vmm = vec![numbered(theirs.as_fd(), VMM_SOCKET)?];
        Ok(Self { daemon, vmm, events: File::from(reader) })
    }
}

/// A duplicate with exactly this number.
fn numbered(descriptor: BorrowedFd<'_>, wanted: i32) -> Result<OwnedFd, RunError> {
    let made = fcntl_dupfd_cloexec(descriptor, wanted)
        .map_err(RunError::system(format!("descriptor {wanted}")))?;
    if number(made.as_fd()) == wanted {
        return Ok(made);
    }
    Err(RunError::Refused(format!(
        "descriptor {wanted} is taken: start thinroot run without descriptors above 59"
    )))
}

fn command_file(config: &RunConfig) -> Result<OwnedFd, RunError> {
    let what = "memory file for the guest's command";
    let command = GuestCommand {
        arguments: config.command.clone(),
        environment: config.environment.clone(),
        directory: config.directory.clone(),
        terminal: (config.tty && !config.command.is_empty()).then(terminal::size),
        hostname: config.hostname.clone(),
        has_input: terminal::has_input(),
    };
    let made =
        rustix::fs::memfd_create("command", MemfdFlags::CLOEXEC).map_err(RunError::system(what))?;
    let mut file = File::from(made);
    file.write_all(&command.encode()).map_err(RunError::system(what))?;
    file.seek(SeekFrom::Start(0)).map_err(RunError::system(what))?;
    Ok(OwnedFd::from(file))
}

fn make_empty(path: &Path) -> Result<(), RunError> {
    File::create(path).map(drop).map_err(RunError::system(format!("--console {}", path.display())))
}

/// A discarded upper and its work directory are ours to make.
fn make_upper(attempt: &Attempt<'_>) -> Result<(), RunError> {
    if matches!(attempt.config.upper, UpperArgument::Keep { .. }) {
        return Ok(());
    }
    let places = attempt.places;
    for path in [Some(&places.upper), places.work.as_ref()].into_iter().flatten() {
        std::fs::create_dir(path).map_err(RunError::system(format!("mkdir {}", path.display())))?;
    }
    Ok(())
}

fn start_vmm(
    attempt: &Attempt<'_>,
    mut vmm: Command,
    kept: Vec<OwnedFd>,
    daemon: &Process,
) -> Result<Process, RunError> {
    let log = File::create(&attempt.places.vmm_log).map_err(RunError::system("the VMM's log"))?;
    match attempt.ground.vmm {
        Vmm::Qemu(_) => {
            keep_descriptors(&mut vmm, kept);
        }
        Vmm::CloudHypervisor(_) => wait_for_socket(&attempt.places.socket, daemon)?,
    }
    if attempt.config.command.is_empty() {
        vmm.stdin(Stdio::inherit()).stdout(Stdio::inherit());
    } else {
        vmm.stdin(Stdio::null()).stdout(Stdio::null());
    }
    vmm.stderr(if attempt.config.verbose { Stdio::inherit() } else { Stdio::from(log) });
    Process::start(vmm, "VMM", attempt.config.command.is_empty())
}

fn wait_for_socket(socket: &Path, daemon: &Process) -> Result<(), RunError> {
    let deadline = Instant::now() + LISTEN_TIMEOUT;
    while !socket.exists() {
        let mut set = [PollFd::new(&daemon.pidfd, PollFlags::IN)];
        let tick = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
        let ended = poll(&mut set, Some(&tick)).is_ok_and(|ready| ready > 0);
        if ended || Instant::now() >= deadline {
            return Err(RunError::Refused("the file system daemon did not start".to_owned()));
        }
    }
    Ok(())
}
