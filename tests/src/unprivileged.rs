//! An ordinary user's base and what such a user cannot have.
#![allow(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags, setxattr, utimensat};

use crate::laws::listed::Listed;
use crate::mount::Site;

/// Nobody on this host.
pub const USER: u32 = 4242;

/// The site's lower, imported by the user; gives the base.
///
/// # Panics
/// If it cannot be imported.
pub fn import(site: &Site) -> PathBuf {
    let (archive, base) = (site.path().join("ground.tar"), site.path().join("base"));
    let mut tar = Command::new("tar");
    tar.args(["--create", "--format=pax", "--numeric-owner", "--acls", "--sparse"]);
    tar.args(["--xattrs", "--xattrs-include=*", "--warning=none"]);
    tar.arg("--file").arg(&archive).arg("--directory").arg(site.lower()).arg(".");
    assert!(tar.status().unwrap().success());
    let mut import = site.command_of(USER, "import");
    import.args(["--log-level", "warn"]).arg(&archive).arg("--out").arg(&base);
    assert!(import.status().unwrap().success());
    fs::remove_file(archive).unwrap();
    add_sockets(&site.lower(), &base);
    base
}

/// A tar archive has none: as an import would write them.
fn add_sockets(from: &Path, to: &Path) {
    for row in fs::read_dir(from).unwrap() {
        let row = row.unwrap();
        let (path, found) = (to.join(row.file_name()), row.metadata().unwrap());
        if found.is_dir() && path.as_os_str().len() < 3000 {
            let times = fs::metadata(&path).unwrap();
            add_sockets(&row.path(), &path);
            set_mtime(&path, &times);
        } else if found.file_type().is_socket() {
            fs::write(&path, "").unwrap();
            let owner =
                format!("{}:{}:{:o}:socket", found.uid(), found.gid(), found.mode() & 0o7777);
            let name = "user.containers.override_stat";
            setxattr(&path, name, owner.as_bytes(), XattrFlags::empty()).unwrap();
            chown(&path, Some(USER), Some(USER)).unwrap();
            set_mtime(&path, &found);
        }
    }
}

fn set_mtime(path: &Path, like: &fs::Metadata) {
    let time = Timespec { tv_sec: like.mtime(), tv_nsec: like.mtime_nsec() };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// The rows of the document: the test's name, and why.
///
/// # Panics
/// If one names no law, or gives no reason.
pub fn listed() -> Listed {
    Listed::below("What an ordinary user cannot have")
}
