//! The /dev/fuse door of `thinroot mount`.
