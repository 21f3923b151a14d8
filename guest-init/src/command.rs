//! What the host wants the guest to do: the one-shot file `.thinroot/command`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::failure::{Failure, shown};

/// The host's wish. Values are bytes, as the kernel has them.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// Boot an init, or run one command.
    pub mode: Mode,
    /// `env=K=V`, in order; a later one replaces an earlier one.
    pub environment: Vec<(OsString, OsString)>,
    /// `hostname=`.
    pub hostname: Option<Vec<u8>>,
}

/// The two things a guest is for.
#[derive(Debug, PartialEq, Eq)]
pub enum Mode {
    /// `boot=`: this program becomes PID 1.
    Boot(Option<PathBuf>),
    /// `arg=` …: this command runs below guest-init, and the guest ends with it.
    Command(Command),
}

/// One command as the host describes it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// The program, searched in PATH if it has no slash, and its arguments.
    pub arguments: Vec<OsString>,
    /// `cwd=`.
    pub directory: Option<PathBuf>,
    /// `tty=1`: a pseudo-terminal instead of three pipes.
    pub terminal: Option<WindowSize>,
    /// `stdin=0` says there is none; the command then reads `/dev/null`.
    pub has_stdin: bool,
}

/// The size of the terminal in characters; 0 is unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters a line.
    pub columns: u16,
}

impl Plan {
    /// What happens where no host says anything: the base's own init boots.
    pub fn boot_default() -> Plan {
        Plan { mode: Mode::Boot(None), environment: Vec::new(), hostname: None }
    }

    /// Reads NUL-terminated fields `key=value`.
    ///
    /// Errors: a field that guest-init does not know (host and boot image are then of different
    /// versions), a number that is none, or neither `boot=` nor `arg=`.
    pub fn parse(blob: &[u8]) -> Result<Plan, Failure> {
        let mut fields = Fields { has_stdin: true, ..Fields::default() };
        let mut rest = blob;
        while !rest.is_empty() {
            let end = rest.iter().position(|&byte| byte == 0).ok_or_else(|| {
                Failure::new(format!("the host's command ends in mid-field: {}", shown(rest)))
            })?;
            fields.take(&rest[..end])?;
            rest = &rest[end + 1..];
        }
        fields.plan()
    }
}

#[derive(Default)]
struct Fields {
    boot: Option<PathBuf>,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    directory: Option<PathBuf>,
    hostname: Option<Vec<u8>>,
    has_terminal: bool,
    size: WindowSize,
    has_stdin: bool,
}

impl Fields {
    fn take(&mut self, field: &[u8]) -> Result<(), Failure> {
        let (key, value) = split_at_equals(field)
            .ok_or_else(|| Failure::new(format!("the host's command: no '=': {}", shown(field))))?;
        match key {
            b"boot" => self.boot = Some(os(value).into()),
            b"arg" => self.arguments.push(os(value)),
            b"env" => self.environment.push(variable(value)?),
            b"cwd" => self.directory = Some(os(value).into()),
            b"hostname" => self.hostname = Some(value.to_vec()),
            b"tty" => self.has_terminal = is_yes(field, value)?,
            b"rows" => self.size.rows = number(field, value)?,
            b"columns" => self.size.columns = number(field, value)?,
            b"stdin" => self.has_stdin = is_yes(field, value)?,
            _ => {
                let why = "is unknown to this boot image: build it again with 'thinroot image'";
                return Err(Failure::new(format!("the host's command: {} {why}", shown(field))));
            }
        }
        Ok(())
    }

    fn plan(self) -> Result<Plan, Failure> {
        let mode = match (self.boot, self.arguments) {
            (Some(init), arguments) if arguments.is_empty() => Mode::Boot(Some(init)),
            (None, arguments) if !arguments.is_empty() => Mode::Command(Command {
                arguments,
                directory: self.directory,
                terminal: self.has_terminal.then_some(self.size),
                has_stdin: self.has_stdin,
            }),
            _ => {
                let why = "names not exactly one of an init to boot and a command to run";
                return Err(Failure::new(format!("the host's command {why}")));
            }
        };
        Ok(Plan { mode, environment: self.environment, hostname: self.hostname })
    }
}

fn split_at_equals(field: &[u8]) -> Option<(&[u8], &[u8])> {
    let equals = field.iter().position(|&byte| byte == b'=')?;
    Some((&field[..equals], &field[equals + 1..]))
}

fn variable(value: &[u8]) -> Result<(OsString, OsString), Failure> {
    match split_at_equals(value) {
        Some((name, value)) if !name.is_empty() => Ok((os(name), os(value))),
        _ => Err(Failure::new(format!("the host's command: env={} has no name", shown(value)))),
    }
}

fn is_yes(field: &[u8], value: &[u8]) -> Result<bool, Failure> {
    match value {
        b"0" => Ok(false),
        b"1" => Ok(true),
        _ => Err(Failure::new(format!("the host's command: {} is not 0 or 1", shown(field)))),
    }
}

fn number(field: &[u8], value: &[u8]) -> Result<u16, Failure> {
    std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Failure::new(format!("the host's command: {} is no number", shown(field))))
}

fn os(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_keeps_every_byte_and_the_order() {
        let plan = Plan::parse(
            b"arg=sh\0arg=-c\0arg=\0arg=a=b \xff\n\0env=A=1\0env=B=x=y\0cwd=/tmp\0hostname=g\0",
        )
        .unwrap();
        let Mode::Command(command) = plan.mode else { panic!("no command") };
        assert_eq!(
            command.arguments,
            ["sh", "-c", ""]
                .map(OsString::from)
                .iter()
                .cloned()
                .chain([os(b"a=b \xff\n")])
                .collect::<Vec<_>>()
        );
        assert_eq!(plan.environment, [("A", "1"), ("B", "x=y")].map(|(k, v)| (k.into(), v.into())));
        assert_eq!(command.directory, Some("/tmp".into()));
        assert_eq!(plan.hostname.as_deref(), Some(&b"g"[..]));
        assert!(command.has_stdin && command.terminal.is_none());
    }

    #[test]
    fn terminal_and_absent_stdin_are_understood() {
        let plan = Plan::parse(b"tty=1\0rows=24\0columns=80\0stdin=0\0arg=top\0").unwrap();
        let Mode::Command(command) = plan.mode else { panic!("no command") };
        assert_eq!(command.terminal, Some(WindowSize { rows: 24, columns: 80 }));
        assert!(!command.has_stdin);
    }

    #[test]
    fn init_to_boot_is_understood() {
        let plan = Plan::parse(b"boot=/sbin/init\0hostname=one\0").unwrap();
        assert_eq!(plan.mode, Mode::Boot(Some("/sbin/init".into())));
    }

    #[test]
    fn command_that_is_none_is_refused_by_name() {
        let rows: [(&[u8], &str); 9] = [
            (b"", "exactly one"),
            (b"boot=/a\0arg=b\0", "exactly one"),
            (b"arg=a", "mid-field"),
            (b"arg\0", "no '='"),
            (b"colour=red\0arg=a\0", "colour=red"),
            (b"env==x\0arg=a\0", "env==x"),
            (b"env=x\0arg=a\0", "env=x"),
            (b"rows=70000\0arg=a\0", "rows=70000"),
            (b"tty=yes\0arg=a\0", "tty=yes"),
        ];
        for (blob, part) in rows {
            let failure = Plan::parse(blob).unwrap_err().to_string();
            assert!(failure.contains(part), "{}: {failure}", blob.escape_ascii());
        }
    }
}
