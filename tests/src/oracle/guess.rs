//! What may be there: seen from outside now and then, and guessed in between, so that most of what
//! the dice choose meets something.

use std::collections::BTreeMap;
use std::path::Path;

use rustix::fs::{FileType, Stat};

use super::actor::{USER, USER_GROUP};
use super::dice::SLOTS;
use super::script::word;
use crate::laws::plot::Plot;
use crate::tree;

/// What an object is good for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sort {
    Directory,
    File,
    Symlink,
    /// FIFOs, sockets and devices.
    Special,
}

/// One object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Thing {
    pub sort: Sort,
    /// The actor without privilege can change it.
    pub is_users: bool,
}

/// Every path, and what each actor holds.
#[derive(Clone, Default, Debug)]
pub(super) struct Guess {
    paths: BTreeMap<String, Thing>,
    held: [[Option<Sort>; SLOTS as usize]; 3],
}

impl Guess {
    /// Looks at what is there. Where that cannot be seen, as below a mount of fuse-overlayfs, which
    /// may list what is gone, it stays a guess.
    pub(super) fn see(&mut self, root: &Path) {
        let plot = Plot::new(root);
        let mut seen = Self::default();
        let walked = tree::walk(&plot, Path::new(""), &mut |path| {
            if path.as_os_str().is_empty() {
                return Ok(());
            }
            let stat = plot.stat(path)?;
            let words: Vec<_> = path.iter().map(word).collect();
            let path = format!("/{}", words.join("/"));
            let is_reached = seen.parent(&path).is_none_or(|parent| parent.is_users);
            let is_users = is_reached && is_users(&stat);
            seen.paths.insert(path, Thing { sort: sort(&stat), is_users });
            Ok(())
        });
        if walked.is_ok() {
            self.paths = seen.paths;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.paths.len()
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.paths.contains_key(path)
    }

    pub(super) fn is_empty_directory(&self, path: &str) -> bool {
        let below = format!("{path}/");
        self.paths.range(below.clone()..).next().is_none_or(|(other, _)| !other.starts_with(&below))
    }

    /// Every path with a thing that is wanted, in order.
    pub(super) fn all(&self, is_wanted: impl Fn(&Thing) -> bool) -> Vec<String> {
        let wanted = self.paths.iter().filter(|(_, thing)| is_wanted(thing));
        wanted.map(|(path, _)| path.clone()).collect()
    }

    fn parent(&self, path: &str) -> Option<&Thing> {
        path.rsplit_once('/').and_then(|(parent, _)| self.paths.get(parent))
    }

    /// Something is born, if its directory is there.
    pub(super) fn born(&mut self, path: &str, sort: Sort) {
        let is_at_root = path.starts_with('/') && path.matches('/').count() == 1;
        let is_below = self.parent(path).is_some_and(|parent| parent.sort == Sort::Directory);
        if is_at_root || is_below {
            self.paths.entry(path.to_owned()).or_insert(Thing { sort, is_users: true });
        }
    }

    /// Takes out a path and what is below it.
    pub(super) fn take(&mut self, path: &str) -> Vec<(String, Thing)> {
        let below = format!("{path}/");
        let is_taken = |other: &String| other == path || other.starts_with(&below);
        let (taken, left): (BTreeMap<_, _>, _) =
            std::mem::take(&mut self.paths).into_iter().partition(|(other, _)| is_taken(other));
        self.paths = left;
        taken.into_iter().map(|(other, thing)| (other[path.len()..].to_owned(), thing)).collect()
    }

    pub(super) fn moved(&mut self, from: &str, to: &str, is_exchange: bool) {
        let goes_below = format!("{to}/").starts_with(&format!("{from}/"));
        if goes_below || !self.has(from) {
            return;
        }
        let (moved, replaced) = (self.take(from), self.take(to));
        self.paths.extend(moved.into_iter().map(|(rest, thing)| (format!("{to}{rest}"), thing)));
        if is_exchange {
            let back = replaced.into_iter().map(|(rest, thing)| (format!("{from}{rest}"), thing));
            self.paths.extend(back);
        }
    }

    /// An actor takes hold of something, or lets go.
    pub(super) fn hold(&mut self, who: usize, slot: u32, sort: Option<Sort>) {
        self.held[who][slot as usize] = sort;
    }

    pub(super) fn sort_of(&self, path: &str) -> Option<Sort> {
        self.paths.get(path).map(|thing| thing.sort)
    }

    /// Slots in which an actor holds what is wanted.
    pub(super) fn slots(&self, who: usize, is_wanted: impl Fn(Sort) -> bool) -> Vec<u32> {
        let slots = (0..SLOTS).zip(self.held[who]);
        slots.filter(|(_, held)| held.is_some_and(&is_wanted)).map(|(slot, _)| slot).collect()
    }

    /// Nobody holds anything any more.
    pub(super) fn let_go(&mut self) {
        self.held = Default::default();
    }
}

fn sort(stat: &Stat) -> Sort {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Sort::Directory,
        FileType::RegularFile => Sort::File,
        FileType::Symlink => Sort::Symlink,
        _ => Sort::Special,
    }
}

/// By the mode alone; ACLs say more.
fn is_users(stat: &Stat) -> bool {
    let shift = match (stat.st_uid == USER, [USER, USER_GROUP].contains(&stat.st_gid)) {
        (true, _) => 6,
        (false, true) => 3,
        (false, false) => 0,
    };
    let needed = if sort(stat) == Sort::Directory { 0o7 } else { 0o6 };
    (stat.st_mode >> shift) & needed == needed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_takes_along_what_is_below_it() {
        let mut guess = Guess::default();
        for (path, sort) in [
            ("/a", Sort::Directory),
            ("/a/b", Sort::File),
            ("/c", Sort::File),
            ("/x/y", Sort::File),
        ] {
            guess.born(path, sort);
        }
        guess.moved("/a", "/c", true);
        assert_eq!(guess.all(|_| true), ["/a", "/c", "/c/b"], "nothing is born in no directory");
        assert!(!guess.is_empty_directory("/c") && guess.is_empty_directory("/c/b"));
        guess.moved("/c", "/c/b/d", false);
        assert!(guess.has("/c/b"), "nothing moves below itself");
    }
}
