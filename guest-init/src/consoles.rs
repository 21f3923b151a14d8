//! The consoles the kernel speaks on, and how guest-init says a line there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;

use crate::failure::{Failure, OrFail};

/// Every console that takes lines; before they are open, what the kernel gave as stderr.
#[derive(Debug, Default)]
pub struct Consoles {
    files: Vec<File>,
}

impl Consoles {
    /// Opens the consoles of `/proc/consoles` in `/dev` and makes the kernel's preferred one
    /// stdin, stdout and stderr, for guest-init and for the real init after it.
    ///
    /// The kernel opened `/dev/console` before devtmpfs was there, or could not.
    pub fn open() -> Result<Consoles, Failure> {
        let listed = fs::read("/proc/consoles").or_fail(|| "read /proc/consoles".to_owned())?;
        let files = parse(&String::from_utf8_lossy(&listed))
            .iter()
            .filter_map(|name| open_terminal(&format!("/dev/{name}")).ok())
            .collect();
        let main = open_terminal("/dev/console").or_else(|_| open_terminal("/dev/null"));
        let main = main.or_fail(|| "open /dev/console".to_owned())?;
        rustix::stdio::dup2_stdin(&main).or_fail(|| "set up stdin".to_owned())?;
        rustix::stdio::dup2_stdout(&main).or_fail(|| "set up stdout".to_owned())?;
        rustix::stdio::dup2_stderr(&main).or_fail(|| "set up stderr".to_owned())?;
        Ok(Consoles { files })
    }

    /// Prints one line on every console. A console that does not take it cannot be told so.
    pub fn say(&mut self, line: &str) {
        let line = format!("thinroot: {line}\n");
        let written = self.files.iter_mut().map(|file| file.write_all(line.as_bytes()));
        if written.filter(Result::is_ok).count() == 0 {
            say_on_stderr(&line);
        }
    }

    /// Waits until what was said has left the machine: the power goes off next.
    pub fn drain(&self) {
        for file in &self.files {
            // Not every console is a terminal; those have nothing to drain.
            rustix::termios::tcdrain(file.as_fd()).ok();
        }
    }
}

/// Writes to stderr where `eprintln!` would panic if nobody listens.
pub fn say_on_stderr(line: &str) {
    io::stderr().write_all(line.as_bytes()).ok();
}

fn open_terminal(path: &str) -> io::Result<File> {
    let no_controlling_terminal = i32::try_from(OFlags::NOCTTY.bits()).map_err(io::Error::other)?;
    OpenOptions::new().read(true).write(true).custom_flags(no_controlling_terminal).open(path)
}

/// The device names of `/proc/consoles` that are enabled and can be written.
///
/// A row is `ttyS0  -W- (EC p a)  4:64`: R, W, U, then the flags, E for enabled.
/// Source: Documentation/filesystems/proc.rst, "consoles".
fn parse(text: &str) -> Vec<&str> {
    text.lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once(char::is_whitespace)?;
            let (operations, flags) = rest.trim_start().split_once('(')?;
            let is_usable = operations.contains('W') && flags.split(')').next()?.contains('E');
            is_usable.then_some(name)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enabled_writable_consoles_are_found() {
        let text = "tty0                 -WU (EC  p  )    4:2\n\
                    ttyS0                -W- (E   p a)    4:64\n\
                    netcon0              -W- (   N  a)\n\
                    odd\n\
                    ro0                  R-- (E      )    1:1\n";
        assert_eq!(parse(text), ["tty0", "ttyS0"]);
        assert_eq!(parse(""), Vec::<&str>::new());
    }
}
