//! The kernels of Debian 12, of Debian 13 and the newest: all boot, and in all every law is tried and
//! none is broken.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use tests::laws::listed::Listed;
use tests::laws::{all, lay_out};
use tests::mount::thinroot;
use tests::real_guest::{Ended, RealGround, Run};

#[test]
fn every_kernel_boots_into_the_union_alone_with_its_own_modules() {
    let Some(ground) = RealGround::find("every_kernel_boots_into_the_union_alone") else { return };
    let script = "uname -r; findmnt --noheadings --output TARGET,FSTYPE / ; \
                  findmnt --noheadings --output FSTYPE | sort -u | tr '\\n' ' '; echo; \
                  modprobe overlay && grep -c overlay /proc/filesystems";
    for image in ground.images() {
        let text = std::fs::read_to_string(image.join("image.txt")).unwrap();
        let version = text.lines().find_map(|line| line.strip_prefix("kernel ")).unwrap();
        let ended = ground.run().image(&image).to_end(&["sh", "-c", script], b"");
        let said = String::from_utf8_lossy(&ended.stdout).into_owned();
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.first(), Some(&version), "{said} {}", ended.stderr);
        assert_eq!(
            lines.get(1).map(|line| line.split_whitespace().collect()),
            Some(vec!["/", "virtiofs"]),
            "{said}"
        );
        assert!(!lines.get(2).unwrap_or(&"").contains("rootfs"), "{said}");
        assert_eq!(lines.last(), Some(&"1"), "{said}");
    }
}

/// A kernel may lack what a few laws need, and says so; no more than one in ten. When the guest
/// boots again, with the kernel booted by default, all is what it was, number for number.
#[test]
fn every_kernel_keeps_every_law_and_boots_again_into_what_it_left() {
    let test = "every_kernel_keeps_every_law_and_boots_again_into_what_it_left";
    let Some(ground) = RealGround::find(test) else { return };
    let top = tempfile::Builder::new().prefix("thinroot-laws-").tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(top.path(), Permissions::from_mode(0o755)).unwrap();
    let lower = top.path().join("lower");
    fs::create_dir_all(lower.join("plot")).unwrap();
    lay_out(&lower.join("plot"), &all()).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_laws"), lower.join("laws")).unwrap();
    for image in ground.images().into_iter().map(|image| fs::canonicalize(image).unwrap()) {
        let upper = top.path().join("upper");
        let run = || {
            let options = [("--lower", &lower), ("--upper", &upper)];
            let options = options.map(|(key, path)| [key, path.to_str().unwrap()]);
            ground.run().image(&image).options(&options.concat()).options(&ALL_LAWS)
        };
        let boots_again = image == fs::canonicalize(ground.image()).unwrap();
        let command: &[&str] = if boots_again { &["/laws", "--then-tell"] } else { &["/laws"] };
        let ended = run().to_end(&[command, &["/plot"]].concat(), b"");
        let tried = judge(&ended, &image, &Listed::default());
        let shown = image.display();
        assert!(tried * 10 >= all().len() * 9, "{shown}: only {tried} laws were tried");
        if boots_again {
            tell_again(run(), &ended);
        }
        // What is deleted behind our back would be in the way of who removes the whole.
        let reset = Command::new(thinroot()).args(["reset", "--wait"]).arg(&upper).status();
        assert!(reset.unwrap().success());
    }
    top.close().unwrap();
}

/// All laws take longer than a command does.
pub const ALL_LAWS: [&str; 2] = ["--timeout", "1500"];

/// No law was broken, but those that are listed; gives how many held.
pub fn judge(ended: &Ended, image: &Path, listed: &Listed) -> usize {
    let told = String::from_utf8_lossy(&ended.stdout).into_owned();
    let rows = told.lines().take_while(|row| !row.starts_with('"'));
    let (passed, others): (Vec<_>, Vec<_>) = rows.partition(|row| row.starts_with("pass"));
    let shown = format!("{}:\n{}\n{}", image.display(), others.join("\n"), ended.stderr);
    let failed = others.iter().filter_map(|row| row.strip_prefix("FAIL "));
    let named = |row: &str| listed.names().any(|name| row.contains(&format!(" {name}:")));
    let unlisted = failed.clone().filter(|row| !named(row)).count();
    let status = i32::from(failed.count() > 0);
    assert_eq!((unlisted, ended.status.code()), (0, Some(status)), "{shown}");
    eprintln!("{shown}");
    passed.len()
}

/// The guest boots again and is told again: every line as it was.
pub fn tell_again(run: Run, before: &Ended) {
    let lines = |ended: &Ended| -> Vec<String> {
        let told = String::from_utf8_lossy(&ended.stdout).into_owned();
        told.lines().filter(|row| row.starts_with('"')).map(str::to_owned).collect()
    };
    let after = run.to_end(&["/laws", "--tell", "/plot"], b"");
    assert_eq!(after.status.code(), Some(0), "{}", after.stderr);
    let (before, after) = (lines(before), lines(&after));
    assert!(before.len() > 1000, "{} lines are not the laws' trees", before.len());
    let differ = before.iter().zip(&after).find(|(before, after)| before != after);
    assert_eq!((differ, before.len()), (None, after.len()));
}
