//! Law U58: a power loss at any moment hides no good lower object behind an empty or half one, and
//! loses nothing that was synced.
//!
//! The whole union, base included, is on a journalled ext4 (or xfs, or btrfs) in an image on a file system that clones
//! files: a clone taken while all goes on is what a disk holds if the power fails then. The disk is
//! one that writes in the order it is told to; what the host has in its memory is lost.
//! `THINROOT_POWER_SECONDS` says how long work goes on (default 3).
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, OFlags};
use tests::daemon::Ground;
use tests::disk::{self, Disk};
use tests::laws::plot::{LONG_AGO, Plot, pattern, write_at};
use tests::mount::{Site, may_mount};
use tests::oracle::dice::Dice;
use tests::oracle::setting;
use tests::requests::ROOT;
use tests::skip::skip;
use tests::trace::Trace;

/// Smaller than a block, some blocks, and above the size from which files are copied up by block.
const SIZES: [usize; 4] = [100, 5000, 70_001, 300_001];
const DIRECTORIES: u32 = 5;
const FILES: u32 = 60;
/// The attribute that says which file of the base an object is.
const TAG: &str = "user.of";

/// What may be found of one file of the base.
struct Known {
    length: usize,
    /// The name by which it is reached now; `None` once it is removed.
    path: Option<String>,
    /// No name of it was ever changed.
    stayed: bool,
    /// Where its bytes were overwritten.
    written: BTreeSet<usize>,
    /// Those of them that were synced, and when that was known.
    synced: Vec<(Instant, usize)>,
}

impl Known {
    fn original(&self) -> Vec<u8> {
        pattern(self.length)
    }

    fn sync(&mut self) {
        let now = Instant::now();
        self.synced.extend(self.written.iter().map(|offset| (now, *offset)));
    }
}

type Files = BTreeMap<String, Known>;

/// What stands for no byte of the pattern at its place.
fn overwritten(original: u8) -> u8 {
    !original
}

/// Where nothing orders changes but a commit of the whole file system, whatever chance says in the
/// test below.
#[test]
fn sync_asks_the_disk_for_as_much_as_its_kind_needs() {
    let ground = Ground::new();
    let daemon = ground.serve();
    let mount = daemon.mount();
    let file = mount.write_new(ROOT, b"new", 0o644, b"new").unwrap().node;
    let Some(trace) = Trace::of("sync_asks_the_disk_for_as_much_as_its_kind_needs", daemon.pid())
    else {
        return;
    };
    mount.fsync(file).unwrap();
    let calls = trace.calls();
    let of_all = calls.contains_key("syncfs");
    let of_one = calls.contains_key("fsync") || calls.contains_key("fdatasync");
    // docs/decisions/0014.
    let wants_all = disk::kind().is_some_and(|kind| kind == "btrfs");
    assert_eq!((of_all, of_one), (wants_all, !wants_all), "{calls:?}");
}

#[test]
fn power_loss_hides_no_good_lower_object() {
    const TEST: &str = "power_loss_hides_no_good_lower_object";
    if !may_mount(TEST) {
        return;
    }
    // Only a file system with reflinks clones in one step.
    let ground = match Disk::with("xfs") {
        Ok(ground) => ground,
        Err(problem) => return skip(TEST, &problem),
    };
    let kind = kind();
    let options = if kind == "xfs" { "loop" } else { "loop,commit=1" };
    let disk = Disk::inside(&ground.path(), &kind, options).unwrap();
    let site = Site::inside(&disk.path());
    let mut files = lay_out(&Plot::new(site.lower()));
    let mount = site.mount(&[]);
    rustix::fs::sync();
    let is_over = AtomicBool::new(false);
    let seconds = setting("THINROOT_POWER_SECONDS", 3);
    let moments = std::thread::scope(|scope| {
        let losses = scope.spawn(|| lose_power(disk.image(), &ground.path(), &is_over));
        work(&Plot::new(site.point()), &mut files, Duration::from_secs(seconds));
        is_over.store(true, Ordering::Relaxed);
        losses.join().unwrap()
    });
    mount.unmount();
    let place = site.path().strip_prefix(disk.path()).unwrap().to_owned();
    // btrfs takes a copy for the same disk while that is mounted.
    drop((site, disk));
    let mut wrong = Vec::new();
    for (image, when) in &moments {
        let found = look(image, &place, &kind, *when, &files);
        wrong.extend(found.into_iter().map(|what| format!("{}: {what}", image.display())));
        fs::remove_file(image).unwrap();
    }
    let promises: usize = files.values().map(|known| known.synced.len()).sum();
    println!("{} moments in {seconds} s, {promises} bytes synced", moments.len());
    assert!(!moments.is_empty() && promises > 0, "nothing was tried");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What the union is on: `cargo xtask filesystems` says it. In memory there is nothing to lose.
fn kind() -> String {
    let kind = disk::kind().filter(|kind| matches!(&**kind, "xfs" | "btrfs"));
    kind.unwrap_or_else(|| "ext4".to_owned())
}

fn lay_out(lower: &Plot) -> Files {
    let mut files = Files::new();
    for directory in 0..DIRECTORIES {
        lower.mkdir(format!("d{directory}")).unwrap();
    }
    for number in 0..FILES {
        let path = format!("d{}/f{number}", number % DIRECTORIES);
        let length = SIZES[number as usize % SIZES.len()];
        lower.create(&path, &pattern(length)).unwrap();
        lower.set_xattr(&path, TAG, path.as_bytes()).unwrap();
        lower.set_times(&path, LONG_AGO).unwrap();
        let (written, synced) = (BTreeSet::new(), Vec::new());
        let known = Known { length, path: Some(path.clone()), stayed: true, written, synced };
        files.insert(path, known);
    }
    files
}

/// Clones of the disk at random moments, and since when each was being made.
fn lose_power(image: &Path, ground: &Path, is_over: &AtomicBool) -> Vec<(PathBuf, Instant)> {
    let mut dice = Dice::new(1);
    let mut moments = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(u64::from(dice.below(300))));
        let path = ground.join(format!("moment-{}", moments.len()));
        let (from, to) = (fs::File::open(image).unwrap(), fs::File::create(&path).unwrap());
        let when = Instant::now();
        rustix::fs::ioctl_ficlone(&to, &from).unwrap();
        moments.push((path, when));
    }
    moments
}

