//! What a suite said on the union and on ext4, held against its exclusion list.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use crate::steps::{Step, StepError, check, file_error, note};

/// How one test ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// As it should.
    Passed,
    /// It did not.
    Failed,
    /// The suite found that it cannot be run here.
    Skipped,
}

/// How each test ended, by its name.
pub type Ends = BTreeMap<String, End>;

/// What a suite said of a union, and of ext4.
#[derive(Debug, Default)]
pub struct Results {
    /// On the union.
    pub union: Ends,
    /// On ext4.
    pub ext4: Ends,
    /// Somebody asked for some of its tests alone: exclusions of others mean nothing.
    pub is_part: bool,
}

/// The tests of a suite that do not pass on a union, each with the reason why that is right.
#[derive(Debug, Default)]
pub struct Exclusions(BTreeMap<String, String>);

impl Exclusions {
    /// Reads a list: `TEST # REASON` in each line that is neither empty nor begins with `#`. A
    /// suite without a list has no exclusions.
    ///
    /// Errors: a line without a reason, or whose reason says no more than that the test fails.
    pub fn read(path: &Path) -> Step<Self> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = fs::read_to_string(path).map_err(file_error(path))?;
        Self::parse(&text).map_err(|wrong| StepError::Wrong(format!("{}: {wrong}", path.display())))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut list = BTreeMap::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (test, reason) = line
                .split_once(" # ")
                .map(|(test, reason)| (test.trim(), reason.trim()))
                .filter(|(_, reason)| is_argued(reason))
                .ok_or_else(|| {
                    format!("{line:?}: expected TEST # REASON, and a reason that argues")
                })?;
            if list.insert(test.to_owned(), reason.to_owned()).is_some() {
                return Err(format!("{test:?}: stands there twice"));
            }
        }
        Ok(Self(list))
    }

    /// Holds results against the list.
    pub fn judge(&self, results: &Results) -> Verdict {
        let mut verdict = Verdict::default();
        for (test, &end) in &results.union {
            let excluded = self.0.get(test);
            let ext4 = results.ext4.get(test).copied();
            // What ext4 does not pass either is no difference.
            let is_worse = end != End::Passed && ext4.unwrap_or(End::Passed) == End::Passed;
            let count = match (end, excluded, is_worse) {
                (End::Passed, None, _) => &mut verdict.passed,
                (_, Some(_), true) => &mut verdict.excluded,
                (End::Passed | End::Failed | End::Skipped, Some(_), _) => {
                    verdict.wrong.push(format!("{test}: is excluded, but is as on ext4"));
                    continue;
                }
                (End::Failed | End::Skipped, None, true) => {
                    verdict.wrong.push(format!("{test}: {end:?} on the union alone"));
                    continue;
                }
                (End::Failed, None, false) => &mut verdict.failed_on_both,
                (End::Skipped, None, false) => &mut verdict.skipped_on_both,
            };
            if matches!((end, is_worse), (End::Failed, false)) {
                note(&format!("{test}: fails on ext4 as well"));
            }
            *count += 1;
        }
        let lost = results.ext4.keys().filter(|test| !results.union.contains_key(*test));
        verdict.wrong.extend(lost.map(|test| format!("{test}: did not run on the union")));
        let unknown = self.0.keys().filter(|test| !results.union.contains_key(*test));
        if !results.is_part {
            let said = unknown.map(|test| format!("{test}: is excluded, but there is none"));
            verdict.wrong.extend(said);
        }
        verdict
    }
}

/// A reason says what of: a word more than "it fails".
fn is_argued(reason: &str) -> bool {
    let words: Vec<_> = reason.split_whitespace().collect();
    words.len() >= 5 && !words.iter().take(3).any(|word| word.starts_with("fail"))
}

/// What came of a suite.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    passed: usize,
    excluded: usize,
    failed_on_both: usize,
    skipped_on_both: usize,
    wrong: Vec<String>,
}

impl Verdict {
    /// An error if anything is not as it should be.
    pub fn into_step(self) -> Step {
        self.wrong.iter().for_each(|line| note(line));
        check(
            self.wrong.is_empty(),
            format!("{} tests are not as they should be", self.wrong.len()),
        )
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} passed, {} failed, {} excluded; {} failed and {} skipped on ext4 as well",
            self.passed,
            self.wrong.len(),
            self.excluded,
            self.failed_on_both,
            self.skipped_on_both
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::workspace;

    #[test]
    fn every_exclusion_is_argued() {
        let mut lists = 0;
        for row in fs::read_dir(workspace().join("tests/suites")).unwrap() {
            let path = row.unwrap().path();
            Exclusions::read(&path).unwrap();
            lists += 1;
        }
        assert!(lists > 0, "there are no lists");
    }

    #[test]
    fn line_without_an_argument_is_refused() {
        let rows = [
            ("", true),
            ("# a comment\n\na::b # FUSE gives no limit of links to pathconf(3)", true),
            ("a::b", false),
            ("a::b # ", false),
            ("a::b # fails", false),
            ("a::b # it fails on the union every time", false),
            ("a # one two three four five\na # one two three four five", false),
        ];
        for (text, is_good) in rows {
            assert_eq!(Exclusions::parse(text).is_ok(), is_good, "{text:?}");
        }
    }

    #[test]
    fn verdict_names_what_is_worse_than_ext4_and_what_is_not_excluded_any_more() {
        use End::{Failed, Passed, Skipped};
        let list = Exclusions::parse("out # one two three four five").unwrap();
        let rows = [
            ("in", Passed, Passed, None),
            ("in", Failed, Failed, None),
            ("in", Skipped, Skipped, None),
            ("in", Failed, Passed, Some("in: Failed on the union alone")),
            ("in", Skipped, Passed, Some("in: Skipped on the union alone")),
            ("out", Failed, Passed, None),
            ("out", Passed, Passed, Some("out: is excluded, but is as on ext4")),
            ("out", Failed, Failed, Some("out: is excluded, but is as on ext4")),
        ];
        for (test, union, ext4, told) in rows {
            let mut results = Results::default();
            if test == "in" {
                // The list's own line is there as it should be.
                results.union.insert("out".to_owned(), Failed);
            }
            results.union.insert(test.to_owned(), union);
            results.ext4.insert(test.to_owned(), ext4);
            let verdict = list.judge(&results);
            assert_eq!(verdict.wrong, Vec::from_iter(told), "{test} {union:?} {ext4:?}");
            assert_eq!(verdict.into_step().is_ok(), told.is_none());
        }
        let mut results = Results::default();
        results.ext4.insert("gone".to_owned(), Passed);
        assert_eq!(list.judge(&results).wrong.len(), 2, "a lost test, and an unknown exclusion");
    }
}
