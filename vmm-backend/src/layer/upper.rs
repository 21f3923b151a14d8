//! The upper: one guest's own tree.
