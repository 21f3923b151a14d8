//! The disk that lower and uppers are on.

use std::fs;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::BenchError;
use crate::disk::Disk;

/// Room for the lower's large files and for a rival's copy of each.
const DISK_BYTES: u64 = 4 << 30;

/// Which disk is measured on; each daemon gets the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Storage {
    /// Whatever the bench's own directory is on.
    Here,
    /// A fresh ext4 as `mkfs.ext4` makes it, in an image in the bench's directory: what most hosts
    /// have, a journal included.
    Ext4,
    /// Memory.
    Tmpfs,
}

/// A directory on the disk that was asked for; what was made for it goes when it is dropped.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    /// For a report.
    pub name: String,
    /// Unmounts itself.
    _disk: Option<Disk>,
}

impl Place {
    /// Makes the disk.
    ///
    /// Errors: what the machine lacks for it.
    pub fn make(storage: Storage, directory: &Path) -> Result<Self, BenchError> {
        let made = match storage {
            Storage::Here => {
                let (path, name) = (directory.to_owned(), format!("here, {}", mount_of(directory)));
                return Ok(Self { path, name, _disk: None });
            }
            Storage::Ext4 => Disk::sized_inside(directory, DISK_BYTES, ("ext4", "loop")),
            Storage::Tmpfs => Disk::of_memory(directory),
        };
        let disk = made.map_err(BenchError::Disk)?;
        let name = match storage {
            Storage::Ext4 => format!("a fresh ext4 in an image on {}", mount_of(directory)),
            Storage::Here | Storage::Tmpfs => "tmpfs".to_owned(),
        };
        Ok(Self { path: disk.path(), name, _disk: Some(disk) })
    }

    /// Where to lay out what is measured.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Type and options of the file system a directory is on; ext4's tell whether it has a journal.
fn mount_of(directory: &Path) -> String {
    let path = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    // fstab(5): device, point, type, options.
    let rows = table.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let point = fields.next().filter(|point| path.starts_with(point))?;
        Some((point.len(), format!("{} ({})", fields.next()?, fields.next()?)))
    });
    rows.max_by_key(|(length, _)| *length).map_or_else(|| "?".to_owned(), |(_, name)| name)
}
