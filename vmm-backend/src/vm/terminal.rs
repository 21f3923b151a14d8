//! Our own terminal while a guest uses it: raw if need be, and as it was in the end.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use rustix::stdio::stdin;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// A terminal's modes, put back when dropped.
#[derive(Debug)]
pub struct SavedTerminal {
    modes: Termios,
}

impl SavedTerminal {
    /// Remembers the modes of standard input, if that is a terminal.
    pub fn of_input() -> Option<Self> {
        let modes = isatty(stdin()).then(|| tcgetattr(stdin()).ok())??;
        Some(Self { modes })
    }

    /// Switches the terminal to raw: every byte goes to the guest, ^C too.
    pub fn make_raw(&self) {
        let mut raw = self.modes.clone();
        raw.make_raw();
        // Lines of ours and of the daemon's still end where they should; a guest's \r\n does too.
        raw.output_modes = self.modes.output_modes;
        set("raw", &raw);
    }
}

impl Drop for SavedTerminal {
    fn drop(&mut self) {
        set("back", &self.modes);
    }
}

fn set(what: &str, modes: &Termios) {
    if let Err(cause) = tcsetattr(stdin(), OptionalActions::Drain, modes) {
        log::warn!("setting the terminal {what}: {cause}");
    }
}

/// Rows and columns of the terminal on standard input; 24 by 80 where it does not say.
pub fn size() -> (u16, u16) {
    match tcgetwinsize(stdin()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_row, size.ws_col),
        Ok(_) | Err(_) => (24, 80),
    }
}

/// Whether standard input is a terminal.
pub fn input_is_terminal() -> bool {
    isatty(stdin())
}

/// Whether standard input holds bytes for a command: anything but the null device.
pub fn has_input() -> bool {
    duplicate(stdin()).is_some_and(|input| {
        File::from(input).metadata().is_ok_and(|found| {
            // Documentation/admin-guide/devices.txt: char 1:3 is /dev/null.
            !(found.file_type().is_char_device() && found.rdev() == rustix::fs::makedev(1, 3))
        })
    })
}

fn duplicate(descriptor: BorrowedFd<'_>) -> Option<OwnedFd> {
    descriptor.as_fd().try_clone_to_owned().ok()
}
