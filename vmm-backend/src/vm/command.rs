//! What the guest shall run, in the bytes guest-init reads from the control file `command`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

/// The program every boot without a command starts.
const INIT: &str = "/sbin/init";

/// What the guest shall run, and how.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct GuestCommand {
    /// The command and its arguments; empty boots the base's init.
    pub arguments: Vec<OsString>,
    /// `K=V`, without NUL.
    pub environment: Vec<OsString>,
    /// The working directory in the guest; `/` where none is given.
    pub directory: Option<OsString>,
    /// The command gets a terminal of this size (rows, columns).
    pub terminal: Option<(u16, u16)>,
    /// The guest's host name.
    pub hostname: Option<OsString>,
    /// Standard input holds bytes for the command.
    pub has_input: bool,
}

impl GuestCommand {
    /// A sequence of NUL-terminated `key=value` fields; values are bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut blob = Vec::new();
        if self.arguments.is_empty() {
            field(&mut blob, "boot", INIT.as_ref());
        }
        for argument in &self.arguments {
            field(&mut blob, "arg", argument);
        }
        for assignment in &self.environment {
            field(&mut blob, "env", assignment);
        }
        for (key, value) in [("cwd", &self.directory), ("hostname", &self.hostname)] {
            if let Some(value) = value {
                field(&mut blob, key, value);
            }
        }
        if let Some((rows, columns)) = self.terminal {
            field(&mut blob, "tty", "1".as_ref());
            field(&mut blob, "rows", rows.to_string().as_ref());
            field(&mut blob, "columns", columns.to_string().as_ref());
        }
        if !self.has_input {
            field(&mut blob, "stdin", "0".as_ref());
        }
        blob
    }
}

fn field(blob: &mut Vec<u8>, key: &str, value: &OsStr) {
    blob.extend_from_slice(key.as_bytes());
    blob.push(b'=');
    blob.extend_from_slice(value.as_bytes());
    blob.push(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_travels_as_fields_of_bytes() {
        let command = GuestCommand {
            arguments: vec![
                "sh".into(),
                "-c".into(),
                "".into(),
                OsStr::from_bytes(b"\xff=").into(),
            ],
            environment: vec!["A=B=C".into()],
            directory: Some("/srv".into()),
            terminal: Some((24, 80)),
            hostname: Some("one".into()),
            has_input: true,
        };
        assert_eq!(
            command.encode(),
            b"arg=sh\0arg=-c\0arg=\0arg=\xff=\0env=A=B=C\0cwd=/srv\0hostname=one\0tty=1\0rows=24\0columns=80\0"
        );
        assert_eq!(GuestCommand::default().encode(), b"boot=/sbin/init\0stdin=0\0");
    }
}
