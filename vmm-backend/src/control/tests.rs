use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use super::*;
use crate::filesystem::memory::read;

/// A root with one xattr that looks like a report, and nothing else.
#[derive(Default)]
struct Bare {
    forgotten: AtomicU64,
}

#[allow(unused_variables, reason = "a file system in which almost nothing exists")]
impl FileSystem for Bare {
    fn lookup(&self, caller: &Caller, parent: NodeId, name: Name<'_>) -> Result<Entry, Errno> {
        Err(Errno::NOENT)
    }
    fn lookup_self(&self, node: NodeId) -> Result<Entry, Errno> {
        let attributes = self.attributes(node)?;
        Ok(Entry { attributes, generation: 0, valid_for: Duration::MAX, is_stream: false })
    }
    fn lookup_parent(&self, node: NodeId) -> Result<Entry, Errno> {
        Err(Errno::STALE)
    }
    fn forget(&self, node: NodeId, count: u64) {
        self.forgotten.fetch_add(count, Ordering::Relaxed);
    }
    fn attributes(&self, node: NodeId) -> Result<Attributes, Errno> {
        let files = Files {
            command: Vec::new(),
            command_is_gone: Mutex::new(false),
            stdin: None,
            stdout: None,
            stderr: None,
        };
        Ok(Attributes { node, ..files.attributes(DIRECTORY)? })
    }
    fn set_attributes(
        &self,
        caller: &Caller,
        node: NodeId,
        change: &SetAttributes,
    ) -> Result<Attributes, Errno> {
        Err(Errno::STALE)
    }
    fn read_link(&self, node: NodeId) -> Result<Vec<u8>, Errno> {
        Err(Errno::STALE)
    }
    fn create(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: Name<'_>,
        new: &NewObject<'_>,
    ) -> Result<Entry, Errno> {
        Err(Errno::STALE)
    }
    fn create_unnamed(
        &self,
        caller: &Caller,
        parent: NodeId,
        new: &NewObject<'_>,
    ) -> Result<Entry, Errno> {
        Err(Errno::STALE)
    }
    fn link(&self, node: NodeId, parent: NodeId, name: Name<'_>) -> Result<Entry, Errno> {
        Err(Errno::STALE)
    }
    fn unlink(&self, parent: NodeId, name: Name<'_>) -> Result<(), Errno> {
        Err(Errno::STALE)
    }
    fn remove_directory(&self, parent: NodeId, name: Name<'_>) -> Result<(), Errno> {
        Err(Errno::STALE)
    }
    fn rename(&self, caller: &Caller, rename: &Rename<'_>) -> Result<(), Errno> {
        Err(Errno::STALE)
    }
    fn read(
        &self,
        node: NodeId,
        offset: u64,
        size: usize,
        sink: &mut dyn DataSink,
    ) -> Result<(), Errno> {
        Err(Errno::STALE)
    }
    fn write(
        &self,
        node: NodeId,
        write: &Write,
        source: &mut dyn DataSource,
    ) -> Result<usize, Errno> {
        Err(Errno::STALE)
    }
    fn read_directory(
        &self,
        node: NodeId,
        cookie: u64,
        plus: bool,
        sink: &mut dyn DirectorySink,
    ) -> Result<(), Errno> {
        Ok(())
    }
    fn allocate(&self, node: NodeId, allocate: &Allocate) -> Result<(), Errno> {
        Err(Errno::STALE)
    }
    fn seek(&self, node: NodeId, seek: Seek) -> Result<u64, Errno> {
        Err(Errno::STALE)
    }
    fn copy_range(&self, copy: &CopyRange) -> Result<u64, Errno> {
        Err(Errno::STALE)
    }
    fn sync(&self, node: NodeId, data_only: bool) -> Result<(), Errno> {
        Ok(())
    }
    fn sync_all(&self) -> Result<(), Errno> {
        Ok(())
    }
    fn statistics(&self) -> Result<FileSystemStatistics, Errno> {
        Ok(FileSystemStatistics::default())
    }
    fn xattr(&self, caller: &Caller, node: NodeId, name: &[u8]) -> Result<Vec<u8>, Errno> {
        Ok(b"inner".to_vec())
    }
    fn list_xattrs(&self, caller: &Caller, node: NodeId) -> Result<Vec<u8>, Errno> {
        Ok(b"user.a\0trusted.thinroot.exit\0user.b\0".to_vec())
    }
    fn set_xattr(&self, caller: &Caller, node: NodeId, set: &SetXattr<'_>) -> Result<(), Errno> {
        Ok(())
    }
    fn remove_xattr(&self, node: NodeId, name: &[u8]) -> Result<(), Errno> {
        Ok(())
    }
    fn is_stream(&self, node: NodeId) -> bool {
        false
    }
}

const INIT: Caller = Caller { uid: 0, gid: 0, pid: 1 };
const OTHER: Caller = Caller { uid: 0, gid: 0, pid: 2 };

