//! The lowers at run time: the index, and the files behind it. Has no method that writes.
//!
//! The lowers are not to change while they are served. Each directory is compared with what was
//! sealed when it is first used, each file when it is opened; what was already served stays.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::fs::OFlags;
use thiserror::Error;

use super::imported::is_imported;
use super::index::format::{ObjectRecord, Time, Witness, flags};
use super::index::stat::{fill, witness};
use super::index::{Index, IndexEntry, IndexId, LayerKind, ObjectId, Slot};
use crate::filesystem::{Attributes, Errno, Kind, NodeId, Timestamp};
use crate::sys::fs::{Statx, Uid, open_beneath, reopen, stat};
use crate::sys::{handle, scan};

/// What to do about lowers that were changed.
pub struct LowerPolicy {
    /// Whether a changed object is an error or is served all the same.
    pub strictness: Strictness,
    /// Told once of each object in which way it is found changed; may be called from any thread.
    pub on_change: Box<dyn Fn(&Change) + Send + Sync>,
}

impl fmt::Debug for LowerPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LowerPolicy").field("strictness", &self.strictness).finish_non_exhaustive()
    }
}

/// How a change of inode, size or mtime is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Strictness {
    /// The object answers `EIO`.
    Strict,
    /// Directories are served as they were sealed, files as they are now.
    Lax,
}

/// Something in a lower is not what was sealed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// The merged path, without a leading `/`; empty for the root.
    pub path: Vec<u8>,
    /// How it differs.
    pub difference: Difference,
    /// Whether it is served nevertheless.
    pub is_served: bool,
}

/// How an object differs from what was sealed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Difference {
    /// Another inode, size or mtime: other contents.
    Contents,
    /// Only ctime or link count: its attributes were read again. Its xattrs were not.
    Attributes,
    /// It is not there any more, or is of another kind.
    Gone,
}

/// Why the lowers cannot be served.
#[derive(Debug, Error)]
pub enum LowerError {
    /// As many roots are needed as the index has layers.
    #[error("the index is one of {expected} lowers, but {given} were given")]
    Roots {
        /// Layers in the index.
        expected: usize,
        /// Descriptors given.
        given: usize,
    },
    /// The index names no layers.
    #[error("the index is damaged; delete it and it is built again")]
    Damaged,
}

// The states of a directory in this process.
const UNCHECKED: u8 = 0;
/// It is what was sealed, or is served all the same.
const CHECKED: u8 = 1;
/// It was found changed and is not served; that was reported.
const REFUSED: u8 = 2;
/// Its attributes were read again while they could still change: look once more.
const RECENT: u8 = 3;

/// The merged lowers.
pub struct Lower {
    index: Index,
    layers: Vec<LayerState>,
    policy: LowerPolicy,
    /// Whose process this is; it stays so.
    us: Uid,
    /// One state per directory of the index.
    directories: Box<[AtomicU8]>,
    /// Whether `changed` holds any attributes; lets the hot path pass without the lock.
    has_reread: AtomicBool,
    /// Guards what is known of changed objects; no other lock is taken inside.
    changed: Mutex<Changed>,
}

struct LayerState {
    root: OwnedFd,
    /// Owner, mode and type stand in marks.
    is_imported: bool,
    uuid: OnceLock<Option<[u8; 16]>>,
}

#[derive(Default)]
struct Changed {
    attributes: HashMap<ObjectId, ObjectRecord>,
    reported: HashSet<(ObjectId, Difference)>,
}

/// A regular file of a lower, as it was sealed.
#[derive(Debug)]
pub struct FoundFile {
    /// `O_PATH`.
    handle: OwnedFd,
    /// Reading it may leave its access time alone.
    may_hide_reads: bool,
    /// It is the object itself, not only its data.
    is_object: bool,
}

impl FoundFile {
    /// Opens it for reading.
    pub fn open(&self) -> Result<OwnedFd, Errno> {
        // open(2): O_NOATIME is for the owner and for root; the lower's atime is not ours to move.
        if self.may_hide_reads {
            match reopen(self.handle.as_fd(), OFlags::RDONLY | OFlags::NOATIME) {
                Err(Errno::PERM) => {}
                opened => return opened,
            }
        }
        reopen(self.handle.as_fd(), OFlags::RDONLY)
    }
}

