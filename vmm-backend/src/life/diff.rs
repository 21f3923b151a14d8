//! `thinroot diff`.
