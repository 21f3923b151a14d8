//! A tar archive, read entry by entry: ustar, GNU and pax, with sparse files in each of their forms.
//!
//! Headers are decoded by the `tar` crate. The walk from one to the next is ours, since the crate
//! takes sizes and names from pax records as it cuts them, at newlines (see [`super::pax`]).

use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::pax::Pax;
use crate::filesystem::Timestamp;
use crate::layer::mark::ACLS_OF_XFS;

/// tar: everything is in blocks of this size.
const BLOCK_BYTES: usize = 512;

/// What a header of names and records may take: pax headers of files with 64 KiB attributes fit.
const RECORDS_BYTES_MAX: u64 = 4 << 20;

/// A sparse file's segments; GNU tar writes one for each stretch of data.
const SEGMENTS_MAX: usize = 1 << 22;

/// Why an archive cannot be read further.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It is none.
    #[error("{0}")]
    NoArchive(String),
    /// It ends too early, or cannot be read.
    #[error("reading the archive: {0}")]
    Read(#[from] io::Error),
    /// Something in it makes no sense.
    #[error("{entry}: {reason}; expected an archive by GNU tar, bsdtar or another pax writer")]
    Malformed {
        /// The entry it is about.
        entry: String,
        /// What is wrong.
        reason: &'static str,
    },
}

/// What an entry is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// A further name of the entry at this path.
    Link(Vec<u8>),
    /// A character device.
    CharDevice(u32, u32),
    /// A block device.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

/// One object of an archive, as its headers say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// As it is written; nothing of it was checked.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the contents.
    pub mtime: Timestamp,
    /// Last access, where it is told.
    pub atime: Option<Timestamp>,
    /// Size in bytes of a file, holes counted.
    pub size: u64,
    /// Where the data in the archive belongs, of a sparse file: offset and size.
    pub segments: Option<Vec<(u64, u64)>>,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Access and default ACL, in text.
    pub acls: [Option<Vec<u8>>; 2],
}

/// An archive that is being read.
pub struct Archive<R> {
    from: R,
    /// What headers for all entries said.
    global: Pax,
    /// Data of the current entry that nobody has read yet, and the padding behind it.
    left: u64,
    padding: u64,
    entries: u64,
}

impl<R: Read> Archive<R> {
    /// Reads from the start of an archive.
    pub fn new(from: R) -> Self {
        Self { from, global: Pax::default(), left: 0, padding: 0, entries: 0 }
    }

    /// The next entry; `None` at the end. What was not read of the last one's data is passed over.
    pub fn next(&mut self) -> Result<Option<Entry>, ArchiveError> {
        self.pass_over()?;
        let mut pax = self.global.clone();
        let (mut long_path, mut long_link) = (None, None);
        loop {
            let Some(header) = self.header()? else { return Ok(None) };
            let kind = header.entry_type();
            let malformed = |reason| ArchiveError::Malformed {
                entry: header.path_bytes().escape_ascii().to_string(),
                reason,
            };
            let size = header.entry_size().map_err(|_| malformed("its size is no number"))?;
            match kind {
                EntryType::XGlobalHeader => {
                    let records = self.records(size)?;
                    self.global.take(&records).ok_or_else(|| malformed("broken pax records"))?;
                    pax.take(&records).ok_or_else(|| malformed("broken pax records"))?;
                }
                EntryType::XHeader => {
                    let records = self.records(size)?;
                    pax.take(&records).ok_or_else(|| malformed("broken pax records"))?;
                }
                EntryType::GNULongName => long_path = Some(text(self.records(size)?)),
                EntryType::GNULongLink => long_link = Some(text(self.records(size)?)),
                _ => {
                    let names = (long_path, long_link);
                    return self.entry(&header, &pax, names).map(Some);
                }
            }
        }
    }

