//! Structures and numbers of the FUSE wire.
