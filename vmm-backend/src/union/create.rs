//! The one birth.