fn control(files: Option<ControlFiles>) -> Control<Bare> {
    Control::new(Bare::default(), files, Box::new(|_| {})).unwrap()
}

fn name(bytes: &[u8]) -> Name<'_> {
    Name::new(bytes).unwrap()
}

fn find(control: &Control<Bare>, path: &[&[u8]]) -> Result<NodeId, Errno> {
    let mut node = NodeId::ROOT;
    for component in path {
        node = control.lookup(&INIT, node, name(component))?.attributes.node;
    }
    Ok(node)
}

fn write(control: &Control<Bare>, node: NodeId, bytes: &[u8]) -> Result<usize, Errno> {
    let write = Write { offset: 0, size: bytes.len(), kill_privileges: false, keeps_mtime: false };
    control.write(node, &write, &mut &*bytes)
}

#[test]
fn only_the_guests_first_process_finds_the_control_files() {
    let with = control(Some(ControlFiles::default()));
    let directory = find(&with, &[DIRECTORY_NAME]).unwrap();
    assert!(with.lookup(&INIT, directory, name(b"command")).is_ok());
    assert_eq!(with.lookup(&OTHER, NodeId::ROOT, name(DIRECTORY_NAME)), Err(Errno::NOENT));
    assert_eq!(with.lookup(&OTHER, directory, name(b"command")), Err(Errno::NOENT));
    assert_eq!(find(&with, &[DIRECTORY_NAME, b"stdin"]), Err(Errno::NOENT), "no such stream");
    assert_eq!(find(&control(None), &[DIRECTORY_NAME]), Err(Errno::NOENT));
}

#[test]
fn entries_are_never_remembered_and_streams_say_so() {
    let (stdin, _other) = std::io::pipe().unwrap();
    let control =
        control(Some(ControlFiles { stdin: Some(stdin.into()), ..ControlFiles::default() }));
    let directory = control.lookup(&INIT, NodeId::ROOT, name(DIRECTORY_NAME)).unwrap();
    assert_eq!((directory.valid_for, directory.is_stream), (Duration::ZERO, false));
    for file in [&b"command"[..], b"stdin"] {
        let entry = control.lookup(&INIT, DIRECTORY, name(file)).unwrap();
        assert_eq!((entry.valid_for, entry.is_stream), (Duration::ZERO, true));
        assert!(control.is_stream(entry.attributes.node));
    }
    control.forget(DIRECTORY, 1);
    assert_eq!(control.inner.forgotten.load(Ordering::Relaxed), 0);
}

#[test]
fn command_is_gone_after_it_was_read_to_its_end() {
    let command = b"arg=true\0cwd=/\0".to_vec();
    let control = control(Some(ControlFiles { command, ..ControlFiles::default() }));
    let node = find(&control, &[DIRECTORY_NAME, b"command"]).unwrap();
    assert_eq!(read(&control, node, 0, 4).unwrap(), b"arg=");
    assert_eq!(find(&control, &[DIRECTORY_NAME, b"command"]), Ok(node), "not read to its end");
    assert_eq!(read(&control, node, 4, 4096).unwrap(), b"true\0cwd=/\0");
    assert_eq!(read(&control, node, 15, 4096).unwrap(), b"");
    assert_eq!(read(&control, node, 0, 4096).unwrap(), b"");
    assert_eq!(find(&control, &[DIRECTORY_NAME, b"command"]), Err(Errno::NOENT));
    control.init();
    assert_eq!(find(&control, &[DIRECTORY_NAME, b"command"]), Err(Errno::NOENT));
}

#[test]
fn a_guest_that_boots_its_own_init_may_reboot() {
    let command = b"hostname=a\0boot=/sbin/init\0".to_vec();
    let control = control(Some(ControlFiles { command: command.clone(), ..Default::default() }));
    for _ in 0..2 {
        control.init();
        let node = find(&control, &[DIRECTORY_NAME, b"command"]).unwrap();
        assert_eq!(read(&control, node, 0, 4096).unwrap(), command);
    }
}

#[test]
fn streams_carry_bytes_and_their_end() {
    let (stdin, mut feed) = std::io::pipe().unwrap();
    let (mut drain, stdout) = std::io::pipe().unwrap();
    let control = control(Some(ControlFiles {
        stdin: Some(stdin.into()),
        stdout: Some(stdout.into()),
        ..ControlFiles::default()
    }));
    feed.write_all(b"in\0\xff").unwrap();
    assert_eq!(read(&control, STDIN, 99, 100).unwrap(), b"in\0\xff");
    drop(feed);
    assert_eq!(read(&control, STDIN, 0, 100).unwrap(), b"");

    let sent = vec![b'x'; 300_000];
    let received = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut received = vec![0; 300_000];
            drain.read_exact(&mut received).unwrap();
            received
        });
        assert_eq!(write(&control, STDOUT, &sent), Ok(sent.len()));
        reader.join().unwrap()
    });
    assert_eq!(received, sent);
    drop(drain);
    assert_eq!(write(&control, STDOUT, b"x"), Err(Errno::PIPE));
    assert_eq!(write(&control, STDERR, b"x"), Err(Errno::STALE));
    assert_eq!(write(&control, STDIN, b"x"), Err(Errno::BADF));
    assert_eq!(read(&control, STDOUT, 0, 1), Err(Errno::BADF));
}