/// Changes of every kind that copy up, but none that shortens a file.
fn work(root: &Plot, files: &mut Files, time: Duration) {
    let mut dice = Dice::new(2);
    let start = Instant::now();
    let mut born = 0;
    while start.elapsed() < time {
        let index = dice.below(FILES) as usize;
        let known = files.values_mut().nth(index).unwrap();
        let Some(path) = known.path.clone() else { continue };
        match dice.below(30) {
            0..8 => overwrite(root, known, &path, dice.below(300_001)),
            8..12 => {
                let file = root.open(&path, OFlags::RDONLY).unwrap();
                rustix::fs::fsync(&file).unwrap();
                known.sync();
            }
            12..15 => root.chmod(&path, 0o600 + dice.below(8)).unwrap(),
            15..17 => root.chown(&path, dice.below(5), 7).unwrap(),
            17..19 => root.set_xattr(&path, "user.more", b"more").unwrap(),
            19..21 => root.set_times(&path, LONG_AGO).unwrap(),
            21..26 => {
                let to = format!("d{}/n{born}", dice.below(DIRECTORIES));
                born += 1;
                // Before: a moment may see the rename before we return from it.
                known.stayed = false;
                root.rename(&path, &to).unwrap();
                known.path = Some(to);
            }
            26 => {
                let to = format!("d{}/l{born}", dice.below(DIRECTORIES));
                born += 1;
                root.link(&path, &to).unwrap();
            }
            27 if dice.below(4) == 0 => {
                (known.stayed, known.path) = (false, None);
                root.unlink(&path).unwrap();
            }
            _ => {
                let name = format!("d{}/new{born}", dice.below(DIRECTORIES));
                born += 1;
                root.create(&name, &pattern(3000)).unwrap();
            }
        }
    }
}

fn overwrite(root: &Plot, known: &mut Known, path: &str, offset: u32) {
    let offset = offset as usize % known.length;
    let byte = overwritten(pattern(offset + 1)[offset]);
    known.written.insert(offset);
    let file = root.open(path, OFlags::WRONLY).unwrap();
    write_at(&file, u64::try_from(offset).unwrap(), &[byte]).unwrap();
}

/// What is wrong with the union on a disk that lost power.
fn look(image: &Path, place: &Path, kind: &str, when: Instant, files: &Files) -> Vec<String> {
    let disk = match Disk::of_image(image, kind) {
        Ok(disk) => disk,
        Err(problem) => return vec![problem],
    };
    let site = Site::standing(&disk.path().join(place));
    let checked = site.command("check").output().unwrap();
    let mut wrong = Vec::new();
    if !checked.status.success() {
        wrong.push(format!("check: {}", String::from_utf8_lossy(&checked.stdout)));
    }
    let mount = site.mount(&[]);
    let root = Plot::new(site.point());
    let mut seen = BTreeMap::new();
    for directory in root.names("").unwrap() {
        for name in root.names(&directory).unwrap() {
            let path = Path::new(&directory).join(name);
            if root.kind(&path).unwrap() != FileType::RegularFile {
                wrong.push(format!("{}: no file", path.display()));
            } else if let Ok(tag) = root.xattr(&path, TAG) {
                let tag = String::from_utf8(tag).unwrap();
                seen.insert(tag, (path.clone(), root.read(&path).unwrap()));
            }
        }
    }
    for (tag, known) in files {
        match seen.get(tag) {
            None if known.path.is_some() => wrong.push(format!("{tag}: is nowhere")),
            None => {}
            Some((path, content)) => {
                let told = judge(known, content, when);
                wrong.extend(told.map(|what| format!("{tag}, {}: {what}", path.display())));
            }
        }
        if known.stayed && root.stat(tag).is_err() {
            wrong.push(format!("{tag}: is not where it stayed"));
        }
    }
    mount.unmount();
    wrong
}

/// What is wrong with a file's content.
fn judge(known: &Known, content: &[u8], when: Instant) -> Option<String> {
    let original = known.original();
    if content.len() != original.len() {
        return Some(format!("{} bytes instead of {}", content.len(), original.len()));
    }
    let is_spoilt = |offset: &usize| {
        let is_written = content[*offset] == overwritten(original[*offset]);
        content[*offset] != original[*offset] && !(is_written && known.written.contains(offset))
    };
    let spoilt: Vec<_> = (0..content.len()).filter(is_spoilt).collect();
    if let (Some(first), count) = (spoilt.first(), spoilt.len()) {
        return Some(format!("{count} bytes that nobody wrote, from {first}"));
    }
    let lost = known
        .synced
        .iter()
        .find(|(known_at, at)| *known_at < when && content[*at] == original[*at]);
    lost.map(|(_, offset)| format!("the byte at {offset} was synced and is lost"))
}
