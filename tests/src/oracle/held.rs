//! What an actor holds open, in numbered slots, across whatever becomes of the name.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, FlockOperation, Gid, Mode, OFlags, Stat, Uid, fcntl_lock, flock,
};
use vm_memory::{Bytes as _, FileOffset, MmapRegion, VolatileMemory as _};

use super::actor::{Actor, allocate, is_file, rows, shown, sum};
use super::dice::SLOTS;
use super::words::Words;
use crate::laws::plot::{Done, Failure, call, pattern, read_all, stat_of, write_at};

/// What is held in one slot.
pub(super) struct Held {
    file: OwnedFd,
    map: Option<MmapRegion>,
}

pub(super) type Slots = [Option<Held>; SLOTS as usize];

impl Actor {
    /// The verbs that begin with a slot.
    pub(super) fn use_slot(&mut self, verb: &str, words: &mut Words<'_>) -> Done<String> {
        let slot: usize = words.number()?;
        if slot >= self.slots.len() {
            return Err(Failure::new("there is no such slot"));
        }
        match verb {
            "hold" => {
                let (path, flags) = (words.path()?, words.open_flags()?);
                self.slots[slot] = Some(Held { file: self.open(&path, flags)?, map: None });
                return Ok("ok".to_owned());
            }
            "unnamed" => {
                let flags = OFlags::TMPFILE | OFlags::RDWR;
                let file = self.plot.open(words.path()?, flags)?;
                self.slots[slot] = Some(Held { file, map: None });
                return Ok("ok".to_owned());
            }
            "close" => {
                self.slots[slot] = None;
                return Ok("ok".to_owned());
            }
            _ => {}
        }
        let Some(mut held) = self.slots[slot].take() else {
            return Ok("nothing is held".to_owned());
        };
        let told = self.use_held(&mut held, verb, words);
        self.slots[slot] = Some(held);
        told
    }

    fn use_held(&self, held: &mut Held, verb: &str, words: &mut Words<'_>) -> Done<String> {
        let stat = stat_of(&held.file)?;
        if verb.contains("map") {
            return held.use_map(verb, &stat, words);
        }
        let file = &held.file;
        match verb {
            "held-look" => return Ok(shown(&stat)),
            "held-read" => return read(file, &stat),
            "held-again" => {
                let flags = words.open_flags()?;
                return self.again(file, &stat, flags);
            }
            "held-link" => return self.link_held(file, &words.path()?),
            _ => {}
        }
        let done = match verb {
            "held-mkdir" | "held-create" | "held-unlink" => inside(file, verb, &words.path()?),
            "flock" => call("flock", flock(file, lock(words)?)),
            "lock" => call("fcntl", fcntl_lock(file, lock(words)?)),
            "held-sync" => call("fsync", rustix::fs::fsync(file)),
            "held-sync-data" => call("fdatasync", rustix::fs::fdatasync(file)),
            "held-sync-all" => call("syncfs", rustix::fs::syncfs(file)),
            "held-chmod" => {
                let mode = Mode::from_raw_mode(words.mode()?);
                call("fchmod", rustix::fs::fchmod(file, mode))
            }
            "held-chown" => {
                let owner = words.id()?.map(Uid::from_raw);
                let group = words.id()?.map(Gid::from_raw);
                call("fchown", rustix::fs::fchown(file, owner, group))
            }
            "held-times" => call("futimens", rustix::fs::futimens(file, &words.times()?)),
            "held-set-xattr" => {
                let (key, flags) = (words.word()?, words.xattr_flags()?);
                let value = pattern(words.number()?);
                call("fsetxattr", rustix::fs::fsetxattr(file, key, &value, flags))
            }
            _ if !is_file(&stat) => return Ok("not for this kind".to_owned()),
            _ => change_content(file, verb, words),
        };
        done.map(|()| "ok".to_owned())
    }

    /// Opens it once more through its descriptor.
    fn again(&self, file: &OwnedFd, stat: &Stat, flags: OFlags) -> Done<String> {
        if !is_file(stat) {
            return Ok("not for this kind".to_owned());
        }
        let link = format!("self/fd/{}", file.as_raw_fd());
        let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let again = rustix::fs::openat(&self.processes, &link, flags, Mode::empty());
        let again = call("open /proc/self/fd", again)?;
        if flags.contains(OFlags::RDWR) {
            write_at(&again, 1, b"again")?;
        }
        Ok(shown(&stat_of(&again)?))
    }

