//! What is asked of a file's capabilities while the host has taken them away for a write.

use std::os::fd::BorrowedFd;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use super::*;

const CAPABILITY: &[u8] = b"security.capability";

/// linux/capability.h: VFS_CAP_REVISION_2, `CAP_NET_RAW` permitted.
fn raw_sockets() -> Vec<u8> {
    [&0x0200_0000_u32.to_le_bytes()[..], &0x2000_u32.to_le_bytes(), &[0; 12]].concat()
}

fn set(union: &Union, id: NodeId) -> Result<Vec<u8>, Errno> {
    let set = SetXattr { name: CAPABILITY, value: &raw_sockets(), flags: 0, kill_setgid: false };
    union.set_xattr(&ROOT, id, &set).map(|()| Vec::new())
}

/// Bytes to write, and what comes right before and right after the host's write.
struct Between<'a, F: FnMut()>(&'a [u8], F);

impl<F: FnMut()> DataSource for Between<'_, F> {
    fn remaining(&self) -> usize {
        self.0.remaining()
    }

    fn write_file(&mut self, file: BorrowedFd<'_>, at: u64, size: usize) -> Result<usize, Errno> {
        (self.1)();
        let done = self.0.write_file(file, at, size);
        (self.1)();
        done
    }

    fn take(&mut self, into: &mut [u8]) -> Result<(), Errno> {
        self.0.take(into)
    }
}

type Asked = fn(&Union, NodeId) -> Result<Vec<u8>, Errno>;

/// Writes a byte, has another thread ask in its midst, and gives the answer.
fn asked_within_a_write(
    union: &Union,
    id: NodeId,
    before: bool,
    ask: Asked,
) -> Result<Vec<u8>, Errno> {
    thread::scope(|scope| {
        let mut answer: Option<Receiver<_>> = None;
        let mut is_before = true;
        let between = || {
            if std::mem::take(&mut is_before) != before {
                return;
            }
            let (tell, told) = channel();
            scope.spawn(move || tell.send(ask(union, id)));
            // Who answers at once does so; who waits for the write's end cannot.
            let early = told.recv_timeout(Duration::from_millis(50));
            answer = Some(match early {
                Ok(early) => {
                    let (tell, told) = channel();
                    tell.send(early).unwrap();
                    told
                }
                Err(_) => told,
            });
        };
        let write = Write { offset: 0, size: 1, kill_privileges: false, keeps_mtime: false };
        assert_eq!(union.write(id, &write, &mut Between(b"x", between)), Ok(1));
        answer.unwrap().recv().unwrap()
    })
}

#[test]
fn capabilities_are_never_seen_between_a_write_and_their_return() {
    let Some(world) = world(small_base) else { return };
    let id = world.id("a/one");
    let get: Asked = |union, id| union.xattr(&ROOT, id, CAPABILITY);
    let remove: Asked = |union, id| union.remove_xattr(id, CAPABILITY).map(|()| Vec::new());
    let list: Asked = |union, id| union.list_xattrs(&ROOT, id);
    set(&world.union, id).unwrap();
    assert_eq!(asked_within_a_write(&world.union, id, false, get), Ok(raw_sockets()), "read");
    let listed = asked_within_a_write(&world.union, id, false, list).unwrap();
    assert_eq!(listed, [CAPABILITY, b"\0"].concat(), "listed");
    assert_eq!(asked_within_a_write(&world.union, id, false, remove), Ok(Vec::new()), "removed");
    assert_eq!(get(&world.union, id), Err(Errno::NODATA), "what was removed came back");
}

#[test]
fn chown_within_a_write_takes_capabilities_for_good() {
    let Some(world) = world(small_base) else { return };
    let id = world.id("a/one");
    set(&world.union, id).unwrap();
    let chown: Asked = |union, id| {
        let change = SetAttributes { uid: Some(7), ..SetAttributes::default() };
        union.set_attributes(&ROOT, id, &change).map(|_| Vec::new())
    };
    assert_eq!(asked_within_a_write(&world.union, id, false, chown), Ok(Vec::new()));
    assert_eq!(world.union.xattr(&ROOT, id, CAPABILITY), Err(Errno::NODATA));
}

#[test]
fn capabilities_set_within_a_write_stay() {
    let Some(world) = world(small_base) else { return };
    let id = world.id("a/one");
    world.write("a/one", 0, "o");
    assert_eq!(asked_within_a_write(&world.union, id, true, set), Ok(Vec::new()));
    assert_eq!(world.union.xattr(&ROOT, id, CAPABILITY), Ok(raw_sockets()));
}

#[test]
fn settled_file_keeps_capabilities_and_setuid() {
    let Some(world) = world_by_block(big_base) else { return };
    let id = world.id("alone");
    put(&world.union, id, 5000, b"x");
    let setuid = SetAttributes { mode: Some(0o6755), ..SetAttributes::default() };
    world.union.set_attributes(&ROOT, id, &setuid).unwrap();
    set(&world.union, id).unwrap();
    let world = world.remount();
    assert_eq!(world.union.settle_all(), Ok(1));
    let world = world.remount();
    let shown = world.walk("alone").unwrap().attributes;
    assert_eq!(shown.mode & 0o7777, 0o6755);
    let id = shown.node;
    assert_eq!(world.union.xattr(&ROOT, id, CAPABILITY), Ok(raw_sockets()));
}
