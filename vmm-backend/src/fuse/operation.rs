//! What a request asks for, in the words of the contract.

use super::abi;
use crate::filesystem::{
    Allocate, CopyRange, Name, NewObject, NodeId, Rename, Seek, SetAttributes, SetXattr, Write,
};

/// One request, decoded and checked. The node it is about is in the header.
#[derive(Clone, Copy, Debug)]
pub enum Operation<'a> {
    /// INIT: what the guest offers.
    Init(abi::InitIn),
    /// DESTROY.
    Destroy,
    /// LOOKUP of a name.
    Lookup(Name<'a>),
    /// LOOKUP of `.`, where file handles are supported.
    LookupSelf,
    /// LOOKUP of `..`, likewise.
    LookupParent,
    /// GETATTR.
    GetAttributes,
    /// STATX.
    Statx,
    /// SETATTR.
    SetAttributes(SetAttributes),
    /// READLINK.
    ReadLink,
    /// MKNOD, MKDIR, SYMLINK and CREATE.
    Create {
        /// The name it gets in the header's node.
        name: Name<'a>,
        /// What is born.
        new: NewObject<'a>,
        /// CREATE: the reply also opens it.
        opens: bool,
    },
    /// TMPFILE, which also opens it.
    CreateUnnamed(NewObject<'a>),
    /// LINK: this node gets this further name in the header's node.
    Link(NodeId, Name<'a>),
    /// UNLINK.
    Unlink(Name<'a>),
    /// RMDIR.
    RemoveDirectory(Name<'a>),
    /// RENAME and RENAME2.
    Rename(Rename<'a>),
    /// OPEN.
    Open,
    /// OPENDIR.
    OpenDirectory,
    /// RELEASE and RELEASEDIR.
    Release,
    /// FLUSH.
    Flush,
    /// READ.
    Read {
        /// First byte.
        offset: u64,
        /// At most this many bytes.
        size: usize,
    },
    /// WRITE; its data follows the message.
    Write(Write),
    /// READDIR and READDIRPLUS.
    ReadDirectory {
        /// Where the listing goes on.
        cookie: u64,
        /// At most this many bytes.
        size: usize,
        /// Rows carry their entries.
        plus: bool,
    },
    /// FALLOCATE.
    Allocate(Allocate),
    /// LSEEK.
    Seek(Seek),
    /// COPY_FILE_RANGE, and COPY_FILE_RANGE_64 whose reply is `wide`.
    CopyRange {
        /// What is copied.
        copy: CopyRange,
        /// The reply counts in 64 bits.
        wide: bool,
    },
    /// FSYNC and FSYNCDIR.
    Sync {
        /// fdatasync.
        data_only: bool,
    },
    /// SYNCFS.
    SyncAll,
    /// STATFS.
    Statistics,
    /// GETXATTR.
    GetXattr {
        /// The name with its namespace.
        name: &'a [u8],
        /// The guest's buffer in bytes; 0 asks for the size.
        size: usize,
    },
    /// LISTXATTR.
    ListXattrs {
        /// The guest's buffer in bytes; 0 asks for the size.
        size: usize,
    },
    /// SETXATTR.
    SetXattr(SetXattr<'a>),
    /// REMOVEXATTR.
    RemoveXattr(&'a [u8]),
    /// IOCTL.
    IoCtl {
        /// The command's number.
        command: u32,
        /// The guest's buffer in bytes.
        size: usize,
    },
    /// What this mount never does: the answer is `ENOSYS`, which the guest remembers.
    Unsupported,
}
