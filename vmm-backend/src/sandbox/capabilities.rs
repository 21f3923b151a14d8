//! Drops every capability that keeping a guest's files does not take.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};

use super::Held;

/// What stays, where it was there, and what for.
const KEPT: [(CapabilitySet, &str); 8] = [
    (CapabilitySet::CHOWN, "a guest's files belong to the guest's users"),
    (CapabilitySet::DAC_OVERRIDE, "and are read and written for them"),
    (CapabilitySet::DAC_READ_SEARCH, "lower objects are named by file handle"),
    (CapabilitySet::FOWNER, "modes and times of files of any owner"),
    (CapabilitySet::FSETID, "setgid stays where the guest put it"),
    (CapabilitySet::MKNOD, "device nodes and whiteouts of a privileged upper"),
    (CapabilitySet::SETFCAP, "file capabilities the guest sets"),
    // The widest of all. The kernel asks for it to read and write trusted.* attributes, the form
    // overlay marks have; Landlock denies the mounts it would also allow.
    (CapabilitySet::SYS_ADMIN, "overlay marks are trusted.* attributes"),
];

/// Drops the rest from every set, for good, or all of them without `keep`. Says how many stay.
pub fn drop_unneeded(keep: bool) -> Result<Held, Errno> {
    let kept = KEPT.iter().fold(CapabilitySet::empty(), |kept, (capability, _)| kept | *capability);
    let had = capabilities(None)?.effective;
    clear_ambient_capability_set()?;
    if had.contains(CapabilitySet::SETPCAP) {
        drop_bounds(kept)?;
    }
    let none = CapabilitySet::empty();
    let kept = if keep { had & kept } else { none };
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: none })?;
    Ok(Held::Yes(match kept.bits().count_ones() {
        0 => "no capabilities".to_owned(),
        count => format!("{count} capabilities"),
    }))
}

fn drop_bounds(kept: CapabilitySet) -> Result<(), Errno> {
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if kept.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            // Past the last capability this kernel knows.
            Err(Errno::INVAL) => break,
            done => done?,
        }
    }
    Ok(())
}
