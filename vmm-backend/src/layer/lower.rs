//! The lowers: the index, and the files behind it, never written.
