//! Trees written down, to be compared.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags, Stat};

use crate::disk;
use crate::laws::plot::{Done, Failure, Plot, read_at};

/// One object of a tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Object {
    /// Type and mode.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Bytes of a file or a symlink's target; 0 else.
    pub size: i64,
    /// Device number.
    pub rdev: u64,
    /// Link count; 1 for a directory where a file system does not count those.
    pub links: u64,
    /// The first path, in order, by which the same object is found.
    pub first: PathBuf,
    /// Content of a file, target of a symlink.
    pub content: Vec<u8>,
    /// Names and values.
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// Seconds and nanoseconds.
    pub mtime: (i64, i64),
}

/// Every object below a root, by its path; the root itself is the empty path.
pub type Tree = BTreeMap<PathBuf, Object>;

/// Writes a tree down, all of it.
///
/// # Panics
/// If an object cannot be read: that is a difference already.
pub fn read(root: &Path) -> Tree {
    let plot = Plot::new(root);
    let mut tree = Tree::new();
    let mut first = BTreeMap::new();
    let result = walk(&plot, Path::new(""), &mut |path| {
        let object = object(&plot, path, &mut first)?;
        tree.insert(path.to_owned(), object);
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("reading {}: {failure}", root.display()));
    tree
}

/// As [`read`], with a sum in place of each content, and no deeper than a path reaches: for a tree
/// that may be a whole root.
///
/// # Panics
/// If an object cannot be read.
pub fn read_short(root: &Path) -> Tree {
    let plot = Plot::new(root);
    let mut tree = Tree::new();
    let mut first = BTreeMap::new();
    let result = walk_short(&plot, Path::new(""), &mut |path| {
        let mut object = object(&plot, path, &mut first)?;
        object.content = sum(&object.content).to_ne_bytes().to_vec();
        tree.insert(path.to_owned(), object);
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("reading {}: {failure}", root.display()));
    tree
}

/// Content may be long, and is told apart as well by a sum.
pub(crate) fn sum(content: &[u8]) -> u64 {
    let (words, rest) = content.as_chunks();
    let rest = rest.iter().map(|byte| u64::from(*byte));
    words.iter().map(|word| u64::from_ne_bytes(*word)).chain(rest).fold(0_u64, |sum, word| {
        sum.rotate_left(5).wrapping_add(word).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    })
}

/// Visits every path below a path of the plot, itself first.
pub(crate) fn walk(plot: &Plot, path: &Path, visit: &mut dyn FnMut(&Path) -> Done) -> Done {
    visit(path)?;
    if plot.kind(path)? == FileType::Directory {
        for name in plot.names(path)? {
            walk(plot, &path.join(name), visit)?;
        }
    }
    Ok(())
}

fn object(plot: &Plot, path: &Path, first: &mut BTreeMap<u64, PathBuf>) -> Done<Object> {
    let stat = plot.stat(path)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let content = match kind {
        FileType::RegularFile => plot.read(path)?,
        FileType::Symlink => plot.target(path)?.into_bytes(),
        _ => Vec::new(),
    };
    let mut xattrs = BTreeMap::new();
    for key in plot.xattrs(path)? {
        xattrs.insert(key.clone(), plot.xattr(path, &key)?);
    }
    Ok(Object {
        mode: stat.st_mode,
        owner: (stat.st_uid, stat.st_gid),
        size: if content.is_empty() && kind != FileType::RegularFile { 0 } else { stat.st_size },
        rdev: stat.st_rdev,
        links: links(&stat),
        first: first.entry(stat.st_ino).or_insert_with(|| path.to_owned()).clone(),
        content,
        xattrs,
        mtime: plot.mtime(path)?,
    })
}

/// The link count as it is compared: a directory's is 1 at most where a file system does not count those in it.
pub fn links(stat: &Stat) -> u64 {
    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let most = if is_directory && !disk::counts_subdirectories() { 1 } else { u64::MAX };
    stat.st_nlink.min(most)
}

/// What tells two trees apart, one line each: `expected` against `found`.
pub fn compare(expected: &Tree, found: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, object) in expected {
        let shown = path.display();
        match found.get(path) {
            None => lines.push(format!("{shown}: missing")),
            Some(other) if other != object => {
                lines.push(format!("{shown}:{}", difference(object, other)));
            }
            Some(_) => {}
        }
    }
    let surplus = found.keys().filter(|path| !expected.contains_key(*path));
    lines.extend(surplus.map(|path| format!("{}: should not be there", path.display())));
    lines
}

fn difference(expected: &Object, found: &Object) -> String {
    let mut line = String::new();
    let mut tell = |what: &str, expected: String, found: String| {
        if expected != found && write!(line, " {what} {found} instead of {expected};").is_err() {
            log::error!("a difference cannot be written down");
        }
    };
    tell("mode", format!("{:o}", expected.mode), format!("{:o}", found.mode));
    tell("owner", format!("{:?}", expected.owner), format!("{:?}", found.owner));
    tell("size", expected.size.to_string(), found.size.to_string());
    tell("rdev", expected.rdev.to_string(), found.rdev.to_string());
    tell("links", expected.links.to_string(), found.links.to_string());
    tell("is also", expected.first.display().to_string(), found.first.display().to_string());
    tell("xattrs", format!("{:?}", expected.xattrs), format!("{:?}", found.xattrs));
    tell("mtime", format!("{:?}", expected.mtime), format!("{:?}", found.mtime));
    if expected.content != found.content {
        let at = expected.content.iter().zip(&found.content).position(|(a, b)| a != b);
        let lengths = (expected.content.len(), found.content.len());
        tell(
            "content",
            format!("{} bytes", lengths.0),
            format!("{} bytes, from {at:?}", lengths.1),
        );
    }
    line
}

/// Everything about a tree that nobody may change beneath a union: one line per object, with inode
/// number, times of every kind, and content; and the room it takes, where a file system leaves that alone.
///
/// # Panics
/// If an object cannot be read.
pub fn manifest(root: &Path) -> BTreeMap<PathBuf, String> {
    let plot = Plot::new(root);
    let mut first = BTreeMap::new();
    let mut lines = BTreeMap::new();
    let result = walk_short(&plot, Path::new(""), &mut |path| {
        let stat = plot.stat(path)?;
        let mut object = object(&plot, path, &mut first)?;
        let sum = sum(&object.content);
        object.content.clear();
        let changed = (stat.st_ctime, stat.st_ctime_nsec);
        let room = disk::keeps_room().then_some(stat.st_blocks);
        let line = format!("{} {changed:?} {room:?} {sum} {object:?}", stat.st_ino);
        lines.insert(path.to_owned(), line);
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("reading {}: {failure}", root.display()));
    lines
}

/// All that a guest sees of a tree and that must be the same after it booted again, one line per
/// object, its number among it.
///
/// # Panics
/// If an object cannot be read.
pub fn told(root: &Path) -> String {
    let plot = Plot::new(root);
    let mut lines = String::new();
    let result = walk_short(&plot, Path::new(""), &mut |path| {
        let stat = plot.stat(path)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let content = match kind {
            FileType::RegularFile => sum(&samples(&plot, path)?).to_string(),
            FileType::Symlink => plot.target(path)?,
            _ => String::new(),
        };
        let values = plot.xattrs(path)?.into_iter().map(|key| Ok((plot.xattr(path, &key)?, key)));
        let values = values.collect::<Done<Vec<_>>>()?;
        let owner = (stat.st_uid, stat.st_gid, stat.st_nlink, stat.st_rdev);
        let size = if kind == FileType::Directory { 0 } else { stat.st_size };
        let (number, mtime) = (stat.st_ino, plot.mtime(path)?);
        let facts = format!("{number} {:o} {owner:?} {size} {mtime:?}", stat.st_mode);
        let told = writeln!(lines, "{path:?} {facts} {content} {values:?}");
        told.map_err(|error| Failure::new(error.to_string()))
    });
    result.unwrap_or_else(|failure| panic!("telling of {}: {failure}", root.display()));
    lines
}

/// Some of a file's bytes: the first page of each stretch.
fn samples(plot: &Plot, path: &Path) -> Done<Vec<u8>> {
    const STRETCH: usize = 64 << 10;
    const STRETCHES_MAX: usize = 100;
    let file = plot.open(path, OFlags::RDONLY)?;
    let mut bytes = Vec::new();
    for offset in (0_u64..).step_by(STRETCH).take(STRETCHES_MAX) {
        let sample = read_at(&file, offset, 4096)?;
        if sample.is_empty() {
            break;
        }
        bytes.extend(sample);
    }
    Ok(bytes)
}

/// As [`walk`], no deeper than a path reaches.
fn walk_short(plot: &Plot, path: &Path, visit: &mut dyn FnMut(&Path) -> Done) -> Done {
    const PATH_BYTES: usize = 3500;
    if plot.at(path).as_os_str().len() > PATH_BYTES {
        return Ok(());
    }
    visit(path)?;
    if plot.kind(path)? == FileType::Directory {
        for name in plot.names(path)? {
            walk_short(plot, &path.join(name), visit)?;
        }
    }
    Ok(())
}

/// What tells two manifests apart.
pub fn differences(
    before: &BTreeMap<PathBuf, String>,
    after: &BTreeMap<PathBuf, String>,
) -> Vec<String> {
    let changed = before.iter().filter(|(path, line)| after.get(*path) != Some(*line));
    let changed = changed
        .map(|(path, line)| format!("{}: {line} became {:?}", path.display(), after.get(path)));
    let added = after.keys().filter(|path| !before.contains_key(*path));
    changed.chain(added.map(|path| format!("{}: is new", path.display()))).collect()
}
