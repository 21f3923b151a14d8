//! `thinroot mount`, `diff` and `reset` as a user sees them, over a union this host's kernel
//! works on.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::mount::mount_bind;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tests::daemon::thinroot_binary;
use tests::skip::skip;

const DEADLINE: Duration = Duration::from_secs(30);

/// A base, an upper and a mountpoint; whatever is mounted is unmounted in the end.
struct World {
    place: TempDir,
    daemon: Option<Child>,
}

impl World {
    /// `None`, said aloud, where this host cannot mount.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            skip("a test of the mount door", "needs root and /dev/fuse");
            return None;
        }
        let place = tempfile::tempdir().unwrap();
        for name in ["base", "up", "mnt"] {
            fs::create_dir(place.path().join(name)).unwrap();
        }
        Some(Self { place, daemon: None })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn base(&self, path: &str, contents: &str) {
        let path = self.path("base").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }

    fn root(&self, path: &str) -> PathBuf {
        self.path("mnt").join(path)
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(thinroot_binary());
        command.current_dir(self.place.path()).arg(name).stdin(Stdio::null());
        command
    }

    fn union(&self, name: &str) -> Command {
        let mut command = self.command(name);
        command.args(["--lower", "base", "--upper", "up", "--index", "index"]);
        command
    }

    /// What mount(8) and umount(8) call.
    fn helper(&self, name: &str, words: &[&str]) -> Output {
        let link = self.path(name);
        if !link.exists() {
            symlink(thinroot_binary(), &link).unwrap();
        }
        let mut command = Command::new(link);
        // A pipe that the daemon kept would not come to its end.
        command.args(words).current_dir(self.place.path()).stdin(Stdio::null()).output().unwrap()
    }

    fn mount(&mut self) {
        let child = self.union("mount").arg("mnt").stderr(Stdio::null()).spawn().unwrap();
        self.daemon = Some(child);
        let end = Instant::now() + DEADLINE;
        while !self.is_mounted() {
            assert!(Instant::now() < end, "not mounted");
            sleep(Duration::from_millis(5));
        }
    }

    fn is_mounted(&self) -> bool {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        mounts.contains(self.path("mnt").to_str().unwrap())
    }

    fn end(&mut self, signal: Signal) {
        let mut daemon = self.daemon.take().unwrap();
        kill_process(Pid::from_child(&daemon), signal).unwrap();
        let status = daemon.wait().unwrap();
        assert_eq!(status.success(), signal != Signal::KILL, "{status}");
        let end = Instant::now() + DEADLINE;
        while self.is_mounted() {
            assert!(Instant::now() < end, "still mounted");
            sleep(Duration::from_millis(5));
        }
    }

    fn diff(&self) -> Vec<String> {
        let Output { status, stdout, stderr } = self.union("diff").output().unwrap();
        assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap().lines().map(str::to_owned).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().ok();
            daemon.wait().ok();
            // The janitor unmounts a moment later.
            let end = Instant::now() + DEADLINE;
            while self.is_mounted() && Instant::now() < end {
                sleep(Duration::from_millis(5));
            }
        }
    }
}

