//! A layer, or a root, as a tar archive: pax, with attributes, holes and hard links.

use std::collections::HashMap;
use std::io::{self, Write};

use tar::{EntryType, Header};

use super::{ExportError, Object, Target, parent, writing};
use crate::filesystem::{Kind, NodeId};
use crate::layer::mark::ACLS_OF_XFS;
use crate::layer::owner::unpack_device;

/// tar: everything is in blocks of this size.
const BLOCK_BYTES: usize = 512;

/// How much is moved at once.
const PIECE_BYTES: usize = 1 << 20;

/// Marks of a layer, as AUFS, and containers since, have them.
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Writes an archive.
#[derive(Debug)]
pub struct TarTarget<W> {
    to: W,
    /// The first path of each object that has several.
    linked: HashMap<NodeId, Vec<u8>>,
}

impl<W: Write> TarTarget<W> {
    /// Begins an archive.
    pub fn new(to: W) -> Self {
        Self { to, linked: HashMap::new() }
    }

    /// A header with its pax records; gives no data.
    fn header(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        let mut records = Records::default();
        let mut header = Header::new_ustar();
        records.add("path", entry.path);
        if !entry.link.is_empty() {
            records.add("linkpath", entry.link);
        }
        records.add("uid", entry.uid.to_string().as_bytes());
        records.add("gid", entry.gid.to_string().as_bytes());
        records.add("mtime", entry.mtime.as_bytes());
        if entry.size >= 8 << 30 {
            records.add("size", entry.size.to_string().as_bytes());
        }
        records.0.extend_from_slice(&entry.records.0);
        let mut about = Header::new_ustar();
        about.set_entry_type(EntryType::XHeader);
        write_name(&mut about, b"pax");
        about.set_size(records.0.len() as u64);
        self.put(&mut about)?;
        self.to.write_all(&records.0)?;
        self.pad(records.0.len() as u64)?;
        header.set_entry_type(entry.kind);
        write_name(&mut header, entry.path);
        header.set_mode(entry.mode & 0o7777);
        header.set_uid(entry.uid.into());
        header.set_gid(entry.gid.into());
        header.set_size(entry.size);
        let (major, minor) = unpack_device(entry.rdev);
        header.set_device_major(major)?;
        header.set_device_minor(minor)?;
        self.put(&mut header)
    }

    fn put(&mut self, header: &mut Header) -> io::Result<()> {
        header.set_cksum();
        self.to.write_all(header.as_bytes())
    }

    fn pad(&mut self, bytes: u64) -> io::Result<()> {
        let over = bytes.next_multiple_of(BLOCK_BYTES as u64) - bytes;
        self.to.write_all(&[0; BLOCK_BYTES][..usize::try_from(over).unwrap_or(0)])
    }

    fn mark(&mut self, path: &[u8]) -> Result<(), ExportError> {
        let entry = Entry { path, ..Entry::default() };
        self.header(&entry).map_err(writing(path))
    }

    fn file(&mut self, object: &Object<'_>, mut entry: Entry<'_>) -> Result<(), ExportError> {
        let size = object.attributes.size;
        let failed = writing::<io::Error>;
        let segments = object.segments()?;
        let stored: u64 = segments.iter().map(|(_, bytes)| bytes).sum();
        let mut map = Vec::new();
        if stored < size {
            // GNU tar, "PAX Format, Version 1.0": the map is decimal lines before the data.
            // The last one ends the file.
            let end = (size, 0);
            map = format!("{}\n", segments.len() + 1).into_bytes();
            for (offset, bytes) in segments.iter().chain([&end]) {
                map.extend_from_slice(format!("{offset}\n{bytes}\n").as_bytes());
            }
            map.resize(map.len().next_multiple_of(BLOCK_BYTES), 0);
            entry.records.add("GNU.sparse.major", b"1");
            entry.records.add("GNU.sparse.minor", b"0");
            entry.records.add("GNU.sparse.name", object.path);
            entry.records.add("GNU.sparse.realsize", size.to_string().as_bytes());
        }
        entry.size = map.len() as u64 + stored;
        self.header(&entry).map_err(failed(object.path))?;
        self.to.write_all(&map).map_err(failed(object.path))?;
        let mut piece = vec![0; PIECE_BYTES];
        for (offset, bytes) in segments {
            let mut done = 0;
            while done < bytes {
                let size = usize::try_from(bytes - done).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
                object.read(offset + done, &mut piece[..size])?;
                self.to.write_all(&piece[..size]).map_err(failed(object.path))?;
                done += size as u64;
            }
        }
        self.pad(entry.size).map_err(failed(object.path))
    }
}

