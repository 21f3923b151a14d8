//! The /dev/fuse door of `thinroot mount`: the same session, mounted on this host.

mod mounting;
mod worker;

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use self::mounting::Mounted;
use crate::filesystem::{Errno, FileSystem};
use crate::fuse::session::Session;

/// How long a mount that is being ended may take to finish what its users still do.
const GRACE: Duration = Duration::from_secs(2);

/// How a union is mounted.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// What stands for the device in /proc/mounts (`fsname=`).
    pub name: OsString,
    /// The type is `fuse.` and this.
    pub subtype: OsString,
    /// Let users other than the one who mounts in (`allow_other`). Without privilege this needs
    /// `user_allow_other` in /etc/fuse.conf.
    pub allow_other: bool,
    /// Refuse changes in the host's kernel already.
    pub read_only: bool,
    /// Obey setuid files and device nodes, which are the guest's. Needs privilege.
    pub trusted: bool,
    /// How many threads answer requests, at least one.
    pub workers: usize,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            name: "thinroot".into(),
            subtype: "thinroot".into(),
            allow_other: rustix::process::geteuid().is_root(),
            read_only: false,
            trusted: false,
            workers: thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 8)),
        }
    }
}

/// Why a union could not be mounted or is served no longer.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mountpoint cannot be used.
    #[error("mountpoint {path}: {cause}; give a directory that exists", path = path.display())]
    Mountpoint {
        /// As it was given.
        path: PathBuf,
        /// The system's error.
        cause: Errno,
    },
    /// The device cannot be opened.
    #[error("/dev/fuse: {0}; load the fuse module (modprobe fuse) or pass the device in")]
    Device(Errno),
    /// mount(2) refused.
    #[error("mount on {path}: {cause}", path = path.display())]
    Mount {
        /// Where.
        path: PathBuf,
        /// The system's error.
        cause: Errno,
    },
    /// The set-user-id helper could not be started.
    #[error("fusermount3: {0}; without privilege it is needed: install fuse3")]
    NoHelper(std::io::Error),
    /// The set-user-id helper refused.
    #[error("fusermount3 on {path}: {message}", path = path.display())]
    Helper {
        /// Where.
        path: PathBuf,
        /// What it printed.
        message: String,
    },
    /// Requests can no longer be read or answered.
    #[error("serving {path}: {cause}", path = path.display())]
    Serve {
        /// Where.
        path: PathBuf,
        /// The system's error.
        cause: Errno,
    },
}

/// Why serving ended in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// It was told to stop, and unmounted.
    Stopped,
    /// Somebody unmounted it.
    Unmounted,
}

/// Mounts on `mountpoint`, with mount(2) or, without the privilege, with fusermount3.
///
/// Nothing is answered before [`Mount::serve`]. Everything that needs the file system outside
/// the mount is opened here, so that the process may confine itself afterwards; but a process that
/// leaves this mount namespace has to leave the unmounting to another.
///
/// Errors: [`MountError`], all but `Serve`.
pub fn mount(mountpoint: &Path, options: &MountOptions) -> Result<Mount, MountError> {
    let failed = |cause| MountError::Mountpoint { path: mountpoint.to_owned(), cause };
    let path = mountpoint
        .canonicalize()
        .map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::INVAL)))?;
    if !path.is_dir() {
        return Err(failed(Errno::NOTDIR));
    }
    let mounted = mounting::mount(&path, options)?;
    Mount::new(path, mounted, options.workers)
}

/// Takes over a mount that somebody else has made on this device, and will unmount. `path` is what
/// it is called in messages.
///
/// Errors: `Device`.
pub fn adopt(device: OwnedFd, path: &Path, options: &MountOptions) -> Result<Mount, MountError> {
    let mounted = mounting::adopt(device)?;
    let mount = Mount::new(path.to_owned(), mounted, options.workers)?;
    mount.leave_unmounting();
    Ok(mount)
}

/// A mount of this process; unmounted when dropped.
#[derive(Debug)]
pub struct Mount {
    /// The mountpoint, absolute.
    path: PathBuf,
    /// One per worker.
    devices: Vec<OwnedFd>,
    by_helper: bool,
    /// Taken from its mountpoint, or left to another process to take: what is there is not ours to
    /// unmount any more, though users of this mount may still hold it.
    is_unmounted: AtomicBool,
}

