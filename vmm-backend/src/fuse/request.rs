//! Bytes to typed requests.
