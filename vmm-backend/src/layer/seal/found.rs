//! Looks at one real object in one layer: what it is, its xattrs, and its marks if they count.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use super::SealError;
use crate::filesystem::{Errno, Kind};
use crate::layer::imported;
use crate::layer::index::LayerKind;
use crate::sys::fs::Statx;
use crate::sys::scan::{self, Scanner, Xattr};

/// How often something that changes while we look is looked at again, 20 ms apart.
const ATTEMPTS: usize = 50;

/// One lower, opened for the walk.
#[derive(Debug)]
pub struct LayerRoot {
    /// Its canonical path.
    pub path: PathBuf,
    /// Whether its marks count.
    pub kind: LayerKind,
    /// Its root directory.
    pub fd: OwnedFd,
    /// The mount it is on: the walk does not leave it.
    pub mount: u64,
    /// It is in the form that `thinroot import` makes.
    pub is_imported: bool,
}

/// One real object.
#[derive(Debug)]
pub struct Found {
    /// Its attributes.
    pub stat: Statx,
    /// What it is.
    pub kind: Kind,
    /// Its xattrs; in an overlay layer without the marks, and unescaped.
    pub xattrs: Vec<Xattr>,
    /// Its marks; none in a plain tree.
    pub marks: Marks,
    /// The target of a symbolic link.
    pub target: Option<Vec<u8>>,
    /// Another file system is mounted here.
    pub is_mount_point: bool,
    /// A regular file or directory can be read by us; true for everything else.
    pub is_readable: bool,
}

/// What an overlay layer says about one of its objects.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Hides the name below.
    pub is_whiteout: bool,
    /// Nothing below is merged.
    pub is_opaque: bool,
    /// Below, it goes by this name (relative) or path from the root (absolute).
    pub redirect: Option<Vec<u8>>,
    /// A file without data of its own.
    pub is_metacopy: bool,
}

/// What is known of an object from an earlier index, so that it need not be read again.
#[derive(Debug)]
pub struct Known {
    /// Its xattrs.
    pub xattrs: Vec<Xattr>,
    /// The target of a symbolic link.
    pub target: Option<Vec<u8>>,
}

/// Where to look.
#[derive(Debug, Clone, Copy)]
pub struct Spot<'a> {
    /// The layer.
    pub layer: &'a LayerRoot,
    /// A directory of that layer.
    pub dir: BorrowedFd<'a>,
    /// A name in it; empty for itself.
    pub name: &'a [u8],
}

impl Spot<'_> {
    /// Looks at the object; `None` where there is none.
    ///
    /// `known` may say that an earlier index has read an object with these attributes.
    ///
    /// Errors: the kernel's; `EBUSY` if it does not come to rest.
    pub fn look(
        &self,
        scanner: &mut Scanner,
        known: impl FnOnce(&Statx) -> Option<Known>,
    ) -> Result<Option<Found>, Errno> {
        let stat = match self.stat_at_rest() {
            Err(Errno::NOENT) => return Ok(None),
            stat => stat?,
        };
        let kind = Kind::from_mode(u32::from(stat.stx_mode)).ok_or(Errno::IO)?;
        let is_mount_point = stat.stx_mnt_id != self.layer.mount;
        let mut found = Found {
            stat,
            kind,
            xattrs: Vec::new(),
            marks: Marks::default(),
            target: None,
            is_mount_point,
            is_readable: self.is_readable(kind, &stat)?,
        };
        if is_mount_point || !found.is_readable {
            return Ok(Some(found));
        }
        if self.layer.is_imported {
            found.take_form(self, scanner.xattrs(self.dir, self.name)?)?;
        } else if let Some(known) = known(&stat) {
            found.xattrs = known.xattrs;
            found.target = known.target;
        } else {
            found.xattrs = scanner.xattrs(self.dir, self.name)?;
            if kind == Kind::Symlink {
                found.target = Some(scan::read_link_name(self.dir, self.name)?);
            }
        }
        if self.layer.kind == LayerKind::Layer {
            found.take_marks();
        }
        Ok(Some(found))
    }

    /// Its attributes, once a further change could not go unseen.
    ///
    /// Errors: the kernel's; `EBUSY` if it does not come to rest.
    pub fn stat_at_rest(&self) -> Result<Statx, Errno> {
        for _ in 0..ATTEMPTS {
            let stat = scan::stat_on_mount(self.dir, self.name)?;
            if !scan::may_change_unseen(stat.stx_ctime) {
                return Ok(stat);
            }
            sleep(Duration::from_millis(20));
        }
        Err(Errno::BUSY)
    }

    fn is_readable(&self, kind: Kind, stat: &Statx) -> Result<bool, Errno> {
        // Most objects say so in their mode; an ACL may take that back only from named users and
        // groups, and then the mode's group bits are its mask.
        let needed = match kind {
            Kind::File => 0o444,
            Kind::Directory => 0o555,
            _ => return Ok(true),
        };
        if stat.stx_mode & needed == needed {
            return Ok(true);
        }
        scan::is_readable(self.dir, self.name, kind == Kind::Directory)
    }
}

