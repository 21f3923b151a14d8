//! Set-up: what is missing on this machine is installed, and said.

use std::path::Path;
use std::process::Command;

use crate::steps::{Step, StepError, note, output, run};

/// What the demo and the tests need: a file or a program in `$PATH`, and its Debian package.
const NEEDS: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("/usr/share/qemu/qboot.rom", "qemu-system-data"),
    ("mmdebstrap", "mmdebstrap"),
    ("/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring"),
    ("/etc/ssl/certs/ca-certificates.crt", "ca-certificates"),
    ("fusermount3", "fuse3"),
    ("fuse-overlayfs", "fuse-overlayfs"),
    ("strace", "strace"),
    ("getfattr", "attr"),
    ("setfacl", "acl"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
    ("depmod", "kmod"),
    ("findmnt", "mount"),
    ("dpkg-deb", "dpkg"),
    ("cc", "gcc"),
    // What tests ask as oracles.
    ("cpio", "cpio"),
    ("mkfs.xfs", "xfsprogs"),
];

/// The parts of the Rust toolchain that a minimal one lacks, by the program that proves them.
const COMPONENTS: &[(&str, &str)] = &[("cargo-fmt", "rustfmt"), ("cargo-clippy", "clippy")];

/// Installs what is missing; says what. Without root and sudo it says what to install.
pub fn install() -> Step {
    install_packages(NEEDS)
}

/// Installs those of `needs` (a file or program, and its Debian package) that are missing.
pub fn install_packages(needs: &[(&str, &'static str)]) -> Step {
    let missing = missing(needs);
    if missing.is_empty() {
        note("every package is there");
    } else {
        apt_install(&missing)?;
    }
    Ok(())
}

/// Adds rustfmt and clippy where a minimal toolchain lacks them.
pub fn install_components() -> Step {
    for (program, component) in COMPONENTS {
        if !is_there(program) {
            note(&format!("adding {component}: rustup component add {component}"));
            run(Command::new("rustup").args(["component", "add", component]))?;
        }
    }
    Ok(())
}

fn missing(needs: &[(&str, &'static str)]) -> Vec<&'static str> {
    needs.iter().filter(|(proof, _)| !is_there(proof)).map(|(_, package)| *package).collect()
}

/// Whether a file, or a program in `$PATH` (or where Debian keeps those of root), is there.
pub fn is_there(proof: &str) -> bool {
    if proof.starts_with('/') {
        return Path::new(proof).exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory| directory.join(proof).is_file())
}

fn apt_install(packages: &[&str]) -> Step {
    let list = packages.join(" ");
    let manual = format!("apt-get install --no-install-recommends {list}");
    if !is_there("apt-get") {
        return Err(StepError::Wrong(format!(
            "this machine has no apt-get; install what these Debian packages hold: {list}"
        )));
    }
    let sudo = sudo().ok_or_else(|| {
        StepError::Wrong(format!("packages are missing; become root and run: {manual}"))
    })?;
    note(&format!("installing: {list}"));
    let apt = |arguments: &[&str]| {
        let mut command = Command::new(sudo.first().copied().unwrap_or("env"));
        command.args(sudo.iter().skip(1)).args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        command.args(["-qq", "-o", "Dpkg::Use-Pty=0"]).args(arguments);
        run(&mut command)
    };
    apt(&["update"])?;
    let mut arguments = vec!["install", "-y", "--no-install-recommends"];
    arguments.extend(packages);
    apt(&arguments)
}

/// What to put before a command to run it as root; `None` where that cannot be had.
fn sudo() -> Option<Vec<&'static str>> {
    if is_root() {
        return Some(vec!["env"]);
    }
    let may = is_there("sudo")
        && output(Command::new("sudo").args(["-n", "true"])).is_ok_and(|o| o.status.success());
    may.then(|| vec!["sudo", "-n", "env"])
}

/// Whether we are root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_installed() {
        let needs = [("sh", "dash"), ("no-such-program", "one"), ("/no/such/file", "two")];
        assert_eq!(missing(&needs), ["one", "two"]);
    }
}
