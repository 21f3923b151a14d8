//! `thinroot mount`: a guest's root shown on this host through /dev/fuse.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::{retry_on_intr, write};
use thinroot::door::dev_fuse::{Ended, MountError, MountOptions, mount as mount_door};
use thinroot::fuse::init::SessionConfig;
use thinroot::fuse::session::Session;
use thinroot::sys::signal::{ENDING, Signals};

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
    let ground = Ground::prepare(&config.union, Some(&config.mountpoint))?;
    let notify = Notify::from_environment();
    // Before the sandbox, in whose mounts nobody else would see it; and after the janitor, which
    // may not have the device open, or the mount would outlive us.
    let janitor = Arc::new(Janitor::unmount(&config.mountpoint).map_err(process("fork"))?);
    let index = ground.open_index()?;
    let options = MountOptions { name: config.name.clone(), ..MountOptions::default() };
    let mount = mount_door(&config.mountpoint, &options)?;
    janitor.take_over(mount.path()).map_err(process("mountinfo"))?;
    mount.leave_unmounting();
    let (union, lock) = ground.join(index, &config.union, Events::to(None).on_change())?;
    let signals = Signals::catch(&ENDING).map_err(process("signals"))?;
    let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).map_err(process("eventfd"))?);
    unmount_on_signal(signals, Arc::clone(&janitor), Arc::clone(&stop))?;
    let session_config =
        SessionConfig { writeback_cache: config.union.writeback, unremembered: None };
    let session = Session::new(Arc::new(union), session_config);
    log::info!("mounted on {}", mount.path().display());
    notify.ready();
    let ended = mount.serve(&session, stop.as_fd())?;
    log::debug!("ended: {ended:?}");
    take_traffic(&session, config.stats);
    if ended == Ended::Unmounted {
        janitor.dismiss();
        log::info!("unmounted");
    }
    drop(lock);
    Ok(())
}

/// At the first of [`ENDING`] has the janitor unmount while we still answer, so that what the
/// host's page cache holds arrives.
fn unmount_on_signal(
    signals: Signals,
    janitor: Arc<Janitor>,
    stop: Arc<OwnedFd>,
) -> Result<(), MountCommandError> {
    let wait = move || {
        let mut waiting = [PollFd::new(&signals, PollFlags::IN)];
        match retry_on_intr(|| poll(&mut waiting, None)) {
            Ok(_) => log::info!("told to end by signal {}", signals.take().unwrap_or_default()),
            Err(error) => log::error!("waiting for signals: {error}"),
        }
        janitor.work_now();
        // Users who stay are cut off after the door's own grace.
        if let Err(error) = write(&*stop, &1_u64.to_ne_bytes()) {
            log::error!("cannot stop: {error}");
        }
    };
    let thread = std::thread::Builder::new().name("signals".to_owned());
    thread.spawn(wait).map(drop).map_err(process("thread"))
}
