//! A file that could not be settled is what it was: it takes no more room, and what is written to it
//! then outlives the process.

use std::os::unix::fs::MetadataExt;

use thinroot::filesystem::Errno;
use thinroot::sys::fault;
use thinroot::union::Union;

use super::ground::{FORMS, Form, Ground, end_at_once, join};
use super::guest::Guest;
use super::rows::LARGE_BYTES;

/// Root's: there what is written outlives the process.
const FORM: &Form = &FORMS[0];

/// What the guest had written before is in between what falls through.
const WRITTEN: usize = 20 * 4096;

/// Fails each call of what has to settle a file. Gives what was wrong.
pub fn fail_each() -> Vec<String> {
    let ground = Ground::new();
    let mut wrong = Vec::new();
    for nth in 1.. {
        let union = ground.begin_empty(FORM);
        Guest(&union).write("large", WRITTEN as u64, b"x").unwrap();
        drop(union);
        let union = join(ground.path(), FORM).unwrap();
        let before = room(&ground);
        fault::fail_at(nth, Errno::NOSPC);
        let done = Guest(&union).collapse("large");
        if !fault::disarm() {
            assert!(matches!(done, Ok(()) | Err(Errno::NOTSUP)), "{done:?}");
            return wrong;
        }
        if done == Err(Errno::NOSPC) {
            let found = go_on(&ground, union, before);
            wrong.extend(found.map(|what| format!("settling, call {nth} failed: {what}")));
        }
    }
    wrong
}

/// After a failure.
fn go_on(ground: &Ground, union: Union, before: u64) -> Option<String> {
    let after = room(ground);
    Guest(&union).write("large", 5, b"y").unwrap();
    end_at_once(union);
    let union = join(ground.path(), FORM).unwrap();
    let guest = Guest(&union);
    let mut expected = vec![b'l'; LARGE_BYTES];
    expected[WRITTEN] = b'x';
    expected[5] = b'y';
    if guest.contents(guest.id("large").unwrap()) != expected {
        return Some("what was written afterwards was lost with the process".to_owned());
    }
    // One that has all of its data and could not say so yet keeps it.
    let has_all = after * 512 >= LARGE_BYTES as u64;
    // The last block, which is not whole, may stay.
    (after > before + 8 && !has_all)
        .then(|| format!("it took {before} units of room, and {after} now"))
}

/// Units of 512 bytes that the upper file takes.
fn room(ground: &Ground) -> u64 {
    std::fs::metadata(ground.path().join("upper/large")).unwrap().blocks()
}
