//! Scripts at random: a seed makes a tree and what is done to it. The names are few, so that
//! operations meet.

use std::path::Path;

use super::guess::{Guess, Sort, Thing};
use super::script::{Operation, Who};
use crate::disk::kind;

/// A small generator of numbers (xorshift64*), the same on every machine.
#[derive(Clone, Debug)]
pub struct Dice {
    state: u64,
    guess: Guess,
    /// Who is to do what is chosen.
    who: usize,
}

impl Dice {
    /// Dice that fall the same way for the same seed.
    pub fn new(seed: u64) -> Self {
        let state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut dice = Self { state, guess: Guess::default(), who: 0 };
        dice.below(2);
        dice
    }

    /// Those that make the tree of a seed.
    pub fn of_tree(seed: u64) -> Self {
        Self::new(!seed)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u32) -> u32 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let bits = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        u32::try_from(bits % u64::from(end)).unwrap_or(0)
    }

    /// Shows what is there by now, which is guessed until the next time.
    pub fn see(&mut self, root: &Path) {
        self.guess.see(root);
    }

    /// What is done next.
    pub fn operation(&mut self) -> Operation {
        operation(self)
    }

    /// What is done next to make a tree: births and changes.
    pub fn birth(&mut self) -> Operation {
        loop {
            let next = operation(self);
            let is_removal = ["remove-tree", "unlink", "rmdir"].contains(&next.verb());
            if !is_removal && next.who() != Who::Stage {
                return next;
            }
        }
    }

    /// One of what may be there, and mostly of what this actor can change.
    fn guessed(&mut self, is_wanted: impl Fn(&Thing) -> bool) -> Option<String> {
        let is_strict = self.who == USER_ACTOR && self.below(8) > 0;
        let wanted = self.guess.all(|thing| is_wanted(thing) && (thing.is_users || !is_strict));
        self.one_of(&wanted).cloned()
    }

    fn one_of<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        let index = self.below(u32::try_from(from.len()).unwrap_or(0).max(1));
        from.get(index as usize)
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(u32::try_from(from.len()).unwrap_or(1)) as usize]
    }
}

/// The one without privilege.
const USER_ACTOR: usize = 2;
/// Above this, trees are removed more often.
const PATHS_MAX: usize = 100;
const NAMES: [&str; 7] = ["a", "b", "c", "d", "e", ".wh.a", "%ff%0a"];
const KEYS: [&str; 6] = [
    "user.x",
    "user.y",
    "trusted.x",
    "trusted.overlay.opaque",
    "trusted.overlay.redirect",
    "user.overlay.whiteout",
];
const MODES: [&str; 9] = ["644", "600", "755", "700", "777", "1777", "2775", "4755", "6777"];
/// Descriptors each actor may hold.
pub const SLOTS: u32 = 4;

fn operation(dice: &mut Dice) -> Operation {
    if dice.below(200) == 0 {
        let direction = dice.pick(&["remount", "remount", "crash"]);
        dice.guess.let_go();
        return Operation::new(Who::Stage, direction);
    }
    dice.who = [0, 0, 0, 0, 0, 1, 1, 2, 2, 2][dice.below(10) as usize];
    let words = match dice.below(100) {
        0..14 => content(dice),
        14..40 => name(dice),
        40..56 => rename(dice),
        56..72 => attribute(dice),
        72..78 => look(dice),
        78..81 => itself(dice),
        81..88 => hold(dice),
        _ => held(dice),
    };
    Operation::new(Who::Actor(dice.who), &words)
}

fn is_any(_: &Thing) -> bool {
    true
}

fn is_directory(thing: &Thing) -> bool {
    thing.sort == Sort::Directory
}

fn is_file(thing: &Thing) -> bool {
    thing.sort == Sort::File
}

fn is_symlink(thing: &Thing) -> bool {
    thing.sort == Sort::Symlink
}

/// What can have attributes of any name.
fn is_plain(thing: &Thing) -> bool {
    is_directory(thing) || is_file(thing)
}

/// Where something may be.
fn path(dice: &mut Dice) -> String {
    path_of(dice, is_any)
}

