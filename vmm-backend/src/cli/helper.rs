//! The command lines of mount(8) and umount(8), which call this program by the names
//! `mount.fuse.thinroot` and `umount.fuse.thinroot`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;

use super::Stop;
use crate::config::{Command, MountHelperConfig, StartConfig, UnmountHelperConfig};

/// Flags of a mount, by the words of mount(8): those a word sets and those it clears.
const FLAGS: &[(&str, MountFlags, MountFlags)] = &[
    ("ro", MountFlags::RDONLY, MountFlags::empty()),
    ("rw", MountFlags::empty(), MountFlags::RDONLY),
    ("nosuid", MountFlags::NOSUID, MountFlags::empty()),
    ("suid", MountFlags::empty(), MountFlags::NOSUID),
    ("nodev", MountFlags::NODEV, MountFlags::empty()),
    ("dev", MountFlags::empty(), MountFlags::NODEV),
    ("noexec", MountFlags::NOEXEC, MountFlags::empty()),
    ("exec", MountFlags::empty(), MountFlags::NOEXEC),
    ("sync", MountFlags::SYNCHRONOUS, MountFlags::empty()),
    ("async", MountFlags::empty(), MountFlags::SYNCHRONOUS),
    ("dirsync", MountFlags::DIRSYNC, MountFlags::empty()),
    ("noatime", MountFlags::NOATIME, MountFlags::RELATIME.union(MountFlags::STRICTATIME)),
    ("atime", MountFlags::empty(), MountFlags::NOATIME),
    ("nodiratime", MountFlags::NODIRATIME, MountFlags::empty()),
    ("diratime", MountFlags::empty(), MountFlags::NODIRATIME),
    ("relatime", MountFlags::RELATIME, MountFlags::NOATIME.union(MountFlags::STRICTATIME)),
    ("norelatime", MountFlags::empty(), MountFlags::RELATIME),
    ("strictatime", MountFlags::STRICTATIME, MountFlags::NOATIME.union(MountFlags::RELATIME)),
    ("lazytime", MountFlags::LAZYTIME, MountFlags::empty()),
    ("nolazytime", MountFlags::empty(), MountFlags::LAZYTIME),
];

/// Words for mount(8) itself, or for what is always so here.
const IGNORED: &[&str] = &[
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "nousers",
    "owner",
    "noowner",
    "group",
    "nogroup",
    "_netdev",
    "nofail",
    "silent",
    "loud",
    "nomand",
    "iversion",
    "noiversion",
    "default_permissions",
    "allow_other",
];

/// Words that `thinroot mount` has as switches.
const SWITCHES: &[&str] = &["lax", "volatile", "rebase"];

/// Words with a value that `thinroot mount` has under the same name.
const VALUES: &[&str] = &["index", "image", "writeback", "sandbox"];

/// Reads the command line of a helper; `None` if the program was called by another name.
pub fn parse(arguments: &[OsString]) -> Option<Result<Command, Stop>> {
    let (program, rest) = arguments.split_first()?;
    let name = Path::new(program).file_name()?.as_bytes();
    let parsed = if name.starts_with(b"mount.") {
        mount(rest).map(Command::MountHelper)
    } else if name.starts_with(b"umount.") {
        unmount(rest).map(Command::UnmountHelper)
    } else {
        return None;
    };
    Some(parsed.map_err(Stop::Usage))
}

/// `SOURCE DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`
fn mount(arguments: &[OsString]) -> Result<MountHelperConfig, String> {
    let Words { plain, letters, options } = Words::read(arguments, "sfnvrw")?;
    let [source, point] = <[OsString; 2]>::try_from(plain)
        .map_err(|_| "expected SOURCE DIR [-o OPTIONS]".to_owned())?;
    let mut read = Options::default();
    for option in split(options.as_bytes(), b',') {
        read.take(option)?;
    }
    if letters.contains(&b'r') {
        read.set |= MountFlags::RDONLY;
    }
    let mountpoint = PathBuf::from(point);
    let (flags, is_fake) = (read.flags(), letters.contains(&b'f'));
    let start = if read.is_remount { None } else { Some(read.start(&source, &mountpoint)?) };
    Ok(MountHelperConfig { mountpoint, start, flags, is_fake })
}

/// `DIR [-flnrv] [-N NAMESPACE] [-t TYPE]`
fn unmount(arguments: &[OsString]) -> Result<UnmountHelperConfig, String> {
    let Words { plain, letters, .. } = Words::read(arguments, "flnrv")?;
    let [point] =
        <[OsString; 1]>::try_from(plain).map_err(|_| "expected DIR [-flnrv]".to_owned())?;
    let has = |letter| letters.contains(&letter);
    Ok(UnmountHelperConfig { mountpoint: point.into(), lazily: has(b'l'), by_force: has(b'f') })
}

