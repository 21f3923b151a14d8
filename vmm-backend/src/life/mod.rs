//! The commands around an upper's life: reset, diff, check.

pub mod check;
pub mod diff;
pub mod reset;
