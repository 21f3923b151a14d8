//! Every changing operation of the union, with each of its system calls failing once, and with the
//! process ending before each and after the last: the tree is then the old one or the new one, the
//! upper is clean, and nothing is left over. And so when the start that follows ends early too.
//!
//! Some of the changes as a rule; all of them, and the deaths of starts, with `THINROOT_FAULTS=all`
//! (`cargo xtask crash`); with any other word those whose names hold it.
//!
//! Alone in its process: the fault hook counts the calls of all threads. Needs root for
//! `trusted.*` marks.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod ground;
mod guest;
mod rows;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use ground::{Ground, join};
use guest::Guest;
use rows::{Row, rows};
use rustix::io::Errno;
use thinroot::sys::fault;

/// What was found wrong, told together at the end.
#[derive(Default)]
struct Verdict {
    points: u32,
    wrong: Vec<String>,
}

impl Verdict {
    fn check(
        &mut self,
        point: &str,
        tree: &BTreeMap<String, String>,
        allowed: &[&BTreeMap<String, String>],
    ) {
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

    fn end(self, what: &str) {
        println!("{} points, {} wrong: {what}", self.points, self.wrong.len());
        assert!(self.wrong.is_empty(), "{}", self.wrong.join("\n"));
    }
}

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        // Past the harness, which would keep it to itself.
        let line = "SKIPPED faults: needs root for trusted.* marks\n";
        std::io::stderr().write_all(line.as_bytes()).unwrap();
    }
    is_root
}

/// Where the fault hook's process is the child of a test: `ROW:NTH`.
const CHILD: &str = "THINROOT_FAULTS_CHILD";
const PLACE: &str = "THINROOT_FAULTS_PLACE";

/// Both loops in one test: the hook is one for the whole process.
#[test]
fn each_change_leaves_the_old_tree_or_the_new_one() {
    if let Ok(child) = std::env::var(CHILD) {
        return die(&child);
    }
    if !is_root() {
        return;
    }
    let which = std::env::var("THINROOT_FAULTS").ok();
    let mut matrix = Matrix {
        ground: Ground::new(),
        has_all: which.as_deref() == Some("all"),
        failed: Verdict::default(),
        killed: Verdict::default(),
        restarted: Verdict::default(),
    };
    let rows = rows();
    let is_chosen = |(index, row): &(usize, &Row)| match which.as_deref() {
        Some("all") => true,
        Some(word) => row.name.contains(word),
        // All take minutes: as a rule some stand for them.
        None => index % 9 == 0,
    };
    let chosen: Vec<_> = rows.iter().enumerate().filter(is_chosen).collect();
    for (index, row) in &chosen {
        matrix.interrupt(*index, row);
    }
    println!("{} changes", chosen.len());
    matrix.failed.end("each call failed with ENOSPC, EIO and EINTR");
    matrix.killed.end("the process ended before each call, and after the last");
    matrix.restarted.end("and so did the start after that, at each of its own");
}

type Tree = BTreeMap<String, String>;

/// All that is done to each change.
struct Matrix {
    ground: Ground,
    has_all: bool,
    failed: Verdict,
    killed: Verdict,
    restarted: Verdict,
}

impl Matrix {
    fn interrupt(&mut self, index: usize, row: &Row) {
        let union = self.ground.begin(row);
        let old = Guest(&union).tree();
        (row.change)(&Guest(&union)).unwrap_or_else(|e| panic!("{}: {e}", row.name));
        let new = Guest(&union).tree();
        drop(union);
        assert_eq!(self.ground.tree_after_remount(), new, "{}: after a remount", row.name);
        for errno in [Errno::NOSPC, Errno::IO, Errno::INTR] {
            self.fail_each(row, errno, (&old, &new));
        }
        self.kill_at_each(row, index, (&old, &new));
    }

    fn fail_each(&mut self, row: &Row, errno: Errno, (old, new): (&Tree, &Tree)) {
        for nth in 1.. {
            let union = self.ground.begin(row);
            let guest = Guest(&union);
            fault::fail_at(nth, errno);
            let done = (row.change)(&guest);
            if !fault::disarm() {
                assert_eq!(done, Ok(()), "{}: nothing failed", row.name);
                break;
            }
            let verdict = &mut self.failed;
            verdict.points += 1;
            let point = format!("{}, call {nth}, {errno:?} gave {done:?}", row.name);
            let expected = if done.is_ok() {
                // What failed was a clean-up, which the next start ends.
                new.clone()
            } else {
                let live = guest.tree();
                verdict.check(&format!("{point}, live"), &live, &[old, new]);
                if live == *old {
                    let again = (row.change)(&guest);
                    verdict.check(&format!("{point}, again gave {again:?}"), &guest.tree(), &[new]);
                }
                guest.tree()
            };
            drop(union);
            self.remount(&point, &[&expected], |matrix| &mut matrix.failed);
        }
    }

    fn kill_at_each(&mut self, row: &Row, index: usize, (old, new): (&Tree, &Tree)) {
        for nth in 1.. {
            drop(self.ground.begin(row));
            let is_last = self.child(&format!("{index}:{nth}"));
            self.killed.points += 1;
            let point = format!("{}, ended before call {nth}", row.name);
            self.remount(&point, &[old, new], |matrix| &mut matrix.killed);
            if self.has_all {
                self.kill_start_at_each(row, &format!("{index}:{nth}"), &[old, new]);
            }
            if is_last {
                break;
            }
        }
    }

    /// The start after a death ends before each of its own calls; the one after that does not.
    fn kill_start_at_each(&mut self, row: &Row, death: &str, allowed: &[&Tree]) {
        for nth in 1.. {
            drop(self.ground.begin(row));
            self.child(death);
            if self.child(&format!("start:{nth}")) {
                break;
            }
            self.restarted.points += 1;
            let point = format!("{}, ended at {death}, its start at call {nth}", row.name);
            self.remount(&point, allowed, |matrix| &mut matrix.restarted);
        }
    }

    /// The upper as it was left, and after a start.
    fn remount(&mut self, point: &str, allowed: &[&Tree], verdict: fn(&mut Self) -> &mut Verdict) {
        let damage = self.ground.damage();
        let tree = self.ground.tree_after_remount();
        let left = self.ground.leftovers();
        let verdict = verdict(self);
        verdict.check(&format!("{point}, remounted"), &tree, allowed);
        for (what, found) in [("is damaged", damage), ("after a start holds", left)] {
            if !found.is_empty() {
                verdict.wrong.push(format!("{point}: the upper {what}: {found:?}"));
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

/// The child: makes the change, or starts, and ends before its N-th call; or after the last.
fn die(child: &str) {
    let (what, nth) = child.split_once(':').unwrap();
    let temp = std::env::var(PLACE).unwrap();
    let nth = nth.parse().unwrap();
    if what == "start" {
        fault::kill_at(nth);
        // Not dropped: an end is not orderly.
        std::mem::forget(join(Path::new(&temp)));
    } else {
        let union = join(Path::new(&temp));
        let rows = rows();
        fault::kill_at(nth);
        (rows[what.parse::<usize>().unwrap()].change)(&Guest(&union)).unwrap();
        std::mem::forget(union);
    }
    fault::disarm();
}
