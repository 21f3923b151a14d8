//! pjdfstest, the original in C and shell: each line of its output is one assertion.

use std::path::{Path, PathBuf};

use super::shims::Shims;
use super::verdict::{End, Ends, Results};
use super::{Bench, bounded, install};
use crate::setup;
use crate::steps::{Step, check, output, run as run_program};

const SOURCE: install::Source = install::Source {
    url: "https://github.com/pjd/pjdfstest.git",
    commit: "85a8aea9e685999ef0540392fd80535f873d7ff7",
};

pub fn install(bench: &Bench) -> Step {
    setup::install_packages(&[
        ("autoreconf", "autoconf"),
        ("automake", "automake"),
        ("make", "make"),
        ("prove", "perl"),
    ])?;
    let directory = directory(bench);
    SOURCE.fetch(&directory)?;
    if directory.join("pjdfstest").exists() {
        return Ok(());
    }
    let build = "exec >build.log 2>&1; autoreconf -ifs && ./configure && make pjdfstest";
    run_program(std::process::Command::new("sh").args(["-c", build]).current_dir(&directory))
}

fn directory(bench: &Bench) -> PathBuf {
    bench.directory.join("pjdfstest-c")
}

pub fn run(bench: &Bench) -> Step<Results> {
    let mut place = bench.place("pjdfstest-c")?;
    let tests = directory(bench).join("tests");
    let shims = Shims::make(&place.notes().join("bin"))?;
    // By its name the suite knows that a rename changes a file's ctime.
    shims.df("ext4")?;
    let on = |path: &Path| on(&tests, path, &shims);
    let ext4 = on(&place.plain())?;
    place.mount()?;
    let union = on(&place.root())?;
    place.unmount()?;
    Ok(Results { union, ext4, is_part: false })
}

fn on(tests: &Path, path: &Path, shims: &Shims) -> Step<Ends> {
    let mut command = bounded(1800, "prove");
    command.env("PATH", shims.path());
    let said = output(command.args(["-r", "-v"]).arg(tests).current_dir(path))?;
    let ends = read(&String::from_utf8_lossy(&said.stdout), tests);
    check(ends.len() > 8_000, format!("{} assertions; expected all, over 8,000", ends.len()))?;
    Ok(ends)
}

/// Assertions are numbered within their file; `# todo` says that one is known to be so, `# skip`
/// that it was not made.
fn read(said: &str, tests: &Path) -> Ends {
    let says = |rest: &str, directive| rest.to_ascii_lowercase().contains(directive);
    let mut ends = Ends::new();
    let mut file = String::new();
    for line in said.lines() {
        if let Some((name, _)) = line.split_once(" .") {
            if let Ok(name) = Path::new(name).strip_prefix(tests) {
                file = name.display().to_string();
            }
            continue;
        }
        let (end, rest) = match (line.strip_prefix("ok "), line.strip_prefix("not ok ")) {
            (Some(rest), _) if says(rest, "# skip") => (End::Skipped, rest),
            (Some(rest), _) => (End::Passed, rest),
            (_, Some(rest)) if says(rest, "# todo") => (End::Skipped, rest),
            (_, Some(rest)) => (End::Failed, rest),
            _ => continue,
        };
        let number = rest.split_whitespace().next().unwrap_or_default();
        ends.insert(format!("{file}:{number}"), end);
    }
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assertions_are_named_by_file_and_number() {
        let said = "/t/chmod/00.t .. \n1..3\nok 1\nnot ok 2 - tried 'x', expected 0, got EPERM\nFailed 1/3 subtests\n\
                    /t/open/01.t ... \n1..2\nok 1 # SKIP no\nnot ok 2 # todo known\n";
        let ends = read(said, Path::new("/t"));
        let expected = [
            ("chmod/00.t:1", End::Passed),
            ("chmod/00.t:2", End::Failed),
            ("open/01.t:1", End::Skipped),
            ("open/01.t:2", End::Skipped),
        ];
        assert_eq!(ends, expected.map(|(name, end)| (name.to_owned(), end)).into());
    }
}
