//! Structures and numbers of the FUSE wire, up to protocol 7.45.
//!
//! Every name and layout is that of include/uapi/linux/fuse.h in the Linux tree; a structure's
//! size is checked when it is compiled. Numbers are in the byte order of the host: guest and
//! host share one (virtio 1.2, 5.11.6.1).

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Declares structures of the wire: `Name(fuse.h name, size in bytes) { fields }`. The visibility
/// is handed in because derives lint a `pub` of the macro's own as ours.
macro_rules! wire {
    ($pub:vis $($name:ident($source:literal, $size:literal) { $($field:ident: $type:ty,)* })*) => {$(
        #[doc = concat!("fuse.h: `struct ", $source, "`, ", $size, " bytes.")]
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        #[derive(FromBytes, IntoBytes, Immutable)]
        #[repr(C)]
        $pub struct $name {
            $(
                #[doc = concat!("`", $source, "::", stringify!($field), "`")]
                $pub $field: $type,
            )*
        }
        const _: () = assert!(size_of::<$name>() == $size);
    )*};
}

/// Declares numbers of the wire: `type { NAME = value, "fuse.h name"; }`.
macro_rules! numbers {
    ($type:ty { $($name:ident = $value:expr, $source:literal;)* }) => {
        $(#[doc = concat!("fuse.h: `", $source, "`.")] pub const $name: $type = $value;)*
    };
}

/// Declares the operations: `Variant = number, "name";`.
macro_rules! opcodes {
    ($($name:ident = $value:literal, $source:literal;)*) => {
        /// What a request asks for (fuse.h: `enum fuse_opcode`).
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u32)]
        pub enum Opcode {
            $(#[doc = concat!("`FUSE_", $source, "`")] $name = $value,)*
        }

        impl Opcode {
            /// Every operation known here, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The operation with this number.
            pub const fn from_wire(number: u32) -> Option<Self> {
                Some(match number {
                    $($value => Self::$name,)*
                    _ => return None,
                })
            }

            /// Its name, without `FUSE_`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $source,)*
                }
            }
        }
    };
}

numbers! { u32 {
    KERNEL_VERSION = 7, "FUSE_KERNEL_VERSION";
    KERNEL_MINOR_VERSION = 45, "FUSE_KERNEL_MINOR_VERSION";
}}

opcodes! {
    Lookup = 1, "LOOKUP";
    Forget = 2, "FORGET";
    GetAttr = 3, "GETATTR";
    SetAttr = 4, "SETATTR";
    ReadLink = 5, "READLINK";
    Symlink = 6, "SYMLINK";
    MkNod = 8, "MKNOD";
    MkDir = 9, "MKDIR";
    Unlink = 10, "UNLINK";
    RmDir = 11, "RMDIR";
    Rename = 12, "RENAME";
    Link = 13, "LINK";
    Open = 14, "OPEN";
    Read = 15, "READ";
    Write = 16, "WRITE";
    StatFs = 17, "STATFS";
    Release = 18, "RELEASE";
    FSync = 20, "FSYNC";
    SetXattr = 21, "SETXATTR";
    GetXattr = 22, "GETXATTR";
    ListXattr = 23, "LISTXATTR";
    RemoveXattr = 24, "REMOVEXATTR";
    Flush = 25, "FLUSH";
    Init = 26, "INIT";
    OpenDir = 27, "OPENDIR";
    ReadDir = 28, "READDIR";
    ReleaseDir = 29, "RELEASEDIR";
    FSyncDir = 30, "FSYNCDIR";
    GetLk = 31, "GETLK";
    SetLk = 32, "SETLK";
    SetLkW = 33, "SETLKW";
    Access = 34, "ACCESS";
    Create = 35, "CREATE";
    Interrupt = 36, "INTERRUPT";
    BMap = 37, "BMAP";
    Destroy = 38, "DESTROY";
    IoCtl = 39, "IOCTL";
    Poll = 40, "POLL";
    NotifyReply = 41, "NOTIFY_REPLY";
    BatchForget = 42, "BATCH_FORGET";
    FAllocate = 43, "FALLOCATE";
    ReadDirPlus = 44, "READDIRPLUS";
    Rename2 = 45, "RENAME2";
    LSeek = 46, "LSEEK";
    CopyFileRange = 47, "COPY_FILE_RANGE";
    SetupMapping = 48, "SETUPMAPPING";
    RemoveMapping = 49, "REMOVEMAPPING";
    SyncFs = 50, "SYNCFS";
    TmpFile = 51, "TMPFILE";
    StatX = 52, "STATX";
    CopyFileRange64 = 53, "COPY_FILE_RANGE_64";
}

