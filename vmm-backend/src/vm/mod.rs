//! Starts a VMM for `thinroot run`, ties lives together, reports events.

pub mod boot;
pub mod cloud_hypervisor;
pub mod command;
pub mod config;
pub mod daemon;
pub mod discard;
pub mod doctor;
pub mod error;
pub mod events;
pub mod features;
pub mod ground;
pub mod kvm;
pub mod lines;
pub mod machine;
pub mod outcome;
pub mod places;
pub mod plan;
pub mod qemu;
pub mod run;
pub mod supervise;
pub mod terminal;
pub mod traffic;

#[cfg(test)]
mod testbed;
