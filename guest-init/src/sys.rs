//! What rustix and std leave to raw calls: the only unsafe code of guest-init.
#![allow(unsafe_code, reason = "the system-call boundary of guest-init")]

use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

// sockios.h: SIOCSIFFLAGS. if.h: IFF_UP.
const SIOCSIFFLAGS: rustix::ioctl::Opcode = 0x8914;
const IFF_UP: i16 = 1;

/// `struct ifreq` of netdevice(7) with the flags member of its union.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: i16,
    rest_of_union: [u8; 22],
}

/// Brings `lo` up; the kernel then gives it 127.0.0.1 and ::1 itself.
pub fn loopback_up() -> Result<(), Errno> {
    let mut request = InterfaceRequest { name: [0; 16], flags: IFF_UP, rest_of_union: [0; 22] };
    request.name[..2].copy_from_slice(b"lo");
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: SIOCSIFFLAGS reads one `struct ifreq`; `InterfaceRequest` has its size and layout.
    let set_flags =
        unsafe { rustix::ioctl::Setter::<SIOCSIFFLAGS, InterfaceRequest>::new(request) };
    // SAFETY: the setter owns the request it points the kernel at; the kernel only reads it.
    unsafe { rustix::ioctl::ioctl(&socket, set_flags) }
}

/// Makes the command the leader of an own session, and its stdin the terminal of that session
/// if `has_terminal`.
pub fn own_session(command: &mut Command, has_terminal: bool) {
    let enter = move || {
        rustix::process::setsid()?;
        if has_terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes two system calls and nothing else: no
    // memory is allocated and no lock is taken.
    unsafe { command.pre_exec(enter) };
}