// INIT flags; bits 32 to 63 travel in `flags2`.
numbers! { u64 {
    INIT_ASYNC_READ = 1 << 0, "FUSE_ASYNC_READ";
    INIT_EXPORT_SUPPORT = 1 << 4, "FUSE_EXPORT_SUPPORT";
    INIT_BIG_WRITES = 1 << 5, "FUSE_BIG_WRITES";
    INIT_DONT_MASK = 1 << 6, "FUSE_DONT_MASK";
    INIT_AUTO_INVAL_DATA = 1 << 12, "FUSE_AUTO_INVAL_DATA";
    INIT_DO_READDIRPLUS = 1 << 13, "FUSE_DO_READDIRPLUS";
    INIT_ASYNC_DIO = 1 << 15, "FUSE_ASYNC_DIO";
    INIT_WRITEBACK_CACHE = 1 << 16, "FUSE_WRITEBACK_CACHE";
    INIT_NO_OPEN_SUPPORT = 1 << 17, "FUSE_NO_OPEN_SUPPORT";
    INIT_PARALLEL_DIROPS = 1 << 18, "FUSE_PARALLEL_DIROPS";
    INIT_POSIX_ACL = 1 << 20, "FUSE_POSIX_ACL";
    INIT_MAX_PAGES = 1 << 22, "FUSE_MAX_PAGES";
    INIT_CACHE_SYMLINKS = 1 << 23, "FUSE_CACHE_SYMLINKS";
    INIT_NO_OPENDIR_SUPPORT = 1 << 24, "FUSE_NO_OPENDIR_SUPPORT";
    INIT_HANDLE_KILLPRIV_V2 = 1 << 28, "FUSE_HANDLE_KILLPRIV_V2";
    INIT_SETXATTR_EXT = 1 << 29, "FUSE_SETXATTR_EXT";
    INIT_INIT_EXT = 1 << 30, "FUSE_INIT_EXT";
    INIT_CREATE_SUPP_GROUP = 1 << 34, "FUSE_CREATE_SUPP_GROUP";
    INIT_ALLOW_IDMAP = 1 << 40, "FUSE_ALLOW_IDMAP";
}}

numbers! { u32 {
    FATTR_MODE = 1 << 0, "FATTR_MODE";
    FATTR_UID = 1 << 1, "FATTR_UID";
    FATTR_GID = 1 << 2, "FATTR_GID";
    FATTR_SIZE = 1 << 3, "FATTR_SIZE";
    FATTR_ATIME = 1 << 4, "FATTR_ATIME";
    FATTR_MTIME = 1 << 5, "FATTR_MTIME";
    FATTR_FH = 1 << 6, "FATTR_FH";
    FATTR_ATIME_NOW = 1 << 7, "FATTR_ATIME_NOW";
    FATTR_MTIME_NOW = 1 << 8, "FATTR_MTIME_NOW";
    FATTR_LOCKOWNER = 1 << 9, "FATTR_LOCKOWNER";
    FATTR_CTIME = 1 << 10, "FATTR_CTIME";
    FATTR_KILL_SUIDGID = 1 << 11, "FATTR_KILL_SUIDGID";

    FOPEN_DIRECT_IO = 1 << 0, "FOPEN_DIRECT_IO";
    FOPEN_KEEP_CACHE = 1 << 1, "FOPEN_KEEP_CACHE";
    FOPEN_NONSEEKABLE = 1 << 2, "FOPEN_NONSEEKABLE";
    FOPEN_CACHE_DIR = 1 << 3, "FOPEN_CACHE_DIR";

    WRITE_CACHE = 1 << 0, "FUSE_WRITE_CACHE";
    WRITE_KILL_SUIDGID = 1 << 2, "FUSE_WRITE_KILL_SUIDGID";

    FSYNC_FDATASYNC = 1 << 0, "FUSE_FSYNC_FDATASYNC";
    SETXATTR_ACL_KILL_SGID = 1 << 0, "FUSE_SETXATTR_ACL_KILL_SGID";

    EXT_GROUPS = 32, "FUSE_EXT_GROUPS";
}}

/// fuse.h: `FUSE_COMPAT_SETXATTR_IN_SIZE`: a SETXATTR without `FUSE_SETXATTR_EXT`.
pub const COMPAT_SETXATTR_IN_BYTES: usize = 8;
/// fuse.h: `struct fuse_init_in` before 7.36 ended with `flags`.
pub const COMPAT_INIT_IN_BYTES: usize = 16;

/// statx.h: `STATX_BASIC_STATS`.
pub const STATX_BASIC_STATS: u32 = 0x7ff;
/// statx.h: `STATX_BTIME`.
pub const STATX_BTIME: u32 = 0x800;

