//! Runs one command below PID 1 and knows its end.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, wait};
use rustix::pty::OpenptFlags;

use crate::command::{Command, WindowSize};
use crate::failure::{Failure, OrFail, shown};
use crate::host::Streams;
use crate::streams::{Inlet, Outlets, feed};
use crate::sys;

/// The shell's words for a program that is there but cannot run, and one that is not there.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// How long a process may take to follow SIGTERM at the end.
const TERMINATION_GRACE: Duration = Duration::from_millis(500);
/// How long the kernel may take to end those it was told to kill.
const KILL_GRACE: Duration = Duration::from_secs(2);

/// What a command finds in its environment before the host's `env=`.
const ENVIRONMENT: [(&str, &str); 3] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("TERM", "linux"),
];

/// Runs `command` to its end and gives its exit status: 128 + n if signal n ended it, 126 if it
/// cannot be executed, 127 if it is not there (with a line on its stderr then).
pub fn run(
    command: &Command,
    environment: &[(OsString, OsString)],
    streams: Streams,
) -> Result<u8, Failure> {
    if let Some(directory) = &command.directory {
        let metadata = fs::metadata(directory);
        let metadata = metadata.or_fail(|| format!("enter {}", directory.display()))?;
        if !metadata.is_dir() {
            return Err(Failure::new(format!("enter {}: no directory", directory.display())));
        }
    }
    let mut prepared = prepare(command, environment)?;
    let mut stderr = streams.stderr.try_clone().or_fail(|| "keep stderr".to_owned())?;
    let started = match command.terminal {
        Some(size) => start_on_terminal(&mut prepared, size, streams)?,
        None => start_on_pipes(&mut prepared, streams)?,
    };
    match started {
        Ok(running) => running.wait(),
        Err(error) => {
            let program = command.arguments.first().map(|name| shown(name.as_encoded_bytes()));
            let line = format!("thinroot: {}: {error}\n", program.unwrap_or_default());
            // The status says it too.
            stderr.write_all(line.as_bytes()).ok();
            Ok(status_of_failed_start(&error))
        }
    }
}

fn prepare(
    command: &Command,
    environment: &[(OsString, OsString)],
) -> Result<std::process::Command, Failure> {
    let (program, arguments) = command
        .arguments
        .split_first()
        .ok_or_else(|| Failure::new("the host's command has no program"))?;
    let mut prepared = std::process::Command::new(program);
    prepared.args(arguments).env_clear().envs(ENVIRONMENT);
    prepared.envs(environment.iter().map(|(name, value)| (name, value)));
    prepared.current_dir(command.directory.as_deref().unwrap_or("/".as_ref()));
    sys::own_session(&mut prepared, command.terminal.is_some());
    Ok(prepared)
}

/// A command that has started. It is a child of PID 1 like any orphan, so std's `Child`, which
/// wants to wait for it alone, does not hold it.
struct Running {
    pid: Pid,
    outlets: Outlets,
    /// The command's side of its terminal, kept open while it lives: one that closes its own
    /// before it ends (as coreutils do) would get SIGHUP from us, and one that opens it again
    /// would find nobody.
    terminal: Option<OwnedFd>,
}

type Started = Result<Running, io::Error>;

fn start_on_pipes(
    prepared: &mut std::process::Command,
    streams: Streams,
) -> Result<Started, Failure> {
    let has_stdin = streams.stdin.is_some();
    prepared.stdin(if has_stdin { Stdio::piped() } else { Stdio::null() });
    prepared.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match prepared.spawn() {
        Ok(child) => child,
        Err(error) => return Ok(Err(error)),
    };
    let mut outlets = Outlets::default();
    if let Some(stdout) = child.stdout.take() {
        outlets.add(stdout.into(), streams.stdout)?;
    }
    if let Some(stderr) = child.stderr.take() {
        outlets.add(stderr.into(), streams.stderr)?;
    }
    if let (Some(from), Some(to)) = (streams.stdin, child.stdin.take()) {
        feed(from, Inlet::Pipe(File::from(OwnedFd::from(to))))?;
    }
    Ok(Ok(Running { pid: Pid::from_child(&child), outlets, terminal: None }))
}

