//! The work directory: where objects are staged, and the one way a whole object enters the upper.
//!
//! Below the directory given as `--work` sit `work/` (staging, swept at start, as the kernel's
//! overlayfs has it), `index/` (copied-up hard links of the lower, by origin), `blocks/` (the maps of
//! unsettled files) and `orphans/` (unlinked objects a guest still holds when descriptors run
//! short).

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use rustix::fs::OFlags;

use super::acl::{ACCESS_ACL, DEFAULT_ACL};
use super::unsettled::sidecar_name;
use crate::filesystem::{Errno, NodeId};
use crate::sys::fs::{self, FallocateFlags, Grip, RenameFlags};

/// The ready whiteout in `work/`, linked to wherever one is needed.
pub const READY_WHITEOUT: &[u8] = b"whiteout";

/// Room in `work/` that is given up for a removal on a full disk.
pub const SPARE: &[u8] = b"spare";

/// As much as some sixty directories take that are copied up to hold a whiteout.
const SPARE_BYTES: u64 = 256 << 10;

/// In `work/`: names of what a program must know to use the upper (fs/overlayfs: `incompat`).
pub const FEATURES: &[u8] = b"incompat";

/// Gives up the room that is kept aside in the work directory at `work`, which nobody uses; says whether there
/// was any. [`Upper::open`] keeps some again.
///
/// [`Upper::open`]: super::upper::Upper::open
pub fn give_up_spare(work: &Path) -> bool {
    let spare = work.join("work").join(OsStr::from_bytes(SPARE));
    std::fs::remove_file(spare).is_ok()
}

/// The work directory of one upper.
#[derive(Debug)]
pub struct Work {
    staging: OwnedFd,
    index: OwnedFd,
    blocks: OwnedFd,
    live: OwnedFd,
    orphans: OwnedFd,
    next: AtomicU64,
    /// The last number given to a map.
    last_map: AtomicU64,
    /// Guards the making of a new ready whiteout; nothing else is taken inside.
    whiteout: Mutex<()>,
    /// Guards the spare room; whatever needs it is done inside, with what it locks.
    spare: Mutex<()>,
}

/// What stands at the name an object is published to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Over {
    /// Nothing: an object that is there after all is `EEXIST`.
    Nothing,
    /// A whiteout, which the object replaces.
    Whiteout,
}

/// An object on its way into the upper. Dropped before it is published, it is removed.
#[derive(Debug)]
pub struct Staged<'w> {
    entry: StagedName<'w>,
    handle: OwnedFd,
    /// The handle is one for reading and writing.
    is_opened: bool,
}

/// A name in `work/`, which goes with this.
#[derive(Debug)]
struct StagedName<'w> {
    work: &'w Work,
    name: Vec<u8>,
    is_directory: bool,
    is_published: bool,
}

impl Staged<'_> {
    /// The object: an `O_PATH` descriptor, or one for reading and writing of a regular file.
    pub fn handle(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    /// The same, by what it is.
    pub fn grip(&self) -> Grip<'_> {
        let handle = self.handle.as_fd();
        if self.is_opened { Grip::Opened(handle) } else { Grip::Any(handle) }
    }

    /// Leaves it to the next start.
    pub fn leave(mut self) {
        self.entry.is_published = true;
    }

    /// Its name in `work/`.
    pub fn name(&self) -> &[u8] {
        &self.entry.name
    }
}

impl Drop for StagedName<'_> {
    fn drop(&mut self) {
        if self.is_published {
            return;
        }
        if let Err(e) = self.work.discard(&self.name, self.is_directory) {
            log::warn!("work: {} stays behind until the next start: {e}", self.name.escape_ascii());
        }
    }
}

impl Work {
    /// Opens the work directory and creates what is missing below it.
    ///
    /// Errors: `EOPNOTSUPP` for a feature that whoever uses the upper must know (logged by its name),
    /// else the calls' own.
    pub fn open(work: BorrowedFd<'_>) -> Result<Self, Errno> {
        let opened = Self {
            staging: subdirectory(work, b"work")?,
            index: subdirectory(work, b"index")?,
            blocks: subdirectory(work, b"blocks")?,
            live: subdirectory(work, b"live")?,
            orphans: subdirectory(work, b"orphans")?,
            next: AtomicU64::new(0),
            last_map: AtomicU64::new(0),
            whiteout: Mutex::new(()),
            spare: Mutex::new(()),
        };
        if let Some(feature) = features(opened.staging())?.first() {
            log::error!(
                "work: work/incompat/{} says that this upper must not be used without knowing that \
                 feature; use the kernel that wrote it, or remove it if you accept the loss",
                feature.escape_ascii()
            );
            return Err(Errno::OPNOTSUPP);
        }
        hand_nothing_down(opened.staging())?;
        Ok(opened)
    }