    /// Reads data of the current entry; 0 at its end.
    pub fn read(&mut self, into: &mut [u8]) -> Result<usize, ArchiveError> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(into.len());
        if most == 0 {
            return Ok(0);
        }
        let bytes = loop {
            match self.from.read(&mut into[..most]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => break done?,
            }
        };
        if bytes == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        self.left -= bytes as u64;
        Ok(bytes)
    }

    fn pass_over(&mut self) -> Result<(), ArchiveError> {
        let rest = self.left + self.padding;
        let passed = io::copy(&mut (&mut self.from).take(rest), &mut io::sink())?;
        if passed != rest {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    /// The next header; `None` at the blocks of zeros that end an archive.
    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let mut block = [0; BLOCK_BYTES];
        let read = read_whole(&mut self.from, &mut block)?;
        if read == 0 && self.entries > 0 || (read == BLOCK_BYTES && block == [0; BLOCK_BYTES]) {
            // The writer of a pipe must not be cut off from what it pads with.
            io::copy(&mut self.from, &mut io::sink())?;
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block);
        if read < BLOCK_BYTES || !is_intact(header) {
            return Err(self.no_header(&block[..read]));
        }
        self.entries += 1;
        Ok(Some(header.clone()))
    }

    fn no_header(&self, block: &[u8]) -> ArchiveError {
        const COMPRESSED: [(&[u8], &str); 4] = [
            (b"\x1f\x8b", "gzip -dc"),
            (b"\xfd7zXZ", "xz -dc"),
            (b"\x28\xb5\x2f\xfd", "zstd -dc"),
            (b"BZh", "bzip2 -dc"),
        ];
        let compressed = COMPRESSED.iter().find(|(magic, _)| block.starts_with(magic));
        ArchiveError::NoArchive(match compressed {
            Some((_, with)) if self.entries == 0 => {
                format!(
                    "the archive is compressed; unpack it first: {with} FILE | thinroot import -"
                )
            }
            _ if self.entries == 0 => "this is no tar archive".to_owned(),
            _ => format!("the archive is damaged behind its header number {}", self.entries),
        })
    }

    /// The data of a header that is about the next one.
    fn records(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        if size > RECORDS_BYTES_MAX {
            return Err(ArchiveError::NoArchive(format!(
                "a header of {size} bytes is about one entry; expected at most {RECORDS_BYTES_MAX}"
            )));
        }
        self.open_data(size);
        let mut records = vec![0; usize::try_from(size).unwrap_or(0)];
        if read_whole(&mut self.from, &mut records)? < records.len() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        self.left = 0;
        self.pass_over()?;
        Ok(records)
    }

    fn open_data(&mut self, size: u64) {
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK_BYTES as u64) - size;
    }

    fn entry(
        &mut self,
        header: &Header,
        pax: &Pax,
        (long_path, long_link): (Option<Vec<u8>>, Option<Vec<u8>>),
    ) -> Result<Entry, ArchiveError> {
        let own = |key| pax.get(key).map(<[u8]>::to_vec);
        let path = own("GNU.sparse.name").or_else(|| own("path")).or(long_path);
        let path = path.unwrap_or_else(|| header.path_bytes().into_owned());
        let malformed =
            |reason| ArchiveError::Malformed { entry: path.escape_ascii().to_string(), reason };
        let link = own("linkpath").or(long_link);
        let link = link.or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
        let device = || {
            let number = |found: io::Result<Option<u32>>| found.ok().flatten();
            number(header.device_major()).zip(number(header.device_minor()))
        };
        let kind = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => EntryKind::File,
            EntryType::Directory => EntryKind::Directory,
            EntryType::Symlink => EntryKind::Symlink(link.unwrap_or_default()),
            EntryType::Link => EntryKind::Link(link.unwrap_or_default()),
            EntryType::Fifo => EntryKind::Fifo,
            EntryType::Char | EntryType::Block => {
                let (major, minor) = device().ok_or_else(|| malformed("no device number"))?;
                match header.entry_type() {
                    EntryType::Char => EntryKind::CharDevice(major, minor),
                    _ => EntryKind::BlockDevice(major, minor),
                }
            }
            _ => return Err(malformed("an entry of a kind that no file system has")),
        };
        // A name of the oldest tars is a directory's by its end.
        let is_old_directory = kind == EntryKind::File && path.ends_with(b"/");
        let kind = if is_old_directory { EntryKind::Directory } else { kind };
        let id = |key, found: io::Result<u64>| {
            let id = pax.number(key).or(found.ok()).and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| malformed("an owner that is no 32-bit number"))
        };
        let (uid, gid) = (id("uid", header.uid())?, id("gid", header.gid())?);
        let mode = header.mode().map_err(|_| malformed("its mode is no number"))? & 0o7777;
        let stored = match pax.number("size") {
            Some(size) => size,
            None => header.entry_size().map_err(|_| malformed("its size is no number"))?,
        };
        // Only a file's header has data behind it, whatever size others claim.
        self.open_data(if kind == EntryKind::File { stored } else { 0 });
        let time = |(seconds, nanoseconds)| Timestamp { seconds, nanoseconds };
        let header_time = || header.mtime().ok().and_then(|seconds| i64::try_from(seconds).ok());
        let mtime = pax.time("mtime").or_else(|| header_time().map(|seconds| (seconds, 0)));
        let (size, segments) = match self.map(header, pax) {
            Ok(None) => (stored, None),
            Ok(Some((size, segments))) => (size, Some(segments)),
            Err(reason) => return Err(malformed(reason)),
        };
        if let Some(segments) = &segments
            && !is_map(segments, size, self.left)
        {
            return Err(malformed("a sparse file whose map does not fit its size"));
        }
        Ok(Entry {
            kind,
            mode,
            uid,
            gid,
            mtime: mtime.map(time).unwrap_or_default(),
            atime: pax.time("atime").map(time),
            size,
            segments,
            // An ACL of an xfs that the tree was on: it is told as an ACL as well.
            xattrs: pax.xattrs().filter(|(name, _)| !name.starts_with(ACLS_OF_XFS)).collect(),
            acls: ["SCHILY.acl.access", "SCHILY.acl.default"].map(own),
            path,
        })
    }

    /// The size and the segments of a sparse file, in whichever form they are written.
    fn map(&mut self, header: &Header, pax: &Pax) -> Result<Option<Map>, &'static str> {
        if header.entry_type() == EntryType::GNUSparse {
            return self.old_map(header).map(Some);
        }
        let Some(numbers) = pax.sparse() else { return Ok(None) };
        let size = pax.number("GNU.sparse.realsize").or(pax.number("GNU.sparse.size"));
        let size = size.ok_or("a sparse file without a size")?;
        let numbers = match numbers {
            Some(numbers) => numbers,
            None => self.map_in_data()?,
        };
        let (pairs, rest) = numbers.as_chunks::<2>();
        if !rest.is_empty() || pairs.len() > SEGMENTS_MAX {
            return Err("a sparse file with half a map");
        }
        Ok(Some((size, pairs.iter().map(|[offset, bytes]| (*offset, *bytes)).collect())))
    }

    /// GNU tar's old form: four segments in the header, more in blocks behind it.
    fn old_map(&mut self, header: &Header) -> Result<Map, &'static str> {
        const BAD: &str = "a sparse file with a broken map";
        let gnu = header.as_gnu().ok_or(BAD)?;
        let size = gnu.real_size().map_err(|_| BAD)?;
        let mut segments = Vec::new();
        let mut take = |rows: &[GnuSparseHeader]| {
            for row in rows.iter().filter(|row| !row.is_empty()) {
                segments.push((row.offset().map_err(|_| BAD)?, row.length().map_err(|_| BAD)?));
            }
            if segments.len() > SEGMENTS_MAX { Err(BAD) } else { Ok(()) }
        };
        take(&gnu.sparse)?;
        let mut is_extended = gnu.is_extended();
        while is_extended {
            let mut more = GnuExtSparseHeader::new();
            let read = read_whole(&mut self.from, more.as_mut_bytes()).map_err(|_| BAD)?;
            if read < BLOCK_BYTES {
                return Err(BAD);
            }
            take(more.sparse())?;
            is_extended = more.is_extended();
        }
        Ok((size, segments))
    }

    /// GNU tar's form 1.0: decimal lines at the start of the data, a count first, padded to a block.
    fn map_in_data(&mut self) -> Result<Vec<u64>, &'static str> {
        const BAD: &str = "a sparse file with a broken map";
        let (mut numbers, mut wanted, mut digits) = (Vec::new(), None, Vec::new());
        while wanted != Some(numbers.len()) {
            let mut block = [0; BLOCK_BYTES];
            let mut read = 0;
            while read < BLOCK_BYTES {
                match self.read(&mut block[read..]) {
                    Ok(0) | Err(_) => return Err(BAD),
                    Ok(bytes) => read += bytes,
                }
            }
            for byte in block {
                match byte {
                    _ if wanted == Some(numbers.len()) => break,
                    b'0'..=b'9' if digits.len() < 20 => digits.push(byte),
                    b'\n' => {
                        let text = std::str::from_utf8(&digits).map_err(|_| BAD)?;
                        let number: u64 = text.parse().map_err(|_| BAD)?;
                        digits.clear();
                        if wanted.is_some() {
                            numbers.push(number);
                        } else {
                            let pairs = usize::try_from(number).map_err(|_| BAD)?;
                            let numbers = pairs.checked_mul(2);
                            wanted = Some(numbers.filter(|_| pairs <= SEGMENTS_MAX).ok_or(BAD)?);
                        }
                    }
                    _ => return Err(BAD),
                }
            }
        }
        Ok(numbers)
    }
}

