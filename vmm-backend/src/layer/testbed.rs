//! A temporary directory with lowers in it, for the tests of this room.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use tempfile::TempDir;

use super::index::{Index, LayerKind, ObjectId};
use super::lower::{Change, Lower, LowerPolicy, Strictness};
use super::seal::{LowerSpec, SealError, SealReport, open_roots, seal};
use crate::filesystem::Kind;

/// A plain tree.
pub fn plain(path: &Path) -> LowerSpec {
    LowerSpec { path: path.to_owned(), kind: LayerKind::Plain }
}

/// An overlay layer.
pub fn layer(path: &Path) -> LowerSpec {
    LowerSpec { path: path.to_owned(), kind: LayerKind::Layer }
}

/// A directory with lowers in it, and the index of some of them.
pub struct Bed {
    dir: TempDir,
}

/// What a lower has reported.
pub type Changes = Arc<Mutex<Vec<Change>>>;

impl Bed {
    /// An empty bed.
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A lower in it with these files, each holding its own path, and directories (with `/` behind).
    pub fn tree(&self, root: &str, paths: &[&str]) -> PathBuf {
        let root = self.path(root);
        fs::create_dir_all(&root).unwrap();
        for path in paths {
            let full = root.join(path);
            if path.ends_with('/') {
                fs::create_dir_all(&full).unwrap();
            } else {
                fs::create_dir_all(full.parent().unwrap()).unwrap();
                fs::write(&full, path).unwrap();
            }
        }
        root
    }

    /// Where [`Bed::seal`] puts the index.
    pub fn index_file(&self) -> PathBuf {
        self.path("cache/test.index")
    }

    /// Builds or refreshes the index.
    pub fn try_seal(&self, specs: &[LowerSpec]) -> Result<SealReport, SealError> {
        seal(specs, &self.index_file(), &mut |_| {})
    }

    /// Builds or refreshes the index and opens it.
    pub fn seal(&self, specs: &[LowerSpec]) -> Index {
        self.try_seal(specs).unwrap();
        Index::open(&self.index_file()).unwrap()
    }

    /// Seals and serves.
    pub fn lower(&self, specs: &[LowerSpec], strictness: Strictness) -> (Lower, Changes) {
        let index = self.seal(specs);
        serve(index, specs, strictness)
    }

    /// Runs a shell script with the bed as its working directory.
    pub fn shell(&self, script: &str) {
        let status =
            Command::new("sh").args(["-ec", script]).current_dir(self.dir.path()).status().unwrap();
        assert!(status.success(), "{script}");
    }
}

/// Serves an index.
pub fn serve(index: Index, specs: &[LowerSpec], strictness: Strictness) -> (Lower, Changes) {
    let changes = Changes::default();
    let seen = Arc::clone(&changes);
    let on_change = Box::new(move |change: &Change| seen.lock().unwrap().push(change.clone()));
    let policy = LowerPolicy { strictness, on_change };
    (Lower::new(index, open_roots(specs).unwrap(), policy).unwrap(), changes)
}

/// Every name of the merged view in path order, directories with `/` behind.
pub fn names(index: &Index) -> Vec<String> {
    let mut names = Vec::new();
    collect(index, ObjectId::ROOT, "", &mut |path, _| names.push(path));
    names
}

/// Every name and its number.
pub fn numbers(index: &Index) -> Vec<(String, u32)> {
    let mut numbers = Vec::new();
    collect(index, ObjectId::ROOT, "", &mut |path, id| numbers.push((path, id.0)));
    numbers
}

fn collect(index: &Index, id: ObjectId, prefix: &str, each: &mut dyn FnMut(String, ObjectId)) {
    let (_, directory) = index.directory(id).unwrap();
    for (slot, record) in index.entries(directory).unwrap().iter().enumerate() {
        let entry = index.entry(slot, record).unwrap();
        assert_eq!(index.kind(entry.object).unwrap(), entry.kind);
        let name = format!("{prefix}{}", String::from_utf8_lossy(entry.name));
        if entry.kind == Kind::Directory {
            each(format!("{name}/"), entry.object);
            collect(index, entry.object, &format!("{name}/"), each);
        } else {
            each(name, entry.object);
        }
    }
}

/// The object at a path.
pub fn at(index: &Index, path: &str) -> ObjectId {
    path.split('/').fold(ObjectId::ROOT, |here, name| {
        let (_, directory) = index.directory(here).unwrap();
        index.child(directory, name.as_bytes()).unwrap().unwrap().object
    })
}

pub use crate::skipped::skip;

/// Whether we are the real root; says so aloud where not.
pub fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        skip("needs root");
    }
    is_root
}

/// `chmod`.
pub fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// `st_ino`.
pub fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}
