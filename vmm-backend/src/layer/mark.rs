//! Overlay marks and their escapes.
