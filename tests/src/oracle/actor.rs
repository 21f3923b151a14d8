//! One process that does operations below a root it cannot leave, and says in a line what each came
//! to: its error, or what it saw.

use std::fmt::Write as _;
use std::io::{self, BufRead as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Gid, Uid};

use super::held::Slots;
use super::script::{Operation, bytes};
use super::words::Words;
use crate::disk;
use crate::laws::plot::{
    Done, Failure, Plot, call, holds, list, pattern, read_all, read_at, stat_of, write_at,
};

/// The third actor is this user, who is in this group and in another.
pub const USER: u32 = 1000;
/// Another group of the user's.
pub const USER_GROUP: u32 = 5;

/// Plays an actor until the script, one operation a line on standard input, ends.
///
/// Errors: what of the process could not be arranged, or that nobody listens any more.
pub fn play(number: usize, root: &Path) -> Result<(), String> {
    let mut actor = Actor::new(number, root).map_err(|failure| failure.text)?;
    for line in io::stdin().lock().lines() {
        let line = line.map_err(|error| error.to_string())?;
        let told = match Operation::parse(&line) {
            Some(operation) => actor.perform(&operation),
            None => format!("cannot read {line:?}"),
        };
        let mut out = io::stdout().lock();
        writeln!(out, "{}", told.escape_debug())
            .and_then(|()| out.flush())
            .map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// What shows something of a path.
type Look = fn(&Actor, &Path) -> Done<String>;

/// A process of its own: root twice, or a user.
pub(super) struct Actor {
    pub(super) plot: Plot,
    pub(super) slots: Slots,
    /// `/proc`, which is outside of the root.
    pub(super) processes: OwnedFd,
}

impl Actor {
    fn new(number: usize, root: &Path) -> Done<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let processes = call("open /proc", rustix::fs::open("/proc", flags, Mode::empty()))?;
        call("chroot", rustix::process::chroot(root))?;
        call("chdir", rustix::process::chdir("/"))?;
        rustix::process::umask(Mode::from_raw_mode(0o022));
        if number == 2 {
            become_user()?;
        }
        Ok(Self { plot: Plot::new(""), slots: Slots::default(), processes })
    }

    fn perform(&mut self, operation: &Operation) -> String {
        match self.attempt(operation) {
            Ok(seen) => seen,
            Err(Failure { errno: Some(errno), .. }) => format!("{errno}"),
            Err(failure) => failure.text,
        }
    }

    fn attempt(&mut self, operation: &Operation) -> Done<String> {
        let mut words = Words::new(operation.words());
        if let Some(seen) = self.look_on(operation.verb(), &mut words)? {
            return Ok(seen);
        }
        if self.change(operation.verb(), &mut words)? {
            return Ok("ok".to_owned());
        }
        self.use_slot(operation.verb(), &mut words)
    }

    /// Opens anything but a device, which a mount without devices refuses by another error.
    pub(super) fn open(&self, path: &Path, flags: OFlags) -> Done<OwnedFd> {
        if let Ok(stat) = rustix::fs::stat(path) {
            let kind = FileType::from_raw_mode(stat.st_mode);
            if matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) {
                return Err(Failure::new("a device is not opened"));
            }
        }
        self.plot.open(path, flags | OFlags::NONBLOCK)
    }

    /// What changes nothing; `None` for any other verb.
    fn look_on(&self, verb: &str, words: &mut Words<'_>) -> Done<Option<String>> {
        if verb == "where" {
            let path = call("getcwd", rustix::process::getcwd(Vec::new()))?;
            return Ok(Some(format!("{path:?}")));
        }
        let looks: &[(&str, Look)] = &[
            ("read", Self::read),
            ("look", Self::look),
            ("stat", |_, path| Ok(shown(&call("stat", rustix::fs::stat(path))?))),
            ("target", |actor, path| actor.plot.target(path)),
            ("list", |actor, path| rows(&actor.open(path, OFlags::RDONLY | OFlags::DIRECTORY)?)),
            ("seek", |actor, path| {
                let file = actor.open(path, OFlags::RDONLY)?;
                if is_file(&stat_of(&file)?) { holes(&file) } else { Ok("no file".to_owned()) }
            }),
            ("statistics", |_, path| {
                let seen = call("statvfs", rustix::fs::statvfs(path))?;
                let blocks = if disk::has_lawful_copies() { seen.f_blocks } else { 0 };
                Ok(format!("{} {} {blocks}", seen.f_namemax, seen.f_frsize))
            }),
        ];
        if let Some((_, look)) = looks.iter().find(|(name, _)| *name == verb) {
            return look(self, &words.path()?).map(Some);
        }
        match verb {
            "access" => {
                let (path, bits) = (words.path()?, words.number()?);
                let access = Access::from_bits_truncate(bits);
                call("access", rustix::fs::accessat(CWD, &path, access, AtFlags::empty()))?;
                Ok(Some("ok".to_owned()))
            }
            "get-xattr" => {
                let value = self.plot.xattr(words.path()?, words.word()?)?;
                Ok(Some(value.escape_ascii().to_string()))
            }
            "copy" => self.copy(words).map(Some),
            _ => Ok(None),
        }
    }

    /// What changes the tree or the process, and has nothing to show; false for any other verb.
    fn change(&self, verb: &str, words: &mut Words<'_>) -> Done<bool> {
        let plot = &self.plot;
        match verb {
            "write" => self.write(words)?,
            "truncate" => {
                let (path, size) = (words.path()?, words.number()?);
                let file = self.open(&path, OFlags::WRONLY)?;
                call("ftruncate", rustix::fs::ftruncate(&file, size))?;
            }
            "allocate" => {
                let file = self.open(&words.path()?, OFlags::WRONLY)?;
                allocate(&file, words)?;
            }
            "unlink" => plot.unlink(words.path()?)?,
            "rmdir" => plot.rmdir(words.path()?)?,
            "remove-tree" => plot.remove_tree(words.path()?)?,
            "mkdir" => plot.mkdir_with(words.path()?, words.mode()?)?,
            "mknod" => plot.mknod(words.path()?, words.kind()?, words.number()?)?,
            "rename" => plot.rename_with(words.path()?, words.path()?, words.rename_flags()?)?,
            "link" => plot.link(words.path()?, words.path()?)?,
            "link-target" => {
                let (from, to) = (words.path()?, words.path()?);
                let follow = AtFlags::SYMLINK_FOLLOW;
                call("linkat", rustix::fs::linkat(CWD, &from, CWD, &to, follow))?;
            }
            "symlink" => plot.symlink(words.word()?, words.path()?)?,
            "chmod" => plot.chmod(words.path()?, words.mode()?)?,
            "chown" => {
                let (path, owner, group) = (words.path()?, words.id()?, words.id()?);
                let no_follow = AtFlags::SYMLINK_NOFOLLOW;
                let owner = owner.map(Uid::from_raw);
                let group = group.map(Gid::from_raw);
                call("lchown", rustix::fs::chownat(CWD, &path, owner, group, no_follow))?;
            }
            "times" => {
                let (path, times) = (words.path()?, words.times()?);
                let no_follow = AtFlags::SYMLINK_NOFOLLOW;
                call("utimensat", rustix::fs::utimensat(CWD, &path, &times, no_follow))?;
            }
            "set-xattr" => {
                let (path, key, flags) = (words.path()?, words.word()?, words.xattr_flags()?);
                plot.set_xattr_with(path, key, &pattern(words.number()?), flags)?;
            }
            "remove-xattr" => plot.remove_xattr(words.path()?, words.word()?)?,
            "set-acl" => {
                let (path, key) = (words.path()?, words.acl_key()?);
                plot.set_xattr(path, key, &words.acl()?)?;
            }
            "remove-acl" => plot.remove_xattr(words.path()?, words.acl_key()?)?,
            "chdir" => call("chdir", rustix::process::chdir(&words.path()?))?,
            "umask" => drop(rustix::process::umask(Mode::from_raw_mode(words.mode()?))),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn read(&self, path: &Path) -> Done<String> {
        let file = self.open(path, OFlags::RDONLY)?;
        if is_file(&stat_of(&file)?) { Ok(sum(&read_all(&file)?)) } else { Ok("no file".into()) }
    }

    fn look(&self, path: &Path) -> Done<String> {
        let stat = self.plot.stat(path)?;
        let mut seen = shown(&stat);
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            seen.push_str(&self.plot.target(path)?);
        }
        // Newer kernels do not say who lists, and a user sees root's names: a known difference.
        let is_root = rustix::process::geteuid().is_root();
        let keys = self.plot.xattrs(path)?.into_iter();
        for key in keys.filter(|key| is_root || !key.starts_with("trusted.")) {
            let value = self.plot.xattr(path, &key)?;
            if write!(seen, " {key}={}", value.escape_ascii()).is_err() {
                return Err(Failure::new("no room for a text"));
            }
        }
        Ok(seen)
    }

    fn write(&self, words: &mut Words<'_>) -> Done {
        let (path, flags) = (words.path()?, words.open_flags()?);
        let (offset, length) = (words.number()?, words.number::<usize>()?);
        let file = self.open(&path, OFlags::WRONLY | flags)?;
        write_at(&file, offset, &pattern(length + 3)[3..])
    }

    fn copy(&self, words: &mut Words<'_>) -> Done<String> {
        let from = self.open(&words.path()?, OFlags::RDONLY)?;
        let to = self.open(&words.path()?, OFlags::WRONLY)?;
        keeps_no_privilege(&stat_of(&to)?)?;
        let (mut from_offset, mut to_offset) = (words.number()?, words.number()?);
        let (size, mut done): (usize, _) = (words.number()?, 0);
        while done < size {
            let (at, to_at) = (Some(&mut from_offset), Some(&mut to_offset));
            let copied = rustix::fs::copy_file_range(&from, at, &to, to_at, size - done);
            match call("copy_file_range", copied)? {
                0 => break,
                count => done += count,
            }
        }
        Ok(format!("{done} bytes"))
    }
}

/// Root clears setuid and setgid by these calls in a union, and not on a disk: a known difference.
fn keeps_no_privilege(stat: &Stat) -> Done {
    let is_root = rustix::process::geteuid().is_root();
    if is_root && is_file(stat) && stat.st_mode & 0o6000 != 0 {
        return Err(Failure::new("not tried on setuid and setgid"));
    }
    Ok(())
}

fn become_user() -> Done {
    let (gid, uid) = (Gid::from_raw(USER), Uid::from_raw(USER));
    let groups = [Gid::from_raw(USER_GROUP)];
    call("setgroups", rustix::thread::set_thread_groups(&groups))?;
    call("setresgid", rustix::thread::set_thread_res_gid(gid, gid, gid))?;
    call("setresuid", rustix::thread::set_thread_res_uid(uid, uid, uid))?;
    // Else /proc/self belongs to root.
    call("prctl", rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable))
}

