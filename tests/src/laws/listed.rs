//! Laws that cannot be kept somewhere, as docs/UNION.md lists them: each must fail there, and no other.
#![allow(clippy::expect_used, clippy::panic, reason = "a test without its document cannot go on")]

use std::collections::BTreeMap;
use std::path::Path;

use super::{Verdict, all};
use crate::disk::keeps_room;

/// The rows below one heading of the document: a test's name, and whether it holds at times.
#[derive(Debug, Default)]
pub struct Listed(BTreeMap<String, bool>);

/// What came of all laws, held against a list.
#[derive(Debug, Default)]
pub struct Judged {
    /// Laws that hold.
    pub held: usize,
    /// Laws that could not be tried.
    pub skipped: usize,
    /// What is not as it is listed.
    pub wrong: Vec<String>,
}

impl Listed {
    /// Reads `## HEADING`; none of it is an empty list.
    ///
    /// # Panics
    /// If a row names no law, or gives no reason.
    pub fn below(heading: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace");
        let document = std::fs::read_to_string(root.join("docs/UNION.md")).expect("docs/UNION.md");
        let found = document.split_once(&format!("\n## {heading}\n"));
        let section = found.and_then(|(_, rest)| rest.split("\n## ").next()).unwrap_or_default();
        let rows = section.split("\n- `").skip(1).map(|row| {
            let (name, reason) = row.split_once("`: ").expect("`law`: reason");
            (name.to_owned(), reason.split_whitespace().collect::<Vec<_>>().join(" "))
        });
        let rows: BTreeMap<_, _> = rows.collect();
        for (name, reason) in &rows {
            assert!(all().iter().any(|law| law.name == name), "{name} is listed and is no law");
            assert!(reason.len() > 20, "{name} is listed without a reason");
        }
        Self(rows.into_keys().map(|name| (name, false)).collect())
    }

    /// What an upper on a file system of this kind lacks; ext4 nothing. Where that gives room back by itself, what is
    /// lacking is there at times.
    pub fn on(kind: Option<&str>) -> Self {
        let mut listed = Self::below(&format!("What an upper on {} lacks", kind.unwrap_or("ext4")));
        listed.0.values_mut().for_each(|holds_at_times| *holds_at_times = !keeps_room());
        listed
    }

    /// The same where a user's marks say what a symbolic link is (docs/decisions/0006): no disk limits those.
    #[must_use]
    pub fn with_links_in_files(mut self) -> Self {
        self.0.remove("symlink_of_any_length_lasts");
        self
    }

    /// Both lists.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Holds verdicts against the list.
    pub fn judge(&self, verdicts: &[Verdict]) -> Judged {
        let mut judged = Judged::default();
        for verdict in verdicts {
            let name = verdict.law.name;
            match (&verdict.failure, self.0.get(name)) {
                (Some(failure), _) if failure.is_skip => judged.skipped += 1,
                (Some(failure), None) => judged.wrong.push(format!("{name} fails: {failure}")),
                (None, Some(false)) => judged.wrong.push(format!("{name} is listed, and holds")),
                (None, None | Some(true)) => judged.held += 1,
                (Some(_), Some(_)) => {}
            }
        }
        judged
    }
}
