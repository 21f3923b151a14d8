//! Malformed requests, one row each: what is wrong with it and what it gets.

use zerocopy::IntoBytes as _;

use super::{Guest, Message};
use crate::filesystem::Errno;
use crate::fuse::abi::{self, Opcode};

/// An operation that takes a name: the opcode and what stands before the name.
fn named() -> Vec<(Opcode, Vec<u8>, Vec<u8>)> {
    let create = abi::CreateIn { mode: 0o100_644, ..Default::default() }.as_bytes().to_vec();
    let none = Vec::new;
    vec![
        (Opcode::Lookup, none(), none()),
        (
            Opcode::MkNod,
            abi::MkNodIn { mode: 0o100_644, ..Default::default() }.as_bytes().into(),
            none(),
        ),
        (Opcode::MkDir, abi::MkDirIn::default().as_bytes().into(), none()),
        (Opcode::Symlink, none(), b"target\0".to_vec()),
        (Opcode::Link, abi::LinkIn { oldnodeid: 1 }.as_bytes().into(), none()),
        (Opcode::Unlink, none(), none()),
        (Opcode::RmDir, none(), none()),
        (Opcode::Rename, abi::RenameIn { newdir: 1 }.as_bytes().into(), b"new\0".to_vec()),
        (Opcode::Rename, [abi::RenameIn { newdir: 1 }.as_bytes(), b"old\0"].concat(), none()),
        (
            Opcode::Rename2,
            abi::Rename2In { newdir: 1, ..Default::default() }.as_bytes().into(),
            b"new\0".to_vec(),
        ),
        (
            Opcode::Rename2,
            [abi::Rename2In { newdir: 1, ..Default::default() }.as_bytes(), b"old\0"].concat(),
            none(),
        ),
        (Opcode::Create, create.clone(), none()),
        (Opcode::TmpFile, create, none()),
    ]
}

#[test]
fn no_operation_lets_a_bad_name_through() {
    let long = [vec![b'a'; 256], vec![0]].concat();
    let names: [(&str, &[u8], Errno); 8] = [
        ("empty", b"\0", Errno::INVAL),
        ("missing", b"", Errno::INVAL),
        ("without NUL", b"name", Errno::INVAL),
        ("with a slash", b"../escape\0", Errno::INVAL),
        ("absolute", b"/etc/passwd\0", Errno::INVAL),
        ("dot", b".\0", Errno::INVAL),
        ("dot dot", b"..\0", Errno::INVAL),
        ("too long", &long, Errno::NAMETOOLONG),
    ];
    let guest = Guest::started();
    for (opcode, before, after) in named() {
        for (what, name, errno) in names {
            if opcode == Opcode::Lookup && what.starts_with("dot") {
                continue;
            }
            let message = Message::new(opcode, 1).bytes(&before).bytes(name).bytes(&after);
            // Without its NUL a first name swallows the second, and one name is missing.
            assert_eq!(guest.body(&message), Err(errno), "{opcode:?} with a name {what}");
        }
    }
    assert_eq!(guest.files.lookups(), 0);
}

#[test]
fn embedded_nul_is_refused_by_every_operation() {
    let guest = Guest::started();
    for (opcode, before, after) in named() {
        let message = Message::new(opcode, 1).bytes(&before).bytes(b"a\0b\0").bytes(&after);
        assert_eq!(guest.body(&message), Err(Errno::INVAL), "{opcode:?}");
    }
}

#[test]
fn names_that_only_look_odd_pass() {
    let guest = Guest::started();
    for name in [&b"...\0"[..], b"\xff\n\0", b".wh.foo\0", b" \0"] {
        let message = Message::new(Opcode::MkDir, 1).with(&abi::MkDirIn::default()).bytes(name);
        assert!(guest.body(&message).is_ok(), "{}", name.escape_ascii());
    }
}

#[test]
fn dots_are_looked_up_only_where_file_handles_are_supported() {
    for (flags, expected) in [(u32::MAX, Ok(1)), (!(1 << 4), Err(Errno::INVAL))] {
        let guest = Guest::new();
        guest.init(45, flags, 0);
        for name in [&b".\0"[..], b"..\0"] {
            let found = guest.ask::<abi::EntryOut>(&Message::new(Opcode::Lookup, 1).bytes(name));
            assert_eq!(found.map(|entry| entry.nodeid), expected);
        }
    }
}

#[test]
fn unnamed_file_carries_the_kernels_placeholder() {
    let guest = Guest::started();
    let create = abi::CreateIn { mode: 0o100_600, ..Default::default() };
    for name in [&b"/\0"[..], b"#12\0"] {
        let message = Message::new(Opcode::TmpFile, 1).with(&create).bytes(name);
        let body = guest.body(&message).unwrap();
        assert_eq!(body.len(), size_of::<abi::EntryOut>() + size_of::<abi::OpenOut>());
    }
}

