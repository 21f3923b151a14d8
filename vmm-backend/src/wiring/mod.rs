//! Wiring: what the subcommands put together from the rooms.

pub mod base;
pub mod check;
pub mod diff;
pub mod events;
pub mod export;
pub mod ground;
pub mod helper;
pub mod import;
pub mod janitor;
pub mod logger;
pub mod look;
pub mod mount;
pub mod mount_table;
pub mod notify;
pub mod serve;
pub mod socket;
