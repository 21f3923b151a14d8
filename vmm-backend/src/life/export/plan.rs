//! What a difference is as a layer. Pure.

use std::collections::BTreeMap;

use super::super::diff::{Change, Row};
use crate::filesystem::Kind;

/// What becomes of one path.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Item {
    /// A name of the base that may be gone.
    Gone,
    /// The object, alone.
    Object,
    /// A directory with all that it shows, and nothing of the base.
    Tree,
}

/// The items of a layer, parents before what is in them.
pub fn plan(rows: &[Row]) -> BTreeMap<Vec<u8>, Item> {
    let mut items: BTreeMap<Vec<u8>, Item> = BTreeMap::new();
    let mut take = |path: &[u8], item| {
        let had = items.entry(path.to_vec()).or_insert(item);
        *had = item.max(*had);
    };
    for Row { path, kind, change } in rows {
        match change {
            Change::Deleted => take(path, Item::Gone),
            Change::Renamed(from) => {
                take(from, Item::Gone);
                let is_directory = *kind == Kind::Directory;
                take(path, if is_directory { Item::Tree } else { Item::Object });
            }
            _ => take(path, Item::Object),
        }
    }
    let trees: Vec<_> = items
        .iter()
        .filter(|(_, item)| **item == Item::Tree)
        .map(|(path, _)| path.clone())
        .collect();
    // What is in a tree comes with it.
    let is_below = |path: &[u8], tree: &[u8]| {
        path.strip_prefix(tree).is_some_and(|rest| rest.starts_with(b"/"))
    };
    items.retain(|path, _| !trees.iter().any(|tree| is_below(path, tree)));
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moved_directory_is_whole_and_its_old_name_may_be_gone() {
        let row = |path: &str, kind, change| Row { path: path.into(), kind, change };
        let rows = [
            row("a", Kind::File, Change::Deleted),
            row("b", Kind::Directory, Change::Renamed(b"old".to_vec())),
            row("b", Kind::Directory, Change::Metadata),
            row("b/gone", Kind::File, Change::Deleted),
            row("b-side", Kind::File, Change::Added),
            row("c", Kind::File, Change::Renamed(b"d".to_vec())),
            row("d", Kind::File, Change::Added),
        ];
        let expected = [
            ("a", Item::Gone),
            ("b", Item::Tree),
            ("b-side", Item::Object),
            ("c", Item::Object),
            ("d", Item::Object),
            ("old", Item::Gone),
        ];
        let found: Vec<_> = plan(&rows).into_iter().collect();
        let expected = expected.map(|(path, item)| (path.as_bytes().to_vec(), item));
        assert_eq!(found, expected);
    }
}
