//! The commands around an upper's life: reset, diff, seal.

pub mod diff;
pub mod reset;
