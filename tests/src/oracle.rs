//! Random operations, done alike on two trees that should not be told apart.
//!
//! A seed makes a tree and a list of operations on it. The names are few, so that operations meet.
//! What an operation comes to is a text: its error, or what it saw.

use std::fmt::Write as _;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, Stat, Timespec, XattrFlags,
};
use rustix::io::Errno;

use crate::laws::plot::{
    Done, Failure, Plot, call, list, open_again, pattern, read_all, stat_of, write_at,
};

/// A small generator of numbers (xorshift64*), the same on every machine.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Dice that fall the same way for the same seed.
    pub fn new(seed: u64) -> Self {
        let mut dice = Self((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        dice.below(2);
        dice
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        u32::try_from(bits % u64::from(end)).unwrap_or(0)
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        let index = self.below(u32::try_from(from.len()).unwrap_or(1).max(1));
        from[index as usize].clone()
    }
}

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", ".wh.a"];
const KEYS: [&str; 5] =
    ["user.x", "user.y", "trusted.x", "trusted.overlay.opaque", "trusted.overlay.redirect"];
const SLOTS: u32 = 3;

/// One thing done to a tree. Paths are relative to its root.
#[derive(Clone, Debug)]
pub enum Operation {
    /// Opens, writes and closes.
    Write {
        /// Which file.
        path: String,
        /// `O_CREAT`, `O_TRUNC`, `O_APPEND` and `O_EXCL`, as wished.
        flags: OFlags,
        /// From where.
        offset: u64,
        /// How much.
        length: usize,
    },
    /// Changes a file's size.
    Truncate(String, u64),
    /// Reads a file.
    Read(String),
    /// fallocate(2).
    Allocate(String, FallocateFlags, u64, u64),
    /// copy_file_range(2).
    CopyRange(String, String, u64, usize),
    /// unlink(2).
    Unlink(String),
    /// rmdir(2).
    Rmdir(String),
    /// rm -r.
    RemoveTree(String),
    /// mkdir(2).
    Mkdir(String, u32),
    /// mknod(2).
    Mknod(String, FileType, u64),
    /// renameat2(2).
    Rename(String, String, RenameFlags),
    /// link(2).
    Link(String, String),
    /// symlink(2): target and name.
    Symlink(String, String),
    /// chmod(2).
    Chmod(String, u32),
    /// lchown(2).
    Chown(String, u32, u32),
    /// utimensat(2).
    SetTimes(String, i64),
    /// lsetxattr(2).
    SetXattr(String, &'static str, XattrFlags),
    /// lremovexattr(2).
    RemoveXattr(String, &'static str),
    /// lstat(2), readlink(2), all xattrs.
    Look(String),
    /// Names and types in a directory.
    List(String),
    /// Opens and keeps open: slot and path.
    Hold(u32, String),
    /// Uses what a slot holds.
    Use(u32, Held),
    /// Nothing is cached any more, and nothing held.
    Refresh,
}

/// What is done with something held open.
#[derive(Clone, Debug)]
pub enum Held {
    /// Reads or lists it.
    Read,
    /// fstat(2).
    Look,
    /// Writes at an offset.
    Write(u64, usize),
    /// Changes its size.
    Truncate(u64),
    /// fchmod(2).
    Chmod(u32),
    /// Makes a directory in it.
    Mkdir(&'static str),
    /// Opens it again through /proc/self/fd, for writing.
    Again,
    /// Gives it a name.
    Link(String),
    /// Closes it.
    Close,
}

/// A list of operations for a seed, with a [`Operation::Refresh`] now and then.
pub fn operations(seed: u64, count: usize) -> Vec<Operation> {
    let mut dice = Dice::new(seed);
    (0..count).map(|_| operation(&mut dice)).collect()
}

fn path(dice: &mut Dice) -> String {
    let depth = dice.pick(&[1, 1, 2, 2, 2, 3]);
    (0..depth).map(|_| dice.pick(&NAMES)).collect::<Vec<_>>().join("/")
}

fn operation(dice: &mut Dice) -> Operation {
    match dice.below(100) {
        0..12 => write_operation(dice),
        12..15 => Operation::Truncate(path(dice), u64::from(dice.below(3) * 70_001)),
        15..18 => Operation::Read(path(dice)),
        18..20 => {
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let none = FallocateFlags::empty();
            let flags = [none, FallocateFlags::KEEP_SIZE, punch, FallocateFlags::ZERO_RANGE];
            let (offset, size) = (u64::from(dice.below(9000)), u64::from(dice.below(9000)));
            Operation::Allocate(path(dice), dice.pick(&flags), offset, size)
        }
        20..22 => {
            let (from, to) = (path(dice), path(dice));
            Operation::CopyRange(from, to, u64::from(dice.below(5000)), 6000)
        }
        22..29 => Operation::Unlink(path(dice)),
        29..32 => Operation::Rmdir(path(dice)),
        32..33 => Operation::RemoveTree(path(dice)),
        33..41 => Operation::Mkdir(path(dice), dice.pick(&[0o755, 0o700, 0o1777])),
        41..44 => {
            let kinds = [
                (FileType::Fifo, 0),
                (FileType::CharacterDevice, 0),
                (FileType::CharacterDevice, rustix::fs::makedev(240, 3)),
                (FileType::Socket, 0),
                (FileType::RegularFile, 0),
            ];
            let (kind, device) = dice.pick(&kinds);
            Operation::Mknod(path(dice), kind, device)
        }
        44..62 => {
            let none = RenameFlags::empty();
            let (no_replace, exchange) = (RenameFlags::NOREPLACE, RenameFlags::EXCHANGE);
            let flags = [none, none, none, none, no_replace, exchange, RenameFlags::WHITEOUT];
            Operation::Rename(path(dice), path(dice), dice.pick(&flags))
        }
        62..67 => Operation::Link(path(dice), path(dice)),
        67..70 => Operation::Symlink(dice.pick(&["a", "../b", "b/c", "."]).to_string(), path(dice)),
        70..74 => Operation::Chmod(path(dice), dice.pick(&[0o644, 0o600, 0o755, 0o2644])),
        74..77 => Operation::Chown(path(dice), dice.below(3), dice.below(3)),
        77..80 => Operation::SetTimes(path(dice), i64::from(dice.below(1_000_000_000))),
        80..83 => {
            let none = XattrFlags::empty();
            let flags = dice.pick(&[none, none, XattrFlags::CREATE, XattrFlags::REPLACE]);
            Operation::SetXattr(path(dice), dice.pick(&KEYS), flags)
        }
        83..84 => Operation::RemoveXattr(path(dice), dice.pick(&KEYS)),
        84..87 => Operation::Look(path(dice)),
        87..90 => Operation::List(path(dice)),
        90..93 => Operation::Hold(dice.below(SLOTS), path(dice)),
        93..99 => Operation::Use(dice.below(SLOTS), held(dice)),
        _ => Operation::Refresh,
    }
}

fn write_operation(dice: &mut Dice) -> Operation {
    let none = OFlags::empty();
    let create = OFlags::CREATE;
    let flags = [
        none,
        create,
        create,
        create | OFlags::TRUNC,
        create | OFlags::EXCL,
        create | OFlags::APPEND,
        OFlags::APPEND,
        OFlags::TRUNC,
    ];
    let length = dice.pick(&[0, 5, 5, 100, 4096, 70_000]);
    let offset = u64::from(dice.pick(&[0_u32, 0, 3, 4096, 130_000]));
    Operation::Write { path: path(dice), flags: dice.pick(&flags), offset, length }
}

fn held(dice: &mut Dice) -> Held {
    match dice.below(10) {
        0..2 => Held::Read,
        2 => Held::Look,
        3..5 => Held::Write(u64::from(dice.below(9000)), 50),
        5 => Held::Truncate(u64::from(dice.below(9000))),
        6 => Held::Chmod(0o640),
        7 => dice.pick(&[Held::Mkdir("a"), Held::Mkdir("e")]),
        8 => dice.pick(&[Held::Again, Held::Link(String::from("linked"))]),
        _ => Held::Close,
    }
}

/// A tree operations are done to.
#[derive(Debug)]
pub struct World {
    plot: Plot,
    held: [Option<OwnedFd>; SLOTS as usize],
}

impl World {
    /// The tree below `root`; one directory down, for a symlink may climb by one.
    pub fn new(root: &Path) -> Self {
        Self { plot: Plot::new(root.join("top")), held: [None, None, None] }
    }

    /// Closes what is held.
    pub fn let_go(&mut self) {
        self.held = [None, None, None];
    }

    /// Does it, and says what came of it.
    pub fn perform(&mut self, operation: &Operation) -> String {
        match self.attempt(operation) {
            Ok(seen) => seen,
            Err(Failure { errno: Some(errno), .. }) => format!("{errno}"),
            Err(failure) => failure.text,
        }
    }

    /// Opens anything but a device, which a mount without devices refuses by another error.
    fn open(&self, path: &str, flags: OFlags) -> Done<OwnedFd> {
        if let Ok(stat) = rustix::fs::stat(self.plot.at(path)) {
            let kind = FileType::from_raw_mode(stat.st_mode);
            if matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) {
                return Err(Failure::new("a device is not opened"));
            }
        }
        self.plot.open(path, flags)
    }

    fn attempt(&mut self, operation: &Operation) -> Done<String> {
        let plot = &self.plot;
        let done = match operation {
            Operation::Write { path, flags, offset, length } => {
                let file = self.open(path, OFlags::WRONLY | OFlags::NONBLOCK | *flags)?;
                let bytes = pattern(*length + 3)[3..].to_vec();
                write_at(&file, *offset, &bytes)
            }
            Operation::Truncate(path, size) => {
                let size = *size;
                let file = self.open(path, OFlags::WRONLY | OFlags::NONBLOCK)?;
                call("ftruncate", rustix::fs::ftruncate(&file, size))
            }
            Operation::Read(path) => return self.read(path),
            Operation::Allocate(path, flags, offset, size) => {
                let file = self.open(path, OFlags::WRONLY | OFlags::NONBLOCK)?;
                call("fallocate", rustix::fs::fallocate(&file, *flags, *offset, *size))
            }
            Operation::CopyRange(from, to, offset, size) => {
                return self.copy_range(from, to, *offset, *size);
            }
            Operation::Unlink(path) => plot.unlink(path),
            Operation::Rmdir(path) => plot.rmdir(path),
            Operation::RemoveTree(path) => plot.remove_tree(path),
            Operation::Mkdir(path, mode) => plot.mkdir_with(path, *mode),
            Operation::Mknod(path, kind, device) => plot.mknod(path, *kind, *device),
            Operation::Rename(from, to, flags) => plot.rename_with(from, to, *flags),
            Operation::Link(from, to) => plot.link(from, to),
            Operation::Symlink(target, path) => plot.symlink(target, path),
            Operation::Chmod(path, mode) => plot.chmod(path, *mode),
            Operation::Chown(path, uid, gid) => plot.chown(path, *uid, *gid),
            Operation::SetTimes(path, seconds) => {
                plot.set_times(path, Timespec { tv_sec: *seconds, tv_nsec: 5 })
            }
            Operation::SetXattr(path, key, flags) => {
                plot.set_xattr_with(path, key, b"value", *flags)
            }
            Operation::RemoveXattr(path, key) => plot.remove_xattr(path, key),
            Operation::Look(path) => return self.look(path),
            Operation::List(path) => {
                return rows(plot.open(path, OFlags::RDONLY | OFlags::DIRECTORY)?);
            }
            Operation::Hold(slot, path) => {
                let file = self
                    .open(path, OFlags::RDWR | OFlags::NONBLOCK)
                    .or_else(|_| plot.open(path, OFlags::RDONLY | OFlags::DIRECTORY))?;
                self.held[*slot as usize] = Some(file);
                Ok(())
            }
            Operation::Use(slot, held) => return self.use_held(*slot, held),
            Operation::Refresh => Ok(()),
        };
        done.map(|()| "ok".to_owned())
    }

    fn read(&self, path: &str) -> Done<String> {
        let file = self.open(path, OFlags::RDONLY | OFlags::NONBLOCK)?;
        if FileType::from_raw_mode(stat_of(&file)?.st_mode) != FileType::RegularFile {
            return Ok("no file".to_owned());
        }
        Ok(sum(&read_all(&file)?))
    }

    fn copy_range(&self, from: &str, to: &str, offset: u64, size: usize) -> Done<String> {
        let from = self.open(from, OFlags::RDONLY | OFlags::NONBLOCK)?;
        let to = self.open(to, OFlags::WRONLY | OFlags::NONBLOCK)?;
        let (mut from_offset, mut to_offset, mut done) = (offset, offset / 2, 0);
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

    fn look(&self, path: &str) -> Done<String> {
        let stat = self.plot.stat(path)?;
        let mut seen = shown(&stat);
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            seen.push_str(&self.plot.target(path)?);
        }
        for key in self.plot.xattrs(path)? {
            let value = self.plot.xattr(path, &key)?;
            if write!(seen, " {key}={}", value.escape_ascii()).is_err() {
                return Err(Failure::new("no room for a text"));
            }
        }
        Ok(seen)
    }

    fn use_held(&mut self, slot: u32, held: &Held) -> Done<String> {
        let slot = slot as usize;
        let Some(file) = &self.held[slot] else { return Ok("nothing held".to_owned()) };
        let kind = FileType::from_raw_mode(stat_of(file)?.st_mode);
        let is_file = kind == FileType::RegularFile;
        let done = match held {
            Held::Read if kind == FileType::Directory => {
                return rows(call("open .", reopen_directory(file))?);
            }
            Held::Read if is_file => return Ok(sum(&read_all(file)?)),
            Held::Look => return Ok(shown(&stat_of(file)?)),
            Held::Write(offset, length) if is_file => write_at(file, *offset, &pattern(*length)),
            Held::Truncate(size) if is_file => {
                call("ftruncate", rustix::fs::ftruncate(file, *size))
            }
            Held::Chmod(mode) => {
                call("fchmod", rustix::fs::fchmod(file, Mode::from_raw_mode(*mode)))
            }
            Held::Mkdir(name) => {
                let mode = Mode::from_raw_mode(0o755);
                call("mkdirat", rustix::fs::mkdirat(file, *name, mode))
            }
            Held::Again if is_file => {
                let again = open_again(file, OFlags::RDWR)?;
                write_at(&again, 1, b"again")
            }
            Held::Link(name) => {
                let from = format!("/proc/self/fd/{}", file.as_raw_fd());
                let to = self.plot.at(name);
                let linked = rustix::fs::linkat(CWD, &from, CWD, &to, AtFlags::SYMLINK_FOLLOW);
                call("linkat", linked)
            }
            Held::Close => {
                self.held[slot] = None;
                Ok(())
            }
            _ => return Ok("not for this kind".to_owned()),
        };
        done.map(|()| "ok".to_owned())
    }
}

/// A descriptor of its own, so that the position is the start.
fn reopen_directory(directory: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(directory, ".", flags, Mode::empty())
}

fn rows(directory: impl AsFd) -> Done<String> {
    let mut rows: Vec<_> = list(directory)?
        .into_iter()
        .filter(|row| row.name != "." && row.name != "..")
        .map(|row| format!("{:?} {:?}", row.name, row.kind))
        .collect();
    rows.sort_unstable();
    Ok(rows.join(", "))
}

fn sum(content: &[u8]) -> String {
    let sum = content.iter().fold(0_u64, |sum, byte| {
        sum.rotate_left(5).wrapping_add(u64::from(*byte)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    });
    format!("{} bytes, sum {sum:x}", content.len())
}

fn shown(stat: &Stat) -> String {
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    let size = if is_file { stat.st_size } else { 0 };
    let owner = (stat.st_uid, stat.st_gid);
    let changed = class_of(stat.st_mtime);
    format!("{:o} {owner:?} {size} x{} {:x} {changed} ", stat.st_mode, stat.st_nlink, stat.st_rdev)
}

/// Times are alike if they were set, or both are of the time of the test.
fn class_of(seconds: i64) -> i64 {
    const YEAR_2020: i64 = 1_577_836_800;
    seconds.min(YEAR_2020)
}

/// Makes the tree of a seed below `root`, an empty directory: what is left after operations on it,
/// with old times.
pub fn make_tree(seed: u64, root: &Path) -> Done {
    let mut dice = Dice::new(!seed);
    let mut world = World::new(root);
    world.plot.mkdir("")?;
    for name in NAMES {
        if dice.below(2) == 0 {
            world.perform(&Operation::Mkdir(name.to_owned(), 0o755));
        }
    }
    for _ in 0..150 {
        let operation = operation(&mut dice);
        let is_removal = matches!(
            operation,
            Operation::RemoveTree(_) | Operation::Unlink(_) | Operation::Rmdir(_)
        );
        if !is_removal {
            world.perform(&operation);
        }
    }
    world.let_go();
    crate::laws::ground::age(&Plot::new(root), Path::new(""))
}

/// Copies a tree with everything that belongs to it.
///
/// # Panics
/// If `cp` fails.
pub fn copy_tree(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status();
    let is_copied = status.is_ok_and(|status| status.success());
    assert!(is_copied, "cp -a {} {}", from.display(), to.display());
}

/// A tree as [`crate::tree::read`] sees it, with all times of the test alike.
pub fn comparable(root: &Path) -> crate::tree::Tree {
    let mut tree = crate::tree::read(root);
    for object in tree.values_mut() {
        let seconds = class_of(object.mtime.0);
        if seconds != object.mtime.0 {
            object.mtime = (seconds, 0);
        }
    }
    tree
}

/// Makes a list of operations that fails as short as leaving some out can make it.
pub fn shrink(
    mut operations: Vec<Operation>,
    fails: &mut dyn FnMut(&[Operation]) -> bool,
) -> Vec<Operation> {
    let mut step = operations.len().div_ceil(2);
    loop {
        let mut start = 0;
        while start < operations.len() {
            let end = operations.len().min(start + step);
            let rest = [&operations[..start], &operations[end..]].concat();
            if fails(&rest) {
                operations = rest;
            } else {
                start = end;
            }
        }
        if step == 1 {
            return operations;
        }
        step = step.div_ceil(2);
    }
}

/// A number from the environment, or else `default`.
///
/// # Panics
/// If it is there and no number.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| {
        value.parse().unwrap_or_else(|_| panic!("{name}={value}: expected a number"))
    })
}

/// Removes a directory and all below it, if it is there.
///
/// # Panics
/// If it cannot be removed.
pub fn remove(path: &Path) {
    match fs::remove_dir_all(path) {
        Err(error) if Errno::from_io_error(&error) != Some(Errno::NOENT) => {
            panic!("removing {}: {error}", path.display())
        }
        _ => {}
    }
}

/// Where a site keeps its private copy.
pub fn private_copy(site: &crate::mount::Site) -> PathBuf {
    site.path().join("copy")
}
