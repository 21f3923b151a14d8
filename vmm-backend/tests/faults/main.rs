//! Every changing operation of the union, with each of its system calls failing once, and with the
//! process ending before each and after the last: the tree is then the old one or the new one, the
//! upper is clean, and nothing is left over. And so when the start that follows ends early too. What
//! a cut took stays gone, however the file grows after it.
//!
//! Some of the changes as a rule, without the deaths of starts; everything with
//! `THINROOT_FAULTS=all` (`cargo xtask crash`); with any other word the changes whose names hold it.
//!
//! Alone in its process: the fault hook counts the calls of all threads. Needs root for
//! `trusted.*` marks.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod ground;
mod growth;
mod guest;
mod matrix;
mod rows;
mod settling;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::num::NonZero;
use std::path::Path;
use std::process::{Command, Stdio};

use ground::{FORMS, Form, join};
use guest::Guest;
use matrix::{Change, Matrix};
use rows::rows;
use thinroot::sys::fault;

/// Which changes are tried.
const WHICH: &str = "THINROOT_FAULTS";
/// Where a process is to make one change and end: `CHANGE:NTH`.
const CHILD: &str = "THINROOT_FAULTS_CHILD";
const PLACE: &str = "THINROOT_FAULTS_PLACE";
/// Which of the chosen changes a process takes that shares them with others: `INDEX/COUNT`.
const SHARE: &str = "THINROOT_FAULTS_SHARE";

/// Of all changes every so many stand for them as a rule. Odd, so that all forms have some.
const ORDINARY_STEP: usize = 17;

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        // Past the harness, which would keep it to itself.
        let line = "SKIPPED faults: needs root for trusted.* marks\n";
        std::io::stderr().write_all(line.as_bytes()).unwrap();
    }
    is_root
}

/// Every row on an upper of every form.
fn changes() -> Vec<Change> {
    let of_all_forms = |row: rows::Row| FORMS.iter().map(move |form| Change { row, form });
    rows().into_iter().flat_map(of_all_forms).collect()
}

/// All loops in one test: the hook is one for the whole process.
#[test]
fn each_change_leaves_the_old_tree_or_the_new_one() {
    if let Ok(child) = std::env::var(CHILD) {
        return die(&child);
    }
    if !is_root() {
        return;
    }
    if std::env::var_os(SHARE).is_none() {
        let wrong = settling::fail_each();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
    let which = std::env::var(WHICH).ok();
    let all = changes();
    let chosen: Vec<_> = all
        .iter()
        .enumerate()
        .filter(|(index, change)| match which.as_deref() {
            Some("all") => true,
            Some(word) => change.row.name.contains(word),
            None => index % ORDINARY_STEP == 0,
        })
        .collect();
    match (which, std::env::var(SHARE)) {
        (None, _) => play(chosen.into_iter(), false),
        (_, Ok(share)) => {
            let (first, step) = share.split_once('/').unwrap();
            let mine = chosen.into_iter().skip(first.parse().unwrap());
            play(mine.step_by(step.parse().unwrap()), true);
        }
        _ => share(chosen.len()),
    }
}

/// Tries changes, each with its number.
fn play<'a>(changes: impl Iterator<Item = (usize, &'a Change)>, kills_starts: bool) {
    let mut matrix = Matrix::new(kills_starts);
    for (index, change) in changes {
        matrix.interrupt(index, change);
    }
    let wrong = matrix.end();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Has the chosen changes tried by as many processes as there are processors, and adds up what
/// they say.
fn share(changes: usize) {
    let count = std::thread::available_parallelism().map_or(1, NonZero::get);
    let start = |index| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("--nocapture").env(SHARE, format!("{index}/{count}"));
        command.stdout(Stdio::piped()).spawn().unwrap()
    };
    let processes: Vec<_> = (0..count).map(start).collect();
    let (mut points, mut is_well) = (BTreeMap::<String, [u32; 2]>::new(), true);
    for process in processes {
        let output = process.wait_with_output().unwrap();
        is_well &= output.status.success();
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            let Some((tried, wrong, what)) = matrix::read_end(line) else { continue };
            let sum = points.entry(what.to_owned()).or_default();
            *sum = [sum[0] + tried, sum[1] + wrong];
        }
    }
    println!("{changes} changes");
    for (what, [tried, wrong]) in points {
        println!("{}", matrix::write_end(tried, wrong, &what));
    }
    assert!(is_well, "what is wrong is told above");
}

/// The child: makes the change, and ends before its N-th call; or after the last.
fn die(child: &str) {
    let (index, nth) = child.split_once(':').unwrap();
    let Change { row, form } = changes().swap_remove(index.parse().unwrap());
    let form: &Form = form;
    let union = join(Path::new(&std::env::var(PLACE).unwrap()), form).unwrap();
    fault::kill_at(nth.parse().unwrap());
    (row.change)(&Guest(&union)).unwrap();
    // Not dropped: an end is not orderly.
    std::mem::forget(union);
    fault::disarm();
}
