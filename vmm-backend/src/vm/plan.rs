//! A command line as data: what `--print` shows is what is started.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::process::Command;

/// A program with its arguments.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommandLine {
    /// The program.
    pub program: PathBuf,
    /// Its arguments, without the program.
    pub arguments: Vec<OsString>,
}

impl CommandLine {
    /// A program without arguments yet.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), arguments: Vec::new() }
    }

    /// Appends one argument.
    pub fn push(&mut self, argument: impl Into<OsString>) {
        self.arguments.push(argument.into());
    }

    /// Appends an option and its value.
    pub fn option(&mut self, name: &str, value: impl Into<OsString>) {
        self.arguments.push(name.into());
        self.arguments.push(value.into());
    }

    /// Appends `name` with each of `words` as a value of its own, behind it.
    pub fn words(&mut self, words: &[&str]) {
        self.arguments.extend(words.iter().map(OsString::from));
    }

    /// The same, ready to be started.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        command
    }
}

impl fmt::Display for CommandLine {
    /// As a shell takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&quoted(self.program.as_os_str()))?;
        self.arguments.iter().try_for_each(|argument| write!(f, " {}", quoted(argument)))
    }
}

fn quoted(word: &OsStr) -> String {
    let is_plain = |b: &u8| b.is_ascii_alphanumeric() || b"-_./:=,+@%".contains(b);
    let text = word.to_string_lossy();
    if !word.is_empty() && word.as_bytes().iter().all(is_plain) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_command_line_is_what_a_shell_reads() {
        let mut line = CommandLine::new("/bin/echo");
        line.option("-append", "console=ttyS0 quiet");
        line.words(&["it's", "", "a,b=c"]);
        assert_eq!(line.to_string(), r"/bin/echo -append 'console=ttyS0 quiet' 'it'\''s' '' a,b=c");
        let shell = Command::new("sh").args(["-c", &line.to_string()]).output().unwrap();
        assert_eq!(shell.stdout, line.command().output().unwrap().stdout);
    }
}
