//! Real guests: `thinroot run` boots Debian's kernels from a real base and is held to what its users
//! rely on, and every law is tried inside.
//!
//! Needs the ground that `cargo xtask setup` makes, QEMU and root; without them each test says aloud
//! that it is skipped.
#![allow(clippy::unwrap_used, reason = "a test's panic is its report")]

mod guests;
mod kernels;
mod requests;
mod run;
mod user;
mod written;
