//! The FUSE wire: bytes to typed requests and back, the session, and the check of every name.

pub mod abi;
pub mod reply;
pub mod request;
pub mod session;
