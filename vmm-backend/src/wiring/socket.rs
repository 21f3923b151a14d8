//! The socket a VMM comes to: bound at a path, or inherited.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::AddressFamily;
use rustix::net::sockopt::{socket_acceptconn, socket_domain};
use rustix::process::umask;
use thinroot::door::vhost_user::Endpoint;
use thinroot::sys::process::take_inherited;

/// unix.h: `sun_path` has 108 bytes, one of them the NUL.
const PATH_BYTES_MAX: usize = 107;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The path does not fit an address.
    #[error(
        "--socket {path}: {bytes} bytes; expected at most {PATH_BYTES_MAX}: choose a shorter path, \
         or pass a socket with --fd"
    )]
    TooLong {
        /// The path.
        path: PathBuf,
        /// How long it is.
        bytes: usize,
    },
    /// Somebody listens there.
    #[error("--socket {path}: another process listens there; stop it, or choose another path")]
    Busy {
        /// The path.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("--socket {path}: there is something that is no socket; choose another path")]
    Occupied {
        /// The path.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("--socket {path}: {cause}; expected a path in a directory that can be written")]
    Bind {
        /// The path.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// The inherited descriptor is of no use.
    #[error("--fd {number}: {reason}; expected a unix stream socket, listening or connected")]
    Descriptor {
        /// Its number.
        number: RawFd,
        /// What is wrong with it.
        reason: String,
    },
}

/// Binds `path`, for its owner alone. A socket that nobody listens on any more is replaced.
pub fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let bytes = path.as_os_str().as_bytes().len();
    if bytes > PATH_BYTES_MAX {
        return Err(SocketError::TooLong { path: path.to_owned(), bytes });
    }
    let failed = |cause| SocketError::Bind { path: path.to_owned(), cause };
    remove_stale(path)?;
    // Who may connect may read and change everything in the guest's root.
    let mask = umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
    let listener = UnixListener::bind(path);
    umask(mask);
    listener.map_err(failed)
}

fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let path_owned = || path.to_owned();
    let failed = |cause| SocketError::Bind { path: path.to_owned(), cause };
    let kind = match path.symlink_metadata() {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !kind.is_socket() {
        return Err(SocketError::Occupied { path: path_owned() });
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(SocketError::Busy { path: path_owned() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(SocketError::Busy { path: path_owned() })
        }
        Err(error) => Err(failed(error)),
    }
}

/// Takes the socket inherited as `number`.
pub fn inherited(number: RawFd) -> Result<Endpoint, SocketError> {
    let wrong = |reason: String| SocketError::Descriptor { number, reason };
    let socket = take_inherited(number).map_err(|error| wrong(error.to_string()))?;
    is_listening(&socket).map_err(|error| wrong(error.to_string())).map(|listens| {
        if listens {
            Endpoint::Listening(UnixListener::from(socket))
        } else {
            Endpoint::Connected(UnixStream::from(socket))
        }
    })
}

fn is_listening(socket: &OwnedFd) -> Result<bool, Errno> {
    if socket_domain(socket.as_fd())? != AddressFamily::UNIX {
        return Err(Errno::AFNOSUPPORT);
    }
    socket_acceptconn(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_path_is_refused_and_a_stale_one_is_replaced() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("socket");
        let listener = bind(&path).unwrap();
        let busy = bind(&path).unwrap_err();
        assert!(matches!(busy, SocketError::Busy { .. }), "{busy}");
        drop(listener);
        let again = bind(&path).unwrap();
        let mode = std::os::unix::fs::MetadataExt::mode(&path.symlink_metadata().unwrap());
        assert_eq!(mode & 0o777, 0o600);
        drop(again);
    }

    #[test]
    fn path_that_cannot_be_a_socket_is_refused_untouched() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("file");
        fs::write(&file, "kept").unwrap();
        assert!(matches!(bind(&file).unwrap_err(), SocketError::Occupied { .. }));
        assert_eq!(fs::read(&file).unwrap(), b"kept");
        let long = place.path().join("x".repeat(120));
        let text = bind(&long).unwrap_err().to_string();
        assert!(text.contains("expected at most 107"), "{text}");
        assert!(matches!(bind(Path::new("/none/s")).unwrap_err(), SocketError::Bind { .. }));
    }

    #[test]
    fn inherited_socket_tells_what_it_is() {
        let (one, _other) = UnixStream::pair().unwrap();
        assert_eq!(is_listening(&one.into()), Ok(false));
        let place = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(place.path().join("s")).unwrap();
        assert_eq!(is_listening(&listener.into()), Ok(true));
        let (pipe, _writer) = std::io::pipe().unwrap();
        assert_eq!(is_listening(&pipe.into()), Err(Errno::NOTSOCK));
        assert!(inherited(999).is_err());
    }
}
