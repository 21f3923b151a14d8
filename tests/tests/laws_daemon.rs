//! Laws that take the daemon's side: its death, failing calls, and a lower changed underneath.
#![allow(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, RenameFlags};
use rustix::io::Errno;
use tests::laws::ground;
use tests::laws::plot::{Done, Plot, call, pattern, refused, write_at};
use tests::mount::{Mount, Site, may_mount};
use tests::oracle::{copy_tree, remove};
use tests::tree::{self, Tree};

fn prepared() -> (Site, Plot) {
    let site = Site::new();
    let lower = Plot::new(site.lower());
    ground::lay_out(&lower).unwrap();
    ground::age(&lower, Path::new("")).unwrap();
    let plot = Plot::new(site.point());
    (site, plot)
}

/// What is left in the work directory though nobody works there.
fn debris(site: &Site) -> Vec<String> {
    let work = Plot::new(site.work());
    let in_each = ["work", "orphans"].into_iter().flat_map(|name| {
        let names = work.names(name).unwrap_or_default();
        names.into_iter().map(move |left| format!("{name}/{}", left.display()))
    });
    in_each.filter(|path| path != "work/whiteout" && path != "work/spare").collect()
}

fn sync(plot: &Plot, name: &str) {
    let open = plot.open(name, OFlags::RDONLY).unwrap();
    call("fsync", rustix::fs::fsync(&open)).unwrap();
}

#[test]
fn synced_changes_survive_the_death_of_the_daemon() {
    if !may_mount("synced_changes_survive_the_death_of_the_daemon") {
        return;
    }
    let (site, plot) = prepared();
    let mount = site.mount(&[]);
    plot.append("file", b"more\n").unwrap();
    sync(&plot, "file");
    plot.patch("big", 150_000, b"changed").unwrap();
    sync(&plot, "big");
    plot.create("dir/new", b"new\n").unwrap();
    sync(&plot, "dir/new");
    plot.rename("dir2", "dir/moved").unwrap();
    plot.unlink("other").unwrap();
    plot.chmod("hard/b", 0o600).unwrap();
    let held = plot.open("empty", OFlags::RDWR).unwrap();
    plot.unlink("empty").unwrap();
    write_at(&held, 0, b"held").unwrap();
    mount.crash();

    let mount = site.mount(&[]);
    let mut big = tests::laws::plot::pattern(ground::BIG_BYTES);
    big[150_000..150_007].copy_from_slice(b"changed");
    assert_eq!(plot.read("file").unwrap(), b"lower\nmore\n");
    assert_eq!(plot.read("big").unwrap(), big);
    assert_eq!(plot.read("dir/new").unwrap(), b"new\n");
    assert_eq!(plot.read("dir/moved/sub/e").unwrap(), b"dir2/sub/e");
    assert_eq!(plot.mode("hard/far/c").unwrap(), 0o600);
    ["dir2", "other", "empty"].iter().try_for_each(|name| plot.is_missing(name)).unwrap();
    mount.unmount();
    assert_eq!(debris(&site), Vec::<String>::new());
}

/// What reached the daemon and no disk yet: a death of the daemon alone takes none of it.
#[test]
fn unsynced_writes_survive_the_death_of_the_daemon() {
    if !may_mount("unsynced_writes_survive_the_death_of_the_daemon") {
        return;
    }
    let (site, plot) = prepared();
    let mut expected = pattern(ground::BIG_BYTES);
    let mut write = |offset: usize, bytes: &[u8]| {
        // Past the page cache of the mount, which dies with it.
        let file = plot.open("big", OFlags::WRONLY | OFlags::DIRECT).unwrap();
        write_at(&file, u64::try_from(offset).unwrap(), bytes).unwrap();
        expected[offset..offset + bytes.len()].copy_from_slice(bytes);
        expected.clone()
    };
    let mount = site.mount(&[]);
    write(5000, b"first");
    write(250_000, b"second");
    mount.crash();
    let mount = site.mount(&[]);
    let content = write(100_000, b"third");
    assert!(plot.read("big").unwrap() == content, "after one death");
    mount.crash();
    let mount = site.mount(&[]);
    assert!(plot.read("big").unwrap() == content, "after two deaths");
    sync(&plot, "big");
    let content = write(299_990, b"fourth");
    plot.truncate("big", 270_000).unwrap();
    plot.truncate("big", 300_001).unwrap();
    mount.crash();
    let mount = site.mount(&[]);
    let cut = [&content[..270_000], &[0; 30_001]].concat();
    assert!(plot.read("big").unwrap() == cut, "what was cut off stays cut off");
    mount.unmount();
    let mount = site.mount(&[]);
    assert!(plot.read("big").unwrap() == cut, "after a remount");
    mount.unmount();
    assert_eq!(Plot::new(site.work()).names("live").unwrap(), Vec::<std::ffi::OsString>::new());
}

