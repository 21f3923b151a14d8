//! xfstests' generic tests, through the mount helper; what fails there is run again on ext4.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::helpers::Helpers;
use super::place::Place;
use super::shims::Shims;
use super::verdict::{End, Ends, Results};
use super::{Bench, bounded, install};
use crate::setup;
use crate::steps::{Step, StepError, capture, file_error, note, output, run as run_program};

const SOURCE: install::Source = install::Source {
    url: "https://git.kernel.org/pub/scm/fs/xfs/xfstests-dev.git",
    commit: "63a29724a85f1999e49bf0a9bf0d22643b6116e5",
};

/// Which tests: `THINROOT_XFSTESTS` has other words for `check`, as `generic/001 generic/002`.
const TESTS: &str = "-g generic/quick";
/// All of them, on a machine that does other things too.
const SECONDS_MAX: u32 = 3 * 3600;
/// One of them; those of the quick group take seconds.
const TEST_SECONDS_MAX: u32 = 600;

pub fn install(bench: &Bench) -> Step {
    setup::install_packages(&[
        ("autoconf", "autoconf"),
        ("automake", "automake"),
        ("libtoolize", "libtool"),
        ("make", "make"),
        ("xfs_io", "xfsprogs"),
        ("/usr/include/xfs/xfs.h", "xfslibs-dev"),
        ("/usr/include/uuid/uuid.h", "uuid-dev"),
        ("/usr/include/attr/attributes.h", "libattr1-dev"),
        ("/usr/include/sys/acl.h", "libacl1-dev"),
        ("/usr/include/libaio.h", "libaio-dev"),
        ("bc", "bc"),
        ("gawk", "gawk"),
        ("killall", "psmisc"),
        ("perl", "perl"),
        ("quota", "quota"),
        ("fio", "fio"),
    ])?;
    add_users()?;
    let directory = directory(bench);
    SOURCE.fetch(&directory)?;
    if directory.join("ltp/fsx").exists() {
        return Ok(());
    }
    note("xfstests is built (minutes, once)");
    let build = "exec >build.log 2>&1; make";
    run_program(Command::new("sh").args(["-c", build]).current_dir(&directory))
}

/// Users of its README, without whom tests of rights are left out.
fn add_users() -> Step {
    for user in ["fsgqa", "fsgqa2", "123456-fsgqa"] {
        if capture(Command::new("getent").args(["passwd", user])).is_ok() {
            continue;
        }
        note(&format!("adding the user {user}"));
        // Debian takes no name with a digit in front for a good one.
        let mut add = Command::new("useradd");
        run_program(add.args(["--badname", "--create-home", "--shell", "/bin/bash", user]))?;
    }
    Ok(())
}

fn directory(bench: &Bench) -> PathBuf {
    bench.directory.join("xfstests")
}

pub fn run(bench: &Bench) -> Step<Results> {
    let place = bench.place("xfstests")?;
    let helpers = Helpers::install(&bench.thinroot)?;
    let part = std::env::var("THINROOT_XFSTESTS").ok();
    let tests = part.as_deref().unwrap_or(TESTS);
    let tests: Vec<_> = tests.split_whitespace().map(str::to_owned).collect();
    let union = on(bench, &place, "union", &union_config(&place)?, &tests)?;
    drop(helpers);
    let failed: Vec<_> = union
        .iter()
        .filter(|(_, end)| **end == End::Failed)
        .map(|(test, _)| test.clone())
        .collect();
    let ext4 = if failed.is_empty() {
        Ends::new()
    } else {
        let images = ["test.image", "scratch.image"].map(|name| place.notes().join(name));
        let loops = Loops::of(&images)?;
        let [test, scratch] = loops.0.as_slice() else { return Ok(Results::default()) };
        let config = format!("export FSTYP=ext4 TEST_DEV={test} SCRATCH_DEV={scratch}\n");
        on(bench, &place, "ext4", &config, &failed)?
    };
    Ok(Results { union, ext4, is_part: part.is_some() })
}

/// Two unions over one lower.
fn union_config(place: &Place) -> Step<String> {
    let plain = place.plain();
    let options = |name: &str| {
        let at = plain.join(name).display().to_string();
        format!(
            "-olowerdir={},upperdir={at}/upper,workdir={at}/work,index={at}/index,trusted",
            place.lower().display()
        )
    };
    for path in ["test/upper", "test/work", "scratch/upper", "scratch/work"] {
        let path = plain.join(path);
        fs::create_dir_all(&path).map_err(file_error(&path))?;
    }
    Ok(format!(
        "export FSTYP=fuse FUSE_SUBTYP=.thinroot\nexport TEST_DEV=thinroot-test SCRATCH_DEV=thinroot-scratch\n\
         export TEST_FS_MOUNT_OPTS={}\nexport MOUNT_OPTIONS={}\n",
        options("test"),
        options("scratch"),
    ))
}

/// Two images of its own, gone with the place.
struct Loops(Vec<String>);

