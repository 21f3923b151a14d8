//! Makes a root that guests can share: a small Debian with systemd.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::apt;
use crate::error::{At, ImageError};
use crate::tool;

/// What a base is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// Debian's suite, such as `bookworm`.
    pub suite: String,
    /// The packages besides Debian's essential ones.
    pub packages: Vec<String>,
}

/// systemd with what it needs to call itself `running` and to give a login: without udev the
/// console's getty waits 90 s for its device.
const PACKAGES: [&str; 8] =
    ["systemd", "systemd-sysv", "udev", "dbus", "iproute2", "kmod", "procps", "ca-certificates"];

/// Documentation is half of the files and nobody reads it in a guest; copyrights stay.
const DPKG_OPTIONS: [&str; 5] = [
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
];

/// Units that work for machines that live long; in a guest they take seconds from its boot.
const DISABLED_UNITS: [&str; 7] = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "systemd-networkd.service",
];

/// Addresses by DHCP where the guest has a network card.
const NETWORK: &str = "\
[Match]
Type=ether

[Network]
DHCP=yes
";

/// Starts the network's service with the first network card: a guest without one boots without
/// it. Source: systemd.device(5), `SYSTEMD_WANTS`.
const NETWORK_RULE: &str = "\
SUBSYSTEM==\"net\", ACTION==\"add\", KERNEL!=\"lo\", TAG+=\"systemd\", \
ENV{SYSTEMD_WANTS}+=\"systemd-networkd.service\"
";

/// QEMU's user network answers names at this address; other networks' DHCP may say otherwise.
const RESOLVER: &str = "nameserver 10.0.2.3\n";

impl Recipe {
    /// The smallest Debian that boots to `multi-user.target` and calls itself `running`.
    pub fn minimal(suite: &str) -> Recipe {
        let packages = PACKAGES.map(str::to_owned).to_vec();
        Recipe { suite: suite.to_owned(), packages }
    }

    /// Makes the base at `directory`, which must not exist. It takes about a minute and the
    /// network; the packages come from where this machine gets its own.
    ///
    /// root has no password, on the console only. What tells one machine from another
    /// (machine-id, hostname, host keys, random seed) is not in it: each guest makes its own.
    /// Errors: not root, the directory exists, or mmdebstrap's own; nothing is left then.
    pub fn build(&self, directory: &Path) -> Result<(), ImageError> {
        if !rustix::process::geteuid().is_root() {
            return Err(ImageError::NotRoot);
        }
        if fs::symlink_metadata(directory).is_ok() {
            return Err(ImageError::Exists { path: directory.to_owned() });
        }
        let name = directory.file_name().unwrap_or_default().to_string_lossy();
        let staging = directory.with_file_name(format!(".{name}.new-{}", std::process::id()));
        let parent = staging.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(parent).at("make", parent)?;
        let made = self.install(&staging).and_then(|()| finish(&staging));
        match made {
            Ok(()) => fs::rename(&staging, directory).at("make", directory),
            Err(error) => {
                remove_if_there(&staging)?;
                Err(error)
            }
        }
    }

    fn install(&self, root: &Path) -> Result<(), ImageError> {
        let sources = apt::sources_for(&self.suite, Path::new("/etc/apt"))?;
        let mut command = Command::new("mmdebstrap");
        command.args(["--quiet", "--mode=root", "--variant=minbase", "--format=directory"]);
        command.arg(format!("--include={}", self.packages.join(",")));
        command.arg("--aptopt=Acquire::Languages \"none\"");
        command.args(DPKG_OPTIONS.map(|option| format!("--dpkgopt={option}")));
        // "-" reads the rows of a sources.list from stdin.
        command.arg(&self.suite).arg(root).arg("-");
        tool::run_with_input(&mut command, "mmdebstrap", sources.as_bytes()).map(drop)
    }
}

/// Makes a bootstrapped system one that many machines can be.
fn finish(root: &Path) -> Result<(), ImageError> {
    let at = |path: &str| root.join(path);
    // machine-id(5): empty, systemd makes one and keeps it in the guest's upper.
    write(&at("etc/machine-id"), "")?;
    for of_one_machine in [
        "var/lib/dbus/machine-id",
        "etc/hostname",
        "etc/resolv.conf",
        "var/lib/systemd/random-seed",
        "var/lib/systemd/credential.secret",
    ] {
        remove_if_there(&at(of_one_machine))?;
    }
    remove_host_keys(&at("etc/ssh"))?;
    write(&at("etc/resolv.conf"), RESOLVER)?;
    write(&at("etc/systemd/network/80-ethernet.network"), NETWORK)?;
    write(&at("etc/udev/rules.d/90-network.rules"), NETWORK_RULE)?;
    allow_root_without_password(&at("etc/shadow"))?;
    systemctl(root, ["disable"].into_iter().chain(DISABLED_UNITS))
}

fn systemctl<'a>(
    root: &Path,
    arguments: impl IntoIterator<Item = &'a str>,
) -> Result<(), ImageError> {
    let mut command = Command::new("chroot");
    command.arg(root).args(["systemctl", "--quiet"]).args(arguments);
    tool::run(&mut command, "coreutils").map(drop)
}

fn remove_host_keys(directory: &Path) -> Result<(), ImageError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.at("read", directory)?,
    };
    for entry in entries {
        let entry = entry.at("read", directory)?;
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(b"ssh_host_") {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

fn allow_root_without_password(shadow: &Path) -> Result<(), ImageError> {
    let text = fs::read_to_string(shadow).at("read", shadow)?;
    // Written in place: owner and mode stay.
    write(shadow, &without_root_password(&text))
}

/// Empties root's second field. Source: shadow(5).
fn without_root_password(shadow: &str) -> String {
    let lines = shadow.lines().map(|line| match line.strip_prefix("root:") {
        Some(rest) => format!("root:{}\n", rest.trim_start_matches(|c| c != ':')),
        None => format!("{line}\n"),
    });
    lines.collect()
}

fn write(path: &Path, text: &str) -> Result<(), ImageError> {
    if fs::symlink_metadata(path).is_err() {
        fs::write(path, "").at("make", path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).at("make", path)?;
    }
    fs::write(path, text).at("write", path)
}

fn remove_if_there(path: &Path) -> Result<(), ImageError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.at("remove", path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_roots_password_goes() {
        let shadow = "root:*:19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\nroot2:!:1::::::\n";
        let open = "root::19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\nroot2:!:1::::::\n";
        assert_eq!(without_root_password(shadow), open);
        assert_eq!(without_root_password(open), open);
    }

    #[test]
    fn base_is_never_made_over_something() {
        let directory = tempfile::tempdir().unwrap();
        let error = Recipe::minimal("bookworm").build(directory.path()).unwrap_err();
        assert!(matches!(error, ImageError::Exists { .. } | ImageError::NotRoot), "{error}");
        assert!(directory.path().is_dir());
    }

    #[test]
    fn host_keys_go_and_other_files_stay() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["ssh_host_rsa_key", "ssh_host_rsa_key.pub", "sshd_config"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        remove_host_keys(directory.path()).unwrap();
        remove_host_keys(Path::new("/nonexistent")).unwrap();
        let left: Vec<_> = fs::read_dir(directory.path()).unwrap().flatten().collect();
        assert_eq!(left.len(), 1);
    }
}
