//! The kernel's overlayfs over layers of ours: the oracle of what an upper means.
#![allow(clippy::expect_used, clippy::panic, reason = "a test without its oracle cannot go on")]

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::laws::plot::OF_XFS;
use crate::mount::Site;
use crate::skip::skip;
use crate::tree::{self, Tree};

/// The kernel's own mount over some layers, gone when dropped.
#[derive(Debug)]
pub struct Overlay(PathBuf);

/// The layers of a mount, and where it is to be.
#[derive(Debug)]
pub struct Layers<'a> {
    /// The first on top.
    pub lowers: &'a [PathBuf],
    /// As it is given to thinroot.
    pub upper: &'a Path,
    /// As it is given to thinroot.
    pub work: &'a Path,
    /// Made if it is not there.
    pub point: PathBuf,
}

impl Overlay {
    /// Over a site's layers, with redirects and the index; `None`, aloud, where the kernel has no
    /// overlayfs. `metacopy` is `on` or `off`.
    ///
    /// # Panics
    /// If the kernel refuses the layers.
    pub fn of(site: &Site, metacopy: &str) -> Option<Self> {
        fs::create_dir_all(site.work()).expect("work directory");
        let layers = Layers {
            lowers: site.lowers(),
            upper: &site.upper(),
            work: &site.work(),
            point: site.path().join("overlay"),
        };
        Self::mount(layers, metacopy)
    }

    /// The same over any layers.
    ///
    /// # Panics
    /// If the kernel refuses them.
    pub fn mount(layers: Layers<'_>, metacopy: &str) -> Option<Self> {
        fs::create_dir_all(&layers.point).expect("mount point");
        let lowers: Vec<_> = layers.lowers.iter().map(|path| path.display().to_string()).collect();
        let options = format!(
            "lowerdir={},upperdir={},workdir={},redirect_dir=on,index=on,metacopy={metacopy}",
            lowers.join(":"),
            layers.upper.display(),
            layers.work.display()
        );
        let data = CString::new(options.clone()).expect("no NUL in paths");
        match mount("overlay", &layers.point, "overlay", MountFlags::empty(), &*data) {
            Ok(()) => Some(Self(layers.point)),
            Err(Errno::NODEV) => {
                skip("the comparison with overlayfs", "this kernel has none");
                None
            }
            Err(error) => panic!("mounting overlayfs with {options}: {error}"),
        }
    }

    /// Its root.
    pub fn root(&self) -> &Path {
        &self.0
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.0, UnmountFlags::DETACH) {
            eprintln!("unmounting {}: {error}", self.0.display());
        }
    }
}

/// Takes out of a tree what an overlayfs or fuse-overlayfs shows of layers on xfs and a private copy there
/// would not: the attributes in which the disk keeps ACLs, beside those.
pub fn without_acls_of_xfs(theirs: &mut Tree) {
    for object in theirs.values_mut() {
        object.xattrs.retain(|key, _| !key.starts_with(OF_XFS));
    }
}

/// Takes out of both trees what an overlayfs cannot show: character devices 0:0, which are its
/// whiteouts, overlay attributes of the guest's, which it does not let through, and the link counts
/// of directories, which it gives as 1 where layers merge.
pub fn without_what_overlayfs_lacks(ours: &mut Tree, theirs: &mut Tree) {
    let is_whiteout_like = |object: &tree::Object| {
        FileType::from_raw_mode(object.mode) == FileType::CharacterDevice && object.rdev == 0
    };
    let hidden: Vec<_> = ours
        .iter()
        .filter(|(_, object)| is_whiteout_like(object))
        .map(|(path, _)| path.clone())
        .collect();
    without_acls_of_xfs(theirs);
    for tree in [ours, theirs] {
        for path in &hidden {
            tree.remove(path);
        }
        for object in tree.values_mut() {
            object.xattrs.retain(|key, _| !key.contains(".overlay."));
            if FileType::from_raw_mode(object.mode) == FileType::Directory {
                object.links = 0;
            }
        }
    }
}
