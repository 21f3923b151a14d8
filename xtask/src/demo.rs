//! `cargo xtask demo`: two VMs boot Debian from one base, change it, and start clean again.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::console::Console;
use crate::ground::Ground;
use crate::steps::{Step, StepError, capture, check, file_error, note, run, step};

/// The two guests, with what each does to its root.
const GUESTS: [Guest; 2] = [
    Guest {
        name: "one",
        changes: "echo 'changed by one' > /etc/motd; rm /etc/issue; mv /etc/dpkg /etc/dpkg-moved; \
                  chmod 0700 /srv; ln /etc/passwd /etc/passwd-too",
        seen: "cat /etc/motd",
        differences: &[
            "M etc/motd",
            "D etc/issue",
            "R etc/dpkg/ -> etc/dpkg-moved/",
            "m srv/",
            "A etc/passwd-too",
        ],
    },
    Guest {
        name: "two",
        changes: "mkdir /opt/two; echo two > /opt/two/file",
        seen: "ls /opt/two",
        differences: &["A opt/two/", "A opt/two/file"],
    },
];

#[derive(Clone, Copy)]
struct Guest {
    name: &'static str,
    changes: &'static str,
    /// Shows whether the changes are there.
    seen: &'static str,
    /// What `thinroot diff` says of them.
    differences: &'static [&'static str],
}

/// Tells the story; every check in it must hold.
pub fn demo() -> Step {
    let start = Instant::now();
    let ground = Ground::prepare()?;
    let demo = Demo { uppers: ground.directory.join("demo"), ground };
    step("the base is sealed: its index is built once, for all guests", || demo.seal())?;
    let before = manifest(&demo.ground.base())?;
    for guest in &GUESTS {
        demo.remove_old(guest)?;
    }
    let mut guests = step("two guests boot at once from one base", || demo.boot_all())?;
    step("each guest changes its root", || change_all(&mut guests))?;
    step("both power off", || power_off_all(guests))?;
    step("each upper holds its own guest's changes alone", || demo.show_differences())?;
    step("both uppers are reset", || demo.reset_all())?;
    let mut guests = step("both boot again", || demo.boot_all())?;
    step("nothing is left of the changes", || check_clean(&mut guests))?;
    step("both power off again", || power_off_all(guests))?;
    step("the base is as it was, inode for inode", || {
        check(manifest(&demo.ground.base())? == before, "the base has changed")
    })?;
    note(&format!("every check held; {:.0} s in all", start.elapsed().as_secs_f64()));
    Ok(())
}

struct Demo {
    ground: Ground,
    /// Each guest's upper is in here.
    uppers: PathBuf,
}

impl Demo {
    fn thinroot(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.ground.programs.thinroot);
        command.arg(subcommand);
        command
    }

    fn upper(&self, guest: &Guest) -> PathBuf {
        self.uppers.join(guest.name)
    }

    /// A subcommand on the guests' lowers: the base, and below it the kernel's modules.
    fn on_lowers(&self, subcommand: &str) -> Command {
        let mut command = self.thinroot(subcommand);
        command.arg("--lower").arg(self.ground.base()).arg("--image").arg(self.ground.image());
        command
    }

    fn seal(&self) -> Step {
        run(&mut self.on_lowers("seal"))
    }

    /// What an earlier demo left.
    fn remove_old(&self, guest: &Guest) -> Step {
        let upper = self.upper(guest);
        if upper.exists() {
            run(self.thinroot("reset").arg(&upper))?;
        }
        // A guest's setuid files are real on the host: only we get near them.
        let mut private = DirBuilder::new();
        private.recursive(true).mode(0o700).create(&upper).map_err(file_error(&upper))
    }

    fn boot_all(&self) -> Step<Vec<Console>> {
        let mut guests =
            GUESTS.iter().map(|guest| self.boot(guest)).collect::<Step<Vec<Console>>>()?;
        for guest in &mut guests {
            guest.log_in()?;
            check_boot(guest)?;
        }
        Ok(guests)
    }

    fn boot(&self, guest: &Guest) -> Step<Console> {
        let mut command = self.on_lowers("run");
        command.arg("--upper").arg(self.upper(guest));
        note(&format!("guest {}: {command:?}", guest.name));
        Console::start(guest.name, &mut command)
    }

    fn show_differences(&self) -> Step {
        let mut shown = Vec::new();
        for guest in &GUESTS {
            let mut command = self.on_lowers("diff");
            let text = capture(command.arg("--upper").arg(self.upper(guest)))?;
            note(&format!("guest {}:", guest.name));
            note(&first_lines(&text, 25));
            shown.push(text);
        }
        for (own, guest) in GUESTS.iter().enumerate() {
            for (number, text) in shown.iter().enumerate() {
                for difference in guest.differences {
                    let is_there = text.lines().any(|line| line == *difference);
                    let otherwise =
                        format!("{difference:?} is guest {}'s change alone", guest.name);
                    check(is_there == (own == number), otherwise)?;
                }
            }
        }
        Ok(())
    }

    fn reset_all(&self) -> Step {
        for guest in &GUESTS {
            let start = Instant::now();
            run(self.thinroot("reset").arg(self.upper(guest)))?;
            let took = start.elapsed().as_secs_f64() * 1e3;
            note(&format!("guest {}: {took:.0} ms", guest.name));
        }
        Ok(())
    }
}