    /// Removes what a crash left, but for what [`Upper::open`] has seen to before.
    ///
    /// [`Upper::open`]: super::upper::Upper::open
    /// `before` sees each name in a directory before it goes.
    pub(super) fn sweep(
        &self,
        before: impl Fn(BorrowedFd<'_>, &[u8]) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        for dir in [self.staging.as_fd(), self.orphans.as_fd()] {
            // The spare room stays, which may not be had again.
            for row in fs::list(dir)?.into_iter().filter(|row| row.name != SPARE) {
                before(dir, &row.name)?;
                remove_tree(dir, &row.name)?;
            }
        }
        Ok(())
    }

    /// Keeps room aside for removals: on a full disk they too need some, for whiteouts and for
    /// the directories that hold them.
    pub(super) fn keep_spare(&self) {
        let done = match fs::create_file(self.staging.as_fd(), SPARE, 0o600) {
            Ok(file) => fs::allocate(file.as_fd(), FallocateFlags::empty(), 0, SPARE_BYTES),
            Err(Errno::EXIST) => Ok(()),
            Err(e) => Err(e),
        };
        if let Err(e) = done {
            log::debug!("work: no room is kept aside for removals: {e}");
            // Kept whole or not at all, so that it is tried again.
            if let Err(e) = fs::unlink(self.staging.as_fd(), SPARE) {
                log::debug!("work: {}: {e}", SPARE.escape_ascii());
            }
        }
    }

    /// Tries a removal again, with the spare room, if the disk is too full for it.
    pub fn with_spare<T>(&self, remove: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
        let first = remove();
        if !matches!(first, Err(Errno::NOSPC | Errno::DQUOT)) {
            return first;
        }
        let _spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if fs::unlink(self.staging.as_fd(), SPARE).is_err() {
            return first;
        }
        let done = remove();
        self.keep_spare();
        done
    }

