//! What mount(8) and umount(8) call: a mount that is there when the helper returns, served by a
//! process behind it; an unmounted upper that is free when the helper returns.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::mount::{UnmountFlags, mount_remount, unmount as detach};
use rustix::net::SocketAddrUnix;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use thinroot::layer::lock::{LockError, UpperLock};

use super::mount_table::MountRow;
use crate::config::{MountHelperConfig, StartConfig, UnmountHelperConfig};

/// How long the daemon of an earlier mount may take to let the upper go, or that of this one to
/// save what it holds.
const PATIENCE: Duration = Duration::from_secs(60);
/// Which process serves a mount, by the mount's device.
const RECORDS: &str = "/run/thinroot/mounts";

/// Why something is not mounted, or not unmounted.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// The daemon did not start; it said why.
    #[error("{0}")]
    Daemon(String),
    /// The system refused.
    #[error("{what} {path}: {cause}", path = path.display())]
    Call {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        cause: io::Error,
    },
    /// The daemon lives on.
    #[error("{path}: unmounted, but process {pid} still saves what it holds", path = path.display())]
    Busy {
        /// The mountpoint.
        path: PathBuf,
        /// The daemon.
        pid: u32,
    },
}

fn call<E: Into<io::Error>>(what: &'static str, path: &Path) -> impl FnOnce(E) -> HelperError {
    let path = path.to_owned();
    move |cause| HelperError::Call { what, path, cause: cause.into() }
}

/// Starts a daemon and waits until it has mounted; then, or for a remount alone, sets the flags.
pub fn mount(config: &MountHelperConfig) -> Result<(), HelperError> {
    if config.is_fake {
        return Ok(());
    }
    let point = &config.mountpoint;
    if let Some(start) = &config.start {
        wait_until_free(&start.upper);
        let pid = start_daemon(start)?;
        record(point, pid).map_err(call("recording the mount on", point))?;
    }
    mount_remount(point, config.flags, c"").map_err(call("remounting", point))
}

/// Whoever unmounted a moment ago may have done so without our helper, which waits for the daemon.
fn wait_until_free(upper: &Path) {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        let Ok(directory) = File::open(upper).map(OwnedFd::from) else { return };
        match UpperLock::share_now(directory.as_fd(), None) {
            Err(LockError::InUse { .. }) => sleep(Duration::from_millis(10)),
            _ => return,
        }
    }
}

/// Gives the daemon's process when it is ready.
fn start_daemon(start: &StartConfig) -> Result<u32, HelperError> {
    let program = std::env::current_exe().map_err(call("finding", Path::new("thinroot")))?;
    let (ready, name) = listen_for_ready().map_err(call("binding", Path::new("NOTIFY_SOCKET")))?;
    let mut command = Command::new(&program);
    command.args(&start.arguments).env("NOTIFY_SOCKET", name);
    // It outlives this process and its terminal, and keeps no directory of the caller's busy.
    command.current_dir("/").process_group(0).stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(match &start.log {
        None => Stdio::piped(),
        Some(log) => {
            let file = OpenOptions::new().create(true).append(true).open(log);
            file.map_err(call("opening", log))?.into()
        }
    });
    let mut daemon = command.spawn().map_err(call("starting", &program))?;
    loop {
        if ready.recv(&mut [0; 64]).is_ok() {
            return Ok(daemon.id());
        }
        if let Some(status) = daemon.try_wait().map_err(call("waiting for", &program))? {
            return Err(HelperError::Daemon(last_words(&mut daemon, status, start.log.as_deref())));
        }
    }
}

/// A socket that hears of a daemon's readiness, and its name as `NOTIFY_SOCKET` has it: one that the
/// kernel chose, so that helpers of several pid namespaces don't meet (unix(7), autobind).
fn listen_for_ready() -> io::Result<(UnixDatagram, OsString)> {
    let socket = UnixDatagram::unbound()?;
    rustix::net::bind(&socket, &SocketAddrUnix::new_unnamed())?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    let address = socket.local_addr()?;
    let name = address.as_abstract_name().ok_or(Errno::AFNOSUPPORT)?;
    Ok((socket, OsString::from_vec([b"@", name].concat())))
}

/// What it said on standard error, in one line.
fn last_words(daemon: &mut Child, status: ExitStatus, log: Option<&Path>) -> String {
    let mut text = String::new();
    if let Some(stderr) = &mut daemon.stderr
        && let Err(error) = stderr.read_to_string(&mut text)
    {
        log::debug!("the daemon's standard error: {error}");
    }
    let said = text.lines().last().map(|line| line.trim_start_matches("thinroot: ").to_owned());
    let logged = || log.map(|log| format!("the daemon ended with {status}; see {}", log.display()));
    said.or_else(logged).unwrap_or_else(|| format!("the daemon ended with {status}"))
}

/// Remembers who serves what is mounted at `point`.
fn record(point: &Path, pid: u32) -> io::Result<()> {
    let row = MountRow::on_top_at(&point.canonicalize()?)?.ok_or(Errno::NOENT)?;
    fs::create_dir_all(RECORDS)?;
    fs::write(record_of(&row), format!("{pid}\n"))
}

fn record_of(row: &MountRow) -> PathBuf {
    Path::new(RECORDS).join(&row.device)
}

/// Unmounts, and waits for the daemon to save what it holds and to let the upper go.
pub fn unmount(config: &UnmountHelperConfig) -> Result<(), HelperError> {
    let point = &config.mountpoint;
    // The directory may be dead, and then has no canonical name; umount(8) gives one.
    let path = point.canonicalize().unwrap_or_else(|_| point.clone());
    let row = MountRow::on_top_at(&path).map_err(call("looking for", point))?;
    let served = row.as_ref().and_then(server);
    let mut flags = UnmountFlags::NOFOLLOW;
    flags.set(UnmountFlags::DETACH, config.lazily);
    flags.set(UnmountFlags::FORCE, config.by_force);
    detach(&path, flags).map_err(call("unmounting", point))?;
    let (Some(row), Some((pid, process))) = (row, served) else { return Ok(()) };
    // Detached, it serves whoever is still inside; bound elsewhere too, it serves on there.
    let is_elsewhere =
        || MountRow::is_mounted(&row.device).map_err(call("looking for the mounts of", point));
    if config.lazily || is_elsewhere()? {
        return Ok(());
    }
    let timeout = Timespec::try_from(PATIENCE).unwrap_or_default();
    let mut ended = [PollFd::new(&process, PollFlags::IN)];
    match retry_on_intr(|| poll(&mut ended, Some(&timeout))) {
        Ok(0) => return Err(HelperError::Busy { path: point.clone(), pid }),
        Ok(_) => {}
        Err(error) => return Err(call("waiting for the daemon of", point)(error)),
    }
    let record = record_of(&row);
    fs::remove_file(&record).map_err(call("removing", &record))
}

/// The process that serves a mount, if it lives, was recorded, and is a thinroot.
fn server(row: &MountRow) -> Option<(u32, OwnedFd)> {
    let pid: u32 = fs::read_to_string(record_of(row)).ok()?.trim().parse().ok()?;
    let process = pidfd_open(Pid::from_raw(pid.try_into().ok()?)?, PidfdFlags::empty()).ok()?;
    // The number may be somebody else's by now.
    let theirs = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let is_ours = theirs.as_os_str().to_string_lossy().contains("thinroot");
    is_ours.then_some((pid, process))
}
