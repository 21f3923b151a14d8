//! What happens in a VM's life, as JSON lines: written by the daemon, read by `thinroot run`.
//!
//! One line is one object: `{"time":1736900000.123,"event":"ready","message":"…"}`. `time` counts
//! seconds since the epoch. Readers skip events and fields they do not know.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::traffic::Traffic;

/// One event. Text that came from a guest is data, never a reason for the host to trust it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The daemon waits for a VMM.
    Listening {
        /// The socket's path, or `fd N`.
        socket: String,
    },
    /// A VMM is there.
    Connected,
    /// guest-init has the root in place and starts the real init or the command.
    Ready {
        /// What guest-init says of itself (kernel, stage times).
        message: String,
    },
    /// The command of a guest ended.
    Exited {
        /// Its exit status: 0 to 255.
        status: u8,
    },
    /// guest-init could not do its work.
    Failure {
        /// One line that says why.
        message: String,
    },
    /// The VMM hung up.
    Disconnected {
        /// In order, or not.
        how: Disconnect,
        /// Requests served since the connection.
        #[serde(default, skip_serializing_if = "Traffic::is_empty")]
        requests: Traffic,
    },
    /// A lower is not what it was when it was sealed.
    BaseChanged {
        /// The path in the merged view.
        path: String,
        /// What differs.
        change: String,
    },
    /// An event of a newer daemon.
    #[serde(other)]
    Unknown,
}

/// How a guest left.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Disconnect {
    /// It unmounted, or reported its end before.
    Clean,
    /// It vanished.
    Crash,
}

/// An event with its time.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Seconds since the epoch.
    pub time: f64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

impl Record {
    /// The record in one line of JSON, if it is one.
    pub fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok()
    }
}

/// Writes events, from any thread, each line whole.
#[derive(Debug)]
pub struct EventWriter {
    /// Guards the order of lines; nothing else is taken inside it.
    out: Mutex<File>,
}

impl EventWriter {
    /// Writes to a descriptor (`--events-fd N`, or standard output for `--events -`).
    pub fn from_descriptor(out: OwnedFd) -> Self {
        Self { out: Mutex::new(File::from(out)) }
    }

    /// Appends to the file or FIFO at `path` (`--events PATH`); makes the file where it is missing.
    pub fn append(path: &Path) -> io::Result<Self> {
        let out = OpenOptions::new().append(true).create(true).open(path)?;
        Ok(Self { out: Mutex::new(out) })
    }

    /// Writes one event. A reader that went away costs a log line, never the guest its root.
    pub fn emit(&self, event: Event) {
        let record = Record { time: now(), event };
        let written =
            serde_json::to_string(&record).map_err(io::Error::from).and_then(|mut line| {
                line.push('\n');
                self.out.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes())
            });
        if let Err(cause) = written {
            log::warn!("event {:?} not written: {cause}", record.event);
        }
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::traffic::Requests;

    #[test]
    fn events_survive_their_line() {
        let lookups = Requests { count: 7, request_bytes: 350, reply_bytes: 1008 };
        let requests = Traffic([("LOOKUP".to_owned(), lookups)].into());
        let rows = [
            Event::Listening { socket: "fd 3".to_owned() },
            Event::Connected,
            Event::Ready { message: "6.1.0".to_owned() },
            Event::Exited { status: 130 },
            Event::Failure { message: "no \"tag\"\n".to_owned() },
            Event::Disconnected { how: Disconnect::Clean, requests },
            Event::Disconnected { how: Disconnect::Crash, requests: Traffic::default() },
            Event::BaseChanged { path: "etc/passwd".to_owned(), change: "size".to_owned() },
        ];
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        let writer = EventWriter::append(&path).unwrap();
        for event in &rows {
            writer.emit(event.clone());
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let read: Vec<Event> = text.lines().map(|l| Record::parse(l).unwrap().event).collect();
        assert_eq!(read, rows);
        assert!(
            text.lines().nth(3).unwrap().contains(r#""event":"exited","status":130"#),
            "{text}"
        );
    }

    #[test]
    fn events_of_a_newer_daemon_are_skipped() {
        let record = Record::parse(r#"{"time":1,"event":"quota","used":3}"#).unwrap();
        assert_eq!(record.event, Event::Unknown);
        assert_eq!(Record::parse("{}"), None);
    }
}
