//! Policy: what a guest sees of the index and the upper, and what each change becomes.

pub mod attributes;
pub mod copy_up;
pub mod create;
pub mod file;
pub mod listing;
pub mod lookup;
pub mod node;
pub mod readdir;
pub mod remove;
pub mod rename;
pub mod xattr;