#[test]
fn waiting_streams_are_called_off() {
    let (stdin, mut feed) = std::io::pipe().unwrap();
    let (_drain, stdout) = std::io::pipe().unwrap();
    let control = control(Some(ControlFiles {
        stdin: Some(stdin.into()),
        stdout: Some(stdout.into()),
        ..ControlFiles::default()
    }));
    thread::scope(|scope| {
        let readers = [(); 2].map(|()| scope.spawn(|| read(&control, STDIN, 0, 1)));
        let writer = scope.spawn(|| write(&control, STDOUT, &[0; 200_000]));
        thread::sleep(Duration::from_millis(50));
        control.cancellation().renew();
        for reader in readers {
            assert_eq!(reader.join().unwrap(), Err(Errno::CANCELED));
        }
        assert!(writer.join().unwrap().unwrap() < 200_000);
    });
    feed.write_all(b"x").unwrap();
    assert_eq!(read(&control, STDIN, 0, 1).unwrap(), b"x", "the next guest's bytes");
    control.cancellation().stop();
    assert_eq!(read(&control, STDIN, 0, 1), Err(Errno::CANCELED));
}

#[test]
fn a_guest_that_has_reported_its_end_waits_for_no_input() {
    let (stdin, _feed) = std::io::pipe().unwrap();
    let control =
        control(Some(ControlFiles { stdin: Some(stdin.into()), ..ControlFiles::default() }));
    thread::scope(|scope| {
        let reader = scope.spawn(|| read(&control, STDIN, 0, 1));
        for name in [&b"trusted.thinroot.ready"[..], b"trusted.thinroot.exit"] {
            thread::sleep(Duration::from_millis(50));
            assert!(!reader.is_finished(), "{}", name.escape_ascii());
            let set = SetXattr { name, value: b"0", flags: 0, kill_setgid: false };
            control.set_xattr(&INIT, NodeId::ROOT, &set).unwrap();
        }
        assert_eq!(reader.join().unwrap(), Err(Errno::CANCELED));
    });
}

#[test]
fn reports_are_taken_from_the_first_process_alone_and_never_shown() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    let on_report = Box::new(move |report| sink.lock().unwrap().push(report));
    let control = Control::new(Bare::default(), None, on_report).unwrap();
    let set = |caller, node, name| {
        let set = SetXattr { name, value: b"3", flags: 0, kill_setgid: false };
        control.set_xattr(caller, node, &set)
    };
    let exit = b"trusted.thinroot.exit";
    assert_eq!(set(&OTHER, NodeId::ROOT, exit), Err(Errno::PERM));
    assert_eq!(set(&INIT, NodeId::ROOT, b"trusted.thinroot.other"), Err(Errno::PERM));
    assert_eq!(set(&INIT, NodeId(7), exit), Ok(()), "another node's xattr is the guest's own");
    assert!(seen.lock().unwrap().is_empty());
    assert_eq!(set(&INIT, NodeId::ROOT, exit), Ok(()));
    assert_eq!(*seen.lock().unwrap(), [Report::Exited(3)]);

    assert_eq!(control.xattr(&INIT, NodeId::ROOT, exit), Err(Errno::NODATA));
    assert_eq!(control.list_xattrs(&INIT, NodeId::ROOT).unwrap(), b"user.a\0user.b\0");
    assert_eq!(control.remove_xattr(NodeId::ROOT, exit), Err(Errno::PERM));
    assert_eq!(control.xattr(&INIT, NodeId(7), exit).unwrap(), b"inner");
}

#[test]
fn the_control_files_cannot_be_changed() {
    let control = control(Some(ControlFiles::default()));
    let new = NewObject {
        kind: crate::filesystem::NewKind::File,
        mode: 0o600,
        umask: 0,
        supplementary_group: None,
    };
    let a = name(b"a");
    let perm = Some(Errno::PERM);
    assert_eq!(control.create(&INIT, DIRECTORY, a, &new).err(), perm);
    assert_eq!(control.unlink(DIRECTORY, a).err(), perm);
    assert_eq!(control.link(COMMAND, NodeId::ROOT, a).err(), perm);
    let mode = SetAttributes { mode: Some(0o777), ..SetAttributes::default() };
    assert_eq!(control.set_attributes(&INIT, COMMAND, &mode).err(), perm);
    let truncate = SetAttributes { size: Some(0), ..SetAttributes::default() };
    assert!(control.set_attributes(&INIT, STDOUT, &truncate).is_ok());
}
