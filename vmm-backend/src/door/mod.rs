//! The doors: move request and reply bytes between a guest and the FUSE layer; know no file.

pub mod dev_fuse;
pub mod pool;
pub mod vhost_user;
pub mod virtqueue;
