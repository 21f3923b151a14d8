//! `thinroot doctor`: says in one screen what this host has, what it lacks, and the next step.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use landlock::{
    ABI, Access as _, AccessFs, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _,
};
use rustix::process::{Resource, getrlimit};

use super::boot::find_program;
use super::config::BootSource;
use super::features::{self, Features};
use super::kvm;
use super::{cloud_hypervisor, qemu};
use crate::sys::process::in_user_namespace;

/// The daemon keeps at most 512 descriptors of files, and some of its own.
const DESCRIPTORS_NEEDED: u64 = 600;

/// What `thinroot doctor` was asked.
#[derive(Clone, Debug)]
pub struct DoctorConfig {
    /// The `thinroot` binary, for the KVM probe.
    pub program: PathBuf,
    /// The directory whose file system shall hold uppers.
    pub directory: PathBuf,
    /// The boot image to look for.
    pub boot: BootSource,
}

/// One line of the screen.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Finding {
    what: &'static str,
    state: State,
    /// What was found, or what is lacking and what to do.
    text: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Ok,
    /// Missing, and nothing `run` needs.
    Optional,
    Missing,
}

impl Finding {
    fn needed(what: &'static str, found: Result<String, String>) -> Self {
        Self::new(what, found, State::Missing)
    }

    fn optional(what: &'static str, found: Result<String, String>) -> Self {
        Self::new(what, found, State::Optional)
    }

    fn new(what: &'static str, found: Result<String, String>, otherwise: State) -> Self {
        match found {
            Ok(text) => Self { what, state: State::Ok, text },
            Err(text) => Self { what, state: otherwise, text },
        }
    }
}

/// Looks at everything and writes one line each to `out`. Says whether nothing needed is missing.
///
/// Errors: what writing to `out` gave.
pub fn doctor(config: &DoctorConfig, out: &mut dyn Write) -> io::Result<bool> {
    let findings = examine(config);
    for finding in &findings {
        let state = match finding.state {
            State::Ok => "ok",
            State::Optional => "no",
            State::Missing => "MISSING",
        };
        writeln!(out, "{state:<8}{:<22}{}", finding.what, finding.text)?;
    }
    Ok(findings.iter().all(|finding| finding.state != State::Missing))
}

fn examine(config: &DoctorConfig) -> Vec<Finding> {
    let mut findings = vec![
        Finding::optional("KVM", check_kvm(&config.program)),
        Finding::needed("QEMU", check_qemu()),
        Finding::optional("cloud-hypervisor", check_cloud_hypervisor()),
        Finding::needed("boot image", check_image(&config.boot)),
        Finding::optional("/dev/fuse", check_fuse()),
        user_namespaces(),
        Finding::optional("Landlock", check_landlock()),
        Finding::optional("overlayfs", check_overlayfs()),
        Finding::needed("open files", check_descriptors()),
        Finding::optional("locked memory", Ok(locked_memory())),
    ];
    findings.extend(directory(&config.directory));
    findings
}

fn check_kvm(program: &Path) -> Result<String, String> {
    let found = kvm::probe(program);
    if found.usable {
        return Ok(found.reason);
    }
    Err(format!("{}; guests run on TCG, which is slower", found.reason))
}

fn check_qemu() -> Result<String, String> {
    let program = find_program(&qemu::PROGRAMS)
        .ok_or("no qemu-system-x86_64 in $PATH; install it (Debian: qemu-system-x86)")?;
    let version = first_line(&program, &["--version"])
        .ok_or_else(|| format!("{} --version failed", program.display()))?;
    if first_line(&program, &["-device", "vhost-user-fs-pci,help"]).is_none() {
        return Err(format!("{version} has no vhost-user-fs-pci device; install a full QEMU"));
    }
    let firmware = match qemu::qboot() {
        Some(_) => "with qboot",
        None => "without qboot (boots take seconds longer)",
    };
    Ok(format!("{version}, vhost-user-fs, {firmware}"))
}

fn check_cloud_hypervisor() -> Result<String, String> {
    let program = find_program(&[cloud_hypervisor::PROGRAM])
        .ok_or("not in $PATH; only --vmm cloud-hypervisor needs it")?;
    first_line(&program, &["--version"])
        .ok_or_else(|| format!("{} --version failed", program.display()))
}

fn check_image(source: &BootSource) -> Result<String, String> {
    let files = source.open().map_err(|cause| cause.to_string())?;
    let place = files.kernel.parent().unwrap_or(&files.kernel);
    Ok(format!("{}, kernel {}", place.display(), files.kernel_name()))
}

fn check_fuse() -> Result<String, String> {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    opened
        .map(|_| "opens".to_owned())
        .map_err(|cause| format!("{cause}; only thinroot mount needs it (modprobe fuse)"))
}