impl Lower {
    /// Serves `index` from the layers' root directories, which are in the order of its layers.
    pub fn new(index: Index, roots: Vec<OwnedFd>, policy: LowerPolicy) -> Result<Self, LowerError> {
        let layers = index.layers().map_err(|_| LowerError::Damaged)?;
        let expected = layers.len();
        if roots.len() != expected {
            return Err(LowerError::Roots { expected, given: roots.len() });
        }
        let directories =
            usize::try_from(index.directories_present()).map_err(|_| LowerError::Damaged)?;
        let kinds: Vec<_> = layers.iter().map(|layer| layer.kind).collect();
        let layer = |(root, kind): (OwnedFd, LayerKind)| {
            let has_marker = is_imported(root.as_fd()).map_err(|_| LowerError::Damaged)?;
            let is_imported = kind == LayerKind::Plain && has_marker;
            Ok(LayerState { root, is_imported, uuid: OnceLock::new() })
        };
        let layers = roots.into_iter().zip(kinds).map(layer).collect::<Result<_, LowerError>>()?;
        Ok(Self {
            index,
            layers,
            policy,
            us: rustix::process::geteuid(),
            directories: (0..directories).map(|_| AtomicU8::new(UNCHECKED)).collect(),
            has_reread: AtomicBool::new(false),
            changed: Mutex::default(),
        })
    }

    /// The index that is served.
    pub const fn index(&self) -> &Index {
        &self.index
    }

    /// The same for identical copies of the lowers on any host.
    pub const fn identity(&self) -> IndexId {
        self.index.identity()
    }

    /// Whether `id` is the identity of this index, or of one whose numbers it kept in refreshes.
    pub fn continues(&self, id: IndexId) -> bool {
        self.index.continues(id)
    }

    /// What is born in the upper has this plus its own inode number; the same in every refresh.
    pub const fn upper_numbers_start(&self) -> u64 {
        self.index.upper_numbers_start()
    }