/// A sparse file's size, and where its data belongs.
type Map = (u64, Vec<(u64, u64)>);

/// Whether segments are in order, within the file, and have the data that is there.
fn is_map(segments: &[(u64, u64)], size: u64, stored: u64) -> bool {
    let (mut end, mut bytes) = (0, 0_u64);
    for (offset, length) in segments {
        let Some(next) = offset.checked_add(*length) else { return false };
        if *offset < end || next > size {
            return false;
        }
        (end, bytes) = (next, bytes.saturating_add(*length));
    }
    bytes == stored
}

/// The sum of a header's bytes, its own field taken as spaces; old tars summed signed ones.
fn is_intact(header: &Header) -> bool {
    let Ok(told) = header.cksum() else { return false };
    let bytes = header.as_bytes();
    let unsigned: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
    let own: u32 = bytes[148..156].iter().map(|byte| u32::from(*byte)).sum();
    let high = bytes.iter().filter(|byte| **byte > 127).count();
    let signed = i64::from(unsigned) - i64::try_from(high).unwrap_or(0) * 256;
    unsigned - own + 256 == told || signed - i64::from(own) + 256 == i64::from(told)
}

/// A name as GNU's long headers have it.
fn text(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
    bytes
}

/// Fills `into` and says how many bytes there were before the end.
fn read_whole(from: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < into.len() {
        match from.read(&mut into[done..]) {
            Ok(0) => break,
            Ok(bytes) => done += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