/// The sandbox of an unprivileged daemon stands on them.
fn user_namespaces() -> Finding {
    let mut probe = Command::new("true");
    in_user_namespace(&mut probe);
    let found = match probe.status() {
        Ok(_) => Ok("can be made".to_owned()),
        Err(cause) => Err(format!(
            "{cause}; see the sysctls user.max_user_namespaces, kernel.unprivileged_userns_clone and \
             kernel.apparmor_restrict_unprivileged_userns"
        )),
    };
    if rustix::process::geteuid().is_root() {
        return Finding::optional("user namespaces", found);
    }
    Finding::needed("user namespaces", found)
}

fn check_landlock() -> Result<String, String> {
    let versions = [ABI::V1, ABI::V2, ABI::V3, ABI::V4, ABI::V5];
    let highest = versions.into_iter().take_while(|version| has_landlock(*version)).last();
    highest.map(|version| format!("{version:?}")).ok_or_else(|| {
        "not in this kernel; the sandbox goes without (boot with lsm=landlock,…)".to_owned()
    })
}

fn has_landlock(version: ABI) -> bool {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(version))
        .and_then(Ruleset::create)
        .is_ok()
}

fn check_overlayfs() -> Result<String, String> {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.trim() == "nodev\toverlay") {
        return Ok("known to the kernel".to_owned());
    }
    Err("not loaded; only mounting an upper with the kernel's overlayfs needs it (modprobe overlay)"
        .to_owned())
}

fn check_descriptors() -> Result<String, String> {
    let limit = getrlimit(Resource::Nofile);
    match limit.maximum {
        Some(most) if most < DESCRIPTORS_NEEDED => {
            Err(format!("at most {most}, {DESCRIPTORS_NEEDED} are needed; raise ulimit -Hn"))
        }
        most => Ok(most.map_or("unlimited".to_owned(), |most| format!("at most {most}"))),
    }
}

fn locked_memory() -> String {
    match getrlimit(Resource::Memlock).current {
        Some(bytes) => format!("at most {} KiB", bytes >> 10),
        None => "unlimited".to_owned(),
    }
}

fn directory(path: &Path) -> Vec<Finding> {
    match features::probe(path) {
        Ok(found) => directory_lines(path, &found),
        Err(cause) => vec![Finding::needed("upper's directory", Err(cause.to_string()))],
    }
}

fn directory_lines(path: &Path, found: &Features) -> Vec<Finding> {
    let place = path.display();
    let has = |yes: bool, name: &str, next: &str| {
        if yes {
            Ok(format!("on {place}"))
        } else {
            Err(format!("{name} fails on {place}; {next}"))
        }
    };
    let elsewhere = "put uppers on ext4, xfs, btrfs or a recent tmpfs";
    vec![
        Finding::optional(
            "trusted xattrs",
            has(
                found.trusted_xattrs,
                "setxattr",
                "without them an upper is ours alone (needs root)",
            ),
        ),
        Finding::new(
            "user xattrs",
            has(found.user_xattrs, "setxattr", elsewhere),
            if found.trusted_xattrs { State::Optional } else { State::Missing },
        ),
        Finding::needed("RENAME_WHITEOUT", has(found.rename_whiteout, "renameat2", elsewhere)),
        Finding::needed("RENAME_EXCHANGE", has(found.rename_exchange, "renameat2", elsewhere)),
        Finding::optional("O_TMPFILE", has(found.tmpfile, "open", elsewhere)),
        Finding::optional(
            "reflinks",
            has(found.reflink, "FICLONE", "copy-up copies bytes instead"),
        ),
        Finding::optional(
            "inode flags",
            has(found.inode_flags, "FS_IOC_GETFLAGS", "chattr in guests shows none"),
        ),
    ]
}

/// The first line a program prints, if it succeeds.
fn first_line(program: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success().then(|| text.lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_missing_thing_comes_with_a_next_step() {
        let directory = tempfile::tempdir().unwrap();
        let config = DoctorConfig {
            program: "/no/such".into(),
            directory: directory.path().join("missing"),
            boot: BootSource::Image("/no/image".into()),
        };
        let mut screen = Vec::new();
        assert!(!doctor(&config, &mut screen).unwrap());
        let screen = String::from_utf8(screen).unwrap();
        assert!(screen.contains("MISSING boot image            --image /no/image"), "{screen}");
        assert!(screen.contains("MISSING upper's directory"), "{screen}");
        assert!(screen.lines().count() < 25, "one screen: {screen}");
    }

    #[test]
    fn upper_needs_some_kind_of_xattr() {
        let found = Features {
            user_xattrs: false,
            trusted_xattrs: true,
            rename_whiteout: true,
            rename_exchange: true,
            tmpfile: true,
            reflink: false,
            inode_flags: true,
        };
        let is_fine = |found: &Features| {
            directory_lines(Path::new("/x"), found).iter().all(|f| f.state != State::Missing)
        };
        assert!(is_fine(&found));
        assert!(!is_fine(&Features { trusted_xattrs: false, ..found }));
    }
}