/// The guest is up, its root is ours, and no block device is there.
fn check_boot(guest: &mut Console) -> Step {
    let state = guest.ask("systemctl is-system-running --wait")?;
    if state != "running" {
        note(&guest.ask("systemctl --failed --no-legend --plain --no-pager")?);
    }
    check(state == "running", format!("systemctl is-system-running said {state:?}"))?;
    let target = guest.ask("systemctl is-active multi-user.target")?;
    check(target == "active", format!("multi-user.target is {target:?}"))?;
    let root = guest.ask("findmnt --noheadings --output FSTYPE,SOURCE /")?;
    check(root.starts_with("virtiofs"), format!("findmnt / said {root:?}"))?;
    // The kernel's empty loop devices hold nothing: a disk has a size.
    let disks = guest.ask("grep -vx 0 /sys/block/*/size 2>/dev/null")?;
    check(disks.is_empty(), format!("there are block devices: {disks}"))?;
    let times = guest.ask("systemd-analyze time | head -n 1")?;
    note(&format!("{state}; root is {root}; no block device; {times}"));
    Ok(())
}

fn change_all(guests: &mut [Console]) -> Step {
    for (console, guest) in guests.iter_mut().zip(&GUESTS) {
        let said = console.ask(&format!("({}) 2>&1 && echo all done", guest.changes))?;
        check(said.ends_with("all done"), format!("guest {}: {said}", guest.name))?;
        note(&format!("guest {}: {}", guest.name, guest.changes));
    }
    // Neither sees the other's.
    let cross = guests.first_mut().map(|one| one.ask("ls -A /opt")).transpose()?;
    check(cross.as_deref() == Some(""), format!("guest one sees {cross:?} in /opt"))
}

fn check_clean(guests: &mut [Console]) -> Step {
    for (console, guest) in guests.iter_mut().zip(&GUESTS) {
        let seen = console.ask(&format!("{} 2>&1", guest.seen))?;
        let is_clean = !seen.contains("changed by one") && seen != "file";
        check(is_clean, format!("guest {} still sees {seen:?}", guest.name))?;
    }
    let issue =
        guests.first_mut().map(|one| one.ask("test -e /etc/issue -a -d /etc/dpkg && echo back"));
    check(issue.transpose()?.as_deref() == Some("back"), "what guest one removed is not back")
}

fn power_off_all(guests: Vec<Console>) -> Step {
    for guest in guests {
        let status = guest.power_off()?;
        check(status.success(), format!("thinroot run ended with {status}"))?;
    }
    Ok(())
}

fn first_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let mut shown = lines.iter().take(count).copied().collect::<Vec<_>>().join("\n");
    if lines.len() > count {
        shown.push_str(&format!("\n… and {} more", lines.len() - count));
    }
    shown
}

/// Everything a change of the tree would change: inode, mode, owner, size, mtime and ctime.
fn manifest(root: &Path) -> Step<Vec<String>> {
    let mut lines = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let found = fs::symlink_metadata(&path).map_err(file_error(&path))?;
        lines.push(format!(
            "{} {} {:o} {}:{} {} {}.{} {}.{}",
            path.display(),
            found.ino(),
            found.mode(),
            found.uid(),
            found.gid(),
            found.size(),
            found.mtime(),
            found.mtime_nsec(),
            found.ctime(),
            found.ctime_nsec()
        ));
        if found.is_dir() {
            for row in fs::read_dir(&path).map_err(file_error(&path))? {
                open.push(row.map_err(file_error(&path))?.path());
            }
        }
    }
    if lines.len() < 2 {
        return Err(StepError::Wrong(format!("{} is empty", root.display())));
    }
    lines.sort();
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifest_sees_a_change_of_mode_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        assert_eq!(manifest(&here).unwrap(), manifest(&here).unwrap());
        let tree = std::env::temp_dir().join(format!("thinroot-manifest-{}", std::process::id()));
        fs::create_dir_all(tree.join("a")).unwrap();
        let before = manifest(&tree).unwrap();
        fs::set_permissions(tree.join("a"), fs::Permissions::from_mode(0o711)).unwrap();
        assert_ne!(manifest(&tree).unwrap(), before);
        fs::remove_dir_all(&tree).unwrap();
    }
}
