//! What a guest has seen of upper directories: names and cookies.
//!
//! A listing holds the rows of the upper's part of one directory, in arena cells. A row's cookie is
//! made of its name alone, so that a position given out leads on from the same place whatever was
//! changed meanwhile, whoever serves the directory, and after a restart.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher, DefaultHasher, Hash as _, Hasher as _, RandomState};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, transmute};

use super::node::{Nodes, kind_of};
use crate::filesystem::{Errno, Kind, NodeId};
use crate::layer::arena::{Arena, Cell, CellIndex};
use crate::layer::cell_name::{NameBytes, NamePlace, free_name, read_name, write_name};

/// Cookies end here, so that the union has room for the lower's below 2^32.
const COOKIES_END: u32 = 1 << 31;

/// So many places are tried for a name before its directory is full.
const PLACES: u32 = 64;

/// What the upper has under a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UpperRow {
    /// The object's kind; `None` for a whiteout.
    pub kind: Option<Kind>,
    /// The object's number, where it is known.
    pub id: Option<NodeId>,
}

impl Nodes {
    /// Whether the directory's listing is loaded and so tells the truth.
    pub fn has_listing(&self, directory: NodeId) -> bool {
        self.with_listing(directory, |_| ()).is_some()
    }

    /// Takes in what the upper's directory holds. Names known from before keep their cookies; a
    /// listing that is loaded already stays as it is.
    ///
    /// The caller holds what keeps the directory from changing since it read `rows`.
    ///
    /// Errors: `ESTALE` if the directory is not known, `ENAMETOOLONG`, `ENOSPC`; the listing is not
    /// loaded then.
    pub fn load_listing(
        &self,
        directory: NodeId,
        rows: Vec<(Vec<u8>, UpperRow)>,
    ) -> Result<(), Errno> {
        let shared = self.make_listing(directory)?;
        let mut listing = shared.write();
        if listing.is_loaded {
            return Ok(());
        }
        if listing.is_dropped {
            return Err(Errno::STALE);
        }
        let mut seen = HashSet::new();
        let had_rows = !listing.by_cookie.is_empty();
        // In an order of their own, for names that contend for a place.
        let mut rows = rows;
        rows.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        for (name, row) in rows {
            let cookie = self.put(&mut listing, &name, row)?;
            if had_rows {
                seen.insert(cookie);
            }
        }
        if had_rows {
            let unseen = |cookie: &u32| !seen.contains(cookie);
            let gone: Vec<u32> = listing.by_cookie.keys().copied().filter(unseen).collect();
            for cookie in gone {
                self.remove_cookie(&mut listing, cookie)?;
            }
        }
        listing.is_loaded = true;
        // Also to who goes on from a position he was given before.
        let births = listing.births;
        *listing.shown_until.get_mut() = births;
        Ok(())
    }

    /// What the upper has as `name`; `None` for nothing, or if the listing is not loaded.
    pub fn row(&self, directory: NodeId, name: &[u8]) -> Option<UpperRow> {
        self.with_listing(directory, |listing| {
            let (_, cell) = self.find_row(listing, name)?;
            Some(cell.row())
        })?
    }

    /// The upper has `row` as `name` now.
    /// Does nothing if the listing is not loaded.
    pub fn set_row(&self, directory: NodeId, name: &[u8], row: UpperRow) -> Result<(), Errno> {
        let Some(shared) = self.listing(directory) else { return Ok(()) };
        let mut listing = shared.write();
        if listing.is_loaded {
            self.put(&mut listing, name, row)?;
        }
        Ok(())
    }

    /// The upper has nothing as `name` any more.
    pub fn remove_row(&self, directory: NodeId, name: &[u8]) {
        let Some(shared) = self.listing(directory) else { return };
        let mut listing = shared.write();
        let found = self.find_row(&listing, name).map(|(_, cell)| cell.cookie);
        if let Some(cookie) = found
            && let Err(error) = self.remove_cookie(&mut listing, cookie)
        {
            log::error!("removing a row of node {directory}: {error}");
        }
    }

