//! The way out of the union: the daemon shall see it unmounted and not torn away.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};
use rustix::process::{chdir, pivot_root};

/// How long those who were just killed may take to let go of their files.
const PATIENCE: Duration = Duration::from_millis(500);
/// Where the union goes when it stops being the root.
const BEHIND: &str = "/.thinroot";

/// Sends all data to the host and unmounts the union, which is the root.
///
/// Errors: as [`leave`].
pub fn leave_root() -> Result<(), Errno> {
    rustix::fs::sync();
    // devtmpfs is a root that needs nothing of the union and is there in any case.
    chdir("/dev")?;
    match rustix::fs::mkdir(format!("/dev{BEHIND}"), 0o700.into()) {
        Err(Errno::EXIST) => {}
        made => made?,
    }
    pivot_root(".", &BEHIND[1..])?;
    chdir("/")?;
    leave(BEHIND)
}

/// Sends all data to the host and unmounts the union at `point`, with what is mounted in it.
///
/// Errors: `EBUSY` if somebody still uses it; it is then read-only at least.
pub fn leave(point: &str) -> Result<(), Errno> {
    rustix::fs::sync();
    for mounted in mounts_below(point) {
        // What cannot be unmounted now goes with the union.
        unmount(&mounted, UnmountFlags::DETACH).ok();
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        match unmount(point, UnmountFlags::empty()) {
            Err(Errno::BUSY) if Instant::now() < deadline => sleep(Duration::from_millis(10)),
            Err(Errno::BUSY) => {
                mount_remount(point, MountFlags::RDONLY, c"").ok();
                unmount(point, UnmountFlags::DETACH)?;
                return Err(Errno::BUSY);
            }
            done => return done,
        }
    }
}

fn mounts_below(point: &str) -> Vec<String> {
    let places = ["/proc/self/mountinfo".to_owned(), format!("{point}/proc/self/mountinfo")];
    let text = places.iter().find_map(|place| fs::read_to_string(place).ok());
    mount_points(&text.unwrap_or_default(), point)
}

/// The mount points of a mountinfo text strictly below `directory`, the last mounted first.
fn mount_points(mountinfo: &str, directory: &str) -> Vec<String> {
    let below = format!("{directory}/");
    mountinfo
        .lines()
        .rev()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| point.starts_with(&below))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_below_are_found_last_first() {
        let text = "20 1 0:17 / /old rw - virtiofs thinroot rw\n\
                    21 20 0:18 / /old/proc rw - proc proc rw\n\
                    22 20 0:19 / /older rw - tmpfs tmpfs rw\n\
                    23 21 0:20 / /old/proc/x rw - tmpfs tmpfs rw\n";
        assert_eq!(mount_points(text, "/old"), ["/old/proc/x", "/old/proc"]);
    }
}
