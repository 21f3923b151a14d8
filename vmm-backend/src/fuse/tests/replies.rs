//! What a guest gets: caching, counts of lookups, sizes, and what it is told never to ask again.

use zerocopy::{FromBytes as _, IntoBytes as _};

use super::{Guest, Message, Reply};
use crate::filesystem::Errno;
use crate::fuse::abi::{self, Opcode};
use crate::fuse::memory::STREAM;
use crate::fuse::session::{Answer, MESSAGE_BYTES_MAX, Placement};

#[test]
fn absent_name_is_remembered_unless_who_asks_decides() {
    let guest = Guest::started();
    let absent: abi::EntryOut =
        guest.ask(&Message::new(Opcode::Lookup, 1).bytes(b"absent\0")).unwrap();
    assert_eq!((absent.nodeid, absent.entry_valid), (0, u64::MAX >> 1));
    let control = guest.body(&Message::new(Opcode::Lookup, 1).bytes(b".thinroot\0"));
    assert_eq!(control, Err(Errno::NOENT));
    let directory = Message::new(Opcode::MkDir, 1).with(&abi::MkDirIn::default()).bytes(b"d\0");
    let directory: abi::EntryOut = guest.ask(&directory).unwrap();
    let below = Message::new(Opcode::Lookup, directory.nodeid).bytes(b".thinroot\0");
    assert_eq!(guest.ask::<abi::EntryOut>(&below).unwrap().nodeid, 0);
}

#[test]
fn opens_are_answered_once_and_streams_always() {
    let open = |guest: &Guest, opcode, node| {
        let message = Message::new(opcode, node).with(&abi::OpenIn::default());
        guest.ask::<abi::OpenOut>(&message).map(|open| open.open_flags)
    };
    let keep = abi::FOPEN_KEEP_CACHE;
    let stream = Ok(abi::FOPEN_DIRECT_IO | abi::FOPEN_NONSEEKABLE);
    let new = Guest::started();
    assert_eq!(open(&new, Opcode::Open, STREAM.0), stream);
    assert_eq!(open(&new, Opcode::Open, 1), Err(Errno::NOSYS));
    assert_eq!(open(&new, Opcode::OpenDir, 1), Err(Errno::NOSYS));
    let old = Guest::new();
    old.init(31, 0, 0);
    assert_eq!(open(&old, Opcode::Open, STREAM.0), stream);
    assert_eq!(open(&old, Opcode::Open, 1), Ok(keep));
    assert_eq!(open(&old, Opcode::OpenDir, 1), Ok(keep | abi::FOPEN_CACHE_DIR));
}

#[test]
fn flush_is_dropped_only_where_close_reports_errors_without_it() {
    for (minor, expected) in [(34, Ok(Vec::new())), (35, Err(Errno::NOSYS))] {
        let guest = Guest::new();
        guest.init(minor, u32::MAX, 0);
        let flush = Message::new(Opcode::Flush, 1).with(&abi::FlushIn::default());
        assert_eq!(guest.body(&flush), expected, "minor {minor}");
    }
}

#[test]
fn never_is_said_only_where_it_is_meant() {
    let guest = Guest::started();
    for opcode in [Opcode::Access, Opcode::GetLk, Opcode::SetLk, Opcode::Poll, Opcode::BMap] {
        assert_eq!(guest.body(&Message::new(opcode, 1)), Err(Errno::NOSYS), "{opcode:?}");
    }
    let mut unknown = Message::new(Opcode::Init, 1);
    unknown.header.opcode = 4096;
    assert_eq!(guest.body(&unknown), Err(Errno::NOSYS));
    // A file system that cannot allocate says so for one file, not for the mount.
    let allocate = abi::FAllocateIn { length: 1, ..Default::default() };
    let allocate = Message::new(Opcode::FAllocate, 1).with(&allocate);
    assert_eq!(guest.body(&allocate), Err(Errno::OPNOTSUPP));
    // isatty.
    let tcgets = abi::IoCtlIn { cmd: 0x5401, out_size: 60, ..Default::default() };
    assert_eq!(guest.body(&Message::new(Opcode::IoCtl, 1).with(&tcgets)), Err(Errno::NOTTY));
    let flags = abi::IoCtlIn { cmd: 0x8008_6601, out_size: 8, ..Default::default() };
    assert_eq!(guest.body(&Message::new(Opcode::IoCtl, 1).with(&flags)).unwrap().len(), 24);
}

