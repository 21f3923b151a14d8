//! The FUSE wire: bytes to typed requests and back, the session, and the check of every name.

pub mod abi;
mod answer;
mod arguments;
mod body;
mod counts;
pub mod init;
mod ioctl;
mod operation;
pub mod reply;
pub mod request;
pub mod session;

#[cfg(test)]
pub(crate) mod memory;
#[cfg(test)]
mod tests;
