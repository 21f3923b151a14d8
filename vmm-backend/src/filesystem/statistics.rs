//! What STATFS tells of a file system's room.

/// STATFS, in the units `statvfs` has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FileSystemStatistics {
    /// Size in units of `fragment_size`.
    pub blocks: u64,
    /// Free units.
    pub blocks_free: u64,
    /// Free units for unprivileged users.
    pub blocks_available: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
    /// Preferred block size in bytes.
    pub block_size: u32,
    /// Longest name in bytes.
    pub name_bytes_max: u32,
    /// Unit of the counts in bytes.
    pub fragment_size: u32,
}
