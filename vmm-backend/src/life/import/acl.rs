//! ACLs as tar writes them, in text, to the form of the extended attribute. Pure.

/// How long an ACL is that has the entries of a mode alone: owner, group and others.
pub const BARE_BYTES: usize = 4 + 3 * 8;

/// The extended attribute's bytes for `user::rwx,user:1000:r-x,…`; `None` if the text cannot be
/// read, or names somebody by a name without a number.
///
/// Source: linux/posix_acl_xattr.h (version 2; tag, permissions and id, little-endian); star(4),
/// `SCHILY.acl.access`, where a number may stand behind a name: `user:joe:rwx:1000`.
pub fn to_xattr(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    let mut entries = Vec::new();
    let lines = text.split([',', '\n']).map(|line| line.split('#').next().unwrap_or("").trim());
    for line in lines.filter(|line| !line.is_empty()) {
        let fields: Vec<_> = line.split(':').map(str::trim).collect();
        let (kind, who, rights) = match fields.as_slice() {
            // mask and other may go without the empty field.
            [kind @ ("mask" | "m" | "other" | "o"), rights] => (*kind, "", *rights),
            [kind, who, rights] => (*kind, *who, *rights),
            [kind, _, rights, number] => (*kind, *number, *rights),
            _ => return None,
        };
        let id: Option<u32> = if who.is_empty() { None } else { Some(who.parse().ok()?) };
        // linux/posix_acl.h: ACL_USER_OBJ and so on.
        let tag: u16 = match (kind, id) {
            ("user" | "u", None) => 0x01,
            ("user" | "u", Some(_)) => 0x02,
            ("group" | "g", None) => 0x04,
            ("group" | "g", Some(_)) => 0x08,
            ("mask" | "m", None) => 0x10,
            ("other" | "o", None) => 0x20,
            _ => return None,
        };
        entries.push((tag, permissions(rights)?, id.unwrap_or(u32::MAX)));
    }
    entries.sort_by_key(|(tag, _, id)| (*tag, *id));
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, rights, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(rights.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    Some(bytes)
}

fn permissions(text: &str) -> Option<u16> {
    let mut rights = 0;
    for letter in text.chars() {
        rights |= match letter {
            'r' => 4,
            'w' => 2,
            'x' => 1,
            '-' => 0,
            _ => return None,
        };
    }
    Some(rights)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_becomes_the_attributes_bytes() {
        let entry = |tag: u16, rights: u16, id: u32| {
            [&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat()
        };
        let none = u32::MAX;
        let expected = [
            vec![2, 0, 0, 0],
            entry(1, 6, none),
            entry(2, 5, 1000),
            entry(4, 4, none),
            entry(16, 7, none),
            entry(32, 0, none),
        ]
        .concat();
        for text in [
            "user::rw-,user:1000:r-x,group::r--,mask::rwx,other::---",
            "user::rw-\nuser:joe:r-x:1000\ngroup::r--\nmask:rwx\nother:---\n",
            "other::---,mask::rwx,group::r--,user:1000:r-x,user::rw-",
        ] {
            assert_eq!(to_xattr(text.as_bytes()).as_ref(), Some(&expected), "{text}");
        }
        for bad in ["user:joe:rwx", "user::rwz", "door::rwx", "user"] {
            assert_eq!(to_xattr(bad.as_bytes()), None, "{bad}");
        }
    }
}
