//! Moves bytes between the command's descriptors and the host's streams, a thread for each way.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::failure::{Failure, OrFail};

/// As much as one FUSE request of the default size carries.
const BUFFER_BYTES: usize = 128 << 10;
/// How long after the command's end its descendants' output is still waited for.
const GRACE: Duration = Duration::from_millis(200);
/// termios(3): what a terminal in its normal mode takes for the end of input.
const END_OF_INPUT: &[u8] = b"\x04";

/// What the command reads from, seen from our end.
#[derive(Debug)]
pub enum Inlet {
    /// A pipe: the end of the host's stdin closes it.
    Pipe(File),
    /// A terminal: the end is a character there.
    Terminal(File),
}

/// The threads that carry the command's output, and the means to tell them that it is over.
#[derive(Debug, Default)]
pub struct Outlets {
    threads: Vec<JoinHandle<()>>,
    /// Closed when the command has ended: the threads see a hang-up on the other end.
    alive: Vec<OwnedFd>,
}

/// Carries the host's stdin to the command until one of them has enough.
///
/// Nobody waits for this thread: it may sit in a read that the host never answers.
pub fn feed(from: File, to: Inlet) -> Result<(), Failure> {
    let feeder = Builder::new().name("stdin".to_owned()).spawn(move || {
        // Either end may be gone; the command learns it as an end of its input.
        copy_input(from, to).ok();
    });
    feeder.map(drop).or_fail(|| "start the thread for stdin".to_owned())
}

fn copy_input(mut from: File, to: Inlet) -> io::Result<()> {
    let (mut to, end) = match to {
        Inlet::Pipe(file) => (file, &b""[..]),
        Inlet::Terminal(file) => (file, END_OF_INPUT),
    };
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return to.write_all(end),
            Ok(count) => to.write_all(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl Outlets {
    /// Carries what the command writes to `from` to the host's stream `to`.
    pub fn add(&mut self, from: OwnedFd, to: File) -> Result<(), Failure> {
        let (gone, alive) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .or_fail(|| "make a pipe".to_owned())?;
        let thread = Builder::new().name("output".to_owned()).spawn(move || {
            // A host that does not take more closes the pipe to the command: SIGPIPE there.
            carry(from, to, &gone).ok();
        });
        self.threads.push(thread.or_fail(|| "start a thread for output".to_owned())?);
        self.alive.push(alive);
        Ok(())
    }

    /// The command has ended: waits until all it wrote is with the host, and for a short while
    /// for what its descendants still write.
    pub fn finish(self) {
        drop(self.alive);
        for thread in self.threads {
            // The hook has said the panic already; the command's status still counts.
            thread.join().ok();
        }
    }
}

fn carry(from: OwnedFd, mut to: File, gone: &OwnedFd) -> io::Result<()> {
    let mut from = File::from(from);
    let mut buffer = vec![0; BUFFER_BYTES];
    while !wait_for_output_or_end(&from, gone)? {
        if transfer(&mut from, &mut to, &mut buffer)? == 0 {
            return Ok(());
        }
    }
    // What the command wrote is in the pipe by now, however slowly the host takes it; more can
    // only come from its descendants.
    let mut owed = usize::try_from(rustix::io::ioctl_fionread(&from).unwrap_or(0)).unwrap_or(0);
    let mut deadline = Instant::now() + GRACE;
    while owed > 0 || is_readable_before(&from, deadline)? {
        let count = transfer(&mut from, &mut to, &mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        if owed > 0 {
            owed = owed.saturating_sub(count);
            deadline = Instant::now() + GRACE;
        }
    }
    Ok(())
}

/// Whether the command has ended; if not, there is output (or its end).
fn wait_for_output_or_end(from: &File, gone: &OwnedFd) -> io::Result<bool> {
    let mut both = [PollFd::new(from, PollFlags::IN), PollFd::new(gone, PollFlags::IN)];
    retry(|| poll(&mut both, None))?;
    Ok(!both[1].revents().is_empty())
}

fn is_readable_before(from: &File, deadline: Instant) -> io::Result<bool> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
    let mut one = [PollFd::from_borrowed_fd(from.as_fd(), PollFlags::IN)];
    Ok(retry(|| poll(&mut one, Some(&timeout)))? > 0)
}

fn retry(mut call: impl FnMut() -> Result<usize, Errno>) -> io::Result<usize> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            done => return Ok(done?),
        }
    }
}

/// One read and its write; 0 at the end of the output.
fn transfer(from: &mut File, to: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    // No handler interrupts a read: guest-init has none.
    let count = match from.read(buffer) {
        // A terminal whose other side nobody has open any more says so with EIO.
        Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => 0,
        read => read?,
    };
    to.write_all(&buffer[..count])?;
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Seek;

    fn temporary(name: &str) -> File {
        let path = std::env::temp_dir().join(format!("thinroot-{name}-{}", std::process::id()));
        let file =
            File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file
    }

    fn contents(mut file: File) -> Vec<u8> {
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn output_is_whole_though_a_descendant_keeps_the_pipe_open() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let to = temporary("whole");
        let mut outlets = Outlets::default();
        // The pipe is full before anybody reads.
        let sent: Vec<u8> = (0..65536_u32).map(|n| n.to_le_bytes()[0]).collect();
        let mut write = File::from(write);
        write.write_all(&sent).unwrap();
        outlets.add(read, to.try_clone().unwrap()).unwrap();
        outlets.finish();
        assert!(contents(to) == sent);
        drop(write);
    }

    #[test]
    fn endless_descendant_does_not_hold_up_the_end() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let mut outlets = Outlets::default();
        outlets.add(read, temporary("endless")).unwrap();
        let writer = std::thread::spawn(move || {
            let mut write = File::from(write);
            while write.write_all(b"more\n").is_ok() {}
        });
        let start = Instant::now();
        outlets.finish();
        writer.join().unwrap();
        assert!(start.elapsed() < GRACE * 20, "{:?}", start.elapsed());
    }

    #[test]
    fn end_of_input_closes_the_pipe_and_is_a_character_on_a_terminal() {
        for (is_terminal, end) in [(false, &b""[..]), (true, END_OF_INPUT)] {
            let (read, write) = rustix::pipe::pipe().unwrap();
            let mut from = temporary("input");
            from.write_all(b"a\0\xff").unwrap();
            from.rewind().unwrap();
            let write = File::from(write);
            feed(from, if is_terminal { Inlet::Terminal(write) } else { Inlet::Pipe(write) })
                .unwrap();
            let mut got = Vec::new();
            File::from(read).read_to_end(&mut got).unwrap();
            assert_eq!(got, [b"a\0\xff", end].concat());
        }
    }
}
