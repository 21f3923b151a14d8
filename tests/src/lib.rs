//! The virtual guest and what the law tests share.
//!
//! [`guest::VirtualGuest`] is a VMM and a guest in one: it speaks vhost-user to a daemon, drives
//! virtqueues over shared memory with virtio-drivers, and issues the FUSE requests a Linux guest
//! issues ([`requests`]); [`daemon::Daemon`] is the daemon. [`raw_ring::RawRing`] writes rings by hand, for what no driver would do.

pub mod bench;
pub mod daemon;
pub mod disk;
pub mod echo;
pub mod guest;
pub mod laws;
pub mod memory;
pub mod mount;
pub mod oracle;
pub mod overlayfs;
pub mod raw_ring;
pub mod real_guest;
pub mod requests;
pub mod skip;
pub mod trace;
pub mod tree;
pub mod unprivileged;
pub mod virtqueue;
pub mod wire;
