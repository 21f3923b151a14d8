//! Scripts at random: a seed makes a tree and what is done to it. The names are few, so that
//! operations meet.

use std::collections::BTreeMap;

use super::script::{Operation, Who};

/// A small generator of numbers (xorshift64*), the same on every machine.
#[derive(Clone, Debug)]
pub struct Dice {
    state: u64,
    /// What may be there by now, and whether it is a directory: a guess, so that most of what is
    /// done meets something.
    guess: BTreeMap<String, bool>,
}

impl Dice {
    /// Dice that fall the same way for the same seed.
    pub fn new(seed: u64) -> Self {
        let state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut dice = Self { state, guess: BTreeMap::new() };
        dice.below(2);
        dice
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u32) -> u32 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let bits = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        u32::try_from(bits % u64::from(end)).unwrap_or(0)
    }

    /// Something is born, if its directory is there.
    fn born(&mut self, path: &str, is_directory: bool) {
        let is_there = match path.rsplit_once('/') {
            Some(("", _)) => true,
            Some((parent, _)) => self.guess.get(parent) == Some(&true),
            None => false,
        };
        if is_there {
            self.guess.entry(path.to_owned()).or_insert(is_directory);
        }
    }

    /// Takes out a path and what is below it.
    fn take(&mut self, path: &str) -> Vec<(String, bool)> {
        let below = format!("{path}/");
        let is_taken = |other: &String| other == path || other.starts_with(&below);
        let (taken, left) =
            std::mem::take(&mut self.guess).into_iter().partition(|(other, _)| is_taken(other));
        self.guess = left;
        let taken: BTreeMap<String, bool> = taken;
        taken.into_iter().map(|(other, kind)| (other[path.len()..].to_owned(), kind)).collect()
    }

    fn moved(&mut self, from: &str, to: &str, is_exchange: bool) {
        let goes_below = format!("{to}/").starts_with(&format!("{from}/"));
        if goes_below || !self.guess.contains_key(from) {
            return;
        }
        let (moved, replaced) = (self.take(from), self.take(to));
        self.guess.extend(moved.into_iter().map(|(rest, kind)| (format!("{to}{rest}"), kind)));
        if is_exchange {
            let back = replaced.into_iter().map(|(rest, kind)| (format!("{from}{rest}"), kind));
            self.guess.extend(back);
        }
    }

    /// One of what may be there.
    fn guessed(&mut self, is_wanted: fn(bool) -> bool) -> Option<String> {
        let wanted: Vec<_> = self.guess.iter().filter(|(_, kind)| is_wanted(**kind)).collect();
        let wanted: Vec<_> = wanted.into_iter().map(|(path, _)| path.clone()).collect();
        let index = self.below(u32::try_from(wanted.len()).unwrap_or(0).max(1)) as usize;
        wanted.get(index).cloned()
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(u32::try_from(from.len()).unwrap_or(1)) as usize]
    }
}

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

/// What makes a tree: births and changes.
pub fn tree(seed: u64) -> Vec<Operation> {
    tree_by(&mut Dice::new(!seed))
}

fn tree_by(dice: &mut Dice) -> Vec<Operation> {
    let mut operations = Vec::new();
    for name in NAMES {
        if dice.below(3) > 0 {
            let mode = dice.pick(&["755", "777", "777", "1777"]);
            operations.push(Operation::new(Who::Actor(0), &format!("mkdir {name} {mode}")));
            dice.born(&format!("/{name}"), true);
        }
    }
    while operations.len() < 200 {
        let next = operation(dice);
        let is_removal = ["remove-tree", "unlink", "rmdir"].contains(&next.verb());
        if !is_removal && next.who() != Who::Stage {
            operations.push(next);
        }
    }
    operations
}

/// What is done to the tree of a seed, with a new mount now and then.
pub fn operations(seed: u64, count: usize) -> Vec<Operation> {
    let mut tree = Dice::new(!seed);
    tree_by(&mut tree);
    let mut dice = Dice { guess: tree.guess, ..Dice::new(seed) };
    (0..count).map(|_| operation(&mut dice)).collect()
}

/// A whole script.
pub fn script(seed: u64, count: usize) -> Vec<Operation> {
    let mut script = tree(seed);
    script.push(Operation::new(Who::Stage, "begin"));
    script.extend(operations(seed, count));
    script
}

