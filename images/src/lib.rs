//! Boot images, kernels and bases for thinroot guests.
//!
//! [`build`] makes an [`Image`] from a kernel and guest-init; [`kernels::fetch`] gets a Debian
//! kernel to build it from; [`base::Recipe`] makes a root to boot.

mod apt;
pub mod base;
mod cpio;
mod decompress;
mod elf;
mod error;
mod image;
mod initramfs;
mod kernel;
pub mod kernels;
mod lz4;
mod modules;
pub mod packages;
mod tool;
mod vmlinux;

pub use error::ImageError;
pub use image::{BuildImage, Image, build};
pub use kernel::KernelSource;
