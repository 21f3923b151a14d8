//! A script played on a union and on a private copy of its lower, which should not be told apart.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags};

use super::cast::{Cast, HANGS};
use super::dice::Dice;
use super::script::{Operation, Who};
use super::tally::Tally;
use super::{comparable, copy_tree, improvise, make_tree, remove};
use crate::laws::plot::{Plot, read_all};
use crate::mount::{Mount, Site};
use crate::tree;

/// Where both stand, and who acts.
#[derive(Debug)]
pub struct Duel<'a> {
    /// Holds the union.
    pub site: &'a Site,
    /// Where the copy is to be.
    pub copy: PathBuf,
    /// The program `actor`.
    pub actor: &'a Path,
    /// What was done so far.
    pub tally: RefCell<Tally>,
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
        self.lay_out(&mut |cast| {
            for operation in &script[..begin] {
                cast.perform(operation);
            }
        });
        self.judge(&mut |round| {
            let mut rest = script[begin + 1..].iter().enumerate();
            rest.try_for_each(|(number, operation)| round.perform(number, operation))
        })
    }

    /// Plays so many operations at random on a tree at random, and gives what was played.
    ///
    /// Errors: as [`Self::play`]'s.
    ///
    /// # Panics
    /// As [`Self::play`].
    pub fn improvise(&self, seed: u64, count: usize) -> (Vec<Operation>, Result<(), String>) {
        let mut script = Vec::new();
        self.lay_out(&mut |cast| {
            script = make_tree(seed, &self.site.lower(), &mut |operation| {
                cast.perform(operation);
            });
        });
        script.push(Operation::new(Who::Stage, "begin"));
        let told = self.judge(&mut |round| {
            let (mut dice, mut number) = (Dice::new(seed), 0);
            let play = &mut |operation: &Operation| {
                number += 1;
                round.perform(number - 1, operation)
            };
            let chosen = (&mut dice, Dice::operation as fn(&mut Dice) -> Operation);
            let (played, told) = improvise(chosen, (&self.copy, count), play);
            script.extend(played);
            told
        });
        (script, told)
    }

    /// Has something played on layers that are laid out, and looks at what became of them.
    fn judge(
        &self,
        play: &mut dyn FnMut(&mut Round<'_>) -> Result<(), String>,
    ) -> Result<(), String> {
        let before = tree::manifest(&self.site.lower());
        let mut round = Round::begin(self);
        let told = play(&mut round).and_then(|()| round.compare());
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

    /// A lower that is made anew, with old times, and a copy of it.
    fn lay_out(&self, make: &mut dyn FnMut(&mut Cast)) {
        let site = self.site;
        for path in [site.lower(), site.upper(), site.work(), self.copy.clone()] {
            remove(&path);
        }
        if site.index().exists() {
            fs::remove_file(site.index()).unwrap_or_else(|e| panic!("the index: {e}"));
        }
        for path in [site.lower(), site.upper()] {
            fs::create_dir(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        }
        let mut cast = Cast::on(&site.lower(), self.actor);
        make(&mut cast);
        drop(cast);
        let aged = crate::laws::ground::age(&Plot::new(site.lower()), Path::new(""));
        aged.unwrap_or_else(|failure| panic!("{failure}"));
        copy_tree(&site.lower(), &self.copy);
        // Room on a disk is known when it is written. No other disk is waited for.
        let synced = fs::File::open(&self.copy).and_then(|copy| Ok(rustix::fs::syncfs(copy)?));
        synced.unwrap_or_else(|error| panic!("syncing {}: {error}", self.copy.display()));
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
        self.copy = Some(Cast::on(&self.duel.copy, self.duel.actor));
    }

    fn perform(&mut self, number: usize, operation: &Operation) -> Result<(), String> {
        let told = match operation.verb() {
            "remount" | "crash" => self.begin_anew(operation.verb()),
            _ => self.both(operation),
        };
        told.map_err(|what| format!("operation {number}, {operation}: {what}"))
    }

    fn both(&mut self, operation: &Operation) -> Result<(), String> {
        let (Some(union), Some(copy)) = (&mut self.union, &mut self.copy) else {
            return Err("nobody acts".to_owned());
        };
        let (expected, found) = (copy.perform(operation), union.perform(operation));
        self.duel.tally.borrow_mut().add(operation, &found);
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
            self.write_back()?;
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

    /// A crash may lose what is in the mount's cache alone: read past it, it is written first. Nothing
    /// is synced.
    fn write_back(&self) -> Result<(), String> {
        let plot = Plot::new(self.duel.site.point());
        let written = tree::walk(&plot, Path::new(""), &mut |path| {
            if plot.kind(path)? != FileType::RegularFile {
                return Ok(());
            }
            let file = plot.open(path, OFlags::RDONLY | OFlags::DIRECT)?;
            read_all(&file).map(drop)
        });
        written.map_err(|failure| failure.text)
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
        let expected = comparable(&self.duel.copy);
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