    /// The staging directory, for `O_TMPFILE`.
    pub fn staging(&self) -> BorrowedFd<'_> {
        self.staging.as_fd()
    }

    /// The directory of copied-up hard links.
    pub fn index(&self) -> BorrowedFd<'_> {
        self.index.as_fd()
    }

    /// The directory of the maps of unsettled files.
    pub fn blocks(&self) -> BorrowedFd<'_> {
        self.blocks.as_fd()
    }

    /// A number of a map that no other has, nor had a map made in the last 292 years.
    pub fn free_map_number(&self) -> Result<u64, Errno> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_nanos()).unwrap_or(0);
        loop {
            let last = self.last_map.load(Ordering::Relaxed);
            let next = now.max(last + 1);
            if self
                .last_map
                .compare_exchange(last, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
                && !self.has_map(next)?
            {
                return Ok(next);
            }
        }
    }

    /// The clock may have been put back.
    fn has_map(&self, number: u64) -> Result<bool, Errno> {
        match fs::stat_name(self.blocks.as_fd(), &sidecar_name(number)) {
            Err(Errno::NOENT) => Ok(false),
            found => found.map(|_| true),
        }
    }

    /// The directory of the live maps of unsettled files.
    pub fn live(&self) -> BorrowedFd<'_> {
        self.live.as_fd()
    }

    fn fresh_name(&self) -> Vec<u8> {
        format!("#{:x}", self.next.fetch_add(1, Ordering::Relaxed)).into_bytes()
    }

    /// Stages what `make` creates at the name it is given; `make` returns the object's handle.
    pub fn stage(
        &self,
        is_directory: bool,
        make: impl FnOnce(BorrowedFd<'_>, &[u8]) -> Result<Option<OwnedFd>, Errno>,
    ) -> Result<Staged<'_>, Errno> {
        self.stage_as(self.fresh_name(), is_directory, make)
    }

    /// Stages at a name of its own in `work/`.
    pub(super) fn stage_as(
        &self,
        name: Vec<u8>,
        is_directory: bool,
        make: impl FnOnce(BorrowedFd<'_>, &[u8]) -> Result<Option<OwnedFd>, Errno>,
    ) -> Result<Staged<'_>, Errno> {
        let made = make(self.staging.as_fd(), &name).and_then(|handle| match handle {
            Some(handle) => Ok((handle, true)),
            None => Ok((fs::open_name(self.staging.as_fd(), &name, OFlags::PATH)?, false)),
        });
        let (handle, is_opened) = match made {
            Ok(made) => made,
            Err(e) => {
                // It may have got as far as the name.
                match self.discard(&name, is_directory) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(left) => log::warn!("work: a staged object stays behind: {left}"),
                }
                return Err(e);
            }
        };
        let entry = StagedName { work: self, name, is_directory, is_published: false };
        Ok(Staged { entry, handle, is_opened })
    }

    /// Makes a staged object visible at `name` in `dir`, whole and in one step.
    ///
    /// Errors: `EEXIST` if something stands at a name that should have been free; the staged
    /// object is gone then.
    pub fn publish(
        &self,
        staged: Staged<'_>,
        dir: BorrowedFd<'_>,
        name: &[u8],
        over: Over,
    ) -> Result<OwnedFd, Errno> {
        let Staged { mut entry, handle, .. } = staged;
        let flags = match over {
            Over::Nothing => RenameFlags::NOREPLACE,
            // A directory cannot replace a whiteout, which is no directory: they change places.
            Over::Whiteout if entry.is_directory => RenameFlags::EXCHANGE,
            Over::Whiteout => RenameFlags::empty(),
        };
        fs::rename((self.staging.as_fd(), &entry.name), (dir, name), flags)?;
        entry.is_published = true;
        if flags.contains(RenameFlags::EXCHANGE) {
            self.tidy(&entry.name, false);
        }
        Ok(handle)
    }

    /// Publishes a staged file as a copied-up hard link: in `index/` under `index_name`.
    pub fn publish_indexed(&self, staged: Staged<'_>, index_name: &[u8]) -> Result<OwnedFd, Errno> {
        let Staged { mut entry, handle, .. } = staged;
        let to = (self.index.as_fd(), index_name);
        fs::rename((self.staging.as_fd(), &entry.name), to, RenameFlags::NOREPLACE)?;
        entry.is_published = true;
        Ok(handle)
    }

    /// Puts a whiteout at a free name in one step.
    ///
    /// Errors: `EEXIST` if the name is not free.
    pub fn put_whiteout(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
        let ready = (self.staging.as_fd(), READY_WHITEOUT);
        match fs::link(ready.0, ready.1, dir, name) {
            // Gone (never made, or swept by a kernel mount), or at the file system's link limit.
            Err(e @ (Errno::NOENT | Errno::MLINK)) => {
                let _guard = self.whiteout.lock().unwrap_or_else(PoisonError::into_inner);
                if e == Errno::MLINK {
                    fs::unlink(ready.0, ready.1)?;
                }
                let char_device = crate::filesystem::Kind::CharDevice.mode_bits();
                match fs::create_special(ready.0, ready.1, char_device, (0, 0)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(e) => return Err(e),
                }
                fs::link(ready.0, ready.1, dir, name)
            }
            done => done,
        }
    }

    /// Removes a directory and leaves a whiteout, in one visible step.
    pub fn remove_directory_behind_whiteout(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<(), Errno> {
        let aside = self.fresh_name();
        fs::rename((dir, name), (self.staging.as_fd(), &aside), RenameFlags::WHITEOUT)?;
        self.tidy(&aside, true);
        Ok(())
    }

    /// Puts a whiteout in the place of an object that is no directory, in one step: the object
    /// loses this link with it, and no other step is to come.
    pub fn replace_by_whiteout(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
        let staged = self.fresh_name();
        let from = (self.staging.as_fd(), staged.as_slice());
        self.put_whiteout(from.0, from.1)?;
        fs::rename(from, (dir, name), RenameFlags::empty())
            .inspect_err(|_| self.tidy(&staged, false))
    }

    /// Takes an object that is no directory out of the upper in one visible step, which leaves a
    /// whiteout or nothing. It is gone when what this gives is dropped.
    pub fn take_aside(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        leaves_whiteout: bool,
    ) -> Result<Staged<'_>, Errno> {
        let handle = fs::open_name(dir, name, OFlags::PATH)?;
        let aside = self.fresh_name();
        let flags = if leaves_whiteout { RenameFlags::WHITEOUT } else { RenameFlags::NOREPLACE };
        fs::rename((dir, name), (self.staging.as_fd(), &aside), flags)?;
        Ok(self.aside(aside, handle))
    }

    /// Gives an object that is about to lose its name a link that outlives it, until what this gives
    /// is dropped.
    pub fn link_aside(&self, object: BorrowedFd<'_>) -> Result<Staged<'_>, Errno> {
        let handle = object.try_clone_to_owned().map_err(|_| Errno::MFILE)?;
        let aside = self.fresh_name();
        fs::link_descriptor(object, self.staging.as_fd(), &aside)?;
        Ok(self.aside(aside, handle))
    }

    fn aside(&self, name: Vec<u8>, handle: OwnedFd) -> Staged<'_> {
        let entry = StagedName { work: self, name, is_directory: false, is_published: false };
        Staged { entry, handle, is_opened: false }
    }

    /// Removes a directory that shows nothing in the union but may hold whiteouts.
    pub fn remove_whole(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
        match fs::remove_directory(dir, name) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            done => return done,
        }
        let aside = self.fresh_name();
        fs::rename((dir, name), (self.staging.as_fd(), &aside), RenameFlags::NOREPLACE)?;
        self.tidy(&aside, true);
        Ok(())
    }

    /// Parks an object by a further name, before its own goes.
    pub fn park_link(&self, object: BorrowedFd<'_>, node: NodeId) -> Result<(), Errno> {
        fs::link_descriptor(object, self.orphans.as_fd(), node.0.to_string().as_bytes())
    }

    /// Takes all whiteouts out of a directory that shows nothing. It must be opaque by now, so that
    /// it shows nothing at each step.
    pub fn clear_whiteouts(&self, dir: BorrowedFd<'_>) -> Result<(), Errno> {
        let rows = fs::list(dir)?;
        let clear = || rows.iter().try_for_each(|row| fs::unlink(dir, &row.name));
        if rows.is_empty() { Ok(()) } else { keeping_times(dir, clear) }
    }

    /// Parks a staged object that never gets a name.
    pub fn park_staged(&self, mut staged: Staged<'_>, node: NodeId) -> Result<(), Errno> {
        let parked = node.0.to_string();
        let to = (self.orphans.as_fd(), parked.as_bytes());
        fs::rename((self.staging.as_fd(), staged.name()), to, RenameFlags::empty())?;
        staged.entry.is_published = true;
        Ok(())
    }

    /// A parked object.
    pub fn parked(&self, node: NodeId) -> Result<OwnedFd, Errno> {
        fs::open_name(self.orphans.as_fd(), node.0.to_string().as_bytes(), OFlags::PATH)
    }

    /// The guest let go of a parked object.
    pub fn drop_parked(&self, node: NodeId) -> Result<(), Errno> {
        remove_tree(self.orphans.as_fd(), node.0.to_string().as_bytes())
    }

    /// Removes a staged name after it has served; what stays is swept at the next start.
    fn tidy(&self, name: &[u8], is_directory: bool) {
        if let Err(e) = self.discard(name, is_directory) {
            log::warn!("work: {} stays behind until the next start: {e}", name.escape_ascii());
        }
    }

    fn discard(&self, name: &[u8], is_directory: bool) -> Result<(), Errno> {
        if is_directory {
            remove_tree(self.staging.as_fd(), name)
        } else {
            fs::unlink(self.staging.as_fd(), name)
        }
    }
}

