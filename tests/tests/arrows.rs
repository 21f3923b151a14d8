//! The house rules that no lint holds: which room may name which (docs/ARCHITECTURE.md, "The
//! house"), and what keeps files readable.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Who may name whom inside `vmm-backend/src`. A room may always name itself; what the program is
/// wired of may name everything.
const ARROWS: [(&str, &[&str]); 10] = [
    ("door", &["fuse", "filesystem", "sys"]),
    ("fuse", &["filesystem"]),
    ("filesystem", &[]),
    ("union", &["filesystem", "layer"]),
    ("layer", &["filesystem", "sys"]),
    ("sys", &[]),
    ("sandbox", &["sys"]),
    ("life", &["layer", "filesystem", "sys"]),
    ("vm", &["sys"]),
    ("control", &["filesystem", "sys"]),
];

/// The program itself.
const WIRING: [&str; 4] = ["main", "cli", "config", "wiring"];

/// Crates that are a room's own business.
const CRATES: [(&str, &[&str]); 9] = [
    ("clap", &["cli"]),
    ("landlock", &["sandbox", "vm"]),
    ("libc", &["sys", "vm"]),
    ("tar", &["life"]),
    ("vhost", &["door"]),
    ("vhost_user_backend", &["door"]),
    ("virtio_queue", &["door"]),
    ("vm_memory", &["door", "sys"]),
    ("kvm_ioctls", &["sys"]),
];

/// STYLE: at this length, tests aside, ask which noun was left out.
const LINES_MAX: usize = 600;

struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    /// The code without its tests, which stand last.
    fn code(&self) -> &str {
        if self.is_test_module() {
            return "";
        }
        let ends = ["mod ", "pub(crate) mod "].map(|module| {
            let mark = format!("\n#[cfg(test)]\n{module}tests {{");
            self.text.find(&mark).unwrap_or(self.text.len())
        });
        &self.text[..ends[0].min(ends[1])]
    }

    /// Whether it, or a module above it, is declared for tests only.
    fn is_test_module(&self) -> bool {
        self.path.ancestors().any(|path| {
            let (Some(directory), Some(name)) = (path.parent(), path.file_stem()) else {
                return false;
            };
            let above = ["mod.rs", "lib.rs"].map(|file| directory.join(file));
            let above = above.into_iter().chain([directory.with_extension("rs")]);
            let mut above = above.filter_map(|path| fs::read_to_string(path).ok());
            let name = name.to_str().unwrap();
            above.any(|text| {
                ["mod ", "pub(crate) mod "]
                    .iter()
                    .any(|module| text.contains(&format!("#[cfg(test)]\n{module}{name};")))
            })
        })
    }

    /// The lines of code, without comments and literals' contents being looked at.
    fn statements(&self) -> impl Iterator<Item = &str> {
        self.code().lines().map(str::trim).filter(|line| !line.starts_with("//"))
    }

    fn room(&self, source: &Path) -> Option<String> {
        let first = self.path.strip_prefix(source).ok()?.components().next()?;
        let first = first.as_os_str().to_str()?;
        Some(first.strip_suffix(".rs").unwrap_or(first).to_owned())
    }
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn sources_below(directory: &Path) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(directory) = waiting.pop() {
        for row in fs::read_dir(directory).unwrap() {
            let path = row.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                sources.push(Source { path, text });
            }
        }
    }
    assert!(!sources.is_empty());
    sources
}

/// Every source of the workspace.
fn sources() -> Vec<Source> {
    let members = ["vmm-backend", "guest-init", "images", "tests", "xtask"];
    let mut sources = Vec::new();
    for member in members {
        for part in ["src", "tests", "benches"] {
            let directory = workspace().join(member).join(part);
            if directory.exists() {
                sources.extend(sources_below(&directory));
            }
        }
    }
    sources
}

/// The rooms named behind `crate::` or `thinroot::`, alone or in braces.
fn named_rooms(source: &Source) -> BTreeSet<String> {
    let code: Vec<_> = source.statements().collect();
    let code = code.join(" ");
    let mut rooms = BTreeSet::new();
    for prefix in ["crate::", "thinroot::"] {
        for (at, _) in code.match_indices(prefix) {
            let rest = &code[at + prefix.len()..];
            match rest.strip_prefix('{') {
                None => rooms.extend(word(rest)),
                Some(group) => rooms.extend(first_words(group)),
            }
        }
    }
    rooms
}

