//! How POSIX ACLs change, and with a mode where the host does not know them as ACLs.

use std::os::fd::BorrowedFd;

use super::Union;
use crate::filesystem::Errno;
use crate::layer::acl::{ACCESS_ACL, Acl};
use crate::layer::owner::Owner;

impl Union {
    /// Sets an access ACL as a disk does: what a mode can say becomes the mode. The host sees to
    /// that, but not where a mark holds the mode, or where it does not know the ACL as one.
    ///
    /// Errors: `EINVAL` for a malformed one, else the calls' own.
    pub(super) fn set_acl(
        &self,
        handle: BorrowedFd<'_>,
        value: &[u8],
        flags: u32,
    ) -> Result<(), Errno> {
        let acl = Acl::parse(value).ok_or(Errno::INVAL)?;
        if !self.upper.maps_acls() {
            self.upper.set_xattr(handle, (ACCESS_ACL, value), flags)?;
            return self.set_permissions(handle, acl.permissions());
        }
        if acl.is_extended() {
            self.upper.set_xattr(handle, (ACCESS_ACL, value), flags)?;
            // Nobody reads it there as long as there is the ACL, but other programs.
            if let Err(e) = self.mark_permissions(handle, acl.permissions()) {
                log::debug!("upper: a stat mark is older than its ACL: {e}");
            }
            return Ok(());
        }
        // With an ACL there the mark shows when that goes, else at once.
        self.mark_permissions(handle, acl.permissions())?;
        match self.upper.remove_xattr(handle, ACCESS_ACL) {
            Ok(()) | Err(Errno::NODATA) => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn set_permissions(&self, handle: BorrowedFd<'_>, permissions: u32) -> Result<(), Errno> {
        let shown = self.upper.attributes(handle)?;
        match shown.mode & 0o777 == permissions {
            true => Ok(()),
            false => self.mark_permissions(handle, permissions),
        }
    }

    fn mark_permissions(&self, handle: BorrowedFd<'_>, permissions: u32) -> Result<(), Errno> {
        let shown = self.upper.attributes(handle)?;
        let mode = (shown.mode & !0o777) | permissions;
        let owner = Owner { uid: shown.uid, gid: shown.gid, mode, rdev: shown.rdev };
        self.upper.set_owner(handle, &owner)
    }

    /// An access ACL goes, and the mode stays what it made of it.
    pub(super) fn drop_acl(&self, handle: BorrowedFd<'_>) -> Result<(), Errno> {
        if self.upper.maps_acls() {
            let shown = self.upper.attributes(handle)?;
            self.mark_permissions(handle, shown.mode & 0o777)?;
        }
        self.upper.remove_xattr(handle, ACCESS_ACL)
    }

    /// A chmod changes the access ACL with the mode; where the host does not know it, we do it.
    pub(super) fn chmod_acl(&self, handle: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
        let value = match self.upper.xattr(handle, ACCESS_ACL) {
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(()),
            found => found?,
        };
        let Some(acl) = Acl::parse(&value) else { return Ok(()) };
        self.upper.set_xattr(handle, (ACCESS_ACL, &acl.with_mode(mode).to_bytes()), 0)
    }
}