impl Loops {
    fn of(images: &[PathBuf]) -> Step<Self> {
        let mut loops = Self(Vec::new());
        for image in images {
            let file = fs::File::create(image).and_then(|file| file.set_len(2 << 30));
            file.map_err(file_error(image))?;
            run_program(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(image))?;
            let device = capture(Command::new("losetup").args(["--find", "--show"]).arg(image))?;
            loops.0.push(device.trim().to_owned());
        }
        Ok(loops)
    }
}

impl Drop for Loops {
    fn drop(&mut self) {
        for device in &self.0 {
            if let Err(cause) = run_program(Command::new("losetup").args(["--detach", device])) {
                note(&format!("{device} stays behind: {cause}"));
            }
        }
    }
}

fn on(bench: &Bench, place: &Place, name: &str, config: &str, tests: &[String]) -> Step<Ends> {
    let notes = place.notes();
    let [file, test, scratch] = ["local.config", "test", "scratch"].map(|name| notes.join(name));
    // What each test said, for who wants to know why one failed.
    let results = bench.directory.join(format!("xfstests-{name}"));
    if results.exists() {
        fs::remove_dir_all(&results).map_err(file_error(&results))?;
    }
    for path in [&results, &test, &scratch] {
        fs::create_dir_all(path).map_err(file_error(path))?;
    }
    let shims = Shims::make(&place.notes().join("bin"))?;
    shims.df("fuse")?;
    shims.bash(TEST_SECONDS_MAX)?;
    let text = format!(
        "{config}export TEST_DIR={}\nexport SCRATCH_MNT={}\nexport RESULT_BASE={}\n",
        test.display(),
        scratch.display(),
        results.display()
    );
    fs::write(&file, text).map_err(file_error(&file))?;
    let mut command = bounded(SECONDS_MAX, "./check");
    command.env("PATH", shims.path()).env("HOST_OPTIONS", &file);
    // Read by who wants to know how far it is.
    let kept = bench.directory.join(format!("xfstests-{name}.log"));
    let log = fs::File::create(&kept).map_err(file_error(&kept))?;
    command.args(tests).current_dir(directory(bench)).stdin(Stdio::null()).stdout(log);
    // What it ends with says no more than the lines it wrote.
    command.status().map_err(file_error(Path::new("./check")))?;
    for point in [&test, &scratch] {
        // Mounted still, or not: check leaves the test directory mounted.
        output(Command::new("umount").arg(point))?;
    }
    let text = fs::read(&kept).map_err(file_error(&kept))?;
    let text = String::from_utf8_lossy(&text);
    if let Some(said) = stopped(&text) {
        return Err(StepError::Wrong(format!("{said}; see {}", kept.display())));
    }
    let (ends, left_out) = read(&text);
    note(&format!("{} tests ran, {left_out} found nothing for them here", ends.len()));
    Ok(ends)
}

/// How far a run came that was ended before it wrote its sums: by the time it has, or by somebody.
fn stopped(said: &str) -> Option<String> {
    let mut lines = said.lines();
    if lines.clone().any(|line| line.starts_with("Ran: ")) {
        return None;
    }
    let tests = lines.clone().filter(|line| line.starts_with("generic/"));
    let last = lines.rfind(|line| line.starts_with("generic/"));
    let last = last.and_then(|line| line.split_whitespace().next()).unwrap_or("no test");
    Some(format!("it was stopped after {} tests had begun, the last of them {last}", tests.count()))
}

/// What the last lines say: how those ended that ran, and how many did not, since they are for
/// other file systems or need what there is not.
fn read(said: &str) -> (Ends, usize) {
    let names = |title: &str| {
        let line = said.lines().rev().find_map(|line| line.strip_prefix(title));
        line.unwrap_or_default().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let (failed, left_out) = (names("Failures: "), names("Not run: "));
    let ran = names("Ran: ").into_iter().filter(|test| !left_out.contains(test));
    let ends = ran.map(|test| {
        let end = if failed.contains(&test) { End::Failed } else { End::Passed };
        (test, end)
    });
    (ends.collect(), left_out.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_read() {
        let said = "generic/001  3s\nRan: generic/001 generic/002 generic/003\nNot run: generic/003\n\
                    Failures: generic/002\nFailed 1 of 3 tests\n";
        let (ends, left_out) = read(said);
        let expected = [("generic/001", End::Passed), ("generic/002", End::Failed)];
        assert_eq!(ends, expected.map(|(test, end)| (test.to_owned(), end)).into());
        assert_eq!(left_out, 1);
        assert_eq!(stopped(said), None);
    }

    #[test]
    fn run_that_was_stopped_says_where() {
        let said = "FSTYP -- fuse\n\ngeneric/001  3s\ngeneric/002  [not run] why\ngeneric/003  ";
        assert_eq!(
            stopped(said).unwrap(),
            "it was stopped after 3 tests had begun, the last of them generic/003"
        );
        assert_eq!(
            stopped("no such group").unwrap(),
            "it was stopped after 0 tests had begun, the last of them no test"
        );
    }
}