impl Found {
    /// Becomes what an imported object says it is.
    fn take_form(&mut self, spot: &Spot<'_>, xattrs: Vec<Xattr>) -> Result<(), Errno> {
        if self.kind == Kind::Symlink {
            self.target = Some(scan::read_link_name(spot.dir, spot.name)?);
        }
        let shown = imported::show(spot.dir, spot.name, &mut self.stat, xattrs)?;
        self.xattrs = shown.xattrs;
        self.kind = Kind::from_mode(u32::from(self.stat.stx_mode)).ok_or(Errno::IO)?;
        self.target = shown.target.or(self.target.take());
        Ok(())
    }

    /// Moves the marks out of the xattrs and unescapes what the layer's owner had escaped.
    fn take_marks(&mut self) {
        let prefix = mark_prefix();
        let mut kept = Vec::with_capacity(self.xattrs.len());
        for (name, value) in std::mem::take(&mut self.xattrs) {
            match name.strip_prefix(prefix) {
                None => kept.push((name, value)),
                Some(mark) => match mark.strip_prefix(b"overlay.") {
                    Some(rest) => kept.push(([prefix, rest].concat(), value)),
                    None => self.mark(mark, value),
                },
            }
        }
        self.xattrs = kept;
        let is_whiteout_device = self.kind == Kind::CharDevice
            && self.stat.stx_rdev_major == 0
            && self.stat.stx_rdev_minor == 0;
        self.marks.is_whiteout |= is_whiteout_device;
    }

    /// Source: overlayfs.rst, "whiteouts and opaque directories", "redirect_dir", "Metadata only
    /// copy up". Marks that only speed up or number the kernel's overlayfs are dropped.
    fn mark(&mut self, mark: &[u8], value: Vec<u8>) {
        match mark {
            b"whiteout" => {
                self.marks.is_whiteout = self.kind == Kind::File && self.stat.stx_size == 0;
            }
            b"opaque" => self.marks.is_opaque = self.kind == Kind::Directory && value == b"y",
            b"redirect" => self.marks.redirect = Some(value),
            b"metacopy" => self.marks.is_metacopy = self.kind == Kind::File,
            _ => {}
        }
    }
}

/// The xattr namespace in which the kernel keeps marks: `trusted` where we may see it, else the
/// one of its `userxattr` mounts.
pub fn mark_prefix() -> &'static [u8] {
    use std::sync::OnceLock;
    static IS_PRIVILEGED: OnceLock<bool> = OnceLock::new();
    // `trusted.*` asks for CAP_SYS_ADMIN in the first user namespace, not in one of our own.
    let is_privileged = *IS_PRIVILEGED.get_or_init(|| {
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        rustix::process::geteuid().is_root() && map.split_whitespace().eq(["0", "0", "4294967295"])
    });
    if is_privileged { b"trusted.overlay." } else { b"user.overlay." }
}

/// Splits a redirect into names, each checked.
pub fn redirect_names<'a>(redirect: &'a [u8], path: &[u8]) -> Result<Vec<&'a [u8]>, SealError> {
    let names: Vec<_> = match redirect.strip_prefix(b"/") {
        Some(rest) => rest.split(|byte| *byte == b'/').collect(),
        None => vec![redirect],
    };
    if names.iter().any(|name| crate::filesystem::Name::new(name).is_err()) {
        return Err(SealError::Mark {
            path: super::display(path),
            reason: format!("its redirect \"{}\" is not a path", redirect.escape_ascii()),
        });
    }
    Ok(names)
}