pub(super) fn allocate(file: &OwnedFd, words: &mut Words<'_>) -> Done {
    keeps_no_privilege(&stat_of(file)?)?;
    let (mode, offset, size) = (words.allocation()?, words.number()?, words.number()?);
    call("fallocate", rustix::fs::fallocate(file, mode, offset, size))
}

pub(super) fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// Names and types, sorted; each with the number that its object has.
pub(super) fn rows(directory: &OwnedFd) -> Done<String> {
    let mut rows = Vec::new();
    for row in list(directory)?.into_iter().filter(|row| row.name != "." && row.name != "..") {
        let no_follow = AtFlags::SYMLINK_NOFOLLOW;
        // A directory may be read by who may not look into it.
        match rustix::fs::statat(directory, &row.name, no_follow) {
            Ok(stat) => holds("d_ino is st_ino", stat.st_ino == row.number)?,
            Err(errno) => holds("what is listed is there", errno == Errno::ACCESS)?,
        }
        rows.push(format!("{:?} {:?}", row.name, row.kind));
    }
    rows.sort_unstable();
    Ok(rows.join(", "))
}

/// What SEEK_HOLE says is a hole must read as zeros. Where holes are is not told: a union may report
/// one as data.
fn holes(file: &OwnedFd) -> Done<String> {
    use rustix::fs::{SeekFrom, seek};
    let size = u64::try_from(stat_of(file)?.st_size).unwrap_or(0);
    let mut at = 0;
    while at < size {
        let hole = call("seek", seek(file, SeekFrom::Hole(at)))?;
        let data = match seek(file, SeekFrom::Data(hole)) {
            Err(Errno::NXIO) => size,
            data => call("seek", data)?,
        };
        let length = usize::try_from(data - hole).unwrap_or(0);
        let is_zero = read_at(file, hole, length)?.iter().all(|byte| *byte == 0);
        holds("a hole reads as zeros", is_zero)?;
        at = data;
    }
    let behind = seek(file, SeekFrom::Data(size));
    Ok(format!("{size} bytes, {behind:?} behind them"))
}

pub(super) fn sum(content: &[u8]) -> String {
    format!("{} bytes, sum {:x}", content.len(), crate::tree::sum(content))
}

pub(super) fn shown(stat: &Stat) -> String {
    let size = if is_file(stat) { stat.st_size } else { 0 };
    let owner = (stat.st_uid, stat.st_gid);
    let changed = super::class_of(stat.st_mtime);
    let links = crate::tree::links(stat);
    format!("{:o} {owner:?} {size} x{links} {:x} {changed} ", stat.st_mode, stat.st_rdev)
}

/// A path as it is in a word.
pub(super) fn path(word: &str) -> PathBuf {
    bytes(word).into()
}

/// Both times alike.
pub(super) fn both(time: Timespec) -> Timestamps {
    Timestamps { last_access: time, last_modification: time }
}
