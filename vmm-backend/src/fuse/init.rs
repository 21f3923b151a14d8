//! The INIT negotiation: what the guest offers, what we want of it, what is agreed.

use super::abi;
use crate::filesystem::Errno;

/// The most data one READ or WRITE carries, in bytes; `max_pages` below says it in pages.
pub const DATA_BYTES_MAX: u32 = 1 << 20;
/// The same for a guest without `FUSE_MAX_PAGES` (fs/fuse/fuse_i.h:
/// `FUSE_DEFAULT_MAX_PAGES_PER_REQ`, 32 pages of 4 KiB).
const DEFAULT_DATA_BYTES_MAX: u32 = 32 * 4096;
/// The most pages of 4 KiB one request carries.
const PAGES_MAX: u16 = 256;
/// The oldest minor version served: Linux 5.4, the first with virtiofs, speaks 7.31.
const MINOR_VERSION_MIN: u32 = 31;
/// From this version on (Linux 5.16) close() writes back and reports errors without FLUSH.
const FLUSH_FREE_MINOR_VERSION: u32 = 35;
/// From this version on (Linux 6.1) a fallocate is preceded as a write is (fs/fuse/file.c,
/// `fuse_file_fallocate`: `file_modified`); a copy_file_range always was.
const PRIVILEGES_FIRST_MINOR_VERSION: u32 = 37;

/// From Linux 6.16 on an entry has an epoch, but not one that a file handle led to
/// (fs/fuse/dir.c, `fuse_dentry_revalidate`; fs/fuse/inode.c, `fuse_get_dentry`).
const EPOCH_MINOR_VERSION: u32 = 44;
/// How many asynchronous requests the guest may have under way before it waits, and from where
/// on it calls itself congested (three quarters, as fuse's own default).
const BACKGROUND_MAX: u16 = 1024;
const CONGESTION_THRESHOLD: u16 = BACKGROUND_MAX / 4 * 3;

/// What a session is told by the one who starts it.
#[derive(Clone, Copy, Debug)]
pub struct SessionConfig {
    /// Let the guest collect small writes in its page cache.
    pub writeback_cache: bool,
    /// A name in the root whose absence the guest must not remember, because who asks decides
    /// whether it exists.
    pub unremembered: Option<&'static [u8]>,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self { writeback_cache: true, unremembered: None }
    }
}

/// What is asked for wherever the guest offers it.
///
/// Not asked for: `ATOMIC_O_TRUNC` (OPEN is never answered, so truncation must come as SETATTR),
/// `ASYNC_DIO` (Linux' fs/fuse/file.c drops a page from its cache before a queued direct write and not when it
/// is done, so that what was read meanwhile is shown ever after, decision 13),
/// `AUTO_INVAL_DATA` (one guest owns the union), locks (they stay in the guest),
/// `READDIRPLUS_AUTO` (a row of READDIRPLUS saves the LOOKUP that would follow),
/// `SECURITY_CTX`, DAX and submounts.
const WANTED: u64 = abi::INIT_ASYNC_READ
    | abi::INIT_EXPORT_SUPPORT
    | abi::INIT_BIG_WRITES
    | abi::INIT_DONT_MASK
    | abi::INIT_DO_READDIRPLUS
    | abi::INIT_NO_OPEN_SUPPORT
    | abi::INIT_PARALLEL_DIROPS
    | abi::INIT_POSIX_ACL
    | abi::INIT_MAX_PAGES
    | abi::INIT_CACHE_SYMLINKS
    | abi::INIT_NO_OPENDIR_SUPPORT
    | abi::INIT_HANDLE_KILLPRIV_V2
    | abi::INIT_SETXATTR_EXT
    | abi::INIT_INIT_EXT
    | abi::INIT_CREATE_SUPP_GROUP
    | abi::INIT_ALLOW_IDMAP;

/// What both sides keep to after INIT. Fits one word, so that every request reads it at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Agreed {
    flags: u64,
    minor: u8,
}

impl Agreed {
    /// The flag bits fit below this one (fuse.h: the highest is 42); the version goes above.
    const MINOR_SHIFT: u32 = 48;

    /// As one word, never 0: no version below 31 is agreed.
    pub(super) fn to_word(self) -> u64 {
        self.flags | (u64::from(self.minor) << Self::MINOR_SHIFT)
    }

