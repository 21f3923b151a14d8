//! The commands around an upper's life: reset, diff, seal, doctor.

pub mod diff;
pub mod doctor;
pub mod reset;
