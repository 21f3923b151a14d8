//! pjdfstest, the crate: what POSIX says of each call.

use std::fs;
use std::path::{Path, PathBuf};

use super::shims::Shims;
use super::verdict::{End, Ends, Results};
use super::{Bench, bounded, install};
use crate::steps::{Step, StepError, check, file_error, output};

/// All of its features that Linux has, and users every Debian has.
const CONFIG: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}

[settings]
naptime = 0.01
allow_remount = REMOUNT

[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// `mount` without the helpers of file-system types: remounting is the kernel's work alone.
const MOUNT: &str = "PATH=${PATH#*:}; exec mount -i \"$@\"";

pub fn install(bench: &Bench) -> Step {
    program(bench).map(drop)
}

fn program(bench: &Bench) -> Step<PathBuf> {
    install::from_crate(&bench.directory, "pjdfstest", "0.2.2")
}

pub fn run(bench: &Bench) -> Step<Results> {
    let mut place = bench.place("pjdfstest")?;
    let ext4 = on(bench, place.notes(), &place.plain())?;
    place.mount()?;
    let union = on(bench, place.notes(), &place.root())?;
    place.unmount()?;
    Ok(Results { union, ext4, is_part: false })
}

/// Those that remount for EROFS run by themselves: other tests leave files open for writing, which
/// keep a file system from being read-only.
fn on(bench: &Bench, notes: &Path, path: &Path) -> Step<Ends> {
    let mut ends = once(bench, notes, path, false)?;
    ends.extend(once(bench, notes, path, true)?);
    Ok(ends)
}

fn once(bench: &Bench, notes: &Path, path: &Path, may_remount: bool) -> Step<Ends> {
    let (config, other) = (notes.join("config"), notes.join("other"));
    let written = fs::create_dir_all(&other)
        .and_then(|()| fs::write(&config, CONFIG.replace("REMOUNT", &may_remount.to_string())));
    written.map_err(file_error(notes))?;
    let shims = Shims::make(&notes.join("bin"))?;
    shims.program("mount", MOUNT)?;
    let mut command = bounded(600, program(bench)?);
    command.arg("-c").arg(&config).arg("-s").arg(&other).arg("-p").arg(path).current_dir(notes);
    command.args(may_remount.then_some("erofs"));
    let said = output(command.env("PATH", shims.path()))?;
    read(&String::from_utf8_lossy(&said.stdout)).map_err(|wrong| {
        StepError::Wrong(format!("{wrong}\n{}", String::from_utf8_lossy(&said.stderr)))
    })
}

/// A test's line is its name and its end; the last one has the sums.
fn read(said: &str) -> Step<Ends> {
    let mut ends = Ends::new();
    for line in said.lines().filter(|line| !line.starts_with(char::is_whitespace)) {
        let words: Vec<_> = line.split_whitespace().collect();
        let &[test, end] = words.as_slice() else { continue };
        let end = match end {
            "ok" => End::Passed,
            "FAILED" => End::Failed,
            "skipped" => End::Skipped,
            _ => continue,
        };
        ends.insert(test.to_owned(), end);
    }
    let sum = said.lines().rev().find_map(|line| line.strip_prefix("Summary: "));
    let total = sum.and_then(|sum| sum.split_whitespace().rev().nth(1)?.parse::<usize>().ok());
    check(
        total == Some(ends.len()),
        format!("{} tests were read, the suite says {sum:?}", ends.len()),
    )?;
    Ok(ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_read_and_counted() {
        let said = "chmod::a  ok\nchmod::b  FAILED\n\tcalled `Result::unwrap()` ok\nchmod::c skipped\n\twhy\n\
                    \nSummary: 1 failed, 1 skipped, 1 passed, 0 expected failures, 3 total\n";
        let ends = read(said).unwrap();
        let expected =
            [("chmod::a", End::Passed), ("chmod::b", End::Failed), ("chmod::c", End::Skipped)];
        assert_eq!(ends, expected.map(|(test, end)| (test.to_owned(), end)).into());
        assert!(read("chmod::a  ok\n").is_err(), "it ended before its end");
    }
}
