//! Landlock: lowers may be read, upper and work may be changed, nothing else may be opened.
//!
//! It also denies every change of the mount table, TCP, and signals to other processes. It is no
//! read-only mount: chmod, chown, utimensat and setxattr pass it.

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, PathBeneath,
    RestrictionStatus, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetError,
    RulesetStatus, Scope,
};

use super::{Directories, Held};

/// The newest rights we know of; older kernels hold what they know.
const ABI_KNOWN: ABI = ABI::V6;

/// Restricts this thread and those it will start.
pub fn restrict(directories: &Directories) -> Held {
    match try_restrict(directories) {
        Ok(status) => match status.ruleset {
            RulesetStatus::FullyEnforced => Held::Yes("Landlock".to_owned()),
            RulesetStatus::PartiallyEnforced => Held::Yes("Landlock (what this kernel has)".into()),
            RulesetStatus::NotEnforced => Held::No(format!("no Landlock ({})", kernel())),
        },
        // Before Linux 5.19 it denies every rename and link between directories, which copy-up
        // lives on; there the right cannot be asked for.
        Err(error) => Held::No(format!("no Landlock ({}, {error})", kernel())),
    }
}

fn try_restrict(directories: &Directories) -> Result<RestrictionStatus, RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    // Nothing is executed, and no device is ever opened.
    let change = AccessFs::from_all(ABI_KNOWN) & !(AccessFs::Execute | AccessFs::IoctlDev);
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::Refer)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI_KNOWN))?
        .handle_access(AccessNet::from_all(ABI_KNOWN))?
        .scope(Scope::from_all(ABI_KNOWN))?
        .create()?;
    for lower in &directories.lowers {
        rules = rules.add_rule(PathBeneath::new(lower, read))?;
    }
    for directory in [&directories.upper, &directories.work] {
        rules = rules.add_rule(PathBeneath::new(directory, change))?;
    }
    rules.restrict_self()
}

fn kernel() -> String {
    format!("kernel {}", rustix::system::uname().release().to_string_lossy())
}