    fn link_held(&self, file: &OwnedFd, to: &Path) -> Done<String> {
        let link = format!("self/fd/{}", file.as_raw_fd());
        let follow = AtFlags::SYMLINK_FOLLOW;
        let linked = rustix::fs::linkat(&self.processes, &link, CWD, to, follow);
        call("linkat", linked).map(|()| "ok".to_owned())
    }
}

impl Held {
    /// A shared mapping of the whole file as it is when it is made.
    fn use_map(&mut self, verb: &str, stat: &Stat, words: &mut Words<'_>) -> Done<String> {
        if verb == "map" {
            if !is_file(stat) {
                return Ok("not for this kind".to_owned());
            }
            let file = call("dup", rustix::io::dup(&self.file))?;
            let size = usize::try_from(stat.st_size).unwrap_or(0);
            let map = MmapRegion::from_file(FileOffset::new(File::from(file), 0), size);
            // The wrapper's errors are not the kernel's alone: whether there is one is told.
            self.map = map.ok();
            return Ok(format!("mapped: {}", self.map.is_some()));
        }
        let Some(map) = &self.map else { return Ok("nothing is mapped".to_owned()) };
        let offset: usize = words.number()?;
        // What lies behind the end of the file cannot be touched.
        let end = map.size().min(usize::try_from(stat.st_size).unwrap_or(0));
        let length = end.saturating_sub(offset).min(100);
        let range = map.get_slice(offset.min(end), length);
        let range = range.map_err(|error| Failure::new(error.to_string()))?;
        let mut bytes = pattern(length);
        let done = match verb {
            "map-write" => range.write_slice(&bytes, 0),
            "map-read" => range.read_slice(&mut bytes, 0),
            _ => {
                self.map = None;
                return Ok("ok".to_owned());
            }
        };
        done.map_err(|error| Failure::new(error.to_string()))?;
        Ok(sum(&bytes))
    }
}

/// Through a descriptor of its own, so that the position is the start.
fn read(file: &OwnedFd, stat: &Stat) -> Done<String> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rows(&call("open .", rustix::fs::openat(file, ".", flags, Mode::empty()))?)
        }
        FileType::RegularFile => Ok(sum(&read_all(file)?)),
        _ => Ok("not for this kind".to_owned()),
    }
}

fn change_content(file: &OwnedFd, verb: &str, words: &mut Words<'_>) -> Done {
    match verb {
        "held-write" => {
            let (offset, length) = (words.number()?, words.number()?);
            write_at(file, offset, &pattern(length))
        }
        "held-append" => {
            let bytes = pattern(words.number()?);
            // Where it is written is the end or the slot's own position.
            call("write", rustix::io::write(file, &bytes)).map(drop)
        }
        "held-truncate" => {
            let size = words.number()?;
            call("ftruncate", rustix::fs::ftruncate(file, size))
        }
        "held-allocate" => allocate(file, words),
        _ => Err(Failure::new(format!("{verb}: no such verb"))),
    }
}

fn inside(directory: &OwnedFd, verb: &str, name: &Path) -> Done {
    let mode = Mode::from_raw_mode(0o755);
    match verb {
        "held-mkdir" => call("mkdirat", rustix::fs::mkdirat(directory, name, mode)),
        "held-unlink" => call("unlinkat", rustix::fs::unlinkat(directory, name, AtFlags::empty())),
        _ => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            let file = call("openat", rustix::fs::openat(directory, name, flags, mode))?;
            write_at(&file, 0, b"created")
        }
    }
}

/// Nobody waits for a lock.
fn lock(words: &mut Words<'_>) -> Done<FlockOperation> {
    words.one_of(&[
        ("shared", FlockOperation::NonBlockingLockShared),
        ("alone", FlockOperation::NonBlockingLockExclusive),
        ("off", FlockOperation::NonBlockingUnlock),
    ])
}
