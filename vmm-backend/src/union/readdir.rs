//! Merged listings: `.` and `..`, the lower's names that still show by their slot, then the upper's
//! own names by their number.

use super::lookup::{Seen, Sight};
use super::node::Node;
use super::{Union, directory};
use crate::filesystem::{DirectoryEntry, DirectorySink, Errno, Kind, NodeId};
use crate::layer::index::{ObjectId, Slot};

/// Cookies 1 and 2 are `.` and `..`; a lower entry's is its slot and this; the upper's follow the
/// lower's last.
const FIRST_SLOT_COOKIE: u64 = 3;

/// One row before it is given out.
struct Row<'a> {
    cookie: u64,
    name: &'a [u8],
    kind: Kind,
    node: NodeId,
    /// The object, where the upper does not have the directory and so nothing at this name: it
    /// need not be looked for again.
    lower: Option<ObjectId>,
}

impl Union {
    pub(super) fn list(
        &self,
        id: NodeId,
        cookie: u64,
        plus: bool,
        sink: &mut dyn DirectorySink,
    ) -> Result<(), Errno> {
        let _names = self.names_shared();
        let dir = directory(self.nodes.get(id)?)?;
        if !self.list_dots(&dir, cookie, sink) {
            return Ok(());
        }
        if !dir.is_named && id != NodeId::ROOT {
            return Ok(());
        }
        if dir.is_upper {
            self.load_rows(&dir)?;
        }
        self.see_listed(&dir);
        let _dir = self.directories.lock(id);
        if self.list_lower(&dir, cookie, plus, sink)? && dir.is_upper {
            self.list_upper(&dir, cookie, plus, sink)?;
        }
        Ok(())
    }

    /// Says whether there is room for more.
    fn list_dots(&self, dir: &Node, cookie: u64, sink: &mut dyn DirectorySink) -> bool {
        let dots: [(u64, &[u8], NodeId); 2] = [(1, b".", dir.id), (2, b"..", dir.parent)];
        for (number, name, node) in dots.into_iter().filter(|(number, ..)| *number > cookie) {
            if !sink.fits(name.len()) {
                return false;
            }
            let kind = Kind::Directory;
            sink.push(&DirectoryEntry { node, cookie: number, kind, name }, None);
        }
        true
    }

    /// The lower's names that nothing in the upper hides or replaces show here; so do those the
    /// upper replaced, at the place they always had.
    fn list_lower(
        &self,
        dir: &Node,
        cookie: u64,
        plus: bool,
        sink: &mut dyn DirectorySink,
    ) -> Result<bool, Errno> {
        let Some(lower) = dir.lower else { return Ok(true) };
        let first = cookie.saturating_add(1).saturating_sub(FIRST_SLOT_COOKIE);
        let Ok(mut slot) = u32::try_from(first) else { return Ok(true) };
        while let Some(found) = self.lower.entry(lower, Slot(slot))? {
            slot += 1;
            let cookie = u64::from(found.slot.0) + FIRST_SLOT_COOKIE;
            let upper = if dir.is_upper { self.nodes.row(dir.id, found.name) } else { None };
            let row = match upper {
                Some(row) => match row.kind {
                    None => continue,
                    Some(kind) => {
                        let Some(node) = self.number_of(dir, found.name, row.id)? else { continue };
                        Row { cookie, name: found.name, kind, node, lower: None }
                    }
                },
                None => Row {
                    cookie,
                    name: found.name,
                    kind: found.kind,
                    node: NodeId(found.object.0.into()),
                    lower: (!dir.is_upper).then_some(found.object),
                },
            };
            if !self.give(dir, &row, plus, sink)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Names only the upper has.
    fn list_upper(
        &self,
        dir: &Node,
        cookie: u64,
        plus: bool,
        sink: &mut dyn DirectorySink,
    ) -> Result<(), Errno> {
        let lower_entries = match dir.lower {
            Some(lower) => u64::from(self.lower.entries(lower)?),
            None => 0,
        };
        let base = lower_entries + FIRST_SLOT_COOKIE;
        let Ok(mut after) = u32::try_from(cookie.saturating_sub(base)) else { return Ok(()) };
        while let Some((number, name, row)) = self.nodes.next_row(dir.id, after) {
            after = number;
            let Some(kind) = row.kind else { continue };
            if self.lower_child(dir, &name)?.is_some() {
                continue;
            }
            let Some(node) = self.number_of(dir, &name, row.id)? else { continue };
            let cookie = base + u64::from(number);
            let row = Row { cookie, name: &name, kind, node, lower: None };
            if !self.give(dir, &row, plus, sink)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The number of an upper object, looked at once; `None` if it cannot be shown.
    fn number_of(
        &self,
        dir: &Node,
        name: &[u8],
        known: Option<NodeId>,
    ) -> Result<Option<NodeId>, Errno> {
        if known.is_some() {
            return Ok(known);
        }
        match self.sight(dir, name) {
            Ok(Sight::Object(seen)) => {
                self.set_row(dir, name, Some((seen.node.kind, seen.node.id)))?;
                Ok(Some(seen.node.id))
            }
            Ok(_) => Ok(None),
            Err(e) => {
                log::error!("union: {} is left out of a listing: {e}", name.escape_ascii());
                Ok(None)
            }
        }
    }

    /// Gives out one row; says whether there was room.
    fn give(
        &self,
        dir: &Node,
        row: &Row<'_>,
        plus: bool,
        sink: &mut dyn DirectorySink,
    ) -> Result<bool, Errno> {
        if !sink.fits(row.name.len()) {
            return Ok(false);
        }
        let shown =
            DirectoryEntry { node: row.node, cookie: row.cookie, kind: row.kind, name: row.name };
        if !plus {
            sink.push(&shown, None);
            return Ok(true);
        }
        let entry = match self.row_seen(dir, row) {
            Ok(Some(seen)) => self.enter(seen, row.name),
            Ok(None) => return Ok(true),
            Err(e) => Err(e),
        };
        // An object that cannot be served still has its name: a LOOKUP will tell the error.
        sink.push(&shown, entry.as_ref().ok());
        Ok(true)
    }

    /// What is at a row's name; `None` for nothing. The caller holds the directory's lock.
    fn row_seen(&self, dir: &Node, row: &Row<'_>) -> Result<Option<Seen>, Errno> {
        if let Some(object) = row.lower {
            return self.seen_in_lower(dir, object, row.kind).map(Some);
        }
        match self.sight(dir, row.name)? {
            Sight::Object(seen) => Ok(Some(*seen)),
            Sight::Nothing | Sight::Whiteout => Ok(None),
        }
    }
}
