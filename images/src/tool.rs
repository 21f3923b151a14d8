//! Runs the machine's own tools.

use std::env;
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::thread;

use crate::error::ImageError;

/// How much of a failing tool's last words is shown.
const MESSAGE_LINES_MAX: usize = 5;

/// Runs `command` without input and gives its stdout. `package` is Debian's with the program.
pub fn run(command: &mut Command, package: &'static str) -> Result<Vec<u8>, ImageError> {
    run_with_input(command, package, &[])
}

/// As [`run`], with `input` as its stdin.
pub fn run_with_input(
    command: &mut Command,
    package: &'static str,
    input: &[u8],
) -> Result<Vec<u8>, ImageError> {
    let tool = command.get_program().to_string_lossy().into_owned();
    log::debug!("{command:?}");
    command.env("LC_ALL", "C.UTF-8").env("PATH", search_path());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => ImageError::NoTool { tool: tool.clone(), package },
        _ => ImageError::Tool {
            tool: tool.clone(),
            status: "it could not run".to_owned(),
            message: error.to_string(),
        },
    };
    let mut child = command.spawn().map_err(failed)?;
    let stdin = child.stdin.take();
    let output = thread::scope(|scope| {
        // A tool that stops reading early says why by its status.
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input).is_ok()));
        child.wait_with_output()
    });
    let output = output.map_err(failed)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let message = last_lines(&String::from_utf8_lossy(&output.stderr));
    Err(ImageError::Tool { tool, status: output.status.to_string(), message })
}

/// Debian keeps administrators' tools, depmod among them, out of a user's PATH.
fn search_path() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(MESSAGE_LINES_MAX)..].join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_longer_than_a_pipe_comes_through() {
        let input = vec![b'x'; 1 << 20];
        let output = run_with_input(&mut Command::new("cat"), "coreutils", &input).unwrap();
        assert!(output == input);
    }

    #[test]
    fn failure_names_the_tool_and_its_last_words() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such thing >&2; exit 3"]);
        let error = run(&mut command, "dash").unwrap_err().to_string();
        assert_eq!(error, "sh failed (exit status: 3): no such thing");
        let error = run(&mut Command::new("no-such-tool"), "some-package").unwrap_err().to_string();
        assert!(error.contains("apt-get install some-package"), "{error}");
    }
}