wire! { pub
    InHeader("fuse_in_header", 40) {
        len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32,
        total_extlen: u16, padding: u16,
    }
    OutHeader("fuse_out_header", 16) { len: u32, error: i32, unique: u64, }
    Attr("fuse_attr", 88) {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32,
        rdev: u32, blksize: u32, flags: u32,
    }
    EntryOut("fuse_entry_out", 128) {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64,
        entry_valid_nsec: u32, attr_valid_nsec: u32, attr: Attr,
    }
    AttrOut("fuse_attr_out", 104) { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr, }
    OpenOut("fuse_open_out", 16) { fh: u64, open_flags: u32, padding: u32, }
    WriteOut("fuse_write_out", 8) { size: u32, padding: u32, }
    StatFsOut("fuse_kstatfs", 80) {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64,
        bsize: u32, namelen: u32, frsize: u32, padding: u32, spare: [u32; 6],
    }
    GetXattrOut("fuse_getxattr_out", 8) { size: u32, padding: u32, }
    InitOut("fuse_init_out", 64) {
        major: u32, minor: u32, max_readahead: u32, flags: u32,
        max_background: u16, congestion_threshold: u16, max_write: u32, time_gran: u32,
        max_pages: u16, map_alignment: u16, flags2: u32, max_stack_depth: u32,
        request_timeout: u16, unused: [u16; 11],
    }
    IoCtlOut("fuse_ioctl_out", 16) { result: i32, flags: u32, in_iovs: u32, out_iovs: u32, }
    LSeekOut("fuse_lseek_out", 8) { offset: u64, }
    CopyFileRangeOut("fuse_copy_file_range_out", 8) { bytes_copied: u64, }
    DirentHeader("fuse_dirent", 24) { ino: u64, off: u64, namelen: u32, kind: u32, }
    SxTime("fuse_sx_time", 16) { tv_sec: i64, tv_nsec: u32, reserved: i32, }
    StatX("fuse_statx", 256) {
        mask: u32, blksize: u32, attributes: u64, nlink: u32, uid: u32, gid: u32,
        mode: u16, spare0: u16, ino: u64, size: u64, blocks: u64, attributes_mask: u64,
        atime: SxTime, btime: SxTime, ctime: SxTime, mtime: SxTime,
        rdev_major: u32, rdev_minor: u32, dev_major: u32, dev_minor: u32, spare2: [u64; 14],
    }
    StatXOut("fuse_statx_out", 288) {
        attr_valid: u64, attr_valid_nsec: u32, flags: u32, spare: [u64; 2], stat: StatX,
    }
    ForgetIn("fuse_forget_in", 8) { nlookup: u64, }
    ForgetOne("fuse_forget_one", 16) { nodeid: u64, nlookup: u64, }
    BatchForgetIn("fuse_batch_forget_in", 8) { count: u32, dummy: u32, }
    GetAttrIn("fuse_getattr_in", 16) { getattr_flags: u32, dummy: u32, fh: u64, }
    SetAttrIn("fuse_setattr_in", 88) {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64,
        atime: u64, mtime: u64, ctime: u64, atimensec: u32, mtimensec: u32, ctimensec: u32,
        mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    StatXIn("fuse_statx_in", 24) {
        getattr_flags: u32, reserved: u32, fh: u64, sx_flags: u32, sx_mask: u32,
    }
    MkNodIn("fuse_mknod_in", 16) { mode: u32, rdev: u32, umask: u32, padding: u32, }
    MkDirIn("fuse_mkdir_in", 8) { mode: u32, umask: u32, }
    RenameIn("fuse_rename_in", 8) { newdir: u64, }
    Rename2In("fuse_rename2_in", 16) { newdir: u64, flags: u32, padding: u32, }
    LinkIn("fuse_link_in", 8) { oldnodeid: u64, }
    OpenIn("fuse_open_in", 8) { flags: u32, open_flags: u32, }
    CreateIn("fuse_create_in", 16) { flags: u32, mode: u32, umask: u32, open_flags: u32, }
    ReleaseIn("fuse_release_in", 24) { fh: u64, flags: u32, release_flags: u32, lock_owner: u64, }
    FlushIn("fuse_flush_in", 24) { fh: u64, unused: u32, padding: u32, lock_owner: u64, }
    ReadIn("fuse_read_in", 40) {
        fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32,
    }
    WriteIn("fuse_write_in", 40) {
        fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32,
        padding: u32,
    }
    FSyncIn("fuse_fsync_in", 16) { fh: u64, fsync_flags: u32, padding: u32, }
    SetXattrIn("fuse_setxattr_in", 16) {
        size: u32, flags: u32, setxattr_flags: u32, padding: u32,
    }
    GetXattrIn("fuse_getxattr_in", 8) { size: u32, padding: u32, }
    InitIn("fuse_init_in", 64) {
        major: u32, minor: u32, max_readahead: u32, flags: u32, flags2: u32, unused: [u32; 11],
    }
    IoCtlIn("fuse_ioctl_in", 32) {
        fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32,
    }
    FAllocateIn("fuse_fallocate_in", 32) {
        fh: u64, offset: u64, length: u64, mode: u32, padding: u32,
    }
    LSeekIn("fuse_lseek_in", 24) { fh: u64, offset: u64, whence: u32, padding: u32, }
    CopyFileRangeIn("fuse_copy_file_range_in", 56) {
        fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64,
    }
    ExtHeader("fuse_ext_header", 8) { size: u32, kind: u32, }
}

/// Bytes of a request before its arguments.
pub const IN_HEADER_BYTES: usize = size_of::<InHeader>();
/// Bytes of a reply before its body.
pub const OUT_HEADER_BYTES: usize = size_of::<OutHeader>();
/// Bytes of a WRITE before its data.
pub const WRITE_MESSAGE_BYTES: usize = IN_HEADER_BYTES + size_of::<WriteIn>();
