//! POSIX ACLs: what they say to a mode and to a birth. Pure.

/// The attribute with an object's own ACL.
pub const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
/// The attribute with the ACL a directory gives to what is born in it.
pub const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// A POSIX ACL as its attribute has it (linux/posix_acl_xattr.h): tag, permissions, id.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Acl(pub Vec<(u16, u16, u32)>);

const VERSION: [u8; 4] = 2_u32.to_le_bytes();
/// linux/posix_acl.h: ACL_USER_OBJ.
pub const USER_OBJ: u16 = 0x01;
/// ACL_GROUP_OBJ.
pub const GROUP_OBJ: u16 = 0x04;
/// ACL_MASK.
pub const MASK: u16 = 0x10;
/// ACL_OTHER.
pub const OTHER: u16 = 0x20;

impl Acl {
    /// Reads an attribute's value; `None` if it is malformed.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let entries = bytes.strip_prefix(&VERSION)?;
        let (rows, rest) = entries.as_chunks::<8>();
        if !rest.is_empty() || rows.is_empty() {
            return None;
        }
        let row = |b: &[u8; 8]| {
            (
                u16::from_le_bytes([b[0], b[1]]),
                u16::from_le_bytes([b[2], b[3]]),
                u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
            )
        };
        Some(Self(rows.iter().map(row).collect()))
    }

    /// What [`Acl::parse`] reads.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = VERSION.to_vec();
        for (tag, permissions, id) in &self.0 {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(permissions.to_le_bytes());
            bytes.extend(id.to_le_bytes());
        }
        bytes
    }

    /// More than the mode can say.
    pub fn is_extended(&self) -> bool {
        self.0.iter().any(|(tag, ..)| !matches!(*tag, USER_OBJ | GROUP_OBJ | OTHER))
    }

    /// The access ACL of an object born with `mode`, and its mode then.
    pub fn for_birth(&self, mode: u32) -> (Self, u32) {
        let mut acl = self.clone();
        let has_mask = self.0.iter().any(|(tag, ..)| *tag == MASK);
        let mut masked = mode & !0o777;
        for (tag, permissions, _) in &mut acl.0 {
            let shift = match *tag {
                USER_OBJ => 6,
                MASK => 3,
                GROUP_OBJ if !has_mask => 3,
                OTHER => 0,
                _ => continue,
            };
            let asked = u16::try_from((mode >> shift) & 0o7).unwrap_or(0);
            *permissions &= asked;
            masked |= u32::from(*permissions) << shift;
        }
        (acl, masked)
    }

    /// The permissions of a mode that say the same to who asks for the mode alone: the group's are
    /// the mask's.
    pub fn permissions(&self) -> u32 {
        let mode = |(tag, permissions, _): &(u16, u16, u32)| {
            Some(u32::from(*permissions & 0o7) << self.shift(*tag)?)
        };
        self.0.iter().filter_map(mode).fold(0, |all, some| all | some)
    }

    /// The ACL after a chmod to `mode`.
    ///
    /// Source: fs/posix_acl.c, `__posix_acl_chmod_masq`.
    pub fn with_mode(&self, mode: u32) -> Self {
        let mut acl = self.clone();
        for (tag, permissions, _) in &mut acl.0 {
            if let Some(shift) = self.shift(*tag) {
                *permissions = u16::try_from((mode >> shift) & 0o7).unwrap_or(0);
            }
        }
        acl
    }

    /// Where in a mode an entry stands, if it does.
    fn shift(&self, tag: u16) -> Option<u32> {
        let has_mask = self.0.iter().any(|(tag, ..)| *tag == MASK);
        match tag {
            USER_OBJ => Some(6),
            MASK => Some(3),
            GROUP_OBJ if !has_mask => Some(3),
            OTHER => Some(0),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acl_and_mode_say_the_same() {
        let named = Acl(vec![
            (USER_OBJ, 7, 0),
            (0x02, 6, 9),
            (GROUP_OBJ, 5, 0),
            (MASK, 4, 0),
            (OTHER, 1, 0),
        ]);
        assert_eq!(named.permissions(), 0o741, "the group's are the mask's");
        let changed = named.with_mode(0o620);
        assert_eq!(changed.permissions(), 0o620);
        assert_eq!(changed.0[1..3], [(0x02, 6, 9), (GROUP_OBJ, 5, 0)], "the others keep theirs");
        let plain = Acl(vec![(USER_OBJ, 7, 0), (GROUP_OBJ, 5, 0), (OTHER, 0, 0)]);
        assert_eq!((plain.permissions(), plain.is_extended()), (0o750, false));
        assert_eq!(plain.with_mode(0o604).permissions(), 0o604);
    }

    #[test]
    fn malformed_acl_is_none() {
        for bad in [b"".as_slice(), b"\x02\0\0\0", b"\x01\0\0\0\0\0\0\0\0\0\0\0", b"\x02\0\0\0\0"] {
            assert_eq!(Acl::parse(bad), None, "{}", bad.escape_ascii());
        }
    }
}