/// What the kernel's overlayfs, or a later version, says must be known to use the upper; by it the
/// kernel marks one that was mounted `volatile` and may not be whole.
pub fn features(staging: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
    match fs::open_beneath(staging, FEATURES, OFlags::PATH | OFlags::DIRECTORY) {
        Ok(dir) => Ok(fs::list(dir.as_fd())?.into_iter().map(|row| row.name).collect()),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

fn subdirectory(work: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    match fs::create_directory(work, name, 0o700) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e),
    }
    fs::open_name(work, name, OFlags::PATH | OFlags::DIRECTORY)
}

/// What is staged gets nothing from the host's directories above: neither a setgid that `dir` inherited nor a
/// default ACL, which would be the guest's then.
///
/// Errors: the calls' own.
pub(super) fn hand_nothing_down(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    for acl in [ACCESS_ACL, DEFAULT_ACL] {
        if fs::xattr(dir, acl)?.is_some() {
            fs::remove_xattr(dir, acl)?;
        }
    }
    match u32::from(fs::stat(dir)?.stx_mode) & 0o7777 {
        0o700 => Ok(()),
        _ => fs::change_mode(dir, 0o700),
    }
}

/// Removes a file, or a directory with all below it, following nothing and crossing no mount.
/// Depth costs memory, not stack: what is deeper is first moved up beside `name`'s children. Another
/// who removes the same meanwhile, as two resets do, is no error.
///
/// Errors: `EXDEV` at a mount, else the calls' own; what is left may be removed again.
pub(crate) fn remove_tree(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match fs::unlink(dir, name) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(Errno::NOENT) => return Ok(()),
        done => return done,
    }
    loop {
        let top = match fs::open_beneath(dir, name, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT) => return Ok(()),
            top => top?,
        };
        keeping_times(top.as_fd(), || match empty(top.as_fd()) {
            // Not before it must be: who holds a removed directory still sees its mode.
            Err(Errno::ACCESS) => {
                fs::change_mode(top.as_fd(), 0o700)?;
                empty(top.as_fd())
            }
            done => done,
        })?;
        match fs::remove_directory(dir, name) {
            Err(Errno::NOENT) => return Ok(()),
            // The other moved something up.
            Err(Errno::NOTEMPTY) => {}
            done => return done,
        }
    }
}

