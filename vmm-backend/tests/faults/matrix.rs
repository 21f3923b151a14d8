//! All that is done to one change, and what is found wrong.

use std::collections::BTreeMap;
use std::process::Command;

use rustix::io::Errno;
use thinroot::life::check::Finding;
use thinroot::sys::fault;

use super::ground::{Form, Ground, join};
use super::growth::grow_after_each;
use super::guest::Guest;
use super::rows::Row;
use super::{CHILD, PLACE};

type Tree = BTreeMap<String, String>;

/// A row, on an upper of one form.
pub struct Change {
    pub row: Row,
    pub form: &'static Form,
}

/// What was found wrong, told together at the end.
#[derive(Default)]
struct Verdict {
    points: u32,
    wrong: Vec<String>,
}

impl Verdict {
    fn check(&mut self, point: &str, tree: &Tree, allowed: &[&Tree]) {
        if !allowed.contains(&tree) {
            let nearest = allowed[0];
            let differs: Vec<_> = tree
                .iter()
                .filter(|(path, line)| nearest.get(*path) != Some(*line))
                .map(|(path, line)| format!("{path}: {line}"))
                .chain(
                    nearest
                        .keys()
                        .filter(|path| !tree.contains_key(*path))
                        .map(|path| format!("{path}: missing")),
                )
                .collect();
            self.wrong.push(format!("{point}: neither old nor new: {differs:?}"));
        }
    }
}

/// The line that tells how many points there were, how many findings, and of what.
pub fn write_end(points: u32, wrong: u32, what: &str) -> String {
    format!("{points} points, {wrong} wrong: {what}")
}

/// Reads such a line.
pub fn read_end(line: &str) -> Option<(u32, u32, &str)> {
    let (points, rest) = line.split_once(" points, ")?;
    let (wrong, what) = rest.split_once(" wrong: ")?;
    Some((points.parse().ok()?, wrong.parse().ok()?, what))
}

/// All that is done to each change.
pub struct Matrix {
    ground: Ground,
    kills_starts: bool,
    failed: Verdict,
    killed: Verdict,
    restarted: Verdict,
    grown: Verdict,
}

impl Matrix {
    pub fn new(kills_starts: bool) -> Self {
        Self {
            ground: Ground::new(),
            kills_starts,
            failed: Verdict::default(),
            killed: Verdict::default(),
            restarted: Verdict::default(),
            grown: Verdict::default(),
        }
    }

    /// Says how many points there were, and gives what was wrong.
    pub fn end(self) -> Vec<String> {
        let verdicts = [
            (self.failed, "each call failed with ENOSPC, EIO and EINTR"),
            (self.killed, "the process ended before each call, and after the last"),
            (self.restarted, "and so did the start after that, at each of its own"),
            (self.grown, "and a file that was being cut grew again"),
        ];
        let mut all = Vec::new();
        for (verdict, what) in verdicts {
            let wrong = u32::try_from(verdict.wrong.len()).unwrap();
            println!("{}", write_end(verdict.points, wrong, what));
            all.extend(verdict.wrong);
        }
        all
    }

    /// Tries a change; `index` is its number.
    pub fn interrupt(&mut self, index: usize, change: &Change) {
        let lower = Guest(&self.ground.begin_empty(change.form)).tree();
        let union = self.ground.begin(change);
        let old = Guest(&union).tree();
        (change.row.change)(&Guest(&union)).unwrap_or_else(|e| panic!("{change}: {e}"));
        let new = Guest(&union).tree();
        drop(union);
        assert_eq!(self.ground.tree_after_remount(change.form), new, "{change}: after a remount");
        for errno in [Errno::NOSPC, Errno::IO, Errno::INTR] {
            self.fail_each(change, errno, [&lower, &old, &new]);
        }
        self.kill_at_each(change, index, &[&old, &new]);
        if self.kills_starts {
            self.stop_start_at_each(change, &[&old, &new]);
        }
        let (points, wrong) = grow_after_each(&self.ground, change);
        self.grown.points += points;
        self.grown.wrong.extend(wrong);
    }

