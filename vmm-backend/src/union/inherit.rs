//! What a birth inherits from its directory: group, setgid, and the default ACL. Pure.
//!
//! An object is staged in `work`, where it inherits nothing, so this is done by hand as the
//! kernel's `posix_acl_create` and `inode_init_owner` do it.

use crate::filesystem::{Attributes, Caller, Errno, Kind, NewKind, NewObject};
use crate::layer::acl::{ACCESS_ACL, Acl, DEFAULT_ACL};
use crate::layer::owner::Owner;

use super::attributes::S_ISGID;

/// Owner, mode and ACLs of a newborn.
#[derive(Debug)]
pub struct Inheritance {
    /// Owner, final mode, device.
    pub owner: Owner,
    /// ACL attributes to set.
    pub acls: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a directory hands down to all that is born in it; mostly nothing.
#[derive(Debug, Default)]
pub struct Legacy {
    /// A setgid directory's group.
    gid: Option<u32>,
    default_acl: Option<Vec<u8>>,
}

impl Legacy {
    /// What a directory with these attributes and this default ACL hands down.
    pub fn of(directory: &Attributes, default_acl: Option<Vec<u8>>) -> Self {
        Self { gid: (directory.mode & S_ISGID != 0).then_some(directory.gid), default_acl }
    }

    /// Whether it is nothing.
    pub fn is_nothing(&self) -> bool {
        self.gid.is_none() && self.default_acl.is_none()
    }
}

/// Decides what `new` gets under a directory that hands this down.
///
/// Errors: `EINVAL` for a kind that cannot be born so.
pub fn inherit(
    legacy: &Legacy,
    caller: &Caller,
    new: &NewObject<'_>,
) -> Result<Inheritance, Errno> {
    let (kind, rdev) = match new.kind {
        NewKind::File => (Kind::File, 0),
        NewKind::Directory => (Kind::Directory, 0),
        NewKind::Symlink { .. } => (Kind::Symlink, 0),
        NewKind::Special { kind: Kind::Directory | Kind::Symlink, .. } => {
            return Err(Errno::INVAL);
        }
        NewKind::Special { kind, rdev } => {
            let is_device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
            (kind, if is_device { rdev } else { 0 })
        }
    };
    let mut mode = if kind == Kind::Symlink { 0o777 } else { new.mode & 0o7777 };
    let mut gid = caller.gid;
    if let Some(handed_down) = legacy.gid {
        gid = handed_down;
        if kind == Kind::Directory {
            mode |= S_ISGID;
        }
    }
    let mut acls = Vec::new();
    match legacy.default_acl.as_deref().filter(|_| kind != Kind::Symlink).and_then(Acl::parse) {
        None if kind == Kind::Symlink => {}
        None => mode &= !(new.umask & 0o777),
        Some(acl) => {
            if kind == Kind::Directory {
                acls.push((DEFAULT_ACL.to_vec(), acl.to_bytes()));
            }
            let (access, masked) = acl.for_birth(mode);
            mode = masked;
            if access.is_extended() {
                acls.push((ACCESS_ACL.to_vec(), access.to_bytes()));
            }
        }
    }
    let owner = Owner { uid: caller.uid, gid, mode: mode | kind.mode_bits(), rdev };
    Ok(Inheritance { owner, acls })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filesystem::{NodeId, Timestamp};
    use crate::layer::acl::{GROUP_OBJ, MASK, OTHER, USER_OBJ};

    fn directory(mode: u32) -> Attributes {
        Attributes {
            node: NodeId(1),
            mode: mode | Kind::Directory.mode_bits(),
            nlink: 2,
            uid: 0,
            gid: 50,
            rdev: 0,
            size: 0,
            blocks: 0,
            block_size: 4096,
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            btime: None,
        }
    }

    fn born(dir_mode: u32, acl: Option<&Acl>, kind: NewKind<'_>, mode: u32) -> Inheritance {
        let caller = Caller { uid: 7, gid: 8, pid: 1 };
        let new = NewObject { kind, mode, umask: 0o022, supplementary_group: None };
        let legacy = Legacy::of(&directory(dir_mode), acl.map(Acl::to_bytes));
        assert_eq!(legacy.is_nothing(), dir_mode & S_ISGID == 0 && acl.is_none());
        inherit(&legacy, &caller, &new).unwrap()
    }

    #[test]
    fn newborn_gets_group_and_setgid_of_a_setgid_directory() {
        let rows = [
            ("plain file", 0o755, NewKind::File, 0o666, (8, 0o644)),
            ("file in setgid", 0o2755, NewKind::File, 0o666, (50, 0o644)),
            ("directory in setgid", 0o2755, NewKind::Directory, 0o777, (50, 0o2755)),
            ("symlink", 0o755, NewKind::Symlink { target: b"x" }, 0, (8, 0o777)),
        ];
        for (row, dir_mode, kind, mode, (gid, shown)) in rows {
            let born = born(dir_mode, None, kind, mode);
            assert_eq!((born.owner.gid, born.owner.mode & 0o7777), (gid, shown), "{row}");
            assert!(born.acls.is_empty(), "{row}");
        }
    }

    #[test]
    fn default_acl_takes_the_place_of_the_umask() {
        let plain = Acl(vec![(USER_OBJ, 7, 0), (GROUP_OBJ, 7, 0), (OTHER, 7, 0)]);
        let file = born(0o755, Some(&plain), NewKind::File, 0o666);
        assert_eq!(file.owner.mode & 0o777, 0o666, "the umask does not count");
        assert!(file.acls.is_empty(), "the mode says it all");

        let named = Acl(vec![
            (USER_OBJ, 7, 0),
            (0x02, 6, 1000),
            (GROUP_OBJ, 5, 0),
            (MASK, 7, 0),
            (OTHER, 5, 0),
        ]);
        let file = born(0o755, Some(&named), NewKind::File, 0o640);
        assert_eq!(file.owner.mode & 0o777, 0o640);
        let names: Vec<_> = file.acls.iter().map(|(name, _)| name.as_slice()).collect();
        assert_eq!(names, [ACCESS_ACL]);
        let access = Acl::parse(&file.acls[0].1).unwrap();
        assert_eq!(access.0[3], (MASK, 4, 0), "the mask takes the group's bits");
        assert_eq!(access.0[2], (GROUP_OBJ, 5, 0), "the group keeps its own");

        let dir = born(0o755, Some(&named), NewKind::Directory, 0o777);
        assert_eq!(dir.acls.len(), 2);
        assert_eq!(dir.acls[0], (DEFAULT_ACL.to_vec(), named.to_bytes()));
    }
}
