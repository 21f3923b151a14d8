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
use crate::steps::{Step, capture, check, file_error, note, output, run as run_program};

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
    let directory = directory(bench);
    SOURCE.fetch(&directory)?;
    if directory.join("ltp/fsx").exists() {
        return Ok(());
    }
    note("xfstests is built (minutes, once)");
    let build = "exec >build.log 2>&1; make";
    run_program(Command::new("sh").args(["-c", build]).current_dir(&directory))
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
    let [file, results, test, scratch] =
        ["local.config", "results", "test", "scratch"].map(|name| notes.join(name));
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
    let (ends, left_out) = read(&String::from_utf8_lossy(&text));
    check(!ends.is_empty(), format!("nothing ran to its end; see {}", kept.display()))?;
    note(&format!("{} tests ran, {left_out} found nothing for them here", ends.len()));
    Ok(ends)
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
        assert!(read("generic/001  3s\n").0.is_empty(), "it was stopped");
    }
}
