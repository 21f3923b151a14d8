//! Overlay marks: the extended attributes that say what an upper object is to the union, and the
//! escapes that keep a guest's own attributes of such names apart.
//!
//! With privilege the names and values are the kernel's (`trusted.overlay.*`, fs/overlayfs); ours
//! sit below `trusted.overlay.thinroot.`, which the kernel hides as one of its own. Without
//! privilege all of it sits below `user.overlay.`.

use std::borrow::Cow;
use std::os::fd::BorrowedFd;

use crate::filesystem::Errno;
use crate::sys::fs;
pub use crate::sys::scan::ACLS_OF_XFS;

/// Where the marks are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MarkSpace {
    /// `trusted.overlay.*`: privileged, the kernel's own form.
    Trusted,
    /// `user.overlay.*`: unprivileged, ours alone.
    User,
}

/// The marks we read and write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// `y` on a directory that hides the lower one of its name.
    Opaque,
    /// The lower path of a directory that was renamed: absolute, or one sibling name.
    Redirect,
    /// The kernel's file handle of the lower object this was copied up from.
    Origin,
    /// `y` on a directory that may hold objects with an origin.
    Impure,
    /// Union-wide link count, relative to the upper's: `U+1`, `L-0`.
    Nlink,
    /// The data is still in the lower.
    Metacopy,
    /// Our origin: the index's identity and the object's number.
    OwnOrigin,
    /// Owner, mode and type of an object that is stored as another one.
    Stat,
    /// How much of an unsettled file may fall through, and where its map is.
    Blocks,
}

/// A redirect that names nothing: the kernel's overlayfs answers EIO for a file that was written by
/// block, instead of zeros.
pub const DANGLING: &[u8] = b"/thinroot:unsettled";

impl MarkSpace {
    /// What all marks of this space begin with.
    pub const fn prefix(self) -> &'static [u8] {
        match self {
            Self::Trusted => b"trusted.overlay.",
            Self::User => b"user.overlay.",
        }
    }

    /// Prefix of the guest's attributes that cannot be kept under their own names: those of other
    /// namespaces in an unprivileged upper, and those that mean something to a disk.
    const fn mapped(self) -> &'static [u8] {
        match self {
            Self::Trusted => b"trusted.overlay.thinroot.x.",
            Self::User => b"user.overlay.thinroot.x.",
        }
    }

    /// Whether a disk can keep an attribute of such a name for a guest.
    fn is_plain(self, name: &[u8]) -> bool {
        match self {
            Self::Trusted => !name.starts_with(ACLS_OF_XFS),
            Self::User => is_plain_user(name),
        }
    }

    /// The attribute that holds `mark`.
    pub const fn name(self, mark: Mark) -> &'static [u8] {
        match (self, mark) {
            (Self::Trusted, Mark::Opaque) => b"trusted.overlay.opaque",
            (Self::Trusted, Mark::Redirect) => b"trusted.overlay.redirect",
            (Self::Trusted, Mark::Origin) => b"trusted.overlay.origin",
            (Self::Trusted, Mark::Impure) => b"trusted.overlay.impure",
            (Self::Trusted, Mark::Nlink) => b"trusted.overlay.nlink",
            (Self::Trusted, Mark::Metacopy) => b"trusted.overlay.metacopy",
            (Self::Trusted, Mark::OwnOrigin) => b"trusted.overlay.thinroot.origin",
            (Self::Trusted, Mark::Stat) => b"trusted.overlay.thinroot.stat",
            (Self::Trusted, Mark::Blocks) => b"trusted.overlay.thinroot.blocks",
            (Self::User, Mark::Blocks) => b"user.overlay.thinroot.blocks",
            (Self::User, Mark::Opaque) => b"user.overlay.opaque",
            (Self::User, Mark::Redirect) => b"user.overlay.redirect",
            (Self::User, Mark::Origin) => b"user.overlay.origin",
            (Self::User, Mark::Impure) => b"user.overlay.impure",
            (Self::User, Mark::Nlink) => b"user.overlay.nlink",
            (Self::User, Mark::Metacopy) => b"user.overlay.metacopy",
            (Self::User, Mark::OwnOrigin) => b"user.overlay.thinroot.origin",
            // The containers/fuse-overlayfs convention, which other tools read.
            (Self::User, Mark::Stat) => b"user.containers.override_stat",
        }
    }

    /// The host's name for a guest's attribute: names that look like marks are escaped as the
    /// kernel's overlayfs escapes them, and what an upper cannot keep under its name is mapped.
    ///
    /// Errors: `ERANGE` if the name grows beyond 255 bytes, `EOPNOTSUPP` for a name without a
    /// namespace.
    pub fn to_host(self, guest: &[u8]) -> Result<Cow<'_, [u8]>, Errno> {
        let host = if let Some(rest) = guest.strip_prefix(self.prefix()) {
            Cow::Owned([self.prefix(), b"overlay.", rest].concat())
        } else if !self.is_plain(guest) {
            if !has_namespace(guest) {
                return Err(Errno::OPNOTSUPP);
            }
            Cow::Owned([self.mapped(), guest].concat())
        } else {
            Cow::Borrowed(guest)
        };
        // limits.h: XATTR_NAME_MAX.
        if host.len() > 255 {
            return Err(Errno::RANGE);
        }
        Ok(host)
    }

    /// The guest's name for a host's attribute; `None` for marks, which the guest never sees.
    pub fn to_guest(self, host: &[u8]) -> Option<Cow<'_, [u8]>> {
        if let Some(mapped) = host.strip_prefix(self.mapped()) {
            return Some(Cow::Borrowed(mapped));
        }
        if !self.is_plain(host) {
            return None;
        }
        match host.strip_prefix(self.prefix()) {
            None => Some(Cow::Borrowed(host)),
            Some(mark) => {
                let escaped = mark.strip_prefix(b"overlay.")?;
                Some(Cow::Owned([self.prefix(), escaped].concat()))
            }
        }
    }
}

