//! What the words behind a verb mean.

use std::path::PathBuf;
use std::str::FromStr;

use rustix::fs::{
    FallocateFlags, FileType, OFlags, RenameFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT,
    XattrFlags,
};

use super::actor::{USER, both, path};
use crate::laws::ground::acl;
use crate::laws::plot::{Done, Failure};

/// The words not yet taken.
pub(super) struct Words<'a>(std::slice::Iter<'a, String>);

impl<'a> Words<'a> {
    pub(super) fn new(words: &'a [String]) -> Self {
        Self(words.iter())
    }

    pub(super) fn word(&mut self) -> Done<&'a str> {
        self.0.next().map(String::as_str).ok_or_else(|| Failure::new("a word is missing"))
    }

    pub(super) fn path(&mut self) -> Done<PathBuf> {
        self.word().map(path)
    }

    pub(super) fn number<T: FromStr>(&mut self) -> Done<T> {
        let word = self.word()?;
        word.parse().map_err(|_| Failure::new(format!("{word}: expected a number")))
    }

    /// An owner or a group; -1 leaves what is there.
    pub(super) fn id(&mut self) -> Done<Option<u32>> {
        Ok(u32::try_from(self.number::<i64>()?).ok())
    }

    pub(super) fn mode(&mut self) -> Done<u32> {
        let word = self.word()?;
        u32::from_str_radix(word, 8).map_err(|_| Failure::new(format!("{word}: expected a mode")))
    }

    pub(super) fn times(&mut self) -> Done<Timestamps> {
        let time = |tv_sec, tv_nsec| Ok(both(Timespec { tv_sec, tv_nsec }));
        match self.word()? {
            "now" => time(0, UTIME_NOW),
            "omit" => time(0, UTIME_OMIT),
            word => {
                let seconds = word.parse().map_err(|_| Failure::new(format!("{word}: no time")))?;
                time(seconds, 5)
            }
        }
    }

    pub(super) fn kind(&mut self) -> Done<FileType> {
        self.one_of(&[
            ("fifo", FileType::Fifo),
            ("char", FileType::CharacterDevice),
            ("block", FileType::BlockDevice),
            ("socket", FileType::Socket),
            ("file", FileType::RegularFile),
        ])
    }

    pub(super) fn rename_flags(&mut self) -> Done<RenameFlags> {
        self.one_of(&[
            ("none", RenameFlags::empty()),
            ("noreplace", RenameFlags::NOREPLACE),
            ("exchange", RenameFlags::EXCHANGE),
            ("whiteout", RenameFlags::WHITEOUT),
        ])
    }

    pub(super) fn xattr_flags(&mut self) -> Done<XattrFlags> {
        self.one_of(&[
            ("none", XattrFlags::empty()),
            ("create", XattrFlags::CREATE),
            ("replace", XattrFlags::REPLACE),
        ])
    }

    pub(super) fn acl_key(&mut self) -> Done<&'static str> {
        self.one_of(&[
            ("access", "system.posix_acl_access"),
            ("default", "system.posix_acl_default"),
        ])
    }

    /// An ACL that gives the user these bits, and others none.
    pub(super) fn acl(&mut self) -> Done<Vec<u8>> {
        const NO_ID: u32 = u32::MAX;
        let bits = self.number()?;
        // ACL_USER_OBJ, ACL_USER, ACL_GROUP_OBJ, ACL_MASK, ACL_OTHER.
        let mask = (16, 7, NO_ID);
        Ok(acl(&[(1, 6, NO_ID), (2, bits, USER), (4, 5, NO_ID), mask, (32, 0, NO_ID)]))
    }

    pub(super) fn allocation(&mut self) -> Done<FallocateFlags> {
        self.one_of(&[
            ("none", FallocateFlags::empty()),
            ("keep", FallocateFlags::KEEP_SIZE),
            ("punch", FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE),
            ("zero", FallocateFlags::ZERO_RANGE),
            ("zero,keep", FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE),
        ])
    }

    pub(super) fn open_flags(&mut self) -> Done<OFlags> {
        let known = [
            ("none", OFlags::empty()),
            ("creat", OFlags::CREATE),
            ("excl", OFlags::EXCL),
            ("trunc", OFlags::TRUNC),
            ("append", OFlags::APPEND),
            ("sync", OFlags::SYNC),
            ("path", OFlags::PATH),
            ("dir", OFlags::DIRECTORY),
            ("r", OFlags::RDONLY),
            ("w", OFlags::WRONLY),
            ("rw", OFlags::RDWR),
        ];
        let flags = self.word()?.split(',').map(|word| named(word, &known));
        flags.into_iter().try_fold(OFlags::empty(), |all, flag| Ok(all | flag?))
    }

    pub(super) fn one_of<T: Clone>(&mut self, known: &[(&str, T)]) -> Done<T> {
        named(self.word()?, known)
    }
}

fn named<T: Clone>(word: &str, known: &[(&str, T)]) -> Done<T> {
    let found = known.iter().find(|(name, _)| *name == word).map(|(_, value)| value.clone());
    found.ok_or_else(|| Failure::new(format!("{word}: no word that is known here")))
}