fn append(path: &Path, text: &str) {
    use std::io::Write as _;
    File::options().append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

#[test]
fn diff_says_exactly_what_a_guest_did() {
    let Some(mut world) = World::new() else { return };
    for path in ["etc/passwd", "etc/fstab", "etc/hosts", "usr/bin/x", "usr/bin/y", "srv/a/f"] {
        world.base(path, path);
    }
    for path in ["share/doc/a", "share/doc/b", "log/old", "log/kept", "swap/a", "swap/b"] {
        world.base(path, path);
    }
    fs::hard_link(world.path("base/etc/hosts"), world.path("base/etc/hosts.link")).unwrap();
    symlink("usr/bin", world.path("base/bin")).unwrap();
    world.mount();
    let root = |path: &str| world.root(path);
    append(&root("etc/passwd"), "x");
    fs::set_permissions(root("etc/fstab"), Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(root("etc/hosts"), Permissions::from_mode(0o600)).unwrap();
    fs::rename(root("usr/bin/x"), root("usr/bin/z")).unwrap();
    fs::hard_link(root("usr/bin/y"), root("usr/bin/y2")).unwrap();
    drop(File::options().append(true).open(root("usr/bin/y")).unwrap());
    fs::rename(root("share"), root("share2")).unwrap();
    fs::remove_file(root("share2/doc/a")).unwrap();
    append(&root("share2/doc/b"), "x");
    fs::remove_dir_all(root("log")).unwrap();
    fs::create_dir(root("log")).unwrap();
    fs::write(root("log/kept"), "other").unwrap();
    fs::rename(root("srv/a/f"), root("srv/f")).unwrap();
    fs::remove_dir_all(root("srv/a")).unwrap();
    fs::remove_file(root("bin")).unwrap();
    fs::write(root("bin"), "a file").unwrap();
    fs::rename(root("swap/a"), root("swap/c")).unwrap();
    fs::rename(root("swap/b"), root("swap/a")).unwrap();
    fs::write(root("swap/b"), "anew").unwrap();
    fs::create_dir_all(root("new/inner")).unwrap();
    fs::write(root("new").join(OsStr::from_bytes(b"odd\xff")), "").unwrap();
    let expected = [
        "T bin",
        "m etc/fstab",
        "m etc/hosts",
        "m etc/hosts.link",
        "M etc/passwd",
        "M log/kept",
        "D log/old",
        "A new/",
        "A new/inner/",
        "A \"new/odd\\xff\"",
        "R share/ -> share2/",
        "D share2/doc/a",
        "M share2/doc/b",
        "D srv/a/",
        "R srv/a/f -> srv/f",
        "R swap/b -> swap/a",
        "A swap/b",
        "R swap/a -> swap/c",
        "A usr/bin/y2",
        "R usr/bin/x -> usr/bin/z",
    ];
    assert_eq!(world.diff(), expected, "while it is mounted");
    world.end(Signal::TERM);
    assert_eq!(world.diff(), expected, "after");
}

#[test]
fn diff_of_large_files_and_settling_them() {
    use std::os::unix::fs::FileExt as _;
    let Some(mut world) = World::new() else { return };
    for name in ["looks", "blocks", "cut", "same"] {
        world.base(name, &name.repeat(100_000));
    }
    let base = |name: &str| fs::read(world.path("base").join(name)).unwrap();
    let mut blocks = base("blocks");
    blocks[8192..8194].copy_from_slice(b"xx");
    let mut cut = base("cut");
    cut[4096..].fill(0);
    world.mount();
    let open = |name: &str| File::options().write(true).open(world.root(name)).unwrap();
    fs::set_permissions(world.root("looks"), Permissions::from_mode(0o600)).unwrap();
    open("blocks").write_all_at(b"xx", 8192).unwrap();
    open("cut").set_len(4096).unwrap();
    open("cut").set_len(cut.len().try_into().unwrap()).unwrap();
    world.end(Signal::TERM);
    let expected = ["M blocks", "M cut", "m looks"];
    assert_eq!(world.diff(), expected);
    assert!(world.union("settle").status().unwrap().success());
    assert_eq!(world.diff(), expected, "settled");
    assert_eq!(fs::read(world.path("up/blocks")).unwrap(), blocks);
    assert_eq!(fs::read(world.path("up/cut")).unwrap(), cut);
}

#[test]
fn upper_in_use_is_not_reset_and_a_reset_one_is_as_new() {
    let Some(mut world) = World::new() else { return };
    world.base("etc/passwd", "root");
    world.mount();
    fs::write(world.root("new"), "new").unwrap();
    fs::remove_file(world.root("etc/passwd")).unwrap();
    let refused = world.command("reset").arg("up").output().unwrap();
    let told = String::from_utf8(refused.stderr).unwrap();
    let pid = world.daemon.as_ref().unwrap().id();
    assert_eq!(refused.status.code(), Some(1));
    assert!(told.contains(&format!("in use by process {pid}")), "{told}");
    assert!(world.root("new").exists());
    world.end(Signal::TERM);

    assert!(world.command("reset").args(["up", "--wait"]).status().unwrap().success());
    assert_eq!(world.diff(), [""; 0]);
    world.mount();
    assert_eq!(fs::read(world.root("etc/passwd")).unwrap(), b"root");
    assert!(!world.root("new").exists());
    world.end(Signal::TERM);
    let left: Vec<_> = fs::read_dir(world.place.path()).unwrap().map(|row| row.unwrap()).collect();
    let left = left.iter().map(|row| row.file_name().into_string().unwrap());
    let mut left: Vec<_> = left.collect();
    left.sort();
    assert_eq!(left, [".up.work", "base", "index", "index.lock", "mnt", "up"]);
}

#[test]
fn killed_daemon_leaves_no_mount_behind_and_its_upper_whole() {
    let Some(mut world) = World::new() else { return };
    world.base("a", "a");
    world.mount();
    fs::write(world.root("b"), "b").unwrap();
    File::open(world.root("b")).unwrap().sync_all().unwrap();
    world.end(Signal::KILL);
    assert_eq!(world.diff(), ["A b"]);
    world.mount();
    assert_eq!(fs::read(world.root("b")).unwrap(), b"b");
    world.end(Signal::TERM);
}

/// What mount(8) and umount(8) do with `-t fuse.thinroot`, as they would call us.
#[test]
fn mount_helper_mounts_in_the_background_and_unmounts_to_the_end() {
    let Some(world) = World::new() else { return };
    world.base("etc/hosts", "one\n");
    let helper = |name: &str, words: &[&str]| world.helper(name, words);
    let row = || {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let point = world.path("mnt").display().to_string();
        let row = mounts.lines().find(|row| row.split(' ').nth(1) == Some(&*point));
        row.map(str::to_owned).unwrap_or_default()
    };
    let layers = "lowerdir=base,upperdir=up,index=index";
    for round in 0..3 {
        let options = format!("rw,noatime,dev,{layers}");
        let said = helper("mount.fuse.thinroot", &["a-name", "mnt", "-o", &options]);
        assert!(said.status.success(), "{round}: {}", String::from_utf8_lossy(&said.stderr));
        let shown = row();
        assert!(shown.starts_with("a-name ") && shown.contains(" fuse.thinroot rw,"), "{shown}");
        assert!(shown.contains("nosuid,noatime") && !shown.contains("nodev"), "{shown}");
        append(&world.root("etc/hosts"), &format!("{round}\n"));
        let said = helper("mount.fuse.thinroot", &["a-name", "mnt", "-o", "remount,ro"]);
        assert!(said.status.success() && row().contains(" ro,"), "{}", row());
        assert!(fs::write(world.root("new"), "").is_err());
        let said = helper("umount.fuse.thinroot", &["mnt"]);
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        assert_eq!(row(), "");
        // Its daemon has ended: the upper is free.
        let hosts = fs::read_to_string(world.path("up/etc/hosts")).unwrap();
        assert_eq!(hosts.lines().count(), round + 2, "{hosts}");
        let upper = File::open(world.path("up")).unwrap();
        flock(&upper, FlockOperation::NonBlockingLockExclusive).unwrap();
    }
    let rows = [
        ("lowerdir=base,upperdir=up,frobnicate", 2, "frobnicate"),
        ("lowerdir=none,upperdir=up", 32, "none"),
        ("lowerdir=base,upperdir=base/up", 32, "lies inside"),
    ];
    for (options, status, named) in rows {
        let said = helper("mount.fuse.thinroot", &["a-name", "mnt", "-o", options]);
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        assert_eq!(said.status.code(), Some(status), "{options}: {text}");
        assert!(text.contains(named) && text.lines().count() == 1, "{options}: {text}");
        assert_eq!(row(), "", "{options}");
    }
    let said = helper("umount.fuse.thinroot", &["mnt"]);
    assert_eq!(said.status.code(), Some(32), "there is nothing to unmount");
}

/// SPECIFICATION: two seconds. What a user of the mount wrote arrives, what it does later fails.
#[test]
fn mount_that_is_told_to_end_cuts_its_users_off_after_two_seconds() {
    let Some(mut world) = World::new() else { return };
    world.base("held", "held\n");
    world.mount();
    let mut held = File::options().append(true).open(world.root("held")).unwrap();
    held.write_all(b"late\n").unwrap();
    let start = Instant::now();
    world.end(Signal::TERM);
    // Less would cut users off who are about to leave; more is a slow machine's.
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(held.write_all(b"never").and_then(|()| held.sync_all()).is_err());
    assert_eq!(fs::read(world.path("up/held")).unwrap(), b"held\nlate\n");
}

#[test]
fn mount_that_nobody_uses_ends_at_once() {
    let Some(mut world) = World::new() else { return };
    world.mount();
    let start = Instant::now();
    world.end(Signal::TERM);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

/// xfstests generic/306: a bind mount keeps the daemon as the mount itself does.
#[test]
fn unmount_helper_waits_for_the_daemon_of_the_last_mount_alone() {
    let Some(world) = World::new() else { return };
    world.base("etc/hosts", "one\n");
    world.base("bound", "");
    let helper = |name: &str, words: &[&str]| {
        let said = world.helper(name, words);
        assert!(said.status.success(), "{words:?}: {}", String::from_utf8_lossy(&said.stderr));
    };
    let layers = "lowerdir=base,upperdir=up,index=index";
    helper("mount.fuse.thinroot", &["a-name", "mnt", "-o", layers]);
    mount_bind(world.root("etc/hosts"), world.root("bound")).unwrap();
    assert_eq!(fs::read(world.root("bound")).unwrap(), b"one\n");
    let begun = Instant::now();
    helper("umount.fuse.thinroot", &["mnt/bound"]);
    assert!(begun.elapsed() < Duration::from_secs(30), "it waited for the daemon");
    append(&world.root("etc/hosts"), "two\n");
    // What is mounted elsewhere outlives the first.
    let elsewhere = world.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    mount_bind(world.path("mnt"), &elsewhere).unwrap();
    helper("umount.fuse.thinroot", &["mnt"]);
    assert_eq!(fs::read(elsewhere.join("etc/hosts")).unwrap(), b"one\ntwo\n");
    helper("umount.fuse.thinroot", &["elsewhere"]);
    let upper = File::open(world.path("up")).unwrap();
    flock(&upper, FlockOperation::NonBlockingLockExclusive).unwrap();
}

/// SPECIFICATION: within 50 ms, however full. Tried again where the machine was busy.
#[test]
fn reset_of_a_full_upper_returns_at_once() {
    let tried =
        [(); 3].iter().map(|()| time_reset()).find(|took| *took < Duration::from_millis(50));
    assert!(tried.is_some(), "never within 50 ms");
}

fn time_reset() -> Duration {
    // A hundred thousand files take minutes on some disks, and this is not about disks.
    let memory = Path::new("/dev/shm");
    let parent = if memory.exists() { memory.to_owned() } else { std::env::temp_dir() };
    let place = tempfile::tempdir_in(parent).unwrap();
    for directory in 0..100 {
        let directory = place.path().join(format!("up/{directory}"));
        fs::create_dir_all(&directory).unwrap();
        (0..1000).for_each(|file| drop(File::create(directory.join(file.to_string())).unwrap()));
    }
    let mut reset = Command::new(thinroot_binary());
    reset.current_dir(place.path()).args(["reset", "up"]);
    let begun = Instant::now();
    assert!(reset.status().unwrap().success());
    let took = begun.elapsed();
    assert_eq!(fs::read_dir(place.path().join("up")).unwrap().count(), 0);
    let end = Instant::now() + DEADLINE;
    while fs::read_dir(place.path()).unwrap().count() > 1 {
        assert!(Instant::now() < end, "what was in it is not deleted");
        sleep(Duration::from_millis(10));
    }
    took
}