    /// The first row with a cookie above `after` (0: the first of all), in the order of cookies.
    ///
    /// Rows born after somebody last began with 0 are left out until somebody begins anew, so that
    /// one who makes or moves a name for each name he reads comes to an end.
    pub fn next_row(&self, directory: NodeId, after: u32) -> Option<(u32, Vec<u8>, UpperRow)> {
        self.with_listing(directory, |listing| {
            if after == 0 {
                listing.shown_until.store(listing.births, Ordering::Relaxed);
            }
            let first = after.checked_add(1)?;
            let shown_until = listing.shown_until.load(Ordering::Relaxed);
            let mut rows = listing.by_cookie.range(first..);
            let (cookie, placed) = rows.find(|(_, placed)| placed.birth < shown_until)?;
            let cell = self.row_cell(placed.cell).ok()?;
            let name = self.row_name(&cell).ok()?;
            Some((*cookie, name.as_bytes().to_vec(), cell.row()))
        })?
    }

    /// How many rows there are, whiteouts among them.
    pub fn rows(&self, directory: NodeId) -> usize {
        self.with_listing(directory, |listing| listing.by_cookie.len()).unwrap_or(0)
    }

    /// How many of the rows are directories.
    pub fn subdirectories(&self, directory: NodeId) -> usize {
        self.with_listing(directory, |listing| listing.subdirectories).unwrap_or(0)
    }

    /// How many of the rows are whiteouts.
    pub fn whiteouts(&self, directory: NodeId) -> usize {
        self.with_listing(directory, |listing| listing.whiteouts).unwrap_or(0)
    }

    /// Forgets the listing and its cookies.
    pub fn drop_listing(&self, directory: NodeId) {
        if let Some(detached) = self.detach_listing(directory) {
            self.free_listing(&detached);
        }
    }
}

/// The listings there are.
pub(super) struct Listings {
    /// Guards which listings there are; nothing is locked inside. A listing's own lock guards its
    /// rows; inside it: the arena.
    map: RwLock<HashMap<NodeId, Arc<Shared>>>,
    /// Keyed, so that a guest cannot choose names that collide.
    hash: RandomState,
}

/// A listing that outlives its place in the map while somebody reads it.
struct Shared {
    head: CellIndex,
    listing: RwLock<Listing>,
}

/// Where a row is, and how many rows were born before it.
#[derive(Clone, Copy)]
struct Placed {
    cell: CellIndex,
    birth: u32,
}

#[derive(Default)]
struct Listing {
    head: CellIndex,
    /// How many rows were born.
    births: u32,
    /// Readers see what was born before.
    shown_until: AtomicU32,
    by_cookie: BTreeMap<u32, Placed>,
    /// Hash of the name and cell: names that collide stand side by side.
    by_name: BTreeSet<(u32, CellIndex)>,
    subdirectories: usize,
    whiteouts: usize,
    /// The rows are what the upper holds. False until loaded, in each process anew.
    is_loaded: bool,
    /// The cells are freed; whoever still has this must not add any.
    is_dropped: bool,
}

impl Listing {
    fn new(head: CellIndex) -> Self {
        Self { head, ..Self::default() }
    }

    /// Sees a row in its place.
    fn place(&mut self, cookie: u32, cell: CellIndex) {
        if self.births == u32::MAX {
            // All at once become the eldest: a reader who is just here sees all of them.
            self.by_cookie.values_mut().for_each(|placed| placed.birth = 0);
            (self.births, *self.shown_until.get_mut()) = (1, 1);
        }
        self.by_cookie.insert(cookie, Placed { cell, birth: self.births });
        self.births += 1;
    }

    /// The cookie for a name that has none yet.
    ///
    /// Errors: `ENOSPC` if there are so many rows that no place was found.
    fn cookie_for(&self, name: &[u8]) -> Result<u32, Errno> {
        let places = (0..PLACES).map(|attempt| place_of(name, attempt));
        let mut free = places.filter(|cookie| !self.by_cookie.contains_key(cookie));
        free.next().ok_or(Errno::NOSPC)
    }

    fn count(&mut self, row: UpperRow, is_added: bool) {
        let counter = match row.kind {
            None => &mut self.whiteouts,
            Some(Kind::Directory) => &mut self.subdirectories,
            Some(_) => return,
        };
        *counter = if is_added { *counter + 1 } else { counter.saturating_sub(1) };
    }
}

impl Shared {
    fn new(listing: Listing) -> Arc<Self> {
        Arc::new(Self { head: listing.head, listing: RwLock::new(listing) })
    }

