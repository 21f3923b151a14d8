//! Extended attributes and link targets: the index's for untouched objects, else the upper's.

use std::os::fd::AsFd;
use std::sync::RwLockReadGuard;

use super::attributes::{CAPABILITY, S_ISGID};
use super::copy_up::Purpose;
use super::node::Node;
use super::stripes::Guard;
use super::{CAPABILITY_WENT, ELSEWHERE, NO_CAPABILITY, Union};
use crate::filesystem::{Caller, Errno, Kind, NodeId, SetAttributes, SetXattr};
use crate::layer::acl::{ACCESS_ACL, DEFAULT_ACL};

impl Union {
    pub(super) fn target(&self, id: NodeId) -> Result<Vec<u8>, Errno> {
        let node = self.nodes.get(id)?;
        if node.kind != Kind::Symlink {
            return Err(Errno::INVAL);
        }
        if let (false, Some(object)) = (node.is_upper, node.lower) {
            self.see_read(&node);
            return Ok(self.lower.target(object)?.to_vec());
        }
        let (_, handle) = self.reach(id)?;
        self.upper.target(handle.as_fd())
    }

    pub(super) fn get_xattr(&self, id: NodeId, name: &[u8]) -> Result<Vec<u8>, Errno> {
        let node = self.nodes.get(id)?;
        if let (false, Some(object)) = (node.is_upper, node.lower) {
            return Ok(self.lower.xattr(object, name)?.ok_or(Errno::NODATA)?.to_vec());
        }
        if name == CAPABILITY && node.flags & NO_CAPABILITY != 0 {
            return Err(Errno::NODATA);
        }
        let (_, handle) = self.reach(id)?;
        let _still = (name == CAPABILITY).then(|| self.see_capability(&node));
        self.upper.xattr(handle.as_fd(), name)
    }

    /// Until this is dropped nobody has taken a file's capabilities away to give them back.
    fn see_capability(&self, node: &Node) -> (RwLockReadGuard<'_, ()>, Option<Guard<'_>>) {
        let shared = self.capabilities.share(node.id);
        // Its data may be on its way, which takes them along.
        let is_moving = node.flags & ELSEWHERE != 0;
        (shared, is_moving.then(|| self.objects.lock(node.id)))
    }

    pub(super) fn xattr_names(&self, id: NodeId) -> Result<Vec<u8>, Errno> {
        let node = self.nodes.get(id)?;
        if let (false, Some(object)) = (node.is_upper, node.lower) {
            let mut names = Vec::new();
            for (name, _) in self.lower.xattrs(object)? {
                names.extend_from_slice(name);
                names.push(0);
            }
            return Ok(names);
        }
        let (_, handle) = self.reach(id)?;
        let _still = (node.flags & NO_CAPABILITY == 0).then(|| self.see_capability(&node));
        self.upper.list_xattrs(handle.as_fd())
    }

    pub(super) fn change_xattr(&self, id: NodeId, set: &SetXattr<'_>) -> Result<(), Errno> {
        self.copy_up(id, Purpose::Attributes)?;
        let _owned = (set.name == CAPABILITY).then(|| self.own_capability(id));
        if set.name == CAPABILITY {
            self.nodes.update(id, |node| node.flags &= !NO_CAPABILITY)?;
        }
        let is_default = set.name == DEFAULT_ACL;
        let _legacy = is_default.then(|| self.look_up_legacy_anew(id)).transpose()?;
        let (_, handle) = self.reach(id)?;
        if set.name == ACCESS_ACL {
            self.set_acl(handle.as_fd(), set.value, set.flags)?;
        } else {
            self.upper.set_xattr(handle.as_fd(), (set.name, set.value), set.flags)?;
        }
        // fuse.h: "Clear SGID when system.posix_acl_access is set"; the kernel says it of both.
        if set.kill_setgid && set.name == ACCESS_ACL {
            let mode = self.upper.attributes(handle.as_fd())?.mode;
            if mode & S_ISGID != 0 {
                let mode = Some(mode & 0o7777 & !S_ISGID);
                self.change_attributes(id, &SetAttributes { mode, ..SetAttributes::default() })?;
            }
        }
        Ok(())
    }

    pub(super) fn drop_xattr(&self, id: NodeId, name: &[u8]) -> Result<(), Errno> {
        if name == CAPABILITY {
            self.nodes.update(id, |node| node.flags |= CAPABILITY_WENT)?;
        }
        // Asked first, so that a refusal copies nothing up.
        match self.get_xattr(id, name) {
            // The kernel's file systems set "none" where none is: no error.
            Err(Errno::NODATA) if name == ACCESS_ACL || name == DEFAULT_ACL => return Ok(()),
            found => drop(found?),
        }
        self.copy_up(id, Purpose::Attributes)?;
        let (_, handle) = self.reach(id)?;
        let _owned = (name == CAPABILITY).then(|| self.own_capability(id));
        match name {
            ACCESS_ACL => self.drop_acl(handle.as_fd()),
            name => self.upper.remove_xattr(handle.as_fd(), name),
        }
    }
}

/// The names without `trusted.*`, unless root asks: file systems list those to `CAP_SYS_ADMIN` alone
/// (fs/xattr.c leaves it to them), and what a caller may is not said, only who it is.
pub(super) fn shown_to(caller: &Caller, names: Vec<u8>) -> Vec<u8> {
    // Where the guest's kernel maps ids it does not say who asks.
    if caller.uid == 0 || caller.uid == u32::MAX {
        return names;
    }
    let shown = names.split_inclusive(|&byte| byte == 0);
    shown.filter(|name| !name.starts_with(b"trusted.")).flatten().copied().collect()
}
