//! The ground a law stands on: system calls below one directory, whose failures say what was called.

use std::ffi::OsString;
use std::fmt::{self, Debug};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps, XattrFlags,
};
use rustix::io::Errno;

/// When everything a law starts from was last changed: 2001-09-09, with nanoseconds.
pub const LONG_AGO: Timespec = Timespec { tv_sec: 1_000_000_000, tv_nsec: 123_456_789 };

/// What the names of the attributes begin with in which xfs keeps ACLs. It lists them to root.
pub const OF_XFS: &str = "trusted.SGI_ACL_";
/// linux/magic.h: `XFS_SUPER_MAGIC`.
const XFS_MAGIC: i64 = 0x5846_5342;

/// Why a law does not hold, or was not tried.
#[derive(Debug)]
pub struct Failure {
    /// What was done and what came of it.
    pub text: String,
    /// The error of the call that failed, if one did.
    pub errno: Option<Errno>,
    /// The law could not be tried here.
    pub is_skip: bool,
}

impl Failure {
    /// A law that does not hold.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), errno: None, is_skip: false }
    }

    /// A law that cannot be tried here, and why.
    pub fn skip(reason: impl Into<String>) -> Self {
        Self { is_skip: true, ..Self::new(reason) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What a step of a law gives.
pub type Done<T = ()> = Result<T, Failure>;

/// What must hold after a law's changes, now and whenever it is looked at again.
pub type Holds = Box<dyn Fn() -> Done>;

/// The end of a law with something that must hold from now on.
pub fn from_now_on(holds: impl Fn() -> Done + 'static) -> Done<Holds> {
    Ok(Box::new(holds))
}

/// The end of a law that leaves nothing to be looked at again.
pub fn nothing_more() -> Done<Holds> {
    from_now_on(|| Ok(()))
}

/// `got` must equal `expected`.
pub fn same<T: PartialEq<U> + Debug, U: Debug>(what: &str, got: T, expected: U) -> Done {
    if got == expected {
        return Ok(());
    }
    Err(Failure::new(format!("{what}: {} instead of {}", short(&got), short(&expected))))
}

/// `fact` must be true.
pub fn holds(what: &str, fact: bool) -> Done {
    if fact { Ok(()) } else { Err(Failure::new(format!("does not hold: {what}"))) }
}

/// The call must have failed with `expected`.
pub fn refused<T>(what: &str, result: Done<T>, expected: Errno) -> Done {
    match result {
        Ok(_) => Err(Failure::new(format!("{what}: succeeded instead of \"{expected}\""))),
        Err(failure) if failure.errno == Some(expected) => Ok(()),
        Err(failure) => Err(Failure::new(format!("{what}: {failure} instead of \"{expected}\""))),
    }
}

/// Gives a system call's result the words that say what was called.
pub fn call<T>(what: impl fmt::Display, result: rustix::io::Result<T>) -> Done<T> {
    result.map_err(|errno| Failure {
        text: format!("{what}: {errno}"),
        errno: Some(errno),
        is_skip: false,
    })
}

fn short(value: &impl Debug) -> String {
    let mut text = format!("{value:?}");
    if text.len() > 300 {
        let end = (0..=300).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// `length` bytes in which no two nearby blocks are alike.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n ^ (n >> 8) ^ (n >> 13)).to_le_bytes()[0]).collect()
}

/// A directory with content of every kind, which belongs to one law alone.
#[derive(Clone, Debug)]
pub struct Plot {
    directory: PathBuf,
}

impl Plot {
    /// The plot at `directory`.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// The path of `name`.
    pub fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.join(name)
    }

    fn what(&self, call: &str, name: &Path) -> String {
        let name = name.strip_prefix(&self.directory).unwrap_or(name).display().to_string();
        format!("{call} {}", short(&name))
    }

    /// A path call.
    fn on<T>(
        &self,
        call_name: &str,
        name: impl AsRef<Path>,
        run: impl FnOnce(&Path) -> rustix::io::Result<T>,
    ) -> Done<T> {
        let path = self.at(name);
        call(self.what(call_name, &path), run(&path))
    }

    /// open(2), with mode 0644 for what is created.
    pub fn open(&self, name: impl AsRef<Path>, flags: OFlags) -> Done<OwnedFd> {
        self.open_with(name, flags, 0o644)
    }

    /// open(2).
    pub fn open_with(&self, name: impl AsRef<Path>, flags: OFlags, mode: u32) -> Done<OwnedFd> {
        self.on("open", name, |path| {
            rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(mode))
        })
    }

    /// The whole content.
    pub fn read(&self, name: impl AsRef<Path>) -> Done<Vec<u8>> {
        let file = self.open(name, OFlags::RDONLY)?;
        read_all(&file)
    }

    /// Replaces the content; creates the file if it is missing.
    pub fn write(&self, name: impl AsRef<Path>, bytes: &[u8]) -> Done {
        let file = self.open(name, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC)?;
        write_at(&file, 0, bytes)
    }

    /// A new file that must not be there yet.
    pub fn create(&self, name: impl AsRef<Path>, bytes: &[u8]) -> Done {
        let file = self.open(name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?;
        write_at(&file, 0, bytes)
    }

    /// Overwrites in the middle of an existing file.
    pub fn patch(&self, name: impl AsRef<Path>, offset: u64, bytes: &[u8]) -> Done {
        write_at(&self.open(name, OFlags::WRONLY)?, offset, bytes)
    }

    /// Adds to the end of an existing file.
    pub fn append(&self, name: impl AsRef<Path>, bytes: &[u8]) -> Done {
        let file = self.open(name, OFlags::WRONLY | OFlags::APPEND)?;
        same("bytes appended", call("write", rustix::io::write(&file, bytes))?, bytes.len())
    }

    /// truncate(2).
    pub fn truncate(&self, name: impl AsRef<Path>, size: u64) -> Done {
        let file = self.open(name, OFlags::WRONLY)?;
        call("ftruncate", rustix::fs::ftruncate(&file, size))
    }

    /// lstat(2).
    pub fn stat(&self, name: impl AsRef<Path>) -> Done<Stat> {
        self.on("lstat", name, |path| rustix::fs::lstat(path))
    }

    /// The number by which the object is known.
    pub fn number(&self, name: impl AsRef<Path>) -> Done<u64> {
        Ok(self.stat(name)?.st_ino)
    }

    /// The type of the object.
    pub fn kind(&self, name: impl AsRef<Path>) -> Done<FileType> {
        Ok(FileType::from_raw_mode(self.stat(name)?.st_mode))
    }

    /// The mode without the type.
    pub fn mode(&self, name: impl AsRef<Path>) -> Done<u32> {
        Ok(self.stat(name)?.st_mode & 0o7777)
    }

    /// The link count.
    pub fn links(&self, name: impl AsRef<Path>) -> Done<u64> {
        Ok(self.stat(name)?.st_nlink)
    }

    /// When the contents changed: seconds and nanoseconds.
    pub fn mtime(&self, name: impl AsRef<Path>) -> Done<(i64, i64)> {
        let stat = self.stat(name)?;
        Ok((stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(-1)))
    }

    /// Whether there is nothing of this name: neither found nor listed.
    pub fn is_missing(&self, name: impl AsRef<Path>) -> Done {
        let name = name.as_ref();
        refused(&format!("lstat {}", name.display()), self.stat(name), Errno::NOENT)?;
        let parent = name.parent().unwrap_or(Path::new(""));
        let file_name = name.file_name().unwrap_or_default();
        let listed = self.names(parent)?.into_iter().any(|listed| listed == file_name);
        holds(&format!("{} is not listed", name.display()), !listed)
    }

    /// Names in a directory, sorted; `.` and `..` left out.
    pub fn names(&self, name: impl AsRef<Path>) -> Done<Vec<OsString>> {
        let mut names: Vec<_> = self.entries(name)?.into_iter().map(|entry| entry.name).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// The names in a directory must be these, in any order.
    pub fn names_are(&self, name: impl AsRef<Path>, expected: &[&str]) -> Done {
        let name = name.as_ref();
        let mut expected: Vec<_> = expected.iter().map(OsString::from).collect();
        expected.sort_unstable();
        same(&format!("names in {}", name.display()), self.names(name)?, expected)
    }

    /// The entries of a directory in its order; `.` and `..` left out.
    pub fn entries(&self, name: impl AsRef<Path>) -> Done<Vec<Listed>> {
        let directory = self.open(name, OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(list(&directory)?.into_iter().filter(|e| e.name != "." && e.name != "..").collect())
    }

    /// mkdir(2), mode 0755.
    pub fn mkdir(&self, name: impl AsRef<Path>) -> Done {
        self.mkdir_with(name, 0o755)
    }

    /// mkdir(2).
    pub fn mkdir_with(&self, name: impl AsRef<Path>, mode: u32) -> Done {
        self.on("mkdir", name, |path| rustix::fs::mkdir(path, Mode::from_raw_mode(mode)))
    }

    /// rmdir(2).
    pub fn rmdir(&self, name: impl AsRef<Path>) -> Done {
        self.on("rmdir", name, |path| rustix::fs::rmdir(path))
    }

    /// unlink(2).
    pub fn unlink(&self, name: impl AsRef<Path>) -> Done {
        self.on("unlink", name, |path| rustix::fs::unlink(path))
    }

    /// A directory and all in it, in the order of names.
    pub fn remove_tree(&self, name: impl AsRef<Path>) -> Done {
        let name = name.as_ref();
        if self.kind(name)? != FileType::Directory {
            return self.rmdir(name);
        }
        let mut entries = self.entries(name)?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        for entry in entries {
            let child = name.join(&entry.name);
            if entry.kind == FileType::Directory {
                self.remove_tree(child)?;
            } else {
                self.unlink(child)?;
            }
        }
        self.rmdir(name)
    }

    /// rename(2).
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Done {
        self.rename_with(from, to, RenameFlags::empty())
    }

    /// renameat2(2).
    pub fn rename_with(
        &self,
        from: impl AsRef<Path>,
        to: impl AsRef<Path>,
        flags: RenameFlags,
    ) -> Done {
        let to = self.at(to);
        let what = format!("rename {flags:?} to {}:", short(&to.file_name()));
        self.on(&what, from, |from| rustix::fs::renameat_with(CWD, from, CWD, &to, flags))
    }

    /// link(2).
    pub fn link(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Done {
        let to = self.at(to);
        self.on("link", from, |from| rustix::fs::link(from, &to))
    }

    /// symlink(2).
    pub fn symlink(&self, target: &str, name: impl AsRef<Path>) -> Done {
        self.on("symlink", name, |path| rustix::fs::symlink(target, path))
    }

    /// readlink(2).
    pub fn target(&self, name: impl AsRef<Path>) -> Done<String> {
        let target = self.on("readlink", name, |path| rustix::fs::readlink(path, Vec::new()))?;
        Ok(target.to_string_lossy().into_owned())
    }

    /// mknod(2).
    pub fn mknod(&self, name: impl AsRef<Path>, kind: FileType, rdev: u64) -> Done {
        let mode = Mode::from_raw_mode(0o644);
        self.on("mknod", name, |path| rustix::fs::mknodat(CWD, path, kind, mode, rdev))
    }

    /// chmod(2).
    pub fn chmod(&self, name: impl AsRef<Path>, mode: u32) -> Done {
        self.on("chmod", name, |path| rustix::fs::chmod(path, Mode::from_raw_mode(mode)))
    }

    /// lchown(2).
    pub fn chown(&self, name: impl AsRef<Path>, uid: u32, gid: u32) -> Done {
        let owner = Some(rustix::fs::Uid::from_raw(uid));
        let group = Some(rustix::fs::Gid::from_raw(gid));
        self.on("lchown", name, |path| {
            rustix::fs::chownat(CWD, path, owner, group, AtFlags::SYMLINK_NOFOLLOW)
        })
    }

    /// utimensat(2) with both times the same, not following.
    pub fn set_times(&self, name: impl AsRef<Path>, time: Timespec) -> Done {
        let times = Timestamps { last_access: time, last_modification: time };
        self.on("utimensat", name, |path| {
            rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
        })
    }

    /// lgetxattr(2).
    pub fn xattr(&self, name: impl AsRef<Path>, key: &str) -> Done<Vec<u8>> {
        self.on(&format!("lgetxattr {key}"), name, |path| {
            let mut value = vec![0; 65_536];
            let length = rustix::fs::lgetxattr(path, key, &mut value[..])?;
            value.truncate(length);
            Ok(value)
        })
    }

    /// lsetxattr(2) without flags.
    pub fn set_xattr(&self, name: impl AsRef<Path>, key: &str, value: &[u8]) -> Done {
        self.set_xattr_with(name, key, value, XattrFlags::empty())
    }

    /// lsetxattr(2).
    pub fn set_xattr_with(
        &self,
        name: impl AsRef<Path>,
        key: &str,
        value: &[u8],
        flags: XattrFlags,
    ) -> Done {
        self.on(&format!("lsetxattr {key}"), name, |path| {
            rustix::fs::lsetxattr(path, key, value, flags)
        })
    }

    /// lremovexattr(2).
    pub fn remove_xattr(&self, name: impl AsRef<Path>, key: &str) -> Done {
        self.on(&format!("lremovexattr {key}"), name, |path| rustix::fs::lremovexattr(path, key))
    }

    /// How many bytes llistxattr(2) says it needs.
    pub fn xattrs_size(&self, name: impl AsRef<Path>) -> Done<usize> {
        self.on("llistxattr", name, |path| rustix::fs::llistxattr_query(path))
    }

    /// llistxattr(2), sorted.
    pub fn xattrs(&self, name: impl AsRef<Path>) -> Done<Vec<String>> {
        let name = name.as_ref();
        let mut list = vec![0; 65_536];
        let length =
            self.on("llistxattr", name, |path| rustix::fs::llistxattr(path, &mut list[..]))?;
        let has_own_acls = list[..length].windows(OF_XFS.len()).any(|key| key == OF_XFS.as_bytes())
            && self.on("statfs", name, |path| rustix::fs::statfs(path))?.f_type == XFS_MAGIC;
        let mut keys: Vec<_> = list[..length]
            .split(|byte| *byte == 0)
            .filter(|key| !key.is_empty())
            .map(|key| String::from_utf8_lossy(key).into_owned())
            // What a security module of the host shows on everything is nobody's law.
            .filter(|key| key != "security.selinux")
            // Nor what a plain xfs shows beside an ACL: the same once more, as it is on the disk.
            .filter(|key| !(has_own_acls && key.starts_with(OF_XFS)))
            .collect();
        keys.sort_unstable();
        Ok(keys)
    }
}

/// One row of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// The name.
    pub name: OsString,
    /// `d_ino`.
    pub number: u64,
    /// `d_type`.
    pub kind: FileType,
    /// `d_off`: where the listing goes on after this row.
    pub offset: i64,
}

/// All rows of an open directory from its start, in its order.
pub fn list(directory: impl AsFd) -> Done<Vec<Listed>> {
    let mut stream = call("opendir", rustix::fs::Dir::read_from(directory))?;
    let mut rows = Vec::new();
    while let Some(entry) = stream.read() {
        let entry = call("getdents64", entry)?;
        rows.push(Listed {
            name: OsString::from_vec(entry.file_name().to_bytes().to_vec()),
            number: entry.ino(),
            kind: entry.file_type(),
            offset: entry.offset(),
        });
    }
    Ok(rows)
}

/// The whole content of an open file.
pub fn read_all(file: impl AsFd) -> Done<Vec<u8>> {
    let mut content = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let offset = u64::try_from(content.len()).unwrap_or(u64::MAX);
        let count = call("pread", rustix::io::pread(&file, &mut buffer[..], offset))?;
        if count == 0 {
            return Ok(content);
        }
        content.extend_from_slice(&buffer[..count]);
    }
}

/// `length` bytes from `offset`; fewer at the end of the file.
pub fn read_at(file: impl AsFd, offset: u64, length: usize) -> Done<Vec<u8>> {
    let mut buffer = vec![0; length];
    let count = call("pread", rustix::io::pread(&file, &mut buffer[..], offset))?;
    buffer.truncate(count);
    Ok(buffer)
}

/// All of `bytes` at `offset`.
pub fn write_at(file: impl AsFd, offset: u64, bytes: &[u8]) -> Done {
    let mut done = 0;
    while done < bytes.len() {
        let at = offset + u64::try_from(done).unwrap_or(0);
        done += call("pwrite", rustix::io::pwrite(&file, &bytes[done..], at))?;
    }
    Ok(())
}

/// fstat(2).
pub fn stat_of(file: impl AsFd) -> Done<Stat> {
    call("fstat", rustix::fs::fstat(file))
}

/// Opens what a descriptor holds once more.
pub fn open_again(file: impl AsFd, flags: OFlags) -> Done<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    call(format!("open {path}"), rustix::fs::open(&path, flags | OFlags::CLOEXEC, Mode::empty()))
}

/// Runs `run` as a user without privilege or supplementary groups, in a thread of its own.
pub fn as_user<T: Send>(uid: u32, gid: u32, run: impl FnOnce() -> Done<T> + Send) -> Done<T> {
    as_member((uid, gid), &[], run)
}

/// The same of a user who has supplementary groups.
pub fn as_member<T: Send>(
    (uid, gid): (u32, u32),
    groups: &[u32],
    run: impl FnOnce() -> Done<T> + Send,
) -> Done<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let gid = rustix::thread::Gid::from_raw(gid);
            let uid = rustix::thread::Uid::from_raw(uid);
            let groups: Vec<_> =
                groups.iter().map(|group| rustix::thread::Gid::from_raw(*group)).collect();
            call("setgroups", rustix::thread::set_thread_groups(&groups))?;
            call("setresgid", rustix::thread::set_thread_res_gid(gid, gid, gid))?;
            call("setresuid", rustix::thread::set_thread_res_uid(uid, uid, uid))?;
            run()
        });
        thread.join().unwrap_or_else(|_| Err(Failure::new("the thread of the user panicked")))
    })
}

/// Runs `run` with this umask. Laws run one at a time, for it is the whole process's.
pub fn with_umask<T>(umask: u32, run: impl FnOnce() -> T) -> T {
    let before = rustix::process::umask(Mode::from_raw_mode(umask));
    let result = run();
    rustix::process::umask(before);
    result
}