    fn write(&self) -> RwLockWriteGuard<'_, Listing> {
        self.listing.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, Listing> {
        self.listing.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listings {
    /// Finds the listings of an arena again; rows of what is not known any more are freed.
    pub(super) fn attach(arena: &Arena, is_known: impl Fn(NodeId) -> bool) -> Result<Self, Errno> {
        let mut heads = HashMap::new();
        for (index, cell) in arena.used().filter(|(_, cell)| cell[0] == HEAD_TAG) {
            let head: HeadCell = transmute!(cell);
            if is_known(NodeId(head.directory)) {
                let listing = Listing::new(index);
                heads.insert(index, (NodeId(head.directory), listing));
            } else {
                let mut change = arena.change();
                change.free(index)?;
                change.commit()?;
            }
        }
        let hash = RandomState::new();
        for (index, cell) in arena.used().filter(|(_, cell)| cell[0] == ROW_TAG) {
            let cell: RowCell = transmute!(cell);
            let Some((_, listing)) = heads.get_mut(&cell.listing) else {
                free_row(arena, index, &cell)?;
                continue;
            };
            let name = read_name(arena, cell.name_place())?;
            listing.by_name.insert((short_hash(&hash, name.as_bytes()), index));
            listing.place(cell.cookie, index);
            listing.count(cell.row(), true);
        }
        let shared = |(id, listing)| (id, Shared::new(listing));
        Ok(Self { map: RwLock::new(heads.into_values().map(shared).collect()), hash })
    }
}

impl Nodes {
    fn listing(&self, directory: NodeId) -> Option<Arc<Shared>> {
        let map = self.listings.map.read().unwrap_or_else(PoisonError::into_inner);
        map.get(&directory).cloned()
    }

    /// Runs `ask` on a loaded listing.
    fn with_listing<T>(&self, directory: NodeId, ask: impl FnOnce(&Listing) -> T) -> Option<T> {
        let shared = self.listing(directory)?;
        let listing = shared.read();
        listing.is_loaded.then(|| ask(&listing))
    }

    fn make_listing(&self, directory: NodeId) -> Result<Arc<Shared>, Errno> {
        // Held until the listing stands, so that it goes with the node.
        let table = self.read();
        if table.get(directory).is_none() {
            return Err(Errno::STALE);
        }
        let mut map = self.listings.map.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = map.get(&directory) {
            return Ok(known.clone());
        }
        let mut change = self.arena.change();
        let head = change.allocate()?;
        change.set(head, &HeadCell::new(directory).cell())?;
        change.commit()?;
        let shared = Shared::new(Listing::new(head));
        map.insert(directory, shared.clone());
        Ok(shared)
    }

    fn row_cell(&self, index: CellIndex) -> Result<RowCell, Errno> {
        let cell: RowCell = transmute!(self.arena.cell(index)?);
        if cell.tag == ROW_TAG { Ok(cell) } else { Err(Errno::IO) }
    }

    fn row_name(&self, cell: &RowCell) -> Result<NameBytes, Errno> {
        read_name(&self.arena, cell.name_place())
    }

    fn find_row(&self, listing: &Listing, name: &[u8]) -> Option<(CellIndex, RowCell)> {
        let hash = short_hash(&self.listings.hash, name);
        listing.by_name.range((hash, 0)..=(hash, CellIndex::MAX)).find_map(|(_, index)| {
            let cell = self.row_cell(*index).ok()?;
            let found = self.row_name(&cell).ok()?;
            (found.as_bytes() == name).then_some((*index, cell))
        })
    }

    /// Adds or changes a row. Gives its cookie.
    fn put(&self, listing: &mut Listing, name: &[u8], row: UpperRow) -> Result<u32, Errno> {
        let Some((index, mut cell)) = self.find_row(listing, name) else {
            return self.add_row(listing, name, row);
        };
        let old = cell.row();
        cell.set_row(row);
        let mut change = self.arena.change();
        change.set(index, &cell.cell())?;
        change.commit()?;
        listing.count(old, false);
        listing.count(row, true);
        Ok(cell.cookie)
    }

    fn add_row(&self, listing: &mut Listing, name: &[u8], row: UpperRow) -> Result<u32, Errno> {
        let cookie = listing.cookie_for(name)?;
        let mut change = self.arena.change();
        let index = change.allocate()?;
        let mut cell = RowCell::new(listing.head, cookie, row);
        (cell.name_length, cell.name_next) = write_name(&mut change, name, &mut cell.name_head)?;
        change.set(index, &cell.cell())?;
        change.commit()?;
        listing.place(cookie, index);
        listing.by_name.insert((short_hash(&self.listings.hash, name), index));
        listing.count(row, true);
        Ok(cookie)
    }

    fn remove_cookie(&self, listing: &mut Listing, cookie: u32) -> Result<(), Errno> {
        let Some(index) = listing.by_cookie.get(&cookie).map(|placed| placed.cell) else {
            return Ok(());
        };
        let cell = self.row_cell(index)?;
        let name = self.row_name(&cell)?;
        listing.by_name.remove(&(short_hash(&self.listings.hash, name.as_bytes()), index));
        listing.by_cookie.remove(&cookie);
        listing.count(cell.row(), false);
        free_row(&self.arena, index, &cell)
    }

    /// Takes the listing out, without waiting for who reads it; [`Nodes::free_listing`] is to follow.
    pub(super) fn detach_listing(&self, directory: NodeId) -> Option<DetachedListing> {
        let mut map = self.listings.map.write().unwrap_or_else(PoisonError::into_inner);
        let detached = DetachedListing(map.remove(&directory)?);
        let nobodys = HeadCell::new(NOBODY).cell();
        let mut change = self.arena.change();
        if let Err(error) = change.set(detached.0.head, &nobodys).and_then(|()| change.commit()) {
            log::error!("detaching the listing of node {directory}: {error}");
        }
        Some(detached)
    }

    /// Frees the cells of a listing. Its head goes last, for rows name it, and until then no other
    /// listing may get that cell.
    pub(super) fn free_listing(&self, detached: &DetachedListing) {
        let mut rows = detached.0.write();
        rows.is_dropped = true;
        rows.is_loaded = false;
        rows.by_name.clear();
        let freed = std::mem::take(&mut rows.by_cookie)
            .into_values()
            .try_for_each(|row| free_row(&self.arena, row.cell, &self.row_cell(row.cell)?))
            .and_then(|()| {
                let mut change = self.arena.change();
                change.free(rows.head)?;
                change.commit()
            });
        if let Err(error) = freed {
            log::error!("freeing a listing: {error}");
        }
    }
}

/// A listing that no directory has any more, its cells not yet free.
pub(super) struct DetachedListing(Arc<Shared>);

fn free_row(arena: &Arena, index: CellIndex, cell: &RowCell) -> Result<(), Errno> {
    let mut change = arena.change();
    free_name(arena, &mut change, cell.name_place())?;
    change.free(index)?;
    change.commit()
}

fn short_hash(hash: &RandomState, name: &[u8]) -> u32 {
    let [a, b, c, d, ..] = hash.hash_one(name).to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The place a name is given at its `attempt`-th try: above 0, and the same in every process.
fn place_of(name: &[u8], attempt: u32) -> u32 {
    let mut hasher = DefaultHasher::new();
    (attempt, name).hash(&mut hasher);
    let [a, b, c, d, ..] = hasher.finish().to_le_bytes();
    1 + u32::from_le_bytes([a, b, c, d]) % (COOKIES_END - 1)
}

/// The tag of a listing's own cell.
const HEAD_TAG: u8 = 2;
/// The directory of a listing whose rows are being freed.
const NOBODY: NodeId = NodeId(0);
/// The tag of a row's cell.
const ROW_TAG: u8 = 3;

/// A listing as it stands in the arena.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct HeadCell {
    tag: u8,
    zero: [u8; 7],
    directory: u64,
    unused: [u8; 48],
}

impl HeadCell {
    fn new(directory: NodeId) -> Self {
        Self { tag: HEAD_TAG, zero: [0; 7], directory: directory.0, unused: [0; 48] }
    }

    fn cell(&self) -> Cell {
        transmute!(*self)
    }
}

/// A row as it stands in the arena.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RowCell {
    tag: u8,
    /// `DT_*`, 0 for a whiteout.
    kind: u8,
    name_length: u8,
    zero: u8,
    cookie: u32,
    /// The cell of the listing's head.
    listing: CellIndex,
    name_next: CellIndex,
    /// 0 where it is not known.
    id: u64,
    name_head: [u8; 40],
}

impl RowCell {
    /// Without a name yet.
    fn new(listing: CellIndex, cookie: u32, row: UpperRow) -> Self {
        let mut cell = Self {
            tag: ROW_TAG,
            kind: 0,
            name_length: 0,
            zero: 0,
            cookie,
            listing,
            name_next: 0,
            id: 0,
            name_head: [0; 40],
        };
        cell.set_row(row);
        cell
    }

