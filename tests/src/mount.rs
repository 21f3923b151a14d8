//! A lower, an upper and `thinroot mount` over them, all gone when the test ends, however it ends.

use std::ffi::{CString, OsStr};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use tempfile::TempDir;
use thinroot::sys::process::{keep_descriptors, number};

use crate::skip::skip;

/// How long a mount may take to appear and a daemon to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether this test may mount; if not, says so aloud.
pub fn may_mount(test: &str) -> bool {
    let problem = if !rustix::process::geteuid().is_root() {
        "it needs root"
    } else if !Path::new("/dev/fuse").exists() {
        "there is no /dev/fuse"
    } else {
        return true;
    };
    skip(test, problem);
    false
}

/// The program `thinroot`, built as this test was, and up to date; or what `THINROOT_PROGRAM` names.
///
/// # Panics
/// If it cannot be built.
pub fn thinroot() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(named) = std::env::var_os("THINROOT_PROGRAM") {
            return named.into();
        }
        let test = std::env::current_exe().unwrap_or_default();
        let directory = test.parent().and_then(Path::parent).unwrap_or(Path::new(".")).to_owned();
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--package", "thinroot", "--bin", "thinroot"]);
        if directory.file_name() == Some(OsStr::new("release")) {
            build.arg("--release");
        }
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        let status = build.status();
        assert!(status.is_ok_and(|status| status.success()), "thinroot cannot be built");
        directory.join("thinroot")
    })
}

/// A directory on a disk, with a lower, an upper and a place to mount on.
#[derive(Debug)]
pub struct Site {
    directory: PathBuf,
    /// Goes with this, unless it only stands on a copy.
    temp: Option<TempDir>,
    lowers: Vec<PathBuf>,
}

impl Site {
    /// An empty lower and upper below /var/tmp, or below `THINROOT_TEST_DIR`.
    ///
    /// # Panics
    /// If the directories cannot be made.
    pub fn new() -> Self {
        let base = std::env::var_os("THINROOT_TEST_DIR").unwrap_or_else(|| "/var/tmp".into());
        Self::inside(Path::new(&base))
    }

    /// The same in another directory.
    ///
    /// # Panics
    /// If the directories cannot be made.
    pub fn inside(base: &Path) -> Self {
        let directory = tempfile::Builder::new().prefix("thinroot-test-").tempdir_in(base);
        let directory = directory.unwrap_or_else(|error| panic!("a test directory: {error}"));
        // Tests look in as other users too.
        let open = fs::Permissions::from_mode(0o755);
        make(fs::set_permissions(directory.path(), open), directory.path());
        let mut site = Self::standing(directory.path());
        site.temp = Some(directory);
        let own = site.own();
        for path in [&site.lower(), &own, &site.upper(), &site.point()] {
            make(fs::create_dir(path), path);
        }
        // As an upper should be kept: a guest makes setuid files there.
        make(fs::set_permissions(&own, fs::Permissions::from_mode(0o700)), &own);
        site
    }

    /// What stands in a directory already, as in a copy of a disk, and stays there.
    pub fn standing(directory: &Path) -> Self {
        let lowers = vec![directory.join("lower")];
        Self { directory: directory.to_owned(), temp: None, lowers }
    }

    /// The same over this tree instead, which stays where it is.
    #[must_use]
    pub fn over(mut self, lower: PathBuf) -> Self {
        self.lowers = vec![lower];
        self
    }

    /// The same with one more lower, below the others.
    #[must_use]
    pub fn below(mut self, lower: PathBuf) -> Self {
        self.lowers.push(lower);
        self
    }

    /// The directory that holds all of it.
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// Every lower of the union, the first on top.
    pub fn lowers(&self) -> &[PathBuf] {
        &self.lowers
    }

    /// The base that stands here, empty at first.
    pub fn lower(&self) -> PathBuf {
        self.path().join("lower")
    }

    /// The guest's own.
    pub fn upper(&self) -> PathBuf {
        self.own().join("upper")
    }

    /// Its work directory.
    pub fn work(&self) -> PathBuf {
        self.own().join("work")
    }

    /// The index of its lower.
    pub fn index(&self) -> PathBuf {
        self.path().join("index")
    }

    fn own(&self) -> PathBuf {
        self.path().join("own")
    }

    /// Where it is mounted.
    pub fn point(&self) -> PathBuf {
        self.path().join("root")
    }

