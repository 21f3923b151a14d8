//! Starts a VMM for `thinroot run`, ties lives together, reports events.

pub mod boot;
pub mod cloud_hypervisor;
pub mod command;
pub mod daemon;
pub mod discard;
pub mod doctor;
pub mod events;
pub mod features;
pub mod kvm;
pub mod outcome;
pub mod plan;
pub mod qemu;
pub mod run;
pub mod supervise;
pub mod terminal;
pub mod traffic;
