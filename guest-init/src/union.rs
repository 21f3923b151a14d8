//! Finds the union among the machine's virtiofs devices and mounts it.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::failure::{Failure, OrFail, shown};

/// How long the device may take to appear: the driver's probe is done in milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// The pauses between two looks: each mount of a tag that is not there costs the console a line.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Mounts the union with this tag at `target`.
///
/// Errors: the tag does not come within ten seconds; the line then names the tags that did.
pub fn mount_union(tag: &[u8], target: &Path) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = PAUSE_MIN;
    loop {
        let devices = Devices::look();
        if devices.may_have(tag) {
            match mount(tag, target, c"virtiofs", MountFlags::empty(), None) {
                Ok(()) => return Ok(()),
                // virtio_fs.c: EINVAL where no device has the tag.
                Err(Errno::INVAL) => {}
                failed => return failed.or_fail(|| format!("mount virtiofs '{}'", shown(tag))),
            }
        }
        if Instant::now() + pause > deadline {
            return Err(Failure::new(devices.without(tag)));
        }
        sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// What the kernel tells about its virtiofs devices.
#[derive(Debug, PartialEq, Eq)]
enum Devices {
    /// Since Linux 6.9: their tags.
    Tags(Vec<Vec<u8>>),
    /// Before: how many there are.
    Count(usize),
}

impl Devices {
    fn look() -> Devices {
        match fs::read_dir("/sys/fs/virtiofs") {
            Ok(entries) => {
                let tags = entries.flatten().filter_map(|entry| {
                    let tag = fs::read(entry.path().join("tag")).ok()?;
                    Some(tag.strip_suffix(b"\n").unwrap_or(&tag).to_vec())
                });
                Devices::Tags(tags.collect())
            }
            Err(_) => {
                let bound = fs::read_dir("/sys/bus/virtio/drivers/virtiofs").into_iter().flatten();
                let is_device =
                    |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b"virtio");
                Devices::Count(
                    bound.flatten().filter(|entry| is_device(&entry.file_name())).count(),
                )
            }
        }
    }

    fn may_have(&self, tag: &[u8]) -> bool {
        match self {
            Devices::Tags(tags) => tags.iter().any(|known| known == tag),
            Devices::Count(count) => *count > 0,
        }
    }

    fn without(&self, tag: &[u8]) -> String {
        let missing = format!("no virtiofs device has the tag '{}' (thinroot.tag=)", shown(tag));
        let seconds = PATIENCE.as_secs();
        match self {
            Devices::Count(0) => format!("{missing}: there is none at all after {seconds} s"),
            Devices::Count(count) => {
                format!("{missing}: {count} with other tags, after {seconds} s")
            }
            Devices::Tags(tags) if tags.is_empty() => {
                format!("{missing}: there is none at all after {seconds} s")
            }
            Devices::Tags(tags) => {
                let mut known: Vec<_> =
                    tags.iter().map(|tag| format!("'{}'", shown(tag))).collect();
                known.sort();
                format!("{missing}: after {seconds} s there are {}", known.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tag_that_never_comes_is_reported_with_those_that_did() {
        let tags = Devices::Tags(vec![b"b".to_vec(), b"a\xff".to_vec()]);
        assert!(!tags.may_have(b"root") && tags.may_have(b"b"));
        assert!(tags.without(b"root").ends_with("there are 'a\\xff', 'b'"));
        assert!(tags.without(b"root").contains("'root'"));
        assert!(Devices::Tags(Vec::new()).without(b"x").contains("none at all"));
        assert!(Devices::Count(0).without(b"x").contains("none at all"));
        assert!(Devices::Count(2).without(b"x").contains("2 with other tags"));
        assert!(Devices::Count(2).may_have(b"x") && !Devices::Count(0).may_have(b"x"));
    }
}