fn path_of(dice: &mut Dice, is_wanted: fn(&Thing) -> bool) -> String {
    match dice.below(24) {
        0..22 => dice.guessed(is_wanted).unwrap_or_else(|| any_path(dice)),
        22 => dice.guessed(is_any).unwrap_or_else(|| any_path(dice)),
        _ => any_path(dice),
    }
}

/// Where something is to be born.
fn new_path(dice: &mut Dice) -> String {
    match dice.below(24) {
        0 => any_path(dice),
        1 => path(dice),
        _ => free_path(dice),
    }
}

fn free_path(dice: &mut Dice) -> String {
    const DEPTH_MAX: usize = 5;
    let mut path = String::new();
    for _ in 0..6 {
        path = match (dice.below(4), dice.guessed(is_directory)) {
            (0..3, Some(parent)) if parent.split('/').count() < DEPTH_MAX => {
                format!("{parent}/{}", dice.pick(&NAMES))
            }
            _ => format!("/{}", dice.pick(&NAMES)),
        };
        if !dice.guess.has(&path) {
            break;
        }
    }
    path
}

fn any_path(dice: &mut Dice) -> String {
    let depth = [1, 1, 2, 2, 2, 3][dice.below(6) as usize];
    let names: Vec<_> = (0..depth).map(|_| dice.pick(&NAMES)).collect();
    let before = dice.pick(&["", "", "", "", "", "/", "/", "../"]);
    format!("{before}{}", names.join("/"))
}

fn content(dice: &mut Dice) -> String {
    let path = path_of(dice, is_file);
    match dice.below(14) {
        0..8 => {
            let flags = dice.pick(&[
                "none",
                "none",
                "creat",
                "creat",
                "creat,trunc",
                "creat,excl",
                "creat,append",
                "append",
                "trunc",
                "sync",
            ]);
            let offset = dice.pick(&["0", "0", "3", "4096", "130000", "1000000"]);
            let length = dice.pick(&["0", "5", "5", "100", "4096", "70000"]);
            let is_birth = flags == "creat,excl" || flags.contains("creat") && dice.below(2) == 0;
            let path = if is_birth { new_path(dice) } else { path };
            dice.guess.born(&path, Sort::File);
            format!("write {path} {flags} {offset} {length}")
        }
        8..10 => format!("truncate {path} {}", dice.pick(&["0", "1", "70001", "140002"])),
        10..12 => {
            let mode = allocation(dice, &["none", "keep", "punch", "zero", "zero,keep"]);
            format!("allocate {path} {mode} {} {}", dice.below(150_000), 1 + dice.below(9000))
        }
        _ => {
            let (from, to) = (dice.below(5000), dice.below(150_000));
            format!("copy {path} {} {from} {to} 6000", path_of(dice, is_file))
        }
    }
}

/// How room is given or taken. A private copy on tmpfs zeroes no range, as ext4 does and a union there.
fn allocation<'a>(dice: &mut Dice, modes: &[&'a str]) -> &'a str {
    let mode = dice.pick(modes);
    let is_on_tmpfs = || kind().is_some_and(|kind| kind.starts_with("tmpfs"));
    if mode.starts_with("zero") && is_on_tmpfs() { "punch" } else { mode }
}

fn name(dice: &mut Dice) -> String {
    let is_crowded = dice.guess.len() > PATHS_MAX && dice.below(4) == 0;
    match if is_crowded { 8 } else { dice.below(26) } {
        0..6 => {
            let path = path_of(dice, |thing| !is_directory(thing));
            if dice.guess.sort_of(&path) != Some(Sort::Directory) {
                dice.guess.take(&path);
            }
            format!("unlink {path}")
        }
        6..8 => {
            let path = path_of(dice, is_directory);
            let path = match dice.below(6) {
                0 => path,
                _ => empty_directory(dice).unwrap_or(path),
            };
            format!("rmdir {path}")
        }
        8 => {
            let path = path_of(dice, is_directory);
            dice.guess.take(&path);
            format!("remove-tree {path}")
        }
        9..17 => {
            let path = new_path(dice);
            dice.guess.born(&path, Sort::Directory);
            format!("mkdir {path} {}", dice.pick(&["755", "700", "777", "777", "1777", "2775"]))
        }
        17..20 => {
            let path = new_path(dice);
            let kinds = ["fifo 0", "char 0", "char 61443", "block 61443", "socket 0", "file 0"];
            // Devices are root's to make.
            let is_root = dice.who != USER_ACTOR || dice.below(8) == 0;
            let kind = dice.pick(if is_root { &kinds } else { &["fifo 0", "socket 0", "file 0"] });
            dice.guess.born(&path, if kind == "file 0" { Sort::File } else { Sort::Special });
            format!("mknod {path} {kind}")
        }
        20..24 => {
            let from = path_of(dice, |thing| !is_directory(thing));
            let to = new_path(dice);
            dice.guess.born(&to, dice.guess.sort_of(&from).unwrap_or(Sort::File));
            format!("{} {from} {to}", dice.pick(&["link", "link", "link", "link-target"]))
        }
        _ => {
            let path = new_path(dice);
            dice.guess.born(&path, Sort::Symlink);
            let target = dice.pick(&["a", "../b", "b/c", ".", "/a/b", "e"]);
            format!("symlink {target} {path}")
        }
    }
}