    fn set_row(&mut self, row: UpperRow) {
        self.kind = row.kind.map_or(0, Kind::dirent_type);
        self.id = row.id.map_or(0, |id| id.0);
    }

    fn row(&self) -> UpperRow {
        let id = Some(NodeId(self.id)).filter(|id| id.0 != 0);
        UpperRow { kind: kind_of(self.kind), id }
    }

    fn name_place(&self) -> NamePlace<'_> {
        NamePlace { length: self.name_length, head: &self.name_head, next: self.name_next }
    }

    fn cell(&self) -> Cell {
        transmute!(*self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::union::node::Node;

    const DIRECTORY: NodeId = NodeId(2);
    const WHITEOUT: UpperRow = UpperRow { kind: None, id: None };
    const FILE: UpperRow = UpperRow { kind: Some(Kind::File), id: Some(NodeId(50)) };
    const SUBDIRECTORY: UpperRow = UpperRow { kind: Some(Kind::Directory), id: None };

    fn with_directory() -> Nodes {
        let nodes = Nodes::new().unwrap();
        remember(&nodes);
        nodes
    }

    fn remember(nodes: &Nodes) {
        let root = nodes.get(NodeId::ROOT).unwrap();
        let directory = Node { id: DIRECTORY, parent: NodeId::ROOT, ..root };
        nodes.remember(directory, b"directory").unwrap();
    }

    fn rows(names: &[(&str, UpperRow)]) -> Vec<(Vec<u8>, UpperRow)> {
        names.iter().map(|(name, row)| (name.as_bytes().to_vec(), *row)).collect()
    }

    fn listed(nodes: &Nodes, mut after: u32) -> Vec<(u32, String)> {
        let mut all = Vec::new();
        while let Some((cookie, name, _)) = nodes.next_row(DIRECTORY, after) {
            all.push((cookie, String::from_utf8(name).unwrap()));
            after = cookie;
        }
        all
    }

    /// The names in the order of their cookies, from a cookie on.
    fn placed(names: &[&str], after: u32) -> Vec<(u32, String)> {
        let place = |name: &&str| (place_of(name.as_bytes(), 0), (*name).to_owned());
        let mut rows: Vec<_> = names.iter().map(place).filter(|row| row.0 > after).collect();
        rows.sort_unstable();
        rows
    }

    #[test]
    fn listing_says_nothing_until_it_is_loaded() {
        let nodes = with_directory();
        assert!(!nodes.has_listing(DIRECTORY));
        nodes.set_row(DIRECTORY, b"x", FILE).unwrap();
        nodes.remove_row(DIRECTORY, b"x");
        assert_eq!(nodes.row(DIRECTORY, b"x"), None);
        assert_eq!(nodes.rows(DIRECTORY), 0);
        assert_eq!(nodes.load_listing(NodeId(99), Vec::new()), Err(Errno::STALE));
        nodes.load_listing(DIRECTORY, Vec::new()).unwrap();
        assert!(nodes.has_listing(DIRECTORY));
        assert_eq!(nodes.next_row(DIRECTORY, 0), None);
        assert_eq!(nodes.next_row(DIRECTORY, u32::MAX), None);
    }

    #[test]
    fn cookies_ascend_and_survive_changes_in_the_middle() {
        let nodes = with_directory();
        let names: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let all: Vec<_> = names.iter().map(|name| (*name, FILE)).collect();
        nodes.load_listing(DIRECTORY, rows(&all)).unwrap();
        let first = listed(&nodes, 0);
        assert_eq!(first, placed(&names, 0));
        // Who goes on from anywhere goes on from the same place, whatever came and went.
        for (name, _) in &all[..10] {
            nodes.remove_row(DIRECTORY, name.as_bytes());
        }
        nodes.remove_row(DIRECTORY, b"not there");
        for (cookie, _) in first {
            assert_eq!(listed(&nodes, cookie), placed(&names[10..], cookie));
        }
        nodes.set_row(DIRECTORY, b"new", FILE).unwrap();
        assert_eq!(listed(&nodes, 1), placed(&names[10..], 1), "born after the reader began");
        assert_eq!(listed(&nodes, 0), placed(&[&names[10..], &["new"]].concat(), 0));
        // A row that turns into a whiteout and back is the same row.
        nodes.set_row(DIRECTORY, b"new", WHITEOUT).unwrap();
        assert_eq!(nodes.row(DIRECTORY, b"new"), Some(WHITEOUT));
        nodes.set_row(DIRECTORY, b"new", SUBDIRECTORY).unwrap();
        assert_eq!(listed(&nodes, 0), placed(&[&names[10..], &["new"]].concat(), 0));
    }

    #[test]
    fn reader_who_makes_a_name_for_each_he_reads_comes_to_an_end() {
        let nodes = with_directory();
        nodes.load_listing(DIRECTORY, rows(&[("a", FILE), ("b", FILE)])).unwrap();
        let (mut after, mut seen) = (0, 0);
        while let Some((cookie, name, _)) = nodes.next_row(DIRECTORY, after) {
            nodes.remove_row(DIRECTORY, &name);
            nodes.set_row(DIRECTORY, &[&name[..], b"~"].concat(), FILE).unwrap();
            (after, seen) = (cookie, seen + 1);
        }
        assert_eq!(seen, 2);
        assert_eq!(listed(&nodes, 0), placed(&["a~", "b~"], 0));
    }

    #[test]
    fn counts_are_those_of_the_rows() {
        let nodes = with_directory();
        let counts = |nodes: &Nodes| {
            (nodes.rows(DIRECTORY), nodes.subdirectories(DIRECTORY), nodes.whiteouts(DIRECTORY))
        };
        nodes.load_listing(DIRECTORY, rows(&[("w", WHITEOUT), ("d", SUBDIRECTORY)])).unwrap();
        assert_eq!(counts(&nodes), (2, 1, 1));
        nodes.set_row(DIRECTORY, b"w", SUBDIRECTORY).unwrap();
        nodes.set_row(DIRECTORY, b"f", FILE).unwrap();
        assert_eq!(counts(&nodes), (3, 2, 0));
        nodes.set_row(DIRECTORY, b"d", WHITEOUT).unwrap();
        nodes.remove_row(DIRECTORY, b"w");
        assert_eq!(counts(&nodes), (2, 0, 1));
    }

    #[test]
    fn loading_again_changes_nothing() {
        let nodes = with_directory();
        nodes.load_listing(DIRECTORY, rows(&[("a", FILE), ("b", FILE)])).unwrap();
        nodes.remove_row(DIRECTORY, b"a");
        nodes.load_listing(DIRECTORY, rows(&[("a", FILE), ("b", FILE)])).unwrap();
        assert_eq!(listed(&nodes, 0), placed(&["b"], 0));
    }

    #[test]
    fn cookies_survive_the_process_and_rows_are_checked_against_the_disk() {
        let nodes = with_directory();
        let long = "l".repeat(255);
        let first = [("gone", FILE), ("stays", FILE), (long.as_str(), SUBDIRECTORY)];
        nodes.load_listing(DIRECTORY, rows(&first)).unwrap();
        let memory = nodes.memory().try_clone_to_owned().unwrap();
        drop(nodes);

        let nodes = Nodes::attach(memory).unwrap();
        assert!(!nodes.has_listing(DIRECTORY));
        let now = [("new", FILE), (long.as_str(), WHITEOUT), ("stays", FILE)];
        nodes.load_listing(DIRECTORY, rows(&now)).unwrap();
        assert_eq!(listed(&nodes, 0), placed(&["stays", &long, "new"], 0));
        let position = place_of(b"stays", 0);
        assert_eq!(listed(&nodes, position), placed(&[&long, "new"], position));
        assert_eq!(nodes.row(DIRECTORY, long.as_bytes()), Some(WHITEOUT));
        assert_eq!(nodes.subdirectories(DIRECTORY), 0);
    }

    #[test]
    fn listing_goes_with_its_node_and_leaves_no_cell() {
        let nodes = with_directory();
        let cells = nodes.arena.used().count();
        let many: Vec<_> = (0..1000).map(|n| (format!("{n:0100}").into_bytes(), FILE)).collect();
        nodes.load_listing(DIRECTORY, many.clone()).unwrap();
        nodes.drop_listing(DIRECTORY);
        assert!(!nodes.has_listing(DIRECTORY));
        assert_eq!(nodes.arena.used().count(), cells);

        nodes.load_listing(DIRECTORY, many.clone()).unwrap();
        assert_eq!(nodes.forget(DIRECTORY, 1).len(), 1);
        assert!(!nodes.has_listing(DIRECTORY));
        remember(&nodes);
        assert_eq!(nodes.arena.used().count(), cells);

        nodes.load_listing(DIRECTORY, many).unwrap();
        nodes.load_listing(NodeId::ROOT, rows(&[("directory", SUBDIRECTORY)])).unwrap();
        nodes.forget_all();
        assert_eq!(nodes.arena.used().count(), 1);
    }

    #[test]
    fn half_freed_listing_is_cleaned_up_by_whoever_attaches() {
        let nodes = with_directory();
        nodes.load_listing(DIRECTORY, rows(&[("a", FILE), (&"b".repeat(99), FILE)])).unwrap();
        let cells = nodes.arena.used().count();
        assert!(nodes.detach_listing(DIRECTORY).is_some());
        nodes.load_listing(DIRECTORY, rows(&[("c", FILE)])).unwrap();
        let again = Nodes::attach(nodes.memory().try_clone_to_owned().unwrap()).unwrap();
        again.load_listing(DIRECTORY, rows(&[("c", FILE)])).unwrap();
        assert_eq!(listed(&again, 0), placed(&["c"], 0));
        assert_eq!(again.arena.used().count(), cells - 3);
    }

    #[test]
    fn names_that_contend_for_a_place_get_one_each() {
        let nodes = with_directory();
        nodes.load_listing(DIRECTORY, Vec::new()).unwrap();
        let (first, second) = (place_of(b"a", 0), place_of(b"a", 1));
        let taken = Placed { cell: 1, birth: 0 };
        nodes.listing(DIRECTORY).unwrap().write().by_cookie.insert(first, taken);
        nodes.set_row(DIRECTORY, b"a", FILE).unwrap();
        let shared = nodes.listing(DIRECTORY).unwrap();
        shared.write().by_cookie.remove(&first);
        assert_eq!(listed(&nodes, 0), [(second, "a".to_owned())]);
        let mut listing = shared.write();
        listing.by_cookie.extend((0..PLACES).map(|attempt| (place_of(b"b", attempt), taken)));
        assert_eq!(listing.cookie_for(b"b"), Err(Errno::NOSPC));
    }

    #[test]
    fn births_start_anew_only_when_they_run_out() {
        let nodes = with_directory();
        nodes.load_listing(DIRECTORY, rows(&[("a", FILE), ("b", FILE)])).unwrap();
        nodes.listing(DIRECTORY).unwrap().write().births = u32::MAX;
        nodes.set_row(DIRECTORY, b"c", FILE).unwrap();
        assert_eq!(listed(&nodes, 1), placed(&["a", "b"], 1));
        assert_eq!(listed(&nodes, 0), placed(&["a", "b", "c"], 0));
    }

    /// Trap 16: a directory deleted while it is read shows every name it had once.
    #[test]
    fn threads_read_and_write_one_listing() {
        let nodes = with_directory();
        let many: Vec<_> = (0..2000).map(|n| (format!("old{n}").into_bytes(), FILE)).collect();
        nodes.load_listing(DIRECTORY, many).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let nodes = &nodes;
                scope.spawn(move || {
                    for n in 0..2000 {
                        let name = format!("new{thread}-{n}");
                        nodes.set_row(DIRECTORY, name.as_bytes(), FILE).unwrap();
                        assert_eq!(nodes.row(DIRECTORY, name.as_bytes()), Some(FILE));
                        if n % 2 == 0 {
                            nodes.remove_row(DIRECTORY, name.as_bytes());
                        }
                    }
                });
            }
            let (mut seen, mut after) = (0, 0);
            while let Some((cookie, name, _)) = nodes.next_row(DIRECTORY, after) {
                if name.starts_with(b"old") {
                    seen += 1;
                    nodes.remove_row(DIRECTORY, &name);
                }
                after = cookie;
            }
            assert_eq!(seen, 2000);
        });
        let left = listed(&nodes, 0);
        assert_eq!(left.len(), nodes.rows(DIRECTORY));
        assert!(left.iter().all(|(_, name)| name.starts_with("new")));
    }
}