impl Mount {
    /// Opens one device per worker; they share one where the kernel gives no more.
    fn new(path: PathBuf, mounted: Mounted, workers: usize) -> Result<Self, MountError> {
        let by_helper = mounted.by_helper;
        let devices = vec![mounted.device];
        let mut mount = Self { path, devices, by_helper, is_unmounted: AtomicBool::new(false) };
        for _ in 1..workers {
            let Some(first) = mount.devices.first() else { break };
            let device = mounting::another_device(first).map_err(MountError::Device)?;
            mount.devices.push(device);
        }
        Ok(mount)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the unmounting to another process: this one is about to lose sight of the mountpoint.
    pub fn leave_unmounting(&self) {
        self.is_unmounted.store(true, Ordering::Relaxed);
    }

    /// Answers requests until `stop` has something to read (it is not read from) or somebody
    /// unmounts.
    ///
    /// When told to stop, it unmounts while it still answers, so that what the host's page cache
    /// holds arrives. Users who stay are cut off after two seconds.
    ///
    /// Errors: `Serve` with what reading, waiting or starting a thread gave.
    pub fn serve<F: FileSystem>(
        &self,
        session: &Session<F>,
        stop: BorrowedFd<'_>,
    ) -> Result<Ended, MountError> {
        let ended = self.serve_until(session, stop);
        session.close();
        ended.map_err(|cause| MountError::Serve { path: self.path.clone(), cause })
    }

    fn serve_until<F: FileSystem>(
        &self,
        session: &Session<F>,
        stop: BorrowedFd<'_>,
    ) -> Result<Ended, Errno> {
        let halt = eventfd(0, EventfdFlags::CLOEXEC)?;
        let over = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        thread::scope(|scope| {
            let mut workers = Vec::new();
            let mut started = Ok(());
            for device in &self.devices {
                let (halt, over) = (halt.as_fd(), over.as_fd());
                let work = move || {
                    let result = worker::run(device.as_fd(), session, halt);
                    raise(over);
                    result
                };
                match thread::Builder::new().name("fuse".into()).spawn_scoped(scope, work) {
                    Ok(worker) => workers.push(worker),
                    Err(cause) => {
                        started = Err(Errno::from_io_error(&cause).unwrap_or(Errno::AGAIN));
                    }
                }
            }
            let watched = started.and_then(|()| self.watch(stop, over.as_fd()));
            raise(halt.as_fd());
            let served = workers.into_iter().map(|worker| worker.join().unwrap_or(Err(Errno::IO)));
            served.fold(Ok(()), Result::and).and(watched)
        })
    }

    /// Waits for the order to stop, and follows it, or for the workers' end.
    fn watch(&self, stop: BorrowedFd<'_>, over: BorrowedFd<'_>) -> Result<Ended, Errno> {
        loop {
            let mut set = [PollFd::new(&over, PollFlags::IN), PollFd::new(&stop, PollFlags::IN)];
            match poll(&mut set, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
            let [over_now, stop_now] = set.map(|polled| !polled.revents().is_empty());
            if over_now {
                return Ok(Ended::Unmounted);
            }
            if stop_now {
                self.unmount();
                return Ok(Ended::Stopped);
            }
        }
    }

    /// Unmounts while requests are still answered, by this process or by one it left the serving
    /// to, and gives users who stay two seconds. Serving ends by itself then, unless they stay
    /// longer.
    pub fn unmount(&self) {
        if let Err(cause) = self.take_away(false) {
            log::warn!("{cause}; still in use, unmounting lazily");
            mounting::sync(&self.path);
            if let Err(cause) = self.take_away(true) {
                log::error!("{cause}; unmount {} by hand", self.path.display());
                return;
            }
        }
        if self.is_connected_after(GRACE) {
            log::warn!("{}: users are cut off", self.path.display());
        }
    }

    fn take_away(&self, lazy: bool) -> Result<(), MountError> {
        if self.is_connected() && !self.is_unmounted.load(Ordering::Relaxed) {
            mounting::unmount(&self.path, lazy, self.by_helper)?;
            self.is_unmounted.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether the kernel still sends requests: not after an unmount, by whomever.
    fn is_connected(&self) -> bool {
        self.is_connected_after(Duration::ZERO)
    }

    /// The same after `patience`, or earlier if the answer is no.
    fn is_connected_after(&self, patience: Duration) -> bool {
        let Some(device) = self.devices.first() else { return false };
        let mut set = [PollFd::new(device, PollFlags::empty())];
        let timeout = Timespec::try_from(patience).unwrap_or_default();
        // fs/fuse/dev.c, `fuse_dev_poll`: EPOLLERR when the connection is gone.
        !matches!(poll(&mut set, Some(&timeout)), Ok(1..))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if !self.is_connected() || self.is_unmounted.load(Ordering::Relaxed) {
            return;
        }
        // With the last device the connection ends, so that nobody waits for answers that never
        // come, unmounting included.
        self.devices.clear();
        if let Err(cause) = mounting::unmount(&self.path, true, self.by_helper) {
            log::error!("{cause}; unmount {} by hand", self.path.display());
        }
    }
}

/// Makes an eventfd readable, for good: nobody reads it.
fn raise(event: BorrowedFd<'_>) {
    if let Err(cause) = rustix::io::write(event, &1_u64.to_ne_bytes()) {
        log::error!("eventfd: {cause}");
    }
}

#[cfg(test)]
mod tests;