/// Whether a disk has attributes of such a name (xattr(7): the namespaces, and `system.` of ACLs).
fn has_namespace(name: &[u8]) -> bool {
    let has_name = |namespace: &&[u8]| name.strip_prefix(*namespace).is_some_and(|n| !n.is_empty());
    [&b"user."[..], b"trusted.", b"security."].iter().any(has_name)
        || matches!(name, b"system.posix_acl_access" | b"system.posix_acl_default")
}

/// Whether an unprivileged upper can keep an attribute under the guest's own name.
fn is_plain_user(name: &[u8]) -> bool {
    name.starts_with(b"user.") && name != MarkSpace::User.name(Mark::Stat)
}

/// Where an upper object came from: an index and a number in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin {
    /// The identity of the index.
    pub identity: [u8; 16],
    /// The object's number there.
    pub object: u32,
}

impl Origin {
    /// The value of the mark: 16 bytes of identity, the number as little-endian u32.
    pub fn to_bytes(self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..16].copy_from_slice(&self.identity);
        bytes[16..].copy_from_slice(&self.object.to_le_bytes());
        bytes
    }

    /// Reads a mark's value; `None` if it is none of ours.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (identity, object) = bytes.split_at_checked(16)?;
        Some(Self {
            identity: identity.try_into().ok()?,
            object: u32::from_le_bytes(object.try_into().ok()?),
        })
    }
}

/// What the marks of one upper object say.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Marks {
    /// Hides the lower directory of its name.
    pub is_opaque: bool,
    /// The lower path it merges with, as it is written: absolute or one name.
    pub redirect: Option<Vec<u8>>,
    /// Our origin mark.
    pub origin: Option<Origin>,
    /// The kernel's origin mark is there (an upper the kernel's overlayfs wrote).
    pub has_kernel_origin: bool,
    /// Union-wide links minus the upper's own.
    pub nlink: Option<NlinkMark>,
    /// The data is elsewhere.
    pub is_metacopy: bool,
    /// Some of the data may be here: what is where is told by a map.
    pub is_by_block: bool,
    /// It says what of the data is here.
    pub has_blocks: bool,
    /// Owner, mode and type stored apart.
    pub stat: Option<Vec<u8>>,
    /// Has file capabilities, which a write by the host would strip.
    pub has_capability: bool,
}

