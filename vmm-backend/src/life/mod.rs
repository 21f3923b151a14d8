//! The commands around an upper's life: reset, diff, check, import.

pub mod check;
pub mod diff;
pub mod import;
pub mod reset;
