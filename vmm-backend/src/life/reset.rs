//! `thinroot reset`.
