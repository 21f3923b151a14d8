//! The laws of merging, numbering and trust.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::filesystem::Kind;
use crate::layer::index::{ObjectId, Slot};

fn plain(path: &Path) -> LowerSpec {
    LowerSpec { path: path.to_owned(), kind: LayerKind::Plain }
}

fn layer(path: &Path) -> LowerSpec {
    LowerSpec { path: path.to_owned(), kind: LayerKind::Layer }
}

/// A directory with lowers in it, and the index of some of them.
struct Bed {
    dir: TempDir,
}

impl Bed {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn index_file(&self) -> PathBuf {
        self.path("cache/test.index")
    }

    fn try_seal(&self, specs: &[LowerSpec]) -> Result<SealReport, SealError> {
        seal(specs, &self.index_file(), &mut |_| {})
    }

    fn seal(&self, specs: &[LowerSpec]) -> Index {
        self.try_seal(specs).unwrap();
        Index::open(&self.index_file()).unwrap()
    }
}

/// Makes files with their path as contents, and directories where a path ends in `/`.
fn tree(root: &Path, paths: &[&str]) {
    fs::create_dir_all(root).unwrap();
    for path in paths {
        let full = root.join(path);
        if path.ends_with('/') {
            fs::create_dir_all(&full).unwrap();
        } else {
            fs::create_dir_all(full.parent().unwrap()).unwrap();
            fs::write(&full, path).unwrap();
        }
    }
}

/// Every name of the merged view in path order, directories with `/` behind.
fn names(index: &Index) -> Vec<String> {
    let mut names = Vec::new();
    collect(index, ObjectId::ROOT, "", &mut names);
    names
}

fn collect(index: &Index, id: ObjectId, prefix: &str, names: &mut Vec<String>) {
    let (_, directory) = index.directory(id).unwrap();
    for (slot, record) in index.entries(directory).unwrap().iter().enumerate() {
        let entry = index.entry(slot, record).unwrap();
        assert_eq!(index.kind(entry.object).unwrap(), entry.kind);
        let name = format!("{prefix}{}", String::from_utf8_lossy(entry.name));
        if entry.kind == Kind::Directory {
            names.push(format!("{name}/"));
            collect(index, entry.object, &format!("{name}/"), names);
        } else {
            names.push(name);
        }
    }
}

#[test]
fn merged_view_shows_the_topmost_of_each_name() {
    let bed = Bed::new();
    tree(&bed.path("a"), &["both", "d/top", "file_over_dir", "dir_over_file/in", "closed/a"]);
    tree(
        &bed.path("b"),
        &["both", "d/low", "file_over_dir/x", "dir_over_file", "closed", "only/b"],
    );
    tree(&bed.path("c"), &["closed/c", "d/low", "d/lowest", "dir_over_file/hidden"]);
    let index = bed.seal(&[plain(&bed.path("a")), plain(&bed.path("b")), plain(&bed.path("c"))]);
    let expected = [
        "both",
        "closed/",
        "closed/a",
        "d/",
        "d/low",
        "d/lowest",
        "d/top",
        "dir_over_file/",
        "dir_over_file/in",
        "file_over_dir",
        "only/",
        "only/b",
    ];
    assert_eq!(names(&index), expected);
    let _ = (layer(&bed.path("a")), Slot(0), bed.path("a").as_os_str().as_bytes());
}
