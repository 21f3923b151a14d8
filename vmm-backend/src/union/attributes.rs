//! Reading and changing attributes.
