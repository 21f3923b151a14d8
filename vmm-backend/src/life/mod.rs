//! The commands around an upper's life: reset, diff, check, import, export.

pub mod check;
pub mod diff;
pub mod export;
pub mod import;
pub mod reset;
