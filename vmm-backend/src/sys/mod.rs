//! The system-call boundary: the only room with unsafe code, what rustix lacks, and the hook that
//! fails the N-th call.
#![allow(unsafe_code, reason = "the one room where unsafe code may live, each block argued")]

pub mod attachment;
pub mod fault;
pub mod fork;
pub mod fs;
pub mod fuse_device;
pub mod guest_memory;
pub mod handle;
pub mod kvm;
pub mod mapping;
pub mod mount;
pub mod process;
pub mod scan;
pub mod shared;
pub mod signal;