/// The kernel's `nlink` mark.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NlinkMark {
    /// This many more than the upper inode has.
    Upper(i32),
    /// This many more than the lower inode has.
    Lower(i32),
}

impl NlinkMark {
    /// Reads `U+1` or `L-2`; `None` for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (side, number) = bytes.split_first()?;
        let number = std::str::from_utf8(number).ok()?.parse().ok()?;
        match side {
            b'U' => Some(Self::Upper(number)),
            b'L' => Some(Self::Lower(number)),
            _ => None,
        }
    }

    /// What [`NlinkMark::from_bytes`] reads.
    pub fn to_bytes(self) -> Vec<u8> {
        match self {
            Self::Upper(more) => format!("U{more:+}").into_bytes(),
            Self::Lower(more) => format!("L{more:+}").into_bytes(),
        }
    }
}

/// What an attribute of the host is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Meaning {
    /// The guest's own, escaped or not.
    Guest,
    /// A mark we read.
    Mark(Mark),
    /// A mark of the kernel's that says nothing of a single union.
    Idle,
    /// A mark we do not read.
    Unknown,
}

impl MarkSpace {
    /// What an attribute of the host is to an upper that keeps its marks here.
    pub fn meaning(self, host: &[u8]) -> Meaning {
        if host == self.name(Mark::Stat) {
            return Meaning::Mark(Mark::Stat);
        }
        let Some(mark) = host.strip_prefix(self.prefix()) else { return Meaning::Guest };
        match mark {
            b"opaque" => Meaning::Mark(Mark::Opaque),
            b"redirect" => Meaning::Mark(Mark::Redirect),
            b"origin" => Meaning::Mark(Mark::Origin),
            b"impure" => Meaning::Mark(Mark::Impure),
            b"nlink" => Meaning::Mark(Mark::Nlink),
            b"metacopy" => Meaning::Mark(Mark::Metacopy),
            b"thinroot.origin" => Meaning::Mark(Mark::OwnOrigin),
            b"thinroot.blocks" => Meaning::Mark(Mark::Blocks),
            b"upper" | b"uuid" => Meaning::Idle,
            _ if mark.starts_with(b"overlay.") => Meaning::Guest,
            _ if mark.starts_with(b"thinroot.x.") => Meaning::Guest,
            _ => Meaning::Unknown,
        }
    }
}

/// Reads all marks of the object `fd` names.
///
/// Errors: `EIO` for a mark, or a value of one, whose meaning we do not read (logged with its
/// name), else the calls' own.
pub fn read(space: MarkSpace, fd: BorrowedFd<'_>) -> Result<Marks, Errno> {
    let mut marks = Marks::default();
    let names = fs::list_xattrs(fd)?;
    for name in names.split(|b| *b == 0) {
        let is_read = match space.meaning(name) {
            Meaning::Guest => {
                marks.has_capability |= name == b"security.capability";
                true
            }
            Meaning::Mark(mark) => read_one(&mut marks, fd, (mark, name))?.is_some(),
            Meaning::Idle => true,
            Meaning::Unknown => false,
        };
        if !is_read {
            log::error!(
                "upper: an object carries the mark {}, which this version does not read; \
                 its directory entry answers EIO; thinroot check says which object it is",
                name.escape_ascii()
            );
            return Err(Errno::IO);
        }
    }
    Ok(marks)
}