/// Changes what is in a directory, of which a guest that holds it sees nothing: its times stay, also where
/// the change fails.
fn keeping_times(
    dir: BorrowedFd<'_>,
    change: impl FnOnce() -> Result<(), Errno>,
) -> Result<(), Errno> {
    let before = fs::times(dir)?;
    let done = change();
    // Nothing is kept from going by its times.
    if let Err(e) = fs::change_times(dir, &before) {
        log::warn!("work: the times of a directory show that whiteouts went: {e}");
    }
    done
}

/// Removes all that is below a directory.
fn empty(top: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut flattened = 0_u64;
    loop {
        let rows = remaining(top)?;
        if rows.is_empty() {
            return Ok(());
        }
        for row in rows {
            match fs::unlink(top, &row.name) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR | Errno::PERM) => {
                    match remove_child(top, &row.name, &mut flattened) {
                        // It is gone, or there is something in it again: the next round tells.
                        Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY) => {}
                        Err(e) => return Err(e),
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }
}

/// What is in a directory; nothing in a removed one.
fn remaining(dir: BorrowedFd<'_>) -> Result<Vec<fs::Row>, Errno> {
    match fs::list(dir) {
        Err(Errno::NOENT) => Ok(Vec::new()),
        rows => rows,
    }
}

/// Empties one child directory: its files go, its directories move up beside it.
fn remove_child(top: BorrowedFd<'_>, name: &[u8], flattened: &mut u64) -> Result<(), Errno> {
    let child = fs::open_beneath(top, name, OFlags::PATH | OFlags::DIRECTORY)?;
    // A guest's 0000 or 0555 directory must not stop its removal where modes are enforced.
    fs::change_mode(child.as_fd(), 0o700)?;
    for row in remaining(child.as_fd())? {
        match fs::unlink(child.as_fd(), &row.name) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) => loop {
                *flattened += 1;
                let up = format!("#up{flattened}");
                match fs::rename(
                    (child.as_fd(), &row.name),
                    (top, up.as_bytes()),
                    RenameFlags::NOREPLACE,
                ) {
                    Err(Errno::EXIST) => {}
                    Err(Errno::NOENT) => break,
                    done => break done?,
                }
            },
            Err(e) => return Err(e),
        }
    }
    fs::remove_directory(top, name)
}
