//! The doors: move request and reply bytes between a guest and the FUSE layer; know no file.

use crate::filesystem::{DataSource, FileSystem};
use crate::fuse::abi::IN_HEADER_BYTES;
use crate::fuse::session::{Answer, Placement, ReplyBuffer, Session};

mod bell;
pub mod buffers;
mod burst;
mod connection;
pub mod dev_fuse;
pub mod pool;
mod request;
pub mod ring;
pub mod vhost_user;
mod vigil;
pub mod virtqueue;

/// What the vhost-user door needs of the FUSE layer: a [`Session`] of any file system.
///
/// One virtual call a request is less than the noise, and queues, pools and their tests need not
/// be built anew for each file system.
pub trait Serve: Send + Sync {
    /// [`Session::placement`].
    fn placement(&self, header: &[u8; IN_HEADER_BYTES]) -> Placement;

    /// [`Session::message_bytes`].
    fn message_bytes(&self, header: &[u8; IN_HEADER_BYTES], total: usize) -> usize;

    /// [`Session::handle`].
    fn handle(
        &self,
        message: &[u8],
        source: &mut dyn DataSource,
        reply: &mut dyn ReplyBuffer,
    ) -> Answer;

    /// Whether a guest has the file system mounted: INIT came, and DESTROY did not since.
    fn is_mounted(&self) -> bool;
}

impl<F: FileSystem> Serve for Session<F> {
    fn placement(&self, header: &[u8; IN_HEADER_BYTES]) -> Placement {
        self.placement(header)
    }

    fn message_bytes(&self, header: &[u8; IN_HEADER_BYTES], total: usize) -> usize {
        self.message_bytes(header, total)
    }

    fn handle(
        &self,
        message: &[u8],
        source: &mut dyn DataSource,
        reply: &mut dyn ReplyBuffer,
    ) -> Answer {
        self.handle(message, source, reply)
    }

    fn is_mounted(&self) -> bool {
        self.agreed().is_some()
    }
}
