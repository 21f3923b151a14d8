//! Unlink and rmdir.
