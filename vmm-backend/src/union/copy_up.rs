//! Copy up.
