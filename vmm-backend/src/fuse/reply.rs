//! Replies to bytes.