/// A change, which must leave the old tree or the new one.
type Change = (&'static str, fn(&Plot) -> Done);

const CHANGES: [Change; 17] = [
    ("write", |plot| write_synced(plot, "dir/sub/file", 3)),
    ("write to a large file", |plot| write_synced(plot, "big", 200_000)),
    ("truncate of a large file", |plot| plot.truncate("big", 150_000)),
    ("chmod below directories", |plot| plot.chmod("dir/sub/file", 0o600)),
    ("chmod of a hard link", |plot| plot.chmod("hard/c", 0o600)),
    ("mkdir", |plot| plot.mkdir("dir/sub/new")),
    ("mkdir over a removed one", |plot| plot.mkdir("gone")),
    ("unlink", |plot| plot.unlink("file")),
    ("unlink of a hard link", |plot| plot.unlink("hard/b")),
    ("rmdir", |plot| plot.rmdir("empty_dir")),
    ("rename", |plot| plot.rename("file", "dir/a")),
    ("rename of a directory", |plot| plot.rename("dir", "empty_dir")),
    ("rename that leaves a whiteout", |plot| {
        plot.rename_with("dir/sub/file", "dir/moved", RenameFlags::WHITEOUT)
    }),
    ("rename of a new file that leaves a whiteout", |plot| {
        plot.rename_with("kept", "file", RenameFlags::WHITEOUT)
    }),
    ("exchange", |plot| plot.rename_with("dir", "big", RenameFlags::EXCHANGE)),
    ("link", |plot| plot.link("file", "dir/linked")),
    ("link of a hard link", |plot| plot.link("hard/b", "dir/linked")),
];

/// Before its fsync succeeds, nobody was told that a write reached the disk.
fn write_synced(plot: &Plot, name: &str, offset: u64) -> Done {
    let file = plot.open(name, OFlags::WRONLY)?;
    write_at(&file, offset, b"!")?;
    call("fsync", rustix::fs::fsync(&file))
}

/// Changes tried in the ordinary run; `THINROOT_FAULTS=all` tries all of them.
const ORDINARY: [&str; 5] = [
    "write",
    "unlink of a hard link",
    "rename of a directory",
    "mkdir over a removed one",
    "rename that leaves a whiteout",
];

fn changes() -> impl Iterator<Item = Change> {
    CHANGES.into_iter().filter(|(what, _)| is_thorough() || ORDINARY.contains(what))
}

fn is_thorough() -> bool {
    std::env::var("THINROOT_FAULTS").is_ok_and(|value| value == "all")
}

fn lay_out_small(lower: &Plot) -> Done {
    for name in ["dir", "dir/sub", "hard", "empty_dir", "gone"] {
        lower.mkdir(name)?;
    }
    for name in ["file", "dir/a", "dir/sub/file", "hard/a"] {
        lower.create(name, name.as_bytes())?;
        lower.set_xattr(name, "user.x", b"1")?;
    }
    lower.link("hard/a", "hard/b")?;
    lower.link("hard/a", "hard/c")?;
    lower.create("big", &pattern(ground::BIG_BYTES))?;
    ground::age(lower, Path::new(""))
}

/// Times are left out: of a write that fails, the guest's kernel sets mtime all the same.
fn timeless(root: &Path) -> Tree {
    let mut tree = tree::read(root);
    tree.values_mut().for_each(|object| object.mtime = (0, 0));
    tree
}

/// A site whose upper is put back to one and the same state before each try.
struct Trial {
    site: Site,
    plot: Plot,
    kept: PathBuf,
    old: Tree,
}

impl Trial {
    fn new() -> Self {
        let site = Site::new();
        lay_out_small(&Plot::new(site.lower())).unwrap();
        let plot = Plot::new(site.point());
        let mount = site.mount(&[]);
        plot.rmdir("gone").unwrap();
        plot.create("kept", b"kept").unwrap();
        let old = timeless(&site.point());
        mount.unmount();
        let kept = site.path().join("kept");
        copy_tree(&site.upper(), &kept);
        Self { site, plot, kept, old }
    }

    fn put_back(&self) {
        remove(&self.site.upper());
        remove(&self.site.work());
        copy_tree(&self.kept, &self.site.upper());
    }

    /// The changes to be tried, each with the first call that is worth it: the calls of the start,
    /// which are the same before each, are tried with the first of them.
    fn changes(&self) -> Vec<(Change, u32)> {
        let starts = |nth: &u32| {
            self.put_back();
            let mount = self.site.mount_with_fault(&format!("{nth}:kill"));
            mount.map(Mount::crash).is_some()
        };
        let after_start = (1..CALLS_MAX).find(starts).unwrap();
        let firsts = std::iter::once(1).chain(std::iter::repeat(after_start));
        changes().zip(firsts).collect()
    }

    /// What a fresh daemon shows.
    fn look(&self) -> Tree {
        let mount = self.site.mount(&[]);
        let found = timeless(&self.site.point());
        mount.unmount();
        found
    }

    /// What an undisturbed change comes to.
    fn new_tree(&self, change: fn(&Plot) -> Done) -> Tree {
        self.put_back();
        let mount = self.site.mount(&[]);
        change(&self.plot).unwrap();
        mount.unmount();
        self.look()
    }

    /// Tries a change with the N-th call as `fault` says. Whether all went as if there were none.
    fn disturb(&self, (what, change): Change, new: &Tree, fault: &str) -> bool {
        self.put_back();
        let (mut result, mut ended_well) = (None, false);
        if let Some(mut mount) = self.site.mount_with_fault(fault) {
            result = Some(change(&self.plot));
            if mount.is_alive() {
                ended_well = mount.try_unmount();
            } else {
                mount.crash();
            }
        }
        let found = self.look();
        let against_new = tree::compare(new, &found);
        let against_old = tree::compare(&self.old, &found);
        let succeeded = matches!(result, Some(Ok(())));
        assert!(
            against_new.is_empty() || against_old.is_empty() && !succeeded,
            "{what}, {fault}: {result:?}; against the old tree: {against_old:#?}; against the new \
             one: {against_new:#?}"
        );
        assert_eq!(debris(&self.site), Vec::<String>::new(), "{what}, {fault}");
        succeeded && ended_well
    }
}

/// The most system calls a change may take, those of starting the daemon included.
const CALLS_MAX: u32 = 300;

#[test]
fn death_at_any_call_leaves_the_old_object_or_the_new_one() {
    if !may_mount("death_at_any_call_leaves_the_old_object_or_the_new_one") {
        return;
    }
    let trial = Trial::new();
    for (change, first) in trial.changes() {
        let new = trial.new_tree(change.1);
        let untouched =
            (first..CALLS_MAX).find(|nth| trial.disturb(change, &new, &format!("{nth}:kill")));
        let points = untouched.unwrap_or_else(|| panic!("{}: never untouched", change.0)) - first;
        println!("{}: killed at {points} points", change.0);
    }
}

#[test]
fn failure_of_any_call_leaves_the_old_object_or_the_new_one() {
    if !may_mount("failure_of_any_call_leaves_the_old_object_or_the_new_one") {
        return;
    }
    let trial = Trial::new();
    for (change, first) in trial.changes() {
        let new = trial.new_tree(change.1);
        // Some failures are none: of what is only tried. So the end is where many went well.
        let mut well = 0;
        let all = [Errno::NOSPC, Errno::DQUOT, Errno::IO];
        for nth in first..CALLS_MAX {
            // One after the other, or each at each call.
            let only = (nth as usize) % all.len();
            let errnos = if is_thorough() { &all[..] } else { &all[only..=only] };
            for errno in errnos {
                let fault = format!("{nth}:{}", errno.raw_os_error());
                well = if trial.disturb(change, &new, &fault) { well + 1 } else { 0 };
            }
            if well >= 12 * errnos.len() {
                println!("{}: {} calls failed", change.0, nth + 1 - first);
                break;
            }
        }
    }
}

/// Somebody edits the base while a union serves it.
fn change_lower(site: &Site) {
    let lower = Plot::new(site.lower());
    lower.append("file", b"changed underneath\n").unwrap();
    lower.create("dir/new", b"").unwrap();
}

#[test]
fn lower_changed_underneath_is_an_error() {
    if !may_mount("lower_changed_underneath_is_an_error") {
        return;
    }
    let (site, plot) = prepared();
    site.mount(&[]).unmount();
    change_lower(&site);
    let mount = site.mount(&["--log-level", "off"]);
    refused("read", plot.read("file").map(|_| ()), Errno::IO).unwrap();
    refused("copy up", plot.append("file", b"x"), Errno::IO).unwrap();
    refused("lookup", plot.stat("dir/a").map(|_| ()), Errno::IO).unwrap();
    assert_eq!(plot.read("other").unwrap(), b"other\n");
    plot.append("dir2/a", b"!").unwrap();
    assert_eq!(plot.read("dir2/a").unwrap(), b"dir2/a!");
    mount.unmount();
}

#[test]
fn lower_changed_underneath_is_served_if_lax() {
    if !may_mount("lower_changed_underneath_is_served_if_lax") {
        return;
    }
    let (site, plot) = prepared();
    site.mount(&[]).unmount();
    change_lower(&site);
    let mount = site.mount(&["--lax", "--log-level", "off"]);
    assert_eq!(plot.read("other").unwrap(), b"other\n");
    assert_eq!(plot.read("dir/a").unwrap(), b"dir/a");
    assert!(plot.read("file").unwrap().starts_with(b"lower\n"));
    mount.unmount();
}

#[test]
fn control_files_are_unknown_through_the_mount_door() {
    if !may_mount("control_files_are_unknown_through_the_mount_door") {
        return;
    }
    let (site, plot) = prepared();
    let mount = site.mount(&[]);
    plot.is_missing(".thinroot").unwrap();
    plot.mkdir(".thinroot").unwrap();
    plot.create(".thinroot/command", b"an ordinary file\n").unwrap();
    assert_eq!(plot.read(".thinroot/command").unwrap(), b"an ordinary file\n");
    mount.unmount();
}