fn empty_directory(dice: &mut Dice) -> Option<String> {
    let mut empty = dice.guess.all(is_directory);
    empty.retain(|path| dice.guess.is_empty_directory(path));
    dice.one_of(&empty).cloned()
}

fn rename(dice: &mut Dice) -> String {
    let flags = dice.pick(&["none", "none", "none", "none", "noreplace", "exchange", "whiteout"]);
    let from = path(dice);
    let to = match flags {
        "exchange" => path(dice),
        "noreplace" => new_path(dice),
        // What is replaced must be of its kind, and a directory empty.
        _ => match (dice.below(3), dice.guess.sort_of(&from)) {
            (0, Some(Sort::Directory)) => empty_directory(dice).unwrap_or_else(|| new_path(dice)),
            (0, Some(_)) => path_of(dice, |thing| !is_directory(thing)),
            _ => new_path(dice),
        },
    };
    dice.guess.moved(&from, &to, flags == "exchange");
    if flags == "whiteout" {
        dice.guess.born(&from, Sort::Special);
    }
    format!("rename {from} {to} {flags}")
}

fn key<'a>(dice: &mut Dice) -> &'a str {
    let is_root = dice.who != USER_ACTOR || dice.below(8) == 0;
    dice.pick(if is_root { &KEYS } else { &KEYS[..2] })
}

fn attribute(dice: &mut Dice) -> String {
    match dice.below(17) {
        0..4 => format!("chmod {} {}", path(dice), dice.pick(&MODES)),
        4..7 => {
            // Never to nobody twice: a known difference.
            let group = dice.pick(&["0", "5", "1000", "-1"]);
            let owner = dice.pick(&["0", "5", "1000", if group == "-1" { "0" } else { "-1" }]);
            format!("chown {} {owner} {group}", path(dice))
        }
        7..10 => {
            let time = dice.pick(&["now", "omit", "100", "900000000"]);
            format!("times {} {time}", path(dice))
        }
        10..13 => {
            let flags = dice.pick(&["none", "none", "none", "none", "create", "replace"]);
            let path = path_of(dice, is_plain);
            format!("set-xattr {path} {} {flags} {}", key(dice), dice.below(40))
        }
        13 => format!("remove-xattr {} {}", path_of(dice, is_plain), key(dice)),
        14 => format!("get-xattr {} {}", path_of(dice, is_plain), key(dice)),
        _ => {
            let which = dice.pick(&["access", "default"]);
            let path = path_of(dice, if which == "default" { is_directory } else { is_plain });
            match dice.below(2) {
                0 => format!("set-acl {path} {which} {}", dice.below(8)),
                _ => format!("remove-acl {path} {which}"),
            }
        }
    }
}

fn look(dice: &mut Dice) -> String {
    match dice.below(10) {
        0 => format!("access {} {}", path(dice), dice.below(8)),
        1 => format!("seek {}", path_of(dice, is_file)),
        2 => format!("target {}", path_of(dice, is_symlink)),
        3 => format!("statistics {}", path(dice)),
        4 | 5 => format!("read {}", path_of(dice, is_file)),
        6 | 7 => format!("list {}", path_of(dice, is_directory)),
        8 => format!("stat {}", path(dice)),
        _ => format!("look {}", path(dice)),
    }
}

