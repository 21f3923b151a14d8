//! `thinroot run`.
