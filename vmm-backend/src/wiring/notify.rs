//! Tells a service manager that the daemon is ready (`sd_notify`, man 3).

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Connected before the daemon is confined, used after.
#[derive(Debug)]
pub struct Notify {
    socket: Option<UnixDatagram>,
}

impl Notify {
    /// The manager named by `NOTIFY_SOCKET`, if any.
    pub fn from_environment() -> Self {
        let address = std::env::var_os("NOTIFY_SOCKET");
        let socket = address.and_then(|address| match connect(&address) {
            Ok(socket) => Some(socket),
            Err(error) => {
                log::warn!("NOTIFY_SOCKET {}: {error}", address.display());
                None
            }
        });
        Self { socket }
    }

    /// Says `READY=1`.
    pub fn ready(&self) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(b"READY=1")
        {
            log::warn!("the service manager does not hear that we are ready: {error}");
        }
    }
}

fn connect(address: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    match address.as_bytes().strip_prefix(b"@") {
        Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        None => socket.connect(address)?,
    }
    Ok(socket)
}
