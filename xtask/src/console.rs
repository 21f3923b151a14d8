//! A guest's console, driven as a person would: wait for the prompt, type, read the answer.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::steps::{Step, StepError, file_error};

/// A boot to the login prompt, on a slow machine without KVM that boots two.
const BOOT_TIMEOUT: Duration = Duration::from_secs(300);
/// One command in a guest.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(240);
/// Power-off, and the end of `thinroot run`.
const END_TIMEOUT: Duration = Duration::from_secs(120);

/// A booted guest at its shell.
#[derive(Debug)]
pub struct Console {
    name: String,
    child: Child,
    input: ChildStdin,
    output: Receiver<Vec<u8>>,
    seen: String,
}

impl Console {
    /// Starts `command` (a `thinroot run` without a command), whose console is its standard
    /// streams. The guest boots meanwhile: [`Console::log_in`] waits for it.
    pub fn start(name: &str, command: &mut Command) -> Step<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let program = command.get_program().to_owned();
        let mut child = command.spawn().map_err(file_error(Path::new(&program)))?;
        let (Some(input), Some(mut from)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(StepError::Wrong(format!("{name}: no console")));
        };
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                let bytes = buffer.get(..count).unwrap_or_default().to_vec();
                if sender.send(bytes).is_err() {
                    return; // Nobody listens any more.
                }
            }
        });
        Ok(Self { name: name.to_owned(), child, input, output, seen: String::new() })
    }

    /// Logs in as root, who has no password in our bases.
    pub fn log_in(&mut self) -> Step {
        self.wait_for("login: ", BOOT_TIMEOUT)?;
        self.send("root\n")?;
        self.wait_for("# ", COMMAND_TIMEOUT)?;
        // The echo of what is typed would look like answers, and so would the kernel's messages;
        // prompts and colours are for people.
        self.send("stty -echo -onlcr; dmesg --console-level 1; export TERM=dumb PS1= PS2=; bind 'set enable-bracketed-paste off'\n")?;
        self.ask("sleep 0.1").map(drop)
    }

    /// Runs a shell command in the guest and gives what it printed, whatever its status.
    pub fn ask(&mut self, command: &str) -> Step<String> {
        // The shell puts the marks together, so that no echo of this line holds them.
        self.send(&format!("echo '<''<<'; {command}\necho '>''>>'\n"))?;
        let answer = self.wait_for(">>>", COMMAND_TIMEOUT)?;
        let answer = answer.rsplit("<<<").next().unwrap_or_default();
        Ok(answer.trim().to_owned())
    }

    /// Powers the guest off and gives the status of `thinroot run`.
    pub fn power_off(mut self) -> Step<ExitStatus> {
        self.send("systemctl poweroff\n")?;
        let deadline = Instant::now() + END_TIMEOUT;
        while Instant::now() < deadline {
            self.receive(Duration::from_millis(50));
            if let Some(status) = self.child.try_wait().map_err(file_error(Path::new("wait")))? {
                return Ok(status);
            }
        }
        Err(self.failed("did not power off"))
    }

    fn send(&mut self, text: &str) -> Step {
        self.input.write_all(text.as_bytes()).map_err(file_error(Path::new(&self.name)))
    }

    /// What came before `mark`.
    fn wait_for(&mut self, mark: &str, timeout: Duration) -> Step<String> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(at) = self.seen.find(mark) {
                let rest = self.seen.split_off(at);
                let before = std::mem::replace(&mut self.seen, rest.replacen(mark, "", 1));
                return Ok(before);
            }
            let is_open = self.receive(Duration::from_millis(200));
            if !is_open || Instant::now() >= deadline {
                return Err(self.failed(&format!("never said {mark:?}")));
            }
        }
    }

    fn receive(&mut self, timeout: Duration) -> bool {
        match self.output.recv_timeout(timeout) {
            Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return false,
        }
        true
    }

    fn failed(&self, what: &str) -> StepError {
        let lines: Vec<&str> = self.seen.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(30)..).unwrap_or_default().join("\n");
        StepError::Wrong(format!("guest {} {what}; its console ends with:\n{tail}", self.name))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // Killing `thinroot run` takes daemon and VMM with it.
        if let Err(cause) = self.child.kill().and_then(|()| self.child.wait()) {
            log::warn!("guest {}: {cause}", self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell that behaves as a console does.
    fn shell(greeting: &str) -> Console {
        let script = format!("printf '{greeting}'; read name; printf '# '; exec sh");
        Console::start("test", Command::new("sh").args(["-c", &script])).unwrap()
    }

    #[test]
    fn answers_come_without_marks() {
        let mut console = shell("host login: ");
        console.log_in().unwrap();
        assert_eq!(console.ask("echo one; echo two").unwrap(), "one\ntwo");
        assert_eq!(console.ask("false").unwrap(), "");
    }

    #[test]
    fn guest_that_ends_early_is_told_with_its_last_words() {
        let mut console =
            Console::start("early", Command::new("echo").arg("Kernel panic")).unwrap();
        let said = console.log_in().unwrap_err().to_string();
        assert!(said.contains("early") && said.contains("Kernel panic"), "{said}");
    }
}
