//! What a cut took stays gone: after each end and each failure within it the file grows again.

use thinroot::filesystem::{Errno, FileSystem};
use thinroot::sys::fault;
use thinroot::union::Union;

use super::ground::{Form, Ground, end_at_once, join};
use super::guest::Guest;
use super::matrix::Change;
use super::rows::{LARGE_BYTES, Step};

/// To what size it grows: below the lower file's.
const GROWN_BYTES: u64 = LARGE_BYTES as u64 - 9;

const WAYS: [(&str, Step); 3] = [
    ("truncate", |g| g.truncate("large", GROWN_BYTES)),
    ("write", |g| g.write("large", GROWN_BYTES - 1, b"\0")),
    ("fallocate", |g| g.allocate_to("large", GROWN_BYTES)),
];

/// How a cut comes to its end early.
#[derive(Clone, Copy, Debug)]
enum Stop {
    /// The process ends before the call; the next one lets the file grow, and syncs it.
    Death,
    /// The call fails; the same process lets the file grow, and ends.
    Failure,
}

/// Gives the number of points that were tried, and what was wrong.
pub fn grow_after_each(ground: &Ground, change: &Change) -> (u32, Vec<String>) {
    let (mut points, mut wrong) = (0, Vec::new());
    let Some(cut) = change.row.cuts_to else { return (points, wrong) };
    for (way, stop) in WAYS.iter().flat_map(|way| [(way, Stop::Death), (way, Stop::Failure)]) {
        for nth in 1.. {
            let (union, is_last) = stop_at(ground, change, stop, nth);
            let point = format!("{change}, {stop:?} at call {nth}, grown by {}", way.0);
            points += 1;
            if size(&union) == cut {
                wrong.extend(grow(ground, change.form, (union, stop), (cut, way.1), &point));
            }
            if is_last {
                break;
            }
        }
    }
    (points, wrong)
}

/// A union after a change that was stopped at a call; and whether there was no such call.
fn stop_at(ground: &Ground, change: &Change, stop: Stop, nth: u32) -> (Union, bool) {
    drop(ground.begin(change));
    let union = join(ground.path(), change.form).unwrap();
    match stop {
        Stop::Death => fault::freeze_at(nth),
        Stop::Failure => fault::fail_at(nth, Errno::NOSPC),
    }
    let done = (change.row.change)(&Guest(&union));
    let is_last = !fault::disarm();
    assert!(!is_last || done.is_ok(), "{change}: {done:?}");
    match stop {
        Stop::Death => {
            end_at_once(union);
            (join(ground.path(), change.form).unwrap(), is_last)
        }
        Stop::Failure => (union, is_last),
    }
}

fn grow(
    ground: &Ground,
    form: &Form,
    (union, stop): (Union, Stop),
    (cut, grow): (u64, Step),
    point: &str,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let guest = Guest(&union);
    grow(&guest).unwrap_or_else(|e| panic!("{point}: {e}"));
    wrong.extend(returned(&guest, cut).map(|what| format!("{point}: {what}")));
    match stop {
        Stop::Death => {
            guest.sync("large").unwrap();
            drop(union);
        }
        Stop::Failure => end_at_once(union),
    }
    let union = join(ground.path(), form).unwrap();
    let what = returned(&Guest(&union), cut);
    wrong.extend(what.map(|what| format!("{point}, remounted: {what}")));
    wrong
}

fn size(union: &Union) -> u64 {
    let guest = Guest(union);
    guest.0.attributes(guest.id("large").unwrap()).unwrap().size
}

/// What of the grown file is not as it should be.
fn returned(guest: &Guest<'_>, cut: u64) -> Option<String> {
    let contents = guest.contents(guest.id("large").unwrap());
    if contents.len() as u64 != GROWN_BYTES {
        return Some(format!("{} bytes long", contents.len()));
    }
    let beyond = &contents[usize::try_from(cut).unwrap()..];
    let back = beyond.iter().filter(|byte| **byte != 0).count();
    (back > 0).then(|| format!("{back} bytes that were cut off are back"))
}