#[test]
fn written_bytes_come_back() {
    let guest = Guest::started();
    let file = guest.file(b"file");
    let write = abi::WriteIn { offset: 2, size: 5, ..Default::default() };
    let message = Message::new(Opcode::Write, file).with(&write).data(b"hello");
    assert_eq!(guest.ask::<abi::WriteOut>(&message).unwrap().size, 5);
    let read = abi::ReadIn { offset: 1, size: 4096, ..Default::default() };
    let read = Message::new(Opcode::Read, file).with(&read);
    assert_eq!(guest.body(&read).unwrap(), b"\0hello");
    let attributes: abi::AttrOut = guest.ask(&Message::new(Opcode::GetAttr, file)).unwrap();
    assert_eq!(attributes.attr.size, 7);
    let statx = Message::new(Opcode::StatX, file).with(&abi::StatXIn::default());
    let statx: abi::StatXOut = guest.ask(&statx).unwrap();
    assert_eq!(statx.stat.mask, 0xfff);
    assert_eq!((statx.stat.size, statx.stat.btime.tv_sec), (7, -1));
}

#[test]
fn read_that_may_not_wait_is_asked_again() {
    let guest = Guest::started();
    let file = guest.file(b"file");
    let read = abi::ReadIn { size: 10, ..Default::default() };
    let message = Message::new(Opcode::Read, file).with(&read).assembled();
    let mut reply = Reply { waits: false, ..Reply::new(100) };
    let answer = guest.session.handle(&message, &mut &[][..], &mut reply);
    assert_eq!(answer, Answer::Later);
    assert!(reply.header.is_none() && reply.body.is_empty());
    assert!(guest.session.take_counts().iter().all(|row| row.name != "READ"));
}

#[test]
fn change_that_may_not_wait_and_would_is_not_begun() {
    let guest = Guest::started();
    let file = guest.file(b"file");
    let write = abi::WriteIn { size: 5, ..Default::default() };
    let write = Message::new(Opcode::Write, file).with(&write).data(b"hello");
    let cut = abi::SetAttrIn { valid: abi::FATTR_SIZE, size: 3, ..Default::default() };
    let cut = Message::new(Opcode::SetAttr, file).with(&cut);
    for message in [write, cut] {
        let mut reply = Reply { waits: false, ..Reply::new(200) };
        let mut source = &b"hello"[..];
        let answer = guest.session.handle(&message.assembled(), &mut source, &mut reply);
        assert_eq!(answer, Answer::Later);
        assert!(reply.header.is_none() && reply.body.is_empty());
    }
    let attributes: abi::AttrOut = guest.ask(&Message::new(Opcode::GetAttr, file)).unwrap();
    assert_eq!(attributes.attr.size, 0);
}

#[test]
fn listing_counts_what_it_delivers() {
    let guest = Guest::started();
    for name in 0..30 {
        guest.file(format!("a-file-with-the-number-{name:02}").as_bytes());
    }
    let born = guest.files.lookups();
    let (mut cookie, mut listed) = (0, 0);
    loop {
        let read = abi::ReadIn { offset: cookie, size: 1000, ..Default::default() };
        let body = guest.body(&Message::new(Opcode::ReadDirPlus, 1).with(&read)).unwrap();
        assert!(body.len() <= 1000 && body.len().is_multiple_of(8));
        let rows = rows(&body, size_of::<abi::EntryOut>());
        let Some(&(last, _)) = rows.last() else { break };
        listed += i64::try_from(rows.len()).unwrap();
        cookie = last;
        assert_eq!(guest.files.lookups(), born + listed);
    }
    assert_eq!(listed, 30);
    let plain = abi::ReadIn { size: 1 << 20, ..Default::default() };
    let plain = guest.body(&Message::new(Opcode::ReadDir, 1).with(&plain)).unwrap();
    assert_eq!(rows(&plain, 0).len(), 30);
    assert_eq!(guest.files.lookups(), born + 30);
    let tiny = abi::ReadIn { size: 8, ..Default::default() };
    let tiny = guest.body(&Message::new(Opcode::ReadDirPlus, 1).with(&tiny));
    assert_eq!(tiny, Err(Errno::INVAL), "an empty reply would be the end of the directory");
}