#[test]
fn arguments_cut_short_are_refused() {
    let guest = Guest::started();
    let file = guest.file(b"file");
    let rows: [(Opcode, usize); 18] = [
        (Opcode::SetAttr, 88),
        (Opcode::MkNod, 16),
        (Opcode::MkDir, 8),
        (Opcode::Rename, 8),
        (Opcode::Rename2, 16),
        (Opcode::Link, 8),
        (Opcode::Read, 40),
        (Opcode::Write, 40),
        (Opcode::FSync, 16),
        (Opcode::SetXattr, 16),
        (Opcode::GetXattr, 8),
        (Opcode::ListXattr, 8),
        (Opcode::ReadDir, 40),
        (Opcode::ReadDirPlus, 40),
        (Opcode::Create, 16),
        (Opcode::IoCtl, 32),
        (Opcode::FAllocate, 32),
        (Opcode::LSeek, 24),
    ];
    for (opcode, size) in rows {
        for short in [0, 1, size - 1] {
            let message = Message::new(opcode, file).bytes(&vec![0; short]);
            assert_eq!(guest.body(&message), Err(Errno::INVAL), "{opcode:?} of {short} bytes");
        }
    }
    let wide = Message::new(Opcode::CopyFileRange64, file).bytes(&[0; 55]);
    assert_eq!(guest.body(&wide), Err(Errno::INVAL));
}

#[test]
fn header_that_lies_about_the_length_is_refused() {
    let guest = Guest::started();
    let honest = Message::new(Opcode::Lookup, 1).bytes(b"name\0").assembled();
    for len in [0_u32, 1, 39, 46, 100, u32::MAX] {
        let mut message = honest.clone();
        message[..4].copy_from_slice(&len.to_ne_bytes());
        assert_eq!(guest.send(&message, &[], 4096), Some(Err(Errno::INVAL)), "len {len}");
    }
    // Shorter than what came: only what the header covers counts.
    let mut longer = honest;
    longer.extend_from_slice(b"rest");
    assert!(guest.send(&longer, &[], 4096).unwrap().is_ok());
    // Extensions longer than the message.
    let mut extended = Message::new(Opcode::Lookup, 1).bytes(b"name\0");
    extended.header.total_extlen = u16::MAX;
    assert_eq!(guest.body(&extended), Err(Errno::INVAL));
}

#[test]
fn message_shorter_than_its_header_gets_no_reply() {
    let guest = Guest::started();
    for length in 0..abi::IN_HEADER_BYTES {
        assert_eq!(guest.send(&vec![0xff; length], &[], 4096), None);
    }
}

