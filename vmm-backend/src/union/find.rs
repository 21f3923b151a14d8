//! An object by its number alone: where a file handle leads when the guest holds the object no more.
//!
//! What was never moved is at its place in the base. All else the upper knows by its inode number or
//! by its origin mark, for which it is searched.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::PoisonError;

use super::Union;
use crate::filesystem::{Entry, Errno, Kind, Name, NodeId};
use crate::layer::index::ObjectId;
use crate::layer::upper::{Found, UpperName};

/// What a search goes by.
enum Clue {
    /// The inode number of what was born in the upper.
    Inode(u64),
    /// An object of the base, from the top: each directory above it, and itself as the last, with the
    /// path below each that leads to it.
    Lineage(Vec<(ObjectId, Vec<u8>)>),
}

impl Clue {
    /// The rank of the object itself.
    fn best(&self) -> usize {
        match self {
            Self::Inode(_) => 0,
            Self::Lineage(lineage) => lineage.len() - 1,
        }
    }
}

/// Where the upper has an object, or the nearest directory above it that has moved.
struct Trace {
    path: Vec<u8>,
    /// Its place in the lineage.
    rank: usize,
}

impl Union {
    pub(super) fn find_by_number(&self, id: NodeId) -> Result<Entry, Errno> {
        let known = self.look_up_self(id);
        if !matches!(known, Err(Errno::STALE)) {
            return known;
        }
        if self.is_upper_born(id) {
            let inode = id.0 - self.lower.upper_numbers_start();
            let path = self.search(&Clue::Inode(inode))?.ok_or(Errno::STALE)?;
            return self.walk_to(&path, id);
        }
        let object = ObjectId(u32::try_from(id.0).map_err(|_| Errno::STALE)?);
        let paths = self.lower.paths(object).map_err(|_| Errno::STALE)?;
        for path in &paths {
            match self.walk_to(path, id) {
                Err(Errno::STALE) => {}
                done => return done,
            }
        }
        for path in &paths {
            let Some(path) = self.search(&Clue::Lineage(self.lineage(path)?))? else { continue };
            match self.walk_to(&path, id) {
                Err(Errno::STALE) => {}
                done => return done,
            }
        }
        Err(Errno::STALE)
    }

    /// Looks up one name of a union path after the other, as the guest would.
    ///
    /// Errors: `ESTALE` if they don't lead to `wanted`.
    fn walk_to(&self, path: &[u8], wanted: NodeId) -> Result<Entry, Errno> {
        let mut last = None;
        for name in path.split(|byte| *byte == b'/') {
            let at = last.take();
            let next =
                Name::new(name).and_then(|name| self.look_up(at.unwrap_or(NodeId::ROOT), name));
            // What is below it keeps it.
            self.put_down(at);
            match next {
                Ok(entry) if entry.attributes.node == wanted => return Ok(entry),
                Ok(entry) => last = Some(entry.attributes.node),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::STALE) => return Err(Errno::STALE),
                Err(e) => return Err(e),
            }
        }
        self.put_down(last);
        Err(Errno::STALE)
    }

    fn lineage(&self, path: &[u8]) -> Result<Vec<(ObjectId, Vec<u8>)>, Errno> {
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        let mut lineage = Vec::new();
        for end in ends.chain([path.len()]) {
            let (above, below) = path.split_at(end);
            let object = self.lower.resolve(above)?.ok_or(Errno::STALE)?;
            lineage.push((object, below.to_vec()));
        }
        Ok(lineage)
    }

    /// The union path that a clue leads to, if the upper has any. Down to each directory before its
    /// siblings, so that no more is held than the names beside one path.
    fn search(&self, clue: &Clue) -> Result<Option<Vec<u8>>, Errno> {
        let _search = self.search.lock().unwrap_or_else(PoisonError::into_inner);
        let mut best: Option<Trace> = None;
        let mut at = Vec::new();
        let mut levels = vec![self.look_through(clue, &at, &mut best)?];
        while let Some(level) = levels.last_mut()
            && best.as_ref().is_none_or(|best| best.rank < clue.best())
        {
            if let Some(name) = level.pop() {
                at = join(&at, &name);
                levels.push(self.look_through(clue, &at, &mut best)?);
            } else {
                levels.pop();
                at.truncate(at.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
            }
        }
        Ok(best.map(|Trace { mut path, rank }| {
            if let Clue::Lineage(lineage) = clue {
                path.extend_from_slice(&lineage[rank].1);
            }
            path
        }))
    }

    /// Looks for a better trace in one directory of the upper, and gives the names of those in it.
    fn look_through(
        &self,
        clue: &Clue,
        directory: &[u8],
        best: &mut Option<Trace>,
    ) -> Result<Vec<Vec<u8>>, Errno> {
        let rows = self.upper.handle(directory).and_then(|handle| {
            let rows = self.upper.names(handle.as_fd())?;
            Ok((handle, rows))
        });
        let (handle, rows) = match rows {
            Ok(rows) => rows,
            // Removed meanwhile, or too far down for a path.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        for row in rows.iter().filter(|row| row.kind.is_some()) {
            if let Some(rank) = self.rank(clue, handle.as_fd(), row)
                && best.as_ref().is_none_or(|best| best.rank < rank)
            {
                *best = Some(Trace { path: join(directory, &row.name), rank });
            }
        }
        let directories = rows.into_iter().filter(|row| row.kind == Some(Kind::Directory));
        Ok(directories.map(|row| row.name).collect())
    }

    /// How near a row of the upper is to what is searched for; `None`: it has nothing to do with it.
    fn rank(&self, clue: &Clue, directory: BorrowedFd<'_>, row: &UpperName) -> Option<usize> {
        match clue {
            Clue::Inode(inode) => (row.ino == *inode).then_some(0),
            Clue::Lineage(lineage) => {
                let Ok(Found::Object(object)) = self.upper.find(directory, &row.name) else {
                    return None;
                };
                let origin = self.origin_of(&object.marks, object.attributes.kind())?;
                lineage.iter().position(|(object, _)| *object == origin)
            }
        }
    }
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}