#[test]
fn rows_that_cannot_be_written_are_given_back() {
    let guest = Guest::started();
    for name in 0..90 {
        guest.file(format!("a-file-with-the-number-{name:02}").as_bytes());
    }
    let born = guest.files.lookups();
    let read = abi::ReadIn { size: 1 << 20, ..Default::default() };
    let read = Message::new(Opcode::ReadDirPlus, 1).with(&read).assembled();
    for lasts in [0, 1000, 6000, 10_000, 1 << 20] {
        let mut reply = Reply { lasts, ..Reply::new(1 << 20) };
        let answer = guest.session.handle(&read, &mut &b""[..], &mut reply);
        assert!(matches!(answer, Answer::Reply { .. }));
        let delivered = rows(&reply.body, size_of::<abi::EntryOut>());
        assert_eq!(reply.header().error == 0, !delivered.is_empty(), "{lasts} bytes");
        assert_eq!(delivered.len() == 90, lasts == 1 << 20, "{lasts} bytes");
        let counted = guest.files.lookups() - born;
        assert_eq!(counted, i64::try_from(delivered.len()).unwrap(), "{lasts} bytes");
        for number in 2..=91 {
            let given = u64::from(counted != 0 && number - 2 < delivered.len());
            let forget = Message::new(Opcode::Forget, u64::try_from(number).unwrap());
            guest.send(&forget.with(&abi::ForgetIn { nlookup: given }).assembled(), &[], 0);
        }
        assert_eq!(guest.files.lookups(), born, "{lasts} bytes");
    }
}

/// Cookies and names of a listing whose rows begin with `entry_bytes`.
fn rows(mut body: &[u8], entry_bytes: usize) -> Vec<(u64, Vec<u8>)> {
    let mut rows = Vec::new();
    while !body.is_empty() {
        let (header, name) = abi::DirentHeader::read_from_prefix(&body[entry_bytes..]).unwrap();
        let length = usize::try_from(header.namelen).unwrap();
        rows.push((header.off, name[..length].to_vec()));
        body = &body[(entry_bytes + 24 + length).next_multiple_of(8)..];
    }
    rows
}

#[test]
fn forgets_are_counted_as_far_as_they_came() {
    let guest = Guest::started();
    let (first, second) = (guest.file(b"first"), guest.file(b"second"));
    assert_eq!(guest.files.lookups(), 2);
    let one = |nodeid| abi::ForgetOne { nodeid, nlookup: 1 };
    let lie = abi::BatchForgetIn { count: u32::MAX, dummy: 0 };
    let batch = Message::new(Opcode::BatchForget, 0).with(&lie).with(&one(first)).with(&one(404));
    assert_eq!(guest.send(&batch.assembled(), &[], 4096), None);
    assert_eq!(guest.files.lookups(), 1);
    let single = Message::new(Opcode::Forget, second).with(&abi::ForgetIn { nlookup: u64::MAX });
    assert_eq!(guest.send(&single.assembled(), &[], 4096), None);
    assert_eq!(guest.files.lookups(), 0);
    for opcode in [Opcode::Interrupt, Opcode::NotifyReply] {
        assert_eq!(guest.send(&Message::new(opcode, 1).assembled(), &[], 4096), None);
    }
}

#[test]
fn every_capacity_is_respected() {
    let guest = Guest::started();
    let file = guest.file(b"file");
    let set = abi::SetXattrIn { size: 5, ..Default::default() };
    let set = Message::new(Opcode::SetXattr, file).with(&set).bytes(b"user.a\0value");
    guest.body(&set).unwrap();
    let read = abi::ReadIn { size: 4096, ..Default::default() };
    let get = abi::GetXattrIn { size: 100, padding: 0 };
    let create = abi::CreateIn { mode: 0o100_644, ..Default::default() };
    let requests = [
        Message::new(Opcode::Lookup, 1).bytes(b"file\0"),
        Message::new(Opcode::Lookup, 1).bytes(b"absent\0"),
        Message::new(Opcode::GetAttr, file),
        Message::new(Opcode::StatX, file),
        Message::new(Opcode::StatFs, file),
        Message::new(Opcode::ReadDir, 1).with(&read),
        Message::new(Opcode::ReadDirPlus, 1).with(&read),
        Message::new(Opcode::GetXattr, file).with(&get).bytes(b"user.a\0"),
        Message::new(Opcode::ListXattr, file).with(&get),
        Message::new(Opcode::Create, 1).with(&create).bytes(b"new\0"),
    ];
    for request in requests {
        for capacity in 0..400 {
            let before = guest.files.lookups();
            let answer = guest.send(&request.assembled(), &[], capacity).expect("reply");
            assert!(answer.as_ref().map_or(0, Vec::len) <= capacity);
            let gives = [Opcode::Lookup, Opcode::ReadDirPlus, Opcode::Create]
                .iter()
                .any(|&opcode| opcode as u32 == request.header.opcode);
            if answer.is_err() || !gives {
                assert_eq!(guest.files.lookups(), before, "{request:?} into {capacity} bytes");
            }
            if request.header.opcode == Opcode::Create as u32 && answer.is_ok() {
                guest.body(&Message::new(Opcode::Unlink, 1).bytes(b"new\0")).unwrap();
            }
        }
    }
}