/// What belongs to the process.
fn itself(dice: &mut Dice) -> String {
    match dice.below(5) {
        0 => "where".to_owned(),
        1 => "chdir /".to_owned(),
        2 | 3 => format!("chdir {}", path_of(dice, is_directory)),
        _ => format!("umask {}", dice.pick(&["0", "22", "77"])),
    }
}

fn hold(dice: &mut Dice) -> String {
    let slot = dice.below(SLOTS);
    let (words, sort) = match dice.below(8) {
        0 => (format!("unnamed {slot} {}", path_of(dice, is_directory)), Some(Sort::File)),
        1 | 2 => {
            let directory = path_of(dice, is_directory);
            (format!("hold {slot} {directory} dir"), Some(Sort::Directory))
        }
        3 => {
            let path = path(dice);
            (format!("hold {slot} {path} path"), dice.guess.sort_of(&path))
        }
        _ => {
            let how = dice.pick(&["rw", "rw", "rw", "r", "w", "rw,creat", "rw,append"]);
            let path = path_of(dice, is_file);
            (format!("hold {slot} {path} {how}"), dice.guess.sort_of(&path))
        }
    };
    dice.guess.hold(dice.who, slot, sort);
    words
}

/// A slot that holds what is wanted, mostly.
fn slot(dice: &mut Dice, is_wanted: fn(Sort) -> bool) -> u32 {
    let slots = dice.guess.slots(dice.who, is_wanted);
    match (dice.below(16), dice.one_of(&slots)) {
        (1.., Some(slot)) => *slot,
        _ => dice.below(SLOTS),
    }
}

fn held(dice: &mut Dice) -> String {
    if dice.guess.slots(dice.who, |_| true).is_empty() && dice.below(16) > 0 {
        return hold(dice);
    }
    let at = dice.below(150_000);
    let any = slot(dice, |_| true);
    match dice.below(24) {
        0 => format!("held-read {any}"),
        1 => format!("held-look {any}"),
        2 => format!("held-chmod {any} {}", dice.pick(&MODES)),
        3 => format!("held-chown {any} {} 5", dice.pick(&["0", "1000"])),
        4 => format!("held-times {any} {}", dice.pick(&["now", "100"])),
        5 => format!("held-set-xattr {any} {} none 7", key(dice)),
        6 => {
            let verb = dice.pick(&["held-sync", "held-sync-data", "held-sync-all"]);
            format!("{verb} {any}")
        }
        7 => {
            let verb = dice.pick(&["flock", "lock"]);
            format!("{verb} {any} {}", dice.pick(&["shared", "alone", "off"]))
        }
        8 => {
            dice.guess.hold(dice.who, any, None);
            format!("close {any}")
        }
        9..12 => {
            let directory = slot(dice, |sort| sort == Sort::Directory);
            let verb = dice.pick(&["held-mkdir", "held-create", "held-unlink"]);
            format!("{verb} {directory} {}", dice.pick(&NAMES))
        }
        _ => held_file(dice, at),
    }
}

fn held_file(dice: &mut Dice, at: u32) -> String {
    let slot = slot(dice, |sort| sort == Sort::File);
    match dice.below(14) {
        0..3 => format!("held-write {slot} {at} 50"),
        3 => format!("held-append {slot} 20"),
        4 => format!("held-truncate {slot} {at}"),
        5 => {
            let mode = allocation(dice, &["none", "keep", "punch", "zero"]);
            format!("held-allocate {slot} {mode} {at} 5000")
        }
        6 => format!("held-again {slot} {}", dice.pick(&["rw", "r", "w,trunc"])),
        7 => {
            let path = new_path(dice);
            dice.guess.born(&path, Sort::File);
            format!("held-link {slot} {path}")
        }
        8 => format!("held-read {slot}"),
        9 | 10 => format!("map {slot}"),
        _ => {
            let verb = dice.pick(&["map-write", "map-write", "map-read", "unmap"]);
            format!("{verb} {slot} {at}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the shrinker and the reports rest on.
    #[test]
    fn seed_always_makes_the_same_script() {
        let script = |seed| {
            let mut dice = Dice::new(seed);
            (0..50).map(|_| dice.operation()).collect::<Vec<_>>()
        };
        assert_eq!(script(7), script(7));
        assert_ne!(script(7), script(8));
    }
}