fn start_on_terminal(
    prepared: &mut std::process::Command,
    size: WindowSize,
    streams: Streams,
) -> Result<Started, Failure> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let (ours, theirs) = terminal(flags, size).or_fail(|| "make a terminal".to_owned())?;
    let copy = |file: &OwnedFd| file.try_clone().or_fail(|| "copy the terminal".to_owned());
    prepared.stdin(copy(&theirs)?).stdout(copy(&theirs)?).stderr(copy(&theirs)?);
    let spawned = prepared.spawn();
    // These copies would keep the terminal open for ever.
    prepared.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = match spawned {
        Ok(child) => child,
        Err(error) => return Ok(Err(error)),
    };
    let mut outlets = Outlets::default();
    if let Some(from) = streams.stdin {
        feed(from, Inlet::Terminal(copy(&ours)?.into()))?;
    }
    outlets.add(ours, streams.stdout)?;
    Ok(Ok(Running { pid: Pid::from_child(&child), outlets, terminal: Some(theirs) }))
}

fn terminal(flags: OpenptFlags, size: WindowSize) -> Result<(OwnedFd, OwnedFd), Errno> {
    let ours = rustix::pty::openpt(flags)?;
    rustix::pty::grantpt(&ours)?;
    rustix::pty::unlockpt(&ours)?;
    let theirs = rustix::pty::ioctl_tiocgptpeer(&ours, flags)?;
    let size = rustix::termios::Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(&ours, size)?;
    Ok((ours, theirs))
}

impl Running {
    fn wait(self) -> Result<u8, Failure> {
        let status = wait_for(self.pid)?;
        drop(self.terminal);
        self.outlets.finish();
        Ok(status)
    }
}

/// Reaps whatever ends, until it is this one.
fn wait_for(pid: Pid) -> Result<u8, Failure> {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((ended, status))) if ended == pid => {
                return Ok(status_of(status.exit_status(), status.terminating_signal()));
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).or_fail(|| "wait for the command".to_owned()),
        }
    }
}

/// The shell's one byte for both ways to end.
fn status_of(exit_status: Option<i32>, signal: Option<i32>) -> u8 {
    let status = exit_status.or(signal.map(|signal| 128 + signal));
    status.and_then(|status| u8::try_from(status).ok()).unwrap_or(u8::MAX)
}

fn status_of_failed_start(error: &io::Error) -> u8 {
    match error.kind() {
        io::ErrorKind::NotFound => NOT_FOUND,
        _ => NOT_EXECUTABLE,
    }
}

/// Ends every process but PID 1: first politely, then surely.
pub fn kill_the_rest() {
    for (signal, grace) in [(Signal::TERM, TERMINATION_GRACE), (Signal::KILL, KILL_GRACE)] {
        if reap_until_none(Duration::ZERO) {
            return;
        }
        // kill(2): the group of process 1 is written -1, which is everybody but PID 1 itself.
        // It fails only when there is nobody left.
        kill_process_group(Pid::INIT, signal).ok();
        if reap_until_none(grace) {
            return;
        }
    }
}

/// Whether no child is left within `grace`. Orphans become children, so none means nobody.
fn reap_until_none(grace: Duration) -> bool {
    let deadline = Instant::now() + grace;
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) if Instant::now() < deadline => sleep(Duration::from_millis(5)),
            Ok(None) => return false,
            Err(_) => return true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_the_commands_own_or_its_signal() {
        for (exit_status, signal, expected) in
            [(Some(0), None, 0), (Some(255), None, 255), (None, Some(9), 137), (None, None, 255)]
        {
            assert_eq!(status_of(exit_status, signal), expected, "{exit_status:?} {signal:?}");
        }
    }

    #[test]
    fn command_that_lets_go_of_its_terminal_is_not_hung_up() {
        let null = || File::options().read(true).write(true).open("/dev/null").unwrap();
        let script = "exec <&- >&- 2>&-; sleep 0.3; exit 5";
        let command = Command {
            arguments: ["sh", "-c", script].map(OsString::from).to_vec(),
            terminal: Some(WindowSize { rows: 24, columns: 80 }),
            ..Command::default()
        };
        let streams = Streams { stdin: Some(null()), stdout: null(), stderr: null() };
        let mut prepared = prepare(&command, &[]).unwrap();
        let size = command.terminal.unwrap();
        let running = start_on_terminal(&mut prepared, size, streams).unwrap().unwrap();
        let (_, status) =
            rustix::process::waitpid(Some(running.pid), WaitOptions::empty()).unwrap().unwrap();
        assert_eq!((status.exit_status(), status.terminating_signal()), (Some(5), None));
    }

    #[test]
    fn program_that_cannot_start_has_the_shells_status() {
        for (kind, expected) in [
            (io::ErrorKind::NotFound, 127),
            (io::ErrorKind::PermissionDenied, 126),
            (io::ErrorKind::InvalidInput, 126),
        ] {
            assert_eq!(status_of_failed_start(&kind.into()), expected, "{kind:?}");
        }
    }
}
