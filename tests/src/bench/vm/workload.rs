//! What runs in the guests, and what of it is promised.

use super::rival::Rival::{self, Erofs, Qcow2, Virtiofsd};

/// A workload, by name.
#[derive(Debug)]
pub struct Workload {
    /// What it is called on the command line.
    pub name: &'static str,
    /// One sentence of it.
    pub about: &'static str,
    /// Whether the guest boots its own init first.
    pub boots_init: bool,
    /// What its root holds besides a small Debian.
    pub root: Kind,
    /// What is measured, in this order.
    pub phases: &'static [Phase],
}

/// A kind of root.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// A small Debian alone.
    Plain,
    /// The same with git, gcc and make, and with what they work on below `/srv`.
    Work,
}

/// A part of a workload that has a figure.
#[derive(Debug)]
pub struct Phase {
    /// Its name in tables.
    pub name: &'static str,
    /// The shell command in the guest. What it prints must be the same with every rival.
    pub command: &'static str,
    /// Which clock.
    pub clock: Clock,
    /// At most so many times the rival's time.
    pub bars: &'static [(Rival, f64)],
}

/// From when to when, and who looks at the clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Clock {
    /// The host, from the VMM's start to the command's end.
    FromStart,
    /// The guest, from the command's start to its end.
    Command,
}

/// "Faster than virtiofsd on overlayfs, within 1.1x of qcow2 and 1.25x of EROFS."
const BOOT: &[(Rival, f64)] = &[(Virtiofsd, 1.0), (Qcow2, 1.1), (Erofs, 1.25)];
/// "At least twice virtiofsd on overlayfs, within 1.5x of EROFS."
const COLD: &[(Rival, f64)] = &[(Virtiofsd, 0.5), (Erofs, 1.5)];
/// It is the guest's cache.
const WARM: &[(Rival, f64)] = &[(Erofs, 1.1)];

const FIND: &str = "find / -xdev ! -name lost+found | wc -l";
const STATUS: &str = "git -C /srv/repository status --porcelain && echo clean";

const INSTALL: &str = "DEBIAN_FRONTEND=noninteractive apt-get install --yes \
     --no-install-recommends /srv/package.deb > /run/apt.log 2>&1 \
     && dpkg-query --show bash-completion || { tail -n 9 /run/apt.log | tr \"\\n\" \" \"; false; }";

const fn command(
    name: &'static str,
    command: &'static str,
    bars: &'static [(Rival, f64)],
) -> Phase {
    Phase { name, command, clock: Clock::Command, bars }
}

/// Every workload, in the order in which they run.
pub const WORKLOADS: &[Workload] = &[
    Workload {
        name: "boot-command",
        about: "from the VMM's start to the end of /bin/true",
        boots_init: false,
        root: Kind::Plain,
        phases: &[Phase {
            name: "boot-command",
            command: "/bin/true",
            clock: Clock::FromStart,
            bars: BOOT,
        }],
    },
    Workload {
        name: "boot-multi-user",
        about: "from the VMM's start to systemd's multi-user.target",
        boots_init: true,
        root: Kind::Plain,
        phases: &[Phase {
            name: "boot-multi-user",
            command: "/bin/true",
            clock: Clock::FromStart,
            bars: BOOT,
        }],
    },
    Workload {
        name: "find",
        about: "find / -xdev | wc -l, first, again, and once more",
        boots_init: false,
        root: Kind::Plain,
        phases: &[
            command("find-cold", FIND, COLD),
            command("find-warm", FIND, WARM),
            // The second asks for each directory's time of access, which the first changed.
            command("find-third", FIND, WARM),
        ],
    },
    Workload {
        name: "git-status",
        about: "git status in a repository of 10,000 files, first and again",
        boots_init: false,
        root: Kind::Work,
        phases: &[
            command("git-status-cold", STATUS, COLD),
            command("git-status-warm", STATUS, WARM),
        ],
    },
    Workload {
        name: "tar-usr",
        about: "tar of /usr into a pipe",
        boots_init: false,
        root: Kind::Plain,
        phases: &[command("tar-usr", "tar cf - -C / usr | wc -c", &[])],
    },
    Workload {
        name: "untar",
        about: "unpacks a tarball of 10,000 files, and syncs",
        boots_init: false,
        root: Kind::Work,
        phases: &[command(
            "untar",
            "mkdir /root/new && tar xf /srv/files.tar -C /root/new && sync && echo unpacked",
            &[],
        )],
    },
    Workload {
        name: "git-checkout",
        about: "git checkout of a branch that differs in 1,000 of 10,000 files",
        boots_init: false,
        root: Kind::Work,
        phases: &[command(
            "git-checkout",
            "git -C /srv/repository checkout --quiet other && echo other",
            &[],
        )],
    },
    Workload {
        name: "compile",
        about: "make of a C project of 12 files",
        boots_init: false,
        root: Kind::Work,
        phases: &[command(
            "compile",
            "make --silent --jobs=2 -C /srv/project && /srv/project/program",
            &[],
        )],
    },
    Workload {
        name: "apt-install",
        about: "apt-get install of a package of 900 files, from its file",
        boots_init: false,
        root: Kind::Work,
        phases: &[command("apt-install", INSTALL, &[])],
    },
];

/// The guest's script.
pub fn script(workload: &Workload) -> String {
    let mut text = include_str!("guest/prelude.sh").to_owned();
    for phase in workload.phases {
        text.push_str(&format!("measure {} '{}'\n", phase.name, phase.command));
    }
    text + "finish\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_word_each_and_commands_have_no_quotes() {
        let phases = WORKLOADS.iter().flat_map(|workload| workload.phases);
        let mut names: Vec<_> = phases.clone().map(|phase| phase.name).collect();
        assert!(names.iter().all(|name| !name.contains(char::is_whitespace)));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), phases.clone().count(), "each is told by its name");
        assert!(phases.into_iter().all(|phase| !phase.command.contains('\'')));
    }
}