    /// From the word of [`Agreed::to_word`]; `None` from 0, before INIT.
    pub(super) fn from_word(word: u64) -> Option<Self> {
        let minor = u8::try_from(word >> Self::MINOR_SHIFT).ok().filter(|&minor| minor != 0)?;
        Some(Self { flags: word & ((1 << Self::MINOR_SHIFT) - 1), minor })
    }

    /// Whether all these flags are agreed on.
    pub const fn has(self, flags: u64) -> bool {
        self.flags & flags == flags
    }

    /// The agreed flags of fuse.h; bits 32 and up travelled in `flags2`.
    pub const fn flags(self) -> u64 {
        self.flags
    }

    /// Whether close() finds and reports writeback errors without a FLUSH.
    pub const fn needs_no_flush(self) -> bool {
        self.minor as u32 >= FLUSH_FREE_MINOR_VERSION
    }

    /// Whether the guest's kernel asks with an empty SETATTR before each change of content by one
    /// who has no right to the file's privileges.
    pub const fn says_before_changes(self) -> bool {
        let is_late = self.minor as u32 >= PRIVILEGES_FIRST_MINOR_VERSION;
        is_late && self.has(abi::INIT_HANDLE_KILLPRIV_V2)
    }

    /// Whether the guest may be given what it has forgotten by its number alone. Later kernels'
    /// overlayfs refuses for ever what such a handle led to.
    pub const fn may_find_again(self) -> bool {
        (self.minor as u32) < EPOCH_MINOR_VERSION
    }

    /// The most data one READ or WRITE carries, in bytes.
    pub const fn data_bytes_max(self) -> u32 {
        if self.has(abi::INIT_MAX_PAGES) { DATA_BYTES_MAX } else { DEFAULT_DATA_BYTES_MAX }
    }
}

/// Answers an INIT: the reply, and what is agreed unless the guest has to ask again with an
/// older major version.
///
/// Errors: `EPROTO` for a guest older than 7.31.
///
/// Source: fuse.h, "Version negotiation"; fs/fuse/inode.c, `process_init_reply`.
pub(super) fn negotiate(
    offer: &abi::InitIn,
    config: &SessionConfig,
) -> Result<(abi::InitOut, Option<Agreed>), Errno> {
    let version = abi::InitOut {
        major: abi::KERNEL_VERSION,
        minor: abi::KERNEL_MINOR_VERSION,
        ..Default::default()
    };
    if offer.major > abi::KERNEL_VERSION {
        return Ok((version, None));
    }
    if offer.major < abi::KERNEL_VERSION || offer.minor < MINOR_VERSION_MIN {
        log::error!(
            "guest speaks FUSE {}.{}, expected 7.{MINOR_VERSION_MIN} or newer: use Linux 5.4 or newer",
            offer.major,
            offer.minor
        );
        return Err(Errno::PROTO);
    }
    let agreed = agree(offer, config)?;
    Ok((terms(version, offer, agreed), Some(agreed)))
}

fn agree(offer: &abi::InitIn, config: &SessionConfig) -> Result<Agreed, Errno> {
    let low = u64::from(offer.flags);
    let extended = low & abi::INIT_INIT_EXT != 0;
    let high = if extended { u64::from(offer.flags2) << 32 } else { 0 };
    let writeback = if config.writeback_cache { abi::INIT_WRITEBACK_CACHE } else { 0 };
    let minor = offer.minor.min(abi::KERNEL_MINOR_VERSION);
    Ok(Agreed {
        flags: (low | high) & (WANTED | writeback),
        minor: u8::try_from(minor).map_err(|_| Errno::PROTO)?,
    })
}

fn terms(version: abi::InitOut, offer: &abi::InitIn, agreed: Agreed) -> abi::InitOut {
    let [low, high] = halves(agreed.flags);
    abi::InitOut {
        max_readahead: offer.max_readahead.min(agreed.data_bytes_max()),
        flags: low,
        flags2: high,
        max_background: BACKGROUND_MAX,
        congestion_threshold: CONGESTION_THRESHOLD,
        max_write: agreed.data_bytes_max(),
        // Timestamps are whole nanoseconds.
        time_gran: 1,
        max_pages: if agreed.has(abi::INIT_MAX_PAGES) { PAGES_MAX } else { 0 },
        ..version
    }
}