/// A command line, taken apart.
#[derive(Default)]
struct Words {
    plain: Vec<OsString>,
    letters: Vec<u8>,
    options: OsString,
}

impl Words {
    fn read(arguments: &[OsString], known: &str) -> Result<Self, String> {
        let mut words = Self::default();
        let mut rest = arguments.iter();
        while let Some(word) = rest.next() {
            match word.as_bytes() {
                b"-o" => {
                    let more = rest.next().ok_or("-o: expected options behind it")?;
                    if !words.options.is_empty() {
                        words.options.push(",");
                    }
                    words.options.push(more);
                }
                b"-t" | b"-N" => drop(rest.next()),
                [b'-', letters @ ..] if !letters.is_empty() => {
                    if let Some(wrong) = letters.iter().find(|l| !known.as_bytes().contains(l)) {
                        let wrong = char::from(*wrong);
                        return Err(format!("-{wrong}: expected one of -{known}, -o, -t, -N"));
                    }
                    words.letters.extend(letters);
                }
                _ => words.plain.push(word.clone()),
            }
        }
        Ok(words)
    }
}

/// What stands behind `-o`.
struct Options {
    /// What nobody says anything about.
    defaults: MountFlags,
    /// What was said, later words over earlier ones.
    set: MountFlags,
    cleared: MountFlags,
    is_remount: bool,
    lowers: Vec<PathBuf>,
    upper: Option<PathBuf>,
    work: Option<PathBuf>,
    log: Option<PathBuf>,
    name: Option<OsString>,
    /// For `thinroot mount` as they are.
    passed_on: Vec<OsString>,
}

impl Default for Options {
    /// A guest's setuid files and devices are not this host's, unless somebody says so.
    fn default() -> Self {
        let defaults = MountFlags::NOSUID | MountFlags::NODEV;
        let (set, cleared) = (MountFlags::empty(), MountFlags::empty());
        let (lowers, passed_on) = (Vec::new(), Vec::new());
        let (upper, work, log, name) = (None, None, None, None);
        let is_remount = false;
        Self { defaults, set, cleared, is_remount, lowers, upper, work, log, name, passed_on }
    }
}

impl Options {
    fn flags(&self) -> MountFlags {
        (self.defaults - self.cleared) | self.set
    }

    fn take(&mut self, option: &[u8]) -> Result<(), String> {
        let (word, value) = match option.iter().position(|byte| *byte == b'=') {
            Some(at) => option.split_at(at),
            None => (option, &b""[..]),
        };
        let value = value.strip_prefix(b"=");
        let word = str::from_utf8(word).unwrap_or("?");
        if let Some((_, set, clear)) = FLAGS.iter().find(|(known, ..)| *known == word) {
            self.set = (self.set - *clear) | *set;
            self.cleared = (self.cleared - *set) | *clear;
            return Ok(());
        }
        let path = |value: &[u8]| PathBuf::from(unescaped(value));
        match (word, value) {
            ("remount", None) => self.is_remount = true,
            // mount(8) keeps `suid` and `dev`, its defaults, to itself: ours are the others.
            ("trusted", None) => self.defaults -= MountFlags::NOSUID | MountFlags::NODEV,
            ("lowerdir", Some(value)) => self.lowers.extend(split(value, b':').map(path)),
            ("upperdir", Some(value)) => self.upper = Some(path(value)),
            ("workdir", Some(value)) => self.work = Some(path(value)),
            ("log", Some(value)) => self.log = Some(path(value)),
            ("fsname", Some(value)) => self.name = Some(unescaped(value)),
            (switch, None) if SWITCHES.contains(&switch) => {
                self.passed_on.push(format!("--{switch}").into());
            }
            (name, Some(value)) if VALUES.contains(&name) => {
                self.passed_on.extend([format!("--{name}").into(), unescaped(value)]);
            }
            (word, None) if word.is_empty() || IGNORED.contains(&word) => {}
            // systemd.mount(5), fstab(5), libmount's own.
            (word, _) if word.starts_with("x-") || word.starts_with("X-") => {}
            ("comment" | "uhelper" | "helper" | "subtype", Some(_)) => {}
            _ => {
                return Err(format!(
                    "mount option {}: expected lowerdir=, upperdir=, workdir=, fsname=, index=, image=, \
                     log=, trusted, lax, volatile, rebase, writeback=, sandbox=, or one of mount(8)'s",
                    String::from_utf8_lossy(option)
                ));
            }
        }
        Ok(())
    }