    /// `thinroot COMMAND` with the options that name this site's layers.
    pub fn command(&self, command: &str) -> Command {
        let mut thinroot = Command::new(thinroot());
        thinroot.arg(command);
        for lower in &self.lowers {
            thinroot.arg("--lower").arg(lower);
        }
        thinroot.arg("--upper").arg(self.upper()).arg("--work").arg(self.work());
        thinroot.arg("--index").arg(self.index());
        thinroot
    }

    /// Mounts the union.
    ///
    /// # Panics
    /// If it does not appear.
    pub fn mount(&self, options: &[&str]) -> Mount {
        let mut mount = self.start(options, None);
        if let Some(status) = mount.wait_until_there() {
            panic!("thinroot mount ended with {status} before it mounted");
        }
        mount
    }

    /// Mounts the union with a system call of the daemon's that fails (`N:ERRNO`) or ends it
    /// (`N:kill`); `None` if it ended before it had mounted.
    ///
    /// # Panics
    /// If it neither mounts nor ends.
    pub fn mount_with_fault(&self, fault: &str) -> Option<Mount> {
        let mut mount = self.start(&["--log-level", "off"], Some(fault));
        mount.wait_until_there().is_none().then_some(mount)
    }

    /// Mounts what a `thinroot mount` command says, but for the mount point.
    ///
    /// # Panics
    /// If it does not appear.
    pub fn mount_by(&self, command: Command) -> Mount {
        let mut mount = self.start_by(command, &[], None);
        if let Some(status) = mount.wait_until_there() {
            panic!("thinroot mount ended with {status} before it mounted");
        }
        mount
    }

    fn start(&self, options: &[&str], fault: Option<&str>) -> Mount {
        self.start_by(self.command("mount"), options, fault)
    }

    fn start_by(&self, mut command: Command, options: &[&str], fault: Option<&str>) -> Mount {
        if !options.contains(&"--log-level") {
            command.args(["--log-level", "warn"]);
        }
        command.args(options).arg(self.point()).stdin(Stdio::null());
        if let Some(fault) = fault {
            // An abort is what is asked for: nobody wants its core.
            command.env("THINROOT_FAULT", fault).stderr(Stdio::null());
        }
        self.spawn(command)
    }

    fn spawn(&self, mut command: Command) -> Mount {
        let daemon = command.spawn().unwrap_or_else(|error| panic!("thinroot mount: {error}"));
        Mount { daemon, point: self.point(), outside: device(self.path()) }
    }

    /// Gives a user all that is his guest's, and the program, which may lie where he may not look.
    /// Gives the command `thinroot COMMAND` as that user.
    ///
    /// # Panics
    /// If that cannot be done.
    pub fn command_of(&self, uid: u32, command: &str) -> Command {
        let program = self.path().join("thinroot");
        if !program.exists() {
            copy_program(thinroot(), &program);
        }
        for path in [self.path().to_owned(), self.own(), self.upper()] {
            make(chown(&path, Some(uid), Some(uid)), &path);
        }
        let mut thinroot = Command::new(program);
        thinroot.uid(uid).gid(uid).arg(command);
        thinroot
    }

    /// Has a user serve the union of `lower` and this site's upper on a mount that we make, as root
    /// of this host: so root is its guest, and the user has no privilege.
    ///
    /// # Panics
    /// If it does not appear.
    pub fn mount_of(&self, uid: u32, lower: &Path) -> Mount {
        let mut command = self.command_of(uid, "mount");
        command.args(["--log-level", "warn"]).arg("--lower").arg(lower);
        command.arg("--upper").arg(self.upper()).arg("--work").arg(self.work());
        command.arg("--index").arg(self.path().join("index")).stdin(Stdio::null());
        let device = self.mounted_device();
        command.arg(format!("/dev/fd/{}", number(device.as_fd())));
        keep_descriptors(&mut command, vec![device]);
        // The command is dropped, and with it our end of the device: a daemon that fails is seen.
        let mut mount = self.spawn(command);
        if let Some(status) = mount.wait_until_there() {
            panic!("thinroot mount ended with {status} before it served");
        }
        mount
    }

    fn mounted_device(&self) -> OwnedFd {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let device = rustix::fs::open("/dev/fuse", flags, Mode::empty());
        let device = device.unwrap_or_else(|error| panic!("/dev/fuse: {error}"));
        let data = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
            number(device.as_fd())
        );
        let data = CString::new(data).unwrap_or_default();
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        let mounted =
            rustix::mount::mount("thinroot", self.point(), "fuse.thinroot", flags, data.as_c_str());
        mounted.unwrap_or_else(|error| panic!("mounting: {error}"));
        device
    }
}

