//! The laws of trust: who may have written an index, and what a damaged one can do.

use std::fs;
use std::io::{Seek, SeekFrom, Write};

use zerocopy::{FromBytes, IntoBytes};

use super::format::Header;
use super::*;
use crate::layer::lower::{Lower, Strictness};
use crate::layer::testbed::{Bed, chmod, is_root, plain, serve};

fn sample(bed: &Bed) -> Vec<u8> {
    let a = bed.tree("a", &["d/e/f", "g", "h/"]);
    let b = bed.tree("b", &["d/x", "y"]);
    bed.shell("ln a/g a/h/link; ln -s target a/s; setfattr -n user.x -v value a/g");
    bed.seal(&[plain(&a), plain(&b)]);
    fs::read(bed.index_file()).unwrap()
}

#[test]
fn index_that_others_could_have_written_is_refused() {
    let bed = Bed::new();
    let file = bed.index_file();
    sample(&bed);
    for (mode, is_trusted) in
        [(0o600, true), (0o644, true), (0o664, false), (0o606, false), (0o444, true)]
    {
        chmod(&file, mode);
        let opened = Index::open(&file);
        assert_eq!(opened.is_ok(), is_trusted, "{mode:o}");
        if let Err(error) = opened {
            assert!(matches!(error, IndexError::Untrusted { .. }), "{error}");
        }
    }
    chmod(&file, 0o600);
    let link = bed.path("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    assert!(matches!(Index::open(&link), Err(IndexError::Open { .. })));
    assert!(Index::open(&bed.path("a")).is_err());
    if is_root() {
        std::os::unix::fs::chown(&file, Some(65534), None).unwrap();
        assert!(matches!(Index::open(&file), Err(IndexError::Untrusted { .. })));
    }
}

#[test]
fn truncated_or_damaged_header_is_refused() {
    let bed = Bed::new();
    let file = bed.index_file();
    let bytes = sample(&bed);
    for length in [0, 1, 8, size_of::<Header>() - 1, size_of::<Header>(), bytes.len() - 1] {
        fs::write(&file, &bytes[..length]).unwrap();
        assert!(Index::open(&file).is_err(), "{length} bytes");
    }
    for at in 0..size_of::<Header>() {
        let mut bad = bytes.clone();
        bad[at] ^= 0x40;
        fs::write(&file, &bad).unwrap();
        assert!(Index::open(&file).is_err(), "byte {at}");
    }
}

#[test]
fn flipped_bytes_never_panic_any_accessor() {
    let bed = Bed::new();
    let bytes = sample(&bed);
    for at in size_of::<Header>()..bytes.len() {
        for bit in [0x01, 0xff] {
            let mut bad = bytes.clone();
            bad[at] ^= bit;
            ask_everything(&bed, &bad);
        }
    }
}

#[test]
fn forged_sections_never_panic_any_accessor() {
    let bed = Bed::new();
    let bytes = sample(&bed);
    let length = size_of::<Header>();
    for at in 12..length - 16 {
        for value in [0x01, 0xff] {
            let mut bad = bytes.clone();
            bad[at] = value;
            let (mut header, _) = Header::read_from_prefix(&bad).unwrap();
            let mut check = digest::Digest::new();
            check.update(&header.as_bytes()[..length - 16]);
            header.check = check.finish();
            bad[..length].copy_from_slice(header.as_bytes());
            ask_everything(&bed, &bad);
        }
    }
}

/// Asks a lower over a damaged index everything there is to ask; any answer will do.
fn ask_everything(bed: &Bed, bytes: &[u8]) {
    let file = bed.index_file();
    let mut out = fs::OpenOptions::new().write(true).open(&file).unwrap();
    out.seek(SeekFrom::Start(0)).unwrap();
    out.write_all(bytes).unwrap();
    let Ok(index) = Index::open(&file) else { return };
    if index.directories_present() > 1000 || index.layers().map_or(0, |layers| layers.len()) != 2 {
        return;
    }
    let specs = [plain(&bed.path("a")), plain(&bed.path("b"))];
    let (lower, _) = serve(index, &specs, Strictness::Lax);
    let last = lower.index().last_number().min(20);
    for number in (0..=last + 1).chain([u32::MAX]) {
        std::hint::black_box(answers(&lower, ObjectId(number)));
    }
}

/// How many of all questions about an object have an answer.
fn answers(lower: &Lower, id: ObjectId) -> usize {
    let answered = [
        lower.attributes(id).is_ok(),
        lower.kind(id).is_ok(),
        lower.target(id).is_ok(),
        lower.path(id).is_ok_and(|path| lower.resolve(&path).is_ok()),
        lower.is_hard_linked(id).is_ok(),
        lower.xattr(id, b"user.x").is_ok(),
        lower.xattrs(id).is_ok(),
        lower.open_file(id).is_ok(),
        lower.child(id, b"e").is_ok(),
        lower.subdirectories(id).is_ok(),
        lower.origin_handle(id).is_some(),
    ];
    let slots = lower.entries(id).unwrap_or(0).min(20);
    let entries = (0..slots).filter(|slot| lower.entry(id, Slot(*slot)).is_ok()).count();
    entries + answered.into_iter().filter(|answered| *answered).count()
}