    /// The entry `name` of a directory, if it has one.
    ///
    /// Errors here and below: `ESTALE` for a number that names no object, `ENOTDIR`, `EIO` for a
    /// directory that was changed since it was sealed, or a damaged index.
    pub fn child(&self, dir: ObjectId, name: &[u8]) -> Result<Option<IndexEntry<'_>>, Errno> {
        let (at, directory) = self.index.directory(dir)?;
        self.check(dir, at)?;
        self.index.child(directory, name)
    }

    /// The entry at `slot` of a directory; `None` past the end.
    pub fn entry(&self, dir: ObjectId, slot: Slot) -> Result<Option<IndexEntry<'_>>, Errno> {
        let (at, directory) = self.index.directory(dir)?;
        self.check(dir, at)?;
        let slot = usize::try_from(slot.0).map_err(|_| Errno::IO)?;
        match self.index.entries(directory)?.get(slot) {
            Some(record) => self.index.entry(slot, record).map(Some),
            None => Ok(None),
        }
    }

    /// How many subdirectories a directory has.
    pub fn subdirectories(&self, dir: ObjectId) -> Result<u32, Errno> {
        let (at, directory) = self.index.directory(dir)?;
        self.check(dir, at)?;
        Ok(directory.subdirectories.get())
    }

    /// How many entries a directory has.
    pub fn entries(&self, dir: ObjectId) -> Result<u32, Errno> {
        let (at, directory) = self.index.directory(dir)?;
        self.check(dir, at)?;
        Ok(directory.entries.get())
    }

    /// The attributes of an object: no system call. `nlink` counts names in the merged view.
    pub fn attributes(&self, id: ObjectId) -> Result<Attributes, Errno> {
        let sealed = self.index.object(id)?;
        if self.has_reread.load(Ordering::Acquire)
            && let Some(now) = self.changed().attributes.get(&id)
        {
            return Ok(attributes_of(id, now));
        }
        Ok(attributes_of(id, sealed))
    }

    /// What an object is.
    pub fn kind(&self, id: ObjectId) -> Result<Kind, Errno> {
        self.index.kind(id)
    }

    /// Whether an object has more than one name in the merged view.
    pub fn is_hard_linked(&self, id: ObjectId) -> Result<bool, Errno> {
        Ok(self.index.object(id)?.flags & flags::HARD_LINKED != 0)
    }

    /// Every object with more than one name in the merged view.
    pub fn hard_linked(&self) -> impl Iterator<Item = ObjectId> {
        let all = (1..=self.index.last_number()).map(ObjectId);
        all.filter(|id| self.is_hard_linked(*id).unwrap_or(false))
    }

    /// The target of a symbolic link. Errors: `EINVAL` for anything else.
    pub fn target(&self, id: ObjectId) -> Result<&[u8], Errno> {
        match self.index.kind(id)? {
            Kind::Symlink => self.index.blob(self.index.object(id)?.detail.get()),
            _ => Err(Errno::INVAL),
        }
    }

    /// The value of an extended attribute, if the object has it.
    pub fn xattr(&self, id: ObjectId, name: &[u8]) -> Result<Option<&[u8]>, Errno> {
        for pair in self.index.xattrs(self.index.object(id)?)? {
            if self.index.name(pair.name.get())? == name {
                return self.index.blob(pair.value.get()).map(Some);
            }
        }
        Ok(None)
    }

    /// All extended attributes of an object, name and value, in the order of the names.
    pub fn xattrs(
        &self,
        id: ObjectId,
    ) -> Result<impl Iterator<Item = (&[u8], &[u8])> + use<'_>, Errno> {
        let mut found = Vec::new();
        for pair in self.index.xattrs(self.index.object(id)?)? {
            found.push((self.index.name(pair.name.get())?, self.index.blob(pair.value.get())?));
        }
        Ok(found.into_iter())
    }

    /// The merged path of an object's first name, without a leading `/`; empty for the root.
    pub fn path(&self, id: ObjectId) -> Result<Vec<u8>, Errno> {
        self.index.path(id)
    }

    /// The merged paths of all names of an object, as [`Lower::path`] gives them. Takes long where
    /// there are several: every entry of the base is looked at.
    pub fn paths(&self, id: ObjectId) -> Result<Vec<Vec<u8>>, Errno> {
        if self.is_hard_linked(id)? { self.index.paths(id) } else { Ok(vec![self.path(id)?]) }
    }

    /// The object at a merged path of names joined by `/`; nothing is followed.
    pub fn resolve(&self, path: &[u8]) -> Result<Option<ObjectId>, Errno> {
        let mut here = ObjectId::ROOT;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            match self.child(here, name) {
                Ok(Some(entry)) => here = entry.object,
                Ok(None) | Err(Errno::NOTDIR) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(here))
    }

    /// Opens a regular file for reading, after comparing it with what was sealed.
    ///
    /// Errors: `EINVAL` for anything but a regular file; `EIO` for one that was changed, unless
    /// the policy is lax; else openat2(2)'s, such as `EMFILE`.
    pub fn open_file(&self, id: ObjectId) -> Result<OwnedFd, Errno> {
        self.find_file(id)?.open()
    }

    /// Finds a regular file, and compares it with what was sealed, without opening it.
    ///
    /// Errors: those of [`Lower::open_file`].
    pub fn find_file(&self, id: ObjectId) -> Result<FoundFile, Errno> {
        let object = self.index.object(id)?;
        if self.index.kind(id)? != Kind::File {
            return Err(Errno::INVAL);
        }
        let data = self.index.data(object)?;
        let (part, name) = match data {
            Some(data) => (data.part.get(), data.name.get()),
            None => (object.part.get(), object.name.get()),
        };
        let handle = match self.open_real(part, Some(name)) {
            Err(error) if is_gone(error) => return Err(self.gone(id)),
            opened => opened?,
        };
        let now = stat(handle.as_fd())?;
        self.compare_file(id, object, &now)?;
        Ok(FoundFile {
            handle,
            may_hide_reads: now.stx_uid == self.us.as_raw() || self.us.is_root(),
            is_object: data.is_none(),
        })
    }

    /// Compares an open file with what was sealed, as [`Lower::open_file`] does: for the end of a
    /// copy, during which somebody may have written to it.
    pub fn verify_file(&self, id: ObjectId, file: BorrowedFd<'_>) -> Result<(), Errno> {
        self.compare_file(id, self.index.object(id)?, &stat(file)?)
    }

    /// What the kernel's overlayfs writes as `origin` of a copy of this object; `None` where the
    /// file system gives no handles or tells no UUID.
    ///
    /// Source: fs/overlayfs/overlayfs.h, `struct ovl_fb`.
    pub fn origin_handle(&self, id: ObjectId) -> Option<Vec<u8>> {
        let object = self.index.object(id).ok()?;
        let name = (self.index.kind(id).ok()? != Kind::Directory).then(|| object.name.get());
        let real = self.open_real(object.part.get(), name).ok()?;
        self.origin_of(object, real.as_fd())
    }

    /// The same of a file that was found.
    pub fn origin_handle_of(&self, id: ObjectId, found: &FoundFile) -> Option<Vec<u8>> {
        match found.is_object {
            true => self.origin_of(self.index.object(id).ok()?, found.handle.as_fd()),
            false => self.origin_handle(id),
        }
    }

    fn origin_of(&self, object: &ObjectRecord, real: BorrowedFd<'_>) -> Option<Vec<u8>> {
        let layer = self.index.part(object.part.get()).ok()?.layer.get();
        let uuid = self.layers.get(usize::try_from(layer).ok()?)?.uuid()?;
        let handle = handle::file_handle(real).ok()?;
        let bytes = u8::try_from(ORIGIN_HEADER_BYTES + handle.bytes.len()).ok()?;
        // overlayfs.h: OVL_FH_VERSION, OVL_FH_MAGIC, len, OVL_FH_FLAG_CPU_ENDIAN, type, uuid, fid.
        let mut origin = vec![0, 0xfb, bytes, u8::from(cfg!(target_endian = "big")), handle.kind];
        origin.extend_from_slice(&uuid);
        origin.extend_from_slice(&handle.bytes);
        Some(origin)
    }

    /// The first use of a directory in this process compares its parts with what was sealed.
    fn check(&self, id: ObjectId, at: u32) -> Result<(), Errno> {
        let state = usize::try_from(at).ok().and_then(|at| self.directories.get(at));
        let state = state.ok_or(Errno::IO)?;
        if state.load(Ordering::Relaxed) == CHECKED {
            return Ok(());
        }
        self.check_parts(id, state)
    }

    #[cold]
    fn check_parts(&self, id: ObjectId, state: &AtomicU8) -> Result<(), Errno> {
        let (_, directory) = self.index.directory(id)?;
        let mut next = CHECKED;
        for (number, part) in self.index.parts(directory)?.iter().enumerate() {
            let at = directory.first_part.get().checked_add(u32::try_from(number).unwrap_or(0));
            let Some(now) = self.directory_now(at.ok_or(Errno::IO)?)? else {
                state.store(REFUSED, Ordering::Relaxed);
                return Err(self.gone(id));
            };
            let sealed = &part.witness;
            if !witness(&now).is_same_content(sealed) {
                if self.refuses(id) {
                    state.store(REFUSED, Ordering::Relaxed);
                    return Err(Errno::IO);
                }
            } else if witness(&now) != *sealed {
                if number == 0 {
                    self.reread(id, &now)?;
                }
                self.report(id, Difference::Attributes, true);
                if scan::may_change_unseen(now.stx_ctime) {
                    next = RECENT;
                }
            }
        }
        state.store(next, Ordering::Relaxed);
        Ok(())
    }

    /// What a part is now; `None` if it is no directory any more.
    fn directory_now(&self, part: u32) -> Result<Option<Statx>, Errno> {
        let now = match self.open_real(part, None) {
            Err(error) if is_gone(error) => return Ok(None),
            opened => stat(opened?.as_fd())?,
        };
        let kind = Kind::from_mode(u32::from(now.stx_mode));
        Ok((kind == Some(Kind::Directory)).then_some(now))
    }

    fn compare_file(&self, id: ObjectId, object: &ObjectRecord, now: &Statx) -> Result<(), Errno> {
        if Kind::from_mode(u32::from(now.stx_mode)) != Some(Kind::File) {
            return Err(self.gone(id));
        }
        let data = self.index.data(object)?;
        let sealed = data.map_or_else(|| own_witness(object, now), |data| data.witness);
        let seen = witness(now);
        if !seen.is_same_content(&sealed) {
            if self.refuses(id) {
                return Err(Errno::IO);
            }
        } else if seen.ctime != sealed.ctime {
            self.report(id, Difference::Attributes, true);
        } else {
            return Ok(());
        }
        // The attributes of a metacopy file are not those of its data.
        if data.is_none() { self.reread(id, now) } else { Ok(()) }
    }

    /// Takes over the attributes an object has now; its names are still those of the index.
    fn reread(&self, id: ObjectId, now: &Statx) -> Result<(), Errno> {
        let sealed = self.index.object(id)?;
        let mut record = *sealed;
        fill(&mut record, now);
        let layer = self.index.part(sealed.part.get())?.layer.get();
        let layer = usize::try_from(layer).ok().and_then(|layer| self.layers.get(layer));
        if layer.is_some_and(|layer| layer.is_imported) {
            (record.mode, record.rdev) = (sealed.mode, sealed.rdev);
            (record.uid, record.gid) = (sealed.uid, sealed.gid);
        }
        self.changed().attributes.insert(id, record);
        self.has_reread.store(true, Ordering::Release);
        Ok(())
    }

    fn gone(&self, id: ObjectId) -> Errno {
        self.report(id, Difference::Gone, false);
        Errno::IO
    }

    /// Reports other contents and says whether that forbids serving the object.
    fn refuses(&self, id: ObjectId) -> bool {
        let is_strict = self.policy.strictness == Strictness::Strict;
        self.report(id, Difference::Contents, !is_strict);
        is_strict
    }

    fn report(&self, id: ObjectId, difference: Difference, is_served: bool) {
        if !self.changed().reported.insert((id, difference)) {
            return;
        }
        let path = self.index.path(id).unwrap_or_default();
        (self.policy.on_change)(&Change { path, difference, is_served });
    }

    fn changed(&self) -> MutexGuard<'_, Changed> {
        // Each holder leaves the maps whole, so one that panicked did no harm.
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An `O_PATH` descriptor of a part, or of what has the name `name` in it.
    fn open_real(&self, part: u32, name: Option<u32>) -> Result<OwnedFd, Errno> {
        let (layer, mut path) = self.index.part_path(part)?;
        if let Some(name) = name {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(self.index.name(name)?);
        }
        let root = &self.layers.get(layer).ok_or(Errno::IO)?.root;
        open_beneath(root.as_fd(), &path, OFlags::PATH)
    }
}