/// The lower and the upper half of the flags.
fn halves(flags: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = flags.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERYTHING: abi::InitIn = abi::InitIn {
        major: 7,
        minor: 45,
        max_readahead: 128 << 10,
        flags: u32::MAX,
        flags2: u32::MAX,
        unused: [0; 11],
    };

    fn flags(out: &abi::InitOut) -> u64 {
        u64::from(out.flags) | (u64::from(out.flags2) << 32)
    }

    #[test]
    fn truncation_on_open_and_remote_locks_are_never_agreed() {
        let (out, agreed) = negotiate(&EVERYTHING, &SessionConfig::default()).unwrap();
        // fuse.h: POSIX_LOCKS, ATOMIC_O_TRUNC, FLOCK_LOCKS, AUTO_INVAL_DATA, READDIRPLUS_AUTO,
        // HANDLE_KILLPRIV (v1), SUBMOUNTS, SECURITY_CTX, HAS_INODE_DAX, NO_EXPORT_SUPPORT.
        for bit in [1, 3, 10, 12, 14, 19, 27, 32, 33, 38] {
            assert_eq!(flags(&out) & (1 << bit), 0, "bit {bit}");
        }
        assert_eq!(flags(&out), WANTED | abi::INIT_WRITEBACK_CACHE);
        assert_eq!((out.max_write, out.max_pages, out.time_gran), (1 << 20, 256, 1));
        let agreed = agreed.unwrap();
        assert_eq!(Agreed::from_word(agreed.to_word()), Some(agreed));
        assert!(agreed.needs_no_flush());
    }

    /// xfstests generic/451.
    #[test]
    fn direct_writes_are_not_queued() {
        let (out, _) = negotiate(&EVERYTHING, &SessionConfig::default()).unwrap();
        // fuse.h: ASYNC_DIO.
        assert_eq!(flags(&out) & (1 << 15), 0);
    }

    #[test]
    fn only_what_the_guest_offers_is_agreed() {
        let old = abi::InitIn { minor: 31, flags: 0, ..EVERYTHING };
        let (out, agreed) = negotiate(&old, &SessionConfig::default()).unwrap();
        assert_eq!((flags(&out), out.max_write, out.max_pages), (0, 128 << 10, 0));
        assert!(!agreed.unwrap().needs_no_flush());

        let no_extension = abi::InitIn { flags: 1 << 29, ..EVERYTHING };
        let (out, _) = negotiate(&no_extension, &SessionConfig::default()).unwrap();
        assert_eq!(flags(&out), abi::INIT_SETXATTR_EXT);
    }

    #[test]
    fn guest_with_epochs_is_given_nothing_it_has_forgotten() {
        for (minor, expected) in [(31, true), (43, true), (44, false), (45, false), (99, false)] {
            let offer = abi::InitIn { minor, ..EVERYTHING };
            let (_, agreed) = negotiate(&offer, &SessionConfig::default()).unwrap();
            assert_eq!(agreed.unwrap().may_find_again(), expected, "7.{minor}");
        }
    }

    #[test]
    fn writeback_cache_follows_the_configuration() {
        let config = SessionConfig { writeback_cache: false, ..Default::default() };
        let (out, _) = negotiate(&EVERYTHING, &config).unwrap();
        assert_eq!(flags(&out) & abi::INIT_WRITEBACK_CACHE, 0);
    }

    #[test]
    fn other_versions_are_told_or_refused() {
        let newer = abi::InitIn { major: 8, minor: 0, ..EVERYTHING };
        let (out, agreed) = negotiate(&newer, &SessionConfig::default()).unwrap();
        assert_eq!((out.major, agreed), (7, None));
        for (major, minor) in [(7, 30), (6, 45), (0, 0)] {
            let older = abi::InitIn { major, minor, ..EVERYTHING };
            assert_eq!(negotiate(&older, &SessionConfig::default()), Err(Errno::PROTO));
        }
        let far = abi::InitIn { minor: u32::MAX, ..EVERYTHING };
        assert!(negotiate(&far, &SessionConfig::default()).unwrap().1.is_some());
    }
}
