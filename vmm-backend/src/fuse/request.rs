//! Bytes to typed requests: no I/O, and no name passes unchecked.

use zerocopy::FromBytes as _;

use super::abi::{self, Opcode};
use super::arguments::{
    OFFSET_MAX, PERMISSION_BITS, allocate, bytes, offset, rename_flags, seek, set_attributes, write,
};
use super::body::{Body, supplementary_group};
use super::init::Agreed;
pub use super::operation::Operation;
use crate::filesystem::{
    Caller, CopyRange, Errno, Kind, Name, NewKind, NewObject, NodeId, Privileges, Rename,
    RenameFlags, SetXattr,
};

/// stat.h: `S_IFMT`.
const KIND_BITS: u32 = 0o170_000;
/// limits.h: `XATTR_SIZE_MAX`.
const XATTR_VALUE_BYTES_MAX: u32 = 65_536;

/// One message, cut where its header says and not beyond what came.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The header as the guest wrote it.
    pub header: abi::InHeader,
    body: Body<'a>,
    extensions: &'a [u8],
}

impl<'a> Request<'a> {
    /// Cuts `message`, which begins with `header`.
    ///
    /// A WRITE's data is not part of `message`, so its length is checked against the data source
    /// by who holds that; a BATCH_FORGET counts as far as it came.
    ///
    /// Errors: `EINVAL` if the header promises more than came, or less than itself.
    pub fn cut(header: abi::InHeader, message: &'a [u8]) -> Result<Self, Errno> {
        let mut length = usize::try_from(header.len).map_err(|_| Errno::INVAL)?;
        if let Some(Opcode::Write | Opcode::BatchForget) = Opcode::from_wire(header.opcode) {
            length = length.min(message.len());
        }
        let body = message.get(abi::IN_HEADER_BYTES..length).ok_or(Errno::INVAL)?;
        let extension_bytes = usize::from(header.total_extlen) * 8;
        let at = body.len().checked_sub(extension_bytes).ok_or(Errno::INVAL)?;
        let (body, extensions) = body.split_at(at);
        Ok(Self { header, body: Body::new(body), extensions })
    }

    /// Who asks.
    pub const fn caller(&self) -> Caller {
        Caller { uid: self.header.uid, gid: self.header.gid, pid: self.header.pid }
    }

    /// The node the request is about.
    pub const fn node(&self) -> NodeId {
        NodeId(self.header.nodeid)
    }

