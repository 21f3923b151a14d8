//! Law U51: a union and a private copy cannot be told apart by any sequence of operations.
//!
//! `THINROOT_ORACLE_SEEDS` says how many seeds are tried (default 6), `THINROOT_ORACLE_FIRST` with
//! which to begin, `THINROOT_ORACLE_OPERATIONS` how many operations each has (default 250).

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::fmt::Write as _;
use std::fs;

use tests::mount::{Mount, Site, may_mount};
use tests::oracle::{
    Operation, World, comparable, copy_tree, make_tree, operations, private_copy, remove, setting,
    shrink,
};
use tests::tree;

#[test]
fn random_operations_agree_with_a_private_copy() {
    if !may_mount("random_operations_agree_with_a_private_copy") {
        return;
    }
    let seeds = setting("THINROOT_ORACLE_SEEDS", 6);
    let first = setting("THINROOT_ORACLE_FIRST", 1);
    let count = setting("THINROOT_ORACLE_OPERATIONS", 250);
    let mut failures = String::new();
    for seed in first..first + seeds {
        let site = Site::new();
        make_tree(seed, &site.lower()).unwrap();
        let before = tree::manifest(&site.lower());
        let operations = operations(seed, usize::try_from(count).unwrap());
        if let Err(difference) = compare(&site, &operations) {
            let mut tries = 0;
            let shortest = shrink(operations, &mut |fewer| {
                tries += 1;
                tries < 400 && compare(&site, fewer).is_err()
            });
            let difference = compare(&site, &shortest).err().unwrap_or(difference);
            writeln!(failures, "seed {seed}: {difference}\n  after {shortest:#?}").unwrap();
        }
        let changed = tree::differences(&before, &tree::manifest(&site.lower()));
        assert_eq!(changed, Vec::<String>::new(), "seed {seed}: the lower");
    }
    assert!(failures.is_empty(), "{failures}");
}

/// Does the operations on a fresh upper and on a fresh copy.
fn compare(site: &Site, operations: &[Operation]) -> Result<(), String> {
    for path in [site.upper(), site.work(), private_copy(site)] {
        remove(&path);
    }
    fs::create_dir(site.upper()).unwrap();
    copy_tree(&site.lower(), &private_copy(site));
    let mut mount = site.mount(&[]);
    let mut union = World::new(&site.point());
    let mut copy = World::new(&private_copy(site));
    for (number, operation) in operations.iter().enumerate() {
        if matches!(operation, Operation::Refresh) {
            union.let_go();
            copy.let_go();
            mount.unmount();
            mount = site.mount(&[]);
            continue;
        }
        let (expected, found) = (copy.perform(operation), union.perform(operation));
        if expected != found {
            union.let_go();
            let told = format!("operation {number}, {operation:?}: {found} instead of {expected}");
            return end(mount, Err(told));
        }
    }
    union.let_go();
    copy.let_go();
    let expected = comparable(&private_copy(site));
    let found = tree::compare(&expected, &comparable(&site.point()));
    if !found.is_empty() {
        return end(mount, Err(format!("before a remount: {}", found.join("; "))));
    }
    mount.unmount();
    let mount = site.mount(&[]);
    let found = tree::compare(&expected, &comparable(&site.point()));
    let told = if found.is_empty() {
        Ok(())
    } else {
        Err(format!("after a remount: {}", found.join("; ")))
    };
    end(mount, told)
}

fn end(mount: Mount, result: Result<(), String>) -> Result<(), String> {
    mount.unmount();
    result
}

/// What the shrinker and the reports rest on.
#[test]
fn operations_of_a_seed_are_always_the_same() {
    assert_eq!(format!("{:?}", operations(7, 50)), format!("{:?}", operations(7, 50)));
    assert_ne!(format!("{:?}", operations(7, 50)), format!("{:?}", operations(8, 50)));
    let all = operations(1, 100);
    let shortest = shrink(all.clone(), &mut |some| {
        some.iter().any(|operation| matches!(operation, Operation::Rename(..)))
    });
    assert_eq!(shortest.len(), 1);
}