fn operation(dice: &mut Dice) -> Operation {
    if dice.below(200) == 0 {
        let direction = dice.pick(&["remount", "remount", "crash"]);
        return Operation::new(Who::Stage, direction);
    }
    let who = Who::Actor([0, 0, 0, 0, 0, 1, 1, 2, 2, 2][dice.below(10) as usize]);
    let words = match dice.below(100) {
        0..14 => content(dice),
        14..40 => name(dice),
        40..56 => rename(dice),
        56..72 => attribute(dice),
        72..78 => look(dice),
        78..82 => itself(dice),
        82..87 => hold(dice),
        _ => held(dice),
    };
    Operation::new(who, &words)
}

/// Where something may be.
fn path(dice: &mut Dice) -> String {
    path_of(dice, |_| true)
}

fn path_of(dice: &mut Dice, is_wanted: fn(bool) -> bool) -> String {
    match dice.below(8) {
        0..7 => dice.guessed(is_wanted).unwrap_or_else(|| any_path(dice)),
        _ => any_path(dice),
    }
}

/// Where something is to be born.
fn new_path(dice: &mut Dice) -> String {
    const DEPTH_MAX: usize = 5;
    match (dice.below(8), dice.guessed(|is_directory| is_directory)) {
        (0, _) => any_path(dice),
        (1, _) => path(dice),
        (2..6, Some(parent)) if parent.split('/').count() < DEPTH_MAX => {
            format!("{parent}/{}", dice.pick(&NAMES))
        }
        _ => format!("/{}", dice.pick(&NAMES)),
    }
}

fn any_path(dice: &mut Dice) -> String {
    let depth = [1, 1, 2, 2, 2, 3][dice.below(6) as usize];
    let names: Vec<_> = (0..depth).map(|_| dice.pick(&NAMES)).collect();
    let before = dice.pick(&["", "", "", "", "", "/", "/", "../"]);
    format!("{before}{}", names.join("/"))
}

