//! Merged listings.