impl Default for Site {
    fn default() -> Self {
        Self::new()
    }
}

/// Copies a program to where another user can start it. By a child: were it written here, a test
/// beside us that forks meanwhile would keep it open for writing, and nobody could start it.
///
/// # Panics
/// If it cannot be copied.
pub fn copy_program(from: &Path, to: &Path) {
    let status = make(Command::new("cp").arg(from).arg(to).status(), to);
    assert!(status.success(), "copying {} to {}: {status}", from.display(), to.display());
}

fn make<T>(result: std::io::Result<T>, path: &Path) -> T {
    result.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn device(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|metadata| metadata.dev())
}

/// A mounted union and the daemon that serves it.
#[derive(Debug)]
pub struct Mount {
    daemon: Child,
    point: PathBuf,
    /// The device the mount point was on before.
    outside: Option<u64>,
}

impl Mount {
    /// The root of the union.
    pub fn root(&self) -> &Path {
        &self.point
    }

    /// The daemon's process.
    pub fn daemon(&self) -> u32 {
        self.daemon.id()
    }

    /// Whether the daemon has not ended.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.daemon.try_wait(), Ok(None))
    }

    /// Unmounts in order; whether the daemon, too, ended in order.
    pub fn try_unmount(mut self) -> bool {
        let start = Instant::now();
        while self.is_alive() && start.elapsed() < PATIENCE {
            if rustix::mount::unmount(&self.point, UnmountFlags::empty()).is_ok() {
                return self.wait_for_end().is_some_and(|status| status.success());
            }
            sleep(Duration::from_millis(5));
        }
        false
    }

    /// Unmounts in order and waits for the daemon to end.
    ///
    /// # Panics
    /// If the union is busy, or the daemon fails or does not end.
    pub fn unmount(mut self) {
        let start = Instant::now();
        // A descriptor closed a moment ago may still be on its way.
        while let Err(error) = rustix::mount::unmount(&self.point, UnmountFlags::empty()) {
            assert!(start.elapsed() < PATIENCE, "unmounting {}: {error}", self.point.display());
            sleep(Duration::from_millis(20));
        }
        let status = self.wait_for_end();
        assert!(status.is_some_and(|status| status.success()), "the daemon ended with {status:?}");
    }

    /// Kills the daemon as a crash would, and cleans the mount away.
    pub fn crash(mut self) {
        self.kill();
    }

    /// Gives the daemon's status if it ends instead.
    fn wait_until_there(&mut self) -> Option<ExitStatus> {
        let start = Instant::now();
        while !self.is_there() {
            if let Ok(Some(status)) = self.daemon.try_wait() {
                return Some(status);
            }
            assert!(start.elapsed() < PATIENCE, "nothing is mounted on {}", self.point.display());
            sleep(Duration::from_millis(2));
        }
        None
    }

    fn is_there(&self) -> bool {
        let now = device(&self.point);
        now.is_some() && now != self.outside
    }

    fn wait_for_end(&mut self) -> Option<ExitStatus> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Ok(Some(status)) = self.daemon.try_wait() {
                return Some(status);
            }
            sleep(Duration::from_millis(5));
        }
        None
    }

    fn kill(&mut self) {
        if matches!(self.daemon.try_wait(), Ok(Some(_))) && !is_mounted(&self.point) {
            return;
        }
        for (what, result) in
            [("killing", self.daemon.kill()), ("waiting for", self.daemon.wait().map(|_| ()))]
        {
            if let Err(error) = result {
                eprintln!("{what} the daemon: {error}");
            }
        }
        // Its janitor unmounts what it leaves. Were we faster, it might take the next mount here for
        // the one it is to unmount: the kernel gives numbers of mounts again.
        let start = Instant::now();
        while is_mounted(&self.point) && start.elapsed() < Duration::from_secs(5) {
            sleep(Duration::from_millis(5));
        }
        while is_mounted(&self.point) {
            if let Err(error) = rustix::mount::unmount(&self.point, UnmountFlags::DETACH) {
                eprintln!("unmounting {}: {error}", self.point.display());
                break;
            }
        }
    }
}

/// By the kernel's table: a dead mount cannot be asked.
fn is_mounted(point: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let point = point.to_string_lossy();
    table.lines().any(|row| row.split(' ').nth(4) == Some(&*point))
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.kill();
    }
}