fn content(dice: &mut Dice) -> String {
    let path = path_of(dice, |is_directory| !is_directory);
    match dice.below(14) {
        0..8 => {
            let flags = dice.pick(&[
                "none",
                "creat",
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
            let path = if flags.contains("creat") { new_path(dice) } else { path };
            if flags.contains("creat") {
                dice.born(&path, false);
            }
            format!("write {path} {flags} {offset} {length}")
        }
        8..10 => format!("truncate {path} {}", dice.pick(&["0", "1", "70001", "140002"])),
        10..12 => {
            let mode = dice.pick(&["none", "keep", "punch", "zero", "zero,keep"]);
            format!("allocate {path} {mode} {} {}", dice.below(150_000), dice.below(9000))
        }
        _ => {
            let (from, to) = (dice.below(5000), dice.below(150_000));
            format!("copy {path} {} {from} {to} 6000", path_of(dice, |is_directory| !is_directory))
        }
    }
}

fn name(dice: &mut Dice) -> String {
    match dice.below(26) {
        0..6 => {
            let path = path_of(dice, |is_directory| !is_directory);
            dice.take(&path);
            format!("unlink {path}")
        }
        6..8 => {
            let path = path_of(dice, |is_directory| is_directory);
            format!("rmdir {path}")
        }
        8 => {
            let path = path_of(dice, |is_directory| is_directory);
            dice.take(&path);
            format!("remove-tree {path}")
        }
        9..17 => {
            let path = new_path(dice);
            dice.born(&path, true);
            format!("mkdir {path} {}", dice.pick(&["755", "700", "777", "777", "1777", "2775"]))
        }
        17..20 => {
            let path = new_path(dice);
            dice.born(&path, false);
            let kind = dice.pick(&["fifo 0", "char 0", "char 61443", "block 61443", "socket 0"]);
            format!("mknod {path} {}", dice.pick(&[kind, kind, kind, "file 0"]))
        }
        20..24 => {
            let (from, to) = (path_of(dice, |is_directory| !is_directory), new_path(dice));
            dice.born(&to, false);
            format!("{} {from} {to}", dice.pick(&["link", "link", "link", "link-target"]))
        }
        _ => {
            let path = new_path(dice);
            dice.born(&path, false);
            let target = dice.pick(&["a", "../b", "b/c", ".", "/a/b", "e"]);
            format!("symlink {target} {path}")
        }
    }
}

fn rename(dice: &mut Dice) -> String {
    let flags = dice.pick(&["none", "none", "none", "none", "noreplace", "exchange"]);
    let is_exchange = flags == "exchange";
    let from = path(dice);
    let to = if is_exchange { path(dice) } else { new_path(dice) };
    dice.moved(&from, &to, is_exchange);
    format!("rename {from} {to} {flags}")
}

fn attribute(dice: &mut Dice) -> String {
    let path = path(dice);
    match dice.below(17) {
        0..4 => format!("chmod {path} {}", dice.pick(&MODES)),
        4..7 => {
            // Never to nobody twice: a known difference.
            let group = dice.pick(&["0", "5", "1000", "-1"]);
            let owner = dice.pick(&["0", "5", "1000", if group == "-1" { "0" } else { "-1" }]);
            format!("chown {path} {owner} {group}")
        }
        7..10 => {
            let time = dice.pick(&["now", "omit", "100", "900000000"]);
            format!("times {path} {time}")
        }
        10..13 => {
            let flags = dice.pick(&["none", "none", "create", "replace"]);
            format!("set-xattr {path} {} {flags} {}", dice.pick(&KEYS), dice.below(40))
        }
        13 => format!("remove-xattr {path} {}", dice.pick(&KEYS)),
        14 => format!("get-xattr {path} {}", dice.pick(&KEYS)),
        15 => format!("set-acl {path} {} {}", dice.pick(&["access", "default"]), dice.below(8)),
        _ => format!("remove-acl {path} {}", dice.pick(&["access", "default"])),
    }
}

fn look(dice: &mut Dice) -> String {
    let path = path(dice);
    let verb = dice.pick(&["read", "read", "look", "look", "list", "list", "stat"]);
    match dice.below(6) {
        0 => format!("access {path} {}", dice.below(8)),
        1 => dice.pick(&["seek", "statistics", "target"]).to_owned() + " " + &path,
        _ => format!("{verb} {path}"),
    }
}

/// What belongs to the process.
fn itself(dice: &mut Dice) -> String {
    match dice.below(5) {
        0 => "where".to_owned(),
        1 => "chdir /".to_owned(),
        2 | 3 => format!("chdir {}", path(dice)),
        _ => format!("umask {}", dice.pick(&["0", "22", "77"])),
    }
}

fn hold(dice: &mut Dice) -> String {
    let (slot, path) = (dice.below(SLOTS), path(dice));
    match dice.below(6) {
        0 => format!("unnamed {slot} {path}"),
        1 | 2 => {
            let directory = path_of(dice, |is_directory| is_directory);
            format!("hold {slot} {directory} dir")
        }
        _ => {
            let how = dice.pick(&["rw", "rw", "r", "w", "rw,creat", "rw,append", "path"]);
            format!("hold {slot} {path} {how}")
        }
    }
}

fn held(dice: &mut Dice) -> String {
    let slot = dice.below(SLOTS);
    let at = dice.below(150_000);
    match dice.below(24) {
        0..2 => format!("held-read {slot}"),
        2 => format!("held-look {slot}"),
        3..6 => format!("held-write {slot} {at} 50"),
        6 => format!("held-append {slot} 20"),
        7 => format!("held-truncate {slot} {at}"),
        8 => format!("held-chmod {slot} {}", dice.pick(&MODES)),
        9 => format!("held-chown {slot} {} 5", dice.pick(&["0", "1000"])),
        10 => format!("held-times {slot} {}", dice.pick(&["now", "100"])),
        11 => format!("held-set-xattr {slot} {} none 7", dice.pick(&KEYS)),
        12 => {
            let mode = dice.pick(&["none", "keep", "punch", "zero"]);
            format!("held-allocate {slot} {mode} {at} 5000")
        }
        13 => {
            let verb = dice.pick(&["held-sync", "held-sync-data", "held-sync-all"]);
            format!("{verb} {slot}")
        }
        14 => format!("held-mkdir {slot} {}", dice.pick(&NAMES)),
        15 => format!("held-create {slot} {}", dice.pick(&NAMES)),
        16 => format!("held-unlink {slot} {}", dice.pick(&NAMES)),
        17 => format!("held-again {slot} {}", dice.pick(&["rw", "r", "w,trunc"])),
        18..20 => {
            let path = new_path(dice);
            dice.born(&path, false);
            format!("held-link {slot} {path}")
        }
        20 => format!("map {slot}"),
        21 => {
            let verb = dice.pick(&["map-write", "map-write", "map-read", "unmap"]);
            format!("{verb} {slot} {at}")
        }
        22 => {
            let verb = dice.pick(&["flock", "lock"]);
            format!("{verb} {slot} {}", dice.pick(&["shared", "alone", "off"]))
        }
        _ => format!("close {slot}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the shrinker and the reports rest on.
    #[test]
    fn script_of_a_seed_is_always_the_same() {
        assert_eq!(script(7, 50), script(7, 50));
        assert_ne!(script(7, 50), script(8, 50));
    }
}
