//! The arguments of one message: structures, names and extensions, read once from front to back.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::abi;
use crate::filesystem::{Errno, Name};

/// The longest target of a symbolic link in bytes (limits.h: `PATH_MAX` less its NUL).
const TARGET_BYTES_MAX: usize = 4095;
/// The longest name of an extended attribute in bytes (limits.h: `XATTR_NAME_MAX`).
const XATTR_NAME_BYTES_MAX: usize = 255;

/// What is left of a message's arguments. Nothing in it is believed before it was checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next structure. Errors: `EINVAL` if the message is too short for it.
    pub(super) fn take<T>(&mut self) -> Result<T, Errno>
    where
        T: FromBytes + Immutable,
    {
        let (value, rest) = T::read_from_prefix(self.0).map_err(|_| Errno::INVAL)?;
        self.0 = rest;
        Ok(value)
    }

    /// A structure of which an older kernel sends `compat_bytes`; the rest counts as zero.
    pub(super) fn take_compat<T>(&mut self, compat_bytes: usize) -> Result<T, Errno>
    where
        T: FromBytes + IntoBytes + Immutable,
    {
        let sent = size_of::<T>().min(compat_bytes);
        let (bytes, rest) = self.0.split_at_checked(sent).ok_or(Errno::INVAL)?;
        let mut value = T::new_zeroed();
        for (to, from) in value.as_mut_bytes().iter_mut().zip(bytes) {
            *to = *from;
        }
        self.0 = rest;
        Ok(value)
    }

    /// The bytes up to the next NUL. Errors: `EINVAL` without one.
    fn string(&mut self) -> Result<&'a [u8], Errno> {
        let end = self.0.iter().position(|&byte| byte == 0).ok_or(Errno::INVAL)?;
        let (string, rest) = self.0.split_at(end);
        self.0 = rest.get(1..).unwrap_or_default();
        Ok(string)
    }

    /// The next of several strings as a name.
    pub(super) fn name(&mut self) -> Result<Name<'a>, Errno> {
        Name::new(self.string()?)
    }

    /// All that is left as one string: its NUL must be the message's last byte and its only one.
    pub(super) fn last_string(self) -> Result<&'a [u8], Errno> {
        match self.0.split_last() {
            Some((0, string)) if !string.contains(&0) => Ok(string),
            _ => Err(Errno::INVAL),
        }
    }

    /// All that is left as one name.
    pub(super) fn last_name(self) -> Result<Name<'a>, Errno> {
        Name::new(self.last_string()?)
    }

    /// All that is left as the target of a symbolic link.
    ///
    /// Errors: `ENOENT` for an empty one and `ENAMETOOLONG` above 4095 bytes, as symlink(2).
    pub(super) fn last_target(self) -> Result<&'a [u8], Errno> {
        match self.last_string()? {
            [] => Err(Errno::NOENT),
            target if target.len() > TARGET_BYTES_MAX => Err(Errno::NAMETOOLONG),
            target => Ok(target),
        }
    }

    /// The next string as the name of an extended attribute.
    pub(super) fn xattr_name(&mut self) -> Result<&'a [u8], Errno> {
        checked_xattr_name(self.string()?)
    }

    /// All that is left as the name of an extended attribute.
    pub(super) fn last_xattr_name(self) -> Result<&'a [u8], Errno> {
        checked_xattr_name(self.last_string()?)
    }

    /// All that is left, which must be `size` bytes.
    pub(super) fn last_bytes(self, size: usize) -> Result<&'a [u8], Errno> {
        if self.0.len() == size { Ok(self.0) } else { Err(Errno::INVAL) }
    }

    /// All that is left.
    pub(super) const fn rest(self) -> &'a [u8] {
        self.0
    }
}

/// Errors: `ERANGE` for an empty name or one above 255 bytes, as setxattr(2).
fn checked_xattr_name(name: &[u8]) -> Result<&[u8], Errno> {
    match name.len() {
        1..=XATTR_NAME_BYTES_MAX => Ok(name),
        _ => Err(Errno::RANGE),
    }
}

/// The supplementary group among the extensions of a birth, where there is one. Extensions of
/// other types, such as security contexts, are stepped over.
///
/// Errors: `EINVAL` if their sizes do not add up to what the header promised.
///
/// Source: fuse.h, `struct fuse_ext_header` and `struct fuse_supp_groups`.
pub(super) fn supplementary_group(extensions: &[u8]) -> Result<Option<u32>, Errno> {
    let mut rest = Body::new(extensions);
    let mut group = None;
    while !rest.0.is_empty() {
        let mut extension = rest;
        let header: abi::ExtHeader = extension.take()?;
        let size = usize::try_from(header.size).map_err(|_| Errno::INVAL)?;
        if size < size_of::<abi::ExtHeader>() || !size.is_multiple_of(8) {
            return Err(Errno::INVAL);
        }
        let (this, next) = rest.0.split_at_checked(size).ok_or(Errno::INVAL)?;
        if header.kind == abi::EXT_GROUPS {
            group = first_group(this)?;
        }
        rest = Body::new(next);
    }
    Ok(group)
}

/// The first of the groups in one `FUSE_EXT_GROUPS` extension; kernels send at most one.
fn first_group(extension: &[u8]) -> Result<Option<u32>, Errno> {
    let mut body = Body::new(extension);
    let _header: abi::ExtHeader = body.take()?;
    let count: u32 = body.take()?;
    if count == 0 { Ok(None) } else { body.take().map(Some) }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes as _;

    use super::*;

    fn extension(kind: u32, size: u32, payload: &[u32]) -> Vec<u8> {
        let header = abi::ExtHeader { size, kind };
        [header.as_bytes(), payload.as_bytes()].concat()
    }

    #[test]
    fn supplementary_group_is_found_behind_other_extensions() {
        let groups = extension(abi::EXT_GROUPS, 16, &[1, 44]);
        let context = extension(1, 24, &[0; 4]);
        assert_eq!(supplementary_group(&[]), Ok(None));
        assert_eq!(supplementary_group(&groups), Ok(Some(44)));
        assert_eq!(supplementary_group(&[context, groups].concat()), Ok(Some(44)));
        let none = extension(abi::EXT_GROUPS, 16, &[0, 44]);
        assert_eq!(supplementary_group(&none), Ok(None));
    }

    #[test]
    fn extension_that_lies_about_its_size_is_refused() {
        let rows = [
            ("empty", extension(abi::EXT_GROUPS, 0, &[1, 44])),
            ("smaller than its header", extension(abi::EXT_GROUPS, 7, &[1, 44])),
            ("not in units of 8", extension(abi::EXT_GROUPS, 12, &[1, 44])),
            ("beyond the message", extension(abi::EXT_GROUPS, 24, &[1, 44])),
            ("without its count", extension(abi::EXT_GROUPS, 8, &[])),
            ("half a header", vec![0; 4]),
        ];
        for (what, bytes) in rows {
            assert_eq!(supplementary_group(&bytes), Err(Errno::INVAL), "{what}");
        }
    }
}