    /// Decodes the arguments; `agreed` is `None` before INIT.
    ///
    /// Errors: `EIO` for anything but INIT before INIT; `EINVAL` for arguments too short, too
    /// long or out of range; `ENAMETOOLONG`, `ENOENT`, `ERANGE` and `E2BIG` as the system call
    /// behind the request gives them.
    pub fn parse(&self, agreed: Option<Agreed>) -> Result<Operation<'a>, Errno> {
        let Some(opcode) = Opcode::from_wire(self.header.opcode) else {
            return Ok(Operation::Unsupported);
        };
        if opcode == Opcode::Init {
            return self.init();
        }
        self.operation(opcode, agreed.ok_or(Errno::IO)?)
    }

    /// One row per operation.
    fn operation(&self, opcode: Opcode, agreed: Agreed) -> Result<Operation<'a>, Errno> {
        let mut body = self.body;
        Ok(match opcode {
            Opcode::Lookup => self.lookup(agreed)?,
            Opcode::GetAttr => Operation::GetAttributes,
            Opcode::StatX => Operation::Statx,
            Opcode::SetAttr => Operation::SetAttributes(set_attributes(&body.take()?, agreed)?),
            Opcode::ReadLink => Operation::ReadLink,
            Opcode::Symlink => self.symlink()?,
            Opcode::MkNod => self.mknod()?,
            Opcode::MkDir => self.mkdir()?,
            Opcode::Create => self.create()?,
            Opcode::TmpFile => self.tmpfile()?,
            Opcode::Link => {
                let link: abi::LinkIn = body.take()?;
                Operation::Link(NodeId(link.oldnodeid), body.last_name()?)
            }
            Opcode::Unlink => Operation::Unlink(body.last_name()?),
            Opcode::RmDir => Operation::RemoveDirectory(body.last_name()?),
            Opcode::Rename => self.rename()?,
            Opcode::Rename2 => self.rename2()?,
            Opcode::Open => Operation::Open,
            Opcode::OpenDir => Operation::OpenDirectory,
            Opcode::Release | Opcode::ReleaseDir => Operation::Release,
            Opcode::Flush => Operation::Flush,
            Opcode::Read => self.read(agreed)?,
            Opcode::Write => Operation::Write(write(&body.take()?, agreed)?),
            Opcode::ReadDir => self.read_directory(false)?,
            Opcode::ReadDirPlus => self.read_directory(true)?,
            Opcode::FAllocate => {
                Operation::Allocate(allocate(&body.take()?, self.privileges(agreed))?)
            }
            Opcode::LSeek => Operation::Seek(seek(&body.take()?)?),
            Opcode::CopyFileRange => self.copy_range(false, agreed)?,
            Opcode::CopyFileRange64 => self.copy_range(true, agreed)?,
            Opcode::FSync | Opcode::FSyncDir => {
                let sync: abi::FSyncIn = body.take()?;
                Operation::Sync { data_only: sync.fsync_flags & abi::FSYNC_FDATASYNC != 0 }
            }
            Opcode::SyncFs => Operation::SyncAll,
            Opcode::StatFs => Operation::Statistics,
            Opcode::GetXattr => {
                let get: abi::GetXattrIn = body.take()?;
                Operation::GetXattr { name: body.last_xattr_name()?, size: bytes(get.size)? }
            }
            Opcode::ListXattr => {
                let list: abi::GetXattrIn = body.take()?;
                Operation::ListXattrs { size: bytes(list.size)? }
            }
            Opcode::SetXattr => self.set_xattr(agreed)?,
            Opcode::RemoveXattr => Operation::RemoveXattr(body.last_xattr_name()?),
            Opcode::IoCtl => {
                let ioctl: abi::IoCtlIn = body.take()?;
                Operation::IoCtl { command: ioctl.cmd, size: bytes(ioctl.out_size)? }
            }
            Opcode::Destroy => Operation::Destroy,
            _ => Operation::Unsupported,
        })
    }

    fn init(&self) -> Result<Operation<'a>, Errno> {
        let mut body = self.body;
        let sent = body.rest().len().clamp(abi::COMPAT_INIT_IN_BYTES, size_of::<abi::InitIn>());
        Ok(Operation::Init(body.take_compat(sent)?))
    }

    fn lookup(&self, agreed: Agreed) -> Result<Operation<'a>, Errno> {
        let exported = agreed.has(abi::INIT_EXPORT_SUPPORT);
        Ok(match self.body.last_string()? {
            // "/" is how the kernel names what a file handle led to and nobody has looked up, when
            // it asks whether that is still good (fs/dcache.c, `d_obtain_alias`; fs/fuse/dir.c,
            // `fuse_dentry_revalidate`).
            b"." | b"/" if exported => Operation::LookupSelf,
            b".." if exported => Operation::LookupParent,
            name => Operation::Lookup(Name::new(name)?),
        })
    }

    fn symlink(&self) -> Result<Operation<'a>, Errno> {
        let mut body = self.body;
        let name = body.name()?;
        let target = body.last_target()?;
        // symlink(2) takes neither mode nor umask: the permissions of a link are all of them.
        let new = self.birth(NewKind::Symlink { target }, 0o777, 0)?;
        Ok(Operation::Create { name, new, opens: false })
    }

    fn mknod(&self) -> Result<Operation<'a>, Errno> {
        let mut body = self.body;
        let mknod: abi::MkNodIn = body.take()?;
        let kind = match Kind::from_mode(mknod.mode) {
            // mknod(2): a mode without a type makes a regular file.
            None if mknod.mode & KIND_BITS == 0 => NewKind::File,
            Some(Kind::File) => NewKind::File,
            Some(kind @ (Kind::Fifo | Kind::Socket)) => NewKind::Special { kind, rdev: 0 },
            Some(kind @ (Kind::CharDevice | Kind::BlockDevice)) => {
                NewKind::Special { kind, rdev: mknod.rdev }
            }
            None | Some(Kind::Directory | Kind::Symlink) => return Err(Errno::INVAL),
        };
        let new = self.birth(kind, mknod.mode, mknod.umask)?;
        Ok(Operation::Create { name: body.last_name()?, new, opens: false })
    }

    fn mkdir(&self) -> Result<Operation<'a>, Errno> {
        let mut body = self.body;
        let mkdir: abi::MkDirIn = body.take()?;
        let new = self.birth(NewKind::Directory, mkdir.mode, mkdir.umask)?;
        Ok(Operation::Create { name: body.last_name()?, new, opens: false })
    }

    fn create(&self) -> Result<Operation<'a>, Errno> {
        let mut body = self.body;
        let new = self.file(&body.take()?)?;
        Ok(Operation::Create { name: body.last_name()?, new, opens: true })
    }

    fn tmpfile(&self) -> Result<Operation<'a>, Errno> {
        let mut body = self.body;
        let new = self.file(&body.take()?)?;
        // A file without a name still travels with one: the kernel's placeholder, which nobody
        // may use (fs/namei.c, `vfs_tmpfile`: `slash_name`).
        match body.last_string()? {
            b"/" => {}
            name => drop(Name::new(name)?),
        }
        Ok(Operation::CreateUnnamed(new))
    }

    fn file(&self, create: &abi::CreateIn) -> Result<NewObject<'a>, Errno> {
        match create.mode & KIND_BITS {
            0 | 0o100_000 => self.birth(NewKind::File, create.mode, create.umask),
            _ => Err(Errno::INVAL),
        }
    }

    /// What all births share. Errors: `EOVERFLOW` for an owner that is none, as the kernel does
    /// for ids it cannot map: chown(2) would take it for "as it is".
    fn birth(&self, kind: NewKind<'a>, mode: u32, umask: u32) -> Result<NewObject<'a>, Errno> {
        if self.header.uid == u32::MAX || self.header.gid == u32::MAX {
            return Err(Errno::OVERFLOW);
        }
        Ok(NewObject {
            kind,
            mode: mode & PERMISSION_BITS,
            umask: umask & 0o777,
            supplementary_group: supplementary_group(self.extensions)?
                .filter(|&group| group != u32::MAX),
        })
    }

    fn rename(&self) -> Result<Operation<'a>, Errno> {
        let mut body = self.body;
        let rename: abi::RenameIn = body.take()?;
        self.renamed(body, NodeId(rename.newdir), RenameFlags::default())
    }

    fn rename2(&self) -> Result<Operation<'a>, Errno> {
        let mut body = self.body;
        let rename: abi::Rename2In = body.take()?;
        self.renamed(body, NodeId(rename.newdir), rename_flags(rename.flags)?)
    }

    fn renamed(
        &self,
        mut names: Body<'a>,
        to: NodeId,
        flags: RenameFlags,
    ) -> Result<Operation<'a>, Errno> {
        let name = names.name()?;
        let new_name = names.last_name()?;
        Ok(Operation::Rename(Rename { from: self.node(), name, to, new_name, flags }))
    }

    fn read(&self, agreed: Agreed) -> Result<Operation<'a>, Errno> {
        let mut body = self.body;
        let read: abi::ReadIn = body.take()?;
        let size = bytes(read.size.min(agreed.data_bytes_max()))?;
        Ok(Operation::Read { offset: offset(read.offset)?, size })
    }

    fn read_directory(&self, plus: bool) -> Result<Operation<'a>, Errno> {
        let mut body = self.body;
        let read: abi::ReadIn = body.take()?;
        Ok(Operation::ReadDirectory { cookie: read.offset, size: bytes(read.size)?, plus })
    }

    /// Under `FUSE_HANDLE_KILLPRIV_V2` the guest's kernel leaves clearing to us, yet has no flag for
    /// it in FALLOCATE and COPY_FILE_RANGE as it has in WRITE. Where it does not say so before,
    /// whoever is not known to be root clears.
    fn privileges(&self, agreed: Agreed) -> Privileges {
        match self.header.uid {
            _ if agreed.says_before_changes() => Privileges::AsSaid,
            0 => Privileges::Keep,
            _ => Privileges::Clear,
        }
    }

    fn copy_range(&self, wide: bool, agreed: Agreed) -> Result<Operation<'a>, Errno> {
        let mut body = self.body;
        let copy: abi::CopyFileRangeIn = body.take()?;
        if copy.flags != 0 {
            return Err(Errno::INVAL);
        }
        let (from_offset, to_offset) = (offset(copy.off_in)?, offset(copy.off_out)?);
        // A copy may be shorter than asked for. Both ends stay within a file's offsets, and the
        // narrow reply counts in 32 bits.
        let room = OFFSET_MAX - from_offset.max(to_offset);
        let countable = if wide { u64::MAX } else { u64::from(u32::MAX) };
        let size = copy.len.min(room).min(countable);
        let to = NodeId(copy.nodeid_out);
        let (from, privileges) = (self.node(), self.privileges(agreed));
        let copy = CopyRange { from, from_offset, to, to_offset, size, privileges };
        Ok(Operation::CopyRange { copy, wide })
    }

    fn set_xattr(&self, agreed: Agreed) -> Result<Operation<'a>, Errno> {
        let mut body = self.body;
        let whole = agreed.has(abi::INIT_SETXATTR_EXT);
        let sent = if whole { size_of::<abi::SetXattrIn>() } else { abi::COMPAT_SETXATTR_IN_BYTES };
        let set: abi::SetXattrIn = body.take_compat(sent)?;
        // xattr.h: XATTR_CREATE | XATTR_REPLACE.
        if set.flags & !3 != 0 {
            return Err(Errno::INVAL);
        }
        if set.size > XATTR_VALUE_BYTES_MAX {
            return Err(Errno::TOOBIG);
        }
        let name = body.xattr_name()?;
        Ok(Operation::SetXattr(SetXattr {
            name,
            value: body.last_bytes(bytes(set.size)?)?,
            flags: set.flags,
            kill_setgid: set.setxattr_flags & abi::SETXATTR_ACL_KILL_SGID != 0,
        }))
    }

    /// The nodes a FORGET or BATCH_FORGET gives back, with their counts, as far as they came.
    pub fn forgotten(&self) -> impl Iterator<Item = (NodeId, u64)> + use<'a> {
        let mut body = self.body;
        let single = (self.header.opcode == Opcode::Forget as u32)
            .then(|| body.take::<abi::ForgetIn>().ok())
            .flatten()
            .map(|forget| (NodeId(self.header.nodeid), forget.nlookup));
        let batch = (self.header.opcode == Opcode::BatchForget as u32)
            .then(|| body.take::<abi::BatchForgetIn>().ok())
            .flatten()
            .and_then(|batch| usize::try_from(batch.count).ok())
            .unwrap_or(0);
        let rows = body
            .rest()
            .chunks_exact(size_of::<abi::ForgetOne>())
            .filter_map(|row| abi::ForgetOne::read_from_bytes(row).ok())
            .map(|one| (NodeId(one.nodeid), one.nlookup));
        single.into_iter().chain(rows.take(batch))
    }
}