#[test]
fn attribute_values_are_sized_as_getxattr_says() {
    let guest = Guest::started();
    let set = abi::SetXattrIn { size: 5, ..Default::default() };
    guest.body(&Message::new(Opcode::SetXattr, 1).with(&set).bytes(b"user.a\0value")).unwrap();
    let get = |size| {
        let get = abi::GetXattrIn { size, padding: 0 };
        guest.body(&Message::new(Opcode::GetXattr, 1).with(&get).bytes(b"user.a\0"))
    };
    assert_eq!(get(0), Ok(abi::GetXattrOut { size: 5, padding: 0 }.as_bytes().to_vec()));
    assert_eq!(get(4), Err(Errno::RANGE));
    assert_eq!(get(5), Ok(b"value".to_vec()));
    assert_eq!(get(u32::MAX), Ok(b"value".to_vec()));
    let list = abi::GetXattrIn { size: 7, padding: 0 };
    assert_eq!(guest.body(&Message::new(Opcode::ListXattr, 1).with(&list)), Ok(b"user.a\0".into()));
}

#[test]
fn older_guest_sends_shorter_setxattr() {
    let guest = Guest::new();
    guest.init(31, 0, 0);
    let set = [5_u32, 0];
    let message = Message::new(Opcode::SetXattr, 1).with(&set).bytes(b"user.a\0value");
    assert_eq!(guest.body(&message), Ok(Vec::new()));
}

#[test]
fn guest_that_starts_again_agrees_again() {
    let guest = Guest::started();
    guest.body(&Message::new(Opcode::Destroy, 0)).unwrap();
    assert_eq!(guest.body(&Message::new(Opcode::GetAttr, 1)), Err(Errno::IO));
    guest.init(38, 0, 0);
    guest.init(45, u32::MAX, u32::MAX);
    assert!(guest.body(&Message::new(Opcode::GetAttr, 1)).is_ok());
    let counts = guest.session.take_counts().into_iter();
    let counts: Vec<_> =
        counts.map(|row| (row.name, row.requests, row.request_bytes, row.reply_bytes)).collect();
    // fuse.h: in_header 40, init_in 64; out_header 16, attr_out 104, init_out 64. This guest's
    // GETATTR has no body.
    assert_eq!(
        counts,
        [("GETATTR", 2, 2 * 40, 16 + 120), ("INIT", 3, 3 * 104, 3 * 80), ("DESTROY", 1, 40, 16)]
    );
}

#[test]
fn requests_that_may_wait_go_to_the_pool() {
    let guest = Guest::started();
    let place = |opcode, node| guest.session.placement(&Message::new(opcode, node).assembled());
    let tried = [Opcode::Read, Opcode::Write, Opcode::SetAttr, Opcode::Rename2, Opcode::Lookup];
    for opcode in tried {
        assert_eq!(place(opcode, 2), Placement::TryInline, "{opcode:?}");
    }
    let large = Message::new(Opcode::Write, 2).bytes(&vec![0; 200_000]).assembled();
    assert_eq!(guest.session.placement(&large), Placement::Pool);
    for opcode in [Opcode::Read, Opcode::Write] {
        assert_eq!(place(opcode, STREAM.0), Placement::Stream, "{opcode:?}");
    }
    for opcode in [Opcode::GetAttr, Opcode::Forget, Opcode::Init, Opcode::Open] {
        assert_eq!(place(opcode, 2), Placement::Inline, "{opcode:?}");
    }
    for opcode in [Opcode::FSync, Opcode::SyncFs, Opcode::Link] {
        assert_eq!(place(opcode, 2), Placement::Pool, "{opcode:?}");
    }
    assert_eq!(guest.session.placement(b"short"), Placement::Inline);
}

#[test]
fn only_a_writes_data_stays_in_guest_memory() {
    let guest = Guest::started();
    let header = |opcode| {
        let header = Message::new(opcode, 1).header;
        <[u8; 40]>::read_from_bytes(header.as_bytes()).unwrap()
    };
    let bytes = |opcode, total| guest.session.message_bytes(&header(opcode), total);
    assert_eq!(bytes(Opcode::Write, 1 << 20), 80);
    assert_eq!(bytes(Opcode::Write, 60), 60);
    assert_eq!(bytes(Opcode::SetXattr, 66_000), 66_000);
    assert_eq!(bytes(Opcode::SetXattr, 1 << 30), MESSAGE_BYTES_MAX);
}
