//! Prints each step with its time, and runs programs for it.

use std::ffi::OsStr;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::Instant;

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// A program did not start.
    #[error("{program}: {cause}")]
    Start {
        /// The program.
        program: String,
        /// What the system said.
        cause: io::Error,
    },
    /// A program ended with an error.
    #[error("{line}: {status}{stderr}")]
    Ended {
        /// Its command line.
        line: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said on standard error, where that was caught.
        stderr: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The images crate failed.
    #[error("{0}")]
    Image(#[from] images::ImageError),
    /// Something is not as it should be; the text says what, and the next step.
    #[error("{0}")]
    Wrong(String),
}

/// What a step gives.
pub type Step<T = ()> = Result<T, StepError>;

/// Says that something is wrong unless `holds`.
pub fn check(holds: bool, otherwise: impl Into<String>) -> Step {
    if holds { Ok(()) } else { Err(StepError::Wrong(otherwise.into())) }
}

/// Runs a step, with its name before and its time behind it.
pub fn step<T>(name: &str, work: impl FnOnce() -> Step<T>) -> Step<T> {
    let start = Instant::now();
    print(&format!("==> {name}\n"));
    let done = work();
    let seconds = start.elapsed().as_secs_f64();
    match &done {
        Ok(_) => print(&format!("    done in {seconds:.1} s: {name}\n")),
        Err(cause) => print(&format!("    FAILED after {seconds:.1} s: {name}: {cause}\n")),
    }
    done
}

/// A line that belongs to the step that runs.
pub fn note(line: &str) {
    for line in line.lines() {
        print(&format!("    {line}\n"));
    }
}

fn print(text: &str) {
    let mut out = io::stdout().lock();
    if let Err(cause) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        log::debug!("standard output is gone: {cause}");
    }
}

/// Runs a program with our standard streams.
pub fn run(command: &mut Command) -> Step {
    let status = command.status().map_err(|cause| start_error(command, cause))?;
    ended(command, status, "")
}

/// Runs tests with our standard streams, and gives the lines in which they say what they skip.
pub fn run_tests(command: &mut Command) -> Step<Vec<String>> {
    let mut child =
        command.stderr(Stdio::piped()).spawn().map_err(|cause| start_error(command, cause))?;
    let mut skips = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).split(b'\n') {
            let line = line.map_err(|cause| start_error(command, cause))?;
            let line = String::from_utf8_lossy(&line);
            eprintln!("{line}");
            if line.starts_with("SKIPPED") {
                skips.push(line.into_owned());
            }
        }
    }
    let status = child.wait().map_err(|cause| start_error(command, cause))?;
    ended(command, status, "").map(|()| skips)
}

/// Runs a program and gives what it wrote on standard output.
pub fn capture(command: &mut Command) -> Step<String> {
    let output = output(command)?;
    ended(command, output.status, &String::from_utf8_lossy(&output.stderr))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program and gives everything, whatever its status.
pub fn output(command: &mut Command) -> Step<Output> {
    command.stdin(Stdio::null()).output().map_err(|cause| start_error(command, cause))
}

fn start_error(command: &Command, cause: io::Error) -> StepError {
    StepError::Start { program: command.get_program().to_string_lossy().into_owned(), cause }
}

fn ended(command: &Command, status: ExitStatus, stderr: &str) -> Step {
    if status.success() {
        return Ok(());
    }
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line = words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ");
    let stderr = if stderr.is_empty() { String::new() } else { format!("\n{}", stderr.trim_end()) };
    Err(StepError::Ended { line, status, stderr })
}

/// Wraps what the system said about `path`.
pub fn file_error(path: &Path) -> impl FnOnce(io::Error) -> StepError {
    let path = path.to_owned();
    move |cause| StepError::File { path, cause }
}