impl fmt::Debug for Lower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lower")
            .field("index", &self.index)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

/// overlayfs.h: `sizeof(struct ovl_fb)` without the handle itself.
const ORIGIN_HEADER_BYTES: usize = 21;

impl LayerState {
    fn uuid(&self) -> Option<[u8; 16]> {
        *self.uuid.get_or_init(|| {
            let root = scan::open_directory(self.root.as_fd(), b"").ok()?;
            handle::file_system_uuid(root.as_fd()).ok()
        })
    }
}

/// Whether a path that was sealed does not lead to an object any more.
const fn is_gone(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV)
}

/// What was sealed of a file that holds its own data. Its link count on the host was not: the
/// ctime moves with it.
fn own_witness(object: &ObjectRecord, now: &Statx) -> Witness {
    Witness {
        ino: object.ino,
        size: object.size,
        mtime: object.mtime,
        ctime: object.ctime,
        nlink: now.stx_nlink.into(),
    }
}

fn attributes_of(id: ObjectId, object: &ObjectRecord) -> Attributes {
    let has_birth = object.flags & flags::BIRTH_KNOWN != 0;
    Attributes {
        node: NodeId(u64::from(id.0)),
        mode: object.mode.get(),
        nlink: object.nlink.get(),
        uid: object.uid.get(),
        gid: object.gid.get(),
        rdev: object.rdev.get(),
        size: object.size.get(),
        blocks: object.blocks.get(),
        block_size: 1_u32.checked_shl(u32::from(object.block_size_log2)).unwrap_or(4096),
        atime: timestamp(object.atime),
        mtime: timestamp(object.mtime),
        ctime: timestamp(object.ctime),
        btime: has_birth.then(|| timestamp(object.btime)),
    }
}

const fn timestamp(time: Time) -> Timestamp {
    Timestamp { seconds: time.seconds.get(), nanoseconds: time.nanoseconds.get() }
}

#[cfg(test)]
mod tests;