    fn fail_each(&mut self, change: &Change, errno: Errno, [lower, old, new]: [&Tree; 3]) {
        for nth in 1.. {
            let union = self.ground.begin(change);
            let guest = Guest(&union);
            let places = guest.places_of_removed(lower, old);
            fault::fail_at(nth, errno);
            let done = (change.row.change)(&guest);
            if !fault::disarm() {
                assert_eq!(done, Ok(()), "{change}: nothing failed");
                break;
            }
            let verdict = &mut self.failed;
            verdict.points += 1;
            let point = format!("{change}, call {nth}, {errno:?} gave {done:?}");
            // Before anything is looked up again.
            let births = done.is_err().then(|| {
                let tried = places.iter().map(|(at, name)| (name, guest.try_place(*at, name)));
                let failed = tried.filter_map(|(name, born)| Some((name, born.err()?)));
                let tell = |(name, e)| format!("{point}: birth of {name} gave {e:?}");
                failed.map(tell).collect::<Vec<_>>()
            });
            let live = guest.tree();
            // If it went well, what failed was a clean-up, which the next start ends.
            let allowed = if done.is_ok() { &[new][..] } else { &[old, new] };
            verdict.check(&format!("{point}, live"), &live, allowed);
            if done.is_err() && live == *old {
                verdict.wrong.extend(births.into_iter().flatten());
                let again = (change.row.change)(&guest);
                verdict.check(&format!("{point}, again gave {again:?}"), &guest.tree(), &[new]);
            }
            let expected = if done.is_ok() { new.clone() } else { guest.tree() };
            drop(union);
            self.remount(change.form, &point, &[&expected], |matrix| &mut matrix.failed);
        }
    }

    fn kill_at_each(&mut self, change: &Change, index: usize, allowed: &[&Tree]) {
        for nth in 1.. {
            drop(self.ground.begin(change));
            let is_last = self.child(&format!("{index}:{nth}"));
            self.killed.points += 1;
            let point = format!("{change}, ended before call {nth}");
            self.remount(change.form, &point, allowed, |matrix| &mut matrix.killed);
            if is_last {
                break;
            }
        }
    }

    /// At each call of a change it ends, and at each of its own the start that follows; the one after
    /// that does not. There are too many of these to play each death by a process that ends.
    fn stop_start_at_each(&mut self, change: &Change, allowed: &[&Tree]) {
        for death in 1.. {
            let mut is_last = false;
            for nth in 1.. {
                drop(self.ground.begin(change));
                let union = join(self.ground.path(), change.form).unwrap();
                fault::freeze_at(death);
                let done = (change.row.change)(&Guest(&union));
                is_last = !fault::disarm();
                // Nor has what comes with an orderly end any effect.
                fault::freeze_at(1);
                drop(union);
                fault::disarm();
                assert!(!is_last || done.is_ok(), "{change}: {done:?}");
                fault::freeze_at(nth);
                drop(join(self.ground.path(), change.form));
                if !fault::disarm() {
                    break;
                }
                self.restarted.points += 1;
                let point = format!("{change}, ended at call {death}, its start at {nth}");
                self.remount(change.form, &point, allowed, |matrix| &mut matrix.restarted);
            }
            if is_last {
                break;
            }
        }
    }

    /// The upper as it was left, and after a start.
    fn remount(
        &mut self,
        form: &Form,
        point: &str,
        allowed: &[&Tree],
        verdict: fn(&mut Self) -> &mut Verdict,
    ) {
        let damage = self.ground.damage(form);
        let tree = self.ground.tree_after_remount(form);
        let left = self.ground.leftovers(form);
        let verdict = verdict(self);
        verdict.check(&format!("{point}, remounted"), &tree, allowed);
        for (what, found) in [("is damaged", damage), ("after a start holds", left)] {
            if !found.is_empty() {
                let told: Vec<_> = found.iter().map(tell).collect();
                verdict.wrong.push(format!("{point}: the upper {what}: {told:?}"));
            }
        }
    }

    /// Runs this test as a child that ends where it is told to; whether it came to its own end.
    fn child(&self, what: &str) -> bool {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.env(CHILD, what).env(PLACE, self.ground.path());
        child.output().unwrap().status.success()
    }
}

fn tell(finding: &Finding) -> String {
    let (place, path) = (finding.place, finding.path.escape_ascii());
    format!("{place:?}: {path}: {:?}", finding.damage)
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.row.name, self.form.name)
    }
}