fn word(text: &str) -> Option<String> {
    let end = text.find(|letter: char| !letter.is_alphanumeric() && letter != '_');
    let word = &text[..end.unwrap_or(text.len())];
    (!word.is_empty()).then(|| word.to_owned())
}

/// The words that begin each item of a braced group; what is nested belongs to its item.
fn first_words(group: &str) -> Vec<String> {
    let mut depth = 0;
    let mut words = Vec::new();
    let mut begins = true;
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => begins = true,
            letter if begins && letter.is_alphabetic() => {
                words.extend(word(&group[at..]));
                begins = false;
            }
            _ => {}
        }
    }
    words
}

fn complain(broken: &[String]) {
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn no_room_names_a_room_it_must_not() {
    let home = workspace().join("vmm-backend/src");
    let known: BTreeSet<_> = ARROWS.iter().map(|(room, _)| *room).collect();
    let mut broken = Vec::new();
    for source in sources_below(&home) {
        let room = source.room(&home).unwrap();
        let is_furniture = WIRING.contains(&room.as_str()) || room == "lib";
        if is_furniture || source.is_test_module() {
            continue;
        }
        let Some((_, may)) = ARROWS.iter().find(|(name, _)| *name == room) else {
            broken.push(format!("{}: {room} is no room of the house", source.path.display()));
            continue;
        };
        for named in named_rooms(&source) {
            let is_room = known.contains(named.as_str()) || WIRING.contains(&named.as_str());
            if is_room && named != room && !may.contains(&named.as_str()) {
                broken.push(format!("{}: {room} names {named}", source.path.display()));
            }
        }
    }
    complain(&broken);
}

#[test]
fn policy_makes_no_system_call() {
    let home = workspace().join("vmm-backend/src");
    let mut broken = Vec::new();
    for source in sources_below(&home) {
        let room = source.room(&home).unwrap();
        let is_pure = room == "union" || room == "fuse";
        for line in source.statements() {
            // The contract's error type is the one thing of rustix that is everybody's.
            let calls = line.contains("rustix::") && !line.contains("rustix::io::Errno");
            if is_pure && (calls || line.contains("std::fs") || line.contains("std::net")) {
                broken.push(format!("{}: {line}", source.path.display()));
            }
        }
    }
    complain(&broken);
}

#[test]
fn crates_stay_in_their_rooms() {
    let home = workspace().join("vmm-backend/src");
    let mut broken = Vec::new();
    for source in sources_below(&home) {
        let room = source.room(&home).unwrap();
        for (name, rooms) in CRATES {
            let path = format!("{name}::");
            let names = |line: &str| {
                line.match_indices(&path).any(|(at, _)| {
                    !line[..at].ends_with(|before: char| {
                        before.is_alphanumeric() || matches!(before, '_' | ':')
                    })
                })
            };
            if !rooms.contains(&room.as_str()) && source.statements().any(names) {
                broken.push(format!("{}: {room} names the crate {name}", source.path.display()));
            }
        }
    }
    complain(&broken);
}

#[test]
fn unsafe_code_is_in_sys_alone() {
    let homes = ["vmm-backend/src/sys", "guest-init/src/sys"].map(|home| workspace().join(home));
    let mut broken = Vec::new();
    for source in sources() {
        let path = source.path.with_extension("");
        if homes.iter().any(|home| path.starts_with(home)) {
            continue;
        }
        let words = [" {", " fn ", " impl ", " extern "].map(|next| format!("unsafe{next}"));
        let mut lines = source.text.lines().map(str::trim).filter(|line| !line.starts_with("//"));
        let is_unsafe = lines.any(|line| words.iter().any(|word| line.contains(word.as_str())));
        // The virtual guest is the other side of shared memory, and says why where it is.
        let is_argued = source.text.contains("unsafe_code,\n    reason = ")
            && source.path.starts_with(workspace().join("tests"));
        if is_unsafe && !is_argued {
            broken.push(format!("{}: unsafe code", source.path.display()));
        }
    }
    complain(&broken);
}

#[test]
fn files_are_one_noun_long() {
    let mut broken = Vec::new();
    for source in sources() {
        let lines = source.code().lines().count();
        if lines > LINES_MAX {
            broken.push(format!("{}: {lines} lines before its tests", source.path.display()));
        }
        if !source.text.starts_with("//!") && !source.path.ends_with("tests.rs") {
            broken.push(format!("{}: no header that says what it is", source.path.display()));
        }
    }
    complain(&broken);
}

/// A test that is not run is no test. Two kinds are run otherwise: the child of another test,
/// which its reason names, and a measure, which is no test.
#[test]
fn no_test_is_ignored() {
    let sources = sources();
    let is_test = |name: &str| {
        let begin = format!("fn {name}(");
        sources.iter().any(|source| source.text.contains(&begin))
    };
    let mut broken = Vec::new();
    let attribute = concat!("#[", "ignore");
    for source in &sources {
        for line in source.text.lines().map(str::trim).filter(|line| line.starts_with(attribute)) {
            let reason = line.split('"').nth(1).unwrap_or_default();
            let is_child = reason.strip_prefix("run by ").is_some_and(is_test);
            if !is_child && !reason.starts_with("a measure") {
                broken.push(format!("{}: {line}", source.path.display()));
            }
        }
    }
    complain(&broken);
}

/// The harness shows what a test prints only if it fails: such a skip is never heard.
#[test]
fn skips_are_said_past_the_harness() {
    let mut broken = Vec::new();
    for source in sources() {
        let says = |line: &&str| {
            let line = line.to_lowercase();
            line.contains(concat!("println!(\"", "skipped"))
        };
        let lines = source.text.lines().filter(says);
        broken.extend(lines.map(|line| format!("{}: {}", source.path.display(), line.trim())));
    }
    complain(&broken);
}

#[test]
fn nothing_is_left_to_do_in_a_comment() {
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    let macros = [concat!("to", "do!("), concat!("unimple", "mented!(")];
    let mut broken = Vec::new();
    for source in sources() {
        for (number, line) in source.text.lines().enumerate() {
            if words.iter().chain(&macros).any(|word| line.contains(word)) {
                broken.push(format!("{}:{}: {}", source.path.display(), number + 1, line.trim()));
            }
        }
    }
    complain(&broken);
}

/// Every test that a document names exists: a law that lost its test is a wish.
#[test]
fn documents_name_tests_that_exist() {
    let sources = sources();
    let text: String = sources.iter().map(|source| source.text.as_str()).collect();
    let mut broken = Vec::new();
    for row in fs::read_dir(workspace().join("docs")).unwrap() {
        let path = row.unwrap().path();
        if path.is_dir() {
            continue;
        }
        let document = fs::read_to_string(&path).unwrap();
        for name in named_tests(&document) {
            if !text.contains(&format!("fn {name}(")) {
                broken.push(format!("{}: no test {name}", path.display()));
            }
        }
    }
    complain(&broken);
}

/// What stands in backquotes behind `Test:` or `Tests:` up to the end of the paragraph, or in a
/// table whose head says `held by`.
fn named_tests(document: &str) -> Vec<&str> {
    let paragraphs = document.split("\n\n");
    let lists = paragraphs.filter_map(|paragraph| {
        let marks = ["Tests:", "Test:", "held by"];
        let at = marks.iter().find_map(|mark| paragraph.find(mark))?;
        Some(&paragraph[at..])
    });
    lists.flat_map(|list| list.split('`').skip(1).step_by(2)).filter(|name| is_name(name)).collect()
}

fn is_name(text: &str) -> bool {
    text.contains('_')
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

#[test]
fn a_braced_use_names_the_rooms_that_begin_its_items() {
    let source = Source {
        path: "x.rs".into(),
        text: "use crate::{fuse::{abi, sys}, union};\nlet a = crate::door::b;\n// crate::vm\n"
            .into(),
    };
    let rooms: Vec<_> = named_rooms(&source).into_iter().collect();
    assert_eq!(rooms, ["door", "fuse", "union"]);
}
