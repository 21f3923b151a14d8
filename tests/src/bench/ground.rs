//! The lower that every workload runs over, made once and sealed.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::BenchError;
use super::subject::Programs;
use crate::wire::Attr;

/// Directories of `tree`. Below 20,000 files in all: virtiofsd on overlayfs has a descriptor open
/// for each, and many hosts allow no more.
pub const TREE_DIRECTORIES: usize = 150;
/// Files in each directory of `tree`.
pub const TREE_FILES: usize = 100;
/// Bytes of each file of `tree`.
pub const SMALL_BYTES: usize = 2500;
/// Files in `crowd`.
pub const CROWD_FILES: usize = 10_000;
/// Files of each kind that are changed once, each by an operation of its own: `large-0` and on, `sparse-0` and on.
pub const ONCE_OBJECTS: usize = 8;
/// Bytes of each large file.
pub const LARGE_BYTES: u64 = 64 << 20;
/// Bytes of each sparse file, which holds data at its ends alone.
pub const SPARSE_BYTES: u64 = 1 << 30;
/// Objects of each kind in `change`.
pub const CHANGE_OBJECTS: usize = 2000;

/// Names what [`make`] makes; another text makes it anew.
const STAMP: &str = "4\n";

/// A file of `tree`.
pub fn tree_file(directory: usize, file: usize) -> String {
    format!("tree/d{directory:03}/file-number-{file:03}")
}

/// A large file's name.
pub fn large(number: usize) -> String {
    format!("large-{number}")
}

/// A sparse file's name.
pub fn sparse(number: usize) -> String {
    format!("sparse-{number}")
}

/// What byte `offset` of every patterned file is: each page differs from each other.
pub fn pattern_at(offset: u64) -> u8 {
    let mixed = (offset / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (offset >> 12);
    mixed.to_le_bytes()[usize::try_from(offset % 8).unwrap_or(0)]
}

/// `bytes` of the pattern from `offset` on.
pub fn pattern(offset: u64, bytes: usize) -> Vec<u8> {
    (offset..).take(bytes).map(pattern_at).collect()
}

/// The lower and its index, in `directory`.
#[derive(Clone, Debug)]
pub struct Ground {
    /// The lower.
    pub lower: PathBuf,
    /// Its index.
    pub index: PathBuf,
    /// The whole of each large file: the pattern.
    pub large: Vec<u8>,
}

impl Ground {
    /// Makes the lower unless it is there, and seals it.
    pub fn make(directory: &Path, programs: &Programs) -> Result<Self, BenchError> {
        let lower = directory.join("lower");
        let stamp = directory.join("lower.stamp");
        if !fs::read_to_string(&stamp).is_ok_and(|text| text == STAMP) {
            if lower.exists() {
                fs::remove_dir_all(&lower).map_err(BenchError::file(&lower))?;
            }
            lay_out(&lower).map_err(BenchError::file(&lower))?;
            fs::write(&stamp, STAMP).map_err(BenchError::file(&stamp))?;
        }
        let index = directory.join("index");
        seal(programs, std::slice::from_ref(&lower), &index)?;
        let bytes = usize::try_from(LARGE_BYTES).unwrap_or(0);
        Ok(Self { lower, index, large: pattern(0, bytes) })
    }

    /// Whether these are the attributes of the lower's object at `path`.
    pub fn is_as_in_lower(&self, path: &str, attr: &Attr) -> bool {
        let Ok(stat) = fs::symlink_metadata(self.lower.join(path)) else { return false };
        let mtime = (stat.mtime().cast_unsigned(), u32::try_from(stat.mtime_nsec()).unwrap_or(0));
        let owner = (stat.uid(), stat.gid());
        let same = attr.mode == stat.mode() && (attr.uid, attr.gid) == owner;
        same && attr.mtime == mtime && (stat.is_dir() || attr.size == stat.size())
    }
}

/// Builds the index.
pub fn seal(programs: &Programs, lowers: &[PathBuf], index: &Path) -> Result<(), BenchError> {
    let mut command = Command::new(&programs.thinroot);
    command.arg("seal").arg("--index").arg(index);
    for lower in lowers {
        command.arg("--lower").arg(lower);
    }
    let output = command.output().map_err(BenchError::file(&programs.thinroot))?;
    if output.status.success() {
        return Ok(());
    }
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(BenchError::Subject { kind: "thinroot seal", what: output.status.to_string(), log })
}

fn lay_out(lower: &Path) -> std::io::Result<()> {
    let small = pattern(0, SMALL_BYTES);
    for directory in 0..TREE_DIRECTORIES {
        fs::create_dir_all(lower.join(format!("tree/d{directory:03}")))?;
        for file in 0..TREE_FILES {
            fs::write(lower.join(tree_file(directory, file)), &small)?;
        }
    }
    fs::create_dir(lower.join("crowd"))?;
    for file in 0..CROWD_FILES {
        File::create(lower.join(format!("crowd/member-{file:05}")))?;
    }
    for name in ["change/unlink", "change/rename", "change/write", "change/rmdir"] {
        fs::create_dir_all(lower.join(name))?;
        for object in 0..CHANGE_OBJECTS {
            let path = lower.join(format!("{name}/{object:04}"));
            match name {
                "change/rmdir" => fs::create_dir(path)?,
                _ => fs::write(path, pattern(0, 4096))?,
            }
        }
    }
    (0..ONCE_OBJECTS).try_for_each(|number| {
        lay_out_large(&lower.join(large(number)))?;
        lay_out_sparse(&lower.join(sparse(number)))
    })
}

fn lay_out_large(path: &Path) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    for offset in (0..LARGE_BYTES).step_by(1 << 20) {
        file.write_all(&pattern(offset, 1 << 20))?;
    }
    file.sync_all()
}

fn lay_out_sparse(path: &Path) -> std::io::Result<()> {
    let file = File::create(path)?;
    file.set_len(SPARSE_BYTES)?;
    file.write_all_at(&pattern(0, 4096), 0)?;
    file.write_all_at(&pattern(0, 4096), SPARSE_BYTES - 4096)?;
    file.sync_all()
}