/// What is wrong, the request, and what it gets.
type Row = (&'static str, Message, Errno);

fn check(guest: &Guest, rows: &[Row]) {
    for (what, message, errno) in rows {
        assert_eq!(guest.body(message), Err(*errno), "{what}");
    }
}

/// The first offset no file has.
const PAST_END: u64 = 1 << 63;

#[test]
fn attributes_nobody_can_have_are_refused() {
    let set = |valid| abi::SetAttrIn { valid, ..Default::default() };
    let row = |what, set: abi::SetAttrIn| {
        (what, Message::new(Opcode::SetAttr, 1).with(&set), Errno::INVAL)
    };
    let rows = [
        row("unknown bit", set(1 << 12)),
        row("user nobody can be", abi::SetAttrIn { uid: u32::MAX, ..set(abi::FATTR_UID) }),
        row("group nobody can be", abi::SetAttrIn { gid: u32::MAX, ..set(abi::FATTR_GID) }),
        row(
            "a second of nanoseconds",
            abi::SetAttrIn { mtimensec: 1_000_000_000, ..set(abi::FATTR_MTIME) },
        ),
        row("size beyond offsets", abi::SetAttrIn { size: PAST_END, ..set(abi::FATTR_SIZE) }),
    ];
    check(&Guest::started(), &rows);
}

#[test]
fn ranges_no_file_has_are_refused() {
    let guest = Guest::started();
    let file = guest.file(b"file");
    let read = |offset| {
        Message::new(Opcode::Read, file).with(&abi::ReadIn {
            offset,
            size: 1,
            ..Default::default()
        })
    };
    let write = |offset, size, data: &[u8]| {
        let write = abi::WriteIn { offset, size, ..Default::default() };
        Message::new(Opcode::Write, file).with(&write).data(data)
    };
    let allocate = |offset, length| {
        let allocate = abi::FAllocateIn { offset, length, ..Default::default() };
        Message::new(Opcode::FAllocate, file).with(&allocate)
    };
    let seek = |whence, offset| {
        Message::new(Opcode::LSeek, file).with(&abi::LSeekIn {
            whence,
            offset,
            ..Default::default()
        })
    };
    let copy = abi::CopyFileRangeIn { flags: 1, ..Default::default() };
    let copy = Message::new(Opcode::CopyFileRange, file).with(&copy);
    let rows = [
        ("read beyond offsets", read(PAST_END), Errno::INVAL),
        ("write over the last offset", write(PAST_END - 1, 1, b"x"), Errno::FBIG),
        ("write larger than agreed", write(0, (1 << 20) + 1, b"x"), Errno::INVAL),
        ("write of data that did not come", write(0, 3, b"ab"), Errno::INVAL),
        ("allocation of nothing", allocate(0, 0), Errno::INVAL),
        ("allocation over the last offset", allocate(PAST_END - 1, 9), Errno::FBIG),
        ("seek from the start", seek(0, 0), Errno::INVAL),
        ("seek beyond offsets", seek(3, PAST_END), Errno::INVAL),
        ("copy with flags", copy, Errno::INVAL),
    ];
    check(&guest, &rows);
}

#[test]
fn births_and_renames_that_mean_nothing_are_refused() {
    let mknod = |mode| {
        let mknod = abi::MkNodIn { mode, ..Default::default() };
        Message::new(Opcode::MkNod, 1).with(&mknod).bytes(b"a\0")
    };
    let rename = |flags| {
        let rename = abi::Rename2In { flags, newdir: 1, padding: 0 };
        Message::new(Opcode::Rename2, 1).with(&rename).bytes(b"a\0b\0")
    };
    let create = abi::CreateIn { mode: 0o040_755, ..Default::default() };
    let create = Message::new(Opcode::Create, 1).with(&create).bytes(b"a\0");
    let symlink = |target: &[u8]| Message::new(Opcode::Symlink, 1).bytes(b"a\0").bytes(target);
    let long = [vec![b't'; 4096], vec![0]].concat();
    let rows = [
        ("mknod of a directory", mknod(0o040_755), Errno::INVAL),
        ("mknod of a symlink", mknod(0o120_777), Errno::INVAL),
        ("mknod of nothing known", mknod(0o170_000), Errno::INVAL),
        ("create of a directory", create, Errno::INVAL),
        ("symlink to nothing", symlink(b"\0"), Errno::NOENT),
        ("symlink to too much", symlink(&long), Errno::NAMETOOLONG),
        ("symlink without target", symlink(b""), Errno::INVAL),
        ("rename with unknown flags", rename(8), Errno::INVAL),
        ("exchange without replacing", rename(3), Errno::INVAL),
        ("exchange with whiteout", rename(6), Errno::INVAL),
    ];
    check(&Guest::started(), &rows);
}

#[test]
fn attribute_requests_are_bounded() {
    let long = [vec![b'n'; 256], vec![0]].concat();
    let set = |size, flags, rest: &[u8]| {
        let set = abi::SetXattrIn { size, flags, ..Default::default() };
        Message::new(Opcode::SetXattr, 1).with(&set).bytes(rest)
    };
    let get =
        |name| Message::new(Opcode::GetXattr, 1).with(&abi::GetXattrIn::default()).bytes(name);
    let remove = |name| Message::new(Opcode::RemoveXattr, 1).bytes(name);
    let rows = [
        ("set without name", set(0, 0, b"\0"), Errno::RANGE),
        ("set with a long name", set(0, 0, &long), Errno::RANGE),
        ("set without NUL", set(0, 0, b"user.a"), Errno::INVAL),
        ("set of more than came", set(9, 0, b"user.a\0v"), Errno::INVAL),
        ("set of less than came", set(1, 0, b"user.a\0vv"), Errno::INVAL),
        ("set of too much", set(65_537, 0, b"user.a\0v"), Errno::TOOBIG),
        ("set with unknown flags", set(1, 4, b"user.a\0v"), Errno::INVAL),
        ("get without name", get(b"\0"), Errno::RANGE),
        ("get with two names", get(b"a\0b\0"), Errno::INVAL),
        ("remove without name", remove(b"\0"), Errno::RANGE),
        ("remove with a long name", remove(&long), Errno::RANGE),
    ];
    check(&Guest::started(), &rows);
}

#[test]
fn owner_that_is_none_cannot_give_birth() {
    let guest = Guest::started();
    let mut message = Message::new(Opcode::MkDir, 1).with(&abi::MkDirIn::default()).bytes(b"d\0");
    message.header.uid = u32::MAX;
    assert_eq!(guest.body(&message), Err(Errno::OVERFLOW));
}

#[test]
fn everything_but_init_is_refused_before_init() {
    let guest = Guest::new();
    for &opcode in Opcode::ALL {
        let silent = [Opcode::Forget, Opcode::BatchForget, Opcode::Interrupt, Opcode::NotifyReply];
        let message = Message::new(opcode, 1).bytes(b"name\0");
        match guest.send(&message.assembled(), &[], 4096) {
            None => assert!(silent.contains(&opcode), "{opcode:?}"),
            Some(answer) if opcode == Opcode::Init => assert_eq!(answer, Err(Errno::INVAL)),
            Some(answer) => assert_eq!(answer, Err(Errno::IO), "{opcode:?}"),
        }
    }
    assert!(guest.session.agreed().is_none());
}