    /// The command line of the daemon. A layer is one as overlayfs knows them: its marks count.
    fn start(self, source: &OsStr, mountpoint: &Path) -> Result<StartConfig, String> {
        let needed = |what: &str| format!("mount option {what}=: expected it");
        let upper = self.upper.ok_or_else(|| needed("upperdir"))?;
        if self.lowers.is_empty() {
            return Err(needed("lowerdir"));
        }
        let absolute = |path: &Path| {
            std::path::absolute(path).map_err(|error| format!("{}: {error}", path.display()))
        };
        let upper = absolute(&upper)?;
        let mut arguments: Vec<OsString> = ["mount", "--log-level", "warn"].map(Into::into).into();
        for lower in &self.lowers {
            arguments.extend(["--layer".into(), absolute(lower)?.into()]);
        }
        arguments.extend(["--upper".into(), upper.clone().into()]);
        if let Some(work) = self.work {
            arguments.extend(["--work".into(), absolute(&work)?.into()]);
        }
        let name = self.name.unwrap_or_else(|| source.to_owned());
        arguments.extend(["--fsname".into(), name]);
        arguments.extend(self.passed_on);
        arguments.push(absolute(mountpoint)?.into());
        let log = self.log.as_deref().map(absolute).transpose()?;
        Ok(StartConfig { arguments, upper, log })
    }
}

/// The parts between separators that no backslash precedes.
fn split(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut is_escaped = false;
    text.split(move |byte| {
        let ends = *byte == separator && !is_escaped;
        is_escaped = *byte == b'\\' && !is_escaped;
        ends
    })
}

/// Without the backslashes that take another byte's meaning.
fn unescaped(text: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(&byte) = rest.next() {
        bytes.push(if byte == b'\\' { rest.next().copied().unwrap_or(byte) } else { byte });
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn helper(line: &str) -> Result<Command, String> {
        let words: Vec<OsString> = line.split(' ').map(Into::into).collect();
        parse(&words).unwrap().map_err(|stop| match stop {
            Stop::Usage(text) => text,
            Stop::Said(text) => panic!("{text}"),
        })
    }

    fn mounting(options: &str) -> Result<MountHelperConfig, String> {
        match helper(&format!("/sbin/mount.fuse.thinroot none /mnt -o {options}"))? {
            Command::MountHelper(config) => Ok(config),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_become_the_daemons_command_line() {
        let config =
            mounting(r"rw,lowerdir=/a:/b\:c\,d,upperdir=/u,workdir=/w,volatile,index=/i,x-x=1")
                .unwrap();
        let expected = r"mount --log-level warn --layer /a --layer /b:c,d --upper /u --work /w --fsname none --volatile --index /i /mnt";
        let start = config.start.unwrap();
        assert_eq!(start.arguments, expected.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert_eq!(start.upper, Path::new("/u"));
        assert_eq!(config.flags, MountFlags::NOSUID | MountFlags::NODEV);
        let named = mounting("lowerdir=/a,upperdir=/u,fsname=x").unwrap().start.unwrap();
        assert!(named.arguments.windows(2).any(|pair| pair == ["--fsname", "x"]));
    }

    #[test]
    fn flags_are_those_of_mount() {
        let rows = [
            ("suid,dev", MountFlags::empty()),
            ("trusted", MountFlags::empty()),
            ("trusted,nosuid", MountFlags::NOSUID),
            // mount(8) gives its own words first, wherever they were written.
            ("nosuid,trusted", MountFlags::NOSUID),
            ("nosuid,suid,nodev,trusted", MountFlags::NODEV),
            ("suid,dev,ro,noexec", MountFlags::RDONLY | MountFlags::NOEXEC),
            ("ro,rw,nosuid,dev", MountFlags::NOSUID),
            ("dev,suid,relatime,noatime", MountFlags::NOATIME),
            ("dev,suid,noatime,strictatime", MountFlags::STRICTATIME),
        ];
        for (options, flags) in rows {
            let config = mounting(&format!("remount,{options}")).unwrap();
            assert_eq!((config.flags, config.start.is_none()), (flags, true), "{options}");
        }
    }

    #[test]
    fn wrong_options_are_named() {
        let rows = [
            ("upperdir=/u", "lowerdir"),
            ("lowerdir=/a", "upperdir"),
            ("lowerdir=/a,upperdir=/u,metacopy=on", "metacopy=on"),
            ("lowerdir,upperdir=/u", "lowerdir"),
        ];
        for (options, named) in rows {
            let text = mounting(options).unwrap_err();
            assert!(text.contains(named) && !text.contains('\n'), "{options}: {text}");
        }
        for line in
            ["mount.fuse.thinroot none", "mount.fuse.thinroot none /m -x", "umount.thinroot"]
        {
            assert!(helper(line).is_err(), "{line}");
        }
    }

    #[test]
    fn unmounting_has_umounts_letters() {
        let Ok(Command::UnmountHelper(config)) = helper("umount.fuse.thinroot /m -l -n") else {
            panic!("no unmounting");
        };
        assert!(config.lazily && !config.by_force);
        assert!(parse(&["thinroot".into(), "mount".into()]).is_none());
    }
}
