//! `thinroot doctor`.
