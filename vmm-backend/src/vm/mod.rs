//! Starts a VMM for `thinroot run`, ties lives together, reports events.

pub mod cloud_hypervisor;
pub mod events;
pub mod kvm;
pub mod qemu;
pub mod run;
