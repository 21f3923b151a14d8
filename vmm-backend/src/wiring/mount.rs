//! `thinroot mount`: a guest's root shown on this host through /dev/fuse.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::{retry_on_intr, write};
use thinroot::door::dev_fuse::mount as mount_door;
use thinroot::door::dev_fuse::{Ended, Mount, MountError, MountOptions, adopt};
use thinroot::fuse::init::SessionConfig;
use thinroot::fuse::session::Session;
use thinroot::sys::process::take_inherited;
use thinroot::sys::signal::{ENDING, Signals};
use thinroot::union::Union;

use super::events::{Events, take_traffic};
use super::ground::{Ground, GroundError};
use super::janitor::Janitor;
use super::notify::Notify;
use crate::config::MountConfig;

/// Why a root is not shown.
#[derive(Debug, thiserror::Error)]
pub enum MountCommandError {
    /// The union.
    #[error(transparent)]
    Ground(#[from] GroundError),
    /// The door.
    #[error(transparent)]
    Door(#[from] MountError),
    /// Something the process needs.
    #[error("{what}: {cause}")]
    Process {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        cause: io::Error,
    },
}

fn process<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> MountCommandError {
    move |cause| MountCommandError::Process { what, cause: cause.into() }
}

/// Mounts, and serves until somebody unmounts or this process is told to end.
pub fn mount(config: &MountConfig) -> Result<(), MountCommandError> {
    if let Some(number) = given_device(&config.mountpoint) {
        return serve_device(config, number);
    }
    let ground = Ground::prepare(&config.union, Some(&config.mountpoint))?;
    let notify = Notify::from_environment();
    // Before the sandbox, in whose mounts nobody else would see it; and after the janitor, which
    // may not have the device open, or the mount would outlive us.
    let janitor = Arc::new(Janitor::unmount(&config.mountpoint).map_err(process("fork"))?);
    let index = ground.open_index()?;
    // Before anything is mounted: who sees a mount may ask for its end.
    let signals = Signals::catch(&ENDING).map_err(process("signals"))?;
    let options = MountOptions { name: config.name.clone(), ..MountOptions::default() };
    let mount = mount_door(&config.mountpoint, &options)?;
    janitor.take_over(mount.path()).map_err(process("mountinfo"))?;
    mount.leave_unmounting();
    let (union, lock) = ground.join(index, &config.union, Events::to(None).on_change())?;
    let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).map_err(process("eventfd"))?);
    let work_now = Arc::clone(&janitor);
    // While we still answer, so that what the host's page cache holds arrives.
    stop_on_signal(signals, move || work_now.work_now(), Arc::clone(&stop))?;
    let ended = serve(config, &mount, union, &stop, &notify)?;
    if ended == Ended::Unmounted {
        janitor.dismiss();
        log::info!("unmounted");
    }
    drop(lock);
    Ok(())
}

/// The descriptor in `/dev/fd/N`: /dev/fuse, mounted already by somebody with the privilege, as
/// mount.fuse3 gives it with its option `drop_privileges`.
fn given_device(mountpoint: &Path) -> Option<RawFd> {
    mountpoint.to_str()?.strip_prefix("/dev/fd/")?.parse().ok()
}

/// Serves a mount of somebody else's, who unmounts it.
fn serve_device(config: &MountConfig, number: RawFd) -> Result<(), MountCommandError> {
    let device = take_inherited(number).map_err(process("the mounted descriptor"))?;
    let ground = Ground::prepare(&config.union, None)?;
    let notify = Notify::from_environment();
    let index = ground.open_index()?;
    let mount = adopt(device, &config.mountpoint, &MountOptions::default())?;
    let (union, lock) = ground.join(index, &config.union, Events::to(None).on_change())?;
    let signals = Signals::catch(&ENDING).map_err(process("signals"))?;
    let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).map_err(process("eventfd"))?);
    stop_on_signal(signals, || (), Arc::clone(&stop))?;
    serve(config, &mount, union, &stop, &notify)?;
    drop(lock);
    Ok(())
}

/// Answers until somebody unmounts, or `stop`.
fn serve(
    config: &MountConfig,
    mount: &Mount,
    union: Union,
    stop: &OwnedFd,
    notify: &Notify,
) -> Result<Ended, MountCommandError> {
    let session_config =
        SessionConfig { writeback_cache: config.union.writeback, unremembered: None };
    let session = Session::new(Arc::new(union), session_config);
    log::info!("mounted on {}", mount.path().display());
    notify.ready();
    let ended = mount.serve(&session, stop.as_fd())?;
    log::debug!("ended: {ended:?}");
    take_traffic(&session, config.stats);
    Ok(ended)
}

/// At the first of [`ENDING`] does `first`, and stops.
fn stop_on_signal(
    signals: Signals,
    first: impl FnOnce() + Send + 'static,
    stop: Arc<OwnedFd>,
) -> Result<(), MountCommandError> {
    let wait = move || {
        let mut waiting = [PollFd::new(&signals, PollFlags::IN)];
        match retry_on_intr(|| poll(&mut waiting, None)) {
            Ok(_) => log::info!("told to end by signal {}", signals.take().unwrap_or_default()),
            Err(error) => log::error!("waiting for signals: {error}"),
        }
        first();
        // Users who stay are cut off after the door's own grace.
        if let Err(error) = write(&*stop, &1_u64.to_ne_bytes()) {
            log::error!("cannot stop: {error}");
        }
    };
    let thread = std::thread::Builder::new().name("signals".to_owned());
    thread.spawn(wait).map(drop).map_err(process("thread"))
}
