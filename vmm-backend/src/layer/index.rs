//! The index of the merged lowers: one file, mapped read-only.
