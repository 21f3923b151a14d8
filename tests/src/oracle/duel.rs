//! A script played on a union and on a private copy of its lower, which should not be told apart.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags};

use super::cast::{Cast, HANGS};
use super::script::Operation;
use super::{comparable, copy_tree, remove};
use crate::laws::plot::{Plot, call};
use crate::mount::{Mount, Site};
use crate::tree;

/// Where both stand, and who acts.
#[derive(Debug)]
pub struct Duel<'a> {
    /// Holds the union and the copy.
    pub site: &'a Site,
    /// The program `actor`.
    pub actor: &'a Path,
    /// What was done so far.
    pub tally: Cell<Tally>,
}

/// Operations done, each on both trees.
#[derive(Clone, Copy, Default, Debug)]
pub struct Tally {
    /// All of them.
    pub operations: u64,
    /// Those that both refused.
    pub refused: u64,
}

impl Duel<'_> {
    /// Plays a whole script on fresh layers.
    ///
    /// Errors: the first difference, in words.
    ///
    /// # Panics
    /// If there is no ground to play on.
    pub fn play(&self, script: &[Operation]) -> Result<(), String> {
        let begin = script.iter().position(|operation| operation.is_direction("begin"));
        let Some(begin) = begin else { return Ok(()) };
        self.lay_out(&script[..begin]);
        let before = tree::manifest(&self.site.lower());
        let mut round = Round::begin(self);
        let played = round.play(&script[begin + 1..]);
        let told = played.and_then(|()| round.compare());
        round.end();
        told?;
        self.check()?;
        let changed = tree::differences(&before, &tree::manifest(&self.site.lower()));
        if changed.is_empty() { Ok(()) } else { Err(format!("the lower: {}", changed.join("; "))) }
    }

    /// What is left in the upper is as it should be.
    fn check(&self) -> Result<(), String> {
        let output = self.site.command("check").output();
        let output = output.map_err(|error| format!("thinroot check: {error}"))?;
        let said = String::from_utf8_lossy(&output.stdout);
        if output.status.success() { Ok(()) } else { Err(format!("thinroot check: {said}")) }
    }

    /// A lower made by the script's first part, with old times, and a copy of it.
    fn lay_out(&self, script: &[Operation]) {
        let site = self.site;
        for path in [site.lower(), site.upper(), site.work(), self.copy()] {
            remove(&path);
        }
        if site.index().exists() {
            fs::remove_file(site.index()).unwrap_or_else(|e| panic!("the index: {e}"));
        }
        for path in [site.lower(), site.upper()] {
            fs::create_dir(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        }
        let mut cast = Cast::on(&site.lower(), self.actor);
        for operation in script {
            cast.perform(operation);
        }
        drop(cast);
        let aged = crate::laws::ground::age(&Plot::new(site.lower()), Path::new(""));
        aged.unwrap_or_else(|failure| panic!("{failure}"));
        copy_tree(&site.lower(), &self.copy());
        // Room on a disk is known when it is written.
        rustix::fs::sync();
    }

    fn copy(&self) -> PathBuf {
        self.site.path().join("copy")
    }
}

/// The numbers of all objects, by their paths.
type Numbers = BTreeMap<PathBuf, u64>;

/// One script under way.
struct Round<'a> {
    duel: &'a Duel<'a>,
    mount: Option<Mount>,
    union: Option<Cast>,
    copy: Option<Cast>,
}

impl<'a> Round<'a> {
    fn begin(duel: &'a Duel<'a>) -> Self {
        let mut round = Self { duel, mount: None, union: None, copy: None };
        round.mount();
        round
    }

    fn mount(&mut self) {
        let site = self.duel.site;
        self.mount = Some(site.mount(&[]));
        self.union = Some(Cast::on(&site.point(), self.duel.actor));
        self.copy = Some(Cast::on(&self.duel.copy(), self.duel.actor));
    }

    fn play(&mut self, script: &[Operation]) -> Result<(), String> {
        for (number, operation) in script.iter().enumerate() {
            let told = match operation.verb() {
                "remount" | "crash" => self.begin_anew(operation.verb()),
                _ => self.both(operation),
            };
            told.map_err(|what| format!("operation {number}, {operation}: {what}"))?;
        }
        Ok(())
    }

    fn both(&mut self, operation: &Operation) -> Result<(), String> {
        let (Some(union), Some(copy)) = (&mut self.union, &mut self.copy) else {
            return Err("nobody acts".to_owned());
        };
        let (expected, found) = (copy.perform(operation), union.perform(operation));
        let mut tally = self.duel.tally.get();
        tally.operations += 1;
        tally.refused += u64::from(found.contains("os error"));
        self.duel.tally.set(tally);
        if expected == found && !found.contains(HANGS) {
            Ok(())
        } else {
            Err(format!("{found} instead of {expected}"))
        }
    }

    /// Nothing is held or cached any more; every object keeps its number.
    fn begin_anew(&mut self, how: &str) -> Result<(), String> {
        (self.union, self.copy) = (None, None);
        let before = self.numbers()?;
        if how == "crash" {
            self.sync()?;
        }
        let Some(mount) = self.mount.take() else { return Err("nothing is mounted".to_owned()) };
        if how == "crash" {
            mount.crash();
        } else if !mount.try_unmount() {
            return Err("the daemon did not end in order".to_owned());
        }
        self.mount();
        let changed: Vec<_> = self
            .numbers()?
            .into_iter()
            .filter(|(path, number)| before.get(path) != Some(number))
            .collect();
        if changed.is_empty() { Ok(()) } else { Err(format!("new numbers: {changed:?}")) }
    }

    /// A crash may lose what was not synced: a known difference. One by one, for the kernel sends no
    /// SYNCFS through the mount door.
    fn sync(&self) -> Result<(), String> {
        let plot = Plot::new(self.duel.site.point());
        let synced = tree::walk(&plot, Path::new(""), &mut |path| {
            if plot.kind(path)? != FileType::RegularFile {
                return Ok(());
            }
            let file = plot.open(path, OFlags::RDONLY)?;
            call("fsync", rustix::fs::fsync(&file))
        });
        synced.map_err(|failure| failure.text)
    }

    fn numbers(&self) -> Result<Numbers, String> {
        let plot = Plot::new(self.duel.site.point());
        let mut numbers = Numbers::new();
        let walked = tree::walk(&plot, Path::new(""), &mut |path| {
            numbers.insert(path.to_owned(), plot.number(path)?);
            Ok(())
        });
        walked.map(|()| numbers).map_err(|failure| failure.text)
    }

    /// Both trees, before and after a remount.
    fn compare(&mut self) -> Result<(), String> {
        (self.union, self.copy) = (None, None);
        let expected = comparable(&self.duel.copy());
        for when in ["before", "after"] {
            let found = tree::compare(&expected, &comparable(&self.duel.site.point()));
            if !found.is_empty() {
                return Err(format!("{when} a remount: {}", found.join("; ")));
            }
            if when == "before" {
                self.begin_anew("remount")?;
                (self.union, self.copy) = (None, None);
            }
        }
        Ok(())
    }

    fn end(mut self) {
        // Who hangs in the union is let go by the daemon's death.
        let mount = self.mount.take();
        (self.union, self.copy) = (None, None);
        if let Some(mount) = mount
            && !mount.try_unmount()
        {
            eprintln!("a union could not be unmounted in order, and was killed");
        }
    }
}