impl<W: Write> Target for TarTarget<W> {
    fn object(&mut self, object: &Object<'_>) -> Result<(), ExportError> {
        let shown = &object.attributes;
        let dot: &[u8] = if object.path.is_empty() { b"." } else { object.path };
        let slashed;
        let path = if shown.kind() == Kind::Directory {
            slashed = [dot, b"/"].concat();
            &slashed
        } else {
            dot
        };
        let first = match shown.kind() {
            Kind::Directory => None,
            _ if shown.nlink > 1 => self.linked.get(&shown.node).cloned(),
            _ => None,
        };
        if shown.kind() != Kind::Directory && shown.nlink > 1 && first.is_none() {
            self.linked.insert(shown.node, path.to_vec());
        }
        let mut records = Records::default();
        // A guest's own of such a name would be an ACL, or damage, where this is unpacked on xfs.
        for (name, value) in object.xattrs.iter().filter(|(name, _)| !name.starts_with(ACLS_OF_XFS))
        {
            records.xattr(name, value);
        }
        let mut entry = Entry {
            kind: EntryType::Regular,
            path,
            link: &object.target,
            mode: shown.mode,
            uid: shown.uid,
            gid: shown.gid,
            mtime: time(shown.mtime.seconds, shown.mtime.nanoseconds),
            size: 0,
            rdev: shown.rdev,
            records,
        };
        if let Some(first) = &first {
            (entry.kind, entry.link, entry.records) = (EntryType::Link, first, Records::default());
            return self.header(&entry).map_err(writing(path));
        }
        entry.kind = match shown.kind() {
            Kind::File => return self.file(object, entry),
            Kind::Directory => EntryType::Directory,
            Kind::Symlink => EntryType::Symlink,
            Kind::Fifo => EntryType::Fifo,
            Kind::CharDevice => EntryType::Char,
            Kind::BlockDevice => EntryType::Block,
            Kind::Socket => {
                log::warn!(
                    "export: /{} is a socket, which no archive can hold",
                    path.escape_ascii()
                );
                return Ok(());
            }
        };
        self.header(&entry).map_err(writing(path))
    }

    fn whiteout(&mut self, path: &[u8]) -> Result<(), ExportError> {
        let above = parent(path);
        let name = path[above.len()..].strip_prefix(b"/").unwrap_or(&path[above.len()..]);
        let slash: &[u8] = if above.is_empty() { b"" } else { b"/" };
        self.mark(&[above, slash, WHITEOUT, name].concat())
    }

    fn opaque(&mut self, path: &[u8]) -> Result<(), ExportError> {
        self.mark(&[path, b"/", OPAQUE].concat())
    }

    fn finish(&mut self) -> Result<(), ExportError> {
        let end = self.to.write_all(&[0; 2 * BLOCK_BYTES]).and_then(|()| self.to.flush());
        end.map_err(writing(b""))
    }
}

/// What a header says.
struct Entry<'a> {
    kind: EntryType,
    path: &'a [u8],
    link: &'a [u8],
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: String,
    size: u64,
    rdev: u32,
    records: Records,
}

impl Default for Entry<'_> {
    fn default() -> Self {
        Self {
            kind: EntryType::Regular,
            path: b"",
            link: b"",
            mode: 0o600,
            uid: 0,
            gid: 0,
            mtime: "0".to_owned(),
            size: 0,
            rdev: 0,
            records: Records::default(),
        }
    }
}

/// pax records, as they stand in an archive.
#[derive(Default)]
struct Records(Vec<u8>);

impl Records {
    /// `LENGTH KEY=VALUE\n`, the length counting itself.
    fn add(&mut self, key: &str, value: &[u8]) {
        let rest = 1 + key.len() + 1 + value.len() + 1;
        let mut length = rest + 1;
        while rest + length.to_string().len() != length {
            length += 1;
        }
        self.0.extend_from_slice(format!("{length} {key}=").as_bytes());
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }

    /// GNU tar, src/xheader.c, `xattr_encode_keyword`.
    fn xattr(&mut self, name: &[u8], value: &[u8]) {
        // Names of attributes are text on Linux, but for what a guest makes of user.*.
        let Ok(name) = std::str::from_utf8(name) else {
            log::warn!("export: the attribute {} has no name of text", name.escape_ascii());
            return;
        };
        let name = name.replace('%', "%25").replace('=', "%3D");
        self.add(&format!("SCHILY.xattr.{name}"), value);
    }
}

/// What fits of a name; the whole one is in a record.
fn write_name(header: &mut Header, path: &[u8]) {
    let field = &mut header.as_old_mut().name;
    let bytes = path.len().min(field.len());
    field[..bytes].copy_from_slice(&path[..bytes]);
}

/// Seconds with a fraction, which counts away from zero.
fn time(seconds: i64, nanoseconds: u32) -> String {
    match (seconds, nanoseconds) {
        (seconds, 0) => seconds.to_string(),
        (seconds, some) if seconds >= 0 => format!("{seconds}.{some:09}"),
        (seconds, some) => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_records_are_written_as_they_are_read() {
        for (seconds, nanoseconds, text) in [
            (0, 0, "0"),
            (12, 5, "12.000000005"),
            (-1, 0, "-1"),
            (-2, 750_000_000, "-1.250000000"),
            (-1, 750_000_000, "-0.250000000"),
        ] {
            assert_eq!(time(seconds, nanoseconds), text);
        }
        for length in 0..1200 {
            let mut records = Records::default();
            records.add("key", &vec![b'x'; length]);
            let told: usize =
                String::from_utf8_lossy(&records.0).split(' ').next().unwrap().parse().unwrap();
            assert_eq!(told, records.0.len());
        }
    }
}