/// `None` if the value means nothing to us.
fn read_one(
    marks: &mut Marks,
    fd: BorrowedFd<'_>,
    (mark, name): (Mark, &[u8]),
) -> Result<Option<()>, Errno> {
    let value = || Ok::<_, Errno>(fs::xattr(fd, name)?.unwrap_or_default());
    match mark {
        // The kernel knows other values (`x`: whiteouts that are no devices), which hide otherwise.
        Mark::Opaque if value()? != b"y" => return Ok(None),
        Mark::Opaque => marks.is_opaque = true,
        Mark::Redirect => {
            let redirect = value()?;
            marks.is_by_block = redirect == DANGLING;
            marks.redirect = Some(redirect);
        }
        Mark::Origin => marks.has_kernel_origin = true,
        Mark::Nlink => match NlinkMark::from_bytes(&value()?) {
            None => return Ok(None),
            found => marks.nlink = found,
        },
        Mark::Metacopy => marks.is_metacopy = true,
        Mark::OwnOrigin => match Origin::from_bytes(&value()?) {
            None => return Ok(None),
            found => marks.origin = found,
        },
        Mark::Stat => marks.stat = Some(value()?),
        // Read where they matter.
        Mark::Blocks => marks.has_blocks = true,
        Mark::Impure => {}
    }
    Ok(Some(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_xattr_that_looks_like_a_mark_never_reaches_one() {
        let rows: [(MarkSpace, &[u8], &[u8]); 8] = [
            (MarkSpace::Trusted, b"trusted.overlay.opaque", b"trusted.overlay.overlay.opaque"),
            (
                MarkSpace::Trusted,
                b"trusted.overlay.overlay.opaque",
                b"trusted.overlay.overlay.overlay.opaque",
            ),
            (MarkSpace::Trusted, b"user.overlay.opaque", b"user.overlay.opaque"),
            (
                MarkSpace::Trusted,
                b"trusted.SGI_ACL_FILE",
                b"trusted.overlay.thinroot.x.trusted.SGI_ACL_FILE",
            ),
            (MarkSpace::Trusted, b"security.capability", b"security.capability"),
            (MarkSpace::User, b"user.overlay.opaque", b"user.overlay.overlay.opaque"),
            (MarkSpace::User, b"trusted.a", b"user.overlay.thinroot.x.trusted.a"),
            (
                MarkSpace::User,
                b"user.containers.override_stat",
                b"user.overlay.thinroot.x.user.containers.override_stat",
            ),
        ];
        for (space, guest, host) in rows {
            let name = guest.escape_ascii();
            assert_eq!(space.to_host(guest).unwrap().as_ref(), host, "{name}");
            assert_eq!(space.to_guest(host).unwrap().as_ref(), guest, "{name}");
        }
        for space in [MarkSpace::Trusted, MarkSpace::User] {
            for mark in [Mark::Opaque, Mark::OwnOrigin, Mark::Stat, Mark::Redirect] {
                assert_eq!(space.to_guest(space.name(mark)), None, "{mark:?}");
            }
            assert_eq!(space.to_guest(b"trusted.SGI_ACL_FILE"), None, "of the disk");
        }
        let long = [b"trusted.overlay.".as_slice(), &[b'a'; 239]].concat();
        assert_eq!(MarkSpace::Trusted.to_host(&long).err(), Some(Errno::RANGE));
    }

    #[test]
    fn origin_survives_its_bytes() {
        let origin = Origin { identity: [7; 16], object: 0x0102_0304 };
        assert_eq!(Origin::from_bytes(&origin.to_bytes()), Some(origin));
        for length in 0..20 {
            assert_eq!(Origin::from_bytes(&origin.to_bytes()[..length]), None);
        }
    }

    #[test]
    fn nlink_mark_reads_the_kernels_form() {
        let rows: [(&[u8], Option<NlinkMark>); 5] = [
            (b"U+1", Some(NlinkMark::Upper(1))),
            (b"L-2", Some(NlinkMark::Lower(-2))),
            (b"U+0", Some(NlinkMark::Upper(0))),
            (b"X+0", None),
            (b"", None),
        ];
        for (bytes, mark) in rows {
            assert_eq!(NlinkMark::from_bytes(bytes), mark, "{}", bytes.escape_ascii());
            assert!(mark.is_none_or(|mark| mark.to_bytes() == bytes));
        }
    }
}
