//! thinroot: boots virtual machines from a shared root, without a block device.
//!
//! Calls go `door -> fuse -> filesystem (contract) <- union -> layer -> sys`; replies are return
//! values. `docs/ARCHITECTURE.md` walks one request through the rooms.

pub mod control;
pub mod door;
pub mod filesystem;
pub mod fuse;
pub mod layer;
pub mod life;
pub mod sandbox;
#[cfg(test)]
mod skipped;
pub mod sys;
pub mod union;
pub mod vm;
