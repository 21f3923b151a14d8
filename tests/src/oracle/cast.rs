//! The actors on one tree: processes that are told what to do, and are given a deadline.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::script::{Operation, Who};

/// How many there are: two of root's, and a user.
const ACTORS: usize = 3;
/// Above any operation here, by far: who takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// How an outcome says that there was none.
pub const HANGS: &str = "no answer";

/// All actors on one tree, which they leave when dropped.
#[derive(Debug)]
pub struct Cast(Vec<Member>);

#[derive(Debug)]
struct Member {
    process: Child,
    /// `None` once nothing more is said to it.
    script: Option<ChildStdin>,
    told: BufReader<ChildStdout>,
}

impl Cast {
    /// Starts the program `actor` for each on the tree at `root`.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn on(root: &Path, actor: &Path) -> Self {
        Self((0..ACTORS).map(|number| Member::start(number, root, actor)).collect())
    }

    /// Has an operation done, and says what it came to.
    ///
    /// # Panics
    /// If the stage is to do it.
    pub fn perform(&mut self, operation: &Operation) -> String {
        let Who::Actor(number) = operation.who() else { panic!("{operation}: for the stage") };
        match self.0.get_mut(number) {
            Some(member) => member.perform(operation),
            None => format!("there is no actor {number}"),
        }
    }
}

impl Member {
    fn start(number: usize, root: &Path, actor: &Path) -> Self {
        let mut command = Command::new(actor);
        command.arg(number.to_string()).arg(root).stdin(Stdio::piped()).stdout(Stdio::piped());
        let process = command.spawn();
        let mut process = process.unwrap_or_else(|e| panic!("{}: {e}", actor.display()));
        let (script, told) = (process.stdin.take(), process.stdout.take());
        let told = told.unwrap_or_else(|| panic!("an actor without standard output"));
        Self { process, script, told: BufReader::new(told) }
    }

    fn perform(&mut self, operation: &Operation) -> String {
        let Some(script) = &mut self.script else { return "the actor is gone".to_owned() };
        if let Err(error) = writeln!(script, "{operation}") {
            return format!("the actor ended: {error}");
        }
        let mut awaited = [PollFd::new(self.told.get_ref(), PollFlags::IN)];
        let patience = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
        match poll(&mut awaited, Some(&patience)) {
            Ok(1) => {}
            Ok(_) => return format!("{HANGS} for {} s", PATIENCE.as_secs()),
            Err(error) => return format!("poll: {error}"),
        }
        let mut line = String::new();
        match self.told.read_line(&mut line) {
            Ok(0) => "the actor ended".to_owned(),
            Ok(_) => line.trim_end().to_owned(),
            Err(error) => error.to_string(),
        }
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.process.try_wait(), Ok(None))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.script = None;
        let start = Instant::now();
        while !self.has_ended() {
            if start.elapsed() > Duration::from_secs(2) {
                // One that hangs in the kernel ends when the daemon does: it is not waited for.
                if let Err(error) = self.process.kill() {
                    eprintln!("ending an actor: {error}");
                }
                return;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}
